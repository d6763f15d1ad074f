"""Which coalitions a method wants: every feature alone, random halves, KernelSHAP's, those along random orders.

A design lists coalitions of "A features", whatever these are; each input puts its features in an order of its own. So a list
depends on nothing but (key, A, the design, the rows of the baseline), and methods with the same key share what is in several
lists: see :mod:`~consilience.perturb.coalition_lists`.

Where the baseline is a data set, a coalition is evaluated with one or several of its rows, and averaged.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..settings import Settings, setting
from ..statistics.keys import Key
from .coalition_lists import even_sizes, every, half_sizes, orders, paired
from .kernel_design import budgeted, counts

ALONE = 2**12
"""Evaluations of one input, up to which every feature alone (or every window) meets all rows of a data set."""

TOGETHER = 2**15
"""Evaluations of one input, up to which every coalition meets all rows of a data set."""

FEWEST = 4
"""Rows of a data set that a coalition meets, at least."""


def rows_each(rows: int, coalitions: int, limit: int) -> int:
    """R: with how many of the ``rows`` of a data set each coalition is evaluated.

    Args:
        rows: of the data set; 1 where there is one baseline.
        coalitions: how many there are.
        limit: about how many evaluations there may be in all.
    """
    return min(rows, max(FEWEST, limit // max(1, coalitions)))


@dataclass(frozen=True)
class Design(Settings):
    """Interface: a list of coalitions of A features. Number 0 takes nothing away."""

    def count(self, features: int, rows: int) -> int:
        """How many are listed.

        Args:
            features: A.
            rows: of the baseline's data set; 1 where there is one baseline.
        """
        raise NotImplementedError

    def gone(self, key: Key, features: int, rows: int, numbers: Tensor) -> Tensor:
        """(n, A) bool: the features that are taken away.

        Args:
            key: of the draws.
            features: A.
            rows: of the baseline's data set.
            numbers: (n,), which of the list.
        """
        raise NotImplementedError

    def draws(self, features: int, rows: int, numbers: Tensor) -> Tensor:
        """(n,): the number of the draw of the baseline, of each of some coalitions.

        Args:
            features: A.
            rows: of the baseline's data set.
            numbers: (n,), which of the list.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class LeaveOneOut(Design):
    """Every feature alone is taken away, with R rows of the baseline."""

    def each(self, features: int, rows: int) -> int:
        """R, of so many ``features`` and ``rows`` of the baseline."""
        return rows_each(rows, features, ALONE)

    def count(self, features, rows):
        return 1 + features * self.each(features, rows)

    def gone(self, key, features, rows, numbers):
        # The point itself, number −1, is without "feature −1".
        feature = torch.div(numbers - 1, self.each(features, rows), rounding_mode="floor")
        return feature[:, None] == torch.arange(features)

    def draws(self, features, rows, numbers):
        return (numbers - 1).clamp(min=0)


