"""The main job: attributions of a batch, combined, then judged on fresh draws.

The way of a batch: :class:`~.options.Options` checks what is asked for; :func:`~.run.begin` evaluates the model once and
tries every method; :meth:`~.run.Job.combine` draws what the weights need and finds the answer; :func:`~.judge.judge` measures
everything on fresh draws, until they have decided; the :class:`~consilience.results.explanation.Explanation` holds what came of
it. ``quick=True`` stops at the answer, and :meth:`~consilience.results.explanation.Explanation.refine` goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..combine.aggregation import Aggregation
from ..combine.aggregations import DERIVED
from ..combine.draws import SEQUENTIAL_KINDS, Draws
from ..combine.measurement import Measurement
from ..combine.spread import weights_stderr
from ..explainers import Explainer
from ..features.base import Features
from ..metrics.base import Metric
from ..metrics.front import Goal
from ..model.batching import Counts
from ..results.describe import describe
from ..results.explanation import Explanation, FrontPoints, GoOn
from ..signatures import known_arguments
from ..statistics.evidence import Evidence
from .differences import criteria_of
from .judge import Judgement, judge, maps_of, unjudged
from .kept import Kept
from .options import Options
from .progress import Progress
from .run import Combined, Job, begin


@known_arguments()
def explain(
    model: nn.Module | Callable,
    x: Tensor | np.ndarray,
    target: int | Sequence[int] | Tensor | str | None = None,
    *,
    methods: str | Explainer | Iterable[str | Explainer] = "standard",
    objective: str | Goal | Metric | Aggregation = "posterior",
    seed: int = 0,
    fit_draws: Draws | int | str | Mapping[str, int] | None = None,
    fresh_draws: Draws | int | str | Mapping[str, int] | None = "auto",
    confidence: float = 0.95,
    resolved_draws: int = 0,
    quick: bool = False,
    draws: str | None = None,
    tolerance: float = 0.02,
    kind: str | Callable = "logit",
    features: Features | str | None = None,
    baselines: Any = None,
    sign: str | None = None,
    scale: str | None = None,
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
        model: an ``nn.Module`` (used in eval mode, handed back as it was), a callable, or an adapter such as
            :func:`consilience.text`.
        x: inputs (B, *F). An input with a NaN is reported and left out; the others are explained.
        target: None or "predicted", an integer, or one for each input.
        methods: a preset ("standard", "classic", "gradient", "paper", …), names, or configured explainers.
        objective: how the maps become one: "posterior" (with an error for every feature), "opt", "robust", "faith", "ridge",
            "mean", "median", "best_single", "paper_opt", …; an expression over names; a metric, or a sum of metrics; a front;
            or an aggregation of your own.
        seed: names all random draws. With the same ids, the same seed gives the same result for any batch, chunk and order.
        fit_draws: draws for the weights: a mapping such as {"average_sensitivity": 10, "infidelity": 256}, where a kind that is
            left out is the default's; or one number, of neighbours and of masks alike (fewer than 32 masks tell little); None:
            see ``draws``.
        fresh_draws: draws that judge: "auto" draws until it is decided whether the consensus is better than the best single
            method and than a uniform map, at most 20 neighbours and 512 masks; or a number, in the same forms
            as ``fit_draws``.
        confidence: for "auto", at which that is decided: where there is no difference one is claimed with a probability of
            1 − ``confidence`` at most, for each statement, however often the draws were looked at.
        resolved_draws: neighbours at which the weights are solved anew, for the sensitivity of that; 0 for none.
        quick: the answer alone: no fresh draws, so that nothing says how good it is. ``refine()`` of the result goes on.
        draws: "auto" (the default where something is solved, unless ``fit_draws`` says how many) draws in rounds, from 2
            neighbours and 128 masks on, until the weights would hardly gain by more, at most 40 neighbours and 1024 masks, or
            ``fit_draws``. "paper": 50 of each to fit and 200 of each to judge.
        tolerance: for "auto", the cross-fitted regret at which to stop, relative to the objective's value; and the share of
            the best single method's value by which a difference does not matter.
        kind: which number of the output is explained; see :class:`~consilience.model.score.Score`.
        features: what is attributed; None: pixels for images, elements otherwise.
        baselines: what stands for "absent", for the methods and for the masks of the infidelity, unless they have a baseline
            of their own. Rows of a data set are drawn from, or their mean is taken, and give a table's noise its unit.
        sign: of every map before it is measured and mixed: "abs" or "keep"; None: "keep".
        scale: of every map before it is measured and mixed: "max", "l2" or "none"; None: "max".
        signed: allow negative weights.
        choice: "convex", or "cross_validated" (among best single, mean, convex, signed).
        pooled: one set of weights for the whole batch.
        weights: use these, (k,) or (B, k), and solve nothing.
        kwargs: further arguments of the model.
        ids: (B,) integers, identities of the inputs, to which their draws belong, e.g. their data-set index; None: their
            places in the batch.
        max_batch: rows in flight; "auto": as many as fill a processor's caches, or suit an accelerator.
        precision: "bfloat16" or "float16" for autocast; None: as the model is.
        progress: called with (work done, work expected), in forward evaluations.

    Returns:
        An :class:`Explanation`. The guarantee is for the fitting draws; fresh values and standard errors are beside them.

    Raises:
        InputError: an argument cannot be used, or no input or no method is left.
    """
    options = Options(
        methods=methods,
        objective=objective,
        seed=seed,
        fit_draws=fit_draws,
        fresh_draws=fresh_draws,
        confidence=confidence,
        resolved_draws=resolved_draws,
        quick=quick,
        draws=draws,  # type: ignore[arg-type]
        tolerance=tolerance,
        kind=kind,
        features=features,
        baselines=baselines,
        sign=sign,  # type: ignore[arg-type]
        scale=scale,  # type: ignore[arg-type]
        signed=signed,
        choice=choice,
        pooled=pooled,
        weights=weights,
        kwargs=kwargs,
        max_batch=max_batch,
        precision=precision,  # type: ignore[arg-type]
    )
    return explained(model, x, target, options, ids, progress)


