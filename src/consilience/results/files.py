"""Files: written beside and swapped in, read with errors that name the file."""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from ..errors import InputError, choose

SCHEMA = 1
"""The version of the files that this release writes, and the newest that it reads."""


def row_named(name: Any, rows: Iterable[str]) -> str:
    """``name`` if it is one of a result's ``rows``.

    Raises:
        InputError: it is not; of a number, how one input's numbers are had.
    """
    if isinstance(name, str):
        return choose("row", name, rows)
    raise InputError(
        f"unknown row {name!r}: rows have names, such as 'consensus'; one input's numbers are r.attribution[i], "
        "r['consensus'][i] and r.record(i)"
    )


# -- writing -----------------------------------------------------------------------------------------------------------


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the file system refuses, as an InputError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def output(path: str | os.PathLike[str], argument: str = "path") -> Path:
    """``path`` as a place to write to. ``argument``: its name, for errors.

    Raises:
        InputError: it is the empty string, which would stand for the current folder.
    """
    if not isinstance(path, str | os.PathLike) or isinstance(os.fspath(path), bytes):
        raise InputError(f"{argument}: expected the name of a file, got {path!r:.60}")
    if not os.fspath(path):
        raise InputError(f"{argument}: the empty string names no file; give a name, or '.' for the current folder")
    return Path(path)


def write_bytes(path: Path, pieces: Iterable[bytes], sync: bool = True) -> None:
    """Write ``pieces`` to a new file beside ``path``, then put it in the place of ``path``.

    Args:
        path: of the file.
        pieces: of its content, in order.
        sync: wait until it is on the disk; False where the caller waits for many files at once.

    Killed or failing at any point, ``path`` holds what it held before or all of the new content, and a failure leaves no
    other file behind. Nothing is followed: a symbolic link at ``path`` is replaced, not what it points to.

    Raises:
        OSError: the file system refuses.
    """
    # A random name that must not exist: a link that somebody laid there is never opened.
    part = path.parent / f".{secrets.token_hex(6)}.part"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        with open(os.open(part, flags, 0o666), "wb") as file:
            file.writelines(pieces)
            file.flush()
            if sync:
                # Without this, a machine that stops may keep the new name and lose the content.
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise
    if sync:
        _sync(path.parent)


def write_text(path: Path, text: str | Iterable[str]) -> Path:
    """Write UTF-8 to ``path``, whole or not at all, making the folders above. ``text`` in pieces is never in memory as a whole.

    Half a character, such as a file name that is no UTF-8 has, is written as an escape (``\\udce9``).

    Raises:
        InputError: the file system refuses.
    """
    pieces = [text] if isinstance(text, str) else text
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, (piece.encode("utf-8", "backslashreplace") for piece in pieces))
    return path


def sync_tree(folder: Path) -> None:
    """Wait until all that is in ``folder`` is on the disk."""
    paths = [folder, *folder.rglob("*")]
    if len(paths) > 32 and hasattr(os, "sync"):
        os.sync()  # of everything at once: a file by itself takes four milliseconds
        return
    for path in paths:
        _sync(path)


def _sync(path: Path) -> None:
    """Wait for a file, or for the names in a folder, where the system can (Windows cannot, of folders)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# -- reading -----------------------------------------------------------------------------------------------------------


@contextmanager
def reading(path: Path, expected: str = "a folder written by save() or `consilience explain`") -> Iterator[None]:
    """What a missing or damaged file at ``path`` makes its reader raise, as an InputError that names it.

    ``expected``: what should be there, in words.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path}: no such file; expected {expected}") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise InputError(f"{path}: damaged, or of another version ({type(error).__name__}: {error})") from error


@lru_cache
def _versions() -> tuple[tuple[str, str], ...]:
    """Asked for every input of a run, and slow: the package index is a folder of files."""
    found = {"python": platform.python_version()}
    for name in ("consilience", "torch", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "source"
    return tuple(found.items())


def versions() -> dict[str, str]:
    """Of Python and the libraries that the numbers rest on; "source" for what is not installed as a package."""
    return dict(_versions())
