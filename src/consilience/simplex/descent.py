"""A local first-order minimiser on the simplex for any smooth function, many problems at once.

:func:`descend` differentiates the function by autograd; :func:`descend_with_slope` takes a function that gives its gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .solution import TINY

FIRST = 0.25
"""The first step moves so much weight at most; and ..."""

LONGEST = 10
"""... so much, before the projection, every later one."""

SHORTER = 4
"""A refused step is cut by this."""

ARMIJO = 1e-4
"""The share of the fall to first order that a step has to bring (Armijo's rule)."""

STILL = 1e-12
"""A move of less weight than this, or a slope of this share of the value, counts as none; and ..."""

GAIN = 1e-14
"""... a fall by this share of the value is rounding."""


def project(v: Tensor, valid: Tensor | None = None) -> Tensor:
    """The point of the simplex nearest to v: w = max(v − θ, 0), with θ such that Σw = 1.

    Args:
        v: (…, k).
        valid: (…, k) bool, entries that may be positive; all by default.

    Source: Held, Wolfe and Crowder 1974; Duchi et al. 2008, fig. 1.

    >>> project(torch.tensor([2.0, 0.0, 1.5]))
    tensor([0.7500, 0.0000, 0.2500])
    """
    if valid is not None:
        v = v.masked_fill(~valid, -torch.inf)
    ordered = v.sort(-1, descending=True).values
    # The projection does not see a shift; with a largest entry of 0 the sums lose no digits.
    largest = ordered[..., :1]
    v = v - largest
    ordered = ordered - largest
    # With the n largest entries positive, θ is (their sum − 1) / n; the right n is the last whose entry is above its θ.
    count = torch.arange(1, v.shape[-1] + 1, dtype=v.dtype, device=v.device)
    level = (ordered.cumsum(-1) - 1) / count
    used = (ordered > level).sum(-1, keepdim=True).clamp(min=1)
    return (v - level.gather(-1, used - 1)).clamp(min=0)


def descend(
    objective: Callable[[Tensor], Tensor], starts: Tensor, iterations: int = 200, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(weights (P, k), values (P,)): the local minimum of a function that is reached from each start.

    Args:
        objective: (P, k) → (P,), differentiable; value i may depend on row i only.
        starts: (P, k), on the simplex.
        iterations: at most so many.
        valid: (P, k) bool, entries that may be positive; all by default.
    """

    def evaluate(w: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            w = w.detach().requires_grad_()
            value = objective(w)
            # Row i depends on value i alone, so the gradient of the sum is every row's own.
            (gradient,) = torch.autograd.grad(value.sum(), w)
        return value.detach(), gradient

    return descend_with_slope(evaluate, starts.detach(), iterations, valid)


def descend_with_slope(
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]], starts: Tensor, iterations: int, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(weights (…, k), values (…)): the local minimum that is reached from each start.

    Projected gradient, w ← project(w − t∇f), with a Barzilai–Borwein step per problem, cut by four until the function falls
    enough (Armijo): monotone, so never above the start. A point where the function is not finite is refused; a start where it
    is not finite stays as it is.

    Args:
        evaluate: w (…, k) → f (…) and its gradient (…, k).
        starts: (…, k), on the simplex.
        iterations: at most so many.
        valid: (…, k) bool, entries that may be positive; all by default. The others stay 0: without this, weight drifts to
            entries that the function ignores.

    Source: Barzilai and Borwein 1988; Birgin, Martínez and Raydan 2000, for the projection.
    """
    w = starts
    value, gradient = evaluate(w)
    gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
    t = FIRST / _width(gradient)
    settled = ~value.isfinite()
    for _ in range(iterations):
        move = torch.where(settled[..., None], 0.0, project(w - t[..., None] * gradient, valid) - w)
        settled = settled | (move.abs().amax(-1) < STILL)
        if settled.all():
            break
        slope = (gradient * move).sum(-1)
        new_value, new_gradient = evaluate(w + move)
        new_gradient = new_gradient.nan_to_num(0.0, 0.0, 0.0)
        # A value that is not finite compares as False, so such a point is refused.
        accept = (new_value <= value + ARMIJO * slope) & ~settled
        stationary = (value - new_value <= GAIN * value.abs()) & (slope > -STILL * value.abs())
        settled = settled | (accept & stationary)
        # Barzilai–Borwein: the step that a quadratic with the curvature seen along this move would ask for.
        bend = (move * (new_gradient - gradient)).sum(-1)
        longest = LONGEST / _width(new_gradient)
        barzilai = torch.where(bend > 0, (move**2).sum(-1) / bend.clamp(min=TINY), longest)
        t = torch.where(accept, torch.minimum(barzilai, longest), t / SHORTER)
        w = torch.where(accept[..., None], w + move, w)
        value = torch.where(accept, new_value, value)
        gradient = torch.where(accept[..., None], new_gradient, gradient)
    return w, value


def _width(slope: Tensor) -> Tensor:
    """(…): the range of a slope's entries: on the simplex only their differences move weights."""
    return (slope.amax(-1) - slope.amin(-1)).clamp(min=1e-30)
