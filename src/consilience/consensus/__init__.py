"""Attributions measured, combined, judged: the main job."""

from __future__ import annotations

from .consensus import Consensus
from .evaluate import Evaluator, evaluate
from .evaluation import Comparison, Evaluation
from .explain import explain
from .files import Saved, load
from .interop import to_shap
from .result import Explanation
from .setting import FIT, FRESH, OBJECTIVES, PAPER_FIT, PAPER_FRESH, TERMS, Draws, aim

__all__ = [
    "FIT", "FRESH", "OBJECTIVES", "PAPER_FIT", "PAPER_FRESH", "TERMS",
    "Comparison", "Consensus", "Draws", "Evaluation", "Evaluator", "Explanation", "Saved", "aim", "evaluate", "explain", "load",
    "to_shap",
]  # fmt: skip
