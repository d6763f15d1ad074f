"""Finds table columns without a gradient: codes of categories, and whatever a model looks up or rounds.

A network that casts a column by ``.long()`` and looks it up in an embedding has a gradient of exactly zero there. Methods
that follow gradients would silently give that column no importance, however much the score depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import ConsilienceError, InputError
from ..features.base import Features
from ..features.tables import Columns
from ..model.score import Score
from ..perturb.baseline import Baseline
from ..perturb.points import Points
from ..statistics.tensors import exact
from .base import Direct, Explainer
from .stack import Stack

INPUTS = 8
"""So many inputs are tried."""

EXCHANGES = 4
"""So many other rows lend each of them their values."""

CHANGE = 1e-6
"""A change of the score that is smaller than this, relative to its size, may be rounding."""


def follows_gradients(explainer: Explainer, shape: Sequence[int]) -> bool:
    """Whether an explainer takes gradients of the model.

    Args:
        explainer: the method.
        shape: the axes F of one input.
    """
    if isinstance(explainer, Direct):
        return explainer.rows(shape).get("gradient", 0) > 0
    return explainer.need.gradient or explainer.need.layer is not None


def why_no_gradients(score: Score, points: Points, features: Features, baseline: Baseline | None) -> str:
    """Why methods that follow gradients cannot explain these points; "" where they can.

    Columns that are declared as categorical are a reason. So are columns of whole numbers whose gradient is exactly zero at
    the first inputs, although the score changes when their values are exchanged for others that occur.

    Args:
        score: the model's score. Costs one gradient for each of at most 8 inputs, where columns hold whole numbers only, and
            forward evaluations where such a gradient is zero.
        points: a table's rows (N, columns); for other inputs the answer is "".
        features: what is attributed.
        baseline: other rows that occur, if it is a data set.
    """
    if points.x.ndim != 2:
        return ""
    shape = points.x.shape[1:]
    declared = features.codes(shape)
    if declared is not None and bool(declared.any()):
        return f"{_named(declared, features)} of codes, between which there is nothing to follow"
    if not isinstance(score.model, nn.Module):
        return ""
    cut = _looked_up(score, points[:INPUTS], baseline)
    if not bool(cut.any()):
        return ""
    return (
        f"the gradient is exactly zero along {_named(cut, features)} although the score changes with its values: are these "
        "codes that the model looks up (.long(), an embedding) or rounds? Say features=Columns(categorical=[…])"
    )


def without_gradients(stack: Stack, why: str, shape: Sequence[int]) -> tuple[Stack, dict[str, str]]:
    """The stack without methods that follow gradients, and by name why each of them was left out.

    Args:
        stack: all methods.
        why: the reason, of :func:`why_no_gradients`.
        shape: the axes F of one input.

    Raises:
        InputError: no method is left.
    """
    kept: list[int] = []
    failed: dict[str, str] = {}
    for index, (name, explainer) in enumerate(zip(stack.names, stack.explainers, strict=True)):
        if follows_gradients(explainer, shape):
            failed[name] = (
                f"{name} follows the gradient: {why}; use methods that need outputs only, e.g. shapley_sampling"
            )
        else:
            kept.append(index)
    if not kept:
        raise InputError(f"methods: none works on this model. {'; '.join(failed.values())}")
    return stack.only(kept), failed


def _looked_up(score: Score, points: Points, baseline: Baseline | None) -> Tensor:
    """(columns,) bool: columns of whole numbers on which the score depends, with a gradient of exactly zero."""
    x = points.x
    nothing = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
    whole = (x == x.round()).all(0)
    if not bool(whole.any()):
        return nothing
    try:
        gradient = score.grad(x, points.owner)
    except (ConsilienceError, RuntimeError):
        return nothing  # the model has no gradient at all, which each method reports by itself
    zero = whole & (gradient == 0).all(0)
    if not bool(zero.any()):
        return nothing
    rows = x
    if baseline is not None and baseline.is_data(1):
        rows = torch.cat([x, baseline.rows(x)])
    # All at once first: in most tables nothing changes, and that is seen after one try.
    if not _score_changes(score, points, rows, zero):
        return nothing
    alone = [_score_changes(score, points, rows, one) for one in torch.diag(zero)[zero]]
    looked_up = zero.clone()
    looked_up[zero] = torch.tensor(alone, device=x.device)
    if bool(looked_up.any()):
        return looked_up
    return zero  # only several columns together change the score: all of them are named


def _score_changes(score: Score, points: Points, rows: Tensor, columns: Tensor) -> bool:
    """Whether the score changes when the values in ``columns`` (d,) bool are exchanged for those of other ``rows`` (n, d)."""
    x = points.x
    numbers = torch.arange(len(x), device=x.device)
    clean = exact(score(x, points.owner))
    for shift in range(1, min(EXCHANGES, len(rows) - 1) + 1):
        # Even steps through all rows, since neighbouring rows of a table are often alike.
        step = max(1, len(rows) // (EXCHANGES + 1))
        other = rows[(numbers + shift * step) % len(rows)]
        exchanged = exact(score(torch.where(columns, other, x), points.owner))
        if bool(((exchanged - clean).abs() > CHANGE * clean.abs().clamp(min=1)).any()):
            return True
    return False


def _named(columns: Tensor, features: Features) -> str:
    """Columns (d,) bool in words: "column 3", "columns age, job"."""
    numbers = columns.nonzero()[:, 0].tolist()
    names = [str(number) for number in numbers]
    if isinstance(features, Columns) and features.columns:
        names = [features.columns[number] for number in numbers]
    shown = ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
    return f"column{'s' * (len(names) > 1)} {shown}"
