"""A model whose parameters are drawn anew, submodule by submodule.

A submodule's weights are drawn by its own ``reset_parameters`` (its initial distribution; a BatchNorm's statistics are reset
too). What has no such method, or is left as it was by it (class tokens, position embeddings, layer scales), gets normal
draws with the mean and standard deviation that it has, so that a single number stays.

What is drawn is what the network uses. Weight norm, spectral norm, pruning masks and other parametrisations compute a weight
from other tensors: there the weight is drawn as if it were plain, and then the tensors that give it (or the nearest weight
that the parametrisation allows: a random orthogonal matrix stays orthogonal). Masks stay. Tied weights are drawn once.

Draws are keyed by the seed and the submodule's name, made on the CPU, in a copy of the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..errors import InputError
from ..statistics.keys import Key
from .copies import detached_copy
from .inspection import quantised

DOUBLINGS = 10  # of the deviation of tensors from which a weight is computed by a map without inverse
LIKE = 0.3  # correlation of the drawn weight with the trained one above which it is not taken for random
STEPS = 50  # power iterations after which a spectral norm of drawn weights is taken for exact


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
    steps = len(names) if steps is None else min(steps, len(names))
    shown = {-(-len(names) * i // steps) - 1 for i in range(1, steps + 1)}
    copied = detached_copy(model)
    modules = dict(copied.named_modules())
    trained = dict(model.named_modules())
    drawn: set[int] = set()
    for at, name in enumerate(names):
        if order == "independent" and at not in shown:
            continue
        module = modules[name]
        kept = [(parameter, parameter.detach().clone()) for parameter in _parameters(module) if id(parameter) in drawn]
        redraw(module, key / name)
        with torch.no_grad():
            for parameter, value in kept:
                parameter.copy_(value)
        if at in shown:
            yield copied
        if order == "independent":
            _restore(module, trained[name])
        else:
            drawn.update(id(parameter) for parameter in _parameters(module))


def redraw(module: nn.Module, key: Key) -> None:
    """Draw a module's own weights anew, in place; the global random state is left as it was.

    Args:
        module: its children keep theirs.
        key: of the draws.
    """
    first, second = key.words
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(first << 31 | second >> 1)
        fresh = _plain(module)
        _draw(fresh)
        for name, value in fresh._buffers.items():
            buffer = module._buffers.get(name)
            if buffer is not None and value is not None:
                buffer.copy_(value)
        for name, parameter in fresh._parameters.items():
            if parameter is not None:
                _write(module, name, parameter.detach())


# -- which tensors belong to whom --------------------------------------------------------------------------------------


def _parameters(module: nn.Module) -> list[nn.Parameter]:
    """A module's own parameters, and those from which its parametrisations compute its weights."""
    found = list(module.parameters(recurse=False))
    for parts in _parametrisations(module).values():
        found += list(parts.parameters())
    return found


def _parametrisations(module: nn.Module) -> dict[str, nn.Module]:
    """Weight → the modules that compute it (:mod:`torch.nn.utils.parametrize`)."""
    if not parametrize.is_parametrized(module):
        return {}
    return dict(cast(nn.ModuleDict, module.parametrizations).items())


def _buffers(module: nn.Module) -> list[Tensor]:
    found = list(module.buffers(recurse=False))
    for parts in _parametrisations(module).values():
        found += list(parts.buffers())
    return found


def _owners(model: nn.Module, names: list[str]) -> list[str]:
    """Those of the names whose module has a parameter that no earlier one has; nothing inside a parametrisation."""
    modules = dict(model.named_modules())
    inside = {
        id(part)
        for module in modules.values()
        for parts in _parametrisations(module).values()
        for part in (module._modules["parametrizations"], *parts.modules())
    }
    seen: set[int] = set()
    owners = []
    for name in names:
        own = {id(parameter) for parameter in _parameters(modules[name])}
        if id(modules[name]) not in inside and not own <= seen:
            owners.append(name)
            seen |= own
    return owners


def _restore(module: nn.Module, trained: nn.Module) -> None:
    with torch.no_grad():
        now = [*_parameters(module), *_buffers(module)]
        right = [*_parameters(trained), *_buffers(trained)]
        for tensor, value in zip(now, right, strict=True):
            tensor.copy_(value)
        for hook in reversed(_recomputing(module)):  # a norm of a pruned tensor: that tensor first
            setattr(module, _name(hook), _computed(hook, module))


def _check_drawable(name: str, module: nn.Module) -> None:
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
    """A copy on the CPU whose weights are plain parameters, whatever computes them in ``module``."""
    if _resets(module):
        plain = detached_copy(module)
        if _parametrisations(module):
            # Not remove_parametrizations: the copy shares its class with the caller's module, which would lose its weight.
            plain.__class__ = parametrize.type_before_parametrizations(module)
            del plain._modules["parametrizations"]
            for name in _parametrisations(module):
                weight = getattr(module, name).detach().clone()
                plain.register_parameter(name, nn.Parameter(weight, requires_grad=False))
        for hook in reversed(_recomputing(plain)):
            _make_plain(plain, hook)
        return plain.to("cpu")
    # Nothing of it is called: the tensors alone will do, and its children need not be copied.
    plain = nn.Module()
    computed = [_name(hook) for hook in _recomputing(module)]
    computed += list(_parametrisations(module))
    sources = {name + ending for name in computed for ending in ("_g", "_v", "_orig")}
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
    for name, parameter in plain.named_parameters(recurse=False):
        if name in before and torch.equal(parameter, before[name]):
            parameter.copy_(_normal_like(parameter))


