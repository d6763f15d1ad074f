"""The caller's model and random state, lent and given back as they were."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def seeded(run: Callable[[], Tensor], seed: int) -> tuple[Tensor, bool]:
    """``run()`` with all global generators seeded, and whether it drew from one; afterwards they are as they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
        torch.manual_seed(seed >> 1)  # 63 bits
        np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
        random.seed(seed)
        start = _states()
        try:
            found = run()
            return found, _states() != start
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _states() -> tuple:
    numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    device = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    tensors = tuple(state.numpy().tobytes() for state in (torch.get_rng_state(), *device))
    return tensors, repr(numpy["state"]["key"].tobytes()), numpy["state"]["pos"], numpy["has_gauss"], random.getstate()


@contextlib.contextmanager
def intact(model: Any) -> Iterator[None]:
    """Undo on leaving whatever is done to a module inside: hooks, attributes, mode, weights, buffers, gradients.

    Gradients are set aside meanwhile, so that nothing is added to them. Costs a copy of the weights.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    tensors = [(t, t.data, t.detach().clone(), t.requires_grad) for t in (*model.parameters(), *model.buffers())]
    grads = [(p, p.grad) for p in model.parameters()]
    modules = [
        (m, dict(vars(m)), [(d, d.copy()) for d in vars(m).values() if isinstance(d, dict)]) for m in model.modules()
    ]
    for parameter, _ in grads:
        parameter.grad = None
    try:
        yield
    finally:
        for module, attributes, tables in modules:
            now = vars(module)
            for name in now.keys() - attributes.keys():
                del now[name]
            for name, value in attributes.items():
                if now.get(name) is not value:
                    now[name] = value
            for table, content in tables:  # the same dict: handles of the caller's hooks refer to it
                table.clear()
                table.update(content)
        for tensor, data, value, flag in tensors:
            if tensor.data_ptr() != data.data_ptr():
                tensor.data = data
            if not torch.equal(data, value):
                data.copy_(value)
            if tensor.is_leaf:
                tensor.requires_grad_(flag)
        for parameter, grad in grads:
            parameter.grad = grad


@contextlib.contextmanager
def borrowed(model: Any, freeze: bool) -> Iterator[None]:
    """Use a module in eval mode and leave no trace: mode, parameters' flags and random state come back, whatever happens.

    ``freeze``: parameters ask for no gradient meanwhile, so that only input gradients are computed and kept. Under grad, a
    recurrent network on CUDA runs without cuDNN, whose backward pass refuses eval mode.
    """
    if not isinstance(model, nn.Module):
        with _forked():
            yield
        return
    modes = [(module, module.training) for module in model.modules()]
    flags = [(p, p.requires_grad) for p in model.parameters()] if freeze else []
    try:
        for module, training in modes:
            if training:
                module.training = False
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        with _forked(), _without_cudnn(torch.is_grad_enabled() and _recurrent(model)):
            yield
    finally:
        for module, training in modes:
            if module.training != training:
                module.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextlib.contextmanager
def _forked() -> Iterator[None]:
    """The global random state comes back; meanwhile it is the same whatever it was, for models that draw in eval mode."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
        # Not torch.manual_seed, which is slow: it queues a seed, with a stack trace, for every kind of device never used.
        torch.default_generator.manual_seed(0)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(0)
        yield


def _recurrent(model: nn.Module) -> bool:
    return any(isinstance(m, nn.RNNBase) and any(p.is_cuda for p in m.parameters()) for m in model.modules())


@contextlib.contextmanager
def _without_cudnn(off: bool) -> Iterator[None]:
    cudnn = torch.backends.cudnn
    if not off or not cudnn.enabled:
        yield
        return
    cudnn.enabled = False
    try:
        yield
    finally:
        cudnn.enabled = True
