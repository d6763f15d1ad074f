"""What robustness measures keep of each neighbour: changes of maps, inputs and outputs, overlaps and rank correlations.

A statistic is a function of a :class:`Chunk`, and a frozen configuration: equal ones are evaluated once for all measures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..model.representation import classifier, represent
from ..perturb.points import Points
from ..statistics.ranks import kendall, top
from ..statistics.tensors import exact
from ..task import Task
from .similarity import zero_if_only_other_constant
from .task_maps import flattened, flattened_for_order, present_in


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
