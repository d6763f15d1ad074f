"""Clean-up that an interrupt (Ctrl-C) cannot cut short."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def undoing(*steps: Callable[[], None]) -> Iterator[None]:
    """Run every step on leaving, the last one first, also when one of them raises.

    Register a step here before making the change that it undoes: an interrupt may come between the two.

    Args:
        *steps: functions without arguments. A step may run twice, or without the change having been made: it must not mind.
    """
    # Twice, in two stacks: an interrupt just before interrupts are held back stops the first of the two, be it in one of its
    # steps or before any.
    with contextlib.ExitStack() as once_more, contextlib.ExitStack() as first:
        for stack in (once_more, first):
            for step in steps:
                stack.callback(_without_interrupts, step)
        yield


def _without_interrupts(step: Callable[[], None]) -> None:
    """Run a step from its start to its end, whatever keys are pressed meanwhile."""
    with interrupts_held_back():
        step()


@contextlib.contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Ctrl-C inside takes effect on leaving."""
    before = signal.getsignal(signal.SIGINT)
    # Python runs signal handlers in the main thread only. Without a handler of Python's there is no KeyboardInterrupt.
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or before in (None, signal.SIG_IGN, signal.SIG_DFL):
        yield
        return
    interrupts: list[tuple[int, FrameType | None]] = []

    def note(number: int, frame: FrameType | None) -> None:
        interrupts.append((number, frame))

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if interrupts and callable(before):
            before(*interrupts[0])
