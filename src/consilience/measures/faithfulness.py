"""Faithfulness on random subsets of features: the attribution of a subset against the fall of the score without it.

The subsets do not depend on the maps, so all maps and all measures of one subset size share their evaluations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..card import Card
from ..features.base import Features
from ..perturb.imputation import AnyImputer, Imputer, imputer
from ..perturb.masks import Masked
from ..settings import setting
from ..statistics.criteria import faithfulness_correlation, infidelity, infidelity_of_either_sign
from ..statistics.evidence import Evidence, Responses
from ..statistics.ranks import spearman
from ..statistics.tensors import corners, exact
from ..task import Measure, Task
from .removed_features import all_maps_on_features, removed_features, replacement, rounded

# What the cards of this module and of leave_one_out.py share.
PATCHES = (
    "patches, about 14 to the short side, or the map's own features if they are none of pixels and elements (features)"
)

BLUR = "replaced by x blurred by σ = 10 pixels, zero for inputs that are not images (baseline)"


@dataclass(frozen=True)
class Subsets(Measure):
    """Interface: S random subsets of one size, the same for every map, drawn from the stream "masks".

    Args:
        draws: S, of each size.
        baseline: by what features are replaced: "zero", "mean", "blur", "noise" (drawn anew for each subset), "linear", a
            number, an array, an Imputer. None: evaluate's ``baselines``, else "blur" (σ = 10 pixels) for images, "zero" for
            anything else.
        features: what is taken away as a whole. Default: the map's own features, or, where these are elements or pixels of
            images, square patches, about 14 to the short side.
    """

    draws: int = setting(256, low=2)
    baseline: AnyImputer = None
    features: Features | None = None

    usual: ClassVar[Any] = None
    undefined = "the attributions of the subsets, or the falls of the score, do not vary"

    def responses(self, task: Task, share: float, raw: bool = False) -> Responses:
        """The attribution of each subset, a (B, S, R), and by how much the score falls without it, y (B, S).

        The subsets are those of :class:`~consilience.perturb.masks.Masked`, so the metric Infidelity with this one share and
        the same key has the same.

        Args:
            task: what is judged.
            share: int(share · K) of the K features that the input has are in each subset.
            raw: judge the signed, unscaled maps, where the task has them.
        """
        features = removed_features(task, self.features)
        replaced = imputer(replacement(task, self.baseline, self.usual))
        if raw and task.raw is not None:
            task = replace(task, maps=task.raw)
        asked = ("responses", features, replaced, self.draws, share, raw)
        return task.once(asked, lambda: _responses(task, features, replaced, self.draws, share))


def _responses(task: Task, features: Features, replaced: Imputer, draws: int, share: float) -> Responses:
    """The responses of :meth:`Subsets.responses`, some subsets of all inputs at a time."""
    points = task.points
    score = task.score
    key = task.stream("masks")
    attributions = all_maps_on_features(task, features)
    subsets = Masked(features, share)
    shape = points.x.shape[1:]
    axes = features.shape(shape)
    clean = exact(score.clean)[points.owner][:, None]
    sums: list[Tensor] = []
    falls: list[Tensor] = []
    step = max(1, 4 * score.batch.size(False) // len(points))
    for start in range(0, draws, step):
        part = range(start, min(start + step, draws))
        masks = subsets.masks(points, part, key)[0]  # (B, s, K)
        owner = points.owner.repeat_interleave(len(part))
        mask = features.mask(masks.flatten(0, 1).unflatten(1, axes), owner, shape)
        reference = replaced.reference(points, part, key)
        rows = replaced.fill(points.x.repeat_interleave(len(part), 0), mask, reference)
        falls.append(clean - exact(score(rows, owner)).unflatten(0, (-1, len(part))))
        sums.append(exact(masks) @ attributions.mT)
    return Responses(torch.cat(sums, 1), torch.cat(falls, 1))


def _of_each_row(criterion: Any, responses: Responses) -> Tensor:
    """(B, R): a criterion of :mod:`~consilience.statistics.criteria` for every row; NaN where its responses are not finite."""
    a = responses.a
    finite = a.isfinite().all(1) & responses.y.isfinite().all(1)[:, None]
    # Criteria judge mixtures, given by weights over rows: a row by itself is a unit vector.
    value = criterion(Evidence(responses=responses).clean(), corners(a[:, 0])).value
    return torch.where(finite, value, torch.nan)


@dataclass(frozen=True)
class FaithfulnessCorrelation(Subsets):
    """Correlation over subsets S of Σ_{i∈S} φ_i with f(x) − f(x without S) (Bhatt et al. 2020, arXiv 2005.00631).

    Args:
        share: int(share · K) of the K features are in each subset.
        method: "pearson", as in the paper, or "spearman".
        draws, baseline, features: see :class:`Subsets`.
    """

    share: float = setting(0.2, above=0, below=1)
    method: str = setting("pearson", choices=("pearson", "spearman"))

    name = "faithfulness_correlation"
    card = Card(
        formula="corr over subsets S of Σ_{i∈S} φ_i and f(x) − f(x without S)",
        source="Bhatt, Weller & Moura 2020, arXiv 2005.00631",
        better="higher",
        normalisation="none: free of the map's scale and of a constant added to it",
        perturbation=f"20 % of the {PATCHES}, {BLUR}",
        draws="256 subsets without replacement, stream 'masks': those of the metric Infidelity(share=0.2) with the same key",
        cost="256 forward for each input, whatever the number of maps; shared with infidelity",
        differences=(
            (
                "quantus",
                "FaithfulnessCorrelation draws subset_size elements from NumPy's global state: "
                "features=Elements(), share=subset_size / K, baseline=perturb_baseline; the same number on the same "
                "subsets",
            ),
        ),
    )

    def __call__(self, task: Task) -> Tensor:
        responses = self.responses(task, self.share)
        if self.method == "pearson":
            return _of_each_row(faithfulness_correlation, responses)
        # Sums of the same values in another order differ by rounding, and ranks would take that for a difference.
        return spearman(rounded(responses.a.mT), responses.y[:, None])


@dataclass(frozen=True)
class SensitivityN(Subsets):
    """Correlation over subsets S of Σ_{i∈S} φ_i with f(x) − f(x without S), mean over sizes of S (Ancona et al. 2018, arXiv
    1711.06104).

    Sizes at which the attributions do not vary are left out: a map that is the same everywhere has none.

    Args:
        shares: the sizes, each int(share · K) of the K features, at least one.
        draws, baseline, features: see :class:`Subsets`; ``draws`` subsets of each size. Baseline None: "zero" here.
    """

    draws: int = setting(64, low=2)
    shares: tuple[float, ...] = setting((0.02, 0.1, 0.2, 0.4, 0.8), above=0, below=1, empty=False)

    name = "sensitivity_n"
    usual = "zero"
    card = Card(
        formula="mean over n of corr over subsets S of n features of Σ_{i∈S} φ_i and f(x) − f(x without S)",
        source="Ancona, Ceolini, Öztireli & Gross 2018, arXiv 1711.06104 (100 subsets of each size)",
        better="higher",
        normalisation="none: free of the map's scale and of a constant added to it",
        perturbation=f"2, 10, 20, 40 and 80 % of the {PATCHES}, replaced by zero (baseline)",
        draws="64 subsets of each size without replacement, stream 'masks'",
        cost="5 · 64 = 320 forward for each input, whatever the number of maps",
        differences=(
            (
                "quantus",
                "SensitivityN correlates over inputs, one number for each n; its subsets are the most "
                "relevant features, and it compares the fall after all steps so far with the attribution of the last "
                "step alone",
            ),
        ),
    )

    def curve(self, task: Task) -> Tensor:
        """The correlation for each size, (B, R, sizes); NaN for a size at which the attributions do not vary.

        Args:
            task: what is judged.
        """
        sizes = [_of_each_row(faithfulness_correlation, self.responses(task, share)) for share in self.shares]
        return torch.stack(sizes, -1)

    def __call__(self, task: Task) -> Tensor:
        # At a size where every subset has the same sum there is nothing to correlate; the other sizes still count.
        return self.curve(task).nanmean(-1)


@dataclass(frozen=True)
class Infidelity(Subsets):
    """E (β a − y)² / Var y over subsets, a their attribution, y the fall of the score (Yeh et al. 2019, arXiv 1901.09392).

    Args:
        scaling: "free": the β ≥ 0 that makes it smallest, so the map's scale does not matter, its sign does, and a uniform map
            has 1; "yeh": the β of either sign, which does not tell φ from −φ; "raw": E (a − y)², in squared units of the score,
            for contributions.
        share: int(share · K) of the K features are in each subset.
        draws, baseline, features: see :class:`Subsets`.

    ``raw`` takes the task's signed, unscaled maps where there are any, else the maps as shown.
    """

    share: float = setting(0.2, above=0, below=1)
    scaling: str = setting("free", choices=("free", "yeh", "raw"))

    name = "infidelity"
    card = Card(
        formula="min over β ≥ 0 of E (β a − y)² / Var y, a = Σ_{i∈S} φ_i, y = f(x) − f(x without S); raw: E (a − y)²",
        source="Yeh, Hsieh, Suggala, Inouye & Ravikumar 2019, arXiv 1901.09392",
        better="lower",
        normalisation="by Var y, and β ≥ 0 fits the map's scale: 1 for a uniform map on patches of one size, where taking "
        "features away lowers the score; yeh: β of either sign; raw: none",
        perturbation=f"20 % of the {PATCHES}, {BLUR}; 'zero', 'mean', 'noise' likewise",
        draws="256 subsets without replacement, stream 'masks': those of the metric Infidelity(share=0.2) with the same key",
        cost="256 forward for each input, whatever the number of maps; shared with faithfulness_correlation",
        differences=(
            (
                "quantus",
                "Infidelity never puts a block back before it takes the next, so its masks are the first "
                "block, the first two, …, all, the same at every repetition; it multiplies φ by the change of the input",
            ),
            (
                "captum",
                "infidelity takes gradients: with φ = gradient ⊙ x and perturbations mask ⊙ x its number is "
                "scaling='raw', baseline='zero', features=Elements() on the same masks",
            ),
        ),
    )

    def __call__(self, task: Task) -> Tensor:
        if self.scaling == "free":
            return _of_each_row(infidelity, self.responses(task, self.share))
        if self.scaling == "yeh":
            return _of_each_row(infidelity_of_either_sign, self.responses(task, self.share))
        responses = self.responses(task, self.share, raw=True)
        return ((responses.a - responses.y[..., None]) ** 2).mean(1)
