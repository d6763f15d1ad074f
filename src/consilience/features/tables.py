"""Features of tables: columns, blocks of columns that belong together, columns of codes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import index
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..settings import LARGEST, setting
from .base import Features
from .onehot import block_labels, one_hot_columns


@dataclass(frozen=True)
class Columns(Features):
    """A feature is a column of a table (B, columns), or a block of columns that belong together: F = (columns,), A = (K,).

    Features come in the order of their first columns.

    Args:
        blocks: one label for each column, of which equal ones make a block: ``["age", "job", "job"]``; or lists of column
            numbers, ``[[1, 2]]``; or a mapping, ``{"job": [1, 2]}``. Columns in no list are features of their own.
        fixed: noise leaves blocks of several columns as they are: half a category is no input. False for blocks of numbers.
        categorical: columns that hold codes of categories, by number, or by name where the columns have names. Noise leaves
            them as they are, what is taken away is replaced by values that occur in the ``baselines`` (a data set, which is
            needed then), and methods that follow gradients are left out: there is no way from one code to the next.
        columns: the columns' names, for those that are features of their own. A data frame's come by themselves.
        guess: how blocks were read off names, by :meth:`onehot`: "names", "of", or "" where they were given.

    Raises:
        InputError: a column is in two blocks, or is not in the table; a name of no column.

    Example:
        >>> Columns(["age", "job", "job"]).names(3), Columns([[1, 2]]).names(4)
        (('age', 'job'), ('column 0', 'columns 1, 2', 'column 3'))
    """

    blocks: Any = ()
    fixed: bool = True
    categorical: Any = ()
    columns: tuple[str, ...] = ()
    guess: str = setting("", choices=("", "names", "of"))

    unit = "column or block"
    ordered = False

    def __post_init__(self) -> None:
        # Whatever form the blocks have, they are kept as tuples: features are compared and hashed, and never changed.
        super().__post_init__()
        if not _several(self.blocks):
            raise InputError(f"Columns: blocks are labels, lists of column numbers or a mapping, got {self.blocks!r}")
        if not isinstance(self.blocks, Mapping) and all(isinstance(label, str) for label in self.blocks):
            blocks = tuple(self.blocks)
        else:
            blocks = _blocks(self.blocks)
        categorical = self.categorical if _several(self.categorical) else [self.categorical]
        # A frozen dataclass refuses an assignment.
        object.__setattr__(self, "blocks", blocks)
        object.__setattr__(self, "categorical", tuple(_number_or_name(column) for column in categorical))

    @classmethod
    def onehot(
        cls, names: Iterable[str], of: Iterable[str] | None = None, separator: str = "_", data: Any = None
    ) -> Columns:
        """Blocks by the columns' names, as scikit-learn's OneHotEncoder and pandas' get_dummies give them: ``job_clerk``.

        A ColumnTransformer's prefix (``cat__job_clerk``) stays with the name. Names alone cannot tell ``job_years`` from a
        category, so what they suggest is compared with data: only columns of two values, of which each row has exactly one set,
        are a block. That is done with ``data``, or with the baselines, or else the inputs, that the features are used with.

        Args:
            names: one for each column.
            of: the names of the columns that were encoded; the longest that fits decides, and rows may have none set (an
                encoder that drops the first category). Without it, the text in front of the first separator.
            separator: between the encoded column's name and the category's.
            data: rows (n, columns).

        Raises:
            InputError: no column begins with a name in ``of``.

        Example:
            >>> Columns.onehot(["age", "job_clerk", "job_cook"]).names(3)
            ('age', 'job')
            >>> Columns.onehot(["job_years", "job_clerk", "job_cook"], data=[[7, 1, 0], [3, 0, 1], [9, 1, 0]]).names(3)
            ('job_years', 'job')
            >>> Columns.onehot(["num__age", "num__pay", "cat__job_a", "cat__job_b"]).names(4)
            ('num__age', 'num__pay', 'cat__job')
        """
        names = list(names)
        labels = block_labels(names, None if of is None else list(of), separator)
        columns = cls(labels, columns=tuple(map(str, names)), guess="names" if of is None else "of")
        if data is None:
            return columns
        return columns.settled(torch.as_tensor(data))

    def settled(self, rows: Tensor) -> Columns:
        """What :meth:`onehot` read off names, compared with data: what does not look like a one-hot block falls apart.

        Args:
            rows: (n, columns).
        """
        if not self.guess:
            return self
        blocks = []
        for name, columns in self.groups(rows.shape[1]):
            belong = one_hot_columns(rows[:, list(columns)].double(), strict=self.guess == "names")
            block = tuple(column for column, belongs in zip(columns, belong, strict=True) if belongs)
            # The caller names this column as encoded, and only one category of it was seen or kept.
            only_category = len(columns) == 1 and self.guess == "of" and name != self.columns[columns[0]]
            if len(block) > 1 or only_category:
                blocks.append((name, block or columns))
        return replace(self, blocks=tuple(blocks), guess="")

    def called(self, names: Sequence[str]) -> Columns:
        """The same features with names for the columns, where they have none.

        Args:
            names: one for each column of the table.
        """
        if self.columns:
            return self
        return replace(self, columns=tuple(map(str, names)))

    def codes(self, shape: Sequence[int]) -> Tensor | None:
        """(columns,) bool: which hold codes of categories, of inputs with axes ``shape``; None: none does.

        Raises:
            InputError: the table lacks such a column.
        """
        if not self.categorical:
            return None
        width = self._width(shape)
        names = self._column_names(width)
        coded = torch.zeros(width, dtype=torch.bool)
        for column in self.categorical:
            if isinstance(column, str):
                if column not in names:
                    raise InputError(
                        f"categorical: no column is called {column!r}; they are called {', '.join(names[:6])}, …"
                    )
                column = names.index(column)
            # From the end too, as Python counts.
            if not -width <= column < width:
                raise InputError(f"categorical: column {column} of a table of {width} columns (0 … {width - 1})")
            coded[column] = True
        return coded

    def _column_names(self, width: int) -> tuple[str, ...]:
        """A name for each column."""
        if self.columns:
            return self.columns
        if self.blocks and isinstance(self.blocks[0], str):
            return self.blocks
        return tuple(f"column {number}" for number in range(width))

    def groups(self, width: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The name and the columns of every feature, for a table of ``width`` columns.

        Raises:
            InputError: the blocks do not fit the table.
        """
        return _groups(self.blocks, self.columns, width)

    def names(self, width: int) -> tuple[str, ...]:
        """The features' names, for a table of ``width`` columns."""
        return tuple(name for name, _ in self.groups(width))

    def shape(self, shape):
        return (len(self.groups(self._width(shape))),)

    def reduce(self, values, owner):
        groups = self.groups(self._width(values.shape[1:]))
        feature_of_column = _feature_of_column(groups, values.device)
        sums = values.new_zeros(len(values), len(groups))
        return sums.index_add(1, feature_of_column, values)

    def expand(self, values, owner, shape):
        groups = self.groups(self._width(shape))
        return values[:, _feature_of_column(groups, values.device)]

    def movable(self, shape):
        groups = self.groups(self._width(shape))
        codes = self.codes(shape)
        # Of each feature, then of each column.
        in_fixed_block = torch.tensor([self.fixed and len(columns) > 1 for _, columns in groups])
        fixed = in_fixed_block[_feature_of_column(groups)]
        if codes is not None:
            fixed = fixed | codes
        if not bool(fixed.any()):
            return None
        return ~fixed

    def _width(self, shape: Sequence[int]) -> int:
        """The number of columns of inputs with axes F; raises InputError for inputs with other axes."""
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
        named = [(str(name), columns) for name, columns in spec.items()]
    else:
        named = [_named(item) for item in spec]
    blocks = tuple((name, _column_numbers(columns)) for name, columns in named)
    times = Counter(column for _, columns in blocks for column in columns)
    for column, number in times.items():
        if number > 1:
            raise InputError(f"blocks: column {column} is in two blocks")
    return blocks


