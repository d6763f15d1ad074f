"""Numbers as text: columns whose points align, numbers that stand alone, and values with their errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

MISSING = "–"
ROUNDING = 1e-12
"""Below this a number is zero but for rounding."""


class Digits:
    """Writes one column's numbers with the same number of decimals, so that points align.

    Three digits of the median value, but no more than two of the median error: further ones say nothing.

    Args:
        values: of the column; None where one is missing.
        errors: their standard errors, likewise.
    """

    def __init__(self, values: Sequence[float | None], errors: Sequence[float | None] = ()):
        first = _first_digit(values)
        self.decimals = max(0, 2 - first)
        if any(errors):
            self.decimals = min(self.decimals, max(1, 1 - _first_digit(errors)))
        self.powers = self.decimals > 5 or first > 6

    def __call__(self, value: float | None) -> str:
        if value is None:
            return MISSING
        if abs(value) < ROUNDING:
            return "0"
        if self.powers:
            return f"{value:.1e}"
        text = f"{value:.{self.decimals}f}"
        # A small number is not written as zero.
        return text if float(text) else f"{value:.0e}"


def _first_digit(values: Sequence[float | None]) -> int:
    """The place of the median size's first digit: 0 for 1 to 9, −1 for .1 to .9."""
    sizes = [abs(value) for value in values if value]
    return math.floor(math.log10(median(sizes))) if sizes else 0


def short(value: float | None) -> str:
    """Three digits, for a number that stands alone."""
    if value is None:
        return MISSING
    if abs(value) < ROUNDING:
        return "0"
    plain = 1e-3 <= abs(value) < 1e4
    return f"{value:.3g}" if plain else f"{value:.1e}"


def with_error(value: float | None, stderr: float | None) -> str:
    """ "0.123 ± 0.012": as many digits as the error's first two."""
    if value is None:
        return MISSING
    if not stderr:
        return short(value)
    if abs(value) >= 1e5 or stderr < 1e-4:
        return f"{value:.1e} ± {stderr:.0e}"
    decimals = min(max(1 - math.floor(math.log10(stderr)), 0), 4)
    return f"{value:.{decimals}f} ± {stderr:.{decimals}f}"


def minus(text: str) -> str:
    """With the sign for minus in place of the hyphen, for pages and pictures; the hyphen of a power stays."""
    return text.replace("-", "−").replace("e−", "e-")
