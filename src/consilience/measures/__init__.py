"""Measures: one number for each input and each attribution, by definitions that are not quadratic in the map."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import InputError, choose
from .base import Measure, Task

MEASURES: dict[str, type[Measure]] = {}

SETS: dict[str, tuple[str, ...]] = {"default": (), "all": tuple(MEASURES)}

__all__ = ["MEASURES", "SETS", "Measure", "Task", "resolve"]


def resolve(measures: str | Measure | Iterable[str | Measure]) -> list[Measure]:
    """A set's name, names ("road,gini_sparseness" or a list) or configured measures → measures, in order."""
    if isinstance(measures, Measure):
        return [measures]
    given = [part.strip() for part in measures.split(",")] if isinstance(measures, str) else list(measures)
    found: list[Measure] = []
    for item in given:
        if isinstance(item, Measure):
            found.append(item)
        elif not isinstance(item, str):
            raise InputError(f"measures: names or configured measures, got {type(item).__name__}")
        else:
            names = SETS.get(item) or (choose("measure", item, [*MEASURES, *SETS]),)
            found.extend(MEASURES[name]() for name in names)
    if not found:
        raise InputError("measures: at least one is needed")
    return found
