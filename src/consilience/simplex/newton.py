"""Newton's method on the simplex, with at most one inequality beside it: to a stationary point, not for a number of steps.

A first-order descent (see ``descent.py``) creeps along a flat valley, and where it stops after a fixed number of steps depends
on rounding. Newton's steps do not know how flat a valley is: what they return is stationary to rounding, wherever they began.

The way of one batch: ``starts`` → :func:`reach` (onto the feasible set) → :func:`minimise`, which repeats

    slopes → :func:`_stationarity` (multipliers, which methods are in use, how far from stationary)
           → :func:`_direction` (one linear system for each problem) → :func:`_stepped` (to the first bound, back to the margin)

and accepts a step if it is feasible and the value does not rise; a problem leaves the batch when it is stationary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

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


class Point(Protocol):
    """P functions and their margins at one w (P, k) each."""

    @property
    def value(self) -> Tensor:
        """(P,)."""

    @property
    def margin(self) -> Tensor:
        """(P,): not negative where w is allowed; infinity if there is no inequality."""

    def slopes(self) -> tuple[Tensor, Tensor]:
        """Gradients (P, k) of the value and of the margin."""

    def curvature(self, price: Tensor) -> Tensor:
        """(P, k, k): the Hessian of value − price · margin, ``price`` (P,)."""


class Problem(Protocol):
    """P smooth functions of weights w (P, k), each to be minimised where its margin is not negative."""

    def at(self, w: Tensor) -> Point:
        """Everything about the weights w (P, k)."""

    def rows(self, index: Tensor) -> Problem:
        """Only some of the P problems."""


@dataclass(frozen=True)
class _Slopes:
    """First-order information at w: what :func:`_stationarity` finds."""

    used: Tensor  # (P, k): methods with a positive weight, and the one that is about to get some
    value: Tensor  # (P, k): the Lagrangian's gradient less its mean over ``used``; 0 for all of them if stationary
    margin: Tensor  # (P, k): the margin's gradient within the simplex
    price: Tensor  # (P,): the margin's multiplier, ≥ 0
    residual: Tensor  # (P,): how far from stationary


def minimise(problem: Problem, starts: Tensor, valid: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """(P, k): the local minimum that is reached from each of ``starts``.

    Primal active-set Newton with Levenberg–Marquardt damping on the Karush–Kuhn–Tucker system. From a start that is feasible
    the value never rises, but for what a margin within ``SLACK`` of 0 is worth; ends are feasible to that, see :func:`reach`.
    Where the value is not finite, or not positive, a start stays as it is.

    Args:
        problem: the P functions.
        starts: (P, k) ≥ 0 with sum 1, feasible (see :func:`reach`).
        valid: (P, k) bool, methods that may get weight.
        iterations: at most so many.
    """
    answer, value = starts.clone(), problem.at(starts).value
    rows = (value.isfinite() & (value > 0)).nonzero()[:, 0]
    problem, w, valid = problem.rows(rows), starts[rows], valid[rows]
    damping = torch.full_like(w[:, 0], 1e-3)
    refused = torch.zeros_like(damping)
    blocked = torch.zeros_like(valid)
    for step in range(iterations):
        if not len(rows):
            break
        here = problem.at(w)
        found = _stationarity(here, w, valid & ~blocked)
        move = _direction(here, found, damping)
        moved, there = _stepped(problem, w, move)
        # The Lagrangian, not the value: a step that takes back what a margin lacks has its price.
        gain = here.value - there.value
        gain = torch.where(found.price > 0, gain + found.price * (there.margin - here.margin), gain)
        accepted = (there.margin >= here.margin.clamp(max=-SLACK)) & (gain >= 0) & (moved != w).any(1)
        refused = torch.where(accepted & (gain > GAIN * here.value), 0.0, refused + 1)
        damping = torch.where(accepted, (damping / 10).clamp(min=1e-13), (10 * damping).clamp(min=1e-8))
        # A weight that is 0 and would fall waits until another step has succeeded.
        blocked = torch.where(accepted[:, None], False, blocked | ((w <= 0) & (move < 0)))
        w = torch.where(accepted[:, None], moved, w)
        if step % EVERY == EVERY - 1 or step == iterations - 1:
            answer[rows] = w
            stationary = (found.residual <= STATIONARY * here.value) & (here.margin >= -FEASIBLE)
            going = ~(stationary & ~blocked.any(1)) & (refused < PATIENCE)
            problem, rows = problem.rows(going.nonzero()[:, 0]), rows[going]
            w, valid, damping, refused, blocked = (x[going] for x in (w, valid, damping, refused, blocked))
    return answer


def reach(problem: Problem, w: Tensor, valid: Tensor, iterations: int = 20) -> Tensor:
    """(P, k): a point near w (P, k) whose margin is not negative, if these few steps find one.

    Gauss–Newton on the margin alone: from outside, the nearest feasible points of different starts lie far apart, so that
    descents from them see different valleys.
    """
    for _ in range(iterations):
        point = problem.at(w)
        short, (_, slope) = -point.margin, point.slopes()
        move = _rise(slope, valid, (w > 0) | (slope > _mean(slope, valid)), short.clamp(min=0))
        # Far away the margin is anything but linear: half of the weight at most is moved at once.
        move = move * (0.5 / move.abs().sum(1, keepdim=True).clamp(min=0.5))
        w = _on_simplex(w + move)
    return w


def _on_simplex(w: Tensor) -> Tensor:
    w = w.clamp(min=0)
    return w / w.sum(1, keepdim=True).clamp(min=1e-300)


def _mean(x: Tensor, used: Tensor) -> Tensor:
    """(P, 1): the mean of x over the methods in use."""
    return (x * used).sum(1, keepdim=True) / used.sum(1, keepdim=True).clamp(min=1)


def _within(x: Tensor, used: Tensor) -> Tensor:
    """The part of a gradient that moves only the methods in use, and not their sum."""
    return (x - _mean(x, used)) * used


def _rise(slope: Tensor, valid: Tensor, used: Tensor, by: Tensor) -> Tensor:
    """(P, k): the shortest step within the simplex that lifts a function with this slope ``by`` (P,), to first order."""
    up = _within(slope, valid & used)
    length = by / (up * slope).sum(1).clamp(min=1e-300)
    return (length[:, None] * up).nan_to_num(0.0, 0.0, 0.0)


def _stationarity(here: Point, w: Tensor, valid: Tensor) -> _Slopes:
    """Multipliers by least squares, and the method outside that would lower the value most, if it is worth more than another
    step with the present ones."""
    of_value, of_margin = here.slopes()
    present = (w > 0) & valid
    used = present
    for _ in range(2):  # the multiplier depends on which methods move, and which would move depends on the multiplier
        inward, level = _within(of_margin, used), _within(of_value, used)
        square = (inward**2).sum(1)
        price = torch.where(square > 0, (inward * level).sum(1) / square.clamp(min=1e-300), 0.0)
        price = torch.where(here.margin <= TIGHT, price.clamp(min=0), 0.0)
        lagrangian = of_value - price[:, None] * of_margin
        lagrangian = lagrangian - _mean(lagrangian, used)
        inside = (lagrangian * present).abs().amax(1)
        gain = (-lagrangian).masked_fill(present | ~valid, -torch.inf)
        worth = torch.maximum(0.5 * inside, STATIONARY * here.value)
        used = present | (gain > worth[:, None])
    lagrangian = lagrangian - _mean(lagrangian, used)
    return _Slopes(used, lagrangian, _within(of_margin, used), price, torch.maximum(inside, gain.amax(1).clamp(min=0)))


def _direction(here: Point, found: _Slopes, damping: Tensor) -> Tensor:
    """(P, k): Newton's step for the Lagrangian over the methods in use, with their sum, and a margin that binds, held.

    The system is [[W + damping, 1, n], [1ᵀ, 0, 0], [nᵀ, 0, 0]] with n the margin's direction; what is not in use, and a margin
    that does not bind, have an identity row instead.
    """
    used = found.used
    k = used.shape[1]
    curvature = here.curvature(found.price)
    size = curvature.diagonal(dim1=1, dim2=2).abs().masked_fill(~used, 0).amax(1).clamp(min=1e-300)[:, None]
    eye = torch.eye(k, dtype=curvature.dtype, device=curvature.device)
    both = used[:, :, None] & used[:, None]
    damped = curvature / size[..., None] + damping[:, None, None] * eye
    length = found.margin.norm(dim=1, keepdim=True).clamp(min=1e-300)
    binds = (found.price > 0)[:, None]
    normal = torch.where(binds, found.margin / length, 0.0)
    sides = torch.stack([used.to(normal), normal], 2)
    corner = torch.diag_embed(torch.cat([torch.zeros_like(length), (~binds).to(normal)], 1))
    above = torch.cat([torch.where(both, damped, eye), sides], 2)
    below = torch.cat([sides.mT, corner], 2)
    held = torch.where(binds, -here.margin[:, None] / length, 0.0)
    right = torch.cat([-found.value * used / size, torch.zeros_like(held), held], 1)
    solved = torch.linalg.solve_ex(torch.cat([above, below], 1), right[..., None])[0]
    return solved[:, :k, 0].nan_to_num(0.0, 0.0, 0.0) * used


def _stepped(problem: Problem, w: Tensor, move: Tensor) -> tuple[Tensor, Point]:
    """(P, k), and what is there: w + move, cut where the first weight would become negative, and led back where the margin
    would be."""
    falls = move < 0
    room = torch.where(falls, w / torch.where(falls, -move, 1.0), torch.inf)
    share = room.amin(1, keepdim=True).clamp(max=1)
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
