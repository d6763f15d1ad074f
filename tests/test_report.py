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
from pathlib import Path

import numpy as np
import pytest

from consilience import InputError
from consilience.report import sentences
from consilience.report.colours import LEVELS, palette, robust_limit
from consilience.report.differences import differences
from consilience.report.entry import Entry, feature_names, top_features
from consilience.report.numbers import Digits, short, with_error
from consilience.report.page import page
from consilience.report.pictures import finite_json
from consilience.report.pixels import indexed_png, photo_png, pool
from consilience.report.plane import Axis
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
    first, second = [at for at, line in enumerate(lines) if not line][:2]
    for name in ("method_0", "mean", "var", "uniform", "consensus"):
        assert sum(line.startswith(f"{name} ") for line in lines[first:second]) == 1
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
    doctor = import_module("consilience.doctor")  # the module; cs.doctor is the function

    # Sixteen steps of a quadrature miss a fifth of the sum and have the map right: a warning only where sums are shown.
    def lines(error: float, scale: str) -> tuple[list[str], list[str]]:
        explainers = {"integrated_gradients": "IntegratedGradients(n_steps=16)"}
        settings = {"sign": "keep", "scale": scale, "explainers": explainers}
        record = {"completeness_error": {"integrated_gradients": error}, "settings": settings}
        return incomplete([record]), nearly_complete([record])

    assert (doctor.EXACT_SUM, doctor.QUADRATURE_SUM) == (sentences.SUMS, sentences.SHAPES)
    assert lines(0.05, "max") == lines(0.05, "none") == ([], [])
    warned, noted = lines(0.2, "none")
    assert "within 20% only" in warned[0] and "IntegratedGradients(n_steps=64)" in warned[0] and not noted
    warned, noted = lines(0.2, "max")
    assert not warned and "integrated_gradients 20%" in noted[0]
    warned, noted = lines(0.6, "max")
    assert "within 60% only" in warned[0] and not noted


# -- escaping --------------------------------------------------------------------------------------------------------

PAYLOADS = (
    '"><meta http-equiv=refresh content="0;url=x:">',
    "</script><script>alert(1)</script>",
    "' onmouseover='alert(1)' x='",
    '" onerror="alert(1)" style="background:url(x:)" x="',
    "javascript:alert(1)",
    "</style></title></textarea><svg onload=alert(1)>",
    "--><base href=x:><iframe srcdoc=x>",
    "{{ 7 * 7 }}{% include 'page.css' %}",
)
MIXED = " ".join(PAYLOADS)
STYLE = re.compile(r"(--zero:#\w{6};?|--ratio:[\d.]+;?|--w:[\d.]+%|background:#\w{6}|aspect-ratio:[\d.]+|height:auto)+")
FILTER = re.compile(r"filter:url\(#fade-\d+\)")


def full_entry(pictured=True):
    """A record with everything that a page shows."""
    kind = {"shape": (6, 5), "front": True} if pictured else {"shape": (4,), "tokens": ["a", "b", "c", "d"]}
    one = entry(3, failed=1, name="one", **kind)
    difference = {"best_single": "method_0", "value": 0.1, "stderr": 0.05, "low": 0.0, "high": 0.2, "n": 9}
    one.record.update(
        {
            "kinds": ["gradient"] * 3,
            "weights_stderr": [0.1, 0.1, 0.0],
            "status": "optimal; no method explains these masks (0.01 ± 0.2)",
            "value": 0.5,
            "warnings": ["the outputs look like probabilities"],
            "completeness_error": {"method_0": 0.3},
            "differences": {"noise_over_signal": difference, "faithfulness_correlation": dict(difference)},
        }
    )
    one.record["draws"]["masks"] = {"fit": 10, "fresh": 20, "exact": True}
    one.record["settings"] |= {
        "score": "logit", "outputs": "logits", "redraw": True, "mask_share": [0.1, 0.6], "mask_baseline": "blur",
        "sensitivity": "Uniform(radius=0.1)", "noise_unit": "input units", "explainers": {"method_0": "M(n_steps=3)"},
    }  # fmt: skip
    return one


def places(value, path=()):
    """Every path into a record, to mappings and lists as well as to their values."""
    if path:
        yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield from places(each, (*path, key))


def changed(record, path, change):
    """A copy in which ``change(mapping or list, key)`` was done at ``path``."""
    copy = json.loads(json.dumps(record))
    inside = copy
    for key in path[:-1]:
        inside = inside[key]
    change(inside, path[-1])
    return copy


