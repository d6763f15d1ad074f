"""Objectives written as text: a name, or a weighted sum of names."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import InputError, choose
from .base import Metric
from .front import Front, Goal
from .objective import Objective


def parse_objective(expression: str, named: Mapping[str, Goal | Metric]) -> Goal:
    """What a name or a sum such as ``"relative_sensitivity + 0.5*infidelity"`` means.

    Args:
        expression: names, positive factors, ``+`` and ``*`` only.
        named: what names mean.

    Raises:
        InputError: a name is not known, a factor is not a positive number, or a front is part of a sum.
    """
    parts = [_factor_and_name(part) for part in expression.split("+")]
    if len(parts) == 1 and not parts[0][0]:
        return _as_goal(named[choose("objective", parts[0][1], named)])
    total: Objective | None = None
    for factor, name in parts:
        term = named[choose("objective", name, named)]
        if isinstance(term, Front):
            raise InputError(f"objective: {name!r} is a front between two criteria and cannot be part of a sum")
        scaled = term * _number(factor, expression)
        if total is None:
            total = scaled
        else:
            total = total + scaled
    assert total is not None
    return total


def _number(factor: str, expression: str) -> float:
    """A factor as a number; 1 where there is none."""
    if not factor:
        return 1.0
    try:
        return float(factor)
    except ValueError as error:
        raise InputError(f"objective: {factor!r} in {expression!r} is not a number") from error


def _factor_and_name(part: str) -> tuple[str, str]:
    """("0.5", "infidelity") of "0.5*infidelity"; the factor is "" where there is none."""
    factor, _, name = part.rpartition("*")
    return factor.strip(), name.strip()


def _as_goal(term: Goal | Metric) -> Goal:
    if isinstance(term, Metric):
        return Objective(((1.0, term),))
    return term
