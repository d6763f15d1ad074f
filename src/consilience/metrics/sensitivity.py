"""How much an attribution changes when the input hardly does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import simplex
from ..card import Card
from ..errors import InputError
from ..perturb.neighbourhoods import Neighbourhood, Uniform, neighbours
from ..statistics.criteria import average_sensitivity, relative_sensitivity
from ..statistics.evidence import Evidence, Quadratic
from ..statistics.tensors import exact
from ..task import Task
from .base import Metric


@dataclass(frozen=True)
class AverageSensitivity(Metric):
    """r_j = φ_j(x) − φ_j(x + ε), Q = E‖r‖² (AGG, Definition 4.1 with γ₁ = I and a target carried by each method).

    Args:
        radius: ε ~ U[−radius, radius] per element, in units of the model's input.
        where: any other neighbourhood, in place of the uniform one.
        relative: as an objective, wᵀGw / wᵀHw (the default) or the paper's absolute wᵀGw.
        redraw: draw an explainer's own noise anew at each neighbour, as the authors' code does. Off, an explainer with a
            fixed seed is a function; on, its Monte-Carlo noise counts as sensitivity, which changes who wins.
    """

    radius: float = 0.1
    where: Neighbourhood | None = None
    relative: bool = True
    redraw: bool = False

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

    def __post_init__(self) -> None:
        try:
            fine = float(self.radius) >= 0
        except (TypeError, ValueError):
            fine = False
        if not fine:
            raise InputError(f"radius: a number, at least 0, got {self.radius!r}")

    @property
    def scale_free(self) -> bool:
        return self.relative

    @property
    def drawn(self) -> tuple:
        return self.neighbourhood, self.redraw

    @property
    def neighbourhood(self) -> Neighbourhood:
        return self.where or Uniform(self.radius)

    def measure(self, task: Task, samples: range, total: int) -> Quadratic:
        """The Gram matrices of the neighbours ``samples`` out of ``total``."""
        points = task.points
        flat = exact(task.maps.flatten(2))
        grams = []
        step = max(1, task.score.batch.size(True) // len(points))
        for start in range(samples.start, samples.stop, step):
            part = range(start, min(start + step, samples.stop))
            near = neighbours(self.neighbourhood, points, part, task.stream(self.stream), total, self.redraw)
            there = exact(task.explain(task.score, near).flatten(2)).unflatten(0, (-1, len(part)))
            grams.append(gram(flat[:, None] - there))
        return Quadratic(torch.cat(grams, 1), gram(flat))

    def loss(self, evidence: Evidence, w: Tensor) -> Tensor:
        return (relative_sensitivity if self.relative else average_sensitivity)(evidence, w).value

    def matrix(self, evidence: Evidence, whole: Evidence | None = None) -> Tensor | None:
        return None if self.relative or evidence.quadratic is None else evidence.quadratic.matrix

    def solve(self, evidence: Evidence, valid: Tensor, signed: bool) -> simplex.Solution:
        q = evidence.quadratic
        assert q is not None
        if self.relative:
            return simplex.ratio(q.matrix, q.norm, valid=valid, signed=signed)
        if signed:
            raise InputError(
                "signed: the absolute sensitivity of signed weights is minimised by maps that cancel to nothing"
            )
        return simplex.quadratic(q.matrix, valid=valid)


def gram(residuals: Tensor) -> Tensor:
    """(…, R, D) → (…, R, R), exactly symmetric."""
    product = residuals @ residuals.mT
    return (product + product.mT) / 2
