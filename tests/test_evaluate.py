"""Evaluation over a data set: numbers per input, statistics, comparisons, reasons, interruption."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from nets import Small, images

import consilience as cs
from consilience.card import Card
from consilience.consensus import Evaluation, Evaluator, evaluate
from consilience.explainers import InputXGradient, Saliency
from consilience.measures import Measure

FAST = {"methods": "saliency,input_x_gradient,deeplift", "fit_draws": 8}


@dataclass(frozen=True)
class Peak(Measure):
    """Where the map is largest, as a flat index: depends on the map alone."""

    name, card = "peak", Card("argmax", "here", better="higher")

    def __call__(self, task):
        return task.maps.flatten(2).argmax(2).double()


@dataclass(frozen=True)
class Moves(Measure):
    """The change of the map when the input is doubled: asks for maps elsewhere."""

    name, card = "moves", Card("‖φ(2x) − φ(x)‖", "here", better="lower")

    def __call__(self, task):
        from dataclasses import replace

        there = task.explain(task.score, replace(task.points, x=2 * task.points.x))
        return (there - task.maps).flatten(2).double().norm(dim=2)


@dataclass(frozen=True)
class Signed(Measure):
    name, card, needs = "signed", Card("Σφ", "here"), ("raw",)

    def __call__(self, task):
        return task.raw.flatten(2).sum(2).double()


@dataclass(frozen=True)
class Inside(Measure):
    name, card, needs = "inside", Card("mass in the region", "here", better="higher"), ("regions",)

    def __call__(self, task):
        return (task.maps * task.regions[:, None]).flatten(2).sum(2).double()


@dataclass(frozen=True)
class Fails(Measure):
    name, card = "fails", Card("none", "here")

    def __call__(self, task):
        raise cs.InputError("fails: not on this model")


MINE = [Peak(), Moves(), Signed(), Inside(), Fails()]


def test_numbers_do_not_depend_on_the_batches():
    model, x = Small(), images(5)
    whole = evaluate(model, [x], measures=MINE, **FAST)
    parts = evaluate(model, list(x.split(2)), measures=MINE, **FAST)
    assert whole.rows == ("saliency", "input_x_gradient", "deeplift", "mean", "consensus") and len(parts) == 5
    for name in ("peak", "moves", "signed"):
        np.testing.assert_allclose(whole.values[name], parts.values[name], rtol=1e-9)
    explained = cs.explain(model, x, methods=FAST["methods"], fit_draws=8, fresh_draws=2)
    peak = explained.attribution.flatten(1).argmax(1).numpy()
    np.testing.assert_array_equal(whole["peak"]["consensus"], peak)


def test_what_is_missing_has_a_reason():
    x = images(3)
    x[1] = torch.nan
    found = evaluate(Small(), x, measures=MINE, **FAST)
    assert found.ids == [0, 2] and found.left_out == {"id 1": "the input has NaN or infinite values"}
    assert found.reasons["inside"][""] == "needs regions, which were not given"
    assert found.reasons["fails"][""] == "fails: not on this model"
    assert "contributions" in found.reasons["signed"]["0 mean"]
    for name in found.measures:
        for i, j in zip(*np.nonzero(np.isnan(found.values[name])), strict=True):
            assert {"", f"{found.ids[i]} {found.rows[j]}"} & set(found.reasons[name])
    assert "id 1 left out" in str(found) and "needs regions" in str(found)


def test_regions_labels_and_rows():
    x, y = images(3), torch.tensor([0, 2, 1])
    regions = torch.zeros(3, 8, 8, dtype=torch.bool)
    regions[:, :4] = True
    rows = ["saliency", "median", "rank", "var", "uniform", "weighted", "consensus"]
    found = evaluate(Small(), [(x, y, regions)], target="labels", measures=[Inside(), Moves()], rows=rows, **FAST)
    r = cs.explain(Small(), x, y, methods=FAST["methods"], fit_draws=8, fresh_draws=2)
    for row in rows:
        mass = (r[row] * regions).flatten(1).sum(1)
        np.testing.assert_allclose(found["inside"][row], mass.numpy(), rtol=1e-6)
    assert (found["moves"]["uniform"] == 0).all()
    with pytest.raises(cs.InputError, match=r"needs batches \(x, y\)"):
        evaluate(Small(), x, target="labels", measures=Peak(), **FAST)


def test_statistics_and_paired_comparison():
    rng = np.random.default_rng(0)
    a = rng.normal(0, 1, 40)
    values = np.stack([a, a + 0.3 + 0.1 * rng.normal(size=40)], 1)
    values[3, 1] = np.nan
    found = Evaluation(("a", "b"), ("m",), {"m": "higher"}, list(range(40)), {"m": values}, {"m": {"3 b": "why"}})
    row = found.summary()["m"]["b"]
    good = np.delete(values[:, 1], 3)
    assert row == {"mean": good.mean(), "stderr": pytest.approx(good.std(ddof=1) / np.sqrt(39)), "n": 39}
    (difference,) = found.compare("b", "a")
    pairs = np.delete(values[:, 1] - values[:, 0], 3)
    half = 1.96 * pairs.std(ddof=1) / np.sqrt(39)
    assert difference.n == 39 and difference.difference == pytest.approx(pairs.mean())
    assert difference.low == pytest.approx(pairs.mean() - half, abs=0.2 * half) and difference.p < 0.001
    assert str(found).count("*") == 2 and "(39)" in str(found)  # the best, and the legend
    assert found.compare("a", "a")[0].p == 1


def test_an_interrupted_run_goes_on(tmp_path):
    x, path = images(4), tmp_path / "e.json"

    def broken():
        yield x[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(Small(), broken(), measures=[Peak(), Inside()], path=path, **FAST)
    assert len(Evaluation.load(path)) == 2
    found = evaluate(Small(), x.split(2), measures=[Peak(), Inside()], path=path, **FAST)
    fresh = evaluate(Small(), x.split(2), measures=[Peak(), Inside()], **FAST)
    assert found.to_dict() | {"evaluations": 0} == fresh.to_dict() | {"evaluations": 0}
    assert found.evaluations["gradient"] == fresh.evaluations["gradient"]
    with pytest.raises(cs.InputError, match="other settings"):
        evaluate(Small(), x.split(2), measures=[Peak()], path=path, **FAST)
    path.write_text("{}")
    with pytest.raises(cs.InputError, match="not an evaluation"):
        Evaluation.load(path)


def test_update_and_compute_and_repeated_names():
    meter = Evaluator(Small(), methods=[Saliency(), InputXGradient()], measures=[Peak(), Peak()], objective=None)
    with pytest.raises(cs.InputError, match="nothing was judged"):
        meter.compute()
    meter.update(images(2))
    meter.update(images(2, seed=5))
    found = meter.compute()
    assert found.rows == ("saliency", "input_x_gradient", "mean") and found.measures == ("peak", "peak_2")
    assert found.ids == [0, 1, 2, 3] and (found.values["peak"] == found.values["peak_2"]).all()
    with pytest.raises(cs.InputError, match="unknown row"):
        Evaluator(Small(), methods="saliency", measures=Peak(), rows=["nothing"]).update(images(1))
