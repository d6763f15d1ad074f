"""The main job: attributions of a batch, measured, combined, measured again on fresh draws."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..explainers import Direct, Explainer, Stack
from ..features import Features
from ..keys import Key
from ..neighbourhood import Baseline, Points, neighbours, unmoved
from ..objective import Aim, Front, Term
from ..quadratic import CRITERIA, Evidence, exact
from ..score import Counts, Score
from ..simplex import Front as Curve
from ..simplex import Solution
from .fitting import Fitted, Rule, fit, mixing_of
from .prepare import prepare, warnings_of
from .result import Explanation, Measured
from .setting import BUDGET, DERIVED, FIT, FRESH, PAPER_FIT, PAPER_FRESH, Draws, Setting, aim, by_quality

PARTS = ("fit", "fresh", "stderr")
Progress = Callable[[float, float], None]
"""Called with (work done, work planned), in forward evaluations; a gradient counts three."""


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
        fit_draws, fresh_draws: draws for the weights (default 10 neighbours, 256 masks) and for judging them (20, 512).
        resolved_draws: neighbours at which the weights are solved anew, for the sensitivity of that; 0 for none.
        draws: "auto" draws to fit in rounds until the weights would hardly gain by more (at most 40 neighbours and 1024 masks,
            or ``fit_draws``); "paper" for 50 of each to fit and 200 of each to judge.
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

    Returns:
        An :class:`Explanation`. The guarantee is for the fitting draws; fresh values and standard errors are beside them.

    Raises:
        InputError: an argument cannot be used, or no input or no method is left.
    """
    began = time.perf_counter()
    if draws not in (None, "paper", "auto"):
        raise InputError(f"draws: 'auto', 'paper' or None, got {draws!r}")
    usual = {None: (FIT, FRESH), "auto": (BUDGET, FRESH), "paper": (PAPER_FIT, PAPER_FRESH)}[draws]
    asked = Draws.of(fit_draws, usual[0], "fit_draws")
    fresh = Draws.of(fresh_draws, usual[1], "fresh_draws")
    goal = aim(objective)
    if choice not in ("convex", "cross_validated"):
        raise InputError(f"choice: 'convex' or 'cross_validated', got {choice!r}")
    if isinstance(goal, Front) and weights is None and (signed or choice != "convex"):
        raise InputError(
            "objective: the front is over convex weights and has two numbers, so it takes neither signed=True nor "
            "choice='cross_validated'; use objective='robust' or 'faith'"
        )
    ready = prepare(
        model, x, target, goal, methods=methods, seed=seed, kind=kind, features=features, baselines=baselines, sign=sign,
        scale=scale, kwargs=kwargs, ids=ids, max_batch=max_batch,
    )  # fmt: skip
    x, left, score, points, setting = ready.x, ready.left, ready.score, ready.points, ready.setting
    stack = setting.stack.stack
    if weights is not None:
        goal, weights = "given", _given(weights, left, len(x), setting.rows)
    solving = 0 if isinstance(goal, str) else resolved_draws
    rule = Rule(goal, setting.working, signed, choice, pooled, weights)
    sure = draws == "auto" and not isinstance(goal, str)
    if draws == "auto" and not sure:
        asked = Draws.of(fit_draws, FIT, "fit_draws")
    if progress:
        _watch(score, stack, x.shape[1:], len(points), asked, fresh, solving, progress)

    base = setting.maps(score, points)
    complete = _completeness(score, stack, points, setting)
    groups = fit(rule, setting, score, points, base, asked, tolerance if sure else None)
    after = setting.evidence(score, points, base, fresh, "fresh")
    names = [*ready.names, *DERIVED, "weighted", "consensus"]
    solved = [_solved(rule, group, after, setting, names) for group in groups]
    # Each input's place in its group; tensors of all groups, one after the other, go back into the inputs' order.
    each = sorted((i, at, part) for part, group in enumerate(groups) for at, i in enumerate(group.index))
    order = torch.tensor([i for group in groups for i in group.index], device=base.device).argsort()
    join = lambda pick: torch.cat([pick(part) for part in solved])[order]  # noqa: E731
    solution = Solution(
        join(lambda p: p.solution.weights), join(lambda p: p.solution.value), join(lambda p: p.solution.gap),
        tuple(solved[part].solution.status[at] for _, at, part in each),
    )  # fmt: skip
    rows = join(lambda p: p.rows)
    mixed = mix(rows[:, -2:], base)
    mixing = rows[:, -1]
    resolved = _resolved(rule, setting, score, points, base, mixing, groups, solving)
    return Explanation(
        attribution=mixed[:, 1],
        weights=solution.weights,
        maps=base[:, : setting.rows],
        derived=torch.cat([base[:, setting.rows :], mixed[:, :1]], 1),
        methods=ready.names,
        kinds=tuple(e.kind for e in ready.explainers),
        objective=objective if isinstance(objective, str) else _brief(objective),
        solution=solution,
        curves=[(solved[part].curve, at) for _, at, part in each],
        criteria={
            criterion: {
                name: Measured(*(join(lambda p, c=criterion, n=name, f=f: getattr(p.criteria[c][n], f)) for f in PARTS))
                for name in names
            }
            for criterion in CRITERIA
        },
        evidence={
            "fit": [groups[part].evidence.inputs([at]) for _, at, part in each],
            "fresh": [after.inputs([i]) for i in range(len(points))],
        },
        mixing=mixing,
        resolved=resolved,
        completeness=complete,
        failed=ready.failed,
        inputs=points.x,
        index=tuple(left.tolist()),
        reasons=ready.reasons,
        warnings=(*ready.warnings, *_warnings(score, points, setting)),
        about=dict(ready.about),
        target=score.targets[left],
        predicted=score.outputs[left].argmax(1),
        score=score.clean[left],
        seed=seed,
        draws={"fit": [groups[part].said(at) for _, at, part in each], "fresh": vars(fresh), "resolved": solving},
        counts=Counts(score.counts.forward, score.counts.gradient),
        seconds=time.perf_counter() - began,
        settings={
            "kind": kind if isinstance(kind, str) else getattr(kind, "__name__", repr(kind)),
            "signed": signed, "choice": choice, "pooled": pooled, **_settings(setting, x.shape[1:]),
            "noise_unit": ready.noise_unit,
            "explainers": {name: _brief(e) for name, e in zip(ready.names, ready.explainers, strict=True)},
            "layers": {name: layer.name for name, layer in score._layers.items()},
        },
    )  # fmt: skip


