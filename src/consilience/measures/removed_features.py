"""Which features a removal measure takes away, what stands in their place, and how much each map gives them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..features.base import Elements, Features
from ..features.images import Pixels, coarse
from ..statistics.tensors import exact
from ..task import Task

MAPS_AT_ONCE = 32
"""Maps that :func:`all_maps_on_features` spreads over their elements at a time, in float64."""


def removed_features(task: Task, features: Features | None) -> Features:
    """The features to take away: those asked for, else those of the maps, or coarser ones.

    Args:
        task: what is judged.
        features: those asked for; None: open. Then elements and pixels become :func:`~consilience.features.images.coarse`
            features, because a single pixel hardly moves a score.
    """
    if features is not None:
        return features
    if isinstance(task.features, Elements | Pixels):
        return coarse(task.points.x.shape[1:])
    return task.features


def replacement(task: Task, baseline: object, usual: object = None) -> object:
    """The baseline asked for; else the usual one; else "blur" for images and "zero" for anything else.

    Args:
        task: what is judged.
        baseline: what was asked for; None: open.
        usual: the measure's own; None: as for :class:`~consilience.metrics.Infidelity`.
    """
    if baseline is not None:
        return baseline
    if usual is not None:
        return usual
    is_image = task.points.x.ndim == 4
    return "blur" if is_image else "zero"


def maps_on_features(task: Task, features: Features, pairs: Tensor, average: bool = False) -> Tensor:
    """Maps summed over the elements of other features, (P, K) float64; each attributed feature is spread evenly.

    Args:
        task: what is judged.
        features: the other features.
        pairs: (P,) numbers of maps, input · R + row.
        average: over the elements, in place of the sum.
    """
    maps = exact(task.maps.flatten(0, 1)[pairs.to(task.maps.device)])
    if features == task.features and not average:
        return maps.flatten(1)
    owner = task.points.owner.to(maps.device)[pairs // task.maps.shape[1]]
    shape = task.points.x.shape[1:]
    sums = features.reduce(task.features.spread(maps, owner, shape), owner).flatten(1)
    if not average:
        return sums
    # A feature that the input lacks has no element: its sum is 0, and so is its mean.
    counts = features.sizes(owner, shape).flatten(1).clamp(min=1)
    return sums / counts.to(sums)


def all_maps_on_features(task: Task, features: Features) -> Tensor:
    """(B, R, K) float64: every map of the ``task``, summed over the elements of other ``features``."""
    inputs, rows = task.maps.shape[:2]
    pairs = torch.arange(inputs * rows, device=exact(task.maps[:0]).device)
    # A few maps at a time: between the two kinds of features each map has a number for every element.
    parts = [maps_on_features(task, features, some) for some in pairs.split(MAPS_AT_ONCE)]
    return torch.cat(parts).unflatten(0, (inputs, rows))


def rounded(values: Tensor, unit: Tensor | None = None) -> Tensor:
    """Values rounded, so that what differs only by the rounding of sums becomes equal: ties are ties in every batch.

    Args:
        values: (…, K).
        unit: they become multiples of this; None: of 2⁻⁴⁰ of the largest absolute value along the last axis.
    """
    if unit is None:
        unit = values.abs().amax(-1, keepdim=True) * 2.0**-40
    return torch.where(unit > 0, (values / unit).round() * unit, values)
