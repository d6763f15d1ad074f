"""Weights from draws: the one place where an objective is solved, for a fixed number of draws or until more would not pay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..metrics.front import Aim, Front, cross_validated
from ..simplex import Front as Curve
from ..simplex import Solution
from ..statistics.evidence import Evidence
from .aggregations import unsolved


@dataclass(frozen=True)
class Rule:
    """How evidence becomes weights."""

    goal: Aim | str
    working: tuple[int, ...]
    signed: bool = False
    choice: str = "convex"
    pooled: bool = False
    weights: Tensor | None = None

    @property
    def convex(self) -> bool:
        """Whether the optimum over convex weights is wanted."""
        return not self.signed and self.choice == "convex"

    def solve(self, evidence: Evidence) -> tuple[Solution, Curve | None]:
        return solve(self.goal, evidence, self.working, self.signed, self.choice, self.pooled, self.weights)


def solve(
    goal: Aim | str,
    evidence: Evidence,
    working: Sequence[int],
    signed: bool = False,
    choice: str = "convex",
    pooled: bool = False,
    weights: Tensor | None = None,
) -> tuple[Solution, Curve | None]:
    """The one place where an objective becomes weights (B, k): per input or pooled, by the asked rule."""
    count = len(evidence.like)
    if isinstance(goal, str):
        return unsolved(goal, evidence, working, weights), None
    shared = evidence.pooled() if pooled else evidence
    curve = None
    if choice == "cross_validated":
        solution = cross_validated(goal, shared)
    elif isinstance(goal, Front) and not signed:
        curve = goal.curve(shared)
        solution = goal.choose(curve)
    else:
        solution = goal.minimise(shared, signed=signed)
    if pooled:
        solution = Solution(
            solution.weights.expand(count, -1),
            solution.value.expand(count),
            solution.gap.expand(count),
            solution.status * count,
        )
        curve = None
    return solution, curve
