"""Agreement with the field's libraries where they are right; where they are not, the reason stands in docs/numbers.md."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import Small, bound, images
from torch import nn

from consilience.explainers import (  # fmt: skip
    DeepLIFT,
    GradCAM,
    GradCAMPlusPlus,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    Saliency,
    Stack,
)

captum = pytest.importorskip("captum.attr")
TARGET = torch.tensor([1, 0, 3])


def ours(explainer, model=None):
    return Stack([explainer]).attribute(*bound(model or Small(), images(), TARGET))[:, 0]


@pytest.mark.parametrize(
    "explainer, theirs",
    [
        (Saliency(), lambda m, x: captum.Saliency(m).attribute(x, TARGET, abs=False)),
        (InputXGradient(), lambda m, x: captum.InputXGradient(m).attribute(x, TARGET)),
        (IntegratedGradients(7, 0.2), lambda m, x: captum.IntegratedGradients(m).attribute(x, 0.2, TARGET, n_steps=7)),
        (GuidedBackprop(), lambda m, x: captum.GuidedBackprop(m).attribute(x, TARGET)),
        (DeepLIFT(0.2), lambda m, x: captum.DeepLift(m).attribute(x, 0.2, TARGET)),
    ],
    ids=lambda case: getattr(case, "name", ""),
)
@pytest.mark.filterwarnings("ignore")  # Captum's, about the hooks and gradients that it sets
def test_captum(explainer, theirs):
    torch.testing.assert_close(ours(explainer), theirs(Small(), images()).detach(), rtol=1e-6, atol=1e-9)


def test_captum_grad_cam_before_upsampling():
    model = Small()
    theirs = captum.LayerGradCam(model, model.act2).attribute(images(), TARGET, relu_attributions=True)
    shown = nn.functional.interpolate(theirs, size=(8, 8), mode="bilinear")
    torch.testing.assert_close(ours(GradCAM(layer="act2")).sum(1, keepdim=True), shown.detach())


@pytest.mark.parametrize("ours_, name", [(GradCAM("act2"), "GradCAM"), (GradCAMPlusPlus("act2"), "GradCAMPlusPlus")])
def test_pytorch_grad_cam_up_to_its_scaling(ours_, name):
    library = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = Small()
    with torch.no_grad():
        model.head.weight *= 100  # Grad-CAM++ there adds an absolute 1e-6 to a denominator of squared gradients
    with getattr(library, name)(model=model.float(), target_layers=[model.act2]) as method:
        theirs = method(input_tensor=images().float(), targets=[ClassifierOutputTarget(int(t)) for t in TARGET])
    mine = ours(ours_, model.double()).sum(1).numpy()
    low, high = mine.min((1, 2), keepdims=True), mine.max((1, 2), keepdims=True)
    lowest, highest = theirs.min((1, 2), keepdims=True), theirs.max((1, 2), keepdims=True)
    np.testing.assert_allclose((mine - low) / (high - low), (theirs - lowest) / (highest - lowest), atol=0.02)
