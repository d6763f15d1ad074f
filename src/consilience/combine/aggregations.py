"""Aggregations that minimise nothing: mean, var, median, rank, weights by quality, the best single method, given weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..arrays import as_tensor
from ..errors import InputError
from ..metrics import AverageSensitivity, Infidelity
from ..metrics.base import Metric
from ..statistics.evidence import Evidence
from ..statistics.tensors import corners
from .aggregation import Aggregation, Combination, unsolved
from .posterior import Posterior, Ridge


@dataclass(frozen=True)
class Mean(Aggregation):
    """The mean of the maps that are finite."""

    name = "mean"
    linear = True

    def combine(self, maps: Tensor, weights: Tensor, present: Tensor) -> Tensor:
        return _average(maps, maps)


@dataclass(frozen=True)
class Var(Aggregation):
    """AGG's variance-weighted mean, mean / (σ + ε) with σ the standard deviation over methods at each feature.

    The paper does not give ε. Here it is the mean of σ over features: then the map keeps its shape when all maps are scaled.
    """

    name = "var"
    linear = False

    def combine(self, maps: Tensor, weights: Tensor, present: Tensor) -> Tensor:
        mean = _average(maps, maps)
        sigma = _average(maps, (maps - mean[:, None]) ** 2).sqrt()
        axes = [1] * (mean.ndim - 1)
        features = present.flatten(1).sum(1).clamp(min=1)
        epsilon = ((sigma * present).flatten(1).sum(1) / features).view(-1, *axes)
        # With one method, or methods that all agree, σ is zero up to rounding, and dividing by it would show noise.
        alike = epsilon <= 1e-6 * mean.abs().flatten(1).amax(1).view_as(epsilon)
        return mean / (sigma + torch.where(alike, torch.ones_like(epsilon), epsilon))


@dataclass(frozen=True)
class Median(Aggregation):
    """The median over methods, feature by feature; of an even number, the mean of the two in the middle."""

    name = "median"
    linear = False

    def combine(self, maps: Tensor, weights: Tensor, present: Tensor) -> Tensor:
        finite, count = _finite(maps)
        # Maps that are not finite are sorted to the end, after the ``count`` finite ones, whose middle is wanted.
        ordered = torch.where(finite, maps, torch.inf).sort(1).values
        # The two in the middle, which are the same one of an odd number of methods.
        low = ((count - 1) // 2).clamp(min=0)
        high = (count // 2).clamp(max=maps.shape[1] - 1)
        shape = ordered[:, :1].shape
        below = ordered.gather(1, low[:, None].expand(shape))
        above = ordered.gather(1, high[:, None].expand(shape))
        middle = (below + above)[:, 0] / 2
        return torch.where(count > 0, middle, torch.nan)


@dataclass(frozen=True)
class Rank(Aggregation):
    """The mean over methods of each feature's rank in 0…1 (Borda count): the share of features below, ties counting half."""

    name = "rank"
    linear = False

    def combine(self, maps: Tensor, weights: Tensor, present: Tensor) -> Tensor:
        return _average(maps, _ranks(maps, present))


@dataclass(frozen=True)
class Uniform(Aggregation):
    """The same value for every feature, to compare with: how a map does that uses neither the input nor the model."""

    name = "uniform"
    linear = False

    def combine(self, maps: Tensor, weights: Tensor, present: Tensor) -> Tensor:
        return present.to(maps)


@dataclass(frozen=True)
class Weighted(Aggregation):
    """Weights by measured quality, w_j ∝ 1 / (relative sensitivity · (1 − ρ|ρ|)) on the fitting draws.

    Under an objective that needs neighbours or masks only, tables show it with the one factor that was measured.
    """

    name = "weighted"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return AverageSensitivity(), Infidelity()

    def fit(self, evidence: Evidence) -> Combination:
        """The weights of every input, (B, k); NaN for an input without a valid method.

        Args:
            evidence: neighbours and masks of the k methods.
        """
        clean = evidence.clean()
        alone = corners(evidence.like)
        loss = torch.ones_like(clean.like)
        for metric in self.metrics:
            if metric.statistic in clean.parts:
                loss = loss * metric.loss(clean, alone)
        quality = (1 / loss.clamp(min=1e-12)).nan_to_num(0)
        quality = torch.where(evidence.valid(), quality, torch.zeros_like(quality))
        weights = quality / quality.sum(1, keepdim=True)
        return unsolved(weights, "weighted by quality, nothing solved")


