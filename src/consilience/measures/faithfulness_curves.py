"""Faithfulness along a removal curve: features taken away, or put in, in the order of the attribution.

ROAD is in :mod:`.road`; IROF and monotonicity, which look at every step, are in :mod:`.whole_curves`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..features.base import Elements, Features
from ..features.images import Patches, Pixels
from ..perturb.baseline import Baseline
from ..perturb.imputation import AnyImputer, imputer
from ..settings import setting
from ..task import Task
from .curve import Curve, curve_card
from .removal import VALUES, Removal
from .removed_features import removed_features, replacement


@dataclass(frozen=True)
class PixelFlipping(Curve):
    """Area under f(x without the most relevant share s), s from 0 to 1 (Bach et al. 2015; Samek et al., arXiv 1509.06321).

    Args:
        steps: T, the curve is evaluated at 0, 1/T, …, 1 of the features; None: after every single one.
        baseline: by what features are replaced: "zero", "mean", "blur", "noise", "linear", a number, an array, an Imputer.
            None: evaluate's ``baselines``, else "zero".
        value: "score", "probability", "accuracy" or "change".
        features: what is taken away as a whole. Default: the map's own features.
    """

    steps: int | None = setting(20, low=1)
    baseline: AnyImputer = None
    value: str = setting("score", choices=VALUES)
    features: Features | None = None

    name = "pixel_flipping"
    card = curve_card(
        "∫₀¹ f(x without the share s that is most relevant) ds, trapezoidal over s = 0, 1/20, …, 1",
        "Bach et al. 2015, doi 10.1371/journal.pone.0130140; Samek et al. 2017, arXiv 1509.06321",
        "lower",
        "the map's features replaced by zero in units of the model's input (baseline)",
        "steps + 1 = 21 forward for each map",
        (
            (
                "quantus",
                "PixelFlipping takes single elements away, of pixel maps too: give it maps of elements, and "
                "features=Elements() here, for the same curve (softmax=True is value='probability'). Its area leaves out "
                "x itself and is as wide as the number of steps, np.trapezoid(curve(task).probability[..., 1:])",
            ),
        ),
    )

    def removal(self, task: Task) -> Removal:
        return Removal(self.features or task.features, imputer(self.baseline), self.steps)


@dataclass(frozen=True)
class Selectivity(Curve):
    """Pixel flipping by regions: area under f(x without the most relevant share of the patches) (Montavon, Samek & Müller
    2018, doi 10.1016/j.dsp.2017.10.011).

    Args:
        steps, baseline, value: as for :class:`PixelFlipping`.
        features: the regions. Default: patches, about 14 to the short side, unless the map has few features of its own.
    """

    steps: int | None = setting(20, low=1)
    baseline: AnyImputer = None
    value: str = setting("score", choices=VALUES)
    features: Features | None = None

    name = "selectivity"
    card = curve_card(
        "∫₀¹ f(x without the share s of patches that is most relevant) ds, trapezoidal over s = 0, 1/20, …, 1",
        "Montavon, Samek & Müller 2018, doi 10.1016/j.dsp.2017.10.011",
        "lower",
        "patches, about 14 to the short side, replaced by zero in units of the model's input (features, baseline)",
        "steps + 1 = 21 forward for each map",
        (
            (
                "quantus",
                "Selectivity gives the curve without x itself: curve(task) with steps=None, features=Patches(patch_size)",
            ),
        ),
    )

    def removal(self, task: Task) -> Removal:
        return Removal(removed_features(task, self.features), imputer(self.baseline), self.steps)


@dataclass(frozen=True)
class RegionPerturbation(Curve):
    """AOPC = mean over k = 0 … L of f(x) − f(x without the k most relevant regions) (Samek et al. 2017, arXiv 1509.06321).

    Args:
        regions: L; fewer where an input has fewer.
        baseline: None: evaluate's ``baselines``, else "noise": uniform, between the smallest and the largest value of the
            input's channel.
        value: as for :class:`PixelFlipping`.
        features: the regions. Default: patches of 9 × 9 pixels for images whose sides are at least 63, else as for
            :class:`Selectivity`.
    """

    regions: int = setting(30, low=1)
    baseline: AnyImputer = None
    value: str = setting("score", choices=VALUES)
    features: Features | None = None

    name = "region_perturbation"
    card = curve_card(
        "1/(L+1) Σ_{k=0…L} f(x) − f(x without the k most relevant regions): AOPC",
        "Samek, Binder, Montavon, Lapuschkin & Müller 2017, arXiv 1509.06321 (L = 100)",
        "higher",
        "9 × 9 pixels replaced by uniform noise between the channel's smallest and largest value (features, baseline)",
        "L + 1 = 31 forward for each map",
        (
            (
                "quantus",
                "RegionPerturbation gives the falls along the curve, not their mean; the same falls with regions=100, "
                "features=Patches(patch_size) and one baseline value in both",
            ),
        ),
        "none: of the map only the order of its sums over regions counts",
    )

    def removal(self, task: Task) -> Removal:
        features = self.features
        if features is None:
            shape = task.points.x.shape[1:]
            is_large = len(shape) == 3 and min(shape[1:]) >= 63  # at least 7 of the paper's regions along each side
            is_fine = isinstance(task.features, Elements | Pixels)
            if is_large and is_fine:
                features = Patches(9)
            else:
                features = removed_features(task, None)
        return Removal(features, imputer(replacement(task, self.baseline, "noise")), range(self.regions + 1))

    def __call__(self, task: Task) -> Tensor:
        curve = self.curve(task)
        heights = curve.read(self.value)
        # An input with fewer than L regions has fewer steps: what follows repeats the last one.
        is_step = torch.arange(heights.shape[-1], device=heights.device) <= curve.count[:, -1:]
        fall = (heights[..., :1] - heights) * is_step[:, None]
        return fall.sum(-1) / is_step.sum(-1)[:, None]


@dataclass(frozen=True)
class Deletion(Curve):
    """Area under the target's probability as the most relevant features are taken away (RISE, arXiv 1806.07421).

    It shares its evaluations with :class:`PixelFlipping`.

    Args:
        steps, baseline, value, features: as for :class:`PixelFlipping`.
    """

    steps: int | None = setting(20, low=1)
    baseline: AnyImputer = None
    value: str = setting("probability", choices=VALUES)
    features: Features | None = None

    name = "deletion"
    card = curve_card(
        "∫₀¹ p(x without the share s that is most relevant) ds, trapezoidal over s = 0, 1/20, …, 1",
        "Petsiuk, Das & Saenko 2018 (RISE), arXiv 1806.07421",
        "lower",
        "the map's features replaced by zero in units of the model's input (baseline)",
        "steps + 1 = 21 forward for each map, none after pixel_flipping",
        (("the RISE code", "takes 224 pixels a step: steps=224 for images of 224 × 224"),),
    )

    def removal(self, task: Task) -> Removal:
        return Removal(self.features or task.features, imputer(self.baseline), self.steps)


@dataclass(frozen=True)
class Insertion(Curve):
    """Area under the target's probability as the most relevant features are put into a baseline (RISE, arXiv 1806.07421).

    Args:
        steps, value, features: as for :class:`PixelFlipping`.
        baseline: into what they are put. None: evaluate's ``baselines``, else a blur of σ = 5 pixels for images, zero for
            anything else.
    """

    steps: int | None = setting(20, low=1)
    baseline: AnyImputer = None
    value: str = setting("probability", choices=VALUES)
    features: Features | None = None

    name = "insertion"
    card = curve_card(
        "∫₀¹ p(baseline with the share s of x that is most relevant) ds, trapezoidal over s = 0, 1/20, …, 1",
        "Petsiuk, Das & Saenko 2018 (RISE), arXiv 1806.07421",
        "higher",
        "the map's features put into x blurred by σ = 5 pixels (zero for inputs that are not images)",
        "steps + 1 = 21 forward for each map",
        (
            (
                "the RISE code",
                "takes 224 pixels a step, steps=224 for images of 224 × 224, and cuts its kernel of σ = 5 at "
                "11 × 11: give that blur as baseline",
            ),
        ),
    )

    def removal(self, task: Task) -> Removal:
        return _inserted(task, self)


@dataclass(frozen=True)
class EffectiveComplexity(Curve):
    """The smallest share of the features, most relevant first, that is enough: |f(x_s) − f(x)| ≤ tolerance · |f(x) − f(x_0)|
    where x_s has the share s and x_0 nothing but the baseline (after Nguyen & Martínez 2020, arXiv 2007.07584).

    It shares its evaluations with :class:`Insertion`; the answer is a multiple of 1 / steps.

    Args:
        tolerance: a share of the whole change of the score.
        steps, baseline, value, features: as for :class:`Insertion`.
    """

    tolerance: float = setting(0.1, low=0)
    steps: int | None = setting(20, low=1)
    baseline: AnyImputer = None
    value: str = setting("score", choices=VALUES)
    features: Features | None = None

    name = "effective_complexity"
    card = curve_card(
        "min s with |f(x_s) − f(x)| ≤ tolerance · |f(x_0) − f(x)|, x_s the baseline with the share s of x that is "
        "most relevant",
        "after Nguyen & Martínez 2020, arXiv 2007.07584, who ask for E (f(x_s) − f(x))² below a given number",
        "lower",
        "the map's features put into x blurred by σ = 5 pixels (zero for inputs that are not images)",
        "steps + 1 = 21 forward for each map, none after insertion",
        (
            (
                "quantus",
                "EffectiveComplexity counts the attributions above eps times the largest one of the batch, and asks "
                "the model nothing",
            ),
        ),
    )
    undefined = "the score does not change when everything is taken away, or the map is zero on all that is taken away"

    def removal(self, task: Task) -> Removal:
        return _inserted(task, self)

    def __call__(self, task: Task) -> Tensor:
        curve = self.curve(task)
        heights = curve.read(self.value)
        missing = (heights - heights[..., -1:]).abs()  # of the whole input's score
        enough = missing <= self.tolerance * missing[..., :1]
        # argmax gives the first of equal values: the least share that is enough.
        first = enough.double().argmax(-1, keepdim=True)
        share = curve.share[:, None].expand_as(missing).gather(-1, first)[..., 0]
        return torch.where(missing[..., 0] > 0, share, torch.nan)


def _inserted(task: Task, measure: Insertion | EffectiveComplexity) -> Removal:
    """Features put into a baseline; for images RISE's blur, which is weaker than that of other measures."""
    usual = Baseline()
    if task.points.x.ndim == 4:
        usual = Baseline("blur", sigma=5.0)
    start = imputer(replacement(task, measure.baseline, usual))
    return Removal(measure.features or task.features, start, measure.steps, insert=True)
