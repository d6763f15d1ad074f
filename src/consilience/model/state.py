"""The caller's model, lent and given back as it was.

Whatever evaluates a model does so inside :func:`borrowed`: no other thread of this library uses the model meanwhile, and
mode, flags, buffers, hooks and random state come back, whatever happens, Ctrl-C included. Weights are never written: what
needs others (noise, random parameters) works on a :func:`duplicate`. Another thread that runs the model by itself meanwhile
sees its own weights, but may see eval mode and parameters that ask for no gradient: train a copy.
"""

from __future__ import annotations

import contextlib
import copy
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .locks import held, parts_of
from .owned import modules_of
from .random_state import forked
from .undo import undoing

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@contextlib.contextmanager
def borrowed(model: Any, freeze: bool, draws: bool = False) -> Iterator[None]:
    """Use a model in eval mode and leave no trace, whatever happens.

    The modules of a callable are found by :func:`~.owned.modules_of` and treated like a module itself. Nested borrowings of
    one thread are fine. PyTorch's fast path of transformer encoders is off, since it gives padded places other values than
    the graph that is differentiated. Under grad, a recurrent network on CUDA runs without cuDNN, whose backward pass refuses
    eval mode.

    Args:
        model: an ``nn.Module`` or any callable.
        freeze: parameters ask for no gradient meanwhile, so that only input gradients are computed and kept.
        draws: the model, or what is run inside, draws from global random generators: no other thread may meanwhile.

    Raises:
        InputError: waiting for another thread would never end.
    """
    modules, parameters = parts_of(modules_of(model))
    with held((*modules, *parameters), draws):
        kept = _Kept(modules, parameters)
        without_cudnn = torch.is_grad_enabled() and _recurrent(modules)
        cudnn = _CUDNN.off() if without_cudnn else contextlib.nullcontext()
        with forked(), undoing(kept.restore), cudnn, _FAST_PATH.off():
            kept.to_eval_mode(freeze)
            yield
            kept.finished = True


class _Kept:
    """What modules are like: modes, flags, buffers, computed weights, and hooks."""

    def __init__(self, modules: Sequence[nn.Module], parameters: Sequence[nn.Parameter]) -> None:
        self.finished = False
        self.restored = False
        # A frozen TorchScript module has no mode: it is in eval mode for good.
        self.modes = [(module, module.training) for module in modules if hasattr(module, "training")]
        self.flags = [(parameter, parameter.requires_grad) for parameter in parameters]
        self.buffers = [
            (module, name, buffer, buffer.detach().clone())
            for module in modules
            for name, buffer in _buffers(module)
            if buffer is not None
        ]
        plain = [module for module in modules if not isinstance(module, torch.jit.ScriptModule)]
        self.weights = [(module, name, value) for module in plain for name, value in _computed_weights(module)]
        tables = [vars(module)[name] for module in plain for name in HOOKS]
        self.hooks = [(table, dict(table)) for table in tables]

    def to_eval_mode(self, freeze: bool) -> None:
        for module, training in self.modes:
            if training:
                module.training = False
        for parameter, flag in self.flags:
            if freeze and flag:
                parameter.requires_grad_(False)

    def restore(self) -> None:
        """Put everything back; once that was done it does nothing."""
        if self.restored:
            return
        for module, training in self.modes:
            if module.training != training:
                module.training = training
        for parameter, flag in self.flags:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)
        for module, name, value in self.weights:
            vars(module)[name] = value
        for module, name, buffer, _ in self.buffers:
            if not isinstance(module, torch.jit.ScriptModule) and module._buffers.get(name) is not buffer:
                module._buffers[name] = buffer
        # By value: batch normalisation moves its statistics without a trace in the tensor's version.
        for buffer, value in _unequal([(buffer, value) for _, _, buffer, value in self.buffers]):
            with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                buffer.copy_(value)
        # Only after an error, which may have kept somebody from removing them: a hook of the model's own may remove itself.
        if not self.finished:
            for table, content in self.hooks:
                if table.keys() != content.keys():
                    # The same dictionary: handles of the caller's hooks refer to it.
                    table.clear()
                    table.update(content)
        self.restored = True


def _buffers(module: nn.Module) -> Iterable[tuple[str, Tensor | None]]:
    """The module's own buffers by name. A scripted module keeps them elsewhere."""
    if isinstance(module, torch.jit.ScriptModule):
        return module.named_buffers(recurse=False)
    return module._buffers.items()


def _computed_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights that old-style weight normalisation, spectral normalisation and pruning compute in each forward pass from
    a parameter ``…_g`` or ``…_orig``, and keep as attributes."""
    for parameter in module._parameters:
        for suffix in ("_g", "_orig"):
            value = vars(module).get(parameter.removesuffix(suffix))
            if parameter.endswith(suffix) and isinstance(value, Tensor):
                yield parameter.removesuffix(suffix), value


def _unequal(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The pairs of different tensors; one wait for an accelerator, whatever their number."""
    # A tensor on the meta device has no values to move.
    pairs = [pair for pair in pairs if not pair[0].is_meta]
    near = [pair for pair in pairs if pair[0].device.type == "cpu"]
    far = [pair for pair in pairs if pair[0].device.type != "cpu"]
    found = [pair for pair in near if not torch.equal(*pair)]
    if far:
        differ = torch.stack([(one != two).any() for one, two in far]).tolist()
        found += [pair for pair, unequal in zip(far, differ, strict=True) if unequal]
    return found


