"""Switches of the whole process that PyTorch has: off while a thread wants them off, and afterwards as they were."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .undo import interrupts_held_back, undoing


class Switch:
    """A switch of the whole process, which several threads may want off at once.

    The first thread that comes in remembers how the switch was; the last one that leaves puts it back.

    Args:
        read: whether the switch is on.
        write: sets it.
    """

    def __init__(self, read: Callable[[], bool], write: Callable[[bool], Any]) -> None:
        self._read = read
        self._write = write
        self._lock = threading.Lock()
        self._tickets: set[tuple[int, object]] = set()  # (thread, one use of `off`) of all that are inside
        self._before = True
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget_other_threads)

    def _forget_other_threads(self) -> None:
        """In a forked process the other threads are not there, and will never leave. The lock may have been theirs."""
        self._lock = threading.Lock()
        thread = threading.get_ident()
        self._tickets = {ticket for ticket in self._tickets if ticket[0] == thread}

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the switch is off."""
        # A ticket and not a count: leaving may run twice (see `undoing`), and a second discard does no harm.
        ticket = (threading.get_ident(), object())

        def leave() -> None:
            with self._lock:
                self._tickets.discard(ticket)
                if not self._tickets and self._read() != self._before:
                    self._write(self._before)

        # An interrupt between a block's last line and the lock's release would keep the lock for good.
        with interrupts_held_back(), self._lock:
            if not self._tickets:
                self._before = self._read()
        with undoing(leave):
            with interrupts_held_back(), self._lock:
                self._tickets.add(ticket)
                if self._read():
                    self._write(False)
            yield


def _set_cudnn(enabled: bool) -> None:
    """As a function, which an assignment is not."""
    torch.backends.cudnn.enabled = enabled


CUDNN = Switch(lambda: torch.backends.cudnn.enabled, _set_cudnn)
"""cuDNN, whose recurrent layers have no backward pass in eval mode."""

FAST_PATH = Switch(torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled)
"""The fused kernel of ``nn.TransformerEncoder`` in eval mode without gradients, which gives padded places other values."""
