"""The box around an input within which an attack moves, and projected gradient ascent (:class:`PGD`) in it.

Of any quantity: what is maximised is given as a function. All attacks and the inner maxima of training use this one. The attack
on the predicted class that is commonly called PGD is the function :func:`consilience.attacks.pgd.pgd`, made of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..settings import Settings, setting
from ..statistics.keys import Key

Bound = float | Tensor
"""A length or a limit in units of the model's input: a number, or a tensor that broadcasts over (B, *F)."""

Bounds = tuple[Bound, Bound]
"""The lowest and the highest valid value of an input's elements."""

SLACK = 1e-5
"""An element may lie outside its bounds by this share of their distance: normalising pixels rounds."""


def like(value: Bound, x: Tensor) -> Tensor:
    """``value``, a number or a tensor of any dtype and device, as a tensor to compute with ``x``."""
    return torch.as_tensor(value, dtype=x.dtype, device=x.device)


def project(z: Tensor, x: Tensor, eps: Bound, bounds: Bounds | None) -> Tensor:
    """The nearest point to z with |z − x| ≤ eps, and then the nearest to that within the bounds, in every element.

    Args:
        z: (B, *F), any points.
        x: (B, *F), the centres of the boxes.
        eps: as for :class:`PGD`.
        bounds: as for :class:`PGD`.
    """
    size = like(eps, x)
    near = torch.minimum(torch.maximum(z, x - size), x + size)
    if bounds is None:
        return near
    low, high = (like(side, x) for side in bounds)
    return torch.minimum(torch.maximum(near, low), high)


def bounds_around(x: Tensor, bounds: Bounds) -> Bounds:
    """The bounds, widened to let x in where rounding has put it just outside.

    Args:
        x: (B, *F), the inputs.
        bounds: the lowest and the highest valid value, each a number or a tensor that broadcasts over (B, *F).

    Raises:
        InputError: an element of x lies outside by more than rounding.
    """
    low, high = (like(side, x) for side in bounds)
    slack = SLACK * (high - low).abs().max()
    if bool((x < low - slack).any() or (x > high + slack).any()):
        raise InputError(
            f"bounds: x ranges over [{x.min():.4g}, {x.max():.4g}], beyond the bounds {bounds}; give the valid range in units "
            "of the model's input, e.g. ((0 − mean)/std, (1 − mean)/std) for normalised pixels"
        )
    return torch.minimum(low, x), torch.maximum(high, x)


@dataclass(frozen=True)
class PGD(Settings):
    """x' ← project(x' + step_size · sign ∇q(x')), ``steps`` times from x + U(−ε, ε); the last iterate (Madry et al. 2018,
    arXiv 1706.06083).

    Projected to ‖x' − x‖∞ ≤ ε and to ``bounds``. All in units of the model's input; tensors broadcast over (B, *F), e.g.
    (C, 1, 1) for a size per channel (:func:`~consilience.train.normalised`, :func:`~consilience.train.bounds_of`).

    Args:
        eps: ε, not negative.
        steps: 0 leaves x at its random start.
        step_size: None: 2.5 ε / steps, with which the whole box can be reached.
        bounds: (lowest, highest) of valid inputs, or None.

    Raises:
        InputError: a negative ε, or settings of the wrong type.
    """

    eps: Bound = setting(low=0)
    steps: int = setting(10, low=0)
    step_size: Bound | None = None
    bounds: Bounds | None = setting(None, finite=False)

    def start(self, x: Tensor, key: Key, ids: Tensor, sample: int | Tensor) -> Tensor:
        """(B, *F): x + U(−ε, ε), projected.

        Args:
            x: (B, *F).
            key: the stream of the draw.
            ids: (B,), the identity of each input.
            sample: the number of the draw, such as that of the restart or of the training step.
        """
        u = key.uniform(ids, sample, x.shape[1:], x.dtype)
        return project(x + like(self.eps, x) * (2 * u - 1), x, self.eps, self.bounds)

    def ascend(self, x: Tensor, start: Tensor, gradient: Callable[[Tensor], Tensor]) -> Tensor:
        """(B, *F): the last iterate.

        Args:
            x: (B, *F), the centre of the box.
            start: (B, *F), where it begins.
            gradient: (B, *F) → (B, *F), of what is maximised, summed over inputs.
        """
        size = self.step_size
        if size is None:
            size = 2.5 * self.eps / max(1, self.steps)
        there = start
        for _ in range(self.steps):
            there = self.step(x, there, size, gradient(there))
        return there

    def step(self, x: Tensor, there: Tensor, size: Bound, direction: Tensor) -> Tensor:
        """(B, *F): one step along the signs of a direction, projected.

        Args:
            x: (B, *F), the centre of the box.
            there: (B, *F), where the step begins.
            size: its length in every element.
            direction: (B, *F), of which only the signs count.
        """
        return project(there + like(size, x) * direction.sign().to(there), x, self.eps, self.bounds)
