"""Which layer a class activation map reads, and how its output lies on the image.

``find`` looks with one probe pass: every submodule's output is recorded, one gradient is taken with respect to all of
them, and the last output (in order of execution) whose gradient is not zero over space is the layer. Outputs may be
(N, C, h, w), (N, h, w, C), or tokens (N, p + h·w, C) with p tokens of another kind in front.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, choose

MAX_PREFIX = 16  # class, distillation and register tokens in front of the grid


@dataclass(frozen=True)
class Layer:
    """The ``call``-th output of the submodule ``name`` in a forward pass, and where its axes lie.

    ``layout``: "NCHW", "NHWC" or "tokens" (``prefix`` tokens, then the ``grid`` (h, w) row by row). ``str(layer)`` is a
    name that :func:`named` understands: ``layer4`` or, for a module that runs several times, ``block.relu#1``.
    """

    name: str
    call: int
    layout: str
    grid: tuple[int, int]
    prefix: int = 0

    def __str__(self) -> str:
        return f"{self.name}#{self.call}" if self.call else self.name


def find(module: nn.Module, run: Callable[[], Tensor], spatial: tuple[int, int]) -> Layer:
    """The last spatial output of ``module`` whose gradient is non-zero at two or more places.

    A class-token transformer's last block has a gradient at that token only, so the last block's first norm is found.
    Attention matrices and heads are left out, and token outputs of another width than the residual stream (qkv, MLP);
    projections of tokens (queries, keys, values) are taken only if there is nothing else.

    Args:
        run: one forward pass, under grad, from an input that requires it to the scores (N,).
        spatial: (H, W) of the input.

    Raises:
        InputError: the scores have no graph, or no output qualifies; says what was tried.
    """
    seen, grads = _probe(module, run)
    projected = {name for name, child in module.named_modules() if isinstance(child, nn.Linear)}
    tokens = [(name, tensor) for name, _, tensor in seen if tensor.ndim == 3 and tensor.shape[2] > 1]
    lengths = {tensor.shape[1]: tensor.shape[2] for name, tensor in tokens}  # T → the width of the last one,
    lengths |= {tensor.shape[1]: tensor.shape[2] for name, tensor in tokens if name not in projected}  # no projection
    known, spare, tried = _grids(seen), None, []
    for (name, call, tensor), grad in zip(reversed(seen), reversed(grads), strict=True):
        layer = _read(name, call, tensor, spatial, known)
        if layer is None or (tensor.ndim == 4 and layer.layout == "NCHW" and tensor.shape[2] in lengths):
            continue
        if layer.layout == "tokens" and tensor.shape[2] != lengths[tensor.shape[1]]:
            continue
        if grad is None or int((to_grid(grad, layer) != 0).any(1).any(0).sum()) < 2:
            tried.append(str(layer))
        elif layer.layout == "tokens" and name in projected:
            spare = spare or layer
        else:
            return layer
    if spare:
        return spare
    names = list(dict.fromkeys(name for name, _, _ in reversed(seen)))
    raise InputError(
        f"layer: none of {len(seen)} outputs has a gradient over space for an input of {spatial[0]} × {spatial[1]}"
        + (f"; spatial but without gradient: {', '.join(tried[:4])}" if tried else "; none is spatial")
        + f'; name one with layer="…", e.g. {", ".join(names[:6]) or "none recorded (a scripted model?)"}'
    )


def named(module: nn.Module, name: str, run: Callable[[], Tensor], spatial: tuple[int, int]) -> Layer:
    """The layer the user chose: the last spatial output of ``name``, or that of call k for ``name#k``.

    Raises:
        InputError: unknown name (near matches are given), never run, or not spatial (its shapes are given).
    """
    path, _, which = name.partition("#")
    choose("layer", path, [known for known, _ in module.named_modules() if known])
    if which and not which.isdecimal():
        raise InputError(f"layer: expected 'name' or 'name#call', got {name!r}")
    with torch.enable_grad(), _recorded(module) as seen:
        run()
    outputs = [(call, tensor) for found, call, tensor in seen if found == path and which in ("", str(call))]
    for call, tensor in reversed(outputs):
        if layer := _read(path, call, tensor, spatial, _grids(seen)):
            return layer
    shapes = ", ".join(str(tuple(tensor.shape)) for _, tensor in outputs) or "no tensor"
    raise InputError(
        f"layer: {name!r} gives {shapes}, which lies on no grid of a {spatial[0]} × {spatial[1]} image; "
        "name another, or use layer='auto'"
    )


@contextlib.contextmanager
def captured(module: nn.Module, layers: Sequence[Layer]) -> Iterator[dict[Layer, Tensor]]:
    """Run a forward pass inside; afterwards the dict has each layer's activation, in its own layout and with its graph.

    The model goes on with a clone, so that later in-place operations do not change what was captured; values and
    gradients are the same. Hooks are removed, whatever happens.

    Raises:
        InputError: on leaving, for a layer that did not run.
    """
    acts: dict[Layer, Tensor] = {}
    wanted = {(layer.name, layer.call): layer for layer in layers}

    def keep(name: str, call: int, tensor: Tensor) -> bool:
        if (name, call) in wanted:
            acts[wanted[name, call]] = tensor
        return (name, call) in wanted

    with _hooked(module, {layer.name for layer in layers}, keep):
        yield acts
    if missing := [str(layer) for layer in layers if layer not in acts]:
        raise InputError(f"layer: {', '.join(missing)} did not run in this forward pass; choose one that always runs")


def to_grid(tensor: Tensor, layer: Layer) -> Tensor:
    """A layer's activation or gradient as (N, C, h, w)."""
    if layer.layout == "NHWC":
        return tensor.permute(0, 3, 1, 2)
    if layer.layout == "tokens":
        return tensor[:, layer.prefix :].transpose(1, 2).unflatten(2, layer.grid)
    return tensor


