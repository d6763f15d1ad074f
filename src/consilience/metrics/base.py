"""The interface of a metric: a measure that is a squared length of residuals which are affine in the map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..perturb.points import Points
from ..simplex import Solution
from ..statistics.evidence import Evidence, Part
from ..statistics.tensors import corners
from ..task import Measure, Task

if TYPE_CHECKING:
    from ..model.score import Score
    from .objective import Objective

Block = tuple[float, Evidence]
"""(share, evidence): some draws of one kind beside all draws of the others, and their share of that kind's draws."""


class Metric(Measure):
    """Interface of a metric; ``+`` and ``*`` make an :class:`~consilience.metrics.objective.Objective`.

    The law: for Σw = 1 the residuals of Σ wφ are Σ w residuals(φ), on the same draws. So :meth:`measure` reduces a task to
    small matrices, from which every mixture can be judged (:meth:`loss`) and the best one found (:meth:`solve`) with no
    further evaluation. A metric is a :class:`~consilience.task.Measure` too: called with a task, it gives each row's loss.

    Attributes:
        statistic: the name of its part of the evidence. Metrics with the same name share their draws.
        asks: what one draw asks again: "explanations", "outputs", or "nothing" (one residual for each input).
        draws: how many draws judge it where it is used as a measure.
        in_output_units: whether maps must be signed and unscaled.
    """

    statistic: ClassVar[str]
    asks: ClassVar[str] = "outputs"
    draws: ClassVar[int] = 256
    in_output_units: ClassVar[bool] = False

    @property
    def scale_free(self) -> bool:
        """Whether it is the form that a :class:`~consilience.metrics.front.Front` is made of."""
        return False

    @property
    def allows_signed(self) -> bool:
        """Whether it has a minimum over signed weights, Σ|w| = 1."""
        return self.scale_free

    @property
    def centred(self) -> bool:
        """Whether nothing changes if each input's responses are centred, and scaled by themselves."""
        return True

    @property
    def fixed(self) -> int | None:
        """How many draws it makes whatever number is asked for; None: as many as asked."""
        if self.asks == "nothing":
            return 1
        return None

    @property
    def beside(self) -> tuple[Metric, ...]:
        """Other metrics whose part of the evidence it looks at as well."""
        return ()

    @property
    def statistics(self) -> frozenset[str]:
        """All parts of the evidence that it looks at."""
        return frozenset({self.statistic, *(other.statistic for other in self.beside)})

    @property
    def drawn(self) -> Any:
        """What decides its draws: metrics with the same ``statistic`` in one objective must agree on it."""
        return self

    def completed(self, baseline: Any = None, features: Any = None) -> Metric:
        """This metric with what the caller gives, in the fields of these names that it leaves open (None).

        Args:
            baseline: what stands for "absent"; None: as it is.
            features: the mask units; None: as they are.
        """
        if not is_dataclass(self):
            return self
        left_open = {each.name for each in fields(self) if getattr(self, each.name) is None}
        given = {"baseline": baseline, "features": features}
        filled = {name: value for name, value in given.items() if value is not None and name in left_open}
        if not filled:
            return self
        return replace(self, **filled)

    def of_model(self, score: Score) -> Metric:
        """This metric with what depends on the model, such as how many outputs there are to ask about.

        Args:
            score: the model, resolved at the inputs.
        """
        return self

    def measure(self, task: Task, samples: range, total: int) -> Part:
        """The statistics of some draws, for all rows of the task.

        Args:
            task: what is judged; if it keeps graphs, the statistics have one.
            samples: the numbers of the draws.
            total: how many draws there will be in all; stratified draws depend on it.
        """
        raise NotImplementedError

    def evaluations(self, points: Points, asked: int, stream: str) -> int:
        """How many draws the points get in all.

        Args:
            points: the N inputs.
            asked: how many are asked for each.
            stream: "fit" or "fresh".
        """
        return asked * len(points)

    def loss(self, evidence: Evidence, w: Tensor) -> Tensor:
        """What is minimised, (B, M); differentiable in w.

        Args:
            evidence: the draws, clean.
            w: (B, M, R), mixtures of the rows.
        """
        raise NotImplementedError

    def over_blocks(self, whole: Evidence, blocks: Sequence[Block], weights: Sequence[Tensor]) -> Tensor:
        """(B,): the loss over all draws, where each block of them is judged with weights of its own.

        Args:
            whole: all draws.
            blocks: parts of the draws, each with its share of them.
            weights: (B, R) for each block.
        """
        losses = []
        for (share, evidence), w in zip(blocks, weights, strict=True):
            losses.append(share * self.loss(evidence, w[:, None])[:, 0])
        return torch.stack(losses).sum(0)

    def solve(self, evidence: Evidence, valid: Tensor, signed: bool) -> Solution:
        """The best weights over the simplex.

        Args:
            evidence: the draws, clean.
            valid: (B, R) bool, rows that may get weight.
            signed: over Σ|w| = 1 instead.

        Raises:
            InputError: ``signed``, for a metric that has no minimum there.
        """
        raise NotImplementedError

    def matrix(self, evidence: Evidence, whole: Evidence | None = None) -> Tensor | None:
        """G (B, R, R), if what is minimised is wᵀGw; else None.

        Args:
            evidence: the draws.
            whole: draws to which the metric's scale is fitted, if it has one; None: ``evidence``.
        """
        return None

    def __call__(self, task: Task) -> Tensor:
        """(B, R): the loss of each row, on draws of its own; NaN for zero maps and maps that are not finite."""
        parts = {}
        for metric in (self, *self.beside):
            own = metric.of_model(task.score)
            count = own.fixed
            if count is None:
                count = own.draws
            parts[own.statistic] = own.measure(task, range(count), count)
        evidence = Evidence.of(parts)
        valid = evidence.valid()
        each_row_alone = corners(valid)
        return torch.where(valid, self.loss(evidence.clean(), each_row_alone), torch.nan)

    def _objective(self) -> Objective:
        """The objective of this metric alone."""
        from .objective import Objective  # which is made of metrics, and imports this module

        return Objective(((1.0, self),))

    def __add__(self, other: Metric | Objective) -> Objective:
        return self._objective() + other

    def __mul__(self, weight: float) -> Objective:
        return self._objective() * weight

    __rmul__ = __mul__
