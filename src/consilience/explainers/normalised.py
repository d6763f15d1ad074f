"""Attributions reduced to features, with their sign and scale: what is measured and mixed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..features.base import Features
from ..model.score import Score
from ..perturb.points import Points
from .stack import Stack


@dataclass(frozen=True)
class Normalised:
    """The one visible stage between explainers and everything else: reduce to features, then sign, then scale.

    ``sign``: "abs" or "keep". ``scale``: "max" (divide by the map's largest absolute value), "l2" (by its norm), "none".
    Each map is divided by its own scale, at neighbours too; a map of zeros stays zero. A mixture is not divided again.
    """

    stack: Stack
    features: Features
    sign: str = "abs"
    scale: str = "max"

    def __post_init__(self) -> None:
        for what, value, known in (("sign", self.sign, ("abs", "keep")), ("scale", self.scale, ("max", "l2", "none"))):
            if value not in known:
                raise InputError(f"{what}: one of {', '.join(known)}, got {value!r}")

    def attribute(self, score: Score, points: Points, graph: bool = False) -> Tensor:
        """(N, k, *A)."""
        parts = self.stack.stream(score, points, graph)
        return torch.cat([self.apply(raw, points.owner[part]) for part, raw in parts])

    def apply(self, raw: Tensor, owner: Tensor) -> Tensor:
        """(n, k, *F) → (n, k, *A)."""
        return self.scaled(raw, owner)[0]

    def scaled(self, raw: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
        """(n, k, *F) → maps (n, k, *A), and what each of them was divided by, (n, k)."""
        count, k = raw.shape[:2]
        flat, who = raw.flatten(0, 1), owner.repeat_interleave(k)
        maps = self.features.reduce(flat, who).unflatten(0, (count, k))
        if type(self.features).reduce_gradient is not Features.reduce_gradient:
            for at, explainer in enumerate(self.stack.explainers):
                if explainer.kind == "gradient":
                    maps[:, at] = self.features.reduce_gradient(raw[:, at], owner)
        if self.sign == "abs":
            maps = maps.abs()
        if self.scale == "none":
            return maps, torch.ones_like(maps.flatten(2)[..., 0])
        flat = maps.flatten(2)
        size = flat.abs().amax(2) if self.scale == "max" else flat.norm(dim=2)
        size = torch.where(size == 0, torch.ones_like(size), size)  # keeps zeros, and lets NaN through to be seen
        return (flat / size[..., None]).unflatten(2, maps.shape[2:]), size
