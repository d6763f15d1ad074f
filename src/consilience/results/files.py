"""Safe writing and reading of files: a new file replaces the old one in one step, and errors name the file."""

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
        InputError: it is not. For a number, the error tells how to get one input's numbers.
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
    """A context that turns errors of the file system into an InputError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def output(path: str | os.PathLike[str], argument: str = "path") -> Path:
    """``path`` as a place to write to.

    Args:
        path: of a file or folder.
        argument: what the caller calls it, for errors.

    Raises:
        InputError: it is not a name, or the empty string, which would mean the current folder.
    """
    if not isinstance(path, str | os.PathLike) or isinstance(os.fspath(path), bytes):
        raise InputError(f"{argument}: expected the name of a file, got {path!r:.60}")
    if not os.fspath(path):
        raise InputError(f"{argument}: the empty string names no file; give a name, or '.' for the current folder")
    return Path(path)


def write_bytes(path: Path, pieces: Iterable[bytes], sync: bool = True) -> None:
    """Write ``pieces`` to a new file beside ``path``, then put it in the place of ``path``.

    Whenever this is killed or fails, ``path`` holds either what it held before or all of the new content, and after a failure
    no other file is left. A symbolic link at ``path`` is replaced itself, not the file that it points to.

    Args:
        path: of the file.
        pieces: its content, in order.
        sync: wait until it is on the disk; False where the caller waits for many files at once.

    Raises:
        OSError: the file system refuses.
    """
    # A random name that must not exist yet (O_EXCL), so that a link which somebody else put there is never opened.
    part = path.parent / f".{secrets.token_hex(6)}.part"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        with open(os.open(part, flags, 0o666), "wb") as file:
            file.writelines(pieces)
            file.flush()
            if sync:
                # Else, after a power failure, the new name may exist without its content.
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise
    if sync:
        _sync(path.parent)


def write_text(path: Path, text: str | Iterable[str]) -> Path:
    """Write UTF-8 text to a file, completely or not at all, and return its path. Folders above it are made.

    Lone surrogates, which stand for the bytes of file names that are not UTF-8, are written as escapes (``\\udce9``).

    Args:
        path: of the file.
        text: its content; in pieces it is never in memory as a whole.

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
        os.sync()  # everything at once: a single file takes four milliseconds
        return
    for path in paths:
        _sync(path)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; of folders, not on Windows, which cannot."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# -- reading -----------------------------------------------------------------------------------------------------------


@contextmanager
def reading(path: Path, expected: str = "a folder written by save() or `consilience explain`") -> Iterator[None]:
    """A context that turns what readers raise of a missing or damaged file into an InputError that names it.

    Args:
        path: of the file.
        expected: what should be there, in words.
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
    """Kept, since every input of a run has them in its record, and each look-up reads files of the installed packages."""
    by_name = {"python": platform.python_version()}
    for name in ("consilience", "torch", "numpy"):
        try:
            by_name[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            by_name[name] = "source"
    return tuple(by_name.items())


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that compute the numbers; "source" where a package is not installed."""
    return dict(_versions())
