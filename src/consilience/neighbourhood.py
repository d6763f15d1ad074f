"""Points around a point: the one object that explainers, metrics and training share.

A :class:`Neighbourhood` is a frozen description; ``draw`` makes the points of a range of samples. What it draws is a
function of the key, the ids and the sample numbers, so any chunking of ``samples`` gives the same cloud.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

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
    unit: Tensor | None = None
    """The unit of noise, of shape F or (B, …) by owner, broadcastable; 0 where noise leaves an element as it is; None: 1."""

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index) -> Points:
        return replace(self, x=self.x[index], owner=self.owner[index], ids=self.ids[index])

    def scaled(self, noise: Tensor) -> Tensor:
        """Noise (N·s, *F) in the points' unit."""
        if self.unit is None:
            return noise
        unit = self.unit.to(noise.device)
        if unit.ndim == self.x.ndim:
            owner = self.owner if len(unit) > 1 else torch.zeros_like(self.owner)
            unit = unit[owner].repeat_interleave(len(noise) // len(self), 0)
        return noise * unit


@dataclass(frozen=True)
class Cloud:
    """n points × s samples, rows in that order.

    ``points`` (n·s, *F); ``owner`` (n·s,); ``weights`` (s,), which sum to 1 over all samples of the neighbourhood;
    ``origin`` (n·s, *F) where paths start and ``delta`` where they lead from there, or None; ``masks`` (n·s, *A) of the
    features taken away (True, or the share that is gone), or None; ``present`` (n, *A): the features that each point has.
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
        """(n·s, …) → (n, s, …)."""
        return values.unflatten(0, (-1, len(self.samples)))


@dataclass(frozen=True)
class Baseline:
    """What stands for "absent". ``kind``: zero, constant, mean (per channel), blur (Gaussian, σ pixels), given, samples,
    auto (blur for images, zero for anything else).

    Computed from the point itself, so an explainer stays a function of its point. ``given`` has shape F or (B, *F);
    ``samples`` has shape (n, *F), of which each draw takes one. The blur's kernel is renormalised at the borders.
    """

    kind: str = "zero"
    value: float = 0.0
    sigma: float = 10.0
    tensor: Tensor | None = field(default=None, compare=False)
    tag: int = field(default=0, repr=False)  # identity of the tensor, for equality of needs

    @classmethod
    def of(cls, spec: Baseline | str | float | Tensor | np.ndarray | None, x: Tensor | None = None) -> Baseline:
        """None → zero; a number → constant; a name; an array → one baseline of shape F or (B, *F).

        With the inputs ``x`` (B, *F) at hand, rows that are not one for each input, or that are the inputs themselves (which
        would explain nothing), are a data set.
        """
        if isinstance(spec, Baseline):
            return spec
        if spec is None:
            return cls()
        if isinstance(spec, str):
            return cls(choose("baseline", spec, ("zero", "mean", "blur")))
        if isinstance(spec, (int, float)):
            return cls("constant", value=float(spec))
        if isinstance(spec, Tensor | np.ndarray):
            tensor = torch.as_tensor(spec)
            if x is not None and tensor.ndim == x.ndim and len(tensor) > 1:
                if len(tensor) != len(x) or torch.equal(tensor.to(x), x):
                    return cls.samples(spec)
            return cls("given", tensor=tensor, tag=id(spec))
        tensor = torch.as_tensor(spec)  # a list: its copy dies with this object, so it is known by what it holds
        return cls("given", tensor=tensor, tag=hash(tensor.numpy().tobytes()))

    @classmethod
    def samples(cls, data: Tensor | np.ndarray) -> Baseline:
        """A data set (n, *F) from which each draw takes one row."""
        return cls("samples", tensor=torch.as_tensor(data), tag=id(data))

    def one(self) -> Baseline:
        """For what integrates from one baseline: the mean row of a data set; anything else as it is."""
        if self.kind != "samples" or self.tensor is None:
            return self
        return Baseline("given", tensor=self.tensor.double().mean(0), tag=self.tag)

    def at(self, points: Points) -> Tensor:
        """(N, *F): the baseline of each point; not for samples."""
        x = points.x
        if self.kind == "zero" or (self.kind == "auto" and x.ndim != 4):
            return torch.zeros_like(x)
        if self.kind == "constant":
            return torch.full_like(x, self.value)
        if self.kind == "mean":
            return x.mean(dim=tuple(range(2 if x.ndim > 2 else 1, x.ndim)), keepdim=True).expand_as(x)
        if self.kind in ("blur", "auto"):
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
        u = shared(key.uniform, points, samples, ())
        return data[(u * len(data)).long().clamp(max=len(data) - 1)]

    def _tensor(self, x: Tensor) -> Tensor:
        assert self.tensor is not None
        return self.tensor.to(device=x.device, dtype=x.dtype)

    def check(self, left: Tensor, x: Tensor) -> None:
        """Raise InputError for values that are not finite; of one row each, for the inputs ``left`` (n,) of ``x`` (B, *F)."""
        if self.tensor is None:
            return
        each = self.kind == "given" and self.tensor.ndim == x.ndim and len(self.tensor) == len(x)
        values = self.tensor[left.to(self.tensor.device)] if each else self.tensor
        if not bool(values.isfinite().all()):
            raise InputError(
                f"baselines: {int((~values.isfinite()).sum())} of {values.numel()} values are NaN or infinite; fill the "
                "missing values as the model's training data were"
            )


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


def shared(draw, points: Points, samples: range, shape: Sequence[int]) -> Tensor:
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
    """x + ε, ε ~ U[−radius, radius] per element: also the L∞ ball. Unit: the points' own if they have one (the standard
    deviation of a table's columns, of a text's embeddings), else the model's input; so for the other neighbourhoods."""

    radius: float = 0.1

    def draw(self, points, samples, key, total):
        noise = shared(key.uniform, points, samples, points.x.shape[1:]).mul_(2).sub_(1)
        return self._around(points, samples, points.scaled(noise.mul_(self.radius)), total)


