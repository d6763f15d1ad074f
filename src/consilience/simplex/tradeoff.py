"""The front between robustness and faithfulness, and the points that are chosen on it: k × k work, no model evaluation.

    matrices → :func:`~consilience.simplex.scan.front` → :class:`Front` → :meth:`Front.pick` or :meth:`Front.at`

The scan finds the front's shape, for plots and as a first guess. A chosen point does not rest on it: it is solved from starts
of its own (:meth:`Front._starts`), to a stationary point (``newton.py``), and where several are equally good by a rule
(``ties.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import newton
from .solution import TINY, Solution, convert, diagonal, even, finish, in_double
from .ties import ROUNDING, SAME, UNSEEN, as_small, even_out, most_even
from .two_criteria import Criteria, MostRobust, WeightedSum, loss

MANY = 16
"""Methods up to which a search starts at each one and without each one; above, at the best half by each criterion."""

TRIAL = 15
"""Newton steps from every start, after which ..."""

KEPT = 4
"""... so many of an input's searches go on, by ..."""

FURTHER = 25
"""... so many steps; then only the best one is followed to its end."""

NUMBERS = 2**25
"""Numbers in the matrices of one batch of searches."""


@dataclass(frozen=True)
class Front:
    """The mixtures of which none is both more robust and more faithful than another, per input, most robust first.

    B inputs, P points, k methods:

    Args:
        weights: (B, P, k), of each point.
        robustness: (B, P), the relative sensitivity r = cᵀGc/cᵀHc (lower is better).
        correlation: (B, P), ρ.
        keep: (B, P) bool; the rest is padding (NaN).
        floor: (B,), the best single method's ρ.
        unit: (B,), the r that μ is measured in.
        least: (B,), a proven lower bound of r.
        most: (B,), a proven upper bound of ρ|ρ|.
        criteria: r and ρ as functions, to search further.
    """

    weights: Tensor
    robustness: Tensor
    correlation: Tensor
    keep: Tensor
    floor: Tensor
    unit: Tensor
    least: Tensor
    most: Tensor
    criteria: Criteria

    def inputs(self, index: Sequence[int]) -> Front:
        """Only the inputs with the numbers ``index``."""
        at = list(index)
        return convert(self, lambda x: x[at])

    @in_double
    def pick(self, floor: Tensor | float | None = None) -> Solution:
        """The most robust mixture whose ρ is at least ``floor``; ``value`` is its r.

        Never above the r of a single method with that ρ: those are on the front or dominated by a point on it, and the search
        starts there too. Where no mixture reaches the floor, the most faithful one is given. ``gap`` is to the smallest r
        without a floor, so large but proven.

        Args:
            floor: (B,) or a number; by default the best single method's ρ.
        """
        if floor is None:
            floor = self.floor
        else:
            floor = torch.as_tensor(floor, dtype=self.floor.dtype).expand_as(self.floor)
        enough = self.keep & (self.correlation >= floor[:, None] - newton.FEASIBLE)
        reached = enough.any(1)
        # Points come by rising r: the first that reaches the floor is the most robust of the scan.
        first = torch.where(reached, enough.long().argmax(1), self._last)
        here = self._point(first)
        starts = torch.cat([self._starts(), here[:, None]], 1)
        u = _searched(self.criteria, starts, here, self._point(self._last), floor)
        r, _ = self.criteria(u[:, None])
        w = torch.where(reached[:, None], self.criteria.weights(u), _take(self.weights, first))
        value = torch.where(reached, r[:, 0], _take(self.robustness, first))
        some = self.keep.any(1, keepdim=True)
        gap = (value - self.least).clamp(min=0)
        return finish(w, value, gap, some, self.unit, _status_of_floor(floor, reached))

    @in_double
    def at(self, mu: float) -> Solution:
        """The best mixture for J(c) = (1 − ρ|ρ|) + ``mu`` · r / unit; ``value`` is J, bounded below by both optima."""
        rate = mu / self.unit
        of_points = torch.where(self.keep, loss(self.robustness, self.correlation, rate[:, None]), torch.inf)
        starts = torch.cat([self._starts(), self._point(of_points.argmin(1))[:, None]], 1)
        u = _summed(self.criteria, starts, rate)
        value = WeightedSum(self.criteria, rate).at(u).value
        bound = (1 - self.most) + rate * self.least
        reasons = {f"local optimum at mu = {mu:g}": torch.ones_like(value, dtype=torch.bool)}
        some = self.keep.any(1, keepdim=True)
        return finish(self.criteria.weights(u), value, (value - bound).clamp(min=0), some, self.unit, reasons)

    @property
    def incompatibility(self) -> Tensor:
        """(B,) in [0, 1): min over the front of max(1 − r*/r, 1 − ρ/ρ*), with r* and ρ* the best of each.

        0: one mixture is best in both. p: some mixture is within the share p of both optima, and none of the points found is
        nearer (the scan is local, so the true p may be a little smaller). No scale, no direction. NaN where no mixture has a
        positive correlation: there is nothing to give up."""
        r = self.robustness.masked_fill(~self.keep, torch.inf)
        rho = self.correlation.masked_fill(~self.keep, -torch.inf)
        best = r.amin(1, keepdim=True)
        most = rho.amax(1, keepdim=True)
        # Padding, with r = ∞ and ρ = −∞, gives NaN or ∞ here, and is left out below.
        of_robustness = torch.where(r > 0, 1 - best / r, torch.zeros_like(r))
        of_correlation = 1 - rho / torch.where(most > 0, most, torch.nan)
        lost = torch.maximum(of_robustness, of_correlation).masked_fill(~self.keep, torch.inf)
        return torch.where(most[:, 0] > 0, lost.amin(1), torch.nan)

    @property
    def _last(self) -> Tensor:
        """(B,): the place of the most faithful point."""
        return (self.keep.sum(1) - 1).clamp(min=0)

    def _point(self, at: Tensor) -> Tensor:
        """(B, k): point ``at`` (B,) in the criteria's units."""
        return self.criteria.scaled(_take(self.weights, at))

    def _starts(self) -> Tensor:
        """(B, S, k): where searches begin: at each method and without each method, at the mean and at both ends.

        They depend on no draw of numbers and on no step of the scan, and name no method: another order, another batch or a
        rounding error begin at the same places.
        """
        ok = self.criteria.valid
        count, k = ok.shape
        mean = even(ok)
        corners = torch.eye(k, dtype=mean.dtype, device=mean.device).expand(count, k, k)
        without = even((ok[:, None] & (corners == 0)).flatten(0, 1)).unflatten(0, (count, k))
        if k > MANY:
            chosen = self._best_corners(corners)
            everywhere = chosen[..., None].expand(-1, -1, k)
            corners = corners.gather(1, everywhere)
            without = without.gather(1, everywhere)
            ok = ok.gather(1, chosen)
        ends = torch.stack([self._point(torch.zeros_like(self._last)), self._point(self._last), mean], 1)
        around = torch.cat([corners, without], 1)
        # The mean stands in for a method that is left out, and for what is left without the only one.
        usable = torch.cat([ok, ok], 1) & (around.sum(2) > 0)
        return torch.cat([torch.where(usable[..., None], around, mean[:, None]), ends], 1)

    def _best_corners(self, corners: Tensor) -> Tensor:
        """(B, ``MANY``) int64: the methods that are best alone, half of them by each criterion."""
        ok = self.criteria.valid
        r, rho = self.criteria(corners)
        robust = r.masked_fill(~ok, torch.inf).topk(MANY // 2, 1, largest=False).indices
        faithful = rho.masked_fill(~ok, -torch.inf).topk(MANY // 2, 1).indices
        return torch.cat([robust, faithful], 1)


def _status_of_floor(floor: Tensor, reached: Tensor) -> dict[str, Tensor]:
    """Status → (B,) bool where it holds, for the ``floor`` (B,) of each input, ``reached`` (B,) or not."""
    status = []
    for asked, yes in zip(floor.tolist(), reached.tolist(), strict=True):
        if yes:
            status.append(f"most robust with correlation >= {asked:.3f}")
        else:
            status.append(f"no correlation reaches {asked:.3f}")
    reasons = {}
    for text in set(status):
        reasons[text] = torch.tensor([each == text for each in status], device=floor.device)
    return reasons


def _take(x: Tensor, at: Tensor) -> Tensor:
    """x[b, at[b]] for every input b."""
    return x[torch.arange(len(x), device=x.device), at]


def _searched(criteria: Criteria, starts: Tensor, here: Tensor, inside: Tensor, floor: Tensor) -> Tensor:
    """(B, k): the least r with ρ ≥ ``floor`` that a search from the starts comes to.

    Args:
        criteria: of B inputs.
        starts: (B, S, k).
        here: (B, k), a mixture that reaches the floor.
        inside: (B, k), the most faithful mixture.
        floor: (B,).
    """
    best = []
    for part in _parts(starts):
        owner = _owner(starts[part])
        problem = MostRobust(criteria.inputs(part), floor[part])
        valid = criteria.valid[part]
        # Each start is first brought to where the floor holds: Newton's steps begin at feasible points.
        every = problem.rows(owner)
        u = newton.reach(every, starts[part].flatten(0, 1), valid[owner])
        u = _led_back(every, u, inside[part][owner], here[part][owner])
        lowest = _local_minimum(problem, u.view_as(starts[part]), valid)
        # Steps may leave the floor by ``SLACK``; what is returned reaches it.
        lowest = _led_back(problem, newton.reach(problem, lowest, valid, 3), inside[part], here[part])
        best.append(_evened(problem, lowest, valid))
    return torch.cat(best)


def _summed(criteria: Criteria, starts: Tensor, rate: Tensor) -> Tensor:
    """(B, k): the least J = (1 − ρ|ρ|) + ``rate`` (B,) · r that a search from ``starts`` (B, S, k) comes to."""
    best = []
    for part in _parts(starts):
        problem = WeightedSum(criteria.inputs(part), rate[part])
        best.append(_local_minimum(problem, starts[part], criteria.valid[part]))
    return torch.cat(best)


def _local_minimum(problem: MostRobust | WeightedSum, starts: Tensor, valid: Tensor) -> Tensor:
    """(B, S, k) → (B, k): the best local minimum; the longer searches take, the fewer of an input's go on."""
    u = _steps(problem, starts, valid, TRIAL)
    value = _values(problem, u).nan_to_num(torch.inf)
    best = value.topk(min(KEPT, u.shape[1]), 1, largest=False).indices
    u = _steps(problem, u.gather(1, best[..., None].expand(-1, -1, u.shape[2])), valid, FURTHER)
    return newton.minimise(problem, most_even(u, _values(problem, u)), valid)


def _steps(problem: MostRobust | WeightedSum, u: Tensor, valid: Tensor, iterations: int) -> Tensor:
    """(B, S, k): Newton's steps from each of u (B, S, k)."""
    owner = _owner(u)
    return newton.minimise(problem.rows(owner), u.flatten(0, 1), valid[owner], iterations).view_as(u)


def _values(problem: MostRobust | WeightedSum, u: Tensor) -> Tensor:
    """(B, S): the value at each of ``u`` (B, S, k)."""
    return problem.rows(_owner(u)).at(u.flatten(0, 1)).value.view(u.shape[:2])


def _owner(x: Tensor) -> Tensor:
    """(B · S,): to which input each row of x (B, S, k) belongs."""
    return torch.arange(len(x), device=x.device).repeat_interleave(x.shape[1])


def _led_back(problem: MostRobust, u: Tensor, inside: Tensor, here: Tensor) -> Tensor:
    """(P, k): those of u whose ρ is below the floor moved toward ``inside`` until it is not, or to ``here``."""
    for way in (problem.inward(u, inside), here):
        short = problem.at(u).margin < -newton.FEASIBLE
        u = torch.where(short[:, None], way, u)
    return u


def _parts(starts: Tensor) -> list[Tensor]:
    """The numbers of some inputs at a time: as many as fit into ``NUMBERS``."""
    count, many, k = starts.shape
    # A search holds its own three matrices, their derivatives and a factored system: about ten k × k matrices.
    step = max(1, NUMBERS // (10 * many * k * k))
    return list(torch.arange(count, device=starts.device).split(step))


def _evened(problem: MostRobust, u: Tensor, ok: Tensor) -> Tensor:
    """(B, k): ``u`` written with the most even weights that make the same maps and responses."""
    G, H, C = problem.criteria.stacked.split(u.shape[1], 2)
    own = torch.where(ok, diagonal(C), 1.0).clamp(min=TINY)
    responses = C / (own[:, :, None] * own[:, None]).sqrt()
    r = problem.at(u).value
    fine = r.isfinite() & (r > 0)
    # Maps, responses and residuals all have to stay: with r as their unit, residuals count as much as maps, down to where
    # residuals that differ by rounding would be told apart.
    unit = torch.where(fine, r, 1.0).clamp(min=ROUNDING / SAME)[:, None, None]
    spread = even_out(u, H + responses + G / unit, ok)
    # As they are, or, where they miss the floor by more than rounding, from there to the floor.
    for rewritten in (newton.reach(problem, spread, ok, 3), spread):
        point = problem.at(rewritten)
        kept = fine & as_small(point.value, r) & (point.margin >= -UNSEEN)
        u = torch.where(kept[:, None], rewritten, u)
    return u