@torch.inference_mode(False)
def explained(
    model: nn.Module | Callable,
    x: Any,
    target: Any,
    options: Options,
    ids: Sequence[int] | Tensor | None = None,
    progress: Progress | None = None,
) -> Explanation:
    """:func:`explain` with options that are checked already.

    Args:
        model: as for :func:`explain`.
        x: inputs (B, *F).
        target: which output is explained.
        options: everything else that is asked for.
        ids: (B,) integers, identities of the inputs; None: their places in the batch.
        progress: called with (work done, work expected), in forward evaluations.

    Raises:
        InputError: the data cannot be used, or no input or no method is left.
    """
    began = time.perf_counter()
    job = begin(model, x, target, options, ids, progress)
    combined = job.combine()
    return _judged(job, combined, Kept(job, combined), began)


def _judged(job: Job, combined: Combined, kept: Kept, began: float) -> Explanation:
    """The answer, judged as far as it is asked for, and the means to go on from there."""
    judgement = unjudged(job, combined, kept) if job.options.quick else judge(job, combined, kept)
    job.meter.end()
    seconds = time.perf_counter() - began

    # It must not hold the explanation itself: a ring of large tensors would wait for the garbage collector.
    @torch.inference_mode(False)
    def go_on(asked: Mapping[str, Any], told: Progress | None) -> Explanation:
        kept.check_model()
        further = replace(job, options=job.options.but(**asked), progress=told)
        # The time that passed since does not count.
        return _judged(further, combined, kept, time.perf_counter() - seconds)

    return _explanation(job, combined, judgement, seconds, go_on)


def _explanation(job: Job, combined: Combined, judgement: Judgement, seconds: float, go_on: GoOn) -> Explanation:
    """What came of a job."""
    ready = job.ready
    options = job.options
    score = ready.score
    left = ready.left
    groups = combined.groups
    k = ready.measurement.rows
    weighted, consensus = maps_of(judgement, combined)
    # What lies across the front.
    about = criteria_of(job.aggregation)
    robust = "noise_over_signal" if "noise_over_signal" in about else "relative_sensitivity"
    spread = [weights_stderr(job.aggregation, group.evidence.rows(slice(k))) for group in groups]
    # Where nothing was judged there are no fresh draws to keep.
    evidence = {"fit": judgement.fit}
    if judgement.fresh is not None:
        evidence["fresh"] = judgement.fresh
    return Explanation(
        attribution=consensus,
        weights=combined.solution.weights,
        weights_stderr=combined.join(spread),
        maps=combined.base[:, :k],
        derived=torch.cat([combined.base[:, k : k + len(DERIVED)], weighted[:, None]], 1),
        methods=ready.names,
        kinds=tuple(explainer.kind for explainer in ready.explainers),
        objective=_objective_in_words(options),
        solution=combined.solution,
        fronts=[FrontPoints.of(groups[number].solved.curve, at, robust) for number, at in combined.places],
        criteria=judgement.criteria,
        differences=judgement.differences,
        over_uniform=judgement.over_uniform,
        evidence=evidence,
        mixing=combined.mixing,
        scales=combined.scales,
        resolved=judgement.resolved,
        completeness=judgement.completeness,
        failed=ready.failed,
        inputs=ready.points.x,
        index=tuple(left.tolist()),
        reasons=ready.reasons,
        warnings=(*ready.warnings, *judgement.warnings),
        about=dict(ready.about),
        target=score.targets[left],
        predicted=score.meaning.predicted(score.outputs[left]),
        score=score.clean[left],
        seed=options.seed,
        draws=_draws(job, combined, judgement),
        counts=Counts(score.counts.forward, score.counts.gradient),
        seconds=seconds,
        settings=_settings(job),
        error=combined.error,
        by_unit=combined.by_unit,
        certain=None if combined.certain is None else combined.certain.signs,
        posterior=_posterior(combined),
        go_on=go_on,
    )


