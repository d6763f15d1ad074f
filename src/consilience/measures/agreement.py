"""How far the methods disagree: each row against the others, or against a known attribution (Krishna et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..card import Card
from ..errors import InputError
from ..settings import setting
from ..statistics.ranks import Order, pairs, pearson, ranks, top
from ..task import Task
from .base import Measure, check_share, ordered, present, some

KRISHNA = "Krishna et al. 2022, arXiv 2202.01602"


@dataclass(frozen=True)
class Agreement(Measure):
    """The agreement of a row with the task's ``reference`` where there is one, else its mean agreement with the other rows.

    :meth:`matrix` gives that of each pair of rows. Features are ordered by |φ|."""

    undefined = "there is no other row to compare with, or no other for which the comparison is defined"

    def matrix(self, task: Task) -> Tensor:
        """(B, R, R), symmetric: how far each two rows of the ``task`` agree; NaN where that is not defined."""
        values = ordered(task.maps)
        there = some(present(task), slice(None))
        described = self._describe(values, there)
        count = values.shape[1]
        matrix = values.new_empty(len(values), count, count)
        for row in range(count):
            one = [part[:, row : row + 1] for part in described]
            others = [part[:, row:] for part in described]
            agreement = self._compare(one, others, there)
            matrix[:, row, row:] = agreement
            matrix[:, row:, row] = agreement
        return matrix

    def __call__(self, task: Task) -> Tensor:
        if task.reference is not None:
            return self.with_reference(task, task.reference)
        matrix = self.matrix(task)
        itself = torch.eye(matrix.shape[1], dtype=torch.bool, device=matrix.device)
        return matrix.masked_fill(itself, torch.nan).nanmean(-1)

    def with_reference(self, task: Task, reference: Tensor) -> Tensor:
        """(B, R): how far each row agrees with an attribution that is known, e.g. a linear model's.

        Args:
            task: what is judged.
            reference: (B, *A), finite.

        Raises:
            InputError: it has another shape than the maps, or is not finite.
        """
        expected = task.maps.shape[:1] + task.maps.shape[2:]
        if reference.shape != expected:
            raise InputError(
                f"reference: shape {tuple(reference.shape)}, expected {tuple(expected)}: one number per feature"
            )
        if not bool(reference.isfinite().all()):
            raise InputError("reference: it has NaN or infinite values")
        there = some(present(task), slice(None))
        rows = self._describe(ordered(task.maps), there)
        known = self._describe(ordered(reference[:, None].to(task.maps)), there)
        return self._compare(known, rows, there)

    def _describe(self, values: Tensor, there: Tensor | None) -> list[Any]:
        """What is compared of each row, (B, R, A) each, or an :class:`~consilience.statistics.ranks.Order`."""
        raise NotImplementedError

    def _compare(self, one: list[Any], two: list[Any], there: Tensor | None) -> Tensor:
        """(B, 1, A) and (B, m, A) each → (B, m)."""
        raise NotImplementedError


def _card(
    formula: str, normalisation: str = "free of the maps' scales", openxai: str = "their place in the array"
) -> Card:
    return Card(
        formula=f"mean over the other rows of {formula}; with a reference ψ, that with ψ alone",
        source=KRISHNA,
        normalisation=normalisation,
        cost="0",
        differences=(
            ("openxai", f"a linear model's coefficients are the reference; tied features count by {openxai}"),
        ),
    )


@dataclass(frozen=True)
class FeatureAgreement(Agreement):
    """|top-k(φ) ∩ top-k(ψ)| / k, of |φ|; features tied at the k-th place share what is left of it.

    Args:
        k: a number of features, or below 1 a share of those that the input has.
    """

    k: int | float = setting(0.1, above=0)

    name = "feature_agreement"
    card = _card("|top-k(φ) ∩ top-k(ψ)| / k")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self, self.k)

    def _describe(self, values: Tensor, there: Tensor | None) -> list[Tensor]:
        return [top(values.abs(), self.k, there)]

    def _compare(self, one: list[Tensor], two: list[Tensor], there: Tensor | None) -> Tensor:
        """The share of the k places that both give to a feature about which they agree in everything else described."""
        both = torch.minimum(one[0], two[0])
        for a, b in zip(one[1:], two[1:], strict=True):
            both = both * (a == b)
        return both.sum(-1) / one[0].sum(-1)


@dataclass(frozen=True)
class RankAgreement(FeatureAgreement):
    """The share of the ``k`` places whose feature is in both sets and has the same rank in both."""

    name = "rank_agreement"
    card = _card("|{i in both top-k: rank_φ(i) = rank_ψ(i)}| / k")

    def _describe(self, values: Tensor, there: Tensor | None) -> list[Tensor]:
        return [*super()._describe(values, there), ranks(values.abs(), there)]


@dataclass(frozen=True)
class SignAgreement(FeatureAgreement):
    """The share of the ``k`` places whose feature is in both sets and has the same sign in both: needs maps with their sign."""

    name = "sign_agreement"
    card = _card("|{i in both top-k: sign φ_i = sign ψ_i}| / k", "maps without a sign: the same as feature_agreement")

    def _describe(self, values: Tensor, there: Tensor | None) -> list[Tensor]:
        return [*super()._describe(values, there), values.sign()]


@dataclass(frozen=True)
class SignedRankAgreement(FeatureAgreement):
    """The share of the ``k`` places whose feature is in both sets with the same rank and the same sign."""

    name = "signed_rank_agreement"
    card = _card(
        "|{i in both top-k: rank_φ(i) = rank_ψ(i), sign φ_i = sign ψ_i}| / k",
        "maps without a sign: the same as rank_agreement",
    )

    def _describe(self, values: Tensor, there: Tensor | None) -> list[Tensor]:
        return [*super()._describe(values, there), ranks(values.abs(), there), values.sign()]


@dataclass(frozen=True)
class RankCorrelation(Agreement):
    """Spearman's correlation of |φ| and |ψ| over all features; not defined with a constant map."""

    name = "rank_correlation"
    undefined = "the map is constant, or there is no other row that is not"
    card = _card("Spearman's ρ(|φ|, |ψ|)", openxai="dense ranks, which is not Spearman's ρ")

    def _describe(self, values: Tensor, there: Tensor | None) -> list[Tensor]:
        return [ranks(values.abs(), there)]

    def _compare(self, one: list[Tensor], two: list[Tensor], there: Tensor | None) -> Tensor:
        return pearson(one[0], two[0], there)


@dataclass(frozen=True)
class PairwiseRankAgreement(Agreement):
    """The share of the pairs of features that φ and ψ order the same way, both tied included: (1 + τ)/2 without ties."""

    name = "pairwise_rank_agreement"
    card = _card(
        "|{i < j: sign(|φ_i| − |φ_j|) = sign(|ψ_i| − |ψ_j|)}| / (d(d − 1)/2)",
        openxai="the order in which they are listed",
    )

    def _describe(self, values: Tensor, there: Tensor | None) -> list[Any]:
        return [Order.of(values.abs(), there)]

    def _compare(self, one: list[Any], two: list[Any], there: Tensor | None) -> Tensor:
        counts = pairs(one[0], two[0])
        return (counts.concordant + counts.tied_both) / counts.total
