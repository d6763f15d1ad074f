"""Hashes of models, arguments and inputs, so that numbers of different ones do not get into one evaluation file."""

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
"""What its ``repr`` describes completely."""

# Attributes of every module. Its parameters and buffers are read by name; hooks and the mode (train or eval) do not count,
# since explaining sets them itself.
_OF_EVERY_MODULE = {*vars(nn.Module()), "training"}


def digest(*values: Any) -> str:
    """A hash of ``values``, 16 hexadecimal digits, which is the same in every process.

    What counts, by kind of value:

    - Arrays: type, shape and bytes (without those of quantised, nested and meta tensors).
    - Modules: the kinds of their parts, parameters, buffers, and what else each part has as an attribute and is plain:
      numbers, words, tensors, functions, and lists and mappings of such (a slope, a stride, a flag). Tensors go to the CPU
      one at a time.
    - Functions: their code, defaults, and what they close over. Another version of Python has other code.
    - Configurations, features and adapters: their fields.

    Of anything else, such as another library's object, only the name of its class counts.

    Example:
        >>> digest(1, "a") == digest(1, "a"), digest(nn.LeakyReLU(0.1)) == digest(nn.LeakyReLU(0.9))
        (True, False)
    """
    hasher = hashlib.blake2b(digest_size=8)
    for value in values:
        _add(hasher, value, set())
    return hasher.hexdigest()


def digests(count: int, x: Any, target: Any, *others: Any) -> list[str]:
    """The digest of each input.

    Args:
        count: B, the number of inputs.
        x: (B, *F), or packed.
        target: one for each input, or one for all.
        others: (B, …), or None: what else belongs to each input.
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
    """A ``target`` in any form as a number, or as a list of them."""
    if isinstance(target, list | tuple):
        return [plain(each) for each in target]
    if isinstance(target, Tensor | np.ndarray | np.generic):
        return target.tolist()
    return target


def _add(hasher: Any, value: Any, above: set[int]) -> None:
    """Add ``value`` and its parts to the hash.

    Args:
        hasher: of :mod:`hashlib`.
        value: of any kind.
        above: the ids of the values that it is part of; a value that contains itself is not followed again.
    """
    if isinstance(value, Tensor | np.ndarray):
        _add_array(hasher, value)
        return
    if isinstance(value, PLAIN):
        hasher.update(f"{value!r};".encode("utf-8", "backslashreplace"))
        return
    name = getattr(value, "__qualname__", type(value).__qualname__)
    if id(value) in above:
        hasher.update(f"{name} again;".encode())
        return
    parts = _parts(value)
    # With the number of parts, so that ((1, 2), 3) and ((1,), 2, 3) differ.
    hasher.update(f"{name} {len(parts)};".encode())
    for part in parts:
        _add(hasher, part, above | {id(value)})


def _add_array(hasher: Any, value: Tensor | np.ndarray) -> None:
    """Add an array's type, shape and bytes."""
    # Texts and objects have no bytes that are the same in every process.
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biufc":
        hasher.update(f"{value.dtype} {value.shape} {value.tolist()!r}".encode("utf-8", "backslashreplace"))
        return
    array = value.detach() if isinstance(value, Tensor) else as_tensor("array", value)
    hasher.update(f"{array.dtype} {tuple(array.shape)}".encode())
    if array.is_meta or array.is_quantized or array.is_nested or array.layout != torch.strided:
        return
    # Conjugates and negatives may be flags on a shared memory: what is hashed are the numbers themselves.
    array = array.resolve_conj().resolve_neg().cpu().contiguous()
    hasher.update(array.reshape(-1).view(torch.uint8).numpy())


def _parts(value: Any) -> Sequence[Any]:
    """What ``value`` is made of, in an order that does not change."""
    if isinstance(value, nn.Module):
        return _parts_of_module(value)
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, set | frozenset):
        # The order in which a set lists words differs between processes.
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
        # Without file names and line numbers, which change while the function stays the same.
        return [value.co_code, value.co_names, value.co_consts]
    return []


def _parts_of_module(module: nn.Module) -> Sequence[Any]:
    """The kinds of a module's submodules, its parameters and buffers, and plain attributes of every submodule."""
    kinds = [(name, type(part).__qualname__) for name, part in module.named_modules()]
    tensors = [*module.named_parameters(), *module.named_buffers()]
    parts: list[Any] = [*kinds, *((name, tensor) for name, tensor in tensors if tensor.layout == torch.strided)]
    for name, part in module.named_modules():
        for attribute, value in vars(part).items():
            if attribute not in _OF_EVERY_MODULE and _is_plain(value):
                parts.append((name, attribute, value))
    return parts


def _parts_of_function(function: types.FunctionType) -> Sequence[Any]:
    """A function's code, defaults, and the variables of outer functions that it uses."""
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # a variable that has no value yet
            continue
    return [function.__code__, function.__defaults__, function.__kwdefaults__, *cells]


def _is_plain(value: Any, above: frozenset[int] = frozenset()) -> bool:
    """Whether ``value`` is the same in every process: other objects may hold addresses, caches or times."""
    if id(value) in above:
        return True  # contains itself, and its other parts are looked at already
    above = above | {id(value)}
    if isinstance(value, list | tuple | set | frozenset):
        return all(_is_plain(each, above) for each in value)
    if isinstance(value, Mapping):
        return all(_is_plain(each, above) for pair in value.items() for each in pair)
    return isinstance(value, (*PLAIN, Tensor, np.ndarray, types.FunctionType))
