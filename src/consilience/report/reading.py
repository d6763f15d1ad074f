"""Reads parts of a record without ever failing: what is absent, or of another type, counts as missing.

Records come from files, which may be damaged or of an earlier version, and a report shows what there is.
"""

from __future__ import annotations

import math
from typing import Any

Record = dict[str, Any]
"""What ``explanation.json`` holds of one input."""


def part(record: Any, *path: str) -> Any:
    """What lies in ``record`` under the keys ``path``, one inside the other; None where there is nothing."""
    value = record
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def mapping(record: Any, *path: str) -> dict[str, Any]:
    """The mapping in ``record`` at ``path``; an empty one where there is none."""
    value = part(record, *path)
    return value if isinstance(value, dict) else {}


def listing(record: Any, *path: str) -> list[Any]:
    """The list in ``record`` at ``path``; an empty one where there is none."""
    value = part(record, *path)
    return list(value) if isinstance(value, list | tuple) else []


def number(record: Any, *path: str) -> float | None:
    """The finite number in ``record`` at ``path``; None where there is none."""
    value = part(record, *path)
    # True and False are integers for Python.
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def text(record: Any, *path: str) -> str:
    """What is in ``record`` at ``path`` as text; "" where there is nothing."""
    value = part(record, *path)
    return "" if value is None else str(value)
