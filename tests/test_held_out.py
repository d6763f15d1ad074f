"""The driver of the held-out benchmark: what it keeps, joins, stores and compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("PIL")

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """The modules of the benchmark: driver, pairs, rows, page."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import held_out
    import held_out_page
    import held_out_pairs
    import held_out_rows

    return held_out, held_out_pairs, held_out_rows, held_out_page


@pytest.fixture
def pair(benchmark):
    """Five inputs of a small network on a table, two at a time, of which the first four are judged for stability."""
    from consilience.explainers import FeatureAblation, InputXGradient, Saliency

    _, pairs, _, _ = benchmark
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    members = (Saliency(), InputXGradient(), FeatureAblation())
    return pairs.Pair(
        "toy", "table", model, torch.randn(5, 6), members, (), masks=24, chunk=2, stable=4, absent=(0.5, "noise")
    )


@pytest.fixture
def run(benchmark, pair, monkeypatch, tmp_path):
    """Runs the driver over the toy pair, and gives what it stored."""
    driver, _, _, _ = benchmark
    out = tmp_path / "held_out.json"

    def run(*arguments):
        monkeypatch.setattr(driver, "makers", lambda data, cache, count: {"toy": lambda: pair})
        command = ["held_out.py", "--data", str(tmp_path), "--cache", str(tmp_path / "cache"), "--out", str(out)]
        monkeypatch.setattr(sys, "argv", [*command, *arguments])
        driver.main()
        return json.loads(out.read_text(encoding="utf-8"))

    return run


def test_a_run_that_was_killed_goes_on_with_what_it_has(benchmark, run, monkeypatch):
    driver, _, _, _ = benchmark
    compute = driver.Piece.compute
    made = []

    def until_killed(piece):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append((piece.group.name, piece.kind, piece.places.start))
        return compute(piece)

    monkeypatch.setattr(driver.Piece, "compute", until_killed)
    with pytest.raises(KeyboardInterrupt):
        run()
    again = []

    def counted(piece):
        again.append((piece.group.name, piece.kind, piece.places.start))
        return compute(piece)

    monkeypatch.setattr(driver.Piece, "compute", counted)
    whole = run()
    # Of tables there are no absolute maps, and no sets for images.
    assert made + again == [
        (name, kind, start)
        for start in (0, 2, 4)
        for name in ("signed", "posterior", "default table")
        for kind, count in (("faithfulness", 5), ("stability", 4))
        if start < count
    ]
    monkeypatch.setattr(driver.Piece, "compute", None)  # nothing is made any more
    assert run()["rows"] == whole["rows"]


def test_what_was_finished_can_be_stored_without_the_rest(benchmark, run, monkeypatch):
    driver, _, _, _ = benchmark
    compute = driver.Piece.compute

    def first_chunk(piece):
        if piece.places.start:
            raise KeyboardInterrupt
        return compute(piece)

    monkeypatch.setattr(driver.Piece, "compute", first_chunk)
    with pytest.raises(KeyboardInterrupt):
        run()
    stored = run("--kept")
    assert stored["pairs"]["toy"]["n"] == 2
    assert {len(row["values"]) for row in stored["rows"]} == {2}
    # Rows of all groups are there, since chunks are finished one after the other.
    assert {"ridge", "posterior"} <= {row["method"] for row in stored["rows"]}


def test_dear_pairs_take_turns_behind_the_others(benchmark, pair):
    driver, _, _, _ = benchmark
    from dataclasses import replace

    dear = [replace(pair, name=name, light=True) for name in ("a", "b")]
    cheap = replace(pair, name="c")
    every = [piece for each in (*dear, cheap) for piece in driver.pieces(each, driver.GROUPS[:1])]
    order = [(piece.pair.name, piece.places.start) for piece in driver.in_turn(every)]
    assert list(dict.fromkeys(order)) == [
        ("c", 0), ("c", 2), ("c", 4), ("a", 0), ("b", 0), ("a", 2), ("b", 2), ("a", 4), ("b", 4),
    ]  # fmt: skip


