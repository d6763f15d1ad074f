"""A bound on how far fitted weights can be from optimal, known before any draw is looked at: Hoeffding's inequality."""

from __future__ import annotations

import math

from ..errors import InputError


def weights_bound(methods: int, draws: int, square: float, delta: float = 0.05, rounds: int = 1) -> float:
    """B with P(Q(ŵ) − min Q ≤ B) ≥ 1 − δ, for weights ŵ that minimise Q̂(w) = wᵀĜw on m draws.

    Ĝ is the mean of m independent r rᵀ, so each entry is a mean of numbers in [−c₂, c₂]: by Hoeffding's inequality it is within
    t of its expectation but with probability 2 exp(−m t² / 2c₂²), and all k(k+1)/2 of them are with t = c₂√(2 ln(k(k+1)/δ)/m).
    For Σ|w| = 1, |wᵀ(Ĝ − G)w| is at most the largest error of an entry, and Q̂ is off twice: at ŵ and at the optimum. Q is in
    [0, c₂], so c₂ holds without any draw.

    Args:
        methods: k.
        draws: m.
        square: c₂, the largest ‖r‖² that a method's residual can have.
        delta: δ, the probability that the bound fails.
        rounds: the round at which drawing stopped, where m was found by looking at the draws. The bound then holds at every
            round at once, with δ/(n(n + 1)) for the n-th.

    Raises:
        InputError: δ is not between 0 and 1.

    Source: Hoeffding 1963. Decker et al. 2024, arXiv 2406.05090, Theorem 4.3, has a bound of the same kind that is larger.
    """
    if not 0 < delta < 1:
        raise InputError(f"delta: a probability above 0 and below 1, got {delta!r}")
    if rounds > 1:
        # Σ 1/(n(n + 1)) over n ≥ 1 is 1: all rounds together fail with probability δ.
        delta = delta / (rounds * (rounds + 1))
    each = square * math.sqrt(2 * math.log(methods * (methods + 1) / delta) / draws)
    # Q lies in [0, c₂], so c₂ is a bound whatever was drawn.
    return min(2 * each, square)


def largest_change(features: int, sign: str, scale: str) -> float:
    """c₂: the largest ‖φ − φ'‖² of two maps of so many features.

    A feature of a map in [0, 1] changes by 1 at most, of one in [−1, 1] by 2; vectors of norm 1 (or 0) are 2 apart at most, and
    √2 if no entry is negative.

    Args:
        features: A.
        sign: "abs" or "keep".
        scale: "max" or "l2".

    Raises:
        InputError: maps are not scaled, and so have no bound.
    """
    if scale == "none":
        raise InputError("hoeffding: needs bounded maps; scale='none' has no a-priori bound. Use scale='max' or 'l2'")
    by_feature = features * (1.0 if sign == "abs" else 4.0)
    by_norm = 2.0 if sign == "abs" else 4.0
    return min(by_feature, by_norm) if scale == "l2" else by_feature
