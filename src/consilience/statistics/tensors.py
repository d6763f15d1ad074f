"""Tensors in the precision that sums need."""

from __future__ import annotations

from torch import Tensor


def exact(values: Tensor) -> Tensor:
    """float64, on the CPU where the device has none (Apple's GPU)."""
    return (values.cpu() if values.device.type == "mps" else values).double()