def test_chunks_and_interruptions_change_no_number(benchmark, pair, run):
    driver, _, _, _ = benchmark
    from dataclasses import replace

    stored = {(row["method"], row["measure"]): row["values"] for row in run()["rows"]}
    (at_once,) = [
        piece.compute()
        for piece in driver.pieces(replace(pair, chunk=5), driver.GROUPS[:1])
        if piece.kind == "faithfulness"
    ]
    for measure in at_once.measures:
        for row, numbers in at_once[measure].items():
            found = np.array(stored[row, measure], dtype=float)
            np.testing.assert_allclose(found, numbers, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("objective", ["posterior", "faith", "opt"])
@pytest.mark.parametrize("some", [None, ("input_x_gradient", "feature_ablation")], ids=["all", "a set"])
def test_a_row_is_the_consensus_that_evaluate_judges(benchmark, pair, objective, some):
    import consilience as cs
    from consilience.measures import Deletion, MaxSensitivity, RandomLogit

    driver, _, rows, _ = benchmark
    sets = () if some is None else (("set", some),)
    group = rows.RowGroup("here", mixtures=(objective,), sets=sets)
    row = objective if some is None else f"{objective} (set)"
    asked = [Deletion(steps=10, baseline=0.5, value="score"), MaxSensitivity(samples=2), RandomLogit()]
    judged = cs.evaluate(
        pair.model,
        pair.x[:2],
        measures=asked,
        methods=[each for each in pair.members if some is None or each.name in some],
        objective=objective,
        fit_draws={"average_sensitivity": rows.NEIGHBOURS, "infidelity": pair.masks},
    )
    for kind in ("faithfulness", "stability"):
        found = driver.Piece(pair, group, kind, range(2)).compute()
        assert found.rows == (row,)
        for measure in set(found.measures) & set(judged.measures):
            np.testing.assert_allclose(found[measure][row], judged[measure]["consensus"], rtol=1e-4, atol=1e-6)


def test_what_was_made_of_another_model_is_made_again(benchmark, pair, tmp_path):
    driver, _, _, _ = benchmark
    piece = next(driver.pieces(pair))
    piece.get(tmp_path)
    assert piece.kept(tmp_path) is not None
    with torch.no_grad():
        pair.model[0].bias += 1
    assert piece.kept(tmp_path) is None


def test_the_file_gives_back_every_number_and_none_where_there_is_none(benchmark, pair, run):
    _, _, _, page = benchmark
    result = run()
    (table,) = page.evaluations(result).values()
    # The fifth input was not judged for stability, and all five for faithfulness.
    assert np.isfinite(table["deletion"]["ridge"]).all()
    missing = np.isnan(table["max_sensitivity"]["ridge"])
    assert missing.tolist() == [False, False, False, False, True]
    for row in result["rows"]:
        about = table.summary()[row["measure"]][row["method"]]
        assert about["n"] == row["n"]
        if row["value"] is not None:
            assert about["mean"] == pytest.approx(row["value"], rel=2e-3, abs=1e-6)
    mixed = {"mean", "median", "rank", "best_single", "faith", "robust", "opt", "paper_opt", "faith (standard)"}
    assert mixed | {"saliency", "ridge", "posterior", "masks alone"} <= set(table.rows)


def test_every_pair_of_numbers_is_compared_by_the_library_and_corrected_over_measures(benchmark):
    from consilience.results.evaluation import Evaluation
    from consilience.statistics.paired import holm

    _, _, _, page = benchmark
    rng = np.random.default_rng(0)
    base = rng.normal(size=(12, 1))
    values = {
        "deletion": np.hstack([base, base + 1 + 0.1 * rng.normal(size=(12, 1))]),
        "insertion": np.hstack([base, base + 0.01 * rng.normal(size=(12, 1))]),
    }
    table = Evaluation(("a", "b"), tuple(values), {"deletion": "lower", "insertion": "higher"}, list(range(12)), values)
    found = {each.measure: each for each in page.behind(table, "b", ["deletion", "insertion", "not there"])}
    assert found["deletion"].best == "a"
    assert found["deletion"].significant
    assert not found["insertion"].significant
    best = found["insertion"].best
    p = [table.compare("b", "a", "deletion")[0].p, table.compare("b", best, "insertion")[0].p]
    assert [found["deletion"].p, found["insertion"].p] == pytest.approx(holm(np.array(p)))
    # Where a row is the best itself it cannot be behind.
    assert not any(each.significant for each in page.behind(table, "a", ["deletion"]))


def test_ranks_go_from_the_best_to_the_last_by_the_measures_direction(benchmark):
    from consilience.results.evaluation import Evaluation

    _, _, _, page = benchmark
    values = {
        "deletion": np.array([[1.0, 2.0, 3.0]]),
        "insertion": np.array([[1.0, 2.0, 3.0]]),
        "mprt": np.array([[1.0, 2.0, np.nan]]),
    }
    better = {"deletion": "lower", "insertion": "higher", "mprt": "lower"}
    table = Evaluation(("a", "b", "c"), tuple(values), better, [0], values)
    ranks = page.mean_ranks([table])
    assert ranks["a"] == {"removal": 0.5, "sanity": 0.0, "all": pytest.approx(1 / 3)}
    assert ranks["b"] == {"removal": 0.5, "sanity": 1.0, "all": pytest.approx(2 / 3)}
    assert ranks["c"] == {"removal": 0.5, "all": 0.5}


def test_the_ridge_is_the_one_of_the_smallest_leave_one_out_error(benchmark):
    _, _, rows, _ = benchmark
    torch.manual_seed(0)
    masks = (torch.rand(2, 14, 5) < 0.4).double()
    truth = torch.randn(2, 5, 1, dtype=torch.float64)
    falls = (masks @ truth)[..., 0] + 0.5 * torch.randn(2, 14, dtype=torch.float64) + 3
    found = rows.ridge_by_leaving_out(masks, falls)

    def fitted(m, y, penalty):
        z = m - m.mean(0)
        slopes = torch.linalg.solve(z.T @ z + penalty * torch.eye(5, dtype=torch.float64), z.T @ (y - y.mean()))
        return slopes, y.mean() - m.mean(0) @ slopes

    for m, y, mine in zip(masks, falls, found, strict=True):
        z = m - m.mean(0)
        largest = torch.linalg.eigvalsh(z @ z.T).max()
        errors = []
        for power in torch.linspace(-5, 2, 22).tolist():
            penalty = 10**power * largest
            error = 0.0
            slopes, _ = fitted(m, y, penalty)
            hat = z @ torch.linalg.solve(z.T @ z + penalty * torch.eye(5, dtype=torch.float64), z.T) + 1 / 14
            error = (((y - y.mean() - z @ slopes) / (1 - hat.diagonal())) ** 2).mean()
            errors.append((float(error), slopes))
        best = min(errors, key=lambda each: each[0])[1]
        torch.testing.assert_close(mine, best, rtol=1e-7, atol=1e-9)


def test_a_mosaic_has_the_picture_that_is_asked_about_in_its_region(benchmark):
    _, pairs, _, _ = benchmark
    torch.manual_seed(0)
    x = torch.arange(1.0, 6.0)[:, None, None, None].expand(5, 1, 8, 8).contiguous()
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 5)).eval()
    with torch.no_grad():  # the largest output is the picture's own number
        model[2].weight[:, 0] = torch.arange(1.0, 6.0)
        model[2].bias.copy_(-(torch.arange(1.0, 6.0) ** 2) / 2)
    made = pairs.mosaics(pairs.Pair("toy", "image", model, x, (), ()), 4)
    assert made.target.tolist() == [0, 1, 2, 3, 4]
    for i in range(5):
        inside = made.regions[i]
        assert inside.sum() == 16
        assert (made.x[i, 0][inside] == i + 1).all()
        assert (made.x[i, 0][~inside] != i + 1).all()


