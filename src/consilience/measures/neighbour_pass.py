"""How an attribution changes at the input's neighbours: measures that are a maximum, a rank or a ratio of changes.

All measures with the same neighbours share one evaluation of the maps there: what is kept of it are statistics
(B, S, R), taken chunk by chunk. ``prepare`` says beforehand which statistics a measure will want, so that a table of
measures needs a single pass; without it, each missing statistic costs a pass of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import ConsilienceError, InputError
from ..model.representation import classifier, represent
from ..perturb.neighbourhoods import Neighbourhood, Uniform, neighbours
from ..perturb.points import Points
from ..settings import setting
from ..statistics.keys import Key
from ..statistics.ranks import kendall, top
from ..statistics.tensors import exact
from ..task import Task
from .base import Measure, flat, ordered, present, some

ROOM = 2**25  # numbers of maps in a chunk of neighbours


ZERO = "the map is zero everywhere"


class Chunk:
    """n inputs and s neighbours of each, with what is known of them, evaluated when it is asked for.

    ``memory``: what is known of the inputs, for all chunks of their neighbours."""

    def __init__(self, task: Task, which: slice, near: Points, memory: dict[str, Tensor]):
        self.task, self.near, self.memory = task, near, memory
        self.points = task.points[which]
        self.maps = task.maps[which]
        self.here = flat(self.maps)[:, None]
        self.present = some(present(task), which)

    def _split(self, values: Tensor) -> Tensor:
        return values.unflatten(0, (len(self.points), -1))

    @cached_property
    def moved(self) -> Tensor:
        """(n s, R, *A): the maps at the neighbours, as they are computed."""
        return self.task.explain(self.task.score, self.near)

    @cached_property
    def there(self) -> Tensor:
        """(n, s, R, A): the maps at the neighbours; ``here`` (n, 1, R, A): those at the inputs."""
        return self._split(flat(self.moved))

    @cached_property
    def ordered(self) -> tuple[Tensor, Tensor]:
        """(n, 1, R, A) and (n, s, R, A): ``here`` and ``there`` with the ties that rounding has broken."""
        return ordered(self.maps)[:, None], self._split(ordered(self.moved))

    @cached_property
    def inputs(self) -> tuple[Tensor, Tensor]:
        """(n, 1, F) and (n, s, F)."""
        return exact(self.points.x.flatten(1))[:, None], self._split(exact(self.near.x.flatten(1)))

    @cached_property
    def outputs(self) -> tuple[Tensor, Tensor]:
        """(n, 1, classes) and (n, s, classes)."""
        score = self.task.score
        there = self._split(exact(score.outputs_of(self.near.x, self.near.owner)))
        return exact(score.outputs[self.points.owner])[:, None], there

    def representation(self, layer: str) -> tuple[Tensor, Tensor]:
        """(n, 1, D) and (n, s, D): what the classifier gets, or what ``layer`` gives."""
        score, x, owner, auto = self.task.score, self.points.x, self.points.owner, layer == "auto"
        find = lambda: classifier(score, x[:1], owner[:1])  # noqa: E731
        name = self.task.once("classifier", find) if auto else layer
        if layer not in self.memory:
            self.memory[layer] = represent(score, x, owner, name, auto)
        there = represent(score, self.near.x, self.near.owner, name, auto)
        return self.memory[layer][:, None], self._split(there)


Statistic = Callable[[Chunk], Tensor]  # → (n, s, R), or (n, s) for what is the same in every row; equality is sharing


@dataclass(frozen=True)
class Change:
    """‖φ(x') − φ(x)‖₂."""

    def __call__(self, c: Chunk) -> Tensor:
        return (c.there - c.here).norm(dim=-1)


@dataclass(frozen=True)
class Distance:
    """‖x' − x‖₂."""

    def __call__(self, c: Chunk) -> Tensor:
        x, near = c.inputs
        return (near - x).norm(dim=-1)


@dataclass(frozen=True)
class RelativeChange:
    """How much ``of`` (the maps, the inputs, the outputs or a representation) changes relative to what it is at x.

    ``elementwise``: ‖(v' − v)/v‖₂, with ``eps`` in place of a v that is zero; else ‖v' − v‖₂ / ‖v‖₂.
    """

    of: str
    elementwise: bool
    eps: float
    layer: str = ""

    def __call__(self, c: Chunk) -> Tensor:
        if self.of == "representation":
            here, there = c.representation(self.layer)
        else:
            here, there = {"maps": lambda: (c.here, c.there), "inputs": lambda: c.inputs, "outputs": lambda: c.outputs}[
                self.of
            ]()
        if self.elementwise:
            return ((there - here) / torch.where(here == 0, self.eps, here)).norm(dim=-1)
        size = here.norm(dim=-1)
        return (there - here).norm(dim=-1) / torch.where(size == 0, torch.nan, size)


@dataclass(frozen=True)
class OutputChange:
    """‖h(x') − h(x)‖₂ over all outputs."""

    def __call__(self, c: Chunk) -> Tensor:
        here, there = c.outputs
        return (there - here).norm(dim=-1)


@dataclass(frozen=True)
class SameClass:
    """1 where the model decides as at x (:meth:`~consilience.model.outputs.Outputs.decision`)."""

    def __call__(self, c: Chunk) -> Tensor:
        here, there = c.outputs
        score = c.task.score
        target = score.targets[c.points.owner].to(here.device)[:, None]
        then, now = score.meaning.decision(here, target), score.meaning.decision(there, target)
        return (now == then).double()


@dataclass(frozen=True)
class Overlap:
    """|top-k(x) ∩ top-k(x')| / k, of φ or of |φ|."""

    k: int | float
    signed: bool

    def __call__(self, c: Chunk) -> Tensor:
        there = None if c.present is None else c.present[:, None]
        one, two = (top(v if self.signed else v.abs(), self.k, there) for v in c.ordered)
        return torch.minimum(one, two).sum(-1) / one.sum(-1)


@dataclass(frozen=True)
class Tau:
    """Kendall's τ-b of the maps at x and x', of φ or of |φ|; 0 where the neighbour's map is constant and that at x is not."""

    signed: bool

    def __call__(self, c: Chunk) -> Tensor:
        there = None if c.present is None else c.present[:, None]
        one, two = (v if self.signed else v.abs() for v in c.ordered)
        return zero_if_only_other_constant(kendall(one, two, there), one, two, there)


def zero_if_only_other_constant(value: Tensor, one: Tensor, two: Tensor, present: Tensor | None) -> Tensor:
    """A correlation (…) of maps (…, n): 0 in place of NaN where ``two`` is constant but ``one`` is not; a constant has no
    covariance with anything."""
    lone = constant(two, present) & ~constant(one, present)
    return torch.where(lone & one.isfinite().all(-1), 0.0, value)


def constant(values: Tensor, present: Tensor | None) -> Tensor:
    """(…): all present features have the same finite value."""
    low = values if present is None else values.masked_fill(~present, torch.inf)
    high = values if present is None else values.masked_fill(~present, -torch.inf)
    return (low.amin(-1) == high.amax(-1)) & values.isfinite().all(-1)


@dataclass(frozen=True)
class Nearby(Measure):
    """What measures at neighbours have in common.

    Args:
        radius: neighbours are x + ε, ε ~ U[−radius, radius] per element (the L∞ ball), in units of the model's input.
        where: any other neighbourhood in place of it, e.g. ``Ball(1.0)`` (L2) or ``Gaussian(0.1)``.
        samples: neighbours of each input.
        redraw: draw an explainer's own noise anew at each neighbour (see :class:`~consilience.AverageSensitivity`).
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
        return task.once(("neighbours", self.neighbourhood, self.samples, self.redraw), dict)

    def _gathered(self, task: Task) -> list[Tensor]:
        """The statistics, each (B, S, R) or (B, S), from one pass over the neighbours for all that are still missing."""
        self.prepare(task)
        shared = self._shared(task)
        missing = [statistic for statistic, value in shared.items() if value is None]
        if any(shared[statistic] is None for statistic in self.statistics):
            shared.update(self._pass(task, missing))
        found = [shared[statistic] for statistic in self.statistics]
        for value in found:
            if isinstance(value, ConsilienceError):
                raise value
        return [value for value in found if isinstance(value, Tensor)]

    def _pass(self, task: Task, wanted: list[Statistic]) -> dict[Statistic, Tensor | ConsilienceError]:
        """All statistics over all neighbours; one that this model does not allow is its error, and the others go on."""
        rows: dict[Statistic, list[Tensor]] = {statistic: [] for statistic in wanted}
        wrong: dict[Statistic, Tensor | ConsilienceError] = {}
        for chunks in self._chunks(task):
            parts: dict[Statistic, list[Tensor]] = {statistic: [] for statistic in rows if statistic not in wrong}
            for chunk in chunks:
                for statistic in [statistic for statistic in parts if statistic not in wrong]:
                    try:
                        parts[statistic].append(statistic(chunk))
                    except ConsilienceError as error:
                        wrong[statistic] = error.with_traceback(None)  # whose frames would keep the chunk's maps
            for statistic, part in parts.items():
                if statistic not in wrong:
                    rows[statistic].append(torch.cat(part, 1))
        return {**{statistic: torch.cat(part) for statistic, part in rows.items() if statistic not in wrong}, **wrong}

    def _chunks(self, task: Task) -> Iterator[Iterator[Chunk]]:
        """Groups of inputs, and for each its neighbours in chunks: bounded by rows in flight and by memory."""
        key, numbers, start = task.stream("neighbours"), task.maps[0].numel(), 0
        while start < len(task.points):
            room = max(1, ROOM // max(1, numbers))
            which = slice(start, start + min(room, task.score.batch.size(True)))
            yield self._around(task, which, key, room)
            start = which.stop

    def _around(self, task: Task, which: slice, key: Key, room: int) -> Iterator[Chunk]:
        points, memory, start = task.points[which], dict[str, Tensor](), 0
        while start < self.samples:
            step = max(1, min(room, task.score.batch.size(True)) // len(points))
            part = range(start, min(start + step, self.samples))
            near = neighbours(self.neighbourhood, points, part, key, self.samples, self.redraw)
            yield Chunk(task, which, near, memory)
            start = part.stop


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
