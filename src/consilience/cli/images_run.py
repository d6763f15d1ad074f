"""The loop of ``consilience explain``: images one after another into a run's folder, from where an earlier try stopped."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from ..data.images import Picture
from ..errors import ConsilienceError, InputError, printable
from ..report.entry import Entry
from ..report.figure import figure
from ..report.page import pieces
from ..report.text import text_table
from ..results.entries import Entries
from ..results.explanation import Explanation
from ..results.files import write_text
from ..results.runs import RunFolder
from ..results.stored import read_input, read_record
from .progress import Progress
from .terminal import say


class Command(Protocol):
    """What the loop needs of a command: how an image is read, recognised and explained."""

    key: str
    title: str

    def read(self, image: str) -> tuple[Picture, torch.Tensor]:
        """The picture in the file ``image``, and the model's input."""
        ...

    def key_of(self, picture: Picture, x: torch.Tensor) -> str:
        """The key by which the result of a ``picture`` with input ``x`` is recognised in a later run."""
        ...

    def explain(self, picture: Picture, x: torch.Tensor, progress: Callable[[float, float], None]) -> Explanation:
        """The result of one image.

        Args:
            picture: as read.
            x: (C, H, W), the model's input.
            progress: called with (done, planned).
        """
        ...


class ImagesRun:
    """Explains ``images`` into ``folder``.

    An image that was finished with the same model and options is not made again. Each finished image joins the run at
    once, unless the folder holds a run with other options: that one stays whole until the new one is.

    Args:
        folder: where the run is written.
        images: files, or names of samples.
        command: what is done with each image.
    """

    def __init__(self, folder: RunFolder, images: Sequence[str], command: Command):
        self.folder = folder
        self.images = images
        self.command = command
        self.finished: list[str] = []
        self.failures: dict[str, str] = {}
        self.interrupted = False
        # Key → the folder of an image that is finished already.
        self._known = {key: path for path in folder.inputs() if (key := _key(path)) is not None}
        self._earlier = [path.name for path in folder.listed()]
        self._growing = all(self._same_run(_key(path)) for path in folder.listed())
        if not all(self._same_run(_key(path)) for path in folder.waiting()):
            folder.discard()

    def run(self) -> int:
        """All images, then the page; the exit code."""
        with Progress(len(self.images)) as progress:
            for number, image in enumerate(self.images):
                progress.start(number, printable(image))
                try:
                    progress.finish(f"{image}: {self._one(number, image, progress)}")
                except KeyboardInterrupt:
                    self.interrupted = True
                    break
                except Exception as error:  # whatever a model or a decoder raises, the other images go on
                    self.failures[printable(image)] = _words(error)
                    progress.finish(f"{image}: FAILED: {_words(error)}")
        return self._close()

    def _one(self, number: int, image: str, progress: Progress) -> str:
        """Make one image's folder, or take the one that is finished already.

        Args:
            number: of the image, from 0.
            image: its file, or the name of a sample.
            progress: told how far it is.

        Returns:
            A line about it, for people.
        """
        picture, x = self.command.read(image)
        name = f"{number:03d}-{_stem(picture.name)}"
        key = self.command.key_of(picture, x)
        source = self._known.get(key)
        if source is not None and source.exists():
            self.folder.take(name, source)
            message = f"in {self.folder.directory} already"
        else:
            result = self.command.explain(picture, x, progress.update)
            entry = result.entry(0)
            drawn = io.BytesIO()
            figure(entry).savefig(drawn)
            self.folder.add(name, entry, result.arrays(0), drawn.getvalue())
            message = _headline(entry)
        # A folder of this name, from an earlier run, is replaced when this one is put in its place.
        self._known = {key: path for key, path in self._known.items() if path != self.folder.directory / name}
        self.finished.append(name)
        if self._growing:
            try:
                self._commit()
            except InputError:
                self.finished.pop()
                self.folder.discard()
                raise
        return message

    def _commit(self, whole: bool = False) -> None:
        """Put what is finished into the run's place.

        Args:
            whole: the run is complete, so that what an earlier try left and this one does not have goes.
        """
        others = []
        if not whole:
            others = [name for name in self._earlier if name not in self.finished]
        self.folder.commit([*self.finished, *others], self.failures)

    def _close(self) -> int:
        """Write the run's list and page, and tell what came of it; the exit code."""
        out = self.folder.directory
        count = f"{len(self.finished)} of {len(self.images)} images"
        trouble = ""
        if self.finished and (self._growing or not self.interrupted):
            try:
                self._commit(whole=not self.interrupted)
                self._write_page()
                say(f"\n{count} explained; see {out / 'report.html'}")
            except InputError as error:
                trouble = str(error)
        if trouble:
            say(trouble, error=True)
        if self.failures:
            say(f"{len(self.failures)} failed:", error=True)
            for name, reason in self.failures.items():
                say(f"  {name}: {reason}", error=True)
        if self.interrupted:
            where = out
            kept = ""
            if not self._growing:
                where = self.folder.next
                if self.finished:
                    kept = "; the run that was there is as it was"
            say(f"interrupted; {count} are in {where}{kept}; the same command goes on", error=True)
            return 130
        if not self.finished:
            return 2
        return 1 if self.failures or trouble else 0

    def _write_page(self) -> None:
        """The page over the run, and its table, from the files: one image in memory at a time."""
        folders = list(self.folder.listed())
        entries = Entries(len(folders), lambda i: read_input(folders[i]).entry)
        failures = list(self.failures.items())
        write_text(self.folder.directory / "report.html", pieces(entries, self.command.title, failures))
        say(text_table([_without_front(read_record(folder)) for folder in folders]))

    def _same_run(self, key: str | None) -> bool:
        """Whether a folder with this key was made by the same model and options."""
        return key is not None and key.startswith(f"{self.command.key}-")


def _key(folder: Path) -> str | None:
    """The key with which an image's folder was made; None where it is damaged, or of a version without keys."""
    try:
        key = (read_record(folder).get("input") or {}).get("key")
    except InputError:
        return None
    return key if isinstance(key, str) else None


def _without_front(record: dict[str, Any]) -> dict[str, Any]:
    """A record without its front, the largest part, which no table shows."""
    return {name: value for name, value in record.items() if name != "front"}


def _stem(name: str) -> str:
    """A picture's name as that of a folder: plain characters only, and not too many."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[:60] or "image"


def _headline(entry: Entry) -> str:
    """What came of an image: its class, how the weights were found, and the time."""
    record = entry.record
    return f"{record['target_label'] or entry.target}, {record['status']}, {record['seconds']:.0f} s"


def _words(error: Exception) -> str:
    """An error in words. One of this library says everything; of any other, its kind helps."""
    kind = ""
    if not isinstance(error, ConsilienceError):
        kind = f"{type(error).__name__}: "
    return printable(f"{kind}{error}", keep=os.linesep)
