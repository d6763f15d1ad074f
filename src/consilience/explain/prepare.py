"""What an explanation and an evaluation start from: a resolved score, the inputs that can be used, the methods that work."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..adapters import adapted
from ..combine.measurement import Setting, metrics_of
from ..errors import InputError
from ..explainers import Explainer, Normalised, Stack, resolve
from ..explainers.codes import follows_gradients, why_no_gradients, without_gradients
from ..features.base import Elements, Features
from ..features.frames import column_names, plain_array
from ..features.images import Pixels, features_for
from ..features.tables import Columns
from ..metrics.front import Aim
from ..model.score import Score, precision_of
from ..model.state import check_ready
from ..perturb.baseline import COMPUTED, Baseline
from ..perturb.neighbourhoods import noise_unit
from ..perturb.points import Points


@dataclass(frozen=True)
class Ready:
    """``points``: the inputs that are left (``left``: their places in the caller's batch, whose numbering owners keep);
    ``out``: why others were left out; ``failed``: methods that do not work on this model, and why; ``baseline``: what the
    caller, or the adapter, gave as absent."""

    x: Tensor
    left: Tensor
    score: Score
    points: Points
    setting: Setting
    explainers: list[Explainer]
    names: tuple[str, ...]
    failed: dict[str, str]
    out: dict[int, str]
    kwargs: dict[str, Any]
    about: dict[str, Any]
    warnings: tuple[str, ...]
    noise_unit: str
    baseline: Baseline | None

    @property
    def reasons(self) -> dict[str, str]:
        return {f"inputs[{i}]": why for i, why in self.out.items()}


def prepare(
    model: nn.Module | Callable,
    x: Tensor | np.ndarray,
    target: Any,
    goal: Aim | str,
    *,
    methods: str | Explainer | Iterable[str | Explainer],
    seed: int,
    kind: str | Callable,
    features: Features | str | None,
    baselines: Any,
    sign: str | None,
    scale: str,
    kwargs: Mapping[str, Any] | None,
    ids: Sequence[int] | Tensor | None,
    max_batch: int | str,
    precision: str | None = None,
) -> Ready:
    """Check the arguments, evaluate the model once, and try every method on one point."""
    columns = column_names(x)
    x, target = plain_array(x, "x"), plain_array(target, "target")
    given = adapted(model, x, target, features, plain_array(baselines, "baselines"), kwargs)
    model, features = given.model, given.features
    x, numpy = _tensor(given.x, model)
    baseline = None if given.baselines is None else Baseline.of(given.baselines, x)
    features = _of_table(features, columns, x, baseline)
    # Of the names only patches are few enough to be taken away one by one.
    named = features_for(features, x.shape[1:]) if isinstance(features, str) and features == "patches" else features
    explainers = resolve(methods, baseline, named if isinstance(named, Features) else None)
    good, out = _finite(x, model)
    if ids is not None:
        listed = ids.tolist() if isinstance(ids, Tensor | np.ndarray) else list(ids)
        try:
            ids = [operator.index(i) for i in listed]
        except TypeError:
            ids = []
        if len(ids) != len(x):
            raise InputError(f"ids: expected {len(x)} integers, one for each input, got {len(listed)}: {listed[:4]}")
    score = Score(
        model,
        given.target,
        kind=kind,
        kwargs=given.kwargs,
        ids=ids,
        max_batch=max_batch,
        numpy=numpy,
        precision=precision,
    )
    score = score.at(x, good.nonzero()[:, 0], check_rows=True)
    finite = score.outputs.isfinite().all(1)
    for i in (good & ~finite).nonzero()[:, 0].tolist():
        out[i] = "the model's output has NaN or infinite values for this input"
    left = (good & finite).nonzero()[:, 0]
    if not len(left):
        raise InputError(
            "model: NaN or infinite outputs for every input; check the preprocessing and the weights, "
            "or use float32 if the model is in half precision"
        )
    if baseline is not None:
        baseline.check(left, x)
    kept = x[left]
    # Owners keep the caller's numbering, so targets, keyword tensors, baselines and segments stay with their input.
    what = features_for(features, x.shape[1:])
    unit = noise_unit(what, x, baseline) if given.unit is None else given.unit
    points = Points(kept, left, score.ids[left], len(x), unit)
    names = {"features": what.names(x.shape[1])} if isinstance(what, Columns) else {}
    everything = Stack(explainers, seed)
    stack, failed = everything.usable(score, points)
    if any(follows_gradients(explainer, x.shape[1:]) for explainer in stack.explainers):
        why = why_no_gradients(score, points, what, baseline)
        if why:
            stack, cut = without_gradients(stack, why, x.shape[1:])
            failed = {**failed, **cut}
    sensitivity, infidelity = metrics_of(goal)
    if infidelity.baseline is None and baseline is not None:
        infidelity = replace(infidelity, baseline=baseline)
    if infidelity.features is None and features is not None and not isinstance(what, Pixels | Elements):
        infidelity = replace(infidelity, features=what)
    setting = Setting(
        Normalised(stack, what, sign or ("abs" if x.ndim == 4 else "keep"), scale),
        tuple(everything.names.index(name) for name in stack.names), len(everything), sensitivity, infidelity, seed,
    )  # fmt: skip
    return Ready(
        x, left, score, points, setting, explainers, everything.names, failed, out, dict(given.kwargs),
        {**names, **given.about}, (*given.warnings, *score.row_warnings), _named(points.unit, baseline, x), baseline,
    )  # fmt: skip


def _of_table(features: Any, names: tuple[str, ...] | None, x: Tensor, baseline: Baseline | None) -> Any:
    """The features of a table: with a data frame's names, held against the data, and with values to put in for codes."""
    if names is not None and features is None:
        features = Columns()
    if not isinstance(features, Features):
        return features
    if isinstance(features, Columns) and names is not None:
        features = features.called(names)
    is_data = baseline is not None and baseline.is_data(x.ndim - 1)
    features = features.settled(baseline.rows(x) if baseline is not None and is_data else x)
    if x.ndim == 2 and features.codes(x.shape[1:]) is not None:
        if baseline is None or baseline.kind in COMPUTED:
            raise InputError(
                "baselines: columns of codes are replaced by codes that occur; give rows of a data set, (n, columns)"
            )
    return features


def _named(unit: Tensor | None, baseline: Baseline | None, x: Tensor) -> str:
    """The unit of noise, in words for tables."""
    if unit is None:
        return "input units"
    if x.ndim == 2 and baseline is not None and baseline.kind == "samples":
        return "standard deviations of the baselines' columns"
    return (
        "units of the input's own, 0 where it must not move" if x.ndim == 2 else "standard deviations of the embeddings"
    )


def parts_of(batch: Any) -> tuple[Any, Any, Any]:
    """(x, y, regions) of what a loader gives: x, (x, …), or a list of texts; None for what is not there."""
    if isinstance(batch, list | tuple) and not all(isinstance(part, str) for part in batch):
        x, y, regions = (*batch, None, None)[:3]
        return x, y, regions
    return batch, None, None


def _tensor(x: Any, model: Any) -> tuple[Tensor, bool]:
    """The batch, and whether the model is to be called with arrays."""
    numpy = isinstance(x, np.ndarray) and not isinstance(model, nn.Module)
    if isinstance(x, np.ndarray) and x.dtype == np.float64 and isinstance(model, nn.Module):
        # NumPy's default, which hardly anyone chose.
        x = torch.as_tensor(x).to(precision_of(model) or torch.float64)
    if not isinstance(x, np.ndarray) and not isinstance(x, Tensor):
        raise InputError(f"x: expected a tensor or an array (B, …), got {type(x).__name__}")
    x = torch.as_tensor(x).detach()
    x = x.clone() if x.is_inference() else x
    if x.ndim < 2 or not len(x):
        raise InputError(
            f"x: expected a batch (B, …) of at least one input, got shape {tuple(x.shape)}; add a first axis"
        )
    if not x.is_floating_point():
        raise InputError(f"x: attributions need real numbers, got {x.dtype}; cast with .float() after preprocessing")
    return x, numpy


def _finite(x: Tensor, model: Any) -> tuple[Tensor, dict[int, str]]:
    check_ready(model)
    if isinstance(model, nn.Module):
        named = [
            (name, p.detach())
            for name, p in model.named_parameters()
            if p.numel() and (p.is_floating_point() or p.is_complex())
        ]
        # One number to wait for, and only if it is not finite the rest.
        bad = named and not torch.nn.utils.get_total_norm([p for _, p in named], torch.inf).isfinite()
        for name, parameter in named if bad else ():
            if not bool(parameter.isfinite().all()):
                raise InputError(f"model: parameter {name!r} has NaN or infinite values; was the checkpoint damaged?")
    good = x.flatten(1).isfinite().all(1)
    out = dict.fromkeys((~good).nonzero()[:, 0].tolist(), "the input has NaN or infinite values")
    if not bool(good.any()):
        raise InputError("x: every input has NaN or infinite values; check the preprocessing")
    return good, out
