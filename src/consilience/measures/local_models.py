"""How well a simple local model explains: point fidelity, neighbourhood fidelity and stability of LIME and MAPLE (ExpO).

These judge a model by the explanations it admits, not a map: one number for each input.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..arrays import AnyRows
from ..card import Card
from ..model.score import Score
from ..perturb.neighbourhoods import Gaussian, neighbours
from ..perturb.points import Points
from ..settings import Settings, setting
from ..statistics.keys import Key
from ..statistics.tensors import exact
from ..surrogates.lime_maple import Maple, Memory, lime_tabular, maple
from ..surrogates.linear_fits import predict


@dataclass(frozen=True)
class LocalQuality:
    """How well the local models of B inputs explain.

    Args:
        point: PF (B,) float64, in squared units of the score.
        neighbourhood: NF (B,) float64, in squared units of the score.
        stability: S (B,) float64, in squared units of the coefficients.
    """

    point: Tensor
    neighbourhood: Tensor
    stability: Tensor


@dataclass(frozen=True)
class LocalModels(Settings):
    """Point fidelity, neighbourhood fidelity and stability of local linear models (Plumb et al. 2020, arXiv 1902.06787).

    PF = (g_x(x) − f(x))², NF = E(g_x(x') − f(x'))², S = E‖e_x' − e_x‖², with g_x the local linear model at x, e_x its
    coefficients, intercept included, and x' = x + ``sigma`` N(0, I), the same ``samples`` for NF and S. Lower is better.

    Args:
        data: rows (n, *F) on which the local models rest, usually the training data.
        kind: "lime" (:func:`~consilience.surrogates.lime_maple.lime_tabular`) or "maple"
            (:class:`~consilience.surrogates.lime_maple.Maple`).
        samples: neighbours x' of each input.
        sigma: their standard deviation, in the points' own unit of noise where they have one.
        n_samples: of LIME, so many for each input.
        penalty: of LIME, of the squared slopes.
        width: of LIME, that of the samples' weights, in standard deviations; None: .75 √d, d the elements of an input.
        around: of LIME, where it samples: around the "mean" of the data, as the lime package by default, or around "x".
        forest: of MAPLE, its settings.
        validation: of MAPLE, rows (m, *F) that choose its number of columns; None: a quarter of the data.
        memory: of MAPLE, the forests fitted so far, which further calls reuse; empty by default.

    A local model at x' uses the draws of the one at x, so that S is not its sampling error.
    """

    data: AnyRows = field(compare=False)
    kind: str = setting("lime", choices=("lime", "maple"))
    samples: int = setting(5, low=1)
    sigma: float = setting(0.1, low=0)
    n_samples: int = setting(1000, low=1)
    penalty: float = setting(1.0, low=0)
    width: float | None = setting(None, above=0)
    around: str = setting("mean", choices=("mean", "x"))
    forest: Maple = Maple()
    validation: AnyRows = field(default=None, compare=False)
    memory: Memory = field(default_factory=dict, compare=False, repr=False)

    card: ClassVar[Card] = Card(
        formula="PF = (g_x(x) − f(x))²; NF = mean_s (g_x(x_s) − f(x_s))²; S = mean_s ‖e_{x_s} − e_x‖²",
        source="Plumb et al. 2020, arXiv 1902.06787 (LIME: 1602.04938; MAPLE: 1807.02910)",
        better="lower",
        normalisation="none: PF, NF in squared units of the score; S adds coefficients per unit of each column",
        perturbation="x + σ N(0, I), in the units of the (standardised) table",
        draws='`samples` neighbours, stream "neighbours"; LIME\'s samples, stream "lime"; MAPLE\'s forest, stream "maple"',
        cost="LIME: 1000 outputs around the mean, or 1000 · (1 + samples) around x; MAPLE: the rows of data once; 1 + samples",
        differences=(
            (
                "the authors' code",
                "its LIME stability explains x itself again in place of x_s, so it is LIME's sampling error; "
                "here the local model is that at x_s",
            ),
        ),
    )

    def coefficients(self, score: Score, points: Points, key: Key) -> Tensor:
        """The local models at the points, (N, d + 1), intercept first.

        Args:
            score: what is explained.
            points: x (N, *F), of d elements each.
            key: of the draws.
        """
        if self.kind == "maple":
            return maple(score, points, self.data, key / "maple", self.forest, self.validation, self.memory)
        return lime_tabular(
            score, points, self.data, key / "lime", self.n_samples, self.penalty, self.width, self.around
        )

    def __call__(self, score: Score, points: Points, key: Key) -> LocalQuality:
        size = points.x[:1].numel() + 1
        # A local model's Gram matrix has size² numbers, for each neighbour of each point.
        step = max(1, 2**22 // (self.samples * size**2))
        parts = [self._of_part(score, points[start : start + step], key) for start in range(0, len(points), step)]
        return LocalQuality(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def _of_part(self, score: Score, points: Points, key: Key) -> tuple[Tensor, Tensor, Tensor]:
        """PF, NF and S of some points, (n,) each."""
        near = neighbours(Gaussian(self.sigma), points, range(self.samples), key / "neighbours", self.samples)
        by_point = (len(points), -1)
        # The same key at the points and their neighbours: both local models use the same draws.
        here = self.coefficients(score, points, key)
        there = self.coefficients(score, near, key).unflatten(0, by_point)

        own_rows = exact(points.x.flatten(1))[:, None]
        point_error = predict(here, own_rows)[:, 0] - exact(score(points.x, points.owner))
        near_rows = exact(near.x.flatten(1)).unflatten(0, by_point)
        near_errors = predict(here, near_rows) - exact(score(near.x, near.owner)).unflatten(0, by_point)
        moved = (there - here[:, None]).square().sum(2)
        return point_error.square(), near_errors.square().mean(1), moved.mean(1)
