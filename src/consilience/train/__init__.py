"""Training objectives for models with better explanations, usable in any PyTorch loop.

``objective(model, x, y, ids=None) → Loss(total, parts)``. Whole objectives contain the task loss (``includes_task``);
regularisers are added to yours. See docs/training.md.
"""

from __future__ import annotations

from .attack import PGD, bounds_of, normalised
from .base import Balanced, Loss, Regulariser, TrainingObjective, WarmUp, cross_entropy, logistic, squared_error
from .expo import Fidelity, Fidelity1D, Stability
from .gradients import AttributionPrior, IGCosine, InputGradientPenalty, LocalGradientAlignment
from .insertion_deletion import InsertionDeletion
from .penalty import Penalty
from .rar import AdversarialTraining, IGNorm, IGSumNorm, NaturalTraining

__all__ = [
    "PGD",
    "AdversarialTraining",
    "AttributionPrior",
    "Balanced",
    "Fidelity",
    "Fidelity1D",
    "IGCosine",
    "IGNorm",
    "IGSumNorm",
    "InputGradientPenalty",
    "InsertionDeletion",
    "LocalGradientAlignment",
    "Loss",
    "NaturalTraining",
    "Penalty",
    "Regulariser",
    "Stability",
    "TrainingObjective",
    "WarmUp",
    "bounds_of",
    "cross_entropy",
    "logistic",
    "normalised",
    "squared_error",
]
