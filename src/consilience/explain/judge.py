"""An explanation judged on fresh draws: every criterion of every row, completeness, re-solved weights, warnings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..combine.aggregation import mix
from ..combine.aggregations import DERIVED, Given, Weighted
from ..combine.draws import SEQUENTIAL_KINDS
from ..combine.measurement import Measurement
from ..combine.sequential import Fitted
from ..combine.spread import weights_stderr
from ..explainers import Direct
from ..metrics.base import Metric
from ..metrics.infidelity import too_weak
from ..model.score import Score
from ..perturb.coalitions import Singles, Sliding
from ..perturb.neighbourhoods import neighbours, unmoved
from ..perturb.points import Points
from ..results.difference import PairedDifference
from ..results.explanation import Measured
from ..statistics.criteria import CRITERIA, Estimate
from ..statistics.evidence import Evidence
from ..statistics.keys import Key
from ..statistics.tensors import exact
from ..surrogates.local_linear import score_of_nothing
from .cost import baselines_of
from .differences import paired_differences
from .run import Combined, Job

PARTS = ("fit", "fresh", "stderr")
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
    """Measure methods, derived maps and the combined map on draws that nothing was fitted to."""
    ready = job.ready
    score, points, measurement = ready.score, ready.points, ready.measurement
    base, groups = combined.base, combined.groups
    # Before anything is evaluated further, so that it is clear whose sums these are.
    completeness = _completeness(score, points, measurement, combined.sums)
    fresh = measurement.evidence(score, points, base, job.options.judging, "fresh")
    weighted = combined.join([_weighted(group, measurement) for group in groups])
    singles = torch.eye(base.shape[1], dtype=torch.float64, device=base.device).expand(len(points), -1, -1)
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
    warnings = (
        *_model_warnings(score, points, measurement),
        *_mask_warnings(score, points, measurement, fresh),
        *_rounding_warnings(score, points, measurement),
        *_method_warnings(job, base),
    )
    return Judgement(
        fresh=fresh,
        criteria=criteria,
        differences=differences,
        weights_stderr=combined.join(spread),
        consensus=mixed[:, 1],
        weighted=mixed[:, 0],
        resolved=resolved,
        completeness=completeness,
        warnings=warnings,
    )


def measure(
    fit: Evidence, fresh: Evidence, rows: Tensor, names: Sequence[str], metrics: Mapping[str, Metric]
) -> Criteria:
    """Every criterion for every row of ``rows`` (B, M, R), on the fitting and on the fresh draws.

    The criteria of :data:`CRITERIA`, and the loss of every other metric that was measured."""
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
    own = evidence.only((metric.statistic,))
    value = metric.loss(own, rows)
    blocks = own.folds(BLOCKS, metric.statistic) if own.count(metric.statistic) > 1 else []
    if not blocks:
        return Estimate(value, torch.zeros_like(value)[..., None].expand(*value.shape, 2))
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
    found: Criteria = {}
    for criterion, rows in parts[0].items():
        found[criterion] = {}
        for name in rows:
            values = [combined.join([getattr(part[criterion][name], each) for part in parts]) for each in PARTS]
            found[criterion][name] = Measured(*values)
    return found


def _weighted(group: Fitted, measurement: Measurement) -> Tensor:
    """(B, R): the row "weighted" of one group's inputs."""
    found = torch.zeros_like(group.evidence.like)
    methods = group.evidence.only(SEQUENTIAL_KINDS).rows(slice(measurement.rows))
    found[:, : measurement.rows] = Weighted().fit(methods).weights
    return found


