"""What the commands print: words for people, with nothing in them that steers a terminal."""

from __future__ import annotations

import contextlib
import sys
from typing import TextIO

from ..errors import printable


def say(text: object = "", error: bool = False) -> None:
    """Print ``text``, to standard error if ``error``.

    Names of files and classes, and whatever a decoder says about them, may hold anything.
    """
    stream = sys.stderr if error else sys.stdout
    print(printable(text, keep="\n\t"), file=stream, flush=True)


def tolerate(*streams: TextIO) -> None:
    """Let ``streams`` of another encoding show escapes for what they cannot print, instead of an error."""
    for stream in streams:
        with contextlib.suppress(AttributeError, ValueError):  # a stream that somebody put in its place
            stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
