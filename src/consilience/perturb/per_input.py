"""What was given for every input of a data set, for the inputs of one batch.

Segments with labels of their own, tokens, and ``Baseline.per_input(rows)`` have one row for each input. A loader gives some
inputs at a time, so its batches take the rows of their inputs, by their places in the data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor

from ..features.base import Features
from .baseline import Baseline


def taken(spec: Any, places: Tensor | Sequence[int]) -> Any:
    """What was given for a whole data set, for the inputs of one batch.

    Args:
        spec: features or a baseline; an explainer, metric or measure, whose own are taken; a sequence of these; anything else
            is returned as it is.
        places: (n,), of the batch's inputs among all for which rows were given, from 0.

    Returns:
        a copy, or the same object where nothing in it differs by input.

    Raises:
        InputError: a place has no row.
    """
    if isinstance(spec, Features | Baseline):
        return spec.take(places)
    # Named tuples are left as they are: they are not made from one iterable.
    if type(spec) in (list, tuple):
        items = [taken(each, places) for each in spec]
        changed = any(after is not before for after, before in zip(items, spec, strict=True))
        return type(spec)(items) if changed else spec
    if not is_dataclass(spec) or isinstance(spec, type):
        return spec
    changes = {}
    for each in fields(spec):
        if not each.init:  # made by the class itself, from the others
            continue
        before = getattr(spec, each.name)
        after = taken(before, places)
        if after is not before:
            changes[each.name] = after
    return replace(spec, **changes) if changes else spec
