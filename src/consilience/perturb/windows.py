"""Points from which a window of features is taken away, one position after another, as occlusion asks for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..features.base import Elements, Features
from ..settings import setting
from .baseline import Baseline
from .coalitions import ALONE, rows_each
from .games import AUTO, unit
from .masks import without
from .neighbourhoods import Neighbourhood
from .points import present


@dataclass(frozen=True)
class Sliding(Neighbourhood):
    """The point itself, and the point without a window of features, for every position of the window.

    Sample 0 is the point. Then come R samples for each position, R being the rows of a data set that each position meets,
    else 1. Positions are 0, stride, 2 · stride, …; the last window ends with the axis, so all windows are of one size.

    Args:
        features: the grid over which windows slide.
        baseline: what is put in the window.
        window: features along each of the axes A, or one number for all.
        stride: features from one position to the next, in the same form.
    """

    features: Features | None = None
    baseline: Baseline = AUTO
    window: int | tuple[int, ...] = setting(2, low=1, empty=False)
    stride: int | tuple[int, ...] = setting(1, low=1, empty=False)

    def axes(self, shape: Sequence[int]) -> list[Tensor]:
        """For each axis of A, (positions, length) bool: what the windows cover at each position.

        Args:
            shape: F.

        Raises:
            InputError: the features have no order, or the windows leave some uncovered.
        """
        features = unit(self.features, shape)
        lengths = features.shape(shape)
        windows = _each(self.window, lengths, "window")
        strides = _each(self.stride, lengths, "stride")
        if max(windows) > 1 and not ordered(features, shape):
            raise InputError(
                f"features: windows slide over a grid, and {features.unit}s have no order; use feature_ablation, or "
                "features=Windows(size) for a series (B, steps)"
            )
        # A window over several axes is the product of one window along each of them.
        covered = []
        for length, window, stride in zip(lengths, windows, strides, strict=True):
            window = min(window, length)
            if window < length and window < stride:
                raise InputError(f"stride: {stride} is more than the window, {window}, and leaves features uncovered")
            steps = -(-(length - window) // stride)
            starts = torch.arange(steps + 1) * stride
            # The last step is shorter where the stride does not fit.
            starts = starts.clamp(max=length - window)[:, None]
            place = torch.arange(length)
            covered.append((place >= starts) & (place < starts + window))
        return covered

    def total(self, shape):
        positions = math.prod(len(axis) for axis in self.axes(shape))
        return 1 + positions * self._rows(positions, shape)

    def _rows(self, positions: int, shape: Sequence[int]) -> int:
        """How many rows of a data set each position meets.

        Args:
            positions: how many there are.
            shape: F.
        """
        return rows_each(self.baseline.count(len(shape)), positions, ALONE)

    def draw(self, points, samples, key, total):
        shape = points.x.shape[1:]
        features = unit(self.features, shape)
        has = present(features, points)
        axes = [axis.to(has.device) for axis in self.axes(shape)]
        lengths = [len(axis) for axis in axes]
        rows = self._rows(math.prod(lengths), shape)
        # Without the point itself, which has the number −1 and takes nothing away.
        numbers = torch.arange(samples.start, samples.stop, device=has.device) - 1
        position = torch.div(numbers, rows, rounding_mode="floor")
        position_along_axes = torch.unravel_index(position.clamp(min=0), lengths)
        # (s, 1), then (s, features of the first axis), (s, features of the first two axes), …: the product of the windows.
        masks = (numbers >= 0)[:, None]
        for axis, along in zip(axes, position_along_axes, strict=True):
            masks = (masks[:, :, None] & axis[along][:, None]).flatten(1)
        origin = self.baseline.numbered(points, numbers.expand(len(points), -1), key / "baseline")
        return without(points, samples, masks, has, features, self.baseline, key, total, origin)


def ordered(features: Features, shape: Sequence[int]) -> bool:
    """Whether neighbouring features are near each other.

    Not so the columns of a table, nor the elements of an input with one axis, which may be a table (for a series there is
    ``Windows``).

    Args:
        features: the features.
        shape: F.
    """
    if isinstance(features, Elements):
        return len(shape) > 1
    return features.ordered


def _each(value: int | tuple[int, ...], lengths: Sequence[int], name: str) -> tuple[int, ...]:
    """A setting for each axis, from one number for all of them or from one for each.

    Args:
        value: the setting.
        lengths: of the axes.
        name: of the setting, for errors.
    """
    values = (value,) * len(lengths) if isinstance(value, int) else tuple(value)
    if len(values) != len(lengths) or min(values) < 1:
        raise InputError(
            f"{name}: a positive integer, or one for each of the {len(lengths)} axes of features, got {value}"
        )
    return values
