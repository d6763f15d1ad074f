"""Running methods of other libraries and of callers: random numbers, the model's state, the shape of what comes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConsilienceError, InputError
from ..model.random_state import seeded
from ..model.score import Score
from ..model.state import borrowed, intact
from ..perturb.points import Points
from ..statistics.keys import Key

Ask = Callable[[Points], Tensor]


def hosted(ask: Ask, score: Score, points: Points, key: Key, name: str) -> Tensor:
    """The maps that a method from elsewhere gives, run so that it cannot disturb anything else.

    Gradients are on; the model is in eval mode, and comes back as it was; random numbers are keyed. Whatever is raised, other
    than by PyTorch's own operations, becomes an InputError that names the method: the failure of one method is a row of the
    table, and does not end it.

    Args:
        ask: points → maps.
        score: whose model is lent.
        points: x (N, *F).
        key: of the random numbers.
        name: the method's.

    Raises:
        InputError: the code raised something.
    """
    try:
        # It may draw from the process's generators, so no other thread may draw meanwhile.
        with torch.enable_grad(), borrowed(score.model, freeze=False, draws=True), intact(score.model):
            return keyed(ask, points, key)
    except (ConsilienceError, RuntimeError):
        raise
    except Exception as error:
        raise InputError(f"{name}: it raised {type(error).__name__}: {error}") from error


def keyed(ask: Ask, points: Points, key: Key) -> Tensor:
    """All points at once, if that draws no random number; else each by itself, seeded by the key and its own id.

    Whether a call drew is seen from the global generators of PyTorch, NumPy and Python. Code that draws for a whole batch gives
    a point other numbers in another batch, so it gets one point at a time. Generators of a method's own cannot be seen.

    Args:
        ask: points → maps.
        points: x (N, *F).
        key: of the seeds.
    """
    words = key.bits(points.ids, 0, 2).tolist()
    seeds = [low | (high << 32) for low, high in words]

    def alone(i: int) -> Tensor:
        maps, _ = seeded(lambda: ask(points[i : i + 1]), seeds[i])
        return maps

    first, drew = seeded(lambda: ask(points[:1]), seeds[0])
    if len(points) == 1:
        return first
    if not drew:
        rest, drew = seeded(lambda: ask(points[1:]), seeds[0])
        if not drew:
            return torch.cat([first, rest])
    return torch.cat([first, *(alone(i) for i in range(1, len(points)))])


def shaped(maps: Any, points: Points, name: str) -> Tensor:
    """What a method returned as (N, *F), detached, on the points' device, float32 at least.

    A map of an image without channels, (N, 1, H, W) or (N, H, W), is shared evenly by them, so that their sum is the map.

    Args:
        maps: what was returned.
        points: x (N, *F).
        name: the method's.

    Raises:
        InputError: it is not a tensor or an array, or has another shape.
    """
    x = points.x
    try:
        if isinstance(maps, Tensor):
            tensor = maps.detach()
        else:
            tensor = torch.from_numpy(np.asarray(maps))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{name}: returned {type(maps).__name__}, not one tensor or array; return the attributions only"
        ) from error
    tensor = tensor.to(device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
    if tensor.shape == x.shape:
        return tensor
    expected = f"{tuple(x.shape)}"
    if x.ndim == 4:
        without_channels = (len(x), *x.shape[2:])
        one_channel = (len(x), 1, *x.shape[2:])
        if tuple(tensor.shape) in (without_channels, one_channel):
            return (tensor.reshape(one_channel) / x.shape[1]).expand_as(x)
        expected += f", {one_channel} or {without_channels}"
    raise InputError(f"{name}: returned shape {tuple(tensor.shape)}, expected {expected}")
