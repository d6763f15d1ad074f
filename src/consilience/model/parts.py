"""What a model consists of, found once for many passes: modules, parameters, and the values of its buffers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .locks import modules_and_parameters
from .owned import modules_of

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
"""The dictionaries in which a module keeps its hooks, and what it knows of them."""


class Parts:
    """The parts of a model whose modules stay the same ones.

    Walking through a model and copying its buffers takes as long as some of its operations, and comparing buffers makes the
    host wait for an accelerator. So both are done once, and after a pass only what was written to is looked at.

    Args:
        model: an ``nn.Module`` or any callable, whose modules :func:`~.owned.modules_of` finds.

    Attributes:
        modules: all of them.
        parameters: all of them, each once.
        plain: the modules that keep their state in their ``__dict__``, as scripted ones do not.
        hook_tables: the dictionaries of their hooks.
        computed_weights: (module, name) of weights that are attributes, and no parameters.
    """

    def __init__(self, model: Any) -> None:
        self.modules, self.parameters = modules_and_parameters(modules_of(model))
        self.plain = [module for module in self.modules if not isinstance(module, torch.jit.ScriptModule)]
        self.hook_tables = [vars(module)[name] for module in self.plain for name in HOOKS]
        self.computed_weights = [(module, name) for module in self.plain for name in _computed_weights(module)]
        self._buffers: list[_Buffer] = []
        # Batch normalisation moves its statistics without a trace in the tensor's version. Whether this model has something
        # like that is seen in its first pass, after which all buffers are compared by value.
        self._compared = False
        self._moves_silently = False

    def note_buffers(self) -> None:
        """Remember what the buffers hold, for :meth:`restore_buffers`."""
        now = [
            (module, name, buffer)
            for module in self.modules
            for name, buffer in buffers_of(module)
            if buffer is not None
        ]
        known = [(buffer.module, buffer.name, buffer.buffer) for buffer in self._buffers]
        same = len(now) == len(known) and all(
            one[0] is other[0] and one[1] == other[1] and one[2] is other[2]
            for one, other in zip(now, known, strict=True)
        )
        # What was written to between two passes was written by the caller.
        if not same or self._moves_silently or any(buffer.written for buffer in self._buffers):
            self._buffers = [_Buffer(*each) for each in now]

    def restore_buffers(self) -> None:
        """Put the buffers' values back."""
        for buffer in self._buffers:
            buffer.put_back()
        written = [buffer for buffer in self._buffers if buffer.written]
        if self._moves_silently or not self._compared:
            moved = _unequal(self._buffers)
            self._moves_silently |= any(not buffer.written for buffer in moved)
            self._compared = True
        else:
            moved = _unequal(written)
        for buffer in moved:
            # A tensor made in inference mode can be written to only in inference mode.
            with torch.inference_mode(buffer.buffer.is_inference()), torch.no_grad():
                buffer.buffer.copy_(buffer.value)
        for buffer in {id(each): each for each in (*written, *moved)}.values():
            buffer.version = _version(buffer.buffer)


class _Buffer:
    """One buffer, and what it held.

    Args:
        module: which has it.
        name: under which it has it.
        buffer: the tensor.
    """

    def __init__(self, module: nn.Module, name: str, buffer: Tensor) -> None:
        self.module = module
        self.name = name
        self.buffer = buffer
        self.value = buffer.detach().clone()
        self.version = _version(buffer)

    @property
    def written(self) -> bool:
        """Whether the buffer may have been written to since."""
        return self.version is None or _version(self.buffer) != self.version

    def put_back(self) -> None:
        """Give the module this tensor again, if it has another one."""
        module = self.module
        if not isinstance(module, torch.jit.ScriptModule) and module._buffers.get(self.name) is not self.buffer:
            module._buffers[self.name] = self.buffer


def _version(tensor: Tensor) -> int | None:
    """How often a tensor was written to; None: not known, as for those made in inference mode."""
    return None if tensor.is_inference() else tensor._version


def buffers_of(module: nn.Module) -> Iterable[tuple[str, Tensor | None]]:
    """A module's own buffers by name.

    Args:
        module: itself only, not its submodules.
    """
    # A scripted module keeps them elsewhere.
    if isinstance(module, torch.jit.ScriptModule):
        return module.named_buffers(recurse=False)
    return module._buffers.items()


def _unequal(buffers: Sequence[_Buffer]) -> list[_Buffer]:
    """Those whose buffer holds something else now; one wait for an accelerator, whatever their number."""
    # A tensor on the meta device has no values to move.
    buffers = [each for each in buffers if not each.buffer.is_meta]
    near = [each for each in buffers if each.buffer.device.type == "cpu"]
    far = [each for each in buffers if each.buffer.device.type != "cpu"]
    found = [each for each in near if not torch.equal(each.buffer, each.value)]
    if far:
        differ = torch.stack([(each.buffer != each.value).any() for each in far]).tolist()
        found += [each for each, unequal in zip(far, differ, strict=True) if unequal]
    return found


def _computed_weights(module: nn.Module) -> Iterator[str]:
    """Names of the weights that old-style weight normalisation, spectral normalisation and pruning compute in each forward pass
    from a parameter ``…_g`` or ``…_orig``, and keep as attributes."""
    for parameter in module._parameters:
        for suffix in ("_g", "_orig"):
            name = parameter.removesuffix(suffix)
            if parameter.endswith(suffix) and isinstance(vars(module).get(name), Tensor):
                yield name
