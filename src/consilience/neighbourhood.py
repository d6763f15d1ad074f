"""Points around a point: the one object that explainers, metrics and training share.

A :class:`Neighbourhood` is a frozen description; ``draw`` makes the points of a range of samples. What it draws is a
function of the key, the ids and the sample numbers, so any chunking of ``samples`` gives the same cloud.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .errors import InputError, choose
from .features import Features, Patches
from .keys import Key, fold


@dataclass(frozen=True)
class Points:
    """N points of evaluation: ``x`` (N, *F), the input each belongs to, ``owner`` (N,), and the id of its noise (N,)."""

    x: Tensor
    owner: Tensor
    ids: Tensor
    inputs: int = 0
    """B, the number of inputs that owners count; 0: not known."""

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index) -> Points:
        return Points(self.x[index], self.owner[index], self.ids[index], self.inputs)


@dataclass(frozen=True)
class Cloud:
    """n points × s samples, rows in that order.

    ``points`` (n·s, *F); ``owner`` (n·s,); ``weights`` (s,), which sum to 1 over all samples of the neighbourhood;
    ``origin`` (n·s, *F) where paths start and ``delta`` where they lead from there, or None; ``masks`` (n·s, *A) of the
    features taken away, or None.
    """

    points: Tensor
    owner: Tensor
    weights: Tensor
    samples: range
    origin: Tensor | None = None
    delta: Tensor | None = None
    masks: Tensor | None = None

    def split(self, values: Tensor) -> Tensor:
        """(n·s, …) → (n, s, …)."""
        return values.unflatten(0, (-1, len(self.samples)))


@dataclass(frozen=True)
class Baseline:
    """What stands for "absent". ``kind``: zero, constant, mean (per channel), blur (Gaussian, σ pixels), given, samples.

    Computed from the point itself, so an explainer stays a function of its point. ``given`` has shape F or (B, *F);
    ``samples`` has shape (n, *F), of which each draw takes one. The blur's kernel is renormalised at the borders.
    """

    kind: str = "zero"
    value: float = 0.0
    sigma: float = 10.0
    tensor: Tensor | None = field(default=None, compare=False)
    tag: int = 0  # identity of the tensor, for equality of needs

    @classmethod
    def of(cls, spec: Baseline | str | float | Tensor | np.ndarray | None) -> Baseline:
        """None → zero; a number → constant; a name; an array → one baseline of shape F or (B, *F)."""
        if isinstance(spec, Baseline):
            return spec
        if spec is None:
            return cls()
        if isinstance(spec, str):
            return cls(choose("baseline", spec, ("zero", "mean", "blur")))
        if isinstance(spec, (int, float)):
            return cls("constant", value=float(spec))
        if isinstance(spec, Tensor | np.ndarray):
            return cls("given", tensor=torch.as_tensor(spec), tag=id(spec))
        tensor = torch.as_tensor(spec)  # a list: its copy dies with this object, so it is known by what it holds
        return cls("given", tensor=tensor, tag=hash(tensor.numpy().tobytes()))

    @classmethod
    def samples(cls, data: Tensor | np.ndarray) -> Baseline:
        """A data set (n, *F) from which each draw takes one row."""
        return cls("samples", tensor=torch.as_tensor(data), tag=id(data))

    def at(self, points: Points) -> Tensor:
        """(N, *F): the baseline of each point; not for samples."""
        x = points.x
        if self.kind == "zero":
            return torch.zeros_like(x)
        if self.kind == "constant":
            return torch.full_like(x, self.value)
        if self.kind == "mean":
            return x.mean(dim=tuple(range(2 if x.ndim > 2 else 1, x.ndim)), keepdim=True).expand_as(x)
        if self.kind == "blur":
            return blur(x, self.sigma)
        given = self._tensor(x)
        if given.shape == x.shape[1:]:
            return given.expand_as(x)
        if given.shape[1:] == x.shape[1:] and self.kind == "given":
            if len(given) == 1:
                return given.expand_as(x)
            inputs = points.inputs or int(points.owner.max()) + 1
            if len(given) != inputs:
                raise InputError(
                    f"baselines: {len(given)} rows for {inputs} inputs; give one, or one for each; to draw from a data set "
                    "use Baseline.samples(data) with expected_gradients or gradient_shap"
                )
            return given[points.owner]
        raise InputError(f"baselines: shape {tuple(given.shape)} does not fit inputs of shape {tuple(x.shape[1:])}")

    def drawn(self, points: Points, samples: range, key: Key) -> Tensor:
        """(N·s, *F): the baseline of each row; drawn for ``samples``, else the same for every sample."""
        s = len(samples)
        if self.kind != "samples":
            return self.at(points).repeat_interleave(s, 0)
        data = self._tensor(points.x)
        if data.shape[1:] != points.x.shape[1:]:
            raise InputError(f"baselines: rows of shape {tuple(data.shape[1:])} for inputs {tuple(points.x.shape[1:])}")
        u = _noise(key.uniform, points, samples, ())
        return data[(u * len(data)).long().clamp(max=len(data) - 1)]

    def _tensor(self, x: Tensor) -> Tensor:
        assert self.tensor is not None
        return self.tensor.to(device=x.device, dtype=x.dtype)


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of the axes after the channel, (N, C, …): exact matrix per axis, rows renormalised at the borders."""
    if x.ndim < 3:
        raise InputError(f"baselines: 'blur' needs images or series (N, C, …), got shape {tuple(x.shape)}")
    for axis in range(2, x.ndim):
        at = torch.arange(x.shape[axis], dtype=torch.float64)
        kernel = torch.exp(-0.5 * ((at[:, None] - at) / sigma) ** 2)
        kernel = (kernel / kernel.sum(1, keepdim=True)).to(x)
        x = torch.movedim(torch.movedim(x, axis, -1) @ kernel.T, -1, axis)
    return x


