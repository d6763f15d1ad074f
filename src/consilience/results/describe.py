"""Writes a configuration as text, for records and tables: the same text in every run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..features.base import Features
from ..perturb.baseline import Baseline


def describe(value: Any) -> str:
    """``value``, a configuration, as its ``repr``, but arrays by their shape and objects without their addresses in memory."""
    if isinstance(value, Tensor | np.ndarray):
        return f"array{tuple(value.shape)}"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(describe, value))})"
    if isinstance(value, Mapping):
        return f"({_pairs(value)})"
    if is_dataclass(value) and not isinstance(value, type):
        shown = {f.name: getattr(value, f.name) for f in fields(value)}
        if isinstance(value, Baseline):
            del shown["tag"]  # holds the address of its tensor
        return f"{type(value).__name__}({_pairs(shown)})"
    if isinstance(value, Features):
        return f"{type(value).__name__}({value.unit})"
    text = repr(value)
    if " at 0x" in text:
        return getattr(value, "__qualname__", type(value).__qualname__)
    return text


def _pairs(values: Mapping[str, Any]) -> str:
    """ "name=value, …"."""
    return ", ".join(f"{name}={describe(each)}" for name, each in values.items())
