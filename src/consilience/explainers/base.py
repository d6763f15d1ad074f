"""The interface of explainers: frozen configurations that declare what they need and fold what they get."""

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
    """Evaluations that an explainer asks for around each point. Needs with equal :attr:`cloud` are evaluated once for all.

    Args:
        where: the neighbourhood in which rows are drawn.
        samples: rows; None: all that the neighbourhood has (``where.total``), which depends on the input's shape.
        stream: name of the draws.
        gradient: gradients with respect to the rows are needed.
        rule: they are computed under: None, "guided" or "rescale".
        layer: the activation there is needed, and its gradient.

    Raises:
        InputError: no sample.
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
        """What decides which rows are evaluated, and how."""
        return self.where, self.samples, self.stream, self.rule

    def total(self, shape: Sequence[int]) -> int:
        """Rows for one point with axes ``shape``."""
        if self.samples is None:
            return self.where.total(shape)
        return self.samples


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
        """Take in the values of some samples. States are sums, so that the samples may come in chunks of any size.

        By default the weighted mean of the gradients over the cloud, times the way from its origin where it has one.

        Args:
            state: what was folded so far; None at first.
            cloud: the samples (n·s, *F) of n points.
            values: what the model gave for them.

        Returns:
            The new state.
        """
        gradient = values.gradient
        assert gradient is not None
        if cloud.delta is not None:
            gradient = gradient * cloud.delta
        return mean(state, cloud, gradient)

    def finish(self, state: Any, points: Points) -> Tensor:
        """The attributions of the ``points``, (N, *F); by default the folded ``state`` itself."""
        return state


class Direct(Explainer):
    """Interface of an explainer that does not fit one cloud and one fold: it calls the score itself, as often as it needs.

    It is for two phases (Score-CAM), perturbed weights (NoiseGrad), surrogates with data of their own (MAPLE), and other
    libraries. It shares no evaluations. ``attribute`` must be a function of the points and the key only, batched over points.
    """

    def attribute(self, score: Score, points: Points, key: Key) -> Tensor:
        """The attributions of the points, (N, *F).

        Args:
            score: what is explained.
            points: x (N, *F).
            key: of all draws.
        """
        raise NotImplementedError

    def rows(self, shape: Sequence[int]) -> dict[str, int]:
        """Model evaluations for one point with axes ``shape``: {"forward": …, "gradient": …}."""
        raise NotImplementedError

    def check(self, score: Score, points: Points, key: Key) -> None:
        """Raise whatever would make it fail on these points; by default, by trying. Override where that costs much.

        Asked for a plan alone: an explanation begins with the explainer's maps of the first point.

        Args:
            score: what is explained.
            points: x (N, *F), as a rule a single one.
            key: of all draws.
        """
        self.attribute(score, points, key)


def mean(state: Tensor | None, cloud: Cloud, values: Tensor) -> Tensor:
    """state + Σ_s weight_s · values_s, a weighted mean over the cloud: (n, *F).

    Args:
        state: (n, *F), what was added so far; None at first.
        cloud: s samples of each of n points, and their weights.
        values: (n·s, *F), of the samples.
    """
    weights = cloud.weights.to(values.dtype).view(1, -1, *[1] * (values.ndim - 1))
    total = (cloud.split(values) * weights).sum(1)
    if state is None:
        return total
    return state + total
