"""Shapley values as matrices that are applied to the values of coalitions."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from ..perturb.coalition_lists import every
from ..perturb.coalitions import Kernel
from ..perturb.kernel_design import design_weights
from ..statistics.keys import Key
from ..surrogates.interactions import ODD, covariance, generalised, with_each

PAIRS = 2048
"""Pairs of coalitions up to which effects of three and five features are allowed for; the cost is cubic in them."""


@lru_cache(maxsize=32)
def enumerated(features: int) -> Tensor:
    """(A, 2^A) float64: Shapley values from the values of all coalitions, in the order of
    :func:`~consilience.perturb.coalition_lists.every` *gone* features.

    φ_a = Σ_S (|S|! (A − |S| − 1)! / A!) (v(S, a) − v(S)), over all S without a.
    """
    there = ~every(features)
    size = there.sum(1)
    # The weight of a set of s features besides a.
    besides = [1 / (features * math.comb(features - 1, s)) for s in range(features)]
    weight = torch.tensor([0.0, *besides, 0.0], dtype=torch.float64)
    joined = weight[size]  # a is one of the s features there
    left = weight[size + 1]
    return torch.where(there.mT, joined, -left)


@lru_cache(maxsize=32)
def regressed(key: Key, features: int, budget: int | None) -> Tensor:
    """(A, 2 + n) float64: KernelSHAP from v(all), v(none) and the values of n coalitions.

    The regression min Σ_S w_S (v(S) − v(∅) − φ · z_S)², Σφ = v(all) − v(∅), in which effects of three and five features have
    a prior (:mod:`consilience.surrogates.interactions`) and are then shared evenly by their features, as Shapley values are;
    noise is in proportion to 1 / w. Effects of even size cancel in pairs of complements.

    Args:
        key: of the coalitions.
        features: A.
        budget: of coalitions, see :class:`~consilience.perturb.coalitions.Kernel`.
    """
    design = Kernel(budget)
    small = design.coalitions(key, features)[::2]
    weights = design_weights(features, budget)[::2]
    if len(small) == 2 ** (features - 1) - 1:
        return _in_pairs(_of_all(small, features))
    # Of a pair, half the difference of the values; of x = ±1 the values of a sum of features are Σ x φ / 2.
    rows = torch.where(small, -1.0, 1.0).double()
    weights = weights / weights.sum()
    if len(small) > PAIRS:
        return _in_pairs(_constrained(rows, weights))
    # φ_a is twice the single effect, and an even share of twice every effect that a has part in. The pair of all and none
    # has no noise, so these add up to its difference exactly.
    rows = torch.cat([torch.ones_like(rows[:1]), rows])
    noise = torch.cat([torch.zeros_like(weights[:1]), 1 / (len(small) * weights)])
    single, predicting = generalised(rows, covariance(rows, ODD) + noise.diag())
    return _in_pairs(2 * (single + with_each(rows, ODD).mT @ predicting))


def _constrained(rows: Tensor, weights: Tensor) -> Tensor:
    """(A, 1 + n): Shapley values from half the differences of pairs, the pair of all and none first.

    Args:
        rows: x (n, A), 1 where a feature is there and −1 where it is not.
        weights: (n,).
    """
    count, features = rows.shape
    # φ / 2 = equal + across ψ: equal shares of Σφ keep the constraint, and so does what is added to them.
    across = torch.eye(features, dtype=rows.dtype) - 1 / features
    moved = (rows @ across) * weights.sqrt()[:, None]
    slopes = torch.linalg.pinv(moved, rtol=1e-10) * weights.sqrt()
    # What the equal shares leave of each pair.
    left = torch.cat([-rows.sum(1, keepdim=True) / features, torch.eye(count, dtype=rows.dtype)], 1)
    equal = torch.zeros(features, 1 + count, dtype=rows.dtype)
    equal[:, 0] = 1 / features
    return 2 * (equal + across @ slopes @ left)


def _of_all(small: Tensor, features: int) -> Tensor:
    """(A, 1 + n): as :func:`_constrained`, where all pairs are there: by the definition."""
    numbers = (small.long() << torch.arange(features)).sum(1)
    numbers = torch.cat([torch.zeros_like(numbers[:1]), numbers])
    # A set and its complement have opposite weights, and the first of each pair stands for both.
    return 2 * enumerated(features)[:, numbers]


def _in_pairs(halves: Tensor) -> Tensor:
    """Weights of half the differences of pairs, (A, n), as weights of their values, (A, 2n)."""
    return torch.stack([halves, -halves], 2).flatten(1) / 2
