"""A run's folder: a new run takes the place of an earlier one in one step, so that there is always one of them."""

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
"""The list of a run's inputs."""

NEXT, READY = ".next", ".ready"
"""In a run's folder: a run that is being written, and one that is whole and takes the earlier one's place."""

OURS = {RECORD, ARRAYS, PICTURE}
"""The files of one input's folder. Whatever else lies there is the user's, and stays."""


class RunFolder:
    """Writes a run to ``directory``; a context manager, which no other process may enter meanwhile.

    ``argument``: the folder's name, for errors.

    Inputs are written to ``.next`` first. :meth:`commit` adds the list of the whole run and renames ``.next`` to ``.ready``:
    from that step on, the new run is what a reader finds. Then its parts move to their places. Killed before the step,
    the earlier run is whole; killed after it, the new one is, and the next writer ends the move.

    Raises:
        InputError: on entering, the folder cannot be written, holds a ``run.json`` that is not ours, or another process
            writes to it.

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
            with contextlib.suppress(OSError):  # it holds something: all is well
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
            InputError: the file system refuses, or a folder of that name is not ours.
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
        """As :meth:`add`, under ``name``, of an input that is in this run's folder already, at ``source``."""
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
        """The folders of the run that is here, in order; none if there is no run."""
        return [self.directory / name for name in _listed(self.directory / INDEX)]

    def waiting(self) -> list[Path]:
        """The folders that were added, now or by a process that was killed, and not committed."""
        if self.next.is_symlink() or not self.next.is_dir():
            return []
        return sorted(path for path in self.next.iterdir() if path.is_dir())

    def inputs(self) -> list[Path]:
        """The folders of all inputs that are here: of the run, and those that wait."""
        return [*self.listed(), *self.waiting()]

    def commit(self, folders: Sequence[str], left_out: Mapping[str, str]) -> None:
        """Make the run of these ``folders``, added now or there already, in this order; others of the earlier run go.

        Args:
            folders: names, at least one.
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
        """Move what is ready to its places. Each step can be the last one before a kill: the next call goes on from there."""
        if not (self._ready / INDEX).exists():
            _remove(self._ready)  # moved already, all but the folder itself
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
        """What stands where an input's folder would must be one of ours, or empty."""
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
    """The folders of a run in ``directory``, in order, and what was left out of it with the reasons.

    Of one input's folder, that folder.

    Raises:
        InputError: the run's list is damaged or empty.
    """
    # A run that was interrupted while it took another's place is read from where its parts are.
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
    folders = [next((place / name for place in places if (place / name).exists()), directory / name) for name in names]
    return folders, reasons


def _index_text(folders: Sequence[str], left_out: Mapping[str, str]) -> bytes:
    """What ``run.json`` holds."""
    run = {"schema": SCHEMA, "folders": list(folders), "left_out": dict(left_out)}
    return (json.dumps(run, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _has_record(folder: Path) -> bool:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return "schema" in record and "methods" in record
    except (OSError, ValueError, TypeError):
        return False


def _listed(path: Path) -> list[str]:
    """The folders that a run's list names; none where there is no list."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    # The name alone: a list that somebody changed must not lead out of the run's folder.
    names = [Path(name).name for name in run["folders"]]
    return [name for name in names if name]


def _remove_ours(folder: Path) -> None:
    """Our files, and the folder if nothing else is in it."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for name in sorted(OURS, key=lambda name: name != RECORD):  # a folder without a record is no result
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _keep_others(old: Path, new: Path) -> None:
    """The user's own files beside ours go along to the folder that takes the place."""
    for path in old.iterdir():
        if path.name not in OURS and not os.path.lexists(new / path.name):
            os.rename(path, new / path.name)


def _remove(path: Path) -> None:
    """A folder with all that is in it, or a file or link, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)
