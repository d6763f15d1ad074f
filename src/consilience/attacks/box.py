"""The ball and the valid range within which an attack moves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..statistics.keys import Key

Bound = float | Tensor


@dataclass(frozen=True)
class Ball:
    """The points z with |z − x| ≤ ``eps`` and low ≤ z ≤ high in every element; each a number or a tensor that broadcasts
    to x, in units of the model's input."""

    x: Tensor
    eps: Bound
    bounds: tuple[Bound, Bound]

    def __post_init__(self) -> None:
        low, high = (_like(bound, self.x) for bound in self.bounds)
        slack = 1e-5 * (high - low).abs().max()
        if bool((self.x < low - slack).any() or (self.x > high + slack).any()):
            raise InputError(
                f"bounds: x ranges over [{self.x.min():.4g}, {self.x.max():.4g}], beyond the bounds {self.bounds}; give the "
                "valid range in units of the model's input, e.g. ((0 − mean)/std, (1 − mean)/std) for normalised pixels"
            )

    def project(self, z: Tensor) -> Tensor:
        x = self.x
        eps, low, high = (_like(value, x) for value in (self.eps, *self.bounds))
        z = torch.minimum(torch.maximum(z, torch.maximum(x - eps, torch.minimum(low, x))), x + eps)
        return torch.minimum(z, torch.maximum(high, x))

    def random(self, key: Key, ids: Tensor, restart: int) -> Tensor:
        """x + U(−ε, ε), projected: another point for each restart."""
        u = key.uniform(ids, restart, self.x.shape[1:], self.x.dtype)
        return self.project(self.x + (2 * u - 1) * _like(self.eps, self.x))


def _like(value: Bound, x: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=x.dtype, device=x.device)
