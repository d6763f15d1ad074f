"""Features taken away and the score asked again: ablation, occlusion. Outputs only: any callable works."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..card import Card
from ..features.base import Features
from ..model.values import Values
from ..perturb.baseline import AnyBaseline
from ..perturb.coalitions import LeaveOneOut
from ..perturb.points import Cloud
from ..perturb.windows import Sliding
from ..settings import setting
from ..statistics.tensors import exact
from .base import Explainer, Need
from .coalitional import Coalitional
from .spread import ABSENT, UNIT, absent, give


@dataclass(frozen=True)
class FeatureAblation(Coalitional):
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
    def design(self):
        return LeaveOneOut()

    def values(self, score, key, features, rows):
        without = score[:, 1:].unflatten(1, (features, self.design.each(features, rows)))
        return score[:, :1] - without.mean(2)


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
    assert cloud.masks is not None
    gone = cloud.split(exact(cloud.masks.flatten(1)))  # (n, s, A): 1 where a feature was taken away
    if state is None:
        clean = score[:, 0]
    else:
        clean = state[0]
    fall = (clean[:, None] - score) / gone.sum(2).clamp(min=1)
    total = (fall[:, None] @ gone)[:, 0]
    count = gone.sum(1)
    if state is None:
        return clean, total, count
    return clean, state[1] + total, state[2] + count
