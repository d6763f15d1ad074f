"""Gradients at a point and over a cloud: saliency, input × gradient, guided backpropagation, SmoothGrad and kin."""

from __future__ import annotations

from dataclasses import dataclass

from ..neighbourhood import Gaussian, Uniform
from .base import Explainer, Need, mean


@dataclass(frozen=True)
class Saliency(Explainer):
    """φ = ∇f(x). Signed here; the absolute value is the stage after (Simonyan et al. 2014, arXiv 1312.6034)."""

    name, kind = "saliency", "gradient"

    @property
    def need(self):
        return Need()


@dataclass(frozen=True)
class InputXGradient(Explainer):
    """φ = x ⊙ ∇f(x) (Shrikumar et al. 2016, arXiv 1605.01713)."""

    name, kind = "input_x_gradient", "contribution"

    @property
    def need(self):
        return Need()

    def finish(self, state, points):
        return state * points.x


@dataclass(frozen=True)
class GuidedBackprop(Explainer):
    """The gradient, with negative gradients stopped at every rectifier (Springenberg et al. 2015, arXiv 1412.6806)."""

    name, kind = "guided_backprop", "gradient"

    @property
    def need(self):
        return Need(rule="guided")


@dataclass(frozen=True)
class SmoothGrad(Explainer):
    """φ = E ∇f(x + σε), ε ~ N(0, I) (Smilkov et al. 2017, arXiv 1706.03825).

    ``stdev`` is a share of max x − min x if ``relative`` (as in that paper), else in units of the model's input. The
    noise belongs to the input's id: the same at x and at its neighbours, and the same for the three methods on this cloud.
    """

    n_samples: int = 20
    stdev: float = 0.15
    relative: bool = True

    name, kind = "smoothgrad", "gradient"

    @property
    def need(self):
        return Need(Gaussian(self.stdev, self.relative), self.n_samples, "noise")


@dataclass(frozen=True)
class SmoothGradSquared(Explainer):
    """φ = E (∇f(x + σε))², on SmoothGrad's cloud (Hooker et al. 2019, arXiv 1806.10758)."""

    n_samples: int = 20
    stdev: float = 0.15
    relative: bool = True

    name, kind = "smoothgrad_squared", "relevance"

    @property
    def need(self):
        return Need(Gaussian(self.stdev, self.relative), self.n_samples, "noise")

    def fold(self, state, cloud, values):
        return mean(state, cloud, values.gradient**2)


@dataclass(frozen=True)
class VarGrad(Explainer):
    """φ = Var ∇f(x + σε) (divided by n), on SmoothGrad's cloud (Adebayo et al. 2018, arXiv 1810.03292).

    Chunks are merged by their means and sums of squared deviations, without the cancellation of E g² − (E g)².
    """

    n_samples: int = 20
    stdev: float = 0.15
    relative: bool = True

    name, kind = "vargrad", "relevance"

    @property
    def need(self):
        return Need(Gaussian(self.stdev, self.relative), self.n_samples, "noise")

    def fold(self, state, cloud, values):
        gradients = cloud.split(values.gradient)
        count, centre = gradients.shape[1], gradients.mean(1)
        squares = ((gradients - centre[:, None]) ** 2).sum(1)
        if state is None:
            return count, centre, squares
        before, old, sum_old = state
        total, shift = before + count, centre - old
        return total, old + shift * (count / total), sum_old + squares + shift**2 * (before * count / total)

    def finish(self, state, points):
        count, _, squares = state
        return squares / count


@dataclass(frozen=True)
class UniformGrad(Explainer):
    """φ = E ∇f(x + u), u ~ U[−radius, radius] per element: the gradient averaged over the box around x."""

    n_samples: int = 20
    radius: float = 0.1

    name, kind = "uniformgrad", "gradient"

    @property
    def need(self):
        return Need(Uniform(self.radius), self.n_samples, "noise")
