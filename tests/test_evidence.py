"""Methods that cannot be used take part in nothing: not in a block of the draws, not in a sum, not in a choice."""

from __future__ import annotations

import math

import pytest
import torch

import consilience as cs
from consilience.combine.named import named_objective
from consilience.combine.regret import regret, solve_with_regret
from consilience.combine.weights import Minimise, resolve
from consilience.metrics import AverageSensitivity, Infidelity
from consilience.metrics.cross_validation import cross_validated
from consilience.statistics.criteria import faithfulness_correlation
from consilience.statistics.evidence import Evidence, Quadratic, Responses, joined

OBJECTIVES = ("opt", "robust", "faith", "paper_robust", "paper_opt", "robust + faith", "robust + infidelity")


def evidence(neighbours=10, masks=40, k=3, size=20, seed=0, good=0.1):
    """Of one input; the first method is the most robust one."""
    g = torch.Generator().manual_seed(seed)
    maps, moved = (torch.randn(*n, k, size, generator=g, dtype=torch.float64) for n in ((1,), (1, neighbours)))
    moved[:, :, 0] *= good
    a = torch.randn(1, masks, k, generator=g, dtype=torch.float64)
    y = a[..., 1] + torch.randn(1, masks, generator=g, dtype=torch.float64)
    return Evidence(Quadratic(moved @ moved.mT, maps @ maps.mT), Responses(a, y))


def spoilt(e, draws, row=0, masks=()):
    """Its ``row`` is NaN at these draws."""
    q, a = e.quadratic.draws.clone(), e.responses.a.clone()
    q[:, draws, row], q[:, draws, :, row] = math.nan, math.nan
    a[:, list(masks), row] = math.nan
    return Evidence(Quadratic(q, e.quadratic.norm), Responses(a, e.responses.y))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("draws, masks", [([3], [7]), ([0, 9], [2, 30]), (range(10), range(40))])
