"""Fronts: the best mixtures by two metrics, and objectives read from names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import simplex
from ..errors import InputError, choose
from ..settings import Settings, setting
from ..simplex import Solution, even
from ..simplex.ties import EQUAL
from ..statistics.evidence import Evidence
from ..statistics.tensors import corners
from .base import Metric
from .objective import Objective, _refuse
from .sensitivity import AverageSensitivity


@dataclass(frozen=True)
class Front(Settings):
    """Robustness against faithfulness: the most robust mixture that is at least as faithful as the best single method.

    The front is scanned by J(w) = (1 − ρ|ρ|) + μ · relative sensitivity over a grid of μ.

    Args:
        robust: ``AverageSensitivity(relative=True)``, of any neighbourhood.
        faithful: ``Infidelity(scaling="correlation")``, of any masks.
        mu: take the mixture with the least J for this μ instead.
        correlation: ask for this ρ instead of the best single method's.

    Raises:
        InputError: the parts are others, or a number is out of its range.
    """

    robust: AverageSensitivity
    faithful: Metric
    mu: float | None = setting(None, low=0)
    correlation: float | None = setting(None, low=-1, high=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = ((self.robust, "quadratic"), (self.faithful, "responses"))
        for term, kind in parts:
            if not isinstance(term, Metric) or term.statistic != kind or not term.scale_free:
                raise InputError(
                    "Front: its parts are AverageSensitivity(relative=True) and Infidelity(scaling='correlation'), "
                    "in this order"
                )

    @property
    def terms(self) -> tuple[tuple[float, Metric], ...]:
        return (1.0, self.robust), (1.0, self.faithful)

    @property
    def statistics(self) -> frozenset[str]:
        return self.robust.statistics | self.faithful.statistics

    def curve(self, *parts: Evidence) -> simplex.Front:
        """The fronts of all inputs of one evidence, or of several, whatever their draws."""
        statistics = []
        for part in parts:
            clean = part.clean()
            q, r = clean.quadratic, clean.responses
            assert q is not None and r is not None
            signal = self.robust.signal_matrix(clean)
            statistics.append((q.matrix, signal, *r.covariances(), part.valid(), r.mean(r.a)))
        G, H, C, b, vy, valid, mean = (torch.cat(each) for each in zip(*statistics, strict=True))
        return simplex.front(G, H, C, b, vy, valid, mean=mean)

    def minimise(self, evidence: Evidence, *, signed: bool = False) -> Solution:
        if signed:
            raise InputError("signed: the front is over convex weights; use objective='faith' or 'robust'")
        return self.choose(self.curve(evidence))

    def choose(self, curve: simplex.Front) -> Solution:
        if self.mu is not None:
            return curve.at(self.mu)
        return curve.pick(self.correlation)


Goal = Objective | Front


def cross_validated(objective: Goal, evidence: Evidence, folds: int = 5) -> Solution:
    """Choose among {best single, mean, convex, signed ridge} by blocks of the same draws; refit the winner on all.

    Costs no model evaluation and protects small samples, where the convex optimum fits the draws' noise. Rules whose scores are
    within ``EQUAL`` of the best are equally good: the first of them, in the order above, is taken.

    Args:
        objective: one that has one number to compare, no front.
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
    as_good = scores <= scores.amin(1, keepdim=True) * (1 + EQUAL)
    best = as_good.long().argmax(1)
    refitted = torch.stack([rule(evidence) for rule in rules.values()], 1)
    weights = refitted[torch.arange(len(valid)), best]
    value = objective.at(evidence, weights[:, None], valid)[:, 0]
    names = list(rules)
    status = tuple(f"cross-validated: {names[i]}" for i in best.tolist())
    return _refuse(Solution(weights, value, torch.full_like(value, torch.nan), status), valid)


def _rules(objective: Objective, valid: Tensor) -> dict[str, Callable[[Evidence], Tensor]]:
    """Name → how draws become weights (B, k), the simplest first."""

    def best_single(draws: Evidence) -> Tensor:
        return _best_single(objective, draws, valid)

    def mean(draws: Evidence) -> Tensor:
        return even(valid)

    def convex(draws: Evidence) -> Tensor:
        return objective.minimise(draws).weights

    def signed(draws: Evidence) -> Tensor:
        return objective.minimise(draws, signed=True).weights

    rules: dict[str, Callable[[Evidence], Tensor]] = {"best single": best_single, "mean": mean, "convex": convex}
    if len(objective.terms) == 1 and objective.terms[0][1].allows_signed:
        rules["signed"] = signed
    return rules


def _best_single(objective: Objective, evidence: Evidence, valid: Tensor) -> Tensor:
    alone = corners(valid)
    best = objective.at(evidence, alone, valid).masked_fill(~valid, torch.inf).nan_to_num(torch.inf).argmin(1)
    return torch.nn.functional.one_hot(best, valid.shape[1]).double()


def parse_objective(expression: str, named: dict[str, Goal | Metric]) -> Goal:
    """What a name or a sum such as ``"relative_sensitivity + 0.5*infidelity"`` means.

    Args:
        expression: names, positive factors, ``+`` and ``*`` only.
        named: what names mean.

    Raises:
        InputError: a name is not known, a factor is no positive number, or a front is part of a sum.
    """
    parts = [_factor_and_name(part) for part in expression.split("+")]
    if len(parts) == 1 and not parts[0][0]:
        return _alone(named[choose("objective", parts[0][1], named)])
    total: Objective | None = None
    for factor, name in parts:
        term = named[choose("objective", name, named)]
        if isinstance(term, Front):
            raise InputError(f"objective: {name!r} is a front between two criteria and cannot be part of a sum")
        try:
            scaled = term * float(factor or 1)
        except ValueError as error:
            raise InputError(f"objective: {factor!r} in {expression!r} is not a number") from error
        total = scaled if total is None else total + scaled
    assert total is not None
    return total


def _factor_and_name(part: str) -> tuple[str, str]:
    factor, _, name = part.rpartition("*")
    return factor.strip(), name.strip()


def _alone(term: Goal | Metric) -> Goal:
    return Objective(((1.0, term),)) if isinstance(term, Metric) else term
