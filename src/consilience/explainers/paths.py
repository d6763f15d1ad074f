"""Gradients against a baseline: integrated gradients, expected gradients / GradientSHAP, DeepLIFT.

All three are a weighted mean of gradient ⊙ (x − baseline) and differ in where, and by which rule, gradients are taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..neighbourhood import Anchored, Baseline, Path
from .base import Explainer, Need


@dataclass(frozen=True)
class IntegratedGradients(Explainer):
    """φ = (x − b) ⊙ ∫₀¹ ∇f(b + α(x − b)) dα (Sundararajan et al. 2017, arXiv 1703.01365).

    The integral is Gauss–Legendre quadrature with ``n_steps`` points. ``baselines``: None (zero), a number, "mean",
    "blur", or a tensor of shape F or (B, *F). Completeness: Σφ = f(x) − f(b) up to the quadrature's error.
    """

    n_steps: int = 16
    baselines: Any = None

    name, kind, complete = "integrated_gradients", "contribution", True

    @property
    def need(self):
        return Need(Path(_one(self.baselines, self.name), self.n_steps), self.n_steps)


@dataclass(frozen=True)
class ExpectedGradients(Explainer):
    """φ = E (x̃ − b) ⊙ ∇f(b + α(x̃ − b)), α ~ U(0, 1), b from ``baselines``, x̃ = x + stdev · N(0, I).

    Expected gradients (Erion et al. 2021, arXiv 1906.10670) for ``stdev`` 0; with noise it is Captum's GradientShap.
    ``baselines``: a data set (n, *F), of which each draw takes one row; or None, a number, "mean", "blur".
    """

    n_samples: int = 20
    stdev: float = 0.0
    baselines: Any = None

    name, kind, complete = "expected_gradients", "contribution", True

    @property
    def need(self):
        return Need(Path(_data(self.baselines), noise=self.stdev), self.n_samples, "paths")


@dataclass(frozen=True)
class GradientSHAP(Explainer):
    """Expected gradients of a noisy input: Captum's GradientShap, with noise 0.09 by default as in its tutorials."""

    n_samples: int = 20
    stdev: float = 0.09
    baselines: Any = None

    name, kind = "gradient_shap", "contribution"

    @property
    def need(self):
        return Need(Path(_data(self.baselines), noise=self.stdev), self.n_samples, "paths")


@dataclass(frozen=True)
class DeepLIFT(Explainer):
    """φ = multiplier ⊙ (x − b): backpropagation with Δout/Δin at every non-linearity (rescale rule; Shrikumar et al.
    2017, arXiv 1704.02685). One batch of [x; baseline]; operations without a rescale rule are refused by name.
    Completeness: Σφ = f(x) − f(b) up to rounding.
    """

    baselines: Any = None

    name, kind, complete = "deeplift", "contribution", True

    @property
    def need(self):
        return Need(Anchored(_one(self.baselines, self.name)), rule="rescale")


def _one(spec: Any, name: str) -> Baseline:
    baseline = Baseline.of(spec)
    if baseline.kind == "samples":
        raise InputError(f"baselines: {name} integrates from one baseline; expected_gradients averages over samples")
    return baseline


def _data(spec: Any) -> Baseline:
    """An array is a data set to draw from; anything else as for IntegratedGradients."""
    return Baseline.samples(spec) if hasattr(spec, "shape") else Baseline.of(spec)
