"""The table of an evaluation: means over inputs with errors and numbers of inputs, and why numbers are missing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..statistics.paired import mean_interval

Summary = Mapping[str, float | int]
"""mean, stderr, low, high and n of one row under one measure."""

FEWEST = 3
"""The fewest numbers for which a standard error is shown. That of two is often wrong by a factor of two."""

ARROWS = {"lower": " ↓", "higher": " ↑"}


def summarised(numbers: np.ndarray) -> dict[str, float | int]:
    """ "mean", "stderr", the 95 % interval of the mean, "low" and "high", and "n", of the ``numbers`` (n,) that are finite."""
    good = numbers[np.isfinite(numbers)]
    n = len(good)
    mean = math.nan
    stderr = math.nan
    if n:
        mean = float(good.mean())
    if n > 1:
        stderr = float(good.std(ddof=1) / math.sqrt(n))
    # NaN where all numbers are the same.
    low, high = mean_interval(good)
    return {"mean": mean, "stderr": stderr, "low": float(low), "high": float(high), "n": n}


def summary_table(
    rows: Sequence[str], summary: Mapping[str, Mapping[str, Summary]], better: Mapping[str, str], inputs: int
) -> str:
    """Rows × measures as aligned text, the best row of each measure marked.

    Args:
        rows: their names, in order.
        summary: measure → row → :func:`summarised`.
        better: measure → "higher", "lower" or "".
        inputs: how many were judged.
    """
    columns = [_column(rows, summary[measure], measure, better.get(measure, "")) for measure in summary]
    counts = ["n", *(_counts([summary[measure][row]["n"] for measure in summary]) for row in rows)]
    names = ["", *rows]
    width = max(map(len, names))
    lines = []
    for at, name in enumerate(names):
        cells = [counts[at].rjust(max(map(len, counts)))]
        cells += [column[at].rjust(max(map(len, column))) for column in columns]
        lines.append("  ".join([name.ljust(width), *cells]))
    lines.append(
        f"n = {inputs}; mean ± standard error over inputs (none for n < {FEWEST}, or where all are the same); "
        "(n) where numbers are missing; * the best"
    )
    return "\n".join(lines)


SHOWN = 4
"""The most names in a list; "…" stands for others."""


def missing_lines(reasons: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Why numbers are missing, one line for each reason: how many, of which measures and rows.

    Args:
        reasons: measure → "input row" → why its number is missing; under "", why the whole measure is.
    """
    counts: dict[str, int] = defaultdict(int)
    # Dictionaries as sets that keep the order in which names are added.
    measures: dict[str, dict[str, None]] = defaultdict(dict)
    rows: dict[str, dict[str, None]] = defaultdict(dict)
    lines = []
    for measure, of_measure in reasons.items():
        for place, why in of_measure.items():
            if not place:
                lines.append(f"{measure}: {why}")
                continue
            counts[why] += 1
            measures[why][measure] = None
            rows[why][place.partition(" ")[2]] = None
    for why, count in counts.items():
        numbers = "1 number" if count == 1 else f"{count} numbers"
        lines.append(f"{numbers} missing ({_listed(measures[why])} of {_listed(rows[why])}): {why}")
    return lines


def _listed(names: Iterable[str]) -> str:
    """The first names, separated by commas."""
    every = list(names)
    text = ", ".join(every[:SHOWN])
    if len(every) > SHOWN:
        text += ", …"
    return text


def _column(rows: Sequence[str], summary: Mapping[str, Summary], measure: str, better: str) -> list[str]:
    """The head and one cell for each row."""
    most = max(int(summary[row]["n"]) for row in rows)
    best = _best(summary, better)
    cells = [measure + ARROWS.get(better, "")]
    for row in rows:
        cell = _cell(summary[row], most)
        cells.append(cell + " *" if row == best else cell)
    return cells


def _counts(counts: Sequence[float | int]) -> str:
    """How many inputs have a number: "8", or "6–8" where measures differ."""
    least = min(counts, default=0)
    most = max(counts, default=0)
    return str(most) if least == most else f"{least}–{most}"


def _best(summary: Mapping[str, Summary], better: str) -> str:
    """The row with the best mean; "" for a measure without a direction, and where fewer than two rows have a mean."""
    means = {name: row["mean"] for name, row in summary.items() if row["n"]}
    if not better or len(means) < 2:
        return ""
    choose = max if better == "higher" else min
    return choose(means, key=lambda name: means[name])


def _cell(row: Summary, most: int) -> str:
    """Mean ± standard error, and in brackets n, if another row of the measure has more numbers."""
    if not row["n"]:
        return "–"
    text = f"{row['mean']:.4g}"
    if row["n"] >= FEWEST and math.isfinite(row["low"]):
        text += f" ± {row['stderr']:.2g}"
    if row["n"] != most:
        text += f" ({row['n']})"
    return text
