"""The table as plain text, about 120 characters wide at most, with notes of one line each below it."""

from __future__ import annotations

from collections.abc import Sequence

from .criteria import UNEXPLAINED, UNUSABLE, Criterion
from .differences import FEWEST, differences
from .entry import label
from .letters import shortened
from .numbers import MISSING, Digits, short
from .reading import Record, mapping, number, part, text
from .sentences import draws, incomplete, nearly_complete, promise, shares, warnings
from .table import Cell, Row, average, average_cell, has_status, shown_criteria, unjudged
from .verdict import verdict

WIDTH = 120
"""The width of the table, in characters."""

NAME = 14
"""The least letters that a row's name is shortened to; the table gets wider if necessary."""


def text_table(records: Sequence[Record]) -> str:
    """Plain monospaced text: the weight and fresh ± standard error of every row, the best marked with *, then notes.

    Args:
        records: one for each input; of several, means are shown.
    """
    if not records:
        return "no inputs"
    table = average(records)
    if unjudged(records):
        # Without fresh draws the derived rows have neither a weight nor a number.
        table = [row for row in table if not row.derived]
    columns = [_weights(table)]
    columns += [_column(criterion, [row.cells[criterion.key] for row in table]) for criterion in shown_criteria(table)]
    taken = sum(1 + max(map(len, column)) for column in columns)
    columns.insert(0, _names(table, max(NAME, WIDTH - taken)))
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for first, *rest in zip(*columns, strict=True):
        padded = [first.ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append(" ".join(padded).rstrip())
    rule = "-" * (sum(widths) + len(widths) - 1)
    head = lines[:2]
    body = lines[2:]
    methods = sum(not row.derived for row in table)
    lines = [*head, rule, *body[:methods], rule, *body[methods:]]
    return "\n".join([_heading(records), *verdict(records), "", *lines, "", *_notes(records, table)])


# -- columns: each is a list of texts, two lines of head and one for each row ------------------------------------------


def _names(table: Sequence[Row], longest: int) -> list[str]:
    """The rows' names, shortened to ``longest`` letters."""
    names = [" ".join(row.name.split()) for row in table]
    column = ["", ""]
    for name in names:
        # The ellipsis takes the place of one letter.
        column.append(shortened(name, longest - 1) if len(name) > longest else name)
    return column


def _weights(table: Sequence[Row]) -> list[str]:
    """The weights with their standard errors."""
    values = []
    for row in table:
        if row.derived:
            values.append(("", ""))
        elif row.failed:
            values.append(("failed", ""))
        else:
            weight = MISSING if row.weight is None else f"{row.weight:.2f}"
            values.append((weight, row.spread))
    # Each text is as wide as the longest error, so that the weights align.
    widest = max(len(spread) for _, spread in values)
    return ["", "weight" + " " * widest, *(weight + spread.ljust(widest) for weight, spread in values)]


def _column(criterion: Criterion, cells: Sequence[Cell]) -> list[str]:
    """One criterion's fresh values with their standard errors; the best is marked."""
    # Trivial values, such as an error of 1e-9, would add decimals to all others.
    measured = [cell for cell in cells if not cell.trivial]
    digits = Digits([cell.fresh for cell in measured], [cell.stderr for cell in measured])
    texts = [(digits(cell.fresh), _error(cell, digits), "*" if cell.best else " ") for cell in cells]
    widths = [max(len(each[i]) for each in texts) for i in range(2)]
    body = [f"{value.rjust(widths[0])} {error.ljust(widths[1])} {mark}" for value, error, mark in texts]
    # The last word of a title stands on the second line, with the direction.
    first, _, last = criterion.title.rpartition(" ")
    return [first, f"{last} {criterion.arrow}", *body]


def _error(cell: Cell, digits: Digits) -> str:
    """What stands behind a fresh value: its standard error, or why it has none."""
    if cell.trivial:
        return "trivial"
    if cell.exact:
        return "exact"
    return f"± {digits(cell.stderr)}" if cell.stderr else ""


# -- words -------------------------------------------------------------------------------------------------------------


def _heading(records: Sequence[Record]) -> str:
    """What is explained, by which objective, of which model."""
    first = records[0]
    if len(records) == 1:
        name = text(first, "input", "name") or "input"
        what = f"{name}: {text(first, 'target_label') or label(first, 'target')}"
    else:
        what = f"mean over {len(records)} inputs"
    parts = [what, f"objective {text(first, 'objective')}", text(first, "model")]
    return ", ".join(piece for piece in parts if piece)


def _notes(records: Sequence[Record], table: Sequence[Row]) -> list[str]:
    """The lines below the table: how to read it, warnings, and what is missing, in this order."""
    nothing = unjudged(records)
    notes = [nothing or _legend(records)]
    notes += [
        f"consensus − best single method of the fitting draws, {each.title}: {each.text}"
        for each in differences(records)
    ]
    notes += _solved(records)
    notes += [line for line in (promise(records[0]), setting(records[0]), _resolved(records)) if line]
    notes += [f"warning: {warning}" for warning in warnings(records)]
    notes += [*incomplete(records), *nearly_complete(records)]
    notes += _absent(records, table)
    return notes


def _legend(records: Sequence[Record]) -> str:
    """What the numbers, arrows and marks mean."""
    arrows = "↓ lower is better, ↑ higher; * best on fresh draws"
    if len(records) == 1:
        known = "fresh ± standard error over its fresh draws"
    elif len(records) < FEWEST:
        known = f"fresh, means over n = {len(records)} inputs, too few for a standard error"
    else:
        known = f"fresh ± standard error over {len(records)} inputs"
    return f"{known}; {arrows}"


def _solved(records: Sequence[Record]) -> list[str]:
    """How the weights were solved for, and for which inputs that did not succeed."""
    notes = []
    # The gap stays in records and on pages, beside the value that it is the error of: alone it cannot be judged.
    if len(records) == 1 and text(records[0], "status"):
        notes.append(f"solved: {text(records[0], 'status')}")
    refused = [text(record, "input", "name") for record in records if part(record, "status") == UNUSABLE]
    if refused:
        notes.append(f"no method gave a usable map (finite, not zero) for {', '.join(refused)}")
    unexplained = [text(record, "input", "name") for record in records if has_status(record, UNEXPLAINED)]
    if unexplained and len(records) > 1:
        notes.append(f"{UNEXPLAINED} of {', '.join(unexplained)}: their weights and correlations are noise")
    return notes


def setting(record: Record) -> str:
    """The draws of ``record`` and their units, without which its numbers cannot be read, on one line; "" if not known."""
    unit = text(record, "settings", "mask_unit")
    fit = draws(record, "fit")
    fresh = draws(record, "fresh")
    is_judged = not unjudged([record])
    if not unit or "?" in fit or (is_judged and "?" in fresh):
        return ""
    if not is_judged:
        return f"draws: {fit[0]} neighbours and {fit[1]} masks fit, none judge"
    all_there_are = ", which are all" if "exact" in mapping(record, "draws", "masks") else ""
    settings = mapping(record, "settings")
    return (
        f"draws: {fit[0]} neighbours and {fit[1]} masks fit, {fresh[0]} and {fresh[1]} fresh{all_there_are}; "
        f"neighbours: {settings.get('sensitivity')} in {settings.get('noise_unit', 'input units')}; "
        f"masks: {shares(settings.get('mask_share'))} of the features ({unit}), "
        f"baseline {settings.get('mask_baseline')}"
    )


def _resolved(records: Sequence[Record]) -> str:
    """The sensitivity of weights that are solved anew at every neighbour."""
    place = ("measures", "relative_sensitivity_resolved")
    values = [Cell(None, number(record, *place, "value"), None) for record in records]
    cell = average_cell(values, len(records))
    if cell.fresh is None:
        return ""
    neighbours = number(records[0], *place, "n") or 0
    stderr = cell.stderr
    if len(records) == 1 and neighbours >= FEWEST:
        stderr = number(records[0], *place, "stderr")
    error = "" if stderr is None else f" ± {short(stderr)}"
    return (
        "consensus with the weights solved anew at every neighbour: relative sensitivity "
        f"{short(cell.fresh)}{error}, {neighbours:.0f} neighbours each"
    )


def _absent(records: Sequence[Record], table: Sequence[Row]) -> list[str]:
    """A line for each method that failed, and for each row that is a mean over fewer inputs."""
    notes = []
    criteria = shown_criteria(table)
    for row in table:
        if row.failed:
            notes.append(f"{row.name} failed: {row.failed}")
            continue
        few: dict[str, int] = {}
        for criterion in criteria:
            cell = row.cells[criterion.key]
            if 0 < cell.n < cell.of:
                few[criterion.title] = cell.n
        if few:
            everywhere = len(few) == len(criteria) and len(set(few.values())) == 1
            where = "" if everywhere else f" ({', '.join(few)})"
            notes.append(f"{row.name}: averaged over {min(few.values())} of {len(records)} inputs{where}")
    return notes
