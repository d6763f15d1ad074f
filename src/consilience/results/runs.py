"""Writes a run's folder: a new run replaces an earlier one in one step, so that at any time one of the two is whole."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..report.entry import Entry
from .files import SCHEMA, output, reading, sync_tree, write_bytes, writing
from .lock import Lock
from .stored import ARRAYS, PICTURE, RECORD, write_input

INDEX = "run.json"
"""The file that lists a run's inputs."""

NEXT = ".next"
"""In a run's folder, the folder of a run that is being written."""

READY = ".ready"
"""The same folder once it is complete: its parts replace those of the earlier run."""

OURS = {RECORD, ARRAYS, PICTURE}
"""The files of one input's folder. Other files there are the user's, and stay."""


class RunFolder:
    """Writes a run to a folder; a context manager that only one process at a time can enter.

    Inputs are written to ``.next`` first. :meth:`commit` adds the list of the whole run and renames ``.next`` to ``.ready``:
    from that step on, readers get the new run. Then its parts move to their places. If the process is killed before that
    step, the earlier run is whole; if after it, the new one is, and the next writer completes the move.

    Args:
        directory: the run's folder; made on entering if there is none.
        argument: what the caller calls the folder, for errors.

    Raises:
        InputError: on entering, the folder cannot be written, holds a ``run.json`` that consilience did not write, or another
            process writes to it.

    Example:
        >>> with RunFolder(directory) as run:  # doctest: +SKIP
        ...     run.add("000", entry, arrays)
        ...     run.commit(["000"], {})
    """

    def __init__(self, directory: str | os.PathLike[str], argument: str = "directory"):
        self.directory = output(directory, argument)
        self.next = self.directory / NEXT
        self._ready = self.directory / READY
        self._lock = Lock(self.directory / ".lock", self.directory)
        self._made = False

    def __enter__(self) -> RunFolder:
        with writing(self.directory):
            self._made = not self.directory.exists()
            self.directory.mkdir(parents=True, exist_ok=True)
        self._lock.__enter__()
        try:
            with writing(self.directory):
                self._refuse_foreign_list()
                self._settle()
        except BaseException:
            self._lock.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.__exit__(*error)
        if self._made:
            with contextlib.suppress(OSError):  # only an empty folder can be removed, which is what is meant
                self.directory.rmdir()

    def discard(self) -> None:
        """Forget what was added and not committed."""
        with contextlib.suppress(OSError):
            _remove(self.next)

    def add(self, name: str, entry: Entry, arrays: Mapping[str, np.ndarray], picture: bytes | None = None) -> None:
        """Write the folder of one input, for the next :meth:`commit`; all of it or nothing.

        Args:
            name: of the folder.
            entry: the input's record and maps.
            arrays: what else is kept, by name.
            picture: a PNG of the input, or None.

        Raises:
            InputError: the file system refuses, or a folder of that name was not written by consilience.
        """
        folder = self.next / name
        with writing(self.directory / name):
            self._refuse_foreign_folder(self.directory / name)
            if self.next.is_symlink():
                os.unlink(self.next)
            self.next.mkdir(exist_ok=True)
            _remove(folder)
            try:
                write_input(folder, entry, arrays, picture)
            except BaseException:
                with contextlib.suppress(OSError):
                    _remove(folder)
                raise

    def take(self, name: str, source: Path) -> None:
        """As :meth:`add`, for an input that is in this run's folder already.

        Args:
            name: of the new folder.
            source: where the input is now.
        """
        if source in (self.directory / name, self.next / name):
            return
        with writing(self.directory / name):
            self._refuse_foreign_folder(self.directory / name)
            self.next.mkdir(exist_ok=True)
            _remove(self.next / name)
            # The record comes last, as in write_input.
            os.mkdir(self.next / name)
            for file in (PICTURE, ARRAYS, RECORD):
                if (source / file).exists():
                    write_bytes(self.next / name / file, [(source / file).read_bytes()], sync=False)

    def listed(self) -> list[Path]:
        """The folders of the run in this folder, in order; empty without a run."""
        return [self.directory / name for name in _listed(self.directory / INDEX)]

    def waiting(self) -> list[Path]:
        """The folders that were added, now or by a process that was killed, and not committed."""
        if self.next.is_symlink() or not self.next.is_dir():
            return []
        return sorted(path for path in self.next.iterdir() if path.is_dir())

    def inputs(self) -> list[Path]:
        """The folders of all inputs in this folder: :meth:`listed` and :meth:`waiting`."""
        return [*self.listed(), *self.waiting()]

    def commit(self, folders: Sequence[str], left_out: Mapping[str, str]) -> None:
        """Make a run of these inputs, in this order. Inputs of the earlier run that are not among them are removed.

        Args:
            folders: names of folders that were added now or are in the earlier run, at least one.
            left_out: what was left out of the run → why.

        Raises:
            InputError: the file system refuses; the earlier run is as it was.
        """
        with writing(self.directory):
            self._lock.refresh()
            self.next.mkdir(exist_ok=True)
            write_bytes(self.next / INDEX, [_index_text(folders, left_out)], sync=False)
            sync_tree(self.next)
            os.rename(self.next, self._ready)
            self._settle()

    def _settle(self) -> None:
        """Move the parts of a complete run to their places.

        The process may be killed after any step: whatever was moved stays, and the next call goes on from there. The list moves
        last, since without it in ``.ready`` there is nothing to go on with.
        """
        if not (self._ready / INDEX).exists():
            _remove(self._ready)  # everything was moved but the folder itself
            return
        if self._ready.is_symlink():
            os.unlink(self._ready)
            return
        staying = set(_listed(self._ready / INDEX))
        for name in _listed(self.directory / INDEX):
            if name not in staying:
                _remove_ours(self.directory / name)
        for new in sorted(self._ready.iterdir()):
            if new.name == INDEX:
                continue
            place = self.directory / new.name
            if place.is_dir() and not place.is_symlink():
                _keep_others(place, new)
            _remove(place)
            os.rename(new, place)
        os.replace(self._ready / INDEX, self.directory / INDEX)
        os.rmdir(self._ready)

    def _refuse_foreign_list(self) -> None:
        """Raise an InputError if there is a ``run.json`` of another program."""
        path = self.directory / INDEX
        if not os.path.lexists(path):
            return
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            known = isinstance(run["folders"], list) and isinstance(run["left_out"], dict)
        except (OSError, ValueError, LookupError, TypeError):
            known = False
        if not known:
            raise InputError(
                f"{path}: was not written by consilience, or is damaged, and is not replaced; give another folder, or "
                "remove it"
            )

    def _refuse_foreign_folder(self, folder: Path) -> None:
        """Raise an InputError if ``folder`` exists, and is neither an input's folder nor an empty one."""
        if not os.path.lexists(folder):
            return
        ours = folder.is_dir() and not folder.is_symlink()
        if ours and not _has_record(folder):
            ours = not any(folder.iterdir())
        if not ours:
            raise InputError(
                f"{folder}: is in the way and was not written by consilience, so it is not replaced; give another folder, "
                "or remove it"
            )


