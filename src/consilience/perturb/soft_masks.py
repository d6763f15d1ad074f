"""RISE's masks (Petsiuk, Das & Saenko 2018, arXiv 1806.07421): a soft random pattern of the input stays, the rest goes over
to the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..features.base import Elements, Features
from ..settings import setting
from ..statistics.keys import Key
from .baseline import Baseline
from .games import AUTO
from .neighbourhoods import Neighbourhood, even_weights
from .points import Cloud, Points, present, shared
from .windows import ordered


@dataclass(frozen=True)
class Grids(Neighbourhood):
    """x M + b (1 − M), M random with E[M] = ``keep`` everywhere.

    M is a grid of cells, each 1 with probability ``keep``, upsampled bilinearly to one cell more than the input along each
    axis, and cropped at a random shift of less than a cell. The axes are those of images and series behind the channel,
    (N, C, …); or those of the ``features``, where these say what the axes are (windows of a series, tokens of a text). Where
    an axis has fewer than two places for each cell, or no order (the columns of a table), every place is a cell of its own.
    The cloud's ``masks`` are 1 − M, (n·s, *axes), float.

    Args:
        baseline: b.
        grid: cells along each axis.
        keep: the probability that a cell is 1.
        features: what is masked as a whole. Images and volumes are masked by the pixel, whatever this is.
    """

    baseline: Baseline = AUTO
    grid: int = setting(7, low=1)
    keep: float = setting(0.5, above=0, high=1)
    features: Features | None = None

    def masked(self, shape: Sequence[int]) -> Features | None:
        """What masks lie over, for inputs with axes F.

        Args:
            shape: F.

        Returns:
            the features; None: the axes behind the channel.
        """
        if len(shape) > 2:
            return None
        if len(shape) == 2 and (self.features is None or isinstance(self.features, Elements)):
            return None
        return self.features or Elements()

    def draw(self, points: Points, samples: range, key: Key, total: int) -> Cloud:
        shape = points.x.shape[1:]
        count = len(samples)
        owner = points.owner.repeat_interleave(count)
        origin = self.baseline.drawn(points, samples, key / "baseline")
        x = points.x.repeat_interleave(count, 0)
        features = self.masked(shape)
        if features is None:
            kept = self._over_axes(points, samples, key, shape[1:])
            gone = (1 - kept)[:, None]  # the same for all channels
        else:
            has = present(features, points)
            kept = self._over_features(features, has, points, samples, key)
            gone = features.expand((1 - kept).unflatten(1, features.shape(shape)), owner, shape)
        # x + (1 − M)(b − x).
        rows = torch.lerp(x, origin, gone.to(x.dtype))
        return Cloud(rows, owner, even_weights(points, samples, total), samples, origin, masks=1 - kept)

    def _over_axes(self, points: Points, samples: range, key: Key, space: Sequence[int]) -> Tensor:
        """(N·s, *space): M over the axes ``space``."""
        cells = [self._cells(length) for length in space]
        mask = self._drawn_cells(points, samples, key, cells)
        shifts = shared((key / "shift").uniform, points, samples, [len(space)])
        # Bilinear upsampling is linear upsampling along one axis after the other.
        for axis, length in enumerate(space, start=1):
            places = torch.arange(length, device=mask.device).expand(len(mask), -1)
            lengths = torch.full((len(mask),), length, device=mask.device)
            weights = self._interpolation(places, lengths, shifts[:, axis - 1], cells[axis - 1]).to(mask)
            axis_last = mask.movedim(axis, -1)
            rows = axis_last.reshape(len(mask), -1, axis_last.shape[-1])
            upsampled = (rows @ weights.mT).reshape(*axis_last.shape[:-1], length)
            mask = upsampled.movedim(-1, axis)
        return mask

    def _over_features(self, features: Features, has: Tensor, points: Points, samples: range, key: Key) -> Tensor:
        """(N·s, A): M over the features; along an order, over those that the input has, so that padding changes nothing.

        Args:
            features: what A stands for.
            has: (N, A) bool, the features that each point has.
            points: N points.
            samples: the numbers of s draws.
            key: of the draws.
        """
        shape = points.x.shape[1:]
        if not ordered(features, shape) or len(features.shape(shape)) > 1:
            return self._drawn_cells(points, samples, key, [has.shape[1]])
        has = has.repeat_interleave(len(samples), 0)
        # The place of a feature among those that the input has.
        places = (has.cumsum(1) - 1).clamp(min=0)
        lengths = has.sum(1)
        cells = max(self._cells(length) for length in lengths.unique().tolist())
        mask = self._drawn_cells(points, samples, key, [cells])
        shifts = shared((key / "shift").uniform, points, samples, [1])[:, 0]
        weights = self._interpolation(places, lengths, shifts, cells).to(mask)
        return (weights @ mask[..., None])[..., 0]

    def _drawn_cells(self, points: Points, samples: range, key: Key, cells: Sequence[int]) -> Tensor:
        """(N·s, *cells): 1 with probability ``keep``, else 0."""
        ones = shared((key / "cells").uniform, points, samples, cells) < self.keep
        return ones.to(torch.promote_types(points.x.dtype, torch.float32))

    def _cells(self, length: int) -> int:
        """The cells along an axis of so many places."""
        return length if length < 2 * self.grid else self.grid

    def _interpolation(self, places: Tensor, lengths: Tensor, shift: Tensor, cells: int) -> Tensor:
        """(N, L, cells): the weight of each cell at each place of an axis, linear between the cells' centres.

        Args:
            places: (N, L), where each place is along the axis.
            lengths: (N,), how long the axis is.
            shift: (N,) in (0, 1), in cells.
            cells: how many there are at most.
        """
        length = lengths[:, None].double()
        cell = (length / self.grid).ceil()
        # The upsampled mask has (grid + 1) · cell places, of which a crop is used that starts at a whole place below `cell`.
        # A place's centre there, in units of cells whose centres are 0, 1, …; beyond the outermost centres the mask is flat.
        centre = places + (shift[:, None].double() * cell).floor() + 0.5
        upsampled = ((self.grid + 1) * cell).clamp(min=1)
        at = (centre * self.grid / upsampled - 0.5).clamp(0, self.grid - 1)
        # A short axis: every place is a cell.
        at = torch.where(length < 2 * self.grid, places.double(), at)
        distance = (at[..., None] - torch.arange(cells, device=at.device)).abs()
        return (1 - distance).clamp(min=0)
