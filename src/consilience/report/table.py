"""The table of a report as data: a row for each map, a cell for each criterion; for one input, or averaged over several.

The rows are the methods, the maps made from all methods ("derived": mean, median, …), and the consensus. ``text.py`` prints the
table, ``tableview.py`` prepares it for the page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from .criteria import CRITERIA, Criterion
from .differences import FEWEST
from .reading import Record, listing, mapping, number, part, text


@dataclass(frozen=True)
class Cell:
    """One criterion of one row.

    Attributes:
        fit: the value on the fitting draws, or None.
        fresh: the value on fresh draws, or None.
        stderr: the standard error of the fresh value, or None: for one input over its draws, for several over the inputs.
        n: how many inputs have a fresh value.
        of: how many inputs there are.
        trivial: whether the value is known beforehand, such as the robustness of a map that is the same everywhere.
        best: whether it is the best fresh value of the criterion.
        reason: why a number is missing; "" if none is.
        exact: whether all possible masks were drawn, so that the value has no error.
    """

    fit: float | None
    fresh: float | None
    stderr: float | None
    n: int = 1
    of: int = 1
    trivial: bool = False
    best: bool = False
    reason: str = ""
    exact: bool = False

    @property
    def competes(self) -> bool:
        """Whether it may be marked as the best: it has a value for every input, which is not trivial."""
        return self.fresh is not None and not self.trivial and self.n == self.of


@dataclass(frozen=True)
class Row:
    """One map: a method, or one made from all of them (``derived``).

    Attributes:
        name: as in the record.
        weight: the method's weight in the combined map; None where the objective has no weights.
        cells: criterion → :class:`Cell`.
        derived: whether it is made from all methods.
        failed: why the method failed; "" if it did not.
        stderr: the standard error of the weight: for one input over halves of its draws, for several over the inputs.
        unjudged: whether fresh draws are missing, so that nothing was judged.
    """

    name: str
    weight: float | None
    cells: dict[str, Cell]
    derived: bool = False
    failed: str = ""
    stderr: float | None = None
    unjudged: bool = False

    @property
    def spread(self) -> str:
        """The weight's standard error as text; "" where there is none."""
        if not self.stderr:
            return ""
        return f" ± {self.stderr:.2f}"


def rows(record: Record) -> list[Row]:
    """The table of one input's ``record``: every method in order, then the maps made from all of them, the consensus last."""
    methods = [str(name) for name in listing(record, "methods")]
    weights = dict(zip(methods, listing(record, "weights"), strict=False))
    errors = dict(zip(methods, listing(record, "weights_stderr"), strict=False))
    # The names of all rows, in the order of the criteria's.
    names = dict.fromkeys(methods)
    for criterion in mapping(record, "criteria").values():
        names |= dict.fromkeys(mapping(criterion))
    table = []
    for name in names:
        row = Row(
            name=name,
            weight=number(weights, name),
            cells={criterion.key: _cell(record, criterion, name) for criterion in CRITERIA},
            derived=name not in methods,
            failed=text(record, "failed", name),
            stderr=number(errors, name),
            unjudged=bool(unjudged([record])),
        )
        table.append(row)
    return _marked(table)


def average(records: Sequence[Record]) -> list[Row]:
    """The mean table of ``records``: each cell over the inputs that have its number, with the standard error over them."""
    if len(records) == 1:
        return rows(records[0])
    tables = [{row.name: row for row in rows(record)} for record in records]
    # Inputs may differ in their methods. Dictionaries serve as sets that keep the order in which names are added.
    methods: dict[str, None] = {}
    derived: dict[str, None] = {}
    for table in tables:
        for name, row in table.items():
            if row.derived:
                derived[name] = None
            else:
                methods[name] = None
    names = [*methods, *(name for name in derived if name not in methods)]
    averaged = []
    for name in names:
        same = [table[name] for table in tables if name in table]
        weights = [row.weight for row in same if row.weight is not None]
        row = Row(
            name=name,
            weight=fmean(weights) if weights else None,
            cells={c.key: average_cell([row.cells[c.key] for row in same], len(records)) for c in CRITERIA},
            derived=name not in methods,
            failed=next((row.failed for row in same if row.failed), ""),
            stderr=_stderr(weights),
            unjudged=bool(unjudged(records)),
        )
        averaged.append(row)
    return _marked(averaged)


