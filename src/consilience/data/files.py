"""Checks a file before it is read, and says what is wrong with it."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from ..errors import InputError

PathLike = str | os.PathLike[str]


def check_file(path: Path, what: str) -> None:
    """Refuse what is not a regular, readable file that holds something.

    Args:
        path: of the file.
        what: what it is, for errors: "image", "checkpoint".

    Raises:
        InputError: there is no such file, or it is empty, a folder, or not to be read.
    """
    try:
        if path.is_dir():
            raise InputError(f"{what} {str(path)!r} is a folder; pass the files in it")
        if not path.exists():
            near: list[str] = []
            hint = ""
            if path.parent.is_dir():
                near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=3)
            if near:
                hint = f"; did you mean {', '.join(map(repr, near))}?"
            raise InputError(f"{what} {str(path)!r}: no such file{hint}")
        if not path.is_file():
            raise InputError(f"{what} {str(path)!r} is not a regular file")
        if path.stat().st_size == 0:
            raise InputError(f"{what} {str(path)!r} is empty (0 bytes): an interrupted copy or download?")
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        # A path with a null byte is a ValueError.
        raise InputError(f"{what} {str(path)!r} cannot be read: {error}") from error
