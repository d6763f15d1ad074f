"""Attributions that are the coefficients of a simple model fitted to the score: LIME on masks, MAPLE on tables."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..arrays import AnyRows
from ..card import Card
from ..errors import InputError
from ..features.base import Features
from ..model.score import Score
from ..perturb.baseline import AnyBaseline
from ..perturb.coalitions import Halves
from ..perturb.games import few
from ..perturb.points import Points
from ..settings import setting
from ..statistics.keys import Key
from ..surrogates.lime_maple import Maple, Memory, maple
from ..surrogates.linear_fits import lasso, moments, ridge
from .base import Direct
from .coalitional import Coalitional
from .spread import ABSENT, UNIT, like


@dataclass(frozen=True)
class LIME(Coalitional):
    """φ = β of argmin Σ_s w_s (f_s − β₀ − β · z_s)² + penalty (Ribeiro et al. 2016, arXiv 1602.04938), shared evenly by each
    feature's elements.

    z: which features are there, each with probability 1/2; the first is x itself, the second nothing, and then come pairs of
    complements, none twice, or all coalitions if these are no more than ``n_samples``: the penalty then weighs what it weighs
    beside ``n_samples`` draws. w = exp(−d² / (2 ``kernel_width``²)), d the
    cosine distance of z to "all there", 1 − √(share there). Penalty: ``ridge`` ‖β‖²; with ``l1`` > 0 the lasso instead,
    Σ w r² / (2 Σ w) + l1 ‖β‖₁, scikit-learn's scaling, in units of the score: a β below about 4 · l1 vanishes.

    Args:
        n_samples: masks, 1000 as in the lime package. Fewer than features is possible but says little.
        features: what is taken away as one; default :func:`~consilience.features.images.coarse`; at most 1024.
        baselines: as for :class:`FeatureAblation`; each mask has a row of ``Baseline.samples(data)``.
        ridge, l1: AGG §5.3 uses l1 = 0, .01, .1.
        kernel_width: .25 as in lime's images.
    """

    n_samples: int = setting(1000, low=1)
    features: Features | None = None
    baselines: AnyBaseline = None
    ridge: float = setting(1.0, above=0)
    l1: float = setting(0.0, low=0)
    kernel_width: float = setting(0.25, above=0)

    name = "lime"
    kind = "contribution"
    card = Card(
        formula="β of argmin Σ w (f − β₀ − β·z)² + ridge ‖β‖², or Σ w (f − β₀ − β·z)² / (2 Σ w) + l1 ‖β‖₁",
        source="Ribeiro, Singh & Guestrin 2016, arXiv 1602.04938",
        normalisation="w = exp(−d² / (2 · .25²)), d = 1 − √(share of features there)",
        perturbation=f"each with probability 1/2 of the {UNIT}, {ABSENT}",
        draws="n_samples masks in pairs with their complements, all if there are no more, stream 'coalitions'",
        cost="min(2^A, n_samples) forward; shared with methods of the same features and baseline",
        differences=(
            (
                "lime's LimeImageExplainer",
                "the same regression; it draws masks one by one, finds segments by quickshift, replaces them by their mean "
                "colour, and explains "
                "probabilities: features=Segments(labels), baselines=..., kind='probability'.",
            ),
            (
                "lime's LimeTabularExplainer",
                "perturbs by Gaussian noise or within quartiles around the training data and has no baseline: "
                "consilience.surrogates.lime_maple.lime_tabular.",
            ),
            (
                "Captum's Lime",
                "lasso with alpha .01, kernel on the cosine distance of the inputs themselves with width 1, and 50 samples: "
                "l1=.01 for the penalty; the kernel is not offered, since it weighs bright features more.",
            ),
        ),
    )

    @property
    def design(self):
        return Halves(self.n_samples)

    def check_features(self, shape):
        few(self.features, shape, self.name)

    def values(self, score, key, features, rows):
        count = score.shape[1]
        there = ~self.design.gone(key, features, rows, torch.arange(count))
        distance = 1 - there.double().mean(1).sqrt()
        # Where all coalitions are listed they count as the draws do for which they stand, beside the penalty.
        weights = torch.exp(-(distance**2) / (2 * self.kernel_width**2)) * (self.n_samples / count)
        gram, _ = moments(there.to(score)[None], weights.to(score)[None], torch.zeros_like(score[:1]))
        cross = (score * weights.to(score)) @ nnf.pad(there.to(score), (1, 0), value=1.0)
        gram = gram.expand(len(score), -1, -1)
        if self.l1:
            coefficients = lasso(gram, cross, self.l1, tolerance=1e-12)
        else:
            coefficients = ridge(gram, cross, self.ridge)
        return coefficients[:, 1:]


@dataclass(frozen=True)
class MAPLE(Direct):
    """φ = slopes of a linear model of the score fitted to the rows of ``data`` that a random forest holds to be near x
    (Plumb et al. 2018, arXiv 1807.02910). For tables; an element of the input is a column.

    The forest is fitted when first needed, to the score's values on ``data``, once for each target, and kept while the model
    stays the same. Needs scikit-learn (extra "tables").

    Args:
        data: rows (n, *F) from where the model is used, usually its training data.
        validation: rows that choose the number of columns; default a quarter of ``data``, drawn by the seed and held out.
        forest: trees, leaves and penalty, see :class:`~consilience.surrogates.lime_maple.Maple`.
    """

    data: AnyRows = field(default=None, compare=False)
    validation: AnyRows = field(default=None, compare=False)
    forest: Maple = Maple()

    name = "maple"
    kind = "gradient"
    card = Card(
        formula="c of argmin Σ_i w_i (f(x_i) − c₀ − c·x_i)² + .001 ‖c‖², w_i = Σ_trees 1[x_i in the leaf of x] / rows in it",
        source="Plumb, Molitor & Talwalkar 2018, arXiv 1807.02910",
        perturbation="none: the rows of data",
        draws="the forest's bootstrap and splits, and the held-out quarter, from stream 'maple'",
        cost="the rows of data once for each target, then 16 forward for each batch, to see whether the model has changed",
        differences=(
            (
                "the authors' code (also in shap)",
                "ranks columns by the impurity of the root, not by its fall at the first split, and draws no seed; the weights "
                "and the ridge are the same. shap's copy chooses the number of columns on the training rows and multiplies "
                "by x − mean(data) on request.",
            ),
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "_memory", {})

    def attribute(self, score: Score, points: Points, key: Key) -> Tensor:
        if self.data is None:
            raise InputError("data: maple fits a forest to data; give MAPLE(data=rows), usually the training data")
        memory: Memory = self._memory  # type: ignore[attr-defined]
        found = maple(score, points, self.data, key, self.forest, self.validation, memory)
        return like(found[:, 1:].unflatten(1, points.x.shape[1:]), points)

    def rows(self, shape):
        return {"forward": 0, "gradient": 0}
