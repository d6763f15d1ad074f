"""Slow twins of the methods that run by themselves or read one layer otherwise: Layer-CAM, Score-CAM, NoiseGrad, FusionGrad."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as nnf
from twins import SEED, Row, activations, gradient, upsampled

from consilience.explainers.cam import LayerCAM, ScoreCAM
from consilience.explainers.weight_noise import FusionGrad, NoiseGrad
from consilience.statistics.keys import Key


def layer_cam(e, model, x, i, t):
    acts, grads = activations(model, x, t)
    return upsampled(sum(g.relu() * a for a, g in zip(acts, grads, strict=True)).relu(), x)


def score_cam(e, model, x, i, t):
    acts, _ = activations(model, x, t)
    channels = sorted(range(len(acts)), key=lambda c: -float(acts[c].abs().mean()))[: e.channels]
    scores = []
    for c in channels:
        mask = nnf.interpolate(acts[c][None, None], size=x.shape[1:], mode="bilinear")[0, 0]
        mask = (mask - mask.min()) / (mask.max() - mask.min())
        scores.append(model((x * mask)[None])[0, t].item())
    shares = torch.tensor(scores, dtype=torch.float64).exp()
    total = sum(share * acts[c] for share, c in zip(shares / shares.sum(), channels, strict=True))
    return upsampled(total.relu(), x)


def noisy_model(e, model, sample):
    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        key = Key(SEED, f"explainer/{e.name}/weights/{name}")
        high, low = (key / str(sample)).words
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(high << 31 | low >> 1))
        parameter.data *= 1 + e.stdev * noise.double()
    return model


def noise_grad(e, model, x, i, t):
    return sum(gradient(noisy_model(e, model, s), x, t) for s in range(e.n_samples)) / e.n_samples


def fusion_grad(e, model, x, i, t):
    sigma = e.input_stdev * (x.max() - x.min()) if e.relative else e.input_stdev
    key, total = Key(SEED, f"explainer/{e.name}/inputs"), 0
    for n in range(e.n_samples):
        for m in range(e.m_samples):
            noise = key.normal(torch.tensor([i]), n * e.m_samples + m, x.shape)[0].double()
            total = total + gradient(noisy_model(e, model, n), x + sigma * noise, t)
    return total / (e.n_samples * e.m_samples)


TABLE = [
    Row(LayerCAM(), layer_cam),
    Row(ScoreCAM(channels=4), score_cam, differentiable=False),
    Row(NoiseGrad(3), noise_grad, differentiable=False),
    Row(FusionGrad(2, 3), fusion_grad, differentiable=False),
]
