"""Fronts: the best mixtures by two metrics, and objectives read from names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import simplex
from ..errors import InputError, choose
from ..simplex import Solution, even
from ..statistics.evidence import Evidence
from .base import Metric
from .objective import Objective, _refuse
from .sensitivity import AverageSensitivity


@dataclass(frozen=True)
class Front:
    """Robustness against faithfulness: the most robust mixture that is at least as faithful as the best single method.

    The front is scanned by J(w) = (1 − ρ|ρ|) + μ · relative sensitivity (DESIGN §1) over a grid of μ. ``correlation`` asks
    for another ρ than the best single's; ``mu`` takes the scan's own point instead.
    """

    robust: AverageSensitivity
    faithful: Metric
    mu: float | None = None
    correlation: float | None = None

    def __post_init__(self) -> None:
        parts = ((self.robust, "quadratic"), (self.faithful, "responses"))
        if any(term.statistic != kind or not term.scale_free for term, kind in parts):
            raise InputError(
                "Front: its parts are AverageSensitivity(relative=True) and Infidelity(scaling='correlation'), in this order"
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


Aim = Objective | Front


def cross_validated(objective: Aim, evidence: Evidence, folds: int = 5, ridge: float = 0.1) -> Solution:
    """Choose among {best single, mean, convex, signed ridge} by ``folds`` blocks of the same draws; refit the winner on all.

    Costs no model evaluation and protects small samples, where the convex optimum fits the draws' noise.
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
    rules: dict[str, Callable[[Evidence], Tensor]] = {
        "best single": lambda e: _best_single(objective, e, valid),
        "mean": lambda e: even(valid),
        "convex": lambda e: objective.minimise(e).weights,
    }
    if len(objective.terms) == 1 and objective.terms[0][1].allows_signed:
        rules["signed"] = lambda e: objective.minimise(e, signed=True).weights
    scores = torch.zeros(len(valid), len(rules), dtype=torch.float64, device=valid.device)
    for part in range(folds):
        fit, judge = evidence.fold(part, folds)
        w = torch.stack([rule(fit) for rule in rules.values()], 1)
        scores += objective.at(judge, w, valid).nan_to_num(torch.inf) / folds
    best = scores.argmin(1)
    names = list(rules)
    weights = torch.stack([rule(evidence) for rule in rules.values()], 1)[torch.arange(len(valid)), best]
    value = objective.at(evidence, weights[:, None], valid)[:, 0]
    status = tuple(f"cross-validated: {names[i]}" for i in best.tolist())
    return _refuse(Solution(weights, value, torch.full_like(value, torch.nan), status), valid)


def _best_single(objective: Objective, evidence: Evidence, valid: Tensor) -> Tensor:
    corners = torch.eye(valid.shape[1], dtype=torch.float64, device=valid.device).expand(len(valid), -1, -1)
    best = objective.at(evidence, corners, valid).masked_fill(~valid, torch.inf).nan_to_num(torch.inf).argmin(1)
    return torch.nn.functional.one_hot(best, valid.shape[1]).double()


def parse(expression: str, named: dict[str, Aim | Metric]) -> Aim:
    """A name, or a sum such as ``"relative_sensitivity + 0.5*infidelity"``: names, positive factors, ``+`` and ``*`` only."""
    total: Objective | None = None
    parts = expression.split("+")
    for part in parts:
        factor, _, name = part.rpartition("*")
        term = named[choose("objective", name.strip(), named)]
        if len(parts) == 1 and not factor:
            return term if isinstance(term, Front) else Objective(((1.0, term),)) if isinstance(term, Metric) else term
        if isinstance(term, Front):
            raise InputError(f"objective: {name.strip()!r} is a front between two criteria and cannot be part of a sum")
        try:
            scaled = term * float(factor or 1)
        except ValueError as error:
            raise InputError(f"objective: {factor.strip()!r} in {expression!r} is not a number") from error
        total = scaled if total is None else total + scaled
    assert total is not None
    return total
