"""Whether the consensus is better than the best single method, or than a uniform map: paired differences on fresh draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..combine.aggregation import Aggregation
from ..combine.weights import Minimise
from ..metrics.front import Front
from ..results.difference import PairedDifference
from ..results.explanation import Measured
from ..statistics.criteria import CRITERIA, HIGHER_IS_BETTER
from ..statistics.evidence import Evidence
from .decide import Comparison, draws_of, students
from .table import broken

CRITERION = {
    ("quadratic", True): "relative_sensitivity",
    ("quadratic", False): "average_sensitivity",
    ("responses", True): "faithfulness_correlation",
    ("responses", False): "infidelity",
    ("contrast", False): "contrast",
}
"""A metric's kind of draw, and whether it is free of scale → the criterion in which tables show it."""

AS_FAITHFUL = "of those as faithful as the objective asks"
"""Among which methods the best one is looked for, in words."""

USUAL = ("noise_over_signal", "faithfulness_correlation")

UNIFORM = {"faithfulness_correlation": 0.0}
"""What a map is worth that is the same everywhere, by the criteria by which that says something. (It is perfectly robust, which
is no merit.)"""

ALPHA = 0.05
"""One minus the usual confidence."""


def criteria_of(aggregation: Aggregation) -> tuple[str, ...]:
    """The criteria that an objective is about; both usual ones where nothing is solved.

    Args:
        aggregation: how maps become one.
    """
    if not aggregation.solves:
        return USUAL
    # A metric that only stands beside another one, as the contrast in noise over signal, is no aim of its own.
    beside = {other.statistic for metric in aggregation.metrics for other in metric.beside}
    criteria: list[str] = []
    for metric in aggregation.metrics:
        kind = (metric.statistic, metric.scale_free)
        if metric.beside:
            criteria.append("noise_over_signal")
        elif metric.statistic not in beside and kind in CRITERION:
            criteria.append(CRITERION[kind])
    return tuple(dict.fromkeys(criteria))


def competitors(aggregation: Aggregation, criterion: str, fitted: Mapping[str, Tensor]) -> tuple[Tensor, str]:
    """(B, k): the methods' values by which the best one is chosen, NaN of those that do not compete; and who does, in words.

    A mixture that must be as faithful as the best method is compared, by its noise, with the methods that are so too: others
    may be steadier because they say little.

    Args:
        aggregation: of the consensus.
        criterion: by its name.
        fitted: criterion → (B, k), the methods' values on the fitting draws.
    """
    goal = aggregation.goal if isinstance(aggregation, Minimise) else None
    if not isinstance(goal, Front) or goal.mu is not None or criterion == "faithfulness_correlation":
        return fitted[criterion], ""
    as_faithful = goal.as_faithful(fitted["faithfulness_correlation"])
    return fitted[criterion].where(as_faithful, torch.nan), AS_FAITHFUL


def best_single(criterion: str, fitted: Tensor) -> Tensor:
    """(B,): the method that is best on the fitting draws, the first of equals; methods without a value do not count.

    Args:
        criterion: by its name.
        fitted: (B, k), the methods' values on the fitting draws.
    """
    loss = -fitted if criterion in HIGHER_IS_BETTER else fitted
    return loss.nan_to_num(torch.inf, torch.inf, -torch.inf).argmin(1)


def beside_single(criterion: str, evidence: Evidence, consensus: Tensor, best: Tensor, tolerance: float) -> Comparison:
    """Consensus − one method, on the same draws. NaN where one of the two has no value.

    Args:
        criterion: by its name.
        evidence: of B inputs and R rows, the methods first, with the draws that the criterion looks at.
        consensus: (B, R), as a mixture of the rows.
        best: (B,), the method's place.
        tolerance: the share of the method's value that does not matter; of a correlation, the part of it.
    """
    single = torch.nn.functional.one_hot(best, consensus.shape[1]).to(consensus)
    rows = torch.stack([consensus, single], 1)
    both = CRITERIA[criterion](evidence.clean(), rows)
    value = both.value.masked_fill(broken(evidence, rows, criterion), torch.nan)
    # Draw by draw, so that what moves both alike does not count.
    apart = replace(both, value=-value.diff(dim=1), influence=-both.influence.diff(dim=1))
    return Comparison(apart, _margin(criterion, value[:, 1], tolerance))


