"""The inputs of a result as a sequence for reports: each entry is made when it is used, so only one is in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np

from ..report.entry import Entry


class Entries(Sequence[Entry]):
    """Entries that are made anew each time they are indexed.

    Args:
        count: how many there are.
        make: place → the entry.
    """

    def __init__(self, count: int, make: Callable[[int], Entry]):
        self._count = count
        self._make = make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, i: int) -> Entry: ...

    @overload
    def __getitem__(self, i: slice) -> list[Entry]: ...

    def __getitem__(self, i: Any) -> Any:
        places = range(self._count)[i]
        if isinstance(places, range):  # of a slice
            return [self._make(at) for at in places]
        return self._make(places)


def picture_of(x: np.ndarray) -> np.ndarray | None:
    """An input ``x`` of image shape (1 or 3, H, W) as (H, W, 3) stretched to 0…1; None for other shapes."""
    if x.ndim != 3 or x.shape[0] not in (1, 3):
        return None
    lowest = x.min()
    span = x.max() - lowest
    if not span > 0:  # one colour, or NaN
        span = 1
    shown = ((x - lowest) / span).transpose(1, 2, 0)
    return np.broadcast_to(shown, (*x.shape[1:], 3)).copy()
