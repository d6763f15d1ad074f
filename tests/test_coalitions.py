"""Coalitions that methods share: which there are, that sharing changes no method, and what the estimates are on average."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from nets import Small, bound, images
from twins import SEED

import consilience as cs
from consilience.explainers import LIME, RISE, FeatureAblation, KernelSHAP, ShapleySampling, Stack
from consilience.features.base import Elements
from consilience.features.images import Segments
from consilience.features.sequences import Windows
from consilience.perturb import union as unions
from consilience.perturb.baseline import Baseline
from consilience.perturb.coalition_lists import (
    CHAINS,
    LISTED,
    distinct,
    even_sizes,
    every,
    half_sizes,
    in_class,
    orders,
    subsets,
)
from consilience.perturb.coalitions import Halves, Kernel, LeaveOneOut, Orders
from consilience.perturb.union import Union
from consilience.statistics.keys import Key

KEY = Key(3, "coalitions")
FIVE = [FeatureAblation(), LIME(), KernelSHAP(), ShapleySampling(), RISE()]
SMALL = [FeatureAblation(), LIME(200), KernelSHAP(100), ShapleySampling(4), RISE(100), LIME(200, l1=0.01), LIME(77)]
DATA = torch.randn(6, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def net(columns):
    """A score with effects of every order."""
    generator = torch.Generator().manual_seed(columns)
    inner = torch.randn(columns, 16, generator=generator, dtype=torch.float64)
    outer = torch.randn(16, 2, generator=generator, dtype=torch.float64)
    return lambda x: (x @ inner).tanh() @ outer


def rows(columns, count=2):
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


def attributions(explainers, columns, seed=SEED, model=None, x=None, **options):
    score, points = bound(model or net(columns), rows(columns) if x is None else x, target=1, kind="output", **options)
    before = score.counts.forward
    found = Stack(explainers, seed).attribute(score, points)
    return found, score.counts.forward - before


# -- the lists ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features, size", [(5, 1), (6, 3), (9, 4), (13, 6), (40, 7), (40, 20)])
@pytest.mark.parametrize("chained", [False, True])
def test_a_shorter_list_is_the_beginning_of_a_longer_one(features, size, chained):
    most = min(in_class(features, size), 300)
    longest = subsets(KEY, features, size, most, chained)
    assert len(longest) == most and bool((longest.sum(1) == size).all())
    assert len(distinct(torch.cat([longest, ~longest]))) == 2 * most  # no set twice, nor beside its complement
    for count in {1, most // 3, most - 1} - {0}:
        assert torch.equal(subsets(KEY, features, size, count, chained), longest[:count])


def test_chained_lists_begin_with_the_ends_of_orders():
    going = orders(KEY, 13, 2 * CHAINS)
    for size in range(1, 7):
        ends = torch.zeros(len(going), 13, dtype=torch.bool).scatter_(1, going[:, :size], True)
        ends = distinct(ends)
        assert torch.equal(subsets(KEY, 13, size, len(ends), True), ends)
    assert torch.equal(going[1::2], going[::2].flip(1))


@pytest.mark.parametrize("features", [4, 9, 21])
def test_halves_are_sets_of_which_each_feature_is_in_half(features):
    """All pairs once, if so many are asked for; else sizes as they are drawn, about as often as there are such sets."""
    every_pair = 2 ** (features - 1)
    asked = min(every_pair, 4000)
    sizes = half_sizes(KEY, features, asked)
    assert sum(sizes.values()) == asked
    for size, number in sizes.items():
        expected = in_class(features, size) * asked / every_pair
        assert abs(number - expected) <= (0 if asked == every_pair else 5 * expected**0.5 + 3)
    if asked < every_pair:
        even = even_sizes(features, asked)
        assert sum(even.values()) == asked and 0 not in even
        assert all(abs(even.get(s, 0) - in_class(features, s) * asked / (every_pair - 1)) < 1 for s in range(1, 11))


def test_lists_of_all_coalitions_are_complete():
    for design in (Halves(600), Halves(512, whole=False), Kernel(510), Orders(64)):
        taken = design.gone(KEY, 9, 1, torch.arange(design.count(9, 1)))
        assert len(taken) == len(distinct(taken)) == 512
    assert LISTED > 2**16 and len(every(3).unique(dim=0)) == 8


def test_a_union_holds_each_coalition_once_and_gives_each_design_its_own():
    designs = (LeaveOneOut(), Halves(300), Kernel(200), Orders(6), Halves(100, whole=False))
    for baseline_rows in (1, 5):
        union = Union(designs, KEY, 10, baseline_rows)
        gone, draws = union.part(torch.arange(len(union)))
        met = torch.where(gone.any(1), draws % baseline_rows, 0)
        assert len(torch.cat([gone.long(), met[:, None]], 1).unique(dim=0)) == len(union)
        assert len(union) < sum(union.counts)
        for design, places in zip(designs, union.places, strict=True):
            numbers = torch.arange(design.count(10, baseline_rows))
            own = design.gone(KEY, 10, baseline_rows, numbers)
            assert torch.equal(gone[places], own)
            same = design.draws(10, baseline_rows, numbers) % baseline_rows == met[places]
            assert bool((same | ~own.any(1)).all())


# -- sharing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_five_methods_on_thirteen_features_share_their_evaluations(seed):
    """They took 14 + 1000 + 2076 + 326 + 4000 forwards before they shared any."""
    before = 14 + 1000 + 2076 + 326 + 4000
    _, spent = attributions(FIVE, 13, seed, x=rows(13, 1))
    assert spent <= before / 5
    assert spent == Stack(FIVE, seed).rows((13,))["forward"]


def test_few_features_are_enumerated_once_for_all():
    for columns in (3, 7, 9):
        _, spent = attributions(FIVE, columns, x=rows(columns, 1))
        assert spent == 2**columns


@pytest.mark.parametrize("baselines", [None, 0.3, DATA, Baseline.per_input(DATA[:2])])
def test_a_method_gives_alone_what_it_gives_beside_others(baselines):
    from dataclasses import replace

    explainers = [replace(explainer, baselines=baselines) for explainer in SMALL]
    together, spent = attributions(explainers, 9, max_batch=64)
    alone = [attributions([explainer], 9, max_batch=50) for explainer in explainers]
    for place, (own, _) in enumerate(alone):
        torch.testing.assert_close(together[:, place], own[:, 0], rtol=1e-12, atol=1e-13)
    assert spent < sum(count for _, count in alone)
    backwards, same = attributions(explainers[::-1], 9, max_batch=7)
    torch.testing.assert_close(backwards.flip(1), together, rtol=1e-12, atol=1e-13)
    assert same == spent


def test_inputs_of_different_numbers_of_features_have_what_they_have_alone():
    labels = torch.stack([torch.arange(8).clamp(max=6).repeat(8, 1), torch.arange(8).repeat(8, 1) // 3])
    explainers = [
        type(e)(e.n_samples, Segments(labels, batched=True)) for e in (LIME(60), KernelSHAP(40), ShapleySampling(3))
    ]
    x, model = images(2), Small()
    score, points = bound(model, x, 1)
    stack = Stack(explainers, SEED)
    both = stack.attribute(score, points)
    for i in range(2):
        torch.testing.assert_close(stack.attribute(score, points[[i]])[0], both[i], rtol=1e-10, atol=1e-12)


def test_lists_that_are_too_long_are_made_in_parts(monkeypatch):
    whole, shared = attributions(SMALL[:4], 9, max_batch=16)
    unions.union.cache_clear()
    monkeypatch.setattr(unions, "TABLE", 0)
    parts, apart = attributions(SMALL[:4], 9, max_batch=16)
    unions.union.cache_clear()
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-13)
    assert apart > shared


def test_masks_that_judge_are_drawn_as_if_no_method_drew():
    found = [
        cs.explain(net(9), rows(9), methods=methods, target=1, objective="faith", fit_draws=40, fresh_draws=40)
        for methods in (["feature_ablation"], ["feature_ablation", "lime", "kernel_shap", "shapley_sampling", "rise"])
    ]
    own, beside = (result.criteria["faithfulness_correlation"]["feature_ablation"] for result in found)
    torch.testing.assert_close(own.fit, beside.fit)
    torch.testing.assert_close(own.fresh, beside.fresh)


# -- exact where all coalitions are evaluated --------------------------------------------------------------------------


def game(columns, i=0, baseline=0.0):
    """{features that are there: score} of one input, one evaluation at a time."""
    model, x = net(columns), rows(columns)[i]
    value = {}
    for there in itertools.product([False, True], repeat=columns):
        value[there] = float(model(torch.where(torch.tensor(there), x, baseline)[None])[0, 1])
    return value


def shapley(value, columns):
    found = np.zeros(columns)
    for order in itertools.permutations(range(columns)):
        there = [False] * columns
        for a in order:
            before = value[tuple(there)]
            there[a] = True
            found[a] += value[tuple(there)] - before
    return found / math.factorial(columns)


def test_enumerated_values_are_those_of_the_definitions():
    explainers = [KernelSHAP(), ShapleySampling(), RISE(), LIME(), LIME(40), FeatureAblation()]
    found, spent = attributions(explainers, 5)
    assert spent == 2 * 32
    for i in range(2):
        value = game(5, i)
        exact = shapley(value, 5)
        np.testing.assert_allclose(found[i, 0], exact, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found[i, 1], exact, rtol=1e-9, atol=1e-12)
        there = np.array(list(value), dtype=float)
        scores = np.array(list(value.values()))
        np.testing.assert_allclose(found[i, 2], there.T @ scores / 16, rtol=1e-9, atol=1e-12)
        for place, samples in ((3, 1000), (4, 40)):
            weights = np.exp(-((1 - np.sqrt(there.mean(1))) ** 2) / (2 * 0.25**2)) * samples / 32
            columns = np.concatenate([np.ones((32, 1)), there], 1)
            gram = columns.T @ (columns * weights[:, None]) + np.diag([0.0] + [1.0] * 5)
            slopes = np.linalg.solve(gram, columns.T @ (scores * weights))[1:]
            np.testing.assert_allclose(found[i, place], slopes, rtol=1e-9, atol=1e-12)


def test_enumerated_values_are_those_of_the_shap_package():
    shap = pytest.importorskip("shap")
    model, x = net(8), rows(8)
    theirs = shap.ExactExplainer(lambda a: model(torch.from_numpy(a))[:, 1].numpy(), np.zeros((1, 8)))(x.numpy()).values
    found, _ = attributions([KernelSHAP(), ShapleySampling(40)], 8)
    for place in range(2):
        np.testing.assert_allclose(found[:, place], theirs, rtol=1e-6, atol=1e-9)


# -- what the estimates are on average ---------------------------------------------------------------------------------


def estimates(explainer, columns, seeds, model=None):
    found = [
        attributions([explainer], columns, seed, model, rows(columns, 1), max_batch=4096)[0][0, 0] for seed in seeds
    ]
    return torch.stack(found)


def parity(x):
    """An effect of three features, one of four, and a level: what a regression takes for noise."""
    signs = torch.where(x == 0, -1.0, 1.0).double()
    return (2 + signs[:, :3].prod(1) + signs[:, 2:6].prod(1) + 0.2 * signs[:, 0])[:, None].expand(-1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("model", [net(7), parity], ids=["net", "parity"])
@pytest.mark.parametrize(
    "explainer, exact",
    [
        (ShapleySampling(2), KernelSHAP()),
        (RISE(40), RISE()),
        (RISE(16), RISE()),
        (RISE(20, keep=0.3), None),
    ],
    ids=lambda e: f"{e.name}-{e.n_samples}" if e else "",
)
def test_estimates_are_unbiased(explainer, exact, model):
    """Over 400 seeds the mean is within five standard errors of the value, in every feature."""
    if exact is None:  # RISE of another share than a half: its expectation, over all masks
        value = torch.zeros(7, dtype=torch.float64)
        for there in every(7):
            share = float(torch.where(there, 0.3, 0.7).prod())
            score = model(torch.where(there, rows(7, 1), 0.0))[0, 1]
            value += share * score * there / 0.3
    else:
        value = attributions([exact], 7, model=model, x=rows(7, 1))[0][0, 0]
    found = estimates(explainer, 7, range(400), model)
    error = found.std(0) / 400**0.5
    assert bool(((found.mean(0) - value).abs() <= 5 * error + 1e-12).all())


@pytest.mark.slow
def test_a_regressions_bias_is_a_small_part_of_its_error():
    """A regression on drawn coalitions has a bias, which falls faster than its error. With a single fit to all pairs a third to
    two thirds of the error are the bias of what has a prior; cross-fitting takes that away."""
    exact = attributions([KernelSHAP()], 9, x=rows(9, 1))[0][0, 0]
    error = estimates(KernelSHAP(200), 9, range(300)) - exact
    # The mean's own variance is no bias.
    bias = error.mean(0).square().mean() - error.var(0).mean() / 300
    assert bias < 0.25**2 * error.square().mean()


def test_soft_masks_have_no_level_in_their_noise():
    """Of a constant score the map is that constant, whatever the masks; the paper's average has the noise of ΣM in it."""
    flat = lambda x: torch.full((len(x), 2), 3.0, dtype=x.dtype)  # noqa: E731
    score, points = bound(flat, torch.rand(1, 1, 16, 16).double(), 1, kind="output")
    found = Stack([RISE(20, baselines=0.0)], SEED).attribute(score, points)
    torch.testing.assert_close(found, torch.full_like(found, 3.0))


def test_shapley_estimates_of_effects_of_three_are_nearly_exact():
    """The plain regression has an error here that is ten times as large."""

    def triples(x):
        found = x[:, 0] * x[:, 1] * x[:, 2] - x[:, 3] * x[:, 4] * x[:, 5] + x[:, 6] * x[:, 7] * x[:, 12] + x.sum(1)
        return found[:, None].expand(-1, 2)

    x = torch.ones(1, 13, dtype=torch.float64)
    exact = torch.ones(13, dtype=torch.float64)
    exact[[0, 1, 2, 6, 7, 12]] += 1 / 3
    exact[[3, 4, 5]] -= 1 / 3
    found, _ = attributions([KernelSHAP()], 13, model=triples, x=x)
    assert (found[0, 0] - exact).abs().max() < 0.01


def test_what_is_no_coalition_is_drawn_by_itself():
    """Images, orders and other shares than a half have soft or independent masks."""
    assert RISE().game((3, 8, 8)) is None and RISE(features=Windows(1)).game((30,)) is None
    assert RISE(keep=0.3).game((5,)) is None and RISE().game((5,)).features == Elements()
