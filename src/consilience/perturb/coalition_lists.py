"""Sets of features in an order of their own, of which every method takes the first: so that methods share evaluations.

All lists are *canonical*: they are drawn for "A features", whatever these are, and each input then puts its features in an
order of its own (:func:`~consilience.perturb.games.ranks`). Sets of one size are one list. A method that wants n sets of a size
takes the first n, so what a smaller design evaluates, a larger one does too. Coalitions come in pairs with their complements,
so a list holds sets of at most half of the features, and of two complements of exactly half only one.

There are two lists of each size: ``"drawn"``, in random order; and ``"chained"``, in which the sets that begin or end one of
the first random orders come first. :class:`~consilience.perturb.coalitions.Orders` goes along these, so it shares them.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..statistics.keys import Key

LISTED = 2**17
"""Sets of one size that are listed, to draw some of them; beyond, sets are drawn at random, and repeats left out."""

CHAINS = 13
"""Random orders, and as many reversed, whose sets come first in chained lists: enough for 25 orders."""


def orders(key: Key, features: int, count: int) -> Tensor:
    """(count, A) int64: random orders of A features; every second one is the one before it, reversed.

    Args:
        key: of the draws.
        features: A.
        count: how many orders.
    """
    pairs = -(-count // 2)
    nobody = torch.zeros(pairs, dtype=torch.int64)
    words = (key / "orders").bits(nobody, torch.arange(pairs), features)
    forward = words.argsort(dim=1, stable=True)
    return torch.stack([forward, forward.flip(1)], 1).flatten(0, 1)[:count]


def every(features: int) -> Tensor:
    """(2^A, A) bool: all sets of so many ``features``; set n has feature a if bit a of n is set, and −1 − n the others."""
    numbers = torch.arange(2**features)[:, None]
    return (numbers >> torch.arange(features) & 1).bool()


def in_class(features: int, size: int) -> int:
    """How many sets of ``size`` (at most A / 2) of A ``features`` there are, none of them another's complement."""
    number = math.comb(features, size)
    return number // 2 if 2 * size == features else number


@lru_cache(maxsize=256)
def subsets(key: Key, features: int, size: int, count: int, chained: bool) -> Tensor:
    """(count, A) bool: the first different sets of the list, none of them another's complement.

    Args:
        key: of the draws.
        features: A.
        size: of each set, at most A / 2.
        count: how many sets, at most all that there are.
        chained: the sets of the first random orders come first; see the module.
    """
    first = torch.zeros(0, features, dtype=torch.bool)
    if chained:
        first = distinct(_ends(orders(key, features, 2 * CHAINS)[::2], size))[:count]
    if len(first) == count:
        return first
    own = key / f"sets of {size} of {features}"
    if in_class(features, size) <= LISTED:
        # At most len(first) of these are repeats.
        return distinct(torch.cat([first, _listed(own, features, size)[: count + len(first)]]))[:count]
    nobody = torch.zeros(count, dtype=torch.int64)
    found = first
    for attempt in itertools.count():
        words = own.bits(nobody, torch.arange(count) + attempt * count, features)
        members = words.argsort(dim=1, stable=True)[:, :size]
        found = distinct(torch.cat([found, _sets(members, features)]))[:count]
        if len(found) == count:
            return found
    raise AssertionError("unreachable")


def half_sizes(key: Key, features: int, pairs: int) -> dict[int, int]:
    """Size s ≤ A / 2 → how many pairs have a set of that size, where ``pairs`` are drawn of all pairs of complements.

    A pair is drawn as each of two features is there or not with probability 1/2, none twice.

    Args:
        key: of the draws.
        features: A.
        pairs: how many, at most all that there are.
    """
    if 2 ** (features - 1) <= LISTED:
        nobody = torch.zeros(1, dtype=torch.int64)
        words = (key / "halves").bits(nobody, features, 2 ** (features - 1))[0]
        codes = words.argsort(stable=True)[:pairs]
        # Of two complements, the one without the last feature.
        sizes = (codes[:, None] >> torch.arange(features - 1) & 1).sum(1)
    else:
        sizes = _drawn_pairs(key / "halves", features, pairs).sum(1)
    numbers = sizes.minimum(features - sizes).bincount().tolist()
    return {size: number for size, number in enumerate(numbers) if number}


