"""Which coalitions KernelSHAP evaluates, and with which weight: small and large ones first, none twice.

Shapley values are the solution of a regression over all coalitions of A features, with the kernel
w(S) = (A − 1) / (C(A, s) s (A − s)) for those of size s (Lundberg & Lee 2017, arXiv 1705.07874). All coalitions of one size
together have the weight K_s ∝ 1 / (s (A − s)), so the smallest and the largest matter most and are the fewest. With a
budget, sizes that can be listed completely are, and of the others as many coalitions are drawn, without repeats, as their
share K_s of the rest of the budget allows; each has the weight K_s / (coalitions of that size that are in the list).
Coalitions come in pairs with their complements (Covert & Lee 2021, arXiv 2012.01536), which makes games of single and
pairwise effects exact.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import torch
from torch import Tensor

from ..statistics.keys import Key

LISTED = 2**17
"""Coalitions of one size that are listed, to draw some of them; beyond, sets are drawn at random, and repeats left out."""


def budgeted(features: int, budget: int | None) -> int:
    """How many coalitions, besides none and all, the design of so many ``features`` has.

    ``budget``: at most so many; None: 2 A + 2048.
    """
    usual = 2 * features + 2048
    limit = usual if budget is None else budget
    # 2^64 is beyond any budget, and 2^1024 beyond any float.
    every = 2 ** min(features, 64) - 2
    return max(0, min(every, limit // 2 * 2))


def counts(features: int, coalitions: int) -> dict[int, int]:
    """Size s ≤ A / 2 → how many pairs of a coalition of s features and its complement are in the list.

    ``features``: A; ``coalitions``: how many there are in all.

    Single features come first, because they alone determine the values of a sum. Then each size gets its share of the kernel,
    and what is left over by the sizes that are listed completely goes to the others.
    """
    sizes = range(1, features // 2 + 1)
    # Half a size is its own complement: half as many pairs.
    most = {}
    for size in sizes:
        subsets_of_size = math.comb(features, size)
        most[size] = subsets_of_size // 2 if 2 * size == features else subsets_of_size
    left = coalitions // 2
    if not most or left == 0:
        return {}
    pairs = {1: min(most[1], left)}
    left -= pairs[1]
    open_sizes = [size for size in sizes if size > 1]
    while open_sizes and left:
        shares = kernel(features, open_sizes)
        complete = [size for size in open_sizes if left * shares[size] >= most[size] - 1e-9]
        if not complete:
            pairs |= _apportioned({size: left * shares[size] for size in open_sizes}, left)
            break
        # The smallest first: it has the largest weight for each coalition.
        size = complete[0]
        pairs[size] = most[size]
        left -= most[size]
        open_sizes.remove(size)
    return {size: count for size, count in pairs.items() if count}


def kernel(features: int, sizes: list[int]) -> dict[int, float]:
    """The share of the kernel's weight that each of the ``sizes``, with its complement, has among them.

    ``features``: A.
    """
    weight = {}
    for size in sizes:
        # A size and its complement weigh alike; half of all features have no other size.
        alike = 1 if 2 * size == features else 2
        weight[size] = alike / (size * (features - size))
    whole = sum(weight.values())
    return {size: value / whole for size, value in weight.items()}


def _apportioned(shares: dict[int, float], total: int) -> dict[int, int]:
    """Whole numbers that sum to ``total``, by the largest remainders; of equal ones the smallest size."""
    found = {size: int(share) for size, share in shares.items()}
    order = sorted(shares, key=lambda size: (found[size] - shares[size], size))
    for size in order[: total - sum(found.values())]:
        found[size] += 1
    return found


@lru_cache(maxsize=64)
def design(key: Key, features: int, budget: int | None) -> Tensor:
    """(n, A) bool: the features that each coalition of an input with A features lacks.

    Neighbours in the list, 0 and 1, 2 and 3, …, are complements.

    Args:
        key: names the draws.
        features: A.
        budget: coalitions besides none and all; None: 2 A + 2048.
    """
    taken = [torch.zeros(0, features, dtype=torch.bool)]
    for size, pairs in counts(features, budgeted(features, budget)).items():
        small = subsets(key / f"coalitions of {size} of {features}", features, size, pairs)
        taken.append(torch.stack([small, ~small], 1).flatten(0, 1))
    return torch.cat(taken)


@lru_cache(maxsize=64)
def design_weights(features: int, budget: int | None) -> Tensor:
    """(n,) float64: the weights of :func:`design`'s coalitions in the regression, which sum to 1."""
    pairs = counts(features, budgeted(features, budget))
    found = dict.fromkeys(pairs, 0.0)
    # A size that is not listed gives its weight to the nearest that is.
    for size, share in kernel(features, list(range(1, features // 2 + 1))).items():
        nearest = min(pairs, key=lambda other: (abs(other - size), other), default=0)
        found[nearest] = found.get(nearest, 0.0) + share
    each = [torch.full((2 * count,), found[size] / (2 * count), dtype=torch.float64) for size, count in pairs.items()]
    return torch.cat([torch.zeros(0, dtype=torch.float64), *each])


def subsets(key: Key, features: int, size: int, count: int) -> Tensor:
    """(count, A) bool: different sets of features, none of them another's complement.

    Args:
        key: of the draws.
        features: A.
        size: of each set.
        count: how many sets; all of them, if that is their number.
    """
    half = 2 * size == features
    most = math.comb(features, size) // (2 if half else 1)
    nobody = torch.zeros(1, dtype=torch.int64)
    if most <= LISTED:
        # Of two complements, the one with feature 0.
        every = itertools.islice(itertools.combinations(range(features), size), most if half else None)
        table = torch.tensor(list(every))
        if count < most:
            order = key.bits(nobody, 0, most)[0].argsort(stable=True)
            table = table[order[:count].sort()[0]]
        return torch.zeros(count, features, dtype=torch.bool).scatter_(1, table, True)
    found = torch.zeros(0, features, dtype=torch.bool)
    for attempt in itertools.count():
        drawn = key.bits(nobody.expand(count), torch.arange(count) + attempt * count, features)
        sets = torch.zeros(count, features, dtype=torch.bool)
        sets.scatter_(1, drawn.argsort(dim=1, stable=True)[:, :size], True)
        if half:
            sets = sets ^ ~sets[:, :1]
        found = _distinct(torch.cat([found, sets]))[:count]
        if len(found) == count:
            return found
    raise AssertionError("unreachable")


def _distinct(sets: Tensor) -> Tensor:
    """The rows that are not a repeat of an earlier one, in order."""
    _, which = sets.unique(dim=0, return_inverse=True)
    first = torch.full((int(which.max()) + 1,), len(sets)).scatter_reduce_(0, which, torch.arange(len(sets)), "amin")
    return sets[first.sort()[0]]
