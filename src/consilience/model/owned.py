"""The modules behind a callable: a module itself, or those that a function, a method or an object reaches."""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any

from torch import nn

DEPTH = 6
"""How many steps from the callable to a module are followed: a function that calls a function, a list in an attribute."""

MANY = 1000
"""Longer lists and dictionaries are data and not searched."""

LIBRARIES = frozenset(
    ("torch", "numpy", "sklearn", "scipy", "pandas", "builtins", "transformers", "torchvision", "timm")
)
"""Packages whose functions and objects are not searched: they hold no model of the caller's."""


def modules_of(model: Any) -> list[nn.Module]:
    """The modules that ``model`` runs, as far as they can be found, each once, in the order in which they are met.

    A module is the only one of its own. Of another callable these are looked through: a bound method's object, what
    ``functools.partial`` holds, a function's closure, defaults, ``__wrapped__`` and the globals that its code names, and the
    attributes of objects, through lists, tuples and dictionaries. What a compiled extension holds cannot be seen.
    """
    if isinstance(model, nn.Module):
        return [model]
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()
    layer = [model]
    for _ in range(DEPTH):
        following: list[Any] = []
        for item in layer:
            if id(item) in seen:
                continue
            seen.add(id(item))
            if isinstance(item, nn.Module):
                found.setdefault(id(item), item)
            else:
                following.extend(_reached(item))
        layer = following
    return list(found.values())


def _reached(item: Any) -> Iterator[Any]:
    """What ``item`` refers to, one step away."""
    if isinstance(item, types.MethodType):
        yield item.__self__
        if not isinstance(item.__self__, nn.Module):
            yield item.__func__
    elif isinstance(item, functools.partial):
        yield item.func
        yield from item.args
        yield from item.keywords.values()
    elif isinstance(item, types.FunctionType):
        if not _of_library(item.__module__):
            yield from _of_function(item)
    elif isinstance(item, list | tuple | set | frozenset):
        yield from item if len(item) <= MANY else ()
    elif isinstance(item, dict):
        yield from item.values() if len(item) <= MANY else ()
    elif not isinstance(item, type | types.ModuleType) and not _of_library(type(item).__module__):
        yield from _of_object(item)


def _of_library(name: Any) -> bool:
    return isinstance(name, str) and name.partition(".")[0] in LIBRARIES


def _of_function(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        # A cell is empty until its variable is assigned.
        with contextlib.suppress(ValueError):
            yield cell.cell_contents
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield getattr(function, "__wrapped__", None)
    for name in _global_names(function.__code__):
        yield function.__globals__.get(name)


@functools.lru_cache(maxsize=4096)
def _global_names(code: types.CodeType) -> tuple[str, ...]:
    """The globals that a function's code reads, and those of the functions written inside it."""
    names = [found.argval for found in dis.get_instructions(code) if found.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.extend(_global_names(constant))
    return tuple(names)


def _of_object(item: Any) -> Iterator[Any]:
    """Attributes, in dictionaries and slots, and what runs when the object is called."""
    yield from getattr(item, "__dict__", {}).values()
    for cls in type(item).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                yield getattr(item, name, None)
    call = inspect.getattr_static(type(item), "__call__", None)
    if isinstance(call, types.FunctionType):
        yield call
