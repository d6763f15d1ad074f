"""Average sensitivity: how much a map changes when the input hardly does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import simplex
from ..card import Card
from ..errors import InputError
from ..perturb.neighbourhoods import Neighbourhood, Uniform, neighbours
from ..settings import setting
from ..statistics.criteria import average_sensitivity, relative_sensitivity
from ..statistics.evidence import Evidence, Quadratic
from ..statistics.tensors import exact
from ..task import Task
from .base import Metric
from .contrast import Contrast
from .grams import gram

SILENT = 1e-10
"""A contrast below this share of ‖φ‖² is rounding, since maps are float32."""


@dataclass(frozen=True)
class AverageSensitivity(Metric):
    """r_j = φ_j(x) − φ_j(x + ε), Q = E‖r‖² (AGG, Definition 4.1 with γ₁ = I and a target carried by each method).

    Args:
        radius: ε ~ U[−radius, radius] per element, in units of the model's input.
        where: any other neighbourhood, in place of the uniform one.
        relative: as an objective, by what the change is divided (True, the default), or the paper's absolute wᵀGw.
        redraw: draw an explainer's own noise anew at each neighbour, as the authors' code does. Off, an explainer with a
            fixed seed is a function; on, its Monte-Carlo noise counts as sensitivity, which changes who wins.
        signal: by what the change is divided: "map", ‖φ‖² = wᵀHw; or "contrast", wᵀCw of
            :class:`~consilience.metrics.contrast.Contrast`, how much the map changes when it should. Where no method has a
            contrast, or it was not measured, it is divided by ‖φ‖².
    """

    radius: float = setting(0.1, low=0)
    where: Neighbourhood | None = None
    relative: bool = True
    redraw: bool = False
    signal: str = setting("map", choices=("map", "contrast"))

    card = Card(
        formula="E‖φ(x) − φ(x + ε)‖², relative: divided by ‖φ(x)‖²",
        source="Decker et al. 2024 (AGG), Definition 4.1, arXiv 2406.05090",
        better="lower",
        normalisation="by ‖φ(x)‖² as an objective and as relative_sensitivity; none as average_sensitivity",
        perturbation="ε ~ U[−0.1, 0.1] per element, in units of the model's input (of a table's columns, where they have one)",
        draws="5 to 40 to fit, until sure; 20 fresh (streams 'fit' and 'fresh')",
        cost="one explanation for each draw",
        differences=(
            ("Quantus", "AvgSensitivity is E‖Δφ‖ / ‖φ‖, not squared: the measure avg_sensitivity"),
            ("the authors' code", "draws SmoothGrad's own noise anew at each neighbour: redraw=True"),
        ),
    )
    name = "average_sensitivity"
    stream = "sensitivity"
    statistic = "quadratic"
    asks = "explanations"
    draws = 20

    @property
    def scale_free(self) -> bool:
        return self.relative

    @property
    def beside(self) -> tuple[Metric, ...]:
        if self.relative and self.signal == "contrast":
            return (Contrast(),)
        return ()

    @property
    def drawn(self) -> tuple:
        return self.neighbourhood, self.redraw

    @property
    def neighbourhood(self) -> Neighbourhood:
        """Where neighbours are drawn: ``where``, or the box of half side ``radius``."""
        return self.where or Uniform(self.radius)

    def measure(self, task: Task, samples: range, total: int) -> Quadratic:
        """The Gram matrices of the neighbours ``samples`` out of ``total``."""
        points = task.points
        maps = exact(task.maps.flatten(2))
        grams = []
        step = max(1, task.score.batch.size(True) // len(points))
        for start in range(samples.start, samples.stop, step):
            part = range(start, min(start + step, samples.stop))
            near = neighbours(self.neighbourhood, points, part, task.stream(self.stream), total, self.redraw)
            there = exact(task.explain(task.score, near).flatten(2)).unflatten(0, (-1, len(part)))
            grams.append(gram(maps[:, None] - there))
        return Quadratic(torch.cat(grams, 1), gram(maps))

    def signal_matrix(self, evidence: Evidence) -> Tensor:
        """What the change is divided by, as a form in w, (B, R, R): C where some method has a contrast, else H = ΦᵀΦ.

        Args:
            evidence: the draws, clean.
        """
        norm = evidence["quadratic"].norm
        if self.signal == "map" or "contrast" not in evidence.parts:
            return norm
        contrast = evidence["contrast"].matrix
        size = norm.diagonal(dim1=-2, dim2=-1)
        # A smaller contrast is what rounding makes of maps that do not change.
        has_contrast = contrast.diagonal(dim1=-2, dim2=-1) > SILENT * size
        both = has_contrast[:, :, None] & has_contrast[:, None]
        some = has_contrast.any(1)[:, None, None]
        return torch.where(some, torch.where(both, contrast, 0.0), norm)

    def loss(self, evidence: Evidence, w: Tensor) -> Tensor:
        if not self.relative:
            return average_sensitivity(evidence, w).value
        # The criterion divides by wᵀHw: with the signal in the place of H it is this objective.
        part = Quadratic(evidence["quadratic"].draws, self.signal_matrix(evidence))
        return relative_sensitivity(Evidence(part), w).value

    def matrix(self, evidence: Evidence, whole: Evidence | None = None) -> Tensor | None:
        if self.relative or evidence.quadratic is None:
            return None
        return evidence.quadratic.matrix

    def solve(self, evidence: Evidence, valid: Tensor, signed: bool) -> simplex.Solution:
        part = evidence["quadratic"]
        if self.relative:
            return simplex.ratio(part.matrix, self.signal_matrix(evidence), valid=valid, signed=signed)
        if signed:
            raise InputError(
                "signed: the absolute sensitivity of signed weights is minimised by maps that cancel to nothing"
            )
        return simplex.quadratic(part.matrix, valid=valid)
