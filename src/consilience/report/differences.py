"""The line of a table that says whether the consensus is better than the best single method, from records alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

Record = Mapping[str, Any]

FEWEST = 3
"""From so many inputs on a standard error over inputs is shown: that of two is off by a factor of two as often as not."""


def difference_lines(records: Sequence[Record], titles: Mapping[str, tuple[str, bool]]) -> list[str]:
    """One line for each criterion that the objective is about.

    Args:
        records: one for each input.
        titles: criterion → how it is called, and whether higher is better.
    """
    lines = []
    for criterion in records[0].get("differences") or {}:
        each = [(record.get("differences") or {}).get(criterion) or {} for record in records]
        known = [one for one in each if one.get("value") is not None]
        title, higher = titles.get(criterion, (criterion, False))
        if not known:
            text = "no input has both"
        elif len(records) == 1:
            text = _one(known[0])
        else:
            text = _several(known, higher)
        lines.append(f"consensus − best single method of the fitting draws, {title}: {text}")
    return lines


def _one(difference: Mapping[str, Any]) -> str:
    """One input: the difference, its standard error and interval over the draws, and the method."""
    text = f"{difference['value']:+.3g}"
    if difference.get("stderr"):
        text += f" ± {difference['stderr']:.2g} [{difference['low']:.3g}, {difference['high']:.3g}]"
    return f"{text} over {difference['n']} fresh draws, beside {difference['best_single']}"


def _several(differences: Sequence[Mapping[str, Any]], higher: bool) -> str:
    """Several inputs: the mean difference with its standard error over inputs, and how many are decided."""
    values = [difference["value"] for difference in differences]
    n = len(values)
    text = f"{fmean(values):+.3g}"
    if n >= FEWEST:
        text += f" ± {stdev(values) / math.sqrt(n):.2g}"
    text += f" over n = {n} inputs"
    decided = [difference for difference in differences if difference.get("low") is not None]
    if not decided:
        return text
    above = sum(difference["low"] > 0 for difference in decided)
    below = sum(difference["high"] < 0 for difference in decided)
    better, worse = (above, below) if higher else (below, above)
    return f"{text}; at 95 % better for {better}, worse for {worse} of {len(decided)}"
