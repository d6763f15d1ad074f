"""How far the combined map moves if its weights are solved anew at every neighbour."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ..perturb.neighbourhoods import neighbours
from ..statistics.keys import Key
from ..statistics.tensors import exact
from .run import Combined, Job


def resolved_sensitivity(job: Job, combined: Combined) -> dict[str, Tensor] | None:
    """‖φ*(x) − φ*(x′)‖² / ‖φ*(x)‖² with the weights solved anew at x′, on the same keyed draws: its mean and standard error.

    None where nothing is solved, or no neighbour asked for.

    Args:
        job: the call.
        combined: its maps and weights.
    """
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
