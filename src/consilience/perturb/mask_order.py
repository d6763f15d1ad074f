"""Which subsets of K features are the masks of an input, and in which order.

Sizes vary, no subset occurs twice, and two streams have none in common: one for fitting, one for judging what was fitted.

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
"""Rounds of the Feistel network. Four make a pseudo-random permutation of large sets; of a dozen members, more are needed."""


def sizes(count: int, shares: tuple[float, ...]) -> tuple[int, ...]:
    """How many of ``count`` features are taken away: the shares of them, rounded up, so at least one.

    Of two or more features there are two sizes or more: with one size only, and that 1, the masks would be feature ablation's
    own evaluations.

    Args:
        count: the number of features.
        shares: of them, 0 … 1.

    Example:
        >>> sizes(2, SHARES), sizes(9, SHARES), sizes(20, SHARES)
        ((1, 2), (1, 2, 3, 4, 5, 6), (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12))
    """
    # Less 1e-9, which keeps .55 · 20 = 11.000000000000002 from being 12.
    rounded_up = {min(count, math.ceil(share * count - 1e-9)) for share in shares}
    return tuple(sorted(rounded_up - {0}))


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
        # Rounded up to a power of two, so that few different results are to be kept.
        length = 1 << max(0, stop - 1).bit_length()
        classes, places = _places(self, min(length, most), second)
        sample = np.arange(stop) % max(1, len(classes))
        return classes[sample], places[sample]


@lru_cache(maxsize=64)
def _places(order: Order, length: int, second: bool) -> tuple[np.ndarray, np.ndarray]:
    """(class, place in its permutation) of the samples 0 … ``length`` − 1 of one stream.

    The class that lags most behind its share is next, so that any run of samples has its sizes in proportion. A class's own
    members come first; a stream that wants all masks goes on with the other stream's.

    Args:
        order: of the masks.
        length: how many samples.
        second: of the stream that has the odd places.
    """
    weight = _class_weights(order)
    total = int(weight.sum())
    members = np.array([min(number, KEYED) for number in order.members], dtype=np.int64)
    own = np.array([min(number, KEYED) for number in order.half(second)], dtype=np.int64)
    taken = np.zeros_like(weight)
    available = own
    classes = np.empty(length, dtype=np.int64)
    places = np.empty(length, dtype=np.int64)
    for sample in range(length):
        if not (taken < available).any():
            available = members
        # How far a class is behind weight / total of the samples so far, times the total: integers, no rounding.
        behind = weight * (sample + 1) - taken * total
        behind = np.where(taken < available, behind, np.iinfo(np.int64).min)
        chosen = int(behind.argmax())
        rank = int(taken[chosen])
        classes[sample] = chosen
        # The first stream owns the even places, the second one the odd ones.
        if rank < own[chosen]:
            places[sample] = 2 * rank + second
        else:
            places[sample] = 2 * (rank - own[chosen]) + (not second)
        taken[chosen] += 1
    return classes, places


def _class_weights(order: Order) -> np.ndarray:
    """(classes,) int64: how often each class is drawn. Scales are drawn equally often, sizes as :data:`EVEN` says."""
    weights = []
    for scale in range(len(order.counts)):
        subsets = [number for number, (of, _) in zip(order.subsets, order.classes, strict=True) if of == scale]
        capped = [min(number, EVEN) for number in subsets]
        weights += [number / sum(capped) for number in capped]
    # Integers, so that ties are the same on every machine.
    return np.round(np.array(weights) * 2**30).astype(np.int64)


def permuted(place: Tensor, members: int, key: Key, ids: Tensor, number: int) -> Tensor:
    """The members of a class at some places of its order: a permutation of its own for each id and class.

    A Feistel network on the next even power of two, walked until it is back in the range (Black & Rogaway 2002, *Ciphers with
    arbitrary finite domains*): at most four members are passed over on average. A Feistel network is a permutation whatever
    its round function is, and walking along its cycles to the next member of the range is one of the range.

    Args:
        place: (N, s) int64 in [0, ``members``).
        members: how many the class has, below :data:`KEYED`.
        key: of the permutations.
        ids: (N,) int64, the identities of the inputs.
        number: of the class.

    Returns:
        (N, s) int64 in [0, ``members``).
    """
    half = 1  # bits of each half of a value
    while 4**half < members:
        half += 1
    low_bits = 2**half - 1
    round_keys = key.bits(ids, number, ROUNDS)

    def network(value: Tensor, words: Tensor) -> Tensor:
        left = value >> half
        right = value & low_bits
        for turn in range(ROUNDS):
            # Two multiplications by odd constants (of MurmurHash3); int64 wraps, and the shifts take its middle bits.
            mixed = (right + words[..., turn] + 1) * 0x85EBCA6B
            mixed = (mixed ^ (mixed >> 15)) * 0xC2B2AE35
            mixed = (mixed >> 17) ^ (mixed >> 33)
            left, right = right, left ^ (mixed & low_bits)
        return (left << half) | right

    words = round_keys[:, None].expand(*place.shape, ROUNDS)
    value = network(place, words)
    outside = value >= members
    while bool(outside.any()):
        value[outside] = network(value[outside], words[outside])
        outside = value >= members
    return value


@lru_cache(maxsize=64)
def _binomials(count: int, size: int) -> Tensor:
    """(count, size + 1) int64: C(n, k) for n below ``count`` and k up to ``size``."""
    # Larger than any rank, and what int64 holds: these features are never in the subset.
    largest = 2**62
    table = [[min(math.comb(n, k), largest) for k in range(size + 1)] for n in range(count)]
    return torch.tensor(table, dtype=torch.int64).reshape(count, size + 1)


def unranked(rank: Tensor, count: int, size: int) -> Tensor:
    """The subsets of some numbers, in the order of the combinatorial number system.

    A subset {n₁ < … < n_size} has the number Σ C(n_k, k). So, from the last feature down: feature n is in the subset if at
    least C(n, k) of the numbers that are left come before it, k being how many features are still to be named.

    Args:
        rank: (…) int64, numbers in [0, C(count, size)).
        count: of features.
        size: of the subsets.

    Returns:
        (…, count) bool, True for the members of the subset.
    """
    table = _binomials(count, size).to(rank.device)
    to_name = torch.full_like(rank, size)
    subsets = torch.empty(*rank.shape, count, dtype=torch.bool, device=rank.device)
    for feature in reversed(range(count)):
        before = table[feature][to_name]
        inside = rank >= before
        subsets[..., feature] = inside
        rank = torch.where(inside, rank - before, rank)
        to_name = to_name - inside.long()
    return subsets
