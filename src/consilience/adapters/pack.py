"""Several inputs of one model, packed into one tensor: whatever explains one input then explains all of them together."""

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
from ..signatures import known_arguments
from .base import Inputs, Prepared


class Packed(Inputs):
    """Several inputs as one tensor, with their features and baselines side by side. :func:`pack` makes it.

    Args:
        inputs: as for :func:`pack`.
        features: as for :func:`pack`.
        baselines: as for :func:`pack`.

    Attributes:
        x: (B, Σ elements).
        features: of ``x``, a :class:`~consilience.features.parts.Parts`.
        baselines: of ``x``, a :class:`~consilience.perturb.baseline.Baseline`, or None.
        names: of the inputs that came as a mapping; None: they came as a tuple.
        shapes: F of each input.
        dtypes: of each input.

    Raises:
        InputError: as :func:`pack`.
    """

    def __init__(self, inputs: Any, features: Any = None, baselines: Any = None):
        if not isinstance(inputs, list | tuple | Mapping):
            raise InputError(
                f"inputs: a tuple or a mapping of tensors (B, …), got {type(inputs).__name__}; one input needs no pack"
            )
        self.names: tuple[str, ...] | None = tuple(inputs) if isinstance(inputs, Mapping) else None
        # Whether by name or by position, each input has a key that errors can show.
        named = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
        tensors = [_real_tensor(name, given) for name, given in named]
        if len({len(tensor) for tensor in tensors}) != 1:
            raise InputError(f"inputs: all with the same first axis B, got {[len(tensor) for tensor in tensors]}")
        self.shapes = tuple(tuple(tensor.shape[1:]) for tensor in tensors)
        self.dtypes = tuple(tensor.dtype for tensor in tensors)
        self.x = _join(tensors)
        asked = self._each("features", features)
        # Names and defaults depend on the shape of the part: pixels of an image, columns of a table.
        parts = [features_for(spec, shape) for spec, shape in zip(asked, self.shapes, strict=True)]
        self.features = Parts(parts, self.shapes)
        self.baselines: Baseline | None = None
        if baselines is not None:
            self.baselines = self._origin(self._each("baselines", baselines), tensors)

    def __len__(self) -> int:
        return len(self.x)

    def prepare(self, model: Any, target: Any = None, features: Any = None, baselines: Any = None) -> Prepared:
        """The model of the packed tensor."""
        if features is not None or baselines is not None:
            what = "features" if features is not None else "baselines"
            raise InputError(f"{what}: of several inputs they belong to each; give pack(inputs, {what}=…)")
        return Prepared(self.model(model), self.x, target, self.features, baselines=self.baselines)

    def model(self, model: Callable[..., Any]) -> Callable[..., Any]:
        """The model as a function of the packed tensor; an ``nn.Module`` if the model is one.

        Args:
            model: a function of the inputs themselves.
        """
        if isinstance(model, nn.Module):
            return _Unpacked(model, self)

        def unpacked(x: Tensor, **kwargs: Any) -> Any:
            return self.call(model, x, kwargs)

        return unpacked

    def call(self, model: Callable[..., Any], x: Tensor, kwargs: Mapping[str, Any]) -> Any:
        """The model's outputs for packed rows.

        Args:
            model: a function of the inputs themselves.
            x: (N, Σ elements).
            kwargs: of the model.
        """
        # Packed, all have the widest of the types; the model gets those that it was given.
        parts = [part.to(dtype) for part, dtype in zip(split(x, self.shapes), self.dtypes, strict=True)]
        if self.names is None:
            return model(*parts, **kwargs)
        return model(**dict(zip(self.names, parts, strict=True)), **kwargs)

    def unpack(self, values: Tensor) -> Any:
        """An attribution, or something like ``x``, as a tuple or mapping of parts (…, *A) or (…, *F).

        Args:
            values: (…, Σ features) or (…, Σ elements).

        Raises:
            InputError: it has another length.
        """
        # Where both lengths are the same, every feature is an element, and both readings are too.
        for shapes in (self.features.axes, self.shapes):
            if values.shape[-1] == sum(map(prod, shapes)):
                parts = split(values, shapes)
                if self.names is None:
                    return tuple(parts)
                return dict(zip(self.names, parts, strict=True))
        raise InputError(
            f"values: last axis {values.shape[-1]}, expected {sum(map(prod, self.features.axes))} features"
        )

    def _each(self, what: str, spec: Any) -> list[Any]:
        """What was asked for each part, in the order of the parts.

        Args:
            what: the name of the argument, for errors.
            spec: a mapping or list like the inputs; None: nothing for any of them.
        """
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
        """The baselines of the parts side by side.

        Args:
            asked: of each part.
            tensors: the parts, (B, *F) each, at which baselines are evaluated.

        Returns:
            one row for each input; of data sets, one for each part, a data set of joint rows.
        """
        baselines = [Baseline.of(spec, tensor) for spec, tensor in zip(asked, tensors, strict=True)]
        data_sets = [each.tensor for each in baselines if each.kind == "samples" and each.tensor is not None]
        if data_sets:
            # A draw is a joint row: parts of different rows would be an input that does not occur.
            different_lengths = len({len(rows) for rows in data_sets}) > 1
            if len(data_sets) < len(baselines) or different_lengths:
                raise InputError("baselines: a data set for each input, with the same rows, or for none")
            return Baseline.samples(_join(data_sets))
        # What is computed from an input (its mean, its blur) is computed from each part by itself.
        owner = torch.arange(len(self.x), device=self.x.device)
        origins = []
        for baseline, tensor in zip(baselines, tensors, strict=True):
            origins.append(baseline.at(Points(tensor, owner, owner, len(tensor))))
        return Baseline.per_input(_join(origins))


