"""Gradients at a point and over a cloud: saliency, input × gradient, guided backpropagation, SmoothGrad and kin."""

from __future__ import annotations

from dataclasses import dataclass

from ..card import Card
from ..perturb.neighbourhoods import Gaussian, Uniform
from ..settings import setting
from .base import Explainer, Need, mean

# -- what the methods' cards share -------------------------------------------------------------------------------------

SIGNED = "none: score per unit of the input, signed"

NOISE = "the input plus N(0, σ²) per element, σ = .15 of the input's range max x − min x"

DRAWS = "20, keyed by the input's id: the same at its neighbours, and for the three methods on this cloud"

CLOUD = "a gradient for each sample (20), shared by SmoothGrad, SmoothGrad² and VarGrad of equal settings"

STDEV = "σ is in units of the input (stdevs): relative=False here, and stdev of that value"

# -- the methods -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Saliency(Explainer):
    """φ = ∇f(x) (Simonyan et al. 2014, arXiv 1312.6034). Signed: the paper's absolute value is taken later, see
    :class:`~consilience.explainers.Normalised`."""

    name = "saliency"
    kind = "gradient"
    card = Card(
        formula="φ = ∇f(x)",
        source="Simonyan et al. 2014, arXiv 1312.6034",
        normalisation=SIGNED,
        cost="1 gradient, shared with all that need the gradient at x",
        differences=(
            ("Captum", "takes the absolute value inside: abs=False there, or sign='abs' here"),
            (
                "Quantus",
                "its explain() returns |gradient| summed over channels: features=Pixels and sign='abs' sum first",
            ),
        ),
    )

    @property
    def need(self):
        return Need()


@dataclass(frozen=True)
class InputXGradient(Explainer):
    """φ = x ⊙ ∇f(x) (Shrikumar et al. 2016, arXiv 1605.01713)."""

    name = "input_x_gradient"
    kind = "contribution"
    card = Card(
        formula="φ = x ⊙ ∇f(x)",
        source="Shrikumar et al. 2016, arXiv 1605.01713",
        normalisation="none: in units of the score, signed; x is the model's input, after its normalisation",
        cost="1 gradient, shared with all that need the gradient at x",
    )

    @property
    def need(self):
        return Need()

    def finish(self, state, points):
        return state * points.x


@dataclass(frozen=True)
class GuidedBackprop(Explainer):
    """The gradient, with negative gradients stopped at every rectifier (Springenberg et al. 2015, arXiv 1412.6806)."""

    name = "guided_backprop"
    kind = "gradient"
    card = Card(
        formula="φ = ∇f(x), with negative gradients set to zero at every rectifier on the way back",
        source="Springenberg et al. 2015, arXiv 1412.6806",
        normalisation=SIGNED,
        cost="1 gradient",
        differences=(
            (
                "Captum",
                "changes nn.ReLU modules only: functional, in-place and reused calls, and other activations, pass unseen; "
                "here the former are seen and the latter refused by name; equal for networks of nn.ReLU modules",
            ),
        ),
    )

    @property
    def need(self):
        return Need(rule="guided")


@dataclass(frozen=True)
class SmoothGrad(Explainer):
    """φ = E ∇f(x + σε), ε ~ N(0, I) (Smilkov et al. 2017, arXiv 1706.03825).

    The noise belongs to the input's id: the same at x and at its neighbours, and the same for the three methods on this cloud.

    Args:
        n_samples: noisy inputs.
        stdev: σ, a share of max x − min x if ``relative`` (as in that paper), else in units of the model's input.
        relative: see ``stdev``.
    """

    n_samples: int = setting(20, low=1)
    stdev: float = setting(0.15, low=0)
    relative: bool = True

    name = "smoothgrad"
    kind = "gradient"
    card = Card(
        formula="φ = E ∇f(x + ε), ε ~ N(0, σ²)",
        source="Smilkov et al. 2017, arXiv 1706.03825",
        normalisation=SIGNED,
        perturbation=NOISE,
        draws=DRAWS,
        cost=CLOUD,
        differences=(
            ("Captum", "NoiseTunnel: " + STDEV),
            ("AGG's code", "calls NoiseTunnel with 'smoothgrad_sq' under this name: smoothgrad_squared here"),
        ),
    )

    @property
    def need(self):
        return Need(Gaussian(self.stdev, self.relative), self.n_samples, "noise")


