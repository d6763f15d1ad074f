"""RISE: the score where a feature is left, averaged over random masks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..card import Card
from ..features.base import Features
from ..perturb.baseline import AnyBaseline
from ..perturb.coalition_lists import every
from ..perturb.coalitions import Halves
from ..perturb.games import Game
from ..perturb.soft_masks import Grids
from ..perturb.windows import ordered
from ..settings import setting
from ..statistics.keys import Key
from ..statistics.tensors import exact
from ..surrogates.interactions import EVEN, ODD, covariance, generalised
from .base import Need
from .coalitional import Coalitional
from .spread import absent, give, like

MASKS = 4000
"""Masks of images and series, as in the paper for VGG16."""

COALITIONS = 800
"""Masks of tables. Their error is below that of 4000 masks averaged as in the paper: benchmarks/coalitions.py."""


@dataclass(frozen=True)
class RISE(Coalitional):
    """φ = E[f(x ⊙ M + b ⊙ (1 − M)) M] / E[M] over random soft masks M (Petsiuk et al. 2018, arXiv 1806.07421).

    M: a ``grid`` of cells that are 1 with probability ``keep``, upsampled bilinearly and shifted at random; E[M] = ``keep``
    everywhere. The map is the mean score when an element is kept: it has a level, and only differences say anything.

    The paper's estimate Σ f M / (N p) has the score's level times the noise of ΣM in it. Here E[f] + E[(f − E[f]) (M − p)] / p
    is estimated, which is the same number: unbiased too, and never less exact. Where each feature is a cell of its own and p is
    1/2 (tables), masks come in pairs with their complements, and are evaluated once for all methods that ask for coalitions;
    effects of several features are allowed for (:mod:`consilience.surrogates.interactions`), and with 2^A ≤ ``n_samples``
    all masks are evaluated, and the map is exact.

    Args:
        n_samples: masks; None: 4000, and 800 of tables. The paper uses 4000 for VGG16 and 8000 for ResNet50.
        grid: cells along each axis behind the channel.
        keep: the paper's p.
        baselines: as for :class:`FeatureAblation`; each mask has a row of a data set. The paper's is 0.
        features: where inputs are no images, the axes along which masks lie: steps that are not the last axis
            (``Windows(1, axis=0)``), tokens. Without them a series is (N, channels, steps), and each element of a table is a
            cell. Images and volumes are masked by the pixel.

    Raises:
        InputError: no cell, or a probability out of range.
    """

    n_samples: int | None = setting(None, low=1)
    grid: int = setting(7, low=1)
    keep: float = setting(0.5, above=0, high=1)
    baselines: AnyBaseline = None
    features: Features | None = None

    name = "rise"
    kind = "relevance"
    card = Card(
        formula="φ = E[f(x ⊙ M + b ⊙ (1 − M)) M] / E[M]",
        source="Petsiuk, Das & Saenko 2018, arXiv 1806.07421, §3",
        normalisation="by E[M] = p, the probability to keep a cell",
        perturbation="7 × 7 random cells, upsampled bilinearly, shifted at random, along the axes that the input has (tables: "
        "each column by itself); what is dimmed tends to the baseline: for images blurred with σ = 10 pixels, else zero, "
        "unless given",
        draws="n_samples masks, stream 'rise'; of tables pairs of complements, stream 'coalitions'",
        cost="n_samples forward: 4000; of tables min(2^A, 800), shared with methods of the same features and baseline",
        differences=(
            (
                "the authors' code",
                "averages f M, with the noise of M's mean; multiplies the image by the mask, so what is absent is 0 after "
                "preprocessing (baselines=0), uses the "
                "probability (kind='probability'), and extrapolates the border cells by reflection; p = .1 in its demo.",
            ),
        ),
    )

    def game(self, shape):
        features = self._where.masked(shape)
        if features is None or self.keep != 0.5:
            return None
        if ordered(features, shape) and len(features.shape(shape)) == 1:
            return None  # masks are smooth along the order
        return Game(absent(self.baselines), features)

    # Coalitions, where every feature is a cell of its own.

    @property
    def design(self):
        return Halves(self.n_samples or COALITIONS, whole=False)

    def values(self, score, key, features, rows):
        design = self.design
        if design.all(features):
            mean = score.unflatten(1, (2**features, design.each(features, rows))).mean(2)
            there = (~every(features)).to(mean)
            return mean @ there / 2 ** (features - 1)
        level, slopes = (weights.to(score) for weights in _effects(key, features, design))
        pairs = score.unflatten(1, (-1, 2))
        # The effects of even numbers of features are in the mean of a pair, the others in its half difference.
        return pairs.mean(2) @ level[:, None] + (pairs[..., 0] - pairs[..., 1]) / 2 @ slopes.mT

    # Soft masks, where cells are larger.

    @property
    def need(self):
        return Need(self._where, self.n_samples or MASKS, self.name, gradient=False)

    @property
    def _where(self) -> Grids:
        return Grids(absent(self.baselines), self.grid, self.keep, self.features)

    def fold(self, state, cloud, values):
        """The means of f (n, 1), of M and of f M (n, A each), of the samples so far."""
        score = exact(cloud.split(values.score))
        assert cloud.masks is not None
        kept = 1 - cloud.split(exact(cloud.masks)).flatten(2)
        weights = exact(cloud.weights)
        weighted = score * weights
        means = weighted.sum(1, keepdim=True), (weights[:, None] * kept).sum(1), (weighted[:, None] @ kept)[:, 0]
        if state is None:
            return means
        return tuple(before + more for before, more in zip(state, means, strict=True))

    def finish(self, state, points):
        mean_score, mean_mask, mean_product = state
        count = self.need.samples
        if count == 1:
            value = mean_product / self.keep
        else:
            # The covariance of draws, unbiased by N / (N − 1); E[M] is known and not estimated.
            covariance = (mean_product - mean_score * mean_mask) * count / (count - 1)
            value = mean_score + covariance / self.keep
        shape = points.x.shape[1:]
        features = self._where.masked(shape)
        if features is not None:
            return give(value, features, points)
        channels, *space = shape
        mean = (value / channels).unflatten(1, space)[:, None]
        return like(mean, points).expand(-1, channels, *space)


@lru_cache(maxsize=32)
def _effects(key: Key, features: int, design: Halves) -> tuple[Tensor, Tensor]:
    """(n,): the mean score, from the means of n pairs; (A, n): the single effects, from their half differences.

    Both are unbiased: drawn pairs are as likely with any features exchanged for their absence, so no other effect has a share
    in them on average, whatever the prior.

    Args:
        key: of the draws.
        features: A.
        design: which coalitions there are.
    """
    numbers = torch.arange(0, design.count(features, 1), 2)
    rows = torch.where(design.gone(key, features, 1, numbers), -1.0, 1.0).double()
    count = len(rows)
    if count < 2 * features:
        # Too few to solve for all effects at once: each by itself.
        return torch.full((count,), 1 / count, dtype=rows.dtype), rows.mT / count
    noise = torch.eye(count, dtype=rows.dtype)
    level, _ = generalised(torch.ones_like(rows[:, :1]), covariance(rows, EVEN) + noise)
    slopes, _ = generalised(rows, covariance(rows, ODD) + noise)
    return level[0], slopes
