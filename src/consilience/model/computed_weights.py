"""Weights that a module computes from other tensors: what they are, and how they are given another value.

PyTorch knows two ways. A *parametrisation* (:mod:`torch.nn.utils.parametrize`) makes the weight a property of the module,
computed from ``original`` tensors each time it is read. A *recomputing hook* (the older weight and spectral norm, pruning)
computes it before each forward pass from a parameter ``…_g``, ``…_v`` or ``…_orig``, and keeps it as an attribute.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

SOURCES = ("_g", "_v", "_orig")
"""Endings of the names of the tensors from which a recomputing hook computes a weight."""

DOUBLINGS = 10
"""At most so many doublings of the deviation of tensors from which a weight is computed by a map without inverse."""

LIKE = 0.3
"""Correlation of the drawn weight with the trained one above which it is not taken for random."""

STEPS = 50
"""Power iterations after which a spectral norm of drawn weights is taken for exact."""


def parametrisations(module: nn.Module) -> dict[str, nn.Module]:
    """Weight → the modules that compute it; none of a module without parametrisations.

    Args:
        module: itself only, not its submodules.
    """
    if not parametrize.is_parametrized(module):
        return {}
    return dict(cast(nn.ModuleDict, module.parametrizations).items())


def recomputing_hooks(module: nn.Module) -> list[Any]:
    """The hooks that compute a weight before each forward pass, in the order in which they run.

    Args:
        module: itself only, not its submodules.
    """
    kinds = (WeightNorm, SpectralNorm, prune.BasePruningMethod)
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, kinds)]


def weight_name(hook: Any) -> str:
    """The name of the weight that a recomputing hook computes.

    Args:
        hook: one of :func:`recomputing_hooks`.
    """
    if isinstance(hook, prune.BasePruningMethod):
        return hook._tensor_name
    return hook.name


def recompute(module: nn.Module) -> None:
    """Compute the weights of all hooks anew, as the next forward pass would.

    Args:
        module: the module, which is changed.
    """
    # The last hook first: of a norm of a pruned tensor, that tensor is computed by the later hook.
    for hook in reversed(recomputing_hooks(module)):
        setattr(module, weight_name(hook), _computed(hook, module))


def make_plain(copied: nn.Module, original: nn.Module) -> None:
    """Make parameters of all weights that are computed, and take away what they were computed from.

    Args:
        copied: a copy of a module, which is changed.
        original: the module, whose computed weights are read.
    """
    weights = {name: getattr(original, name).detach().clone() for name in parametrisations(original)}
    if weights:
        # Not remove_parametrizations: the copy shares its class with the original, which would lose its weight.
        copied.__class__ = parametrize.type_before_parametrizations(original)
        del copied._modules["parametrizations"]
        for name, weight in weights.items():
            copied.register_parameter(name, nn.Parameter(weight, requires_grad=False))
    for hook in reversed(recomputing_hooks(copied)):
        _make_hooked_plain(copied, hook)


def _make_hooked_plain(module: nn.Module, hook: Any) -> None:
    """Make a parameter of the weight that one hook computes."""
    name = weight_name(hook)
    weight = getattr(module, name).detach().clone()
    for ending in SOURCES:
        module._parameters.pop(name + ending, None)
    for number, known in list(module._forward_pre_hooks.items()):
        if known is hook:
            del module._forward_pre_hooks[number]
    # The computed weight is a plain attribute, which would hide a parameter of the same name.
    if name in vars(module):
        delattr(module, name)
    module.register_parameter(name, nn.Parameter(weight, requires_grad=False))


def write(module: nn.Module, name: str, value: Tensor) -> None:
    """Let the weight that a module uses have a value, or one as near as what computes it allows.

    Args:
        module: the module, which is changed.
        name: of the weight.
        value: on the CPU.
    """
    if name in parametrisations(module):
        _write_parametrised(module, name, value)
        return
    hooks = [hook for hook in recomputing_hooks(module) if weight_name(hook) == name]
    if not hooks:
        cast(Tensor, module._parameters[name]).copy_(value)
        return
    hook = hooks[-1]
    if isinstance(hook, WeightNorm):
        # weight = g · v / ‖v‖: with g = ‖value‖ and v = value that is the value. Either may be computed itself.
        write(module, name + "_g", torch.norm_except_dim(value, 2, hook.dim))
        write(module, name + "_v", value)
    else:
        write(module, name + "_orig", value)
    if isinstance(hook, SpectralNorm):
        # Its vectors are those of the trained weight, and stand still in eval mode.
        for _ in range(STEPS):
            hook.compute_weight(module, do_power_iteration=True)
    # What the module shows between two forward passes.
    with torch.no_grad():
        setattr(module, name, _computed(hook, module))


def _computed(hook: Any, module: nn.Module) -> Tensor:
    """The weight that a hook would compute in the next forward pass in eval mode."""
    if isinstance(hook, WeightNorm):
        return hook.compute_weight(module)
    if isinstance(hook, SpectralNorm):
        return hook.compute_weight(module, do_power_iteration=False)
    return hook.apply_mask(module)


def _write_parametrised(module: nn.Module, name: str, value: Tensor) -> None:
    """Let a weight that a parametrisation computes have a value, or random draws where it has no inverse.

    Args:
        module: the module, which is changed.
        name: of the weight.
        value: on the CPU.
    """
    parts = parametrisations(module)[name]
    trained = getattr(module, name).detach().cpu().clone()
    tensors = [*parts.parameters(), *parts.buffers()]
    device = tensors[0].device if tensors else value.device
    # On the CPU, so that what it draws itself (a basis completed at random) is the same whatever the device.
    parts.to("cpu")
    try:
        before = [parameter.detach().clone() for parameter in parts.parameters()]
        if not _assign(module, name, value):
            _draw_free(module, name, before, trained)
        _settle(module, name)
    finally:
        parts.to(device)


def _assign(module: nn.Module, name: str, value: Tensor) -> bool:
    """Whether the parametrisation could be inverted, so that the weight now is the value or its nearest."""
    try:
        # Assigning to a parametrised weight calls right_inverse, which refuses in as many ways as there are authors.
        setattr(module, name, value)
    except (NotImplementedError, RuntimeError, ValueError, TypeError, AttributeError):
        return False
    return bool(getattr(module, name).isfinite().all())


def _draw_free(module: nn.Module, name: str, before: list[Tensor], trained: Tensor) -> None:
    """Draw the tensors of a parametrisation that has no inverse, until the weight is unlike the trained one.

    With their own mean and deviation first, and then with twice as much each time: exp of a small matrix, say, is nearly
    the same whatever is drawn.

    Args:
        module: the module, which is changed.
        name: of the weight.
        before: the tensors as they were.
        trained: the weight as it was.
    """
    parts = parametrisations(module)[name]
    for doubling in range(DOUBLINGS):
        for parameter, old in zip(parts.parameters(), before, strict=True):
            spread = normal_like(old) - old.mean()
            parameter.copy_(old.mean() + 2**doubling * spread)
        drawn = getattr(module, name).detach().flatten().double()
        both = torch.stack([drawn, trained.flatten().double()])
        # "Not above", so that the NaN of a constant weight ends it too.
        if not torch.corrcoef(both)[0, 1].abs() > LIKE:
            return


def _settle(module: nn.Module, name: str) -> None:
    """Let parametrisations that estimate something of the weight (spectral norm) do so, as they do in training mode."""
    parts = parametrisations(module)[name]
    # What is estimated is kept in buffers.
    if not list(parts.buffers()):
        return
    modes = [(part, part.training) for part in parts.modules()]
    try:
        for part, _ in modes:
            part.training = True
        for _ in range(STEPS):
            getattr(module, name)
    finally:
        for part, training in modes:
            part.training = training


def normal_like(values: Tensor) -> Tensor:
    """Normal draws from the global generator, with the mean and deviation of some values; of complex ones for both parts.

    Args:
        values: of any shape.
    """
    if values.is_complex():
        return torch.view_as_complex(normal_like(torch.view_as_real(values)).contiguous())
    exact = values.detach().cpu().double()
    noise = torch.randn(exact.shape, dtype=torch.float64)
    # Without Bessel's correction, so that a single number has a deviation of zero and stays.
    return (exact.mean() + exact.std(correction=0) * noise).to(values)
