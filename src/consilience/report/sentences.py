"""Sentences about records that the printed table and the page share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .criteria import PROMISES
from .reading import Record, listing, mapping, number, text


def promise(record: Record) -> str:
    """What the objective's optimum holds on the fitting draws; "" where that is not known."""
    objective = text(record, "objective")
    # In earlier versions "robust" was about another criterion.
    if objective == "robust" and "noise_over_signal" not in mapping(record, "criteria"):
        return ""
    return PROMISES.get(objective, "")


def shares(value: Any) -> str:
    """The shares of the features that masks take away: "20%", or the smallest and the largest, "10% to 60%"."""
    ends = [number({"share": end}, "share") for end in (value if isinstance(value, list | tuple) else [value])]
    known = [f"{end:.0%}" for end in ends if end is not None]
    if not known:
        return "some"
    return known[0] if len(known) == 1 else f"{known[0]} to {known[-1]}"


def draws(record: Record, stream: str) -> tuple[str, str]:
    """How many neighbours and masks the ``stream`` ("fit" or "fresh") had, as text.

    Of masks that stand for others, as many as there are different ones.
    """
    neighbours = text(record, "draws", stream, "average_sensitivity") or "?"
    masks = text(record, "draws", "masks", stream) or text(record, "draws", stream, "infidelity") or "?"
    return neighbours, masks


def warnings(records: Sequence[Record]) -> list[str]:
    """What speaks against the numbers, each sentence once."""
    return list(dict.fromkeys(str(warning) for record in records for warning in listing(record, "warnings")))


SUMS, SHAPES = 0.1, 0.5
"""By how much of f(x) − f(baseline) a map's sum may be off, before that is a warning: where the numbers are contributions in
units of the score, and where they are scaled, so that only the map's shape is shown. A quadrature converges sooner in its shape
than in its sum: on four photographs integrated gradients of 16 steps miss 0 to 39 % of the sum, and correlate .94 to .99 with
those of 100 steps (50 steps: 3 to 13 %, and .99)."""


def incomplete(records: Sequence[Record]) -> list[str]:
    """A warning for each method that claims to add up to the score's change and misses it by too much somewhere."""
    allowed = SUMS if _in_units(records[0]) else SHAPES
    return [
        f"{name}: its map adds up to f(x) − f(baseline) within {error:.0%} only; "
        f"{_completing(text(records[0], 'settings', 'explainers', name), error)}"
        for name, error in _largest_errors(records).items()
        if error > allowed
    ]


def nearly_complete(records: Sequence[Record]) -> list[str]:
    """A line that says how far maps are from adding up where that is no warning, because no sum is shown."""
    if _in_units(records[0]):
        return []
    errors = {name: error for name, error in _largest_errors(records).items() if SUMS < error <= SHAPES}
    if not errors:
        return []
    shown = ", ".join(f"{name} {error:.0%}" for name, error in errors.items())
    return [
        f"before scaling, sums are off f(x) − f(baseline) by up to: {shown}; this is no matter for scaled maps, for "
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
    """What brings a method nearer to adding up. ``configured``: the method with its settings, as ``repr`` shows it."""
    if abs(error - 1) < 1e-6:
        return (
            "it adds up to zero although the score changes, as where a model rounds or cuts its gradients, which more steps do "
            "not mend; use methods that need outputs only, e.g. feature_ablation"
        )
    for setting in ("n_steps", "n_samples", "permutations"):
        found = re.search(rf"^(\w+)\(.*?\b{setting}=(\d+)", configured)
        if found:
            return f"raise its {setting}, e.g. {found[1]}({setting}={4 * int(found[2])})"
    return "read its shares as relative"
