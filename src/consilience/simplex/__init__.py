"""Batched solvers over mixtures of explainers: small matrices in, weights on the simplex and their certificate out.

Axes: B inputs, k explainers. Everything is float64 inside, on the input's device, with no Python loop over B, and the
answer for one input does not depend on the others.
"""

from __future__ import annotations

from . import newton
from .active_set import nnls
from .convex import quadratic
from .descent import descend, project
from .ratios import ratio
from .regressions import FLAT, correlation, scale_free
from .scan import front
from .solution import Solution, even
from .ties import most_even
from .tradeoff import Front

__all__ = [
    "FLAT",
    "Front",
    "Solution",
    "correlation",
    "descend",
    "even",
    "front",
    "most_even",
    "newton",
    "nnls",
    "project",
    "quadratic",
    "ratio",
    "scale_free",
]
