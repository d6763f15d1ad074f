"""The answer with its evidence, and what every solver does first: double precision, usable entries, corners."""

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


F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Solution:
    """A minimiser per input and how far from optimal it can be.

    ``weights`` (B, k), ≥ 0 and summing to 1 (Σ|w| = 1 if signed); ``value`` (B,), the minimised criterion at them;
    ``gap`` (B,), an upper bound of value − optimum; ``status``, one line per input. Without a valid method the numbers
    are NaN and the status says so.
    """

    weights: Tensor
    value: Tensor
    gap: Tensor
    status: tuple[str, ...]

    def inputs(self, index: Sequence[int]) -> Solution:
        """Only some inputs."""
        at = list(index)
        return Solution(self.weights[at], self.value[at], self.gap[at], tuple(self.status[i] for i in at))


def convert(value: Any, how: Callable[[Tensor], Tensor]) -> Any:
    """``how`` of a tensor, or of every tensor that a dataclass holds, in it or deeper; anything else as it is."""
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
    """Run ``solver`` detached, in float64 and on the processor: its thousands of small steps wait for one another, and on an
    accelerator each would cost a launch. What it finds goes back to where its arguments were (in float32 on Apple's GPU)."""

    def enter(x: Tensor) -> Tensor:
        x = x.detach().cpu()
        return x.double() if x.is_floating_point() else x

    @functools.wraps(solver)
    def wrapped(first: Any, *args: Any, **kwargs: Any) -> Any:
        probe: list[Tensor] = []
        convert(first, lambda x: probe.append(x) or x)  # type: ignore[func-returns-value]
        home = probe[0].device

        def leave(x: Tensor) -> Tensor:
            return (x.float() if x.is_floating_point() and home.type == "mps" else x).to(home)

        with torch.no_grad(), _one_thread():
            rest = [convert(a, enter) for a in args]
            named = {name: convert(a, enter) for name, a in kwargs.items()}
            result = solver(convert(first, enter), *rest, **named)
        return result if home.type == "cpu" else convert(result, leave)

    return wrapped  # type: ignore[return-value]


def diagonal(matrix: Tensor) -> Tensor:
    """(B, k, k) → (B, k)."""
    return matrix.diagonal(dim1=-2, dim2=-1)


def form(matrix: Tensor, w: Tensor) -> Tensor:
    """wᵀMw: (B, k, k), (B, k) → (B,)."""
    return torch.einsum("bi,bij,bj->b", w, matrix, w)


def usable(valid: Tensor | None, *matrices: Tensor) -> tuple[Tensor, ...]:
    """(valid (B, k), the matrices with the rows and columns of the others set to zero).

    An entry is unusable if the caller says so, or if its diagonal, or its row among those left, is not finite.
    """
    shape = matrices[0].shape
    if len(shape) != 3 or shape[1] != shape[2] or any(m.shape != shape for m in matrices):
        raise InputError(f"simplex: matrices are (B, k, k) and alike, got {[tuple(m.shape) for m in matrices]}")
    if valid is not None and valid.shape != shape[:2]:
        raise InputError(f"simplex: valid is (B, k) = {tuple(shape[:2])}, got {tuple(valid.shape)}")
    ok = torch.ones(shape[:2], dtype=torch.bool, device=matrices[0].device) if valid is None else valid.bool()
    for m in matrices:
        ok = ok & diagonal(m).isfinite()
    for m in matrices:
        ok = ok & (m.isfinite() | ~ok[:, None]).all(2)
    both = ok[:, :, None] & ok[:, None]
    return ok, *(torch.where(both, m, 0.0) for m in matrices)


def corner(index: Tensor, k: int) -> Tensor:
    """(B,) → (B, k): all weight on one method."""
    return torch.nn.functional.one_hot(index, k).double()


def even(ok: Tensor) -> Tensor:
    """(B, k): the mean of the valid methods."""
    return ok.double() / ok.sum(1, keepdim=True).clamp(min=1)


def normalise(w: Tensor) -> Tensor:
    """(…, k) scaled to Σ|w| = 1; the largest entry first, so that nothing overflows."""
    w = w / w.abs().amax(-1, keepdim=True).clamp(min=1e-300)
    return w / w.abs().sum(-1, keepdim=True).clamp(min=1e-300)


def finish(
    w: Tensor, value: Tensor, gap: Tensor, ok: Tensor, unit: Tensor, says: dict[str, Tensor] | None = None
) -> Solution:
    """Status and NaN for inputs without a method. ``unit`` (B,): what a negligible gap is measured against, beside the
    value; ``says``: status → (B,) where it holds."""
    some = ok.any(1)
    certified = gap <= torch.maximum(1e-8 * value.abs(), 1e-12 * unit)
    status = [
        "optimal" if yes else f"certified to {g:.0e}" for yes, g in zip(certified.tolist(), gap.tolist(), strict=True)
    ]
    for text, where in {**(says or {}), "no valid method": ~some}.items():
        for i in where.nonzero()[:, 0].tolist():
            status[i] = text
    nan = torch.tensor(torch.nan, dtype=torch.float64, device=w.device)
    return Solution(
        torch.where(some[:, None], w, nan), torch.where(some, value, nan), torch.where(some, gap, nan), tuple(status)
    )