@known_arguments()
def pack(inputs: Any, *, features: Any = None, baselines: Any = None) -> Packed:
    """Several inputs of one model, for :func:`consilience.explain` in the place of x.

    Args:
        inputs: a tuple of tensors (B, …) for ``model(a, b)``, or a mapping for ``model(image=a, table=b)``.
        features: of each input, in the same form: features, names, or None for the default (pixels of images, elements).
        baselines: of each input, in the same form: what explain's ``baselines`` may be; they are taken at x.

    Returns:
        the packed inputs. Their ``unpack`` takes an attribution apart again; ``x`` and ``model(net)`` are for use elsewhere.
        All parts share one scale and one set of weights, and are masked together: a mask takes a share of the features of all
        parts.

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
    """A module as a function of the packed tensor. Class activation maps and modules' names need it to be a module."""

    def __init__(self, inner: nn.Module, packed: Packed):
        super().__init__()
        self.inner = inner
        self.packed = packed
        # Not self.train(…), which would put every part of the caller's model into that mode.
        self.training = inner.training

    def forward(self, x: Tensor, **kwargs: Any) -> Any:
        return self.packed.call(self.inner, x, kwargs)


def _real_tensor(name: Any, given: Any) -> Tensor:
    """One of the inputs as a tensor of real numbers (B, …).

    Args:
        name: its key or its number, for errors.
        given: as the caller gave it.
    """
    tensor = None
    problem = type(given).__name__
    if isinstance(given, Tensor | np.ndarray):
        tensor = as_tensor(f"inputs[{name!r}]", given).detach()
        problem = f"{tensor.dtype} {tuple(tensor.shape)}"
    if tensor is None or not tensor.is_floating_point() or tensor.ndim < 2:
        raise InputError(
            f"inputs[{name!r}]: expected real numbers (B, …), got {problem}; what is not to be explained goes to the "
            "model by kwargs"
        )
    return tensor


def _join(tensors: Sequence[Tensor]) -> Tensor:
    """(B, Σ elements), in the widest of the dtypes."""
    wide = tensors[0].dtype
    for tensor in tensors[1:]:
        wide = torch.promote_types(wide, tensor.dtype)
    return torch.cat([tensor.flatten(1).to(wide) for tensor in tensors], 1)
