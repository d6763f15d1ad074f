"""From attributions of elements to the maps that are measured and mixed: reduced to features, then sign, then scale."""

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
    """The one stage between explainers and everything else: reduce to features, then sign, then scale.

    Explainers give signed maps of elements, and metrics change no map, so nothing is hidden in either. Each map is divided by
    its own scale, at neighbours too; a map of zeros stays zero. A mixture is not divided again.

    Args:
        stack: the explainers.
        features: to which maps are reduced.
        sign: "abs" or "keep".
        scale: "max" (divide by the map's largest absolute value), "l2" (by its norm), "none".

    Raises:
        InputError: an unknown sign or scale.
    """

    stack: Stack
    features: Features
    sign: str = "abs"
    scale: str = "max"

    def __post_init__(self) -> None:
        _check("sign", self.sign, ("abs", "keep"))
        _check("scale", self.scale, ("max", "l2", "none"))

    def attribute(self, score: Score, points: Points, graph: bool = False) -> Tensor:
        """The reduced maps of all explainers, (N, k, *A).

        Args:
            score: what is explained.
            points: x (N, *F).
            graph: keep the graph, for a loss of the maps.
        """
        parts = self.stack.stream(score, points, graph)
        return torch.cat([self.apply(raw, points.owner[part]) for part, raw in parts])

    def apply(self, raw: Tensor, owner: Tensor) -> Tensor:
        """Maps over elements, reduced to features: ``raw`` (n, k, *F) of the inputs ``owner`` (n,) → (n, k, *A)."""
        return self.scaled(raw, owner)[0]

    def scaled(self, raw: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`apply`, and what each map was divided by, (n, k).

        Args:
            raw: (n, k, *F).
            owner: (n,), the inputs.
        """
        count, k = raw.shape[:2]
        maps = self.features.reduce(raw.flatten(0, 1), owner.repeat_interleave(k)).unflatten(0, (count, k))
        # Some features reduce gradients in another way than contributions: a one-hot block has several ways to change.
        if type(self.features).reduce_gradient is not Features.reduce_gradient:
            for index, explainer in enumerate(self.stack.explainers):
                if explainer.kind == "gradient":
                    maps[:, index] = self.features.reduce_gradient(raw[:, index], owner)
        if self.sign == "abs":
            maps = maps.abs()
        if self.scale == "none":
            return maps, torch.ones_like(maps.flatten(2)[..., 0])
        values = maps.flatten(2)
        if self.scale == "max":
            size = values.abs().amax(2)
        else:
            size = values.norm(dim=2)
        # A map of zeros stays zero. NaN is not replaced, so that it is seen later.
        size = torch.where(size == 0, torch.ones_like(size), size)
        return (values / size[..., None]).unflatten(2, maps.shape[2:]), size


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{name}: one of {', '.join(known)}, got {value!r}")
