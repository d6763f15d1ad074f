"""An explanation judged on fresh draws: every criterion of every row, completeness, re-solved weights, warnings."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..combine.aggregation import mix
from ..combine.aggregations import DERIVED, Weighted
from ..combine.correction import with_correction
from ..combine.draws import SEQUENTIAL_KINDS
from ..combine.measurement import Measurement
from ..combine.sequential import Fitted
from ..combine.spread import weights_stderr
from ..metrics.base import Metric
from ..model.score import Score
from ..perturb.neighbourhoods import neighbours
from ..perturb.points import Points
from ..results.difference import PairedDifference
from ..results.explanation import Measured
from ..statistics.criteria import CRITERIA, Estimate
from ..statistics.evidence import Evidence
from ..statistics.keys import Key
from ..statistics.tensors import corners, exact
from ..surrogates.local_linear import score_of_nothing
from .caveats import caveats
from .cost import baselines_of
from .differences import paired_differences
from .run import Combined, Job

BLOCKS = 20
"""Of the jackknife, for metrics that have no closed form of their error."""

OF_CONTRAST = ("contrast", "noise_over_signal")
"""Criteria that look at the maps of other outputs, which may fail where the map that is explained does not."""

Criteria = dict[str, dict[str, Measured]]


@dataclass(frozen=True)
class Judgement:
    """What fresh draws say.

    Args:
        fresh: the evidence of the fresh draws, of all N inputs.
        criteria: criterion → row → its values on the fitting and the fresh draws, (N,) each.
        differences: criterion → consensus − the best single method, on the fresh draws.
        weights_stderr: (N, k), how far the weights would move with other draws.
        consensus: (N, *A), the combined map.
        weighted: (N, *A), the mixture with weights by quality, for comparison.
        resolved: the sensitivity of weights that are solved anew; None where nothing is.
        completeness: method → (N,), how far it is from adding up.
        warnings: about the model and the methods.
    """

    fresh: Evidence
    criteria: Criteria
    differences: dict[str, PairedDifference]
    weights_stderr: Tensor
    consensus: Tensor
    weighted: Tensor
    resolved: dict[str, Tensor] | None
    completeness: dict[str, Tensor]
    warnings: tuple[str, ...]


def judge(job: Job, combined: Combined) -> Judgement:
    """Measure methods, derived maps and the combined map on draws that nothing was fitted to.

    Args:
        job: the call.
        combined: its maps and weights.
    """
    ready = job.ready
    score = ready.score
    points = ready.points
    measurement = ready.measurement
    base = combined.base
    groups = combined.groups
    # Before anything is evaluated further, so that it is clear whose sums these are.
    completeness = _completeness(score, points, measurement, combined.sums)
    drawn = base
    if combined.correction is not None:
        # The correction's row is held, so that it follows from the other rows' evidence.
        drawn = base[:, :-1]
    fresh = measurement.evidence(score, points, drawn, job.options.judging, "fresh")
    if combined.correction is not None:
        fresh = with_correction(fresh, drawn, base[:, -1], combined.correction)
    weighted = combined.join([_weighted(group, measurement) for group in groups])
    # Every row of the table is a mixture of the maps: the maps themselves, the row "weighted", and the consensus. So one set
    # of draws, made for the maps, judges all rows, and mixtures cost no evaluation.
    singles = corners(fresh.like)[:, : drawn.shape[1]]
    rows = torch.cat([singles, weighted[:, None], combined.mixing[:, None]], 1)
    derived = [aggregation.name for aggregation in measurement.derived]
    names = [*ready.names, *derived, "weighted", "consensus"]
    parts = []
    for group in groups:
        index = list(group.index)
        parts.append(measure(group.evidence, fresh.inputs(index), rows[index], names, measurement.metrics))
    criteria = _joined(parts, combined)
    if not job.aggregation.linear and job.aggregation not in DERIVED:
        # Its map is the consensus: the same numbers stand in that row.
        for table in criteria.values():
            del table[job.aggregation.name]
    differences = paired_differences(job.aggregation, criteria, fresh, combined.mixing, ready.names)
    spread = [weights_stderr(job.aggregation, group.evidence.rows(slice(measurement.rows))) for group in groups]
    mixed = mix(rows[:, -2:], base)
    resolved = _resolved(job, combined)
    return Judgement(
        fresh=fresh,
        criteria=criteria,
        differences=differences,
        weights_stderr=combined.join(spread),
        consensus=mixed[:, 1],
        weighted=mixed[:, 0],
        resolved=resolved,
        completeness=completeness,
        warnings=tuple(caveats(job, base, fresh)),
    )


def measure(
    fit: Evidence, fresh: Evidence, rows: Tensor, names: Sequence[str], metrics: Mapping[str, Metric]
) -> Criteria:
    """Every criterion of every row, on the fitting and on the fresh draws.

    The criteria of :data:`CRITERIA`, and the loss of every other metric that was measured.

    Args:
        fit: the draws that the weights were fitted to, of B inputs and R maps.
        fresh: the draws that judge them.
        rows: (B, M, R), what is judged as mixtures of the maps.
        names: of the M rows.
        metrics: kind of draw → the metric that was measured.
    """
    before = _estimates(fit, rows, metrics)
    after = _estimates(fresh, rows, metrics)
    table: Criteria = {}
    for criterion, fitted in before.items():
        judged = after[criterion]
        # Also where all masks were seen and nothing is estimated: what has no value has no error.
        error = judged.stderr.masked_fill(judged.value.isnan(), torch.nan)
        table[criterion] = {
            name: Measured(fitted.value[:, at], judged.value[:, at], error[:, at]) for at, name in enumerate(names)
        }
    return table


def _estimates(evidence: Evidence, rows: Tensor, metrics: Mapping[str, Metric]) -> dict[str, Estimate]:
    """Criterion → its estimate for every row (B, M, R), NaN where the row is broken."""
    clean = evidence.clean()
    estimates = {criterion: estimate(clean, rows) for criterion, estimate in CRITERIA.items()}
    for kind, metric in metrics.items():
        if kind not in SEQUENTIAL_KINDS and metric.name not in CRITERIA:
            estimates[metric.name] = _jackknife(metric, clean, rows)
    broken = _broken(evidence, rows)
    mute = broken | _touched(~evidence["contrast"].finite(), rows)
    for criterion, estimate in estimates.items():
        bad = mute if criterion in OF_CONTRAST else broken
        estimates[criterion] = replace(estimate, value=estimate.value.masked_fill(bad, torch.nan))
    return estimates


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


def _broken(evidence: Evidence, rows: Tensor) -> Tensor:
    """(B, M): rows that put weight on an attribution that is not finite, and maps that are zero: they explain nothing."""
    # A fall that is not finite spoils the masks, not the map: its criteria are NaN by themselves.
    bad = ~evidence["quadratic"].finite() | ~evidence["responses"].a.isfinite().all(1)
    norm = evidence.clean()["quadratic"].norm
    zero = torch.einsum("bmr,brt,bmt->bm", rows, norm, rows) == 0
    return _touched(bad, rows) | zero


def _touched(bad: Tensor, rows: Tensor) -> Tensor:
    """(B, R), (B, M, R) → (B, M): which mixtures put weight on a row that is bad."""
    return torch.einsum("bmr,br->bm", (rows != 0).double(), bad.double()) > 0


def _joined(parts: Sequence[Criteria], combined: Combined) -> Criteria:
    """The groups' criteria, in the order of the inputs."""
    table: Criteria = {}
    for criterion, rows in parts[0].items():
        table[criterion] = {}
        for name in rows:
            cells = [part[criterion][name] for part in parts]
            table[criterion][name] = Measured(
                fit=combined.join([cell.fit for cell in cells]),
                fresh=combined.join([cell.fresh for cell in cells]),
                stderr=combined.join([cell.stderr for cell in cells]),
            )
    return table


