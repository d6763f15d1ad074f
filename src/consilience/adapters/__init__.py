"""Models and inputs of other kinds, brought to the form that everything else takes: one tensor in, one vector out."""

from __future__ import annotations

from .base import Adapter, Inputs, Prepared, adapted
from .pack import Packed, pack
from .segmentation import Segmentation, segmentation
from .text import Text, text

__all__ = [
    "Adapter",
    "Inputs",
    "Packed",
    "Prepared",
    "Segmentation",
    "Text",
    "adapted",
    "pack",
    "segmentation",
    "text",
]
