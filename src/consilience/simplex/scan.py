"""The scan of the front between robustness and faithfulness: its shape, from thousands of short descents in one batch.

matrices → :func:`_prepared` (methods that can be used, unit maps) → corners and both optima
         → :func:`_descents` (local minima of J for every μ) → :func:`_pareto` (undominated, thinned)
         → points between neighbours → :func:`_pareto` → :class:`~consilience.simplex.tradeoff.Front`
"""

from __future__ import annotations

import torch
from torch import Tensor

from .descent import descend_with_slope
from .ratios import ratio
from .regressions import correlation, varies
from .solution import convert, diagonal, in_double, usable
from .tradeoff import Front
from .two_criteria import Criteria, loss_with_derivatives

MUS = tuple(torch.logspace(-3, 3, 25, dtype=torch.float64).tolist())
"""The grid of μ."""

ITERATIONS = 60
"""99 of 100 descents are within 1e-6 of their minimum then; a chosen point is solved further, see ``newton.py``."""

TRIAL = 15
"""Iterations with every start, after which only the best one of each μ goes on, and ..."""

STRAYS = 2
"""... so many of the worst: they are the likeliest to end in another minimum, such as one in a dent of the front."""

CORNERS = 16
"""Methods from which descents start, at most: the most robust and the most faithful ones."""

BINS = 64
"""Points kept along one front, beside the corners and the two optima."""

ROWS = 2**16
"""Descents at a time."""

WIDE = 10
"""Inputs from which the scan is faster on an H200 (.11 s for up to 300) than on a processor (.01 s each)."""

BETWEEN = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
"""Where, between two neighbours on the front, mixtures of both are tried."""


def front(
    G: Tensor,
    H: Tensor,
    C: Tensor,
    b: Tensor,
    vy: Tensor,
    valid: Tensor | None = None,
    mus: tuple[float, ...] = MUS,
    mean: Tensor | None = None,
) -> Front:
    """The trade-off between r(c) = cᵀGc / cᵀHc, as in :func:`ratio`, and ρ(c), as in :func:`correlation`.

    J(c) = (1 − ρ|ρ|) + μ · r / r₀ is minimised by a projected gradient for every μ of a grid, from every corner and both
    single optima; of those, and of points between neighbours, what is not dominated is kept. r₀ is the best corner's r,
    at least a thousandth of the most faithful corner's: a map that ignores the input would else make every μ mean
    "robust". The scan is local; but its ends are exact, and no corner is better than the front, by construction.

    A method whose response is constant (see :func:`correlation`, and ``mean`` there) is left out if others' are not: weight
    on a uniform map would make any mixture as robust as one likes and leave its ρ as it is.

    Args:
        G: (B, k, k), Gram matrices of the residuals.
        H: (B, k, k), Gram matrices of the maps.
        C: (B, k, k), covariances of the responses.
        b: (B, k), the responses' covariances with the output's fall.
        vy: (B,), the variance of the fall.
        valid: (B, k) bool, methods that may be used; all by default.
        mus: the grid.
        mean: (B, k), the responses' means; 0 by default.
    """
    # The scan is wide, hundreds of descents for each input, and left to an accelerator if many inputs share its launches.
    wide = torch.device("cpu")
    if G.device.type == "cuda" and len(G) >= WIDE:
        wide = G.device
    if mean is None:
        mean = torch.zeros_like(b)
    return _front(G, H, C, b, vy, valid, mus, mean, wide)


@in_double
def _front(
    G: Tensor,
    H: Tensor,
    C: Tensor,
    b: Tensor,
    vy: Tensor,
    valid: Tensor | None,
    mus: tuple[float, ...],
    mean: Tensor,
    wide: torch.device,
) -> Front:
    """:func:`front` in float64; the descents run on the device ``wide``."""
    ok, answers = _usable_methods(G, H, C, b, valid, mean)
    robust = ratio(G, H, ok)
    faithful = correlation(C, b, vy, ok, mean=mean)
    criteria = _criteria(G, H, C, b, vy, mean, ok, answers)

    count, k = ok.shape
    corners = torch.eye(k, dtype=torch.float64, device=ok.device).expand(count, k, k) * ok[:, :, None]
    ends = criteria.scaled(torch.stack([robust.weights, faithful.weights], 1).nan_to_num(0.0))
    r, rho = criteria(corners)
    r = r.masked_fill(~ok, torch.inf)
    rho = rho.masked_fill(~ok, -torch.inf)
    unit = _unit(r, rho)

    given = torch.cat([corners, ends], 1)
    starts = torch.cat([_promising(corners, r, rho), ends], 1)
    ended = _scanned(criteria, starts, unit, torch.tensor(mus, dtype=torch.float64, device=wide))
    u, keep = _pareto(criteria, given, ended)
    # Where the front is concave no μ has its minimum there; mixtures of neighbours reach it.
    u, keep = _pareto(criteria, given, torch.cat([u, _between(u, keep)], 1))

    robustness, correlations = criteria(u)
    return Front(
        weights=torch.where(keep[..., None], criteria.weights(u), torch.nan),
        robustness=torch.where(keep, robustness, torch.nan),
        correlation=torch.where(keep, correlations, torch.nan),
        keep=keep,
        floor=torch.where(ok.any(1), rho.amax(1), torch.nan),
        unit=unit,
        least=robust.value - robust.gap,
        most=(1 - faithful.value + faithful.gap).nan_to_num(1.0),
        criteria=criteria,
    )


