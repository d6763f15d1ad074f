"""What rounding, a duplicate, another batch or many methods must not do to a mixture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import consilience as cs
from consilience import simplex
from consilience.simplex import newton, ratios, two_criteria
from consilience.simplex.solution import diagonal, form
from consilience.simplex.ties import even_out, evenness


def factors(count, k, seed=0, share=1.0, features=20):
    """Residuals, maps and responses (count, k, ·) of methods that have something in common, and the output's fall."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    residuals, maps, a = (normal(count, k, n) + share * normal(count, 1, n) for n in (3 * features, features, 60))
    y = (a * normal(count, k, 1)).sum(1) + a.std() * normal(count, 60)
    return [residuals, maps, a, y]


def matrices(parts):
    residuals, maps, a, y = parts
    da, dy = a - a.mean(2, keepdim=True), y - y.mean(1, keepdim=True)
    covariances = da @ da.mT / a.shape[2], (da * dy[:, None]).mean(2), (dy**2).mean(1)
    return residuals @ residuals.mT, maps @ maps.mT, *covariances, a.mean(2)


def rounded(parts, seed, size=1e-6):
    g = torch.Generator().manual_seed(seed)
    return [x * (1 + size * torch.randn(x.shape, generator=g, dtype=torch.float64)) for x in parts]


SOLVERS = {
    "quadratic": lambda m: simplex.quadratic(m[0]),
    "ratio": lambda m: simplex.ratio(m[0], m[1]),
    "correlation": lambda m: simplex.correlation(*m[2:5], mean=m[5]),
    "scale_free": lambda m: simplex.scale_free(*m[2:5]),
    "pick": lambda m: simplex.front(*m[:5], mean=m[5]).pick(),
    "at": lambda m: simplex.front(*m[:5], mean=m[5]).at(1.0),
}
solvers = pytest.mark.parametrize("name", SOLVERS)


def mixed(parts, w):
    """What the weights make of the maps (of the responses or residuals where the solver sees only those)."""
    return torch.einsum("bk,bk...->b...", w, parts)


def seen(name, parts):
    """The part of the problem in which a mixture is unique."""
    return {"quadratic": parts[0], "correlation": parts[2], "scale_free": parts[2]}.get(name, parts[1])


def apart(one, two):
    return float(((one - two).flatten(1).norm(dim=1) / one.flatten(1).norm(dim=1)).max())


def with_near_copies(parts, distance):
    """Methods 0 and 1 once more, a little different."""
    g = torch.Generator().manual_seed(5)
    out = []
    for x in parts[:3]:
        copies = x[:, :2] * (1 + distance * torch.randn(x[:, :2].shape, generator=g, dtype=torch.float64))
        out.append(torch.cat([x, copies], 1))
    return [*out, parts[3]]


@solvers
@pytest.mark.parametrize("near", [None, 1e-7, 1e-4])
def test_rounding_of_the_evidence_does_not_move_a_mixture(name, near):
    """Float32 leaves 1e-7 to 1e-6 of everything that is measured; DESIGN's tolerance for a map is 1e-3."""
    parts = factors(4, 6, 1)
    parts = parts if near is None else with_near_copies(parts, near)
    found = SOLVERS[name](matrices(parts)).weights
    for seed in range(2):
        again = SOLVERS[name](matrices(rounded(parts, seed))).weights
        assert apart(mixed(seen(name, parts), found), mixed(seen(name, parts), again)) < 1e-3


@solvers
def test_an_equal_method_changes_no_mixture_and_shares_the_weight(name):
    parts = factors(5, 5, 2)
    twice = with_near_copies(parts, 0.0)
    one, two = (SOLVERS[name](matrices(p)) for p in (parts, twice))
    assert apart(mixed(seen(name, parts), one.weights), mixed(seen(name, twice), two.weights)) < 1e-5
    torch.testing.assert_close(two.value, one.value, rtol=1e-6, atol=1e-9)
    if name != "quadratic":  # there, residuals that are equal need not be those of equal maps
        torch.testing.assert_close(two.weights[:, :2], two.weights[:, 5:], atol=1e-4, rtol=1e-4)


@solvers
def test_an_input_does_not_depend_on_its_batch(name):
    m = matrices(factors(7, 6, 3))
    whole = SOLVERS[name](m).weights
    for index in ([4], [6, 4, 0]):
        torch.testing.assert_close(
            SOLVERS[name](tuple(x[index] for x in m)).weights, whole[index], rtol=1e-6, atol=1e-7
        )


