"""Points around a point: the one object that explainers, metrics and training share.

A :class:`Neighbourhood` is a frozen description; ``draw`` makes the points of a range of samples. What it draws is a
function of the key, the ids and the sample numbers, so any chunking of ``samples`` gives the same cloud.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..arrays import with_trailing_axes
from ..errors import InputError
from ..features.base import Features
from ..settings import Settings, setting
from ..statistics.keys import Key, fold
from .baseline import Baseline
from .points import Cloud, Points, shared


@dataclass(frozen=True)
class Neighbourhood(Settings):
    """Interface: a frozen description of points around a point."""

    def draw(self, points: Points, samples: range, key: Key, total: int) -> Cloud:
        """Some of the samples around each point.

        Args:
            points: N points.
            samples: the numbers of those that are drawn.
            key: of the draws.
            total: how many samples there are in all.
        """
        raise NotImplementedError

    def total(self, shape: Sequence[int]) -> int:
        """How many samples there are around an input, for neighbourhoods that list all of theirs.

        Args:
            shape: F.

        Raises:
            InputError: the neighbourhood is drawn from, and has no such number.
        """
        raise InputError(f"samples: {type(self).__name__} is drawn from, so the number of draws must be given")

    def _around(self, points: Points, samples: range, offset: Tensor, total: int) -> Cloud:
        """The cloud of the points moved by an offset (N·s, *F)."""
        rows = points.x.repeat_interleave(len(samples), 0) + offset.to(points.x.dtype)
        owner = points.owner.repeat_interleave(len(samples))
        return Cloud(rows, owner, even_weights(points, samples, total), samples)


def even_weights(points: Points, samples: range, total: int) -> Tensor:
    """(s,): a cloud's weights where all samples count the same.

    Args:
        points: for device and type.
        samples: the numbers of s samples.
        total: how many samples there are in all.
    """
    return torch.full((len(samples),), 1 / total, device=points.x.device, dtype=_at_least_float32(points.x))


def _at_least_float32(x: Tensor) -> torch.dtype:
    """The input's dtype, float32 at least: sums over samples in half precision are too coarse."""
    return torch.promote_types(x.dtype, torch.float32)


@dataclass(frozen=True)
class Point(Neighbourhood):
    """The point itself, once."""

    def draw(self, points, samples, key, total=1):
        return Cloud(points.x, points.owner, even_weights(points, range(1), 1), range(1))


@dataclass(frozen=True)
class Uniform(Neighbourhood):
    """x + ε, ε ~ U[−radius, radius] per element: also the L∞ ball.

    Args:
        radius: in the points' own unit if they have one (the standard deviation of a table's columns, of a text's
            embeddings), else in units of the model's input; so for the other neighbourhoods.
    """

    radius: float = setting(0.1, low=0)

    def draw(self, points, samples, key, total):
        # In place: memory is what takes the time here, and the noise is nobody else's.
        noise = shared(key.uniform, points, samples, points.x.shape[1:])
        noise = noise.mul_(2).sub_(1).mul_(self.radius)
        return self._around(points, samples, points.scaled(noise), total)


@dataclass(frozen=True)
class Gaussian(Neighbourhood):
    """x + σ N(0, I).

    Args:
        sigma: σ, in the unit of :class:`Uniform`.
        relative: σ is a share of the point's own range max x − min x, as in the SmoothGrad paper, unless the points have a
            unit: the range of a row whose columns measure different things is none.
    """

    sigma: float = setting(0.15, low=0)
    relative: bool = False

    def draw(self, points, samples, key, total):
        noise = shared(key.normal, points, samples, points.x.shape[1:])
        if self.relative and points.unit is None:
            flat = points.x.detach().flatten(1)
            span = (flat.amax(1) - flat.amin(1)).repeat_interleave(len(samples), 0)
            noise = noise * with_trailing_axes(span, points.x.ndim - 1)
        return self._around(points, samples, points.scaled(noise * self.sigma), total)


@dataclass(frozen=True)
class Ball(Neighbourhood):
    """Uniform in an L2 ball: a Gaussian direction, and a length radius · u^(1/d) with u ~ U(0, 1) in d dimensions.

    Args:
        radius: in the unit of :class:`Uniform`.
    """

    radius: float = setting(1.0, low=0)

    def draw(self, points, samples, key, total):
        shape = points.x.shape[1:]
        noise = shared((key / "direction").normal, points, samples, shape)
        dimensions: int | Tensor = math.prod(shape)
        if points.unit is not None:
            # Elements that noise leaves as they are have no part in the direction, nor do they count as dimensions.
            free = points.scaled(torch.ones_like(noise)) != 0
            noise = noise * free
            dimensions = free.flatten(1).sum(1).clamp(min=1)
        length = shared((key / "length").uniform, points, samples, ()) ** (1 / dimensions)
        norm = noise.flatten(1).norm(dim=1)
        # The norm is 0 where nothing may move.
        scale = self.radius * length / norm.clamp(min=1e-30)
        noise = noise * with_trailing_axes(scale, len(shape))
        return self._around(points, samples, points.scaled(noise), total)


