"""consilience: feature attributions, their quality, the best combination of them, and training for better ones.

>>> import torch, consilience as cs
>>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
>>> r = cs.explain(net, torch.ones(2, 4), methods="gradient", objective="robust", fit_draws=4, fresh_draws=4)
>>> r.attribution.shape, r.weights.shape
(torch.Size([2, 4]), torch.Size([2, 6]))
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from . import _moved, explainers, measures, train
from .adapters import pack, segmentation, text
from .combine.draws import Draws
from .errors import ConsilienceError as ConsilienceError
from .errors import InputError as InputError
from .errors import MissingExtra as MissingExtra
from .errors import UnsupportedOp as UnsupportedOp
from .evaluate.evaluator import evaluate
from .explain.consensus import Consensus
from .explain.explain import explain
from .explainers import captum
from .features import Columns, Elements, Patches, Pixels, Segments, Windows
from .metrics import AverageSensitivity, Infidelity
from .metrics.front import Front
from .metrics.objective import Objective
from .model.arguments import constant as constant
from .model.arguments import per_input as per_input
from .model.outputs import Kind
from .model.score import Score
from .perturb.baseline import Baseline
from .perturb.neighbourhoods import Ball as Ball
from .perturb.neighbourhoods import Gaussian as Gaussian
from .perturb.neighbourhoods import Uniform as Uniform
from .results.explanation import Explanation
from .results.load import load

# The names to know. Errors and neighbourhoods are importable from here too: cs.InputError, cs.Gaussian, …
__all__ = [
    "AverageSensitivity", "Baseline", "Columns", "Consensus", "Draws", "Elements", "Explanation", "Front",
    "Infidelity", "Kind", "Objective", "Patches", "Pixels", "Score", "Segments", "Windows", "captum", "evaluate", "explain",
    "explainers", "load", "measures", "pack", "segmentation", "text", "train",
]  # fmt: skip

_moved.install()


def __getattr__(name: str) -> ModuleType:
    """A module of version 0.1 by its old name, such as ``consilience.keys``."""
    if name in _moved.MOVED:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
