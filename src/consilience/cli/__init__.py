"""The command line: ``consilience explain | evaluate | report | methods | doctor``.

Exit codes: 0 all done; 1 finished, some inputs failed; 2 nothing done; 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ..errors import ConsilienceError
from .arguments import parser as parser
from .terminal import say, tolerate


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in ``argv``, by default the process's own, and return its exit code."""
    tolerate(sys.stdout, sys.stderr)
    top = parser()
    arguments = top.parse_args(argv)
    if arguments.command is None:
        top.print_help()
        return 0
    try:
        return _command(arguments.command)(arguments)
    except ConsilienceError as error:
        say(f"consilience: {error}", error=True)
        return 2
    except KeyboardInterrupt:
        say("consilience: interrupted", error=True)
        return 130
    except BrokenPipeError:  # `consilience methods | head`
        sys.stderr.close()
        return 0


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    """Import what runs a command, which takes seconds: torch comes with it."""
    with _quiet_interrupt():
        return importlib.import_module(f".{name}", __name__).run


@contextmanager
def _quiet_interrupt() -> Iterator[None]:
    """An interrupt while modules are imported ends the process at once. There is nothing to hand back yet, and as an
    exception it would surface as whatever the module that it hits makes of it."""

    def leave(*_: object) -> None:
        os.write(2, b"consilience: interrupted\n")
        os._exit(130)

    try:
        before = signal.signal(signal.SIGINT, leave)
    except ValueError:  # not the main thread, which gets no interrupts
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
