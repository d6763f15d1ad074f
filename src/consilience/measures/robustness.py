"""Robustness: how much a map changes at the neighbours of its input, as a mean, a maximum, a ratio or a rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..card import Card
from ..settings import setting
from ..task import Task
from .neighbour_pass import COST, DRAWS, MOVED, ONE_SIDED, SCALES, Nearby
from .neighbour_statistics import Change, Distance, OutputChange, Overlap, RelativeChange, SameClass, Statistic, Tau
from .task_maps import flattened, nan_unless
from .top_k import NumberOrShare


@dataclass(frozen=True)
class MaxSensitivity(Nearby):
    """max over draws of ‖φ(x') − φ(x)‖₂ / ‖φ(x)‖₂ (Yeh et al. 2019, arXiv 1901.09392, without the division).

    Args:
        radius, where, samples, redraw: the neighbours, see :class:`~consilience.measures.neighbour_pass.Nearby`.
        relative: divided by ‖φ(x)‖₂; else not.
    """

    relative: bool = True

    name = "max_sensitivity"
    undefined = "the map is zero everywhere"
    card = Card(
        formula="max_s ‖φ(x_s) − φ(x)‖₂ / ‖φ(x)‖₂; relative=False: not divided",
        source="Yeh et al. 2019, arXiv 1901.09392 (absolute); AGG 2024, arXiv 2406.05090 (relative)",
        better="lower",
        normalisation="by ‖φ(x)‖₂, or none",
        perturbation=MOVED,
        draws=DRAWS,
        cost=COST,
        differences=(
            ("the paper", "absolute: relative=False. The supremum over the ball; draws give a lower bound of it"),
            (
                "captum",
                "sensitivity_max is relative too, though the paper it cites is not; radius=0.02",
            ),
            ("quantus", "MaxSensitivity: radius=0.2, samples=200; " + SCALES),
        ),
    )

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        return (Change(),)

    def __call__(self, task: Task) -> Tensor:
        (change,) = self._gathered(task)
        return self._scaled(change.amax(1), task)

    def _scaled(self, change: Tensor, task: Task) -> Tensor:
        """(B, R): the change, divided by the norm of the map if it is relative."""
        if not self.relative:
            return change
        size = flattened(task.maps).norm(dim=-1)
        return nan_unless(size > 0, change / size)


@dataclass(frozen=True)
class AvgSensitivity(MaxSensitivity):
    """mean over draws of ‖φ(x') − φ(x)‖₂ / ‖φ(x)‖₂: unsquared, the S_AVG of AGG's tables.

    The squared one, which mixtures minimise, is the metric :class:`~consilience.AverageSensitivity`.

    Args:
        radius, where, samples, redraw: the neighbours, see :class:`~consilience.measures.neighbour_pass.Nearby`.
        relative: divided by ‖φ(x)‖₂; else not.
    """

    name = "avg_sensitivity"
    card = Card(
        formula="mean_s ‖φ(x_s) − φ(x)‖₂ / ‖φ(x)‖₂; relative=False: not divided",
        source="Bhatt, Weller & Moura 2020, arXiv 2005.00631 (absolute); AGG 2024, arXiv 2406.05090 (relative)",
        better="lower",
        normalisation="by ‖φ(x)‖₂, or none",
        perturbation=MOVED,
        draws=DRAWS,
        cost=COST,
        differences=(("quantus", "AvgSensitivity: radius=0.2, samples=200; " + SCALES),),
    )

    def __call__(self, task: Task) -> Tensor:
        (change,) = self._gathered(task)
        return self._scaled(change.mean(1), task)


@dataclass(frozen=True)
class LocalLipschitz(Nearby):
    """max over draws of ‖φ(x') − φ(x)‖₂ / ‖x' − x‖₂ (Alvarez-Melis & Jaakkola 2018, arXiv 1806.08049).

    Args:
        radius, where, samples, redraw: the neighbours, see :class:`~consilience.measures.neighbour_pass.Nearby`.
    """

    name = "local_lipschitz"
    undefined = "every neighbour equals the input"
    card = Card(
        formula="max_s ‖φ(x_s) − φ(x)‖₂ / ‖x_s − x‖₂",
        source="Alvarez-Melis & Jaakkola 2018, arXiv 1806.08049",
        better="lower",
        normalisation="by the input's change: units of the map per unit of the model's input",
        perturbation=MOVED,
        draws=DRAWS,
        cost=COST,
        differences=(
            ("the paper", "the supremum over the ball, by Bayesian optimisation; draws give a lower bound of it"),
            (
                "quantus",
                "LocalLipschitzEstimate with normalise=False: where=Gaussian(0.1), samples=200; by default " + SCALES,
            ),
        ),
    )

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        return Change(), Distance()

    def __call__(self, task: Task) -> Tensor:
        change, distance = self._gathered(task)
        has_moved = distance[..., None] > 0
        return _largest(change / distance[..., None], has_moved)


@dataclass(frozen=True)
class RelativeStability(Nearby):
    """max over draws of ‖(φ(x') − φ(x))/φ(x)‖₂ / max(change, ε): what the three relative stabilities of Agarwal et al. 2022
    (arXiv 2203.06877) have in common; they differ in the change.

    Args:
        radius, where, samples, redraw: the neighbours, see :class:`~consilience.measures.neighbour_pass.Nearby`.
        same_class: only neighbours with the prediction of x count, as in the paper; off: all.
        elementwise: changes relative to each element, the paper's; off: ‖v' − v‖₂/‖v‖₂, for maps that are zero at places.
        eps: ε, and what stands in place of an element that is zero, about which the paper is silent.
    """

    same_class: bool = True
    elementwise: bool = True
    eps: float = setting(1e-6, above=0)

    undefined = "no neighbour keeps the predicted class, or (elementwise=False) the map is zero everywhere"

    @property
    def _change(self) -> Statistic:
        """What stands below the fraction, (B, S)."""
        raise NotImplementedError

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        maps = RelativeChange("maps", self.elementwise, self.eps)
        if self.same_class:
            return maps, self._change, SameClass()
        return maps, self._change

    def __call__(self, task: Task) -> Tensor:
        map_change, change, *same_class = self._gathered(task)
        ratio = map_change / change.clamp(min=self.eps)[..., None]
        counts = torch.ones_like(ratio, dtype=torch.bool)
        if same_class:
            counts = (same_class[0] > 0)[..., None]
        return _largest(ratio, counts)


def _stability(symbol: str, differences: tuple[tuple[str, str], ...]) -> Card:
    """The card of a relative stability.

    Args:
        symbol: the change below the fraction.
        differences: as in :class:`~consilience.card.Card`.
    """
    return Card(
        formula=f"max_s ‖(φ(x_s) − φ(x))/φ(x)‖₂ / max({symbol}, ε), over neighbours with the predicted class of x",
        source="Agarwal et al. 2022, arXiv 2203.06877",
        better="lower",
        normalisation="element by element, ε in place of a zero; elementwise=False: by norms",
        perturbation=MOVED,
        draws=DRAWS,
        cost=COST + ", and `samples` outputs",
        differences=differences,
    )


@dataclass(frozen=True)
class RIS(RelativeStability):
    """Relative input stability: the change is ‖(x' − x)/x‖₂.

    Args:
        radius, where, samples, redraw: the neighbours, see :class:`~consilience.measures.neighbour_pass.Nearby`.
        same_class, elementwise, eps: see :class:`RelativeStability`.
    """

    name = "ris"
    card = _stability(
        "‖(x_s − x)/x‖₂",
        (
            ("openxai", "changes relative to norms, ‖v' − v‖/‖v‖: elementwise=False"),
            ("quantus", ONE_SIDED),
        ),
    )

    @property
    def _change(self) -> Statistic:
        return RelativeChange("inputs", self.elementwise, self.eps)


@dataclass(frozen=True)
class RRS(RelativeStability):
    """Relative representation stability: the change is ‖(L(x') − L(x))/L(x)‖₂, L the layer before the classifier.

    Args:
        radius, where, samples, redraw: the neighbours, see :class:`~consilience.measures.neighbour_pass.Nearby`.
        same_class, elementwise, eps: see :class:`RelativeStability`.
        layer: L is the output of this submodule; "auto": what the last submodule with weights gets.
    """

    layer: str = "auto"

    name = "rrs"
    card = _stability(
        "‖(L(x_s) − L(x))/L(x)‖₂",
        (
            (
                "openxai",
                "changes relative to norms (elementwise=False), L the first hidden layer: layer=… of its activation",
            ),
            ("quantus", "the outputs of all layers at once, or of those named: layer=…; else " + ONE_SIDED),
        ),
    )

    @property
    def _change(self) -> Statistic:
        return RelativeChange("representation", self.elementwise, self.eps, self.layer)


@dataclass(frozen=True)
class ROS(RelativeStability):
    """Relative output stability: the change is ‖h(x') − h(x)‖₂ over all outputs (logits), as in the paper not relative.

    Args:
        radius, where, samples, redraw: the neighbours, see :class:`~consilience.measures.neighbour_pass.Nearby`.
        same_class, elementwise, eps: see :class:`RelativeStability`.
        relative: relative to h(x), as the name says and OpenXAI computes.
    """

    relative: bool = False

    name = "ros"
    card = _stability(
        "‖h(x_s) − h(x)‖₂",
        (
            ("openxai", "relative to ‖h(x)‖, and changes relative to norms: elementwise=False, relative=True"),
            ("quantus", ONE_SIDED),
        ),
    )

    @property
    def _change(self) -> Statistic:
        if self.relative:
            return RelativeChange("outputs", self.elementwise, self.eps)
        return OutputChange()


@dataclass(frozen=True)
class TopKIntersection(Nearby):
    """mean over draws of |top-k(x) ∩ top-k(x')| / k (Ghorbani et al. 2019, arXiv 1710.10547): 1 if the k most important
    features stay, k/d by chance. Features tied at the k-th place share what is left of it.

    Args:
        radius, where, samples, redraw: the neighbours, see :class:`~consilience.measures.neighbour_pass.Nearby`.
        k: a number of features, or below 1 a share of those that the input has.
        signed: the k largest φ, not |φ|.
    """

    k: NumberOrShare = setting(0.1, above=0)
    signed: bool = False

    name = "top_k_intersection"
    card = Card(
        formula="mean_s |top-k(x) ∩ top-k(x_s)| / k, of |φ| (signed: of φ)",
        source="Ghorbani, Abid & Zou 2019, arXiv 1710.10547; there under attack, here under random noise",
        better="higher",
        normalisation="free of the map's scale",
        perturbation=MOVED,
        draws=DRAWS,
        cost=COST,
    )

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        return (Overlap(self.k, self.signed),)

    def __call__(self, task: Task) -> Tensor:
        (overlap,) = self._gathered(task)
        return overlap.mean(1)


@dataclass(frozen=True)
class KendallTau(Nearby):
    """mean over draws of Kendall's τ-b between the rankings of all features at x and x' (Chen et al. 2019, arXiv 1905.09957);
    a neighbour whose map is constant counts as 0.

    Args:
        radius, where, samples, redraw: the neighbours, see :class:`~consilience.measures.neighbour_pass.Nearby`.
        signed: ranked by φ, not by |φ|.
    """

    signed: bool = False

    name = "kendall_tau"
    undefined = "all features of the map are tied"
    card = Card(
        formula="mean_s τ-b(|φ(x)|, |φ(x_s)|) (signed: of φ)",
        source="Kendall 1945, doi 10.1093/biomet/33.3.239; Chen et al. 2019, arXiv 1905.09957, there under attack",
        better="higher",
        normalisation="free of the map's scale",
        perturbation=MOVED,
        draws=DRAWS,
        cost=COST,
    )

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        return (Tau(self.signed),)

    def __call__(self, task: Task) -> Tensor:
        (tau,) = self._gathered(task)
        return tau.mean(1)


def _largest(ratio: Tensor, counts: Tensor) -> Tensor:
    """(B, S, R) → (B, R): the largest that counts; NaN where none does."""
    largest = torch.where(counts, ratio, -torch.inf).amax(1)
    return nan_unless(largest > -torch.inf, largest)