def _noise(draw, points: Points, samples: range, shape: Sequence[int]) -> Tensor:
    """(N·s, *shape) in float32: drawn once for each distinct id, then handed to every point that has it."""
    ids, where = points.ids.unique(return_inverse=True)
    s = len(samples)
    numbers = torch.arange(samples.start, samples.stop, device=ids.device)
    noise = draw(ids.repeat_interleave(s), numbers.repeat(len(ids)), shape)
    if len(ids) == len(where) and torch.equal(where, torch.arange(len(ids), device=ids.device)):
        return noise
    return noise.unflatten(0, (-1, s))[where].flatten(0, 1)


@dataclass(frozen=True)
class Neighbourhood:
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
    """x + ε, ε ~ U[−radius, radius] per element: also the L∞ ball. Unit: the model's input."""

    radius: float = 0.1

    def draw(self, points, samples, key, total):
        noise = _noise(key.uniform, points, samples, points.x.shape[1:]).mul_(2).sub_(1)
        return self._around(points, samples, noise.mul_(self.radius), total)


@dataclass(frozen=True)
class Gaussian(Neighbourhood):
    """x + σ N(0, I). ``relative``: σ is a share of the point's own range max x − min x, as in the SmoothGrad paper."""

    sigma: float = 0.15
    relative: bool = False

    def draw(self, points, samples, key, total):
        noise = _noise(key.normal, points, samples, points.x.shape[1:])
        if self.relative:
            flat = points.x.detach().flatten(1)
            span = (flat.amax(1) - flat.amin(1)).repeat_interleave(len(samples), 0)
            noise = noise * span.view(-1, *[1] * (points.x.ndim - 1))
        return self._around(points, samples, noise * self.sigma, total)


@dataclass(frozen=True)
class Ball(Neighbourhood):
    """Uniform in the L2 ball of the given radius: a Gaussian direction, radius · u^(1/d)."""

    radius: float = 1.0

    def draw(self, points, samples, key, total):
        shape = points.x.shape[1:]
        noise = _noise((key / "direction").normal, points, samples, shape)
        length = _noise((key / "length").uniform, points, samples, ()) ** (1 / math.prod(shape))
        norm = noise.flatten(1).norm(dim=1)
        return self._around(points, samples, noise * (self.radius * length / norm).view(-1, *[1] * len(shape)), total)


@dataclass(frozen=True)
class Path(Neighbourhood):
    """The segment from a baseline to the point: b + α (x − b).

    ``steps``: the α and weights of Gauss–Legendre quadrature on [0, 1] (exact for polynomials of degree 2·steps − 1);
    None: α ~ U(0, 1), with a drawn baseline if the baseline is a data set, and ``noise`` · N(0, I) added to the point.
    """

    baseline: Baseline = Baseline()
    steps: int | None = None
    noise: float = 0.0

    def draw(self, points, samples, key, total):
        s, dims = len(samples), points.x.ndim - 1
        x = points.x.repeat_interleave(s, 0)
        if self.noise:
            x = x + self.noise * _noise((key / "noise").normal, points, samples, x.shape[1:]).to(x)
        origin = self.baseline.drawn(points, samples, key / "baseline")
        if self.steps:
            nodes, weights = np.polynomial.legendre.leggauss(self.steps)
            part = slice(samples.start, samples.stop)
            alpha = torch.as_tensor((nodes[part] + 1) / 2, device=x.device, dtype=x.dtype).repeat(len(points))
            weight = torch.as_tensor(weights[part] / 2, device=x.device, dtype=_wide(x))
        else:
            alpha = _noise((key / "alpha").uniform, points, samples, ()).to(x)
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


@dataclass(frozen=True)
class Masked(Neighbourhood):
    """``share`` of the features (int(share · K), at least one, without replacement) replaced by the baseline's values.

    K counts the features that the input has. The cloud's ``masks`` (n·s, *A) are True where a feature was taken away.
    """

    features: Features = Patches(16)
    share: float = 0.2
    baseline: Baseline = Baseline("blur")

    def draw(self, points, samples, key, total):
        s, shape = len(samples), points.x.shape[1:]
        owner = points.owner.repeat_interleave(s)
        axes = self.features.shape(shape)
        present = (self.features.sizes(points.owner, shape) > 0).flatten(1).repeat_interleave(s, 0)
        words = _noise(lambda ids, sample, dims: key.bits(ids, sample, math.prod(dims)), points, samples, axes)
        count = (present.sum(1) * self.share).long().clamp(min=1)
        words = words.masked_fill(~present, 2**32)  # after every word of a feature that the input has
        masks = (words.argsort(dim=1, stable=True).argsort(dim=1) < count[:, None]).unflatten(1, axes)
        origin = self.baseline.drawn(points, samples, key / "baseline")
        rows = torch.where(self.features.mask(masks, owner, shape), origin, points.x.repeat_interleave(s, 0))
        return Cloud(rows, owner, _even(points, samples, total), samples, origin, masks=masks)


def neighbours(
    where: Neighbourhood, points: Points, samples: range, key: Key, total: int, redraw: bool = False
) -> Points:
    """The cloud as points for explainers. They keep their input's ids, hence its noise, unless ``redraw``."""
    cloud = where.draw(points, samples, key, total)
    ids = points.ids.repeat_interleave(len(samples))
    if redraw:
        numbers = torch.arange(samples.start, samples.stop, device=ids.device) + 1
        ids = fold(ids, numbers.repeat(len(points)))
    return Points(cloud.points, cloud.owner, ids, points.inputs)
