"""The interface of adapters: a model and inputs of another kind, as a model of one floating-point tensor."""

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

    Args:
        model: ``model(x, **kwargs)`` → (N, outputs).
        x: (B, *F).
        target: None, an integer, or integers (B,).
        features: as in :func:`consilience.explain`.
        kwargs: of the model; tensors (B, …) follow their input.
        baselines: as in :func:`consilience.explain`.
        unit: the unit of noise, see :class:`~consilience.perturb.points.Points`.
        about: what a result should carry ("tokens", "labels", …).
        warnings: what a user should know, in sentences.
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
    """Interface: a model that takes something else than a tensor, or gives something else than a vector for each input.

    It stands in the model's place.
    """

    def prepare(self, inputs: Any, target: Any = None, features: Any = None, baselines: Any = None) -> Prepared:
        """The model as a function of one tensor, and the inputs as that tensor.

        Args:
            inputs: in the form that the adapter takes.
            target: what is explained; None: what the model predicts.
            features: what the caller asked for; None: the adapter's own.
            baselines: what the caller asked for; None: the adapter's own.

        Raises:
            InputError: the inputs, or what was asked for, do not fit the model.
        """
        raise NotImplementedError


class Inputs:
    """Interface: inputs that the model takes in another form than one tensor.

    They stand in the place of x.
    """

    def prepare(self, model: Any, target: Any = None, features: Any = None, baselines: Any = None) -> Prepared:
        """The model as a function of one tensor, and these inputs as that tensor.

        Args:
            model: the caller's.
            target: as for :meth:`Adapter.prepare`.
            features: as for :meth:`Adapter.prepare`.
            baselines: as for :meth:`Adapter.prepare`.

        Raises:
            InputError: the inputs, or what was asked for, do not fit the model.
        """
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

    Args:
        model: a model, or an :class:`Adapter`.
        x: inputs, or :class:`Inputs`.
        target: as in :func:`consilience.explain`.
        features: as in :func:`consilience.explain`.
        baselines: as in :func:`consilience.explain`.
        kwargs: of the model; they come before the adapter's.

    Raises:
        InputError: of the adapter, or an adapter where inputs belong.
    """
    # A slip that happens: cs.explain(model, cs.text(…)).
    if isinstance(x, Adapter):
        raise InputError(f"x: {type(x).__name__} wraps a model; give it in the model's place")
    if isinstance(model, Adapter):
        prepared = model.prepare(x, target, features, baselines)
    elif isinstance(x, Inputs):
        prepared = x.prepare(model, target, features, baselines)
    else:
        return Prepared(model, x, target, features, dict(kwargs or {}), baselines)
    # The adapter knows that its arguments have one entry for each input. The caller's are looked at later.
    own = {name: per_input(value) for name, value in prepared.kwargs.items()}
    return replace(prepared, kwargs={**own, **(kwargs or {})})
