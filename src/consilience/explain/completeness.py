"""How far maps that claim to add up to the score's change are from doing so."""

from __future__ import annotations

from torch import Tensor

from ..statistics.tensors import exact
from ..surrogates.local_linear import score_of_nothing
from .cost import baselines_of
from .run import Job


def completeness_errors(job: Job, sums: Tensor) -> dict[str, Tensor]:
    """|Σφ − (f(x) − f(b))| / |f(x) − f(b)|, (N,), of each explainer that claims to add up.

    f(b) is the mean score over a data set's rows, where the explainer averages over them.

    Args:
        job: the call.
        sums: (N, working k), Σφ of the raw attributions.
    """
    score = job.ready.score
    points = job.ready.points
    stack = job.ready.measurement.stack.stack
    found = {}
    for (baseline, features), members in baselines_of(stack, points.x.shape[1:]).items():
        nothing = exact(score_of_nothing(score, points, baseline, features))
        difference = exact(score.clean[points.owner]) - nothing
        for at in members:
            found[stack.names[at]] = (sums[:, at] - difference).abs() / difference.abs()
    return found
