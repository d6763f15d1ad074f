"""Settings that are checked once, at construction, by one mechanism.

A configuration is a frozen dataclass that inherits :class:`Settings`. Each field is checked against its annotation:
``int`` takes whole numbers, ``float`` finite real numbers, ``bool`` truth values, ``str`` and ``Literal`` strings,
``tuple[X, ...]`` sequences, a class its instances, ``X | None`` either. :func:`setting` adds a range or a list of choices.
``Annotated[X, check]`` brings a function that raises for what cannot be used. Anything else is checked by the class itself,
in a ``__post_init__`` that calls this one first. :func:`checked` does the same for arguments of functions and other classes.

>>> @dataclass(frozen=True)
... class Noise(Settings):
...     n_samples: int = setting(20, low=1)
...     stdev: float = setting(0.15, low=0)
>>> Noise(n_samples=0)
Traceback (most recent call last):
consilience.errors.InputError: Noise: n_samples is a whole number, at least 1, at most 1e+09; got 0
"""

from __future__ import annotations

import difflib
import math
import numbers
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Annotated, Any
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor

from .errors import InputError
from .signatures import KnownArguments

LARGEST = 10**9
"""The largest whole number that a setting without a bound of its own may be: more draws than that would never end, so it is a
mistake of the caller's."""

LARGEST_FLOAT = 10**300
"""Whole numbers beyond it do not fit into a float, and ``math.isfinite`` would raise an error of its own."""

SHOWN = 60
"""Characters of a value that an error shows."""


@dataclass(frozen=True)
class Rule:
    """What a field may be beyond its type.

    Args:
        low: the smallest value allowed.
        high: the largest value allowed.
        above: a lower bound that is not allowed itself.
        below: an upper bound that is not allowed itself.
        choices: the strings allowed.
        empty: whether a sequence may have nothing in it.
        finite: whether tensors have finite numbers only; False where the class has a better check of its own.
    """

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    empty: bool = True
    finite: bool = True

    def allows(self, value: float) -> bool:
        """Whether ``value`` is within the bounds."""
        if self.low is not None and value < self.low:
            return False
        if self.high is not None and value > self.high:
            return False
        if self.above is not None and value <= self.above:
            return False
        return self.below is None or value < self.below

    def __str__(self) -> str:
        """The bounds in words, to follow the name of a type: ", at least 1, below 2"."""
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
    empty: bool = True,
    finite: bool = True,
) -> Any:
    """A dataclass field with a :class:`Rule`.

    Args:
        default: the field's default; left out, the field is required.
        low: see :class:`Rule`, as for all of these.
        high: see :class:`Rule`.
        above: see :class:`Rule`.
        below: see :class:`Rule`.
        choices: see :class:`Rule`.
        empty: see :class:`Rule`.
        finite: see :class:`Rule`.
    """
    rule = Rule(low, high, above, below, tuple(choices), empty, finite)
    return field(default=default, metadata={"rule": rule})


class Settings(KnownArguments):
    """Base of frozen configurations whose fields are checked; see the module's docstring."""

    def __post_init__(self) -> None:
        for name, (kind, rule) in _checks(type(self)).items():
            given = getattr(self, name)
            checked = _checked(given, kind, rule, f"{type(self).__name__}: {name}")
            if checked is not given:
                # The class is frozen, and this is still its construction.
                object.__setattr__(self, name, checked)


def _checks(cls: type) -> dict[str, tuple[Any, Rule]]:
    """Field → (its type, its rule), of the fields that can be checked by their type."""
    if cls not in _KNOWN:
        hints = _annotations(cls)
        _KNOWN[cls] = {
            each.name: (hints.get(each.name, Any), each.metadata.get("rule", Rule())) for each in fields(cls)
        }
    return _KNOWN[cls]


# Annotations are strings, and to evaluate them takes longer than all checks. Weak keys: a class of a user's function may go.
_KNOWN: WeakKeyDictionary[type, dict[str, tuple[Any, Rule]]] = WeakKeyDictionary()


