"""A configuration in words, for records and tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..features.base import Features
from ..perturb.baseline import Baseline


def describe(value: Any) -> str:
    """``repr`` of a configuration, with arrays by their shape only."""
    if isinstance(value, Tensor | np.ndarray):
        return f"array{tuple(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(map(describe, value))})"
    if isinstance(value, Features) and not is_dataclass(value):
        return f"{type(value).__name__}({value.unit})"
    if is_dataclass(value) and not isinstance(value, type):
        # A baseline's tag is the address of its tensor: nothing that another run would know again.
        shown = [f.name for f in fields(value) if not (isinstance(value, Baseline) and f.name == "tag")]
        parts = (f"{name}={describe(getattr(value, name))}" for name in shown)
        return f"{type(value).__name__}({', '.join(parts)})"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(describe, value))})"
    if isinstance(value, Mapping):
        return f"({', '.join(f'{name}={describe(each)}' for name, each in value.items())})"
    text = repr(value)
    # An address is nothing that another run would know again.
    return getattr(value, "__qualname__", type(value).__qualname__) if " at 0x" in text else text