@dataclass(frozen=True)
class SmoothGradSquared(Explainer):
    """φ = E (∇f(x + σε))², on SmoothGrad's cloud (Hooker et al. 2019, arXiv 1806.10758).

    Args:
        n_samples, stdev, relative: as for :class:`SmoothGrad`.
    """

    n_samples: int = setting(20, low=1)
    stdev: float = setting(0.15, low=0)
    relative: bool = True

    name = "smoothgrad_squared"
    kind = "relevance"
    card = Card(
        formula="φ = E (∇f(x + ε))², ε ~ N(0, σ²)",
        source="Hooker et al. 2019, arXiv 1806.10758",
        normalisation="none: (score per unit of the input)², never negative",
        perturbation=NOISE,
        draws=DRAWS,
        cost=CLOUD,
        differences=(("Captum", "NoiseTunnel, nt_type='smoothgrad_sq': " + STDEV),),
    )

    @property
    def need(self):
        return Need(Gaussian(self.stdev, self.relative), self.n_samples, "noise")

    def fold(self, state, cloud, values):
        return mean(state, cloud, values.gradient**2)


@dataclass(frozen=True)
class VarGrad(Explainer):
    """φ = Var ∇f(x + σε) (divided by n), on SmoothGrad's cloud (Adebayo et al. 2018, arXiv 1810.03292).

    Chunks are merged by their means and sums of squared deviations, without the cancellation of E g² − (E g)².

    Args:
        n_samples, stdev, relative: as for :class:`SmoothGrad`.
    """

    n_samples: int = setting(20, low=1)
    stdev: float = setting(0.15, low=0)
    relative: bool = True

    name = "vargrad"
    kind = "relevance"
    card = Card(
        formula="φ = Var ∇f(x + ε), ε ~ N(0, σ²), divided by n",
        source="Adebayo et al. 2018, arXiv 1810.03292",
        normalisation="none: (score per unit of the input)², never negative",
        perturbation=NOISE,
        draws=DRAWS,
        cost=CLOUD,
        differences=(
            ("Captum", "NoiseTunnel, nt_type='vargrad': E g² − (E g)², which cancels in float32; " + STDEV),
            ("AGG's code", "makes the same call for SmoothGrad and VarGrad: both are smoothgrad_squared there"),
        ),
    )

    @property
    def need(self):
        return Need(Gaussian(self.stdev, self.relative), self.n_samples, "noise")

    def fold(self, state, cloud, values):
        gradients = cloud.split(values.gradient)
        count = gradients.shape[1]
        centre = gradients.mean(1)
        squares = ((gradients - centre[:, None]) ** 2).sum(1)
        if state is None:
            return count, centre, squares
        # Sums of squares about two means are put together about the common one (Chan et al. 1979): E g² − (E g)² would
        # lose the variance in rounding where gradients hardly vary.
        count_before, centre_before, squares_before = state
        total = count_before + count
        shift = centre - centre_before
        common_centre = centre_before + shift * (count / total)
        return total, common_centre, squares_before + squares + shift**2 * (count_before * count / total)

    def finish(self, state, points):
        count, _, squares = state
        return squares / count


@dataclass(frozen=True)
class UniformGrad(Explainer):
    """φ = E ∇f(x + u), u ~ U[−radius, radius] per element: the gradient averaged over the box around x.

    Args:
        n_samples: points of the box.
        radius: half its side, in units of the model's input.
    """

    n_samples: int = setting(20, low=1)
    radius: float = setting(0.1, low=0)

    name = "uniformgrad"
    kind = "gradient"
    card = Card(
        formula="φ = E ∇f(x + u), u ~ U[−r, r] for each element",
        source="the gradient averaged over a box, as used by AGG, arXiv 2406.05090, for neighbours",
        normalisation=SIGNED,
        perturbation="the input plus U[−.1, .1] per element, in units of the model's input",
        draws="20, keyed by the input's id",
        cost="a gradient for each sample (20)",
    )

    @property
    def need(self):
        return Need(Uniform(self.radius), self.n_samples, "noise")