def index_of(directory: Path) -> tuple[list[Path], dict[str, str]]:
    """The folders of a run's inputs, in order, and what was left out of the run with the reasons.

    Args:
        directory: the run's folder; or one input's, which is then the only one.

    Raises:
        InputError: the run's list is damaged or empty.
    """
    # If a move to the final places was interrupted, the list and some of the inputs are still in ``.ready``.
    ready = directory / READY
    interrupted = (ready / INDEX).exists() and not ready.is_symlink()
    path = ready / INDEX if interrupted else directory / INDEX
    if not path.exists():
        return [directory], {}
    with reading(path):
        run = json.loads(path.read_text(encoding="utf-8"))
        names = [Path(name).name for name in run["folders"]]
        reasons = {str(what): str(why) for what, why in run["left_out"].items()}
    if not names:
        raise InputError(f"{path}: lists no input")
    places = (ready, directory) if interrupted else (directory,)
    folders = []
    for name in names:
        present = [place / name for place in places if (place / name).exists()]
        # If it is in neither place, the reader of the missing folder raises the error.
        folders.append(present[0] if present else directory / name)
    return folders, reasons


def _index_text(folders: Sequence[str], left_out: Mapping[str, str]) -> bytes:
    """The content of ``run.json``."""
    run = {"schema": SCHEMA, "folders": list(folders), "left_out": dict(left_out)}
    return (json.dumps(run, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _has_record(folder: Path) -> bool:
    """Whether ``folder`` holds a record of an explanation."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return "schema" in record and "methods" in record
    except (OSError, ValueError, TypeError):
        return False


def _listed(path: Path) -> list[str]:
    """The names of folders in a run's list; empty if the list does not exist."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    # Only the last part of a path: a list that somebody changed must not lead out of the run's folder.
    names = [Path(name).name for name in run["folders"]]
    return [name for name in names if name]


def _remove_ours(folder: Path) -> None:
    """Remove an input's files from ``folder``, and the folder if nothing else is in it."""
    if folder.is_symlink() or not folder.is_dir():
        return
    # The record goes first: without it, what a kill leaves behind does not look like a result.
    for name in (RECORD, ARRAYS, PICTURE):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _keep_others(old: Path, new: Path) -> None:
    """Move the user's own files from the folder ``old`` to the folder ``new`` that will replace it."""
    for path in old.iterdir():
        if path.name not in OURS and not os.path.lexists(new / path.name):
            os.rename(path, new / path.name)


def _remove(path: Path) -> None:
    """Remove a folder with its content, or a file or link, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)
