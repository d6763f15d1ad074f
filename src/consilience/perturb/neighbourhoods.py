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
        """The samples ``samples`` of ``total`` around each of the points."""
        raise NotImplementedError

    def total(self, shape: Sequence[int]) -> int:
        """How many samples there are around an input with axes ``shape``, for neighbourhoods that list all of theirs."""
        raise InputError(f"samples: {type(self).__name__} is drawn from, so the number of draws must be given")

    def _around(self, points: Points, samples: range, offset: Tensor, total: int) -> Cloud:
        rows = points.x.repeat_interleave(len(samples), 0) + offset.to(points.x.dtype)
        return Cloud(rows, points.owner.repeat_interleave(len(samples)), _even(points, samples, total), samples)


def _even(points: Points, samples: range, total: int) -> Tensor:
    return torch.full((len(samples),), 1 / total, device=points.x.device, dtype=_wide(points.x))


def _wide(x: Tensor) -> torch.dtype:
    """The input's dtype, float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


@dataclass(frozen=True)
class Point(Neighbourhood):
    """The point itself, once."""

    def draw(self, points, samples, key, total=1):
        return Cloud(points.x, points.owner, _even(points, range(1), 1), range(1))


@dataclass(frozen=True)
class Uniform(Neighbourhood):
    """x + ε, ε ~ U[−radius, radius] per element: also the L∞ ball. Unit: the points' own if they have one (the standard
    deviation of a table's columns, of a text's embeddings), else the model's input; so for the other neighbourhoods."""

    radius: float = setting(0.1, low=0)

    def draw(self, points, samples, key, total):
        noise = shared(key.uniform, points, samples, points.x.shape[1:]).mul_(2).sub_(1)
        return self._around(points, samples, points.scaled(noise.mul_(self.radius)), total)


@dataclass(frozen=True)
class Gaussian(Neighbourhood):
    """x + σ N(0, I). ``relative``: σ is a share of the point's own range max x − min x, as in the SmoothGrad paper, unless
    the points have a unit: the range of a row whose columns measure different things is none."""

    sigma: float = setting(0.15, low=0)
    relative: bool = False

    def draw(self, points, samples, key, total):
        noise = shared(key.normal, points, samples, points.x.shape[1:])
        if self.relative and points.unit is None:
            flat = points.x.detach().flatten(1)
            span = (flat.amax(1) - flat.amin(1)).repeat_interleave(len(samples), 0)
            noise = noise * span.view(-1, *[1] * (points.x.ndim - 1))
        return self._around(points, samples, points.scaled(noise * self.sigma), total)


@dataclass(frozen=True)
class Ball(Neighbourhood):
    """Uniform in the L2 ball of the given radius: a Gaussian direction, radius · u^(1/d)."""

    radius: float = setting(1.0, low=0)

    def draw(self, points, samples, key, total):
        shape = points.x.shape[1:]
        noise = shared((key / "direction").normal, points, samples, shape)
        dims: int | Tensor = math.prod(shape)
        if points.unit is not None:
            free = points.scaled(torch.ones_like(noise)) != 0
            noise, dims = noise * free, free.flatten(1).sum(1).clamp(min=1)
        length = shared((key / "length").uniform, points, samples, ()) ** (1 / dims)
        norm = noise.flatten(1).norm(dim=1)
        noise = noise * (self.radius * length / norm.clamp(min=1e-30)).view(-1, *[1] * len(shape))
        return self._around(points, samples, points.scaled(noise), total)