def _recurrent(modules: Sequence[nn.Module]) -> bool:
    return any(isinstance(module, nn.RNNBase) and any(p.is_cuda for p in module.parameters()) for module in modules)


class _Switch:
    """A switch of the whole process, off while at least one thread wants it off, and afterwards as it was."""

    def __init__(self, read: Callable[[], bool], write: Callable[[bool], Any]) -> None:
        self.read = read
        self.write = write
        self.lock = threading.Lock()
        self.inside: set[tuple[int, object]] = set()
        self.before = True
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """In a forked process the other threads are not there, and will never leave."""
        self.lock = threading.Lock()
        self.inside = {ticket for ticket in self.inside if ticket[0] == threading.get_ident()}

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        ticket = threading.get_ident(), object()

        def leave() -> None:
            with self.lock:
                self.inside.discard(ticket)
                if not self.inside and self.read() != self.before:
                    self.write(self.before)

        with self.lock:
            if not self.inside:
                self.before = self.read()
        with undoing(leave):
            with self.lock:
                self.inside.add(ticket)
                if self.read():
                    self.write(False)
            yield


def _set_cudnn(enabled: bool) -> None:
    torch.backends.cudnn.enabled = enabled


_CUDNN = _Switch(lambda: torch.backends.cudnn.enabled, _set_cudnn)
_FAST_PATH = _Switch(torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled)


@contextlib.contextmanager
def intact(model: Any) -> Iterator[None]:
    """Undo on leaving whatever is done to a module inside: hooks, attributes, mode, weights, buffers, gradients.

    For code of others. Gradients are set aside meanwhile, so that nothing is added to them. Costs a copy of the weights. Of a
    callable, the modules that :func:`~.owned.modules_of` finds.
    """
    modules, parameters = parts_of(modules_of(model))
    plain = [module for module in modules if not isinstance(module, torch.jit.ScriptModule)]
    buffers = dict.fromkeys(buffer for module in modules for _, buffer in _buffers(module) if buffer is not None)
    tensors = [(t, t.data, t.detach().clone(), t.requires_grad) for t in (*parameters, *buffers)]
    gradients = [(parameter, parameter.grad) for parameter in parameters]
    attributes = [(module, dict(vars(module))) for module in plain]
    tables = [(value, value.copy()) for _, values in attributes for value in values.values() if isinstance(value, dict)]

    def restore() -> None:
        for module, before in attributes:
            now = vars(module)
            for name in now.keys() - before.keys():
                del now[name]
            for name, value in before.items():
                if now.get(name) is not value:
                    now[name] = value
        for table, content in tables:  # the same dictionary: handles of the caller's hooks refer to it
            table.clear()
            table.update(content)
        for tensor, data, value, flag in tensors:
            if tensor.data_ptr() != data.data_ptr():
                tensor.data = data
            if not torch.equal(data, value):
                data.copy_(value)
            if tensor.is_leaf:
                tensor.requires_grad_(flag)
        for parameter, gradient in gradients:
            parameter.grad = gradient

    with held((*modules, *parameters)), undoing(restore):
        for parameter in parameters:
            parameter.grad = None
        yield


def duplicate(model: nn.Module) -> nn.Module:
    """A copy of the model with parameters and buffers of its own, to write to.

    Raises:
        InputError: the model cannot be copied.
    """
    modules, parameters = parts_of([model])
    # Tensors that were computed (by old-style weight normalisation, say) cannot be deep-copied; their values can.
    memo: dict[int, Any] = {}
    for module in modules:
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    with held((*modules, *parameters)):
        try:
            return copy.deepcopy(model, memo)
        except Exception as error:
            raise InputError(
                f"model: {type(model).__name__} cannot be copied ({type(error).__name__}: {error}), and other weights are only "
                "ever given to a copy; make copy.deepcopy(model) work, or leave out what changes weights"
            ) from error


def check_ready(model: Any) -> None:
    """Refuse a model that has no weights yet.

    Raises:
        InputError: a parameter or a buffer is lazy (its shape comes with the first forward pass), or a parameter is on the
            meta device.
    """
    for root in modules_of(model):
        for name, tensor in (*root.named_parameters(), *root.named_buffers()):
            if torch.nn.parameter.is_lazy(tensor):
                raise InputError(
                    f"model: {name!r} is lazy and has no values yet; run the model once on real inputs, or load its weights"
                )
            # A buffer without values may be one that nothing reads, such as a cache.
            if tensor.is_meta and isinstance(tensor, torch.nn.Parameter):
                raise InputError(f"model: {name!r} is on the meta device and has no values; load its weights")
