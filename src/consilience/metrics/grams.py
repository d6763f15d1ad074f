"""Gram matrices of residuals: what every quadratic metric reduces a draw to."""

from __future__ import annotations

from torch import Tensor


def gram(residuals: Tensor) -> Tensor:
    """(…, R, D) → (…, R, R), exactly symmetric."""
    product = residuals @ residuals.mT
    return (product + product.mT) / 2
