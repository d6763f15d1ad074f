"""What a solver returns, and what every solver does first: double precision, usable entries, corners.

Shapes: B inputs, k explainers; matrices (B, k, k), weights (B, k).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import InputError

EPS = torch.finfo(torch.float64).eps

CERTIFIED = 1e-8
"""A gap of this share of the value, or ..."""

NEGLIGIBLE = 1e-12
"""... of the solver's unit counts as none: the status is "optimal"."""

TINY = 1e-300
"""Divisors are at least this, so that 0/0 is 0 and no NaN gets into a batch."""

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Solution:
    """A minimiser per input, and how far from optimal it can be. Without a valid method the numbers are NaN.

    Args:
        weights: (B, k), ≥ 0 and summing to 1; Σ|w| = 1 if they may have either sign.
        value: (B,), the minimised criterion at them.
        gap: (B,), an upper bound of value − optimum.
        status: one line per input, in words.
    """

    weights: Tensor
    value: Tensor
    gap: Tensor
    status: tuple[str, ...]

    def inputs(self, index: Sequence[int]) -> Solution:
        """Only the inputs with the numbers ``index``."""
        at = list(index)
        return Solution(self.weights[at], self.value[at], self.gap[at], tuple(self.status[i] for i in at))


def convert(value: Any, how: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with every tensor in it replaced by ``how`` of it: a tensor, or a dataclass that holds some, at any depth.

    Anything else stays as it is.
    """
    if isinstance(value, Tensor):
        return how(value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: convert(getattr(value, f.name), how) for f in fields(value)})
    return value


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Thousands of operations on k × k matrices: on a busy CPU, threads that wait for each other cost ten times the work."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


def in_double(solver: F) -> F:
    """Run ``solver`` detached, in float64 and on the CPU; what it returns goes back to where its arguments were.

    A solver takes thousands of small steps that wait for one another, and on an accelerator each would cost a launch. Apple's
    GPU has no float64, so its results are float32.
    """

    def enter(x: Tensor) -> Tensor:
        x = x.detach().cpu()
        return x.double() if x.is_floating_point() else x

    @functools.wraps(solver)
    def wrapped(first: Any, *args: Any, **kwargs: Any) -> Any:
        home = _device_of(first)

        def leave(x: Tensor) -> Tensor:
            if x.is_floating_point() and home.type == "mps":
                x = x.float()
            return x.to(home)

        with torch.no_grad(), _one_thread():
            rest = [convert(each, enter) for each in args]
            named = {name: convert(each, enter) for name, each in kwargs.items()}
            result = solver(convert(first, enter), *rest, **named)
        return result if home.type == "cpu" else convert(result, leave)

    return wrapped  # type: ignore[return-value]


def _device_of(value: Any) -> torch.device:
    """Where the first tensor of ``value`` is: a tensor, or a dataclass that holds some."""
    devices: list[torch.device] = []

    def note(x: Tensor) -> Tensor:
        devices.append(x.device)
        return x

    convert(value, note)
    return devices[0]


def diagonal(matrix: Tensor) -> Tensor:
    """(…, k): the diagonals of ``matrix`` (…, k, k)."""
    return matrix.diagonal(dim1=-2, dim2=-1)


def form(matrix: Tensor, w: Tensor) -> Tensor:
    """wᵀMw (B,), of ``matrix`` M (B, k, k) and ``w`` (B, k)."""
    return torch.einsum("bi,bij,bj->b", w, matrix, w)


def usable(valid: Tensor | None, *matrices: Tensor) -> tuple[Tensor, ...]:
    """(valid (B, k), the matrices with the rows and columns of the other methods set to zero).

    A method is unusable if the caller says so, or if its diagonal entry is not finite, or its row among those left.

    Args:
        valid: (B, k) bool; all by default.
        *matrices: (B, k, k) each.

    Raises:
        InputError: shapes that do not fit.
    """
    shape = matrices[0].shape
    if len(shape) != 3 or shape[1] != shape[2] or any(m.shape != shape for m in matrices):
        raise InputError(f"simplex: matrices are (B, k, k) and alike, got {[tuple(m.shape) for m in matrices]}")
    if valid is not None and valid.shape != shape[:2]:
        raise InputError(f"simplex: valid is (B, k) = {tuple(shape[:2])}, got {tuple(valid.shape)}")
    if valid is None:
        ok = torch.ones(shape[:2], dtype=torch.bool, device=matrices[0].device)
    else:
        ok = valid.bool()
    # Diagonals first: one method that is NaN puts NaN into every other method's row, and would take all of them along.
    for matrix in matrices:
        ok = ok & diagonal(matrix).isfinite()
    for matrix in matrices:
        ok = ok & (matrix.isfinite() | ~ok[:, None]).all(2)
    both = ok[:, :, None] & ok[:, None]
    return ok, *(torch.where(both, matrix, 0.0) for matrix in matrices)


def corner(index: Tensor, k: int) -> Tensor:
    """(B, k): all weight on method ``index`` (B,) of ``k``."""
    return torch.nn.functional.one_hot(index, k).double()


def even(ok: Tensor) -> Tensor:
    """(B, k): equal weights for the valid methods ``ok`` (B, k); zeros where there is none."""
    return ok.double() / ok.sum(1, keepdim=True).clamp(min=1)


def normalise(w: Tensor) -> Tensor:
    """``w`` (…, k) scaled to Σ|w| = 1; zeros stay zeros."""
    # By the largest entry first, so that the sum neither overflows nor vanishes.
    w = w / w.abs().amax(-1, keepdim=True).clamp(min=TINY)
    return w / w.abs().sum(-1, keepdim=True).clamp(min=TINY)


def finish(
    w: Tensor, value: Tensor, gap: Tensor, ok: Tensor, unit: Tensor, reasons: dict[str, Tensor] | None = None
) -> Solution:
    """The solution with its status in words, and NaN for inputs without a method.

    Args:
        w: (B, k), the weights.
        value: (B,), the criterion.
        gap: (B,), its certificate.
        ok: (B, k) bool, methods that could be used.
        unit: (B,), what a negligible gap is measured against, beside the value.
        reasons: status → (B,) bool where it holds in place of the gap's; of several the last one counts.
    """
    some = ok.any(1)
    optimal = gap <= torch.maximum(CERTIFIED * value.abs(), NEGLIGIBLE * unit)
    status = []
    for certain, number in zip(optimal.tolist(), gap.tolist(), strict=True):
        status.append("optimal" if certain else f"certified to {number:.0e}")
    for text, where in {**(reasons or {}), "no valid method": ~some}.items():
        for i in where.nonzero()[:, 0].tolist():
            status[i] = text
    nan = torch.tensor(torch.nan, dtype=torch.float64, device=w.device)
    return Solution(
        weights=torch.where(some[:, None], w, nan),
        value=torch.where(some, value, nan),
        gap=torch.where(some, gap, nan),
        status=tuple(status),
    )
