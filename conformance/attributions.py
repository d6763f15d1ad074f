"""Explainers beside Captum's and pytorch-grad-cam's: the largest difference as a share of the largest value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from consilience.explainers import METHODS, Stack
from consilience.features.images import Patches, Pixels
from consilience.model.score import Score
from consilience.perturb.points import Points

TARGET = torch.tensor([1, 0, 3])


class Net(nn.Module):
    """conv, relu, max-pool, conv, relu, mean, linear; fixed weights, float64."""

    def __init__(self, pool: bool = False, seed: int = 0):
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(3, 5, 3, padding=1), nn.ReLU()
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.conv2, self.act2 = nn.Conv2d(5, 6, 3, padding=1, stride=2), nn.ReLU()
        self.head = nn.Linear(6, 4)
        keyed = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=keyed) * 0.4)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act2(self.conv2(self.pool(self.act1(self.conv1(x))))).mean((2, 3)))


def pictures(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def ours(name: str, model: nn.Module, **options: Any) -> Tensor:
    x = pictures()
    score = Score(model, TARGET).at(x)
    return Stack([METHODS[name](**options)]).attribute(score, Points(x, torch.arange(3), score.ids))[:, 0]


def row(
    name: str, library: str, mine: Tensor, theirs: Tensor, tolerance: float = 1e-6, reason: str = ""
) -> dict[str, Any]:
    gap = float((mine - theirs).abs().max() / mine.abs().max())
    agrees = gap <= tolerance
    why = f"{reason} (largest difference {gap:.2g} of the largest value)" if reason and not agrees else ""
    return {
        "measure": name, "library": library, "ours": float(mine.abs().max()), "theirs": float(theirs.abs().max()),
        "agrees": agrees, "reason": why,
    }  # fmt: skip


def cases() -> list[dict[str, Any]]:
    import captum.attr as captum

    model, x = Net(), pictures()
    masks = torch.arange(16).view(4, 4).repeat_interleave(2, 0).repeat_interleave(2, 1)[None]
    found: list[dict[str, Any]] = []
    table: list[tuple[str, dict[str, Any], Callable[[], Tensor], str]] = [
        ("saliency", {}, lambda: captum.Saliency(model).attribute(x, TARGET, abs=False), ""),
        ("saliency", {}, lambda: captum.Saliency(model).attribute(x, TARGET),
         "Captum's default takes the absolute value inside; here it is the stage after"),
        ("input_x_gradient", {}, lambda: captum.InputXGradient(model).attribute(x, TARGET), ""),
        ("integrated_gradients", {"n_steps": 20, "baselines": 0.2},
         lambda: captum.IntegratedGradients(model).attribute(x, 0.2, TARGET, n_steps=20), ""),
        ("guided_backprop", {}, lambda: captum.GuidedBackprop(model).attribute(x, TARGET), ""),
        ("deeplift", {"baselines": 0.2}, lambda: captum.DeepLift(model).attribute(x, 0.2, TARGET), ""),
        ("feature_ablation", {"features": Patches(2), "baselines": 0.0},
         lambda: captum.FeatureAblation(model).attribute(x, 0.0, TARGET, feature_mask=masks) / 12, ""),
        ("occlusion", {"window": 3, "stride": 1, "baselines": 0.0, "features": Pixels()},
         lambda: captum.Occlusion(model).attribute(x, (3, 3, 3), (3, 1, 1), 0.0, TARGET).double() / 27, ""),
    ]  # fmt: skip
    for name, options, theirs, reason in table:
        if name in METHODS:
            found.append(row(name, "Captum", ours(name, model, **options), theirs().detach(), reason=reason))
    pooled = Net(pool=True)
    found.append(
        row("deeplift around max-pooling", "Captum", ours("deeplift", pooled, baselines=0.2),
            captum.DeepLift(pooled).attribute(x, 0.2, TARGET).detach(),
            reason="Captum un-pools multipliers, which loses contributions; ours sum to f(x) − f(b) to rounding")
    )  # fmt: skip
    score = Score(pooled, TARGET).at(x)
    fall = score.clean - Score(pooled, TARGET).at(torch.full_like(x, 0.2)).clean
    found.append(
        row(
            "deeplift around max-pooling: Σφ",
            "f(x) − f(b)",
            ours("deeplift", pooled, baselines=0.2).flatten(1).sum(1),
            fall,
        )
    )
    found.append(
        row("f(x) − f(b) around max-pooling", "Captum's DeepLift: Σφ", fall,
            captum.DeepLift(pooled).attribute(x, 0.2, TARGET).detach().flatten(1).sum(1),
            reason="not complete: its contributions do not add up")
    )  # fmt: skip
    return found + cams()


def cams() -> list[dict[str, Any]]:
    """pytorch-grad-cam rescales each map to 0…1 by its range; so are ours here."""
    import pytorch_grad_cam as library
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def unit(maps: Tensor) -> Tensor:
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        return (maps - low) / (high - low)

    reasons = {
        "grad_cam_plus_plus": "there an absolute 1e-6 is added to a denominator of squared gradients",
        "eigen_cam": "there the channels are centred, after which the sign is undefined",
        "layer_cam": "",
        "score_cam": "there the masks are upsampled with align_corners=True and the map without; here without, both",
    }
    found = []
    for name, theirs in (
        ("grad_cam", "GradCAM"), ("grad_cam_plus_plus", "GradCAMPlusPlus"), ("layer_cam", "LayerCAM"),
        ("score_cam", "ScoreCAM"), ("eigen_cam", "EigenCAM"),
    ):  # fmt: skip
        if name not in METHODS:
            continue
        model = Net().float()
        with getattr(library, theirs)(model=model, target_layers=[model.act2]) as method:
            maps = method(input_tensor=pictures().float(), targets=[ClassifierOutputTarget(int(t)) for t in TARGET])
        mine = ours(name, Net(), layer="act2").sum(1)
        found.append(
            row(name, "pytorch-grad-cam", unit(mine), unit(torch.as_tensor(maps).double()), 0.02, reasons.get(name, ""))
        )
    return found


if __name__ == "__main__":
    for case in cases():
        print(case)
