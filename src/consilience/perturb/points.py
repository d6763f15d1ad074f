"""Points at which a model is evaluated, each with the input to which it belongs, and clouds of points around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        targets: (N,) int64, the output that each is asked about; None: that of its input.
    """

    x: Tensor
    owner: Tensor
    ids: Tensor
    inputs: int = 0
    unit: Tensor | None = None
    targets: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index) -> Points:
        # Of a unit by input, all rows stay: owners still count all inputs.
        targets = None if self.targets is None else self.targets[index]
        return replace(self, x=self.x[index], owner=self.owner[index], ids=self.ids[index], targets=targets)

    def scaled(self, noise: Tensor) -> Tensor:
        """Noise in the points' unit.

        Args:
            noise: (N·s, *F), in units of 1.
        """
        if self.unit is None:
            return noise
        unit = self.unit.to(noise.device)
        # A unit of each input, or one for all of them.
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
        samples: the numbers of the s samples.
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


def shared(
    draw: Callable[[Tensor, Tensor, Sequence[int]], Tensor], points: Points, samples: range, shape: Sequence[int]
) -> Tensor:
    """(N·s, *shape): draws that are made once for each distinct id, then handed to every point that has it.

    Args:
        draw: (ids (m,), numbers of samples (m,), shape) → (m, *shape), a method of :class:`~..statistics.keys.Key`.
        points: N points.
        samples: the numbers of s samples.
        shape: of one draw.
    """
    s = len(samples)
    numbers = torch.arange(samples.start, samples.stop, device=points.ids.device)
    ids, where = points.ids, None
    if len(points) > 1:
        # Neighbours have the id of their input, hence its draws: an explainer stays a function of its point.
        distinct, inverse = ids.unique(return_inverse=True)
        # Where every id is another one there is nothing to share, and nothing to copy.
        if len(distinct) < len(points):
            ids, where = distinct, inverse
    noise = draw(ids.repeat_interleave(s), numbers.repeat(len(ids)), shape)
    if where is None:
        return noise
    return noise.unflatten(0, (-1, s))[where].flatten(0, 1)


def present(features: Features, points: Points) -> Tensor:
    """(N, A) bool: the features that each point has.

    Args:
        features: what A stands for.
        points: N points.

    Raises:
        InputError: the features were given for another number of inputs.
    """
    features.check(points.inputs, points.owner)
    sizes = features.sizes(points.owner, points.x.shape[1:])
    return (sizes > 0).flatten(1)
