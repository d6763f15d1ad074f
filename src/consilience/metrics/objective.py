"""What is minimised over mixtures: a weighted sum of metrics that keeps its parts, or the front between two of them.

Scores, solutions and values follow from :class:`~consilience.statistics.evidence.Evidence` alone, with no model evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import simplex
from ..errors import InputError
from ..settings import Settings, checked, setting
from ..simplex import Solution, even
from ..statistics.evidence import Evidence
from .base import Block, Metric


@dataclass(frozen=True)
class Objective(Settings):
    """Σ λ_i · loss_i(w) / s_i. ``balance``: s_i is the best corner's loss ("best": unchanged when a method is listed twice
    or a bad one is added), the matrix' Frobenius norm ("frobenius", AGG App. C.2), or 1 ("none")."""

    terms: tuple[tuple[float, Metric], ...]
    balance: str = setting("best", choices=("best", "frobenius", "none"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.terms or not all(weight > 0 for weight, _ in self.terms):
            raise InputError(
                f"Objective: terms are pairs (a weight above 0, a metric), at least one; got {self.terms!r}"
            )

    def __add__(self, other: Metric | Objective) -> Objective:
        more = other if isinstance(other, Objective) else other._objective()
        fixed = {o.balance for o in (self, more) if len(o.terms) > 1}
        if len(fixed) > 1 or (fixed and fixed != {"best"}):
            raise InputError(
                "objective: a sum with a balance of its own, such as 'paper_opt', cannot be part of another sum"
            )
        return replace(self, terms=self.terms + more.terms)

    @property
    def statistics(self) -> set[str]:
        return {kind for _, term in self.terms for kind in term.statistics}

    def __mul__(self, weight: float) -> Objective:
        weight = checked("objective: a weight", weight, float, above=0)
        return replace(self, terms=tuple((weight * w, term) for w, term in self.terms))

    __rmul__ = __mul__

    def scores(self, evidence: Evidence, rows: int) -> list[Tensor]:
        """Each part's loss for every single row, (B, R)."""
        like = evidence.like
        corners = torch.eye(rows, dtype=like.dtype, device=like.device).expand(len(like), -1, -1)
        return [term.loss(evidence, corners) for _, term in self.terms]

    def _scales(self, evidence: Evidence, valid: Tensor) -> list[Tensor]:
        """(B,) for each part."""
        scales = []
        for (_, term), corner in zip(self.terms, self.scores(evidence, valid.shape[1]), strict=True):
            scale = corner.masked_fill(~valid | corner.isnan(), torch.inf).amin(1)
            if self.balance == "frobenius":
                matrix = term.matrix(evidence)
                if matrix is None:
                    raise InputError("objective: balancing by Frobenius norm is for the paper's quadratic parts")
                scale = torch.linalg.matrix_norm(matrix * (valid[:, :, None] & valid[:, None]))
            if self.balance == "none":
                scale = torch.ones_like(scale)
            scales.append(torch.where((scale > 0) & scale.isfinite(), scale, torch.ones_like(scale)))
        return scales

    def at(self, evidence: Evidence, w: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, M, R) → (B, M): the balanced sum."""
        return self._sum(evidence, w, self._scales(evidence, evidence.valid() if valid is None else valid))

    def over_blocks(self, whole: Evidence, blocks: Sequence[Block], weights: Sequence[Tensor]) -> Tensor:
        """(B,): the balanced sum of its parts' :meth:`Metric.over_blocks`; scales are those of all draws.

        A sum that is minimised as a quadratic form is judged as that form."""
        whole = whole.only(self.statistics)
        scales = self._scales(whole, whole.valid())
        if self._is_form(whole):
            forms = [share * self._form(block, whole, scales) for share, block in blocks]
            judged = [torch.einsum("br,brt,bt->b", w, form, w) for form, w in zip(forms, weights, strict=True)]
            return torch.stack(judged).sum(0)
        parts = [term.over_blocks(whole, blocks, weights) for _, term in self.terms]
        return torch.stack([w * part / s for (w, _), part, s in zip(self.terms, parts, scales, strict=True)]).sum(0)

    def explained(self, evidence: Evidence, w: Tensor) -> Tensor:
        """(B,): by how much the parts that look at masks are below what they are for a map that explains nothing.

        In the units of the balanced sum, so that losses of the sum can be compared with it.

        Args:
            evidence: the draws, clean.
            w: (B, R).
        """
        evidence = evidence.only(self.statistics)
        scales = self._scales(evidence, evidence.valid())
        total = torch.zeros_like(w[:, 0])
        for (weight, term), scale in zip(self.terms, scales, strict=True):
            if term.statistic != "responses":
                continue
            matrix = term.matrix(evidence) if self._is_form(evidence) else None
            if matrix is None:
                zero, value = term.loss(evidence, torch.stack([torch.zeros_like(w), w], 1)).unbind(1)
            else:
                zero = evidence["responses"].moments()[2]
                value = torch.einsum("br,brt,bt->b", w, matrix, w)
            total = total + weight * (zero - value) / scale
        return total

    def _is_form(self, evidence: Evidence) -> bool:
        """Whether the sum is minimised as one quadratic form."""
        return len(self.terms) > 1 and all(term.matrix(evidence) is not None for _, term in self.terms)

    def _sum(self, evidence: Evidence, w: Tensor, scales: list[Tensor]) -> Tensor:
        parts = zip(self.terms, scales, strict=True)
        return torch.stack([weight * term.loss(evidence, w) / scale[:, None] for (weight, term), scale in parts]).sum(0)

    def minimise(self, evidence: Evidence, *, signed: bool = False) -> Solution:
        """The best mixture, with its certificate: exact for one part or quadratic parts, else a local optimum reached
        from every corner and from each part's own optimum, never above the best corner."""
        evidence = evidence.only(self.statistics)
        valid = evidence.valid()
        evidence = evidence.clean()
        if len(self.terms) == 1:
            return self.terms[0][1].solve(evidence, valid, signed)
        scales = self._scales(evidence, valid)
        if all(term.matrix(evidence) is not None for _, term in self.terms) and not signed:
            return simplex.quadratic(self._form(evidence, evidence, scales), valid)
        return self._descend(evidence, valid, scales, signed)

    def _form(self, evidence: Evidence, whole: Evidence, scales: list[Tensor]) -> Tensor:
        """(B, R, R): Σ λ_i G_i / s_i of parts that all are quadratic forms."""
        parts = zip(self.terms, (term.matrix(evidence, whole) for _, term in self.terms), scales, strict=True)
        return torch.stack([w / s[:, None, None] * m for (w, _), m, s in parts if m is not None]).sum(0)

    def _descend(self, evidence: Evidence, valid: Tensor, scales: list[Tensor], signed: bool) -> Solution:
        """A sum that is no quadratic form: descents from every corner and each part's own optimum, the best ones solved to a
        stationary point."""
        if signed:
            raise InputError("signed: only for an objective of one part; sums are over convex weights")
        count, k = valid.shape
        corners = torch.eye(k, dtype=torch.float64, device=valid.device).expand(count, k, k)
        # A descent may end where it starts: no start is at a method that must not be used.
        usable = torch.where(valid[..., None], corners, even(valid)[:, None])
        optima = [term.solve(evidence, valid, False).weights.nan_to_num(0.0) for _, term in self.terms]
        starts = torch.cat([usable, torch.stack(optima, 1)], 1)

        def loss(w: Tensor) -> Tensor:
            return self._sum(evidence, w.view_as(starts), scales).flatten()

        allowed = valid.repeat_interleave(starts.shape[1], 0)
        w, value = simplex.descend(loss, starts.flatten(0, 1), DESCENT, allowed)
        value = value.view(starts.shape[:2]).nan_to_num(torch.inf)
        best = value.topk(min(SOLVED, starts.shape[1]), 1, largest=False).indices
        w = w.view_as(starts).gather(1, best[..., None].expand(-1, -1, k))

        owner = torch.arange(count, device=valid.device).repeat_interleave(w.shape[1])
        problem = _Sum(self, evidence, tuple(scales)).rows(owner)
        w = simplex.newton.minimise(problem, w.flatten(0, 1), valid[owner]).view_as(w)
        w = simplex.most_even(w, self._sum(evidence, w, scales))
        gap = torch.full((count,), torch.nan, dtype=torch.float64, device=w.device)
        status = ("local optimum, never above the best single",) * count
        return _refuse(Solution(w, self._sum(evidence, w[:, None], scales)[:, 0], gap, status), valid)


DESCENT = 60
"""Iterations of the descents that look for the valleys."""

SOLVED = 3
"""Descents of an input that are solved further."""


@dataclass(frozen=True)
class _Sum:
    """A balanced sum as problems for :func:`consilience.simplex.newton.minimise`, differentiated by autograd."""

    objective: Objective
    evidence: Evidence
    scales: tuple[Tensor, ...]

    def at(self, w: Tensor) -> _SumAt:
        with torch.enable_grad():
            w = w.detach().requires_grad_()
            value = self.objective._sum(self.evidence, w[:, None], list(self.scales))[:, 0]
            (slope,) = torch.autograd.grad(value.sum(), w, create_graph=True)
        return _SumAt(w, value.detach(), slope)

    def rows(self, index: Tensor) -> _Sum:
        return _Sum(self.objective, self.evidence.inputs(index.tolist()), tuple(s[index] for s in self.scales))


@dataclass(frozen=True)
class _SumAt:
    """The sum at w (P, k): its value, and its slope with a graph."""

    w: Tensor
    value: Tensor
    slope: Tensor

    @property
    def margin(self) -> Tensor:
        return torch.full_like(self.value, torch.inf)

    def slopes(self) -> tuple[Tensor, Tensor]:
        slope = self.slope.detach().nan_to_num(0.0, 0.0, 0.0)
        return slope, torch.zeros_like(slope)

    def curvature(self, price: Tensor) -> Tensor:
        # A row of w decides its own value only, so the sum over rows gives each row's own derivative.
        columns = [torch.autograd.grad(each.sum(), self.w, retain_graph=True)[0] for each in self.slope.unbind(1)]
        bend = torch.stack(columns, 1)
        return ((bend + bend.mT) / 2).nan_to_num(0.0, 0.0, 0.0)


def _refuse(solution: Solution, valid: Tensor) -> Solution:
    """NaN and "no valid method" where there is none."""
    some = valid.any(1)
    status = tuple(s if ok else "no valid method" for s, ok in zip(solution.status, some.tolist(), strict=True))
    weights = torch.where(some[:, None], solution.weights, torch.nan)
    value, gap = (torch.where(some, x, torch.nan) for x in (solution.value, solution.gap))
    return Solution(weights, value, gap, status)