def _annotations(cls: type) -> dict[str, Any]:
    """Field → its type. Where a name in some annotation cannot be resolved, only the simple types are."""
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except NameError:
        # A name that only type checkers see fails for all annotations at once: read the others one by one.
        simple = {"int": int, "float": float, "bool": bool, "str": str}
        hints = {}
        for base in reversed(cls.__mro__):
            for name, annotation in vars(base).get("__annotations__", {}).items():
                hints[name] = simple.get(annotation, Any)
        return hints


def checked(what: str, value: Any, kind: Any, **bounds: Any) -> Any:
    """An argument of a function, or of a class that is not a dataclass, checked as a field of :class:`Settings` is.

    Args:
        what: the argument's name, for errors.
        value: what was given.
        kind: the type: ``int``, ``float | None``, a ``Literal``, a class, …
        bounds: of a :class:`Rule`: low, high, above, below, choices, empty, finite.

    Returns:
        The value, as a plain Python object where it is a number or a sequence.

    Raises:
        InputError: it is not of that type, or out of bounds.

    >>> checked("steps", 10, int, low=1)
    10
    """
    return _checked(value, kind, Rule(**bounds), what)


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
    arguments = typing.get_args(kind)
    if kind is str or origin is typing.Literal:
        return _word(value, rule.choices or arguments, what)
    if origin is Annotated:
        checked = _checked(value, arguments[0], rule, what)
        _run_checks(value, arguments[1:], what)
        return checked
    if origin in (typing.Union, types.UnionType):
        return _either(value, arguments, rule, what)
    if kind is tuple or origin is tuple:
        return _sequence(value, arguments, rule, what)
    wanted = origin or kind
    if kind is Any or not isinstance(wanted, type):
        return value  # a type that only type checkers understand
    if not isinstance(value, wanted):
        raise InputError(f"{what} is {_named(kind)}, got {_shown(value)}")
    if isinstance(value, Tensor) and rule.finite:
        _elements(value, rule, what)
    return value


def _run_checks(value: Any, checks: Sequence[Any], what: str) -> None:
    """The checks that an ``Annotated`` type brings: functions that raise an error for what cannot be used."""
    for check in checks:
        try:
            check(value)
        except InputError as error:
            raise InputError(f"{what}: {error}") from error
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise InputError(f"{what} cannot be {_shown(value)}: {error}") from error


def _either(value: Any, kinds: Sequence[Any], rule: Rule, what: str) -> Any:
    """A value of one of several types: checked as the first that it can be."""
    if value is None and type(None) in kinds:
        return None
    others = [kind for kind in kinds if kind is not type(None)]
    if len(others) == 1:
        if value is not None:
            what = f"{what} is None, or it"
        return _checked(value, others[0], rule, what)
    for kind in others:
        if _may_be(value, kind):
            return _checked(value, kind, rule, what)
    raise InputError(f"{what} is {' or '.join(map(_named, others))}, got {_shown(value)}")


def _may_be(value: Any, kind: Any) -> bool:
    """Whether a value looks like one of a type, so that the error, if there is one, is in that type's words."""
    number = _number(value)
    origin = typing.get_origin(kind)
    # In Python True is an integer; as a setting it is not.
    if kind is bool or isinstance(number, bool):
        return kind is bool and isinstance(number, bool)
    if kind in (int, float):
        return isinstance(number, numbers.Integral if kind is int else numbers.Real)
    if kind is str or origin is typing.Literal:
        return isinstance(value, str)
    if kind is tuple or origin is tuple:
        return _is_sequence(value)
    wanted = origin or kind
    if kind is Any or not isinstance(wanted, type):
        return True
    return isinstance(value, wanted)


def _sequence(value: Any, kinds: Sequence[Any], rule: Rule, what: str) -> tuple:
    """A tuple: of any length, ``(X, ...)``, or of one value for each of ``kinds``."""
    if not _is_sequence(value):
        raise InputError(f"{what} is a sequence, got {_shown(value)}")
    values = list(value)
    if not (values or rule.empty):
        raise InputError(f"{what} is a sequence of at least one; got {_shown(value)}")
    if not kinds:
        return tuple(values)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = [kinds[0]] * len(values)
    if len(kinds) != len(values):
        raise InputError(f"{what} is a sequence of {len(kinds)}, got {_shown(value)}")
    return tuple(_checked(each, kind, rule, what) for each, kind in zip(values, kinds, strict=True))