@dataclass(frozen=True)
class Path(Neighbourhood):
    """The segment from a baseline to the point: b + α (x − b).

    ``steps``: the α and weights of Gauss–Legendre quadrature on [0, 1] (exact for polynomials of degree 2·steps − 1);
    None: α ~ U(0, 1), with a drawn baseline if the baseline is a data set, and ``noise`` · N(0, I) added to the point.
    """

    baseline: Baseline = Baseline()
    steps: int | None = setting(None, low=1)
    noise: float = setting(0.0, low=0)

    def draw(self, points, samples, key, total):
        s, dims = len(samples), points.x.ndim - 1
        x = points.x.repeat_interleave(s, 0)
        if self.noise:
            x = x + points.scaled(self.noise * shared((key / "noise").normal, points, samples, x.shape[1:]).to(x)).to(x)
        # The steps of a quadrature lie on one path: from a data set's mean row.
        baseline = self.baseline.one() if self.steps else self.baseline
        origin = baseline.drawn(points, samples, key / "baseline")
        if self.steps:
            nodes, weights = np.polynomial.legendre.leggauss(self.steps)
            part = slice(samples.start, samples.stop)
            place = lambda v, kind: torch.from_numpy(v).to(x.device, kind, non_blocking=True)  # noqa: E731
            alpha = place((nodes[part] + 1) / 2, x.dtype).repeat(len(points))
            weight = place(weights[part] / 2, _wide(x))
        else:
            alpha = shared((key / "alpha").uniform, points, samples, ()).to(x)
            weight = _even(points, samples, total)
        rows = origin + alpha.view(-1, *[1] * dims) * (x - origin)
        return Cloud(rows, points.owner.repeat_interleave(s), weight, samples, origin, x - origin)


@dataclass(frozen=True)
class Anchored(Neighbourhood):
    """The point itself, beside its baseline (``origin``)."""

    baseline: Baseline = Baseline()

    def draw(self, points, samples, key, total):
        x = points.x.repeat_interleave(len(samples), 0)
        origin = self.baseline.drawn(points, samples, key / "baseline")
        owner = points.owner.repeat_interleave(len(samples))
        return Cloud(x, owner, _even(points, samples, total), samples, origin, x - origin)


def neighbours(
    where: Neighbourhood, points: Points, samples: range, key: Key, total: int, redraw: bool = False
) -> Points:
    """The cloud as points for explainers. They keep their input's ids, hence its noise, unless ``redraw``."""
    cloud = where.draw(points, samples, key, total)
    ids = points.ids.repeat_interleave(len(samples))
    if redraw:
        numbers = torch.arange(samples.start, samples.stop, device=ids.device) + 1
        ids = fold(ids, numbers.repeat(len(points)))
    return replace(points, x=cloud.points, owner=cloud.owner, ids=ids)


def noise_unit(features: Features, x: Tensor, baselines: Baseline | None = None) -> Tensor | None:
    """The unit of noise around ``x`` (B, *F), for :class:`Points`; None: the model's input.

    For a table with a data set of baselines, the standard deviation of each column there, so that a tenth means the same in
    every column. Columns that hold only 0 and 1 there, and one-hot blocks of
    :class:`~consilience.features.tables.Columns`, are left unchanged by noise: half a
    category is no input. So are tokens that are no features.

    Raises:
        InputError: the data set has NaN, or rows of another shape.
    """
    unit = features.movable(x.shape[1:])
    unit = None if unit is None else unit.to(device=x.device, dtype=torch.float32)
    if baselines is None or baselines.kind != "samples" or x.ndim != 2:
        return unit
    data = baselines.rows(x).double()
    if not bool(data.isfinite().all()):
        raise InputError("baselines: the data set has missing values; fill them as the model's training data were")
    spread = data.std(0, correction=0).masked_fill(((data == 0) | (data == 1)).all(0), 0).float()
    return spread if unit is None else spread * unit


def unmoved(
    score: Callable[[Tensor, Tensor], Tensor], points: Points, where: Neighbourhood, key: Key, samples: int = 10
) -> tuple[Tensor, Tensor]:
    """Why sensitivities may be zero: (N,) bool whether the score is the same at all neighbours, and whether all neighbours are
    the point itself.

    The score is the same around most points of a piecewise-constant model (a forest, a rule list): there every sensitivity is
    zero, or the explainer's own noise, and says nothing. Neighbours are the point itself where the noise has no unit to move
    by: one-hot blocks, columns of zeros and ones.

    Args:
        score: rows and owners → (N,).
        points: where to look.
        where: the neighbours' distribution.
        key: of their draws.
        samples: neighbours of each point, an evaluation each.
    """
    cloud = where.draw(points, range(samples), key, samples)
    found = cloud.split(score(cloud.points, cloud.owner))
    same = (found == score(points.x, points.owner)[:, None]).all(1)
    fixed = (cloud.split(cloud.points) == points.x[:, None]).flatten(1).all(1)
    return same & ~fixed, fixed
