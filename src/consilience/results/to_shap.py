"""Turns a result into a ``shap.Explanation``, so that shap's plots can show it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, choose, need
from ..signatures import known_arguments
from .explanation import Explanation


@known_arguments()
def to_shap(explanation: Explanation, row: str = "consensus", feature_names: Sequence[str] | None = None) -> Any:
    """One row of a result as a ``shap.Explanation``, for shap's plots.

    It works for contributions to the score only: a method of that kind, "mean" of such methods, or a consensus of them.

    ``values`` are the row's maps (B, *A) in units of the score: the scale that :func:`consilience.explain` divided them by is
    multiplied again. A mixture Σ w_j φ_j / s_j is divided by Σ w_j / s_j, which makes it a mean of contributions. So
    importances over many inputs rank features by how far they move the score.

    ``data`` are the inputs, where they have the same axes. For pixels, values are (B, H, W, 1) and data (B, H, W, C), as
    ``shap.image_plot`` expects them.

    ``base_values`` (B,) are what the sum starts from, score(x) − Σ values. For signed maps (``sign="keep"``) of complete
    methods and their mixtures, that is the score at their baseline, or the mean score over a data set, up to the completeness
    error.
    For absolute values, and for methods that are not complete, there is no such number, and it is NaN: plots of sums
    (waterfall, force) need it, others (bar, beeswarm, image) do not.

    Args:
        explanation: a result, computed or loaded.
        row: a method, "mean" or "consensus".
        feature_names: (A,), names of the features; None: those of the result.

    Returns:
        The ``shap.Explanation`` with ``values``, ``base_values`` and ``data``.

    Raises:
        InputError: the row is made of maps that are not contributions, or its weights cancel; the error names it.
        MissingExtra: shap is not installed.

    Example:
        >>> import torch, consilience as cs
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        >>> r = cs.explain(
        ...     net, torch.ones(2, 4), methods=["integrated_gradients", "deeplift"], sign="keep",
        ...     objective="robust", fit_draws=4, fresh_draws=4)
        >>> shown = to_shap(r, feature_names=["age", "height", "weight", "pulse"])  # doctest: +SKIP
        >>> shap.plots.waterfall(shown[0])  # doctest: +SKIP
    """
    row = choose("row", row, [*explanation.methods, "mean", "consensus"])
    if row == "consensus" and explanation.posterior is not None:
        # It is in units of the score already. The sum starts from what its regression predicts with all features removed.
        values = explanation.attribution.detach().cpu().double()
        base = explanation.score.detach().cpu().double() - values.flatten(1).sum(1)
        return _shown(explanation, values, base, feature_names)
    weights = _weights(explanation, row)
    used = [name for name, w in zip(explanation.methods, weights.T, strict=True) if bool((w != 0).any())]
    kinds = dict(zip(explanation.methods, explanation.kinds, strict=True))
    others = [name for name in used if kinds[name] != "contribution"]
    if others:
        raise InputError(
            f"row: {row!r} is made of {', '.join(others)}, which give no contributions to the score; use a row of methods "
            "that do (integrated_gradients, deeplift, input_x_gradient, …)"
        )
    values = explanation[row].detach().cpu().double()
    unit = _unit(explanation, weights)
    values = values * unit.view(-1, *[1] * (values.ndim - 1))
    base = explanation.score.detach().cpu().double() - values.flatten(1).sum(1)
    incomplete = torch.tensor([name not in explanation.completeness for name in explanation.methods])
    unknown = (weights[:, incomplete] != 0).any(1) | (explanation.settings["sign"] != "keep")
    base[unknown] = torch.nan
    return _shown(explanation, values, base, feature_names)


def _shown(explanation: Explanation, values: Tensor, base: Tensor, feature_names: Sequence[str] | None) -> Any:
    """shap's object, with the inputs beside the values.

    Args:
        explanation: the result.
        values: (B, *A), contributions.
        base: (B,), what their sums start from.
        feature_names: (A,); None: those of the result.
    """
    if explanation.inputs is None:
        raise InputError("explanation: was saved by a version that did not keep the inputs; explain them again")
    x = explanation.inputs.detach()
    data = None
    if values.shape == x.shape:
        data = x.cpu().double().numpy()
    elif x.ndim == 4 and values.shape[1:] == x.shape[2:]:
        # Pixels: shap wants channels last.
        values = values[..., None]
        data = x.permute(0, 2, 3, 1).cpu().double().numpy()
    names = explanation.feature_names
    if feature_names is not None:
        names = list(feature_names)
    return need("shap", "shap").Explanation(values.numpy(), base.numpy(), data, feature_names=names)


def _unit(explanation: Explanation, weights: Tensor) -> Tensor:
    """(B,): the factor that brings a row's map into units of the score; 1 where that is not known.

    Args:
        explanation: the result.
        weights: (B, k), of the methods in the row.
    """
    scales = explanation.scales.detach().cpu().double()
    share = torch.where(weights != 0, weights.double() / scales, 0.0)
    total = share.sum(1)
    if bool(total.isnan().any()):
        warnings.warn(
            "to_shap: the result was saved by a version that did not keep the scales of its maps, so values are scaled for "
            "each input by itself; explain again for values in units of the score",
            stacklevel=3,
        )
        return torch.ones_like(total)
    # Zero up to rounding.
    if bool((total.abs() <= 1e-9 * share.abs().sum(1)).any()):
        raise InputError(
            "row: its weights cancel in units of the score, so that it is not a mean of contributions; use signed=False"
        )
    return 1 / total


def _weights(explanation: Explanation, row: str) -> Tensor:
    """(B, k) on the CPU: the weight of each method in the row."""
    methods = explanation.methods
    count = len(explanation)
    if row in methods:
        return torch.eye(len(methods))[methods.index(row)].expand(count, -1)
    if row == "mean":
        working = torch.tensor([name not in explanation.failed for name in methods])
        return (working / working.sum()).expand(count, -1)
    mixing = explanation.mixing.cpu()
    if bool((mixing[:, len(methods) :] != 0).any()):
        raise InputError(f"row: the consensus is {explanation.objective}, which is not a sum of contributions")
    return mixing[:, : len(methods)]
