"""What a network hands to its classifier: the input of the last layer with weights, which a forward pass shows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, choose
from ..statistics.tensors import exact
from .hooks import attached
from .score import Score
from .state import borrowed


def classifier(score: Score, rows: Tensor, owner: Tensor) -> str:
    """The name of the last submodule to run that multiplies by weights of its own (linear, convolution, recurrent, …).

    Args:
        score: whose model is run.
        rows: (N, *F), what it is run on.
        owner: (N,), to which input each row belongs.

    Raises:
        InputError: for a plain callable, and where no such submodule runs.
    """
    model = score.model
    if not isinstance(model, nn.Module):
        raise InputError("model: the layer before the classifier needs an nn.Module, not a plain callable")
    ran: list[str] = []

    def recorder(name: str) -> Callable:
        def record(*_: Any) -> None:
            ran.append(name)

        return record

    hooks = [
        (module, recorder(name))
        for name, module in model.named_modules()
        if _multiplies(module) and not isinstance(module, torch.jit.ScriptModule)
    ]
    # Lent for as long as the hooks are there, so that no other thread's passes run through them.
    with borrowed(model, freeze=True), attached(after=hooks):
        score.outputs_of(rows, owner)
    if not ran:
        raise InputError('model: no submodule with weights ran; name the layer whose output is meant: layer="…"')
    return ran[-1]


def _multiplies(module: nn.Module) -> bool:
    """Whether a module has a weight matrix, or, without submodules, any matrix of its own (as recurrent layers have)."""
    parameters = [getattr(module, "weight", None)]
    # Matrices beside submodules do not count: they are position embeddings of a whole network.
    if next(module.children(), None) is None:
        parameters += module.parameters(recurse=False)
    return any(isinstance(parameter, Tensor) and parameter.ndim > 1 for parameter in parameters)


def represent(score: Score, rows: Tensor, owner: Tensor, name: str, before: bool) -> Tensor:
    """What a submodule gets or gives for each row: (N, D) float64.

    Of several runs in one forward pass the last one counts.

    Args:
        score: whose model is run.
        rows: (N, *F).
        owner: (N,), to which input each row belongs.
        name: the submodule's qualified name.
        before: what it gets; else what it gives.

    Raises:
        InputError: for a plain callable, an unknown name, and a submodule that does not run or not on one row per input.
    """
    model = score.model
    if not isinstance(model, nn.Module):
        raise InputError("model: a layer's output needs an nn.Module, not a plain callable")
    modules = dict(model.named_modules())
    choose("layer", name, modules)
    parts: list[Tensor] = []
    with borrowed(model, freeze=True), _watched(model, modules[name], before, parts):
        score.outputs_of(rows, owner)
    lengths = sum(len(part) for part in parts)
    if lengths != len(rows):
        raise InputError(
            f"layer: {name or 'the model itself'!r} handles {lengths} rows for {len(rows)} inputs; name a layer that gives one "
            'row per input: layer="…"'
        )
    return exact(torch.cat([part.flatten(1) for part in parts]))


@contextlib.contextmanager
def _watched(model: nn.Module, module: nn.Module, before: bool, parts: list[Tensor]) -> Iterator[None]:
    """Keep what a submodule gets or gives in each forward pass of the model that runs inside.

    Args:
        model: the whole model, whose hook ends a pass.
        module: the submodule.
        before: what it gets; else what it gives.
        parts: a tensor is appended for each pass.
    """
    last: list[Any] = []  # at most one: what the module's latest run in this pass got or gave

    def keep_input(_: nn.Module, args: tuple, kwargs: dict) -> None:
        last[:] = [*args, *kwargs.values()][:1]

    def keep_output(_: nn.Module, args: Any, output: Any) -> None:
        # The first of several is the one that the next layer reads: (output, state) of a recurrent layer.
        if isinstance(output, (tuple, list)):
            output = output[0]
        last[:] = [output]

    def end_of_pass(*_: Any) -> None:
        if not last or not isinstance(last[0], Tensor):
            raise InputError('layer: it did not run, or not on a tensor; name another: layer="…"')
        parts.append(last.pop().detach())

    if before:
        watch = module.register_forward_pre_hook(keep_input, with_kwargs=True)
    else:
        watch = module.register_forward_hook(keep_output)
    # After the watch: where the module is the model itself, hooks run in the order in which they were registered.
    end = model.register_forward_hook(end_of_pass)
    try:
        yield
    finally:
        watch.remove()
        end.remove()
