"""Other libraries' methods as explainers: Captum's classes and instances, and any callable ``(inputs, target=…) → maps``.

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
from ..features.base import Features
from ..model.score import Score
from ..perturb.baseline import Baseline
from ..perturb.points import Points
from ..statistics.keys import Key
from .base import Direct, Kind
from .cam import upsample
from .function import _known, _snake
from .hosted import hosted, shaped

# By the class or its nearest known base.
KINDS: dict[str, Kind] = {
    **dict.fromkeys(("Saliency", "GuidedBackprop", "Deconvolution"), "gradient"),
    **dict.fromkeys(("LayerAttribution", "Occlusion", "GuidedGradCam", "LRP"), "relevance"),
    **dict.fromkeys(("InputXGradient", "IntegratedGradients", "DeepLift", "GradientShap"), "contribution"),
    **dict.fromkeys(("FeatureAblation", "ShapleyValueSampling", "Lime"), "contribution"),
}  # fmt: skip


REFUSED = {
    "FeaturePermutation": "exchanges values between the inputs of a batch, so an attribution depends on its company; use "
    "FeatureAblation",
    "NeuronAttribution": "explains a neuron; wrap the model so that it returns that neuron, and use the input's method",
    "DataLoaderAttribution": "explains a data set at once; use the method inside it",
    "BaseLLMAttribution": "explains generated text, not a score of rows",
}


NEEDS_MODULES = ("DeepLift", "ModifiedReluGradientAttribution", "LRP", "InternalAttribution", "GuidedGradCam")


DISTRIBUTION = ("GradientShap", "DeepLiftShap", "LayerGradientShap")  # their baselines are a data set


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
        self.method, self.layer, self.options = method, layer, dict(options)
        base = need("captum.attr", "captum").Attribution
        self.cls: Any = _class(method)
        if not issubclass(self.cls, base):
            raise InputError(
                f"method: expected a Captum method, got {self.cls.__name__}; for a callable use Function(call)"
            )
        for known, why in REFUSED.items():
            if self._is(known):
                raise InputError(f"method: Captum's {self.cls.__name__} {why}")
        if layer is not None and not isinstance(method, type):
            raise InputError("layer: an instance has its own; give the class to name one")
        known_options = inspect.signature(self.cls.attribute).parameters
        taken = ("self", "inputs", "target", "additional_forward_args", "return_convergence_delta")
        for option in self.options:
            if option in taken:
                raise InputError(f"{option}: set by the explanation, not here")
            if not any(p.kind is p.VAR_KEYWORD for p in known_options.values()):
                choose(
                    f"argument of Captum's {self.cls.__name__}", option, [k for k in known_options if k not in taken]
                )
        self.defaults = {k: p.default for k, p in known_options.items() if p.default is not p.empty}
        inner = getattr(method, "attribution_method", None)  # NoiseTunnel's
        self.inner = None if inner is None else Captum(inner, None, None, None, {})
        self.name = name or self._name()  # type: ignore[misc]
        self.kind = _known(kind) if kind else self._kind()  # type: ignore[misc]

    def __repr__(self) -> str:
        settings = "".join(f", {key}={describe(value)}" for key, value in self.options.items())
        return f"captum({self.cls.__name__}{settings})"

    def attribute(self, score: Score, points: Points, key: Key) -> Tensor:
        """(N, *F)."""
        if score.numpy and not self._is("PerturbationAttribution"):
            raise InputError(f"model: a NumPy callable has no gradients, which Captum's {self.cls.__name__} needs")
        if not isinstance(score.model, nn.Module) and any(self._is(known) for known in NEEDS_MODULES):
            raise InputError(f"model: Captum's {self.cls.__name__} needs an nn.Module, not a plain callable")
        points = replace(points, inputs=score.size)  # a part of them still knows how many there are
        return hosted(lambda part: self._ask(score, part), score, points, key, self.name)

    def rows(self, shape: Sequence[int]) -> dict[str, int]:
        """Rows for one point, from the method's arguments: exact for Captum's own input methods, else a guess."""
        setting = self.defaults | self.options
        loops = [name for name in ("n_steps", "n_samples", "nt_samples") if name in self.defaults]
        count = math.prod(setting[name] or 1 for name in loops)
        if self.inner is not None:
            options = {k: v for k, v in self.options.items() if k not in self.defaults}
            inner = Captum(self.inner.method, None, None, None, options)
            return {kind: count * rows for kind, rows in inner.rows(shape).items()}
        if not self._is("PerturbationAttribution"):
            spread = len(_data(setting["baselines"])) if self._is("DeepLiftShap") else 1
            return {"gradient": count * (2 * spread if self._is("DeepLift") or self._is("LRP") else 1)}
        if self._is("LimeBase"):
            return {"forward": count}
        if self._is("Occlusion"):
            window = setting["sliding_window_shapes"]
            strides = setting.get("strides") or 1
            steps = strides if isinstance(strides, tuple) else (strides,) * len(shape)
            return {
                "forward": 1 + math.prod(-(-(n - w) // s) + 1 for n, w, s in zip(shape, window, steps, strict=True))
            }
        mask = setting.get("feature_mask")
        if isinstance(mask, Features):
            features = math.prod(mask.shape(shape))
        else:
            features = math.prod(shape) if mask is None else int(torch.as_tensor(mask).max()) + 1
        orders = math.factorial(features) if self._is("ShapleyValues") and features <= 12 else count
        return {"forward": 1 + features * orders}

    # -- asking Captum -------------------------------------------------------------------------------------------------

    def _ask(self, score: Score, points: Points) -> Tensor:
        module = score.module()
        method = self._bound(module, score, points)
        options = self._fitted(score, points)
        x = points.x.detach().clone(memory_format=score.layout)
        maps = method.attribute(x, additional_forward_args=(points.owner,), **options)
        if self._is("LayerAttribution") or (self.inner is not None and self.inner._is("LayerAttribution")):
            if not isinstance(maps, Tensor) or maps.ndim != 4 or x.ndim != 4:
                shown = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
                raise InputError(
                    f"layer: {self.name} gives {shown}, not (N, C, h, w) over an image; name a convolution"
                )
            return upsample(maps.detach().sum(1), points).to(torch.promote_types(x.dtype, torch.float32))
        found = shaped(maps, points, self.name)
        return found if options.get("feature_mask") is None else found / _sizes(options["feature_mask"]).to(found)

    def _fitted(self, score: Score, points: Points) -> dict[str, Any]:
        """The options for these points: what there is for each input is gathered, the rows in flight are bounded."""
        found = dict(self.options)
        given = found.get("baselines")
        if given is not None and self._from_data():
            found["baselines"] = _data(given).to(points.x)
        elif given is not None:
            # Captum's own convention: rows (B, *F) are one for each input.
            each = getattr(given, "ndim", 0) == points.x.ndim and len(given) > 1
            found["baselines"] = (Baseline.per_input(given) if each else Baseline.of(given)).at(points)
        if found.get("feature_mask") is not None:
            found["feature_mask"] = _labels(found["feature_mask"], score, points)
        size = score.batch.size(not self._is("PerturbationAttribution"))
        bounds = {"internal_batch_size": max(size, len(points)), "perturbations_per_eval": max(1, size // len(points))}
        return {name: value for name, value in bounds.items() if name in self.defaults} | found

    def _bound(self, module: nn.Module, score: Score, points: Points) -> Any:
        """The Captum method, asking ``module``."""
        if not isinstance(self.method, type):
            return _rebound(self.method, module, score.model)
        takes = dict(inspect.signature(self.method).parameters)
        asks = [name for name, p in takes.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        if not {"forward_func", "model"} & set(asks) or set(asks) - {"forward_func", "model", "layer"}:
            raise InputError(
                f"method: Captum's {self.cls.__name__} is made of {', '.join(asks)}; give an instance of it"
            )
        if "layer" in takes:
            return self.method(module, self._layer(score, points))
        if self.layer is not None:
            raise InputError(f"layer: Captum's {self.cls.__name__} takes none")
        return self.method(module)

    def _layer(self, score: Score, points: Points) -> nn.Module:
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
        return any(base.__name__ == known for base in self.cls.__mro__)

    def _from_data(self) -> bool:
        if self.inner is not None:
            return bool(self.options.get("draw_baseline_from_distrib")) or self.inner._from_data()
        return any(self._is(known) for known in DISTRIBUTION)

    def _kind(self) -> Kind:
        if self.inner is not None:
            return self.inner._kind() if self.options.get("nt_type", "smoothgrad") == "smoothgrad" else "relevance"
        found: Kind = next((KINDS[base.__name__] for base in self.cls.__mro__ if base.__name__ in KINDS), "relevance")
        local = not isinstance(self.method, type) and not getattr(self.method, "multiplies_by_inputs", True)
        return "gradient" if local and found == "contribution" and not self._is("PerturbationAttribution") else found

    def _name(self) -> str:
        inner = "" if self.inner is None else f"_{_snake(self.inner.cls.__name__)}"
        plain = {k: v for k, v in self.options.items() if isinstance(v, str | int | float)}
        return f"captum_{_snake(self.cls.__name__)}{inner}" + "".join(f"_{k}_{v}" for k, v in plain.items())


# -- small parts -------------------------------------------------------------------------------------------------------


def _rebound(method: Any, module: nn.Module, model: Any) -> Any:
    """A copy of a Captum instance that asks ``module``; its layer, if it has one, looked up in ``model``."""
    base = need("captum.attr", "captum").Attribution
    mine = copy.copy(method)
    for name, value in vars(method).items():
        if isinstance(value, base):
            setattr(mine, name, _rebound(value, module, model))
        elif name in ("forward_func", "model"):
            setattr(mine, name, module)
        elif name == "layer":
            setattr(mine, name, _same(value, method.forward_func, model))
        elif isinstance(value, list | dict):
            setattr(mine, name, copy.copy(value))
    return mine


def _same(layer: Any, old: Any, model: Any) -> nn.Module:
    """The submodule of ``model`` that ``layer`` is, by identity or, in a copy of the model, by name."""
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    if any(layer is module for module in modules.values()):
        return layer
    if isinstance(old, nn.Module) and type(old) is type(model):
        for name, module in old.named_modules():
            if module is layer and name in modules:
                return modules[name]
    raise InputError(
        "layer: the Captum instance's layer is not part of the explained model; use captum(its class, layer='its name')"
    )


def _labels(mask: Any, score: Score, points: Points) -> Tensor:
    """(N, *F) whole numbers from labels F, (1, *F) or (B, *F), or from Features."""
    shape = points.x.shape[1:]
    if isinstance(mask, Features):
        axes = mask.shape(shape)
        numbers = torch.arange(math.prod(axes), device=points.x.device).view(1, *axes).expand(len(points), *axes)
        return mask.expand(numbers, points.owner, shape).contiguous()
    labels = torch.as_tensor(mask, device=points.x.device).long()
    labels = labels[None] if labels.ndim == len(shape) else labels
    if labels.ndim != points.x.ndim or len(labels) not in (1, score.size):
        raise InputError(
            f"feature_mask: shape {tuple(labels.shape)} for {score.size} inputs {tuple(shape)}; give {tuple(shape)} or one each"
        )
    labels = labels[points.owner] if len(labels) > 1 else labels
    return labels.expand(len(points), *shape).contiguous()


def _sizes(labels: Tensor) -> Tensor:
    """(N, *F): how many elements share each element's label."""
    flat = labels.flatten(1)
    counts = torch.zeros(len(flat), int(flat.max()) + 1, dtype=torch.int64, device=flat.device)
    return counts.scatter_add(1, flat, torch.ones_like(flat)).gather(1, flat).view_as(labels)


def _data(baselines: Any) -> Tensor:
    """A data set of baselines, (n, *F)."""
    return torch.as_tensor(baselines.tensor if isinstance(baselines, Baseline) else baselines)


def _class(item: Any) -> Any:
    return item if isinstance(item, type) else type(item)


def describe(value: Any) -> str:
    return f"array{tuple(value.shape)}" if hasattr(value, "shape") and hasattr(value, "dtype") else repr(value)