def _weighted(group: Fitted, measurement: Measurement) -> Tensor:
    """(B, R): the row "weighted" of one group's inputs."""
    found = torch.zeros_like(group.evidence.like)
    methods = group.evidence.only(SEQUENTIAL_KINDS).rows(slice(measurement.rows))
    found[:, : measurement.rows] = Weighted().fit(methods).weights
    return found


def _resolved(job: Job, combined: Combined) -> dict[str, Tensor] | None:
    """‖φ*(x) − φ*(x′)‖² / ‖φ*(x)‖² with the weights solved anew at x′, on the same keyed draws: (B, count) and its mean."""
    count = job.resolved
    if not count:
        return None
    measurement = job.ready.measurement
    score = job.ready.score
    points = job.ready.points
    here = exact(combined.attribution).flatten(1)
    each = torch.full((len(points), count), torch.nan, dtype=torch.float64, device=here.device)
    where = measurement.sensitivity.neighbourhood
    key = Key(measurement.seed, "resolved")
    for group, sample in itertools.product(combined.groups, range(count)):
        at = list(group.index)
        near = neighbours(where, points[at], range(sample, sample + 1), key, count)
        # Same ids: the explainers' noise, and the draws for fitting, are those at x. Optimal is then a function of x too.
        maps = measurement.maps(score, near, derived=False)
        evidence = measurement.evidence(score, near, maps, group.draws, "fit", job.kinds)
        there = measurement.combined(job.aggregation, job.aggregation.fit(evidence), maps, near).flatten(1)
        each[at, sample] = ((here[at] - there) ** 2).sum(1) / (here[at] ** 2).sum(1)
    error = torch.full_like(each[:, 0], torch.nan)
    if count > 1:
        error = each.std(1) / count**0.5
    return {"value": each.mean(1), "stderr": error}


def _completeness(score: Score, points: Points, measurement: Measurement, sums: Tensor) -> dict[str, Tensor]:
    """|Σφ − (f(x) − f(b))| / |f(x) − f(b)|, (B,), of each explainer that claims to add up; ``sums`` (B, k) are Σφ.

    f(b) is the mean score over a data set's rows, where the explainer averages over them."""
    stack = measurement.stack.stack
    found = {}
    for (baseline, features), members in baselines_of(stack, points.x.shape[1:]).items():
        nothing = exact(score_of_nothing(score, points, baseline, features))
        difference = exact(score.clean[points.owner]) - nothing
        for at in members:
            found[stack.names[at]] = (sums[:, at] - difference).abs() / difference.abs()
    return found