@solvers
def test_the_order_of_the_methods_does_not_matter(name):
    parts = factors(5, 7, 4)
    order = torch.tensor([3, 6, 1, 0, 5, 2, 4])
    permuted = [*(x[:, order] for x in parts[:3]), parts[3]]
    found, again = (SOLVERS[name](matrices(p)).weights for p in (parts, permuted))
    torch.testing.assert_close(again, found[:, order], rtol=1e-5, atol=1e-6)


def test_residuals_of_rounding_decide_nothing():
    """Of a linear model no gradient changes: all sensitivities are 1e-15, and the mean of the maps is as good as any."""
    g = torch.Generator().manual_seed(0)
    maps = torch.rand(3, 4, 30, generator=g, dtype=torch.float64)
    found = []
    for seed in range(3):
        g.manual_seed(seed)
        noise = 3e-8 * maps[:, :, None] * torch.randn(3, 4, 5, 30, generator=g, dtype=torch.float64)
        noise = noise.flatten(2)
        found.append(simplex.ratio(noise @ noise.mT / 5, maps @ maps.mT).weights * maps.norm(dim=2))
    for one in found:
        torch.testing.assert_close(one / one.sum(1, keepdim=True), torch.full_like(one, 0.25), atol=0.05, rtol=0)
    torch.testing.assert_close(found[0], found[1], atol=0.1, rtol=0.1)


def test_evenness_counts_equal_methods_once_and_is_no_form_of_its_own_sign():
    maps = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ok = torch.tensor([[True] * 4, [True, True, True, False]])
    E = evenness(maps @ maps.mT, ok)
    assert (torch.linalg.eigvalsh(E) > -1e-12).all()
    even = ok.double() / ok.sum(1, keepdim=True)
    assert form(E, even).max() < 0.2  # 0 for methods that are not alike at all
    copies = maps[:, [0, 1, 2, 3, 0]]
    E2 = evenness(copies @ copies.mT, torch.cat([ok, ok[:, :1]], 1))
    w = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.4, 0.3, 0.3, 0.0]]).double()
    halved = torch.cat([w, w[:, :1] / 2], 1)
    halved[:, 0] /= 2
    torch.testing.assert_close(form(E2, halved), form(E, w))


