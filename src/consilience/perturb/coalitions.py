"""Points with features taken away, as explainers ask for them: one by one, by sliding windows, at random, in coalitions,
along permutations.

Sample 0 of every neighbourhood takes nothing away: the score of the point itself is needed, and is not known at
neighbours. ``features`` None means :func:`~consilience.features.images.coarse`. A feature that the input lacks (size 0) is
never taken away. Every draw is a function of (key, id, sample), so chunks and batches do not matter.

Where the baseline is a data set, each coalition of the exact methods is evaluated with several of its rows, and averaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..errors import InputError
from ..features.base import Elements, Features
from ..features.images import coarse, fewer
from ..settings import setting
from ..statistics.keys import Key
from .baseline import Baseline
from .kernel_design import budgeted, design, design_weights
from .masks import without, words
from .neighbourhoods import Neighbourhood
from .points import Points, present

AUTO = Baseline("auto")

LIMIT = 1024
"""The most features of methods that solve a system in all of them."""

ALONE = 2**12
"""Evaluations of one input, up to which every feature alone (or every window) meets all rows of a data set."""

TOGETHER = 2**15
"""Evaluations of one input, up to which every coalition meets all rows of a data set."""

EVERYTHING = -2
"""The number of the coalition to which all features belong."""

NOTHING = -1
"""The number of the coalition to which no feature belongs."""

FEWEST = 4
"""Rows of a data set that a coalition meets, at least."""


# -- features ----------------------------------------------------------------------------------------------------------


def unit(features: Features | None, shape: Sequence[int]) -> Features:
    """The ``features``, or the default ones of inputs with axes ``shape``."""
    return features or coarse(shape)


def count(features: Features | None, shape: Sequence[int]) -> int:
    """A, the number of ``features`` of inputs with axes ``shape``."""
    return math.prod(unit(features, shape).shape(shape))


def few(features: Features | None, shape: Sequence[int], method: str) -> int:
    """A, for a method that solves A × A systems.

    Args:
        features: as given; None: the default ones.
        shape: F.
        method: its name, for errors.

    Raises:
        InputError: there are more than :data:`LIMIT`.
    """
    number = count(features, shape)
    if number > LIMIT:
        raise InputError(
            f"features: {method} solves a system in all features, and {number} ({unit(features, shape).unit}s of inputs of "
            f"shape {tuple(shape)}) are more than {LIMIT}; make fewer of them: features={fewer(shape)}"
        )
    return number


def rows_each(baseline: Baseline, shape: Sequence[int], coalitions: int, limit: int) -> int:
    """R: with how many rows of a data set each coalition is evaluated.

    Args:
        baseline: the data set, or what is no data set and has one row.
        shape: F.
        coalitions: how many there are.
        limit: about how many evaluations there may be in all.
    """
    every = baseline.count(len(shape))
    return min(every, max(FEWEST, limit // max(1, coalitions)))


def numbers_of(samples: range, device: torch.device) -> Tensor:
    """(s,) int64 on ``device``: the numbers of the ``samples``."""
    return torch.arange(samples.start, samples.stop, device=device)


def _span(numbers: Tensor) -> tuple[range, Tensor]:
    """Numbers (s,), ascending → the range that holds them, and where in it each is."""
    first, last = int(numbers[0]), int(numbers[-1])
    return range(first, last + 1), numbers - first


# -- one by one --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Singles(Neighbourhood):
    """Sample 0: the point; then R samples without each feature, R the rows of a data set that each meets, else 1.

    ``features``: what is taken away; ``baseline``: what is put in its place.
    """

    features: Features | None = None
    baseline: Baseline = AUTO

    def total(self, shape):
        features = count(self.features, shape)
        return 1 + features * rows_each(self.baseline, shape, features, ALONE)

    def draw(self, points, samples, key, total):
        shape = points.x.shape[1:]
        features = unit(self.features, shape)
        has = present(features, points)
        rows = rows_each(self.baseline, shape, has.shape[1], ALONE)
        numbers = numbers_of(samples, has.device) - 1
        # The point itself, number −1, is without "feature −1".
        gone = torch.div(numbers, rows, rounding_mode="floor")
        masks = gone[:, None] == torch.arange(has.shape[1], device=has.device)
        origin = self.baseline.numbered(points, numbers.expand(len(points), -1), key / "baseline")
        return without(points, samples, masks, has, features, self.baseline, key, total, origin)


@dataclass(frozen=True)
class Sliding(Neighbourhood):
    """Sample 0: the point; then R samples without a window of features, at every position; R as for :class:`Singles`.

    Positions are 0, stride, 2 · stride, …; the last window ends with the axis, so all windows are of one size.

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
        """For each axis of A of inputs with axes ``shape``, (positions, length) bool: what the windows cover.

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
        positions = math.prod(len(axis) for axis in self.axes(shape))
        return 1 + positions * rows_each(self.baseline, shape, positions, ALONE)

    def draw(self, points, samples, key, total):
        shape = points.x.shape[1:]
        features = unit(self.features, shape)
        has = present(features, points)
        axes = [axis.to(has.device) for axis in self.axes(shape)]
        lengths = [len(axis) for axis in axes]
        rows = rows_each(self.baseline, shape, math.prod(lengths), ALONE)
        numbers = numbers_of(samples, has.device) - 1
        position = torch.div(numbers, rows, rounding_mode="floor")
        places = torch.unravel_index(position.clamp(min=0), lengths)
        masks = (numbers >= 0)[:, None]
        for axis, place in zip(axes, places, strict=True):
            masks = (masks[:, :, None] & axis[place][:, None]).flatten(1)
        origin = self.baseline.numbered(points, numbers.expand(len(points), -1), key / "baseline")
        return without(points, samples, masks, has, features, self.baseline, key, total, origin)


def ordered(features: Features, shape: Sequence[int]) -> bool:
    """Whether neighbouring ``features`` of inputs with axes ``shape`` are near each other.

    Not so the columns of a table, nor the elements of an input with one axis, which may be a table (a series says Windows).
    """
    if isinstance(features, Elements):
        return len(shape) > 1
    return features.ordered


def _each(value: int | tuple[int, ...], lengths: Sequence[int], name: str) -> tuple[int, ...]:
    values = (value,) * len(lengths) if isinstance(value, int) else tuple(value)
    if len(values) != len(lengths) or min(values) < 1:
        raise InputError(
            f"{name}: a positive integer, or one for each of the {len(lengths)} axes of features, got {value}"
        )
    return values


# -- at random ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Halves(Neighbourhood):
    """LIME's masks: sample 0 the point; then each feature is there with probability 1/2.

    ``features``: what is taken away; ``baseline``: what is put in its place.
    """

    features: Features | None = None
    baseline: Baseline = AUTO

    def draw(self, points, samples, key, total):
        shape = points.x.shape[1:]
        few(self.features, shape, "lime")
        features = unit(self.features, shape)
        has = present(features, points)
        gone = words(key, points, samples, has.shape[1]) < 2**31
        gone = gone & (numbers_of(samples, has.device) > 0)[:, None]
        return without(points, samples, gone, has, features, self.baseline, key, total)


# -- KernelSHAP --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coalitions(Neighbourhood):
    """KernelSHAP's coalitions: sample 0 the point; then nothing but the baseline, with each of its M rows; then coalitions,
    each with R rows of the baseline (M = R = 1 unless it is a data set).

    Which coalitions these are follows from the number of features that the input has
    (:func:`~consilience.perturb.kernel_design.design`); each input puts its features in an order of its own. So no coalition
    comes twice, and an input has the same ones alone and beside inputs with more features.

    Args:
        features: what is taken away as one.
        baseline: what is put in its place.
        budget: coalitions besides none and all; None: 2 A + 2048 for A features, as in the shap package.
    """

    features: Features | None = None
    baseline: Baseline = AUTO
    budget: int | None = setting(None, low=0)

    def total(self, shape):
        few(self.features, shape, "kernel_shap")
        most = unit(self.features, shape).largest(shape)
        if self.budget is not None and self.budget < min(2 * (most - 1), 2**most - 2):
            raise InputError(
                f"n_samples: {self.budget} coalitions do not determine {most} Shapley values; kernel_shap needs at least "
                f"{2 * (most - 1)} here, and several times as many for small errors: give more, or fewer features"
            )
        # An input with fewer features may have more evaluations: each of its fewer coalitions meets more rows.
        needed = [number * self.rows(number, shape) for number in map(self.listed, range(1, most + 1))]
        return 1 + self.baseline.count(len(shape)) + max(needed)

    def listed(self, features: int) -> int:
        """How many coalitions there are for an input with so many ``features``."""
        return budgeted(features, self.budget)

    def rows(self, coalitions: int, shape: Sequence[int]) -> int:
        """R, where there are so many ``coalitions`` of inputs with axes ``shape``."""
        return rows_each(self.baseline, shape, coalitions, TOGETHER)

    def draw(self, points, samples, key, total):
        shape = points.x.shape[1:]
        features = unit(self.features, shape)
        has = present(features, points)
        number, row = self._places(has, samples, shape)
        masks = torch.zeros(len(points), len(samples), has.shape[1], dtype=torch.bool, device=has.device)
        masks[number == NOTHING] = True
        rank = ranks(key / "order", points, range(1), has)[:, 0]
        for rows_alike, features_there in _alike(has):
            taken = design(key, features_there, self.budget).to(has.device)
            if len(taken):
                # Features that these inputs lack come last in their order, and are never taken.
                table = nnf.pad(taken, (0, has.shape[1] - features_there))
                coalition = number[rows_alike]
                drawn = table[coalition.clamp(min=0)]
                drawn = drawn.gather(2, rank[rows_alike][:, None].expand_as(drawn))
                masks[rows_alike] = torch.where((coalition >= 0)[..., None], drawn, masks[rows_alike])
        origin = self.baseline.numbered(points, row, key / "baseline")
        return without(points, samples, masks, has, features, self.baseline, key, total, origin)

    def weights(self, has: Tensor, samples: range, shape: Sequence[int]) -> Tensor:
        """(N, s) float64: the weight of each sample in the regression.

        Args:
            has: (N, A) bool, the features that each input has.
            samples: the numbers of s samples.
            shape: F.
        """
        number, _ = self._places(has, samples, shape)
        weights = torch.zeros(number.shape, dtype=torch.float64, device=has.device)
        for rows_alike, features_there in _alike(has):
            each = design_weights(features_there, self.budget).to(has.device)
            if len(each):
                coalition = number[rows_alike]
                weight = each[coalition.clamp(min=0)] / self.rows(len(each), shape)
                weights[rows_alike] = torch.where(coalition >= 0, weight, 0)
        return weights

    def _places(self, has: Tensor, samples: range, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(N, s) each: the number of the coalition of each sample (EVERYTHING there, NOTHING there, or 0, 1, …), and the
        number of the draw of the baseline."""
        background = self.baseline.count(len(shape))
        coalitions = torch.zeros(len(has), 1, dtype=torch.int64, device=has.device)
        rows = torch.ones_like(coalitions)
        for rows_alike, features_there in _alike(has):
            listed = self.listed(features_there)
            coalitions[rows_alike] = listed
            rows[rows_alike] = self.rows(listed, shape)
        numbers = numbers_of(samples, has.device)[None] - 1 - background
        number = torch.div(numbers, rows, rounding_mode="floor")
        # A coalition and its complement, which are neighbours in the list, meet the same rows.
        draw = number // 2 * rows + numbers % rows
        nothing = numbers < 0
        draw = torch.where(nothing, numbers + background, draw)
        number = torch.where(nothing, NOTHING, number)
        # The point itself; and what is beyond the coalitions of an input that has fewer than others.
        idle = (numbers == -1 - background) | (number >= coalitions)
        return torch.where(idle, EVERYTHING, number), draw.clamp(min=0)


