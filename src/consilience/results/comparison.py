"""Compares two rows of an evaluation input by input: mean difference, interval and exact test for each measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..errors import InputError
from ..statistics.paired import holm, least_p, mean_interval, sign_flip_test

CANNOT_DECIDE = "n is too small"
"""How the note of a comparison begins that could not be significant whatever its numbers were."""

MOST_DRAWS = 10_000_000
"""The most sign flips: more would take hours, and a p-value below 1e-7 changes no conclusion."""


@dataclass(frozen=True)
class Comparison:
    """Paired differences a − b of one measure over the inputs where both rows have a number.

    Attributes:
        measure: its name.
        difference: the mean of the differences; NaN without a pair.
        low, high: the interval that holds the mean with probability 1 − ``level``
            (:func:`~consilience.statistics.paired.mean_interval`); NaN where all differences are the same.
        p: two-sided p-value of the sign-flip test (:func:`~consilience.statistics.paired.sign_flip_test`); NaN without a pair.
        n: the number of pairs.
        better: "higher", "lower" or "": the measure's direction.
        p_holm: ``p`` corrected by Holm's method for all measures of the same call.
        missing: how many inputs have no number of one row or of both; ``Evaluation.reasons`` tells why.
        level: the probability of error asked for.
        note: why the pairs cannot show a difference at that level, else "".
    """

    measure: str
    difference: float
    low: float
    high: float
    p: float
    n: int
    better: str
    p_holm: float = np.nan
    missing: int = 0
    level: float = 0.05
    note: str = ""

    def __str__(self) -> str:
        if not self.n:
            return f"{self.measure}: no input has both numbers"
        parts = [f"{self.measure}: {self.difference:+.4g}{self._interval()}", f"p = {self.p:.3g}"]
        if self.p_holm != self.p:
            parts.append(f"p (Holm) = {self.p_holm:.3g}")
        parts.append(f"n = {self.n}")
        if self.missing:
            parts.append(f"{self.missing} without both numbers")
        text = ", ".join(parts)
        if self.better:
            text += f" ({self.better} is better)"
        if self.note:
            text += f"; {self.note}"
        return text

    def _interval(self) -> str:
        """The interval as text, or why there is none."""
        if np.isfinite(self.low):
            return f" [{self.low:.4g}, {self.high:.4g}]"
        if self.n == 1:
            return ""
        return f" (the same for all {self.n} inputs: no interval)"


class Comparisons(list[Comparison]):
    """The :class:`Comparison` of each measure of one call; prints one line for each."""

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    __repr__ = __str__


def compared(
    left: Mapping[str, np.ndarray],
    right: Mapping[str, np.ndarray],
    better: Mapping[str, str],
    draws: int,
    seed: int,
    level: float,
) -> Comparisons:
    """The comparison of rows a and b by every measure, corrected for the number of measures.

    Args:
        left: measure → (n,) numbers of row a, NaN where one is missing.
        right: measure → (n,) numbers of row b, on the same inputs.
        better: measure → "higher" or "lower".
        draws: how many sign flips are drawn where there are too many pairs to try all flips.
        seed: names these draws.
        level: the probability of error of intervals and tests.

    Raises:
        InputError: ``draws`` is not a number of draws, or ``level`` is not between 0 and 1.
    """
    if isinstance(draws, bool) or not isinstance(draws, int | np.integer) or not 1 <= draws <= MOST_DRAWS:
        raise InputError(f"draws: a number of sign flips, at least 1, at most {MOST_DRAWS:,}; got {draws!r}")
    if not isinstance(level, float | np.floating) or not 0 < level < 1:
        raise InputError(f"level: a probability of error between 0 and 1, such as 0.05, got {level!r}")
    comparisons = []
    least = []
    for measure, numbers in left.items():
        differences = numbers - right[measure]
        pairs = differences[np.isfinite(differences)]
        comparisons.append(_one(measure, pairs, len(differences), better.get(measure, ""), draws, seed, level))
        least.append(least_p(pairs, draws))
    corrected = holm(np.array([each.p for each in comparisons]))
    tests = sum(each.n > 0 for each in comparisons)
    # Holm rejects nothing unless the smallest p-value, times the number of tests, is at most the level. With n pairs no p-value
    # is below 2 / 2^n, so that few pairs may be unable to reach it: a reader must not take that for "no difference".
    together = min(least, default=1.0) * tests
    return Comparisons(
        replace(each, p_holm=float(p), note=_note(each, alone, together, tests))
        for each, p, alone in zip(comparisons, corrected, least, strict=True)
    )


def _one(measure: str, pairs: np.ndarray, inputs: int, better: str, draws: int, seed: int, level: float) -> Comparison:
    """One measure alone, before any correction.

    Args:
        measure: its name.
        pairs: (n,), the differences that are numbers.
        inputs: how many inputs there are.
        better: "higher", "lower" or "".
        draws, seed, level: as in :func:`compared`.
    """
    n = len(pairs)
    if not n:
        return Comparison(measure, np.nan, np.nan, np.nan, np.nan, 0, better, missing=inputs, level=level)
    low, high = mean_interval(pairs, level)
    return Comparison(
        measure,
        difference=float(pairs.mean()),
        low=float(low),
        high=float(high),
        p=sign_flip_test(pairs, draws, seed),
        n=n,
        better=better,
        missing=inputs - n,
        level=level,
    )


def _note(comparison: Comparison, alone: float, together: float, tests: int) -> str:
    """In words, that so few pairs could not be significant; "" where they could.

    Args:
        comparison: of one measure.
        alone: the least p that so many differences can give.
        together: the least p of any measure, times the number of ``tests``.
    """
    level = comparison.level
    # Without a pair, or where all differences are zero, there is nothing to decide.
    if not comparison.n or (np.isnan(comparison.low) and not comparison.difference):
        return ""
    if alone > level:
        return f"{CANNOT_DECIDE} for any test at {level:g}: the least possible p is {alone:.2g}"
    if together > level:
        return f"{CANNOT_DECIDE} for {tests} tests at {level:g} together: the least possible p (Holm) is {together:.2g}"
    return ""