def _resolved(job: Job, combined: Combined) -> dict[str, Tensor] | None:
    """‖φ*(x) − φ*(x′)‖² / ‖φ*(x)‖² with the weights solved anew at x′, on the same keyed draws: (B, count) and its mean."""
    measurement, score, points, count = job.ready.measurement, job.ready.score, job.ready.points, job.resolved
    if not count:
        return None
    k = measurement.rows
    methods = exact(combined.base[:, :k].nan_to_num(0))
    here = torch.einsum("br,br...->b...", combined.mixing[:, :k], methods).flatten(1)
    each = torch.full((len(points), count), torch.nan, dtype=torch.float64, device=here.device)
    where, key = measurement.sensitivity.neighbourhood, Key(measurement.seed, "resolved")
    for group, sample in itertools.product(combined.groups, range(count)):
        at = list(group.index)
        near = neighbours(where, points[at], range(sample, sample + 1), key, count)
        # Same ids: the explainers' noise, and the draws for fitting, are those at x. Optimal is then a function of x too.
        maps = measurement.maps(score, near, derived=False)
        weights = job.aggregation.fit(measurement.evidence(score, near, maps, group.draws, "fit", job.kinds)).weights
        there = torch.einsum("br,br...->b...", weights, exact(maps.nan_to_num(0))).flatten(1)
        each[at, sample] = ((here[at] - there) ** 2).sum(1) / (here[at] ** 2).sum(1)
    error = each.std(1) / count**0.5 if count > 1 else torch.full_like(each[:, 0], torch.nan)
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


def _model_warnings(score: Score, points: Points, measurement: Measurement) -> list[str]:
    """What the outputs say against explaining them so; of a black box, whether it is piecewise constant, like a forest,
    which costs ten evaluations for each input."""
    found = score.warnings()
    if isinstance(score.model, nn.Module):
        return found
    where = measurement.sensitivity.neighbourhood
    same, fixed = unmoved(score, points, where, Key(measurement.seed, "flat"))
    if bool(same.any()):
        found.append(
            f"the score of {int(same.sum())} of {len(same)} inputs is the same at all neighbours: the model is piecewise "
            "constant there, so a sensitivity near zero is no merit, and gradients would be zero"
        )
    if bool(fixed.any()):
        found.append(
            f"the noise moves nothing in {int(fixed.sum())} of {len(fixed)} inputs (blocks, and columns of 0 and 1, stay as "
            "they are), so a sensitivity of zero is no merit there; judge by faithfulness"
        )
    return found


def _mask_warnings(score: Score, points: Points, measurement: Measurement, fresh: Evidence) -> list[str]:
    """Inputs whose masks hardly move the score, although all features together do."""
    everything = measurement.infidelity.everything(score, points)
    each = [fresh.inputs([i])["responses"] for i in range(len(points))]
    return [
        f"input {at}: masks move the score by at most {most:.1e}, all features together by {abs(float(everything[at])):.1e}: "
        "these masks are no evidence of what the score rests on; take larger features, or another baseline"
        for at, most in too_weak(each, everything)
    ]


def _rounding_warnings(score: Score, points: Points, measurement: Measurement) -> list[str]:
    """Of a model whose outputs are in half precision: that single features move the score by no more than its rounding."""
    kind = score.precision or score.outputs.dtype
    explainers = zip(measurement.stack.stack.names, measurement.stack.stack.explainers, strict=True)
    alone = [
        name for name, e in explainers if not isinstance(e, Direct) and isinstance(e.need.where, Singles | Sliding)
    ]
    if kind not in (torch.float16, torch.bfloat16) or not alone:
        return []
    shape = points.x.shape[1:]
    features = measurement.infidelity.neighbourhood(shape).features
    each = measurement.infidelity.everything(score, points).abs() / math.prod(features.shape(shape))
    step = torch.finfo(kind).eps * exact(score.clean)[points.owner].abs()
    rough = int((each < step).sum())
    if not rough:
        return []
    moved, rounding = float(each.median()), float(step.median())
    return [
        f"{', '.join(alone)}: single features move the score by about {moved:.1e}, and {str(kind)[6:]} outputs are in steps of "
        f"{rounding:.1e} ({rough} of {len(each)} inputs): these maps are largely rounding; explain the model in float32, "
        "model.float()"
    ]


def _method_warnings(job: Job, base: Tensor) -> list[str]:
    """Methods that ran and gave what is no map."""
    working = job.ready.measurement.working
    bad = (~base[:, list(working)].flatten(2).isfinite().all(2)).sum(0).tolist()
    left_out = "" if isinstance(job.aggregation, Given) else ", and takes no part there"
    found = []
    for at, count in zip(working, bad, strict=True):
        if count:
            found.append(
                f"{job.ready.names[at]} gives NaN or infinite values for {count} of {len(base)} inputs{left_out}"
            )
    for name, why in job.ready.measurement.stack.stack.failures.items():
        found.append(f"{name} failed at some inputs or neighbours of theirs, and is NaN there: {why}")
    return found
