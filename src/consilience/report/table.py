"""The table of a report: methods, mean, var, uniform and consensus × criteria, for one input or averaged over several."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median, stdev
from typing import Any

from .differences import FEWEST, difference_lines
from .entry import label

Record = dict[str, Any]


@dataclass(frozen=True)
class Criterion:
    """How one criterion is named, and which direction is better."""

    key: str
    title: str
    higher: bool

    @property
    def direction(self) -> str:
        return "higher is better" if self.higher else "lower is better"


CRITERIA = (
    Criterion("noise_over_signal", "noise over signal", False),
    Criterion("contrast", "contrast", True),
    Criterion("relative_sensitivity", "relative sensitivity", False),
    Criterion("faithfulness_correlation", "correlation", True),
    Criterion("infidelity", "infidelity", False),
)

MASKED = ("faithfulness_correlation", "infidelity")
"""The criteria that rest on masks, which are sometimes few enough to be all."""


@dataclass(frozen=True)
class Cell:
    """One criterion of one row: on the fitting draws, on fresh draws, the standard error, and how many of the inputs count.

    For one input the standard error is over its fresh draws; for several, it is over the inputs.
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
    """Whether the draws are all that there are, so that there is nothing to be unsure of."""


@dataclass(frozen=True)
class Row:
    """One map: a method (``derived`` False), or one made from all of them."""

    name: str
    weight: float | None
    cells: dict[str, Cell]
    derived: bool = False
    failed: str = ""
    stderr: float | None = None
    """Of the weight, for one input."""

    @property
    def spread(self) -> str:
        """The weight's standard error, where there is one."""
        return f" ± {self.stderr:.2f}" if self.stderr else ""


def rows(record: Record) -> list[Row]:
    """One input's table: every method in order, then the maps made from all of them, the consensus last."""
    methods, failed = list(record["methods"]), record.get("failed") or {}
    weights = record.get("weights") or [None] * len(methods)
    errors = dict(zip(methods, record.get("weights_stderr") or [None] * len(methods), strict=True))
    found = []
    derived = dict.fromkeys(name for rows in (record.get("criteria") or {}).values() for name in rows)
    for name, weight in [
        *zip(methods, weights, strict=True),
        *((name, None) for name in derived if name not in methods),
    ]:
        reason = str(failed.get(name, ""))
        found.append(Row(name, weight, _cells(record, name), name not in methods, reason, errors.get(name)))
    return _mark(found)


def average(records: Sequence[Record]) -> list[Row]:
    """The table over several inputs: means over those with a number, with the standard error over the inputs."""
    if len(records) == 1:
        return rows(records[0])
    tables = [{row.name: row for row in rows(record)} for record in records]
    methods = dict.fromkeys(name for table in tables for name, row in table.items() if not row.derived)
    derived = dict.fromkeys(name for table in tables for name, row in table.items() if row.derived)
    names = [*methods, *(name for name in derived if name not in methods)]
    found = []
    for name in names:
        mine = [table[name] for table in tables if name in table]
        cells = {c.key: _average([row.cells[c.key] for row in mine], len(records)) for c in CRITERIA}
        weights = [row.weight for row in mine if row.weight is not None]
        failed = next((row.failed for row in mine if row.failed), "")
        found.append(Row(name, fmean(weights) if weights else None, cells, name not in methods, failed))
    return _mark(found)


def _cells(record: Record, name: str) -> dict[str, Cell]:
    cells = {}
    for c in CRITERIA:
        numbers = (record.get("criteria") or {}).get(c.key, {}).get(name) or {}
        fit, fresh, stderr = (_number(numbers.get(part)) for part in ("fit", "fresh", "stderr"))
        reason = why(record, f"criteria.{c.key}.{name}", name) if None in (fit, fresh, stderr) else ""
        exact = c.key in MASKED and stderr is not None and "exact" in ((record.get("draws") or {}).get("masks") or {})
        cells[c.key] = Cell(fit, fresh, stderr, trivial=_trivial(c, name), reason=reason, exact=exact)
    return cells


def _trivial(criterion: Criterion, name: str) -> bool:
    return name == "uniform" and criterion.key.endswith("sensitivity")


def why(record: Record, where: str, name: str = "") -> str:
    """The reason a number is missing: that of the place or of one of its parts, else that of the failed method."""
    reasons = record.get("reasons") or {}
    for key in (where, *(f"{where}.{part}" for part in ("fresh", "fit", "stderr")), f"methods.{name}"):
        if key in reasons:
            return str(reasons[key])
    return str((record.get("failed") or {}).get(name, "no reason was recorded"))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _average(cells: list[Cell], of: int) -> Cell:
    fresh = [cell.fresh for cell in cells if cell.fresh is not None]
    fit = [cell.fit for cell in cells if cell.fit is not None]
    reason = next((cell.reason for cell in cells if cell.reason), "")
    if not reason:
        reason = "not in every input's table" if len(fresh) < of else f"no standard error of fewer than {FEWEST} inputs"
    stderr = stdev(fresh) / math.sqrt(len(fresh)) if len(fresh) >= FEWEST else None
    mean = fmean(fresh) if fresh else None
    complete = len(fresh) == of and stderr is not None
    trivial = any(cell.trivial for cell in cells)
    return Cell(fmean(fit) if fit else None, mean, stderr, len(fresh), of, trivial, reason="" if complete else reason)


