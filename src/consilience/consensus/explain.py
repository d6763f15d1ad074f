"""The main job: attributions of a batch, measured, combined, measured again on fresh draws."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..explainers import Explainer
from ..features import Features
from ..keys import Key
from ..neighbourhood import Baseline, Points, neighbours, unmoved
from ..objective import Aim, Term
from ..quadratic import CRITERIA, Evidence, exact
from ..score import Counts, Score
from .fitting import Fitted
from .job import Combined, Job, Progress, baselines_of, begin, mix
from .prepare import warnings_of
from .result import Explanation, Measured
from .setting import DERIVED, Draws, Setting, by_quality

PARTS = ("fit", "fresh", "stderr")


@torch.inference_mode(False)
def explain(
    model: nn.Module | Callable,
    x: Tensor | np.ndarray,
    target: int | Sequence[int] | Tensor | str | None = None,
    *,
    methods: str | Explainer | Iterable[str | Explainer] = "standard",
    objective: str | Aim | Term = "opt",
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
        kind: which number of the output is explained, see :class:`~consilience.score.Score`.
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
        maps=base[:, : setting.rows],
        derived=torch.cat([base[:, setting.rows :], mixed[:, :1]], 1),
        methods=ready.names,
        kinds=tuple(e.kind for e in ready.explainers),
        objective=objective if isinstance(objective, str) else _brief(objective),
        solution=combined.solution,
        curves=[(combined.groups[part].solved[1], at) for part, at in places],
        criteria=criteria,
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
        predicted=score.outputs[left].argmax(1),
        score=score.clean[left],
        seed=seed,
        draws={
            "fit": [groups[part].said(at) for part, at in places], "fresh": vars(job.fresh), "resolved": job.resolved,
        },
        counts=Counts(score.counts.forward, score.counts.gradient),
        seconds=time.perf_counter() - began,
        settings={
            "kind": kind if isinstance(kind, str) else getattr(kind, "__name__", repr(kind)),
            "signed": signed, "choice": choice, "pooled": pooled, **_settings(setting, x.shape[1:]),
            "precision": precision, "noise_unit": ready.noise_unit,
            "explainers": {name: _brief(e) for name, e in zip(ready.names, ready.explainers, strict=True)},
            "layers": {name: layer.name for name, layer in score._layers.items()},
        },
    )  # fmt: skip


def _warnings(score: Score, points: Points, setting: Setting) -> list[str]:
    """Of a network, that it gives probabilities; of a black box, what a piecewise-constant one (a forest) makes of
    sensitivities, which costs ten evaluations for each input."""
    found = warnings_of(score.outputs[points.owner])
    if isinstance(score.model, nn.Module):
        return found
    found = found if score.kind == "logit" else []
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


def _brief(value: Any) -> str:
    """``repr`` of a configuration, with arrays by their shape only."""
    if isinstance(value, Tensor | np.ndarray):
        return f"array{tuple(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_brief, value))})"
    if isinstance(value, Features) and not is_dataclass(value):
        return f"{type(value).__name__}({value.unit})"
    if is_dataclass(value) and not isinstance(value, type):
        # A baseline's tag is the address of its tensor: nothing that another run would know again.
        shown = [f.name for f in fields(value) if not (isinstance(value, Baseline) and f.name == "tag")]
        parts = (f"{name}={_brief(getattr(value, name))}" for name in shown)
        return f"{type(value).__name__}({', '.join(parts)})"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_brief, value))})"
    if isinstance(value, Mapping):
        return f"({', '.join(f'{name}={_brief(each)}' for name, each in value.items())})"
    text = repr(value)
    # An address is nothing that another run would know again.
    return getattr(value, "__qualname__", type(value).__qualname__) if " at 0x" in text else text


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


def measure(fit: Evidence, fresh: Evidence, rows: Tensor, names: Sequence[str]) -> dict[str, dict[str, Measured]]:
    """Every criterion for every row of ``rows`` (B, M, R), on the fitting and on the fresh draws."""
    broken = [_broken(part, rows) for part in (fit, fresh)]
    table: dict[str, dict[str, Measured]] = {}
    for criterion, judge in CRITERIA.items():
        before, after = judge(fit.clean(), rows), judge(fresh.clean(), rows)
        value = before.value.masked_fill(broken[0], torch.nan)
        again = after.value.masked_fill(broken[1], torch.nan)
        error = after.stderr.masked_fill(broken[1], torch.nan)
        table[criterion] = {name: Measured(value[:, i], again[:, i], error[:, i]) for i, name in enumerate(names)}
    return table


def _broken(evidence: Evidence, rows: Tensor) -> Tensor:
    """(B, M): rows that put weight on an attribution that is not finite, and maps that are zero: they explain nothing."""
    assert evidence.quadratic is not None and evidence.responses is not None
    size = evidence.quadratic.norm.diagonal(dim1=-2, dim2=-1)
    bad = ~evidence.quadratic.draws.diagonal(dim1=-2, dim2=-1).isfinite().all(1) | ~size.isfinite()
    bad |= ~evidence.responses.a.isfinite().all(1)
    touched = torch.einsum("bmr,br->bm", (rows != 0).double(), bad.double()) > 0
    zero = torch.einsum("bmr,brt,bmt->bm", rows, evidence.clean().quadratic.norm, rows) == 0  # type: ignore[union-attr]
    return touched | zero


def _weighted(group: Fitted, setting: Setting) -> Tensor:
    """(B, R): the row "weighted" of one group's inputs."""
    found = torch.zeros_like(group.evidence.like)
    found[:, : setting.rows] = by_quality(group.evidence.rows(slice(setting.rows)), setting.working)
    return found


