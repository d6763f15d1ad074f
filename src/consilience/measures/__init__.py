"""Measures: one number for each input and each attribution, by definitions that are not quadratic in the map."""

from __future__ import annotations

from .base import Measure, Task

__all__ = ["Measure", "Task"]
