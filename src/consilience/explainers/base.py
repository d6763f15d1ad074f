"""What an explainer is: a frozen configuration that declares what it needs and folds what it gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from ..card import Card
from ..errors import InputError
from ..model.score import Score
from ..model.values import Values
from ..perturb.neighbourhoods import Neighbourhood, Point
from ..perturb.points import Cloud, Points
from ..settings import Settings
from ..statistics.keys import Key

Kind = Literal["gradient", "contribution", "relevance"]


@dataclass(frozen=True)
class Need:
    """Evaluations asked for: ``samples`` rows of the neighbourhood ``where`` around each point, drawn from ``stream``.

    ``samples`` None: all that the neighbourhood has (``where.total``), which depends on the input's shape. ``gradient``:
    gradients with respect to the rows, computed under ``rule`` (None, "guided", "rescale"); ``layer``: the activation there,
    and its gradient. Needs with equal :attr:`cloud` are evaluated once, whoever asks.
    """

    where: Neighbourhood = Point()
    samples: int | None = 1
    stream: str = ""
    gradient: bool = True
    rule: str | None = None
    layer: str | None = None

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise InputError(f"samples, steps: at least 1, got {self.samples}")

    @property
    def cloud(self) -> tuple:
        return self.where, self.samples, self.stream, self.rule

    def total(self, shape: Sequence[int]) -> int:
        """Rows for one point with axes ``shape``."""
        return self.where.total(shape) if self.samples is None else self.samples


class Explainer(Settings):
    """Interface of an explainer.

    Attributes:
        name: the row's name in tables and files.
        kind: "gradient" (sensitivity of the score, score / input units), "contribution" (share of the score, in score
            units), or "relevance" (no unit).
        complete: whether the attributions add up to score(x) − score(baseline), up to its own error.
        card: formula, source, units, costs and known differences from other libraries.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]
    complete: ClassVar[bool] = False
    card: ClassVar[Card]

    @property
    def need(self) -> Need:
        """What has to be evaluated around each point."""
        raise NotImplementedError

    def fold(self, state: Any, cloud: Cloud, values: Values) -> Any:
        """Take in the values of some samples; ``state`` is None at first. Sums here, so any chunking gives the same.

        By default the weighted mean of the gradients over the cloud, times the way from the origin where it has one.
        """
        assert values.gradient is not None
        return mean(state, cloud, values.gradient if cloud.delta is None else values.gradient * cloud.delta)

    def finish(self, state: Any, points: Points) -> Tensor:
        """The attributions of the points, (N, *F); by default the folded state itself."""
        return state


class Direct(Explainer):
    """An explainer that does not fit one cloud and one fold: it calls the score itself, as often as it needs.

    For two phases (Score-CAM), perturbed weights (NoiseGrad), surrogates with data of their own (MAPLE), other libraries.
    It shares no evaluations. ``attribute`` must be a function of the points and the key only, batched over the points.
    """

    def attribute(self, score: Score, points: Points, key: Key) -> Tensor:
        """The attributions of the points, (N, *F)."""
        raise NotImplementedError

    def rows(self, shape: Sequence[int]) -> dict[str, int]:
        """Model evaluations for one point: {"forward": …, "gradient": …}."""
        raise NotImplementedError

    def check(self, score: Score, points: Points, key: Key) -> None:
        """Raise whatever would make it fail on these points; by default, by trying. Override where that is dear."""
        self.attribute(score, points, key)


def mean(state: Tensor | None, cloud: Cloud, values: Tensor) -> Tensor:
    """state + Σ_s weight_s · values_s: a weighted mean over the cloud, (n·s, *F) → (n, *F)."""
    weights = cloud.weights.to(values.dtype).view(1, -1, *[1] * (values.ndim - 1))
    total = (cloud.split(values) * weights).sum(1)
    return total if state is None else state + total
