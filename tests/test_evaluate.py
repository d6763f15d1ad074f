"""Evaluation over a data set: numbers per input, statistics, comparisons, reasons, interruption."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from nets import Small, images
from PIL import Image
from torch.utils.data import DataLoader

import consilience as cs
from consilience.card import Card
from consilience.cli import main
from consilience.evaluate.data_set import evaluate
from consilience.evaluate.evaluator import Evaluator
from consilience.explainers import InputXGradient, IntegratedGradients, Saliency
from consilience.measures import Completeness, Measure, PixelFlipping, resolve
from consilience.perturb.baseline import Baseline
from consilience.results.evaluation import Evaluation
from consilience.results.fingerprint import digest

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
    why = found.reasons["signed"]["0 mean"]
    rows = [row for row in found.rows if np.isnan(found["signed"][row]).any()]
    assert f"{2 * len(rows)} numbers missing (signed of {', '.join(rows)}): {why}" in str(found).split("\n")


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


def test_means_and_how_many_numbers_they_rest_on():
    rng = np.random.default_rng(0)
    a = rng.normal(0, 1, 40)
    values = np.stack([a, a + 0.3 + 0.1 * rng.normal(size=40)], 1)
    values[3, 1] = np.nan
    found = Evaluation(("a", "b"), ("m",), {"m": "higher"}, list(range(40)), {"m": values}, {"m": {"3 b": "why"}})
    row = found.summary()["m"]["b"]
    good = np.delete(values[:, 1], 3)
    assert row["n"] == 39 and row["mean"] == good.mean() and row["low"] < row["mean"] < row["high"]
    assert row["stderr"] == pytest.approx(good.std(ddof=1) / np.sqrt(39))
    assert str(found).count("*") == 2 and "(39)" in str(found)  # the best, and the legend


def test_two_numbers_have_no_standard_error_in_the_table():
    values = np.array([[1.0, 0.2], [1.0, 0.4]])
    two = Evaluation(("a", "b"), ("m",), {"m": "higher"}, [0, 1], {"m": values})
    head, a, b, *_ = str(two).splitlines()
    assert head.split() == ["n", "m", "↑"]
    assert a.split() == ["a", "2", "1", "*"] and b.split() == ["b", "2", "0.3"]
    many = Evaluation(("a", "b"), ("m",), {"m": "higher"}, list(range(6)), {"m": np.tile(values, (3, 1))})
    _, a, b, *_ = str(many).splitlines()
    assert "±" not in a  # six numbers that are all the same say nothing about a seventh
    assert "0.3 ± 0.045" in b


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


BARE = {"methods": "saliency,integrated_gradients", "measures": "gini_sparseness", "objective": None}


def _regions(rows: int) -> torch.Tensor:
    return (torch.arange(8) < rows)[None, :, None].expand(2, 8, 8)


@pytest.mark.parametrize(
    ("model", "data", "options", "what"),
    [
        (Small(), images(4, seed=2), {}, "input 0"),
        (Small(), list(images(4, seed=2).split(2)), {}, "input 0"),
        (Small(), DataLoader(images(4, seed=2), batch_size=2), {}, "input 0"),
        (Small(), [images(4)[:2], images(4, seed=2)[2:]], {}, "input 2"),
        (Small(), list(images(4).float().split(2)), {}, "input 0"),
        (Small(), list(images(2).split(2)), {}, "it has 4 inputs, the data 2"),
        (Small(seed=1), images(4), {}, "model"),
        (Small(torch.nn.Tanh), images(4), {}, "model"),
        (Small(), images(4), {"target": [2, 3, 0, 1]}, "input 0"),
        (Small(), images(4), {"target": torch.tensor([1, 1, 1, 2])}, "input 3"),
        (Small(), images(4), {"target": 1}, "target"),
        (Small(), images(4), {"baselines": torch.ones(3, 8, 8).double()}, "arguments"),
        (Small(), images(4), {"methods": ["saliency", IntegratedGradients(baselines=torch.ones(3, 8, 8))]}, "arguments"),
        (Small(), images(4), {"measures": PixelFlipping(baseline=torch.ones(3, 8, 8))}, "arguments"),
    ],
)  # fmt: skip
def test_a_file_of_another_evaluation_is_refused(tmp_path, model, data, options, what):
    zeros, path = torch.zeros(3, 8, 8).double(), tmp_path / "e.json"
    start = {
        "target": [1, 1, 1, 1],
        "baselines": zeros,
        "methods": ["saliency", IntegratedGradients(baselines=zeros.float())],
        "measures": PixelFlipping(baseline=zeros.float()),
        "objective": None,
        "path": path,
    }
    first = evaluate(Small(), list(images(4).split(2)), **start)
    before = path.read_text()
    again = evaluate(Small(), images(4), **start | {"target": torch.ones(4).long()})  # the same, in another form
    assert again.to_dict() == first.to_dict()
    with pytest.raises(cs.InputError, match=r"holds an evaluation with other settings") as error:
        evaluate(model, data, **start | options)
    assert what in str(error.value) and path.read_text() == before


def test_labels_regions_buffers_and_keyword_arguments_belong_to_an_evaluation(tmp_path):
    class Shifted(Small):
        def __init__(self, by):
            super().__init__()
            self.register_buffer("by", torch.tensor(by))

        def forward(self, x, more=0.0):
            return super().forward(x + self.by + more)

    x, y = images(2), torch.tensor([0, 1])
    start = {"target": "labels", "path": tmp_path / "e.json", "kwargs": {"more": torch.zeros(2, 1, 1, 1)}, **BARE}
    evaluate(Shifted(0.0), [(x, y, _regions(4))], **start)
    evaluate(Shifted(0.0), [(x, y, _regions(4))], **start)
    for model, batch, options in (
        (Shifted(0.0), (x, y.flip(0), _regions(4)), {}),
        (Shifted(0.0), (x, y, _regions(5)), {}),
        (Shifted(0.5), (x, y, _regions(4)), {}),
        (Shifted(0.0), (x, y, _regions(4)), {"kwargs": {"more": torch.ones(2, 1, 1, 1)}}),
    ):
        with pytest.raises(cs.InputError, match="other settings"):
            evaluate(model, [batch], **start | options)


def test_an_interrupted_run_goes_on_in_other_batches_and_with_more_data(tmp_path):
    x, path = images(5), tmp_path / "e.json"
    x[1] = torch.nan
    options = {"measures": [Peak(), Signed()], **FAST}
    evaluate(Small(), [x[:2]], path=path, **options)
    calls = []
    found = evaluate(Small(), x.split(3), path=path, progress=lambda *at: calls.append(at), **options)
    fresh = evaluate(Small(), [x], **options)
    assert found.ids == [0, 2, 3, 4] and calls == [(3, None), (5, None)]
    np.testing.assert_allclose(found.values["peak"], fresh.values["peak"])
    for name in ("reasons", "left_out", "settings", "digests"):
        assert getattr(found, name) == getattr(fresh, name) == getattr(Evaluation.load(path), name)


def test_a_file_of_an_earlier_version_can_be_read_and_is_not_continued(tmp_path):
    path = tmp_path / "e.json"
    evaluate(Small(), images(2), path=path, **BARE)
    record = json.loads(path.read_text())
    del record["digests"], record["settings"]["model"], record["settings"]["arguments"]
    path.write_text(json.dumps(record))
    assert len(Evaluation.load(path)) == 2
    with pytest.raises(cs.InputError, match=r"other settings \(model, arguments\)"):
        evaluate(Small(), images(2), path=path, **BARE)


def test_an_id_stands_for_one_input():
    meter = Evaluator(Small(), **BARE)
    first = meter.update(images(2), ids=[5, 7])
    assert meter.update(images(2), ids=[5, 7]) is first and meter.compute().ids == [5, 7]
    with pytest.raises(cs.InputError, match="ids: expected 2 integers"):
        meter.update(images(2), ids=[5])
    with pytest.raises(cs.InputError, match=r"ids: .* input 7, .* ids must not repeat"):
        meter.update(images(3)[1:], ids=[8, 7])


def test_parameters_are_hashed_in_any_form():
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).bfloat16()
    net.register_buffer("graph", torch.eye(3).to_sparse())
    before = digest(net)
    assert before == digest(deepcopy(net)) and len(before) == 16
    image = Small().to(memory_format=torch.channels_last)
    assert digest(image) == digest(Small())
    net[1].num_batches_tracked += 1
    assert digest(net) != before
    assert digest(lambda x: x) != digest(lambda x: 2 * x)


def test_baselines_reach_the_measures():
    """Of a linear model ablation and integrated gradients are exact, against the baseline that they were given."""
    keyed = torch.Generator().manual_seed(0)
    linear, rows = torch.nn.Linear(5, 2).double(), torch.randn(40, 5, generator=keyed).double() + 3
    options = {"target": 1, "methods": ["integrated_gradients", "feature_ablation"], "objective": None}
    named = "completeness,local_fidelity,infidelity,faithfulness_correlation,sensitivity_n,faithfulness_estimate"
    mean = rows.mean(0)
    for data in (rows[:6], list(rows[:6].split(3))):
        found = evaluate(linear, data, measures=named, baselines=mean, **options)
        for row in options["methods"]:
            for name, best in zip(found.measures, (0, 0, 0, 1, 1, 1), strict=True):
                np.testing.assert_allclose(found[name][row], best, atol=1e-9, err_msg=name)
    assert found.settings["baselines"] == "array(5,)"
    data_set = evaluate(linear, rows[:6], measures="completeness,local_fidelity", baselines=rows, **options)
    assert max(data_set[name][row].max() for name in data_set.measures for row in options["methods"]) < 1e-9
    own = evaluate(linear, rows[:6], measures=[Completeness("zero"), Completeness(mean)], baselines=mean, **options)
    assert own["completeness"]["feature_ablation"].min() > 1e-2 > own["completeness_2"]["feature_ablation"].max()


BASELINES = {
    "completeness": "zero", "local_fidelity": "zero", "pixel_flipping": "zero", "selectivity": "zero", "deletion": "zero",
    "sensitivity_n": "zero", "insertion": Baseline("blur", sigma=5.0), "effective_complexity": Baseline("blur", sigma=5.0),
    "monotonicity": "blur", "faithfulness_correlation": "blur", "infidelity": "blur", "faithfulness_estimate": "blur",
    "region_perturbation": "noise", "monotonicity_correlation": "noise", "irof": "mean",
}  # fmt: skip


def test_every_baseline_that_is_left_open_is_the_callers_or_the_documented_one():
    mine = [m for m in resolve("all") if hasattr(m, "baseline")]
    assert {m.name for m in mine} == BASELINES.keys() and all(m.baseline is None for m in mine)
    mine = [replace(m, features=cs.Patches(4)) if hasattr(m, "features") else m for m in mine]
    open_, options = (mine, {"methods": "input_x_gradient", "objective": None, "rows": ["input_x_gradient"]})
    given = lambda baselines: [replace(m, baseline=b) for m, b in zip(mine, baselines, strict=True)]  # noqa: E731
    usual = given([BASELINES[m.name] for m in mine])
    for measures, same, baselines in (
        (open_, usual, None),
        (open_, given([3.0] * len(mine)), 3.0),
        (usual, usual, 3.0),
    ):
        one = evaluate(Small(), images(2), measures=measures, baselines=baselines, **options)
        other = evaluate(Small(), images(2), measures=same, **options)
        for name in one.measures:
            np.testing.assert_array_equal(one.values[name], other.values[name], err_msg=name)


def test_several_inputs_of_one_model():
    class Two(torch.nn.Module):
        def forward(self, a, b):
            return torch.stack([(a * b).sum(1), a.sum(1) - b.sum(1)], 1)

    a, b = images(4)[:, 0, 0], images(4)[:, 1, 0]
    options = {"methods": "saliency,input_x_gradient", "measures": [Peak(), Completeness()], "fit_draws": 8}
    pack = lambda at: cs.pack((a[at], b[at]), baselines=(a.mean(0), b.mean(0)))  # noqa: E731
    whole = evaluate(Two(), pack(slice(0, 4)), **options)
    parts = evaluate(Two(), [pack(slice(0, 2)), (pack(slice(2, 4)), None)], **options)
    packed = pack(slice(0, 4))
    joined = evaluate(packed.model(Two()), packed.x, baselines=packed.baselines, **options)
    for name in whole.measures:
        np.testing.assert_allclose(whole.values[name], parts.values[name], rtol=1e-9)
        np.testing.assert_allclose(whole.values[name], joined.values[name], rtol=1e-9)
    with pytest.raises(cs.InputError, match="expected batches of tensors or arrays, got int"):
        evaluate(Two(), [3], **options)


def test_what_is_given_in_another_form_is_the_same(tmp_path):
    """Targets as numbers of any kind, functions and configured methods at other addresses."""
    y = torch.tensor([0, 1, 1])

    def again(target, **more):
        def kind(outputs, target):
            return outputs.gather(1, target[:, None])[:, 0]

        methods = ["saliency", cs.explainers.Saliency(), lambda model, x, target: x]
        options = {"methods": methods, "objective": None, "measures": "gini_sparseness", "kind": kind, **more}
        return cs.evaluate(Small(), images(), target=target, path=tmp_path / "t.json", **options)

    first = again(y)
    for target in (y.int(), y.numpy(), y.tolist(), tuple(y.tolist()), list(y), list(y.numpy())):
        assert again(target).evaluations == first.evaluations
    (tmp_path / "t.json").unlink()
    first = again(1)
    for target in (np.int64(1), torch.tensor(1)):
        assert again(target).evaluations == first.evaluations


def test_models_whose_buffers_hold_nothing_are_judged():
    model = Small()
    model.register_buffer("empty", torch.empty(3, device="meta"))
    model.register_buffer("turned", torch.randn(2, dtype=torch.complex64).conj())
    assert len(cs.evaluate(model, images(), methods=["saliency"], objective=None, measures="gini_sparseness"))


def test_ids_do_not_repeat_in_a_batch():
    evaluator = Evaluator(Small(), methods=["saliency"], objective=None, measures="gini_sparseness")
    with pytest.raises(cs.InputError, match="must not repeat"):
        evaluator.update(images(), ids=[0, 0, 1])


def test_no_batch_is_said():
    for nothing in ([], iter(())):
        with pytest.raises(cs.InputError, match="data: the loader gave no batch"):
            evaluate(Small(), nothing, **BARE)


def test_an_evaluation_shows_itself_in_a_line():
    found = evaluate(Small(), images(3), **BARE)
    assert repr(found) == (
        "Evaluation(3 inputs, rows=('saliency', 'integrated_gradients', 'mean'), measures=('gini_sparseness',))"
    )


def test_the_command_checks_its_file_before_it_works(tmp_path, capsys):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "x.json"
    assert main(["evaluate", "--image", str(tmp_path / "a.png"), "--model", "demo", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "--out: " in said and "cannot be written" in said and "a.png" not in said


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


def test_a_method_that_fails_later_has_its_reason_in_the_evaluation():
    """It works on the point that it is tried on, and raises on another one."""
    x = images(3)

    def fragile(model, inputs, target):
        if bool((inputs == x[1]).flatten(1).all(1).any()):
            raise KeyError("not this one")
        return inputs

    found = cs.evaluate(
        Small(), x, methods=["saliency", fragile], objective=None, measures="gini_sparseness", max_batch=1
    )
    values = found["gini_sparseness"]["fragile"]
    assert np.isnan(values[1]) and np.isfinite(values[[0, 2]]).all()
    assert "not this one" in found.left_out["methods.fragile"]


MEASURED = (
    "avg_sensitivity",
    "faithfulness_correlation",
    "infidelity",
    "random_logit",
    "mprt",
    "gini_sparseness",
    "deletion",
    "kendall_tau",
)
SHARDS = 1e-3
"""How far a part of the data, with the data's ids, may be from the whole in float32: ranks may swap near ties."""


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["opt", "robust", "faith"])
@pytest.mark.parametrize("methods", ["standard", "black_box"])
def test_parts_with_their_ids_give_the_numbers_of_the_whole(methods, objective):
    net = Small().float()
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    target = [0, 1, 2, 0, 1, 2, 0, 1]
    options = {"methods": methods, "objective": objective, "fit_draws": 8, "measures": MEASURED}
    whole = cs.evaluate(net, x, target=target, ids=range(10, 18), **options)
    for size in (1, 3):
        for start in range(0, 8, size):
            here = slice(start, min(8, start + size))
            ids = range(10, 18)[here]
            part = cs.evaluate(net, x[here], target=target[here], ids=ids, **options)
            assert part.rows == whole.rows
            for measure in whole.measures:
                np.testing.assert_allclose(part.values[measure], whole.values[measure][here], atol=SHARDS, rtol=SHARDS)
