"""The front between robustness and faithfulness: both scale-free, scanned by k × k work, no model evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .convex import FLAT, correlation, varies
from .descent import descend_with_slope
from .ratios import CANCELLED, ratio
from .solution import Solution, convert, diagonal, finish, in_double, normalise, usable

MUS = tuple(torch.logspace(-3, 3, 25, dtype=torch.float64).tolist())


ITERATIONS = 60  # 99 of 100 descents are within 1e-6 of their minimum then; points between are refined further


TRIAL, STRAYS = 15, 2  # iterations with every start; how many starts of a μ go on beside the best


STARTS, ROUNDS, STEPS = 8, 3, 15  # of the descents that refine a pick; a multiplier's rounds, iterations in each


BINS = 64  # points kept along one front, beside the corners and the two optima


ROWS = 2**16  # descents at a time


WIDE = 10  # inputs from which the scan is faster on an H200 (.11 s for up to 300) than on a processor (.01 s each)


@dataclass(frozen=True)
class _Criteria:
    """r and ρ of mixtures in units where every map has norm 1 (``unit`` (B, k) brings weights back)."""

    stacked: Tensor  # (B, k, 3k): G, H, C side by side
    columns: Tensor  # (B, k, 3): √C_jj, b and E[a_j]
    vy: Tensor
    unit: Tensor

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(B, M, k) ≥ 0 → r and ρ, (B, M); r = ∞ where the maps cancel, ρ = 0 where the response does not vary."""
        r, rho, *_ = self._terms(u)
        return r, rho

    def loss(self, u: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        """J = (1 − ρ|ρ|) + rate · r (B, M), and its gradient (B, M, k)."""
        return self.slope(u, lambda r, rho: (_loss(r, rho, rate), rate, -2 * rho.abs()))

    def slope(self, u: Tensor, of: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """A function of r and ρ (B, M), and its gradient (B, M, k). ``of`` gives it and its derivatives by r and by ρ;
        ∇r = 2 (Gu − r Hu) / uᵀHu and ∇ρ = b/√(uᵀCu v) − ρ Cu/uᵀCu."""
        r, rho, images, below, spread, size = self._terms(u)
        value, by_r, by_rho = of(r, rho)
        half = 2 * by_r / below
        slopes = torch.stack([half, -r * half, -by_rho * rho / spread], -1)
        return value, (slopes[..., None, :] @ images)[..., 0, :] + (by_rho / size)[..., None] * self.answers

    def _terms(self, u: Tensor) -> tuple[Tensor, ...]:
        """r, ρ; Gu, Hu and Cu (B, M, 3, k), uᵀHu, uᵀCu, √(uᵀCu v), each 1 where there is nothing to divide by."""
        images = (u @ self.stacked).unflatten(-1, (3, -1))
        above, below, spread = (images @ u[..., None])[..., 0].unbind(-1)
        fine = below > CANCELLED * u.sum(-1) ** 2
        below = torch.where(fine, below, 1.0)
        r = torch.where(fine, above.clamp(min=0) / below, torch.inf)
        # A response that varies less than 1e-6 of its parts' is what rounding left of them; or it is that of a uniform map.
        parts, answer, mean = (u @ self.columns).unbind(-1)
        varies = (spread > 1e-12 * parts**2) & (spread > FLAT * (spread + mean**2)) & (self.vy[:, None] > 0)
        spread = torch.where(varies, spread, 1.0)
        size = torch.where(varies, spread * self.vy[:, None], 1.0).sqrt()
        return r, torch.where(varies, answer / size, 0.0), images, below, spread, size

    @property
    def answers(self) -> Tensor:
        """b, (B, 1, k)."""
        return self.columns[:, None, :, 1]

    def inputs(self, i: Tensor) -> _Criteria:
        return convert(self, lambda x: x[i])

    def weights(self, u: Tensor) -> Tensor:
        return normalise(u * (self.unit if u.ndim == 2 else self.unit[:, None]))


@dataclass(frozen=True)
class Front:
    """The mixtures of which none is both more robust and more faithful than another, per input, most robust first.

    ``weights`` (B, P, k); ``robustness`` (B, P), the relative sensitivity r = cᵀGc/cᵀHc (lower is better);
    ``correlation`` (B, P), ρ; ``keep`` (B, P) marks points, the rest is padding (NaN). ``floor`` (B,), the best single
    method's ρ; ``unit`` (B,), the r that μ is measured in; ``least`` and ``most`` (B,), proven bounds of r and ρ|ρ|.
    """

    weights: Tensor
    robustness: Tensor
    correlation: Tensor
    keep: Tensor
    floor: Tensor
    unit: Tensor
    least: Tensor
    most: Tensor
    criteria: _Criteria

    def inputs(self, index: Sequence[int]) -> Front:
        """Only some inputs."""
        at = list(index)
        return convert(self, lambda x: x[at])

    @in_double
    def pick(self, floor: Tensor | float | None = None) -> Solution:
        """The most robust mixture whose ρ ≥ ``floor`` (B,), by default the best single method's; ``value`` is its r.

        Never above the r of a single method with that ρ: those are on the front or dominated by a point on it. From there
        and from all along the front, r is minimised under ρ ≥ floor (the front's points minimise a sum, which passes by
        where it is not convex); what comes out, and the more robust neighbour, are each followed back to the point until
        ρ = floor. Where no mixture reaches the floor, the most faithful is given. ``gap`` is to the smallest r without a
        floor, so large but proven.
        """
        floor = self.floor if floor is None else torch.as_tensor(floor, dtype=self.floor.dtype).expand_as(self.floor)
        some = self.keep.any(1)
        enough = self.keep & (self.correlation >= floor[:, None] - 1e-12)
        reached = enough.any(1)
        last = (self.keep.sum(1) - 1).clamp(min=0)
        at = torch.where(reached, enough.long().argmax(1), last)
        here, now = self._inner(at), self._take(self.robustness, at)
        there = torch.cat([self._inner((at - 1).clamp(min=0))[:, None], self._refined(here, now, floor)], 1)
        between = self._back(there, here, floor)
        r, rho = self.criteria(between)
        r, best = torch.where(rho >= floor[:, None] - 1e-12, r, torch.inf).min(1)
        better = reached & (at > 0) & (r < now)
        w = torch.where(better[:, None], self.criteria.weights(self._take(between, best)), self._take(self.weights, at))
        value = torch.where(better, r, now)
        numbers = zip(floor.tolist(), reached.tolist(), strict=True)
        status = [
            f"most robust with correlation >= {f:.3f}" if yes else f"no correlation reaches {f:.3f}"
            for f, yes in numbers
        ]
        says = {text: torch.tensor([s == text for s in status], device=floor.device) for text in set(status)}
        return finish(w, value, (value - self.least).clamp(min=0), some[:, None], self.unit, says)

    def _refined(self, here: Tensor, now: Tensor, floor: Tensor) -> Tensor:
        """(B, STARTS, k): local minima of r where ρ ≥ floor, nearly, from ``here`` (B, k), whose r is ``now``, and from
        points of the front: by an augmented Lagrangian (Hestenes 1969; Powell 1969), r in units of ``now`` and ρ in units of
        what is left above the floor."""
        last = (self.keep.sum(1) - 1).clamp(min=0)
        spread = [self._inner(last * i // (STARTS - 2)) for i in range(STARTS - 1)]
        u = torch.stack([here, *spread], 1)
        most = self.correlation.masked_fill(~self.keep, -torch.inf).amax(1)
        unit = torch.where((now > 0) & now.isfinite(), now, 1.0)[:, None]
        room = torch.where(most > floor, most - floor, 1.0).clamp(min=1e-9)[:, None]
        floor, valid = floor[:, None], (self.criteria.unit > 0)[:, None]
        price, weight = torch.zeros_like(u[..., 0]), 2.0

        def lagrangian(r: Tensor, rho: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            short = (price + weight * (floor - rho) / room).clamp(min=0)
            return r / unit + short**2 / (2 * weight), 1 / unit, -short / room

        for _ in range(ROUNDS):
            u, _ = descend_with_slope(lambda u: self.criteria.slope(u, lagrangian), u, STEPS, valid)
            price = (price + weight * (floor - self.criteria(u)[1]) / room).clamp(min=0)
            weight *= 3
        return u

    def _back(self, there: Tensor, here: Tensor, floor: Tensor) -> Tensor:
        """(B, S, k): on the way from each of ``there`` (B, S, k) to ``here`` (B, k) the first point with ρ ≥ floor."""
        way = here[:, None] - there
        meets = self.criteria(there)[1] >= floor[:, None]
        low, high = torch.zeros_like(there[..., 0]), torch.ones_like(there[..., 0])
        shares = torch.arange(1, 64, dtype=floor.dtype, device=floor.device) / 64
        for _ in range(7):  # six bits each
            middle = low[..., None] + (high - low)[..., None] * shares
            points = there[:, :, None] + middle[..., None] * way[:, :, None]
            enough = (self.criteria(points.flatten(1, 2))[1] >= floor[:, None]).unflatten(1, middle.shape[1:])
            # The first that meets the floor, and the one before it.
            edges = torch.cat([low[..., None], middle, high[..., None]], 2)
            first = torch.cat([enough, torch.ones_like(enough[..., :1])], 2).long().argmax(2, keepdim=True)
            low, high = edges.gather(2, first)[..., 0], edges.gather(2, first + 1)[..., 0]
        return torch.where(meets[..., None], there, there + high[..., None] * way)

    @in_double
    def at(self, mu: float) -> Solution:
        """The best mixture found for J(c) = (1 − ρ|ρ|) + μ · r / unit; ``value`` is J, bounded below by both optima."""
        loss = _loss(self.robustness, self.correlation, mu / self.unit[:, None])
        best = torch.where(self.keep, loss, torch.inf).argmin(1)
        start = self._inner(best)
        rate, valid = mu / self.unit[:, None], (self.criteria.unit > 0)[:, None]
        found = descend_with_slope(lambda u: self.criteria.loss(u, rate), start[:, None], 200, valid)
        u, value = (x[:, 0] for x in found)
        bound = (1 - self.most) + mu * self.least / self.unit
        says = {f"local optimum at mu = {mu:g}": torch.ones_like(value, dtype=torch.bool)}
        some = self.keep.any(1)
        return finish(self.criteria.weights(u), value, (value - bound).clamp(min=0), some[:, None], self.unit, says)

    @property
    def incompatibility(self) -> Tensor:
        """(B,) in [0, 1): min over the front of max(1 − r*/r, 1 − ρ/ρ*), with r* and ρ* the best of each.

        0: one mixture is best in both. p: some mixture is within the share p of both optima, and none of the points found is
        nearer (the scan is local, so the true p may be a little smaller). No scale, no direction. NaN where no mixture has a
        positive correlation: there is nothing to give up."""
        r = self.robustness.masked_fill(~self.keep, torch.inf)
        rho = self.correlation.masked_fill(~self.keep, -torch.inf)
        best, most = r.amin(1, keepdim=True), rho.amax(1, keepdim=True)
        lost = torch.where(r > 0, 1 - best / r, torch.zeros_like(r))
        lost = torch.maximum(lost, 1 - rho / torch.where(most > 0, most, torch.nan)).masked_fill(~self.keep, torch.inf)
        return torch.where(most[:, 0] > 0, lost.amin(1), torch.nan)

    def _inner(self, at: Tensor) -> Tensor:
        """Point ``at`` (B,) in the criteria's units."""
        unit = self.criteria.unit
        return normalise(torch.where(unit > 0, self._take(self.weights, at) / torch.where(unit > 0, unit, 1.0), 0.0))

    @staticmethod
    def _take(x: Tensor, at: Tensor) -> Tensor:
        return x[torch.arange(len(x), device=x.device), at]


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

    J(c) = (1 − ρ|ρ|) + μ · r / r₀ is minimised by :func:`descend` for every μ of a grid, from every corner and both
    single optima; with those, and points between neighbours, what is not dominated is kept. r₀ is the best corner's r,
    at least a thousandth of the most faithful corner's: a map that ignores the input would else make every μ mean
    "robust". The scan is local; that a corner is never better than the front, and the two ends, hold by construction.

    A method whose response is constant (see :func:`correlation`, and ``mean`` there) is left out if others' are not: weight
    on a uniform map would make any mixture as robust as one likes and leave its ρ as it is.
    """
    # The scan is wide, hundreds of descents for each input, and left to an accelerator if many inputs share its launches.
    wide = G.device if G.device.type == "cuda" and len(G) >= WIDE else torch.device("cpu")
    return _front(G, H, C, b, vy, valid, mus, torch.zeros_like(b) if mean is None else mean, wide)


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
    ok, G, H = usable(valid, G, H)
    ok = ok & (diagonal(H) > 0)
    answers, C = usable(ok & b.isfinite() & mean.isfinite(), C)
    answers = answers & varies(C, mean, answers)
    ok = torch.where(answers.any(1, keepdim=True), answers, ok)
    robust = ratio(G, H, ok)
    faithful = correlation(C, b, vy, ok, mean=mean)
    ok, G, H = usable(ok, G, H)
    _, C = usable(answers, C)
    unit = torch.where(ok, diagonal(H), 1.0).rsqrt() * ok
    G, H, C = (m * unit[:, :, None] * unit[:, None] for m in (G, H, C))
    b, mean = (torch.where(answers, x, 0.0) * unit for x in (b, mean))
    columns = torch.stack([diagonal(C).clamp(min=0).sqrt(), b, mean], 2)
    criteria = _Criteria(torch.cat([G, H, C], 2), columns, vy.clamp(min=0), unit)

    count, k = ok.shape
    corners = torch.eye(k, dtype=G.dtype, device=G.device).expand(count, k, k) * ok[:, :, None]
    inverse = torch.where(ok, 1 / torch.where(ok, unit, 1.0), 0.0)
    ends = normalise(torch.stack([robust.weights, faithful.weights], 1).nan_to_num(0.0) * inverse[:, None])
    given = torch.cat([corners, ends], 1)
    r, rho = criteria(given)
    single, known = r[:, :k].masked_fill(~ok, torch.inf), rho[:, :k].masked_fill(~ok, -torch.inf)
    least, floor = single.amin(1), known.amax(1)
    scale = torch.maximum(least, 1e-3 * single.gather(1, known.argmax(1, keepdim=True))[:, 0])
    scale = torch.where((scale > 0) & scale.isfinite(), scale, 1.0)

    grid = torch.tensor(mus, dtype=G.dtype, device=wide)
    parts = torch.arange(count).split(max(1, ROWS // (len(grid) * given.shape[1])))
    there = lambda x: x.to(wide)  # noqa: E731
    found = torch.cat(
        [_scan(convert(criteria.inputs(i), there), there(given[i]), grid, there(scale[i])).to(G.device) for i in parts]
    )
    fixed = torch.ones_like(r, dtype=torch.bool)
    u = torch.cat([given, found], 1)
    u, keep = _pareto(criteria, u, torch.cat([fixed, torch.zeros_like(found[..., 0], dtype=torch.bool)], 1))
    steps = torch.tensor([0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875], dtype=G.dtype, device=G.device)[:, None]
    between = u[:, :-1, None] * (1 - steps) + u[:, 1:, None] * steps
    between = (between * (keep[:, :-1] & keep[:, 1:])[..., None, None]).flatten(1, 2)
    u = torch.cat([given, u, between], 1)
    protected = torch.cat([fixed, torch.zeros_like(u[:, given.shape[1] :, 0], dtype=torch.bool)], 1)
    u, keep = _pareto(criteria, u, protected)
    r, rho = (torch.where(keep, x, torch.nan) for x in criteria(u))
    weights = torch.where(keep[..., None], criteria.weights(u), torch.nan)
    floor = torch.where(ok.any(1), floor, torch.nan)
    lowest = robust.value - robust.gap
    most = (1 - faithful.value + faithful.gap).nan_to_num(1.0)
    return Front(weights, r, rho, keep, floor, scale, lowest, most, criteria)


def _loss(r: Tensor, rho: Tensor, rate: Tensor) -> Tensor:
    return (1 - rho * rho.abs()) + rate * r


def _scan(criteria: _Criteria, starts: Tensor, mu: Tensor, scale: Tensor) -> Tensor:
    """Local minima of J for each μ: (B, n, k) starts, (m,), (B,) → (B, m · at most n, k).

    Nearly all starts come to the same minimum. After ``TRIAL`` iterations only the best one of each μ goes on, and the
    ``STRAYS`` worst: the likeliest to end in another minimum, and those are what is found where the front is not convex."""
    _, n, k = starts.shape
    valid = (criteria.unit > 0)[:, None]
    rate = (mu / scale[:, None]).repeat_interleave(n, 1)

    def descend(u: Tensor, rate: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
        return descend_with_slope(lambda u: criteria.loss(u, rate), u, iterations, valid)

    u, loss = descend(starts.repeat(1, len(mu), 1), rate, TRIAL)
    if n > 1 + STRAYS:
        loss = loss.unflatten(1, (-1, n))
        fine = loss.isfinite()
        chosen = loss.masked_fill(~fine, torch.inf).argmin(2, keepdim=True)
        chosen = torch.cat([chosen, loss.masked_fill(~fine, -torch.inf).topk(STRAYS, 2).indices], 2)
        at = (chosen + n * torch.arange(len(mu), device=u.device)[:, None]).flatten(1)
        u, rate = u.gather(1, at[..., None].expand(-1, -1, k)), rate.gather(1, at)
    return descend(u, rate, ITERATIONS - TRIAL)[0]


def _pareto(criteria: _Criteria, u: Tensor, protected: Tensor) -> tuple[Tensor, Tensor]:
    """(points (B, P, k) by rising r and ρ, keep (B, P)): the undominated ones of u (B, M, k), thinned to a point
    for each of ``BINS`` equal steps of ρ. Those ``protected`` (B, M) go only if a point kept dominates them."""
    r, rho = criteria(u)
    rho = torch.where(r.isfinite() & (u.sum(-1) > 0), rho, -torch.inf)
    order = rho.argsort(1, descending=True)
    order = order.gather(1, r.gather(1, order).argsort(stable=True, dim=1))
    rho, protected = rho.gather(1, order), protected.gather(1, order)

    def undominated(among: Tensor) -> Tensor:
        best = torch.where(among, rho, -torch.inf).cummax(1).values
        return among & (rho > torch.nn.functional.pad(best[:, :-1], (1, 0), value=-torch.inf))

    keep = undominated(rho.isfinite())
    low = torch.where(keep, rho, torch.inf).amin(1, keepdim=True)
    high = torch.where(keep, rho, -torch.inf).amax(1, keepdim=True)
    step = torch.where(keep, ((rho - low) / (high - low).clamp(min=1e-9) * BINS).floor(), -1.0)
    opens = step > torch.nn.functional.pad(step.cummax(1).values[:, :-1], (1, 0), value=-1.0)
    keep = undominated((keep & opens) | (protected & rho.isfinite()))
    width = max(1, int(keep.sum(1).max()))
    at = (~keep).long().argsort(stable=True, dim=1)[:, :width]
    chosen = order.gather(1, at)
    return u.gather(1, chosen[..., None].expand(-1, -1, u.shape[-1])), keep.gather(1, at)
