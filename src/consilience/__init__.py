"""consilience: feature attributions, their quality, the best combination of them, and training for better ones.

>>> import torch, consilience as cs
>>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
>>> r = cs.explain(net, torch.ones(2, 4), methods="gradient", objective="robust", fit_draws=4, fresh_draws=4)
>>> r.attribution.shape, r.weights.shape
(torch.Size([2, 4]), torch.Size([2, 6]))
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import _moved

if TYPE_CHECKING:
    from ._public import *

    __version__: str

# The names to know. Errors and neighbourhoods are importable from here too: cs.InputError, cs.Gaussian, …
__all__ = [
    "AverageSensitivity", "Baseline", "Columns", "Consensus", "Draws", "Elements", "Evaluator", "Explanation", "Front",
    "Infidelity", "Kind", "Objective", "Patches", "Pixels", "Score", "Segments", "Windows", "captum", "doctor", "evaluate",
    "explain", "explainers", "load", "measures", "pack", "segmentation", "text", "to_shap", "train",
]  # fmt: skip

_FUNCTIONS = {"doctor", "evaluate", "explain"}
"""Functions that live in modules of the same name."""


class _Package(ModuleType):
    """This package. Its names are imported when the first is asked for: torch takes seconds, and the command line's help,
    ``consilience --version`` and an import somewhere else need none of it."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing consilience.explain.run binds the module consilience.explain here; the name is the function's.
        if not (name in _FUNCTIONS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    """``__version__``, a module, also of version 0.1 by its old name (``consilience.keys``), or a public name."""
    if name == "__version__":
        from .results.files import versions

        return versions()["consilience"]
    if not name.startswith("_"):
        # Modules one by one: they ask for each other here while they are imported.
        if name not in _FUNCTIONS and find_spec(f"{__name__}.{name}") is not None:
            return import_module(f"{__name__}.{name}")
        public = import_module(f"{__name__}._public")
        names = {each: value for each, value in vars(public).items() if not each.startswith("_")}
        globals().update(names)
        if name in names:
            return names[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


_moved.install()
sys.modules[__name__].__class__ = _Package
