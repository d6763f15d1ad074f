"""Gradients against a baseline: integrated gradients, expected gradients, GradientSHAP and DeepLIFT.

All are a weighted mean of gradient ⊙ (x − baseline). They differ in where gradients are taken, and by which rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..card import Card
from ..perturb.baseline import AnyBaseline, Baseline
from ..perturb.neighbourhoods import Anchored, Path
from ..settings import setting
from .base import Explainer, Need

SIGNED_SHARES = "none: in units of the score, signed"


@dataclass(frozen=True)
class IntegratedGradients(Explainer):
    """φ = (x − b) ⊙ ∫₀¹ ∇f(b + α(x − b)) dα (Sundararajan et al. 2017, arXiv 1703.01365).

    Completeness: Σφ = f(x) − f(b) up to the quadrature's error.

    Args:
        n_steps: points of the Gauss–Legendre quadrature.
        baselines: None (zero), a number, "mean", "blur", a tensor F, or ``Baseline.per_input(rows)`` with rows (B, *F); of a
            data set its mean row.
    """

    n_steps: int = setting(16, low=1)
    baselines: AnyBaseline = None

    name = "integrated_gradients"
    kind = "contribution"
    complete = True
    card = Card(
        formula="φ = (x − b) ⊙ ∫₀¹ ∇f(b + α(x − b)) dα; Σφ = f(x) − f(b)",
        source="Sundararajan et al. 2017, arXiv 1703.01365",
        normalisation=SIGNED_SHARES,
        perturbation="the straight path from the baseline b (zero) to x",
        cost="a gradient for each of n_steps points (16); completeness_error says whether that was enough",
        differences=(
            ("Captum", "50 points by default, the same Gauss–Legendre quadrature: n_steps=50"),
            ("Quantus", "explain() takes 10 points of the trapezoidal rule; more points here come to the same"),
        ),
    )

    @property
    def need(self):
        return Need(Path(_one(self.baselines), self.n_steps), self.n_steps)


@dataclass(frozen=True)
class ExpectedGradients(Explainer):
    """φ = E (x̃ − b) ⊙ ∇f(b + α(x̃ − b)), α ~ U(0, 1), b from ``baselines``, x̃ = x + stdev · N(0, I).

    Expected gradients (Erion et al. 2021, arXiv 1906.10670) without noise; with noise it is Captum's GradientShap.

    Args:
        n_samples: draws of (α, b, x̃).
        stdev: of the noise, in units of the model's input.
        baselines: a data set (n, *F), of which each draw takes one row; or None (zero), a number, "mean", "blur".
    """

    n_samples: int = setting(20, low=1)
    stdev: float = setting(0.0, low=0)
    baselines: AnyBaseline = None

    name = "expected_gradients"
    kind = "contribution"
    complete = True
    card = Card(
        formula="φ = E (x − b) ⊙ ∇f(b + α(x − b)), α ~ U(0, 1), b from a data set; EΣφ = f(x) − E f(b)",
        source="Erion et al. 2021, arXiv 1906.10670",
        normalisation=SIGNED_SHARES,
        perturbation="random points of the paths from drawn baselines to x",
        draws="20 pairs (α, b), keyed by the input's id",
        cost="a gradient for each sample (20)",
        differences=(
            (
                "shap",
                "GradientExplainer: the same expectation with 200 samples from a global generator, and baselines drawn with "
                "replacement: n_samples=200, baselines=Baseline.samples(background)",
            ),
        ),
    )

    @property
    def need(self):
        return Need(Path(_data(self.baselines), noise=self.stdev), self.n_samples, "paths")


@dataclass(frozen=True)
class GradientSHAP(Explainer):
    """Expected gradients of a noisy input: Captum's GradientShap, with noise 0.09 by default as in its tutorials.

    Args:
        n_samples, stdev, baselines: as for :class:`ExpectedGradients`.
    """

    n_samples: int = setting(20, low=1)
    stdev: float = setting(0.09, low=0)
    baselines: AnyBaseline = None

    name = "gradient_shap"
    kind = "contribution"
    card = Card(
        formula="φ = E (x̃ − b) ⊙ ∇f(b + α(x̃ − b)), x̃ = x + N(0, σ²), α ~ U(0, 1)",
        source="Lundberg & Lee 2017, arXiv 1705.07874, as Captum's GradientShap has it",
        normalisation=SIGNED_SHARES,
        perturbation="random points of the paths from drawn baselines to a noisy input, σ = .09 in units of the model's input",
        draws="20, keyed by the input's id",
        cost="a gradient for each sample (20)",
        differences=(
            (
                "Captum",
                "5 samples without noise by default, global generator: n_samples=5, stdev=0; its noisy input replaces x in "
                "the factor x̃ − b too, as here",
            ),
            ("shap", "GradientExplainer adds noise to x only where local_smoothing is set: expected_gradients"),
        ),
    )

    @property
    def need(self):
        return Need(Path(_data(self.baselines), noise=self.stdev), self.n_samples, "paths")


@dataclass(frozen=True)
class DeepLIFT(Explainer):
    """φ = multiplier ⊙ (x − b): backpropagation with Δout/Δin at every non-linearity (rescale rule; Shrikumar et al.
    2017, arXiv 1704.02685). One batch of [x; baseline]; operations without a rescale rule are refused by name.
    Completeness: Σφ = f(x) − f(b) up to rounding.

    Args:
        baselines: None (zero), a number, "mean", "blur", a tensor F, or ``Baseline.per_input(rows)`` with rows (B, *F); of a
            data set its mean row.
    """

    baselines: AnyBaseline = None

    name = "deeplift"
    kind = "contribution"
    complete = True
    card = Card(
        formula="φ = m ⊙ (x − b), m the gradient with every non-linearity's slope replaced by Δout/Δin; Σφ = f(x) − f(b)",
        source="Shrikumar et al. 2017, arXiv 1704.02685 (rescale rule)",
        normalisation=SIGNED_SHARES,
        perturbation="none: x beside its baseline b (zero)",
        cost="2 gradient rows, [x; b]",
        differences=(
            (
                "Captum",
                "equal for networks of linear layers and activation modules; its maps around max-pooling do not add up to "
                "f(x) − f(b), here contributions are added; functional "
                "activations and operations without a rule pass silently, here they are seen, or refused by name",
            ),
            ("shap", "DeepExplainer averages over a background data set: one baseline here"),
        ),
    )

    @property
    def need(self):
        return Need(Anchored(_one(self.baselines)), rule="rescale")


def _one(spec: Any) -> Baseline:
    """One baseline for each input; of a data set its mean row."""
    return Baseline.of(spec).one()


def _data(spec: Any) -> Baseline:
    """An array is a data set to draw from; anything else as for IntegratedGradients."""
    if hasattr(spec, "shape"):
        return Baseline.samples(spec)
    return Baseline.of(spec)
