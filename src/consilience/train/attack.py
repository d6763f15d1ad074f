"""The inner maximum of training objectives: :class:`~consilience.attacks.box.PGD` on what they evaluate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..attacks.box import PGD, Bound, Bounds
from ..errors import InputError
from ..model.state import borrowed
from .passes import Passes

__all__ = ["PGD", "Bounds", "Size", "bounds_of", "loss_gradient", "maximise", "normalised", "of_input", "start"]

Size = Bound
"""A length in units of the model's input: a number, or a tensor that broadcasts over (B, *F)."""


def normalised(length: Size, std: Sequence[float] | Tensor) -> Tensor:
    """A ``length`` in pixel units (ε, a step size) in units of inputs normalised by ``std`` (C,) per channel: (C, 1, 1).

    >>> normalised(8 / 255, (0.5, 0.25)).flatten()
    tensor([0.0627, 0.1255])
    """
    return torch.as_tensor(length) / torch.as_tensor(std).view(-1, 1, 1)


def bounds_of(
    mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor, low: float = 0.0, high: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The valid range of pixels in units of inputs (pixel − mean) / std, per channel: two tensors (C, 1, 1).

    Args:
        mean: (C,), in pixel units.
        std: (C,), in pixel units.
        low: the lowest pixel.
        high: the highest pixel.

    >>> [b.flatten().tolist() for b in bounds_of((0.5, 0.5), (0.5, 0.25))]
    [[-1.0, -2.0], [1.0, 2.0]]
    """
    mean = torch.as_tensor(mean)
    std = torch.as_tensor(std)
    lowest = (low - mean) / std
    highest = (high - mean) / std
    return lowest.view(-1, 1, 1), highest.view(-1, 1, 1)


def start(attack: PGD, passes: Passes) -> Tensor:
    """(B, *F): the random start of ``attack`` in this step of ``passes``.

    The same for every objective with the same seed, ids and step.
    """
    return attack.start(passes.x, passes.key / "attack", passes.ids, passes.step)


def maximise(attack: PGD, passes: Passes, gradient: Callable[[Tensor], Tensor]) -> Tensor:
    """(B, *F), detached: the last iterate of an attack from its random start.

    The model is in eval mode and its parameters are frozen meanwhile; both come back.

    Args:
        attack: its settings.
        passes: the objective's call.
        gradient: (B, *F) → (B, *F) of the quantity summed over inputs.
    """
    begin = start(attack, passes)
    with borrowed(passes.bare, freeze=True):
        return attack.ascend(passes.x, begin, gradient)


def loss_gradient(passes: Passes) -> Callable[[Tensor], Tensor]:
    """x' (B, *F) → ∇ ℓ(x') (B, *F) of the batch ``passes``, for :func:`maximise`."""

    def gradient(there: Tensor) -> Tensor:
        leaf = there.detach().requires_grad_()

        # In chunks of rows: ``leaf[numbers]`` leads every chunk's gradient back to the whole batch.
        def losses(numbers: Tensor, graph: bool) -> Tensor:
            return passes.losses(leaf[numbers], numbers, numbers)

        def total(values: Tensor, inputs: Tensor) -> Tensor:
            return values.sum()

        _, gradients = passes.slopes(losses, total, 1, [leaf])
        return of_input(gradients)

    return gradient


def of_input(gradients: list[Tensor | None]) -> Tensor:
    """The only one of ``gradients``, with respect to the input.

    Raises:
        InputError: the output does not depend on the input.
    """
    (gradient,) = gradients
    if gradient is None:
        raise InputError("model: its output does not depend on the input through differentiable operations")
    return gradient
