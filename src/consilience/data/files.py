"""Whether a file that is to be read is there at all, and what to say if not."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from ..errors import InputError

PathLike = str | os.PathLike[str]


def check_file(path: Path, what: str) -> None:
    """Raise an InputError unless ``path`` is a regular, readable file that holds something; ``what`` it is, for errors."""
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
        raise InputError(f"{what} {str(path)!r} cannot be read: {error}") from error
