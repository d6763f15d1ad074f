"""What is attributed: elements, pixels, patches, segments, columns, tokens, windows."""

from __future__ import annotations

from .base import Elements, Features
from .images import Patches, Pixels, Segments
from .parts import Parts
from .sequences import Tokens, Windows
from .tables import Columns

__all__ = ["Columns", "Elements", "Features", "Parts", "Patches", "Pixels", "Segments", "Tokens", "Windows"]
