"""Complexity of a map: on how many features it concentrates. The model is not asked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..card import Card
from ..settings import setting
from ..task import Measure, Task
from .task_maps import flattened, nan_unless, present_in

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
        v = flattened(task.maps).abs()
        present = present_in(task)
        d = torch.full_like(v[..., :1], v.shape[-1])
        if present is not None:
            d = present.sum(-1, keepdim=True).double()
        # Absent features are zero, so they come first in ascending order: places are counted from the first that is present.
        place = torch.arange(1, v.shape[-1] + 1, device=v.device) - (v.shape[-1] - d)
        total = v.sum(-1)
        weighted = (v.sort(-1)[0] * (2 * place - d - 1)).sum(-1)
        return nan_unless(total > 0, weighted / (d[..., 0] * total))


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
        v = flattened(task.maps).abs()
        total = v.sum(-1)
        entropy = torch.special.entr(v / total[..., None]).sum(-1)  # entr(p) = −p ln p, and 0 at p = 0
        return nan_unless(total > 0, entropy)


@dataclass(frozen=True)
class TruncatedL2(Measure):
    """‖min(|φ|, t)‖²: a count of the features that matter, which beyond t do not cost more (AGG, arXiv 2406.05090).

    Args:
        threshold: t, in units of the map; the largest value of a map is 1 with the usual scale "max".
    """

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
        return flattened(task.maps).abs().clamp(max=self.threshold).square().sum(-1)
