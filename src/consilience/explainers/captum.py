"""Captum's methods as explainers, classes and instances.

Captum repeats rows step by step in some methods and input by input in others. It is given the score as a module of
(rows, owner), and the owners as additional_forward_args, which it repeats along with the rows: targets, masks and keyword
tensors are looked up for every row by its owner, in whatever order Captum works.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..card import Card
from ..errors import InputError, choose, need
from ..model.score import Score
from ..perturb.baseline import Baseline
from ..perturb.points import Points
from ..settings import checked
from ..statistics.keys import Key
from .base import Direct, Kind
from .cam import upsample
from .captum_arguments import class_of, count_features, count_windows, data_set, describe, label_sizes, labels_for
from .function import known_kind, snake_case
from .hosted import hosted, shaped

# What attributions are, by the class or its nearest known base.
KINDS: dict[str, Kind] = {
    "Saliency": "gradient",
    "GuidedBackprop": "gradient",
    "Deconvolution": "gradient",
    "LayerAttribution": "relevance",
    "Occlusion": "relevance",
    "GuidedGradCam": "relevance",
    "LRP": "relevance",
    "InputXGradient": "contribution",
    "IntegratedGradients": "contribution",
    "DeepLift": "contribution",
    "GradientShap": "contribution",
    "FeatureAblation": "contribution",
    "ShapleyValueSampling": "contribution",
    "Lime": "contribution",
}

# Methods that do not attribute a score of rows, and why.
REFUSED = {
    "FeaturePermutation": "exchanges values between the inputs of a batch, so an attribution depends on the others; use "
    "FeatureAblation",
    "NeuronAttribution": "explains a neuron; wrap the model so that it returns that neuron, and use the input's method",
    "DataLoaderAttribution": "explains a data set at once; use the method inside it",
    "BaseLLMAttribution": "explains generated text, not a score of rows",
}

# They hook submodules, which a plain callable does not have.
NEEDS_MODULES = ("DeepLift", "ModifiedReluGradientAttribution", "LRP", "InternalAttribution", "GuidedGradCam")

# Their baselines are a data set (n, *F), not a value for each input.
DISTRIBUTION = ("GradientShap", "DeepLiftShap", "LayerGradientShap")

# Arguments of ``attribute`` that the explanation itself gives.
GIVEN = ("self", "inputs", "target", "additional_forward_args", "return_convergence_delta")


def captum(method: Any, name: str | None = None, kind: Kind | None = None, layer: Any = None, **options: Any) -> Captum:
    """A Captum method as an explainer: ``captum(IntegratedGradients, n_steps=50)``.

    Args:
        method: a subclass of ``captum.attr.Attribution``, or an instance of one for settings of its constructor and for
            ``NoiseTunnel(method)``. Of an instance only the settings are used: what is explained is the score.
        name: the row's name; by default ``captum_…`` with the class and the plain ``options``.
        kind: "gradient", "contribution" or "relevance"; by default what the class is known for.
        layer: for layer methods and GuidedGradCam: a name, "auto", or a submodule of the explained model.
        options: arguments of the method's ``attribute``. ``baselines`` as for
            :class:`~consilience.explainers.IntegratedGradients` (for GradientShap and DeepLiftShap a data set (n, *F));
            ``feature_mask`` labels of shape F, (1, *F) or (B, *F), or :class:`~consilience.features.base.Features`.

    Raises:
        InputError: it is not a Captum method, or one that cannot be asked row by row; the kind or an option is unknown; a layer
            is given for an instance. The explanation raises it for a model or a layer that the method does not fit.

    Example:
        >>> import torch, consilience as cs
        >>> from captum.attr import IntegratedGradients
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        >>> ig = captum(IntegratedGradients, n_steps=20)
        >>> r = cs.explain(net, torch.ones(2, 4), methods=[ig, "saliency"], fit_draws=4, fresh_draws=4)
        >>> r.methods
        ('captum_integrated_gradients_n_steps_20', 'saliency')
    """
    return Captum(method, name, kind, layer, options)


class Captum(Direct):
    """A Captum method bound to the score at each call; see :func:`captum`.

    Maps of layer methods (N, C, h, w) are summed over C and upsampled. With ``feature_mask`` Captum gives every element its
    feature's attribution; here the elements share it, so that sums over features are the features' attributions.
    Methods that draw are asked point by point, each seeded by its id. Rows in flight follow ``max_batch`` where Captum has an
    argument for that (internal_batch_size, perturbations_per_eval); NoiseTunnel's nt_samples_batch_size is yours, since its
    draws depend on it.

    Args:
        method: as for :func:`captum`, like all others.
        name: None for the default.
        kind: None for the default.
        layer: None where the method takes none.
        options: arguments of the method's ``attribute``.
    """

    card = Card(
        formula="that of the Captum method it is made of",
        source="captum.ai; the method's own documentation names its paper",
        normalisation="none; with feature_mask a feature's attribution is shared by its elements",
        draws="seeded by key and id, for each point by itself",
        cost="the method's own; rows() tells it as far as its arguments do",
        differences=(
            (
                "Captum",
                "global random state is not read; kind= of the score, not target= alone, says what is explained",
            ),
        ),
    )

    def __init__(
        self, method: Any, name: str | None, kind: Kind | None, layer: Any, options: Mapping[str, Any]
    ) -> None:
        self.method = method
        self.options = dict(options)
        self.layer = checked("layer", layer, str | nn.Module | None)
        name = checked("name", name, str | None)
        kind = checked("kind", kind, Kind | None)
        base = need("captum.attr", "captum").Attribution
        self.cls: Any = class_of(method)
        if not issubclass(self.cls, base):
            raise InputError(
                f"method: expected a Captum method, got {self.cls.__name__}; for a callable use Function(call)"
            )
        for known, why in REFUSED.items():
            if self._is(known):
                raise InputError(f"method: Captum's {self.cls.__name__} {why}")
        if layer is not None and not isinstance(method, type):
            raise InputError("layer: an instance has its own; give the class to name one")
        parameters = inspect.signature(self.cls.attribute).parameters
        self._check_options(parameters)
        self.defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
        # NoiseTunnel has another method inside, whose kind, baselines and cost are its own.
        self.inner: Captum | None = None
        inner = getattr(method, "attribution_method", None)
        if inner is not None:
            self.inner = Captum(inner, None, None, None, {})
        self.name = name or self._name()  # type: ignore[misc]
        self.kind = known_kind(kind) if kind else self._kind()  # type: ignore[misc]

    def _check_options(self, parameters: Mapping[str, inspect.Parameter]) -> None:
        """Raise InputError for an option that ``attribute`` does not take, or that the explanation gives."""
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        known = [name for name in parameters if name not in GIVEN]
        for option in self.options:
            if option in GIVEN:
                raise InputError(f"{option}: set by the explanation, not here")
            if not takes_any:
                choose(f"argument of Captum's {self.cls.__name__}", option, known)

    def __repr__(self) -> str:
        settings = "".join(f", {key}={describe(value)}" for key, value in self.options.items())
        return f"captum({self.cls.__name__}{settings})"

    def attribute(self, score: Score, points: Points, key: Key) -> Tensor:
        """The method's maps, (N, *F)."""
        if score.numpy and not self._is("PerturbationAttribution"):
            raise InputError(f"model: a NumPy callable has no gradients, which Captum's {self.cls.__name__} needs")
        if not isinstance(score.model, nn.Module) and any(self._is(known) for known in NEEDS_MODULES):
            raise InputError(f"model: Captum's {self.cls.__name__} needs an nn.Module, not a plain callable")
        points = replace(points, inputs=score.size)  # so that a part of them still knows how many inputs there are
        return hosted(lambda part: self._ask(score, part), score, points, key, self.name)

    def rows(self, shape: Sequence[int]) -> dict[str, int]:
        """Rows for one point, from the method's arguments: exact for Captum's own input methods, else a guess.

        Args:
            shape: the axes F of one input.
        """
        arguments = self.defaults | self.options
        loops = [name for name in ("n_steps", "n_samples", "nt_samples") if name in self.defaults]
        count = math.prod(arguments[name] or 1 for name in loops)
        if self.inner is not None:
            # NoiseTunnel hands on the options that are not its own.
            options = {name: value for name, value in self.options.items() if name not in self.defaults}
            inner = Captum(self.inner.method, None, None, None, options)
            return {kind: count * rows for kind, rows in inner.rows(shape).items()}
        if self._is("DeepLiftShap"):
            return {"gradient": 2 * count * len(data_set(arguments["baselines"]))}
        if self._is("DeepLift") or self._is("LRP"):
            return {"gradient": 2 * count}  # DeepLift: a row for the baseline too; LRP: two passes
        if not self._is("PerturbationAttribution"):
            return {"gradient": count}
        if self._is("LimeBase"):
            return {"forward": count}
        if self._is("Occlusion"):
            windows = count_windows(shape, arguments["sliding_window_shapes"], arguments.get("strides") or 1)
            return {"forward": 1 + windows}
        features = count_features(arguments.get("feature_mask"), shape)
        orders = count
        # ShapleyValues goes through all orders; of more than 12 features there are too many to be meant.
        if self._is("ShapleyValues") and features <= 12:
            orders = math.factorial(features)
        return {"forward": 1 + features * orders}

    # -- asking Captum -------------------------------------------------------------------------------------------------

    def _ask(self, score: Score, points: Points) -> Tensor:
        """The maps of some points."""
        module = score.module()
        method = self._bound(module, score, points)
        options = self._fitted(score, points)
        x = points.x.detach().clone(memory_format=score.layout)
        maps = method.attribute(x, additional_forward_args=(points.owner,), **options)
        of_layer = self._is("LayerAttribution") or (self.inner is not None and self.inner._is("LayerAttribution"))
        if of_layer:
            return self._to_input(maps, points)
        maps = shaped(maps, points, self.name)
        labels = options.get("feature_mask")
        if labels is None:
            return maps
        # Captum gives each element its feature's whole attribution, which would count once for each element in a sum.
        return maps / label_sizes(labels).to(maps)

    def _to_input(self, maps: Any, points: Points) -> Tensor:
        """A layer's maps (N, C, h, w), summed over its channels, on the input (N, *F)."""
        if not isinstance(maps, Tensor) or maps.ndim != 4 or points.x.ndim != 4:
            shown = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            raise InputError(f"layer: {self.name} gives {shown}, not (N, C, h, w) over an image; name a convolution")
        return upsample(maps.detach().sum(1), points).to(torch.promote_types(points.x.dtype, torch.float32))

    def _fitted(self, score: Score, points: Points) -> dict[str, Any]:
        """The options for these points: what was given for each input is gathered, and the rows in flight are bounded."""
        options = dict(self.options)
        if options.get("baselines") is not None:
            options["baselines"] = self._baselines(options["baselines"], points)
        if options.get("feature_mask") is not None:
            options["feature_mask"] = labels_for(options["feature_mask"], score, points)
        size = score.batch.size(not self._is("PerturbationAttribution"))
        # Captum counts the first in rows, and the second in rows for each input.
        bounds = {"internal_batch_size": max(size, len(points)), "perturbations_per_eval": max(1, size // len(points))}
        known = {name: value for name, value in bounds.items() if name in self.defaults}
        return known | options  # what the caller gave comes last, and so counts

    def _baselines(self, baselines: Any, points: Points) -> Tensor:
        """(n, *F) for a method whose baselines are a data set, else (N, *F)."""
        if self._from_data():
            return data_set(baselines).to(points.x)
        # Captum's convention, which is not this library's: rows (B, *F) are one for each input.
        if getattr(baselines, "ndim", 0) == points.x.ndim and len(baselines) > 1:
            return Baseline.per_input(baselines).at(points)
        return Baseline.of(baselines).at(points)

    def _bound(self, module: nn.Module, score: Score, points: Points) -> Any:
        """The Captum method, made to ask ``module``, which is the score."""
        if not isinstance(self.method, type):
            return _rebound(self.method, module, score.model)
        parameters = dict(inspect.signature(self.method).parameters)
        required = [
            name
            for name, parameter in parameters.items()
            if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]
        takes_model = bool({"forward_func", "model"} & set(required))
        if not takes_model or set(required) - {"forward_func", "model", "layer"}:
            raise InputError(
                f"method: Captum's {self.cls.__name__} is made of {', '.join(required)}; give an instance of it"
            )
        if "layer" in parameters:
            return self.method(module, self._layer(score, points))
        if self.layer is not None:
            raise InputError(f"layer: Captum's {self.cls.__name__} takes none")
        return self.method(module)

    def _layer(self, score: Score, points: Points) -> nn.Module:
        """The submodule of the explained model that ``layer`` means."""
        if isinstance(self.layer, nn.Module):
            if any(self.layer is module for module in score.model.modules()):  # type: ignore[attr-defined]
                return self.layer
            raise InputError("layer: the given submodule is not part of the explained model; give its name instead")
        if self.layer is None:
            raise InputError(f"layer: Captum's {self.cls.__name__} needs one: a name, 'auto' or a submodule")
        name = self.layer
        if name == "auto":
            name = score.layer("auto", points.x[:1], points.owner[:1]).name
        known = dict(score.model.named_modules())  # type: ignore[attr-defined]
        return known[choose("layer", name, known)]

    # -- what kind of method -------------------------------------------------------------------------------------------

    def _is(self, known: str) -> bool:
        """Whether the method is Captum's class of this name, or derived from it."""
        # By name, so that none of Captum's modules is imported to ask.
        return any(base.__name__ == known for base in self.cls.__mro__)

    def _from_data(self) -> bool:
        """Whether the method's baselines are a data set."""
        if self.inner is not None:
            return bool(self.options.get("draw_baseline_from_distrib")) or self.inner._from_data()
        return any(self._is(known) for known in DISTRIBUTION)

    def _kind(self) -> Kind:
        """What the class, or its nearest known base, is known for."""
        if self.inner is not None:
            if self.options.get("nt_type", "smoothgrad") == "smoothgrad":
                return self.inner._kind()
            return "relevance"  # squares and variances are not in the units of a gradient
        known = [KINDS[base.__name__] for base in self.cls.__mro__ if base.__name__ in KINDS]
        kind: Kind = known[0] if known else "relevance"
        # multiply_by_inputs=False makes gradients of contributions; perturbation methods have the switch and ignore it.
        is_local = not isinstance(self.method, type) and not getattr(self.method, "multiplies_by_inputs", True)
        if is_local and kind == "contribution" and not self._is("PerturbationAttribution"):
            return "gradient"
        return kind

    def _name(self) -> str:
        """The row's default name: "captum", the class, that inside a NoiseTunnel, and options that are numbers or words."""
        words = ["captum", snake_case(self.cls.__name__)]
        if self.inner is not None:
            words.append(snake_case(self.inner.cls.__name__))
        words += [f"{name}_{value}" for name, value in self.options.items() if isinstance(value, str | int | float)]
        return "_".join(words)


# -- small parts -------------------------------------------------------------------------------------------------------


def _rebound(method: Any, module: nn.Module, model: Any) -> Any:
    """A copy of a Captum instance that asks ``module``; its layer, if it has one, looked up in ``model``."""
    base = need("captum.attr", "captum").Attribution
    rebound = copy.copy(method)
    for name, value in vars(method).items():
        if isinstance(value, base):
            setattr(rebound, name, _rebound(value, module, model))
        elif name in ("forward_func", "model"):
            setattr(rebound, name, module)
        elif name == "layer":
            setattr(rebound, name, _same_layer(value, method.forward_func, model))
        elif isinstance(value, list | dict):
            # Hooks and the like, which Captum writes to while it runs.
            setattr(rebound, name, copy.copy(value))
    return rebound


def _same_layer(layer: Any, instance_model: Any, model: Any) -> nn.Module:
    """The submodule of ``model`` that ``layer`` is, by identity or, in a copy of the instance's model, by name."""
    modules: dict[str, nn.Module] = {}
    if isinstance(model, nn.Module):
        modules = dict(model.named_modules())
    if any(layer is module for module in modules.values()):
        return layer
    if isinstance(instance_model, nn.Module) and type(instance_model) is type(model):
        for name, module in instance_model.named_modules():
            if module is layer and name in modules:
                return modules[name]
    raise InputError(
        "layer: the Captum instance's layer is not part of the explained model; use captum(its class, layer='its name')"
    )
