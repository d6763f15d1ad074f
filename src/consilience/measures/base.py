"""What a measure is: a configuration that gives one number for each input and each attribution of it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from ..perturb import points
from ..statistics.ranks import without_rounding
from ..statistics.tensors import exact
from ..task import Measure as Measure
from ..task import Task


def flat(maps: Tensor) -> Tensor:
    """``maps`` (N, R, *A) as (N, R, A) float64."""
    return exact(maps.flatten(2))


def ordered(maps: Tensor) -> Tensor:
    """``maps`` (N, R, *A) as (N, R, A) float64 without rounding, for measures of order and sign: see
    :func:`~..statistics.ranks.without_rounding`."""
    return without_rounding(maps.flatten(2))


def present(task: Task) -> Tensor | None:
    """(B, A) bool: which features each input of the ``task`` has; None where every input has all."""

    def make() -> Tensor | None:
        has = points.present(task.features, task.points)
        if bool(has.all()):
            return None
        return has.to(exact(task.maps[:0]).device)

    return task.once("present", make)


def some(present: Tensor | None, which: slice | Tensor) -> Tensor | None:
    """(n, 1, A): ``present`` (B, A) of the inputs ``which``, to be broadcast over rows; None stays None."""
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
    there = present(task)
    if there is not None:
        inside = inside & there
    return inside[:, None]


def check_share(measure: Measure, k: int | float) -> None:
    """Refuse fractions beyond 1 for a number of features that below 1 is a share of them.

    Args:
        measure: whose setting it is.
        k: the setting.

    Raises:
        InputError: ``k`` is such a fraction.
    """
    if k >= 1 and int(k) != k:
        raise InputError(f"{type(measure).__name__}: k is a whole number, or a share above 0 and below 1; got {k!r}")


def none_is_nan(value: Tensor, where: Tensor) -> Tensor:
    """``value``, and NaN where the condition ``where`` fails."""
    return torch.where(where, value, torch.nan)
