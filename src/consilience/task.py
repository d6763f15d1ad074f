"""What is judged, and what judges it.

A :class:`Task` holds the maps of a batch and the means to ask the model, or the explainers, again. Every metric, measure
and training penalty takes one, so whatever can be measured can be trained for, and minimised if it is affine.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from .card import Card
from .features.base import Features
from .model.score import Score
from .perturb.points import Points
from .settings import Settings
from .statistics.keys import Key

T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """R attributions of each of B inputs, and the means to ask again.

    Args:
        score: the model, its targets and which output; evaluates rows.
        points: the inputs that are judged, (B, *F).
        maps: (B, R, *A), as shown: after features, sign and scale.
        features: what is attributed; gives the maps their axes A.
        explain: ``explain(score, points)`` → (N, R, *A): the same rows elsewhere, for neighbours, for another model
            (``score.using(model)``) or another output (``score.towards(target)``).
        key: the draws of this task; see :meth:`stream`.
        names: of the R rows.
        kinds: of each row: "contribution", "gradient" or "relevance".
        raw: (B, R, *A) signed and unscaled, for measures in units of the output; NaN in rows that have no units (mixtures,
            heat maps). None: the maps themselves are signed and unscaled.
        regions: (B, *A) bool, where the evidence is known to be; None: unknown.
        reference: (B, *A), an attribution that is asked for; None: none.
        graph: keep the graph of what the model gives, for a loss. The maps have that of their explainers.
        memory: what measures share; see :meth:`once`.
    """

    score: Score
    points: Points
    maps: Tensor
    features: Features
    explain: Callable[[Score, Points], Tensor]
    key: Key
    names: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    raw: Tensor | None = None
    regions: Tensor | None = None
    reference: Tensor | None = None
    graph: bool = False
    memory: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @property
    def contributions(self) -> Tensor:
        """(B, R, *A): the maps in units of the output."""
        return self.maps if self.raw is None else self.raw

    def output(self, rows: Tensor, owner: Tensor) -> Tensor:
        """(N,): the score of rows, with its graph if the task keeps graphs.

        Args:
            rows: (N, *F).
            owner: (N,), to which inputs they belong.
        """
        return self.score.evaluate(rows, owner, graph=self.graph).score

    def once(self, what: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` gives, computed once: how measures that need the same evaluations share them.

        Only small things (B, R, draws) belong here, no maps.

        Args:
            what: names it.
            make: called the first time that it is asked for.
        """
        if what not in self.memory:
            self.memory[what] = make()
        return self.memory[what]

    def stream(self, name: str) -> Key:
        """The draws of one kind of perturbation: the same for every measure that names it.

        Args:
            name: of the kind.
        """
        return self.key / name

    def only(self, index: Any) -> Task:
        """Some of the inputs, with a memory of its own.

        Args:
            index: what picks them along B.
        """

        def pick(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[index]

        return replace(
            self,
            points=self.points[index],
            maps=self.maps[index],
            raw=pick(self.raw),
            regions=pick(self.regions),
            reference=pick(self.reference),
            memory={},
        )


class Measure(Settings):
    """Interface of a measure: a frozen configuration; calling it gives (B, R) float64, NaN where it is not defined.

    A field ``baseline``, where there is one, says what stands for "absent"; while it is None, evaluate's ``baselines`` do.

    Attributes:
        name: in tables and files.
        card: what the number means.
        undefined: why a number can be NaN although the map is finite and not zero.
        needs: parts of the task without which it does not apply ("raw", "regions", "reference").
    """

    name: ClassVar[str]
    card: ClassVar[Card]
    undefined: ClassVar[str] = "not defined for this input"
    needs: ClassVar[tuple[str, ...]] = ()

    def prepare(self, task: Task) -> None:
        """Say what will be asked of the model, before any measure is called, so that one pass can serve several.

        Args:
            task: what will be judged.
        """

    def __call__(self, task: Task) -> Tensor:
        """(B, R): one number for each input and row.

        Args:
            task: what is judged.
        """
        raise NotImplementedError
