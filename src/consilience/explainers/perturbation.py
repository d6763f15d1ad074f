"""Features taken away and the score asked again: ablation, occlusion, RISE. Outputs only: any callable works."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..card import Card
from ..features.base import Features
from ..model.values import Values
from ..perturb.baseline import AnyBaseline, Baseline
from ..perturb.coalitions import AUTO, Singles, Sliding, unit
from ..perturb.points import Cloud, Points
from ..perturb.soft_masks import Grids
from ..settings import setting
from ..statistics.tensors import exact
from .base import Explainer, Need

UNIT = "features (default: about 14 × 14 square patches of an image, elements otherwise)"

ABSENT = "replaced by the baseline: for images blurred with σ = 10 pixels, else zero, unless given"


@dataclass(frozen=True)
class FeatureAblation(Explainer):
    """φ_a = f(x) − f(x without feature a), shared evenly by the feature's elements.

    Every feature alone is replaced by the baseline's values (leave one out; Zeiler & Fergus 2014, arXiv 1311.2901, occlude
    one square of an image after another). Exact, no randomness.

    Against a data set φ_a is the mean over its rows: over all, where that takes at most 4096 evaluations of an input, else
    over as many as that allows, at least 4.

    Args:
        features: what is taken away as one; default :func:`~consilience.features.images.coarse`.
        baselines: by what: None ("blur" for images, else zero), "zero", "mean", "blur", a number, a tensor F, a data set
            (n, *F), or ``Baseline.per_input(rows)`` with rows (B, *F).
    """

    features: Features | None = None
    baselines: AnyBaseline = None

    name = "feature_ablation"
    kind = "contribution"
    card = Card(
        formula="φ_a = f(x) − f(x without a), divided among the elements of a",
        source="leave one out; Zeiler & Fergus 2014, arXiv 1311.2901, §4.2",
        perturbation=f"one at a time of the {UNIT}, {ABSENT}",
        cost="1 + A forward, A features; with a data set A times its rows, about 4096 at most",
        differences=(
            (
                "Captum's FeatureAblation",
                "gives every element of a feature the feature's whole value, does not divide it, and its baseline is zero: "
                "baselines='zero', and multiply by the feature's size. Values depend on the baseline strongly.",
            ),
        ),
    )

    @property
    def need(self):
        return Need(Singles(self.features, absent(self.baselines)), None, self.name, gradient=False)

    def fold(self, state, cloud, values):
        return falls(state, cloud, values)

    def finish(self, state, points):
        return give(state[1] / state[2].clamp(min=1), self.features, points)


@dataclass(frozen=True)
class Occlusion(Explainer):
    """φ_a = mean over the windows that cover a of (f(x) − f(x without the window)) / (features in the window), shared evenly
    by the feature's elements (Zeiler & Fergus 2014, arXiv 1311.2901).

    Args:
        window: in features along each axis, one number or one for each axis. With ``features=Pixels()`` it is in pixels; the
            default is windows of 2 × 2 patches.
        stride: from one window to the next, in the same form; the default is one patch.
        features: the grid over which windows slide; default :func:`~consilience.features.images.coarse`.
        baselines: as for :class:`FeatureAblation`.

    Raises:
        InputError: the features have no order (segments, the columns of a table), and windows are of more than one.
    """

    window: int | tuple[int, ...] = setting(2, low=1, empty=False)
    stride: int | tuple[int, ...] = setting(1, low=1, empty=False)
    features: Features | None = None
    baselines: AnyBaseline = None

    name = "occlusion"
    kind = "contribution"
    card = Card(
        formula="φ_a = mean over windows w that cover a of (f(x) − f(x without w)) / |w|, divided among the elements of a",
        source="Zeiler & Fergus 2014, arXiv 1311.2901, §4.2; mean over overlapping windows as in Captum",
        perturbation=f"sliding windows over the {UNIT}, {ABSENT}",
        cost="1 + number of windows, forward",
        differences=(
            (
                "Captum's Occlusion",
                "does not divide by the window's elements, its baseline is zero, and a last window that does not fit is cut, "
                "where here it ends with the axis. sliding_window_shapes=(C, h, w), strides=(C, s, t) is window=(h, w), "
                "stride=(s, t), features=Pixels(), baselines='zero', times C h w.",
            ),
        ),
    )

    @property
    def need(self):
        where = Sliding(self.features, absent(self.baselines), self.window, self.stride)
        return Need(where, None, self.name, gradient=False)

    def fold(self, state, cloud, values):
        return falls(state, cloud, values)

    def finish(self, state, points):
        return give(state[1] / state[2].clamp(min=1), self.features, points)


@dataclass(frozen=True)
class RISE(Explainer):
    """φ = E[f(x ⊙ M + b ⊙ (1 − M)) M] / E[M] over random soft masks M (Petsiuk et al. 2018, arXiv 1806.07421).

    M: a ``grid`` of cells that are 1 with probability ``keep``, upsampled bilinearly and shifted at random; E[M] = ``keep``
    everywhere. The map is the mean score when an element is kept: it has a level, and only differences say anything. For
    images and series (N, C, …).

    Args:
        n_samples: masks. The paper uses 4000 for VGG16 and 8000 for ResNet50.
        grid: cells along each axis behind the channel.
        keep: the paper's p.
        baselines: as for :class:`FeatureAblation`; each mask has a row of a data set. The paper's is 0.
        features: where inputs are no images, the axes along which masks lie: steps that are not the last axis
            (``Windows(1, axis=0)``), tokens. Without them a series is (N, channels, steps), and each element of a table is a
            cell. Images and volumes are masked by the pixel.

    Raises:
        InputError: no cell, or a probability out of range.
    """

    n_samples: int = setting(4000, low=1)
    grid: int = setting(7, low=1)
    keep: float = setting(0.5, above=0, high=1)
    baselines: AnyBaseline = None
    features: Features | None = None

    name = "rise"
    kind = "relevance"
    card = Card(
        formula="φ = (1 / (N p)) Σ_m f(x ⊙ M_m + b ⊙ (1 − M_m)) M_m",
        source="Petsiuk, Das & Saenko 2018, arXiv 1806.07421, §3",
        normalisation="by E[M] = p, the probability to keep a cell",
        perturbation="7 × 7 random cells, upsampled bilinearly, shifted at random, along the axes that the input has (tables: "
        "each column by itself); what is dimmed tends to the baseline: for images blurred with σ = 10 pixels, else zero, "
        "unless given",
        draws="n_samples masks, stream 'rise'",
        cost="n_samples forward",
        differences=(
            (
                "the authors' code",
                "multiplies the image by the mask, so what is absent is 0 after preprocessing (baselines=0), uses the "
                "probability (kind='probability'), and extrapolates the border cells by reflection; p = .1 in its demo.",
            ),
        ),
    )

    @property
    def need(self):
        return Need(self._where, self.n_samples, self.name, gradient=False)

    @property
    def _where(self) -> Grids:
        return Grids(absent(self.baselines), self.grid, self.keep, self.features)

    def fold(self, state, cloud, values):
        score = exact(cloud.split(values.score)) * exact(cloud.weights)
        assert cloud.masks is not None
        kept = 1 - cloud.split(exact(cloud.masks)).flatten(2)
        total = (score[:, None] @ kept)[:, 0]
        if state is None:
            return total
        return state + total

    def finish(self, state, points):
        shape = points.x.shape[1:]
        features = self._where.masked(shape)
        if features is not None:
            return give(state / self.keep, features, points)
        channels, *space = shape
        mean = (state / (self.keep * channels)).unflatten(1, space)[:, None]
        return like(mean, points).expand(-1, channels, *space)


# -- shared by the family ----------------------------------------------------------------------------------------------


def absent(spec: Any) -> Baseline:
    """What stands for "absent" by a setting ``spec``; None: blur for images, zero otherwise."""
    if spec is None:
        return AUTO
    return Baseline.of(spec)


def removed(cloud: Cloud) -> Tensor:
    """(n, s, A) float64: 1 where a feature was taken away in the samples of a ``cloud``."""
    assert cloud.masks is not None
    return cloud.split(exact(cloud.masks.flatten(1)))


State = tuple[Tensor, Tensor, Tensor]


def falls(state: State | None, cloud: Cloud, values: Values) -> State:
    """By how much the score falls without each feature, added up over samples.

    Args:
        state: what was folded so far; None at first.
        cloud: samples of n points; the very first is the point itself.
        values: the scores of the samples.

    Returns:
        the score of the point (n,); for each feature the sum over samples without it of the score's fall, divided among the
        features that were taken away together (n, A); how many samples these are (n, A).
    """
    score = exact(cloud.split(values.score))
    gone = removed(cloud)
    clean = score[:, 0] if state is None else state[0]
    fall = (clean[:, None] - score) / gone.sum(2).clamp(min=1)
    total = (fall[:, None] @ gone)[:, 0]
    count = gone.sum(1)
    if state is None:
        return clean, total, count
    return clean, state[1] + total, state[2] + count


def give(values: Tensor, features: Features | None, points: Points) -> Tensor:
    """Each feature's value shared evenly by its elements, (n, *F) in the input's dtype, float32 at least.

    Args:
        values: (n, A).
        features: None: :func:`~consilience.features.images.coarse`.
        points: x (n, *F).
    """
    shape: Sequence[int] = points.x.shape[1:]
    what = unit(features, shape)
    size = exact(what.sizes(points.owner, shape))
    each = torch.where(size > 0, values.unflatten(1, what.shape(shape)) / size.clamp(min=1), 0)
    return what.expand(like(each, points), points.owner, shape)


def like(values: Tensor, points: Points) -> Tensor:
    """``values`` on the device of the ``points``, in their dtype, float32 at least."""
    return values.to(points.x.device, torch.promote_types(points.x.dtype, torch.float32))
