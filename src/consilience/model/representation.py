"""What a network hands to its classifier: the layer before the last one with weights, found and not listed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, choose
from ..statistics.tensors import exact
from .score import Score
from .state import borrowed


def classifier(score: Score, rows: Tensor, owner: Tensor) -> str:
    """The name of the last submodule to run that multiplies by weights of its own (linear, convolution, recurrent, …)."""
    model = score.model
    if not isinstance(model, nn.Module):
        raise InputError("model: the layer before the classifier needs an nn.Module, not a plain callable")
    ran: list[str] = []
    # Lent for as long as the hooks are there, so that no other thread's passes run through them.
    with borrowed(model, freeze=True), contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if _multiplies(module) and not isinstance(module, torch.jit.ScriptModule):
                hook = module.register_forward_hook(lambda *_, name=name: ran.append(name))
                stack.callback(hook.remove)
        score.outputs_of(rows, owner)
    if not ran:
        raise InputError('model: no submodule with weights ran; name the layer whose output is meant: layer="…"')
    return ran[-1]


def _multiplies(module: nn.Module) -> bool:
    """It has a weight matrix, or, without submodules, any matrix; not the position embeddings of a whole network."""
    weight = getattr(module, "weight", None)
    own = [] if next(module.children(), None) is not None else [*module.parameters(recurse=False)]
    return any(isinstance(p, Tensor) and p.ndim > 1 for p in (weight, *own))


def represent(score: Score, rows: Tensor, owner: Tensor, name: str, before: bool) -> Tensor:
    """(N, *F) → (N, D) float64: what the named submodule gets (``before``) or gives. Of several runs in one forward pass the
    last one counts."""
    model = score.model
    if not isinstance(model, nn.Module):
        raise InputError("model: a layer's output needs an nn.Module, not a plain callable")
    modules = dict(model.named_modules())
    choose("layer", name, modules)
    found: list[Tensor] = []
    with borrowed(model, freeze=True), _watched(model, modules[name], before, found):
        score.outputs_of(rows, owner)
    lengths = sum(len(part) for part in found)
    if lengths != len(rows):
        raise InputError(
            f"layer: {name or 'the model itself'!r} handles {lengths} rows for {len(rows)} inputs; name a layer that gives one "
            'row per input: layer="…"'
        )
    return exact(torch.cat([part.flatten(1) for part in found]))


@contextlib.contextmanager
def _watched(model: nn.Module, module: nn.Module, before: bool, found: list[Tensor]) -> Iterator[None]:
    """Append what ``module`` gets (``before``) or gives in each forward pass of the model."""
    last: list[Any] = []

    def given(_: nn.Module, args: tuple, kwargs: dict) -> None:
        last[:] = [*args, *kwargs.values()][:1]

    def made(_: nn.Module, args: Any, output: Any) -> None:
        last[:] = [output[0] if isinstance(output, (tuple, list)) else output]

    def over(*_: Any) -> None:
        if not last or not isinstance(last[0], Tensor):
            raise InputError('layer: it did not run, or not on a tensor; name another: layer="…"')
        found.append(last.pop().detach())

    watch = module.register_forward_pre_hook(given, with_kwargs=True) if before else module.register_forward_hook(made)
    end = model.register_forward_hook(over)
    try:
        yield
    finally:
        watch.remove()
        end.remove()
