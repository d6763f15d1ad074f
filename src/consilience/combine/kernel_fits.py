"""Fits of the posterior's regression with a correction d: for every kernel and every λ, in closed form.

See :mod:`~.regression` for the model. Here is one decomposition for each kernel K, from which the fits for all λ follow, their
left-out residuals and the variances of their maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..simplex.active_set import nnls

if TYPE_CHECKING:
    from .regression import Problem

RATIOS = (1e-9, 1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
"""λ beside the mean variance that the prior gives a fall, from "masks tell everything" to "they tell hardly anything"."""

EXACT = 1e-9
"""The same, where nothing is estimated: all masks that there are were seen."""

LENGTHS = (1.0, 4.0)
"""ℓ of the priors K_uv = exp(−|u − v| / ℓ) over a grid of units, in units. Units without places are independent."""

RANK = 1e-11
"""Directions of the masks with less than this share of the largest variance are rounding."""


def smooth(grid: Sequence[int], length: float) -> Tensor:
    """(U, U) float64: K_uv = exp(−|u − v| / ℓ) over the places of a grid.

    Args:
        grid: its axes.
        length: ℓ, in units.
    """
    axes = [torch.arange(size, dtype=torch.float64) for size in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
    return torch.exp(-torch.cdist(places, places) / length)


@lru_cache(maxsize=4)
def _root(grid: tuple[int, ...], length: float) -> Tensor:
    """L with K = L Lᵀ: the same for every input of a grid, and dear."""
    kernel = smooth(grid, length)
    # The hair on the diagonal is far below any λ.
    return torch.linalg.cholesky(kernel + 1e-9 * torch.eye(len(kernel), dtype=kernel.dtype))


@dataclass(frozen=True)
class Fit:
    """One fit of B inputs.

    Args:
        coefficients: (B, k), c.
        residual: (B, U), d.
        left_out: (B, S), each fall less what a fit to the other masks predicts; 0 for masks that an input does not have.
        variance: (B, U + V), of the map's units and regions.
        determined: (B,) bool, whether there are more masks than coefficients.
        prior: whether the methods take part.
        estimates: whether the masks do, d ≠ 0.
    """

    coefficients: Tensor
    residual: Tensor
    left_out: Tensor
    variance: Tensor
    determined: Tensor
    prior: bool
    estimates: bool


def inverse_of_used(square: Tensor, used: Tensor) -> Tensor:
    """(B, k, k): the inverse of the block of methods that are used, 0 elsewhere.

    Args:
        square: (B, k, k), positive semi-definite.
        used: (B, k) bool.
    """
    both = used[:, :, None] & used[:, None]
    eye = torch.eye(used.shape[1], dtype=square.dtype, device=square.device)
    # Two methods may have the same map; nnls then uses one of them, up to rounding.
    inverse = torch.linalg.pinv(torch.where(both, square, eye), hermitian=True, rtol=1e-12)
    return torch.where(both, inverse, 0.0)


class Kernel:
    """The fits with one K, for every λ, from one eigendecomposition of M K Mᵀ = Q Λ Qᵀ.

    With fewer units than masks Q has U columns only, and what lies outside them has variance λ. So with y' = Qᵀy and
    y_⊥ = y − Q y', V⁻¹ y = Q y' / (Λ + λ) + y_⊥ / λ, for every λ without another decomposition.

    Args:
        problem: the masks, answers and falls.
        length: ℓ of K over the grid; 0: K is the identity.
    """

    def __init__(self, problem: Problem, length: float):
        self.problem = problem
        masks = problem.masks
        count, units = masks.shape[1:]
        has = (problem.shares > 0).to(masks)
        self.variances = has
        self.root = None
        weighted = masks * has[:, None]
        if length > 0:
            root = _root(tuple(problem.grid), length).to(masks)
            self.root = root
            weighted = weighted @ root
        if count <= units:
            values, vectors = torch.linalg.eigh(weighted @ weighted.mT)
        else:
            values, right = torch.linalg.eigh(weighted.mT @ weighted)
            vectors = weighted @ right * values.clamp(min=1e-300).rsqrt()[:, None]
        told = values > RANK * values.amax(1, keepdim=True).clamp(min=1e-300)
        self.told = told
        self.values = torch.where(told, values, 0.0)
        self.vectors = torch.where(told[:, None], vectors, 0.0)
        # Squares are the same for every λ.
        self.squared_vectors = self.vectors**2
        # K Mᵀ Q, from which d follows.
        reach = weighted.mT @ self.vectors
        if self.root is not None:
            reach = self.root @ reach
        self.reach = reach * has[..., None]
        self.inside_falls = torch.einsum("bsr,bs->br", self.vectors, problem.falls)
        self.outside_falls = problem.falls - torch.einsum("bsr,br->bs", self.vectors, self.inside_falls)
        self.inside = self.vectors.mT @ problem.answers
        self.outside = problem.answers - self.vectors @ self.inside
        self._level()

    def _level(self) -> None:
        """What the level b₁ takes of d: b₁ changes by −s·d, s the level of each unit's being taken away."""
        problem = self.problem
        grown = problem.levels(problem.taken) * self.variances
        across = grown
        regions = problem.regions * self.variances[:, None]
        if self.root is not None:
            across = (grown @ self.root) @ self.root.mT * self.variances
            regions = regions @ self.root
        # The prior's variance of every unit is 1, where the input has it, and of a region r it is rᵀKr.
        variances = torch.cat([self.variances, (regions**2).sum(2)], 1)
        shares = problem.all_shares
        square = (grown * across).sum(1, keepdim=True)
        self.prior_variance = variances - 2 * shares * problem.with_regions(across) + shares**2 * square
        of_level = torch.einsum("bu,bur->br", grown, self.reach)
        self.levelled_reach = problem.with_regions(self.reach) - shares[..., None] * of_level[:, None]
        self.squared_reach = self.levelled_reach**2

    def fits(self, prior: bool) -> list[Fit]:
        """For every λ, with the methods and without them.

        Args:
            prior: with fits that use the methods.
        """
        problem = self.problem
        # The mean variance that d gives a fall, so that λ is without units.
        unit = self.values.sum(1) / problem.number.clamp(min=1)
        unit = torch.where(unit > 0, unit, 1.0)
        found = []
        for ratio in RATIOS:
            shrinkage = torch.where(problem.exact, EXACT, ratio) * unit
            if prior:
                found.append(self._fit(shrinkage, True))
            found.append(self._fit(shrinkage, False))
        return found

    def _fit(self, shrinkage: Tensor, prior: bool) -> Fit:
        """The fit for one λ (B,), generalised least squares of the falls on the answers with V = M K Mᵀ + λ."""
        problem = self.problem
        precision = torch.where(self.told, 1 / (self.values + shrinkage[:, None]), 0.0)
        falls = torch.einsum("bsr,br->bs", self.vectors, precision * self.inside_falls)
        falls = falls + self.outside_falls / shrinkage[:, None]
        answers = self.vectors @ (precision[..., None] * self.inside) + self.outside / shrinkage[:, None, None]
        square = problem.answers.mT @ answers
        cross = torch.einsum("bsk,bs->bk", problem.answers, falls)
        if prior:
            c = nnls(square, cross, problem.valid)
        else:
            c = torch.zeros_like(cross)
        used = c > 0
        inverse = inverse_of_used(square, used)
        # V⁻¹ of what the mixture misses, and the diagonal of V⁻¹ with all that is fitted projected out of it.
        missed = falls - torch.einsum("bsk,bk->bs", answers, c)
        weight = torch.einsum("bsr,br->bs", self.squared_vectors, precision - self.told / shrinkage[:, None])
        weight = weight + (1 - problem.leverage) * problem.there / shrinkage[:, None]
        weight = weight - torch.einsum("bsk,bkl,bsl->bs", answers, inverse, answers)
        left_out = problem.left_out(missed, weight, RANK / shrinkage)
        residual = problem.falls - torch.einsum("bsk,bk->bs", problem.answers, c)
        freedom = problem.freedom(used)
        variance = (residual * missed).sum(1) / freedom.clamp(min=1)
        inside = self.inside_falls - torch.einsum("brk,bk->br", self.inside, c)
        d = torch.einsum("bur,br->bu", self.reach, precision * inside)
        # The posterior's own variance, and that of c, which moves d with it.
        own = self.prior_variance - torch.einsum("bur,br->bu", self.squared_reach, precision)
        moved = problem.levelled - self.levelled_reach @ (precision[..., None] * self.inside)
        of_c = torch.einsum("buk,bkl,bul->bu", moved, inverse, moved)
        noise = problem.level_variance(variance * shrinkage)
        spread = variance[:, None] * (own.clamp(min=0) + of_c) + noise
        return Fit(c, d, left_out, spread, problem.determined(freedom), prior, estimates=True)