@dataclass(frozen=True)
class Path(Neighbourhood):
    """The segment from a baseline to the point: b + α (x − b).

    Args:
        baseline: where the path starts; one row of a data set for each sample, or its mean row if there are ``steps``.
        steps: the α and weights of Gauss–Legendre quadrature on [0, 1], exact for polynomials of degree 2·steps − 1; None:
            α ~ U(0, 1).
        noise: σ of N(0, σ² I) that is added to the point, in the unit of :class:`Uniform`.
    """

    baseline: Baseline = Baseline()
    steps: int | None = setting(None, low=1)
    noise: float = setting(0.0, low=0)

    def draw(self, points, samples, key, total):
        s = len(samples)
        x = points.x.repeat_interleave(s, 0)
        # GradientShap: noise moves the end of the path, and its start stays.
        if self.noise:
            noise = shared((key / "noise").normal, points, samples, x.shape[1:]).to(x)
            x = x + points.scaled(self.noise * noise).to(x)
        # The steps of a quadrature lie on one path: from a data set's mean row.
        baseline = self.baseline.one() if self.steps else self.baseline
        origin = baseline.drawn(points, samples, key / "baseline")
        if self.steps:
            nodes, weights = np.polynomial.legendre.leggauss(self.steps)
            asked = slice(samples.start, samples.stop)
            # From [−1, 1] to [0, 1].
            shares = torch.from_numpy((nodes[asked] + 1) / 2)
            half_weights = torch.from_numpy(weights[asked] / 2)
            alpha = shares.to(x.device, x.dtype, non_blocking=True).repeat(len(points))
            weight = half_weights.to(x.device, _at_least_float32(x), non_blocking=True)
        else:
            alpha = shared((key / "alpha").uniform, points, samples, ()).to(x)
            weight = even_weights(points, samples, total)
        delta = x - origin
        rows = origin + with_trailing_axes(alpha, x.ndim - 1) * delta
        return Cloud(rows, points.owner.repeat_interleave(s), weight, samples, origin, delta)


@dataclass(frozen=True)
class Anchored(Neighbourhood):
    """The point itself, with its baseline as the cloud's origin: for DeepLIFT, which compares the two.

    Args:
        baseline: the origin.
    """

    baseline: Baseline = Baseline()

    def draw(self, points, samples, key, total):
        x = points.x.repeat_interleave(len(samples), 0)
        origin = self.baseline.drawn(points, samples, key / "baseline")
        owner = points.owner.repeat_interleave(len(samples))
        return Cloud(x, owner, even_weights(points, samples, total), samples, origin, x - origin)


def neighbours(
    where: Neighbourhood, points: Points, samples: range, key: Key, total: int, redraw: bool = False
) -> Points:
    """The cloud as points for explainers.

    Args:
        where: the neighbours' distribution.
        points: N points.
        samples: as for :meth:`Neighbourhood.draw`.
        key: of the draws.
        total: how many samples there are in all.
        redraw: neighbours have ids of their own; else they keep their input's, hence the explainers' draws.
    """
    cloud = where.draw(points, samples, key, total)
    ids = points.ids.repeat_interleave(len(samples))
    if redraw:
        # From 1 on: `fold` with 0 keeps the input's own id.
        numbers = torch.arange(samples.start, samples.stop, device=ids.device) + 1
        ids = fold(ids, numbers.repeat(len(points)))
    return replace(points, x=cloud.points, owner=cloud.owner, ids=ids)


def noise_unit(features: Features, x: Tensor, baselines: Baseline | None = None) -> Tensor | None:
    """The unit of noise, for :class:`~.points.Points`; None: the model's input.

    For a table with a data set of baselines, the standard deviation of each column there, so that a tenth means the same in
    every column. Columns that hold only 0 and 1 there, and one-hot blocks of :class:`~consilience.features.tables.Columns`,
    are left unchanged by noise: half a category is no input. So are tokens that are no features.

    Args:
        features: which say what may move.
        x: (B, *F).
        baselines: as given; None: none were.

    Raises:
        InputError: the data set has NaN, or rows of another shape.
    """
    unit = features.movable(x.shape[1:])
    if unit is not None:
        unit = unit.to(device=x.device, dtype=torch.float32)
    if baselines is None or baselines.kind != "samples" or x.ndim != 2:
        return unit
    # In float64: the deviation of a column far from zero loses its digits in float32.
    data = baselines.rows(x).double()
    if not bool(data.isfinite().all()):
        raise InputError("baselines: the data set has missing values; fill them as the model's training data were")
    indicator = ((data == 0) | (data == 1)).all(0)
    spread = data.std(0, correction=0).masked_fill(indicator, 0).float()
    if unit is None:
        return spread
    return spread * unit


def unmoved(
    score: Callable[[Tensor, Tensor], Tensor], points: Points, where: Neighbourhood, key: Key, samples: int = 10
) -> tuple[Tensor, Tensor]:
    """Why sensitivities may be zero: the model's score does not change, or the neighbours are the point itself.

    The score is the same around most points of a piecewise-constant model (a forest, a rule list): there every sensitivity is
    zero, or the explainer's own noise, and says nothing. Neighbours are the point itself where the noise has no unit to move
    by: one-hot blocks, columns of zeros and ones.

    Args:
        score: rows and owners → (N,).
        points: where to look.
        where: the neighbours' distribution.
        key: of their draws.
        samples: neighbours of each point, an evaluation each.

    Returns:
        (N,) bool, whether the score is the same at all neighbours, though some of these differ from the point; (N,) bool,
        whether all neighbours are the point itself.
    """
    cloud = where.draw(points, range(samples), key, samples)
    scores = cloud.split(score(cloud.points, cloud.owner))
    same_score = (scores == score(points.x, points.owner)[:, None]).all(1)
    same_point = (cloud.split(cloud.points) == points.x[:, None]).flatten(1).all(1)
    return same_score & ~same_point, same_point