def _resolved(job: Job, combined: Combined) -> dict[str, Tensor] | None:
    """‖φ*(x) − φ*(x′)‖² / ‖φ*(x)‖² with the weights solved anew at x′, on the same keyed draws: (B, count) and its mean."""
    setting, score, points, count = job.ready.setting, job.ready.score, job.ready.points, job.resolved
    if not count:
        return None
    k = setting.rows
    here = torch.einsum("br,br...->b...", combined.mixing[:, :k], exact(combined.base[:, :k].nan_to_num(0))).flatten(1)
    each = torch.full((len(points), count), torch.nan, dtype=torch.float64, device=here.device)
    where, key = setting.sensitivity.neighbourhood, Key(setting.seed, "resolved")
    for group, sample in itertools.product(combined.groups, range(count)):
        at = list(group.index)
        near = neighbours(where, points[at], range(sample, sample + 1), key, count)
        # Same ids: the explainers' noise, and the draws for fitting, are those at x. Optimal is then a function of x too.
        maps = setting.maps(score, near, derived=False)
        weights = job.rule.solve(setting.evidence(score, near, maps, group.draws, "fit"))[0].weights
        there = torch.einsum("br,br...->b...", weights, exact(maps.nan_to_num(0))).flatten(1)
        each[at, sample] = ((here[at] - there) ** 2).sum(1) / (here[at] ** 2).sum(1)
    error = each.std(1) / count**0.5 if count > 1 else torch.full_like(each[:, 0], torch.nan)
    return {"value": each.mean(1), "stderr": error}


def _completeness(score: Score, points: Points, setting: Setting, sums: Tensor) -> dict[str, Tensor]:
    """|Σφ − (f(x) − f(b))| / |f(x) − f(b)|, (B,), of each explainer that claims to add up; ``sums`` (B, k) are Σφ."""
    stack = setting.stack.stack
    found = {}
    for baseline, members in baselines_of(stack).items():
        difference = exact(score.clean[points.owner]) - exact(score(baseline.at(points), points.owner))
        for at in members:
            found[stack.names[at]] = (sums[:, at] - difference).abs() / difference.abs()
    return found
