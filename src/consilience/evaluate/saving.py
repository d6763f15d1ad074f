"""The file that an evaluation grows in: written every few seconds and at the end, by one process."""

from __future__ import annotations

import time
from pathlib import Path

from ..errors import InputError
from ..results.evaluation import Evaluation
from ..results.files import writing
from ..results.lock import Lock

EVERY = 5.0
"""Seconds between two writes; longer where writing itself takes long."""


class GrowingFile:
    """Writes an evaluation to a file while it grows; a context manager.

    On leaving, also by an exception or an interrupt, what is not written yet is written. Until then no other process may
    write there.

    Args:
        path: of the file.
        argument: the path's name, for errors.

    Raises:
        InputError: on entering, ``path`` cannot be written, or another process writes to it.
    """

    def __init__(self, path: Path, argument: str = "path"):
        self.path = path
        self._argument = argument
        self._lock = Lock(path.parent / f".{path.name}.lock", path)
        self._pending: Evaluation | None = None
        self._next = 0.0

    def __enter__(self) -> GrowingFile:
        try:
            with writing(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                if self.path.is_dir():
                    raise IsADirectoryError(None, "it is a folder")
            self._lock.__enter__()
        except InputError as error:
            raise InputError(f"{self._argument}: {error}") from error
        self._next = time.monotonic() + EVERY
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._write()
        finally:
            self._lock.__exit__(*error)

    def update(self, evaluation: Evaluation) -> None:
        """The ``evaluation`` has grown: write it now, or within seconds."""
        self._pending = evaluation
        if time.monotonic() >= self._next:
            self._write()

    def _write(self) -> None:
        if self._pending is None:
            return
        self._lock.refresh()
        began = time.monotonic()
        self._pending.save(self.path)
        self._pending = None
        now = time.monotonic()
        # The whole file is written each time: at most a tenth of the time goes there.
        self._next = now + max(EVERY, 10 * (now - began))
