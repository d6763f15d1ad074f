"""Newton's method on the simplex, with at most one inequality beside it: to a stationary point, not for a number of steps.

A first-order descent (see ``descent.py``) creeps along a flat valley, and where it stops after a fixed number of steps depends
on rounding. Newton's steps do not know how flat a valley is: what they return is stationary to rounding, wherever they began.

The way of one batch: ``starts`` → :func:`reach` (onto the feasible set) → :func:`minimise`, which repeats

    slopes → :func:`_stationarity` (multipliers, which methods are in use, how far from stationary)
           → :func:`_direction` (one linear system for each problem) → :func:`_stepped` (to the first bound, back to the margin)

and accepts a step if it is feasible and the value does not rise; a problem leaves the batch when it is stationary.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from .solution import TINY, diagonal

ITERATIONS = 100
"""At most; nine of ten problems are stationary after thirty."""

STATIONARY = 1e-9
"""A slope of this share of the value counts as none."""

TIGHT = 1e-9
"""A margin below this may bind."""

FEASIBLE = 1e-12
"""A margin that is negative by less than this is rounding."""

SLACK = 1e-7
"""What a margin may lack on the way: every further step takes back what is missing, and :func:`reach` the rest."""

GAIN = 1e-14
"""A step that lowers the value by a smaller share has moved within rounding."""

PATIENCE = 12
"""Refused steps in a row, each with ten times the damping, after which nothing but rounding is left."""

BACK = 2
"""Corrections of a step that leaves the margin; each leaves a small share of what was missing."""

EVERY = 5
"""Iterations between two looks at which problems are done: a look waits for the device."""

DAMPING = 1e-3
"""Of the first step, in units of the largest curvature."""

LEAST_DAMPING = 1e-13
"""After many successes: then the system is Newton's own to rounding."""

LEAST_AFTER_REFUSAL = 1e-8
"""A refused step is tried again with at least this, so that a few refusals lead to a noticeably shorter one."""


class Point(Protocol):
    """P functions and their margins at one w (P, k) each."""

    @property
    def value(self) -> Tensor:
        """(P,)."""

    @property
    def margin(self) -> Tensor:
        """(P,): not negative where w is allowed; infinity without an inequality."""

    def slopes(self) -> tuple[Tensor, Tensor]:
        """Gradients (P, k) of the value and of the margin."""

    def curvature(self, price: Tensor) -> Tensor:
        """(P, k, k): the Hessian of value − price · margin, ``price`` (P,)."""


class Problem(Protocol):
    """P smooth functions of weights w (P, k), each to be minimised where its margin is not negative."""

    def at(self, w: Tensor) -> Point:
        """Everything about the weights ``w`` (P, k)."""

    def rows(self, index: Tensor) -> Problem:
        """Only those of the P problems that ``index``, int64 numbers, names."""


@dataclass(frozen=True)
class _Slopes:
    """First-order information at w, by :func:`_stationarity`."""

    used: Tensor  # (P, k): methods with a positive weight, and the one that is about to get some
    value: Tensor  # (P, k): the Lagrangian's gradient less its mean over ``used``; 0 for all of them if stationary
    margin: Tensor  # (P, k): the margin's gradient within the simplex
    price: Tensor  # (P,): the margin's multiplier, ≥ 0
    residual: Tensor  # (P,): how far from stationary


@dataclass(frozen=True)
class _Progress:
    """Where each of the problems that are not done stands."""

    w: Tensor  # (N, k), the weights
    valid: Tensor  # (N, k) bool, methods that may get weight
    damping: Tensor  # (N,), in units of the largest curvature
    refused: Tensor  # (N,), refused steps in a row
    blocked: Tensor  # (N, k) bool, methods at weight 0 that wait until another step has succeeded

    @staticmethod
    def begin(w: Tensor, valid: Tensor) -> _Progress:
        """Before the first step from ``w`` (N, k)."""
        damping = torch.full_like(w[:, 0], DAMPING)
        return _Progress(w, valid, damping, torch.zeros_like(damping), torch.zeros_like(valid))

    def rows(self, which: Tensor) -> _Progress:
        """Only some of the problems."""
        return _Progress(*(getattr(self, each.name)[which] for each in fields(self)))

    def stepped(self, problem: Problem, here: Point, slopes: _Slopes) -> _Progress:
        """After one Newton step, which is accepted or refused."""
        move = _direction(here, slopes, self.damping)
        moved, there = _stepped(problem, self.w, move)
        gain = here.value - there.value
        # With a binding margin the Lagrangian has to fall, not the value: a step that takes back what a margin lacks costs
        # some value, and the multiplier says how much that may be.
        with_margin = gain + slopes.price * (there.margin - here.margin)
        gain = torch.where(slopes.price > 0, with_margin, gain)
        feasible = there.margin >= here.margin.clamp(max=-SLACK)
        accepted = feasible & (gain >= 0) & (moved != self.w).any(1)
        progressed = accepted & (gain > GAIN * here.value)
        # Levenberg–Marquardt: less damping after a success, toward Newton's own step; more after a failure, toward a short
        # step down the slope.
        less = (self.damping / 10).clamp(min=LEAST_DAMPING)
        more = (10 * self.damping).clamp(min=LEAST_AFTER_REFUSAL)
        # A weight that is 0 and would fall has no room; it would refuse every step until it is left out.
        stuck = (self.w <= 0) & (move < 0)
        # Where the others are stationary no step of theirs may succeed again, so whether the blocked ones were ever released
        # would hang on rounding. They are, and meet the damping that has grown since.
        released = accepted | (slopes.residual <= STATIONARY * here.value)
        return _Progress(
            w=torch.where(accepted[:, None], moved, self.w),
            valid=self.valid,
            damping=torch.where(accepted, less, more),
            refused=torch.where(progressed, 0.0, self.refused + 1),
            blocked=torch.where(released[:, None], False, self.blocked | stuck),
        )