def even_sizes(features: int, pairs: int) -> dict[int, int]:
    """As :func:`half_sizes`, without drawing: in proportion to how many pairs there are, none of all features and nothing.

    Args:
        features: A.
        pairs: how many, fewer than there are.
    """
    weights = {size: in_class(features, size) for size in range(1, features // 2 + 1)}
    every_pair = sum(weights.values())
    # Whole numbers by the largest remainders; integers, so that ties are the same on every machine.
    found = {size: number * pairs // every_pair for size, number in weights.items()}
    order = sorted(weights, key=lambda size: (-(weights[size] * pairs % every_pair), size))
    for size in order[: pairs - sum(found.values())]:
        found[size] += 1
    return {size: number for size, number in found.items() if number}


def paired(key: Key, features: int, counts: dict[int, int], chained: bool) -> Tensor:
    """(2n, A) bool: the first sets of some sizes, each followed by its complement.

    Args:
        key: of the draws.
        features: A.
        counts: size → how many sets.
        chained: see :func:`subsets`.
    """
    rows = [torch.zeros(0, features, dtype=torch.bool)]
    for size, count in counts.items():
        small = subsets(key, features, size, count, chained)
        rows.append(torch.stack([small, ~small], 1).flatten(0, 1))
    return torch.cat(rows)


def distinct(sets: Tensor) -> Tensor:
    """The rows of ``sets`` (n, A) bool that are not a repeat of an earlier one, in order."""
    return sets[first_places(sets)[0]]


def first_places(sets: Tensor, beside: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Where each different row is first, in order; and for each row, which of these it repeats.

    Args:
        sets: (n, A) bool.
        beside: (n,) int64, numbers in which rows that are alike may differ.
    """
    packed = np.packbits(sets.numpy(), axis=1)
    if beside is not None:
        packed = np.concatenate([packed, beside.numpy()[:, None].view(np.uint8)], 1)
    if not packed.shape[1]:
        packed = np.zeros((len(sets), 1), dtype=np.uint8)
    rows = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1])))[:, 0]
    _, first, which = np.unique(rows, return_index=True, return_inverse=True)
    # np.unique sorts by value; places in order of appearance do not depend on how bits are packed.
    order = np.argsort(first, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return torch.from_numpy(first[order]), torch.from_numpy(place[which.reshape(-1)])


def _ends(forward: Tensor, size: int) -> Tensor:
    """(2n, A) bool: the first and the last ``size`` features of the orders ``forward`` (n, A)."""
    features = forward.shape[1]
    members = torch.stack([forward[:, :size], forward[:, features - size :]], 1).flatten(0, 1)
    return _sets(members, features)


def _sets(members: Tensor, features: int) -> Tensor:
    """(n, size) features → (n, A) bool; of exactly half of the features, the complement that has feature 0."""
    sets = torch.zeros(len(members), features, dtype=torch.bool)
    sets.scatter_(1, members, True)
    if 2 * members.shape[1] == features:
        sets = sets ^ ~sets[:, :1]
    return sets


def _drawn_pairs(key: Key, features: int, pairs: int) -> Tensor:
    """(pairs, A) bool: different sets of the ``features``, each without the last one."""
    nobody = torch.zeros(pairs, dtype=torch.int64)
    found = torch.zeros(0, features, dtype=torch.bool)
    for attempt in itertools.count():
        sets = key.bits(nobody, torch.arange(pairs) + attempt * pairs, features) < 2**31
        found = distinct(torch.cat([found, sets ^ sets[:, -1:]]))[:pairs]
        if len(found) == pairs:
            break
    return found


@lru_cache(maxsize=32)
def _listed(key: Key, features: int, size: int) -> Tensor:
    """All sets of ``size`` of the ``features``, none of them another's complement, in a random order."""
    most = in_class(features, size)
    # Combinations come in order, so of exactly half the first half are those with feature 0.
    members = torch.tensor(list(itertools.islice(itertools.combinations(range(features), size), most)))
    order = key.bits(torch.zeros(1, dtype=torch.int64), 0, most)[0].argsort(stable=True)
    return _sets(members.reshape(most, size)[order], features)