def _warnings(score: Score, points: Points, setting: Setting) -> list[str]:
    """Of a network, that it gives probabilities; of a black box, what a piecewise-constant one (a forest) makes of
    sensitivities, which costs ten evaluations for each input."""
    if isinstance(score.model, nn.Module):
        return warnings_of(score.outputs[points.owner])
    same = unmoved(score, points, setting.sensitivity.neighbourhood, Key(setting.seed, "flat"))
    if not bool(same.any()):
        return []
    return [
        f"the score of {int(same.sum())} of {len(same)} inputs is the same at all neighbours: the model is piecewise constant "
        "there, so a sensitivity near zero is no merit, and gradients would be zero"
    ]


def mix(rows: Tensor, maps: Tensor) -> Tensor:
    """(B, M, R), (B, R, *A) → (B, M, *A); a mixture of something that is not finite is not finite."""
    mixed = torch.einsum("bmr,br...->bm...", rows.to(maps), maps.nan_to_num(0, 0, 0))
    bad = (~maps.flatten(2).isfinite().all(2)).to(rows)
    mixed[torch.einsum("bmr,br->bm", (rows != 0).to(rows), bad) > 0] = torch.nan
    return mixed


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
    return repr(value)


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


def _given(weights: Any, left: Tensor, inputs: int, k: int) -> Tensor:
    """(k,) or (B, k), of the inputs that are left."""
    given = torch.as_tensor(weights, dtype=torch.float64)
    if given.shape not in ((k,), (inputs, k)):
        raise InputError(
            f"weights: shape ({k},) or ({inputs}, {k}) for these methods and inputs, got {tuple(given.shape)}"
        )
    return given.expand(len(left), -1) if given.ndim == 1 else given[left.cpu()]


@dataclass(frozen=True)
class _Solved:
    """What follows from one group's evidence."""

    solution: Solution
    curve: Curve | None
    rows: Tensor
    criteria: dict[str, dict[str, Measured]]


