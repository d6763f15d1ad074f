"""NoiseGrad and FusionGrad: gradients averaged over noisy weights, and for FusionGrad over noisy inputs as well.

Every parameter θ becomes θ(1 + σε), ε ~ N(0, 1), drawn by the parameter's name and the number of the sample. A sample is
one noisy model, the same for every input, neighbour and batch: a draw for each input would need a model for each.

Noise on the input alone is in :mod:`.gradients` (SmoothGrad, VarGrad).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..card import Card
from ..errors import InputError
from ..model.copies import duplicate
from ..model.score import Score
from ..perturb.neighbourhoods import Gaussian, Neighbourhood, Point
from ..perturb.points import Points
from ..settings import setting
from ..statistics.keys import Key
from .base import Direct, mean


@dataclass(frozen=True)
class NoiseGrad(Direct):
    """φ = E ∇f_{θη}(x), η ~ N(1, σ²) for each parameter (Bykov et al. 2022, arXiv 2106.10185).

    ``redraw`` of a metric's neighbours has no effect: the noise belongs to the model and not to the inputs. The noisy weights
    are those of a copy, so memory for the weights is needed twice.

    Args:
        n_samples: noisy models, at least 1.
        stdev: σ, a share of each parameter; the paper raises it until the accuracy falls by about 5 %.
    """

    n_samples: int = setting(10, low=1)
    stdev: float = setting(0.2, low=0)

    name = "noisegrad"
    kind = "gradient"
    card = Card(
        formula="φ = E ∇f(x; θη), η ~ N(1, σ²) for each parameter",
        source="Bykov et al. 2022, arXiv 2106.10185",
        normalisation="none: score per unit of the input, signed",
        perturbation="every parameter times N(1, σ²), σ = .2; buffers (running statistics) stay",
        draws="10 noisy models, keyed by parameter and sample, shared by all inputs",
        cost="1 gradient for each sample; besides, noise for every parameter, drawn anew for each batch",
        differences=(
            (
                "the authors' noisegrad package",
                "multiplies the weights anew without restoring them between samples, so that noise accumulates, and hands "
                "the noisy model back; any base method, here the gradient",
            ),
        ),
    )

    def attribute(self, score, points, key):
        return mean_gradient(score, points, key, self.n_samples, self.stdev, Point(), 1)

    def rows(self, shape):
        return {"gradient": self.n_samples}

    def check(self, score, points, key):
        replace(self, n_samples=1).attribute(score, points, key)


@dataclass(frozen=True)
class FusionGrad(Direct):
    """φ = E ∇f_{θη}(x + ξ): NoiseGrad and SmoothGrad at once, ``m_samples`` noisy inputs for each of ``n_samples`` noisy models
    (Bykov et al. 2022, arXiv 2106.10185).

    Args:
        n_samples: noisy models, at least 1.
        m_samples: noisy inputs for each of them, at least 1; drawn by the input's id as in SmoothGrad.
        stdev: of the weights' noise, a share of each parameter.
        input_stdev: of the input's noise, a share of max x − min x if ``relative``, else in units of the model's input.
        relative: see ``input_stdev``.
    """

    n_samples: int = setting(10, low=1)
    m_samples: int = setting(10, low=1)
    stdev: float = setting(0.2, low=0)
    input_stdev: float = setting(0.15, low=0)
    relative: bool = True

    name = "fusiongrad"
    kind = "gradient"
    card = Card(
        formula="φ = E ∇f(x + ξ; θη), η ~ N(1, σ²) for each parameter, ξ ~ N(0, σ_x²) for each element",
        source="Bykov et al. 2022, arXiv 2106.10185",
        normalisation="none: score per unit of the input, signed",
        perturbation="every parameter times N(1, σ²), σ = .2; the input plus N(0, σ_x²), σ_x = .15 of its range",
        draws="10 noisy models, shared by all inputs, times 10 noisy inputs, keyed by the input's id",
        cost="n · m gradients (100)",
        differences=(
            (
                "the authors' noisegrad package",
                "as for noisegrad; and with its default, multiplicative noise the input is multiplied by N(0, .4²), mean zero",
            ),
        ),
    )

    def attribute(self, score, points, key):
        where = Gaussian(self.input_stdev, self.relative)
        return mean_gradient(score, points, key, self.n_samples, self.stdev, where, self.m_samples)

    def rows(self, shape):
        return {"gradient": self.n_samples * self.m_samples}

    def check(self, score, points, key):
        replace(self, n_samples=1, m_samples=1).attribute(score, points, key)


def mean_gradient(
    score: Score, points: Points, key: Key, models: int, stdev: float, where: Neighbourhood, inputs: int
) -> Tensor:
    """The mean gradient over noisy models and noisy inputs, (N, *F).

    Args:
        score: what is explained.
        points: x (N, *F).
        key: of all draws.
        models: how many noisy models.
        stdev: of the weights' noise, a share of each parameter.
        where: the neighbourhood in which noisy inputs are drawn.
        inputs: how many of them for each model.

    Raises:
        InputError: no model or no input is asked for, or the model has no weights (a plain callable).
    """
    if models < 1 or inputs < 1:
        raise InputError(f"n_samples, m_samples: at least 1, got {models} and {inputs}")
    if not isinstance(score.model, nn.Module):
        raise InputError(
            "model: noisegrad and fusiongrad perturb weights, so they need an nn.Module, not a plain callable; "
            "use smoothgrad, which perturbs the input"
        )
    # A copy: the caller's own weights are never written, since another thread may be using them.
    noisy = duplicate(score.model)
    noisy_score = score.using(noisy)
    total = None
    step = max(1, 4 * score.batch.size(True) // len(points))
    for model in range(models):
        set_noisy_weights(noisy, score.model, key / "weights", model, stdev)
        # Each model has inputs of its own: samples are numbered over models and inputs together.
        first = model * inputs
        for start in range(0, inputs, step):
            samples = range(first + start, first + min(start + step, inputs))
            cloud = where.draw(points, samples, key / "inputs", inputs)
            total = mean(total, cloud, noisy_score.grad(cloud.points, cloud.owner))
    assert total is not None
    return total / models


def set_noisy_weights(noisy: nn.Module, model: nn.Module, key: Key, sample: int, stdev: float) -> None:
    """Set the parameters of a copy to those of the model times 1 + stdev · N(0, 1).

    A parameter that is used twice is drawn once. A complex one is two real numbers, with a factor each. Whole numbers and
    buffers stay. Where weights are computed from parameters (weight normalisation, parametrisations) it is the parameters
    that are noisy, as an optimiser sees them.

    Args:
        noisy: the copy, which is changed.
        model: the model.
        key: of the draws, to which each parameter's name is added.
        sample: the number of the draw.
        stdev: of the noise, a share of each parameter.
    """
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in noisy.named_parameters():
            value = own[name].detach()
            target = parameter.detach()
            if value.is_complex():
                value = torch.view_as_real(value)
                target = torch.view_as_real(target)
            if value.is_floating_point():
                # In place, so that fused recurrent layers, which hold the parameter itself, see the noise too.
                target.copy_(value * (1 + stdev * _noise(key / name, sample, value)))


def _noise(key: Key, sample: int, like: Tensor) -> Tensor:
    """Standard normal numbers of a tensor's shape, in float32 at least."""
    # One generator of PyTorch's for the whole tensor: a network has millions of parameters, and counter-based draws would take
    # longer than its passes. It is on the CPU, whose numbers are the same for every device.
    high, low = (key / str(sample)).words
    generator = torch.Generator().manual_seed(high << 31 | low >> 1)  # 63 bits: a seed is not negative
    wide = torch.promote_types(like.dtype, torch.float32)
    return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like.device, wide)
