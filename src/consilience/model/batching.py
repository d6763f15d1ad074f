"""Batches of rows: how many rows are in flight at once, how many were evaluated, and the loop over them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import InputError

T = TypeVar("T")


@dataclass
class Counts:
    """Model evaluations so far, in rows.

    Args:
        forward: rows of which only outputs were asked.
        gradient: rows of which a gradient was asked, a forward and a backward pass.
        watch: called after each batch, if set: how progress is shown.
    """

    forward: int = 0
    gradient: int = 0
    watch: Callable[[Counts], None] | None = None

    def add(self, rows: int, gradient: bool) -> None:
        """Count a batch.

        Args:
            rows: how many.
            gradient: whether gradients were asked.
        """
        if gradient:
            self.gradient += rows
        else:
            self.forward += rows
        if self.watch:
            self.watch(self)


ROOM_OF_A_CORE = 300_000
"""Elements of the inputs in flight that fill a core's caches: two photographs of 224 × 224. More rows at once are no faster on
a processor, and slower where their activations are so large that the system hands out fresh memory for each."""

ROOM_OF_AN_ACCELERATOR = 20_000_000
"""The same of an accelerator, which is idle with few rows: 128 photographs."""


@dataclass
class Batch:
    """How many rows are in flight, by whether gradients are asked of them.

    "auto" doubles while a row gets cheaper by a tenth; running out of memory halves, for good. Each size is timed twice and
    the faster time counts, since machines are noisy.

    Args:
        limit: rows in flight, or "auto".

    Attributes:
        start: where "auto" begins, for gradients.
        most: where it ends, for gradients.
        of_outputs: times as many rows may be in flight of which only outputs are asked. They keep no activations, which is
            what fills an accelerator's memory; a processor's caches are as full with either.
        device: where the rows are.
        sizes: rows in flight, where they are no longer the first ones.
        best: seconds of a row at half the present size.
        times: seconds of a row at the present size.
        settled: what has been learnt, or has run out of memory.
    """

    limit: int | str = "auto"
    start: int = 4
    most: float = math.inf
    of_outputs: int = 4
    device: torch.device = torch.device("cpu")
    sizes: dict[bool, int] = field(default_factory=dict)
    best: dict[bool, float] = field(default_factory=dict)
    times: dict[bool, list[float]] = field(default_factory=dict)
    settled: set[bool] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.limit != "auto" and not (isinstance(self.limit, int) and self.limit > 0):
            raise InputError(f"max_batch: a positive integer or 'auto', got {self.limit!r}")

    def fit(self, x: Tensor) -> None:
        """Choose where to begin and end.

        Args:
            x: (B, *F), inputs of the size that is evaluated.
        """
        self.device = x.device
        if x.device.type == "cpu":
            room = ROOM_OF_A_CORE * torch.get_num_threads()
            self.of_outputs = 1
        else:
            room = ROOM_OF_AN_ACCELERATOR
            self.of_outputs = 4
        fitting = room // max(1, x[0].numel())
        power_of_two = 1 << (max(1, fitting).bit_length() - 1)
        self.start = min(256, max(4, power_of_two))
        self.most = max(4, power_of_two)

    def run(
        self, count: int, run: Callable[[slice], T], counts: Counts, gradient: bool = False, per: int = 1
    ) -> list[T]:
        """Evaluate rows in equal batches; each is timed and counted. Out of memory halves the batch and goes on.

        Args:
            count: of the rows.
            run: evaluates a slice of them.
            counts: gets the rows that were evaluated.
            gradient: whether gradients are asked.
            per: evaluations of each row.

        Returns:
            what ``run`` gave, batch by batch.

        Raises:
            torch.OutOfMemoryError: not even one row fits.
        """
        parts: list[T] = []
        start = 0
        while start < count:
            # Equal batches, not full ones and a rest: a rest of a few rows takes nearly as long as a full batch.
            left = count - start
            batches = -(-left // max(1, self.size(gradient) // per))
            part = slice(start, start + -(-left // batches))
            began = self.clock(gradient)
            try:
                parts.append(run(part))
            except torch.OutOfMemoryError:
                if not self.halve(gradient):
                    raise
                continue
            evaluated = (part.stop - part.start) * per
            self.took(evaluated, self.clock(gradient) - began, gradient)
            counts.add(evaluated, gradient)
            start = part.stop
        return parts

    def size(self, gradient: bool) -> int:
        """Rows in flight.

        Args:
            gradient: whether gradients are asked.
        """
        if gradient in self.sizes:
            return self.sizes[gradient]
        if self.limit != "auto":
            return int(self.limit)
        return self.start if gradient else self.of_outputs * self.start

    def clock(self, gradient: bool) -> float:
        """Seconds now; while a batch's size is being learnt, once an accelerator has done what it was given.

        Args:
            gradient: whether gradients are asked of the batch.
        """
        if self.device.type != "cpu" and self.limit == "auto" and gradient not in self.settled:
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()

    def took(self, rows: int, seconds: float, gradient: bool) -> None:
        """Learn from a (nearly) full batch.

        Args:
            rows: that it had.
            seconds: that it took.
            gradient: whether gradients were asked.
        """
        size = self.size(gradient)
        if self.limit != "auto" or gradient in self.settled or rows < 0.75 * size:
            return
        times = self.times.setdefault(gradient, [])
        times.append(seconds / rows)
        # The first batch of a size pays for what is set up once: kernels that are chosen, memory that is fetched.
        if len(times) < 2:
            return
        cheaper = min(times) < 0.9 * self.best.get(gradient, math.inf)
        most = self.most if gradient else self.of_outputs * self.most
        if not cheaper:
            self.sizes[gradient] = size // 2
        elif 2 * size <= most:
            self.best[gradient] = min(times)
            self.sizes[gradient] = 2 * size
            self.times[gradient] = []
            return
        self.settled.add(gradient)

    def halve(self, gradient: bool) -> bool:
        """Halve the size after running out of memory.

        Args:
            gradient: whether gradients were asked.

        Returns:
            whether there is hope: False if a batch of one row did not fit.
        """
        size = self.size(gradient)
        self.sizes[gradient] = max(1, size // 2)
        self.settled.add(gradient)
        return size > 1
