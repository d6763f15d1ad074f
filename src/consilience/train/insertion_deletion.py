"""The insertion and deletion curves of a map as a loss (ID-ExpO: Yoshikawa & Iwata 2024, arXiv 2310.12553).

A regulariser: add its ``total`` to your task loss.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..explainers import Explainer
from ..features.base import Features
from ..perturb.baseline import AnyBaseline, Baseline
from ..settings import checked
from .maps import MapRegulariser
from .passes import Passes


class InsertionDeletion(MapRegulariser):
    """insertion · mean ℓ(inserted) − deletion · mean (ℓ(deleted) − ℓ(x)): ID-ExpO (Yoshikawa & Iwata 2024, arXiv 2310.12553).

    Features are kept (inserted) or replaced by the baseline (deleted) by soft masks σ(T (φ − τ)/s): thresholds τ half-way
    between the values of φ on either side of ``steps`` evenly spaced ranks, s the mean gap between φ's sorted values; τ and s
    are held. The deletion part has no lower bound. Unlike the authors' code, the last mask leaves some features out. parts:
    insertion_deletion, weight.

    Args:
        explainer: one, by name or configured; differentiable.
        steps: masks per curve; fewer than features.
        insertion: the weight of the insertion curve.
        deletion: the weight of the deletion curve.
        temperature: T; larger is closer to a hard mask.
        baseline: what stands for "absent": a number, "mean", "blur", or a tensor.
        features: of the map; None: pixels of images, else elements.
        sign: of the map, kept by default. φ's scale does not matter.
        kind: of the score explained, as for :class:`Penalty`.
        common: see :class:`~consilience.train.TrainingObjective`.

    Rows: the explainer's own, and B · (1 + 2 steps) in the caller's mode. Memory: as for :class:`Penalty`.

    Raises:
        InputError: several explainers, or as many steps as features.
    """

    name = "insertion_deletion"

    def __init__(
        self,
        explainer: str | Explainer,
        steps: int = 10,
        *,
        insertion: float = 1.0,
        deletion: float = 1.0,
        temperature: float = 1.0,
        baseline: Any = 0.0,
        features: Features | str | None = None,
        sign: str | None = "keep",
        kind: str = "logit",
        **common: Any,
    ):
        super().__init__(explainer, features=features, sign=sign, scale="none", kind=kind, **common)
        if len(self.explainers) > 1:
            raise InputError(f"explainer: one map makes one curve, got {len(self.explainers)} explainers")
        self.steps = checked("steps", steps, int, low=1)
        self.insertion = checked("insertion", insertion, float, low=0)
        self.deletion = checked("deletion", deletion, float, low=0)
        self.temperature = checked("temperature", temperature, float, above=0)
        self.baseline = Baseline.of(checked("baseline", baseline, AnyBaseline))

    def value(self, passes: Passes) -> Tensor:
        stack = self._stack(passes)
        shape = passes.x.shape[1:]
        count = math.prod(stack.features.shape(shape))
        steps = self.steps
        if not 0 < steps < count:
            raise InputError(f"steps: at least 1 and fewer than the {count} features, got {steps}")
        rows_each = sum(stack.stack.rows(shape).values()) + 2 * steps + 1
        ranks = torch.arange(1, steps + 1, device=passes.x.device) * count // (steps + 1)

        def value(inputs: Tensor, graph: bool) -> Tensor:
            score, points = self._score_of(passes, inputs)
            maps = stack.attribute(score, points, graph=graph)[:, 0]
            owner = inputs.repeat_interleave(steps)
            masks = self._masks(maps.flatten(1), ranks).flatten(0, 1).unflatten(1, maps.shape[1:])
            keep = stack.features.expand(masks, owner, shape).to(points.x)
            originals = points.x.repeat_interleave(steps, 0)
            absent = self.baseline.at(points).repeat_interleave(steps, 0)
            # absent + keep · (x − absent), and x − keep · (x − absent): what is kept in one is absent in the other.
            kept_change = keep * (originals - absent)
            # All rows in one pass, since the model may be in training mode: batch statistics see them together.
            rows = torch.cat([absent + kept_change, originals - kept_change, points.x])
            losses = passes.losses(rows, torch.cat([owner, owner, inputs]), inputs * rows_each)
            inserted, deleted, clean = losses.split([len(owner), len(owner), len(inputs)])
            rise = deleted.sum() / steps - clean.sum()
            return self.insertion * inserted.sum() / steps - self.deletion * rise

        return self._sum(passes, rows_each, value)

    def _masks(self, maps: Tensor, ranks: Tensor) -> Tensor:
        """σ(T (φ − τ)/s) (b, steps, K), of maps φ (b, K) and the ranks (steps,) between which the thresholds τ lie."""
        # τ and s are held: masks move with φ itself, not with what φ is compared to.
        ordered = maps.detach().sort(dim=1, descending=True).values
        thresholds = (ordered[:, ranks - 1] + ordered[:, ranks]) / 2
        gaps = (ordered.diff(dim=1) != 0).sum(1).clamp(min=1)
        mean_gap = (ordered[:, 0] - ordered[:, -1]) / gaps
        # A constant map has no gap; any positive number gives masks of 1/2.
        mean_gap = torch.where(mean_gap > 0, mean_gap, 1.0)
        return torch.sigmoid(self.temperature * (maps[:, None] - thresholds[..., None]) / mean_gap[:, None, None])