def parts_of(text):
    """(element, attribute) of a page, and checks of every attribute's value."""
    parts = set()
    for tag, attrs in Reader(text).tags:
        parts.add((tag, None))
        for name, value in attrs.items():
            parts.add((tag, name))
            assert name not in ("href", "src") or re.match(r"#input-\d+$|data:image/png;base64,[\w+/=]*$", value), value
            assert name != "style" or STYLE.fullmatch(value) or FILTER.fullmatch(value), value
    return parts


@pytest.fixture(scope="module")
def clean():
    """Every element and attribute that a page has by itself."""
    parts = set()
    for one in (full_entry(), full_entry(False), entry(3, signed=True, image=False)):
        for count in (1, 2):
            bare = dataclasses.replace(
                one, record={**one.record, "reasons": {}, "gap": None, "status": "no valid method"}
            )
            two = dataclasses.replace(one, record={**one.record, "warnings": ["another"], "predicted": 1})
            parts |= parts_of(page([one] * count, "t", [("x", "y")])) | parts_of(page([one, bare, two], "t"))
    return parts


def hostile(one, record):
    """The entry with another record; None where its list of methods no longer fits the maps."""
    try:
        return dataclasses.replace(one, record=record)
    except InputError:
        return None


@pytest.mark.parametrize("pictured", [True, False])
def test_no_value_of_a_record_becomes_markup(clean, pictured):
    one = full_entry(pictured)

    def put(inside, key):
        inside[key] = MIXED

    for path in places(one.record):
        other = hostile(one, changed(one.record, path, put))
        if other is not None:
            assert parts_of(page([other], "t")) <= clean, path


@pytest.mark.parametrize("pictured", [True, False])
def test_no_key_of_a_record_becomes_markup(clean, pictured):
    one = full_entry(pictured)

    def rename(inside, key):
        inside[MIXED] = inside.pop(key)

    for path in places(one.record):
        if isinstance(path[-1], str):
            other = hostile(one, changed(one.record, path, rename))
            if other is not None:
                assert parts_of(page([other], "t")) <= clean, path


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_name_title_or_reason_becomes_markup(clean, payload):
    for pictured in (True, False):
        one = full_entry(pictured)
        known = {**one.record["input"], "name": payload, "features": [payload] * 4, "tokens": [payload] * 4}
        text = json.dumps(one.record).replace("method_0", json.dumps(payload)[1:-1])
        record = json.loads(text) | {
            "input": known, "target_label": payload, "model": payload, "status": payload, "warnings": [payload],
        }  # fmt: skip
        several = [dataclasses.replace(one, record=record, name=payload, extra={payload: one.attribution})] * 2
        text = page(several, payload, [(payload, payload)])
        assert parts_of(text) <= clean
        assert payload in "".join(Reader(text).texts)  # shown as it is


def test_only_style_and_script_are_not_escaped():
    """In one place of the package, for what is the package's own."""
    from importlib import resources

    folder = resources.files("consilience.report")
    templates = {path.name: path.read_text(encoding="utf-8") for path in folder.joinpath("templates").iterdir()}
    assert not any(
        "safe" in text or "autoescape" in text for name, text in templates.items() if name.endswith(("html", "svg"))
    )
    code = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir() if path.name.endswith(".py")}
    assert [name for name, text in code.items() if "Markup" in text] == ["page.py"]


@pytest.mark.parametrize("pictured", [True, False])
def test_a_record_that_lacks_anything_makes_a_page_a_table_and_a_picture(pictured):
    """Older versions recorded less."""
    one = full_entry(pictured)

    def drop(inside, key):
        del inside[key]

    for path in places(one.record):
        if isinstance(path[-1], str) and path != ("methods",):
            record = changed(one.record, path, drop)
            assert "<article" in page([dataclasses.replace(one, record=record)], "t"), path
            assert text_table([record]), path


