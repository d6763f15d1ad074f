"""The inner maximum: projected sign-gradient ascent in the box around x (Madry et al. 2018, arXiv 1706.06083)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..model.state import borrowed
from .passes import Passes, like

Size = float | Tensor


Bounds = tuple[Size, Size]


def normalised(length: Size, std: Sequence[float] | Tensor) -> Tensor:
    """A length in pixel units (ε, a step size) in units of inputs normalised by ``std`` per channel: (C, 1, 1).

    >>> normalised(8 / 255, (0.5, 0.25)).flatten()
    tensor([0.0627, 0.1255])
    """
    return torch.as_tensor(length) / torch.as_tensor(std).view(-1, 1, 1)


def bounds_of(
    mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor, low: float = 0.0, high: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The valid range low … high of pixels in units of inputs (pixel − mean) / std, per channel: two tensors (C, 1, 1).

    >>> [b.flatten().tolist() for b in bounds_of((0.5, 0.5), (0.5, 0.25))]
    [[-1.0, -2.0], [1.0, 2.0]]
    """
    mean, std = torch.as_tensor(mean), torch.as_tensor(std)
    lowest, highest = ((side - mean) / std for side in (low, high))
    return lowest.view(-1, 1, 1), highest.view(-1, 1, 1)


@dataclass(frozen=True)
class PGD:
    """x' ← project(x' + step_size · sign ∇q(x')), ``steps`` times from x + U(−ε, ε); the last iterate.

    Projected to ‖x' − x‖∞ ≤ ε and to ``bounds``. All in units of the model's input; tensors broadcast over (B, *F), e.g.
    (C, 1, 1) for a size per channel (:func:`normalised`, :func:`bounds_of`).

    Args:
        eps: ε.
        steps: 0 leaves x at its random start.
        step_size: None: 2.5 ε / steps, with which the whole box can be reached.
        bounds: (lowest, highest) of valid inputs, or None.
    """

    eps: Size
    steps: int = 10
    step_size: Size | None = None
    bounds: Bounds | None = None

    def __post_init__(self) -> None:
        if not bool((torch.as_tensor(self.eps) >= 0).all()):
            raise InputError(f"eps: not negative, got {self.eps!r}")
        if not (isinstance(self.steps, int) and self.steps >= 0):
            raise InputError(f"steps: an integer, at least 0, got {self.steps!r}")

    def project(self, there: Tensor, x: Tensor) -> Tensor:
        eps = like(self.eps, x)
        there = torch.minimum(torch.maximum(there, x - eps), x + eps)
        if self.bounds is None:
            return there
        low, high = (like(side, x) for side in self.bounds)
        return torch.minimum(torch.maximum(there, low), high)

    def start(self, passes: Passes) -> Tensor:
        """(B, *F): the random start of this step; the same for every objective with the same seed, ids and step."""
        x = passes.x
        u = (passes.key / "attack").uniform(passes.ids, passes.step, x.shape[1:], x.dtype)
        return self.project(x + like(self.eps, x) * (2 * u - 1), x)

    def maximise(self, passes: Passes, gradient: Callable[[Tensor], Tensor]) -> Tensor:
        """(B, *F), detached. ``gradient``: (B, *F) → (B, *F) of the quantity summed over inputs.

        The model is in eval mode and its parameters are frozen meanwhile; both come back.
        """
        size = like(2.5 * self.eps / max(1, self.steps) if self.step_size is None else self.step_size, passes.x)
        there = self.start(passes)
        with borrowed(passes.bare, freeze=True):
            for _ in range(self.steps):
                there = self.project(there + size * gradient(there).sign(), passes.x)
        return there


def loss_gradient(passes: Passes) -> Callable[[Tensor], Tensor]:
    """∇ ℓ(x'), for :meth:`PGD.maximise`."""

    def gradient(there: Tensor) -> Tensor:
        leaf = there.detach().requires_grad_()
        rows = lambda i, graph: passes.losses(leaf[i], i, i)  # noqa: E731
        return _only(passes.slopes(rows, lambda losses, _: losses.sum(), 1, [leaf])[1])

    return gradient


def _only(gradients: list[Tensor | None]) -> Tensor:
    (found,) = gradients
    if found is None:
        raise InputError("model: its output does not depend on the input through differentiable operations")
    return found
