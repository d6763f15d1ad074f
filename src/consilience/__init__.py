"""consilience: feature attributions, their quality, the best combination of them, and training for better ones.

>>> import torch, consilience as cs
>>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
>>> r = cs.explain(net, torch.ones(2, 4), methods="gradient", objective="robust", fit_draws=4, fresh_draws=4)
>>> r.attribution.shape, r.weights.shape
(torch.Size([2, 4]), torch.Size([2, 6]))
"""

from __future__ import annotations

from . import explainers, measures, train
from .adapters import pack, segmentation, text
from .consensus import Consensus, Draws, Explanation, evaluate, explain, load
from .errors import ConsilienceError as ConsilienceError
from .errors import InputError as InputError
from .errors import MissingExtra as MissingExtra
from .errors import UnsupportedOp as UnsupportedOp
from .explainers import captum
from .features import Elements, Patches, Pixels, Segments
from .metrics import AverageSensitivity, Infidelity
from .neighbourhood import Ball as Ball
from .neighbourhood import Baseline
from .neighbourhood import Gaussian as Gaussian
from .neighbourhood import Uniform as Uniform
from .objective import Front, Objective
from .score import Score
from .units import Columns, Windows

# The names to know. Errors and neighbourhoods are importable from here too: cs.InputError, cs.Gaussian, …
__all__ = [
    "AverageSensitivity", "Baseline", "Columns", "Consensus", "Draws", "Elements", "Explanation", "Front",
    "Infidelity", "Objective", "Patches", "Pixels", "Score", "Segments", "Windows", "captum", "evaluate", "explain",
    "explainers", "load", "measures", "pack", "segmentation", "text", "train",
]  # fmt: skip
