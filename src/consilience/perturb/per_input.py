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
    """The same for the inputs at these ``places`` (n,) in the data set.

    Args:
        spec: features or a baseline; an explainer, metric or measure, whose own are taken; a sequence of these; anything else
            is returned as it is.
        places: of the batch's inputs, 0, 1, … in the order of what was given.

    Raises:
        InputError: there is no row for a place.
    """
    if isinstance(spec, Features | Baseline):
        return spec.take(places)
    if type(spec) in (list, tuple):
        found = [taken(each, places) for each in spec]
        changed = any(after is not before for after, before in zip(found, spec, strict=True))
        return type(spec)(found) if changed else spec
    if not is_dataclass(spec) or isinstance(spec, type):
        return spec
    own = {}
    for each in fields(spec):
        before = getattr(spec, each.name) if each.init else None
        after = taken(before, places)
        if after is not before:
            own[each.name] = after
    return replace(spec, **own) if own else spec
