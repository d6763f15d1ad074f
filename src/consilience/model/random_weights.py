"""A model whose parameters are drawn anew, submodule by submodule.

A submodule's weights are drawn by its own ``reset_parameters`` (its initial distribution; a BatchNorm's statistics are reset
too). What has no such method, or is left as it was by it (class tokens, position embeddings, layer scales), gets normal
draws with the mean and standard deviation that it has, so that a single number stays.

What is drawn is what the network uses. Weight norm, spectral norm, pruning masks and other parametrisations compute a weight
from other tensors (:mod:`.computed_weights`): there the weight is drawn as if it were plain, and then the tensors that give it
(or the nearest weight that the parametrisation allows: a random orthogonal matrix stays orthogonal). Masks stay. Tied weights
are drawn once.

Draws are keyed by the seed and the submodule's name, made on the CPU, in a copy of the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..statistics.keys import Key
from .computed_weights import (
    SOURCES,
    make_plain,
    normal_like,
    parametrisations,
    recompute,
    recomputing_hooks,
    weight_name,
    write,
)
from .copies import detached_copy
from .inspection import quantised
from .random_state import forked


def with_parameters(model: Any) -> list[str]:
    """Names of the submodules that hold parameters of their own, in the order in which they are registered.

    A parametrisation's tensors belong to the submodule whose weight they give; a submodule all of whose parameters are tied
    to an earlier one's is left out.

    Args:
        model: an ``nn.Module``.

    Raises:
        InputError: a plain callable, no parameters, or weights that cannot be drawn (quantised, integers).
    """
    if not isinstance(model, nn.Module):
        raise InputError("model: randomisation needs an nn.Module, not a plain callable")
    for name, module in model.named_modules():
        _check_drawable(name, module)
    names = _owners(model, [name for name, _ in model.named_modules()])
    if not names:
        raise InputError("model: it has no parameters to draw anew")
    return names


def randomised(model: Any, order: str, key: Key, steps: int | None = None) -> Iterator[nn.Module]:
    """The model with ever more parameters drawn anew, or with one submodule's only.

    It is one copy that is changed: use each state before asking for the next.

    Args:
        model: an ``nn.Module``, which stays as it is.
        order: "top_down" (from the last submodule), "bottom_up" (from the first) or "independent" (one at a time).
        key: of the draws.
        steps: at most so many states, evenly spaced, the last always; None: one for each submodule.
    """
    names = with_parameters(model)
    if order != "bottom_up":
        # Tied parameters belong to the submodule that is drawn first, so ownership is asked for in this order.
        names = _owners(model, [name for name, _ in model.named_modules()][::-1])
    yielded = _evenly_spaced(len(names), steps)
    copied = detached_copy(model)
    modules = dict(copied.named_modules())
    trained = dict(model.named_modules())
    drawn: set[int] = set()
    for number, name in enumerate(names):
        if order == "independent" and number not in yielded:
            continue
        module = modules[name]
        # Parameters that are tied to an earlier submodule's keep what was drawn there.
        kept = [(parameter, parameter.detach().clone()) for parameter in _parameters(module) if id(parameter) in drawn]
        redraw(module, key / name)
        with torch.no_grad():
            for parameter, value in kept:
                parameter.copy_(value)
        if number in yielded:
            yield copied
        if order == "independent":
            _restore(module, trained[name])
        else:
            drawn.update(id(parameter) for parameter in _parameters(module))


def _evenly_spaced(count: int, steps: int | None) -> set[int]:
    """At most so many of the numbers 0 … ``count`` − 1, evenly spaced, the last always; None: all of them."""
    steps = count if steps is None else min(steps, count)
    return {-(-count * step // steps) - 1 for step in range(1, steps + 1)}


def redraw(module: nn.Module, key: Key) -> None:
    """Draw a module's own weights anew, in place; the global random state is left as it was.

    Args:
        module: its children keep theirs.
        key: of the draws.
    """
    first, second = key.words
    # reset_parameters draws from the global generators, so these start from the key for a while.
    with forked(first << 32 | second), torch.no_grad():
        fresh = _plain(module)
        _draw(fresh)
        for name, value in fresh._buffers.items():
            buffer = module._buffers.get(name)
            if buffer is not None and value is not None:
                buffer.copy_(value)
        for name, parameter in fresh._parameters.items():
            if parameter is not None:
                write(module, name, parameter.detach())


# -- which tensors belong to whom --------------------------------------------------------------------------------------


def _parameters(module: nn.Module) -> list[nn.Parameter]:
    """A module's own parameters, and those from which its parametrisations compute its weights."""
    own = list(module.parameters(recurse=False))
    for parts in parametrisations(module).values():
        own += parts.parameters()
    return own


