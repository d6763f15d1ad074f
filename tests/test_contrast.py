"""Contrast: how much maps change when they should; noise over signal; maps that say nothing do not win."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import Small, bound, images, judged
from torch import nn

import consilience as cs
from consilience.combine.aggregations import BestSingle
from consilience.combine.named import named_objective
from consilience.explainers import Function, Normalised, Saliency, SmoothGrad, Stack
from consilience.features import Pixels
from consilience.metrics import Contrast
from consilience.statistics.criteria import CRITERIA
from consilience.statistics.evidence import Evidence, Quadratic
from consilience.statistics.keys import Key

STACK = Normalised(Stack([Saliency(), SmoothGrad(4)], 1), Pixels())
FIT, FRESH = Key(3, "fit"), Key(3, "fresh")


def measured(metric, key=FIT, model=None, index=slice(None), **options):
    score, points = bound(model or Small(), images(), **options)
    points = points[index]

    def elsewhere(where, at):
        return STACK.attribute(where, at)

    task = judged(score, points, STACK.attribute(score, points), Pixels(), key)
    task = type(task)(**{**vars(task), "explain": elsewhere})
    return metric.measure(task, range(metric.count), metric.count), score


def test_the_runner_up_is_asked_first_and_the_others_once_each():
    """Against maps of every other output, made one by one."""
    found, score = measured(Contrast(3))
    x = images()
    for i in range(3):
        maps = [STACK.attribute(*bound(Small(), x, target=t))[i].flatten(1).double() for t in range(4)]
        others = [t for t in range(4) if t != int(score.targets[i])]
        grams = {t: (maps[1] - maps[t]) @ (maps[1] - maps[t]).T for t in others}
        runner_up = max(others, key=lambda t: float(score.outputs[i, t]))
        torch.testing.assert_close(found.draws[i, 0], grams[runner_up])
        rest = sorted(float(grams[t][0, 0]) for t in others if t != runner_up)
        np.testing.assert_allclose(sorted(found.draws[i, 1:, 0, 0].tolist()), rest, rtol=1e-6)


def test_draws_belong_to_the_input():
    whole, part = measured(Contrast(2), FRESH)[0], measured(Contrast(2), FRESH, index=slice(1, 3))[0]
    torch.testing.assert_close(whole.draws[1:], part.draws)


def test_a_model_with_one_output_is_asked_about_another_input():
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Small()

        def forward(self, x):
            return self.inner(x)[:, :1]

    found, _ = measured(Contrast(2), model=One(), target=None)
    assert bool((found.draws.diagonal(dim1=-2, dim2=-1) > 0).all())


def contrasts(seed, count=40, draws=8, k=3):
    """Evidence of maps with known noise and signal: N(0, 1) changes scaled by method."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, draws, k, 6)) * np.array([0.1, 0.2, 0.3])[:k, None]
    signal = rng.normal(size=(count, draws, k, 6)) * np.array([1.0, 0.5, 0.2])[:k, None]
    norm = torch.eye(k).double().expand(count, k, k) * 6

    def grams(changes):
        changes = torch.from_numpy(changes)
        return Quadratic(changes @ changes.mT, norm)

    return Evidence(grams(noise), None, {"contrast": grams(signal)})


@pytest.mark.parametrize("name", ["contrast", "noise_over_signal"])
def test_the_standard_error_is_the_spread_over_new_draws(name):
    e = contrasts(0, 3000, 30)
    corners = torch.eye(3).double().expand(3000, 3, 3)
    found = CRITERIA[name](e, corners)
    torch.testing.assert_close(found.stderr.square().mean(0).sqrt(), found.value.std(0), rtol=0.1, atol=0)
    scaled = CRITERIA[name](e, 10 * corners)
    torch.testing.assert_close(scaled.value, found.value)


def test_the_most_robust_mixture_is_the_least_noise_over_signal_on_a_grid():
    e = contrasts(1, 5)
    best = named_objective("robust").minimise(e)
    grid = torch.tensor([(a, b, 20 - a - b) for a in range(21) for b in range(21 - a)]).double() / 20
    every = CRITERIA["noise_over_signal"](e, grid.expand(5, -1, -1)).value
    assert bool((best.value <= every.amin(1) + 1e-9).all())
    torch.testing.assert_close(best.value, CRITERIA["noise_over_signal"](e, best.weights[:, None]).value[:, 0])


def test_the_best_single_method_by_noise_over_signal_is_chosen_so():
    """The metric looks at the contrast too; without it the map's own size would stand in its place."""
    metric = cs.AverageSensitivity(signal="contrast")
    options = {
        "methods": ["saliency", Function(same, name="same")],
        "fit_draws": 4,
        "fresh_draws": 4,
        "resolved_draws": 0,
    }
    r = cs.explain(Small(), images(), objective=BestSingle(metric), **options)
    assert bool((r.weights[:, 0] == 1).all())  # the other map never moves, and never changes
    by_size = cs.explain(Small(), images(), objective=BestSingle(cs.AverageSensitivity()), **options)
    assert bool((by_size.weights[:, 1] == 1).all())
    attributed = cs.Consensus(Small(), objective=BestSingle(metric), **options).attribute(images())
    torch.testing.assert_close(attributed[:, 0], r.attribution)


