"""Progress of a command, with the time left: a bar on a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from ..errors import need, printable
from .terminal import say

LINE_EVERY = 30.0
"""Seconds between two lines where there is no terminal."""

ENOUGH = 0.05
"""Of an item, the share from which on the time it takes is estimated by what it took so far."""

MEASURED = 2.0
"""Seconds before which nothing is estimated: the first batches of a model take longer than all others."""


class TimeLeft:
    """How long some items will take, from what those before took. Says nothing before something was measured.

    Args:
        total: how many items.
    """

    def __init__(self, total: int):
        self.total = total
        self.number = 0
        self.share = 0.0
        self.began = 0.0
        # Seconds of each item that took work; one that was found on disk says nothing about the others.
        self.took: list[float] = []

    @property
    def completed(self) -> float:
        """Items, with the share of the present one; never falls."""
        return self.number + self.share

    def start(self, number: int, now: float) -> None:
        """An item begins.

        Args:
            number: of the item, from 0.
            now: the time, in seconds.
        """
        self.number = number
        self.share = 0.0
        self.began = now

    def report(self, share: float) -> None:
        """So much of the present item is done.

        Args:
            share: of 0…1; smaller ones than before do not count, since what is expected may grow.
        """
        self.share = min(1.0, max(self.share, share))

    def finish(self, now: float, worked: bool) -> None:
        """The present item is done.

        Args:
            now: the time, in seconds.
            worked: whether it took work, so that it tells of the others.
        """
        if worked:
            self.took.append(now - self.began)
        self.share = 1.0

    def left(self, now: float) -> float | None:
        """Seconds, or None where nothing is known yet.

        Args:
            now: the time, in seconds.
        """
        elapsed = now - self.began
        each = None
        if self.took:
            each = sum(self.took) / len(self.took)
        if self.share >= ENOUGH and elapsed >= MEASURED:
            here = elapsed / self.share
            # The further the item is, the more it says about itself than those before it do.
            each = here if each is None else self.share * here + (1 - self.share) * each
        if each is None:
            return None
        later = self.total - self.number - 1
        return max(0.0, each * (1 - self.share)) + later * each


class Progress:
    """Work over some items, each of which reports (done, expected) of its own; a context manager. It writes to standard error.

    Args:
        total: how many items.
    """

    def __init__(self, total: int):
        rich = need("rich.progress", "cli")
        console = need("rich.console", "cli").Console(stderr=True)
        self.live = console.is_terminal
        columns = ("[progress.description]{task.description}", rich.BarColumn(), rich.TaskProgressColumn())
        self.bar: Any = rich.Progress(*columns, "{task.fields[left]}", console=console, disable=not self.live)
        self.task = self.bar.add_task("", total=total, left="")
        self.time = TimeLeft(total)
        self.name = ""
        self.last_line = time.monotonic()

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def start(self, number: int, name: str) -> None:
        """An item begins.

        Args:
            number: of the item, from 0.
            name: what is shown.
        """
        self.name = name
        self.time.start(number, time.monotonic())
        self._show()

    def update(self, done: float, expected: float) -> None:
        """Called after each batch of model evaluations.

        Args:
            done: in any unit.
            expected: in the same unit, as far as it is known by now.
        """
        self.time.report(done / expected)
        self._show()

    def finish(self, line: str, worked: bool | None = None) -> None:
        """The item is done.

        Args:
            line: what came of it.
            worked: whether it was made, not found on disk; None: if it has reported any work.
        """
        self.time.finish(time.monotonic(), self.time.share > 0 if worked is None else worked)
        self._show()
        text = printable(f"[{self.time.number + 1}/{self.time.total}] {line}", keep="\n")
        self.bar.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def _show(self) -> None:
        """The bar, or a line if it is time for one."""
        now = time.monotonic()
        seconds = self.time.left(now)
        left = "" if seconds is None else f"{timedelta(seconds=round(seconds))} left"
        text = f"{self.time.number + 1}/{self.time.total} {self.name[:40]}"
        # A file's name may have brackets, which rich would take for a style.
        shown = need("rich.markup", "cli").escape(text)
        self.bar.update(self.task, completed=self.time.completed, description=shown, left=left)
        if not self.live and now - self.last_line >= LINE_EVERY:
            self.last_line = now
            share = self.time.completed / self.time.total
            say(", ".join(part for part in (f"{text} {share:.0%}", left) if part), error=True)
