"""The main job: attributions of a batch, measured, combined, measured again on fresh draws."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..combine.aggregations import DERIVED, mix
from ..combine.draws import Draws
from ..combine.measurement import Setting
from ..combine.spread import weights_stderr
from ..explainers import Explainer
from ..features.base import Features
from ..metrics.base import Metric
from ..metrics.front import Aim
from ..model.batching import Counts
from ..model.score import Score
from ..perturb.neighbourhoods import unmoved
from ..perturb.points import Points
from ..results.describe import _brief
from ..results.explanation import Explanation, FrontPoints, Measured
from ..statistics.criteria import CRITERIA
from ..statistics.keys import Key
from .differences import paired_differences
from .judge import _completeness, _resolved, _weighted, measure
from .run import Job, Progress, begin

PARTS = ("fit", "fresh", "stderr")


@torch.inference_mode(False)
def explain(
    model: nn.Module | Callable,
    x: Tensor | np.ndarray,
    target: int | Sequence[int] | Tensor | str | None = None,
    *,
    methods: str | Explainer | Iterable[str | Explainer] = "standard",
    objective: str | Aim | Metric = "opt",
    seed: int = 0,
    fit_draws: Draws | int | str | Mapping[str, int] | None = None,
    fresh_draws: Draws | int | str | Mapping[str, int] | None = None,
    resolved_draws: int = 2,
    draws: str | None = None,
    tolerance: float = 0.02,
    kind: str | Callable = "logit",
    features: Features | str | None = None,
    baselines: Any = None,
    sign: str | None = None,
    scale: str = "max",
    signed: bool = False,
    choice: str = "convex",
    pooled: bool = False,
    weights: Tensor | None = None,
    kwargs: Mapping[str, Any] | None = None,
    ids: Sequence[int] | Tensor | None = None,
    max_batch: int | str = "auto",
    precision: str | None = None,
    progress: Progress | None = None,
) -> Explanation:
    """Explain a batch with several methods and with their optimal combination.

    Args:
        model: an ``nn.Module`` (used in eval mode, handed back as it was) or a callable.
        x: inputs (B, *F). An input with a NaN is reported and left out; the others are explained.
        target: None or "predicted", an integer, or one for each input.
        methods: a preset ("standard", "gradient", "paper", …), names, or configured explainers.
        objective: "opt", "robust", "faith", "mean", "median", "paper_robust", …, an expression over them, or metrics.
        seed: names all random draws; with the same ids, the same seed gives the same result for any batch, chunk and order.
        fit_draws: draws for the weights; None (and an objective that is solved): see ``draws``.
        fresh_draws: draws that judge (default 20 neighbours, 512 masks).
        resolved_draws: neighbours at which the weights are solved anew, for the sensitivity of that; 0 for none.
        draws: "auto" (the default, unless ``fit_draws`` says how many) draws in rounds until the weights would hardly gain by
            more, at most 40 neighbours and 1024 masks, or ``fit_draws``; "paper": 50 of each to fit and 200 of each to judge.
        tolerance: for "auto", the cross-fitted regret at which to stop, relative to the objective's value.
        kind: which number of the output is explained, see :class:`~consilience.model.score.Score`.
        features: what is attributed; default pixels for images, elements otherwise.
        baselines: what stands for "absent", for the methods and for the masks of the infidelity, unless they have a baseline
            of their own; rows of a data set are drawn from, or their mean is taken, and give a table's noise its unit.
        sign, scale: of every map before it is measured and mixed; default "abs" for images, else "keep", and "max".
        signed: allow negative weights. choice: "convex" or "cross_validated" (best single, mean, convex, signed).
        pooled: one set of weights for the whole batch. weights: use these (k,) or (B, k), solve nothing.
        kwargs: further arguments of the model. ids: identities of the inputs, to which their draws belong, e.g. their
            data-set index; default: their places in the batch.
        max_batch: rows in flight. progress: called with (done, planned).
        precision: "bfloat16" or "float16" for autocast; None: as the model is.

    Returns:
        An :class:`Explanation`. The guarantee is for the fitting draws; fresh values and standard errors are beside them.

    Raises:
        InputError: an argument cannot be used, or no input or no method is left.
    """
    began = time.perf_counter()
    job = begin(
        model, x, target, methods=methods, objective=objective, seed=seed, fit_draws=fit_draws, fresh_draws=fresh_draws,
        resolved_draws=resolved_draws, draws=draws, tolerance=tolerance, kind=kind, features=features, baselines=baselines,
        sign=sign, scale=scale, signed=signed, choice=choice, pooled=pooled, weights=weights, kwargs=kwargs, ids=ids,
        max_batch=max_batch, precision=precision, progress=progress,
    )  # fmt: skip
    ready = job.ready
    x, left, score, points, setting = ready.x, ready.left, ready.score, ready.points, ready.setting
    combined = job.combine()
    base, groups = combined.base, combined.groups
    complete = _completeness(score, points, setting, combined.sums)
    after = setting.evidence(score, points, base, job.fresh, "fresh")
    names = [*ready.names, *DERIVED, "weighted", "consensus"]
    weighted = combined.join([_weighted(group, setting) for group in groups])
    singles = torch.eye(base.shape[1], dtype=torch.float64, device=base.device).expand(len(points), -1, -1)
    rows = torch.cat([singles, weighted[:, None], combined.mixing[:, None]], 1)
    judged = [
        measure(group.evidence, after.inputs(list(group.index)), rows[list(group.index)], names) for group in groups
    ]
    criteria = {
        criterion: {
            name: Measured(*(combined.join([getattr(part[criterion][name], f) for part in judged]) for f in PARTS))
            for name in names
        }
        for criterion in CRITERIA
    }
    mixed = mix(rows[:, -2:], base)
    resolved = _resolved(job, combined)
    places = combined.places
    return Explanation(
        attribution=mixed[:, 1],
        weights=combined.solution.weights,
        weights_stderr=combined.join([weights_stderr(job.rule, g.evidence.rows(slice(setting.rows))) for g in groups]),
        maps=base[:, : setting.rows],
        derived=torch.cat([base[:, setting.rows :], mixed[:, :1]], 1),
        methods=ready.names,
        kinds=tuple(e.kind for e in ready.explainers),
        objective=objective if isinstance(objective, str) else _brief(objective),
        solution=combined.solution,
        fronts=[FrontPoints.of(combined.groups[part].solved[1], at) for part, at in places],
        criteria=criteria,
        differences=paired_differences(job.rule.goal, criteria, after, combined.mixing, ready.names),
        evidence={
            "fit": [groups[part].evidence.inputs([at]) for part, at in places],
            "fresh": [after.inputs([i]) for i in range(len(points))],
        },
        mixing=combined.mixing,
        resolved=resolved,
        completeness=complete,
        failed=ready.failed,
        inputs=points.x,
        index=tuple(left.tolist()),
        reasons=ready.reasons,
        warnings=(*ready.warnings, *_warnings(score, points, setting), *_unfinished(base, ready.names, job)),
        about=dict(ready.about),
        target=score.targets[left],
        predicted=score.meaning.predicted(score.outputs[left]),
        score=score.clean[left],
        seed=seed,
        draws={
            "fit": [groups[part].said(at) for part, at in places], "fresh": vars(job.fresh), "resolved": job.resolved,
        },
        counts=Counts(score.counts.forward, score.counts.gradient),
        seconds=time.perf_counter() - began,
        settings={
            **score.described, "signed": signed, "choice": choice, "pooled": pooled, **_settings(setting, x.shape[1:]),
            "precision": precision, "noise_unit": ready.noise_unit,
            "explainers": {name: _brief(e) for name, e in zip(ready.names, ready.explainers, strict=True)},
            "layers": {name: layer.name for name, layer in score._layers.items()},
        },
    )  # fmt: skip


def _warnings(score: Score, points: Points, setting: Setting) -> list[str]:
    """Of a network, that it gives probabilities; of a black box, what a piecewise-constant one (a forest) makes of
    sensitivities, which costs ten evaluations for each input."""
    found = score.warnings()
    if isinstance(score.model, nn.Module):
        return found
    same = unmoved(score, points, setting.sensitivity.neighbourhood, Key(setting.seed, "flat"))
    if not bool(same.any()):
        return found
    return [
        *found,
        f"the score of {int(same.sum())} of {len(same)} inputs is the same at all neighbours: the model is piecewise constant "
        "there, so a sensitivity near zero is no merit, and gradients would be zero",
    ]


def _unfinished(base: Tensor, names: Sequence[str], job: Job) -> list[str]:
    """Of methods that ran and gave what is no map."""
    working, given = job.ready.setting.working, job.rule.weights is not None
    bad = (~base[:, list(working)].flatten(2).isfinite().all(2)).sum(0).tolist()
    return [
        f"{names[at]} gives NaN or infinite values for {count} of {len(base)} inputs"
        + ("" if given else ", and takes no part there")
        for at, count in zip(working, bad, strict=True)
        if count
    ]


def _settings(setting: Setting, shape: Sequence[int]) -> dict[str, Any]:
    masks = setting.infidelity.neighbourhood(shape)
    return {
        "features": setting.stack.features.unit,
        "sign": setting.stack.sign,
        "scale": setting.stack.scale,
        "sensitivity": _brief(setting.sensitivity.neighbourhood),
        "redraw": setting.sensitivity.redraw,
        "mask_unit": masks.features.unit,
        "mask_share": masks.share,
        "mask_baseline": masks.baseline.kind,
    }
