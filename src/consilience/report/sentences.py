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


def incomplete(records: Sequence[Record]) -> list[str]:
    """A line for each method that claims to add up to the score's change and misses it by more than a tenth somewhere."""
    worst: dict[str, float] = {}
    for record in records:
        for name in mapping(record, "completeness_error"):
            error = number(record, "completeness_error", name) or 0.0
            worst[name] = max(worst.get(name, 0.0), error)
    return [
        f"{name}: its map adds up to f(x) − f(baseline) within {error:.0%} only; "
        f"{_completing(text(records[0], 'settings', 'explainers', name), error)}"
        for name, error in worst.items()
        if error > 0.1
    ]


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
