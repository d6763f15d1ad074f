"""A fixed mixture of explainers as one explainer: how weights that were fitted once are used again."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..card import Card
from ..errors import InputError
from ..features.base import Features
from ..features.images import features_for
from ..settings import setting
from .base import Direct, Explainer
from .normalised import Normalised
from .stack import Stack


@dataclass(frozen=True)
class Mixture(Direct):
    """φ = Σ w_j φ_j, each φ_j reduced to features, signed and scaled by itself first, as in :func:`consilience.explain`.

    ``Consensus.mixture()`` makes one of fitted weights, to be listed among single methods in ``methods=[…]``. Its members draw
    what they draw alone, and get the baselines that are given to all methods. Its map is then signed and scaled by explain(),
    as every method's: with ``scale="none"`` there its numbers are those of the consensus; with "max" it is divided by its own
    maximum, at neighbours too.

    Args:
        explainers: k of them; those with weight 0 are not evaluated.
        weights: (k,), of any sign, not all zero.
        features: to which maps are reduced; None: pixels for images, else elements.
        sign: "abs" or "keep"; None: "keep".
        scale: "max", "l2" or "none".

    Raises:
        InputError: another number of weights than explainers, or weights that are not finite or all zero.
    """

    explainers: tuple[Explainer, ...]
    weights: tuple[float, ...]
    features: Features | None = None
    sign: str | None = setting(None, choices=("abs", "keep"))
    scale: str = setting("max", choices=("max", "l2", "none"))

    name = "mixture"
    kind = "relevance"
    card = Card(
        formula="φ = Σ w_j φ_j, each φ_j reduced, signed and scaled first",
        source="Decker et al. 2024 (AGG), arXiv 2406.05090",
        normalisation="that of its members' maps: no unit",
        draws="its members' own",
        cost="one explanation by the members that have weight; evaluations are not shared with other methods",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.weights) != len(self.explainers):
            raise InputError(f"weights: {len(self.weights)} for {len(self.explainers)} explainers; one for each")
        if not any(self.weights):
            raise InputError(f"weights: not all zero, got {self.weights}")

    @property
    def _members(self) -> tuple[list[Explainer], list[float]]:
        """The explainers that have weight, and their weights."""
        used = [index for index, weight in enumerate(self.weights) if weight]
        return [self.explainers[index] for index in used], [self.weights[index] for index in used]

    def attribute(self, score, points, key):
        members, weights = self._members
        shape = points.x.shape[1:]
        features = features_for(self.features, shape)
        sign = self.sign or "keep"
        maps = Normalised(Stack(members, key.seed), features, sign, self.scale).attribute(score, points)
        mixed = torch.einsum("k,nk...->n...", maps.new_tensor(weights), maps)
        # Explainers give a map of elements: spread evenly, it sums to the same features again.
        return features.spread(mixed, points.owner, shape)

    def rows(self, shape):
        members, _ = self._members
        return Stack(members).rows(shape)

    def check(self, score, points, key):
        members, _ = self._members
        _, failed = Stack(members, key.seed).usable(score, points, dry=True)
        if failed:
            raise InputError("; ".join(f"{name}: {why}" for name, why in failed.items()))
