"""The cross-fitted regret: what weights fitted on these draws lose on others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import Tensor

from ..metrics.base import Metric
from ..metrics.front import Aim, Front
from ..metrics.objective import Objective
from ..simplex import Front as Curve
from ..simplex import Solution
from ..statistics.evidence import Evidence, joined
from .draws import KINDS
from .weights import Rule

BLOCKS = 5
"""K, of the cross-fitted regret."""


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
    fitted = solved_apart(rule, [outside for pairs in folds.values() for outside, _ in pairs])
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
        term: Metric | Objective
        if isinstance(goal, Front):
            term = goal.robust if kind == "quadratic" else goal.faithful
        else:
            term = goal.terms[0][1] if len(goal.terms) == 1 else goal
        crossed = term.over_blocks(evidence, inside, [next(fitted) for _ in pairs])
        plain = term.over_blocks(evidence, inside, [whole] * some)
        floor = 1e-6 if isinstance(term, Metric) and term.scale_free else 1e-300
        found[kind] = (crossed - plain) / plain.clamp(min=floor) * (some - 1) / (2 * some - 1)
    return found


def solved_apart(rule: Rule, parts: Sequence[Evidence]) -> list[Tensor]:
    """The weights from each part. Solvers take thousands of small steps: parts with as many draws are solved in one batch."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for at, part in enumerate(parts):
        alike.setdefault(part.counts, []).append(at)
    found: dict[int, Tensor] = {}
    for places in alike.values():
        weights = rule.solve(joined([parts[at] for at in places]))[0].weights
        found.update(zip(places, weights.chunk(len(places)), strict=True))
    return [found[at] for at in range(len(parts))]
