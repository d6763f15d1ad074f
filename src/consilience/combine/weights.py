"""Aggregations that minimise: the one place where an objective becomes weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import InputError, choose
from ..metrics.base import Metric
from ..metrics.front import Aim, Front, cross_validated
from ..metrics.objective import Objective
from ..settings import setting
from ..simplex import Solution
from ..statistics.evidence import Evidence
from .aggregation import Aggregation, Combination
from .aggregations import AGGREGATIONS, Given
from .named import OBJECTIVES, TERMS, aim

CHOICES = ("convex", "cross_validated")


@dataclass(frozen=True)
class Minimise(Aggregation):
    """The mixture that minimises an objective on the fitting draws, or that is chosen from a front.

    Args:
        goal: a sum of metrics, or a front.
        signed: over signed weights, Σ|w| = 1; for objectives of one part.
        choice: "convex", or "cross_validated": among best single, mean, convex and signed, by folds of the draws.
        pooled: one set of weights for the whole batch, from the inputs' pooled evidence.

    Raises:
        InputError: a front with signed weights or another choice than convex.
    """

    goal: Aim
    signed: bool = False
    choice: str = setting("convex", choices=CHOICES)
    pooled: bool = False

    name = "minimise"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.goal, Front) and not self.convex:
            raise InputError(
                "objective: the front is over convex weights and has two numbers, so it takes neither signed=True nor "
                "choice='cross_validated'; use objective='robust' or 'faith'"
            )

    @property
    def solves(self) -> bool:
        return True

    @property
    def convex(self) -> bool:
        """Whether the optimum over convex weights is wanted."""
        return not self.signed and self.choice == "convex"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return tuple(part for _, metric in self.goal.terms for part in (metric, *metric.beside))

    def fit(self, evidence: Evidence) -> Combination:
        count = len(evidence.like)
        found = self._solve(evidence.pooled() if self.pooled else evidence)
        if not self.pooled:
            return found
        solution = found.solution
        shared = Solution(
            solution.weights.expand(count, -1),
            solution.value.expand(count),
            solution.gap.expand(count),
            solution.status * count,
        )
        return Combination(shared)

    def _solve(self, evidence: Evidence) -> Combination:
        if self.choice == "cross_validated":
            return Combination(cross_validated(self.goal, evidence))
        if isinstance(self.goal, Front):
            curve = self.goal.curve(evidence)
            return Combination(self.goal.choose(curve), curve)
        return Combination(self.goal.minimise(evidence, signed=self.signed))


def resolve(
    objective: str | Aim | Metric | Aggregation,
    *,
    signed: bool = False,
    choice: str = "convex",
    pooled: bool = False,
    weights: Any = None,
) -> Aggregation:
    """What the caller asked for, as an aggregation.

    Args:
        objective: the name of an aggregation or an objective, an expression over objectives, a metric, a sum of metrics, a
            front, or an aggregation.
        signed, choice, pooled: see :class:`Minimise`; for objectives only.
        weights: (k,) or (B, k), in place of any objective.

    Raises:
        InputError: the name is not known, or the options do not fit the objective.
    """
    if weights is not None:
        return Given(weights)
    if isinstance(objective, str):
        if objective in AGGREGATIONS:
            objective = AGGREGATIONS[objective]
        else:
            if "+" not in objective and "*" not in objective:
                choose("objective", objective, [*OBJECTIVES, *AGGREGATIONS, *TERMS])
            objective = aim(objective)
    if isinstance(objective, Aggregation):
        asked = {"signed": signed, "choice": choice != "convex", "pooled": pooled}
        refused = [name for name, value in asked.items() if value]
        if refused:
            raise InputError(f"{refused[0]}: {objective.name!r} minimises nothing; this is for objectives")
        return objective
    if isinstance(objective, Metric):
        objective = Objective(((1.0, objective),))
    if not isinstance(objective, Objective | Front):
        raise InputError(f"objective: a name, a metric, a sum of metrics or an aggregation, got {objective!r}")
    return Minimise(objective, signed, choice, pooled)
