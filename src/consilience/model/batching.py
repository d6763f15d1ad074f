"""Rows in flight: how many fit, and how many were evaluated."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import InputError


@dataclass
class Counts:
    """Model evaluations so far, in rows: ``forward`` only, and ``gradient`` (a forward and a backward pass).

    ``watch``, if set, is called after each batch: how progress is shown.
    """

    forward: int = 0
    gradient: int = 0
    watch: Callable[[Counts], None] | None = None

    def add(self, rows: int, gradient: bool) -> None:
        if gradient:
            self.gradient += rows
        else:
            self.forward += rows
        if self.watch:
            self.watch(self)


@dataclass
class Batch:
    """How many rows are in flight. "auto" doubles while a row gets cheaper by a tenth; running out of memory halves, for
    good. Each size is timed twice and the faster time counts, since machines are noisy.

    ``start``: where "auto" begins, for gradients; ``most``: where it ends; four times both for outputs."""

    limit: int | str = "auto"
    start: int = 4
    most: float = math.inf
    device: torch.device = torch.device("cpu")
    sizes: dict[bool, int] = field(default_factory=dict)
    best: dict[bool, float] = field(default_factory=dict)
    times: dict[bool, list[float]] = field(default_factory=dict)
    settled: set[bool] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.limit != "auto" and not (isinstance(self.limit, int) and self.limit > 0):
            raise InputError(f"max_batch: a positive integer or 'auto', got {self.limit!r}")

    def fit(self, x: Tensor) -> None:
        """Where to begin and end with inputs like ``x``: a power of two. A processor's batch that fills its caches (for each
        core, two photographs of 224 × 224) is as fast as a larger one and takes less memory; an accelerator is idle with few
        rows."""
        self.device = x.device
        room = 300_000 * torch.get_num_threads() if x.device.type == "cpu" else 20_000_000
        rows = 1 << (max(1, room // max(1, x[0].numel())).bit_length() - 1)
        self.start = min(256, max(4, rows))
        self.most = max(4, rows)

    def size(self, gradient: bool) -> int:
        start = self.start if gradient else 4 * self.start  # outputs alone keep no activations
        return self.sizes.get(gradient, start if self.limit == "auto" else int(self.limit))

    def clock(self, gradient: bool) -> float:
        """The time; while a batch's size is being learnt, once an accelerator has done what it was given."""
        if self.device.type != "cpu" and self.limit == "auto" and gradient not in self.settled:
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()

    def took(self, rows: int, seconds: float, gradient: bool) -> None:
        """Learn from a (nearly) full batch."""
        size = self.size(gradient)
        if self.limit != "auto" or gradient in self.settled or rows < 0.75 * size:
            return
        times = self.times.setdefault(gradient, [])
        times.append(seconds / rows)
        if len(times) < 2:
            return
        cheaper = min(times) < 0.9 * self.best.get(gradient, math.inf)
        if not cheaper:
            self.sizes[gradient] = size // 2
        elif 2 * size <= (self.most if gradient else 4 * self.most):
            self.best[gradient], self.sizes[gradient], self.times[gradient] = min(times), size * 2, []
            return
        self.settled.add(gradient)

    def halve(self, gradient: bool) -> bool:
        """After running out of memory; False when a batch of one does not fit either."""
        size = self.size(gradient)
        self.sizes[gradient] = max(1, size // 2)
        self.settled.add(gradient)
        return size > 1
