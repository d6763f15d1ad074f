"""One pass over the neighbours of the inputs, from which all robustness measures take what they need.

All measures with the same neighbours share one evaluation of the maps there: what is kept of it are statistics
(B, S, R), taken chunk by chunk. ``prepare`` says beforehand which statistics a measure will want, so that a table of
measures needs a single pass; without it, each missing statistic costs a pass of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConsilienceError, InputError
from ..perturb.neighbourhoods import Neighbourhood, Uniform, neighbours
from ..settings import setting
from ..statistics.keys import Key
from ..task import Measure, Task
from .neighbour_statistics import Chunk, Statistic

MAP_VALUES_AT_ONCE = 2**25
"""Numbers, of all maps, in a chunk of neighbours: bounds the memory."""


@dataclass(frozen=True)
class Nearby(Measure):
    """Interface of measures at neighbours: :attr:`statistics` names what is kept of each neighbour.

    Args:
        radius: neighbours are x + ε, ε ~ U[−radius, radius] per element (the L∞ ball), in units of the model's input.
        where: any other neighbourhood in place of it, e.g. ``Ball(1.0)`` (L2) or ``Gaussian(0.1)``.
        samples: neighbours of each input.
        redraw: draw an explainer's own noise anew at each neighbour (see :class:`~consilience.AverageSensitivity`).

    Raises:
        InputError: ``where`` is not a neighbourhood.
    """

    radius: float = setting(0.1, low=0)
    where: Neighbourhood | None = None
    samples: int = setting(10, low=1)
    redraw: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.where is not None and not isinstance(self.where, Neighbourhood):
            raise InputError(f"{type(self).__name__}: where is a neighbourhood, e.g. Gaussian(0.1); got {self.where!r}")

    @property
    def neighbourhood(self) -> Neighbourhood:
        """Where neighbours are drawn: ``where``, or the box of half side ``radius``."""
        return self.where or Uniform(self.radius)

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """What has to be known of each neighbour."""
        raise NotImplementedError

    def prepare(self, task: Task) -> None:
        """Say which statistics will be wanted, so that one pass finds them all."""
        shared = self._shared(task)
        for statistic in self.statistics:
            shared.setdefault(statistic, None)

    def _shared(self, task: Task) -> dict[Statistic, Tensor | ConsilienceError | None]:
        """The statistics of all measures with these neighbours; None where one is wanted and not evaluated yet."""
        return task.once(("neighbours", self.neighbourhood, self.samples, self.redraw), dict)

    def _gathered(self, task: Task) -> list[Tensor]:
        """The statistics, each (B, S, R) or (B, S), from one pass over the neighbours for all that are still missing."""
        self.prepare(task)
        shared = self._shared(task)
        missing = [statistic for statistic, value in shared.items() if value is None]
        if any(shared[statistic] is None for statistic in self.statistics):
            shared.update(self._pass(task, missing))
        values = [shared[statistic] for statistic in self.statistics]
        for value in values:
            if isinstance(value, ConsilienceError):
                raise value
        return [value for value in values if isinstance(value, Tensor)]

    def _pass(self, task: Task, wanted: list[Statistic]) -> dict[Statistic, Tensor | ConsilienceError]:
        """All statistics over all neighbours; one that this model does not allow is its error, and the others go on."""
        groups: dict[Statistic, list[Tensor]] = {statistic: [] for statistic in wanted}
        errors: dict[Statistic, ConsilienceError] = {}
        for chunks in self._chunks(task):
            parts: dict[Statistic, list[Tensor]] = {statistic: [] for statistic in groups}
            for chunk in chunks:
                for statistic in wanted:
                    if statistic in errors:
                        continue
                    try:
                        parts[statistic].append(statistic(chunk))
                    except ConsilienceError as error:
                        # Without its traceback, whose frames would keep the chunk's maps in memory.
                        errors[statistic] = error.with_traceback(None)
            for statistic, part in parts.items():
                if statistic not in errors:
                    groups[statistic].append(torch.cat(part, 1))
        results: dict[Statistic, Tensor | ConsilienceError] = dict(errors)
        for statistic, group in groups.items():
            if statistic not in errors:
                results[statistic] = torch.cat(group)
        return results

    def _chunks(self, task: Task) -> Iterator[Iterator[Chunk]]:
        """Groups of inputs, and for each its neighbours in chunks: bounded by rows in flight and by memory."""
        key = task.stream("neighbours")
        at_once = max(1, MAP_VALUES_AT_ONCE // max(1, task.maps[0].numel()))
        start = 0
        while start < len(task.points):
            which = slice(start, start + min(at_once, task.score.batch.size(True)))
            yield self._around(task, which, key, at_once)
            start = which.stop

    def _around(self, task: Task, which: slice, key: Key, at_once: int) -> Iterator[Chunk]:
        """The neighbours of some inputs, at most ``at_once`` of them in a chunk."""
        points = task.points[which]
        memory: dict[str, Tensor] = {}
        start = 0
        while start < self.samples:
            # The batch may have shrunk since the last chunk, when memory ran out: ask each time.
            step = max(1, min(at_once, task.score.batch.size(True)) // len(points))
            part = range(start, min(start + step, self.samples))
            near = neighbours(self.neighbourhood, points, part, key, self.samples, self.redraw)
            yield Chunk(task, which, near, memory)
            start = part.stop


# -- for the measures' cards -------------------------------------------------------------------------------------------

DRAWS = '`samples` neighbours of each input, stream "neighbours", the same for all measures at neighbours'

MOVED = "x + ε, ε ~ U[−radius, radius] per element (units of the model's input), or `where`"

COST = "`samples` explanations, shared by all measures with the same neighbours"

SCALES = (
    "normalise=True divides the map by the largest value of all inputs and a neighbour's by that of its batch, so a number "
    "depends on batch_size"
)

ONE_SIDED = (
    "with the same neighbours this number; its own noise is one-sided, U(.02, .2), and one neighbour of another class makes "
    "the input's number NaN"
)