def _objective_in_words(options: Options) -> Any:
    """The objective as it was named, or a description of the object that was given."""
    if isinstance(options.objective, str):
        return options.objective
    return describe(options.objective)


def _posterior(combined: Combined) -> tuple[dict[str, Any], ...] | None:
    """Of each input, what a posterior says of itself; None: nothing."""
    correction = combined.correction
    certain = combined.certain
    if correction is None or certain is None:
        return None
    found = []
    for i, explained in enumerate(correction.explained.tolist()):
        found.append(
            {
                "explained": explained,
                "methods_share": float(correction.methods_share[i]),
                "certain_positive": int(certain.positive[i]),
                "certain_negative": int(certain.negative[i]),
                "certain_of": int(certain.number[i]),
                "certain_unit": certain.unit,
            }
        )
    return tuple(found)


def _draws(job: Job, combined: Combined, judgement: Judgement) -> dict[str, Any]:
    """How many draws fitted and judged the weights of each input, and why no more."""
    fit = [combined.groups[number].record(at) for number, at in combined.places]
    if judgement.fresh is None:
        return {"fit": fit, "fresh": None, "resolved": 0, "masks": [_masks(each, None) for each in judgement.fit]}
    # Those too by which the best single method was chosen.
    chosen = {SEQUENTIAL_KINDS[kind]: count for kind, count in job.cost.picking().items() if kind in SEQUENTIAL_KINDS}
    return {
        "fit": [{**each, **chosen} for each in fit],
        "fresh": judgement.draws,
        "resolved": job.resolved,
        "masks": [_masks(*each) for each in zip(judgement.fit, judgement.fresh, strict=True)],
    }


def _masks(fit: Evidence, fresh: Evidence | None) -> dict[str, Any]:
    """Of one input, how many masks there were, and whether they are all that there are."""
    masks: dict[str, Any] = {}
    last = fit.responses
    if fit.responses is not None:
        masks["fit"] = fit.responses.count
    if fresh is not None and fresh.responses is not None:
        last = fresh.responses
        masks["fresh"] = last.count
    if last is not None and bool(last.exact.all()):
        masks["exact"] = "these are all masks of these sizes"
    return masks


def _settings(job: Job) -> dict[str, Any]:
    """What was explained, how, and how the maps were measured, for the record."""
    ready = job.ready
    options = job.options
    score = ready.score
    return {
        **score.described,
        "signed": options.signed,
        "choice": options.choice,
        "pooled": options.pooled,
        **_measured(ready.measurement, ready.x.shape[1:]),
        "precision": options.precision,
        "noise_unit": ready.noise_unit,
        "explainers": {name: describe(e) for name, e in zip(ready.names, ready.explainers, strict=True)},
        "layers": {name: layer.name for name, layer in score._layers.items()},
        "options": options.digest,
    }


def _measured(measurement: Measurement, shape: Sequence[int]) -> dict[str, Any]:
    """How the maps of inputs with axes ``shape`` were measured."""
    masks = measurement.infidelity.neighbourhood(shape)
    share: Any = masks.share
    if isinstance(share, tuple):
        share = [share[0], share[-1]]
    return {
        "features": measurement.stack.features.unit,
        "sign": measurement.stack.sign,
        "scale": measurement.stack.scale,
        "sensitivity": describe(measurement.sensitivity.neighbourhood),
        "redraw": measurement.sensitivity.redraw,
        "mask_unit": masks.unit,
        "mask_share": share,
        "mask_baseline": masks.baseline.kind,
    }