def _buffers(module: nn.Module) -> list[Tensor]:
    """A module's own buffers, and those of its parametrisations."""
    own = list(module.buffers(recurse=False))
    for parts in parametrisations(module).values():
        own += parts.buffers()
    return own


def _owners(model: nn.Module, names: list[str]) -> list[str]:
    """Those of the names whose module has a parameter that no earlier one has; nothing inside a parametrisation."""
    modules = dict(model.named_modules())
    inside = {
        id(part)
        for module in modules.values()
        for parts in parametrisations(module).values()
        for part in (module._modules["parametrizations"], *parts.modules())
    }
    seen: set[int] = set()
    owners = []
    for name in names:
        own = {id(parameter) for parameter in _parameters(modules[name])}
        # A module without parameters has a subset of those seen, too.
        if id(modules[name]) not in inside and not own <= seen:
            owners.append(name)
            seen |= own
    return owners


def _restore(module: nn.Module, trained: nn.Module) -> None:
    """Give a submodule of the copy the weights of the same one of the model."""
    with torch.no_grad():
        copied = [*_parameters(module), *_buffers(module)]
        originals = [*_parameters(trained), *_buffers(trained)]
        for tensor, value in zip(copied, originals, strict=True):
            tensor.copy_(value)
        recompute(module)


def _check_drawable(name: str, module: nn.Module) -> None:
    """Raise InputError for a submodule whose own weights cannot be drawn."""
    where = f"submodule {name!r} ({type(module).__name__})"
    if quantised(module):
        raise InputError(
            f"model: {where} is quantised and keeps its weights where they cannot be drawn; use the float model"
        )
    for parameter in module.parameters(recurse=False):
        if not (parameter.is_floating_point() or parameter.is_complex()):
            raise InputError(
                f"model: {where} has weights of {parameter.dtype}, which cannot be drawn; use the float model"
            )


# -- drawing -----------------------------------------------------------------------------------------------------------


def _plain(module: nn.Module) -> nn.Module:
    """A copy on the CPU whose weights are plain parameters, whatever computes them in the module."""
    if _resets(module):
        plain = detached_copy(module)
        make_plain(plain, module)
        return plain.to("cpu")
    # Nothing of it is called: the tensors alone will do, and its children need not be copied.
    plain = nn.Module()
    computed = [weight_name(hook) for hook in recomputing_hooks(module)]
    computed += list(parametrisations(module))
    sources = {name + ending for name in computed for ending in SOURCES}
    for name, parameter in module.named_parameters(recurse=False):
        if name not in sources:
            plain.register_parameter(name, nn.Parameter(parameter.detach().cpu().clone(), requires_grad=False))
    for name in computed:
        weight = getattr(module, name).detach().cpu().clone()
        plain.register_parameter(name, nn.Parameter(weight, requires_grad=False))
    return plain


def _draw(plain: nn.Module) -> None:
    """Draw all parameters of a plain module, in place, from the global generator."""
    before = {name: parameter.detach().clone() for name, parameter in plain.named_parameters(recurse=False)}
    if _resets(plain):
        plain.reset_parameters()  # type: ignore[operator]
    # What reset_parameters leaves as it was, or has not heard of.
    for name, parameter in plain.named_parameters(recurse=False):
        if name in before and torch.equal(parameter, before[name]):
            parameter.copy_(normal_like(parameter))


def _resets(module: nn.Module) -> bool:
    """Whether a module has a ``reset_parameters`` that needs no argument."""
    reset = getattr(module, "reset_parameters", None)
    if not callable(reset):
        return False
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(
        argument.default is not argument.empty or argument.kind in variadic
        for argument in inspect.signature(reset).parameters.values()
    )
