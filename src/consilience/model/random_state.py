"""The global random generators of PyTorch, NumPy and Python: seeded for a while, and put back."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from .undo import undoing

T = TypeVar("T")


@dataclass(frozen=True)
class RandomState:
    """The state of every global generator; accelerators that were never used have none."""

    cpu: Tensor
    cuda: list[Tensor]
    numpy: Any
    python: Any

    @staticmethod
    def now() -> RandomState:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return RandomState(torch.get_rng_state(), cuda, np.random.get_state(), random.getstate())  # noqa: NPY002

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        np.random.set_state(self.numpy)  # noqa: NPY002
        random.setstate(self.python)

    def same(self, other: RandomState) -> bool:
        """Whether nothing was drawn between the two."""
        name, words, *rest = self.numpy
        other_name, other_words, *other_rest = other.numpy
        return (
            torch.equal(self.cpu, other.cpu)
            and len(self.cuda) == len(other.cuda)
            and all(torch.equal(one, two) for one, two in zip(self.cuda, other.cuda, strict=True))
            and (name, *rest) == (other_name, *other_rest)
            and bool((words == other_words).all())
            and self.python == other.python
        )


def seed_all(seed: int) -> None:
    """Seed every global generator with ``seed``, below 2^64."""
    # Not torch.manual_seed, which is slow: it queues a seed, with a stack trace, for every kind of device never used.
    torch.default_generator.manual_seed(seed >> 1)  # 63 bits
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed >> 1)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
    random.seed(seed)


_lock = threading.RLock()
_inside: dict[int, list[RandomState]] = {}  # thread → what it found each time it came in
_outside: list[RandomState] = []  # what the first thread found


def _forget() -> None:
    """In a forked process the other threads are not there, and will never leave."""
    global _lock
    _lock = threading.RLock()
    thread = threading.get_ident()
    for other in [other for other in _inside if other != thread]:
        del _inside[other]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def forked(seed: int = 0) -> Iterator[None]:
    """All global generators start from ``seed`` inside, and are afterwards as they were.

    The state is the process's: of several threads that are inside at once, the last one to leave puts back what the first
    one found. A thread that is inside twice finds its own draws undisturbed.
    """
    thread = threading.get_ident()
    depth = len(_inside.get(thread, ()))

    def leave() -> None:
        with _lock:
            found = _inside.get(thread, [])
            if len(found) <= depth:
                return  # left already, or never came in
            if depth:
                found[depth].restore()
            elif len(_inside) == 1:
                _outside[0].restore()
            del found[depth:]
            if not found:
                del _inside[thread]

    with undoing(leave):
        with _lock:
            found = RandomState.now()
            if not _inside:
                _outside[:] = [found]
            _inside.setdefault(thread, []).append(found)
        seed_all(seed)
        yield


def seeded(run: Callable[[], T], seed: int) -> tuple[T, bool]:
    """``run()`` with all global generators seeded, and whether it drew from one; afterwards they are as they were."""
    with forked(seed):
        start = RandomState.now()
        result = run()
        return result, not start.same(RandomState.now())