def _usable_methods(
    G: Tensor, H: Tensor, C: Tensor, b: Tensor, valid: Tensor | None, mean: Tensor
) -> tuple[Tensor, Tensor]:
    """(methods that may get weight, those of them whose response varies), (B, k)."""
    ok, G, H = usable(valid, G, H)
    ok = ok & (diagonal(H) > 0)
    answers, C = usable(ok & b.isfinite() & mean.isfinite(), C)
    answers = answers & varies(C, mean, answers)
    # Where no response varies there is no ρ to lose, and all methods stay.
    ok = torch.where(answers.any(1, keepdim=True), answers, ok)
    return ok, answers


def _criteria(
    G: Tensor, H: Tensor, C: Tensor, b: Tensor, vy: Tensor, mean: Tensor, ok: Tensor, answers: Tensor
) -> Criteria:
    """r and ρ as functions of mixtures of maps of norm 1."""
    ok, G, H = usable(ok, G, H)
    _, C = usable(answers, C)
    unit = torch.where(ok, diagonal(H), 1.0).rsqrt() * ok
    G, H, C = (matrix * unit[:, :, None] * unit[:, None] for matrix in (G, H, C))
    b = torch.where(answers, b, 0.0) * unit
    mean = torch.where(answers, mean, 0.0) * unit
    columns = torch.stack([diagonal(C).clamp(min=0).sqrt(), b, mean], 2)
    return Criteria(torch.cat([G, H, C], 2), columns, vy.clamp(min=0), unit)


def _unit(r: Tensor, rho: Tensor) -> Tensor:
    """(B,): r₀, from the corners' r and ρ (B, k)."""
    of_faithful = r.gather(1, rho.argmax(1, keepdim=True))[:, 0]
    unit = torch.maximum(r.amin(1), 1e-3 * of_faithful)
    return torch.where((unit > 0) & unit.isfinite(), unit, 1.0)


