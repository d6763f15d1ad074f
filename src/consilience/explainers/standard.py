"""The standard methods of an image, a table and a text: those that are worth their evaluations there.

Chosen by measures that nothing was fitted to (docs/held-out.md). Of images a coarse perturbation method, Grad-CAM and
integrated gradients make a consensus that is as good as that of nine methods, steadier, and half as dear; further maps of
single pixels add noise to it. Of texts guided backpropagation and DeepLIFT fail on the layers of transformers. The former set
for everything is "classic".
"""

from __future__ import annotations

from collections.abc import Sequence

from ..features.base import Features
from ..features.images import EIGHTH, features_for, patches
from ..features.sequences import Tokens
from .base import Explainer
from .cam import GradCAM
from .gradients import InputXGradient
from .paths import DeepLIFT, IntegratedGradients
from .perturbation import FeatureAblation
from .shapley import ShapleySampling

FEW = 64
"""Up to so many features of anything else are taken away one by one."""


def standard(shape: Sequence[int] | None = None, features: Features | str | None = None) -> tuple[Explainer, ...]:
    """The standard methods of inputs.

    Args:
        shape: F, the axes of one input; None: not known yet, those of images.
        features: what is attributed; None: the usual ones of the shape.
    """
    if shape is None or len(shape) == 3:
        ablated = None if shape is None else patches(shape, EIGHTH)
        return IntegratedGradients(), GradCAM(), FeatureAblation(ablated)
    attributed = features_for(features, shape)
    methods: tuple[Explainer, ...] = (InputXGradient(), IntegratedGradients())
    if not isinstance(attributed, Tokens):
        methods += (DeepLIFT(),)
    if attributed.largest(shape) <= FEW:
        methods += (FeatureAblation(), ShapleySampling(4))
    return methods
