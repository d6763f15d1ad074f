"""Measures that take features away, or put them in, in the order of the attribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..card import Card
from ..features.base import Elements, Features
from ..features.images import Patches, Pixels, Segments
from ..perturb.baseline import Baseline
from ..perturb.imputation import AnyImputer, imputer
from ..settings import setting
from ..task import Task
from .base import Measure
from .removal import VALUES, Curves, Removal, blurred, chosen

ONCE = "what several maps or steps take away alike is asked once"


TIES = "ties are broken by keyed random words, the same for all maps of an input (stream 'ties')"


def _card(
    formula: str,
    source: str,
    better: Literal["lower", "higher"],
    perturbation: str,
    cost: str,
    differences: tuple[tuple[str, str], ...] = (),
    normalisation: str = "none: of the map only the order counts",
) -> Card:
    return Card(
        formula,
        source,
        better,
        normalisation,
        perturbation,
        f"{TIES}; noise from 'removal'",
        f"{cost}; {ONCE}",
        differences,
    )


class Curve(Measure):
    """Interface: a measure read off the curves of one :class:`~consilience.measures.removal.Removal`.

    ``curve(task)`` gives the curves themselves: counts and shares (B, T); score, probability, accuracy (B, R, T).
    """

    value: str
    undefined = "regression has no probability or accuracy; use value='score'"

    def removal(self, task: Task) -> Removal:
        raise NotImplementedError

    def curve(self, task: Task) -> Curves:
        return self.removal(task).curves(task)

    def __call__(self, task: Task) -> Tensor:
        return self.curve(task).area(self.value)


# -- flipping, deletion, insertion -------------------------------------------------------------------------------------


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
    card = _card(
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
    2018, doi 10.1016/j.dsp.2017.10.011). Arguments as for :class:`PixelFlipping`; default features: patches, about 14 to
    the short side, unless the map has few features of its own."""

    steps: int | None = setting(20, low=1)
    baseline: AnyImputer = None
    value: str = setting("score", choices=VALUES)
    features: Features | None = None

    name = "selectivity"
    card = _card(
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
        return Removal(chosen(task, self.features), imputer(self.baseline), self.steps)


@dataclass(frozen=True)
class RegionPerturbation(Curve):
    """AOPC = mean over k = 0 … L of f(x) − f(x without the k most relevant regions) (Samek et al. 2017, arXiv 1509.06321).

    Args:
        regions: L; fewer where an input has fewer.
        baseline: None: evaluate's ``baselines``, else "noise": uniform, between the smallest and the largest value of the
            input's channel.
        features: the regions. Default: patches of 9 × 9 pixels for images whose sides are at least 63, else as for
            :class:`Selectivity`.
    """

    regions: int = setting(30, low=1)
    baseline: AnyImputer = None
    value: str = setting("score", choices=VALUES)
    features: Features | None = None

    name = "region_perturbation"
    card = _card(
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
        shape = task.points.x.shape[1:]
        large = len(shape) == 3 and min(shape[1:]) >= 63 and isinstance(task.features, Elements | Pixels)
        features = self.features or (Patches(9) if large else chosen(task, None))
        return Removal(features, imputer(blurred(task, self.baseline, "noise")), range(self.regions + 1))

    def __call__(self, task: Task) -> Tensor:
        curve = self.curve(task)
        heights = curve.read(self.value)
        there = torch.arange(heights.shape[-1], device=heights.device) <= curve.count[:, -1:]
        fall = (heights[..., :1] - heights) * there[:, None]
        return fall.sum(-1) / there.sum(-1)[:, None]


@dataclass(frozen=True)
class Deletion(Curve):
    """Area under the target's probability as the most relevant features are taken away (RISE, arXiv 1806.07421).

    Arguments as for :class:`PixelFlipping`, with which it shares its evaluations."""

    steps: int | None = setting(20, low=1)
    baseline: AnyImputer = None
    value: str = setting("probability", choices=VALUES)
    features: Features | None = None

    name = "deletion"
    card = _card(
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

    Arguments as for :class:`PixelFlipping`. ``baseline`` None: evaluate's ``baselines``, else a blur of σ = 5 pixels for
    images, zero for anything else."""

    steps: int | None = setting(20, low=1)
    baseline: AnyImputer = None
    value: str = setting("probability", choices=VALUES)
    features: Features | None = None

    name = "insertion"
    card = _card(
        "∫₀¹ p(baseline with the share s of x that is most relevant) ds, trapezoidal over s = 0, 1/20, …, 1",
        "Petsiuk, Das & Saenko 2018 (RISE), arXiv 1806.07421",
        "higher",
        "the map's features put into x blurred by σ = 5 pixels (zero where inputs are no images)",
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

    Arguments as for :class:`Insertion`, with which it shares its evaluations; the answer is a multiple of 1 / steps.
    """

    tolerance: float = setting(0.1, low=0)
    steps: int | None = setting(20, low=1)
    baseline: AnyImputer = None
    value: str = setting("score", choices=VALUES)
    features: Features | None = None

    name = "effective_complexity"
    card = _card(
        "min s with |f(x_s) − f(x)| ≤ tolerance · |f(x_0) − f(x)|, x_s the baseline with the share s of x that is "
        "most relevant",
        "after Nguyen & Martínez 2020, arXiv 2007.07584, who ask for E (f(x_s) − f(x))² below a given number",
        "lower",
        "the map's features put into x blurred by σ = 5 pixels (zero where inputs are no images)",
        "steps + 1 = 21 forward for each map, none after insertion",
        (
            (
                "quantus",
                "EffectiveComplexity counts the attributions above eps times the largest one of the batch, and asks "
                "the model nothing",
            ),
        ),
    )
    undefined = "the score does not change when everything is taken away"

    def removal(self, task: Task) -> Removal:
        return _inserted(task, self)

    def __call__(self, task: Task) -> Tensor:
        curve = self.curve(task)
        heights = curve.read(self.value)
        off = (heights - heights[..., -1:]).abs()
        enough = off <= self.tolerance * off[..., :1]
        found = curve.share[:, None].expand_as(off).gather(-1, enough.double().argmax(-1, keepdim=True))[..., 0]
        return torch.where(off[..., 0] > 0, found, torch.nan)


def _inserted(task: Task, measure: Insertion | EffectiveComplexity) -> Removal:
    soft = Baseline("blur", sigma=5.0) if task.points.x.ndim == 4 else Baseline()
    start = imputer(blurred(task, measure.baseline, soft))
    return Removal(measure.features or task.features, start, measure.steps, insert=True)


# -- one by one --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IROF(Curve):
    """Area over the curve of p(x without the l most relevant segments) / p(x), l from 0 to all (arXiv 2003.08747).

    A segment's relevance is its mean attribution. The area is that of the unit interval, so inputs with different numbers of
    segments can be compared: 1 − ∫₀¹.

    Args:
        segments: about how many SLIC superpixels an image gets (from scikit-image); ignored with ``features``.
        baseline: None: evaluate's ``baselines``, else "mean", of each channel.
        steps: None takes the segments away one by one.
        features: other segments. Default: SLIC for images whose maps are of elements or pixels, else the map's own features.
    """

    segments: int = setting(50, low=1)
    steps: int | None = setting(None, low=1)
    baseline: AnyImputer = None
    value: str = setting("probability", choices=VALUES)
    features: Features | None = None

    name = "irof"
    card = _card(
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
        features: as for :class:`Selectivity`.
    """

    strict: bool = True
    steps: int | None = setting(20, low=1)
    baseline: AnyImputer = None
    value: str = setting("probability", choices=VALUES)
    features: Features | None = None

    name = "monotonicity"
    card = _card(
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
        kept = (kept == 1).double() if self.strict else kept
        return torch.where((rise != 0).any(-1) & rise.isfinite().all(-1), kept, torch.nan)
