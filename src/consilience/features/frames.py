"""Data frames and series of pandas, Polars and similar libraries, as arrays: columns by position, their names beside them.

Nothing of these libraries is imported: a frame is what has ``columns`` and ``to_numpy``.
"""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from ..errors import InputError


def is_frame(x: Any) -> bool:
    """Whether ``x`` is a data frame."""
    return hasattr(x, "to_numpy") and hasattr(x, "columns")


def is_series(x: Any) -> bool:
    """Whether ``x`` is a column of a data frame, or its index."""
    return hasattr(x, "to_numpy") and not hasattr(x, "columns")


def column_names(x: Any) -> tuple[str, ...] | None:
    """The names of the columns of a frame ``x``; None for anything else. Names that repeat get a number: job, job (2)."""
    if not is_frame(x):
        return None
    names: list[str] = []
    for name in map(str, x.columns):
        if name in names:
            earlier = sum(other == name or other.startswith(f"{name} (") for other in names)
            name = f"{name} ({earlier + 1})"
        names.append(name)
    return tuple(names)


def plain_array(x: Any, argument: str) -> Any:
    """A frame or series as an array, by position; anything else as it is.

    Args:
        x: a frame (n, columns) of numbers, a series (n,), or anything else.
        argument: its name, for errors.

    Raises:
        InputError: a column holds something else than numbers.
    """
    if is_series(x):
        return np.array(x.to_numpy())
    if not is_frame(x):
        return x
    # A copy: what a frame lends may not be written to.
    array = np.array(x.to_numpy())
    # Integers, unsigned integers, truth values.
    if array.dtype.kind in "iub":
        return array.astype(np.float64)
    if array.dtype.kind == "f":
        return array
    # Columns of several types come as objects.
    columns = zip(x.columns, array.T, strict=True)
    not_numbers = [name for name, column in columns if not all(map(_is_number, column))]
    if not_numbers:
        first = not_numbers[:4]
        raise InputError(
            f"{argument}: the columns {', '.join(map(repr, first))} are not numbers; give codes in their place (in pandas: "
            "frame[name].cat.codes), decode them inside the function that calls the model, and say "
            f"features=cs.Columns(categorical={first})"
        )
    return array.astype(np.float64)


def _is_number(value: Any) -> bool:
    """Whether a value of an object column is a real number or a truth value."""
    return isinstance(value, numbers.Real | np.bool_)
