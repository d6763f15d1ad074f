"""How measures read a task: its maps in float64, which features its inputs have, and the region of the evidence.

The interface of a measure itself, :class:`~consilience.task.Measure`, is in :mod:`..task`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from ..perturb import points
from ..statistics.ranks import without_rounding
from ..statistics.tensors import exact
from ..task import Task


def flattened(maps: Tensor) -> Tensor:
    """``maps`` (N, R, *A) as (N, R, A) float64."""
    return exact(maps.flatten(2))


def flattened_for_order(maps: Tensor) -> Tensor:
    """``maps`` (N, R, *A) as (N, R, A) float64 without rounding, for measures of order and sign: see
    :func:`~..statistics.ranks.without_rounding`."""
    return without_rounding(maps.flatten(2))


def present_features(task: Task) -> Tensor | None:
    """(B, A) bool: which features each input of the ``task`` has; None where every input has all."""

    def make() -> Tensor | None:
        has = points.present(task.features, task.points)
        if bool(has.all()):
            return None
        return has.to(exact(task.maps[:0]).device)

    return task.once("present", make)


def present_in(task: Task, which: slice = slice(None)) -> Tensor | None:
    """Which features some inputs have, (n, 1, A) bool, to be broadcast over rows; None where every input has all.

    Args:
        task: what is judged.
        which: of its inputs; all by default.
    """
    present = present_features(task)
    if present is None:
        return None
    return present[which][:, None]


def region(task: Task) -> Tensor:
    """(B, 1, A) bool: where the evidence of the ``task``'s inputs is, among the features that they have.

    Raises:
        InputError: the task has no regions, or of another shape than its maps.
    """
    if task.regions is None:
        raise InputError("regions: this measure needs the region where the evidence is known to be, (B, *A) bool")
    if task.regions.shape != task.maps.shape[:1] + task.maps.shape[2:]:
        expected = tuple(task.maps.shape[:1] + task.maps.shape[2:])
        raise InputError(
            f"regions: shape {tuple(task.regions.shape)}, expected {expected}: one place for each feature of the maps; "
            "reduce masks over elements to features first, e.g. features.reduce(mask, owner) > 0"
        )
    inside = task.regions.flatten(1).bool().to(exact(task.maps[:0]).device)
    present = present_features(task)
    if present is not None:
        inside = inside & present
    return inside[:, None]


def nan_unless(defined: Tensor, value: Tensor) -> Tensor:
    """``value`` where it is ``defined`` (bool), NaN elsewhere."""
    return torch.where(defined, value, torch.nan)
