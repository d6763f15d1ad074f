"""Local fidelity and completeness: metrics in units of the output, of signed, unscaled gradients or contributions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import simplex
from ..card import Card
from ..errors import InputError
from ..perturb.baseline import AnyBaseline, Baseline
from ..settings import setting
from ..statistics.evidence import Evidence, Responses
from ..surrogates.local_linear import Local, completeness
from ..task import Task
from .base import Metric


class Squares(Metric):
    """Interface: r_j = a_j − y, Q = E r², a what the map says and y what the score does; no scale is fitted."""

    in_output_units = True

    def loss(self, evidence: Evidence, w: Tensor) -> Tensor:
        responses = evidence[self.statistic]
        mixed = torch.einsum("bmr,bsr->bms", w, responses.a)
        return ((mixed - responses.y[:, None]) ** 2).mean(-1)

    def matrix(self, evidence: Evidence, whole: Evidence | None = None) -> Tensor | None:
        responses = evidence[self.statistic]
        residual = responses.a - responses.y[..., None]
        return residual.mT @ residual / residual.shape[1]

    def solve(self, evidence: Evidence, valid: Tensor, signed: bool) -> simplex.Solution:
        if signed:
            raise InputError(f"signed: not for {type(self).__name__}; its weights are convex")
        matrix = self.matrix(evidence)
        assert matrix is not None
        return simplex.quadratic(matrix, valid=valid)


@dataclass(frozen=True)
class LocalFidelity(Squares):
    """r_j = g_j(x′) − f(x′), g_j the map as a linear model around x: ExpO's neighbourhood fidelity (arXiv 1902.06787).

    Args:
        kind: what the maps are. "gradient": x′ = x + ε, g = f(x) + Σ ε_i φ_i; "contribution": x′ − b = (1 + ε)(x − b), same g;
            see :class:`~consilience.surrogates.local_linear.Local`.
        radius: σ of ε ~ N(0, radius²), one for each attributed feature.
        baseline: b of the contributions.

    Maps must be signed and unscaled: sign="keep", scale="none".
    """

    kind: str = setting("gradient", choices=("gradient", "contribution"))
    radius: float = setting(0.1, above=0)
    baseline: AnyBaseline = None

    card = Card(
        formula="E (f(x) + Σ ε_i φ_i − f(x′))², x′ = x + ε for gradients, x′ − b = (1 + ε)(x − b) for contributions",
        source="Plumb et al. 2020 (ExpO), arXiv 1902.06787",
        better="lower",
        normalisation="none: squared units of the score, so maps must be signed and unscaled",
        perturbation="ε ~ N(0, radius²), one for each attributed feature, in the points' unit of noise",
        draws="stream 'local'",
        cost="one forward for each draw",
    )
    name = "local_fidelity"
    stream = "local"
    statistic = "local_fidelity"

    def measure(self, task: Task, samples: range, total: int) -> Responses:
        """a (B, S, R), what each map says of the score at x′, and y (B, S), what the score is, for the draws ``samples``."""
        step = 4 * task.score.batch.size(False)
        local = Local(self.kind, self.radius, Baseline.of(self.baseline))
        key = task.stream(self.stream)
        return local.responses(task.output, task.points, task.contributions, task.features, samples, key, step)


@dataclass(frozen=True)
class Completeness(Squares):
    """r_j = Σφ_j − (f(x) − f(b)) (Sundararajan, Taly & Yan 2017, arXiv 1703.01365); Q in squared units of the score.

    Maps must be signed, unscaled contributions: sign="keep", scale="none". Nothing is drawn: there is one response.

    Args:
        baseline: b.
    """

    baseline: AnyBaseline = None

    card = Card(
        formula="(Σφ − (f(x) − f(b)))²",
        source="Sundararajan, Taly & Yan 2017, arXiv 1703.01365",
        better="lower",
        normalisation="none: squared units of the score, so maps must be signed, unscaled contributions",
        cost="2 forward",
    )

    name = "completeness"
    statistic = "completeness"
    asks = "nothing"

    def measure(self, task: Task, samples: range, total: int) -> Responses:
        """a (B, 1, R), the sums of the maps, and y (B, 1), by how much the score falls when everything is taken away."""
        return completeness(task.output, task.points, task.contributions, Baseline.of(self.baseline), task.features)
