"""Keyword arguments of a model: which of them have one entry for each input, and which are the same for all rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import InputError

MOST = 6
"""The most arguments that are as long as the batch without the caller saying why: 2^6 ways are tried at most."""


@dataclass(frozen=True)
class PerInput:
    """A keyword argument with one entry for each input, as :func:`per_input` marks it.

    Args:
        value: a tensor or array (B, …), or a list of B.
    """

    value: Any


@dataclass(frozen=True)
class Constant:
    """A keyword argument that is the same for every row, as :func:`constant` marks it.

    Args:
        value: anything.
    """

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
    """Keyword arguments of a model, for which it is known how they belong to the inputs.

    Args:
        values: name → value, without the marks of :func:`per_input` and :func:`constant`.
        following: the names of those that have one entry for each input.
    """

    values: Mapping[str, Any]
    following: frozenset[str] = frozenset()

    def of(self, owner: Tensor, arrays: bool) -> dict[str, Any]:
        """What the model gets together with some rows.

        Args:
            owner: (N,), to which input each row belongs.
            arrays: the model takes NumPy arrays, so that tensors become arrays.
        """
        chosen = dict(self.values)
        for name in self.following:
            chosen[name] = _entries(chosen[name], owner)
        if arrays:
            for name, value in chosen.items():
                if isinstance(value, Tensor):
                    chosen[name] = value.detach().cpu().numpy()
        return chosen


def resolved(given: Mapping[str, Any], count: int, accepts: Callable[[Arguments, int], Exception | None]) -> Arguments:
    """Which arguments follow their inputs.

    What the caller says with :func:`per_input` or :func:`constant` holds. Of the others, tensors, arrays and lists with as many
    entries as there are inputs may do either. The model tells: an argument is a constant if the model takes it as it is with
    another number of rows. Tuples are settings, never data.

    Args:
        given: the arguments, as the caller gave them.
        count: B, the number of inputs.
        accepts: tries the model on ``n`` copies of one input with the arguments; the error, or None if it gave one vector
            for each. Nothing else is compared: with B + 1 rows no argument of length B can be paired with them.

    Raises:
        InputError: an argument marked by :func:`per_input` has another length; the model accepts none of the ways, or several;
            more than :data:`MOST` arguments would have to be tried.
    """
    declared = frozenset(name for name, value in given.items() if isinstance(value, PerInput))
    for name, value in given.items():
        if isinstance(value, PerInput) and _length(value.value) != count:
            described = _described(value.value)
            raise InputError(f"kwargs[{name!r}]: per_input needs one entry for each of {count} inputs, got {described}")
    plain: dict[str, Any] = {}
    unclear: list[str] = []
    for name, value in given.items():
        if isinstance(value, PerInput | Constant):
            plain[name] = value.value
            continue
        plain[name] = value
        # A list of another length than B cannot have one entry for each input.
        if _length(value) == count:
            unclear.append(name)
    if not unclear:
        return Arguments(plain, declared)
    if len(unclear) > MOST:
        raise InputError(f"kwargs: {', '.join(unclear)} are as long as the batch; {_REMEDY}")
    return _tried(plain, declared, unclear, count, accepts)


def _tried(
    plain: Mapping[str, Any],
    declared: frozenset[str],
    unclear: Sequence[str],
    count: int,
    accepts: Callable[[Arguments, int], Exception | None],
) -> Arguments:
    """The one way in which the model takes arguments whose relation to the inputs the caller has not declared.

    Args:
        plain: the arguments without marks.
        declared: the names of those that follow their inputs, as the caller says.
        unclear: the names of those that may.
        count: B.
        accepts: see :func:`resolved`.
    """
    # Fewest first: constants first of all, since an argument that the model takes unchanged need not follow.
    for size in range(len(unclear) + 1):
        ways = [Arguments(plain, declared | set(chosen)) for chosen in itertools.combinations(unclear, size)]
        errors = [accepts(way, count + 1) for way in ways]
        accepted = [way for way, error in zip(ways, errors, strict=True) if error is None]
        if len(accepted) == 1:
            return accepted[0]
        if accepted:
            names = " or ".join(", ".join(sorted(way.following - declared)) for way in accepted)
            raise InputError(f"kwargs: {names} may have one entry for each input; {_REMEDY}")
    # The last error is that of the last way, in which all of them follow.
    last = errors[-1]
    reason = str(last).partition("\n")[0]
    raise InputError(
        f"kwargs: {', '.join(unclear)}: the model takes them neither for all rows nor one entry for each "
        f"({type(last).__name__}: {reason}); {_REMEDY}"
    )


_REMEDY = "say which: cs.per_input(value) has one entry for each input, cs.constant(value) is for all rows"


def _length(value: Any) -> int | None:
    """How many entries; None for what cannot have one for each input."""
    if isinstance(value, Tensor | np.ndarray):
        return len(value) if value.ndim else None
    return len(value) if isinstance(value, list) else None


def _entries(value: Any, owner: Tensor) -> Any:
    """The entry of its input for each row: ``value[owner]`` of a tensor, an array or a list."""
    if isinstance(value, Tensor):
        return value[owner.to(value.device)]
    places = owner.cpu().numpy()
    if isinstance(value, np.ndarray):
        return value[places]
    return [value[place] for place in places]


def _described(value: Any) -> str:
    """A value in words, for errors."""
    if isinstance(value, Tensor | np.ndarray):
        return f"shape {tuple(value.shape)}"
    return f"{type(value).__name__} of length {_length(value)}"
