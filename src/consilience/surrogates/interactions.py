"""Linear estimates from coalitions that allow for effects of two and of three features together.

A score of A features, each there (x = 1) or not (−1), is v(x) = Σ_T c_T Π_{i ∈ T} x_i. A regression on single features treats
all other effects as noise. Here those of |T| = 2 and 3 have a normal prior of mean zero, so that they are estimated as far as
the coalitions determine them, and the rest is noise. The single effects themselves have no prior. The sum of Π_{i ∈ T} x_i y_i
over all T of one size depends on Σ x_i y_i only, so no effect is ever listed.

The estimates are linear in the values: they are matrices, made once for all inputs that have the same coalitions.
Relatives: regressions on interactions, Fumagalli et al. 2024 (arXiv 2405.10852); estimates of what a fitted model leaves,
Witter, Liu & Musco 2025 (arXiv 2506.11849).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

OF_TWO = 20.0
"""The variance of all effects of two features together, in units of the noise's."""

OF_THREE = 5.0
"""The variance of all effects of three features together, in units of the noise's. Between 2 and 20 it hardly matters."""


def of_two(rows: Tensor) -> Tensor:
    """(n, n): the covariance of the effects of two features, variance 1, of ``rows`` (n, A) of 1 and −1."""
    features = rows.shape[1]
    alike = rows @ rows.mT
    return (alike**2 - features) / 2 / max(1, math.comb(features, 2))


def of_three(rows: Tensor) -> Tensor:
    """(n, n): the covariance of the effects of three features, variance 1, of ``rows`` (n, A) of 1 and −1."""
    features = rows.shape[1]
    alike = rows @ rows.mT
    return (alike**3 - (3 * features - 2) * alike) / 6 / max(1, math.comb(features, 3))


def generalised(free: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Generalised least squares, as matrices that are applied to values y (n,).

    Args:
        free: X (n, p), whose coefficients have no prior.
        covariance: Σ (n, n) of everything else, positive definite.

    Returns:
        (p, n): y → the coefficients β; (n, n): y → Σ⁻¹ (y − X β), from which the rest is predicted.
    """
    both = torch.linalg.solve(covariance, torch.cat([free, torch.eye(len(free), dtype=free.dtype)], 1))
    weighted, inverse = both[:, : free.shape[1]], both[:, free.shape[1] :]
    coefficients = torch.linalg.solve(free.mT @ weighted, weighted.mT)
    return coefficients, inverse - weighted @ coefficients