@dataclass(frozen=True)
class Gaussian(Neighbourhood):
    """x + σ N(0, I). ``relative``: σ is a share of the point's own range max x − min x, as in the SmoothGrad paper, unless
    the points have a unit: the range of a row whose columns measure different things is none."""

    sigma: float = 0.15
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

    radius: float = 1.0

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
    steps: int | None = None
    noise: float = 0.0

    def draw(self, points, samples, key, total):
        s, dims = len(samples), points.x.ndim - 1
        x = points.x.repeat_interleave(s, 0)
        if self.noise:
            x = x + points.scaled(self.noise * shared((key / "noise").normal, points, samples, x.shape[1:]).to(x)).to(x)
        origin = self.baseline.drawn(points, samples, key / "baseline")
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


@dataclass(frozen=True)
class Masked(Neighbourhood):
    """``share`` of the features (int(share · K), at least one, without replacement) replaced by the baseline's values.

    K counts the features that the input has. The cloud's ``masks`` (n·s, *A) are True where a feature was taken away.
    """

    features: Features = Patches(16)
    share: float = 0.2
    baseline: Baseline = Baseline("blur")

    def masks(self, points: Points, samples: range, key: Key) -> tuple[Tensor, Tensor]:
        """(N, s, A) bool: the features that each sample takes away, those of the smallest keyed words; (N, A) bool: the
        features that each point has."""
        has = present(self.features, points)
        count = (has.sum(1) * self.share).long().clamp(min=1)
        drawn, every = words(key, points, samples, has.shape[1]), bool(has.all())
        masks = smallest(drawn if every else drawn.masked_fill(~has[:, None], 2**32), count)
        return masks if every else masks & has[:, None], has

    def draw(self, points, samples, key, total):
        masks, has = self.masks(points, samples, key)
        return without(points, samples, masks, has, self.features, self.baseline, key, total)


