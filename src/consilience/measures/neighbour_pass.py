"""One pass over the neighbours of the inputs, from which all robustness measures take what they need.

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
from ..task import Measure, Task
from .task_maps import flattened, flattened_for_order, present_in

MAP_VALUES_AT_ONCE = 2**25
"""Numbers, of all maps, in a chunk of neighbours: bounds the memory."""


class Chunk:
    """n inputs and s neighbours of each. Maps, outputs and representations are evaluated when they are first asked for.

    Args:
        task: what is judged.
        which: n of its inputs.
        near: their neighbours (n·s, *F), those of one input in a row.
        memory: representations of the inputs by layer, shared by all chunks of the same inputs.
    """

    def __init__(self, task: Task, which: slice, near: Points, memory: dict[str, Tensor]):
        self.task = task
        self.near = near
        self.memory = memory
        self.points = task.points[which]
        self.maps = task.maps[which]
        self.here = flattened(self.maps)[:, None]
        self.present = present_in(task, which)

    @property
    def present_near(self) -> Tensor | None:
        """(n, 1, 1, A): which features the inputs have, to be broadcast over neighbours and rows; None: all."""
        if self.present is None:
            return None
        return self.present[:, None]

    def _split(self, values: Tensor) -> Tensor:
        """(n·s, …) → (n, s, …)."""
        return values.unflatten(0, (len(self.points), -1))

    @cached_property
    def moved(self) -> Tensor:
        """(n s, R, *A): the maps at the neighbours, as they are computed."""
        return self.task.explain(self.task.score, self.near)

    @cached_property
    def there(self) -> Tensor:
        """(n, s, R, A) float64: the maps at the neighbours; ``here`` (n, 1, R, A) are those at the inputs."""
        return self._split(flattened(self.moved))

    @cached_property
    def ordered(self) -> tuple[Tensor, Tensor]:
        """(n, 1, R, A) and (n, s, R, A): ``here`` and ``there`` with the ties that rounding has broken."""
        return flattened_for_order(self.maps)[:, None], self._split(flattened_for_order(self.moved))

    @cached_property
    def inputs(self) -> tuple[Tensor, Tensor]:
        """(n, 1, F) and (n, s, F): the elements of the inputs and of their neighbours."""
        return exact(self.points.x.flatten(1))[:, None], self._split(exact(self.near.x.flatten(1)))

    @cached_property
    def outputs(self) -> tuple[Tensor, Tensor]:
        """(n, 1, classes) and (n, s, classes): the model's outputs at the inputs and at their neighbours."""
        score = self.task.score
        there = self._split(exact(score.outputs_of(self.near.x, self.near.owner)))
        return exact(score.outputs[self.points.owner])[:, None], there

    def representation(self, layer: str) -> tuple[Tensor, Tensor]:
        """The inputs' and their neighbours' representation, (n, 1, D) and (n, s, D).

        Args:
            layer: a submodule, whose output it is; or "auto", for what the classifier gets.
        """
        score = self.task.score
        points = self.points

        def find_classifier() -> str:
            return classifier(score, points.x[:1], points.owner[:1])

        takes_input = layer == "auto"
        name = layer
        if takes_input:
            name = self.task.once("classifier", find_classifier)
        if layer not in self.memory:
            self.memory[layer] = represent(score, points.x, points.owner, name, takes_input)
        there = represent(score, self.near.x, self.near.owner, name, takes_input)
        return self.memory[layer][:, None], self._split(there)


Statistic = Callable[[Chunk], Tensor]
"""What is kept of a chunk: (n, s, R), or (n, s) where it is the same in every row. Equal statistics are evaluated once."""


@dataclass(frozen=True)
class Change:
    """‖φ(x') − φ(x)‖₂."""

    def __call__(self, chunk: Chunk) -> Tensor:
        return (chunk.there - chunk.here).norm(dim=-1)


@dataclass(frozen=True)
class Distance:
    """‖x' − x‖₂."""

    def __call__(self, chunk: Chunk) -> Tensor:
        x, near = chunk.inputs
        return (near - x).norm(dim=-1)