def _cell(record: Record, criterion: Criterion, name: str) -> Cell:
    """One criterion of the row ``name`` of one input."""
    numbers = mapping(record, "criteria", criterion.key, name)
    fit, fresh, stderr = (number(numbers, what) for what in ("fit", "fresh", "stderr"))
    complete = None not in (fit, fresh, stderr)
    exact = criterion.masked and stderr is not None and "exact" in mapping(record, "draws", "masks")
    return Cell(
        fit=fit,
        fresh=fresh,
        stderr=stderr,
        trivial=_is_trivial(record, criterion, name),
        reason="" if complete else why(record, f"criteria.{criterion.key}.{name}", name),
        exact=exact,
    )


def _is_trivial(record: Record, criterion: Criterion, name: str) -> bool:
    """Whether a value follows from how the row is made: the uniform map is the same everywhere, and a consensus without any
    method is all correction, which is held at neighbours and for other outputs."""
    robustness = criterion.key.endswith("sensitivity")
    if name == "consensus" and number(record, "posterior", "methods_share") == 0:
        return robustness or criterion.key == "contrast"
    return name == "uniform" and robustness


def why(record: Record, where: str, name: str = "") -> str:
    """Why a number is missing: the reason that the record gives for it, for one of its parts, or for its failed method.

    Args:
        record: the input's record.
        where: the number's place in the record, such as "criteria.infidelity.saliency".
        name: the method that the number belongs to.
    """
    reasons = mapping(record, "reasons")
    for key in (where, f"{where}.fresh", f"{where}.fit", f"{where}.stderr", f"methods.{name}"):
        if key in reasons:
            return str(reasons[key])
    return text(record, "failed", name) or "no reason was recorded"


def average_cell(cells: Sequence[Cell], of: int) -> Cell:
    """The cell of several inputs: means over those that have a value.

    Args:
        cells: one for each input that has the row.
        of: how many inputs there are.
    """
    fresh = [cell.fresh for cell in cells if cell.fresh is not None]
    fit = [cell.fit for cell in cells if cell.fit is not None]
    stderr = _stderr(fresh)
    reason = ""
    if len(fresh) < of or stderr is None:
        reason = next((cell.reason for cell in cells if cell.reason), "")
        if not reason and len(fresh) < of:
            reason = "not in every input's table"
        elif not reason:
            reason = f"no standard error of fewer than {FEWEST} inputs"
    return Cell(
        fit=fmean(fit) if fit else None,
        fresh=fmean(fresh) if fresh else None,
        stderr=stderr,
        n=len(fresh),
        of=of,
        trivial=any(cell.trivial for cell in cells),
        reason=reason,
    )


def _stderr(values: Sequence[float]) -> float | None:
    """The standard error of the mean over inputs; None for too few of them."""
    if len(values) < FEWEST:
        return None
    return stdev(values) / math.sqrt(len(values))


def _marked(table: list[Row]) -> list[Row]:
    """The table with the best fresh value of each criterion marked; equal ones are all marked."""
    best: dict[str, float] = {}
    for criterion in CRITERIA:
        cells = [row.cells[criterion.key] for row in table]
        values = [cell.fresh for cell in cells if cell.fresh is not None and cell.competes]
        # Where several rows all have the same value, none is better.
        if len(set(values)) > 1 or len(values) == 1:
            best[criterion.key] = max(values) if criterion.higher else min(values)
    marked = []
    for row in table:
        cells_of_row = {
            key: replace(cell, best=cell.competes and cell.fresh == best.get(key)) for key, cell in row.cells.items()
        }
        marked.append(replace(row, cells=cells_of_row))
    return marked


def shown_criteria(table: Sequence[Row]) -> list[Criterion]:
    """The criteria that are columns of ``table``: those of which some row has a fresh number.

    Records of earlier versions have fewer of them. Where nothing was judged there are none; where everything failed, all are
    shown, with the reasons.
    """
    known = [c for c in CRITERIA if any(row.cells[c.key].fresh is not None for row in table)]
    if not known and not any(row.unjudged for row in table):
        return list(CRITERIA)
    return known


def unjudged(records: Sequence[Record]) -> str:
    """Why fresh draws are missing for all inputs; "" if some input has them.

    Args:
        records: one for each input.
    """
    reasons = [text(record, "reasons", "draws.fresh") for record in records]
    if not reasons or not all(reasons):
        return ""
    return reasons[0]


def best_single(table: Sequence[Row], criterion: Criterion) -> Row | None:
    """The method in ``table`` with the best fresh value of ``criterion``; None where no method has one."""
    known = [row for row in table if not row.derived and row.cells[criterion.key].fresh is not None]
    choose = max if criterion.higher else min
    return choose(known, key=lambda row: row.cells[criterion.key].fresh or 0.0, default=None)


def has_status(record: Record, words: str) -> bool:
    """Whether the status in ``record`` contains ``words``."""
    return words in str(part(record, "status"))
