"""A smooth copy of a network: every rectifier becomes a softplus, so that attributions have gradients."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import InputError, UnsupportedOp
from .inspection import hidden
from .operations import rectifies


class Softplus(nn.Module):
    """``model`` with max(0, z) replaced by softplus(z) = ln(1 + exp(βz)) / β in its forward pass.

    The gradients of a rectifier network are constant between kinks, so a gradient attribution does not say how to change
    it; of the smooth copy it does (Ghorbani et al. 2019, arXiv 1710.10547). As β grows the copy approaches the model: it
    differs by at most ln 2 / β at each rectifier.

    The calls are replaced while they run, whether a module, a function, a method or in-place: relu, relu6, leaky_relu
    (a z + (1 − a) softplus), prelu, and clamp, hardtanh and threshold where they are rectifiers. The model itself is
    neither copied nor changed: the copy shares its parameters.

    Raises:
        UnsupportedOp: for a compiled or scripted module, whose calls cannot be seen.
    """

    def __init__(self, model: nn.Module, beta: float = 10.0) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise InputError(f"model: a smooth copy needs an nn.Module, got {type(model).__name__}")
        if not beta > 0:
            raise InputError(f"beta: a positive number, got {beta}")
        for name, child in model.named_modules():
            if kind := hidden(child):
                raise UnsupportedOp(
                    f"softplus: module {name or type(child).__name__!r} is {kind}; pass the original module"
                )
        self.model, self.beta = model, beta
        self.training = model.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _Smooth(self.beta):
            return self.model(*args, **kwargs)


class _Smooth(TorchFunctionMode):
    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        raw = getattr(func, "__name__", "")
        in_place = bool(kwargs.get("inplace")) or (raw.endswith("_") and not raw.endswith("__"))
        x = args[0] if args else kwargs.get("input")
        smooth = self.smooth(raw.strip("_"), x, args, kwargs) if isinstance(x, Tensor) else None
        if smooth is None:
            return func(*args, **kwargs)
        return x.copy_(smooth) if in_place else smooth

    def smooth(self, name: str, x: Tensor, args: tuple, kwargs: dict) -> Tensor | None:
        def given(place: int, key: str, default: Any) -> Any:
            return kwargs.get(key, args[place] if len(args) > place else default)

        def soft(z: Tensor) -> Tensor:
            # A copy: in-place calls write to x, which softplus keeps for its gradient.
            return nnf.softplus(z.clone(), self.beta)

        if name in ("leaky_relu", "prelu"):
            slope = given(1, "negative_slope", 0.01) if name == "leaky_relu" else given(1, "weight", None)
            if isinstance(slope, Tensor) and slope.numel() > 1:
                slope = slope.view(1, -1, *[1] * (x.ndim - 2))
            return slope * x + (1 - slope) * soft(x)
        if not rectifies(name, args, kwargs):
            return None
        top = {"relu6": 6.0, "hardtanh": given(2, "max_val", 1.0)}.get(name)
        if name in ("clamp", "clip"):
            top = given(2, "max", None)
        return soft(x) if top is None else soft(x) - soft(x - top)