# -- inside ------------------------------------------------------------------------------------------------------------


def _grids(seen: Sequence[tuple[str, int, Tensor]]) -> set[tuple[int, int]]:
    """(h, w) of the outputs that have them, e.g. of a convolution that embeds patches."""
    return {(tensor.shape[2], tensor.shape[3]) for _, _, tensor in seen if tensor.ndim == 4}


def _read(
    name: str, call: int, tensor: Tensor, spatial: tuple[int, int], known: set[tuple[int, int]] | None = None
) -> Layer | None:
    """How an output lies on the image, by its shape; None if it does not. Tokens lie on a ``known`` grid if they can, and
    have else the fewest tokens in front."""
    height, width = spatial
    if tensor.ndim == 4:

        def misfit(h: int, w: int) -> float:
            fits = h * w > 1 and h <= height and w <= width
            return abs(math.log(h * width / (w * height))) if fits else math.inf

        first, second, third = tensor.shape[1:]
        best, layout, grid = min(
            (misfit(second, third), "NCHW", (second, third)), (misfit(first, second), "NHWC", (first, second))
        )
        return Layer(name, call, layout, grid) if best <= math.log(2) else None
    if tensor.ndim == 3 and tensor.shape[2] > 1:  # not (N, C, 1), the mean over tokens: C may well be a square
        strides = range(1, max(spatial) + 1)
        grids = {(height // s, width // s) for s in strides} | {(-(-height // s), -(-width // s)) for s in strides}
        sizes = {h * w: (h, w) for h, w in sorted(grids) if h * w > 1}
        fits = [
            (prefix, sizes[count]) for prefix in range(MAX_PREFIX + 1) if (count := tensor.shape[1] - prefix) in sizes
        ]
        if fits:
            prefix, grid = min(fits, key=lambda fit: fit[1] not in (known or ()))
            return Layer(name, call, "tokens", grid, prefix)
    return None


def _probe(module: nn.Module, run: Callable[[], Tensor]) -> tuple[list[tuple[str, int, Tensor]], list[Tensor | None]]:
    with torch.enable_grad(), _recorded(module) as seen:
        values = run()
    if not values.requires_grad:
        raise InputError(
            "layer: the scores have no graph back to the layers; run the probe on an input that requires grad"
        )
    seen = [found for found in seen if found[2].requires_grad and found[2].shape[0] == len(values)]
    grads = torch.autograd.grad(values.sum(), [tensor for _, _, tensor in seen], allow_unused=True) if seen else ()
    return seen, list(grads)


@contextlib.contextmanager
def _recorded(module: nn.Module) -> Iterator[list[tuple[str, int, Tensor]]]:
    """(name, call, output) of every submodule's call, in order of execution."""
    seen: list[tuple[str, int, Tensor]] = []

    def keep(name: str, call: int, tensor: Tensor) -> bool:
        seen.append((name, call, tensor))
        return True

    with _hooked(module, {name for name, _ in module.named_modules() if name}, keep):
        yield seen


@contextlib.contextmanager
def _hooked(module: nn.Module, names: set[str], keep: Callable[[str, int, Tensor], bool]) -> Iterator[None]:
    """Show ``keep`` each named submodule's output; where it says that it kept it, the model goes on with a clone."""

    def hook(name: str) -> Callable:
        calls = 0

        def after(_: nn.Module, args: Any, output: Any) -> Any:
            nonlocal calls
            tensor = output[0] if type(output) in (tuple, list) and output else output
            if not isinstance(tensor, Tensor):
                return None
            calls += 1
            if not keep(name, calls - 1, tensor):
                return None
            return tensor.clone() if tensor is output else type(output)((tensor.clone(), *output[1:]))

        return after

    with contextlib.ExitStack() as stack:
        for name, child in module.named_modules():
            if name in names and not isinstance(child, torch.jit.ScriptModule):
                stack.callback(child.register_forward_hook(hook(name)).remove)
        yield
