"""Features of sequences: windows of a series, and tokens of a text or of another padded sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..arrays import with_trailing_axes
from ..errors import InputError
from ..settings import setting
from .base import Features, check_rows, chosen_rows


@dataclass(frozen=True)
class Windows(Features):
    """A feature is a window of a series, over all other axes (channels); the last may be shorter. A = (⌈steps / size⌉,).

    Args:
        size: of a window, steps.
        axis: the time's place among the input's axes F, -1 for (B, channels, steps).

    Example:
        >>> Windows(10).shape((3, 48)), Windows(10, axis=0).shape((48, 3))
        ((5,), (5,))
    """

    size: int = setting(16, low=1)
    axis: int = -1

    @property
    def unit(self):  # type: ignore[override]
        return f"window of {self.size}"

    def shape(self, shape):
        return (-(-shape[self._axis(shape)] // self.size),)

    def reduce(self, values, owner):
        axis = self._axis(values.shape[1:])
        time_last = values.movedim(axis + 1, -1)
        steps = time_last.reshape(len(values), -1, time_last.shape[-1]).sum(1)
        # Steps that the last window lacks: zeros add nothing to its sum.
        missing = -steps.shape[1] % self.size
        windows = nnf.pad(steps, (0, missing)).unflatten(1, (-1, self.size))
        return windows.sum(2)

    def expand(self, values, owner, shape):
        axis = self._axis(shape)
        window_of_step = torch.arange(shape[axis], device=values.device) // self.size
        # (N, steps), with an axis of length 1 for each of the others.
        broadcast = [1] * len(shape)
        broadcast[axis] = shape[axis]
        return values[:, window_of_step].view(-1, *broadcast).expand(-1, *shape)

    def _axis(self, shape: Sequence[int]) -> int:
        """The time's place among F, from 0."""
        if not -len(shape) <= self.axis < len(shape):
            raise InputError(f"axis: {self.axis}, but each input has shape {tuple(shape)}")
        return self.axis % len(shape)


class Tokens(Features):
    """A feature is a place of a sequence, over all axes behind it (the embedding): F = (T, …), A = (T,).

    Gradients are reduced by their norm: the sum over an embedding's coordinates means nothing, and is zero for every token
    where a layer norm follows.

    Args:
        present: (B, T) bool, the tokens that count. Special tokens and padding are no features: their size is 0, ``reduce``
            gives 0 there, masks never select them, and noise leaves them as they are. One row stands for any number of inputs.

    Raises:
        InputError: ``present`` is not bool, or has other axes.
    """

    unit = "token"

    def __init__(self, present: Tensor):
        self.present = torch.as_tensor(present)
        if self.present.ndim != 2 or self.present.dtype != torch.bool:
            raise InputError(
                f"present: bool of shape (inputs, tokens), got {self.present.dtype} {tuple(self.present.shape)}"
            )

    def shape(self, shape):
        if not shape or shape[0] != self.present.shape[1]:
            raise InputError(
                f"features: {self.present.shape[1]} tokens, but each input has shape {tuple(shape)}; its first axis is the "
                "tokens'"
            )
        return tuple(shape[:1])

    def largest(self, shape):
        self.shape(shape)
        return int(self.present.sum(1).max())

    def check(self, inputs, owner=None):
        if len(self.present) > 1:
            check_rows("present", len(self.present), inputs, owner)

    def take(self, places):
        # One row is the same for any input.
        if len(self.present) == 1:
            return self
        return Tokens(chosen_rows(self.present, places, "present"))

    def reduce(self, values, owner):
        self.shape(values.shape[1:])
        over_embedding = values.reshape(*values.shape[:2], -1).sum(2)
        return over_embedding * self._of(owner)

    def reduce_gradient(self, values, owner):
        # The norm over the embedding's coordinates: a sum of squares, since `reduce` sums.
        return self.reduce(values**2, owner).sqrt()

    def expand(self, values, owner, shape):
        self.shape(shape)
        # Where, not a product: the value of a place that does not count may be NaN.
        counted = torch.where(self._of(owner), values, torch.zeros_like(values))
        return with_trailing_axes(counted, len(shape) - 1).expand(-1, *shape)

    def movable(self, shape):
        return with_trailing_axes(self.present, len(shape) - 1)

    def _of(self, owner: Tensor) -> Tensor:
        """(N, T): the tokens that count, of the input of each row."""
        row = owner if len(self.present) > 1 else torch.zeros_like(owner)
        return self.present.to(owner.device)[row]
