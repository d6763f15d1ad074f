"""Class activation maps: reductions of one layer's activations, weighted by gradients or by scores, upsampled to the input.

``layer="auto"`` is the last layer whose cells are proved to be places of the image and through which the score passes. It is a
function of the model: a probe of five rows of noise finds it, whatever is in the batch (:mod:`..model.cam_layers`). A named
layer must pass the same proof. Activations and gradients come from the backward pass that saliency makes anyway.
Shapes: A (N, C, h, w) the activations, g their gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..card import Card
from ..perturb.points import Points
from ..settings import setting
from .base import Direct, Explainer, Need

HEAT = "no unit: a heat map; the sum over an image's channels is the map"

SHARED = "1 gradient, shared with saliency; once for the layer: 1 gradient and up to 4 forwards of noise"


@dataclass(frozen=True)
class GradCAM(Explainer):
    """relu Σ_c ḡ_c A_c, ḡ the mean gradient over space (Selvaraju et al. 2017, arXiv 1610.02391).

    Args:
        layer: a submodule's name, or "auto".
    """

    layer: str = "auto"

    name = "grad_cam"
    kind = "relevance"
    card = Card(
        formula="φ = relu Σ_c ḡ_c A_c, ḡ_c the mean over space of ∂f/∂A_c",
        source="Selvaraju et al. 2017, arXiv 1610.02391",
        normalisation=HEAT,
        cost=SHARED,
        differences=(
            (
                "Captum",
                "LayerGradCam keeps negative values and the layer's size: relu_attributions=True, then upsample",
            ),
            (
                "pytorch-grad-cam",
                "each map is shifted and divided to 0…1 and upsampled by OpenCV: equal up to that scaling",
            ),
        ),
    )

    @property
    def need(self):
        return Need(gradient=False, layer=self.layer)

    def fold(self, state, cloud, values):
        acts, grads = values.activations[self.layer]
        return (grads.mean((2, 3), keepdim=True) * acts).sum(1).relu()

    def finish(self, state, points):
        return upsample(state, points)


@dataclass(frozen=True)
class GradCAMPlusPlus(Explainer):
    """relu Σ_c a_c A_c, a_c = Σ_hw α relu(g), α = g² / (2g² + g³ Σ_hw A) (Chattopadhay et al. 2018, arXiv 1710.11063).

    As in the released code and pytorch-grad-cam, the score takes the place of its exponential. The map is not free of the
    score's scale: with c f in place of f, α = g² / (2g² + c g³ Σ_hw A).

    Args:
        layer: a submodule's name, or "auto".
    """

    layer: str = "auto"

    name = "grad_cam_plus_plus"
    kind = "relevance"
    card = Card(
        formula="φ = relu Σ_c a_c A_c, a_c = Σ_hw α relu(g), α = g² / (2g² + g³ Σ_hw A)",
        source="Chattopadhay et al. 2018, arXiv 1710.11063; the score in place of its exponential, as in the released code",
        normalisation=HEAT,
        cost=SHARED,
        differences=(
            (
                "pytorch-grad-cam",
                "adds an absolute 10⁻⁶ to the denominator, which decides the map where squared gradients are smaller; the "
                "guard here is relative, and both agree where gradients are large. In both the map depends on the score's "
                "scale, since the formula adds g² to g³",
            ),
        ),
    )

    @property
    def need(self):
        return Need(gradient=False, layer=self.layer)

    def fold(self, state, cloud, values):
        acts, grads = values.activations[self.layer]
        denominator = 2 * grads**2 + grads**3 * acts.sum((2, 3), keepdim=True)
        # Relative to the largest denominator: which cells count as zero does not depend on the units of the score, as it does
        # with pytorch-grad-cam's absolute 1e-6.
        largest = denominator.detach().abs().amax((1, 2, 3), keepdim=True)
        is_safe = denominator.abs() > 1e-12 * largest.clamp(min=1e-30)
        # The 1 keeps NaN out of the gradient of the branch that is not taken.
        ratio = grads**2 / torch.where(is_safe, denominator, torch.ones_like(denominator))
        alpha = torch.where(is_safe, ratio, torch.zeros_like(denominator))
        weights = (alpha * grads.relu()).sum((2, 3), keepdim=True)
        return (weights * acts).sum(1).relu()

    def finish(self, state, points):
        return upsample(state, points)


@dataclass(frozen=True)
class EigenCAM(Explainer):
    """relu of A projected on its first right singular vector over space, (hw × C) not centred, sign such that the mean is
    positive (Muhammad & Yeasin 2020, arXiv 2008.00299). Does not depend on the target.

    pytorch-grad-cam centres the channels first, which leaves the sign undefined: the projection's mean is then zero.

    Args:
        layer: a submodule's name, or "auto".
    """

    layer: str = "auto"

    name = "eigen_cam"
    kind = "relevance"
    card = Card(
        formula="φ = relu(±A v), v the first right singular vector of A (hw × C), the sign that makes the mean positive",
        source="Muhammad & Yeasin 2020, arXiv 2008.00299",
        normalisation=HEAT,
        cost=SHARED + "; one small eigenproblem",
        differences=(
            ("pytorch-grad-cam", "centres the channels first, which is another map and leaves its sign undefined"),
        ),
    )

    @property
    def need(self):
        return Need(gradient=False, layer=self.layer)

    def fold(self, state, cloud, values):
        acts = values.activations[self.layer][0]
        rows = acts.flatten(2).transpose(1, 2)  # (N, hw, C)
        places, channels = rows.shape[1:]
        # The projection A v follows from the smaller of two Gram matrices: A Aᵀ over places, or Aᵀ A over channels.
        if places <= channels:
            eigenvalues, vectors = torch.linalg.eigh(rows @ rows.transpose(1, 2))
            singular_value = eigenvalues[..., -1:].clamp(min=0).sqrt()
            projection = vectors[..., -1] * singular_value
        else:
            _, vectors = torch.linalg.eigh(rows.transpose(1, 2) @ rows)
            projection = (rows @ vectors[..., -1:])[..., 0]
        sign = torch.where(projection.mean(1, keepdim=True) < 0, -1.0, 1.0).to(projection)
        return (projection * sign).relu().unflatten(1, acts.shape[2:])

    def finish(self, state, points):
        return upsample(state, points)


@dataclass(frozen=True)
class LayerCAM(Explainer):
    """relu Σ_c relu(g_c) ⊙ A_c: each place has weights of its own, so earlier layers may be read as well (Jiang et al. 2021,
    doi 10.1109/TIP.2021.3089943).

    Args:
        layer: a submodule's name, or "auto".
    """

    layer: str = "auto"

    name = "layer_cam"
    kind = "relevance"
    card = Card(
        formula="φ = relu Σ_c relu(∂f/∂A_c) ⊙ A_c",
        source="Jiang et al. 2021, IEEE Transactions on Image Processing, doi 10.1109/TIP.2021.3089943",
        normalisation=HEAT,
        cost=SHARED,
        differences=(
            (
                "pytorch-grad-cam",
                "each map is shifted and divided to 0…1 and upsampled by OpenCV: equal up to that scaling",
            ),
            (
                "the paper",
                "scales shallow layers' maps by tanh(2·map / max) before it adds them up; one layer needs none",
            ),
        ),
    )

    @property
    def need(self):
        return Need(gradient=False, layer=self.layer)

    def fold(self, state, cloud, values):
        acts, grads = values.activations[self.layer]
        return (grads.relu() * acts).sum(1).relu()

    def finish(self, state, points):
        return upsample(state, points)


@dataclass(frozen=True)
class ScoreCAM(Direct):
    """relu Σ_c α_c A_c, α = softmax_c f(x ⊙ H_c), H_c the channel A_c upsampled and stretched to 0…1 (Wang et al. 2020,
    arXiv 1910.01279). The paper subtracts f(baseline), which the softmax does not see.

    Two phases: the activations, then one evaluation for each channel. What a mask takes away becomes 0 in units of the model's
    input. A channel that is constant over space masks everything.

    Args:
        layer: a submodule's name, or "auto".
        channels: so many at most, those with the largest mean |A|, are asked; the others get no weight. None asks all.
    """

    layer: str = "auto"
    channels: int | None = setting(512, low=1)

    name = "score_cam"
    kind = "relevance"
    card = Card(
        formula="φ = relu Σ_c α_c A_c, α = softmax over c of f(x ⊙ H_c), H_c = A_c upsampled, then min–max to 0…1",
        source="Wang et al. 2020, arXiv 1910.01279, algorithm 1",
        normalisation=HEAT,
        perturbation="the input times a map of 0…1: what is taken away becomes 0, the training mean of a normalised input",
        cost="1 gradient (for the layer), and a forward for each of the layer's channels, 512 at most by default",
        differences=(
            (
                "pytorch-grad-cam",
                "masks are upsampled with align_corners=True, which shifts them against the map, itself upsampled without, by "
                "up to half a cell; all channels, channels=None here; equal where the layer has the input's size",
            ),
            (
                "the authors' code",
                "weighs by the probability itself, without a softmax over channels, and leaves constant channels out",
            ),
        ),
    )

    def attribute(self, score, points, key):
        acts = score.evaluate(points.x, points.owner, layers=(self.layer,)).activations[self.layer][0]
        if self.channels is not None and self.channels < acts.shape[1]:
            largest = acts.abs().mean((2, 3)).topk(self.channels, dim=1).indices
            acts = acts.gather(1, largest[..., None, None].expand(-1, -1, *acts.shape[2:]))
        channels = acts.flatten(0, 1)[:, None]  # (N·C, 1, h, w): the channels of all points
        size = points.x.shape[2:]
        scores = []
        # A batch of channels at a time, upsampled when it is their turn: N·C masks of the input's size would not fit.
        for part in torch.arange(len(channels), device=acts.device).split(score.batch.size(False)):
            masks = nnf.interpolate(channels[part], size=size, mode="bilinear", align_corners=False)
            point = part // acts.shape[1]
            masked = points.x[point] * stretched(masks).to(points.x)
            scores.append(score(masked, points.owner[point]))
        weights = torch.cat(scores).view(acts.shape[:2]).softmax(1)
        return upsample((weights[..., None, None] * acts).sum(1).relu(), points)

    def rows(self, shape):
        """An upper bound: a layer may have fewer channels, or with None any number (512 is planned for)."""
        return {"forward": self.channels or 512, "gradient": 1}


def stretched(maps: Tensor) -> Tensor:
    """``maps`` (n, 1, H, W) to 0…1, each by its own range; a constant map becomes 0."""
    low = maps.amin((2, 3), keepdim=True)
    span = maps.amax((2, 3), keepdim=True) - low
    return (maps - low) / torch.where(span > 0, span, torch.ones_like(span))


def upsample(grid: Tensor, points: Points) -> Tensor:
    """A map on the input's grid, (N, C, H, W): bilinear, shared evenly by the channels, so that their sum is the map.

    Args:
        grid: (N, h, w).
        points: x (N, C, H, W).
    """
    channels, *size = points.x.shape[1:]
    big = nnf.interpolate(grid[:, None], size=size, mode="bilinear", align_corners=False)
    return (big / channels).expand(-1, channels, -1, -1)
