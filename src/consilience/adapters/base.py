"""What an adapter gives: a model and inputs of another kind, as a model of one floating-point tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from ..features.base import Features
from ..model.arguments import per_input


@dataclass(frozen=True)
class Prepared:
    """The arguments that an explanation starts from.

    ``x`` (B, *F); ``model(x, **kwargs)`` → (N, outputs), where keyword tensors (B, …) follow their input; ``target``: None,
    an integer or integers (B,); ``features``, ``baselines``: as in :func:`consilience.explain`; ``unit``: the unit of noise,
    see :class:`~consilience.perturb.points.Points`; ``about``: what a result should carry (``tokens``, ``labels``, …).
    """

    model: nn.Module | Callable[..., Any]
    x: Any
    target: Any = None
    features: Features | str | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    baselines: Any = None
    unit: Tensor | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Adapter:
    """Interface: a model that takes something else than one tensor, or is asked something else than one number."""

    def prepare(self, inputs: Any, target: Any = None, features: Any = None, baselines: Any = None) -> Prepared:
        """The model as a function of one tensor, and the inputs as that tensor. ``features`` and ``baselines``: what the
        caller asked for, None for the adapter's own."""
        raise NotImplementedError


class Inputs:
    """Interface: inputs that the model takes in another form than one tensor."""

    def prepare(self, model: Any, target: Any = None, features: Any = None, baselines: Any = None) -> Prepared:
        """As for :class:`Adapter`, with the model given and the inputs bound."""
        raise NotImplementedError


def a_model(model: Any) -> Any:
    """``model``, if it can be one.

    Raises:
        InputError: it is neither a function nor an adapter.
    """
    if isinstance(model, Adapter) or callable(model):
        return model
    raise InputError(f"model: an nn.Module, a function or an adapter, got {type(model).__name__}")


def adapted(
    model: Any,
    x: Any,
    target: Any = None,
    features: Any = None,
    baselines: Any = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Prepared:
    """What an explanation starts from, adapter or not.

    Raises:
        InputError: of the adapter, or an adapter where inputs belong.
    """
    if isinstance(x, Adapter):
        raise InputError(f"x: {type(x).__name__} wraps a model; give it in the model's place")
    if isinstance(model, Adapter):
        found = model.prepare(x, target, features, baselines)
    elif isinstance(x, Inputs):
        found = x.prepare(model, target, features, baselines)
    else:
        return Prepared(model, x, target, features, dict(kwargs or {}), baselines)
    # The adapter knows that its own arguments have one entry for each input; the caller's are looked at.
    own = {name: per_input(value) for name, value in found.kwargs.items()}
    return replace(found, kwargs={**own, **(kwargs or {})})
