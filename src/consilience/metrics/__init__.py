"""Metrics: measures that can be minimised. The table :data:`METRICS` holds all of them by name.

They are generalised L2 metrics (AGG, arXiv 2406.05090): residuals that are affine in the attribution, reduced to small
matrices (:mod:`..statistics.evidence`). One law is the contract: for Σw = 1, residuals(Σ wφ) = Σ w residuals(φ) on the same
draws. :mod:`.objective` sums metrics, :mod:`.front` looks for the best mixtures by two of them.
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
