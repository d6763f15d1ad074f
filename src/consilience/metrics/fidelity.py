"""Metrics in units of the output: of signed, unscaled gradients or contributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import simplex
from ..card import Card
from ..errors import InputError
from ..features.base import Features
from ..model.score import Score
from ..perturb.baseline import Baseline
from ..perturb.points import Points
from ..statistics.evidence import Evidence, Responses
from ..statistics.keys import Key
from ..statistics.tensors import exact
from ..surrogates.local_linear import Local, Output, completeness
from .objective import Term


class Squares(Term):
    """Interface: r_j = a_j − y, Q = E r², a what the map says and y what the score does; no scale is fitted."""

    statistic = "responses"

    def loss(self, evidence: Evidence, w: Tensor) -> Tensor:
        r = evidence.responses
        assert r is not None
        a = torch.einsum("bmr,bsr->bms", w, r.a)
        return ((a - r.y[:, None]) ** 2).mean(-1)

    def matrix(self, evidence: Evidence, whole: Evidence | None = None) -> Tensor | None:
        r = evidence.responses
        if r is None:
            return None
        residual = r.a - r.y[..., None]
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

    kind: str = "gradient"
    radius: float = 0.1
    baseline: Any = None

    card = Card(
        formula="E (f(x) + Σ ε_i φ_i − f(x′))², x′ = x + ε for gradients, x′ − b = (1 + ε)(x − b) for contributions",
        source="Plumb et al. 2020 (ExpO), arXiv 1902.06787",
        better="lower",
        normalisation="none: squared units of the score, so maps must be signed and unscaled",
        perturbation="ε ~ N(0, radius²), one for each attributed feature, in the points' unit of noise",
        draws="stream 'local'",
        cost="one forward for each draw",
    )
    stream = "local"

    def __post_init__(self) -> None:
        self._where()

    def _where(self) -> Local:
        return Local(self.kind, self.radius, Baseline.of(self.baseline))

    def measure(
        self,
        attributed: Features,
        score: Score,
        points: Points,
        base: Tensor,
        samples: range,
        key: Key,
        total: int,
        graph: bool = False,
    ) -> Responses:
        """a (B, S, R) and y (B, S) for the draws ``samples``; ``base`` (B, R, *A) on the features ``attributed``.

        ``graph``: y keeps its graph, for a loss (a has that of ``base``)."""
        step = 4 * score.batch.size(False)
        return self._where().responses(
            _output(score, graph), points, base, attributed, samples, key / self.stream, step
        )


@dataclass(frozen=True)
class Completeness(Squares):
    """r_j = Σφ_j − (f(x) − f(b)) (Sundararajan, Taly & Yan 2017, arXiv 1703.01365); Q in squared units of the score.

    ``baseline``: b. Maps must be signed, unscaled contributions: sign="keep", scale="none". Nothing is drawn: one response.
    """

    baseline: Any = None

    card = Card(
        formula="(Σφ − (f(x) − f(b)))²",
        source="Sundararajan, Taly & Yan 2017, arXiv 1703.01365",
        better="lower",
        normalisation="none: squared units of the score, so maps must be signed, unscaled contributions",
        cost="2 forward",
    )

    def measure(self, score: Score, points: Points, base: Tensor, graph: bool = False) -> Responses:
        """a (B, 1, R) and y (B, 1) for the maps ``base`` (B, R, *A)."""
        return completeness(_output(score, graph), points, base, Baseline.of(self.baseline))


def _output(score: Score, graph: bool) -> Output:
    return lambda rows, owner: exact(score.evaluate(rows, owner, graph=graph).score)
