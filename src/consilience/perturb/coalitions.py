"""Points with features taken away, as explainers ask for them: one by one, by sliding windows, at random, in coalitions,
along permutations, through soft grids.

Sample 0 of every neighbourhood but the soft grids takes nothing away: the score of the point itself is needed, and is not
known at neighbours. ``features`` None means :func:`~consilience.features.images.coarse`. A feature that the input lacks
(size 0) is never taken away. Every draw is a function of (key, id, sample), so chunks and batches do not matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..features.base import Features
from ..features.images import Segments, coarse
from ..statistics.keys import Key
from .baseline import Baseline
from .masks import without, words
from .neighbourhoods import Neighbourhood, _even
from .points import Cloud, Points, present, shared

AUTO = Baseline("auto")


LIMIT = 1024


def unit(features: Features | None, shape: Sequence[int]) -> Features:
    """The features, or the default ones of inputs with axes ``shape``."""
    return features or coarse(shape)


def count(features: Features | None, shape: Sequence[int]) -> int:
    """A, the number of features of inputs with axes ``shape``."""
    return math.prod(unit(features, shape).shape(shape))


def few(features: Features | None, shape: Sequence[int], method: str) -> int:
    """A, or an InputError where a method that solves A × A systems has too many."""
    found = count(features, shape)
    if found > LIMIT:
        raise InputError(
            f"features: {method} solves a system in all features, and {found} ({unit(features, shape).unit}s of inputs of "
            f"shape {tuple(shape)}) are more than {LIMIT}; give it features=Patches(size) or Segments(labels)"
        )
    return found


def _numbers(samples: range, device: torch.device) -> Tensor:
    return torch.arange(samples.start, samples.stop, device=device)


def _blocks(blocks: Tensor) -> tuple[range, Tensor]:
    """The block of each sample (ascending) → the range of blocks, and where in it each sample's is."""
    first, last = int(blocks[0]), int(blocks[-1])
    return range(first, last + 1), blocks - first


@dataclass(frozen=True)
class Singles(Neighbourhood):
    """Sample 0: the point; sample 1 + a: without feature a."""

    features: Features | None = None
    baseline: Baseline = AUTO

    def total(self, shape):
        return 1 + count(self.features, shape)

    def draw(self, points, samples, key, total):
        features = unit(self.features, points.x.shape[1:])
        has = present(features, points)
        masks = _numbers(samples, has.device)[:, None] == 1 + torch.arange(has.shape[1], device=has.device)
        return without(points, samples, masks, has, features, self.baseline, key, total)


