"""Aggregations that minimise: the one place where an objective becomes weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import InputError, choose
from ..metrics.base import Metric
from ..metrics.cross_validation import cross_validated
from ..metrics.front import Front, Goal
from ..metrics.objective import Objective
from ..settings import setting
from ..simplex import Solution
from ..statistics.evidence import Evidence
from .aggregation import Aggregation, Combination
from .aggregations import AGGREGATIONS, Given
from .named import NAMED_OBJECTIVES, OBJECTIVES, named_objective

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

    goal: Goal
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
        """True: more draws make better weights."""
        return True

    @property
    def convex(self) -> bool:
        """Whether the optimum over convex weights is wanted."""
        return not self.signed and self.choice == "convex"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics of the goal, each followed by those whose draws it looks at too."""
        return tuple(part for _, metric in self.goal.terms for part in (metric, *metric.beside))

    def pool(self, evidence: Evidence) -> Evidence:
        """The evidence of B inputs as that of one, on scales that the goal does not see.

        Args:
            evidence: the fitting draws of the k methods, of B inputs.
        """
        return evidence.pooled(centred=all(metric.centred for metric in self.metrics))

    def fit(self, evidence: Evidence) -> Combination:
        """The weights of every input, with what they are worth and a certificate; the same for all inputs if pooled.

        Args:
            evidence: the fitting draws of the k methods, of B inputs.
        """
        if not self.pooled:
            return self._solve(evidence)
        solution = self._solve(self.pool(evidence)).solution
        count = len(evidence.like)
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
    objective: str | Goal | Metric | Aggregation,
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
        signed: over signed weights; see :class:`Minimise`. For objectives only.
        choice: "convex" or "cross_validated"; see :class:`Minimise`. For objectives only.
        pooled: one set of weights for the whole batch; see :class:`Minimise`. For objectives only.
        weights: (k,) or (B, k), in place of any objective.

    Raises:
        InputError: the name is not known, or the options do not fit the objective.
    """
    if weights is not None:
        return Given(weights)
    if isinstance(objective, str):
        objective = _of_name(objective)
    if isinstance(objective, Aggregation):
        asked = {"signed": signed, "choice": choice != "convex", "pooled": pooled}
        refused = [name for name, value in asked.items() if value]
        if refused:
            raise InputError(
                f"{refused[0]}: is for the weights of an objective that is minimised, and {objective.name!r} is none; use "
                "objective='robust' or 'faith', or leave it out"
            )
        return objective
    if isinstance(objective, Metric):
        objective = Objective(((1.0, objective),))
    if not isinstance(objective, Objective | Front):
        raise InputError(f"objective: a name, a metric, a sum of metrics or an aggregation, got {objective!r}")
    return Minimise(objective, signed, choice, pooled)


def _of_name(name: str) -> Goal | Aggregation:
    """The aggregation or the objective of a name, or of an expression such as "robust + 0.5*faith"."""
    if name in AGGREGATIONS:
        return AGGREGATIONS[name]
    if "+" not in name and "*" not in name:
        # Here, since only here aggregations too are among the names that may be meant.
        choose("objective", name, [*OBJECTIVES, *AGGREGATIONS, *NAMED_OBJECTIVES])
    return named_objective(name)