def beside_uniform(criterion: str, evidence: Evidence, consensus: Tensor, tolerance: float) -> Comparison:
    """Consensus − a map that is the same everywhere, whose value is known.

    Args:
        criterion: one of :data:`UNIFORM`.
        evidence: of B inputs and R rows, with the draws that the criterion looks at.
        consensus: (B, R), as a mixture of the rows.
        tolerance: as for :func:`beside_single`.
    """
    rows = consensus[:, None]
    alone = CRITERIA[criterion](evidence.clean(), rows)
    value = alone.value.masked_fill(broken(evidence, rows, criterion), torch.nan) - UNIFORM[criterion]
    return Comparison(replace(alone, value=value), _margin(criterion, value[:, 0], tolerance))


def _margin(criterion: str, value: Tensor, tolerance: float) -> Tensor:
    """(B,): the difference that does not matter, beside a rival's ``value`` (B,)."""
    unit = torch.ones_like(value) if criterion == "faithfulness_correlation" else value.abs()
    return float(tolerance) * unit


def paired_differences(
    aggregation: Aggregation,
    criteria: Mapping[str, Mapping[str, Measured]],
    fresh: Evidence,
    mixing: Tensor,
    methods: Sequence[str],
    level: Mapping[str, Tensor] | None = None,
    tolerance: float = 0.0,
    alpha: float = ALPHA,
) -> dict[str, PairedDifference]:
    """Criterion → consensus − the method that is best on the fitting draws, on the fresh draws.

    Args:
        aggregation: of the consensus; the criteria that its objective is about are compared.
        criteria: criterion → row → what was measured, with a row "consensus".
        fresh: the fresh draws of R rows, the k methods first.
        mixing: (B, R), the consensus as a mixture of the rows.
        methods: k names.
        level: criterion → (B,), of each input's interval, where there were several looks; None: ``alpha``.
        tolerance: the share that does not matter.
        alpha: the probability with which equals are called different, all looks together.
    """
    found = {}
    values = {name: torch.stack([rows[method].fit for method in methods], 1) for name, rows in criteria.items()}
    for name in criteria_of(aggregation):
        rows = criteria[name]
        fitted, among = competitors(aggregation, name, values)
        best = best_single(name, fitted)
        comparison = beside_single(name, fresh, mixing, best, tolerance)
        # What is NaN in the table, such as the value of a map that fails at a fresh draw, is NaN here.
        shown = torch.stack([rows[method].fresh for method in methods], 1).gather(1, best[:, None])[:, 0]
        usable = fitted.isfinite().any(1) & shown.isfinite() & rows["consensus"].fresh.isfinite()
        rivals = [methods[at] if ok else None for at, ok in zip(best.tolist(), usable.tolist(), strict=True)]
        own_level = None if level is None else level[name]
        found[name] = replace(_difference(comparison, usable, rivals, own_level, alpha), among=among)
    return found


def uniform_differences(
    criteria: Mapping[str, Mapping[str, Measured]],
    fresh: Evidence,
    mixing: Tensor,
    level: Mapping[str, Tensor] | None = None,
    tolerance: float = 0.0,
    alpha: float = ALPHA,
) -> dict[str, PairedDifference]:
    """Criterion → consensus − a uniform map, on the fresh draws.

    Args:
        criteria: criterion → row → what was measured, with a row "consensus".
        fresh: the fresh draws of R rows.
        mixing: (B, R), the consensus as a mixture of the rows.
        level: as for :func:`paired_differences`.
        tolerance: the share that does not matter.
        alpha: the probability with which equals are called different, all looks together.
    """
    found = {}
    for name in UNIFORM:
        comparison = beside_uniform(name, fresh, mixing, tolerance)
        usable = criteria[name]["consensus"].fresh.isfinite()
        rivals = ["uniform" if ok else None for ok in usable.tolist()]
        found[name] = _difference(comparison, usable, rivals, None if level is None else level[name], alpha)
    return found


def _difference(
    comparison: Comparison, usable: Tensor, rivals: Sequence[str | None], level: Tensor | None, alpha: float
) -> PairedDifference:
    """A comparison of B inputs with its intervals; NaN where it is not ``usable`` (B,)."""
    estimate = comparison.estimate
    if level is None:
        level = torch.full_like(comparison.margin, alpha)
    value = estimate.value[:, 0].where(usable, torch.nan)
    stderr = estimate.stderr[:, 0].where(usable, torch.nan)
    reach = stderr * students(estimate, level)[:, 0]
    return PairedDifference(
        best_single=tuple(rivals),
        value=value,
        stderr=stderr,
        low=value - reach,
        high=value + reach,
        draws=draws_of(estimate),
        margin=comparison.margin,
        confidence=1 - alpha,
    )
