"""Linear estimates from coalitions that allow for effects of several features together.

A score of A features, each there (x = 1) or not (−1), is v(x) = Σ_T c_T Π_{i ∈ T} x_i. A regression on single features treats
all other effects as noise. Here those of some sizes |T| have a normal prior of mean zero, so that they are estimated as far as
the coalitions determine them, and the rest is noise. The single effects themselves have no prior. The sum of Π_{i ∈ T} x_i y_i
over all T of one size depends on Σ x_i y_i only, so no effect is ever listed.

The estimates are linear in the values: they are matrices, made once for all inputs that have the same coalitions. Relatives:
regressions on interactions, Fumagalli et al. 2024 (arXiv 2405.10852); estimates of what a fitted model leaves, Witter, Liu &
Musco 2025 (arXiv 2506.11849); a normal prior on games is Bayesian quadrature.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EVEN = {2: 20.0, 4: 5.0}
"""Size of an effect → the prior variance of all effects of that size together, in units of the noise's."""

ODD = {3: 20.0, 5: 5.0}
"""As :data:`EVEN`. Half or twice as much changes the errors of benchmarks/coalitions.py by some hundredths."""


def covariance(rows: Tensor, prior: dict[int, float]) -> Tensor:
    """(n, n): the covariance of the scores of coalitions by a prior.

    Args:
        rows: x (n, A) of 1 and −1.
        prior: size of effects → their variance, as :data:`ODD`.
    """
    features = rows.shape[1]
    sums = _symmetric(rows @ rows.mT, features, max(prior))
    total = torch.zeros_like(sums[0])
    for size, variance in prior.items():
        if size <= features:
            total = total + variance / math.comb(features, size) * sums[size]
    return total


def with_each(rows: Tensor, prior: dict[int, float]) -> Tensor:
    """(n, A): the covariance of a coalition's score with each feature's even share, 1/|T| each, of the effects of a prior.

    Args:
        rows: x (n, A) of 1 and −1.
        prior: size of effects → their variance, as :data:`ODD`.
    """
    features = rows.shape[1]
    # The products over all T with a are x_a times those over all sets, one smaller, of the others.
    others = _symmetric(rows.sum(1, keepdim=True) - rows, features - 1, max(prior) - 1)
    total = torch.zeros_like(rows)
    for size, variance in prior.items():
        if size <= features:
            total = total + variance / math.comb(features, size) / size * rows * others[size - 1]
    return total


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


def _symmetric(total: Tensor, count: int, most: int) -> list[Tensor]:
    """The sums of the products of every 0, 1, …, ``most`` of ``count`` numbers that are 1 or −1 and sum to ``total``."""
    found = [torch.ones_like(total), total]
    for size in range(1, most):
        # Multiply by one number more: it is new, or among them, and then its square is 1.
        found.append((total * found[size] - (count - size + 1) * found[size - 1]) / (size + 1))
    return found
