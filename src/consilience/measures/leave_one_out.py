"""Faithfulness by leaving one feature out at a time: its attribution against the fall of the score without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..card import Card
from ..features.base import Features
from ..perturb.imputation import AnyImputer, Imputer, imputer
from ..perturb.points import present
from ..settings import setting
from ..statistics.ranks import pearson, spearman
from ..statistics.tensors import exact
from ..task import Measure, Task
from .faithfulness import BLUR, PATCHES
from .removed_features import all_maps_on_features, removed_features, replacement, rounded


@dataclass(frozen=True)
class Singles(Measure):
    """Interface: each feature is taken away by itself, with the same replacements for every map.

    Args:
        draws: S, how many baselines each feature is replaced by, where baselines are drawn.
        baseline: see :class:`Subsets`.
        features: see :class:`Subsets`.
    """

    draws: int = setting(1, low=1)
    baseline: AnyImputer = None
    features: Features | None = None

    usual: ClassVar[Any] = None
    undefined = "the attributions, or the changes of the score, are the same for all features"

    def falls(self, task: Task) -> tuple[Tensor, Tensor, Tensor]:
        """What each map gives each feature, and what the score does without it.

        Args:
            task: what is judged.

        Returns:
            The attributions (B, R, K); by how much the score falls without each feature (B, S, K), zero for features that
            the input lacks; and which features it has (B, 1, K) bool.
        """
        features = removed_features(task, self.features)
        replaced = imputer(replacement(task, self.baseline, self.usual))
        has = present(features, task.points)[:, None]
        asked = ("singles", features, replaced, self.draws)
        falls = task.once(asked, lambda: _falls(task, features, replaced, self.draws))
        return rounded(all_maps_on_features(task, features)), falls, has

    @staticmethod
    def even(task: Task, falls: Tensor) -> Tensor:
        """The falls with differences below 1e-6 of the score removed: they may be rounding, and ranks would see them.

        Args:
            task: what is judged.
            falls: (B, S, K).
        """
        score_size = exact(task.score.clean)[task.points.owner].abs()[:, None, None]
        largest = score_size.maximum(falls.abs().amax((1, 2), keepdim=True))
        return rounded(falls, 1e-6 * largest)


def _falls(task: Task, features: Features, replaced: Imputer, draws: int) -> Tensor:
    """(B, S, K): by how much the score falls without each feature."""
    points = task.points
    score = task.score
    shape = points.x.shape[1:]
    has = present(features, points)
    count = has.shape[1]
    # Pairs of an input and a feature that it has, numbered input · K + feature: what it lacks costs no evaluation.
    pairs = has.flatten().nonzero()[:, 0]
    clean = exact(score.clean)[points.owner]
    falls = torch.zeros(draws, has.numel(), dtype=torch.float64, device=clean.device)
    for sample in range(draws):
        reference = replaced.reference(points, range(sample, sample + 1), task.stream("singles"))
        for part in pairs.split(4 * score.batch.size(False)):
            inputs = part // count
            owner = points.owner[inputs]
            alone = torch.zeros(len(part), count, dtype=torch.bool, device=part.device)
            alone[torch.arange(len(part), device=part.device), part % count] = True
            mask = features.mask(alone.unflatten(1, features.shape(shape)), owner, shape)
            rows = replaced.fill(points.x[inputs], mask, reference[inputs])
            falls[sample, part] = clean[inputs] - exact(score(rows, owner))
    return falls.unflatten(1, has.shape).transpose(0, 1)


@dataclass(frozen=True)
class FaithfulnessEstimate(Singles):
    """Correlation over features of φ_i with f(x) − f(x without i) (Alvarez-Melis & Jaakkola 2018, arXiv 1806.07538).

    Args:
        method: "pearson" or "spearman".
        draws: the mean over so many baselines, where these are drawn.
        baseline, features: see :class:`Subsets`.
    """

    method: str = setting("pearson", choices=("pearson", "spearman"))

    name = "faithfulness_estimate"
    card = Card(
        formula="corr over features i of φ_i and f(x) − f(x without i)",
        source="Alvarez-Melis & Jaakkola 2018, arXiv 1806.07538",
        better="higher",
        normalisation="none: free of the map's scale and of a constant added to it",
        perturbation=f"one at a time of the {PATCHES}, {BLUR}",
        draws="none with a fixed baseline; drawn ones from stream 'singles'",
        cost="K forward for each input, 196 for the patches of 224 × 224 pixels, whatever the number of maps",
        differences=(
            (
                "quantus",
                "FaithfulnessEstimate(features_in_step=1) takes elements away: features=Elements(), "
                "baseline=perturb_baseline",
            ),
        ),
    )

    def __call__(self, task: Task) -> Tensor:
        attributions, falls, has = self.falls(task)
        falls = falls.mean(1, keepdim=True)
        by_rank = spearman(attributions, self.even(task, falls), has)
        if self.method == "spearman":
            return by_rank
        # Falls that differ by rounding alone have a Pearson correlation with the map, that of noise. Their ranks, which are
        # all tied, show that there is nothing to correlate.
        return pearson(attributions, falls, has).where(by_rank.isfinite(), torch.nan)


@dataclass(frozen=True)
class MonotonicityCorrelation(Singles):
    """Spearman's correlation over features of |φ_i| with E (f(x) − f(x with i drawn anew))² (Nguyen & Martínez 2020,
    arXiv 2007.07584).

    Args:
        draws: S, for the expectation.
        baseline: None: evaluate's ``baselines``, else "noise": uniform, between the smallest and the largest value of the
            input's channel; a data set as ``Baseline.samples(data)`` gives the features' own distribution.
        features: see :class:`Subsets`.
    """

    draws: int = setting(4, low=1)

    name = "monotonicity_correlation"
    usual = "noise"
    card = Card(
        formula="Spearman's ρ over features i of |φ_i| and E (f(x) − f(x with i drawn anew))²",
        source="Nguyen & Martínez 2020, arXiv 2007.07584",
        better="higher",
        normalisation="none: of |φ| only the order counts",
        perturbation=f"one at a time of the {PATCHES}, replaced by uniform noise between the channel's smallest and "
        f"largest value",
        draws="4 noise images for each input, stream 'singles'",
        cost="4 K forward for each input, 784 for the patches of 224 × 224 pixels, whatever the number of maps",
        differences=(
            (
                "quantus",
                "MonotonicityCorrelation takes elements away, features=Elements(), and draws from 0 … 1, "
                "baseline=Noise(0.0, 1.0); with baseline=0.0 and draws=nr_samples=1 the same numbers",
            ),
        ),
    )

    def __call__(self, task: Task) -> Tensor:
        attributions, falls, has = self.falls(task)
        effect = self.even(task, falls).square().mean(1, keepdim=True)
        return spearman(attributions.abs(), effect, has)