@dataclass(frozen=True)
class Sliding(Neighbourhood):
    """Sample 0: the point; then without a window of features, at every position.

    ``window``, ``stride``: features along each of the axes A, or one number for all. Positions are 0, stride, 2 · stride, …;
    the last window ends with the axis, so all windows are of one size.
    """

    features: Features | None = None
    baseline: Baseline = AUTO
    window: int | tuple[int, ...] = 2
    stride: int | tuple[int, ...] = 1

    def axes(self, shape: Sequence[int]) -> list[Tensor]:
        """For each axis of A, (positions, length) bool: what the windows cover."""
        features = unit(self.features, shape)
        if isinstance(features, Segments):
            raise InputError("features: windows slide over a grid, and segments have no order; use feature_ablation")
        lengths = features.shape(shape)
        windows, strides = _each(self.window, lengths, "window"), _each(self.stride, lengths, "stride")
        covered = []
        for length, window, stride in zip(lengths, windows, strides, strict=True):
            window = min(window, length)
            if stride > window < length:
                raise InputError(f"stride: {stride} is more than the window, {window}, and leaves features uncovered")
            starts = torch.arange(-(-(length - window) // stride) + 1) * stride
            starts = starts.clamp(max=length - window)[:, None]
            at = torch.arange(length)
            covered.append((at >= starts) & (at < starts + window))
        return covered

    def total(self, shape):
        return 1 + math.prod(len(axis) for axis in self.axes(shape))

    def draw(self, points, samples, key, total):
        shape = points.x.shape[1:]
        features = unit(self.features, shape)
        has = present(features, points)
        numbers = _numbers(samples, has.device)
        axes = [axis.to(has.device) for axis in self.axes(shape)]
        places = torch.unravel_index((numbers - 1).clamp(min=0), [len(axis) for axis in axes])
        masks = (numbers > 0)[:, None]
        for axis, place in zip(axes, places, strict=True):
            masks = (masks[:, :, None] & axis[place][:, None]).flatten(1)
        return without(points, samples, masks, has, features, self.baseline, key, total)


def _each(value: int | tuple[int, ...], lengths: Sequence[int], name: str) -> tuple[int, ...]:
    values = (value,) * len(lengths) if isinstance(value, int) else tuple(value)
    if len(values) != len(lengths) or min(values) < 1:
        raise InputError(
            f"{name}: a positive integer, or one for each of the {len(lengths)} axes of features, got {value}"
        )
    return values


@dataclass(frozen=True)
class Halves(Neighbourhood):
    """LIME's masks: sample 0 the point; then each feature is there with probability 1/2."""

    features: Features | None = None
    baseline: Baseline = AUTO

    def draw(self, points, samples, key, total):
        shape = points.x.shape[1:]
        few(self.features, shape, "lime")
        features = unit(self.features, shape)
        has = present(features, points)
        gone = words(key, points, samples, has.shape[1]) < 2**31
        gone = gone & (_numbers(samples, has.device) > 0)[:, None]
        return without(points, samples, gone, has, features, self.baseline, key, total)


@dataclass(frozen=True)
class Coalitions(Neighbourhood):
    """KernelSHAP's coalitions. All 2^A, if there are no more than ``budget`` besides none and all: sample number i takes away
    the features whose bit is set in i. Otherwise nothing, everything, and ``budget`` draws, in pairs: k features to take
    away, P(k) ∝ 1 / (k (A − k)), a random set of k, and its complement.

    ``budget`` None: 2 A + 2048, as in the shap package.
    """

    features: Features | None = None
    baseline: Baseline = AUTO
    budget: int | None = None

    def limit(self, shape: Sequence[int]) -> int:
        """How many coalitions besides none and all."""
        return 2 * count(self.features, shape) + 2048 if self.budget is None else self.budget

    def exact(self, shape: Sequence[int]) -> bool:
        """Whether all coalitions are listed."""
        return 2 ** count(self.features, shape) - 2 <= self.limit(shape)

    def total(self, shape):
        found, limit = few(self.features, shape, "kernel_shap"), self.limit(shape)
        if self.exact(shape):
            return 2**found
        if limit < 2 * (found - 1):
            raise InputError(
                f"n_samples: {limit} coalitions do not determine {found} Shapley values; kernel_shap needs at least "
                f"{2 * (found - 1)} here, and several times as many for small errors: give more, or fewer features"
            )
        return 2 + limit

    def draw(self, points, samples, key, total):
        shape = points.x.shape[1:]
        features = unit(self.features, shape)
        has = present(features, points)
        numbers, places = _numbers(samples, has.device), torch.arange(has.shape[1], device=has.device)
        if self.exact(shape):
            masks = (numbers[:, None] >> places & 1).bool()
            return without(points, samples, masks, has, features, self.baseline, key, total)
        pairs, which = _blocks((numbers - 2).clamp(min=0) // 2)
        uniform = shared((key / "size").uniform, points, pairs, ()).unflatten(0, (-1, len(pairs)))
        size = 1 + torch.searchsorted(_sizes(has.sum(1), has.shape[1]), uniform.double())
        drawn = (ranks(key / "order", points, pairs, has) < size[..., None])[:, which]
        drawn = drawn ^ (numbers % 2 == 1)[:, None]  # the second of a pair is the complement
        masks = torch.where((numbers < 2)[:, None], (numbers == 1)[:, None], drawn)
        return without(points, samples, masks, has, features, self.baseline, key, total)


def _sizes(counts: Tensor, features: int) -> Tensor:
    """(N, A − 1): cumulative probabilities of k = 1 … A − 1, ∝ 1 / (k (A_i − k)) for an input that has A_i features."""
    size = torch.arange(1, features, device=counts.device, dtype=torch.float64)
    left = counts[:, None] - size
    weights = torch.where(left > 0, 1 / (size * left.clamp(min=1)), 0)
    return (weights / weights.sum(1, keepdim=True).clamp(min=1e-300)).cumsum(1)


@dataclass(frozen=True)
class Permutations(Neighbourhood):
    """Sample 0: the point; then, for each of ``permutations`` random orders, A points from which features are taken away one
    after the other, until all are. Every second order is the one before it reversed. A baseline that is drawn is drawn once
    for each order.
    """

    features: Features | None = None
    baseline: Baseline = AUTO
    permutations: int = 25

    def total(self, shape):
        return 1 + self.permutations * count(self.features, shape)

    def draw(self, points, samples, key, total):
        features = unit(self.features, points.x.shape[1:])
        has = present(features, points)
        numbers = (_numbers(samples, has.device) - 1).clamp(min=0)
        number, step = numbers // has.shape[1], 1 + numbers % has.shape[1]
        step = torch.where(_numbers(samples, has.device) > 0, step, 0)
        pairs, which = _blocks(number // 2)
        rank = ranks(key, points, pairs, has)[:, which]
        back = has.sum(1)[:, None, None] - 1 - rank
        masks = torch.where((number % 2 == 1)[:, None], back, rank) < step[:, None]
        orders, which = _blocks(number)
        origin = self.baseline.drawn(points, orders, key / "baseline").unflatten(0, (-1, len(orders)))
        return without(points, samples, masks, has, features, self.baseline, key, total, origin[:, which].flatten(0, 1))


@dataclass(frozen=True)
class Grids(Neighbourhood):
    """RISE's masks: x M + b (1 − M). M is a ``grid`` of cells, each 1 with probability ``keep``, upsampled bilinearly to one
    cell more than the input along each axis after the channel, and cropped at a random shift of less than a cell. The
    cloud's ``masks`` are 1 − M, (n·s, *space), float.
    """

    baseline: Baseline = AUTO
    grid: int = 7
    keep: float = 0.5

    def draw(self, points, samples, key, total):
        space = points.x.shape[2:]
        if not space:
            raise InputError(
                f"methods: rise upsamples a grid over images or series (N, C, …), and inputs have shape "
                f"{tuple(points.x.shape[1:])}; use lime or shapley_sampling"
            )
        s = len(samples)
        cells = shared((key / "cells").uniform, points, samples, [self.grid] * len(space)) < self.keep
        shifts = shared((key / "shift").uniform, points, samples, [len(space)])
        mask = cells.to(torch.promote_types(points.x.dtype, torch.float32))
        for axis, length in enumerate(space, start=1):
            weights = _hats(length, self.grid, shifts[:, axis - 1]).to(mask)  # (N·s, length, grid)
            last = mask.movedim(axis, -1)
            mask = (
                (last.reshape(len(mask), -1, self.grid) @ weights.mT)
                .reshape(*last.shape[:-1], length)
                .movedim(-1, axis)
            )
        origin = self.baseline.drawn(points, samples, key / "baseline")
        rows = torch.lerp(origin, points.x.repeat_interleave(s, 0), mask[:, None].to(points.x.dtype))
        owner = points.owner.repeat_interleave(s)
        return Cloud(rows, owner, _even(points, samples, total), samples, origin, masks=1 - mask)


def _hats(length: int, grid: int, shift: Tensor) -> Tensor:
    """(N, length, grid): the weight of each cell at each element, bilinear, for shifts (N,) in (0, 1) of a cell."""
    cell = -(-length // grid)
    at = torch.arange(length, device=shift.device) + (shift.double() * cell).floor()[:, None] + 0.5
    at = (at * grid / ((grid + 1) * cell) - 0.5).clamp(0, grid - 1)
    return (1 - (at[..., None] - torch.arange(grid, device=shift.device)).abs()).clamp(min=0)


def ranks(key: Key, points: Points, samples: range, has: Tensor) -> Tensor:
    """(N, s, A): the place of each feature in a random order, in which features that the input lacks come last."""
    drawn = words(key, points, samples, has.shape[1]).masked_fill(~has[:, None], 2**32)
    return drawn.argsort(dim=2, stable=True).argsort(dim=2)