@pytest.mark.parametrize("folder", ["run_schema_1", "run_schema_1_median"])
def test_runs_of_earlier_versions_make_pages(folder, tmp_path):
    pytest.importorskip("matplotlib")
    import consilience as cs

    r = cs.load(Path(__file__).parent / "data" / folder)
    text = r.report(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "consensus" in text and "contrast" not in text.split("</style>")[1].split("<script>")[0]
    r.plot(0).savefig(tmp_path / "one.png", dpi=40)


# -- what a page shows -----------------------------------------------------------------------------------------------


def test_reasons_and_other_long_texts_are_no_terms():
    """A column as wide as its longest term left a letter's room for the rest: pages 65 000 pixels tall."""
    reason = "no rule for the operation, " * 40
    one = full_entry(False)
    one.record["failed"] = dict.fromkeys(one.methods, reason)
    one.record["reasons"] = {f"criteria.infidelity.{name}": reason for name in one.methods}
    text = page([one] * 2, "t")
    terms = re.findall(r"<dt>(.*?)</dt>", text, re.DOTALL)
    assert terms and max(map(len, terms)) < 60
    assert "max-content" not in text
    # A reason of failure stands once for the run, not with every input.
    assert sum(reason in each for each in Reader(text).texts) <= 2 + len(one.methods)


def shown(text):
    return " ".join(" ".join(Reader(text).texts).split())


def test_page_shows_errors_differences_and_what_is_not_explained():
    one = full_entry()
    text = shown(page([one], "t"))
    assert "No method explains these masks." in text and "± 0.10" in text
    assert "+0.1 ± 0.05 [0, 0.2] (9 fresh draws), compared with method_0" in text and "undecided" in text
    assert " exact" in text and "The outputs look like" in text.replace("the outputs", "The outputs")
    assert "noise over signal" in text and "contrast" in text
    assert "No method explains the masks of 2 of 2 inputs." in shown(page([one] * 2, "t"))


def test_the_plane_lies_over_the_fronts_criterion():
    one = full_entry()
    assert "Relative sensitivity against correlation" in page([one], "t")
    front = one.record["front"]
    front["noise_over_signal"] = front.pop("relative_sensitivity")
    text = page([one], "t")
    assert "Noise over signal against correlation" in text and "Along the front: noise over signal" in text


def test_the_front_is_recorded_under_its_criterion(tmp_path):
    """ "opt" asks for noise over signal; a front of relative sensitivity says so."""
    import torch

    import consilience as cs

    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)), torch.randn(1, 5)
    methods = ["saliency", "input_x_gradient", "integrated_gradients"]
    front = cs.Front(cs.AverageSensitivity(), cs.Infidelity())
    for objective, criterion in (("opt", "noise_over_signal"), (front, "relative_sensitivity")):
        r = cs.explain(model, x, methods=methods, objective=objective, fit_draws=8, fresh_draws=8)
        record = r.record(0)
        assert r.fronts[0].criterion == criterion and record["front"][criterion] == r.fronts[0].robustness.tolist()
        saved = cs.load(r.save(tmp_path / criterion))
        assert saved.fronts[0].criterion == criterion
        title = criterion.replace("_", " ").capitalize()
        assert f"{title} against correlation" in saved.report(tmp_path / "page.html").read_text(encoding="utf-8")


def test_values_of_zero_do_not_squeeze_the_plane():
    values = [0.0, 4e-15, 0.001, 0.01, 0.2]
    axis = Axis.over(values, 0, 100, log=True)
    assert axis.log and axis(0.0) == axis(4e-15) == 0 and axis(0.01) - axis(0.001) > 20
    assert not Axis.over([0.0, 0.1, 0.2], 0, 100, log=True).log
    assert not Axis.over([-0.1, 0.001, 0.2], 0, 100, log=True).log


def test_a_difference_of_rounding_decides_nothing():
    one = full_entry().record
    one["differences"] = {"infidelity": {"value": -3e-16, "stderr": 1e-17, "low": -3.1e-16, "high": -2.9e-16, "n": 9}}
    (found,) = differences([one])
    assert found.text.startswith("0 (9 fresh draws)") and found.verdict == "equal"
    assert "better for 0, worse for 0 of 2" in differences([one, one])[0].text


def test_stretched_pictures_keep_their_rows():
    series = np.arange(3 * 120.0).reshape(3, 120)
    assert pool(series, 56).shape == (1, 56) and pool(series, 56, stretched=True).shape == (3, 56)


def test_tokens_stand_in_order_on_their_colours():
    one = entry(3, shape=(4,), signed=True, tokens=["not", "bad", "<at>", ""])
    text = page([one], "t")
    tokens = re.search(r'<p class="tokens">(.*?)</p>', text, re.DOTALL)[1]
    assert re.findall(r">([^<]+)</span>", tokens) == ["not", "bad", "&lt;at&gt;"]


def test_the_terminal_gets_no_escape_codes(tmp_path, capsys):
    import consilience as cs
    from consilience.cli import main

    r = cs.load(Path(__file__).parent / "data" / "run_schema_1")
    bad = "\x1b[2J\x1b]0;title\x07\r\u202e"
    r.describe(model=bad, names=[bad, bad])
    assert "\x1b" not in str(r) and "\u202e" not in str(r)
    assert main(["report", str(r.save(tmp_path / bad)), "--out", str(tmp_path / f"{bad}.html")]) == 0
    out = capsys.readouterr()
    assert not set("\x1b\x07\r\u202e") & set(out.out + out.err)
