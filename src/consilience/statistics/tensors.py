"""Tensors in the precision that sums need, and the mixtures that are one row each."""

from __future__ import annotations

import torch
from torch import Tensor


def exact(values: Tensor) -> Tensor:
    """``values`` in float64, on the CPU where the device has none (Apple's GPU)."""
    if values.device.type == "mps":
        values = values.cpu()
    return values.double()


def corners(like: Tensor) -> Tensor:
    """(B, R, R) float64: every row alone, as mixtures of R rows.

    Args:
        like: (B, R), whose shape and device the mixtures have.
    """
    count, rows = like.shape
    return torch.eye(rows, dtype=torch.float64, device=like.device).expand(count, -1, -1)
