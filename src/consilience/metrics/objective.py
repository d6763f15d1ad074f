"""Objectives: weighted sums of metrics, which are minimised over mixtures of methods.

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
from ..simplex import Solution
from ..statistics.evidence import Evidence
from ..statistics.tensors import corners
from .base import Block, Metric
from .sum_descent import descend_sum


@dataclass(frozen=True)
class Objective(Settings):
    """Σ λ_i · loss_i(w) / s_i over metrics i; ``+`` and ``*`` of metrics make one.

    Args:
        terms: pairs (λ_i, metric i), at least one, every λ_i above 0.
        balance: what s_i is. "best": the loss of the best single method, so that nothing changes when a method is listed twice
            or a bad one is added; "frobenius": the Frobenius norm of the metric's matrix (AGG, App. C.2); "none": 1.

    Raises:
        InputError: there are no terms, or a weight is not above 0.
    """

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
        # A sum's balance has been chosen for it; a single term's has had no effect yet.
        balances = {objective.balance for objective in (self, more) if len(objective.terms) > 1}
        if len(balances) > 1 or (balances and balances != {"best"}):
            raise InputError(
                "objective: a sum with a balance of its own, such as 'paper_opt', cannot be part of another sum"
            )
        return replace(self, terms=self.terms + more.terms)

    def __mul__(self, weight: float) -> Objective:
        weight = checked("objective: a weight", weight, float, above=0)
        return replace(self, terms=tuple((weight * own, term) for own, term in self.terms))

    __rmul__ = __mul__

    @property
    def statistics(self) -> set[str]:
        """The names of all parts of the evidence that its metrics look at."""
        return {kind for _, term in self.terms for kind in term.statistics}

    def scores(self, evidence: Evidence) -> list[Tensor]:
        """Each metric's loss of every single row of ``evidence``, (B, R) for each."""
        alone = corners(evidence.like)
        return [term.loss(evidence, alone) for _, term in self.terms]

    def scales(self, evidence: Evidence, valid: Tensor) -> list[Tensor]:
        """What each metric's loss is divided by, (B,) for each: s_i, or 1 where that is 0 or not finite.

        Args:
            evidence: the draws.
            valid: (B, R) bool, rows that may be used.
        """
        scales = []
        for (_, term), losses in zip(self.terms, self.scores(evidence), strict=True):
            scale = losses.masked_fill(~valid | losses.isnan(), torch.inf).amin(1)
            if self.balance == "frobenius":
                matrix = term.matrix(evidence)
                if matrix is None:
                    raise InputError("objective: balancing by Frobenius norm is for the paper's quadratic parts")
                scale = torch.linalg.matrix_norm(matrix * (valid[:, :, None] & valid[:, None]))
            if self.balance == "none":
                scale = torch.ones_like(scale)
            scales.append(torch.where((scale > 0) & scale.isfinite(), scale, torch.ones_like(scale)))
        return scales

    def balanced(self, evidence: Evidence, w: Tensor, scales: Sequence[Tensor]) -> Tensor:
        """(B, M): the sum with given scales.

        Args:
            evidence: the draws.
            w: (B, M, R), mixtures of the rows.
            scales: of :meth:`scales`.
        """
        parts = []
        for (weight, term), scale in zip(self.terms, scales, strict=True):
            parts.append(weight * term.loss(evidence, w) / scale[:, None])
        return torch.stack(parts).sum(0)

    def at(self, evidence: Evidence, w: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, M): the balanced sum.

        Args:
            evidence: the draws.
            w: (B, M, R), mixtures of the rows.
            valid: (B, R) bool, rows from which the scales are taken; None: those that are valid in these draws.
        """
        if valid is None:
            valid = evidence.valid()
        return self.balanced(evidence, w, self.scales(evidence, valid))

    def over_blocks(self, whole: Evidence, blocks: Sequence[Block], weights: Sequence[Tensor]) -> Tensor:
        """(B,): the balanced sum of its metrics' :meth:`Metric.over_blocks`.

        A sum that is minimised as a quadratic form is judged as that form.

        Args:
            whole: all draws; they give the scales.
            blocks: parts of the draws, each with its share of them.
            weights: (B, R) for each block.
        """
        whole = whole.only(self.statistics)
        scales = self.scales(whole, whole.valid())
        if self._is_form(whole):
            forms = [share * self.quadratic_form(block, whole, scales) for share, block in blocks]
            values = [torch.einsum("br,brt,bt->b", w, form, w) for form, w in zip(forms, weights, strict=True)]
            return torch.stack(values).sum(0)
        parts = []
        for (weight, term), scale in zip(self.terms, scales, strict=True):
            parts.append(weight * term.over_blocks(whole, blocks, weights) / scale)
        return torch.stack(parts).sum(0)

    def explained(self, evidence: Evidence, w: Tensor) -> Tensor:
        """(B,): by how much the metrics that look at masks are below what they are for a map that explains nothing.

        In the units of the balanced sum, so that losses of the sum can be compared with it.

        Args:
            evidence: the draws, clean.
            w: (B, R).
        """
        evidence = evidence.only(self.statistics)
        scales = self.scales(evidence, evidence.valid())
        is_form = self._is_form(evidence)
        total = torch.zeros_like(w[:, 0])
        for (weight, term), scale in zip(self.terms, scales, strict=True):
            if term.statistic != "responses":
                continue
            matrix = term.matrix(evidence) if is_form else None
            if matrix is None:
                nothing, value = term.loss(evidence, torch.stack([torch.zeros_like(w), w], 1)).unbind(1)
            else:
                # E(Σ wa − y)² as a form in w with Σw = 1: a map of zeros leaves E y².
                nothing = evidence["responses"].moments()[2]
                value = torch.einsum("br,brt,bt->b", w, matrix, w)
            total = total + weight * (nothing - value) / scale
        return total

    def _is_form(self, evidence: Evidence) -> bool:
        """Whether it is a sum that is minimised as one quadratic form."""
        return len(self.terms) > 1 and all(term.matrix(evidence) is not None for _, term in self.terms)

    def quadratic_form(self, evidence: Evidence, whole: Evidence, scales: Sequence[Tensor]) -> Tensor:
        """(B, R, R): Σ λ_i G_i / s_i, of a sum whose metrics are all quadratic forms.

        Args:
            evidence: the draws.
            whole: draws to which a metric's scale is fitted, if it has one.
            scales: of :meth:`scales`.
        """
        matrices = []
        for (weight, term), scale in zip(self.terms, scales, strict=True):
            matrix = term.matrix(evidence, whole)
            assert matrix is not None
            matrices.append(weight / scale[:, None, None] * matrix)
        return torch.stack(matrices).sum(0)

    def minimise(self, evidence: Evidence, *, signed: bool = False) -> Solution:
        """The best mixture, with its certificate.

        Exact for one metric, or for several that are all quadratic forms; else a local optimum, reached from every single
        method and from each metric's own optimum, and never above the best single method.

        Args:
            evidence: the draws.
            signed: over weights with Σ|w| = 1, in place of w ≥ 0 with Σw = 1.

        Raises:
            InputError: signed weights, for an objective that has no minimum over them.
        """
        evidence = evidence.only(self.statistics)
        valid = evidence.valid()
        evidence = evidence.clean()
        if len(self.terms) == 1:
            _, term = self.terms[0]
            return term.solve(evidence, valid, signed)
        scales = self.scales(evidence, valid)
        if self._is_form(evidence) and not signed:
            return simplex.quadratic(self.quadratic_form(evidence, evidence, scales), valid)
        if signed:
            raise InputError("signed: only for an objective of one part; sums are over convex weights")
        optima = [term.solve(evidence, valid, False).weights for _, term in self.terms]
        return descend_sum(self.balanced, evidence, scales, optima, valid)


def best_single(objective: Objective, evidence: Evidence, valid: Tensor) -> Tensor:
    """(B, R): all weight on the valid row of the least objective, the first of equals.

    Args:
        objective: what is least.
        evidence: the draws.
        valid: (B, R) bool.
    """
    losses = objective.at(evidence, corners(valid), valid)
    best = losses.masked_fill(~valid, torch.inf).nan_to_num(torch.inf).argmin(1)
    return torch.nn.functional.one_hot(best, valid.shape[1]).double()
