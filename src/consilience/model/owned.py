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

    Args:
        model: any callable.
    """
    if isinstance(model, nn.Module):
        return [model]
    # Breadth first, so that what is near is met first; by identity, since objects need not be hashable or comparable.
    modules: dict[int, nn.Module] = {}
    seen: set[int] = set()
    reached = [model]
    for _ in range(DEPTH):
        next_step: list[Any] = []
        for item in reached:
            if id(item) in seen:
                continue
            seen.add(id(item))
            if isinstance(item, nn.Module):
                modules.setdefault(id(item), item)
            else:
                next_step.extend(_references(item))
        reached = next_step
    return list(modules.values())


def _references(item: Any) -> Iterator[Any]:
    """What ``item`` refers to, one step away."""
    if isinstance(item, types.MethodType):
        yield item.__self__
        # A module's own method runs that module, and nothing that its code names besides.
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
    """Whether a module's ``__name__`` is of a package that holds no model of the caller's."""
    return isinstance(name, str) and name.partition(".")[0] in LIBRARIES


def _of_function(function: types.FunctionType) -> Iterator[Any]:
    """What a function's variables from outside, its defaults, and the globals in its code refer to."""
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
    # Not co_names, which has the names of attributes too: model.encoder would reach a global `encoder`.
    instructions = dis.get_instructions(code)
    names = [each.argval for each in instructions if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    # Inner functions and lambdas are constants of the outer one's code.
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.extend(_global_names(constant))
    return tuple(names)


def _of_object(item: Any) -> Iterator[Any]:
    """Attributes, in dictionaries and slots, and what runs when the object is called."""
    yield from getattr(item, "__dict__", {}).values()
    for cls in type(item).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        if isinstance(slots, str):
            slots = (slots,)
        for name in slots:
            if name not in ("__dict__", "__weakref__"):
                yield getattr(item, name, None)
    # Static: an object's own __getattr__ is not to be run only because we look.
    call = inspect.getattr_static(type(item), "__call__", None)
    if isinstance(call, types.FunctionType):
        yield call
