"""Batched solvers over mixtures of explainers: small matrices in, weights on the simplex and their certificate out.

Axes: B inputs, k explainers. Everything is float64 inside, on the input's device, with no Python loop over B, and the
answer for one input does not depend on the others.
"""

from __future__ import annotations

from .active_set import nnls
from .convex import FLAT, correlation, quadratic, scale_free
from .descent import descend, project
from .ratios import ratio
from .solution import Solution, even
from .tradeoff import Front, front

__all__ = [
    "FLAT",
    "Front",
    "Solution",
    "correlation",
    "descend",
    "even",
    "front",
    "nnls",
    "project",
    "quadratic",
    "ratio",
    "scale_free",
]
