"""The caller's model, lent and given back as it was.

Whatever evaluates a model does so inside :func:`borrowed`: no other thread of this library uses the model meanwhile, and
mode, flags, buffers, hooks and random state come back, whatever happens, Ctrl-C included. Weights are never written: what
needs others (noise, random parameters) works on a copy (:mod:`.copies`). Another thread that runs the model by itself
meanwhile sees its own weights, but may see eval mode and parameters that ask for no gradient: train a copy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from .locks import held, modules_and_parameters
from .owned import modules_of
from .parts import Parts, buffers_of
from .random_state import forked
from .switches import CUDNN, FAST_PATH
from .undo import undoing

# -- for our own evaluations: a cheap way to leave no trace ------------------------------------------------------------


@contextlib.contextmanager
def borrowed(model: Any, freeze: bool, draws: bool = False, parts: Parts | None = None) -> Iterator[None]:
    """Use a model in eval mode and leave no trace, whatever happens.

    The modules of a callable are found by :func:`~.owned.modules_of` and treated like a module itself. One thread may borrow
    a model that it has borrowed already. PyTorch's fast path of transformer encoders is off, since it gives padded places
    other values than the graph that is differentiated. Under grad, a recurrent network on CUDA runs without cuDNN, whose
    backward pass refuses eval mode.

    Args:
        model: an ``nn.Module`` or any callable.
        freeze: parameters ask for no gradient meanwhile, so that only input gradients are computed and kept.
        draws: the model, or what is run inside, draws from global random generators: no other thread may meanwhile.
        parts: of this model, as they were found earlier, where it is lent for one pass after another; None: they are found.

    Raises:
        InputError: waiting for another thread would never end.
    """
    parts = Parts(model) if parts is None else parts
    # The lock comes first and goes last: what the model was like is read, and put back, while no other thread has it.
    with held((*parts.modules, *parts.parameters), draws):
        before = _Before(parts)
        needs_no_cudnn = torch.is_grad_enabled() and _recurrent(parts.modules)
        without_cudnn = CUDNN.off() if needs_no_cudnn else contextlib.nullcontext()
        with forked(), undoing(before.restore), without_cudnn, FAST_PATH.off():
            before.to_eval_mode(freeze)
            yield
            before.finished = True


class _Before:
    """What modules were like when they were lent: modes, flags, buffers, computed weights, and hooks.

    Args:
        parts: of the model.

    Attributes:
        finished: whether the use of the model came to its end without an error.
    """

    def __init__(self, parts: Parts) -> None:
        self.finished = False
        self._restored = False
        self._parts = parts
        # A frozen TorchScript module has no mode: it is in eval mode for good.
        self._modes = [(module, module.training) for module in parts.modules if hasattr(module, "training")]
        self._flags = [(parameter, parameter.requires_grad) for parameter in parts.parameters]
        parts.note_buffers()
        self._weights = [
            (module, name, vars(module)[name]) for module, name in parts.computed_weights if name in vars(module)
        ]
        # Most of the many tables are empty, and are not copied.
        self._hooks = {at: dict(table) for at, table in enumerate(parts.hook_tables) if table}

    def to_eval_mode(self, freeze: bool) -> None:
        """Put the modules into eval mode.

        Args:
            freeze: parameters ask for no gradient from here on.
        """
        # The attribute itself, not module.eval(): a model may override that, and it would walk all submodules for each.
        for module, training in self._modes:
            if training:
                module.training = False
        if not freeze:
            return
        for parameter, requires_grad in self._flags:
            if requires_grad:
                parameter.requires_grad_(False)

    def restore(self) -> None:
        """Put everything back. Once that was done it does nothing, since it runs twice (:func:`~.undo.undoing`)."""
        if self._restored:
            return
        # Only where it differs, as it hardly ever does: setting an attribute of a module takes longer than reading it.
        for module, training in self._modes:
            if module.training != training:
                module.training = training
        for parameter, requires_grad in self._flags:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
        for module, name, value in self._weights:
            vars(module)[name] = value
        self._parts.restore_buffers()
        # Only after an error, which may have kept somebody from removing them: a hook of the model's own may remove itself.
        if not self.finished:
            self._restore_hooks()
        self._restored = True

    def _restore_hooks(self) -> None:
        """Remove the hooks that were left, and put back those that were removed."""
        for at, table in enumerate(self._parts.hook_tables):
            content = self._hooks.get(at, {})
            if table.keys() != content.keys():
                # The same dictionary stays: handles of the caller's hooks refer to it.
                table.clear()
                table.update(content)


def _recurrent(modules: Sequence[nn.Module]) -> bool:
    """Whether a recurrent layer is on a GPU."""
    recurrent = [module for module in modules if isinstance(module, nn.RNNBase)]
    return any(parameter.is_cuda for module in recurrent for parameter in module.parameters())


# -- for code of others: a thorough way --------------------------------------------------------------------------------


@contextlib.contextmanager
def intact(model: Any) -> Iterator[None]:
    """Undo on leaving whatever is done to a model inside: hooks, attributes, mode, weights, buffers, gradients.

    For code of others, which may do anything. Gradients are set aside meanwhile, so that nothing is added to them. Costs a
    copy of the weights.

    Args:
        model: an ``nn.Module``, or a callable whose modules :func:`~.owned.modules_of` finds.

    Raises:
        InputError: waiting for another thread would never end.
    """
    modules, parameters = modules_and_parameters(modules_of(model))
    snapshot = _Snapshot(modules, parameters)
    with held((*modules, *parameters)), undoing(snapshot.restore):
        for parameter in parameters:
            parameter.grad = None
        yield


class _Snapshot:
    """Everything that a model's modules hold.

    Args:
        modules: of the model, with all submodules.
        parameters: of these.
    """

    def __init__(self, modules: Sequence[nn.Module], parameters: Sequence[nn.Parameter]) -> None:
        plain = [module for module in modules if not isinstance(module, torch.jit.ScriptModule)]
        buffers = dict.fromkeys(buffer for module in modules for _, buffer in buffers_of(module) if buffer is not None)
        # `.data` is the memory itself: code of others may have put another tensor in its place, or written into it.
        self._tensors = [(t, t.data, t.detach().clone(), t.requires_grad) for t in (*parameters, *buffers)]
        self._gradients = [(parameter, parameter.grad) for parameter in parameters]
        self._attributes = [(module, dict(vars(module))) for module in plain]
        # A module's dictionaries: parameters, buffers, submodules, hooks, and whatever is its own.
        self._tables = [
            (value, value.copy())
            for _, attributes in self._attributes
            for value in attributes.values()
            if isinstance(value, dict)
        ]

    def restore(self) -> None:
        """Put everything back; it may run twice."""
        for module, before in self._attributes:
            now = vars(module)
            for name in now.keys() - before.keys():
                del now[name]
            for name, value in before.items():
                if now.get(name) is not value:
                    now[name] = value
        for table, content in self._tables:
            # The same dictionary stays: handles of the caller's hooks refer to it.
            table.clear()
            table.update(content)
        for tensor, data, value, requires_grad in self._tensors:
            if tensor.data_ptr() != data.data_ptr():
                tensor.data = data
            if not torch.equal(data, value):
                data.copy_(value)
            # Of a tensor with a graph the flag cannot be changed.
            if tensor.is_leaf:
                tensor.requires_grad_(requires_grad)
        for parameter, gradient in self._gradients:
            parameter.grad = gradient


# -- before anything is run --------------------------------------------------------------------------------------------


def check_ready(model: Any) -> None:
    """Refuse a model that has no weights yet.

    Args:
        model: an ``nn.Module`` or any callable.

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
