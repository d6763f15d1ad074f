"""The setting ``k`` of measures that look at the most important features only."""

from __future__ import annotations

from typing import Annotated

from ..errors import InputError


def check_number_or_share(k: int | float) -> None:
    """Refuse a fraction above 1: a ``k`` of at least 1 is a number of features, below 1 a share of them.

    Raises:
        InputError: ``k`` is such a fraction.
    """
    if k >= 1 and int(k) != k:
        raise InputError(f"a whole number, or a share above 0 and below 1; got {k!r}")


NumberOrShare = Annotated[int | float, check_number_or_share]
"""A number of features, or below 1 a share of those that the input has."""
