"""Readers of tables, and their encoding as numbers, with statistics of the training rows only."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, need
from .files import check_file

# Why columns of SUPPORT2 are left out.
_AFTER = "known only after the third day, at which death is predicted"
_FITTED = "computed by a model that was fitted to these patients' survival"

SUPPORT2_LEAKS: Mapping[str, str] = {
    **dict.fromkeys(("hospdead", "d.time", "sfdm2"), "an outcome: it tells whether or when the patient died"),
    **dict.fromkeys(("slos", "charges", "totcst", "totmcst", "avtisst", "dnr", "dnrday"), _AFTER),
    **dict.fromkeys(("sps", "surv2m", "surv6m"), _FITTED),
}
"""Columns of SUPPORT2 that must not predict ``death``, and why."""


_MISSING = ("", "na", "nan", "?")
"""Words that stand for a missing value, in lower case."""


@dataclass(frozen=True, eq=False)
class Table:
    """A table as read.

    Args:
        columns: by name, floats (NaN where missing) or words ("" where missing).
        y: (n,), float targets or int64 classes.
        classes: the classes' names, empty for regression.
        notes: what was left out, in words.
        test: how many of the last rows are the set's own test part; 0: it has none.
    """

    columns: Mapping[str, np.ndarray]
    y: np.ndarray
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    test: int = 0


@dataclass(frozen=True, eq=False)
class Encoded:
    """A table in numbers.

    Args:
        x: (n, F), float32.
        y: (n,), classes, or targets standardised.
        features: the features' names.
        columns: the source column of each feature.
        target: (mean, standard deviation) of a regression target.
        notes: what was left out or filled in, in words.
    """

    x: np.ndarray
    y: np.ndarray
    features: tuple[str, ...]
    columns: tuple[str, ...]
    target: tuple[float, float]
    notes: tuple[str, ...]


def regression(path: Path, drop: Mapping[str, str], notes: tuple[str, ...] = ()) -> Table:
    """A table whose first column is a row index (left out) and whose last is the target.

    Args:
        path: of the comma-separated file.
        drop: columns that are left out → why.
        notes: to keep with the table.
    """
    columns, dropped = _read(path, drop)
    name = list(columns)[-1]
    y = columns.pop(name)
    if y.dtype.kind != "f" or np.isnan(y).any() or not columns:
        raise InputError(f"table {str(path)!r}: the last column, {name!r}, must be a number in every row: the target")
    return Table(columns, y, (), (*notes, *dropped))


def classification(path: Path, label: str, drop: Mapping[str, str]) -> Table:
    """A table with a row index (left out) and a column of classes 0 and 1.

    Args:
        path: of the comma-separated file.
        label: the name of the column of classes.
        drop: columns that are left out → why.
    """
    columns, notes = _read(path, drop)
    if label not in columns:
        raise InputError(f"table {str(path)!r} has no column {label!r}; it has {', '.join(columns)}")
    y = columns.pop(label)
    if y.dtype.kind != "f" or not np.isin(y, (0, 1)).all():
        raise InputError(f"table {str(path)!r}: column {label!r} must be 0 or 1 in every row")
    return Table(columns, y.astype(np.int64), (f"no {label}", label), notes)


def sklearn_table(loader: str) -> Table:
    """The table that this ``loader`` of scikit-learn gives.

    Diabetes comes in its original units, since the packaged scaling has seen every row.
    """
    options: dict[str, Any] = {}
    if loader == "load_diabetes":
        options["scaled"] = False
    bunch = getattr(need("sklearn.datasets", "tables"), loader)(**options)
    columns = {str(name): bunch.data[:, j] for j, name in enumerate(bunch.feature_names)}
    classes = tuple(map(str, bunch.get("target_names", ())))
    return Table(columns, bunch.target.astype(np.int64 if classes else np.float64), classes)


def encode(table: Table, train: np.ndarray) -> Encoded:
    """Fill gaps, make words one-hot, and standardise.

    Args:
        table: as read.
        train: (m,), the training rows, of which every statistic is.

    Raises:
        InputError: no column varies over the training rows, or the target does not.
    """
    features = _Features([], [], [], [])
    for name, column in table.columns.items():
        if column.dtype.kind == "f":
            features.add_numbers(name, column, train)
        else:
            features.add_words(name, column, train)
    names = features.names
    notes = features.notes
    x = np.stack(features.values, 1)
    mean = x[train].mean(0)
    std = x[train].std(0)
    # Rounding leaves a constant column a standard deviation above 0.
    varies = std > 1e-9 * np.abs(x[train]).max(0)
    constant = [name for name, keep in zip(names, varies, strict=True) if not keep]
    notes += [f"{name} left out: constant in the training rows" for name in constant]
    if not varies.any():
        raise InputError(f"no column varies over the {len(train)} training rows")
    x = ((x - mean) / np.where(varies, std, 1))[:, varies]
    y = table.y
    target = (0.0, 1.0)
    if not table.classes:
        target = (float(y[train].mean()), float(y[train].std()))
        if not target[1]:
            raise InputError(f"the target is {target[0]:g} in every training row")
        y = ((y - target[0]) / target[1]).astype(np.float32)
    kept = np.flatnonzero(varies)
    return Encoded(
        x=x.astype(np.float32),
        y=y,
        features=tuple(names[j] for j in kept),
        columns=tuple(features.columns[j] for j in kept),
        target=target,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Features:
    """The features of an encoded table so far, one entry of the first three lists for each.

    Args:
        values: (n,) float64 each.
        names: of the features.
        columns: the source column of each.
        notes: what was left out or filled in, in words.
    """

    values: list[np.ndarray]
    names: list[str]
    columns: list[str]
    notes: list[str]

    def add_words(self, name: str, column: np.ndarray, train: np.ndarray) -> None:
        """A column of words: a feature for each level that occurs in the training rows, missing being one of them."""
        for level in sorted(set(column[train].tolist())):
            self.values.append((column == level).astype(np.float64))
            self.names.append(f"{name}={level or 'missing'}")
            self.columns.append(name)

    def add_numbers(self, name: str, column: np.ndarray, train: np.ndarray) -> None:
        """A column of numbers, its gaps filled with the training rows' median."""
        gaps = np.isnan(column)
        if gaps[train].all():
            self.notes.append(f"{name} left out: missing in every training row")
            return
        if gaps.any():
            self.notes.append(
                f"{name}: {int(gaps.sum())} of {len(gaps)} values missing, filled with the training rows' median"
            )
            column = np.where(gaps, np.median(column[train][~gaps[train]]), column)
        self.values.append(column)
        self.names.append(name)
        self.columns.append(name)


