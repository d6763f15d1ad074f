"""Features of tables, series, texts and several inputs: columns and one-hot blocks, windows, tokens, parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import index
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .base import Features


@dataclass(frozen=True)
class Columns(Features):
    """A feature is a column of a table (B, columns), or a block of columns that belong together: F = (columns,), A = (K,).

    Args:
        blocks: one label for each column, of which equal ones make a block: ``["age", "job", "job"]``; or lists of column
            numbers, ``[[1, 2]]``; or a mapping, ``{"job": [1, 2]}``. Columns in no list are features of their own.
            Features come in the order of their first columns.
        fixed: noise leaves blocks of several columns as they are: half a category is no input. False for blocks of numbers.

    Raises:
        InputError: a column is in two blocks, or is not in the table.

    Example:
        >>> Columns(["age", "job", "job"]).names(3), Columns([[1, 2]]).names(4)
        (('age', 'job'), ('column 0', 'columns 1, 2', 'column 3'))
    """

    blocks: Any = ()
    fixed: bool = True

    unit = "column or block"
    ordered = False

    def __post_init__(self) -> None:
        labels = not isinstance(self.blocks, Mapping) and all(isinstance(label, str) for label in self.blocks)
        object.__setattr__(self, "blocks", tuple(self.blocks) if labels else _blocks(self.blocks))

    @classmethod
    def onehot(cls, names: Iterable[str], of: Iterable[str] | None = None, separator: str = "_") -> Columns:
        """Blocks by the columns' names, as scikit-learn's OneHotEncoder and pandas' get_dummies give them: ``job_clerk``.

        ``of``: the names of the columns that were encoded; the longest that fits decides. Without it, the text in front of
        the first separator, which also joins numbers that begin alike (``capital_gain``, ``capital_loss``).

        Example:
            >>> Columns.onehot(["age", "job_clerk", "job_cook"]).names(3)
            ('age', 'job')
            >>> Columns.onehot(["capital_gain", "capital_loss", "job_clerk", "job_cook"], of=["job"]).names(4)
            ('capital_gain', 'capital_loss', 'job')
        """
        names = list(names)
        if of is None:
            labels = [name.partition(separator)[0] for name in names]
            count = Counter(labels)
            return cls([label if count[label] > 1 else name for label, name in zip(labels, names, strict=True)])
        encoded = sorted(of, key=len, reverse=True)
        for label in encoded:
            if not any(name.startswith(label + separator) for name in names):
                raise InputError(
                    f"of: no column begins with {label + separator!r}; they begin {', '.join(names[:4])}, …"
                )
        return cls([next((e for e in encoded if name.startswith(e + separator)), name) for name in names])

    def groups(self, width: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """(name, columns) of every feature of a table of ``width`` columns.

        Raises:
            InputError: the blocks do not fit the table.
        """
        return _groups(self.blocks, width)

    def names(self, width: int) -> tuple[str, ...]:
        """The features' names, for a table of ``width`` columns."""
        return tuple(name for name, _ in self.groups(width))

    def shape(self, shape):
        return (len(self.groups(self._width(shape))),)

    def reduce(self, values, owner):
        groups = self.groups(self._width(values.shape[1:]))
        return values.new_zeros(len(values), len(groups)).index_add(1, _numbers(groups, values.device), values)

    def expand(self, values, owner, shape):
        return values[:, _numbers(self.groups(self._width(shape)), values.device)]

    def movable(self, shape):
        groups = self.groups(self._width(shape))
        if not self.fixed or all(len(columns) == 1 for _, columns in groups):
            return None
        return torch.tensor([len(columns) == 1 for _, columns in groups])[_numbers(groups)]

    def _width(self, shape: Sequence[int]) -> int:
        if len(shape) != 1:
            raise InputError(
                f"features: Columns are for tables (B, columns), but each input has shape {tuple(shape)}; "
                "use Pixels() or Patches() for images, Windows() for series"
            )
        return shape[0]


# -- inside ------------------------------------------------------------------------------------------------------------


def _blocks(spec: Any) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """(name or "", columns) of each block, from a mapping, lists of columns, or the blocks of another Columns."""
    if isinstance(spec, Mapping):
        pairs = [(str(name), columns) for name, columns in spec.items()]
    else:
        done = lambda item: isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)  # noqa: E731
        pairs = [item if done(item) else ("", item) for item in spec]
    found = []
    for name, columns in pairs:
        try:
            numbers = tuple(map(index, columns)) if isinstance(columns, Iterable) else (index(columns),)
        except TypeError:
            numbers = ()
        if not numbers or min(numbers) < 0:
            raise InputError(f"blocks: expected column numbers (0, 1, …), got {columns!r}")
        found.append((name, numbers))
    every = [column for _, columns in found for column in columns]
    if len(set(every)) < len(every):
        raise InputError(f"blocks: column {next(c for c in every if every.count(c) > 1)} is in two blocks")
    return tuple(found)


@lru_cache(maxsize=64)
def _groups(blocks: tuple[Any, ...], width: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    if blocks and isinstance(blocks[0], str):
        if len(blocks) != width:
            raise InputError(f"blocks: {len(blocks)} labels for a table of {width} columns")
        places: dict[str, list[int]] = {}
        for column, label in enumerate(blocks):
            places.setdefault(label, []).append(column)
        return tuple((label, tuple(columns)) for label, columns in places.items())
    taken = {column for _, columns in blocks for column in columns}
    if taken and max(taken) >= width:
        raise InputError(f"blocks: column {max(taken)} of a table of {width} columns (0 … {width - 1})")
    found = [*blocks, *(("", (column,)) for column in range(width) if column not in taken)]
    what = lambda columns: f"column{'s' * (len(columns) > 1)} {', '.join(map(str, columns))}"  # noqa: E731
    return tuple((name or what(columns), columns) for name, columns in sorted(found, key=lambda block: min(block[1])))


def _numbers(groups: Sequence[tuple[str, tuple[int, ...]]], device: torch.device | None = None) -> Tensor:
    """(columns,) the feature of each column."""
    labels = [0] * sum(len(columns) for _, columns in groups)
    for number, (_, columns) in enumerate(groups):
        for column in columns:
            labels[column] = number
    return torch.tensor(labels, device=device)