def _is_sequence(value: Any) -> bool:
    """Whether it is a list, a tuple or an array; a string is not one here."""
    arrays = isinstance(value, np.ndarray | Tensor) and value.ndim > 0
    return arrays or (isinstance(value, Sequence) and not isinstance(value, str | bytes))


def _elements(value: Tensor, rule: Rule, what: str) -> None:
    """The elements of a tensor: finite numbers within the bounds."""
    if value.is_complex() or not bool(value.isfinite().all()):
        raise InputError(f"{what} has finite numbers{rule}; got {_shown(value)} with others")
    if not value.numel():
        return
    # The bounds hold for all elements if they hold for these two.
    for element in (value.min(), value.max()):
        if not rule.allows(float(element)):
            raise InputError(f"{what} has numbers{rule}; got {float(element):g}")


def _named(kind: Any) -> str:
    """A type in words."""
    words = {int: "a whole number", float: "a number", str: "a string", bool: "True or False"}
    if kind in words:
        return words[kind]
    wanted = typing.get_origin(kind) or kind
    if wanted is typing.Literal:
        return " or ".join(map(repr, typing.get_args(kind)))
    name = getattr(wanted, "__name__", str(wanted))
    if name == "Callable":
        return "a function"
    if name == "tuple":
        return "a sequence"
    article = "an" if name[0] in "AEIOU" else "a"
    return f"{article} {name}"


def _flag(value: Any, what: str) -> bool:
    """``True`` or ``False``, Python's or NumPy's."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise InputError(f"{what} is True or False, got {_shown(value)}")


def _number(value: Any) -> Any:
    """A scalar of NumPy or PyTorch as Python's own number; anything else as it is."""
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.ndim == 0):
        return value.item()
    return value


def _whole(value: Any, rule: Rule, what: str) -> int:
    """A whole number within the rule's bounds."""
    number = _number(value)
    if isinstance(number, bool) or not isinstance(number, numbers.Integral):
        raise InputError(f"{what} is a whole number{rule}; got {_shown(value)}")
    number = int(number)
    if rule.high is None and rule.below is None:
        rule_with_limit = f"{rule}, at most {LARGEST:g}"
        allowed = rule.allows(number) and number <= LARGEST
    else:
        rule_with_limit = str(rule)
        allowed = rule.allows(number)
    if not allowed:
        raise InputError(f"{what} is a whole number{rule_with_limit}; got {_shown(value)}")
    return number


def _real(value: Any, rule: Rule, what: str) -> float:
    """A finite number within the rule's bounds."""
    number = _number(value)
    too_large = isinstance(number, numbers.Integral) and abs(int(number)) > LARGEST_FLOAT
    is_number = isinstance(number, numbers.Real) and not isinstance(number, bool)
    if not is_number or too_large or not math.isfinite(number):
        raise InputError(f"{what} is a finite number{rule}; got {_shown(value)}")
    if not rule.allows(float(number)):
        raise InputError(f"{what} is a number{rule}; got {_shown(value)}")
    return number if isinstance(number, int | float) else float(number)


def _word(value: Any, choices: Sequence[str], what: str) -> str:
    """A string, one of the ``choices`` if there are any."""
    if not isinstance(value, str):
        raise InputError(f"{what} is a string, got {_shown(value)}")
    if choices and value not in choices:
        known = ", ".join(map(repr, choices))
        near = difflib.get_close_matches(value, choices)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{what} is one of {known}; got {value!r}{hint}")
    return value


def _shown(value: Any) -> str:
    """A value in an error, shortened."""
    if isinstance(value, Tensor | np.ndarray):
        return f"an array of shape {tuple(value.shape)}"
    text = repr(value)
    if len(text) <= SHOWN:
        return text
    return f"{text[: SHOWN - 3]}…"
