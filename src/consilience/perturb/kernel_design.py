"""Which coalitions KernelSHAP evaluates, and with which weight: small and large ones first, none twice.

Shapley values are the solution of a regression over all coalitions of A features, with the kernel
w(S) = (A − 1) / (C(A, s) s (A − s)) for those of size s (Lundberg & Lee 2017, arXiv 1705.07874). All coalitions of one size
together have the weight K_s ∝ 1 / (s (A − s)), so the smallest and the largest matter most and are the fewest. With a
budget, sizes that can be listed completely are, and of the others as many coalitions are drawn, without repeats, as their
share K_s of the rest of the budget allows (of few features, an equal share); each has the weight K_s / (coalitions of that
size that are in the list). Coalitions come in pairs with their complements (Covert & Lee 2021, arXiv 2012.01536), which makes
games of single and pairwise effects exact.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .coalition_lists import in_class

ENUMERATED = 2**11
"""Coalitions that are all listed by default: up to 11 features."""

FEW = 20
"""Features of which effects of several are so few that few coalitions tell them, see explainers/shapley_weights.py."""

FEWER = 16
"""Features for which :data:`LESS` coalitions are as exact as shap's 2 A + 2048: of 20 the error is 1.14 of that."""

LESS = 1200
"""Coalitions of few features, besides 2 A. On average the error is .55 of that of a plain regression on 2 A + 2048 (12 to 16
features, benchmarks/coalitions.py)."""

MORE = 2048
"""Coalitions of more features, besides 2 A, as in the shap package."""

EVEN = 14
"""Features up to which each size gets equally many coalitions."""


def budgeted(features: int, budget: int | None) -> int:
    """How many coalitions, besides none and all, the design of so many ``features`` has.

    ``budget``: at most so many; None: all of them up to 11 features, then 2 A + 1200, and 2 A + 2048 above 16.
    """
    # 2^64 is beyond any budget, and 2^1024 beyond any float.
    every = 2 ** min(features, 64) - 2
    if budget is None:
        budget = every if every < ENUMERATED else 2 * features + (LESS if features <= FEWER else MORE)
    return max(0, min(every, budget // 2 * 2))


def counts(features: int, coalitions: int) -> dict[int, int]:
    """Size s ≤ A / 2 → how many pairs of a coalition of s features and its complement are in the list.

    ``features``: A; ``coalitions``: how many there are in all.

    Single features come first, because they alone determine the values of a sum. Then each size gets its share of the kernel,
    and what is left over by the sizes that are listed completely goes to the others.
    """
    sizes = range(1, features // 2 + 1)
    most = {size: in_class(features, size) for size in sizes}
    left = coalitions // 2
    if not most or left == 0:
        return {}
    pairs = {1: min(most[1], left)}
    left -= pairs[1]
    open_sizes = [size for size in sizes if size > 1]
    while open_sizes and left:
        shares = kernel(features, open_sizes)
        if features <= EVEN:
            # As exact, and nearer to what methods with equal chances ask for.
            shares = dict.fromkeys(open_sizes, 1 / len(open_sizes))
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
def design_weights(features: int, budget: int | None) -> Tensor:
    """(n,) float64: the weights of the coalitions in the regression, in the order of :func:`counts`, which sum to 1."""
    pairs = counts(features, budgeted(features, budget))
    weights = dict.fromkeys(pairs, 0.0)
    # A size that is not listed gives its weight to the nearest that is.
    for size, share in kernel(features, list(range(1, features // 2 + 1))).items():
        nearest = min(pairs, key=lambda other: (abs(other - size), other), default=0)
        weights[nearest] = weights.get(nearest, 0.0) + share
    each = [torch.full((2 * count,), weights[size] / (2 * count), dtype=torch.float64) for size, count in pairs.items()]
    return torch.cat([torch.zeros(0, dtype=torch.float64), *each])
