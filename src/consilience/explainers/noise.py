"""Gradients averaged over noisy weights: NoiseGrad, and with noisy inputs as well, FusionGrad.

Every parameter θ becomes θ(1 + σε), ε ~ N(0, 1), drawn by the parameter's name and the number of the sample: a sample is
one noisy model, the same for every input, neighbour and batch. A draw for each input would need a model for each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..card import Card
from ..errors import InputError
from ..model.score import Score
from ..perturb.neighbourhoods import Gaussian, Neighbourhood, Point
from ..perturb.points import Points
from ..statistics.keys import Key
from .base import Direct, mean


@dataclass(frozen=True)
class NoiseGrad(Direct):
    """φ = E ∇f_{θη}(x), η ~ N(1, σ²) for each parameter (Bykov et al. 2022, arXiv 2106.10185).

    ``stdev`` is σ, a share of each parameter; the paper raises it until the accuracy falls by about 5 %. The weights are
    exchanged while a sample is evaluated and given back whatever happens. ``redraw`` of a metric's neighbours has no effect:
    the noise belongs to the model and not to the inputs.
    """

    n_samples: int = 10
    stdev: float = 0.2

    name, kind = "noisegrad", "gradient"
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
        return averaged(score, points, key, self.n_samples, self.stdev, Point(), 1)

    def rows(self, shape):
        return {"gradient": self.n_samples}

    def check(self, score, points, key):
        replace(self, n_samples=1).attribute(score, points, key)


@dataclass(frozen=True)
class FusionGrad(Direct):
    """φ = E ∇f_{θη}(x + ξ): NoiseGrad and SmoothGrad at once, ``m_samples`` noisy inputs for each of ``n_samples`` noisy models
    (Bykov et al. 2022, arXiv 2106.10185).

    ``stdev`` is of the weights' noise; ``input_stdev`` of the input's, a share of max x − min x if ``relative``, else in
    units of the model's input, drawn by the input's id as in SmoothGrad.
    """

    n_samples: int = 10
    m_samples: int = 10
    stdev: float = 0.2
    input_stdev: float = 0.15
    relative: bool = True

    name, kind = "fusiongrad", "gradient"
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
        return averaged(score, points, key, self.n_samples, self.stdev, where, self.m_samples)

    def rows(self, shape):
        return {"gradient": self.n_samples * self.m_samples}

    def check(self, score, points, key):
        replace(self, n_samples=1, m_samples=1).attribute(score, points, key)


def averaged(
    score: Score, points: Points, key: Key, models: int, stdev: float, where: Neighbourhood, inputs: int
) -> Tensor:
    """(N, *F): the mean gradient over ``models`` noisy models and, for each, ``inputs`` samples of ``where``."""
    if models < 1 or inputs < 1:
        raise InputError(f"n_samples, m_samples: at least 1, got {models} and {inputs}")
    state = None
    step = max(1, 4 * score.batch.size(True) // len(points))
    for model in range(models):
        with noisy(score.model, key / "weights", model, stdev):
            for start in range(0, inputs, step):
                samples = range(model * inputs + start, model * inputs + min(start + step, inputs))
                cloud = where.draw(points, samples, key / "inputs", inputs)
                state = mean(state, cloud, score.grad(cloud.points, cloud.owner))
    assert state is not None
    return state / models


@contextlib.contextmanager
def noisy(model: Any, key: Key, sample: int, stdev: float) -> Iterator[None]:
    """The model's parameters times 1 + stdev · N(0, 1) inside; the same tensors as before afterwards, whatever happens.

    A parameter that is used twice is drawn once. Whole numbers and buffers stay.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            "model: noisegrad and fusiongrad perturb weights, so they need an nn.Module, not a plain callable; "
            "use smoothgrad, which perturbs the input"
        )
    before = [(name, parameter, parameter.data) for name, parameter in model.named_parameters()]
    try:
        for name, parameter, data in before:
            if data.is_floating_point():
                # .data, so that whatever holds on to the Parameter itself (fused recurrent layers) sees the noise too.
                parameter.data = data.clone().mul_(1 + stdev * _noise(key / name, sample, data))
        yield
    finally:
        for _, parameter, data in before:
            parameter.data = data


def _noise(key: Key, sample: int, like: Tensor) -> Tensor:
    """Standard normal of a tensor's shape, float32 at least. A generator of torch's own, seeded by the key: a network has
    millions of parameters, and counter-based draws would take longer than its passes. Drawn on the CPU for every device."""
    high, low = (key / str(sample)).words
    generator = torch.Generator().manual_seed(high << 31 | low >> 1)
    wide = torch.promote_types(like.dtype, torch.float32)
    return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like.device, wide)
