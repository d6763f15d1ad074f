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

from .undo import interrupts_held_back, undoing

T = TypeVar("T")


@dataclass(frozen=True)
class RandomState:
    """The state of every global generator.

    Args:
        cpu: of PyTorch's generator on the CPU.
        cuda: of its generators on each GPU; empty before the first use of a GPU in the process.
        numpy: of NumPy's legacy generator, ``np.random.*``.
        python: of the module :mod:`random`.
    """

    cpu: Tensor
    cuda: list[Tensor]
    numpy: Any
    python: Any

    @staticmethod
    def now() -> RandomState:
        """The state at this moment."""
        # Asking for the states of GPUs would start CUDA in a process that has not used it.
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return RandomState(torch.get_rng_state(), cuda, np.random.get_state(), random.getstate())  # noqa: NPY002

    def restore(self) -> None:
        """Put every generator into this state."""
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        np.random.set_state(self.numpy)  # noqa: NPY002
        random.setstate(self.python)

    def same(self, other: RandomState) -> bool:
        """Whether nothing was drawn between two states.

        Args:
            other: an earlier or later state of the same process.
        """
        # NumPy's is (name, 624 words, position, a spare normal number or 0, that number).
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


# The states at which each thread that is inside `forked` came in, the outermost first; and that of the first thread.
_lock = threading.RLock()
_inside: dict[int, list[RandomState]] = {}
_outside: list[RandomState] = []  # at most one: a list, so that it is changed in place


def _forget_other_threads() -> None:
    """In a forked process the other threads are not there, and will never leave. The lock may have been theirs."""
    global _lock
    _lock = threading.RLock()
    thread = threading.get_ident()
    for other in [other for other in _inside if other != thread]:
        del _inside[other]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)


@contextlib.contextmanager
def forked(seed: int = 0) -> Iterator[None]:
    """All global generators start from a seed inside, and are afterwards as they were.

    The state is the process's: of several threads that are inside at once, the last one to leave puts back the state at which
    the first one came in. A thread that is inside twice goes on with its own draws.

    Args:
        seed: below 2^64.
    """
    thread = threading.get_ident()
    depth = len(_inside.get(thread, ()))

    def leave() -> None:
        with _lock:
            states = _inside.get(thread, [])
            if len(states) <= depth:
                return  # left already (`undoing` runs it twice), or never came in
            if depth:
                # Inside another `forked` of this thread: go on from its draws.
                states[depth].restore()
            elif len(_inside) == 1:
                _outside[0].restore()
            # Else other threads are inside, whose state this one must not touch.
            del states[depth:]
            if not states:
                del _inside[thread]

    # Leaving is registered before coming in: an interrupt may come between the two.
    with undoing(leave):
        # An interrupt between a block's last line and the lock's release would keep the lock for good.
        with interrupts_held_back(), _lock:
            state = RandomState.now()
            if not _inside:
                _outside[:] = [state]
            _inside.setdefault(thread, []).append(state)
        seed_all(seed)
        yield


def seeded(run: Callable[[], T], seed: int) -> tuple[T, bool]:
    """What a function gives with all global generators seeded, and whether it drew from one; afterwards they are as they were.

    Args:
        run: the function, called once without arguments.
        seed: below 2^64.
    """
    with forked(seed):
        start = RandomState.now()
        result = run()
        return result, not start.same(RandomState.now())
