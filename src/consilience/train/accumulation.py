"""Sums over a batch whose gradients are added up chunk by chunk, so that only one chunk's graph is in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Gradients = list[Tensor | None]
"""One for each tensor that is differentiated by; None where the value does not depend on it."""


def chunks(numbers: Tensor, size: int) -> tuple[Tensor, ...]:
    """``numbers`` (n,) in pieces of at most ``size``, as even as can be, so that no small piece is left at the end."""
    pieces = -(-len(numbers) // max(1, size))
    return numbers.tensor_split(pieces)


def sum_with_gradients(values: Iterable[Tensor], wanted: Sequence[Tensor]) -> tuple[Tensor, Gradients]:
    """(Σ values, detached; its gradients). Each value's graph is freed before the next value is made.

    Args:
        values: numbers (), made one by one.
        wanted: what is differentiated by, at least one tensor.
    """
    total = torch.zeros((), device=wanted[0].device)
    gradients: Gradients = [None] * len(wanted)
    for value in values:
        total = total + value.detach()
        if value.requires_grad:
            more = torch.autograd.grad(value, wanted, allow_unused=True)
            gradients = added(gradients, more)
    return total, gradients


def added(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> Gradients:
    """The sums of ``first`` and ``second``, one by one; None stands for zero."""
    sums: Gradients = []
    for one, other in zip(first, second, strict=True):
        if one is None:
            sums.append(other)
        elif other is None:
            sums.append(one)
        else:
            sums.append(one + other)
    return sums


def with_gradients(value: Tensor, gradients: Gradients, wanted: Sequence[Tensor]) -> Tensor:
    """``value`` as a differentiable function of ``wanted`` whose gradients are known already.

    Args:
        value: a number (), without a graph.
        gradients: of ``value``, one for each of ``wanted``.
        wanted: the tensors to which a backward pass shall lead.
    """
    return _KnownGradients.apply(value, gradients, *wanted)


class _KnownGradients(torch.autograd.Function):
    """The function behind :func:`with_gradients`: its backward pass hands out what is known, times the incoming slope."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Gradients, *wanted: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        # None for ``value`` and ``gradients``, which are no tensors that were differentiated by.
        scaled = [None if gradient is None else slope.to(gradient.dtype) * gradient for gradient in ctx.gradients]
        return None, None, *scaled
