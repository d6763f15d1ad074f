"""What the library raises, and how it words it: the argument, the value, the likely cause, the remedy."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Sequence
from types import ModuleType

SHOWN = 24
"""Names listed at most where none of them is like the one given."""


class ConsilienceError(Exception):
    """Base of every error raised on purpose by this library."""


class InputError(ConsilienceError, ValueError):
    """Something the caller gave cannot be used: an argument, an image, a checkpoint, a model's output."""


class UnknownArgument(InputError, TypeError):
    """A function or a class was given an argument by a name that it does not have; the message has the nearest one."""


class UnsupportedOp(ConsilienceError):
    """A modified backward rule met an operation for which it has no right answer; the message names the operation."""


class MissingExtra(ConsilienceError, ImportError):
    """An optional dependency is needed; the message names the extra that installs it."""


def choose(what: str, name: str, options: Iterable[str]) -> str:
    """``name``, if it is one of the options.

    Args:
        what: what is named, for the message.
        name: as the caller gave it.
        options: the names that there are.

    Raises:
        InputError: it is none of them; the message has the near ones, or all.
    """
    known = list(dict.fromkeys(options))  # each name once, in the order given
    if name in known:
        return name
    raise InputError(f"unknown {what} {name!r}; {suggestion(name, known)}")


def suggestion(name: str, known: Sequence[str]) -> str:
    """What may be meant by a name that is not known, in words: the near ones, or all.

    Args:
        name: as the caller gave it.
        known: the names that there are.
    """
    near = difflib.get_close_matches(str(name).lower().replace("-", "_"), known, n=3, cutoff=0.5)
    if near:
        return f"did you mean {', '.join(map(repr, near))}?"
    hint = f"known: {', '.join(known[:SHOWN])}"
    if len(known) > SHOWN:
        hint += ", …"
    return hint


def need(module: str, extra: str) -> ModuleType:
    """A module that an extra of this package brings.

    Args:
        module: its name.
        extra: the extra that brings it.

    Raises:
        MissingExtra: it cannot be imported; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"{module.partition('.')[0]!r} is needed here and could not be imported ({error}); "
            f"install it with: pip install 'consilience[{extra}]'"
        ) from error


# Marks that turn the direction of the text after them. str.isprintable() lets these three pass.
_TURNING = "\u200e\u200f\u061c"


def printable(text: object, keep: str = "") -> str:
    r"""``text`` for a terminal: what would move the cursor, colour, turn or end a line is written as an escape.

    Names of files may hold anything, also halves of characters where they are no UTF-8.

    Args:
        text: a name, or a message that holds names.
        keep: characters that stay, e.g. the line ends of a message.

    Example:
        >>> printable("cat\x1b[2J.png")
        'cat\\x1b[2J.png'
    """
    letters = []
    for letter in str(text):
        harmless = letter.isprintable() and letter not in _TURNING
        if letter not in keep and not harmless:
            letter = letter.encode("unicode_escape").decode()
        letters.append(letter)
    return "".join(letters)
