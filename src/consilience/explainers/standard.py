"""The standard methods of an image, a table and a text: those that are worth their evaluations there.

Chosen by measures that nothing was fitted to (docs/held-out.md). Of images a coarse perturbation method, Grad-CAM and
integrated gradients make a consensus that is as good as that of nine methods, steadier, and half as dear; further maps of
single pixels add noise to it. Of texts guided backpropagation and DeepLIFT fail on the layers of transformers. The former set
for everything is "classic".
"""

from __future__ import annotations

from collections.abc import Sequence

from ..features.base import Features
from ..features.images import Patches, features_for
from ..features.sequences import Tokens
from .base import Explainer
from .cam import GradCAM
from .gradients import InputXGradient
from .paths import DeepLIFT, IntegratedGradients
from .perturbation import FeatureAblation
from .shapley import ShapleySampling

PATCHES = 8
"""Patches along an image's short side for feature ablation: 64 forward evaluations of a square one."""

FEW = 64
"""Up to so many features of anything else are taken away one by one."""


def standard(shape: Sequence[int] | None = None, features: Features | str | None = None) -> tuple[Explainer, ...]:
    """The standard methods of inputs.

    Args:
        shape: F, the axes of one input; None: not known yet, those of images.
        features: what is attributed; None: the usual ones of the shape.
    """
    if shape is None or len(shape) == 3:
        ablated = None if shape is None else Patches(_side(shape))
        return IntegratedGradients(), GradCAM(), FeatureAblation(ablated)
    attributed = features_for(features, shape)
    methods: tuple[Explainer, ...] = (InputXGradient(), IntegratedGradients())
    if not isinstance(attributed, Tokens):
        methods += (DeepLIFT(),)
    if attributed.largest(shape) <= FEW:
        methods += (FeatureAblation(), ShapleySampling(4))
    return methods


def _side(shape: Sequence[int]) -> int:
    """The side of patches of which about eight are along the short side, without a remainder where that is possible."""
    short = min(shape[1:])
    wanted = short / PATCHES
    even = [side for side in range(1, short + 1) if shape[1] % side == 0 and shape[2] % side == 0]
    near = [side for side in even if wanted / 1.5 <= side <= wanted * 1.5]
    return min(near, key=lambda side: abs(side - wanted), default=max(1, round(wanted)))
