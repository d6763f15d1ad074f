"""Generalised L2 metrics: residuals affine in the attribution, folded into small matrices (:mod:`..statistics.evidence`).

One law is the contract: for Σw = 1, residuals(Σ wφ) = Σ w residuals(φ) on the same draws.
"""

from __future__ import annotations

from .alignment import Alignment
from .base import Metric
from .contrast import Contrast
from .fidelity import Completeness, LocalFidelity
from .infidelity import Infidelity
from .sensitivity import AverageSensitivity

METRICS: dict[str, type[Metric]] = {
    cls.__name__: cls for cls in (AverageSensitivity, Infidelity, Contrast, Alignment, LocalFidelity, Completeness)
}


__all__ = [
    "METRICS",
    "Alignment",
    "AverageSensitivity",
    "Completeness",
    "Contrast",
    "Infidelity",
    "LocalFidelity",
    "Metric",
]
