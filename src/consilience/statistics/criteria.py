"""Criteria and their standard errors, as functions of the evidence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..simplex import FLAT
from .evidence import Evidence


@dataclass(frozen=True)
class Estimate:
    """A criterion of rows: ``value`` (B, R), ``influence`` (B, R, S) of each draw, whose mean is zero.

    The standard error is √(mean influence² / (S − 1)); of a difference of rows, that of the influences' difference.
    """

    value: Tensor
    influence: Tensor

    @property
    def stderr(self) -> Tensor:
        count = self.influence.shape[-1]
        if count < 2:
            return torch.full_like(self.value, torch.nan)
        return ((self.influence**2).mean(-1) / (count - 1)).sqrt()


# -- criteria: evidence and mixtures w (B, M, R) → Estimate (B, M) -----------------------------------------------------


def average_sensitivity(evidence: Evidence, w: Tensor) -> Estimate:
    """E‖φ_w(x) − φ_w(x + ε)‖²: absolute, the paper's."""
    q = evidence.quadratic
    assert q is not None
    per_draw = torch.einsum("bmr,bsrt,bmt->bms", w, q.draws, w)
    value = per_draw.mean(-1)
    return Estimate(value, per_draw - value[..., None])


def relative_sensitivity(evidence: Evidence, w: Tensor) -> Estimate:
    """E‖φ_w(x) − φ_w(x + ε)‖² / ‖φ_w(x)‖²; NaN for the zero map."""
    assert evidence.quadratic is not None
    absolute = average_sensitivity(evidence, w)
    size = torch.einsum("bmr,brt,bmt->bm", w, evidence.quadratic.norm, w)
    size = torch.where(size > 0, size, torch.nan)
    return Estimate(absolute.value / size, absolute.influence / size[..., None])


def faithfulness_correlation(evidence: Evidence, w: Tensor) -> Estimate:
    """Pearson's ρ over masks of the attribution taken away with the fall of the score; NaN if either does not vary."""
    r = evidence.responses
    assert r is not None
    a = torch.einsum("bmr,bsr->bms", w, r.a)
    y = r.y[:, None]
    da, dy = a - a.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    va, vy = (da**2).mean(-1, keepdim=True), (dy**2).mean(-1, keepdim=True)
    va = torch.where(va > FLAT * (a**2).mean(-1, keepdim=True), va, torch.nan)
    za, zy = da / va.sqrt(), dy / torch.where(vy > 0, vy, torch.nan).sqrt()
    value = (za * zy).mean(-1)
    return Estimate(value, za * zy - value[..., None] * (za**2 + zy**2) / 2)


def infidelity(evidence: Evidence, w: Tensor) -> Estimate:
    """min_β E(βa − y)² / Var y over the draws judged, β of either sign (Yeh et al. 2019's scaling): 1 for a uniform map."""
    r = evidence.responses
    assert r is not None
    a = torch.einsum("bmr,bsr->bms", w, r.a)
    y = r.y[:, None]
    square = (a**2).mean(-1, keepdim=True)
    beta = (a * y).mean(-1, keepdim=True) / torch.where(square > 0, square, torch.nan)
    error = (beta * a - y) ** 2
    spread = (y - y.mean(-1, keepdim=True)) ** 2
    variance = spread.mean(-1, keepdim=True)
    variance = torch.where(variance > 0, variance, torch.nan)
    mse = error.mean(-1, keepdim=True)
    # β minimises the error, so to first order its own noise does not count.
    return Estimate((mse / variance)[..., 0], (error - mse) / variance - mse / variance**2 * (spread - variance))


CRITERIA = {
    "relative_sensitivity": relative_sensitivity,
    "average_sensitivity": average_sensitivity,
    "faithfulness_correlation": faithfulness_correlation,
    "infidelity": infidelity,
}


HIGHER_IS_BETTER = {"faithfulness_correlation"}
