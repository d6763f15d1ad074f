"""Progress with time left: a bar on a terminal, one line per image elsewhere."""

from __future__ import annotations

import sys
import time


class Progress:
    """Work over ``total`` items, each reporting (done, planned) of its own."""

    def __init__(self, total: int):
        self.total, self.number, self.name, self.began, self.shown = total, 0, "", time.monotonic(), 0.0
        self.live = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def start(self, number: int, name: str) -> None:
        self.number, self.name = number, name

    def update(self, done: float, planned: float) -> None:
        """Called after each batch; redraws at most five times a second (or, without a terminal, every 30 seconds)."""
        now = time.monotonic()
        if now - self.shown < (0.2 if self.live else 30):
            return
        self.shown = now
        share = (self.number + done / planned) / self.total
        left = (now - self.began) * (1 - share) / share if share > 0 else float("inf")
        text = f"{self.number + 1}/{self.total} {self.name[:40]} {share:4.0%}, {_clock(left)} left"
        if self.live:
            full = int(30 * share)
            sys.stderr.write(f"\r\x1b[K[{'█' * full}{'░' * (30 - full)}] {text}")
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def finish(self, line: str) -> None:
        self._clear()
        print(f"[{self.number + 1}/{self.total}] {line}", file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if self.live:
            sys.stderr.write("\r\x1b[K")


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
