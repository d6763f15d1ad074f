"""Progress of a command, with the time left: a bar on a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from ..errors import need, printable
from .terminal import say

LINE_EVERY = 30.0
"""Seconds between two lines where there is no terminal."""


class Progress:
    """Work over some items, each of which reports (done, planned) of its own; a context manager. It writes to standard error.

    Args:
        total: how many items.
    """

    def __init__(self, total: int):
        rich = need("rich.progress", "cli")
        console = need("rich.console", "cli").Console(stderr=True)
        self.live = console.is_terminal
        columns = ("[progress.description]{task.description}", rich.BarColumn(), rich.TaskProgressColumn())
        self.bar: Any = rich.Progress(*columns, rich.TimeRemainingColumn(), console=console, disable=not self.live)
        self.task = self.bar.add_task("", total=total)
        self.total = total
        self.number = 0
        self.name = ""
        self.began = time.monotonic()
        self.last_line = self.began

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def start(self, number: int, name: str) -> None:
        """Item ``number``, from 0, begins; ``name`` is shown."""
        self.number = number
        self.name = name
        self.update(0, 1)

    def update(self, done: float, planned: float) -> None:
        """Called after each batch of model evaluations: ``done`` of ``planned``, in any unit."""
        completed = self.number + done / planned
        text = f"{self.number + 1}/{self.total} {self.name[:40]}"
        # A file's name may have brackets, which rich would take for a style.
        self.bar.update(self.task, completed=completed, description=need("rich.markup", "cli").escape(text))
        now = time.monotonic()
        if not self.live and now - self.last_line >= LINE_EVERY:
            self.last_line = now
            left = (now - self.began) * (self.total - completed) / max(completed, 1e-9)
            say(f"{text} {completed / self.total:.0%}, {timedelta(seconds=round(left))} left", error=True)

    def finish(self, line: str) -> None:
        """The item is done; ``line`` says what came of it."""
        self.update(1, 1)
        text = printable(f"[{self.number + 1}/{self.total}] {line}", keep="\n")
        self.bar.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
