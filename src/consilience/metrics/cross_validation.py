"""A cross-validated choice between simple and optimised weights, on the fitting draws alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InputError
from ..simplex import Solution, even
from ..simplex.ties import EQUAL
from ..statistics.evidence import Evidence
from .front import Front, Goal
from .objective import Objective, best_single
from .sum_descent import without_methods

Rule = Callable[[Evidence], Tensor]
"""From draws to weights (B, k)."""


def cross_validated(objective: Goal, evidence: Evidence, folds: int = 5) -> Solution:
    """Choose among {best single, mean, convex, signed ridge} by blocks of the same draws; refit the winner on all.

    Costs no model evaluation and protects small samples, where the convex optimum fits the draws' noise. Rules whose scores are
    within ``EQUAL`` of the best are equally good: the first of them, in the order above, is taken.

    Args:
        objective: an :class:`~consilience.metrics.objective.Objective`, whose one number is compared.
        evidence: the draws.
        folds: how many blocks, at most as many as draws.

    Raises:
        InputError: a front, or fewer than two draws.
    """
    if isinstance(objective, Front):
        raise InputError(
            "choice: cross-validation needs one number to compare; the front has two. Use 'robust' or 'faith'"
        )
    evidence = evidence.only(objective.statistics)
    folds = min(folds, evidence.draws)
    if folds < 2:
        raise InputError("choice: cross-validation needs at least two draws")
    valid = evidence.valid()
    evidence = evidence.clean()
    rules = _rules(objective, valid)
    scores = torch.zeros(len(valid), len(rules), dtype=torch.float64, device=valid.device)
    for part in range(folds):
        fit, judge = evidence.fold(part, folds)
        w = torch.stack([rule(fit) for rule in rules.values()], 1)
        scores += objective.at(judge, w, valid).nan_to_num(torch.inf) / folds

    # argmax gives the first of the equally good rules, which is the simplest.
    is_as_good = scores <= scores.amin(1, keepdim=True) * (1 + EQUAL)
    best = is_as_good.long().argmax(1)
    refitted = torch.stack([rule(evidence) for rule in rules.values()], 1)
    weights = refitted[torch.arange(len(valid)), best]
    value = objective.at(evidence, weights[:, None], valid)[:, 0]
    names = list(rules)
    status = tuple(f"cross-validated: {names[index]}" for index in best.tolist())
    return without_methods(Solution(weights, value, torch.full_like(value, torch.nan), status), valid)


def _rules(objective: Objective, valid: Tensor) -> dict[str, Rule]:
    """The rules by name, the simplest first."""

    def single(draws: Evidence) -> Tensor:
        return best_single(objective, draws, valid)

    def mean(draws: Evidence) -> Tensor:
        return even(valid)

    def convex(draws: Evidence) -> Tensor:
        return objective.minimise(draws).weights

    def signed(draws: Evidence) -> Tensor:
        return objective.minimise(draws, signed=True).weights

    rules: dict[str, Rule] = {"best single": single, "mean": mean, "convex": convex}
    if len(objective.terms) == 1 and objective.terms[0][1].allows_signed:
        rules["signed"] = signed
    return rules
