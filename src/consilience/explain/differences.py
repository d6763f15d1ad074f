"""Whether the consensus is better than the best single method: paired differences on fresh draws."""

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
from ..statistics.criteria import CRITERIA, HIGHER_IS_BETTER, Estimate
from ..statistics.evidence import Evidence
from ..statistics.paired import student_quantile

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


def criteria_of(aggregation: Aggregation) -> tuple[str, ...]:
    """The criteria that an objective is about; both usual ones where nothing is solved."""
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


def paired_differences(
    aggregation: Aggregation,
    criteria: Mapping[str, Mapping[str, Measured]],
    fresh: Evidence,
    mixing: Tensor,
    methods: Sequence[str],
) -> dict[str, PairedDifference]:
    """Criterion → consensus − the method that is best on the fitting draws, on the fresh draws.

    A mixture that must be as faithful as the best method is compared, by its noise, with the methods that are so too: others
    may be steadier because they say little.

    Args:
        aggregation: of the consensus; the criteria that its objective is about are compared.
        criteria: criterion → row → what was measured, with a row "consensus".
        fresh: the fresh draws of R rows, the k methods first.
        mixing: (B, R), the consensus as a mixture of the rows.
        methods: k names.
    """
    clean = fresh.clean()
    goal = aggregation.goal if isinstance(aggregation, Minimise) else None
    found = {}
    for criterion in criteria_of(aggregation):
        rows = criteria[criterion]
        fitted = _of_methods(rows, "fit", methods)
        among = ""
        if isinstance(goal, Front) and goal.mu is None and criterion != "faithfulness_correlation":
            correlation = _of_methods(criteria["faithfulness_correlation"], "fit", methods)
            fitted = fitted.where(goal.as_faithful(correlation), torch.nan)
            among = AS_FAITHFUL
        found[criterion] = _difference(criterion, rows, fitted, clean, mixing, methods, among)
    return found


def _of_methods(rows: Mapping[str, Measured], stream: str, methods: Sequence[str]) -> Tensor:
    """(B, k): what was measured of the methods on the draws "fit" or "fresh"."""
    return torch.stack([getattr(rows[name], stream) for name in methods], 1)


def _difference(
    criterion: str,
    rows: Mapping[str, Measured],
    fitted: Tensor,
    fresh: Evidence,
    mixing: Tensor,
    methods: Sequence[str],
    among: str,
) -> PairedDifference:
    """One criterion of :func:`paired_differences`; by ``fitted`` (B, k) the best is chosen, NaN of what does not compete."""
    best = _best(fitted, criterion in HIGHER_IS_BETTER)
    usable = fitted.isfinite().any(1)
    single = torch.nn.functional.one_hot(best, mixing.shape[1]).to(mixing)
    both = CRITERIA[criterion](fresh, torch.stack([mixing, single], 1))
    # Draw by draw, so that what moves both alike does not count.
    apart = replace(both, value=-both.value.diff(dim=1), influence=-both.influence.diff(dim=1))
    # What is NaN in the table, such as the value of a map that fails at a fresh draw, is NaN here.
    shown = _of_methods(rows, "fresh", methods).gather(1, best[:, None])[:, 0]
    usable = usable & shown.isfinite() & rows["consensus"].fresh.isfinite()
    value = apart.value[:, 0].where(usable, torch.nan)
    stderr = apart.stderr[:, 0].where(usable, torch.nan)
    reach = stderr * _students(apart)
    names = tuple(methods[at] if ok else None for at, ok in zip(best.tolist(), usable.tolist(), strict=True))
    return PairedDifference(names, value, stderr, value - reach, value + reach, apart.draws, among)


def _students(estimate: Estimate) -> Tensor:
    """(B,): Student's 97.5 % quantile with each input's own degrees of freedom."""
    # Of a padded batch, short inputs have fewer masks than the longest one; of a ratio, each part has draws of its own.
    freedom = estimate.freedom[:, 0] + 1e-9
    quantiles = [student_quantile(0.975, int(degrees)) for degrees in freedom.tolist()]
    return freedom.new_tensor(quantiles)


def _best(fitted: Tensor, higher: bool) -> Tensor:
    """(B, k) → (B,): the best row, the first of equals; rows without a value do not count."""
    loss = -fitted if higher else fitted
    return loss.nan_to_num(torch.inf, torch.inf, -torch.inf).argmin(1)
