"""Weights from draws: the one place where an objective is solved, for a fixed number of draws or until more would not pay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..explainers import Stack
from ..neighbourhood import Points
from ..objective import Aim, Front, Objective, Term, cross_validated
from ..quadratic import Evidence, Quadratic, exact, joined
from ..score import Score
from ..simplex import Front as Curve
from ..simplex import Solution
from .setting import DERIVED, KINDS, Draws, Setting, by_quality

ROUNDS = Draws(5, 128)
"""The first round of ``draws="auto"``; each further one doubles."""
BLOCKS = 5
"""K, of the cross-fitted regret."""


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


def looked_at(goal: Aim | str) -> tuple[str, ...]:
    """The kinds of draws on which a goal's weights depend."""
    if isinstance(goal, str):
        return tuple(KINDS) if goal == "weighted" else ()
    return tuple(kind for kind in KINDS if kind in goal.statistics)


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


def doubted(rule: Rule, evidence: Evidence) -> tuple[Solution, Curve | None, dict[str, Tensor]]:
    """What :meth:`Rule.solve` gives, and its :func:`regret`."""
    goal = rule.goal
    if not (isinstance(goal, Front) and rule.convex) or rule.pooled:
        solution, curve = rule.solve(evidence)
        return solution, curve, regret(rule, evidence, solution.weights)
    # A front wants matrices only, so the whole and its parts are one batch.
    evidence = evidence.clean()
    folds = _folds(goal, evidence)
    parts = [outside for pairs in folds.values() for outside, _ in pairs]
    curve = goal.curve(evidence, *parts)
    every, own = goal.choose(curve), range(len(evidence.like))
    whole, *fitted = every.weights.chunk(1 + len(parts))
    return every.inputs(own), curve.inputs(own), _judged(goal, evidence, whole, folds, fitted)


def regret(rule: Rule, evidence: Evidence, whole: Tensor, blocks: int = BLOCKS) -> dict[str, Tensor]:
    """Kind of draw → (B,): (V_cv / V_in − 1) · (K − 1)/(2K − 1), what weights fitted on these draws lose on others.

    ``whole`` (B, R): the weights fitted on all.
    V_cv scores each of K blocks of the draws of one kind with weights fitted without it, V_in with weights fitted on all; the
    other kind of draw stays whole. If weights from n draws lose c/n on others, those from n(1 − 1/K) lose c/n · K/(K − 1), and
    V_in, on the draws they were fitted on, is c/n too good: hence the factor. Only for what the objective looks at. NaN where
    no method can be used; of criteria without a scale, a value below 1e-6 is perfect, and further digits are rounding."""
    goal = rule.goal
    if isinstance(goal, str):
        return {}
    shared = (evidence.pooled() if rule.pooled else evidence).clean()
    if rule.pooled:
        rule, whole = replace(rule, pooled=False), whole[:1]
    folds = _folds(goal, shared, blocks)
    fitted = _apart(rule, [outside for pairs in folds.values() for outside, _ in pairs])
    return {
        kind: found.expand(len(evidence.like)) for kind, found in _judged(goal, shared, whole, folds, fitted).items()
    }


Folds = dict[str, list[tuple[Evidence, Evidence]]]


def _folds(goal: Aim, evidence: Evidence, blocks: int = BLOCKS) -> Folds:
    """Kind of draw → (draws outside a block, draws inside)."""
    return {kind: evidence.folds(blocks, kind) for kind in KINDS if kind in goal.statistics}


def _judged(goal: Aim, evidence: Evidence, whole: Tensor, folds: Folds, fitted: Iterable[Tensor]) -> dict[str, Tensor]:
    """The regret, from weights ``fitted`` outside each block of each kind. Evidence is clean: what is invalid in the whole must
    be so in every part."""
    fitted = iter(fitted)
    found = {}
    for kind, pairs in folds.items():
        some = len(pairs)
        inside = [(part.count(kind) / evidence.count(kind), part) for _, part in pairs]
        term: Term | Objective
        if isinstance(goal, Front):
            term = goal.robust if kind == "quadratic" else goal.faithful
        else:
            term = goal.terms[0][1] if len(goal.terms) == 1 else goal
        crossed = term.over_blocks(evidence, inside, [next(fitted) for _ in pairs])
        plain = term.over_blocks(evidence, inside, [whole] * some)
        floor = 1e-6 if isinstance(term, Term) and term.scale_free else 1e-300
        found[kind] = (crossed - plain) / plain.clamp(min=floor) * (some - 1) / (2 * some - 1)
    return found


def _apart(rule: Rule, parts: Sequence[Evidence]) -> list[Tensor]:
    """The weights from each part. Solvers take thousands of small steps: parts with as many draws are solved in one batch."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for at, part in enumerate(parts):
        alike.setdefault(part.counts, []).append(at)
    found: dict[int, Tensor] = {}
    for places in alike.values():
        weights = rule.solve(joined([parts[at] for at in places]))[0].weights
        found.update(zip(places, weights.chunk(len(places)), strict=True))
    return [found[at] for at in range(len(parts))]


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


def unsolved(goal: str, evidence: Evidence, working: Sequence[int], weights: Tensor | None = None) -> Solution:
    """The weights (B, k) of goals that solve nothing: given ones, by measured quality, or equal shares of the methods whose
    maps are finite."""
    like = evidence.like
    nothing = torch.full_like(like[:, 0], torch.nan)
    if weights is not None:
        return Solution(weights.to(like.device), nothing, nothing, ("given weights",) * len(like))
    if goal == "weighted":
        share = by_quality(evidence, working)
    else:
        assert evidence.quadratic is not None
        asked = torch.zeros_like(like)
        asked[:, list(working)] = 1
        share = asked * evidence.quadratic.norm.diagonal(dim1=1, dim2=2).isfinite()
        share = share / share.sum(1, keepdim=True)
    return Solution(share, nothing, nothing, (f"{goal} of the maps, nothing solved",) * len(like))


def mixing_of(goal: Aim | str, weights: Tensor, rows: int, k: int) -> Tensor:
    """(B, R): the combined map's coefficients on the methods and the derived maps."""
    mixing = weights.new_zeros(len(weights), rows)
    if goal in ("var", "median", "rank"):
        mixing[:, k + DERIVED.index(goal)] = 1
    else:
        mixing[:, :k] = weights
    return mixing