def _normal_like(values: Tensor) -> Tensor:
    """Normal draws with the mean and deviation of the values; of complex ones for both parts."""
    if values.is_complex():
        return torch.view_as_complex(_normal_like(torch.view_as_real(values)).contiguous())
    exact = values.detach().cpu().double()
    noise = torch.randn(exact.shape, dtype=torch.float64)
    return (exact.mean() + exact.std(correction=0) * noise).to(values)


def _resets(module: nn.Module) -> bool:
    """Whether it has a ``reset_parameters`` that takes no argument."""
    reset = getattr(module, "reset_parameters", None)
    return callable(reset) and all(
        p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        for p in inspect.signature(reset).parameters.values()
    )


# -- weights that are computed from other tensors ----------------------------------------------------------------------


def _recomputing(module: nn.Module) -> list[Any]:
    """The hooks that compute a weight before each forward pass: ``torch.nn.utils``' older weight and spectral norm, pruning."""
    kinds = (WeightNorm, SpectralNorm, prune.BasePruningMethod)
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, kinds)]


def _name(hook: Any) -> str:
    return hook._tensor_name if isinstance(hook, prune.BasePruningMethod) else hook.name


def _make_plain(module: nn.Module, hook: Any) -> None:
    """Make the weight that a hook computes a parameter, and take away what it was computed from."""
    name = _name(hook)
    weight = getattr(module, name).detach().clone()
    for ending in ("_g", "_v", "_orig"):
        module._parameters.pop(name + ending, None)
    for number, known in list(module._forward_pre_hooks.items()):
        if known is hook:
            del module._forward_pre_hooks[number]
    if name in vars(module):
        delattr(module, name)
    module.register_parameter(name, nn.Parameter(weight, requires_grad=False))


def _write(module: nn.Module, name: str, value: Tensor) -> None:
    """Let the weight ``name`` that the module uses be ``value`` (on the CPU), or as near as what computes it allows."""
    if name in _parametrisations(module):
        _write_parametrised(module, name, value)
        return
    hooks = [hook for hook in _recomputing(module) if _name(hook) == name]
    if not hooks:
        cast(Tensor, module._parameters[name]).copy_(value)
        return
    hook = hooks[-1]
    if isinstance(hook, WeightNorm):
        _write(module, name + "_g", torch.norm_except_dim(value, 2, hook.dim))
        _write(module, name + "_v", value)
    else:
        _write(module, name + "_orig", value)
    if isinstance(hook, SpectralNorm):
        for _ in range(STEPS):  # its vectors are those of the trained weight, and stand still in eval mode
            hook.compute_weight(module, do_power_iteration=True)
    with torch.no_grad():  # what the module shows between two forward passes
        setattr(module, name, _computed(hook, module))


def _computed(hook: Any, module: nn.Module) -> Tensor:
    if isinstance(hook, WeightNorm):
        return hook.compute_weight(module)
    if isinstance(hook, SpectralNorm):
        return hook.compute_weight(module, do_power_iteration=False)
    return hook.apply_mask(module)


def _write_parametrised(module: nn.Module, name: str, value: Tensor) -> None:
    parts = _parametrisations(module)[name]
    trained = getattr(module, name).detach().cpu().clone()
    where = next((tensor.device for tensor in (*parts.parameters(), *parts.buffers())), value.device)
    parts.to("cpu")  # its own draws (a basis completed at random) are the same whatever the device
    try:
        before = [parameter.detach().clone() for parameter in parts.parameters()]
        if not _assign(module, name, value):
            _draw_free(module, name, before, trained)
        _settle(module, name)
    finally:
        parts.to(where)


def _draw_free(module: nn.Module, name: str, before: list[Tensor], trained: Tensor) -> None:
    """A map without inverse: its free tensors are drawn with their own deviation, and with twice as much until the weight
    that it makes of them is unlike the trained one (exp of a small matrix is nearly one and the same)."""
    parts = _parametrisations(module)[name]
    for doubling in range(DOUBLINGS):
        for parameter, old in zip(parts.parameters(), before, strict=True):
            spread = _normal_like(old) - old.mean()
            parameter.copy_(old.mean() + 2**doubling * spread)
        both = torch.stack([getattr(module, name).detach().flatten().double(), trained.flatten().double()])
        if not torch.corrcoef(both)[0, 1].abs() > LIKE:
            return


def _assign(module: nn.Module, name: str, value: Tensor) -> bool:
    """Whether the parametrisation could be inverted."""
    try:
        setattr(module, name, value)
    except (NotImplementedError, RuntimeError, ValueError, TypeError, AttributeError):
        return False
    return bool(getattr(module, name).isfinite().all())


def _settle(module: nn.Module, name: str) -> None:
    """Let parametrisations that estimate something of the weight (spectral norm) do so, as they do in training mode."""
    parts = _parametrisations(module)[name]
    modes = [(part, part.training) for part in parts.modules()]
    if not list(parts.buffers()):
        return
    try:
        for part, _ in modes:
            part.training = True
        for _ in range(STEPS):
            getattr(module, name)
    finally:
        for part, training in modes:
            part.training = training
