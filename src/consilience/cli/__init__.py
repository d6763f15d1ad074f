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
    """Run a command and return its exit code.

    Args:
        argv: the command's words; None: the process's own.
    """
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
    except BrokenPipeError:
        # As in `consilience methods | head`. With standard error closed, Python cannot complain about it at exit either.
        sys.stderr.close()
        return 0


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    """What runs the command of this name. Importing it takes seconds, since torch comes with it."""
    with _quiet_interrupt():
        return importlib.import_module(f".{name}", __name__).run


@contextmanager
def _quiet_interrupt() -> Iterator[None]:
    """Let an interrupt while modules are imported end the process at once.

    Nothing has been made yet that could be lost. As an exception, an interrupt may be caught by the module that is being
    imported, and come out as another error.
    """

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
