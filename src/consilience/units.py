"""Features of tables, series, texts and several inputs: columns and one-hot blocks, windows, tokens, parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from operator import index
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from .errors import InputError
from .features import Features


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


@dataclass(frozen=True)
class Windows(Features):
    """A feature is a window of ``size`` steps of a series, over all other axes (channels); the last may be shorter.

    ``axis``: the time's place among the input's axes F, -1 for (B, channels, steps). A = (⌈steps / size⌉,).

    Example:
        >>> Windows(10).shape((3, 48)), Windows(10, axis=0).shape((48, 3))
        ((5,), (5,))
    """

    size: int = 16
    axis: int = -1

    @property
    def unit(self):  # type: ignore[override]
        return f"window of {self.size}"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"size: at least 1 step, got {self.size}")

    def shape(self, shape):
        return (-(-shape[self._axis(shape)] // self.size),)

    def reduce(self, values, owner):
        axis = self._axis(values.shape[1:])
        steps = values.movedim(axis + 1, -1).reshape(len(values), -1, values.shape[axis + 1]).sum(1)
        return nnf.pad(steps, (0, -steps.shape[1] % self.size)).unflatten(1, (-1, self.size)).sum(2)

    def expand(self, values, owner, shape):
        axis = self._axis(shape)
        steps = values[:, torch.arange(shape[axis], device=values.device) // self.size]
        return steps.view(-1, *[n if i == axis else 1 for i, n in enumerate(shape)]).expand(-1, *shape)

    def _axis(self, shape: Sequence[int]) -> int:
        if not -len(shape) <= self.axis < len(shape):
            raise InputError(f"axis: {self.axis}, but each input has shape {tuple(shape)}")
        return self.axis % len(shape)


class Tokens(Features):
    """A feature is a place of a sequence, over all axes behind it (the embedding): F = (T, …), A = (T,).

    ``present`` (B, T) bool: the tokens that count. Special tokens and padding are no features: their size is 0, ``reduce``
    gives 0 there, masks never select them, and noise leaves them as they are. One row stands for any number of inputs.

    Gradients are reduced by their norm: the sum over an embedding's coordinates means nothing, and is zero for every token
    where a layer norm follows.
    """

    unit = "token"

    def __init__(self, present: Tensor):
        self.present = torch.as_tensor(present)
        if self.present.ndim != 2 or self.present.dtype != torch.bool:
            raise InputError(
                f"present: bool of shape (inputs, tokens), got {self.present.dtype} {tuple(self.present.shape)}"
            )

    def shape(self, shape):
        if not shape or shape[0] != self.present.shape[1]:
            raise InputError(
                f"features: {self.present.shape[1]} tokens, but each input has shape {tuple(shape)}; its first axis is the "
                "tokens'"
            )
        return tuple(shape[:1])

    def reduce(self, values, owner):
        self.shape(values.shape[1:])
        return values.reshape(*values.shape[:2], -1).sum(2) * self._of(owner)

    def reduce_gradient(self, values, owner):
        return self.reduce(values**2, owner).sqrt()

    def expand(self, values, owner, shape):
        self.shape(shape)
        known = torch.where(self._of(owner), values, torch.zeros_like(values))
        return known.view(*known.shape, *[1] * (len(shape) - 1)).expand(-1, *shape)

    def movable(self, shape):
        return self.present.view(*self.present.shape, *[1] * (len(shape) - 1))

    def _of(self, owner: Tensor) -> Tensor:
        present = self.present.to(owner.device)
        return present[owner if len(present) > 1 else torch.zeros_like(owner)]


class Parts(Features):
    """The features of several inputs side by side: F = (Σ elements,), A = (Σ features,).

    ``parts``: the features of each input; ``shapes``: their axes.
    """

    unit = "feature of a part"

    def __init__(self, parts: Sequence[Features], shapes: Sequence[Sequence[int]]):
        self.parts, self.shapes = tuple(parts), tuple(tuple(shape) for shape in shapes)
        self.axes = tuple(features.shape(shape) for features, shape in zip(self.parts, self.shapes, strict=True))

    def shape(self, shape):
        if tuple(shape) != (sum(map(prod, self.shapes)),):
            raise InputError(
                f"features: of inputs packed to {sum(map(prod, self.shapes))} elements, got {tuple(shape)}"
            )
        return (sum(map(prod, self.axes)),)

    def reduce(self, values, owner):
        self.shape(values.shape[1:])
        pairs = zip(self.parts, split(values, self.shapes), strict=True)
        return torch.cat([features.reduce(part, owner).flatten(1) for features, part in pairs], 1)

    def reduce_gradient(self, values, owner):
        self.shape(values.shape[1:])
        pairs = zip(self.parts, split(values, self.shapes), strict=True)
        return torch.cat([features.reduce_gradient(part, owner).flatten(1) for features, part in pairs], 1)

    def expand(self, values, owner, shape):
        self.shape(shape)
        rows = zip(self.parts, split(values, self.axes), self.shapes, strict=True)
        return torch.cat([features.expand(part, owner, axes).flatten(1) for features, part, axes in rows], 1)

    def movable(self, shape):
        found = []
        for features, axes in zip(self.parts, self.shapes, strict=True):
            free = features.movable(axes)
            free = torch.ones(axes, dtype=torch.bool) if free is None else free
            found.append(free.expand(*free.shape[: free.ndim - len(axes)], *axes).reshape(-1, prod(axes)))
        if all(bool(free.all()) for free in found):
            return None
        count = max(map(len, found))
        joined = torch.cat([free.expand(count, -1).to(found[0].device) for free in found], 1)
        return joined if count > 1 else joined[0]


def split(values: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """(…, Σ elements) → (…, *shape) for each shape."""
    pieces = values.split([prod(shape) for shape in shapes], -1)
    return [piece.reshape(*values.shape[:-1], *shape) for piece, shape in zip(pieces, shapes, strict=True)]


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
