"""What an explainer is: a frozen configuration that declares what it needs and folds what it gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from ..errors import InputError
from ..neighbourhood import Cloud, Neighbourhood, Point, Points
from ..score import Values

Kind = Literal["gradient", "contribution", "relevance"]


@dataclass(frozen=True)
class Need:
    """Evaluations asked for: ``samples`` rows of the neighbourhood ``where`` around each point, drawn from ``stream``.

    ``gradient``: gradients with respect to the rows, computed under ``rule`` (None, "guided", "rescale"); ``layer``: the
    activation there, and its gradient. Needs with equal :attr:`cloud` are evaluated once, whoever asks.
    """

    where: Neighbourhood = Point()
    samples: int = 1
    stream: str = ""
    gradient: bool = True
    rule: str | None = None
    layer: str | None = None

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InputError(f"samples, steps: at least 1, got {self.samples}")

    @property
    def cloud(self) -> tuple:
        return self.where, self.samples, self.stream, self.rule


class Explainer:
    """Interface of an explainer.

    Attributes:
        name: the row's name in tables and files.
        kind: "gradient" (sensitivity of the score, score / input units), "contribution" (share of the score, in score
            units), or "relevance" (no unit).
        complete: whether the attributions add up to score(x) − score(baseline), up to its own error.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]
    complete: ClassVar[bool] = False

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


def mean(state: Tensor | None, cloud: Cloud, values: Tensor) -> Tensor:
    """state + Σ_s weight_s · values_s: a weighted mean over the cloud, (n·s, *F) → (n, *F)."""
    weights = cloud.weights.to(values.dtype).view(1, -1, *[1] * (values.ndim - 1))
    total = (cloud.split(values) * weights).sum(1)
    return total if state is None else state + total
