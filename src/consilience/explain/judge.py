"""An explanation judged on fresh draws: every criterion for every row, completeness, re-solved weights."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..combine.aggregations import by_quality
from ..combine.measurement import Setting
from ..combine.sequential import Fitted
from ..model.score import Score
from ..perturb.neighbourhoods import neighbours
from ..perturb.points import Points
from ..results.explanation import Measured
from ..statistics.criteria import CRITERIA
from ..statistics.evidence import Evidence
from ..statistics.keys import Key
from ..statistics.tensors import exact
from ..surrogates.local_linear import score_of_nothing
from .run import Combined, Job, baselines_of


def measure(fit: Evidence, fresh: Evidence, rows: Tensor, names: Sequence[str]) -> dict[str, dict[str, Measured]]:
    """Every criterion for every row of ``rows`` (B, M, R), on the fitting and on the fresh draws."""
    broken = [_broken(part, rows) for part in (fit, fresh)]
    table: dict[str, dict[str, Measured]] = {}
    for criterion, judge in CRITERIA.items():
        before, after = judge(fit.clean(), rows), judge(fresh.clean(), rows)
        value = before.value.masked_fill(broken[0], torch.nan)
        again = after.value.masked_fill(broken[1], torch.nan)
        error = after.stderr.masked_fill(broken[1], torch.nan)
        table[criterion] = {name: Measured(value[:, i], again[:, i], error[:, i]) for i, name in enumerate(names)}
    return table


def _broken(evidence: Evidence, rows: Tensor) -> Tensor:
    """(B, M): rows that put weight on an attribution that is not finite, and maps that are zero: they explain nothing."""
    assert evidence.quadratic is not None and evidence.responses is not None
    size = evidence.quadratic.norm.diagonal(dim1=-2, dim2=-1)
    bad = ~evidence.quadratic.draws.diagonal(dim1=-2, dim2=-1).isfinite().all(1) | ~size.isfinite()
    bad |= ~evidence.responses.a.isfinite().all(1)
    touched = torch.einsum("bmr,br->bm", (rows != 0).double(), bad.double()) > 0
    zero = torch.einsum("bmr,brt,bmt->bm", rows, evidence.clean().quadratic.norm, rows) == 0  # type: ignore[union-attr]
    return touched | zero


def _weighted(group: Fitted, setting: Setting) -> Tensor:
    """(B, R): the row "weighted" of one group's inputs."""
    found = torch.zeros_like(group.evidence.like)
    found[:, : setting.rows] = by_quality(group.evidence.rows(slice(setting.rows)), setting.working)
    return found


def _resolved(job: Job, combined: Combined) -> dict[str, Tensor] | None:
    """‖φ*(x) − φ*(x′)‖² / ‖φ*(x)‖² with the weights solved anew at x′, on the same keyed draws: (B, count) and its mean."""
    setting, score, points, count = job.ready.setting, job.ready.score, job.ready.points, job.resolved
    if not count:
        return None
    k = setting.rows
    here = torch.einsum("br,br...->b...", combined.mixing[:, :k], exact(combined.base[:, :k].nan_to_num(0))).flatten(1)
    each = torch.full((len(points), count), torch.nan, dtype=torch.float64, device=here.device)
    where, key = setting.sensitivity.neighbourhood, Key(setting.seed, "resolved")
    for group, sample in itertools.product(combined.groups, range(count)):
        at = list(group.index)
        near = neighbours(where, points[at], range(sample, sample + 1), key, count)
        # Same ids: the explainers' noise, and the draws for fitting, are those at x. Optimal is then a function of x too.
        maps = setting.maps(score, near, derived=False)
        weights = job.rule.solve(setting.evidence(score, near, maps, group.draws, "fit"))[0].weights
        there = torch.einsum("br,br...->b...", weights, exact(maps.nan_to_num(0))).flatten(1)
        each[at, sample] = ((here[at] - there) ** 2).sum(1) / (here[at] ** 2).sum(1)
    error = each.std(1) / count**0.5 if count > 1 else torch.full_like(each[:, 0], torch.nan)
    return {"value": each.mean(1), "stderr": error}


def _completeness(score: Score, points: Points, setting: Setting, sums: Tensor) -> dict[str, Tensor]:
    """|Σφ − (f(x) − f(b))| / |f(x) − f(b)|, (B,), of each explainer that claims to add up; ``sums`` (B, k) are Σφ.

    f(b) is the mean score over a data set's rows, where the explainer averages over them."""
    stack = setting.stack.stack
    found = {}
    for (baseline, features), members in baselines_of(stack, points.x.shape[1:]).items():
        nothing = exact(score_of_nothing(score, points, baseline, features))
        difference = exact(score.clean[points.owner]) - nothing
        for at in members:
            found[stack.names[at]] = (sums[:, at] - difference).abs() / difference.abs()
    return found
