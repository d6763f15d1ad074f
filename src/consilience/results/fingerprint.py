"""A hash of what an evaluation is of: it tells one model, one argument and one input from another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..adapters import Adapter, Packed
from ..features.base import Features


def digest(*values: Any) -> str:
    """16 hexadecimal digits of what the values hold.

    Of arrays, type, shape and bytes (without those of quantised, nested and meta tensors); of a module, the kinds of its parts,
    and its dense parameters and buffers, which go to the CPU one at a time; of configurations and adapters, their fields.
    Anything else (a function, another library's object) is known by its name only: what it holds is not seen.
    """
    found = hashlib.blake2b(digest_size=8)
    for value in values:
        _add(found, value)
    return found.hexdigest()


def digests(count: int, x: Any, target: Any, *others: Any) -> list[str]:
    """The digest of each of ``count`` inputs: its row of ``x`` (B, *F), of ``target`` and of the ``others`` (B, …)."""
    target = plain(target)
    each = isinstance(target, list) and len(target) == count
    rows = [part.cpu() if isinstance(part, Tensor) else part for part in (x.x if isinstance(x, Packed) else x, *others)]
    return [
        digest(target[i] if each else target, *(None if row is None else row[i] for row in rows)) for i in range(count)
    ]


def plain(target: Any) -> Any:
    """A target in any form as numbers, or a list of them."""
    if isinstance(target, list | tuple):
        return [plain(each) for each in target]
    return target.tolist() if isinstance(target, Tensor | np.ndarray | np.generic) else target


def _add(found: Any, value: Any) -> None:
    parts: Sequence[Any] = ()
    if isinstance(value, Tensor | np.ndarray):
        array = torch.as_tensor(value).detach()
        found.update(f"{array.dtype} {tuple(array.shape)}".encode())
        if array.is_meta or array.is_quantized or array.is_nested:
            return
        found.update(array.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return
    if value is None or isinstance(value, str | int | float | complex | np.generic):
        found.update(f"{value!r};".encode())
        return
    if isinstance(value, nn.Module):
        tensors = [*value.named_parameters(), *value.named_buffers()]
        parts = [(name, type(module).__qualname__) for name, module in value.named_modules()]
        parts = [*parts, *((name, tensor) for name, tensor in tensors if tensor.layout == torch.strided)]
    elif isinstance(value, list | tuple):
        parts = value
    elif isinstance(value, Mapping):
        parts = list(value.items())
    elif is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, f.name) for f in fields(value) if f.repr]
    elif isinstance(value, Features | Adapter):
        parts = list(vars(value).items())
    found.update(f"{getattr(value, '__qualname__', type(value).__qualname__)} {len(parts)};".encode())
    for part in parts:
        _add(found, part)