def test_two_rows_are_counted_by_direction_and_by_corrected_significance(benchmark):
    from consilience.results.evaluation import Evaluation

    _, _, _, page = benchmark
    rng = np.random.default_rng(1)
    base = rng.normal(size=12)
    values = {
        "deletion": np.stack([base, base + 1 + 0.1 * rng.normal(size=12)], 1),  # lower is better: a, surely
        "insertion": np.stack([base, base + 0.001 + rng.normal(size=12)], 1),  # nothing is sure
        "mprt": np.stack([base + 2, base + 0.1 * rng.normal(size=12)], 1),  # lower is better: b, surely
    }
    better = {"deletion": "lower", "insertion": "higher", "mprt": "lower"}
    table = Evaluation(("a", "b"), tuple(values), better, list(range(12)), values)
    found = page.contest([table, table], "a", "b")
    a_inserts_more = 2 * int(values["insertion"][:, 0].mean() > values["insertion"][:, 1].mean())
    assert found == {"removal": [2 + a_inserts_more, 2, 0, 4], "sanity": [0, 0, 2, 2]}
    assert page.contest([table], "a", "not there") == {}


def test_a_gain_is_a_mean_of_ratios_over_pairs(benchmark):
    from consilience.results.evaluation import Evaluation

    _, _, _, page = benchmark

    def pair(*means):
        rows = ("posterior", "best_single", "saliency")
        values = {page.CORRELATION: np.array([means])}
        return Evaluation(rows, tuple(values), {page.CORRELATION: "higher"}, [0], values)

    tables = [pair(0.6, 0.5, 0.3), pair(0.4, 0.2, 0.4)]
    assert page.gain(tables, "posterior", "best_single") == pytest.approx((1.2 + 2.0) / 2)
    assert page.gain(tables, "posterior", "hindsight") == pytest.approx((2.0 + 1.0) / 2)
