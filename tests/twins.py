"""Slow twins of the gradient, path and CAM methods: one input and one sample at a time, from the definitions."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as nnf
from nets import images
from torch import nn

from consilience.explainers import (  # fmt: skip
    DeepLIFT,
    EigenCAM,
    ExpectedGradients,
    GradCAM,
    GradCAMPlusPlus,
    GradientSHAP,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    Saliency,
    SmoothGrad,
    SmoothGradSquared,
    UniformGrad,
    VarGrad,
)
from consilience.statistics.keys import Key

SEED = 7
DATA = images(5, seed=3)


def gradient(model, row, target):
    row = row.detach().clone().requires_grad_()
    return torch.autograd.grad(model(row[None])[0, target], row)[0]


def noise(kind, stream, i, sample, shape):
    draw = getattr(Key(SEED, f"explainer/{stream}"), kind)
    return draw(torch.tensor([i]), sample, shape)[0].double()


# -- slow twins: one input and one sample at a time, from the definitions ----------------------------------------------


def smooth(e, model, x, i, t):
    sigma = e.stdev * (x.max() - x.min()) if e.relative else e.stdev
    return torch.stack(
        [gradient(model, x + sigma * noise("normal", "noise", i, s, x.shape), t) for s in range(e.n_samples)]
    )


def uniform(e, model, x, i, t):
    rows = [x + e.radius * (2 * noise("uniform", "noise", i, s, x.shape) - 1) for s in range(e.n_samples)]
    return torch.stack([gradient(model, row, t) for row in rows])


def integrated(e, model, x, i, t):
    nodes, weights = np.polynomial.legendre.leggauss(e.n_steps)
    total = torch.zeros_like(x)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        total += weight * gradient(model, e.baselines + node * (x - e.baselines), t) * (x - e.baselines)
    return total


def expected(e, model, x, i, t):
    """The rows of the data set go round: from a drawn one, in the step next to the golden share that meets all of them."""
    total, count = torch.zeros_like(x), len(e.baselines)
    start = int(noise("uniform", "paths/baseline", i, 0, ()) * count)
    steps = [step for step in range(1, count + 1) if math.gcd(step, count) == 1]
    golden = min(steps, key=lambda step: abs(step - round(count * (math.sqrt(5) - 1) / 2)))
    for s in range(e.n_samples):
        there = x + e.stdev * noise("normal", "paths/noise", i, s, x.shape) if e.stdev else x
        base = e.baselines[(start + s * golden) % count]
        alpha = noise("uniform", "paths/alpha", i, s, ())
        total += gradient(model, base + alpha * (there - base), t) * (there - base) / e.n_samples
    return total


def guided(e, model, x, i, t):
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_full_backward_hook(lambda m, got, out: (got[0].clamp(min=0) * (out[0] > 0),))
    return gradient(model, x, t)


def deeplift(e, model, x, i, t):
    """The network with each activation replaced by its slope between input and baseline; its gradient are the multipliers."""
    b = torch.full_like(x, e.baselines)
    slopes, h, g = [], x[None], b[None]
    for conv, act in ((model.conv1, model.act1), (model.conv2, model.act2)):
        h, g = conv(h), conv(g)
        slopes.append(((act(h) - act(g)) / (h - g)).detach())
        h, g = act(h), act(g)
    row = x.clone().requires_grad_()
    out = model.conv2(slopes[0] * model.conv1(row[None])) * slopes[1]
    return torch.autograd.grad(model.head(out.mean((2, 3)))[0, t], row)[0] * (x - b)


def activations(model, x, t):
    acts = model.features(x[None]).detach().requires_grad_()
    grads = torch.autograd.grad(model.head(acts.mean((2, 3)))[0, t], acts)[0]
    return acts.detach()[0], grads[0]


def upsampled(cam, x):
    return nnf.interpolate(cam[None, None], size=x.shape[1:], mode="bilinear")[0].expand_as(x) / len(x)


def grad_cam(e, model, x, i, t):
    acts, grads = activations(model, x, t)
    return upsampled(sum(g.mean() * a for a, g in zip(acts, grads, strict=True)).relu(), x)


def grad_cam_plus_plus(e, model, x, i, t):
    acts, grads = activations(model, x, t)
    total = 0
    for a, g in zip(acts, grads, strict=True):
        below = 2 * g**2 + g**3 * a.sum()
        total = total + (torch.where(below != 0, g**2 / below, 0) * g.relu()).sum() * a
    return upsampled(total.relu(), x)


def eigen_cam(e, model, x, i, t):
    acts, _ = activations(model, x, t)
    flat = acts.flatten(1).T
    cam = flat @ torch.linalg.svd(flat)[2][0]
    return upsampled((cam * (1 if cam.mean() >= 0 else -1)).relu().reshape(acts.shape[1:]), x)


@dataclass(frozen=True)
class Row:
    explainer: object
    twin: object
    differentiable: bool = True


TABLE = [
    Row(Saliency(), lambda e, m, x, i, t: gradient(m, x, t)),
    Row(InputXGradient(), lambda e, m, x, i, t: gradient(m, x, t) * x),
    Row(IntegratedGradients(6, baselines=0.3), integrated),
    Row(ExpectedGradients(7, baselines=DATA), expected),
    Row(GradientSHAP(5, baselines=DATA, stdev=0.2), expected),
    Row(SmoothGrad(7), lambda *a: smooth(*a).mean(0)),
    Row(SmoothGradSquared(7, stdev=0.4, relative=False), lambda *a: (smooth(*a) ** 2).mean(0)),
    Row(VarGrad(7), lambda *a: smooth(*a).var(0, correction=0)),
    Row(UniformGrad(7, radius=0.5), lambda *a: uniform(*a).mean(0)),
    Row(GuidedBackprop(), guided, differentiable=False),
    Row(DeepLIFT(baselines=0.3), deeplift),
    Row(GradCAM(), grad_cam),
    Row(GradCAMPlusPlus(), grad_cam_plus_plus),
    Row(EigenCAM(), eigen_cam),
]
