"""Measures of the map alone: how concentrated it is. No model evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..card import Card
from ..settings import setting
from ..task import Task
from .base import Measure, flat, none_is_nan, present, some

ZERO = "the map is zero everywhere"


@dataclass(frozen=True)
class GiniSparseness(Measure):
    """G = Σ_k (2k − d − 1) v_k / (d Σ v), v = |φ| in ascending order: 0 for a uniform map, 1 − 1/d for a single feature
    (Chalasani et al. 2020, arXiv 1810.06583). d counts the features that the input has."""

    name = "gini_sparseness"
    undefined = ZERO
    card = Card(
        formula="Σ_k (2k − d − 1) v_k / (d Σ v), v = |φ| ascending",
        source="Chalasani et al. 2020, arXiv 1810.06583 (Gini index of Hurley & Rickard 2009)",
        better="higher",
        normalisation="by Σ|φ|: free of the map's scale",
        cost="0",
        differences=(
            (
                "quantus",
                "Sparseness adds a small constant to every |φ|: the same number for maps divided by their maximum (to "
                "1e-6), another for maps of tiny values",
            ),
        ),
    )

    def __call__(self, task: Task) -> Tensor:
        v = flat(task.maps).abs()
        there = some(present(task), slice(None))
        d = torch.full_like(v[..., :1], v.shape[-1])
        if there is not None:
            d = there.sum(-1, keepdim=True).double()
        # Absent features are zero: they come first in the order, and add nothing but their count.
        place = torch.arange(1, v.shape[-1] + 1, device=v.device) - (v.shape[-1] - d)
        total = v.sum(-1)
        gini = (v.sort(-1)[0] * (2 * place - d - 1)).sum(-1) / (d[..., 0] * total)
        return none_is_nan(gini, total > 0)


@dataclass(frozen=True)
class EntropyComplexity(Measure):
    """H = −Σ p_i ln p_i, p_i = |φ_i| / Σ|φ|, in nats: ln d for a uniform map, 0 for a single feature (Bhatt et al. 2020,
    arXiv 2005.00631)."""

    name = "entropy_complexity"
    undefined = ZERO
    card = Card(
        formula="−Σ p_i ln p_i, p = |φ| / Σ|φ|  [nats]",
        source="Bhatt, Weller & Moura 2020, arXiv 2005.00631",
        better="lower",
        normalisation="by Σ|φ|: free of the map's scale",
        cost="0",
    )

    def __call__(self, task: Task) -> Tensor:
        v = flat(task.maps).abs()
        total = v.sum(-1)
        return none_is_nan(torch.special.entr(v / total[..., None]).sum(-1), total > 0)


@dataclass(frozen=True)
class TruncatedL2(Measure):
    """‖min(|φ|, t)‖²: a count of the features that matter, which beyond t do not cost more (AGG, arXiv 2406.05090).

    ``threshold`` t is in units of the map; maps divided by their largest value have it at 1."""

    threshold: float = setting(0.1, above=0)

    name = "truncated_l2"
    card = Card(
        formula="Σ min(|φ_i|, t)²",
        source="AGG 2024, arXiv 2406.05090 (the truncated L2 norm among its examples of L2 metrics)",
        better="lower",
        normalisation="none: t is in units of the map as shown, Q(cφ; ct) = c² Q(φ; t)",
        cost="0",
    )

    def __call__(self, task: Task) -> Tensor:
        return flat(task.maps).abs().clamp(max=self.threshold).square().sum(-1)
