"""How much of a call is done: told to the caller after each batch of the model, in forward evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..model.batching import Counts
from .cost import Rows

Progress = Callable[[float, float], None]
"""Called with (work done, work expected), in forward evaluations; a gradient counts three. What is done never falls and is
never more than what is expected; at the end they are equal. What is expected may change when a stage takes more or less."""

OVERDUE = 0.1
"""A stage that takes longer than expected is thought to need this share of itself, until it ends."""


class Meter:
    """Work done and expected of one call, in stages.

    Args:
        progress: whom to tell; None: nobody.
        counts: the score's counter of evaluations.
        expected: stage → the work that it is expected to take, in order, and whether that is certain.
    """

    def __init__(self, progress: Progress | None, counts: Counts, expected: Mapping[str, tuple[float, bool]]):
        self.progress = progress
        self.counts = counts
        self.expected = dict(expected)
        self.start = _work(counts)
        self.stage = ""
        self.since = 0.0
        if progress is not None:
            counts.watch = self._tell

    @property
    def done(self) -> float:
        """Since the meter was made."""
        return _work(self.counts) - self.start

    def begin(self, stage: str) -> None:
        """A stage begins; those before it are over, whatever they took.

        Args:
            stage: one of those that are expected.
        """
        self.stage = stage
        self.since = self.done

    def end(self) -> None:
        """All is done."""
        if self.progress is not None:
            self.counts.watch = None
            done = max(1.0, self.done)
            self.progress(done, done)

    def _tell(self, counts: Counts) -> None:
        assert self.progress is not None
        done = self.done
        self.progress(done, done + self._ahead(done))

    def _ahead(self, done: float) -> float:
        """The work that is expected still: what is left of this stage, and all later ones."""
        stages = list(self.expected)
        at = stages.index(self.stage) if self.stage in stages else 0
        here, certain = self.expected[stages[at]]
        least = 0.0 if certain else OVERDUE * here
        left = max(here - (done - self.since), least)
        return left + sum(self.expected[stage][0] for stage in stages[at + 1 :])


def _work(counts: Counts) -> float:
    return float(Rows(counts.gradient, counts.forward).work)
