"""Measures that look at every step of a curve: IROF, segment by segment, and monotonicity."""

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
from .removal import VALUES, Removal, blurred, chosen


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
    undefined = "p(x) is zero, or regression has no probability; then use value='score'"

    def removal(self, task: Task) -> Removal:
        features = self.features
        if features is None and task.points.x.ndim == 4 and isinstance(task.features, Elements | Pixels):
            features = task.once(("slic", self.segments), lambda: _slic(task, self.segments))
        replaced = imputer(blurred(task, self.baseline, "mean"))
        return Removal(features or task.features, replaced, self.steps, average=True)

    def __call__(self, task: Task) -> Tensor:
        curve = self.curve(task)
        heights = curve.read(self.value)
        width = curve.share.diff(dim=1)[:, None]
        relative = heights / heights[..., :1]
        return 1 - (width * (relative[..., 1:] + relative[..., :-1]) / 2).sum(-1)


def _slic(task: Task, segments: int) -> Segments:
    """The labels stand where their input's owner looks for them, whichever inputs the task holds."""
    points = task.points
    found = Segments.slic(points.x, segments).labels
    labels = found.new_zeros(max(points.inputs, int(points.owner.max()) + 1), *found.shape[1:])
    return Segments(labels.index_copy(0, points.owner, found), batched=True)


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
        "patches, about 14 to the short side, put into x blurred by σ = 10 pixels (zero where inputs are no images)",
        "steps + 1 = 21 forward for each map",
        (
            (
                "quantus",
                "Monotonicity replaces features of the baseline by the baseline: the input never changes and the "
                "answer is always True",
            ),
        ),
    )
    undefined = "the value never changes, or regression has no probability; then use value='score'"

    def removal(self, task: Task) -> Removal:
        start = imputer(blurred(task, self.baseline))
        return Removal(chosen(task, self.features), start, self.steps, first="least", insert=True)

    def __call__(self, task: Task) -> Tensor:
        curve = self.curve(task)
        heights = curve.read(self.value)
        rise = heights.diff(dim=-1)
        taken = (curve.count.diff(dim=1) > 0)[:, None]  # an input with fewer features has fewer steps
        falls = rise < -1e-6 * heights.abs().amax(-1, keepdim=True)  # less is rounding
        kept = (~falls & taken).sum(-1) / taken.sum(-1).double()
        if self.strict:
            kept = (kept == 1).double()
        defined = (rise != 0).any(-1) & rise.isfinite().all(-1)
        return torch.where(defined, kept, torch.nan)
