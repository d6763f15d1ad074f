"""Shapley values as matrices that are applied to the values of coalitions."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from ..perturb.coalition_lists import every, in_class
from ..perturb.coalitions import Kernel
from ..perturb.kernel_design import FEW, design_weights, kernel
from ..statistics.keys import Key
from ..surrogates.interactions import ODD, covariance, generalised, with_each

PAIRS = 2048
"""Pairs of coalitions up to which effects of three and five features are allowed for; the cost is cubic in them."""

FOLDS = 10
"""Parts of the pairs that are left out of a fit in turn."""


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

    The regression min Σ_S w_S (v(S) − v(∅) − φ · z_S)², Σφ = v(all) − v(∅); from 2 A (of more than 20 features, 30 A) to 2048
    pairs with effects of three and five features (:mod:`consilience.surrogates.interactions`), which are shared evenly by their
    features, as Shapley values are, and with noise in proportion to 1 / w. Effects of even size cancel in pairs of complements.

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
    # Of many features, effects of several are too many for these pairs: what is left of one says little of the others.
    least = 2 * features if features <= FEW else 30 * features
    if least <= len(small) <= PAIRS:
        return _in_pairs(_adjusted(rows, weights))
    return _in_pairs(_constrained(rows, weights))


def _adjusted(rows: Tensor, weights: Tensor) -> Tensor:
    """(A, 1 + n): as :func:`_constrained`, with effects of three and five features, cross-fitted.

    A model g is fitted to all pairs but those of a fold. φ = φ(g) + φ(v − g); the second is a sum over all coalitions, in which
    what the model leaves of the fold's pairs stands for what it leaves of all pairs that it was not fitted to. The mean over
    folds has the variance of one fit to all, and not its bias: g is shrunk, and fits its own pairs too well.

    Args:
        rows: x (n, A), n at least 2 A.
        weights: (n,), which sum to 1.
    """
    count, features = rows.shape
    there = (rows > 0).sum(1)
    size = features - there
    drawn, number = _of_each_size(size, features)
    # Σ_S over a size of its weight in φ_a, times what is left: mean times this.
    shares = kernel(features, list(range(1, features // 2 + 1)))
    kernel_share = torch.tensor([shares[one] for one in size.tolist()], dtype=rows.dtype)
    pairs_in_mean = torch.where(2 * size == features, 1, 2) * weights * drawn / kernel_share
    of_mean = pairs_in_mean * torch.where(rows.mT > 0, 1 / there.double(), -1 / size.double())

    # The pair of all features and none is known, has no noise, and is in every fit.
    first = torch.ones(1, features, dtype=rows.dtype)
    rows = torch.cat([first, rows])
    noise = torch.cat([torch.zeros_like(weights[:1]), 1 / (count * weights)])
    single, predicting = generalised(rows, covariance(rows, ODD) + noise.diag())
    # φ_a is twice the single effect, and an even share of twice every effect that a has part in.
    model = 2 * (single + with_each(rows, ODD).mT @ predicting)
    of_fitted = torch.cat([torch.zeros_like(of_mean[:, :1]), of_mean / number], 1)
    whole = model + (of_fitted * noise) @ predicting
    fold = torch.cat([torch.full((1,), FOLDS), _places(size) % FOLDS])
    total = whole
    for held_out in range(FOLDS):
        out = (fold == held_out).nonzero()[:, 0]
        if not len(out):
            continue
        # What a fit to the others leaves of these: in place of their values, such a fit has its own predictions.
        left = torch.linalg.solve(predicting[out][:, out], predicting[out])
        alike = (size[out - 1, None] == size[out - 1]).sum(1)
        others = drawn[out - 1] - alike
        of_left = of_mean[:, out - 1] * (1 - others / number[out - 1]) / drawn[out - 1]
        total = total + (of_left - whole[:, out] / FOLDS) @ left
    return total


def _of_each_size(size: Tensor, features: int) -> tuple[Tensor, Tensor]:
    """(n,) float64 each: for each set, how many of its ``size`` (n,) there are here, and how many there are at all."""
    drawn = size.bincount()[size].double()
    number = torch.tensor([float(in_class(features, one)) for one in size.tolist()], dtype=torch.float64)
    return drawn, number


def _places(size: Tensor) -> Tensor:
    """(n,): the place of each set among those of its ``size`` (n,)."""
    alike = size[:, None] == size
    return alike.tril(-1).sum(1)


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
    # The empty set first; of one feature there is no other.
    numbers = torch.cat([numbers.new_zeros(1), numbers])
    # A set and its complement have opposite weights, and the first of each pair stands for both.
    return 2 * enumerated(features)[:, numbers]


def _in_pairs(halves: Tensor) -> Tensor:
    """Weights of half the differences of pairs, (A, n), as weights of their values, (A, 2n)."""
    return torch.stack([halves, -halves], 2).flatten(1) / 2
