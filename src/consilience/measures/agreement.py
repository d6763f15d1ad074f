"""Agreement of attributions: each row with the other rows, or with a known attribution (Krishna et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..card import Card
from ..errors import InputError
from ..settings import setting
from ..statistics.ranks import Order, pairs, pearson, ranks, top
from ..task import Measure, Task
from .task_maps import flattened_for_order, present_in
from .top_k import NumberOrShare

KRISHNA = "Krishna et al. 2022, arXiv 2202.01602"


@dataclass(frozen=True)
class Agreement(Measure):
    """Interface: the agreement of a row with the task's ``reference`` where there is one, else its mean with the other rows.

    :meth:`matrix` gives that of each pair of rows. Features are ordered by |φ|. A subclass says what is compared of one map
    (:meth:`_describe`), and how two maps are compared by it (:meth:`_compare`).
    """

    undefined = "the task has one row only, or the comparison is not defined for any other row"

    def matrix(self, task: Task) -> Tensor:
        """How far each two rows agree, (B, R, R), symmetric; NaN where that is not defined.

        Args:
            task: what is judged.
        """
        values = flattened_for_order(task.maps)
        present = present_in(task)
        # Sorting is the larger part of the work: each row is described once, not once for each pair.
        described = self._describe(values, present)
        count = values.shape[1]
        matrix = values.new_empty(len(values), count, count)
        for row in range(count):
            one = [part[:, row : row + 1] for part in described]
            others = [part[:, row:] for part in described]
            agreement = self._compare(one, others, present)
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
        present = present_in(task)
        rows = self._describe(flattened_for_order(task.maps), present)
        known = self._describe(flattened_for_order(reference[:, None].to(task.maps)), present)
        return self._compare(known, rows, present)

    def _describe(self, values: Tensor, present: Tensor | None) -> list[Any]:
        """What is compared of each row: tensors (B, R, A), or an :class:`~consilience.statistics.ranks.Order`.

        Args:
            values: (B, R, A), the maps without rounding.
            present: (B, 1, A) bool, which features the inputs have; None: all.
        """
        raise NotImplementedError

    def _compare(self, one: list[Any], two: list[Any], present: Tensor | None) -> Tensor:
        """The agreement of one row with each of m rows, (B, m).

        Args:
            one: what :meth:`_describe` gives for one row, (B, 1, A) each.
            two: the same for the m rows, (B, m, A) each.
            present: as for :meth:`_describe`.
        """
        raise NotImplementedError


def _card(
    formula: str, normalisation: str = "free of the maps' scales", openxai: str = "their place in the array"
) -> Card:
    """A card of this family.

    Args:
        formula: the agreement of two maps φ and ψ.
        normalisation: as in :class:`~consilience.card.Card`.
        openxai: by what OpenXAI counts tied features.
    """
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

    k: NumberOrShare = setting(0.1, above=0)

    name = "feature_agreement"
    card = _card("|top-k(φ) ∩ top-k(ψ)| / k")

    def _describe(self, values: Tensor, present: Tensor | None) -> list[Tensor]:
        return [top(values.abs(), self.k, present)]

    def _compare(self, one: list[Tensor], two: list[Tensor], present: Tensor | None) -> Tensor:
        """The share of the k places that both rows give to features on which they also agree in what else is described."""
        # Membership of the top k is a fraction where features tie for the last places: the minimum is what both give.
        both = torch.minimum(one[0], two[0])
        for first, second in zip(one[1:], two[1:], strict=True):
            both = both * (first == second)
        return both.sum(-1) / one[0].sum(-1)


@dataclass(frozen=True)
class RankAgreement(FeatureAgreement):
    """The share of the ``k`` places whose feature is in both sets and has the same rank in both."""

    name = "rank_agreement"
    card = _card("|{i in both top-k: rank_φ(i) = rank_ψ(i)}| / k")

    def _describe(self, values: Tensor, present: Tensor | None) -> list[Tensor]:
        return [*super()._describe(values, present), ranks(values.abs(), present)]


@dataclass(frozen=True)
class SignAgreement(FeatureAgreement):
    """The share of the ``k`` places whose feature is in both sets and has the same sign in both: needs maps with their sign."""

    name = "sign_agreement"
    card = _card("|{i in both top-k: sign φ_i = sign ψ_i}| / k", "maps without a sign: the same as feature_agreement")

    def _describe(self, values: Tensor, present: Tensor | None) -> list[Tensor]:
        return [*super()._describe(values, present), values.sign()]


@dataclass(frozen=True)
class SignedRankAgreement(FeatureAgreement):
    """The share of the ``k`` places whose feature is in both sets with the same rank and the same sign."""

    name = "signed_rank_agreement"
    card = _card(
        "|{i in both top-k: rank_φ(i) = rank_ψ(i), sign φ_i = sign ψ_i}| / k",
        "maps without a sign: the same as rank_agreement",
    )

    def _describe(self, values: Tensor, present: Tensor | None) -> list[Tensor]:
        return [*super()._describe(values, present), ranks(values.abs(), present), values.sign()]


@dataclass(frozen=True)
class RankCorrelation(Agreement):
    """Spearman's correlation of |φ| and |ψ| over all features; not defined with a constant map."""

    name = "rank_correlation"
    undefined = "the map is constant, or every other row is"
    card = _card("Spearman's ρ(|φ|, |ψ|)", openxai="dense ranks, which is not Spearman's ρ")

    def _describe(self, values: Tensor, present: Tensor | None) -> list[Tensor]:
        return [ranks(values.abs(), present)]

    def _compare(self, one: list[Tensor], two: list[Tensor], present: Tensor | None) -> Tensor:
        return pearson(one[0], two[0], present)


@dataclass(frozen=True)
class PairwiseRankAgreement(Agreement):
    """The share of the pairs of features that φ and ψ order the same way, both tied included: (1 + τ)/2 without ties."""

    name = "pairwise_rank_agreement"
    card = _card(
        "|{i < j: sign(|φ_i| − |φ_j|) = sign(|ψ_i| − |ψ_j|)}| / (d(d − 1)/2)",
        openxai="the order in which they are listed",
    )

    def _describe(self, values: Tensor, present: Tensor | None) -> list[Any]:
        return [Order.of(values.abs(), present)]

    def _compare(self, one: list[Any], two: list[Any], present: Tensor | None) -> Tensor:
        counts = pairs(one[0], two[0])
        return (counts.concordant + counts.tied_both) / counts.total