def test_a_method_that_fails_at_some_draws_is_as_if_it_were_absent(objective, draws, masks):
    e = evidence()
    goal, rest = named_objective(objective), e.rows(slice(1, None))
    kinds = goal.statistics
    bad = spoilt(e, draws if "quadratic" in kinds else [], masks=masks if "responses" in kinds else ())
    found, regrets = solve_with_regret(Minimise(goal), bad)
    alone, regrets_alone = solve_with_regret(Minimise(goal), rest)
    assert float(found.weights[0, 0]) == 0
    torch.testing.assert_close(found.weights[:, 1:], alone.weights, rtol=1e-4, atol=1e-4)
    assert set(regrets) == kinds & {"quadratic", "responses"}
    for kind, value in regrets.items():
        torch.testing.assert_close(value, regrets_alone[kind], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", ["robust", "faith", "paper_robust", "robust + faith"])
def test_a_cross_validated_choice_does_not_see_a_method_that_fails(objective):
    e = evidence()
    bad = spoilt(e, [2, 5], masks=[3])
    found, alone = (
        cross_validated(named_objective(objective), bad),
        cross_validated(named_objective(objective), e.rows(slice(1, None))),
    )
    assert float(found.weights[0, 0]) == 0 and found.status == alone.status
    torch.testing.assert_close(found.weights[:, 1:], alone.weights, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_cleaning_changes_neither_what_is_valid_nor_what_is_found(objective):
    e = joined([spoilt(evidence(seed=1), [4], masks=[2]), evidence(seed=2), spoilt(evidence(seed=3), range(10), row=2)])
    torch.testing.assert_close(e.clean().valid(), e.valid())
    assert e.valid().tolist() == [[False, True, True], [True] * 3, [True, True, False]]
    one, two = (named_objective(objective).minimise(x) for x in (e, e.clean()))
    torch.testing.assert_close(one.weights, two.weights)


def test_a_loss_over_blocks_of_unequal_size_is_the_loss_over_all_draws():
    e = evidence(neighbours=7, masks=33)
    w = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    for term, kind in (
        (AverageSensitivity(), "quadratic"),
        (AverageSensitivity(relative=False), "quadratic"),
        (Infidelity(scaling="raw"), "responses"),
        (named_objective("paper_opt"), "quadratic"),
        (named_objective("paper_opt"), "responses"),
    ):
        blocks = [(part.count(kind) / e.count(kind), part) for _, part in e.folds(5, kind)]
        whole = (term.at if hasattr(term, "at") else term.loss)(e, w[:, None])[:, 0]
        if term == named_objective("paper_opt"):
            scales = term.scales(e, e.valid())
            whole = torch.einsum("br,brt,bt->b", w, term.quadratic_form(e, e, scales), w)
        torch.testing.assert_close(term.over_blocks(e, blocks, [w] * 5), whole)


@pytest.mark.parametrize("count", [7, 12, 13])
def test_the_regret_is_that_of_a_plain_loop_over_the_draws(count):
    """Each draw scored with the weights of the fold that it is not in, in blocks as equal as can be."""
    goal, e = named_objective("robust"), evidence(neighbours=count, seed=4, good=1.0)
    w = goal.minimise(e).weights
    q, size = e.quadratic.draws[0], e.quadratic.norm[0]
    lost = {"crossed": 0.0, "plain": 0.0}
    for part in range(5):
        low, high = count * part // 5, count * (part + 1) // 5
        others = [i for i in range(count) if not low <= i < high]
        away = goal.minimise(Evidence(Quadratic(q[others][None], size[None]))).weights[0]
        for i in range(low, high):
            for name, v in (("crossed", away), ("plain", w[0])):
                lost[name] += float(v @ q[i] @ v / (v @ size @ v)) / count
    expected = (lost["crossed"] / lost["plain"] - 1) * 4 / 9
    assert float(regret(Minimise(goal), e, w)["quadratic"]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("objective", ["opt", "robust", "faith", "paper_opt", "robust + faith"])
def test_where_no_method_can_be_used_there_is_no_regret(objective):
    e = evidence()
    e = Evidence(Quadratic(0 * e.quadratic.draws, 0 * e.quadratic.norm), Responses(0 * e.responses.a, e.responses.y))
    combination, regrets = solve_with_regret(Minimise(named_objective(objective)), e)
    assert combination.solution.status == ("no valid method",)
    assert all(value.isnan().all() for value in regrets.values())


def test_pooling_inputs_that_all_miss_a_method_leaves_those_methods_out():
    whole = joined([spoilt(evidence(seed=1), [4], row=0), spoilt(evidence(seed=2), [1], row=1)])
    found = named_objective("robust").minimise(whole.pooled())
    assert found.weights.tolist() == [[0, 0, 1]]
    nowhere = joined([spoilt(evidence(seed=i), [4], row=i) for i in range(3)])
    assert named_objective("robust").minimise(nowhere.pooled()).status == ("no valid method",)


def with_a_uniform_map(seed):
    """Its responses are the same but for float32's rounding."""
    g = torch.Generator().manual_seed(seed)
    maps = torch.cat([torch.ones(1, 64), torch.rand(2, 64, generator=g)]).double()
    moved = 0.1 * torch.cat([torch.zeros(5, 1, 64), torch.randn(5, 2, 64, generator=g)], 1).double()
    masks = torch.zeros(128, 64).scatter(1, torch.rand(128, 64, generator=g).argsort(1)[:, :12], 1.0).double()
    a = masks @ maps.T
    y = a[:, 1] + 0.5 * torch.randn(128, generator=g)
    a[:, 0] *= 1 + 1e-7 * torch.randn(128, generator=g)
    return Evidence(Quadratic((moved @ moved.mT)[None], (maps @ maps.mT)[None]), Responses(a[None], y[None]))


@pytest.mark.parametrize("objective", ["opt", "faith"])
def test_who_asks_for_faithfulness_gets_no_uniform_map(objective):
    parts = [with_a_uniform_map(seed) for seed in range(3)]
    for e in (joined(parts), joined(parts).pooled()):
        found = named_objective(objective).minimise(e)
        assert (found.weights[:, 0] == 0).all()
        rho = faithfulness_correlation(joined(parts), found.weights[:, None].expand(3, 1, 3)).value
        assert (rho > 0.5).all()
    whole, regrets = solve_with_regret(Minimise(named_objective(objective)), joined(parts))
    alone, regrets_alone = solve_with_regret(Minimise(named_objective(objective)), joined(parts).rows(slice(1, None)))
    torch.testing.assert_close(whole.weights[:, 1:], alone.weights, rtol=1e-4, atol=1e-4)
    for kind, value in regrets.items():
        torch.testing.assert_close(value, regrets_alone[kind], rtol=1e-4, atol=1e-6)


def test_a_small_pattern_on_a_large_level_is_an_answer():
    """Of many small features a response averages nearly all away, and says as much as before."""
    g = torch.Generator().manual_seed(0)
    pattern = torch.randn(224 * 224, generator=g, dtype=torch.float64)
    maps = torch.stack([(1 + 5e-4 * pattern).float().double(), torch.randn(224 * 224, generator=g).double()])
    masks = torch.stack([torch.randperm(224 * 224, generator=g)[:10035] for _ in range(128)])
    e = Evidence(responses=Responses(maps[:, masks].sum(-1).T[None], pattern[masks].sum(-1)[None]))
    found = named_objective("faith").minimise(e)
    assert found.weights[0, 0] > 0.99 and float(faithfulness_correlation(e, found.weights[:, None]).value) > 0.99


def test_the_map_of_opt_is_as_faithful_as_promised_beside_a_uniform_one():
    """A linear model's gradient is one number everywhere."""

    class Sum(torch.nn.Module):
        def forward(self, x):
            total = x.sum((1, 2, 3))
            return torch.stack([total, -total], 1)

    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    r = cs.explain(Sum(), x, 0, methods=["saliency", "input_x_gradient", "lime"], objective="opt")
    assert (r.weights[:, 0] == 0).all() and (r.attribution.flatten(1).std(1) > 0).all()
    correlation = r.criteria["faithfulness_correlation"]
    best = torch.stack([correlation[name].fit for name in ("input_x_gradient", "lime")]).amax(0)
    assert (correlation["consensus"].fit >= best - 1e-9).all()


@pytest.mark.parametrize("objective", ["robust + faith", "average_sensitivity + faithfulness_correlation", "paper_opt"])
@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_sum_puts_no_weight_on_a_map_of_zeros_or_nans(objective, value):
    from consilience.explainers.base import Direct

    class Constant(Direct):
        name, kind = "constant", "relevance"

        def check(self, score, points, key):
            """It works, as far as one can see before."""

        def attribute(self, score, points, key):
            return torch.full_like(points.x, value)

        def rows(self, shape):
            return {"forward": 0, "gradient": 0}

    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(256, 3)
    ).eval()
    methods = [Constant(), "saliency", "input_x_gradient"]
    r = cs.explain(net, torch.randn(4, 1, 8, 8), methods=methods, resolved_draws=0, objective=objective)
    assert (
        (r.weights[:, 0] == 0).all() and r.attribution.isfinite().all() and (r.attribution.flatten(1).amax(1) > 0).all()
    )


@pytest.mark.parametrize(
    "objective", ["faith", "infidelity", "paper_faith", "paper_code", "paper_opt", "robust", "opt"]
)
def test_pooling_one_input_changes_no_weights(objective):
    """Responses with a mean, and on another scale than the falls: only a correlation does not see either."""
    g = torch.Generator().manual_seed(0)
    a = torch.randn(1, 200, 3, generator=g, dtype=torch.float64) * torch.tensor([1.0, 0.3, 2.0])
    y = 2.5 * (a[..., 0] + a[..., 1]) + torch.randn(1, 200, generator=g, dtype=torch.float64) / 2 + 3
    residuals = torch.randn(1, 20, 3, 9, generator=g, dtype=torch.float64)
    e = Evidence(Quadratic(residuals @ residuals.mT, torch.eye(3, dtype=torch.float64)[None]), Responses(a, y))
    alone, pooled = (resolve(objective, pooled=pooled).fit(e).weights for pooled in (False, True))
    torch.testing.assert_close(pooled, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("objective", ["faith + infidelity", "faith + 0.3*paper_faith"])
def test_pooling_one_input_changes_no_weights_of_a_sum_with_a_centred_and_an_uncentred_part(objective):
    test_pooling_one_input_changes_no_weights(objective)


def test_a_correlation_beside_what_is_no_correlation_is_pooled_within_the_inputs():
    """Against plain loops: falls of one level in one input and another in the next correlate with nothing by that."""
    g = torch.Generator().manual_seed(1)
    number = [30, 20]
    a = torch.randn(2, 30, 3, generator=g, dtype=torch.float64) + torch.tensor([0.0, 4.0])[:, None, None]
    y = a.mean(2) + torch.randn(2, 30, generator=g, dtype=torch.float64) + torch.tensor([1.0, 7.0])[:, None]
    size = torch.rand(2, 30, generator=g, dtype=torch.float64)
    drawn = torch.arange(30) < torch.tensor(number)[:, None]
    e = Evidence(responses=Responses(a * drawn[..., None], y * drawn, drawn, None, size * drawn))
    pooled = Minimise(named_objective("faith + infidelity"), pooled=True).pool(e)
    ab, bb, aa = torch.zeros(3).double(), 0.0, torch.zeros(3).double()
    for i, n in enumerate(number):
        level = y[i, :n].square().mean().sqrt()
        lines = torch.stack([torch.ones(n).double(), size[i, :n]], 1)
        both = torch.cat([a[i, :n], y[i, :n, None]], 1) / level
        rest = both - lines @ torch.linalg.lstsq(lines, both).solution
        ab, bb = ab + rest[:, 3] @ rest[:, :3], bb + rest[:, 3] @ rest[:, 3]
        aa = aa + (rest[:, :3] ** 2).sum(0)
    alone = torch.eye(3).double()[None]
    found = faithfulness_correlation(pooled, alone).value[0]
    torch.testing.assert_close(found, ab / (aa * bb).sqrt())
    # Batches that were pooled one by one, and a part of the pool.
    goal = Minimise(named_objective("faith + infidelity"), pooled=True)
    apart = goal.pool(e.inputs([0])) + goal.pool(e.inputs([1]))
    torch.testing.assert_close(faithfulness_correlation(apart, alone).value[0], found)
    outside, inside = pooled.fold(0, 2)
    assert outside["responses"].group is not None and inside["responses"].group is not None
