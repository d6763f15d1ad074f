"""What the arguments of Captum's methods mean for a batch: labels of features, windows, data sets of baselines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..features.base import Features
from ..model.score import Score
from ..perturb.baseline import Baseline
from ..perturb.points import Points


def labels_for(mask: Any, score: Score, points: Points) -> Tensor:
    """Which feature each element belongs to, (N, *F) whole numbers.

    Args:
        mask: labels F, (1, *F) or (B, *F), or :class:`~consilience.features.base.Features`.
        score: whose B inputs they are.
        points: x (N, *F).

    Raises:
        InputError: labels of another shape.
    """
    shape = points.x.shape[1:]
    if isinstance(mask, Features):
        axes = mask.shape(shape)
        numbers = torch.arange(math.prod(axes), device=points.x.device).view(1, *axes).expand(len(points), *axes)
        return mask.expand(numbers, points.owner, shape).contiguous()
    labels = torch.as_tensor(mask, device=points.x.device).long()
    if labels.ndim == len(shape):
        labels = labels[None]
    if labels.ndim != points.x.ndim or len(labels) not in (1, score.size):
        raise InputError(
            f"feature_mask: shape {tuple(labels.shape)} for {score.size} inputs {tuple(shape)}; give {tuple(shape)} or one each"
        )
    # One mask for each input follows its input; a single one is for all.
    if len(labels) > 1:
        labels = labels[points.owner]
    return labels.expand(len(points), *shape).contiguous()


def label_sizes(labels: Tensor) -> Tensor:
    """(N, *F): how many elements share each element's label, of ``labels`` (N, *F)."""
    columns = labels.flatten(1)
    counts = torch.zeros(len(columns), int(columns.max()) + 1, dtype=torch.int64, device=columns.device)
    counts.scatter_add_(1, columns, torch.ones_like(columns))
    return counts.gather(1, columns).view_as(labels)


def count_features(mask: Any, shape: Sequence[int]) -> int:
    """How many features a ``mask`` of labels has on one input with axes ``shape``; None: every element is one."""
    if isinstance(mask, Features):
        return math.prod(mask.shape(shape))
    if mask is None:
        return math.prod(shape)
    return int(torch.as_tensor(mask).max()) + 1


def count_windows(shape: Sequence[int], window: Sequence[int], strides: int | tuple[int, ...]) -> int:
    """At how many places Captum's Occlusion puts its window; the last one along an axis may reach over the edge.

    Args:
        shape: the axes of one input.
        window: its length along each.
        strides: from one place to the next, one number or one for each axis.
    """
    steps = strides if isinstance(strides, tuple) else (strides,) * len(shape)
    places = [math.ceil((n - w) / step) + 1 for n, w, step in zip(shape, window, steps, strict=True)]
    return math.prod(places)


def data_set(baselines: Any) -> Tensor:
    """The rows of ``baselines``, a :class:`~consilience.perturb.baseline.Baseline` or an array, (n, *F)."""
    if isinstance(baselines, Baseline):
        baselines = baselines.tensor
    return torch.as_tensor(baselines)


def class_of(item: Any) -> Any:
    """The class that ``item`` is, or is an instance of."""
    if isinstance(item, type):
        return item
    return type(item)


def describe(value: Any) -> str:
    """A ``value`` in short, for a method's repr: an array by its shape."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"array{tuple(value.shape)}"
    return repr(value)
