"""Sums of metrics that are not one quadratic form: minimised by descents from many starts, then by Newton's method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import simplex
from ..simplex import Solution, even
from ..simplex.solution import TINY, normalise
from ..simplex.ties import even_out
from ..statistics.evidence import Evidence, Quadratic
from ..statistics.tensors import corners

DESCENT = 60
"""Iterations of the descents that look for the valleys."""

SOLVED = 3
"""So many of an input's descents, the lowest ones, are solved to a stationary point."""

ALIKE = 1e-5
"""A sum that differs by less than this share is the same. Float32 maps are known to 1e-7 of their size, and so is the root of a
sensitivity: 6e-6 of one of 1e-3 is rounding."""

Balanced = Callable[[Evidence, Tensor, Sequence[Tensor]], Tensor]
"""The value (B, M) of mixtures (B, M, R): :meth:`Objective.balanced <consilience.metrics.objective.Objective.balanced>`."""


def descend_sum(
    balanced: Balanced, evidence: Evidence, scales: Sequence[Tensor], optima: Sequence[Tensor], valid: Tensor
) -> Solution:
    """A local minimum over convex weights, never above the best single method.

    A ratio beside a correlation has several valleys. So descents start at every single method and at each metric's own
    optimum; the lowest ones are solved further.

    Args:
        balanced: the sum, differentiable in the weights.
        evidence: the draws, clean.
        scales: (B,) for each metric.
        optima: (B, k) for each metric, the weights that are best by it alone.
        valid: (B, k) bool, methods that may get weight.
    """
    count, k = valid.shape
    # A descent may end where it starts: none starts at a method that must not be used.
    singles = torch.where(valid[..., None], corners(valid), even(valid)[:, None])
    starts = torch.cat([singles, torch.stack([w.nan_to_num(0.0) for w in optima], 1)], 1)

    def loss(w: Tensor) -> Tensor:
        return balanced(evidence, w.view_as(starts), scales).flatten()

    allowed = valid.repeat_interleave(starts.shape[1], 0)
    w, value = simplex.descend(loss, starts.flatten(0, 1), DESCENT, allowed)
    value = value.view(starts.shape[:2]).nan_to_num(torch.inf)
    lowest = value.topk(min(SOLVED, starts.shape[1]), 1, largest=False).indices
    w = w.view_as(starts).gather(1, lowest[..., None].expand(-1, -1, k))

    owner = torch.arange(count, device=valid.device).repeat_interleave(w.shape[1])
    problem = _Problem(balanced, evidence, tuple(scales)).rows(owner)
    w = simplex.newton.minimise(problem, w.flatten(0, 1), valid[owner]).view_as(w)
    w = simplex.most_even(w, balanced(evidence, w, scales))
    # Methods whose maps agree share their weight: which of them a descent took is rounding.
    spread = _spread(w, evidence, valid)
    tried = balanced(evidence, torch.stack([w, spread], 1), scales)
    kept = tried[:, 1] <= tried[:, 0] * (1 + ALIKE)
    w = torch.where(kept[:, None], spread, w)
    # Nothing bounds how far a local minimum is from the least one.
    gap = torch.full((count,), torch.nan, dtype=torch.float64, device=w.device)
    status = ("local optimum, never above the best single",) * count
    return without_methods(Solution(w, balanced(evidence, w[:, None], scales)[:, 0], gap, status), valid)


def _spread(w: Tensor, evidence: Evidence, valid: Tensor) -> Tensor:
    """(B, k): the mixture of w (B, k) with its most even weights.

    The evidence knows maps by their products, and by what masks take away of them."""
    grams = []
    for part in evidence.parts.values():
        gram = part.norm if isinstance(part, Quadratic) else part.moments()[0]
        grams.append(torch.where(valid[:, :, None] & valid[:, None], gram, 0.0))
    sizes = [torch.where(valid, gram.diagonal(dim1=1, dim2=2), 1.0).clamp(min=TINY).sqrt() for gram in grams]
    likeness = sum(gram / (size[:, :, None] * size[:, None]) for gram, size in zip(grams, sizes, strict=True))
    even = even_out(normalise(w * sizes[0]), torch.as_tensor(likeness), valid)
    return normalise(even / sizes[0])


def without_methods(solution: Solution, valid: Tensor) -> Solution:
    """The ``solution`` with NaN, and the status "no valid method", for inputs without a ``valid`` (B, k) method."""
    some = valid.any(1)
    status = tuple(s if ok else "no valid method" for s, ok in zip(solution.status, some.tolist(), strict=True))
    weights = torch.where(some[:, None], solution.weights, torch.nan)
    value = torch.where(some, solution.value, torch.nan)
    gap = torch.where(some, solution.gap, torch.nan)
    return Solution(weights, value, gap, status)


@dataclass(frozen=True)
class _Problem:
    """The sum as :func:`consilience.simplex.newton.minimise` takes it, differentiated by autograd.

    Args:
        balanced: the sum.
        evidence: of P inputs.
        scales: (P,) for each metric.
    """

    balanced: Balanced
    evidence: Evidence
    scales: tuple[Tensor, ...]

    def at(self, w: Tensor) -> _Point:
        with torch.enable_grad():
            w = w.detach().requires_grad_()
            value = self.balanced(self.evidence, w[:, None], self.scales)[:, 0]
            (slope,) = torch.autograd.grad(value.sum(), w, create_graph=True)
        return _Point(w, value.detach(), slope)

    def rows(self, index: Tensor) -> _Problem:
        scales = tuple(scale[index] for scale in self.scales)
        return _Problem(self.balanced, self.evidence.inputs(index.tolist()), scales)


@dataclass(frozen=True)
class _Point:
    """The sum at w (P, k): its value (P,), and its slope (P, k) with a graph."""

    w: Tensor
    value: Tensor
    slope: Tensor

    @property
    def margin(self) -> Tensor:
        return torch.full_like(self.value, torch.inf)  # there is no constraint besides the simplex

    def slopes(self) -> tuple[Tensor, Tensor]:
        slope = self.slope.detach().nan_to_num(0.0, 0.0, 0.0)
        return slope, torch.zeros_like(slope)

    def curvature(self, price: Tensor) -> Tensor:
        # A row of w decides its own value only, so the sum over rows gives each row's own derivative.
        columns = [torch.autograd.grad(each.sum(), self.w, retain_graph=True)[0] for each in self.slope.unbind(1)]
        hessian = torch.stack(columns, 1)
        return ((hessian + hessian.mT) / 2).nan_to_num(0.0, 0.0, 0.0)
