"""A smooth copy of a network: every rectifier becomes a softplus, so that attributions have gradients."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import InputError, UnsupportedOp
from .inspection import hidden
from .operations import argument, rectifies, writes


class Softplus(nn.Module):
    """``model`` with max(0, z) replaced by softplus(z) = ln(1 + exp(βz)) / β in its forward pass.

    The gradients of a rectifier network are constant between kinks, so a gradient attribution does not say how to change
    it; of the smooth copy it does (Ghorbani et al. 2019, arXiv 1710.10547). As β grows the copy approaches the model: it
    differs by at most ln 2 / β at each rectifier.

    The calls are replaced while they run, whether a module, a function, a method or in-place: relu, relu6, leaky_relu
    (a z + (1 − a) softplus), prelu, and clamp, hardtanh and threshold where they are rectifiers. The model itself is
    neither copied nor changed: the copy shares its parameters.

    Args:
        model: the network.
        beta: β, how sharp the bend is, per unit of a rectifier's input.

    Raises:
        InputError: for a plain callable, and a β that is not positive.
        UnsupportedOp: for a compiled or scripted module, whose calls cannot be seen.
    """

    def __init__(self, model: nn.Module, beta: float = 10.0) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise InputError(f"model: a smooth copy needs an nn.Module, got {type(model).__name__}")
        if not beta > 0:
            raise InputError(f"beta: a positive number, got {beta}")
        for name, child in model.named_modules():
            reason = hidden(child)
            if reason:
                raise UnsupportedOp(
                    f"softplus: module {name or type(child).__name__!r} is {reason}; pass the original module"
                )
        self.model = model
        self.beta = beta
        # Not self.train(…), which would put every part of the caller's model into that mode.
        self.training = model.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output, with softplus in place of its rectifiers.

        Args:
            *args, **kwargs: the model's own.
        """
        with _Smooth(self.beta):
            return self.model(*args, **kwargs)


class _Smooth(TorchFunctionMode):
    """Replaces the rectifiers among the torch functions that run."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        raw = getattr(func, "__name__", "")
        x = args[0] if args else kwargs.get("input")
        smooth = None
        if isinstance(x, Tensor):
            smooth = self._smooth(raw.strip("_"), x, args, kwargs)
        if smooth is None:
            return func(*args, **kwargs)
        # relu_ and inplace=True: the model goes on with the tensor that it gave.
        if writes(raw, kwargs):
            return x.copy_(smooth)
        return smooth

    def _smooth(self, name: str, x: Tensor, args: tuple, kwargs: dict) -> Tensor | None:
        """The smooth version of an operation's result; None for an operation that is not a rectifier.

        Args:
            name: of the operation, without underscores.
            x: its first tensor.
            args: the call's positional arguments, ``x`` among them.
            kwargs: its keyword arguments.
        """
        if name == "leaky_relu":
            return self._leaky(x, argument(args, kwargs, 1, "negative_slope", 0.01))
        if name == "prelu":
            slope = argument(args, kwargs, 1, "weight", None)
            if slope.numel() > 1:  # one for each channel, the second axis
                slope = slope.view(1, -1, *[1] * (x.ndim - 2))
            return self._leaky(x, slope)
        if not rectifies(name, args, kwargs):
            return None
        upper = None
        if name == "relu6":
            upper = 6.0
        elif name == "hardtanh":
            upper = argument(args, kwargs, 2, "max_val", 1.0)
        elif name in ("clamp", "clip"):
            upper = argument(args, kwargs, 2, "max", None)
        if upper is None:
            return self._softplus(x)
        # min(max(0, z), upper) = max(0, z) − max(0, z − upper): a second bend takes back what the first one adds.
        return self._softplus(x) - self._softplus(x - upper)

    def _leaky(self, x: Tensor, slope: Any) -> Tensor:
        """max(0, x) + slope · min(0, x), smoothed: slope · x + (1 − slope) · softplus(x)."""
        return slope * x + (1 - slope) * self._softplus(x)

    def _softplus(self, x: Tensor) -> Tensor:
        """ln(1 + exp(βx)) / β."""
        # A copy: in-place calls write to x, which softplus keeps for its gradient.
        return nnf.softplus(x.clone(), self.beta)
