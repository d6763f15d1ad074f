"""Columns along which there is no gradient: codes of categories, and whatever a model looks up or rounds.

A network that casts a column by ``.long()`` and looks it up in an embedding has a gradient of exactly zero there. Methods
that follow gradients give the column no importance then, without a word, however much the score depends on it.
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
"""Inputs whose gradients are looked at."""

EXCHANGES = 4
"""Other rows whose values each of them gets."""

CHANGE = 1e-6
"""The smallest change of the score, relative to its size, that is no rounding."""


def follows_gradients(explainer: Explainer, shape: Sequence[int]) -> bool:
    """Whether an explainer takes gradients of the model, for inputs with axes ``shape``."""
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
    """The stack without methods that follow gradients, and why each of them was left out.

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
    """(columns,) bool: whole numbers that the score depends on, with a gradient of exactly zero."""
    x = points.x
    nothing = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
    whole = (x == x.round()).all(0)
    if not bool(whole.any()):
        return nothing
    try:
        gradient = score.grad(x, points.owner)
    except (ConsilienceError, RuntimeError):
        return nothing  # each method says itself that there is no gradient
    still = whole & (gradient == 0).all(0)
    if not bool(still.any()):
        return nothing
    rows = x
    if baseline is not None and baseline.is_data(1):
        rows = torch.cat([x, baseline.rows(x)])
    if not bool(_moves(score, points, rows, still)):
        return nothing
    alone = [_moves(score, points, rows, one) for one in torch.diag(still)[still]]
    looked_up = still.clone()
    looked_up[still] = torch.tensor(alone, device=x.device)
    if bool(looked_up.any()):
        return looked_up
    return still  # only several together change the score: all are named


def _moves(score: Score, points: Points, rows: Tensor, columns: Tensor) -> bool:
    """Whether the score changes when the values in ``columns`` (d,) bool are exchanged for those of other ``rows`` (n, d)."""
    x = points.x
    numbers = torch.arange(len(x), device=x.device)
    clean = exact(score(x, points.owner))
    for shift in range(1, min(EXCHANGES, len(rows) - 1) + 1):
        # Even steps through the rows, since neighbours may be alike.
        other = rows[(numbers + shift * max(1, len(rows) // (EXCHANGES + 1))) % len(rows)]
        there = exact(score(torch.where(columns, other, x), points.owner))
        if bool(((there - clean).abs() > CHANGE * clean.abs().clamp(min=1)).any()):
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
