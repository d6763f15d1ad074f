"""Several inputs of one model in one tensor, so that everything that explains one input explains them together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..arrays import as_tensor
from ..errors import InputError, choose
from ..features.images import features_for
from ..features.parts import Parts, split
from ..perturb.baseline import Baseline
from ..perturb.points import Points
from .base import Inputs, Prepared


class Packed(Inputs):
    """See :func:`pack`. ``x`` (B, Σ elements), ``features`` a :class:`Parts`, ``baselines`` a :class:`Baseline` or None."""

    def __init__(self, inputs: Any, features: Any = None, baselines: Any = None):
        if not isinstance(inputs, list | tuple | Mapping):
            raise InputError(
                f"inputs: a tuple or a mapping of tensors (B, …), got {type(inputs).__name__}; one input needs no pack"
            )
        self.names: tuple[str, ...] | None = tuple(inputs) if isinstance(inputs, Mapping) else None
        tensors = []
        for name, given in inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs):
            tensor = as_tensor(f"inputs[{name!r}]", given).detach() if isinstance(given, Tensor | np.ndarray) else None
            if tensor is None or not tensor.is_floating_point() or tensor.ndim < 2:
                what = type(given).__name__ if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"
                raise InputError(
                    f"inputs[{name!r}]: expected real numbers (B, …), got {what}; what is not to be explained goes to the "
                    "model by kwargs"
                )
            tensors.append(tensor)
        if len({len(tensor) for tensor in tensors}) != 1:
            raise InputError(f"inputs: all with the same first axis B, got {[len(tensor) for tensor in tensors]}")
        self.shapes = tuple(tuple(tensor.shape[1:]) for tensor in tensors)
        self.dtypes = tuple(tensor.dtype for tensor in tensors)
        self.x = _join(tensors)
        asked = self._each("features", features)
        self.features = Parts([features_for(f, s) for f, s in zip(asked, self.shapes, strict=True)], self.shapes)
        self.baselines = None if baselines is None else self._origin(self._each("baselines", baselines), tensors)

    def __len__(self) -> int:
        return len(self.x)

    def prepare(self, model: Any, target: Any = None, features: Any = None, baselines: Any = None) -> Prepared:
        """The model of the packed tensor."""
        if features is not None or baselines is not None:
            what = "features" if features is not None else "baselines"
            raise InputError(f"{what}: of several inputs they belong to each; give pack(inputs, {what}=…)")
        return Prepared(self.model(model), self.x, target, self.features, baselines=self.baselines)

    def model(self, model: Callable[..., Any]) -> Callable[..., Any]:
        """``model`` as a function of ``x``; an ``nn.Module`` if it is one."""
        return (
            _Unpacked(model, self) if isinstance(model, nn.Module) else lambda x, **kwargs: self.call(model, x, kwargs)
        )

    def call(self, model: Callable[..., Any], x: Tensor, kwargs: Mapping[str, Any]) -> Any:
        """The model's outputs for rows (N, Σ elements)."""
        parts = [part.to(dtype) for part, dtype in zip(split(x, self.shapes), self.dtypes, strict=True)]
        return (
            model(*parts, **kwargs)
            if self.names is None
            else model(**dict(zip(self.names, parts, strict=True)), **kwargs)
        )

    def unpack(self, values: Tensor) -> Any:
        """An attribution (…, ΣA), or something like ``x`` (…, Σ elements), as a tuple or mapping of parts (…, *A).

        Raises:
            InputError: it has another length.
        """
        for shapes in (self.features.axes, self.shapes):
            if values.shape[-1] == sum(map(prod, shapes)):
                parts = split(values, shapes)
                return tuple(parts) if self.names is None else dict(zip(self.names, parts, strict=True))
        raise InputError(
            f"values: last axis {values.shape[-1]}, expected {sum(map(prod, self.features.axes))} features"
        )

    def _each(self, what: str, spec: Any) -> list[Any]:
        """One of ``spec`` for each part."""
        count = len(self.shapes)
        if spec is None:
            return [None] * count
        if self.names is not None:
            if not isinstance(spec, Mapping):
                raise InputError(f"{what}: a mapping like the inputs, got {type(spec).__name__}")
            for name in spec:
                choose(what, name, self.names)
            return [spec.get(name) for name in self.names]
        if not isinstance(spec, list | tuple) or len(spec) != count:
            raise InputError(f"{what}: a list of {count}, one for each input, got {type(spec).__name__}")
        return list(spec)

    def _origin(self, asked: Sequence[Any], tensors: Sequence[Tensor]) -> Baseline:
        """Baselines of the parts, made at x, side by side; data sets of all parts are one data set of joint rows."""
        found = [Baseline.of(spec, tensor) for spec, tensor in zip(asked, tensors, strict=True)]
        drawn = [b.tensor for b in found if b.kind == "samples" and b.tensor is not None]
        if drawn:
            if len(drawn) < len(found) or len({len(rows) for rows in drawn}) > 1:
                raise InputError("baselines: a data set for each input, with the same rows, or for none")
            return Baseline.samples(_join(drawn))
        owner = torch.arange(len(self.x), device=self.x.device)
        parts = zip(found, tensors, strict=True)
        return Baseline.per_input(
            _join([baseline.at(Points(tensor, owner, owner, len(tensor))) for baseline, tensor in parts])
        )


def pack(inputs: Any, *, features: Any = None, baselines: Any = None) -> Packed:
    """Several inputs of one model, for :func:`consilience.explain` in the place of x.

    Args:
        inputs: a tuple of tensors (B, …) for ``model(a, b)``, or a mapping for ``model(image=a, table=b)``.
        features: of each input, in the same form: features, names, or None for the default (pixels of images, elements).
        baselines: of each input, in the same form: what explain's ``baselines`` may be; they are taken at x.

    ``unpack`` parts an attribution again; ``x`` and ``model(net)`` are for use elsewhere. All parts share one scale and one
    set of weights, and are masked together: a mask takes a share of the features of all parts.

    Raises:
        InputError: inputs of different length, no real numbers, features or baselines that fit no input.

    Example:
        >>> image, row = torch.rand(2, 3, 8, 8), torch.rand(2, 5)
        >>> packed = pack((image, row), features=("pixels", None))
        >>> packed.x.shape, [part.shape for part in packed.unpack(torch.zeros(2, 69))]
        (torch.Size([2, 197]), [torch.Size([2, 8, 8]), torch.Size([2, 5])])
    """
    return Packed(inputs, features, baselines)


class _Unpacked(nn.Module):
    def __init__(self, inner: nn.Module, packed: Packed):
        super().__init__()
        self.inner, self.packed = inner, packed
        self.training = inner.training

    def forward(self, x: Tensor, **kwargs: Any) -> Any:
        return self.packed.call(self.inner, x, kwargs)


def _join(tensors: Sequence[Tensor]) -> Tensor:
    """(B, Σ elements), in the widest of the dtypes."""
    wide = tensors[0].dtype
    for tensor in tensors[1:]:
        wide = torch.promote_types(wide, tensor.dtype)
    return torch.cat([tensor.flatten(1).to(wide) for tensor in tensors], 1)
