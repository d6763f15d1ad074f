"""Weighted linear fits for a batch at once: ridge, lasso.

A model is g(x') = c₀ + c · x': coefficients (N, p + 1) with the intercept first. Everything is solved from second moments, in
float64, so that samples are folded and not kept.
"""

from __future__ import annotations

import torch
from torch import Tensor


def moments(rows: Tensor, weights: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The Gram matrix Σ w z zᵀ (N, p + 1, p + 1) and Σ w z y (N, p + 1) of z = [1, row].

    They add over samples, so that no sample has to be kept.

    Args:
        rows: (N or 1, s, p).
        weights: w (N, s).
        values: y (N or 1, s).
    """
    design = torch.cat([torch.ones_like(rows[..., :1]), rows], -1)
    weighted = design * weights[..., None]
    return weighted.mT @ design, (weighted.mT @ values[..., None])[..., 0]


def ridge(gram: Tensor, cross: Tensor, penalty: float) -> Tensor:
    """argmin Σ w (y − c₀ − c · row)² + penalty ‖c‖², (N, p + 1): the intercept is not penalised.

    Args:
        gram: (N, p + 1, p + 1), of :func:`moments`.
        cross: (N, p + 1), of :func:`moments`.
        penalty: of the slopes; above 0 where the rows may be collinear.
    """
    mean, covariance, with_y = _centred(gram, cross)
    eye = torch.eye(covariance.shape[-1], dtype=gram.dtype, device=gram.device)
    slopes = torch.linalg.solve(covariance + penalty * eye, with_y[..., None])[..., 0]
    return _with_intercept(mean, slopes, cross[..., 0] / gram[..., 0, 0])


def lasso(gram: Tensor, cross: Tensor, penalty: float, sweeps: int = 1000, tolerance: float = 1e-9) -> Tensor:
    """argmin Σ w (y − c₀ − c · row)² / (2 Σw) + penalty ‖c‖₁, (N, p + 1): scikit-learn's scaling.

    Cyclic coordinate descent on the Gram matrix, all inputs at once. An input rests once no coefficient has moved by more
    than ``tolerance`` of its largest in a sweep, so that its result does not depend on the others in the batch.

    Args:
        gram: (N, p + 1, p + 1), of :func:`moments`.
        cross: (N, p + 1), of :func:`moments`.
        penalty: of the slopes.
        sweeps: at most so many passes over the coefficients.
        tolerance: of a sweep's largest move, relative to the largest coefficient.

    Source: Friedman, Hastie and Tibshirani 2010, *Regularization paths for generalized linear models*, section 2.
    """
    total = gram[..., 0, 0]  # Σ w
    mean, covariance, with_y = _centred(gram, cross)
    covariance = covariance / total[..., None, None]
    residual = with_y / total[..., None]  # the covariance of each row element with what is not yet explained
    square = covariance.diagonal(dim1=-2, dim2=-1)
    # A column that does not vary keeps the slope 0.
    scale = torch.where(square > 0, 1 / square.clamp(min=1e-300), 0)
    slopes = torch.zeros_like(residual)
    moving = torch.ones_like(total)
    for _ in range(sweeps):
        before = slopes.clone()
        for j in range(slopes.shape[-1]):
            # The best slope of column j while the others are held: soft thresholding.
            pull = residual[:, j] + square[:, j] * slopes[:, j]
            best = (pull.abs() - penalty).clamp(min=0) * pull.sign() * scale[:, j]
            change = (best - slopes[:, j]) * moving
            slopes[:, j] += change
            residual = residual - change[:, None] * covariance[:, j]
        change = (slopes - before).abs().amax(1)
        moving = moving * (change > tolerance * slopes.abs().amax(1))
        if not bool(moving.any()):
            break
    return _with_intercept(mean, slopes, cross[..., 0] / total)


def _centred(gram: Tensor, cross: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted mean of the rows (N, p), and the centred sums of squares (N, p, p) and of products with y (N, p)."""
    # z = [1, row]: the first row of the Gram matrix is [Σ w, Σ w row].
    row_sums = gram[..., 0, 1:]
    mean = row_sums / gram[..., :1, 0]
    covariance = gram[..., 1:, 1:] - mean[..., None] * row_sums[..., None, :]
    with_y = cross[..., 1:] - mean * cross[..., :1]
    return mean, covariance, with_y


def _with_intercept(mean: Tensor, slopes: Tensor, level: Tensor) -> Tensor:
    """[c₀, c] (N, p + 1) of the model that has the value ``level`` (N,) at the mean row (N, p)."""
    intercept = level - (mean * slopes).sum(-1)
    return torch.cat([intercept[..., None], slopes], -1)


def predict(coefficients: Tensor, rows: Tensor) -> Tensor:
    """g(row), (N, …), of models with ``coefficients`` (N, d + 1), the intercept first, at ``rows`` (N, …, d)."""
    columns = rows.reshape(len(rows), -1, rows.shape[-1])
    slopes = coefficients[:, 1:, None]
    return (coefficients[:, :1] + (columns @ slopes)[..., 0]).reshape(rows.shape[:-1])
