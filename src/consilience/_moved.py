"""Module paths of version 0.1, which still import and say where their names live now.

A finder at the end of ``sys.meta_path`` makes an empty module for each old path. A name that is asked of it is looked up
in the modules that took its place. The table goes with version 0.3; see CONTRIBUTING, *Deprecation*.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED: dict[str, tuple[str, ...]] = {
    "keys": ("statistics.keys",),
    "score": ("model.score", "model.batching", "model.state"),
    "neighbourhood": ("perturb.neighbourhoods", "perturb.points", "perturb.baseline", "perturb.masks", "perturb.windows"),
    "masks": ("perturb.windows", "perturb.games", "perturb.soft_masks", "perturb.masks"),
    "units": ("features.tables", "features.sequences", "features.parts"),
    "quadratic": ("statistics.evidence", "statistics.criteria", "statistics.tensors"),
    "objective": ("metrics.objective", "metrics.front", "metrics.expressions", "metrics.cross_validation"),
    "layers": ("model.cam_layers",),
    "rules": ("model.backward_rules",),
    "linear": ("surrogates.local_linear",),
    "surrogate": ("surrogates.lime_maple", "surrogates.linear_fits"),
    "consensus": (
        "explain.explain", "explain.consensus", "evaluate.data_set", "evaluate.evaluator", "results.evaluation",
        "results.explanation",
        "results.load", "results.to_shap", "combine.draws", "combine.named",
    ),
}  # fmt: skip
"""Old module → the modules that took its place."""


class _Finder:
    """Finds the old paths, and makes their modules."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != __package__ or name not in MOVED:
            return None
        return ModuleSpec(fullname, _Finder, origin=__file__)  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        return None

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        places = MOVED[module.__name__.partition(".")[2]]

        def find(name: str) -> Any:
            for place in () if name.startswith("__") else places:
                home = importlib.import_module(f"{__package__}.{place}")
                value = getattr(home, name, None)
                # What a module only imports lives elsewhere.
                if value is not None and getattr(value, "__module__", home.__name__) == home.__name__:
                    warnings.warn(
                        f"{module.__name__}.{name} is {home.__name__}.{name} now", DeprecationWarning, stacklevel=3
                    )
                    return value
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        vars(module)["__getattr__"] = find


def install() -> None:
    """Let the old paths be imported."""
    if not any(finder is _Finder for finder in sys.meta_path):
        sys.meta_path.append(_Finder)