def _mark(table: list[Row]) -> list[Row]:
    """Mark the best fresh value of each criterion among rows that cover every input; trivial ones do not compete."""
    best: dict[str, float] = {}
    for c in CRITERIA:
        cells = [row.cells[c.key] for row in table]
        values = [cell.fresh for cell in cells if cell.fresh is not None and not cell.trivial and cell.n == cell.of]
        if values:
            best[c.key] = max(values) if c.higher else min(values)

    def marked(key: str, cell: Cell) -> Cell:
        wins = key in best and cell.fresh == best[key] and not cell.trivial and cell.n == cell.of
        return replace(cell, best=wins)

    return [replace(row, cells={key: marked(key, cell) for key, cell in row.cells.items()}) for row in table]


# -- numbers ---------------------------------------------------------------------------------------------------------


class Digits:
    """Writes one column's numbers: as many decimals as its median needs for three digits, so that points align."""

    def __init__(self, values: Sequence[float | None], digits: int = 3):
        sizes = [abs(value) for value in values if value]
        middle = math.floor(math.log10(median(sizes))) if sizes else 0
        self.decimals = max(0, digits - 1 - middle)
        self.powers = self.decimals > 5 or middle > 6

    def __call__(self, value: float | None, missing: str = "–") -> str:
        if value is None:
            return missing
        if abs(value) < 1e-12:  # rounding
            return "0"
        text = f"{value:.1e}" if self.powers else f"{value:.{self.decimals}f}"
        return text if self.powers or float(text) else f"{value:.0e}"


def short(value: float | None) -> str:
    """Three digits, for a number that stands alone."""
    if value is None:
        return "–"
    return f"{value:.3g}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"


# -- text ------------------------------------------------------------------------------------------------------------


def text_table(records: Sequence[Record]) -> str:
    """Plain monospaced text: fresh ± standard error [fit] of every row, the best marked with *, weights first."""
    if not records:
        return "no inputs"
    table = average(records)
    columns: list[list[str]] = [["", "", *(row.name if len(row.name) <= 32 else row.name[:31] + "…" for row in table)]]
    weigh = Digits([1.0])
    weights = [("–" if row.failed else weigh(row.weight) + row.spread) if not row.derived else "" for row in table]
    columns.append(["weight", "", *weights])
    columns += [_column(c, [row.cells[c.key] for row in table]) for c in CRITERIA]
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for cells in zip(*columns, strict=True):
        first, *rest = cells
        padded = [first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(padded).rstrip())
    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    many = sum(not row.derived for row in table)
    lines = [*lines[:2], rule, *lines[2 : 2 + many], rule, *lines[2 + many :]]
    return "\n".join([_heading(records), "", *lines, "", *_notes(records, table)])


def _column(criterion: Criterion, cells: list[Cell]) -> list[str]:
    """Title, direction, and one text per cell whose parts align."""
    digits = Digits([cell.fresh for cell in cells if not cell.trivial])
    parts = [
        (
            digits(cell.fresh),
            _error(cell, digits),
            "[trivial]" if cell.trivial else f"[{digits(cell.fit)}]" if cell.fit is not None else "",
            "*" if cell.best else " ",
        )
        for cell in cells
    ]
    widths = [max(len(part[i]) for part in parts) for i in range(3)]
    body = [" ".join([*(text.rjust(w) for text, w in zip(part, widths, strict=False)), part[3]]) for part in parts]
    return [criterion.title + "  ", criterion.direction + "  ", *body]


def _error(cell: Cell, digits: Digits) -> str:
    """How sure a fresh value is."""
    if cell.exact:
        return "exact"
    return f"± {digits(cell.stderr)}" if cell.stderr and not cell.trivial else ""


def _heading(records: Sequence[Record]) -> str:
    first = records[0]
    if len(records) == 1:
        name = (first.get("input") or {}).get("name") or "input"
        what = f"{name}: {first.get('target_label') or label(first, 'target')}"
    else:
        what = f"mean over {len(records)} inputs"
    return ", ".join(str(part) for part in (what, f"objective {first.get('objective')}", first.get("model")) if part)


PROMISES = {
    "opt": "promised on the fitting draws: correlation not below the best single method's",
    "robust": "promised on the fitting draws: relative sensitivity not above the best single method's",
    "faith": "promised on the fitting draws: correlation not below the best single method's",
}


UNEXPLAINED = "no method explains these masks"
"""Part of the status of an input whose masks no method is known to explain."""


def shares(value: Any) -> str:
    """The shares of the features that masks take away: one, or the smallest and the largest."""
    if isinstance(value, list | tuple):
        return f"{value[0]:.0%} to {value[-1]:.0%}"
    return f"{value:.0%}"


