"""Which subsets of K features are the masks, and in which order: sizes that vary, no subset twice, two streams without overlap.

The masks of one input are laid out in *classes*, one for each scale and size. A class of M members has a keyed permutation.
One stream takes the members at its even places, the other those at its odd places. Hence a mask is a function of
(seed, stream, id, sample), whatever the batch, the chunk or the number of draws that is asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..statistics.keys import Key

SHARES = tuple(n / 20 for n in range(2, 13))
"""The shares of the features that masks take away: .1, .15, …, .6."""

EVEN = 1024
"""A size is drawn in proportion to its number of masks, but as if it had no more than this many. Up to 12 features every mask
is then as likely as any other, which is also what an enumeration means; of many features every size is as likely."""

KEYED = 2**40
"""Classes with fewer members are permuted. Of larger ones subsets are drawn independently: n of them hold a repeat with a
probability of n² / 2⁴¹ at most, which is 4.8e-7 for 1024 draws."""

ROUNDS = 8
"""Of the Feistel network. Four make a pseudo-random permutation of large sets; of a dozen members, more are needed."""


def sizes(count: int, shares: tuple[float, ...]) -> tuple[int, ...]:
    """How many of ``count`` features are taken away: the shares of them, rounded up, so at least one.

    Of two or more features there are two sizes or more: with one size only, and that 1, the masks would be feature ablation's
    own evaluations.

    Example:
        >>> sizes(2, SHARES), sizes(9, SHARES), sizes(20, SHARES)
        ((1, 2), (1, 2, 3, 4, 5, 6), (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12))
    """
    # The hair keeps .55 · 20 = 11.000000000000002 from being 12.
    return tuple(sorted({min(count, math.ceil(share * count - 1e-9)) for share in shares} - {0}))


@dataclass(frozen=True)
class Order:
    """The masks of inputs with the same number of features.

    Args:
        counts: the number of units at each scale, the finest first.
        shares: which shares of the units are taken away.
        rows: n, if a mask's values come from one of n rows of a data set; else 1. A member is then a subset and a row.
    """

    counts: tuple[int, ...]
    shares: tuple[float, ...]
    rows: int = 1

    @property
    def classes(self) -> list[tuple[int, int]]:
        """(scale, size) of each class."""
        return [(scale, size) for scale, count in enumerate(self.counts) for size in sizes(count, self.shares)]

    @property
    def subsets(self) -> list[int]:
        """How many subsets each class has."""
        return [math.comb(self.counts[scale], size) for scale, size in self.classes]

    @property
    def members(self) -> list[int]:
        """How many members each class has: subsets, each with any of the rows."""
        return [number * self.rows for number in self.subsets]

    @property
    def all(self) -> int:
        """How many masks there are."""
        return sum(self.members)

    @property
    def even(self) -> bool:
        """Whether every mask is as likely as any other, so that all of them, once each, mean the same as draws."""
        return len(self.counts) == 1 and max(self.subsets, default=0) <= EVEN

    def half(self, second: bool) -> list[int]:
        """How many members of each class are one stream's own.

        Args:
            second: of the stream that judges, which has the odd places; False: of the other one, which has the even ones.
        """
        return [(number + (not second)) // 2 for number in self.members]

    def drawn(self, asked: int, second: bool) -> int:
        """How many masks a stream gets: as many as asked for; but all, if that is more than its half.

        What is left would hardly be cheaper than certainty. Never more than twice as many as asked for.

        Args:
            asked: how many are asked for.
            second: see :meth:`half`.
        """
        own = sum(self.half(second))
        if asked <= own:
            return asked
        if self.even:
            return self.all
        return own

    def places(self, stop: int, second: bool) -> tuple[np.ndarray, np.ndarray]:
        """(class, place in the class's permutation) of samples; after the last mask they start again.

        Args:
            stop: of the samples 0 … ``stop`` − 1.
            second: see :meth:`half`.
        """
        most = self.all if self.even else sum(self.half(second))
        length = 1 << max(0, stop - 1).bit_length()  # powers of two, for few different results to keep
        which, place = _places(self, min(length, most), second)
        at = np.arange(stop) % max(1, len(which))
        return which[at], place[at]


@lru_cache(maxsize=64)
def _places(order: Order, length: int, second: bool) -> tuple[np.ndarray, np.ndarray]:
    """The class that lags most behind its share is next, so that any run of samples has its sizes in proportion."""
    weights = []
    for scale in range(len(order.counts)):
        alike = [min(number, EVEN) for number, (at, _) in zip(order.subsets, order.classes, strict=True) if at == scale]
        weights += [number / sum(alike) for number in alike]  # scales are drawn equally often
    # Integers, so that ties are the same on every machine.
    weight = np.round(np.array(weights) * 2**30).astype(np.int64)
    total = int(weight.sum())
    members = np.array([min(number, KEYED) for number in order.members], dtype=np.int64)
    own = np.array([min(number, KEYED) for number in order.half(second)], dtype=np.int64)
    taken = np.zeros_like(weight)
    room = own
    which = np.empty(length, dtype=np.int64)
    place = np.empty(length, dtype=np.int64)
    for sample in range(length):
        if not (taken < room).any():
            room = members  # a stream that wants all masks goes on with the other's half
        lag = np.where(taken < room, weight * (sample + 1) - taken * total, np.iinfo(np.int64).min)
        at = int(lag.argmax())
        rank = int(taken[at])
        which[sample] = at
        if rank < own[at]:
            place[sample] = 2 * rank + second
        else:
            place[sample] = 2 * (rank - own[at]) + (not second)
        taken[at] += 1
    return which, place


def permuted(place: Tensor, members: int, key: Key, ids: Tensor, number: int) -> Tensor:
    """(N, s) places of [0, members) → (N, s) members: a permutation of its own for each id and class ``number``.

    A Feistel network on the next even power of two, walked until it is back in the range (Black and Rogaway, *Ciphers with
    arbitrary finite domains*, 2002): at most four members are passed over on average.
    """
    half = 1
    while 4**half < members:
        half += 1
    low = 2**half - 1
    keys = key.bits(ids, number, ROUNDS)

    def network(value: Tensor, words: Tensor) -> Tensor:
        left, right = value >> half, value & low
        for turn in range(ROUNDS):
            # Two multiplications by odd constants (of MurmurHash3); int64 wraps, and the shifts take its middle bits.
            mixed = (right + words[..., turn] + 1) * 0x85EBCA6B
            mixed = (mixed ^ (mixed >> 15)) * 0xC2B2AE35
            mixed = (mixed >> 17) ^ (mixed >> 33)
            left, right = right, left ^ (mixed & low)
        return (left << half) | right

    words = keys[:, None].expand(*place.shape, ROUNDS)
    value = network(place, words)
    out = value >= members
    while bool(out.any()):
        value[out] = network(value[out], words[out])
        out = value >= members
    return value


@lru_cache(maxsize=64)
def _binomials(count: int, size: int) -> Tensor:
    """(count, size + 1): C(n, k), those beyond any rank cut off."""
    table = [[min(math.comb(n, k), 2**62) for k in range(size + 1)] for n in range(count)]
    return torch.tensor(table, dtype=torch.int64).reshape(count, size + 1)


def unranked(rank: Tensor, count: int, size: int) -> Tensor:
    """(…) → (…, count) bool: the subset of ``size`` of ``count`` features that is number ``rank`` of all C(count, size).

    The combinatorial number system: feature n is in the subset if at least C(n, k) subsets come before, k those still to name.
    """
    table = _binomials(count, size).to(rank.device)
    left = torch.full_like(rank, size)
    found = torch.empty(*rank.shape, count, dtype=torch.bool, device=rank.device)
    for feature in reversed(range(count)):
        before = table[feature][left]
        inside = rank >= before
        found[..., feature] = inside
        rank = torch.where(inside, rank - before, rank)
        left = left - inside.long()
    return found
