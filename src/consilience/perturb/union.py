"""The coalitions of several designs, each once."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..statistics.keys import Key
from .coalition_lists import first_places
from .coalitions import Design

TABLE = 2**26
"""Entries of the designs' lists, coalitions times features, up to which repeats are looked for."""


class Union:
    """The coalitions of some designs in one list.

    Repeats are left out, but for lists of more than :data:`TABLE` entries (every pixel of a photograph alone), which are one
    after another and made as they are needed.

    Args:
        designs: the lists.
        key: of their draws.
        features: A.
        rows: of the baseline's data set; 1 where there is one baseline.

    Attributes:
        places: for each design (n,) int64, where its coalitions are in this list.
    """

    def __init__(self, designs: tuple[Design, ...], key: Key, features: int, rows: int):
        self.designs = designs
        self.key = key
        self.features = features
        self.rows = rows
        self.counts = [design.count(features, rows) for design in designs]
        self.size = sum(self.counts)
        numbers = torch.arange(self.size)
        self.tables: tuple[Tensor, Tensor] | None = None
        if self.size * features <= TABLE:
            gone, draws = self._listed(numbers)
            # Draws that differ by a multiple of the baseline's rows are the same row; where nothing is taken away, any are.
            row = torch.where(gone.any(1), draws % rows, 0)
            first, numbers = first_places(gone, row)
            self.tables = gone[first], draws[first]
            self.size = len(first)
        self.places = numbers.split(self.counts)

    def __len__(self) -> int:
        return self.size

    def part(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """(n, A) bool, the features that the coalitions ``numbers`` (n,) lack, and (n,), the draws of their baselines."""
        if self.tables is None:
            return self._listed(numbers)
        gone, draws = self.tables
        return gone[numbers], draws[numbers]

    def _listed(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`part`, of the designs' lists one after another, for ascending numbers."""
        gone, draws = [], []
        start = 0
        for design, count in zip(self.designs, self.counts, strict=True):
            own = numbers[(numbers >= start) & (numbers < start + count)] - start
            gone.append(design.gone(self.key, self.features, self.rows, own))
            draws.append(design.draws(self.features, self.rows, own))
            start += count
        return torch.cat(gone), torch.cat(draws)


@lru_cache(maxsize=16)
def union(designs: tuple[Design, ...], key: Key, features: int, rows: int) -> Union:
    """The :class:`Union`, which is kept: neighbours and batches have the same. Arguments as there."""
    return Union(designs, key, features, rows)
