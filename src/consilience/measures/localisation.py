"""Localisation: how much of a map lies in the region where the evidence is known to be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..card import Card
from ..errors import InputError
from ..settings import setting
from ..statistics.ranks import ROUNDING, ranks, top
from ..task import Measure, Task
from .task_maps import flattened_for_order, nan_unless, present_in, region
from .top_k import NumberOrShare

EMPTY = "the region is empty or everything, or the map has no positive value to judge"


@dataclass(frozen=True)
class Localised(Measure):
    """Interface: judges whether the values v of a map lie inside the task's region.

    Args:
        magnitude: v = |φ|; else the positive part v = max(φ, 0). The same for maps without a sign.
    """

    magnitude: bool = True

    needs = ("regions",)
    undefined = EMPTY

    def __call__(self, task: Task) -> Tensor:
        values = flattened_for_order(task.maps)
        if self.magnitude:
            values = values.abs()
        else:
            values = values.clamp(min=0)
        present = present_in(task)
        inside = region(task)
        defined = (values > 0).any(-1) & inside.any(-1)
        return nan_unless(defined, self._judge(values, inside, present, task))

    def _judge(self, values: Tensor, inside: Tensor, present: Tensor | None, task: Task) -> Tensor:
        """The number of each row, (B, R).

        Args:
            values: (B, R, A), v.
            inside: (B, 1, A) bool, the region.
            present: (B, 1, A) bool, which features the inputs have; None: all.
            task: what is judged.
        """
        raise NotImplementedError


def _card(
    formula: str, source: str, normalisation: str = "none", differences: tuple[tuple[str, str], ...] = ()
) -> Card:
    """A card of this family; arguments as of :class:`~consilience.card.Card`, the formula in terms of v and G."""
    return Card(
        formula=f"{formula}; v = |φ| (magnitude) or max(φ, 0), G the region",
        source=source,
        better="higher",
        normalisation=normalisation,
        cost="0",
        differences=differences,
    )


@dataclass(frozen=True)
class RelevanceMass(Localised):
    """Σ_G v / Σ v: the share of the map's mass in the region (Arras, Osman & Samek 2022, arXiv 2003.07258).

    Args:
        magnitude: see :class:`Localised`.
    """

    name = "relevance_mass"
    card = _card(
        "Σ_G v / Σ v",
        "Arras, Osman & Samek 2022, arXiv 2003.07258 (relevance mass accuracy)",
        "by Σ v: free of the map's scale",
        (
            (
                "quantus",
                "RelevanceMassAccuracy sums φ as it is: with maps of both signs the ratio has no bounds; abs=True gives "
                "magnitude=True",
            ),
        ),
    )

    def _judge(self, values: Tensor, inside: Tensor, present: Tensor | None, task: Task) -> Tensor:
        return (values * inside).sum(-1) / values.sum(-1)


@dataclass(frozen=True)
class AttributionLocalisation(Localised):
    """μ = Σ_G φ⁺ / Σ φ⁺, or μ · d/|G| if ``weighted``: how much denser the region is than all (Kohlbrenner et al. 2020,
    arXiv 1910.09840). d counts the features that the input has.

    Args:
        magnitude: see :class:`Localised`.
        weighted: by d/|G|.
    """

    magnitude: bool = False
    weighted: bool = False

    name = "attribution_localisation"
    card = _card(
        "Σ_G v / Σ v, times d/|G| if weighted",
        "Kohlbrenner et al. 2020, arXiv 1910.09840 (inside-total relevance ratio)",
        "by Σ v: free of the map's scale",
        (
            (
                "quantus",
                "AttributionLocalisation takes |φ| unless abs=False, positive_attributions=True; its default is "
                "magnitude=True here. weighted=True multiplies by |G| over a number that depends on the batch",
            ),
        ),
    )

    def _judge(self, values: Tensor, inside: Tensor, present: Tensor | None, task: Task) -> Tensor:
        ratio = (values * inside).sum(-1) / values.sum(-1)
        if not self.weighted:
            return ratio
        count = _count(values, present)
        return ratio * count / inside.sum(-1)  # the density inside, relative to that of the whole map


@dataclass(frozen=True)
class RelevanceRank(Localised):
    """|top-|G| of v ∩ G| / |G|: the region's share of as many features as it has (Arras, Osman & Samek 2022, arXiv
    2003.07258). Features tied at the last place share what is left of it.

    Args:
        magnitude: see :class:`Localised`.
    """

    name = "relevance_rank"
    card = _card(
        "|top-|G|(v) ∩ G| / |G|",
        "Arras, Osman & Samek 2022, arXiv 2003.07258 (relevance rank accuracy)",
        "free of the map's scale",
        (
            (
                "quantus",
                "RelevanceRankAccuracy breaks ties by place in the array; without ties abs=True gives this number",
            ),
        ),
    )

    def _judge(self, values: Tensor, inside: Tensor, present: Tensor | None, task: Task) -> Tensor:
        size = inside.sum(-1, keepdim=True)
        return (top(values, size, present) * inside).sum(-1) / size[..., 0]


@dataclass(frozen=True)
class TopKLocalisation(Localised):
    """|top-k of v ∩ G| / k: the share of the k largest that lies in the region (Theiner et al. 2022, arXiv 2104.14995).
    At most |G|/k if the region is smaller.

    Args:
        magnitude: see :class:`Localised`.
        k: a number of features, or below 1 a share of those that the input has.
    """

    k: NumberOrShare = setting(0.1, above=0)

    name = "top_k_localisation"
    card = _card(
        "|top-k(v) ∩ G| / k",
        "Theiner, Müller-Budack & Ewerth 2022, arXiv 2104.14995",
        "free of the map's scale",
        (
            (
                "quantus",
                "TopKIntersection has k=1000 of all elements and takes φ as it is; k=…, abs=True gives this number "
                "without ties",
            ),
        ),
    )

    def _judge(self, values: Tensor, inside: Tensor, present: Tensor | None, task: Task) -> Tensor:
        members = top(values, self.k, present)
        return (members * inside).sum(-1) / members.sum(-1)


@dataclass(frozen=True)
class PointingGame(Localised):
    """1 if the largest value lies in the region or near it, else 0; of several largest, their share (Zhang et al. 2018, arXiv
    1608.00507, with a tolerance of 15 pixels).

    Args:
        magnitude: see :class:`Localised`.
        tolerance: near is within so many features; distances are Euclidean on the map's grid.

    Raises:
        InputError: a tolerance for maps that are on no line or grid.
    """

    magnitude: bool = False
    tolerance: int = setting(0, low=0)

    name = "pointing_game"
    card = _card(
        "1[argmax v within `tolerance` of G]",
        "Zhang et al. 2018, arXiv 1608.00507 (15 pixels of tolerance)",
        "free of the map's scale",
        (
            (
                "quantus",
                "PointingGame has no tolerance and counts a hit if any of several largest lies inside",
            ),
        ),
    )

    def _judge(self, values: Tensor, inside: Tensor, present: Tensor | None, task: Task) -> Tensor:
        if self.tolerance:
            inside = _wider(inside, task.maps.shape[2:], self.tolerance)
            if present is not None:
                inside = inside & present
        highest = values.amax(-1, keepdim=True)
        # Rounding, which differs between batches, must not choose among values that are equal without it.
        rounding = ROUNDING * torch.finfo(task.maps.dtype).eps * highest
        is_highest = values >= highest - rounding
        return (is_highest & inside).sum(-1) / is_highest.sum(-1).double()


@dataclass(frozen=True)
class LocalisationAUC(Localised):
    """Area under the ROC curve of v as a detector of the region: the chance that a feature inside has a larger value than
    one outside, ties counting half (Fawcett 2006, doi 10.1016/j.patrec.2005.10.010).

    Args:
        magnitude: see :class:`Localised`.
    """

    name = "localisation_auc"
    card = _card(
        "P(v_in > v_out) + ½ P(v_in = v_out)",
        "Fawcett 2006, doi 10.1016/j.patrec.2005.10.010",
        "free of the map's scale; .5 by chance",
        (("quantus", "AUC takes φ as it is, with abs=True it gives this number"),),
    )

    def _judge(self, values: Tensor, inside: Tensor, present: Tensor | None, task: Task) -> Tensor:
        total = _count(values, present)
        count = inside.sum(-1).double()
        # Mann and Whitney: the sum of the ranks inside, less its least possible value, over the number of pairs.
        rank_sum = (ranks(values, present) * inside).sum(-1)
        pairs = count * (total - count)
        return (rank_sum - count * (count + 1) / 2) / torch.where(pairs > 0, pairs, torch.nan)


def _count(values: Tensor, present: Tensor | None) -> Tensor:
    """(B, 1) float64: how many of the A features of ``values`` (B, R, A) each input has."""
    if present is None:
        return values.new_full((len(values), 1), values.shape[-1])
    return present.sum(-1).double()


def _wider(inside: Tensor, grid: torch.Size, tolerance: int) -> Tensor:
    """The features within ``tolerance`` of the region, (B, 1, A) bool.

    Args:
        inside: (B, 1, A) bool, the region.
        grid: the axes A of the maps.
        tolerance: the largest Euclidean distance, in features.
    """
    if len(grid) not in (1, 2):
        raise InputError(f"tolerance: needs maps on a line or a grid, these have shape {tuple(grid)}; use tolerance=0")
    columns = torch.arange(-tolerance, tolerance + 1, device=inside.device)
    rows = columns
    if len(grid) == 1:
        rows = columns.new_zeros(1)  # a line is a grid of one row
    disc = (rows[:, None] ** 2 + columns**2 <= tolerance**2).float()
    # A convolution with the disc counts, for each feature, those of the region within reach.
    pictures = inside.reshape(len(inside), 1, -1, grid[-1]).float()
    counts = nnf.conv2d(pictures, disc[None, None], padding=(len(rows) // 2, tolerance))
    return (counts > 0.5).reshape(inside.shape)
