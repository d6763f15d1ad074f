"""Settings that are checked once, at construction, by one mechanism.

A configuration is a frozen dataclass that inherits :class:`Settings`. Each field is checked against its annotation:
``int`` takes whole numbers, ``float`` finite real numbers, ``bool`` truth values, ``str`` and ``Literal`` strings,
``tuple[X, ...]`` sequences, ``X | None`` either. :func:`setting` adds a range or a list of choices. Fields of any other
type are checked by the class itself, in a ``__post_init__`` that calls this one first.

>>> @dataclass(frozen=True)
... class Noise(Settings):
...     n_samples: int = setting(20, low=1)
...     stdev: float = setting(0.15, low=0)
>>> Noise(n_samples=0)
Traceback (most recent call last):
consilience.errors.InputError: Noise: n_samples is a whole number, at least 1, at most 1e+09; got 0
"""

from __future__ import annotations

import math
import numbers
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor

from .errors import InputError

LARGEST = 10**9
"""Of a whole number that says how many: more would not end, and is a slip of the pen."""


@dataclass(frozen=True)
class Rule:
    """What a field may be beyond its type.

    Args:
        low, high: the smallest and largest value allowed.
        above, below: bounds that are not allowed themselves.
        choices: the strings allowed.
    """

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()

    def allows(self, value: float) -> bool:
        """Whether a number is within the bounds."""
        if self.low is not None and value < self.low:
            return False
        if self.high is not None and value > self.high:
            return False
        if self.above is not None and value <= self.above:
            return False
        return self.below is None or value < self.below

    def __str__(self) -> str:
        bounds = (
            ("at least", self.low),
            ("above", self.above),
            ("at most", self.high),
            ("below", self.below),
        )
        return "".join(f", {words} {bound:g}" for words, bound in bounds if bound is not None)


def setting(
    default: Any = MISSING,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[str] = (),
) -> Any:
    """A dataclass field with a :class:`Rule`.

    Args:
        default: the field's default; left out, the field is required.
        low, high, above, below, choices: see :class:`Rule`.
    """
    rule = Rule(low, high, above, below, tuple(choices))
    return field(default=default, metadata={"rule": rule})


class Settings:
    """Base of frozen configurations whose fields are checked; see the module's docstring."""

    def __post_init__(self) -> None:
        for name, (kind, rule) in _checks(type(self)).items():
            given = getattr(self, name)
            checked = _checked(given, kind, rule, f"{type(self).__name__}: {name}")
            if checked is not given:
                object.__setattr__(self, name, checked)


def _checks(cls: type) -> dict[str, tuple[Any, Rule]]:
    """Field → (its type, its rule), of the fields that can be checked by their type."""
    if cls not in _KNOWN:
        _KNOWN[cls] = _found(cls)
    return _KNOWN[cls]


_KNOWN: WeakKeyDictionary[type, dict[str, tuple[Any, Rule]]] = WeakKeyDictionary()


def _found(cls: type) -> dict[str, tuple[Any, Rule]]:
    try:
        hints = typing.get_type_hints(cls)
    except NameError:  # an annotation that only type checkers see: resolve the others one by one
        hints = {}
        for base in reversed(cls.__mro__):
            for name, annotation in vars(base).get("__annotations__", {}).items():
                hints[name] = {"int": int, "float": float, "bool": bool, "str": str}.get(annotation, Any)
    found = {}
    for each in fields(cls):
        rule = each.metadata.get("rule", Rule())
        found[each.name] = (hints.get(each.name, Any), rule)
    return found


def _checked(value: Any, kind: Any, rule: Rule, what: str) -> Any:
    """``value`` as a plain Python object of the type ``kind``.

    Raises:
        InputError: it is not of that type, or outside the rule's bounds.
    """
    if kind is bool:
        return _flag(value, what)
    if kind is int:
        return _whole(value, rule, what)
    if kind is float:
        return _real(value, rule, what)
    origin = typing.get_origin(kind)
    if kind is str or origin is typing.Literal:
        return _word(value, rule.choices or typing.get_args(kind), what)
    if origin in (typing.Union, types.UnionType):
        return _either(value, typing.get_args(kind), rule, what)
    arguments = typing.get_args(kind)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis and arguments[0] in (int, float, bool, str):
        if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
            raise InputError(f"{what} is a sequence, got {_shown(value)}")
        return tuple(_checked(each, arguments[0], rule, what) for each in value)
    return value


def _either(value: Any, kinds: Sequence[Any], rule: Rule, what: str) -> Any:
    """A value of one of several types; those that are not checked here are left to the class."""
    if value is None and type(None) in kinds:
        return None
    kinds = [kind for kind in kinds if kind is not type(None)]
    plain = [kind for kind in kinds if kind in (bool, int, float, str)]
    if len(kinds) == len(plain) == 1:
        return _checked(value, plain[0], rule, what + (" is None, or it" if value is not None else ""))
    if bool in plain and isinstance(value, bool):
        return value
    if isinstance(value, numbers.Number | np.number) and (int in plain or float in plain):
        return _checked(value, float if float in plain else int, rule, what)
    if isinstance(value, str) and str in plain:
        return _checked(value, str, rule, what)
    if len(kinds) == len(plain):
        names = " or ".join(kind.__name__ for kind in plain)
        raise InputError(f"{what} is {names}, got {_shown(value)}")
    return value


def _flag(value: Any, what: str) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise InputError(f"{what} is True or False, got {_shown(value)}")


def _number(value: Any) -> Any:
    """A scalar of NumPy or PyTorch as Python's own number; anything else as it is."""
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.ndim == 0):
        return value.item()
    return value


def _whole(value: Any, rule: Rule, what: str) -> int:
    number = _number(value)
    if isinstance(number, bool) or not isinstance(number, numbers.Integral):
        raise InputError(f"{what} is a whole number{rule}; got {_shown(value)}")
    # Of a range that is open above, what is absurdly large is a slip of the pen.
    high = LARGEST if rule.high is None and rule.below is None else None
    if not rule.allows(int(number)) or (high is not None and int(number) > high):
        limit = "" if high is None else f", at most {high:g}"
        raise InputError(f"{what} is a whole number{rule}{limit}; got {_shown(value)}")
    return int(number)


def _real(value: Any, rule: Rule, what: str) -> float:
    number = _number(value)
    if isinstance(number, bool) or not isinstance(number, numbers.Real) or not math.isfinite(number):
        raise InputError(f"{what} is a finite number{rule}; got {_shown(value)}")
    if not rule.allows(float(number)):
        raise InputError(f"{what} is a number{rule}; got {_shown(value)}")
    return number if isinstance(number, int | float) else float(number)


def _word(value: Any, choices: Sequence[str], what: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{what} is a string, got {_shown(value)}")
    if choices and value not in choices:
        known = ", ".join(map(repr, choices))
        raise InputError(f"{what} is one of {known}; got {value!r}")
    return value


def _shown(value: Any) -> str:
    """A value in an error, shortened."""
    if isinstance(value, Tensor | np.ndarray):
        return f"an array of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