def _read(path: Path, drop: Mapping[str, str]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Columns by name, without the row index and without those of ``drop``, each with its reason among the notes."""
    check_file(path, "table")
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            lines = [line for line in csv.reader(stream) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"table {str(path)!r} cannot be read as comma-separated text: {error}") from error
    if len(lines) < 2:
        raise InputError(f"table {str(path)!r} has no rows below its header")
    header = [name.strip() for name in lines[0]]
    rows = lines[1:]
    # R writes a table's row index without a name for it.
    if len(rows[0]) == len(header) + 1:
        header = ["", *header]
    if header[0] != "":
        raise InputError(
            f"table {str(path)!r}: the first column, {header[0]!r}, should be a row index without a name; as a feature an "
            "index would leak the order of collection, so it has to be told apart"
        )
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise InputError(
                f"table {str(path)!r}, line {number}: {len(row)} values for {len(header)} columns: truncated?"
            )
    if unknown := [name for name in drop if name not in header]:
        raise InputError(f"table {str(path)!r} lacks the column(s) {', '.join(unknown)}: another version of this set?")
    if len(set(header)) != len(header):
        raise InputError(f"table {str(path)!r}: two columns have the same name")
    columns = {}
    for j, name in enumerate(header):
        if j and name not in drop:
            columns[name] = _column([row[j].strip() for row in rows])
    return columns, tuple(f"{name} left out: {reason}" for name, reason in drop.items())


def _column(words: list[str]) -> np.ndarray:
    """Floats if every word is a number or missing, else the words, "" where missing."""
    present = ["" if word.lower() in _MISSING else word for word in words]
    try:
        return np.array([float(word) if word else np.nan for word in present])
    except ValueError:
        return np.array(present)
