"""What features are: a partition of an input's elements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class Features:
    """Interface: a partition of the elements of an input of shape F."""

    unit = "feature"

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The axes A for inputs with axes F."""
        raise NotImplementedError

    def reduce(self, values: Tensor, owner: Tensor) -> Tensor:
        """(N, *F) → (N, *A): sums over the elements of each feature."""
        raise NotImplementedError

    def reduce_gradient(self, values: Tensor, owner: Tensor) -> Tensor:
        """(N, *F) → (N, *A) for gradients: sums too, unless a feature's elements are the coordinates of a vector."""
        return self.reduce(values, owner)

    def expand(self, values: Tensor, owner: Tensor, shape: Sequence[int]) -> Tensor:
        """(N, *A) → (N, *F): each element gets its feature's value."""
        raise NotImplementedError

    def sizes(self, owner: Tensor, shape: Sequence[int]) -> Tensor:
        """(N, *A): how many elements each feature has (0 for a feature that this input lacks)."""
        ones = torch.ones(len(owner), *shape, device=owner.device)
        return self.reduce(ones, owner)

    def spread(self, values: Tensor, owner: Tensor, shape: Sequence[int]) -> Tensor:
        """(N, *A) → (N, *F): each feature's value shared evenly by its elements."""
        return self.expand(values / self.sizes(owner, shape).clamp(min=1).to(values), owner, shape)

    def mask(self, subsets: Tensor, owner: Tensor, shape: Sequence[int]) -> Tensor:
        """(N, *A) bool → (N, *F) bool."""
        return self.expand(subsets, owner, shape)

    def movable(self, shape: Sequence[int]) -> Tensor | None:
        """The elements that noise may move, bool of shape F or (B, …) broadcastable to (B, *F); None: all of them."""
        return None


@dataclass(frozen=True)
class Elements(Features):
    """Every element of the input is a feature: A = F."""

    unit = "element"

    def shape(self, shape):
        return tuple(shape)

    def reduce(self, values, owner):
        return values

    def expand(self, values, owner, shape):
        return values
