"""Sequential sampling: draws in rounds, until the weights would hardly gain by more."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..explainers import Stack
from ..model.score import Score
from ..perturb.points import Points
from ..simplex import Front as Curve
from ..simplex import Solution
from ..statistics.evidence import Evidence, Quadratic
from ..statistics.tensors import exact
from .draws import KINDS, Draws
from .measurement import Setting
from .regret import doubted
from .weights import Rule

ROUNDS = Draws(5, 128)
"""The first round of ``draws="auto"``; each further one doubles."""


@dataclass(frozen=True)
class Fitted:
    """Inputs with the same number of draws: ``index``, their places among the points, what was ``solved`` on their
    ``evidence``, and ``why`` no more was drawn."""

    index: tuple[int, ...]
    evidence: Evidence
    solved: tuple[Solution, Curve | None]
    draws: Draws
    regret: dict[str, Tensor]
    why: tuple[str, ...]

    def said(self, at: int) -> dict[str, Any]:
        """For the record: draws of each kind, why no more, and the regret by kind of draw where it was looked at."""
        found: dict[str, Any] = {**vars(self.draws), "stopped": self.why[at]}
        if self.regret:
            numbers = {KINDS[kind]: float(value[at]) for kind, value in self.regret.items()}
            found["regret"] = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        return found


def fit(
    rule: Rule,
    setting: Setting,
    score: Score,
    points: Points,
    base: Tensor,
    draws: Draws,
    tolerance: float | None,
    kinds: Sequence[str] = tuple(KINDS),
) -> list[Fitted]:
    """The evidence on which weights rest. ``tolerance`` None: ``draws`` for every input; else at most that many.

    ``kinds``: which draws to make; of those that the objective does not look at, the first round is made."""
    everything = tuple(range(len(points)))

    def solved(evidence: Evidence) -> tuple[Solution, Curve | None]:
        return rule.solve(evidence.rows(slice(setting.rows)))

    if not kinds:
        square = exact(base.new_zeros((*base.shape[:2], base.shape[1])))
        nothing = Evidence(Quadratic(square[:, None][:, :0], square)).spoil(~base.flatten(2).isfinite().all(2))
        return [Fitted(everything, nothing, solved(nothing), Draws(0, 0), {}, ("nothing is solved",) * len(points))]
    skipped = {KINDS[kind]: 0 for kind in KINDS if kind not in kinds}
    draws = replace(draws, **skipped)
    if tolerance is None:
        evidence = setting.evidence(score, points, base, draws, "fit", kinds)
        return [Fitted(everything, evidence, solved(evidence), draws, {}, ("as asked",) * len(points))]

    def draw(at: Sequence[int], kind: str, samples: range) -> Evidence:
        return setting.more(score, points[list(at)], base[list(at)], kind, samples, "fit")

    price = prices(setting.stack.stack, points.x.shape[1:])
    return until_sure(rule, draw, everything, draws, tolerance, price, kinds, setting.rows)


def prices(stack: Stack, shape: Sequence[int] = ()) -> dict[str, int]:
    """Kind of draw → what one costs in forward evaluations: an explanation, or an output."""
    cost = stack.rows(shape)
    return {"quadratic": cost["forward"] + 3 * cost["gradient"], "responses": 1}


def until_sure(
    rule: Rule,
    draw: Callable[[Sequence[int], str, range], Evidence],
    inputs: tuple[int, ...],
    draws: Draws,
    tolerance: float,
    price: Mapping[str, int],
    kinds: Sequence[str],
    k: int,
) -> list[Fitted]:
    """Rounds of ``draw(inputs, kind, samples)``, at most ``draws`` of each kind, until an input's regret is within tolerance.

    ``price`` of a draw of each kind; ``k``: how many rows of the evidence are methods."""
    done: list[Fitted] = []
    first = Draws(*(min(getattr(ROUNDS, kind), getattr(draws, kind)) for kind in KINDS.values()))
    start = sum((draw(inputs, kind, range(first.of_kind(kind))) for kind in KINDS if kind in kinds), Evidence())
    open_ = [(inputs, start, first)]
    while open_:
        index, evidence, had = open_.pop()
        solution, curve, found = doubted(rule, evidence.rows(slice(k)))
        step: dict[str, list[int]] = {kind: [] for kind in KINDS}
        rest: list[int] = []
        reasons = []
        for i in range(len(index)):
            seen = {kind: float(r[i]) for kind, r in found.items()}
            wrong = {kind: value for kind, value in seen.items() if value > tolerance}
            more = {kind: v for kind, v in wrong.items() if had.of_kind(kind) < draws.of_kind(kind)}
            if more:
                # What a further round may mend, per evaluation: a doubling halves the regret.
                step[max(more, key=lambda kind: more[kind] / (had.of_kind(kind) * price[kind]))].append(i)
            else:
                rest.append(i)
                worst = max((0.0, *seen.values()))
                if any(math.isnan(value) for value in seen.values()):
                    reasons.append("no regret: no method can be used for this input")
                else:
                    reasons.append(
                        f"budget reached, regret {worst:.1%}" if wrong else f"regret {worst:.1%} ≤ {tolerance:.1%}"
                    )
        if rest:
            kept = {kind: r[rest] for kind, r in found.items()}
            solved = solution.inputs(rest), None if curve is None else curve.inputs(rest)
            at = tuple(index[i] for i in rest)
            done.append(Fitted(at, evidence.inputs(rest), solved, had, kept, tuple(reasons)))
        for kind, chosen in step.items():
            if chosen:
                count = min(2 * had.of_kind(kind), draws.of_kind(kind))
                at = tuple(index[i] for i in chosen)
                extra = draw(at, kind, range(had.of_kind(kind), count))
                open_.append((at, evidence.inputs(chosen) + extra, replace(had, **{KINDS[kind]: count})))
    return done
