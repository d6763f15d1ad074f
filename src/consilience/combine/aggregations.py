"""How maps become one where nothing is solved: mean, var, median, rank, weighted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..metrics import AverageSensitivity, Infidelity
from ..metrics.front import Aim
from ..simplex import Solution
from ..statistics.evidence import Evidence
from .draws import KINDS


def looked_at(goal: Aim | str) -> tuple[str, ...]:
    """The kinds of draws on which a goal's weights depend."""
    if isinstance(goal, str):
        return tuple(KINDS) if goal == "weighted" else ()
    return tuple(kind for kind in KINDS if kind in goal.statistics)


def unsolved(goal: str, evidence: Evidence, working: Sequence[int], weights: Tensor | None = None) -> Solution:
    """The weights (B, k) of goals that solve nothing: given ones, by measured quality, or equal shares of the methods whose
    maps are finite."""
    like = evidence.like
    nothing = torch.full_like(like[:, 0], torch.nan)
    if weights is not None:
        return Solution(weights.to(like.device), nothing, nothing, ("given weights",) * len(like))
    if goal == "weighted":
        share = by_quality(evidence, working)
    else:
        assert evidence.quadratic is not None
        asked = torch.zeros_like(like)
        asked[:, list(working)] = 1
        share = asked * evidence.quadratic.norm.diagonal(dim1=1, dim2=2).isfinite()
        share = share / share.sum(1, keepdim=True)
    return Solution(share, nothing, nothing, (f"{goal} of the maps, nothing solved",) * len(like))


def mixing_of(goal: Aim | str, weights: Tensor, rows: int, k: int) -> Tensor:
    """(B, R): the combined map's coefficients on the methods and the derived maps."""
    mixing = weights.new_zeros(len(weights), rows)
    if goal in ("var", "median", "rank"):
        mixing[:, k + DERIVED.index(goal)] = 1
    else:
        mixing[:, :k] = weights
    return mixing


def mix(rows: Tensor, maps: Tensor) -> Tensor:
    """(B, M, R), (B, R, *A) → (B, M, *A); a mixture of something that is not finite is not finite."""
    mixed = torch.einsum("bmr,br...->bm...", rows.to(maps), maps.nan_to_num(0, 0, 0))
    bad = (~maps.flatten(2).isfinite().all(2)).to(rows)
    mixed[torch.einsum("bmr,br->bm", (rows != 0).to(rows), bad) > 0] = torch.nan
    return mixed


DERIVED = ("mean", "var", "median", "rank", "uniform")
"""Maps made from all methods' maps; "weighted", a mixture, stands beside them in tables."""


UNSOLVED = ("mean", "var", "median", "rank", "weighted")
"""Aggregations to compare with: nothing is minimised."""


def derive(maps: Tensor, has: Tensor | None = None) -> Tensor:
    """(N, k, *A) → (N, 5, *A): the mean; AGG's var, mean / (σ + ε) with σ the feature-wise standard deviation over methods
    and ε its mean over features (the paper leaves ε open; this makes the map's shape free of scale); the median; the mean of
    the features' ranks in 0…1, ties averaged (Borda count); and a uniform map.

    ``has`` (N, *A) bool: the features that each input has; the others are 0 and count nowhere, nor do maps that are not
    finite."""
    has = torch.ones_like(maps[:, 0], dtype=torch.bool) if has is None else has
    fine = maps.flatten(2).isfinite().all(2)
    good, count = fine.view(*fine.shape, *[1] * has[0].ndim), fine.sum(1).view(-1, *[1] * has[0].ndim)
    average = lambda values: torch.where(good, values, 0.0).sum(1) / count  # noqa: E731  NaN where there is none
    mean = average(maps)
    sigma = average((maps - mean[:, None]) ** 2).sqrt()
    epsilon = (sigma * has).flatten(1).sum(1).div(has.flatten(1).sum(1).clamp(min=1)).view(-1, *[1] * (mean.ndim - 1))
    alike = epsilon <= 1e-6 * mean.abs().flatten(1).amax(1).view_as(epsilon)
    epsilon = torch.where(alike, torch.ones_like(epsilon), epsilon)  # one method, or all alike: var is the mean
    ordered = torch.where(good, maps, torch.inf).sort(1).values  # its middle, or the mean of the two middle ones
    middle = [
        ordered.gather(1, at.clamp(min=0)[:, None].expand_as(ordered[:, :1])) for at in ((count - 1) // 2, count // 2)
    ]
    median = torch.where(count > 0, (middle[0] + middle[1])[:, 0] / 2, torch.nan)
    return torch.stack([mean, mean / (sigma + epsilon), median, average(_ranks(maps, has)), has.to(mean)], 1)


def _ranks(maps: Tensor, has: Tensor) -> Tensor:
    """(N, k, *A): the share of features that are below, ties counting half."""
    here = has.flatten(1)[:, None]
    flat = maps.flatten(2).masked_fill(~here, torch.inf)
    ordered = flat.sort(2).values
    below = torch.searchsorted(ordered, flat) + torch.searchsorted(ordered, flat, right=True) - 1
    rank = below.to(maps) / (2 * (here.sum(2, keepdim=True) - 1).clamp(min=1))
    return rank.masked_fill(~here, 0).view_as(maps)


def by_quality(evidence: Evidence, working: Sequence[int]) -> Tensor:
    """(B, k): metric weighting, w_j ∝ 1 / (relative sensitivity · (1 − ρ|ρ|)) of the fitting draws."""
    eye = torch.eye(evidence.quadratic.norm.shape[1], dtype=torch.float64, device=evidence.quadratic.norm.device)  # type: ignore[union-attr]
    corners = eye.expand(len(evidence.quadratic.norm), -1, -1)  # type: ignore[union-attr]
    clean = evidence.clean()
    quality = 1 / (AverageSensitivity().loss(clean, corners) * Infidelity().loss(clean, corners)).clamp(min=1e-12)
    usable = torch.zeros_like(quality, dtype=torch.bool)
    usable[:, list(working)] = True
    quality = torch.where(usable & evidence.valid(), quality.nan_to_num(0), torch.zeros_like(quality))
    return quality / quality.sum(1, keepdim=True)
