"""What an explanation and an evaluation start from: a resolved score, the inputs that can be used, the methods that work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..adapters import adapted
from ..adapters.batch import batch_of
from ..arrays import integers
from ..combine.measurement import Measurement, metrics_of
from ..errors import InputError
from ..explainers import Explainer, Normalised, Stack, resolve
from ..explainers.codes import follows_gradients, why_no_gradients, without_gradients
from ..features.base import Elements, Features
from ..features.frames import column_names, plain_array
from ..features.images import Pixels, features_for
from ..features.tables import Columns
from ..metrics.base import Metric
from ..model.score import Score
from ..model.state import check_ready
from ..perturb.baseline import COMPUTED, Baseline
from ..perturb.neighbourhoods import noise_unit
from ..perturb.points import Points
from .options import Options


class NothingLeft(InputError):
    """No input of a batch can be explained.

    Args:
        message: as for any error.
        out: why, by the input's place in the batch.
    """

    def __init__(self, message: str, out: dict[int, str]):
        super().__init__(message)
        self.out = out


@dataclass(frozen=True)
class Ready:
    """A batch about to be explained.

    Args:
        x: (B, *F), the caller's inputs as a tensor.
        left: places in ``x`` of the inputs that can be explained.
        score: the model, resolved at ``x``.
        points: the inputs that are left. Their owners keep the numbering of ``x``, so that targets, keyword tensors, baselines
            and segments stay with their input.
        measurement: the methods that work, and the metrics.
        explainers: the methods as configured for this batch, those that fail too.
        names: of the methods, in order.
        failed: methods that do not work on this model, and why.
        out: inputs that were left out, by their place in ``x``, and why.
        kwargs: further arguments of the model, as tensors.
        about: what an adapter knows of the inputs, such as tokens and names of columns.
        warnings: of the adapter.
        noise_unit: the unit of noise, in words.
        baseline: what the caller, or the adapter, gave as absent.
    """

    x: Tensor
    left: Tensor
    score: Score
    points: Points
    measurement: Measurement
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
        """Why inputs were left out, by their name in records, "inputs[3]"."""
        return {f"inputs[{i}]": why for i, why in self.out.items()}


def prepare(
    model: nn.Module | Callable,
    x: Tensor | np.ndarray,
    target: Any,
    options: Options,
    ids: Sequence[int] | Tensor | None = None,
    dry: bool = False,
) -> Ready:
    """Check the data, evaluate the model once, and explain the first input with every method.

    Args:
        model: an ``nn.Module``, a callable, or an adapter.
        x: inputs (B, *F), or what the adapter takes.
        target: which output; see :func:`consilience.explain`.
        options: everything else.
        ids: (B,) integers to which the inputs' draws belong; None: their places in the batch.
        dry: for a plan: methods are tried with one row of each kind, and nothing is explained.

    Raises:
        InputError: the data cannot be used, or no input or no method is left.
    """
    # From here on there are tensors: data frames give their names, adapters their features and baselines.
    columns = column_names(x)
    x = plain_array(x, "x")
    target = plain_array(target, "target")
    given = adapted(model, x, target, options.features, options.baselines, options.kwargs)
    model = given.model
    x, numpy = batch_of(given.x, model)
    baseline = None if given.baselines is None else Baseline.of(given.baselines, x)
    features = _of_table(given.features, columns, x, baseline)
    explainers = _configured(options, features, baseline, x.shape[1:])
    # The model is evaluated once. That settles the targets, and which inputs can be explained at all.
    good, out = _finite(x, model)
    score = Score(
        model,
        given.target,
        kind=options.kind,
        kwargs=given.kwargs,
        ids=None if ids is None else _integers(ids, len(x)),
        max_batch=options.max_batch,
        numpy=numpy,
        precision=options.precision,
    )
    score = score.at(x, good.nonzero()[:, 0], check_rows=True)
    left = _usable(score, good, out)
    if baseline is not None:
        baseline.check(left, x)
    # Every method explains the first input; one that fails is named, and the others go on.
    attributed = features_for(features, x.shape[1:])
    unit = noise_unit(attributed, x, baseline) if given.unit is None else given.unit
    points = Points(x[left], left, score.ids[left], len(x), unit)
    everything = Stack(explainers, options.seed)
    stack, failed = everything.usable(score, points, dry)
    if any(follows_gradients(explainer, x.shape[1:]) for explainer in stack.explainers):
        why = why_no_gradients(score, points, attributed, baseline)
        if why:
            stack, cut = without_gradients(stack, why, x.shape[1:])
            failed = {**failed, **cut}
    measurement = Measurement(
        stack=Normalised(stack, attributed, *options.presented()),
        working=tuple(everything.names.index(name) for name in stack.names),
        rows=len(everything),
        metrics=_metrics(options, features, attributed, baseline, score),
        derived=options.derived,
        seed=options.seed,
    )
    names = {"features": attributed.names(x.shape[1])} if isinstance(attributed, Columns) else {}
    return Ready(
        x=x,
        left=left,
        score=score,
        points=points,
        measurement=measurement,
        explainers=explainers,
        names=everything.names,
        failed=failed,
        out=out,
        kwargs=dict(given.kwargs),
        about={**names, **given.about},
        warnings=(*given.warnings, *score.row_warnings),
        noise_unit=_named(points.unit, baseline, x),
        baseline=baseline,
    )


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


def _configured(
    options: Options, features: Features | str | None, baseline: Baseline | None, shape: Sequence[int]
) -> list[Explainer]:
    """The methods, with the baselines and features of the call where they leave them open."""
    # Of the features that are given by name, only patches are few enough to be taken away one by one.
    if isinstance(features, str):
        features = features_for(features, shape) if features == "patches" else None
    return resolve(options.methods, baseline, features, shape)


def _integers(ids: Any, count: int) -> list[int]:
    """``ids`` as one integer for each input."""
    found = integers("ids", ids)
    if len(found) != count:
        raise InputError(f"ids: expected {count} integers, one for each input, got {len(found)}: {found[:4]}")
    return found


def _usable(score: Score, good: Tensor, out: dict[int, str]) -> Tensor:
    """Places of the inputs that are ``good`` (B,) and whose outputs are finite; the others join ``out``."""
    finite = score.outputs.isfinite().all(1)
    for i in (good & ~finite).nonzero()[:, 0].tolist():
        out[i] = "the model's output has NaN or infinite values for this input"
    left = (good & finite).nonzero()[:, 0]
    if not len(left):
        raise NothingLeft(
            "model: NaN or infinite outputs for every input; check the preprocessing and the weights, "
            "or use float32 if the model is in half precision",
            out,
        )
    return left


def _metrics(
    options: Options, asked: Features | str | None, attributed: Features, baseline: Baseline | None, score: Score
) -> dict[str, Metric]:
    """The metrics that are measured, with the baselines of the call, and its features where masks can be made of them."""
    maskable = asked is not None and not isinstance(attributed, Pixels | Elements)
    features = attributed if maskable else None
    metrics = metrics_of(options.aggregation)
    return {kind: metric.completed(baseline, features).of_model(score) for kind, metric in metrics.items()}


def _named(unit: Tensor | None, baseline: Baseline | None, x: Tensor) -> str:
    """The unit of noise, in words for tables."""
    if unit is None:
        return "input units"
    if x.ndim != 2:
        return "standard deviations of the embeddings"
    if baseline is not None and baseline.kind == "samples":
        return "standard deviations of the baselines' columns"
    return "units of the input's own, 0 where it must not move"


def parts_of(batch: Any) -> tuple[Any, Any, Any]:
    """(x, y, regions) of what a loader gives; None for what is not there.

    Args:
        batch: x, a sequence (x, …), or a list of texts, which is an x.
    """
    is_sequence = isinstance(batch, list | tuple)
    if not is_sequence or all(isinstance(part, str) for part in batch):
        return batch, None, None
    x, y, regions = (*batch, None, None)[:3]
    return x, y, regions


def _finite(x: Tensor, model: Any) -> tuple[Tensor, dict[int, str]]:
    """(B,) bool, the inputs that are finite, and why the others are not used."""
    check_ready(model)
    if isinstance(model, nn.Module):
        _check_parameters(model)
    good = x.flatten(1).isfinite().all(1)
    out = dict.fromkeys((~good).nonzero()[:, 0].tolist(), "the input has NaN or infinite values")
    if not bool(good.any()):
        raise NothingLeft("x: every input has NaN or infinite values; check the preprocessing", out)
    return good, out


def _check_parameters(model: nn.Module) -> None:
    """Refuse a model with a parameter that is not finite."""
    named: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.numel() and (parameter.is_floating_point() or parameter.is_complex()):
            named[name] = parameter.detach()
    # One number to wait for, which is cheap on an accelerator; the rest is looked at only if it is not finite.
    if not named or torch.nn.utils.get_total_norm(list(named.values()), torch.inf).isfinite():
        return
    for name, values in named.items():
        if not bool(values.isfinite().all()):
            raise InputError(f"model: parameter {name!r} has NaN or infinite values; was the checkpoint damaged?")
