"""Faithfulness read off every step of a removal curve: IROF, segment by segment, and monotonicity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..features.base import Elements, Features
from ..features.images import Pixels, Segments
from ..perturb.imputation import AnyImputer, imputer
from ..settings import setting
from ..task import Task
from .curve import Curve, curve_card
from .removal import VALUES, Removal
from .removed_features import removed_features, replacement


@dataclass(frozen=True)
class IROF(Curve):
    """Area over the curve of p(x without the l most relevant segments) / p(x), l from 0 to all (arXiv 2003.08747).

    A segment's relevance is its mean attribution. The area is that of the unit interval, so inputs with different numbers of
    segments can be compared: 1 − ∫₀¹.

    Args:
        segments: about how many SLIC superpixels an image gets (from scikit-image); ignored with ``features``.
        steps: None takes the segments away one by one.
        baseline: None: evaluate's ``baselines``, else "mean", of each channel.
        value: as for :class:`~consilience.measures.PixelFlipping`.
        features: other segments. Default: SLIC for images whose maps are of elements or pixels, else the map's own features.
    """

    segments: int = setting(50, low=1)
    steps: int | None = setting(None, low=1)
    baseline: AnyImputer = None
    value: str = setting("probability", choices=VALUES)
    features: Features | None = None

    name = "irof"
    card = curve_card(
        "1 − ∫₀¹ p(x without the share s of segments that is most relevant) / p(x) ds, trapezoidal over s = l/L, l = 0 … L",
        "Rieger & Hansen 2020, arXiv 2003.08747 (300 segments)",
        "higher",
        "about 50 SLIC superpixels, ordered by mean attribution, replaced by the channels' means (segments, baseline)",
        "number of segments + 1 forward for each map",
        (
            (
                "quantus",
                "IROF is for inputs of one channel, and gives L minus the "
                "trapezoidal sum over l = 1 … L of curve(task), which grows with the number L of segments",
            ),
        ),
        "by p(x)",
    )
    undefined = (
        "p(x) is zero, or the map is zero on all segments, or regression has no probability (then use value='score')"
    )

    def removal(self, task: Task) -> Removal:
        features = self.features
        if features is None and task.points.x.ndim == 4 and isinstance(task.features, Elements | Pixels):
            features = task.once(("slic", self.segments), lambda: _slic(task, self.segments))
        replaced = imputer(replacement(task, self.baseline, "mean"))
        return Removal(features or task.features, replaced, self.steps, average=True)

    def __call__(self, task: Task) -> Tensor:
        curve = self.curve(task)
        heights = curve.read(self.value)
        width = curve.share.diff(dim=1)[:, None]
        relative = heights / heights[..., :1]
        # The trapezoidal rule over shares, which run from 0 to 1 whatever the number of segments.
        return 1 - (width * (relative[..., 1:] + relative[..., :-1]) / 2).sum(-1)


def _slic(task: Task, segments: int) -> Segments:
    """SLIC superpixels of the task's inputs, each image's labels at the number of its owner.

    A task may hold some of a batch's inputs only, in any order; features look labels up by the owner.
    """
    points = task.points
    own = Segments.slic(points.x, segments).labels
    count = max(points.inputs, int(points.owner.max()) + 1)
    labels = own.new_zeros(count, *own.shape[1:])
    return Segments(labels.index_copy(0, points.owner, own), batched=True)


@dataclass(frozen=True)
class Monotonicity(Curve):
    """Whether the target's probability never falls as features are put in, least relevant first (Arya et al. 2019,
    arXiv 1909.03012): 1 or 0; the share of the steps at which it does not fall, if not ``strict``.

    Args:
        strict: all or nothing, as in the paper; with many features it is nearly always 0.
        steps: T, for 1/T of the features at a time; None: one by one, as in the paper.
        baseline: where it starts. None: evaluate's ``baselines``, else "blur" for images, "zero" for anything else.
        value: as for :class:`~consilience.measures.PixelFlipping`.
        features: as for :class:`~consilience.measures.Selectivity`.
    """

    strict: bool = True
    steps: int | None = setting(20, low=1)
    baseline: AnyImputer = None
    value: str = setting("probability", choices=VALUES)
    features: Features | None = None

    name = "monotonicity"
    card = curve_card(
        "1[p(baseline with the share s of x that is least relevant) never falls in s = 0, 1/20, …, 1], or the share "
        "of the steps at which it does not; falls below 1e-6 of the largest value do not count",
        "Arya et al. 2019, arXiv 1909.03012 (one feature at a time: steps=None)",
        "higher",
        "patches, about 14 to the short side, put into x blurred by σ = 10 pixels (zero for inputs that are not images)",
        "steps + 1 = 21 forward for each map",
        (
            (
                "quantus",
                "Monotonicity replaces features of the baseline by the baseline: the input never changes and the "
                "answer is always True",
            ),
        ),
    )
    undefined = (
        "the value never changes, or the map is zero on all features that are put in, or regression has no probability (then "
        "use value='score')"
    )

    def removal(self, task: Task) -> Removal:
        start = imputer(replacement(task, self.baseline))
        return Removal(removed_features(task, self.features), start, self.steps, first="least", insert=True)

    def __call__(self, task: Task) -> Tensor:
        curve = self.curve(task)
        heights = curve.read(self.value)
        rise = heights.diff(dim=-1)
        # An input with fewer features has fewer steps; what follows repeats the last one.
        is_step = (curve.count.diff(dim=1) > 0)[:, None]
        # A smaller fall is rounding.
        falls = rise < -1e-6 * heights.abs().amax(-1, keepdim=True)
        share = (~falls & is_step).sum(-1) / is_step.sum(-1).double()
        if self.strict:
            share = (share == 1).double()
        defined = (rise != 0).any(-1) & rise.isfinite().all(-1)
        return torch.where(defined, share, torch.nan)