@dataclass(frozen=True)
class RelativeChange:
    """How much something changes relative to what it is at x.

    Args:
        of: "maps", "inputs", "outputs" or "representation".
        elementwise: ‖(v' − v)/v‖₂; else ‖v' − v‖₂ / ‖v‖₂, NaN where v is zero.
        eps: in place of an element of v that is zero.
        layer: of a representation: a submodule's name, or "auto" for what the classifier gets.
    """

    of: str
    elementwise: bool
    eps: float
    layer: str = ""

    def __call__(self, chunk: Chunk) -> Tensor:
        here, there = self._values(chunk)
        if self.elementwise:
            return ((there - here) / torch.where(here == 0, self.eps, here)).norm(dim=-1)
        size = here.norm(dim=-1)
        return (there - here).norm(dim=-1) / torch.where(size == 0, torch.nan, size)

    def _values(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """What it is at the inputs and at their neighbours; the last axis is that of the norm."""
        if self.of == "maps":
            return chunk.here, chunk.there
        if self.of == "inputs":
            return chunk.inputs
        if self.of == "outputs":
            return chunk.outputs
        return chunk.representation(self.layer)


@dataclass(frozen=True)
class OutputChange:
    """‖h(x') − h(x)‖₂ over all outputs."""

    def __call__(self, chunk: Chunk) -> Tensor:
        here, there = chunk.outputs
        return (there - here).norm(dim=-1)


@dataclass(frozen=True)
class SameClass:
    """1 where the model decides as at x (:meth:`~consilience.model.outputs.Outputs.decision`)."""

    def __call__(self, chunk: Chunk) -> Tensor:
        here, there = chunk.outputs
        score = chunk.task.score
        target = score.targets[chunk.points.owner].to(here.device)[:, None]
        decision = score.meaning.decision(here, target)
        moved = score.meaning.decision(there, target)
        return (moved == decision).double()


@dataclass(frozen=True)
class Overlap:
    """|top-k(x) ∩ top-k(x')| / k.

    Args:
        k: number of features, or below 1 a share of them.
        signed: of φ; else of |φ|.
    """

    k: int | float
    signed: bool

    def __call__(self, chunk: Chunk) -> Tensor:
        here, there = _signed(chunk.ordered, self.signed)
        top_here = top(here, self.k, chunk.present_near)
        top_there = top(there, self.k, chunk.present_near)
        # Features that tie for the last place share it, each as a fraction: the minimum is what both sets have of a feature.
        return torch.minimum(top_here, top_there).sum(-1) / top_here.sum(-1)


@dataclass(frozen=True)
class Tau:
    """Kendall's τ-b of the maps at x and x'; 0 where the neighbour's map is constant and that at x is not.

    Args:
        signed: of φ; else of |φ|.
    """

    signed: bool

    def __call__(self, chunk: Chunk) -> Tensor:
        here, there = _signed(chunk.ordered, self.signed)
        present = chunk.present_near
        return zero_if_only_other_constant(kendall(here, there, present), here, there, present)


def _signed(maps: tuple[Tensor, Tensor], signed: bool) -> tuple[Tensor, Tensor]:
    """The maps at the inputs and at their neighbours, or their absolute values."""
    here, there = maps
    if signed:
        return here, there
    return here.abs(), there.abs()


def zero_if_only_other_constant(value: Tensor, one: Tensor, two: Tensor, present: Tensor | None) -> Tensor:
    """A correlation with 0 in place of NaN where only the second map is constant: its covariance with any map is 0.

    Args:
        value: (…), the correlation.
        one: (…, A), the first map.
        two: (…, A), the second.
        present: (…, A) bool, which features there are; None: all.
    """
    lone = constant(two, present) & ~constant(one, present)
    return torch.where(lone & one.isfinite().all(-1), 0.0, value)


def constant(values: Tensor, present: Tensor | None) -> Tensor:
    """(…) bool: whether all features of a map that are present have the same finite value.

    Args:
        values: (…, A), the maps.
        present: (…, A) bool, which features there are; None: all.
    """
    low = values
    high = values
    if present is not None:
        low = values.masked_fill(~present, torch.inf)
        high = values.masked_fill(~present, -torch.inf)
    return (low.amin(-1) == high.amax(-1)) & values.isfinite().all(-1)


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
