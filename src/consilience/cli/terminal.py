"""Printing: text for people, without the control characters that steer a terminal."""

from __future__ import annotations

import contextlib
import sys
from typing import TextIO

from ..errors import printable


def say(text: object = "", error: bool = False) -> None:
    """Print ``text``, to standard error if ``error``.

    Names of files and classes, and what a decoder says about a file, may hold control characters: they become escapes.
    """
    stream = sys.stderr if error else sys.stdout
    print(printable(text, keep="\n\t"), file=stream, flush=True)


def tolerate(*streams: TextIO) -> None:
    """Let ``streams`` of another encoding show escapes for what they cannot print, instead of an error."""
    for stream in streams:
        with contextlib.suppress(
            AttributeError, ValueError
        ):  # a stream that was put in its place, by a test or a notebook
            stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