def _solved(rule: Rule, group: Fitted, after: Evidence, setting: Setting, names: Sequence[str]) -> _Solved:
    """Weights, and every row's criteria on the fitting and the fresh draws: methods, derived, weighted, consensus."""
    index = list(group.index)
    rule = rule if rule.weights is None else replace(rule, weights=rule.weights[index])
    before, k = group.evidence, setting.rows
    solution, curve = rule.solve(before.rows(slice(k)))
    assert before.quadratic is not None
    count = before.quadratic.norm.shape[1]
    mixing = mixing_of(rule.goal, solution.weights, count, k)
    weighted = torch.zeros_like(mixing)
    weighted[:, :k] = by_quality(before.rows(slice(k)), setting.working)
    singles = torch.eye(count, dtype=torch.float64, device=mixing.device).expand(len(mixing), -1, -1)
    rows = torch.cat([singles, weighted[:, None], mixing[:, None]], 1)
    return _Solved(solution, curve, rows, measure(before, after.inputs(index), rows, names))


def _resolved(
    rule: Rule, setting: Setting, score: Score, points: Points, base: Tensor, mixing: Tensor, groups: Sequence[Fitted],
    count: int,
) -> dict[str, Tensor] | None:  # fmt: skip
    """‖φ*(x) − φ*(x′)‖² / ‖φ*(x)‖² with the weights solved anew at x′, on the same keyed draws: (B, count) and its mean."""
    if not count:
        return None
    k = setting.rows
    here = torch.einsum("br,br...->b...", mixing[:, :k], exact(base[:, :k].nan_to_num(0))).flatten(1)
    each = torch.full((len(points), count), torch.nan, dtype=torch.float64, device=here.device)
    for group, sample in itertools.product(groups, range(count)):
        at = list(group.index)
        near = neighbours(
            setting.sensitivity.neighbourhood,
            points[at],
            range(sample, sample + 1),
            Key(setting.seed, "resolved"),
            count,
        )
        # Same ids: the explainers' noise, and the draws for fitting, are those at x. Optimal is then a function of x too.
        maps = setting.maps(score, near, derived=False)
        weights = rule.solve(setting.evidence(score, near, maps, group.draws, "fit"))[0].weights
        there = torch.einsum("br,br...->b...", weights, exact(maps.nan_to_num(0))).flatten(1)
        each[at, sample] = ((here[at] - there) ** 2).sum(1) / (here[at] ** 2).sum(1)
    error = each.std(1) / count**0.5 if count > 1 else torch.full_like(each[:, 0], torch.nan)
    return {"value": each.mean(1), "stderr": error}


def _completeness(score: Score, stack: Stack, points: Points, setting: Setting) -> dict[str, Tensor]:
    """|Σφ − (f(x) − f(b))| / |f(x) − f(b)| of each explainer that claims to add up, (B,)."""
    found = {}
    for name, explainer in zip(stack.names, stack.explainers, strict=True):
        if isinstance(explainer, Direct):
            continue
        baseline = getattr(explainer.need.where, "baseline", None)
        if explainer.complete and baseline is not None and baseline.kind != "samples":
            raw = Stack([explainer], setting.seed).attribute(score, points)[:, 0].flatten(1)
            origin = baseline.at(points)
            difference = exact(score.clean[points.owner]) - exact(score(origin, points.owner))
            found[name] = (exact(raw).sum(1) - difference).abs() / difference.abs()
    return found


def _watch(
    score: Score,
    stack: Stack,
    shape: Sequence[int],
    count: int,
    fit: Draws,
    fresh: Draws,
    solving: int,
    progress: Progress,
) -> None:
    """Tie the score's counter to the caller's progress: the plan is known in closed form."""
    cost = stack.rows(shape)
    one = cost["forward"] + 3 * cost["gradient"]
    draws = fit.average_sensitivity * (1 + solving) + fresh.average_sensitivity + 1 + solving
    planned = count * (one * draws + fit.infidelity * (1 + solving) + fresh.infidelity)
    score.counts.watch = lambda counts: progress(min(counts.forward + 3 * counts.gradient, planned), planned)
