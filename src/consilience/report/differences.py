"""Words for recorded differences between the consensus and the best single method.

``explain/differences.py`` measures them on fresh draws; here they are read from records and written as sentences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from .criteria import CRITERIA, Criterion
from .reading import mapping, number, text

FEWEST = 3
"""The fewest inputs for which a standard error over inputs is shown. That of two is often wrong by a factor of two."""

ROUNDING = 1e-9
"""A smaller difference of two criteria is zero up to rounding."""


@dataclass(frozen=True)
class Difference:
    """Consensus − best single method by one criterion.

    Attributes:
        title: the criterion's name for readers.
        arrow: "↑" where higher is better, else "↓".
        text: the difference, its error and what it was measured on, in words and numbers.
        verdict: "better", "worse", "undecided" or "equal" for one input with an interval; else "".
    """

    title: str
    arrow: str
    text: str
    verdict: str = ""


def differences(records: Sequence[Any]) -> list[Difference]:
    """One for each criterion that the first record has a difference of.

    Args:
        records: one for each input.
    """
    by_key = {criterion.key: criterion for criterion in CRITERIA}
    results = []
    for key in mapping(records[0], "differences"):
        # A record of another version may have a criterion that this one does not know.
        criterion = by_key.get(key, Criterion(str(key), str(key), higher=False))
        each = [mapping(record, "differences", key) for record in records]
        known = [one for one in each if number(one, "value") is not None]
        verdict = ""
        if not known:
            words = "no input has a value of both"
        elif len(records) == 1:
            words = _of_one(known[0])
            verdict = side_of_zero(known[0], criterion.higher)
        else:
            words = _of_several(known, criterion.higher)
        results.append(Difference(criterion.title, criterion.arrow, words, verdict))
    return results


def _of_one(difference: Any) -> str:
    """One input: the difference, its standard error and interval over the draws, and the method."""
    words = _signed(number(difference, "value") or 0.0)
    stderr, low, high = (number(difference, name) for name in ("stderr", "low", "high"))
    if stderr and _rounded(stderr):
        words += f" ± {stderr:.2g}"
        if low is not None and high is not None:
            words += f" [{low:.3g}, {high:.3g}]"
    words += f" ({text(difference, 'n')} fresh draws), compared with {text(difference, 'best_single')}"
    among = text(difference, "among")
    return f"{words}, the best {among}" if among else words


def _signed(value: float) -> str:
    """Three digits with the sign."""
    return f"{value:+.3g}" if _rounded(value) else "0"


def _rounded(value: float) -> float:
    """Zero where the value is zero up to rounding."""
    return 0.0 if abs(value) < ROUNDING else value


def side_of_zero(difference: Any, higher: bool) -> str:
    """On which side of zero the interval lies: "better", "worse", "equal" or "undecided"; "" where there is none.

    Args:
        difference: the consensus − another row, with "low" and "high".
        higher: whether higher values are better.
    """
    low = number(difference, "low")
    high = number(difference, "high")
    if low is None or high is None:
        return ""
    low = _rounded(low)
    high = _rounded(high)
    if low == 0 == high:
        return "equal"
    if low <= 0 <= high:
        return "undecided"
    return "better" if (low > 0) == higher else "worse"


def _of_several(known: Sequence[Any], higher: bool) -> str:
    """Several inputs: the mean difference with its standard error over inputs, and how many are decided."""
    values = [number(difference, "value") or 0.0 for difference in known]
    count = len(values)
    words = _signed(fmean(values))
    if count >= FEWEST:
        words += f" ± {stdev(values) / math.sqrt(count):.2g}"
    words += f" over n = {count} inputs"
    verdicts = [verdict for difference in known if (verdict := side_of_zero(difference, higher))]
    if verdicts:
        better = verdicts.count("better")
        worse = verdicts.count("worse")
        words += f"; at 95 % better for {better}, worse for {worse} of {len(verdicts)}"
    among = text(known[0], "among")
    return f"{words}; compared with the best {among}" if among else words
