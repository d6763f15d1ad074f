"""Whether an attribution says how the score falls when features are taken away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import simplex
from ..card import Card
from ..errors import InputError, choose
from ..features.base import Features
from ..features.images import coarse
from ..perturb.baseline import Baseline
from ..perturb.masks import Masked
from ..simplex import FLAT
from ..statistics.criteria import faithfulness_correlation
from ..statistics.evidence import Evidence, Responses
from ..statistics.tensors import exact
from ..task import Task
from .base import Block, Metric

SCALINGS = ("correlation", "free", "paper", "raw", "code")


@dataclass(frozen=True)
class Infidelity(Metric):
    """r_j = Iᵀφ_j − (f(x) − f(x with I replaced)), I a mask over ``share`` of the features (Yeh et al. 2019; AGG §4).

    Args:
        features: the masks' unit, whose name is printed beside every value, which depends on it strongly. Default: for
            images square patches, about 14 to the short side (16 pixels at 224), see
            :func:`~consilience.features.images.coarse`; elements otherwise.
        share: int(share · K) of the K features are replaced.
        baseline: by what: "blur" (σ = 10 pixels; the default for images), "mean", "zero" (the default otherwise), a
            number, or a tensor.
        scaling: as an objective: "correlation" (1 − ρ², the default), "free" (one β of either sign for the mixture), "paper"
            (one β per method), "raw" (β = 1), "code" (weights for β_j φ_j put on the unscaled φ_j, as the authors' code does).
    """

    features: Features | None = None
    share: float = 0.2
    baseline: Any = None
    scaling: str = "correlation"

    card = Card(
        formula="E(β Σ_mask φ − (f(x) − f(x masked)))² / Var Δf; as an objective 1 − ρ|ρ|, ρ = corr(Σ_mask φ, Δf)",
        source="Yeh et al. 2019, arXiv 1901.09392; Decker et al. 2024 (AGG), §4, arXiv 2406.05090",
        better="lower",
        normalisation="one β of either sign fitted on the draws that are judged; Var Δf: a uniform map scores 1",
        perturbation="int(0.2 K) of K features replaced by the blurred image (σ = 10 px) or zero; unit: see mask_unit",
        draws="128 to 1024 masks to fit, until sure; 512 fresh (streams 'fit' and 'fresh')",
        cost="one forward for each mask",
        differences=(
            (
                "Quantus",
                "no β and no normalisation, pixels in windows: the measure infidelity says how to get its number",
            ),
            ("Captum", "the perturbation is the caller's; normalize=True fits β: scaling='free'"),
            ("the authors' code", "β per method, weights put on unscaled maps: scaling='code'"),
        ),
    )
    name = "infidelity"
    stream = "masks"
    statistic = "responses"
    draws = 512

    @property
    def scale_free(self) -> bool:
        return self.scaling == "correlation"

    @property
    def drawn(self) -> Infidelity:
        baseline = None if self.baseline is None else Baseline.of(self.baseline)
        return replace(self, scaling="correlation", baseline=baseline)

    def __post_init__(self) -> None:
        choose("scaling", self.scaling, SCALINGS)
        if not 0 < self.share < 1:
            raise InputError(f"share: above 0 and below 1, got {self.share!r}")

    def neighbourhood(self, shape: Sequence[int]) -> Masked:
        """The masked neighbourhood of inputs with axes ``shape``."""
        image = len(shape) == 3
        features = self.features or coarse(shape)
        baseline = self.baseline if self.baseline is not None else "blur" if image else "zero"
        return Masked(features, self.share, Baseline.of(baseline))

    def measure(self, task: Task, samples: range, total: int) -> Responses:
        """Responses to the masks ``samples`` out of ``total``."""
        points = task.points
        count, rows = task.maps.shape[:2]
        shape = points.x.shape[1:]
        where = self.neighbourhood(shape)
        owner = points.owner.repeat_interleave(rows)
        spread = task.features.spread(task.maps.flatten(0, 1), owner, shape)
        per_unit = exact(where.features.reduce(spread, owner).reshape(count, rows, -1))
        clean = exact(task.output(points.x, points.owner))[:, None]
        a, y = [], []
        step = max(1, task.score.batch.size(False) // count)
        for start in range(samples.start, samples.stop, step):
            part = range(start, min(start + step, samples.stop))
            cloud = where.draw(points, part, task.stream(self.stream), total)
            assert cloud.masks is not None
            fall = clean - cloud.split(exact(task.output(cloud.points, cloud.owner)))
            masks = cloud.split(exact(cloud.masks.flatten(1)))
            a.append(masks @ per_unit.mT)
            y.append(fall)
        return Responses(torch.cat(a, 1), torch.cat(y, 1))

    def loss(self, evidence: Evidence, w: Tensor) -> Tensor:
        """correlation: 1 − ρ|ρ|, which orders mixtures as ρ does, of either sign; raw: E(a − y)²; else
        min_β E(βa − y)² / E y², which every single method's own β reaches."""
        r = evidence.responses
        assert r is not None
        if self.scaling == "correlation":
            rho = faithfulness_correlation(evidence, w).value
            return 1 - rho.nan_to_num(0) * rho.nan_to_num(0).abs()
        matrix, p, q = r.moments()
        square = torch.einsum("bmr,brt,bmt->bm", w, matrix, w)
        cross = torch.einsum("bmr,br->bm", w, p)
        if self.scaling == "raw":
            return square - 2 * cross + q[:, None]
        return 1 - cross**2 / (square * q[:, None]).clamp(min=1e-300)

    def over_blocks(self, whole: Evidence, blocks: Sequence[Block], weights: Sequence[Tensor]) -> Tensor:
        """For the correlation, moments are summed over the blocks before they are divided: ρ² of a few masks is biased."""
        if self.scaling != "correlation":
            return super().over_blocks(whole, blocks, weights)
        parts = []
        for (share, block), w in zip(blocks, weights, strict=True):
            assert block.responses is not None
            a, y = torch.einsum("bsr,br->bs", block.responses.a, w), block.responses.y
            da, dy = a - a.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
            parts.append(share * torch.stack([(part**2).mean(1) for part in (da, dy, a)] + [(da * dy).mean(1)]))
        spread, change, size, cross = torch.stack(parts).sum(0)
        undefined = (spread <= FLAT * size) | (change <= 0)
        rho = torch.where(undefined, 0.0, cross / (spread.sqrt() * change.sqrt()).clamp(min=1e-300))
        return 1 - rho * rho.abs()

    def matrix(self, evidence: Evidence, whole: Evidence | None = None) -> Tensor | None:
        """E[(β_i a_i − y)(β_j a_j − y)], β = 1 for "raw"; "correlation" and "free" are no quadratic form."""
        r = evidence.responses
        if r is None or self.scaling in ("correlation", "free"):
            return None
        fitted = (whole or evidence).responses
        assert fitted is not None
        beta = torch.ones_like(r.a[:, 0]) if self.scaling == "raw" else self._beta(fitted)
        residual = r.a * beta[:, None] - r.y[..., None]
        return residual.mT @ residual / r.a.shape[1]

    @staticmethod
    def _beta(r: Responses) -> Tensor:
        """(B, R): E[a_j y] / E[a_j²]."""
        matrix, p, _ = r.moments()
        square = matrix.diagonal(dim1=-2, dim2=-1)
        return torch.where(square > 0, p / square.clamp(min=1e-300), torch.zeros_like(p))

    def solve(self, evidence: Evidence, valid: Tensor, signed: bool) -> simplex.Solution:
        r = evidence.responses
        assert r is not None
        if self.scaling == "correlation":
            c, b, v = r.covariances()
            ridge = 0.1 if signed else 0.0
            return simplex.correlation(c, b, v, valid=valid, signed=signed, ridge=ridge, mean=r.a.mean(1))
        if signed:
            raise InputError("signed: for infidelity with scaling='correlation'")
        if self.scaling == "free":
            return simplex.scale_free(*r.moments(), valid=valid)
        matrix = self.matrix(evidence)
        assert matrix is not None
        found = simplex.quadratic(matrix, valid=valid)
        if self.scaling != "paper":
            return found
        # The weights were solved for β_j φ_j: these are the coefficients of φ_j itself.
        coefficients = found.weights * self._beta(r)
        size = coefficients.abs().sum(1, keepdim=True)
        return replace(found, weights=torch.where(size > 0, coefficients / size.clamp(min=1e-300), found.weights))
