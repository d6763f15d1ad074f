"""A lock file, so that only one process at a time writes to a place; a second one gets an error before it starts to work."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any

from ..errors import InputError
from .files import writing

UNWRITTEN = 5.0
"""Seconds after which a lock that holds nothing counts as abandoned: writing its few bytes takes no time."""

STALE = 600.0
"""Seconds without a refresh after which the lock of another machine counts as abandoned: its process cannot be asked."""


class Lock:
    """A file that exists while one process writes to ``place``; a context manager.

    The file names the process. A lock whose process no longer runs is taken over; if it is of another machine, a lock that was
    not refreshed for ten minutes.

    Args:
        path: the lock's own file.
        place: what is written to, for the error.

    Raises:
        InputError: on entering, another process holds it, or the file cannot be written.
    """

    def __init__(self, path: Path, place: Path):
        self.path = path
        self.place = place
        self._token = secrets.token_hex(8)

    def __enter__(self) -> Lock:
        with writing(self.path):
            while not self._created():
                self._remove_if_stale()
        return self

    def __exit__(self, *_: object) -> None:
        if self._holder().get("token") == self._token:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def refresh(self) -> None:
        """Show that this process still works; to be called before each write.

        Raises:
            InputError: another process took the lock over meanwhile, so that writing would overwrite what it wrote.
        """
        if self._holder().get("token") != self._token:
            raise InputError(
                f"{self.place}: another process took over while this one was silent; nothing of it was overwritten; "
                "start again to go on from there"
            )
        with contextlib.suppress(OSError):
            os.utime(self.path)

    def _created(self) -> bool:
        """Make the lock's file, unless there is one (O_EXCL: of two processes, only one can)."""
        content = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.ctime(), "token": self._token}
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file)
        return True

    def _remove_if_stale(self) -> None:
        """Remove the lock of a process that is gone.

        Raises:
            InputError: its process works.
        """
        holder = self._holder()
        try:
            silent = time.time() - self.path.stat().st_mtime
        except FileNotFoundError:
            return  # released in this moment
        # A file without content is being written, or its writer was killed between creating and writing it.
        empty = not holder and self._size() == 0
        if not holder and silent < UNWRITTEN:
            time.sleep(0.1)
            return
        if empty:
            stale = True
        elif holder and holder.get("host") == socket.gethostname() and os.name == "posix":
            stale = not _runs(holder.get("pid"))
        else:
            stale = silent > STALE
        if not stale:
            raise InputError(
                f"{self.place}: another process writes to it (process {holder.get('pid')} on {holder.get('host')}, since "
                f"{holder.get('since')}); wait for it, or give another place; if no such process runs, remove {self.path}"
            )
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def _size(self) -> int | None:
        """Of the lock's file in bytes; None where there is none."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return None

    def _holder(self) -> dict[str, Any]:
        """What the lock's file tells of the process that holds it; empty where that cannot be read."""
        try:
            holder = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        # Another program's file may hold anything.
        return holder if isinstance(holder, dict) else {}


def _runs(pid: Any) -> bool:
    """Whether a process of this machine runs. Only for POSIX, where signal 0 merely asks: elsewhere it ends the process."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError, TypeError, ValueError):
        return False
    except PermissionError:
        return True  # it runs, as another user
    return True
