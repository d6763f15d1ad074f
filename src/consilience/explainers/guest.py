"""What is done around other people's code: seeds, the model's state, the shape of what comes back."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ConsilienceError, InputError
from ..keys import Key
from ..neighbourhood import Points
from ..score import Score, borrowed

Ask = Callable[[Points], Tensor]


def hosted(ask: Ask, score: Score, points: Points, key: Key, name: str) -> Tensor:
    """``ask`` the points with gradients on, the model in eval mode and given back as it was, random numbers from the key.

    Whatever is raised, other than by PyTorch's own operations, becomes an InputError that names the method, so that one
    method's failure is a row of the table and not the end of it.
    """
    try:
        with torch.enable_grad(), intact(score.model), borrowed(score.model, freeze=False):
            return keyed(ask, points, key)
    except (ConsilienceError, RuntimeError):
        raise
    except Exception as error:
        raise InputError(f"{name}: it raised {type(error).__name__}: {error}") from error


def keyed(ask: Ask, points: Points, key: Key) -> Tensor:
    """All points at once, if that draws no random number; else each by itself, seeded by the key and its own id.

    Whether a call drew is read off the global generators of PyTorch, NumPy and Python. One by one is the only way in which
    somebody else's draws do not depend on the batch. Generators of a method's own cannot be seen: seed them.
    """
    words = key.bits(points.ids, 0, 2).tolist()
    seeds = [low | (high << 32) for low, high in words]
    first, drew = seeded(lambda: ask(points[:1]), seeds[0])
    if len(points) == 1:
        return first
    if not drew:
        rest, drew = seeded(lambda: ask(points[1:]), seeds[0])
        if not drew:
            return torch.cat([first, rest])
    each = [seeded(lambda i=i: ask(points[i : i + 1]), seeds[i])[0] for i in range(1, len(points))]  # type: ignore[misc]
    return torch.cat([first, *each])


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


def shaped(maps: Any, points: Points, name: str) -> Tensor:
    """What a method returned as (N, *F), detached, on the points' device, float32 at least.

    A map of an image without channels, (N, 1, H, W) or (N, H, W), is shared evenly by them, so that their sum is the map.
    """
    x = points.x
    try:
        found = maps.detach() if isinstance(maps, Tensor) else torch.from_numpy(np.asarray(maps))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{name}: returned {type(maps).__name__}, not one tensor or array; return the attributions only"
        ) from error
    found = found.to(device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
    if found.shape == x.shape:
        return found
    plane = (len(x), *x.shape[2:])
    if x.ndim == 4 and tuple(found.shape) in (plane, (len(x), 1, *x.shape[2:])):
        return (found.reshape(len(x), 1, *x.shape[2:]) / x.shape[1]).expand_as(x)
    heat = f", {(len(x), 1, *x.shape[2:])} or {plane}" if x.ndim == 4 else ""
    raise InputError(f"{name}: returned shape {tuple(found.shape)}, expected {tuple(x.shape)}{heat}")
