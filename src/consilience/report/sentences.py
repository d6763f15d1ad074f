"""Sentences about records, for the printed table and for the page: promises, draws, warnings, completeness."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .criteria import PROMISES
from .reading import Record, listing, mapping, number, text


def promise(record: Record) -> str:
    """What the optimum of the objective of ``record`` guarantees on the fitting draws; "" where that is not known."""
    objective = text(record, "objective")
    # In earlier versions "robust" was about another criterion.
    if objective == "robust" and "noise_over_signal" not in mapping(record, "criteria"):
        return ""
    return PROMISES.get(objective, "")


def shares(value: Any) -> str:
    """The shares of the features that masks remove, as text: "20%", or "10% to 60%".

    Args:
        value: the record's setting ``mask_share``: one share, or the smallest and the largest.
    """
    given = value if isinstance(value, list | tuple) else [value]
    ends = [number({"share": end}, "share") for end in given]
    known = [f"{end:.0%}" for end in ends if end is not None]
    if not known:
        return "some"
    if len(known) == 1:
        return known[0]
    return f"{known[0]} to {known[-1]}"


def draws(record: Record, stream: str) -> tuple[str, str]:
    """How many neighbours and how many masks one stream of draws had, as text; "?" where that is not known.

    Args:
        record: the input's.
        stream: "fit" or "fresh".
    """
    # One mask may stand for several equal ones: "masks" counts different ones, and is absent in earlier versions.
    neighbours = text(record, "draws", stream, "average_sensitivity") or "?"
    masks = text(record, "draws", "masks", stream) or text(record, "draws", stream, "infidelity") or "?"
    return neighbours, masks


def warnings(records: Sequence[Record]) -> list[str]:
    """The warnings in ``records`` about their numbers, each sentence once."""
    return list(dict.fromkeys(str(warning) for record in records for warning in listing(record, "warnings")))


SUMS = 0.1
"""The largest error of a map's sum without a warning, as a share of f(x) − f(baseline), for maps in units of the score."""

SHAPES = 0.5
"""The same for scaled maps, of which only the shape is shown. The shape of a quadrature converges sooner than its sum: on four
photographs integrated gradients of 16 steps miss 0 to 39 % of the sum, and correlate .94 to .99 with those of 100 steps (50
steps: 3 to 13 %, and .99)."""


def incomplete(records: Sequence[Record]) -> list[str]:
    """A warning for each method whose maps should add up to f(x) − f(baseline), and do not for some of the ``records``."""
    allowed = SUMS if _in_units(records[0]) else SHAPES
    return [
        f"{name}: its map adds up to f(x) − f(baseline) within {error:.0%} only; "
        f"{_completing(text(records[0], 'settings', 'explainers', name), error)}"
        for name, error in _largest_errors(records).items()
        if error > allowed
    ]


def nearly_complete(records: Sequence[Record]) -> list[str]:
    """A line on sums that are somewhat wrong in ``records`` of scaled maps, where that deserves a note but not a warning."""
    if _in_units(records[0]):
        return []
    errors = {name: error for name, error in _largest_errors(records).items() if SUMS < error <= SHAPES}
    if not errors:
        return []
    shown = ", ".join(f"{name} {error:.0%}" for name, error in errors.items())
    return [
        f"before scaling, sums differ from f(x) − f(baseline) by up to: {shown}; scaled maps hardly depend on it; for "
        "contributions in units of the score raise n_steps or n_samples"
    ]


def _in_units(record: Record) -> bool:
    """Whether maps are signed and unscaled, so that their sums mean something."""
    return text(record, "settings", "sign") == "keep" and text(record, "settings", "scale") == "none"


def _largest_errors(records: Sequence[Record]) -> dict[str, float]:
    """Method → its largest completeness error over the records."""
    worst: dict[str, float] = {}
    for record in records:
        for name in mapping(record, "completeness_error"):
            error = number(record, "completeness_error", name) or 0.0
            worst[name] = max(worst.get(name, 0.0), error)
    return worst


def _completing(configured: str, error: float) -> str:
    """A remedy for a map that does not add up.

    Args:
        configured: the method with its settings, as ``repr`` shows it.
        error: its completeness error.
    """
    # |0 − Δf| / |Δf| is 1: the gradients were zero all along the path.
    if abs(error - 1) < 1e-6:
        return (
            "it adds up to zero although the score changes, as where a model rounds or cuts its gradients, which more steps do "
            "not mend; use methods that need outputs only, e.g. feature_ablation"
        )
    for setting in ("n_steps", "n_samples", "permutations"):
        match = re.search(rf"^(\w+)\(.*?\b{setting}=(\d+)", configured)
        if match:
            return f"raise its {setting}, e.g. {match[1]}({setting}={4 * int(match[2])})"
    return "read its shares as relative"
