"""What is judged: maps of a batch, and the means to ask the model or the explainers again."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import Tensor

from .features.base import Features
from .model.score import Score
from .perturb.points import Points
from .statistics.keys import Key

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
