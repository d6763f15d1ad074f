"""The cross-fitted regret: what weights fitted on these draws lose on others, as a share of what they reach.

With V the objective's value, V_cv scores each of K blocks of the draws with weights fitted on the other blocks, and V_in with
weights fitted on all. If weights from n draws lose c/n on other draws, those from n(1 − 1/K) lose c/n · K/(K − 1), and V_in,
on the draws that its weights were fitted on, is c/n too good. So the weights lose

    c/n = (V_cv − V_in) · (K − 1)/(2K − 1).

For sensitivities that is compared with the value itself. For masks the value is what is *not* explained, 1 − ρ². Where ρ is
small it is near 1 whatever the weights are, so there the loss is compared with what is explained: ρ² = 1 − V_in − c/n.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..metrics.base import Metric
from ..metrics.front import Front, Goal
from ..metrics.objective import Objective
from ..statistics.evidence import Evidence, joined
from .aggregation import Aggregation, Combination
from .draws import SEQUENTIAL_KINDS
from .weights import Minimise

BLOCKS = 5
"""K, the number of blocks."""

ROUNDING = 1e-12
"""A loss below this share of the value is rounding."""

PERFECT = 1e-6
"""A criterion without a scale that is below this value is perfect, and further digits are rounding."""

TINY = 1e-300
"""In place of a zero to divide by: near the smallest float64."""

Folds = dict[str, list[tuple[Evidence, Evidence]]]
"""Kind of draw → for each block (draws outside it, draws inside)."""


def solve_with_regret(aggregation: Aggregation, evidence: Evidence) -> tuple[Combination, dict[str, Tensor]]:
    """What the aggregation's fit gives, and its :func:`regret`.

    Args:
        aggregation: how evidence becomes weights.
        evidence: the fitting draws of the k methods.
    """
    if not isinstance(aggregation, Minimise) or not isinstance(aggregation.goal, Front) or aggregation.pooled:
        combination = aggregation.fit(evidence)
        own = aggregation.regret(evidence, combination)
        if own is None:
            own = regret(aggregation, evidence, combination.weights)
        return combination, own
    goal = aggregation.goal
    # A front wants matrices only, so the whole and its parts are solved as one batch.
    evidence = evidence.clean()
    folds = _folds(goal, evidence)
    parts = [outside for pairs in folds.values() for outside, _ in pairs]
    curve = goal.curve(evidence, *parts)
    solution = goal.choose(curve)
    whole, *fitted = solution.weights.chunk(1 + len(parts))
    inputs = range(len(evidence.like))
    chosen = Combination(solution.inputs(inputs), curve.inputs(inputs))
    return chosen, _regrets(goal, evidence, whole, folds, fitted)


def regret(aggregation: Aggregation, evidence: Evidence, whole: Tensor, blocks: int = BLOCKS) -> dict[str, Tensor]:
    """Kind of draw → (B,): the share that weights fitted on these draws lose on others, at most 1 for masks.

    Only for the kinds that the objective looks at; the other kinds stay whole while one is cut into blocks. NaN where no method
    can be used.

    Args:
        aggregation: how evidence becomes weights.
        evidence: the fitting draws of the k methods.
        whole: (B, k), the weights fitted on all of them.
        blocks: K; fewer where there are not so many draws.
    """
    if not isinstance(aggregation, Minimise):
        return {}
    goal = aggregation.goal
    shared = evidence.clean()
    if aggregation.pooled:
        # All inputs have the same weights: one regret, of the one input that stands for all.
        shared = aggregation.pool(evidence).clean()
        aggregation = replace(aggregation, pooled=False)
        whole = whole[:1]
    folds = _folds(goal, shared, blocks)
    fitted = solved_apart(aggregation, [outside for pairs in folds.values() for outside, _ in pairs])
    regrets = _regrets(goal, shared, whole, folds, fitted)
    return {kind: value.expand(len(evidence.like)) for kind, value in regrets.items()}


def solved_apart(aggregation: Aggregation, parts: Sequence[Evidence]) -> list[Tensor]:
    """The weights (B, k) from each part of the draws.

    Solvers take thousands of small steps, so parts with as many draws are solved in one batch.

    Args:
        aggregation: how evidence becomes weights.
        parts: the evidence of each part, of the k methods.
    """
    alike: dict[tuple[int, ...], list[int]] = {}
    for at, part in enumerate(parts):
        alike.setdefault(part.counts, []).append(at)
    found: dict[int, Tensor] = {}
    for places in alike.values():
        weights = aggregation.fit(joined([parts[at] for at in places])).weights
        found.update(zip(places, weights.chunk(len(places)), strict=True))
    return [found[at] for at in range(len(parts))]


def _folds(goal: Goal, evidence: Evidence, blocks: int = BLOCKS) -> Folds:
    """The blocks of each kind of draw that the objective looks at."""
    return {kind: evidence.folds(blocks, kind) for kind in SEQUENTIAL_KINDS if kind in goal.statistics}


def _regrets(
    goal: Goal, evidence: Evidence, whole: Tensor, folds: Folds, fitted: Iterable[Tensor]
) -> dict[str, Tensor]:
    """Kind of draw → (B,), from weights ``fitted`` outside each block of each kind.

    Evidence is clean: what is invalid in the whole must be so in every part.
    """
    weights = iter(fitted)
    regrets = {}
    for kind, pairs in folds.items():
        count = len(pairs)
        # Inputs whose masks are all there are keep them in every block, so that the blocks may hold more than all.
        total = sum(part.count(kind) for _, part in pairs)
        inside = [(part.count(kind) / total, part) for _, part in pairs]
        term = _criterion(goal, kind)
        crossed = term.over_blocks(evidence, inside, [next(weights) for _ in pairs])
        plain = term.over_blocks(evidence, inside, [whole] * count)
        lost = (crossed - plain) * (count - 1) / (2 * count - 1)
        if kind == "responses":
            regrets[kind] = _share_of_explained(lost, _explained(term, evidence, whole, plain) - lost)
        else:
            # A value without a scale that is as good as 0 is perfect. What has units may be as small as its units make it.
            without_scale = isinstance(term, Metric) and term.scale_free
            floor = PERFECT if without_scale else TINY
            regrets[kind] = lost / plain.clamp(min=floor)
    return regrets


def _criterion(goal: Goal, kind: str) -> Metric | Objective:
    """What scores the blocks of one kind of draw: of a front its part for that kind, of a sum the sum."""
    if isinstance(goal, Front):
        return goal.robust if kind == "quadratic" else goal.faithful
    if len(goal.terms) == 1:
        return goal.terms[0][1]
    return goal


def _explained(term: Metric | Objective, evidence: Evidence, whole: Tensor, value: Tensor) -> Tensor:
    """(B,): how much smaller the ``value`` of the weights is than that of a map that explains nothing."""
    if isinstance(term, Objective):
        return term.explained(evidence, whole)
    return term.loss(evidence, torch.zeros_like(whole[:, None]))[:, 0] - value


def _share_of_explained(lost: Tensor, explained: Tensor) -> Tensor:
    """(B,): all of it where nothing is known to be explained, none where weights lose nothing, such as those of one method.

    NaN where no method can be used.
    """
    share = torch.where(explained > lost, lost / explained, torch.ones_like(lost))
    share = torch.where(lost <= ROUNDING, lost.clamp(max=0), share)
    return share.masked_fill(lost.isnan(), torch.nan)
