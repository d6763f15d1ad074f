"""Points, each with the input it belongs to, and clouds of points around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..features.base import Features


@dataclass(frozen=True)
class Points:
    """N points of evaluation.

    Args:
        x: (N, *F).
        owner: (N,), the input to which each belongs.
        ids: (N,), to which the draws around each belong.
        inputs: B, the number of inputs that owners count; 0: not known.
        unit: of noise, of shape F or (B, …) by owner, broadcastable; 0 where noise leaves an element as it is; None: 1.
    """

    x: Tensor
    owner: Tensor
    ids: Tensor
    inputs: int = 0
    unit: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index) -> Points:
        return replace(self, x=self.x[index], owner=self.owner[index], ids=self.ids[index])

    def scaled(self, noise: Tensor) -> Tensor:
        """The ``noise`` (N·s, *F) in the points' unit."""
        if self.unit is None:
            return noise
        unit = self.unit.to(noise.device)
        if unit.ndim == self.x.ndim:
            owner = self.owner if len(unit) > 1 else torch.zeros_like(self.owner)
            unit = unit[owner].repeat_interleave(len(noise) // len(self), 0)
        return noise * unit


@dataclass(frozen=True)
class Cloud:
    """n points × s samples, rows in that order.

    Args:
        points: (n·s, *F).
        owner: (n·s,), the input to which each belongs.
        weights: (s,), which sum to 1 over all samples of the neighbourhood.
        samples: their numbers.
        origin: (n·s, *F), where paths start, or None.
        delta: (n·s, *F), where they lead from there, or None.
        masks: (n·s, *A), the features taken away (True, or the share that is gone), or None.
        present: (n, *A), the features that each point has, or None.
    """

    points: Tensor
    owner: Tensor
    weights: Tensor
    samples: range
    origin: Tensor | None = None
    delta: Tensor | None = None
    masks: Tensor | None = None
    present: Tensor | None = None

    def split(self, values: Tensor) -> Tensor:
        """The ``values`` (n·s, …) of all rows as (n, s, …)."""
        return values.unflatten(0, (-1, len(self.samples)))


def shared(draw, points: Points, samples: range, shape: Sequence[int]) -> Tensor:
    """(N·s, *shape) in float32: drawn once for each distinct id, then handed to every point that has it.

    Args:
        draw: (ids, numbers, shape) → noise.
        points: N points.
        samples: the numbers of s samples.
        shape: of one draw.
    """
    ids, where = points.ids.unique(return_inverse=True)
    s = len(samples)
    numbers = torch.arange(samples.start, samples.stop, device=ids.device)
    noise = draw(ids.repeat_interleave(s), numbers.repeat(len(ids)), shape)
    if len(ids) == len(where) and torch.equal(where, torch.arange(len(ids), device=ids.device)):
        return noise
    return noise.unflatten(0, (-1, s))[where].flatten(0, 1)


def present(features: Features, points: Points) -> Tensor:
    """(N, A) bool: the ``features`` that each of the ``points`` has.

    Raises:
        InputError: the features were given for another number of inputs.
    """
    features.check(points.inputs, points.owner)
    return (features.sizes(points.owner, points.x.shape[1:]) > 0).flatten(1)
