"""Games of coalitions: what is taken away, and what is put in its place.

The value of a coalition is the score of the point with the features outside it replaced by the baseline's values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import InputError
from ..features.base import Features
from ..features.images import coarse, fewer
from ..statistics.keys import Key
from .baseline import Baseline
from .masks import words
from .neighbourhoods import Anchored
from .points import Points

AUTO = Baseline("auto")

LIMIT = 1024
"""The most features of methods that solve a system in all of them."""


@dataclass(frozen=True)
class Game(Anchored):
    """The point itself, beside the baseline that all its features may be replaced by; the baseline of sample s is draw s.

    Two methods that play the same game share the values of coalitions.

    Args:
        baseline: what stands for an absent feature.
        features: what is taken away as one; None: :func:`~consilience.features.images.coarse`.
    """

    baseline: Baseline = AUTO
    features: Features | None = None

    def total(self, shape):
        return self.baseline.count(len(shape))


def unit(features: Features | None, shape: Sequence[int]) -> Features:
    """The ``features``, or the default ones of inputs with axes ``shape``."""
    return features or coarse(shape)


def few(features: Features | None, shape: Sequence[int], method: str) -> int:
    """A, for a method that solves A × A systems.

    Args:
        features: as given; None: the default ones.
        shape: F.
        method: its name, for errors.

    Raises:
        InputError: there are more than :data:`LIMIT`.
    """
    units = unit(features, shape)
    number = math.prod(units.shape(shape))
    if number > LIMIT:
        raise InputError(
            f"features: {method} solves a system in all features, and {number} ({units.unit}s of inputs of "
            f"shape {tuple(shape)}) are more than {LIMIT}; make fewer of them: features={fewer(shape)}"
        )
    return number


def ranks(key: Key, points: Points, has: Tensor) -> Tensor:
    """(N, A): the place of each feature in an order of each point's own, in which features that it lacks come last.

    Args:
        key: of the draws.
        points: N points; those of the same id have the same order.
        has: (N, A) bool, the features that each point has.
    """
    drawn = words(key, points, range(1), has.shape[1])[:, 0].masked_fill(~has, 2**32)
    return drawn.argsort(dim=1, stable=True).argsort(dim=1)
