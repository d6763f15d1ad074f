"""What a measure is: a configuration that gives one number for each input and each attribution of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from ..card import Card
from ..features import Features
from ..keys import Key
from ..neighbourhood import Points
from ..score import Score

T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """What there is to judge: R attributions of each of B inputs, and the means to ask the model again.

    ``maps`` (B, R, *A): as shown, after features, sign and scale. ``raw`` (B, R, *A): signed and unscaled contributions for
    measures in output units, NaN in rows that are none (mixtures, heat maps); ``kinds``: the kind of each row.
    ``explain(score, points)`` → (N, R, *A): the same rows elsewhere, for neighbours or another model (``score.using(model)``)
    or another output (``score.towards(target)``). ``regions`` (B, *A) bool: where the evidence is known to be; None: unknown.
    ``reference`` (B, *A): an attribution that is asked for; None: none.
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
    memory: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def once(self, what: Hashable, make: Callable[[], T]) -> T:
        """``make()``, computed once for each ``what``: how measures that need the same evaluations share them.

        Only small things (B, R, draws) belong here, no maps."""
        if what not in self.memory:
            self.memory[what] = make()
        return self.memory[what]

    def stream(self, name: str) -> Key:
        """The draws of one kind of perturbation: the same for every measure that names it."""
        return self.key / name

    def only(self, index: Any) -> Task:
        """Some of the inputs, with a memory of its own."""
        pick = lambda t: None if t is None else t[index]  # noqa: E731
        return replace(
            self, points=self.points[index], maps=self.maps[index], raw=pick(self.raw), regions=pick(self.regions),
            reference=pick(self.reference), memory={},
        )  # fmt: skip


class Measure:
    """Interface of a measure: a frozen configuration; calling it gives (B, R) float64, NaN where it is not defined.

    A field ``baseline``, where there is one, says what stands for "absent"; while it is None, evaluate's ``baselines`` do.

    Attributes:
        name: in tables and files. card: what the number means.
        undefined: why a number can be NaN although the map is finite and not zero.
        needs: parts of the task without which it does not apply ("raw", "regions", "reference").
    """

    name: ClassVar[str]
    card: ClassVar[Card]
    undefined: ClassVar[str] = "not defined for this input"
    needs: ClassVar[tuple[str, ...]] = ()

    def prepare(self, task: Task) -> None:
        """Say what will be asked of the model, before any measure is called, so that one pass can serve several."""

    def __call__(self, task: Task) -> Tensor:
        """(B, R): one number for each input and row."""
        raise NotImplementedError