def _alike(has: Tensor) -> list[tuple[Tensor, int]]:
    """(N, A) bool → the inputs with equally many features, and how many these are."""
    owned = has.sum(1)
    return [((owned == number).nonzero()[:, 0], number) for number in owned.unique().tolist()]


# -- permutations ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Permutations(Neighbourhood):
    """Sample 0: the point; then, for each of ``permutations`` random orders, points from which features are taken away one
    after the other, until all are. Every second order is the one before it reversed. A baseline that is drawn is drawn once
    for each order.

    Args:
        features: what is taken away.
        baseline: what is put in its place.
        permutations: orders.
    """

    features: Features | None = None
    baseline: Baseline = AUTO
    permutations: int = setting(25, low=1)

    def steps(self, shape: Sequence[int]) -> int:
        """The samples of one order: as many as the input with most features has, of inputs with axes ``shape``."""
        return unit(self.features, shape).largest(shape)

    def total(self, shape):
        return 1 + self.permutations * self.steps(shape)

    def draw(self, points, samples, key, total):
        shape = points.x.shape[1:]
        features = unit(self.features, shape)
        has = present(features, points)
        steps = self.steps(shape)
        numbers = numbers_of(samples, has.device)
        order = (numbers - 1).clamp(min=0) // steps
        step = torch.where(numbers > 0, 1 + (numbers - 1) % steps, 0)
        pairs, which = _span(order // 2)
        rank = ranks(key, points, pairs, has)[:, which]
        back = has.sum(1)[:, None, None] - 1 - rank
        masks = torch.where((order % 2 == 1)[:, None], back, rank) < step[:, None]
        origin = self.baseline.numbered(points, order.expand(len(points), -1), key / "baseline")
        return without(points, samples, masks, has, features, self.baseline, key, total, origin)


def ranks(key: Key, points: Points, samples: range, has: Tensor) -> Tensor:
    """(N, s, A): the place of each feature in a random order, in which features that the input lacks come last.

    Args:
        key: of the draws.
        points: N points.
        samples: the numbers of s orders.
        has: (N, A) bool, the features that each point has.
    """
    drawn = words(key, points, samples, has.shape[1]).masked_fill(~has[:, None], 2**32)
    return drawn.argsort(dim=2, stable=True).argsort(dim=2)
