"""The report layer: tables, figures and pages from plain data, also where numbers, maps and names misbehave."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import warnings
import zlib
from html.parser import HTMLParser
from importlib import import_module

import numpy as np
import pytest

from consilience import InputError
from consilience.report import sentences
from consilience.report.colours import LEVELS, palette, robust_limit
from consilience.report.entry import Entry, feature_names, top_features
from consilience.report.numbers import Digits, short, with_error
from consilience.report.page import page
from consilience.report.pictures import finite_json
from consilience.report.pixels import indexed_png, photo_png, pool
from consilience.report.sentences import incomplete, nearly_complete
from consilience.report.table import CRITERIA, average, rows
from consilience.report.text import text_table

HOSTILE = "</script><script>alert('x')</script> \"q\" & <img src=x onerror=alert(1)> 猫 $x^2$"
VOID = {"meta", "img", "input", "br", "wbr"}


def entry(
    k=4, seed=0, names=None, shape=(24, 20), signed=False, failed=0, front=False, image=True, label="cat", name="one",
    **known,
):  # fmt: skip
    """A made-up explanation with every field of explanation.json."""
    rng = np.random.default_rng(seed)
    names = names or [f"method_{j}" for j in range(k)]
    maps = rng.standard_normal((k, *shape)) if signed else rng.random((k, *shape))
    why = {names[-1 - j]: "no rule for <an op>" for j in range(failed)}
    weights = rng.dirichlet(np.ones(k))
    if failed:
        maps[-failed:], weights[-failed:] = np.nan, 0
    table = {c.key: {} for c in CRITERIA}
    for row in [*names, "mean", "var", "uniform", "consensus"]:
        for key in table:
            value = None if row in why else float(rng.random())
            if row == "uniform":
                value = {"faithfulness_correlation": None, "infidelity": 1.0}.get(key, 0.0)
            parts = (None, None, None) if value is None else (0.9 * value, value, 0.05)
            table[key][row] = dict(zip(("fit", "fresh", "stderr"), parts, strict=True))
    record = {
        "schema": 1, "input": {"name": name, **known}, "model": "net", "target": 3, "target_label": label, "predicted": 3,
        "predicted_label": label, "score": 2.5, "seed": 0, "methods": names, "objective": "opt",
        "weights": weights.tolist(), "gap": 0.001, "status": "exact", "diversity_gain": 0.3,
        "draws": {"fit": {"average_sensitivity": 10, "infidelity": 256}, "fresh": {}, "resolved": 2},
        "versions": {"torch": "2"}, "evaluations": {"forward": 1000, "gradient": 20}, "seconds": 2.0, "criteria": table,
        "reasons": {"criteria.faithfulness_correlation.uniform": "a constant <response>"}, "failed": why,
        "measures": {"relative_sensitivity_resolved": {"value": 0.2, "stderr": 0.1, "n": 2}},
        "settings": {"sign": "abs", "scale": "max", "mask_unit": "pixel", "radius": 0.1},
    }  # fmt: skip
    if front:
        record["front"] = {
            "relative_sensitivity": [0.1, 0.2, 0.3], "faithfulness_correlation": [0.2, 0.4, 0.5],
            "weights": [np.eye(k)[0].tolist(), weights.tolist(), np.eye(k)[1].tolist()], "chosen": 1,
        }  # fmt: skip
    attribution = np.tensordot(weights, np.nan_to_num(maps), 1)
    photo = rng.random((*shape[:2], 3)) if image and len(shape) > 1 else None
    return Entry(record, photo, maps, attribution, name, {"mean": attribution, "var": attribution})


# -- table -----------------------------------------------------------------------------------------------------------


def test_rows_are_the_methods_then_the_derived_and_the_best_is_marked():
    one = entry(4, failed=1)
    table = rows(one.record)
    assert [row.name for row in table] == [*one.record["methods"], "mean", "var", "uniform", "consensus"]
    for c in CRITERIA:
        fresh = {r.name: r.cells[c.key].fresh for r in table if r.cells[c.key].fresh is not None}
        if c.key.endswith("sensitivity"):
            del fresh["uniform"]  # trivially 0: does not compete
        assert [r.name for r in table if r.cells[c.key].best] == [(max if c.higher else min)(fresh, key=fresh.get)]


def test_averages_and_standard_errors_over_inputs():
    records = [entry(3, seed=i).record for i in range(4)]
    key = "relative_sensitivity"
    values = [r["criteria"][key]["mean"]["fresh"] for r in records]
    cell = next(row for row in average(records) if row.name == "mean").cells[key]
    assert cell.fresh == pytest.approx(np.mean(values)) and cell.fit == pytest.approx(0.9 * np.mean(values))
    assert cell.stderr == pytest.approx(np.std(values, ddof=1) / 2) and (cell.n, cell.of) == (4, 4)
    records[0]["criteria"][key]["mean"]["fresh"] = None
    cell = next(row for row in average(records) if row.name == "mean").cells[key]
    assert cell.fresh == pytest.approx(np.mean(values[1:])) and cell.n == 3 and not cell.best
    assert "mean: averaged over 3 of 4 inputs (relative sensitivity)" in text_table(records)


def test_text_table():
    text = text_table([entry(3, failed=1).record])
    lines = text.splitlines()
    for name in ("method_0", "mean", "var", "uniform", "consensus"):
        assert sum(line.startswith(f"{name} ") for line in lines[: lines.index("", 2)]) == 1
    assert "trivial" in text and "↓ lower is better" in text and "method_2 failed: no rule" in text
    assert text.count("*") == len(CRITERIA) + 1  # one best per criterion, and the legend
    assert text_table([]) == "no inputs"
    no_weights = entry(3).record | {"weights": None}
    assert "–" in text_table([no_weights])


def test_the_text_table_is_at_most_120_characters_wide():
    record = entry(12, names=LONG).record
    record["weights_stderr"] = [0.25] * 12
    rules = [line for line in text_table([record]).splitlines() if line.startswith("---")]
    assert len(rules) == 2 and max(map(len, rules)) <= 120
    small = entry(3).record
    for table in small["criteria"].values():
        for numbers in table.values():
            numbers.update({part: value and value * 1e-3 for part, value in numbers.items()})
    rules = [line for line in text_table([small]).splitlines() if line.startswith("---")]
    assert max(map(len, rules)) <= 120


def test_numbers_have_no_more_digits_than_their_errors():
    assert Digits([0.00217, 0.00334])(0.00217) == "0.00217"
    digits = Digits([0.00217, 0.00334], [0.00111, 0.0012])
    assert digits(0.00217) == "0.0022" and digits(0.00111) == "0.0011"
    assert Digits([3.0, 4.0], [20.0])(3.0) == "3.0"
    assert with_error(0.12345, 0.0123) == "0.123 ± 0.012" and with_error(None, 1.0) == "–"
    assert short(4e-15) == "0" and short(0.012345) == "0.0123" and short(123456.0) == "1.2e+05"


def test_where_all_are_the_same_none_is_the_best():
    record = entry(3).record
    for numbers in record["criteria"]["infidelity"].values():
        numbers["fresh"] = 2.0
    assert not any(row.cells["infidelity"].best for row in rows(record))


# -- pixels and colours ----------------------------------------------------------------------------------------------


def test_pool_is_the_mean_over_areas_and_leaves_out_nan():
    x = np.arange(24.0).reshape(4, 6)
    np.testing.assert_allclose(pool(x, 3), x.reshape(2, 2, 3, 2).mean((1, 3)))
    np.testing.assert_allclose(pool(x, 5).mean(), x.mean())  # uneven areas keep the mean
    assert pool(x, 6) is x
    x[0, 0] = np.nan
    assert pool(x, 3)[0, 0] == pytest.approx((1 + 6 + 7) / 3)
    assert pool(np.zeros((8, 4, 3)), 4).shape == (4, 2, 3)


def test_png_files_are_read_back():
    Image = pytest.importorskip("PIL.Image")
    import io

    photo = np.random.default_rng(0).random((9, 7, 3))
    with Image.open(io.BytesIO(photo_png(photo))) as image:
        np.testing.assert_array_equal(np.asarray(image), np.rint(photo * 255))
    colours = palette(True)
    levels = np.arange(12).reshape(3, 4)
    with Image.open(io.BytesIO(indexed_png(levels, colours.clear))) as image:
        np.testing.assert_array_equal(np.asarray(image.convert("RGBA")), np.rint(colours.clear * 255)[levels])


@pytest.mark.parametrize("signed", [False, True])
def test_a_translucent_colour_over_zero_is_the_opaque_colour(signed):
    colours = palette(signed)
    alpha = colours.clear[:, 3:]
    np.testing.assert_allclose(colours.clear[:, :3] * alpha + colours.zero * (1 - alpha), colours.opaque, atol=1e-9)
    middle = LEVELS // 2 if signed else 0
    assert (
        colours.levels(np.zeros(1))[0] == middle
        and alpha[middle] == 0
        and colours.levels(np.array([np.nan]))[0] == LEVELS
    )
    brightness = colours.opaque @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(brightness[middle:]) * (-1 if signed else 1) > 0).all()


def test_the_colour_limit_is_robust_and_positive():
    x = np.ones(1000)
    x[0] = 1e9
    assert robust_limit(x) == 1
    assert robust_limit(np.zeros(5)) == 1 and robust_limit(np.full(5, np.nan)) == 1
    assert robust_limit(np.eye(1, 5000)) == 1  # a single feature


def test_an_entry_checks_its_shapes():
    one = entry(3)
    with pytest.raises(InputError, match="3 methods in the record, but 2 maps"):
        dataclasses.replace(one, maps=one.maps[:2])
    with pytest.raises(InputError, match="mean"):
        dataclasses.replace(one, extra={"mean": one.attribution[1:]})


# -- figure ----------------------------------------------------------------------------------------------------------

LONG = ["Ω_$x^2$_" + "very_long_" * 6 + str(j) for j in range(12)]
FIGURES = {
    **{f"k={k}": {"k": k} for k in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)},
    "signed": {"signed": True, "shape": (20, 40)},
    "failed": {"k": 6, "failed": 3},
    "long": {"k": 12, "names": LONG, "label": HOSTILE, "name": HOSTILE},
    "channels": {"shape": (3, 16, 16), "image": False, "signed": True},
    "features": {"shape": (30,), "signed": True},
    "named": {"shape": (3,), "signed": True, "features": [HOSTILE, LONG[0], "\n"]},
}


@pytest.mark.parametrize("case", FIGURES.values(), ids=FIGURES)
def test_figure(case, tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    from consilience.report.figure import figure

    one = entry(**case)
    one.maps[0].flat[:5] = np.nan
    before = dict(matplotlib.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = figure(one)
        drawn.savefig(tmp_path / "one.png", dpi=40)
    assert dict(matplotlib.rcParams) == before
    assert min(text.get_fontsize() for text in drawn.findobj(matplotlib.text.Text) if text.get_text()) >= 9
    box = drawn.bbox
    for text in drawn.texts:
        extent = text.get_window_extent()
        assert extent.x0 >= box.x0 and extent.x1 <= box.x1 and extent.y0 >= box.y0 and extent.y1 <= box.y1, text


def test_bars_are_named_by_columns_or_tokens_and_padding_has_none():
    numbers = entry(shape=(2, 2, 9))
    assert feature_names(numbers)[:2] == ["feature 0, 0, 0", "feature 0, 0, 1"] and len(top_features(numbers)) == 20
    wrong = entry(shape=(3,), tokens=["a", "b"])
    assert feature_names(wrong) == ["feature 0", "feature 1", "feature 2"]
    for what in ("features", "tokens"):
        one = entry(shape=(5,), **{what: ["a", "", "b", "", ""]})
        one.attribution[:] = [0, 2, -3, 0, np.nan]
        assert feature_names(one) == ["a", "", "b", "", ""] and top_features(one).tolist() == [2, 1, 0]


# -- page ------------------------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Checks nesting, and collects what a browser would see."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        self.texts.append(data)


PAGES = {
    "plain": [entry()],
    "front": [entry(5, front=True), entry(3, seed=1, signed=True, failed=1, front=True)],
    "features": [entry(3, shape=(40,), signed=True)],
    "no picture": [entry(3, image=False)],
    "named": [
        entry(3, shape=(3,), features=["<img src=x onerror=alert(1)>"] * 3),
        entry(3, shape=(2,), tokens=[HOSTILE, ""]),
    ],
    "hostile": [
        entry(3, names=[HOSTILE + str(j) for j in range(3)], name=HOSTILE, label=HOSTILE, front=True, failed=1)
    ],
    "nothing": [],
}


@pytest.mark.parametrize("entries", PAGES.values(), ids=PAGES)
def test_page_is_whole_offline_and_escaped(entries):
    text = page(entries, HOSTILE, failures=[(HOSTILE, HOSTILE)])
    read = Reader(text)
    scripts = [attrs for tag, attrs in read.tags if tag == "script"]
    assert scripts == [{}]  # its own
    assert not re.search(r"https?://", text)
    for tag, attrs in read.tags:
        assert not any(name.startswith("on") for name in attrs), (tag, attrs)
        assert attrs.get("src", "data:image/png;").startswith("data:image/png;")
        assert attrs.get("href", "#").startswith("#") and (tag != "img" or "alt" in attrs)
    assert "".join(read.texts).count("<img src=x") >= 3  # shown as text
    ids = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_page_shows_missing_numbers_with_their_reason():
    text = page([entry(3, failed=1)], "t")
    assert '<abbr title="a constant &lt;response&gt;">–</abbr>' in text
    assert "failed: no rule for &lt;an op&gt;" in text and "trivial" in text
    bare = entry(3)
    bare.record.update(gap=None, score=None, weights=None, diversity_gain=None, reasons={"gap": "nothing solved"})
    text = page([bare], "t")
    assert '<abbr title="nothing solved">–</abbr>' in text and not re.search(
        r"\b(None|nan|NaN)\b", text.split("<script>")[0]
    )


def test_page_embeds_the_front_so_that_the_chosen_point_is_the_answer():
    one = entry(4, front=True)
    (attrs,) = [attrs for _, attrs in Reader(page([one], "t")).tags if "data-front" in attrs]
    data = json.loads(attrs["data-front"])
    assert data["weights"][data["chosen"]] == one.record["weights"]
    assert data["sensitivity"][1] == one.record["criteria"]["relative_sensitivity"]["consensus"]["fit"]
    import base64

    small = [
        low + step * np.frombuffer(base64.b64decode(grid), np.uint8)
        for grid, (low, step) in zip(data["grids"], data["scales"], strict=True)
    ]
    mixed = np.tensordot(one.record["weights"], np.array(small), 1)
    np.testing.assert_allclose(mixed, one.attribution.ravel(), atol=2 / 255)


def test_page_sums_what_was_evaluated_once():
    batch = [entry(seed=i) for i in range(2)]
    for one in batch:
        one.record["evaluations"]["inputs"] = 2  # each record counts the whole batch
    assert "1,000 forward and 20 gradient" in page(batch, "t")


def test_json_for_the_browser_has_no_nan():
    assert json.loads(finite_json({"a": "<!--", "b": math.nan, "c": [1.5, math.inf]})) == {
        "a": "<!--", "b": None, "c": [1.5, None],
    }  # fmt: skip


def test_pictures_are_small():
    one = entry(3, shape=(400, 300))
    text = page([one], "t")
    for data in re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", text):
        import base64

        png = base64.b64decode(data)
        width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
        assert max(width, height) <= 224 and zlib.crc32(png[12:29]) == int.from_bytes(png[29:33], "big")


def test_what_scaled_maps_miss_of_a_sum_is_said_without_alarm():
    lines_of_doctor = import_module("consilience.doctor")  # whose name in the package is the function

    # Sixteen steps of a quadrature miss a fifth of the sum and have the map right: a warning only where sums are shown.
    def lines(error: float, scale: str) -> tuple[list[str], list[str]]:
        explainers = {"integrated_gradients": "IntegratedGradients(n_steps=16)"}
        settings = {"sign": "keep", "scale": scale, "explainers": explainers}
        record = {"completeness_error": {"integrated_gradients": error}, "settings": settings}
        return incomplete([record]), nearly_complete([record])

    assert (lines_of_doctor.SUMS, lines_of_doctor.SHAPES) == (sentences.SUMS, sentences.SHAPES)
    assert lines(0.05, "max") == lines(0.05, "none") == ([], [])
    warned, said = lines(0.2, "none")
    assert "within 20% only" in warned[0] and "IntegratedGradients(n_steps=64)" in warned[0] and not said
    warned, said = lines(0.2, "max")
    assert not warned and "integrated_gradients 20%" in said[0]
    warned, said = lines(0.6, "max")
    assert "within 60% only" in warned[0] and not said
