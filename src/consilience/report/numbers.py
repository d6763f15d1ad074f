"""Numbers as text: columns with aligned decimal points, single numbers, and values with their errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

MISSING = "–"
"""What stands in place of a missing number."""

ROUNDING = 1e-12
"""A smaller number is zero up to rounding."""


class Digits:
    """Writes one column's numbers with the same number of decimals, so that their decimal points align.

    Three digits of the median value, but at most two of the median error, since further digits are noise.

    Args:
        values: of the column; None where one is missing.
        errors: their standard errors, likewise.
    """

    def __init__(self, values: Sequence[float | None], errors: Sequence[float | None] = ()):
        first = _first_digit(values)
        self.decimals = max(0, 2 - first)
        if any(errors):
            self.decimals = min(self.decimals, max(1, 1 - _first_digit(errors)))
        # Very small and very large numbers are written as powers of ten.
        self.powers = self.decimals > 5 or first > 6

    def __call__(self, value: float | None) -> str:
        if value is None:
            return MISSING
        if abs(value) < ROUNDING:
            return "0"
        if self.powers:
            return f"{value:.1e}"
        text = f"{value:.{self.decimals}f}"
        if float(text) == 0:
            # A number that is small beside the others of its column must not look like zero.
            return f"{value:.0e}"
        return text


def _first_digit(values: Sequence[float | None]) -> int:
    """The place of the median size's first digit: 0 for 1 to 9, −1 for .1 to .9."""
    sizes = [abs(value) for value in values if value]
    return math.floor(math.log10(median(sizes))) if sizes else 0


def short(value: float | None) -> str:
    """``value`` with three digits, for a number that stands alone; None is :data:`MISSING`."""
    if value is None:
        return MISSING
    if abs(value) < ROUNDING:
        return "0"
    plain = 1e-3 <= abs(value) < 1e4
    return f"{value:.3g}" if plain else f"{value:.1e}"


def with_error(value: float | None, stderr: float | None) -> str:
    """``value`` ± ``stderr``, such as "0.123 ± 0.012": decimals up to the second digit of the error."""
    if value is None:
        return MISSING
    if not stderr:
        return short(value)
    if abs(value) >= 1e5 or stderr < 1e-4:
        return f"{value:.1e} ± {stderr:.0e}"
    decimals = min(max(1 - math.floor(math.log10(stderr)), 0), 4)
    return f"{value:.{decimals}f} ± {stderr:.{decimals}f}"


def minus(text: str) -> str:
    """``text`` with the sign for minus in place of hyphens, for pages and pictures; the hyphen of a power (1e-5) stays."""
    return text.replace("-", "−").replace("e−", "e-")