def lifted(model, inputs, target):
    """The gradient, and nine times its largest value everywhere: it says no more, and hardly moves."""
    x = inputs.detach().requires_grad_()
    size = torch.autograd.grad(model(x).gather(1, target[:, None]).sum(), x)[0].sum(1).abs()
    return size + 9 * size.amax((1, 2), keepdim=True)


def same(model, inputs, target):
    """A picture that looks at nothing."""
    return torch.linspace(0, 1, 64).to(inputs).view(1, 8, 8).expand(len(inputs), -1, -1).clone()


@pytest.mark.parametrize("objective", ["robust", "opt"])
def test_maps_that_say_nothing_do_not_win(objective):
    methods = ["saliency", "smoothgrad"]
    options = {"objective": objective, "fit_draws": cs.Draws(6, 128), "fresh_draws": 6, "resolved_draws": 0}
    fixed = cs.explain(Small(), images(), methods=[*methods, Function(same, name="same")], **options)
    assert float(fixed.weights[:, 2].max()) < 1e-3
    if objective == "robust":
        # Unscaled: a map that is divided by its largest value moves with that value too.
        plain = cs.explain(Small(), images(), methods=methods, scale="none", **options)
        lift = Function(lifted, name="lifted")
        higher = cs.explain(Small(), images(), methods=[*methods, lift], scale="none", **options)
        torch.testing.assert_close(higher.solution.value, plain.solution.value, rtol=0.02, atol=0)
    # Relative to the map itself, both win by saying nothing.
    relative = cs.explain(
        Small(),
        images(),
        methods=[*methods, Function(same, name="same")],
        **{**options, "objective": "relative_sensitivity"},
    )
    assert float(relative.weights[:, 2].min()) > 0.99


def test_every_table_shows_the_contrast():
    r = cs.explain(Small(), images(), methods=["saliency", "smoothgrad"], objective="mean", fit_draws=3, fresh_draws=4)
    for name in ("contrast", "noise_over_signal"):
        shown = r.criteria[name]["consensus"]
        assert bool(shown.fit.isfinite().all() and shown.fresh.isfinite().all())
        # Two other outputs are too few for an error of the contrast itself.
        assert bool(shown.stderr.isfinite().all()) == (name == "noise_over_signal")
        assert name.replace("_", " ") in str(r)


def test_few_neighbours_have_no_standard_error_however_many_other_outputs():
    e, corners = contrasts(2, 5), torch.eye(3).double().expand(5, 3, 3)
    few = Evidence(e["quadratic"].take(torch.arange(3)), None, e.others)
    found = CRITERIA["noise_over_signal"](few, corners)
    assert bool(found.value.isfinite().all() and found.stderr.isnan().all())
    assert bool(CRITERIA["noise_over_signal"](e, corners).stderr.isfinite().all())


def test_two_outputs_have_one_other_and_it_is_asked_once():
    class Two(Small):
        def forward(self, x):
            return super().forward(x)[:, :2]

    options = {"methods": ["saliency", "smoothgrad"], "objective": "robust", "fit_draws": 4, "fresh_draws": 4}
    r = cs.explain(Two(), images(), **options)
    assert {e.count("contrast") for stream in ("fit", "fresh") for e in r.evidence[stream]} == {1}
    # It is the same on both streams: nothing is estimated.
    for fit, fresh in zip(r.evidence["fit"], r.evidence["fresh"], strict=True):
        torch.testing.assert_close(fit["contrast"].draws, fresh["contrast"].draws)


def test_a_contrast_of_all_other_outputs_adds_no_error():
    """Four outputs have three others: asked about all of them, the signal is known, and only the neighbours are a sample."""
    options = {"methods": ["saliency", "smoothgrad"], "objective": "robust", "fresh_draws": 6, "resolved_draws": 0}
    r = cs.explain(Small(), images(), fit_draws=4, **options)
    part = r.evidence["fresh"][0]["contrast"]
    assert part.count == 2 and part.whole is None
    score, points = bound(Small(), images())
    task = judged(score, points, STACK.attribute(score, points), Pixels(), FRESH)
    task = type(task)(**{**vars(task), "explain": lambda where, at: STACK.attribute(where, at)})
    every = Contrast(9).of_model(score).measure(task, range(3), 3)
    assert bool(every.whole.all())
    noise = cs.AverageSensitivity(signal="contrast").measure(task, range(6), 6)
    evidence = Evidence(noise, None, {"contrast": every})
    corners = torch.eye(2).double().expand(3, 2, 2)
    found = CRITERIA["noise_over_signal"](evidence, corners)
    alone = CRITERIA["average_sensitivity"](evidence, corners)
    signal = torch.diagonal(every.matrix, dim1=1, dim2=2)
    torch.testing.assert_close(found.stderr, alone.stderr / signal)
    assert bool((found.freedom == 5).all())  # of six neighbours, whatever the number of outputs
    assert bool((CRITERIA["contrast"](evidence, corners).stderr == 0).all())
    kept = evidence.inputs([1]).rows(slice(0, 2)).clean()
    assert bool(kept["contrast"].exact.all()) and not bool(kept["contrast"].take(torch.arange(2)).exact.any())


