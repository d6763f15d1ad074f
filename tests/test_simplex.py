"""Laws of the simplex solvers: feasible, never above a corner, certified, and blind to what should not matter."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from consilience import simplex
from consilience.errors import InputError
from consilience.simplex import ratios, scan
from consilience.simplex.solution import diagonal, form


def gram(count, k, seed=0, shift=0.5, rank=None):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(count, k, rank or 3 * k, generator=g, dtype=torch.float64) + shift
    return a @ a.mT / a.shape[2]


def data(count, k, seed=0, noise=1.0):
    """(C, b, v) of k responses that see y through a common part."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(count, k, 60, generator=g, dtype=torch.float64) + torch.randn(count, 1, 60, generator=g)
    y = a[:, : (k + 1) // 2].mean(1) + noise * torch.randn(count, 60, generator=g)
    a, y = a - a.mean(2, keepdim=True), y - y.mean(1, keepdim=True)
    return a @ a.mT / 60, (a * y[:, None]).mean(2), (y**2).mean(1)


def rho(C, b, v, w):
    return (b * w).sum(-1) / (form(C, w) * v).sqrt()


# Each row: (name, make(count, k, seed) → inputs, solve(inputs, **options) → Solution, value(inputs, w (B, k)) → (B,)).
def _corr(m, w):
    r = rho(*m, w)
    return 1 - r * r.abs()


SOLVERS = {
    "quadratic": (lambda n, k, s: (gram(n, k, s),), simplex.quadratic, lambda m, w: form(m[0], w)),
    "ratio": (
        lambda n, k, s: (gram(n, k, s), gram(n, k, s + 1, 1.0)),
        simplex.ratio,
        lambda m, w: form(m[0], w) / form(m[1], w),
    ),
    "correlation": (data, simplex.correlation, _corr),
    "scale_free": (data, simplex.scale_free, lambda m, w: 1 - rho(*m, w) ** 2),
}


@pytest.fixture(params=SOLVERS)
def solver(request):
    return SOLVERS[request.param]


def take(m, index):
    """Explainers ``index`` of the inputs (B, k, k), (B, k), (B,)."""
    cut = {3: lambda x: x[:, index][:, :, index], 2: lambda x: x[:, index], 1: lambda x: x}
    return tuple(cut[x.ndim](x) for x in m)


def rescale(m, s):
    """Explainer j times s_j (B, k): the same problem for the scale-free criteria."""
    how = {3: lambda x: x * s[:, :, None] * s[:, None], 2: lambda x: x * s, 1: lambda x: x}
    return tuple(how[x.ndim](x) for x in m)


def check(m, found, value, valid=None):
    w = found.weights
    count, k = w.shape
    torch.testing.assert_close(w.sum(1), torch.ones(count, dtype=w.dtype))
    assert (w >= 0).all() and found.gap.ge(0).all() and len(found.status) == count
    torch.testing.assert_close(found.value, value(m, w), rtol=1e-7, atol=1e-12)
    for j in range(k):
        corner = value(m, torch.eye(k, dtype=w.dtype)[j].expand(count, k))
        seen = torch.ones(count, dtype=torch.bool) if valid is None else valid[:, j]
        assert (found.value <= corner * (1 + 1e-9) + 1e-14)[seen & corner.isfinite()].all()


@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_feasible_and_never_above_a_corner_nor_a_random_mixture(solver, k):
    make, solve, value = solver
    m = make(7, k, k)
    found = solve(*m)
    check(m, found, value)
    g = torch.Generator().manual_seed(9)
    for power in (1.0, 4.0):
        for w in torch.rand(300, k, generator=g, dtype=torch.float64) ** power:
            w = (w / w.sum()).expand(7, k)
            assert (found.value <= value(m, w) + 1e-9).all()
    assert found.status == ("optimal",) * 7


@pytest.mark.parametrize("k", [2, 3])
def test_gap_covers_a_fine_grid(solver, k):
    make, solve, value = solver
    m = make(5, k, 3)
    found = solve(*m)
    t = torch.linspace(0, 1, 81 if k == 3 else 2001, dtype=torch.float64)
    grid = torch.stack([t, 1 - t], 1) if k == 2 else torch.cartesian_prod(t, t)
    if k == 3:
        grid = grid[grid.sum(1) <= 1]
        grid = torch.cat([grid, 1 - grid.sum(1, keepdim=True)], 1)
    brute = value(tuple(x.repeat_interleave(len(grid), 0) for x in m), grid.repeat(5, 1)).view(5, -1).amin(1)
    assert (found.value - brute <= found.gap + 1e-12).all()
    torch.testing.assert_close(found.value, brute, rtol=2e-2, atol=1e-3)


def test_order_duplicates_and_neighbours_in_the_batch_do_not_matter(solver):
    make, solve, _ = solver
    m = make(6, 6, 11)
    found = solve(*m)
    close = {"rtol": 1e-7, "atol": 1e-10}
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    permuted = solve(*take(m, order))
    torch.testing.assert_close(permuted.value, found.value, **close)
    torch.testing.assert_close(permuted.weights, found.weights[:, order], rtol=1e-4, atol=1e-6)
    twice = solve(*take(m, torch.tensor([0, 1, 2, 3, 4, 5, 2, 0, 2])))
    torch.testing.assert_close(twice.value, found.value, **close)
    alone = solve(*(x[4:5] for x in m))
    torch.testing.assert_close(alone.weights[0], found.weights[4], rtol=1e-6, atol=1e-8)


def test_only_valid_entries_are_used_whatever_the_others_hold(solver):
    make, solve, _ = solver
    m = make(5, 5, 2)
    valid = torch.ones(5, 5, dtype=torch.bool)
    valid[:, 1] = False
    valid[3], valid[4, :4] = False, False
    broken = tuple(x.clone() for x in m)
    for x in broken:
        if x.ndim == 3:
            x[:, 1], x[:, :, 1] = torch.nan, torch.nan
    found = solve(*broken, valid=valid)
    assert found.status[3] == "no valid method" and found.weights[3].isnan().all() and found.value[3].isnan()
    assert (found.weights[:3, 1] == 0).all() and found.weights[4].tolist() == [0, 0, 0, 0, 1]
    fewer = solve(*(x[:3] for x in take(m, torch.tensor([0, 2, 3, 4]))))
    torch.testing.assert_close(found.value[:3], fewer.value, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", ["ratio", "correlation", "scale_free"])
def test_scale_free_criteria_do_not_see_the_maps_scales(name):
    make, solve, _ = SOLVERS[name]
    m = make(8, 6, 5)
    s = 10 ** torch.linspace(-6, 6, 48, dtype=torch.float64).view(6, 8).T.contiguous()
    torch.testing.assert_close(solve(*rescale(m, s)).value, solve(*m).value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("factor", [1e-12, 1e-3, 7.0, 1e12])
def test_scaling_everything_leaves_the_weights(factor):
    G, H = gram(6, 5), gram(6, 5, 1)
    torch.testing.assert_close(simplex.quadratic(G * factor).weights, simplex.quadratic(G).weights)
    close = {"rtol": 1e-5, "atol": 1e-7}
    torch.testing.assert_close(simplex.ratio(G * factor, H * factor).weights, simplex.ratio(G, H).weights, **close)
    if factor > 1e-9:  # a ratio of 1e-12 is near what rounding makes of float32 maps: see the ties
        torch.testing.assert_close(simplex.ratio(G * factor, H).weights, simplex.ratio(G, H).weights, **close)


def degenerate(k=5):
    base = gram(1, k, 7)[0]
    ones = torch.ones(k, k, dtype=torch.float64)
    a = torch.randn(k, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wide = 10 ** torch.linspace(-6, 6, k, dtype=torch.float64)
    zero_row = base.clone()
    zero_row[0], zero_row[:, 0] = 0, 0
    opposed = torch.tensor([1.0, -1, 2, -2, 1], dtype=torch.float64)
    cases = [base, ones, ones * 0, a @ a.T, torch.eye(k).double(), base * wide * wide[:, None]]
    return torch.stack([*cases, zero_row, opposed * opposed[:, None], base * 1e-12, base * 1e12, base.float().double()])


def test_degenerate_matrices():
    G = degenerate()
    found = simplex.quadratic(G)
    check((G,), found, lambda m, w: form(m[0], w).clamp(min=0))
    assert (found.gap <= 1e-7 * G.diagonal(dim1=1, dim2=2).amin(1) + 1e-9 * found.value + 1e-30).all()
    assert found.value[[2, 3, 6, 7]].abs().max() < 1e-9
    for H in (G, G.flip(0), torch.eye(5).double().expand_as(G)):
        relative = simplex.ratio(G, H)
        fine = torch.tensor([s != "no valid method" for s in relative.status])
        assert (fine == (H.diagonal(dim1=1, dim2=2) > 0).any(1)).all()
        assert (relative.weights[fine] >= 0).all() and relative.value[fine].isfinite().all()
    b = torch.randn(len(G), 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    b = torch.einsum("bij,bj->bi", G, b)  # in the range of C, as covariances are
    for solve in (simplex.correlation, simplex.scale_free):
        found = solve(G, b, torch.einsum("bi,bi->b", b, b) + 1)
        assert found.weights.isfinite().all() and found.value.isfinite().all() and found.gap.isfinite().all()


def test_nnls_agrees_with_scipy():
    from scipy.optimize import nnls

    rng = np.random.default_rng(0)
    for k, rows in ((1, 5), (4, 6), (9, 30), (12, 5)):
        a, y = rng.normal(size=(20, rows, k)), rng.normal(size=(20, rows))
        ours = simplex.nnls(torch.tensor(a.transpose(0, 2, 1) @ a), torch.tensor(np.einsum("brk,br->bk", a, y))).numpy()
        for ai, yi, u in zip(a, y, ours, strict=True):
            assert (u >= 0).all()
            assert abs(np.linalg.norm(ai @ u - yi) - nnls(ai, yi)[1]) < 1e-9 * (1 + np.linalg.norm(yi))


def test_quadratic_agrees_with_cvxpy():
    cp = pytest.importorskip("cvxpy")
    G = torch.cat([gram(4, 6), gram(2, 6, rank=3)])
    found = simplex.quadratic(G)
    for g, value, gap in zip(G.numpy(), found.value, found.gap, strict=True):
        w = cp.Variable(6, nonneg=True)
        problem = cp.Problem(cp.Minimize(cp.quad_form(w, cp.psd_wrap(g))), [cp.sum(w) == 1])
        problem.solve(solver="CLARABEL")
        assert abs(float(value) - problem.value) < 1e-6 * g.max() and float(value) - problem.value <= float(gap) + 1e-7


def test_an_optimum_far_below_every_corner_is_still_certified():
    a = torch.randn(50, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    a = a - a.mean(1, keepdim=True) * (1 - 1e-4)  # the hull almost holds the origin
    found = simplex.quadratic(a @ a.mT)
    assert (found.gap <= 1e-10).all() and found.value.max() < 1e-6


def test_a_ratio_by_support_and_by_newton_agree():
    G, H = gram(20, 7, 4), gram(20, 7, 5, 1.0)
    H /= H.diagonal(dim1=1, dim2=2).sqrt()[:, None] * H.diagonal(dim1=1, dim2=2).sqrt()[:, :, None]
    ok = torch.ones(20, 7, dtype=torch.bool)
    found = simplex.ratio(G, H)
    starts = ratios._starts(G, ok, G.diagonal(dim1=1, dim2=2).argmin(1), True)
    _, value = ratios._local(G, H, ok, starts, 100)
    assert (found.value <= value * (1 + 1e-9)).all()
    assert ((value / found.value - 1) < 1e-6).float().mean() > 0.8  # local, so not always


def test_gap_of_a_ratio_of_cancelling_and_single_precision_maps():
    g = torch.Generator().manual_seed(0)
    a, c = (torch.randn(40, 5, 4, generator=g) for _ in range(2))
    c[:, 1] = -c[:, 0] + 1e-3 * c[:, 1]  # two maps that all but cancel; rank 4 < k, made in float32
    c[:, 2] = c[:, 3]
    for G in (a @ a.mT, 1e-4 * c @ c.mT + 1e-6 * a @ a.mT):
        G, H = G.double(), (c @ c.mT).double()
        found = simplex.ratio(G, H)
        w = torch.rand(20000, 5, dtype=torch.float64, generator=g) ** 4
        w = w / w.sum(1, keepdim=True)
        value = torch.einsum("mi,bij,mj->bm", w, G, w) / torch.einsum("mi,bij,mj->bm", w, H, w)
        brute = value.masked_fill(value < 0, torch.inf).amin(1)
        assert (found.value - brute <= found.gap + 1e-9 * brute).all()


def test_ratio_of_many_explainers():
    G, H = gram(3, 14, 6), gram(3, 14, 7, 1.0)
    found = simplex.ratio(G, H)
    check((G, H), found, SOLVERS["ratio"][2])
    w = torch.rand(20000, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) ** 6
    w = w / w.sum(1, keepdim=True)
    value = torch.einsum("mi,bij,mj->bm", w, G, w) / torch.einsum("mi,bij,mj->bm", w, H, w)
    assert (found.value <= value.amin(1)).all() and (found.value - found.gap <= value.amin(1)).all()


def test_signed_weights_do_no_worse():
    G, H = gram(6, 5), gram(6, 5, 1)
    signed = simplex.ratio(G, H, signed=True)
    assert (signed.value <= simplex.ratio(G, H).value * (1 + 1e-9)).all()
    torch.testing.assert_close(signed.weights.abs().sum(1), torch.ones(6, dtype=torch.float64))
    C, b, v = data(6, 5)
    free = simplex.correlation(C, b, v, signed=True)
    assert (free.value <= simplex.correlation(C, b, v).value + 1e-9).all() and (free.gap < 1e-6).all()
    damped = simplex.correlation(C, b, v, signed=True, ridge=0.1)
    assert (damped.value >= free.value - 1e-9).all() and (damped.value - damped.gap <= free.value + 1e-9).all()
    with pytest.raises(InputError, match="signed=True"):
        simplex.correlation(C, b, v, ridge=0.1)


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_signed_weights_are_given_to_methods_that_can_be_used(ridge):
    # One method left out by the caller, one with a constant response, and one that speaks against the output.
    C = torch.diag(torch.tensor([1.0, 1.0, 0.0])).expand(2, 3, 3)
    b, v = torch.tensor([[0.3, -0.6, 0.0], [0.0, 0.0, 0.0]]), torch.ones(2)
    found = simplex.correlation(C, b, v, torch.tensor([[False, True, True]] * 2), signed=True, ridge=ridge)
    torch.testing.assert_close(found.weights[0], torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(found.value, torch.tensor([0.64, 1.0], dtype=torch.float64))
    assert found.weights[1].abs().sum() == 1 and found.status[1] == "no method helps"


def test_correlation_says_when_nothing_can_be_gained():
    C, b, v = data(3, 4)
    b[0] = -b[0].abs() - 0.1
    v[1] = 0
    C[2], b[2] = 0, 0
    found = simplex.correlation(C, b, v)
    assert found.status == ("no method helps", "the output does not change", "no response varies")
    assert found.weights[0].max() == 1 and found.value[1:].tolist() == [1, 1] and found.value[0] > 1
    C, b, v = data(1, 4)
    C[:, 2], C[:, :, 2], b[:, 2] = 0, 0, 0  # a constant response
    assert simplex.correlation(C, b, v).weights[0, 2] == 0


def test_scale_free_infidelity_takes_either_sign():
    M, p, y2 = data(5, 4)
    torch.testing.assert_close(simplex.scale_free(M, p, y2).value, simplex.scale_free(M, -p, y2).value)


def test_projection_is_the_nearest_point_of_the_simplex():
    v = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    w = simplex.project(v)
    torch.testing.assert_close(w.sum(1), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(w, simplex.quadratic((torch.eye(4) - v[:, :, None] - v[:, None]).double() + 100).weights)


def test_descent_is_monotone_and_finds_the_convex_optimum():
    G = gram(10, 6)
    starts = torch.eye(6, dtype=torch.float64)[torch.arange(10) % 6]
    _, value = simplex.descend(lambda w: form(G, w), starts)
    assert (value <= form(G, starts)).all()
    torch.testing.assert_close(value, simplex.quadratic(G).value, rtol=1e-8, atol=0)
    starts[0] = torch.nan
    assert simplex.descend(lambda w: form(G, w), starts)[1].isfinite().tolist() == [False] + [True] * 9


def problem(count, k, seed=0):
    return gram(count, k, seed), gram(count, k, seed + 1, 1.0), *data(count, k, seed)


def judge(args, w):
    G, H, C, b, v = args
    return form(G, w) / form(H, w), rho(C, b, v, w)


@pytest.mark.parametrize("k", [1, 2, 6])
def test_the_front_dominates_every_corner_and_ends_at_both_optima(k):
    args = problem(4, k, 20)
    front = simplex.front(*args)
    for j in range(k):
        r, c = judge(args, torch.eye(k, dtype=torch.float64)[j].expand(4, k))
        covered = (front.robustness <= r[:, None] * (1 + 1e-9)) & (front.correlation >= c[:, None] - 1e-9)
        assert (covered & front.keep).any(1).all()
    for i, n in enumerate(front.keep.sum(1).tolist()):
        assert front.keep[i, :n].all()
        r, c, w = front.robustness[i, :n], front.correlation[i, :n], front.weights[i, :n]
        assert (r.diff() >= 0).all() and (c.diff() > 0).all()
        torch.testing.assert_close(w.sum(1), torch.ones(n, dtype=torch.float64))
        one = judge(tuple(x[i : i + 1].expand(n, *x.shape[1:]) for x in args), w)
        torch.testing.assert_close(torch.stack(one), torch.stack([r, c]), rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(r[0], simplex.ratio(*args[:2]).value[i], rtol=1e-7, atol=0)
        best = simplex.correlation(*args[2:]).value[i]
        torch.testing.assert_close(1 - c[-1] * c[-1].abs(), best, rtol=1e-7, atol=1e-9)


def test_a_pick_is_as_faithful_as_asked_and_more_robust_than_any_single_that_is():
    args = problem(12, 5, 30)
    front = simplex.front(*args)
    corners = torch.stack([torch.stack(judge(args, torch.eye(5).double()[j].expand(12, 5))) for j in range(5)], -1)
    for floor in (None, corners[1].amin(1), corners[1].median(1).values):
        found = front.pick(floor)
        asked = corners[1].amax(1) if floor is None else floor
        r, c = judge(args, found.weights)
        assert (c >= asked - 1e-9).all() and (found.gap >= 0).all()
        singles = corners[0].masked_fill(corners[1] < asked[:, None], math.inf).amin(1)
        assert (r <= singles * (1 + 1e-9)).all()
        torch.testing.assert_close(r, found.value)
    (c,) = judge(args, front.pick(0.1).weights)[1:]
    assert (c >= 0.1 - 1e-12)[front.correlation.nan_to_num(-1).amax(1) > 0.1].all()
    beyond = front.pick(torch.full((12,), 0.9999))
    assert set(beyond.status) == {"no correlation reaches 1.000"}
    torch.testing.assert_close(judge(args, beyond.weights)[1], simplex.correlation(*args[2:]).value.neg().add(1).sqrt())
    values = [judge(args, front.at(mu).weights) for mu in (1e-3, 1.0, 1e3)]
    assert (values[0][0] >= values[2][0] - 1e-9).all() and (values[0][1] >= values[2][1] - 1e-9).all()


def test_a_pick_agrees_with_slsqp():
    from scipy.optimize import minimize

    args = problem(4, 4, 40)
    found = simplex.front(*args).pick()
    floor = torch.stack([judge(args, torch.eye(4).double()[j].expand(4, 4))[1] for j in range(4)], 1).amax(1)
    for i in range(4):
        one = tuple(x[i : i + 1] for x in args)

        def at(w, one=one):
            return [float(x) for x in judge(one, torch.tensor(w)[None])]

        limits = [
            {"type": "eq", "fun": lambda w: w.sum() - 1},
            {"type": "ineq", "fun": lambda w, i=i, at=at: at(w)[1] - float(floor[i])},
        ]
        start = found.weights[i].numpy()
        for w in (start, np.full(4, 0.25)):
            slow = minimize(lambda w, at=at: at(w)[0], w, bounds=[(0, 1)] * 4, constraints=limits, method="SLSQP")
            if slow.success:
                assert float(found.value[i]) <= slow.fun * 1.01


def test_a_pick_is_as_robust_as_many_searches_find(monkeypatch):
    """The scan's own points are several per cent above; what is solved is not. The slow twin is the benchmark's."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "benchmarks")
    from fronts import search

    count, k = 16, 8
    g = torch.Generator().manual_seed(2)
    a = torch.randn(count, 60, k, generator=g, dtype=torch.float64)  # responses that have nothing in common
    wanted = torch.randn(count, 1, k, generator=g, dtype=torch.float64).clamp(min=-0.3)
    y = (a * wanted).sum(2) + 2 * torch.randn(count, 60, generator=g)
    a, y = a - a.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    moments = a.mT @ a / 60, torch.einsum("bsr,bs->br", a, y) / 60, (y**2).mean(1)
    args = gram(count, k, 5, 0.0), gram(count, k, 6, 0.0), *moments
    front = simplex.front(*args)
    starts = [*(0.9 * np.eye(k) + 0.1 / k), *np.random.default_rng(0).dirichlet(np.full(k, 0.5), 12)]
    best = torch.tensor([search([x[i] for x in args], float(front.floor[i]), starts) for i in range(count)])
    solved = front.pick().value / best - 1
    scanned = front.robustness.masked_fill(front.correlation < front.floor[:, None], math.inf).nan_to_num(math.inf)
    assert solved.max() < 1e-5
    assert (scanned.amin(1) / best - 1).mean() > 1e-3


def test_descents_that_are_given_up_early_lose_nothing(monkeypatch):
    """Beside the slow twin, in which every start of every μ goes on to the end."""
    args = problem(40, 7, 50)
    fast = simplex.front(*args)
    monkeypatch.setattr(scan, "STRAYS", math.inf)
    slow = simplex.front(*args)
    for floor in (None, slow.correlation.nan_to_num(-1).amax(1) * 0.99):
        assert (fast.pick(floor).value <= slow.pick(floor).value * (1 + 1e-3)).all()
    for mu in (0.01, 1.0, 100.0):
        assert (fast.at(mu).value <= slow.at(mu).value + 1e-9).all()


def test_a_front_with_a_uniform_map_a_zero_map_and_a_still_output():
    G, H, C, b, v = problem(3, 5, 50)
    for x in (C, G):  # method 0 ignores the input: perfectly robust, constant response
        x[:, 0], x[:, :, 0] = 0, 0
    b[:, 0] = 0
    for x in (G, H, C):  # method 3 is the zero map
        x[0, 3], x[0, :, 3] = 0, 0
    b[0, 3], b[1], v[1] = 0, 0, 0
    valid = torch.ones(3, 5, dtype=torch.bool)
    valid[2] = False
    front = simplex.front(G, H, C, b, v, valid)
    found = front.pick()
    assert found.weights[0, 3] == 0 and (found.weights[:2, 0] == 0).all()
    assert found.value[1] <= (diagonal(G) / diagonal(H))[1, 1:].min()
    assert found.status[2] == "no valid method" and not front.keep[2].any()
    assert found.weights[:2].isfinite().all() and front.at(1.0).weights[:2].isfinite().all()


def test_a_uniform_map_among_the_methods_takes_no_weight_from_faithfulness():
    """With all its weight on the uniform map but for 1e-24, a mixture keeps its correlation and has no sensitivity."""
    G, H, C, b, v = problem(3, 4, 50)
    mean = torch.full_like(b, 2.0)
    G[:, 1], G[:, :, 1] = 0, 0
    mean[:, 1] = 40.0
    noise = 1e-9 * 40  # what rounding leaves of a uniform map's response in float32
    for scale in (0.0, noise):
        C[:, 1], C[:, :, 1], b[:, 1] = 0, 0, scale * C[:, 0, 0].sqrt()
        C[:, 1, 1] = scale**2
        left = [x[:, [0, 2, 3]][..., [0, 2, 3]] if x.ndim == 3 else x[:, [0, 2, 3]] for x in (G, H, C, b)]
        found, alone = simplex.front(G, H, C, b, v, mean=mean).pick(), simplex.front(*left, v).pick()
        assert (found.weights[:, 1] == 0).all()
        torch.testing.assert_close(found.weights[:, [0, 2, 3]], alone.weights)
        faithful = simplex.correlation(C, b, v, mean=mean)
        assert (faithful.weights[:, 1] == 0).all()
        torch.testing.assert_close(faithful.value, simplex.correlation(*left[2:], v).value)
    only = simplex.front(*(x[:, 1:2, 1:2] if x.ndim == 3 else x[:, 1:2] for x in (G, H, C, b)), v, mean=mean[:, 1:2])
    assert (only.pick().weights == 1).all()


def test_a_mixture_in_which_everything_but_a_uniform_map_cancels_has_no_correlation():
    mean = torch.tensor([[1.0, 1.0]]).double()
    C = 1e-8 * torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]]).double() + 1e-18  # ± the same pattern, and very little of y
    b = torch.tensor([[2e-9, 0.5e-9]]).double()
    v = torch.ones(1).double()
    blind = simplex.correlation(C, b, v).value
    found = simplex.correlation(C, b, v, mean=mean)
    assert blind < 0.9 and found.weights.tolist() == [[1, 0]] and 1 - found.value < 1e-6
    G = torch.eye(2).double()[None]
    kept = simplex.front(G, G, C, b, v, mean=mean)
    assert float(kept.correlation.nan_to_num(0).max()) < 1e-2


def test_shapes_are_checked():
    with pytest.raises(InputError, match=r"\(B, k, k\)"):
        simplex.quadratic(torch.eye(3))
    with pytest.raises(InputError, match="valid"):
        simplex.quadratic(torch.eye(3)[None], torch.ones(3, dtype=torch.bool))


def test_incompatibility_is_what_the_best_compromise_loses():
    """Against a fine grid of mixtures of two methods; 0 for one method, for equal ones, and whatever the scales."""
    args = problem(8, 2, 60)
    found = simplex.front(*args).incompatibility
    w = torch.linspace(0, 1, 4001, dtype=torch.float64)
    w = torch.stack([w, 1 - w], 1)
    for i in range(8):
        r, c = judge(tuple(x[i : i + 1].expand(len(w), *x.shape[1:]) for x in args), w)
        if c.max() <= 0:
            assert found[i].isnan()
            continue
        slow = torch.maximum(1 - r.min() / r, 1 - c / c.max()).min()
        assert float(slow) - 1e-3 <= float(found[i]) <= float(slow) + 0.02
    assert (found.nan_to_num(0) >= 0).all() and (found.nan_to_num(0) < 1).all() and found.isfinite().any()
    alone = [x[:, :1, :1] if x.ndim == 3 else x[:, :1] if x.ndim == 2 else x for x in args]
    assert simplex.front(*alone).incompatibility.nan_to_num(0).abs().max() < 1e-9
    G, H, C, b, v = args
    scaled = simplex.front(7 * G, 3 * H, 4 * C, 2 * b, v).incompatibility
    torch.testing.assert_close(scaled, found, equal_nan=True, rtol=1e-4, atol=1e-4)
