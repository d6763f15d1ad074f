"""The Gram matrix of residuals, to which every quadratic metric reduces a draw."""

from __future__ import annotations

from torch import Tensor


def gram(residuals: Tensor) -> Tensor:
    """The matrices r_i · r_j, (…, R, R), exactly symmetric.

    Args:
        residuals: (…, R, D), r_j for each row.
    """
    # Matrix products of a batch may round r_i · r_j and r_j · r_i differently.
    product = residuals @ residuals.mT
    return (product + product.mT) / 2
