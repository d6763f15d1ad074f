"""Attributions measured, combined, judged: the main job."""

from __future__ import annotations

from .consensus import Consensus
from .explain import explain
from .files import Saved, load
from .result import Explanation
from .setting import FIT, FRESH, OBJECTIVES, PAPER_FIT, PAPER_FRESH, TERMS, Draws, aim

__all__ = [
    "FIT", "FRESH", "OBJECTIVES", "PAPER_FIT", "PAPER_FRESH", "TERMS",
    "Consensus", "Draws", "Explanation", "Saved", "aim", "explain", "load",
]  # fmt: skip
