"""Class activation maps: reductions of one layer's activations and their gradients, upsampled to the input.

The layer is found by one probe pass (``layer="auto"``: the last spatial output with a non-zero spatial gradient) or
named. Activations and gradients ride on the backward pass that saliency makes anyway. A is (N, C, h, w), g its gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..neighbourhood import Points
from .base import Explainer, Need


@dataclass(frozen=True)
class GradCAM(Explainer):
    """relu Σ_c ḡ_c A_c, ḡ the mean gradient over space (Selvaraju et al. 2017, arXiv 1610.02391)."""

    layer: str = "auto"

    name, kind = "grad_cam", "relevance"

    @property
    def need(self):
        return Need(layer=self.layer)

    def fold(self, state, cloud, values):
        acts, grads = values.activations[self.layer]
        return (grads.mean((2, 3), keepdim=True) * acts).sum(1).relu()

    def finish(self, state, points):
        return upsample(state, points)


@dataclass(frozen=True)
class GradCAMPlusPlus(Explainer):
    """relu Σ_c a_c A_c, a_c = Σ_hw α relu(g), α = g² / (2g² + g³ Σ_hw A) (Chattopadhay et al. 2018, arXiv 1710.11063).

    As in the released code and pytorch-grad-cam, the score takes the place of its exponential.
    """

    layer: str = "auto"

    name, kind = "grad_cam_plus_plus", "relevance"

    @property
    def need(self):
        return Need(layer=self.layer)

    def fold(self, state, cloud, values):
        acts, grads = values.activations[self.layer]
        below = 2 * grads**2 + grads**3 * acts.sum((2, 3), keepdim=True)
        # α is invariant to the gradient's scale only up to pytorch-grad-cam's absolute 1e-6; a relative guard keeps it.
        safe = below.abs() > 1e-12 * below.detach().abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-30)
        alpha = torch.where(safe, grads**2 / torch.where(safe, below, torch.ones_like(below)), torch.zeros_like(below))
        return ((alpha * grads.relu()).sum((2, 3), keepdim=True) * acts).sum(1).relu()

    def finish(self, state, points):
        return upsample(state, points)


@dataclass(frozen=True)
class EigenCAM(Explainer):
    """relu of A projected on its first right singular vector over space, (hw × C) not centred, sign such that the mean is
    positive (Muhammad & Yeasin 2020, arXiv 2008.00299). Does not depend on the target.

    pytorch-grad-cam centres the channels first, which leaves the sign undefined: the projection's mean is then zero.
    """

    layer: str = "auto"

    name, kind = "eigen_cam", "relevance"

    @property
    def need(self):
        return Need(layer=self.layer)

    def fold(self, state, cloud, values):
        acts = values.activations[self.layer][0]
        flat = acts.flatten(2).transpose(1, 2)  # (N, hw, C)
        if flat.shape[1] <= flat.shape[2]:
            values_, vectors = torch.linalg.eigh(flat @ flat.transpose(1, 2))
            projection = vectors[..., -1] * values_[..., -1:].clamp(min=0).sqrt()
        else:
            vectors = torch.linalg.eigh(flat.transpose(1, 2) @ flat)[1]
            projection = (flat @ vectors[..., -1:])[..., 0]
        sign = torch.where(projection.mean(1, keepdim=True) < 0, -1.0, 1.0).to(projection)
        return (projection * sign).relu().unflatten(1, acts.shape[2:])

    def finish(self, state, points):
        return upsample(state, points)


def upsample(grid: Tensor, points: Points) -> Tensor:
    """(N, h, w) → (N, C, H, W): bilinear, shared evenly by the channels, so that the sum over channels is the map."""
    channels, *size = points.x.shape[1:]
    big = nnf.interpolate(grid[:, None], size=size, mode="bilinear", align_corners=False)
    return (big / channels).expand(-1, channels, -1, -1)
