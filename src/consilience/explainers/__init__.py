"""Explainers: what they need of the model, and how it is folded into attributions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

from ..errors import InputError, choose
from ..features import Features
from .base import Direct, Explainer, Need
from .cam import EigenCAM, GradCAM, GradCAMPlusPlus
from .gradients import GuidedBackprop, InputXGradient, Saliency, SmoothGrad, SmoothGradSquared, UniformGrad, VarGrad
from .paths import DeepLIFT, ExpectedGradients, GradientSHAP, IntegratedGradients
from .stack import Normalised, Stack, unique

METHODS: dict[str, type[Explainer]] = {
    cls.name: cls
    for cls in (
        Saliency, InputXGradient, IntegratedGradients, ExpectedGradients, GradientSHAP, SmoothGrad, SmoothGradSquared,
        VarGrad, UniformGrad, GuidedBackprop, DeepLIFT, GradCAM, GradCAMPlusPlus, EigenCAM,
    )
}  # fmt: skip

# Sets of methods by name. "paper" is AGG's Tables 1, 3, 4 and "paper_faithfulness" its Table 2, with the settings of the
# authors' code: 50 integration steps, 20 noise draws with σ = .5 in units of the normalised input.
PRESETS: dict[str, tuple[Explainer, ...]] = {
    "standard": (
        Saliency(), InputXGradient(), IntegratedGradients(), SmoothGrad(10), VarGrad(10), GuidedBackprop(), DeepLIFT(),
        GradCAM(),
    ),
    "gradient": (Saliency(), InputXGradient(), IntegratedGradients(), SmoothGrad(10), SmoothGradSquared(10), VarGrad(10)),
    "paper": (
        Saliency(), GuidedBackprop(), DeepLIFT(), IntegratedGradients(50), InputXGradient(),
        SmoothGrad(20, 0.5, relative=False), VarGrad(20, 0.5, relative=False),
    ),
    "paper_faithfulness": (
        GradientSHAP(20), IntegratedGradients(50), InputXGradient(), SmoothGrad(20, 0.5, relative=False),
        GradCAM(), GradCAMPlusPlus(), EigenCAM(),
    ),
}  # fmt: skip

__all__ = [
    "METHODS",
    "PRESETS",
    "Direct",
    "Explainer",
    "Need",
    "Normalised",
    "Stack",
    "resolve",
    "unique",
    *(c.__name__ for c in METHODS.values()),
]


def resolve(
    methods: str | Explainer | Iterable[str | Explainer], baselines: Any = None, features: Features | None = None
) -> list[Explainer]:
    """A preset's name, method names ("saliency,grad_cam" or a list) or configured explainers → explainers, in order.

    ``baselines`` and ``features`` go to those given by name that have them.
    """
    asked = {name: value for name, value in (("baselines", baselines), ("features", features)) if value is not None}
    if isinstance(methods, Explainer):
        return [methods]
    given = [part.strip() for part in methods.split(",")] if isinstance(methods, str) else list(methods)
    found: list[Explainer] = []
    for item in given:
        if isinstance(item, Explainer):
            found.append(item)
        elif not isinstance(item, str):
            raise InputError(f"methods: names or explainers, got {type(item).__name__}")
        elif item in PRESETS:
            found.extend(_with(e, asked) for e in PRESETS[item])
        else:
            found.append(_with(METHODS[choose("method", item, [*METHODS, *PRESETS])](), asked))
    if not found:
        raise InputError("methods: at least one is needed")
    return found


def _with(explainer: Explainer, asked: dict[str, Any]) -> Explainer:
    mine = {f.name: asked[f.name] for f in fields(explainer) if f.name in asked}  # type: ignore[arg-type]
    return replace(explainer, **mine) if mine else explainer  # type: ignore[type-var]