@dataclass(frozen=True)
class BestSingle(Aggregation):
    """The method with the smallest loss on the fitting draws, alone.

    Args:
        metric: whose loss; None: infidelity, 1 − ρ|ρ|.
    """

    metric: Metric | None = None

    name = "best_single"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        metric = self.metric or Infidelity()
        return (metric, *metric.beside)

    def fit(self, evidence: Evidence) -> Combination:
        metric = self.metrics[0]
        seen = evidence.only(self.kinds)
        loss = metric.loss(seen.clean(), corners(seen.like))
        usable = seen.valid() & loss.isfinite()
        best = torch.where(usable, loss, torch.inf).argmin(1)
        weights = torch.nn.functional.one_hot(best, loss.shape[1]).to(loss)
        weights = torch.where(usable.any(1, keepdim=True), weights, torch.nan)
        return unsolved(weights, "the best single method on the fitting draws")


@dataclass(frozen=True)
class Given(Aggregation):
    """Weights that the caller gives.

    Args:
        weights: (k,), or (B, k) for the inputs that are explained.
    """

    weights: Any = field(compare=False)

    name = "given"

    def __post_init__(self) -> None:
        super().__post_init__()
        given = as_tensor("weights", self.weights)
        if given.is_complex() or given.ndim not in (1, 2) or not given.numel():
            raise InputError(f"weights: real numbers, (k,) or (B, k), got {tuple(given.shape)} of {given.dtype}")
        given = given.double()
        if not bool(given.isfinite().all()) or not bool((given != 0).any(-1).all()):
            raise InputError("weights: finite, and not all zero")
        object.__setattr__(self, "weights", given)

    def narrowed(self, left: Tensor, inputs: int, k: int) -> Given:
        """The weights of those inputs that are left after others were refused.

        Args:
            left: (B,) int64, the places of the inputs that are left.
            inputs: how many inputs the batch had.
            k: the number of methods.

        Raises:
            InputError: there is not one for each method, or not one row for each input.
        """
        if self.weights.shape == (k,):
            return self
        if self.weights.shape != (inputs, k):
            raise InputError(
                f"weights: shape ({k},) or ({inputs}, {k}) for these methods and inputs, got {tuple(self.weights.shape)}"
            )
        return Given(self.weights[left.cpu()])

    def fit(self, evidence: Evidence) -> Combination:
        return unsolved(self.weights.to(evidence.like.device).expand_as(evidence.like), "given weights")


AGGREGATIONS: dict[str, Aggregation] = {
    each.name: each for each in (Mean(), Var(), Median(), Rank(), Weighted(), BestSingle(), Posterior(), Ridge())
}
"""Aggregations by name, which ``objective=`` takes."""

DERIVED: tuple[Aggregation, ...] = (Mean(), Var(), Median(), Rank(), Uniform())
"""Aggregations whose maps are rows of every table. "weighted" is another row, as a mixture of the methods' maps."""


def _finite(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Which maps are finite (B, k, 1…), and how many of each input (B, 1…)."""
    finite = maps.flatten(2).isfinite().all(2)
    axes = [1] * (maps.ndim - 2)
    return finite.view(*finite.shape, *axes), finite.sum(1).view(-1, *axes)


def _average(maps: Tensor, values: Tensor) -> Tensor:
    """(B, *A): the mean of ``values`` (B, k, *A) over the methods whose maps are finite; NaN if none is."""
    finite, count = _finite(maps)
    return torch.where(finite, values, 0.0).sum(1) / count


def _ranks(maps: Tensor, present: Tensor) -> Tensor:
    """(B, k, *A): the share of features that have a smaller value, ties counting half; 0 where ``present`` is False."""
    here = present.flatten(1)[:, None]
    # Features that are not present are sorted to the end, where they are not below any other.
    values = maps.flatten(2).masked_fill(~here, torch.inf)
    ordered = values.sort(2).values
    # Twice the number below: those that are smaller, and those that are smaller or equal, without the feature itself.
    smaller = torch.searchsorted(ordered, values)
    not_larger = torch.searchsorted(ordered, values, right=True)
    below = smaller + not_larger - 1
    others = (here.sum(2, keepdim=True) - 1).clamp(min=1)
    rank = below.to(maps) / (2 * others)
    return rank.masked_fill(~here, 0).view_as(maps)
