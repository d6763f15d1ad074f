"""A hash of what an evaluation is of: it tells one model, one argument and one input from another."""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..adapters import Adapter, Packed
from ..arrays import as_tensor
from ..features.base import Features

PLAIN = (str, bytes, int, float, complex, np.generic, torch.dtype, torch.device, torch.Size, type(None), type(...))
"""What is told by its ``repr`` alone."""

# Registered elsewhere (parameters, hooks, …), or a mode that explaining sets itself.
_OWN = {*vars(nn.Module()), "training"}


def digest(*values: Any) -> str:
    """16 hexadecimal digits of what the ``values`` hold.

    - Arrays: type, shape and bytes (without those of quantised, nested and meta tensors).
    - Modules: the kinds of their parts, parameters, buffers, and what else each part has as an attribute and is plain:
      numbers, words, tensors, functions, and lists and mappings of such (a slope, a stride, a flag). Tensors go to the CPU
      one at a time.
    - Functions: their code, defaults, and what they close over. Another version of Python has other code.
    - Configurations, features and adapters: their fields.

    Anything else, such as another library's object, is known by the name of its class only: what it holds is not seen.

    Example:
        >>> digest(1, "a") == digest(1, "a"), digest(nn.LeakyReLU(0.1)) == digest(nn.LeakyReLU(0.9))
        (True, False)
    """
    found = hashlib.blake2b(digest_size=8)
    for value in values:
        _add(found, value, set())
    return found.hexdigest()


def digests(count: int, x: Any, target: Any, *others: Any) -> list[str]:
    """The digest of each input.

    Args:
        count: B.
        x: (B, *F), or packed.
        target: one for each input, or one for all.
        others: (B, …), or None.
    """
    target = plain(target)
    of_each_input = isinstance(target, list) and len(target) == count
    batch = x.x if isinstance(x, Packed) else x
    # To the CPU as a whole, not row by row.
    parts = [part.cpu() if isinstance(part, Tensor) else part for part in (batch, *others)]
    hashes = []
    for i in range(count):
        own_target = target[i] if of_each_input else target
        hashes.append(digest(own_target, *(None if part is None else part[i] for part in parts)))
    return hashes


def plain(target: Any) -> Any:
    """A ``target`` in any form as numbers, or a list of them."""
    if isinstance(target, list | tuple):
        return [plain(each) for each in target]
    if isinstance(target, Tensor | np.ndarray | np.generic):
        return target.tolist()
    return target


def _add(found: Any, value: Any, above: set[int]) -> None:
    """Feed ``value`` to the hash. ``above``: the values that it is part of, so that a circle ends."""
    if isinstance(value, Tensor | np.ndarray):
        _add_array(found, value)
        return
    if isinstance(value, PLAIN):
        found.update(f"{value!r};".encode("utf-8", "backslashreplace"))
        return
    name = getattr(value, "__qualname__", type(value).__qualname__)
    if id(value) in above:
        found.update(f"{name} again;".encode())
        return
    parts = _parts(value)
    found.update(f"{name} {len(parts)};".encode())
    for part in parts:
        _add(found, part, above | {id(value)})


def _add_array(found: Any, value: Tensor | np.ndarray) -> None:
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biufc":
        found.update(f"{value.dtype} {value.shape} {value.tolist()!r}".encode("utf-8", "backslashreplace"))
        return
    array = value.detach() if isinstance(value, Tensor) else as_tensor("array", value)
    found.update(f"{array.dtype} {tuple(array.shape)}".encode())
    if array.is_meta or array.is_quantized or array.is_nested or array.layout != torch.strided:
        return
    found.update(array.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _parts(value: Any) -> Sequence[Any]:
    """What ``value`` is made of, in an order that does not change."""
    if isinstance(value, nn.Module):
        return _parts_of_module(value)
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, Mapping):
        return list(value.items())
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, f.name) for f in fields(value) if f.repr]
    if isinstance(value, Features | Adapter):
        return list(vars(value).items())
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, types.FunctionType):
        return _parts_of_function(value)
    if isinstance(value, types.CodeType):
        # Not the names of files and the numbers of lines, which move without a change of meaning.
        return [value.co_code, value.co_names, value.co_consts]
    return []


def _parts_of_module(module: nn.Module) -> Sequence[Any]:
    kinds = [(name, type(part).__qualname__) for name, part in module.named_modules()]
    tensors = [*module.named_parameters(), *module.named_buffers()]
    parts: list[Any] = [*kinds, *((name, tensor) for name, tensor in tensors if tensor.layout == torch.strided)]
    for name, part in module.named_modules():
        for attribute, value in vars(part).items():
            if attribute not in _OWN and _is_plain(value):
                parts.append((name, attribute, value))
    return parts


def _parts_of_function(function: types.FunctionType) -> Sequence[Any]:
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # a name that is assigned later
            continue
    return [function.__code__, function.__defaults__, function.__kwdefaults__, *cells]


def _is_plain(value: Any, above: frozenset[int] = frozenset()) -> bool:
    """Whether :func:`digest` sees all of it: other objects may hold the address of the moment, a cache, a clock."""
    if id(value) in above:
        return True  # a circle: its parts are looked at already
    above = above | {id(value)}
    if isinstance(value, list | tuple | set | frozenset):
        return all(_is_plain(each, above) for each in value)
    if isinstance(value, Mapping):
        return all(_is_plain(each, above) for pair in value.items() for each in pair)
    return isinstance(value, (*PLAIN, Tensor, np.ndarray, types.FunctionType))
