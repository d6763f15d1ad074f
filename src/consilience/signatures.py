"""Arguments that a function or a class does not have, by one mechanism: the error names the one that may be meant.

Signatures stay as they are written, for readers, editors and ``inspect.signature``. A function is marked by
:func:`known_arguments`, a class inherits :class:`KnownArguments`.

>>> from consilience.explainers import SmoothGrad
>>> SmoothGrad(n_sample=8)
Traceback (most recent call last):
consilience.errors.UnknownArgument: SmoothGrad() got an unexpected keyword argument 'n_sample'; did you mean 'n_samples'?
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, TypeVar, cast

from .errors import UnknownArgument, suggestion

F = TypeVar("F", bound=Callable[..., Any])

NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
"""Kinds of parameters that can be given by name."""


def check_arguments(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse what is given under a name that is not known.

    Args:
        what: the function's or the class's name, for the message.
        given: names of the arguments.
        known: names that there are.

    Raises:
        UnknownArgument: a name is not among them.
    """
    known = list(dict.fromkeys(known))
    for name in given:
        if name not in known:
            hint = suggestion(name, known)
            raise UnknownArgument(f"{what}() got an unexpected keyword argument {name!r}; {hint}")


def known_arguments(*further: str) -> Callable[[F], F]:
    """A decorator for functions: keyword arguments of other names are refused with the nearest name that there is.

    Args:
        further: names that are taken by the function's ``**options``; without any, a function with ``**`` takes every name.
    """

    def decorate(function: F) -> F:
        parameters = inspect.signature(function).parameters.values()
        own = [each.name for each in parameters if each.kind in NAMED]
        takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters) and not further
        if takes_any:
            return function
        known = (*own, *further)

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            check_arguments(function.__name__, kwargs, known)
            return function(*args, **kwargs)

        return cast(F, checked)

    return decorate


class _OfInit:
    """``__signature__`` of a class: that of its ``__init__``, which :meth:`KnownArguments.__new__` would hide."""

    def __get__(self, instance: Any, owner: Any) -> inspect.Signature:
        signature = inspect.signature(owner.__init__)
        _, *parameters = signature.parameters.values()  # without self
        return signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)


class KnownArguments:
    """Base of classes whose construction refuses keyword arguments of unknown names, with the nearest name that there is.

    Attributes:
        further: names that are taken by the ``**options`` of ``__init__``, beside those that the classes above it name.
    """

    further: ClassVar[tuple[str, ...]] = ()
    __signature__: ClassVar[Any] = _OfInit()

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        of: Any = cls
        known = _known(of)
        if known is not None:
            check_arguments(cls.__name__, kwargs, known)
        return super().__new__(cls)


@functools.cache
def _known(cls: Any) -> tuple[str, ...] | None:
    """Names of the arguments of ``cls``, and of the classes above it where it hands them on; None: it takes every name."""
    known = list(cls.further)
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())
        known += [each.name for each in parameters[1:] if each.kind in NAMED]
        hands_on = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
        if cls.further or not hands_on:
            return tuple(known)
    return None
