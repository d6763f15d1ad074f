"""What a call evaluated and may need again: draws, made once and gone on with when more are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from torch import Tensor, nn

from ..combine.correction import with_correction
from ..errors import InputError
from ..statistics.evidence import Evidence
from .completeness import completeness_errors
from .run import Combined, Job


class Kept:
    """The evaluations that judge an answer. None of them is made twice, however often the answer is judged.

    Args:
        job: the call.
        combined: its maps and weights.
    """

    def __init__(self, job: Job, combined: Combined):
        self.job = job
        self.combined = combined
        self.fit = KeptDraws(job, combined, "fit")
        self.fresh = KeptDraws(job, combined, "fresh")
        self._versions = _versions(job)

    def check_model(self) -> None:
        """Refuse to go on with a model that has changed since: its draws would not fit those that were kept.

        Raises:
            InputError: parameters were trained, loaded or replaced.
        """
        if _versions(self.job) != self._versions:
            raise InputError(
                "refine: the model's parameters have changed since the answer was found, so further draws would be of another "
                "model; call consilience.explain again"
            )

    @cached_property
    def everything(self) -> Tensor:
        """(N,): f(x) − f(baseline) of the masks."""
        ready = self.job.ready
        return ready.measurement.infidelity.everything(ready.score, ready.points)

    @cached_property
    def completeness(self) -> dict[str, Tensor]:
        """Method → (N,), how far it is from adding up."""
        return completeness_errors(self.job, self.combined.sums)


def _versions(job: Job) -> list[tuple[int, int]]:
    """Of each parameter, where it is and how often it was changed in place; none of what is no module."""
    model = job.ready.score.model
    if not isinstance(model, nn.Module):
        return []
    return [(parameter.data_ptr(), parameter._version) for parameter in model.parameters()]


class KeptDraws:
    """The draws of one stream, by kind and input.

    Args:
        job: the call.
        combined: its maps.
        stream: "fit" or "fresh".
    """

    def __init__(self, job: Job, combined: Combined, stream: str):
        self.measurement = job.ready.measurement
        self.score = job.ready.score
        self.points = job.ready.points
        self.correction = combined.correction
        # The correction's map is held at neighbours, so that it follows from the other maps' evidence.
        self.base = combined.base[:, : combined.shown]
        self.added = combined.base[:, combined.shown :]
        self.stream = stream
        self._drawn: dict[tuple[str, int], dict[int, Evidence]] = {}

    def upto(self, kind: str, inputs: Sequence[int], count: int) -> list[Evidence]:
        """The first ``count`` draws of a kind, for each of some inputs (B = 1). Only those are made that were not made before.

        Args:
            kind: of the evidence.
            inputs: their places.
            count: how many; of an input that has fewer masks, those that it has.
        """
        # A look at fewer draws than there are by now is what it was then, so every round's end is kept.
        by_number: dict[int, list[int]] = {}
        for i in inputs:
            had = max((number for number in self._ends(kind, i) if number <= count), default=0)
            if had < count:
                by_number.setdefault(had, []).append(i)
        for had, waiting in by_number.items():
            self._draw(waiting, kind, range(had, count))
        return [self._ends(kind, i)[count] for i in inputs]

    def _ends(self, kind: str, i: int) -> dict[int, Evidence]:
        """Of one input, the number of draws at the end of each round → all of them so far."""
        return self._drawn.setdefault((kind, i), {})

    def _draw(self, inputs: Sequence[int], kind: str, samples: range) -> None:
        """Make the draws ``samples`` and put them behind those before."""
        at = list(inputs)
        found = self.measurement.more(self.score, self.points[at], self.base[at], kind, samples, self.stream)
        if self.correction is not None:
            found = with_correction(found, self.base[at], self.added[at, 0], self.correction.inputs(at))
        for place, i in enumerate(at):
            ends = self._ends(kind, i)
            own = found.inputs([place])
            if samples.start:
                own = ends[samples.start] + own
            ends[samples.stop] = own
