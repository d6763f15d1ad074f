"""consilience: feature attributions, their quality, and the best combination of them.

>>> import torch, consilience as cs
>>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
>>> r = cs.explain(net, torch.ones(2, 4), methods="gradient", objective="robust", fit_draws=4, fresh_draws=4)
>>> r.attribution.shape, r.weights.shape
(torch.Size([2, 4]), torch.Size([2, 6]))
"""

from __future__ import annotations

from . import explainers
from .consensus import Consensus, Draws, Explanation, explain, load
from .errors import ConsilienceError, InputError, MissingExtra, UnsupportedOp
from .features import Elements, Patches, Pixels, Segments
from .metrics import AverageSensitivity, Infidelity
from .neighbourhood import Ball, Baseline, Gaussian, Uniform
from .objective import Front, Objective
from .score import Score

__all__ = [
    "AverageSensitivity", "Ball", "Baseline", "Consensus", "ConsilienceError", "Draws", "Elements", "Explanation", "Front",
    "Gaussian", "Infidelity", "InputError", "MissingExtra", "Objective", "Patches", "Pixels", "Score", "Segments", "Uniform",
    "UnsupportedOp", "explain", "explainers", "load",
]  # fmt: skip