@dataclass(frozen=True)
class Halves(Design):
    """Each feature is there with probability 1/2: pairs of complements, none twice; all coalitions, if these are no more.

    Args:
        size: coalitions; an odd number leaves out the last one's complement.
        whole: the first two coalitions are all features and none, as LIME wants it, and the others are of every size in
            proportion to how many there are; else the list is a random sample of all pairs.
    """

    size: int = setting(1000, low=1)
    whole: bool = True

    def all(self, features: int) -> bool:
        """Whether all coalitions of so many ``features`` are listed."""
        return 2**features <= self.size

    def each(self, features: int, rows: int) -> int:
        """R: with how many of the ``rows`` of the baseline each coalition of so many ``features`` is listed, where all are."""
        return max(1, min(rows, self.size // 2**features))

    @property
    def pairs(self) -> int:
        """How many pairs are drawn where there are more; with ``whole``, besides the first."""
        if self.whole:
            return (self.size - 1) // 2
        return max(1, self.size // 2)

    def count(self, features, rows):
        if self.all(features):
            return 2**features * self.each(features, rows)
        if self.whole:
            return self.size
        return 2 * self.pairs

    def gone(self, key, features, rows, numbers):
        if self.all(features):
            return every(features)[torch.div(numbers, self.each(features, rows), rounding_mode="floor")]
        return self._drawn(key, features)[numbers]

    def draws(self, features, rows, numbers):
        # A coalition and its complement meet the same rows.
        if not self.all(features):
            return torch.div(numbers, 2, rounding_mode="floor")
        each = self.each(features, rows)
        coalition = torch.div(numbers, each, rounding_mode="floor")
        pair = coalition.minimum(2**features - 1 - coalition)
        return pair * each + numbers % each

    def _drawn(self, key: Key, features: int) -> Tensor:
        """(n, A) bool: the list, where it does not hold all coalitions."""
        if not self.whole:
            return paired(key, features, half_sizes(key, features, self.pairs), chained=False)
        drawn = paired(key, features, even_sizes(features, self.pairs), chained=True)
        ends = torch.stack([torch.zeros(features), torch.ones(features)]).bool()
        # An even size has room for the point's complement too; of an odd one, the first pair is the point alone.
        return torch.cat([ends[: 2 - self.size % 2], drawn])


@dataclass(frozen=True)
class Kernel(Design):
    """KernelSHAP's coalitions: the point; then nothing but the baseline, with each of its rows; then coalitions
    (:func:`~consilience.perturb.kernel_design.counts`), each with R rows of the baseline.

    Args:
        budget: coalitions besides none and all; None: see :func:`~consilience.perturb.kernel_design.budgeted`.
    """

    budget: int | None = setting(None, low=0)

    def listed(self, features: int) -> int:
        """How many coalitions of so many ``features`` there are besides none and all."""
        return budgeted(features, self.budget)

    def each(self, features: int, rows: int) -> int:
        """R, of so many ``features`` and ``rows`` of the baseline."""
        return rows_each(rows, self.listed(features), TOGETHER)

    def count(self, features, rows):
        return 1 + rows + self.listed(features) * self.each(features, rows)

    def gone(self, key, features, rows, numbers):
        table = self.coalitions(key, features)
        ends = torch.stack([torch.zeros(features), torch.ones(features)]).bool()
        at = torch.div(numbers - 1 - rows, self.each(features, rows), rounding_mode="floor")
        at = torch.where(numbers == 0, 0, torch.where(numbers <= rows, 1, at + 2))
        return torch.cat([ends, table])[at]

    def draws(self, features, rows, numbers):
        each = self.each(features, rows)
        drawn = numbers - 1 - rows
        # A coalition and its complement, which are neighbours in the list, meet the same rows.
        meeting = torch.div(drawn, 2 * each, rounding_mode="floor") * each + drawn % each
        return torch.where(numbers <= rows, numbers - 1, meeting).clamp(min=0)

    def coalitions(self, key: Key, features: int) -> Tensor:
        """(n, A) bool: what each coalition lacks of so many ``features``, besides none and all; neighbours are complements.

        ``key``: of the draws.
        """
        return paired(key, features, counts(features, self.listed(features)), chained=True)


@dataclass(frozen=True)
class Orders(Design):
    """The point; then, for each of some random orders, coalitions from which one feature after the other is taken away, until
    all are. Every second order is the one before it reversed. A baseline that is drawn is drawn once for each order.

    Where all coalitions are no more than that, and there is one baseline, all are listed.

    Args:
        size: orders.
    """

    size: int = setting(25, low=1)

    def all(self, features: int, rows: int) -> bool:
        """Whether all coalitions of so many ``features`` are listed, against so many ``rows``."""
        return rows == 1 and 2**features - 2 <= self.size * (features - 1)

    def count(self, features, rows):
        if self.all(features, rows):
            return 2**features
        return 1 + self.size * features

    def gone(self, key, features, rows, numbers):
        if self.all(features, rows):
            return every(features)[numbers]
        rank = orders(key, features, self.size).argsort(dim=1)
        place = (numbers - 1).clamp(min=0)
        step = torch.where(numbers > 0, 1 + place % features, 0)
        return rank[torch.div(place, features, rounding_mode="floor")] < step[:, None]

    def draws(self, features, rows, numbers):
        if self.all(features, rows):
            return torch.zeros_like(numbers)
        return torch.div((numbers - 1).clamp(min=0), features, rounding_mode="floor")
