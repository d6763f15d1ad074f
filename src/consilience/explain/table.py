"""The table of an explanation: every criterion of every row, on the fitting and on the fresh draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..combine.draws import SEQUENTIAL_KINDS
from ..metrics.base import Metric
from ..results.explanation import Measured
from ..statistics.criteria import CRITERIA, PARTS, Estimate
from ..statistics.evidence import Evidence

BLOCKS = 20
"""Of the jackknife, for metrics that have no closed form of their error."""

Criteria = dict[str, dict[str, Measured]]
"""Criterion → row → what was measured."""


def measure(
    fit: Evidence, fresh: Evidence | None, rows: Tensor, names: Sequence[str], metrics: Mapping[str, Metric]
) -> Criteria:
    """Every criterion of every row, on the fitting and on the fresh draws.

    The criteria of :data:`CRITERIA`, and the loss of every other metric that was measured. A stream without the draws that a
    criterion needs has NaN there; a criterion of which neither stream has them is left out.

    Args:
        fit: the draws that the weights were fitted to, of B inputs and R maps.
        fresh: the draws that judge them; None: nothing was judged.
        rows: (B, M, R), what is judged as mixtures of the maps.
        names: of the M rows.
        metrics: kind of draw → the metric that was measured.
    """
    before = estimates(fit, rows, metrics)
    after = {} if fresh is None else estimates(fresh, rows, metrics)
    missing = torch.full_like(rows[..., 0], torch.nan)
    known = {**before, **after}
    table: Criteria = {}
    # In the order of :data:`CRITERIA`, whichever stream has them.
    for criterion in [*(name for name in CRITERIA if name in known), *(name for name in known if name not in CRITERIA)]:
        fitted = before[criterion].value if criterion in before else missing
        judged, error = missing, missing
        if criterion in after:
            judged = after[criterion].value
            # Also where all masks were seen and nothing is estimated: what has no value has no error.
            error = after[criterion].stderr.masked_fill(judged.isnan(), torch.nan)
        table[criterion] = {name: Measured(fitted[:, at], judged[:, at], error[:, at]) for at, name in enumerate(names)}
    return table


def estimates(evidence: Evidence, rows: Tensor, metrics: Mapping[str, Metric]) -> dict[str, Estimate]:
    """Criterion → its estimate for every row, NaN where the row is broken. Only of criteria whose draws were made.

    Args:
        evidence: of B inputs and R maps.
        rows: (B, M, R), mixtures of the maps.
        metrics: kind of draw → the metric that was measured.
    """
    clean = evidence.clean()
    found = {}
    for criterion, estimate in CRITERIA.items():
        if has_draws(evidence, criterion):
            found[criterion] = estimate(clean, rows)
    for kind, metric in metrics.items():
        if kind in evidence.parts and kind not in SEQUENTIAL_KINDS and metric.name not in CRITERIA:
            found[metric.name] = _jackknife(metric, clean, rows)
    for criterion, estimated in found.items():
        bad = broken(evidence, rows, criterion)
        found[criterion] = replace(estimated, value=estimated.value.masked_fill(bad, torch.nan))
    return found


def has_draws(evidence: Evidence, criterion: str) -> bool:
    """Whether there are draws of every kind that a criterion is a function of.

    Args:
        evidence: any.
        criterion: one of :data:`CRITERIA`.
    """
    parts = evidence.parts
    return all(kind in parts and parts[kind].count > 0 for kind in PARTS[criterion])


def _jackknife(metric: Metric, evidence: Evidence, rows: Tensor) -> Estimate:
    """A metric's loss, with the influence of each block of its draws; none of a metric that draws nothing."""
    own = evidence.only(metric.statistics)
    value = metric.loss(own, rows)
    if own.count(metric.statistic) < 2:
        no_influence = torch.zeros_like(value)[..., None].expand(*value.shape, 2)
        return Estimate(value, no_influence)
    blocks = own.folds(BLOCKS, metric.statistic)
    count = len(blocks)
    without = torch.stack([metric.loss(outside, rows) for outside, _ in blocks], -1)
    return Estimate(value, (count - 1) * (without.mean(-1, keepdim=True) - without))


def broken(evidence: Evidence, rows: Tensor, criterion: str) -> Tensor:
    """(B, M): rows without a value: they put weight on a map that is not finite, or are the zero map, which explains nothing.

    The maps of other outputs may fail where the map that is explained does not. That spoils the criteria that look at them,
    and no other.

    Args:
        evidence: of B inputs and R maps, as it was measured.
        rows: (B, M, R), mixtures of the maps.
        criterion: by its name.
    """
    bad = torch.zeros_like(rows[:, 0], dtype=torch.bool)
    zero = torch.zeros_like(rows[..., 0], dtype=torch.bool)
    parts = evidence.parts
    if evidence.quadratic is not None:
        bad = bad | ~evidence.quadratic.finite()
    if evidence.responses is not None:
        # A fall that is not finite spoils the masks, not the map: its criteria are NaN by themselves.
        bad = bad | ~evidence.responses.a.isfinite().all(1)
    if "contrast" in parts and "contrast" in PARTS.get(criterion, ()):
        bad = bad | ~parts["contrast"].finite()
    # Of masks alone a zero map has no variance, and no value by itself.
    kind = "quadratic" if evidence.quadratic is not None else "contrast"
    if kind == "quadratic" or kind in PARTS.get(criterion, ()):
        norm = evidence.clean()[kind].norm
        zero = torch.einsum("bmr,brt,bmt->bm", rows, norm, rows) == 0
    weighty = torch.einsum("bmr,br->bm", (rows != 0).double(), bad.double()) > 0
    return weighty | zero
