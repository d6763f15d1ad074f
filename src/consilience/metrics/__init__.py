"""Generalised L2 metrics: residuals affine in the attribution, folded into small matrices (:mod:`..quadratic`).

One law is the contract: for Σw = 1, residuals(Σ wφ) = Σ w residuals(φ) on the same draws.
"""

from __future__ import annotations

from .infidelity import Infidelity
from .sensitivity import AverageSensitivity

__all__ = ["AverageSensitivity", "Infidelity"]