def smallest(values: Tensor, count: Tensor) -> Tensor:
    """(N, s, A) int64, (N,) → (N, s, A) bool: the ``count`` smallest of each row, of equal ones the first.

    Selected, not sorted, and on a CPU by NumPy, whose selection is vectorised: 50 times faster than a stable sort."""
    k = count.unique()
    if len(k) > 1:
        edge = values.sort(dim=2)[0].gather(2, (count - 1)[:, None, None].expand(-1, values.shape[1], 1))
    elif values.is_cpu:
        at = int(k) - 1
        edge = torch.from_numpy(np.partition(values.numpy(), at, axis=2)[..., at : at + 1])
    else:
        edge = values.kthvalue(int(k), dim=2, keepdim=True)[0]
    masks = values <= edge
    over = masks.sum(2) > count[:, None]
    if bool(over.any()):  # words that are equal: about once in a million draws
        below, tied = values[over] < edge[over], values[over] == edge[over]
        left = count[:, None].expand_as(over)[over][:, None] - below.sum(1, keepdim=True)
        masks[over] = below | (tied & (tied.cumsum(1) <= left))
    return masks


def present(features: Features, points: Points) -> Tensor:
    """(N, A) bool: the features that each point has."""
    return (features.sizes(points.owner, points.x.shape[1:]) > 0).flatten(1)


def words(key: Key, points: Points, samples: range, count: int) -> Tensor:
    """(N, s, count): keyed 32-bit words, the same for points of the same id."""
    drawn = shared(lambda ids, sample, shape: key.bits(ids, sample, count), points, samples, (count,))
    return drawn.unflatten(0, (-1, len(samples)))


def ranks(key: Key, points: Points, samples: range, has: Tensor) -> Tensor:
    """(N, s, A): the place of each feature in a random order, in which features that the input lacks come last."""
    drawn = words(key, points, samples, has.shape[1]).masked_fill(~has[:, None], 2**32)
    return drawn.argsort(dim=2, stable=True).argsort(dim=2)


def without(
    points: Points,
    samples: range,
    masks: Tensor,
    has: Tensor,
    features: Features,
    baseline: Baseline,
    key: Key,
    total: int,
    origin: Tensor | None = None,
) -> Cloud:
    """The cloud of the points with the features of ``masks`` (N, s, A) bool replaced by the baseline's values, drawn for
    each sample unless ``origin`` (N·s, *F) holds them."""
    s, shape = len(samples), points.x.shape[1:]
    owner = points.owner.repeat_interleave(s)
    gone = (masks & has[:, None]).flatten(0, 1).unflatten(1, features.shape(shape))
    origin = baseline.drawn(points, samples, key / "baseline") if origin is None else origin
    rows = torch.where(features.mask(gone, owner, shape), origin, points.x.repeat_interleave(s, 0))
    return Cloud(rows, owner, _even(points, samples, total), samples, origin, masks=gone, present=has)


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
    every column. Columns that hold only 0 and 1 there, and one-hot blocks of :class:`~consilience.units.Columns`, are left
    unchanged by noise: half a category is no input. So are tokens that are no features.

    Raises:
        InputError: the data set has NaN, or rows of another shape.
    """
    unit = features.movable(x.shape[1:])
    unit = None if unit is None else unit.to(device=x.device, dtype=torch.float32)
    if baselines is None or baselines.kind != "samples" or x.ndim != 2:
        return unit
    data = baselines._tensor(x).double()
    if data.shape[1:] != x.shape[1:] or not bool(data.isfinite().all()):
        raise InputError(
            f"baselines: expected a data set (n, {x.shape[1]}) without missing values, got shape {tuple(data.shape)}"
            + ("; fill the missing values as the model's training data were" if data.shape[1:] == x.shape[1:] else "")
        )
    spread = data.std(0, correction=0).masked_fill(((data == 0) | (data == 1)).all(0), 0).float()
    return spread if unit is None else spread * unit


def unmoved(
    score: Callable[[Tensor, Tensor], Tensor], points: Points, where: Neighbourhood, key: Key, samples: int = 10
) -> Tensor:
    """(N,) bool: whether the score is the same at all ``samples`` neighbours.

    So it is around most points of a piecewise-constant model (a forest, a rule list): there every sensitivity is zero, or the
    explainer's own noise, and says nothing. Costs ``samples`` forward evaluations for each point.
    """
    cloud = where.draw(points, range(samples), key, samples)
    found = cloud.split(score(cloud.points, cloud.owner))
    return (found == score(points.x, points.owner)[:, None]).all(1)