def test_freedom_is_that_of_two_samples_of_unequal_size():
    """Against Welch and Satterthwaite's formula, written out."""
    e = contrasts(3, 4, 12)
    few = Evidence(e["quadratic"], None, {"contrast": e["contrast"].take(torch.arange(5))})
    found = CRITERIA["noise_over_signal"](few, torch.eye(3).double().expand(4, 3, 3))
    noise = e["quadratic"].draws.diagonal(dim1=-2, dim2=-1)
    signal = few["contrast"].draws.diagonal(dim1=-2, dim2=-1)
    heard = signal.mean(1)
    of_noise = noise.var(1) / 12 / heard**2
    of_signal = signal.var(1) / 5 * (noise.mean(1) / heard**2) ** 2
    expected = (of_noise + of_signal) ** 2 / (of_noise**2 / 11 + of_signal**2 / 4)
    torch.testing.assert_close(found.freedom, expected)
    torch.testing.assert_close(found.stderr, (of_noise + of_signal).sqrt())


def differing(seed=5, inputs=7):
    """A model and inputs at which the contrast chooses other weights than the size of the maps."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 4))
    return net, torch.randn(inputs, 6)


MIXED = ["saliency", "input_x_gradient", "integrated_gradients"]


@pytest.mark.parametrize("sizes", [[7], [3, 4], [1, 1, 5]])
def test_pooled_weights_do_not_depend_on_the_batches_and_know_the_contrast(sizes):
    net, x = differing()
    pooled = cs.Consensus(net, MIXED, "robust", fit_draws=6, sign="abs").fit(x.split(sizes)).weights
    options = {"methods": MIXED, "fit_draws": 6, "fresh_draws": 4, "sign": "abs", "resolved_draws": 0, "pooled": True}
    whole = cs.explain(net, x, objective="robust", **options).weights[0]
    torch.testing.assert_close(pooled, whole, rtol=1e-5, atol=1e-5)
    relative = cs.explain(net, x, objective="relative_sensitivity", **options).weights[0]
    assert float((whole - relative).abs().max()) > 0.01


def test_pooled_weights_of_a_sum_do_not_depend_on_the_batches():
    """Masks of one input are centred by themselves, whichever batch they came in."""
    net, x = differing()
    objective = "faith + infidelity"
    whole, parts = (
        cs.Consensus(net, MIXED, objective, fit_draws=24).fit(x.split(sizes)).weights for sizes in ([7], [3, 4])
    )
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", ["robust", "opt"])
def test_the_row_weighted_leaves_the_consensus_as_it_is(objective):
    net, x = differing()
    options = {"methods": MIXED, "objective": objective, "sign": "abs", "fit_draws": 6, "measures": ["gini_sparseness"]}
    alone = cs.evaluate(net, x, rows=["consensus"], **options).values["gini_sparseness"]
    beside = cs.evaluate(net, x, rows=["weighted", "consensus"], **options).values["gini_sparseness"]
    np.testing.assert_allclose(beside[:, 1], alone[:, 0], rtol=1e-6)


def test_a_method_whose_contrast_fails_has_none_and_nor_have_mixtures_with_it():
    def fragile(model, inputs, target):
        """A gradient that is NaN for all classes but the first."""
        x = inputs.detach().requires_grad_()
        found = torch.autograd.grad(model(x).gather(1, target[:, None]).sum(), x)[0]
        return torch.where((target == 0).view(-1, 1), found, torch.nan)

    net, x = differing()
    r = cs.explain(
        net, x, 0, methods=["saliency", Function(fragile, name="fragile")], objective="mean", fit_draws=4, fresh_draws=4
    )
    for name in ("contrast", "noise_over_signal"):
        assert bool(r.criteria[name]["saliency"].fresh.isfinite().all())
        assert bool(r.criteria[name]["fragile"].fresh.isnan().all())
        assert bool(r.criteria[name]["consensus"].fresh.isnan().all())
    assert bool(r.criteria["relative_sensitivity"]["consensus"].fresh.isfinite().all())


def test_the_largest_contrast_is_compared_with_the_best_single_by_the_contrast():
    net, x = differing()
    r = cs.explain(net, x, methods=MIXED, objective=Contrast(3), fresh_draws=4)
    assert list(r.differences) == ["contrast"]
    np.testing.assert_allclose(r.differences["contrast"].value, 0, atol=1e-12)


def test_training_for_noise_over_signal_sees_the_contrast():
    from consilience.train import Penalty

    net, x = differing()
    options = {"explainers": ["gradient"], "sign": "keep", "draws": 4}
    y = torch.zeros(len(x), dtype=torch.int64)
    relative = Penalty(cs.AverageSensitivity(0.3), **options)(net, x, y).parts["penalty"]
    told = Penalty(cs.AverageSensitivity(0.3, signal="contrast"), **options)
    found = told(net, x, y)
    assert abs(float(found.parts["penalty"]) / float(relative) - 1) > 0.1
    found.total.backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)
