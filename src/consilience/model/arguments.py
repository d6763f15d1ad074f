"""Keyword arguments of a model: which of them have one entry for each input, and which are the same for all rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import InputError

MOST = 6
"""Arguments as long as the batch of which nothing is said: more take too many tries."""


@dataclass(frozen=True)
class PerInput:
    """See :func:`per_input`."""

    value: Any


@dataclass(frozen=True)
class Constant:
    """See :func:`constant`."""

    value: Any


def per_input(value: Any) -> PerInput:
    """A keyword argument with one entry for each input: a row of input i is evaluated with entry i.

    Args:
        value: a tensor or array (B, …), or a list of B.

    >>> import torch
    >>> kwargs = {"age": per_input(torch.tensor([63.0, 41.0]))}
    """
    return PerInput(value)


def constant(value: Any) -> Constant:
    """A keyword argument that is the same for every row, even if it happens to be as long as the batch.

    Args:
        value: anything.

    >>> import torch
    >>> kwargs = {"class_vectors": constant(torch.randn(3, 8))}
    """
    return Constant(value)


@dataclass(frozen=True)
class Arguments:
    """Keyword arguments as plain ``values``; those named in ``following`` have one entry for each input."""

    values: Mapping[str, Any]
    following: frozenset[str] = frozenset()

    def of(self, owner: Tensor, arrays: bool) -> dict[str, Any]:
        """What the model gets with rows of the inputs ``owner`` (N,).

        Args:
            arrays: the model takes NumPy arrays, so that tensors become arrays.
        """
        found = {
            name: _entries(value, owner) if name in self.following else value for name, value in self.values.items()
        }
        if arrays:
            return {
                name: value.detach().cpu().numpy() if isinstance(value, Tensor) else value
                for name, value in found.items()
            }
        return found


def resolved(given: Mapping[str, Any], count: int, accepts: Callable[[Arguments, int], Exception | None]) -> Arguments:
    """Which arguments follow their inputs.

    What the caller says with :func:`per_input` or :func:`constant` holds. Of the others, tensors, arrays and lists with as many
    entries as there are inputs may do either. The model tells: an argument is a constant if the model takes it as it is with
    another number of rows. Tuples are settings, never data.

    Args:
        given: the arguments. count: B.
        accepts: tries the model on ``n`` copies of one input with the arguments; the error, or None if it gave one vector
            for each. Nothing else is compared: with B + 1 rows no argument of length B can be paired with them.

    Raises:
        InputError: an argument said to follow has another length, or the model takes none of the ways.
    """
    for name, value in given.items():
        if isinstance(value, PerInput) and _length(value.value) != count:
            raise InputError(
                f"kwargs[{name!r}]: per_input needs one entry for each of {count} inputs, got {_shown(value.value)}"
            )
    said = frozenset(name for name, value in given.items() if isinstance(value, PerInput))
    unclear = [
        name for name, value in given.items() if not isinstance(value, PerInput | Constant) and _length(value) == count
    ]
    plain = {name: value.value if isinstance(value, PerInput | Constant) else value for name, value in given.items()}
    if not unclear:
        return Arguments(plain, said)
    if len(unclear) > MOST:
        raise InputError(f"kwargs: {', '.join(unclear)} are as long as the batch; {_REMEDY}")
    for size in range(len(unclear) + 1):
        tries = [Arguments(plain, said | set(chosen)) for chosen in itertools.combinations(unclear, size)]
        errors = [accepts(each, count + 1) for each in tries]
        fits = [each for each, error in zip(tries, errors, strict=True) if error is None]
        if len(fits) == 1:
            return fits[0]
        if fits:
            ways = " or ".join(", ".join(sorted(each.following - said)) for each in fits)
            raise InputError(f"kwargs: {ways} may have one entry for each input; {_REMEDY}")
    raise InputError(
        f"kwargs: {', '.join(unclear)}: the model takes them neither for all rows nor one entry for each "
        f"({type(errors[-1]).__name__}: {str(errors[-1]).partition(chr(10))[0]}); {_REMEDY}"
    )


_REMEDY = "say which: cs.per_input(value) has one entry for each input, cs.constant(value) is for all rows"


def _length(value: Any) -> int | None:
    """How many entries; None for what cannot have one for each input."""
    if isinstance(value, Tensor | np.ndarray):
        return len(value) if value.ndim else None
    return len(value) if isinstance(value, list) else None


def _entries(value: Any, owner: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[owner.to(value.device)]
    places = owner.cpu().numpy()
    return value[places] if isinstance(value, np.ndarray) else [value[at] for at in places]


def _shown(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"shape {tuple(value.shape)}"
    return f"{type(value).__name__} of length {_length(value)}"