def _several(given: Any) -> bool:
    """Whether something is many things and not one name."""
    return isinstance(given, Iterable) and not isinstance(given, str | bytes)


def _named(item: Any) -> tuple[str, Any]:
    """A block and its name. Blocks of another Columns have their names already; others have none."""
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str):
        return item
    return "", item


def _column_numbers(columns: Any) -> tuple[int, ...]:
    """The numbers of a block's columns, of which one may stand without a list around it."""
    several = columns if isinstance(columns, Iterable) else [columns]
    try:
        # `index` takes NumPy's integers too, and refuses 1.5, which `int` would cut.
        numbers = tuple(map(index, several))
    except TypeError:
        numbers = ()
    if not numbers or min(numbers) < 0:
        raise InputError(f"blocks: expected column numbers (0, 1, …), got {columns!r}")
    return numbers


def _number_or_name(column: Any) -> int | str:
    """A column's number or name."""
    if isinstance(column, str):
        return column
    number = -1
    # True is an integer to Python.
    if not isinstance(column, bool):
        try:
            number = index(column)
        except TypeError:
            pass
    if not 0 <= number <= LARGEST:
        raise InputError(f"Columns: categorical has column numbers (0, 1, …) or names, got {column!r}")
    return number


# Kept, since it is asked for at every batch of rows.
@lru_cache(maxsize=64)
def _groups(blocks: tuple[Any, ...], names: tuple[str, ...], width: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The name and the columns of every feature of a table, in the order of their first columns.

    Args:
        blocks: a label for each column, or (name, columns) of each block.
        names: of the table's columns; or empty.
        width: how many columns there are.
    """
    if names and len(names) != width:
        raise InputError(f"columns: {len(names)} names for a table of {width} columns")
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
    # Columns in no block are features of their own.
    alone = [("", (column,)) for column in range(width) if column not in taken]
    groups = sorted([*blocks, *alone], key=lambda block: min(block[1]))
    return tuple((name or _default_name(columns, names), columns) for name, columns in groups)


def _default_name(columns: Sequence[int], names: Sequence[str]) -> str:
    """What a feature is called that was given no name."""
    if names:
        return ", ".join(names[column] for column in columns)
    numbers = ", ".join(map(str, columns))
    if len(columns) > 1:
        return f"columns {numbers}"
    return f"column {numbers}"


def _feature_of_column(groups: Sequence[tuple[str, tuple[int, ...]]], device: torch.device | None = None) -> Tensor:
    """(columns,): the number of the feature to which each column belongs."""
    features = [0] * sum(len(columns) for _, columns in groups)
    for number, (_, columns) in enumerate(groups):
        for column in columns:
            features[column] = number
    return torch.tensor(features, device=device)