def minimise(problem: Problem, starts: Tensor, valid: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """(P, k): the local minimum that is reached from each of ``starts``.

    Primal active-set Newton with Levenberg–Marquardt damping on the Karush–Kuhn–Tucker system. From a start that is feasible
    the value never rises, except by what a margin within ``SLACK`` of 0 costs; ends are feasible to that, see :func:`reach`.
    Where the value is not finite, or not positive, a start stays as it is.

    Args:
        problem: the P functions.
        starts: (P, k) ≥ 0 with sum 1, feasible (see :func:`reach`).
        valid: (P, k) bool, methods that may get weight.
        iterations: at most so many.

    Source: Nocedal and Wright 2006, *Numerical Optimization*, ch. 10.3 and 16.5, for damping and active sets.
    """
    answer = starts.clone()
    value = problem.at(starts).value
    rows = (value.isfinite() & (value > 0)).nonzero()[:, 0]
    problem = problem.rows(rows)
    now = _Progress.begin(starts[rows], valid[rows])
    for step in range(iterations):
        if not len(rows):
            break
        here = problem.at(now.w)
        slopes = _stationarity(here, now.w, now.valid & ~now.blocked)
        all_free = ~now.blocked.any(1)
        now = now.stepped(problem, here, slopes)
        if step % EVERY == EVERY - 1 or step == iterations - 1:
            answer[rows] = now.w
            # ``here`` is the point before the step: a stationary one moves by rounding only.
            stationary = (slopes.residual <= STATIONARY * here.value) & (here.margin >= -FEASIBLE)
            going = ~(stationary & all_free) & (now.refused < PATIENCE)
            problem = problem.rows(going.nonzero()[:, 0])
            rows = rows[going]
            now = now.rows(going)
    return answer


def reach(problem: Problem, w: Tensor, valid: Tensor, iterations: int = 20) -> Tensor:
    """(P, k): a point near w whose margin is not negative, if these few steps lead to one.

    Gauss–Newton on the margin alone: from outside, the nearest feasible points of different starts lie far apart, so that
    descents from them see different valleys.

    Args:
        problem: the P functions.
        w: (P, k) ≥ 0 with sum 1.
        valid: (P, k) bool, methods that may get weight.
        iterations: so many steps.
    """
    for _ in range(iterations):
        point = problem.at(w)
        _, slope = point.slopes()
        # Methods in use, and those by which the margin rises faster than by the average.
        used = (w > 0) | (slope > _mean(slope, valid))
        move = _rise(slope, valid, used, (-point.margin).clamp(min=0))
        # Far away the margin is anything but linear: half of the weight at most is moved at once.
        move = move * (0.5 / move.abs().sum(1, keepdim=True).clamp(min=0.5))
        w = _on_simplex(w + move)
    return w


def _on_simplex(w: Tensor) -> Tensor:
    """(P, k): ``w`` without what rounding or a step has made negative, with sum 1."""
    w = w.clamp(min=0)
    return w / w.sum(1, keepdim=True).clamp(min=TINY)


def _mean(x: Tensor, used: Tensor) -> Tensor:
    """(P, 1): the mean of x over the methods in use."""
    return (x * used).sum(1, keepdim=True) / used.sum(1, keepdim=True).clamp(min=1)


def _within(x: Tensor, used: Tensor) -> Tensor:
    """The part of a gradient that moves only the methods in use, and not their sum."""
    return (x - _mean(x, used)) * used


def _rise(slope: Tensor, valid: Tensor, used: Tensor, by: Tensor) -> Tensor:
    """(P, k): the shortest step within the simplex that lifts a function with this slope ``by`` (P,), to first order."""
    up = _within(slope, valid & used)
    length = by / (up * slope).sum(1).clamp(min=TINY)
    # An infinite length, of a slope of 0, times 0 is NaN: no step.
    return (length[:, None] * up).nan_to_num(0.0, 0.0, 0.0)


def _stationarity(here: Point, w: Tensor, valid: Tensor) -> _Slopes:
    """The multipliers by least squares, and which methods move.

    Those are the ones in use, and the one outside that would lower the value most, if it promises more than another step with
    the present ones.
    """
    of_value, of_margin = here.slopes()
    present = (w > 0) & valid
    used = present
    # Twice: the multiplier depends on which methods move, and which would move depends on the multiplier.
    for _ in range(2):
        inward = _within(of_margin, used)
        level = _within(of_value, used)
        square = (inward**2).sum(1)
        price = torch.where(square > 0, (inward * level).sum(1) / square.clamp(min=TINY), 0.0)
        # Only a margin that may bind has a price, and a price below 0 would mean that it does not.
        price = torch.where(here.margin <= TIGHT, price.clamp(min=0), 0.0)
        lagrangian = of_value - price[:, None] * of_margin
        lagrangian = lagrangian - _mean(lagrangian, used)
        inside = (lagrangian * present).abs().amax(1)
        gain = (-lagrangian).masked_fill(present | ~valid, -torch.inf)
        threshold = torch.maximum(0.5 * inside, STATIONARY * here.value)
        used = present | (gain > threshold[:, None])
    lagrangian = lagrangian - _mean(lagrangian, used)
    residual = torch.maximum(inside, gain.amax(1).clamp(min=0))
    return _Slopes(used, lagrangian, _within(of_margin, used), price, residual)


def _direction(here: Point, slopes: _Slopes, damping: Tensor) -> Tensor:
    """(P, k): Newton's step for the Lagrangian over the methods in use, with their sum, and a margin that binds, held.

    The system is [[W + damping, 1, n], [1ᵀ, 0, 0], [nᵀ, 0, 0]] with n the margin's direction; what is not in use, and a margin
    that does not bind, have an identity row instead, so that all problems of a batch have the same size.
    """
    used = slopes.used
    k = used.shape[1]
    curvature = here.curvature(slopes.price)
    # In units of the largest curvature, so that the damping has no unit.
    size = diagonal(curvature).abs().masked_fill(~used, 0).amax(1).clamp(min=TINY)[:, None]
    eye = torch.eye(k, dtype=curvature.dtype, device=curvature.device)
    damped = curvature / size[..., None] + damping[:, None, None] * eye
    both = used[:, :, None] & used[:, None]
    length = slopes.margin.norm(dim=1, keepdim=True).clamp(min=TINY)
    binds = (slopes.price > 0)[:, None]
    normal = torch.where(binds, slopes.margin / length, 0.0)

    sides = torch.stack([used.to(normal), normal], 2)
    lower_right = torch.diag_embed(torch.cat([torch.zeros_like(length), (~binds).to(normal)], 1))
    above = torch.cat([torch.where(both, damped, eye), sides], 2)
    below = torch.cat([sides.mT, lower_right], 2)
    # The sum does not change; a binding margin is led back to 0.
    back = torch.where(binds, -here.margin[:, None] / length, 0.0)
    right = torch.cat([-slopes.value * used / size, torch.zeros_like(back), back], 1)
    # A singular system gives infinities or NaN, without an error: no step, and more damping next time.
    solved = torch.linalg.solve_ex(torch.cat([above, below], 1), right[..., None])[0]
    return solved[:, :k, 0].nan_to_num(0.0, 0.0, 0.0) * used


def _stepped(problem: Problem, w: Tensor, move: Tensor) -> tuple[Tensor, Point]:
    """(P, k), and what is there: w + move, cut where the first weight would become negative, and led back where the margin
    would be."""
    falls = move < 0
    room = torch.where(falls, w / torch.where(falls, -move, 1.0), torch.inf)
    share = room.amin(1, keepdim=True).clamp(max=1)
    # The weight that reaches the bound is set to 0 as such: a rest of rounding would keep it in use.
    there = _on_simplex(torch.where(falls & (room <= share), 0.0, w + share * move))
    # The margin is curved: a step along its tangent leaves it to second order.
    point = problem.at(there)
    _, slope = point.slopes()
    for _ in range(BACK):
        short = -point.margin
        lift = _rise(slope, there > 0, there > 0, (short + FEASIBLE / 2).clamp(min=0))
        there = _on_simplex(there + lift)
        point = problem.at(there)
    return there, point