def test_even_weights_are_the_same_map():
    g = torch.Generator().manual_seed(2)
    maps = torch.randn(3, 4, 9, generator=g, dtype=torch.float64)
    maps = torch.cat([maps, maps[:, :1]], 1)
    maps = maps / maps.norm(dim=2, keepdim=True)
    w = torch.rand(3, 5, generator=g, dtype=torch.float64)
    w[:, 4] = 0
    w = w / w.sum(1, keepdim=True)
    even = even_out(w, maps @ maps.mT, torch.ones(3, 5, dtype=torch.bool))
    torch.testing.assert_close(mixed(maps, even), mixed(maps, w), atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(even[:, 0], even[:, 4])


@pytest.mark.parametrize("k, rank", [(13, 4), (18, 6)])
def test_many_methods_of_little_difference_are_solved_as_well_as_by_many_searches(monkeypatch, k, rank):
    """Signed maps that are nearly combinations of a few: first-order descents stopped 3 to 9 % above."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "benchmarks")
    from fronts import search

    g = torch.Generator().manual_seed(k)
    basis, deviation = torch.randn(2, k, rank, generator=g).double(), 0.15
    parts = []
    for size in (60, 30, 60):
        common = torch.randn(2, rank, size, generator=g).double()
        parts.append(basis @ common + deviation * torch.randn(2, k, size, generator=g).double())
    y = parts[2][:, :3].mean(1) + 0.5 * torch.randn(2, 60, generator=g).double()
    args = matrices([*parts, y])
    front = simplex.front(*args[:5], mean=args[5])
    starts = [*(0.9 * np.eye(k) + 0.1 / k), *np.random.default_rng(0).dirichlet(np.full(k, 0.3), 24)]
    best = [search([x[i] for x in args[:5]], float(front.floor[i]), starts) for i in range(2)]
    assert (front.pick().value / torch.tensor(best) - 1).max() < 1e-3


def test_the_best_ratio_of_more_than_a_dozen_methods_is_that_of_many_searches():
    from scipy.optimize import minimize

    m = matrices(factors(3, 15, 6, 0.3))
    found = simplex.ratio(m[0], m[1])
    unit = diagonal(m[1]).rsqrt()
    G, H = ((x * unit[:, :, None] * unit[:, None]).numpy() for x in m[:2])
    rng = np.random.default_rng(0)
    for i in range(3):

        def value(u, i=i):
            return u @ G[i] @ u / (u @ H[i] @ u)

        def slope(u, i=i):
            return 2 * (G[i] @ u - value(u) * (H[i] @ u)) / (u @ H[i] @ u)

        limits = [{"type": "eq", "fun": lambda u: u.sum() - 1, "jac": np.ones_like}]
        least = min(
            minimize(value, u, jac=slope, bounds=[(0, 1)] * 15, constraints=limits, method="SLSQP").fun
            for u in rng.dirichlet(np.full(15, 0.3), 40)
        )
        assert float(found.value[i]) <= least * (1 + 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("k, features", [(185, 30), (200, 400)])
def test_two_hundred_methods(k, features):
    m = matrices(factors(1, k, 7, 0.5, features))
    for found in (simplex.ratio(m[0], m[1]), simplex.front(*m[:5], mean=m[5]).pick(), simplex.quadratic(m[0])):
        assert found.weights.isfinite().all() and (found.weights >= 0).all()
        torch.testing.assert_close(found.weights.sum(1), torch.ones(1).double())


def test_eigenvectors_that_are_not_found_stop_nobody(monkeypatch):
    eigh = torch.linalg.eigh

    def fails(matrix):
        if (matrix[:, 0, 0] > 9).any():
            raise torch.linalg.LinAlgError("eigh: failed to converge")
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    matrix = torch.stack([torch.eye(3), 10 * torch.eye(3)]).double()
    values, vectors, found = ratios._eigenvectors(matrix)
    assert found.tolist() == [True, False] and values[0].tolist() == [1, 1, 1] and vectors.isfinite().all()


def test_noise_over_a_signal_that_some_methods_and_mixtures_do_not_have():
    """H of rank 2: method 0 has no contrast, 1 and 2 cancel each other's; against a fine grid."""
    g = torch.Generator().manual_seed(3)
    signal = torch.randn(1, 4, 2, generator=g).double()
    signal[:, 0], signal[:, 2] = 0, -signal[:, 1]
    noise = torch.randn(1, 4, 9, generator=g).double()
    noise[:, 0] *= 1e-3  # a map that hardly changes at all, also where it should
    G, H = noise @ noise.mT, signal @ signal.mT
    found = simplex.ratio(G, H)
    assert found.weights[0, 0] == 0 and found.weights.isfinite().all()
    steps = torch.linspace(0, 1, 61, dtype=torch.float64)
    grid = torch.cartesian_prod(steps, steps, steps)
    grid = grid[grid.sum(1).sub(1).abs() < 1e-9]
    w = torch.cat([torch.zeros(len(grid), 1).double(), grid], 1)
    below = torch.einsum("mi,ij,mj->m", w, H[0], w)
    values = torch.einsum("mi,ij,mj->m", w, G[0], w) / below.clamp(min=1e-12)
    least = values[below > 1e-9].min()
    assert found.value[0] <= least * (1 + 1e-9) and found.value[0] > 0.9 * least
    tiny = H.clone()
    tiny[0, 0, 0] = 1e-14
    assert simplex.ratio(G, tiny, silent=torch.full((1, 4), 1e-12)).weights[0, 0] == 0
    assert simplex.ratio(G, tiny * 0).status == ("no valid method",)
    signed = simplex.ratio(G, H, signed=True)
    assert signed.weights[0, 0] == 0 and signed.value[0] <= found.value[0] * (1 + 1e-9)


def problems(count=4, k=5):
    """Every problem that Newton's method is given, and weights inside the simplex."""
    m = matrices(factors(count, k, 8))
    columns = torch.stack([diagonal(m[2]).sqrt(), m[3], m[5]], 2)
    criteria = two_criteria.Criteria(torch.cat(m[:3], 2), columns, m[4], torch.ones(count, k).double())
    w = torch.rand(count, k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    of_methods = m[3] / (diagonal(m[2]) * m[4][:, None]).sqrt()
    floor = of_methods.amax(1) - 0.05
    rate = torch.linspace(0.1, 0.4, count, dtype=torch.float64)
    found = two_criteria.MostRobust(criteria, floor), two_criteria.WeightedSum(criteria, rate)
    return [*found, ratios._Ratio(m[0], m[1])], w / w.sum(1, keepdim=True)


@pytest.mark.parametrize("which", range(3))
def test_slopes_and_curvatures_are_those_of_autograd(which):
    every, w = problems()
    problem, price = every[which], torch.linspace(0.5, 2, 4, dtype=torch.float64)

    def lagrangian(w):
        point = problem.at(w)
        return point.value - torch.where(point.margin.isfinite(), price * point.margin, 0.0)

    of_value, of_margin = problem.at(w).slopes()
    slope = torch.func.jacrev(lambda w: lagrangian(w).sum())(w)
    torch.testing.assert_close(of_value - price[:, None] * of_margin, slope)
    bend = torch.func.hessian(lambda w: lagrangian(w).sum())(w)
    torch.testing.assert_close(problem.at(w).curvature(price), torch.stack([bend[i, :, i] for i in range(4)]))


@pytest.mark.parametrize("which", range(3))
def test_newtons_method_ends_where_nothing_can_be_gained(which):
    """No small step to any method lowers the value and keeps the margin, and the start's value is never exceeded."""
    every, w = problems()
    problem, valid = every[which], torch.ones_like(w, dtype=torch.bool)
    start = newton.reach(problem, w, valid)
    found = newton.minimise(problem, start, valid)
    here = problem.at(found)
    assert (here.value <= problem.at(start).value * (1 + 1e-6)).all() and (here.margin > -1e-6).all()
    torch.testing.assert_close(found.sum(1), torch.ones(4).double())
    g = torch.Generator().manual_seed(1)
    for _ in range(300):
        other = torch.rand(4, 5, generator=g, dtype=torch.float64) ** 3
        near = 0.999 * found + 0.001 * other / other.sum(1, keepdim=True)
        there = problem.at(near)
        assert ((there.value >= here.value * (1 - 1e-8)) | (there.margin < 0)).all()


def test_a_start_that_is_stationary_without_one_method_is_left_by_it():
    """At first Newton's step would lower the weight of that method, which is 0, although its slope points up: it has to wait,
    and must be tried again although no step of the others succeeds meanwhile."""
    every, w = problems()
    problem = every[2].rows(torch.tensor([0]))
    others = torch.tensor([[False, True, True, True, True]])
    inside = torch.where(others, w[:1], 0.0)
    start = newton.minimise(problem, inside / inside.sum(), others)
    found = newton.minimise(problem, start, torch.ones_like(others))
    assert start[0, 0] == 0 and found[0, 0] > 0.5
    assert problem.at(found).value < 0.9 * problem.at(start).value


@pytest.mark.parametrize("objective", ["opt", "robust", "faith", "faith + robust"])
def test_methods_that_agree_share_their_weight_whatever_the_rows_in_flight(objective):
    """Of a network with one hidden layer DeepLIFT and integrated gradients are one map, but for float32's rounding."""
    methods = ["integrated_gradients", "deeplift", "saliency", "feature_ablation"]
    draws = {"average_sensitivity": 8, "infidelity": 64}
    for seed in (0, 5):
        torch.manual_seed(seed)
        net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        x = torch.randn(3, 6, generator=torch.Generator().manual_seed(seed + 10))
        options = {"methods": methods, "baselines": torch.zeros(1, 6), "fit_draws": draws, "fresh_draws": 4}
        found = []
        for rows in (1, 64):
            r = cs.explain(net, x, 0, objective=objective, resolved_draws=0, max_batch=rows, **options)
            torch.testing.assert_close(r.weights[:, 0], r.weights[:, 1], rtol=0.05, atol=0.02)
            found.append(r.weights)
        torch.testing.assert_close(*found, rtol=0, atol=0.02)


def test_opt_is_the_same_where_mixtures_only_just_reach_the_best_methods_correlation():
    """Six masks: the mixture of least noise has the best method's correlation to 1e-9, and rounding differs by more."""
    torch.manual_seed(2)
    net = torch.nn.Sequential(torch.nn.Linear(30, 64), torch.nn.Tanh(), torch.nn.Linear(64, 3))
    x = torch.randn(8, 30)
    wanted = {"methods": "gradient", "objective": "opt", "seed": 1, "fit_draws": 6, "fresh_draws": 4}
    one, two = (cs.explain(net, x, max_batch=size, **wanted).attribution for size in (64, 13))
    apart = (one - two).abs().amax(1) / one.abs().amax(1)
    assert float(apart.max()) < 1e-3
