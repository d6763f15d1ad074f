"""Several looks at growing data: how small a p-value must be at each, so that all together err with probability α at most.

Whoever looks at 4, 8, 12 and 20 draws and stops at the first p ≤ .05 is wrong in more than one of eight cases, not in one of
twenty. Group-sequential tests share α among the looks. The share that may be spent by the time a fraction t of the draws is
there is fixed beforehand, so that when one stops may depend on the data in any way.

Sources: Lan and DeMets 1983, *Discrete sequential boundaries for clinical trials*, for spending; Armitage, McPherson and Rowe
1969 for the recursion; Jennison and Turnbull 2000, §3.8 and §9, for p-values of Student's test in place of normal ones, and for
intervals that hold at every look.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

GRID = 401
"""Points on which the density of what has not been decided is kept; odd, for Simpson's rule. Levels are right to 1e-6."""

Spending = Callable[[float, float], float]
"""(t, α) → the share of α that is spent once a fraction t of the draws is there: 0 at 0, α at 1, growing."""


def pocock(fraction: float, alpha: float) -> float:
    """α ln(1 + (e − 1) t): about the same level at each look; strong effects are found at the first ones.

    Args:
        fraction: t.
        alpha: α.
    """
    return alpha * math.log(1 + (math.e - 1) * fraction)


def obrien_fleming(fraction: float, alpha: float) -> float:
    """4 − 4 Φ(z / √t), z the 1 − α/4 quantile: hardly anything at first, nearly α at the last look.

    Args:
        fraction: t.
        alpha: α.
    """
    return 2 * _two_sided(_quantile(1 - alpha / 4) / math.sqrt(fraction))


@cache
def levels(looks: tuple[int, ...], alpha: float, spending: Spending = pocock) -> tuple[float, ...]:
    """The level of the two-sided test at each look.

    Under the hypothesis, for a statistic whose increments are independent, the probability that any of the tests rejects is
    α. For one look it is α itself.

    Args:
        looks: how many draws there are at each look, growing.
        alpha: α, in (0, 1).
        spending: how α is shared.

    Example:
        >>> [round(level, 4) for level in levels((64, 128, 256, 512), 0.05)]
        [0.0097, 0.0105, 0.017, 0.0256]
    """
    fractions = [look / looks[-1] for look in looks]
    spent = [spending(fraction, alpha) for fraction in fractions]
    spent[-1] = alpha
    found = [spent[0]]
    # The statistic is a Brownian motion at time t; ``density`` is that of paths that no look has rejected.
    bound = _quantile(1 - spent[0] / 2) * math.sqrt(fractions[0])
    at = _grid(bound)
    density = _normal(at / math.sqrt(fractions[0])) / math.sqrt(fractions[0])
    for number in range(1, len(looks)):
        step = math.sqrt(fractions[number] - fractions[number - 1])
        mass = density * _simpson(at)
        bound = _crossed(at, mass, step, spent[number] - spent[number - 1])
        found.append(_two_sided(bound / math.sqrt(fractions[number])))
        onward = _grid(bound)
        density = _normal((onward[:, None] - at) / step) @ mass / step
        at = onward
    return tuple(found)


def _crossed(at: Tensor, mass: Tensor, step: float, share: float) -> float:
    """The bound that a share of all paths crosses at the next look, whose ``mass`` is now at the places ``at``."""
    low, high = 0.0, 40.0
    for _ in range(100):
        middle = (low + high) / 2
        above = torch.special.ndtr(-(middle - at) / step)
        below = torch.special.ndtr((-middle - at) / step)
        if float((mass * (above + below)).sum()) > share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _grid(bound: float) -> Tensor:
    return torch.linspace(-bound, bound, GRID, dtype=torch.float64)


def _simpson(at: Tensor) -> Tensor:
    """Weights of Simpson's rule on equally spaced places."""
    weights = torch.full_like(at, 2.0)
    weights[1::2] = 4
    weights[0] = weights[-1] = 1
    return weights * (at[1] - at[0]) / 3


def _normal(z: Tensor) -> Tensor:
    return torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


def _quantile(p: float) -> float:
    return float(torch.special.ndtri(torch.tensor(p, dtype=torch.float64)))


def _two_sided(z: float) -> float:
    """P(|Z| ≥ z)."""
    return math.erfc(z / math.sqrt(2))


def reached(looks: Sequence[int], count: int) -> int:
    """The number of the look at which ``count`` draws are there, from 0; the last one where there are more.

    Args:
        looks: as for :func:`levels`.
        count: of draws.
    """
    for number, look in enumerate(looks):
        if count <= look:
            return number
    return len(looks) - 1
