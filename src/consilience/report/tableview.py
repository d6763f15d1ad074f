"""Prepares the table of :mod:`.table` for the page: numbers as texts, bars, and notes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .numbers import MISSING, Digits, minus
from .table import Cell, Row, shown_criteria


def table_view(table: Sequence[Row]) -> dict[str, Any]:
    """The values for ``templates/table.html``.

    Args:
        table: the rows of one input, or averaged ones.
    """
    criteria = shown_criteria(table)
    digits = {}
    for criterion in criteria:
        cells = [row.cells[criterion.key] for row in table if not row.cells[criterion.key].trivial]
        digits[criterion.key] = Digits([cell.fresh for cell in cells], [cell.stderr for cell in cells])
    # Methods first, then what is made from all of them, with a line between the two groups.
    groups = []
    for derived in (False, True):
        group = []
        for row in table:
            if row.derived is derived:
                cells_of_row = [_cell(row.cells[c.key], digits[c.key]) for c in criteria]
                group.append(_row(row, cells_of_row))
        if group:
            groups.append(group)
    fewer = any(0 < row.cells[c.key].n < row.cells[c.key].of for row in table for c in criteria)
    return {
        "columns": [(criterion.title, criterion.direction) for criterion in criteria],
        "groups": groups,
        "fewer": fewer,
        "exact": any(row.cells[c.key].exact for row in table for c in criteria),
    }


def _row(row: Row, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """One row with its prepared cells."""
    weight = None
    if not row.failed and not row.derived:
        weight = weight_view(row.weight, row.stderr)
    return {
        "name": row.name,
        "lead": row.name == "consensus",
        "failed": row.failed,
        "weight": weight,
        "cells": cells,
    }


def weight_view(weight: float | None, stderr: float | None = None) -> dict[str, Any] | None:
    """A weight as a bar with its number; None where there is none.

    Args:
        weight: a method's weight, or None.
        stderr: its standard error, or None.
    """
    if weight is None:
        return None
    # What would be written as 0.00 is left out.
    return {
        "share": f"{min(100.0, 100 * abs(weight)):.1f}",
        "negative": weight < 0,
        "value": "0" if abs(weight) < 0.005 else minus(f"{weight:.2f}"),
        "error": f"± {stderr:.2f}" if stderr and stderr >= 0.005 else "",
    }


def _cell(cell: Cell, digits: Digits) -> dict[str, Any]:
    """One number with its error, the value on the fitting draws, and notes."""
    error = ""
    if cell.exact:
        error = "exact"
    elif cell.stderr and not cell.trivial:
        error = f"± {minus(digits(cell.stderr))}"
    return {
        "missing": cell.fresh is None,
        "value": MISSING if cell.fresh is None else minus(digits(cell.fresh)),
        "error": error,
        "fit": "" if cell.fit is None else minus(digits(cell.fit)),
        "reason": cell.reason,
        "trivial": cell.trivial,
        "best": cell.best,
        "few": f"{cell.n} of {cell.of} inputs" if 0 < cell.n < cell.of else "",
    }