def _setting(record: Record) -> str:
    """The draws and units without which the numbers mean nothing, on one line."""
    draws, settings = record.get("draws") or {}, record.get("settings") or {}
    fit, fresh = draws.get("fit") or {}, draws.get("fresh") or {}
    parts = ("average_sensitivity", "infidelity")
    if not all(part in fit and part in fresh for part in parts) or "mask_unit" not in settings:
        return ""
    masks = {"fit": fit["infidelity"], "fresh": fresh["infidelity"], **(draws.get("masks") or {})}
    all_there_are = ", which are all" if "exact" in masks else ""
    return (
        f"draws: {fit['average_sensitivity']} neighbours and {masks['fit']} masks fit, "
        f"{fresh['average_sensitivity']} and {masks['fresh']} fresh{all_there_are}; "
        f"neighbours: {settings.get('sensitivity')} in {settings.get('noise_unit', 'input units')}; "
        f"masks: {shares(settings.get('mask_share', 0))} of the features ({settings['mask_unit']}), "
        f"baseline {settings.get('mask_baseline')}"
    )


def incomplete(records: Sequence[Record]) -> list[str]:
    """A line for each method that claims to add up to the score's change and misses it by more than a tenth somewhere."""
    worst: dict[str, float] = {}
    for record in records:
        for name, error in (record.get("completeness_error") or {}).items():
            worst[name] = max(worst.get(name, 0.0), error or 0.0)
    configured = (records[0].get("settings") or {}).get("explainers") or {}
    return [
        f"{name}: its map adds up to f(x) − f(baseline) within {error:.0%} only; "
        f"{_completing(str(configured.get(name, '')), error)}"
        for name, error in worst.items()
        if error > 0.1
    ]


def _completing(configured: str, error: float) -> str:
    """What brings a method nearer to adding up. ``configured``: the method with its settings, as ``repr`` shows it."""
    if abs(error - 1) < 1e-6:
        return (
            "it adds up to zero although the score changes, as where a model rounds or cuts its gradients, which more steps do "
            "not mend; use methods that need outputs only, e.g. feature_ablation"
        )
    for setting in ("n_steps", "n_samples", "permutations"):
        found = re.search(rf"^(\w+)\(.*?\b{setting}=(\d+)", configured)
        if found:
            return f"raise its {setting}, e.g. {found[1]}({setting}={4 * int(found[2])})"
    return "read its shares as relative"


def _input_name(record: Record) -> str:
    return str((record.get("input") or {}).get("name"))


def _notes(records: Sequence[Record], table: list[Row]) -> list[str]:
    if len(records) == 1:
        errors = "fresh ± standard error over its fresh draws [fit]"
    elif len(records) < FEWEST:
        errors = f"fresh [fit], means over n = {len(records)} inputs, too few for a standard error"
    else:
        errors = f"fresh ± standard error over {len(records)} inputs [fit]"
    notes = [f"{errors}; * best on fresh draws"]
    notes += [line for line in (_setting(records[0]), PROMISES.get(str(records[0].get("objective")), "")) if line]
    if len(records) == 1 and records[0].get("status"):
        gap = _number(records[0].get("gap"))
        notes.append(f"solved: {records[0]['status']}" + (f", gap {short(gap)}" if gap is not None else ""))
    refused = [_input_name(record) for record in records if record.get("status") == "no valid method"]
    if refused:
        notes.append(f"no method gave a usable map (finite, not zero) for {', '.join(refused)}")
    blind = [_input_name(record) for record in records if UNEXPLAINED in str(record.get("status"))]
    if blind and len(records) > 1:
        notes.append(f"{UNEXPLAINED} of {', '.join(blind)}: their weights and correlations are noise")
    notes += difference_lines(records, {c.key: (c.title, c.higher) for c in CRITERIA})
    notes += dict.fromkeys(f"warning: {warning}" for record in records for warning in record.get("warnings") or ())
    resolved = [(record.get("measures") or {}).get("relative_sensitivity_resolved") or {} for record in records]
    cell = _average([Cell(None, _number(r.get("value")), None) for r in resolved], len(records))
    if cell.fresh is not None:
        text = short(cell.fresh)
        neighbours = resolved[0].get("n") or 0
        error = cell.stderr
        if len(records) == 1 and neighbours >= FEWEST:
            error = _number(resolved[0].get("stderr"))
        if error is not None:
            text += f" ± {short(error)}"
        text += f", {neighbours} neighbours each"
        notes.append(f"consensus with the weights solved anew at every neighbour: relative sensitivity {text}")
    notes += incomplete(records)
    for row in table:
        if row.failed:
            notes.append(f"{row.name} failed: {row.failed}")
        else:
            few = {c.title: row.cells[c.key].n for c in CRITERIA if 0 < row.cells[c.key].n < row.cells[c.key].of}
            if few:
                where = "" if len(few) == len(CRITERIA) and len(set(few.values())) == 1 else f" ({', '.join(few)})"
                notes.append(f"{row.name}: averaged over {min(few.values())} of {len(records)} inputs{where}")
    return notes