def _promising(corners: Tensor, r: Tensor, rho: Tensor) -> Tensor:
    """(B, at most ``CORNERS``, k): all corners, or the best by either criterion."""
    k = corners.shape[2]
    if k <= CORNERS:
        return corners
    robust = r.topk(CORNERS // 2, 1, largest=False).indices
    faithful = rho.topk(CORNERS // 2, 1).indices
    return corners.gather(1, torch.cat([robust, faithful], 1)[..., None].expand(-1, -1, k))


def _scanned(criteria: Criteria, starts: Tensor, unit: Tensor, mu: Tensor) -> Tensor:
    """:func:`_descents`, some inputs at a time and on the device of ``mu``."""

    def there(x: Tensor) -> Tensor:
        return x.to(mu.device)

    step = max(1, ROWS // (len(mu) * starts.shape[1]))
    ends = []
    for part in torch.arange(len(starts), device=starts.device).split(step):
        moved = convert(criteria.inputs(part), there)
        ends.append(_descents(moved, there(starts[part]), mu, there(unit[part])))
    return torch.cat(ends).to(starts.device)


def _descents(criteria: Criteria, starts: Tensor, mu: Tensor, unit: Tensor) -> Tensor:
    """(B, m · at most n, k): local minima of J for each μ.

    Nearly all starts come to the same minimum: after ``TRIAL`` iterations most of them are given up.

    Args:
        criteria: of B inputs.
        starts: (B, n, k).
        mu: (m,).
        unit: r₀ (B,).
    """
    n = starts.shape[1]
    valid = criteria.valid[:, None]
    # The searches of one input in a row: n starts with the first μ, n with the second, ...
    rate = (mu / unit[:, None]).repeat_interleave(n, 1)

    def descend(u: Tensor, rate: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
        def evaluate(u: Tensor) -> tuple[Tensor, Tensor]:
            return criteria.slope(u, lambda r, rho: loss_with_derivatives(r, rho, rate))

        return descend_with_slope(evaluate, u, iterations, valid)

    u, value = descend(starts.repeat(1, len(mu), 1), rate, TRIAL)
    if n > 1 + STRAYS:
        at = _going_on(value, n)
        u = u.gather(1, at[..., None].expand(-1, -1, u.shape[2]))
        rate = rate.gather(1, at)
    u, _ = descend(u, rate, ITERATIONS - TRIAL)
    return u


def _going_on(value: Tensor, n: int) -> Tensor:
    """(B, m · (1 + ``STRAYS``)) int64: of the n searches of each μ, ``value`` (B, m · n), the best and some of the worst."""
    value = value.unflatten(1, (-1, n))
    finite = value.isfinite()
    best = value.masked_fill(~finite, torch.inf).argmin(2, keepdim=True)
    worst = value.masked_fill(~finite, -torch.inf).topk(STRAYS, 2).indices
    first_of_mu = n * torch.arange(value.shape[1], device=value.device)[:, None]
    return (torch.cat([best, worst], 2) + first_of_mu).flatten(1)


def _between(u: Tensor, keep: Tensor) -> Tensor:
    """Mixtures of each two neighbours among the points u (B, P, k) that are kept; zeros elsewhere."""
    share = torch.tensor(BETWEEN, dtype=u.dtype, device=u.device)[:, None]
    mixtures = u[:, :-1, None] * (1 - share) + u[:, 1:, None] * share
    both = keep[:, :-1] & keep[:, 1:]
    return (mixtures * both[..., None, None]).flatten(1, 2)


def _pareto(criteria: Criteria, given: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
    """(points (B, P, k) by rising r and ρ, keep (B, P)): the undominated points, thinned to ``BINS`` along the front.

    Args:
        criteria: of B inputs.
        given: (B, ·, k), points that thinning spares: they go only if another point dominates them.
        more: (B, ·, k), further points.
    """
    u = torch.cat([given, more], 1)
    spared = (torch.arange(u.shape[1], device=u.device) < given.shape[1]).expand(u.shape[:2])
    r, rho = criteria(u)
    # Zeros stand for points that are not there.
    rho = torch.where(r.isfinite() & (u.sum(-1) > 0), rho, -torch.inf)
    # By rising r, and of equal r by falling ρ: then a point is dominated if a point before it has as much ρ.
    order = rho.argsort(1, descending=True)
    order = order.gather(1, r.gather(1, order).argsort(stable=True, dim=1))
    rho = rho.gather(1, order)
    spared = spared.gather(1, order)

    keep = _undominated(rho, rho.isfinite())
    opens = _first_of_bins(rho, keep)
    keep = _undominated(rho, (keep & opens) | (spared & rho.isfinite()))
    # The points that are kept to the front, in their order, and only as many places as the longest front needs.
    width = max(1, int(keep.sum(1).max()))
    at = (~keep).long().argsort(stable=True, dim=1)[:, :width]
    chosen = order.gather(1, at)
    return u.gather(1, chosen[..., None].expand(-1, -1, u.shape[-1])), keep.gather(1, at)


def _undominated(rho: Tensor, among: Tensor) -> Tensor:
    """(B, P) bool: those ``among`` (B, P) the points, which come by rising r, whose ρ (B, P) is above that of all before."""
    best = torch.where(among, rho, -torch.inf).cummax(1).values
    best_before = torch.nn.functional.pad(best[:, :-1], (1, 0), value=-torch.inf)
    return among & (rho > best_before)


def _first_of_bins(rho: Tensor, keep: Tensor) -> Tensor:
    """(B, P) bool: of the points to ``keep`` (B, P), by rising ρ (B, P), the first in each of ``BINS`` equal steps of ρ."""
    low = torch.where(keep, rho, torch.inf).amin(1, keepdim=True)
    high = torch.where(keep, rho, -torch.inf).amax(1, keepdim=True)
    step = ((rho - low) / (high - low).clamp(min=1e-9) * BINS).floor()
    step = torch.where(keep, step, -1.0)
    step_before = torch.nn.functional.pad(step.cummax(1).values[:, :-1], (1, 0), value=-1.0)
    return step > step_before
