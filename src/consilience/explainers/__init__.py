"""Explainers: methods that attribute a score to features. The table :data:`METHODS` holds all of them by name.

Each says what it needs of the model, and how that is folded into attributions (:mod:`.base`); :class:`Stack` evaluates what
several of them need once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from ..errors import InputError, choose
from ..features.base import Features
from ..features.images import Patches
from ..perturb.baseline import Baseline
from .base import Direct, Explainer, Need
from .cam import EigenCAM, GradCAM, GradCAMPlusPlus, LayerCAM, ScoreCAM
from .captum import captum
from .captum_arguments import class_of
from .function import Function
from .gradients import GuidedBackprop, InputXGradient, Saliency, SmoothGrad, SmoothGradSquared, UniformGrad, VarGrad
from .mixture import Mixture
from .normalised import Normalised
from .paths import DeepLIFT, ExpectedGradients, GradientSHAP, IntegratedGradients
from .perturbation import FeatureAblation, Occlusion
from .rise import RISE
from .shapley import KernelSHAP, ShapleySampling
from .stack import Stack, unique
from .standard import standard
from .surrogates import LIME, MAPLE
from .weight_noise import FusionGrad, NoiseGrad

METHODS: dict[str, type[Explainer]] = {
    cls.name: cls
    for cls in (
        Saliency, InputXGradient, IntegratedGradients, ExpectedGradients, GradientSHAP, SmoothGrad, SmoothGradSquared,
        VarGrad, UniformGrad, NoiseGrad, FusionGrad, GuidedBackprop, DeepLIFT, GradCAM, GradCAMPlusPlus, LayerCAM,
        ScoreCAM, EigenCAM, FeatureAblation, Occlusion, RISE, LIME, KernelSHAP, ShapleySampling, MAPLE,
    )
}  # fmt: skip
"""Every method by name, in the order in which tables and the catalogue list them."""

PRESETS: dict[str, tuple[Explainer, ...]] = {
    "standard": standard(),
    "classic": (
        Saliency(), InputXGradient(), IntegratedGradients(), SmoothGrad(10), VarGrad(10), GuidedBackprop(), DeepLIFT(),
        GradCAM(),
    ),
    "gradient": (Saliency(), InputXGradient(), IntegratedGradients(), SmoothGrad(10), SmoothGradSquared(10), VarGrad(10)),
    "black_box": (FeatureAblation(), LIME(500), ShapleySampling(8)),
    "paper": (
        Saliency(), GuidedBackprop(), DeepLIFT(), IntegratedGradients(50), InputXGradient(),
        SmoothGrad(20, 0.5, relative=False), VarGrad(20, 0.5, relative=False),
    ),
    "paper_faithfulness": (
        GradientSHAP(20), IntegratedGradients(50), InputXGradient(), SmoothGrad(20, 0.5, relative=False),
        GradCAM(), GradCAMPlusPlus(), EigenCAM(),
    ),
    "paper_perturbation": (LIME(features=Patches(16)), ShapleySampling(features=Patches(16)), FeatureAblation(Patches(16))),
}  # fmt: skip
"""Sets of methods by name.

"standard" depends on the kind of input, see :mod:`~.standard`; here it is that of images. "classic" was the standard set of
everything. "black_box" needs outputs only: near x, with half of it removed, and with coalitions of every size.
"paper" is AGG's Tables 1,
3 and 4, "paper_faithfulness" its Table 2, "paper_perturbation" the perturbation methods of Tables 10 and 11, all with the
settings of the authors' code: 50 integration steps, 20 noise draws with σ = .5 in units of the normalised input.
"""

__all__ = [
    "METHODS",
    "PRESETS",
    "Direct",
    "Explainer",
    "Function",
    "Mixture",
    "Need",
    "Normalised",
    "Stack",
    "captum",
    "resolve",
    "unique",
    *(c.__name__ for c in METHODS.values()),
]


def resolve(
    methods: str | Explainer | Iterable[str | Explainer],
    baselines: Any = None,
    features: Features | None = None,
    shape: Sequence[int] | None = None,
) -> list[Explainer]:
    """Whatever ``methods=`` may be, as a list of explainers, in order.

    That is a preset's name, method names ("saliency,grad_cam" or a list), configured explainers, Captum's classes and
    instances, and callables (inputs, target=…).

    Args:
        methods: what is asked for.
        baselines: for those that have some and leave them open (None); rows of a data set also as the ``data`` of those that
            need some. None: they stay open.
        features: for those that have some and leave them open. None: they stay open.
        shape: F, the axes of one input, on which the standard methods depend; None: those of images.

    Raises:
        InputError: an unknown name, nothing at all, or something that is not a method.
    """
    settings: dict[str, Any] = {}
    if baselines is not None:
        settings["baselines"] = baselines
    if features is not None:
        settings["features"] = features
    if isinstance(baselines, Baseline) and baselines.kind == "samples":
        settings["data"] = baselines.tensor
    explainers: list[Explainer] = []
    for item in _items(methods):
        if isinstance(item, Explainer):
            explainers.append(_with(item, settings))
        elif not isinstance(item, str):
            explainers.append(foreign(item))
        elif item == "standard":
            explainers.extend(_with(member, settings) for member in standard(shape, features))
        elif item in PRESETS:
            explainers.extend(_with(member, settings) for member in PRESETS[item])
        else:
            method = METHODS[choose("method", item, [*METHODS, *PRESETS])]
            explainers.append(_with(method(), settings))
    if not explainers:
        raise InputError("methods: at least one is needed")
    return explainers


def _items(methods: Any) -> list[Any]:
    """One method, several, or names with commas between them, as a list."""
    if isinstance(methods, str):
        return [part.strip() for part in methods.split(",")]
    if isinstance(methods, Iterable):
        return list(methods)
    return [methods]


def _with(explainer: Explainer, settings: dict[str, Any]) -> Explainer:
    """The explainer with those of the settings that it has and leaves open."""
    if not is_dataclass(explainer):
        return explainer
    names = [field.name for field in fields(explainer)]
    changes = {name: settings[name] for name in names if name in settings and getattr(explainer, name) is None}
    if isinstance(explainer, Mixture):
        changes["explainers"] = tuple(_with(member, settings) for member in explainer.explainers)
    if not changes:
        return explainer
    return replace(explainer, **changes)


def foreign(item: Any) -> Explainer:
    """An explainer made of something that is not one: a class, a Captum class or instance, or a callable.

    Args:
        item: what was given.

    Raises:
        InputError: it is nothing of these; the message names what is understood.
    """
    if isinstance(item, type) and issubclass(item, Explainer):
        return item()
    # Not imported here, which takes seconds: if the item is Captum's, its module has been imported already.
    attr = sys.modules.get("captum.attr")
    if attr is not None and issubclass(class_of(item), attr.Attribution):
        return captum(item)
    return Function(item)
