"""Quality over a data set: every measure of every row of every input, then means, errors, counts and comparisons."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..adapters import Packed
from ..combine.aggregations import DERIVED, by_quality, looked_at, mix, mixing_of
from ..combine.draws import BUDGET, FIT, KINDS, Draws
from ..combine.named import aim
from ..combine.sequential import fit
from ..combine.weights import Rule
from ..errors import ConsilienceError, InputError, choose
from ..explain.prepare import Ready, parts_of, prepare
from ..features.frames import is_frame, plain_array
from ..measures import Measure, Task
from ..measures import resolve as resolve_measures
from ..model.score import Score
from ..perturb.per_input import taken
from ..perturb.points import Points
from ..results.describe import _brief
from ..results.evaluation import Evaluation
from ..results.files import output
from ..results.fingerprint import digest, digests, plain
from ..statistics.keys import Key
from .saving import GrowingFile


class Evaluator:
    """``update`` with batches, ``compute`` when done: what :func:`evaluate` does over a loader.

    Arguments as for :func:`evaluate`.
    """

    def __init__(
        self,
        model: Any,
        *,
        methods: Any = "standard",
        measures: str | Measure | Iterable[str | Measure] = "default",
        objective: Any = "opt",
        rows: Sequence[str] | None = None,
        seed: int = 0,
        fit_draws: Any = None,
        kind: str | Callable = "logit",
        features: Any = None,
        baselines: Any = None,
        sign: str | None = None,
        scale: str = "max",
        kwargs: Any = None,
        max_batch: int | str = "auto",
        precision: str | None = None,
    ):
        self.model = model
        self.measures = resolve_measures(measures)
        self.goal = None if objective is None else aim(objective)
        # As explain() does: until sure, unless a number is asked for.
        solved = self.goal is not None and not isinstance(self.goal, str)
        self.tolerance = 0.02 if fit_draws is None and solved else None
        self.fit = Draws.of(fit_draws, FIT if self.tolerance is None else BUDGET, "fit_draws")
        self.wanted = rows
        self.options: dict[str, Any] = {
            "methods": methods, "seed": seed, "kind": kind, "features": features,
            "baselines": plain_array(baselines, "baselines"), "sign": sign, "scale": scale, "kwargs": kwargs,
            "max_batch": max_batch, "precision": precision,
        }  # fmt: skip
        self.result: Evaluation | None = None
        self.seen = 0
        self.path: str | Path | None = None
        described = {
            "methods": methods, "objective": objective, "rows": rows, "measures": self.measures,
            "fit_draws": None if objective is None else self.fit, "tolerance": self.tolerance,
            **{k: v for k, v in self.options.items() if k not in ("methods", "kwargs", "max_batch")},
        }  # fmt: skip
        self.settings = {k: v if isinstance(v, str | int | None) else _brief(v) for k, v in described.items()}
        # What texts do not tell apart: models of one class, arrays of one shape.
        self.settings["model"] = f"{type(model).__name__} {digest(model)}"
        self.settings["arguments"] = digest(self.measures, objective, {**self.options, "max_batch": None})

    @torch.inference_mode(False)
    def update(
        self, x: Any, target: Any = None, ids: Any = None, regions: Any = None, reference: Any = None
    ) -> Evaluation:
        """Judge a batch: ``x`` (B, *F), targets as for ``explain``, ``ids`` (B,), ``regions`` (B, *A) bool, ``reference``
        (B, *A). An input whose id was judged already is left as it is.

        Raises:
            InputError: it is not the input, target, regions or reference that was judged under that id.
        """
        count = _count(x)
        ids = torch.arange(self.seen, self.seen + count) if ids is None else torch.as_tensor(ids)
        held = digests(count, plain_array(x, "x"), plain_array(target, "target"), regions, reference)
        given = dict(zip(map(str, ids.tolist()), held, strict=False))
        known = {} if self.result is None else self.result.digests
        if len(given) < len(ids):
            raise InputError(f"ids: one for each of {count} inputs, which must not repeat, got {ids.tolist()[:8]}")
        for name, found in given.items():
            if known.get(name, found) != found:
                raise self._other(f"input {name}, its target or its regions")
        if self.result is not None and len(given) == count and given.keys() <= known.keys():
            self.seen += count
            return self.result
        # What was given for every input of the data, for the inputs of this batch: ids count them in order.
        own = {name: taken(self.options[name], ids.tolist()) for name in ("methods", "features", "baselines")}
        ready = prepare(
            self.model, x, target, taken(self.goal or "mean", ids.tolist()), ids=ids, **{**self.options, **own}
        )
        names, task = self._task(ready, regions, reference)
        measures = resolve_measures(taken(self.measures, ids.tolist()), ready.baseline)
        result = self._empty(names) if self.result is None else self.result
        if names != result.rows:
            raise InputError(f"methods: {names} work on this batch, {result.rows} did on the first")
        kept = ready.points.ids.tolist()
        for measure in measures:
            measure.prepare(task)
        judged = [_numbers(measure, task, kept) for measure in measures]
        new = [i for i, name in enumerate(map(str, kept)) if name not in known]
        values, reasons = {}, dict(result.reasons)
        for label, (numbers, why) in zip(result.measures, judged, strict=True):
            values[label] = np.concatenate([result.values[label], numbers[new]])
            reasons[label] = {**reasons.get(label, {}), **why}
        left_out = {f"id {int(ids[i])}": why for i, why in ready.out.items()}
        left_out |= {f"methods.{name}": why for name, why in ready.failed.items()}
        counts = ready.score.counts
        # One assignment takes the batch in: a measure that raises, or an interrupt, leaves what was there before.
        self.result = replace(
            result,
            ids=[*result.ids, *(kept[i] for i in new)],
            values=values,
            reasons=reasons,
            left_out={**result.left_out, **left_out},
            evaluations={what: number + getattr(counts, what) for what, number in result.evaluations.items()},
            digests={**result.digests, **given},
        )
        self.seen += count
        return self.result

    def _empty(self, rows: tuple[str, ...]) -> Evaluation:
        """No input judged yet; measures of one name are numbered."""
        labels = [measure.name for measure in self.measures]
        unique = tuple(f"{n}_{labels[:i].count(n) + 1}" if labels[:i].count(n) else n for i, n in enumerate(labels))
        better = {name: measure.card.better for name, measure in zip(unique, self.measures, strict=True)}
        result = Evaluation(rows, unique, dict(better), settings=self.settings)
        result.values = {name: np.empty((0, len(rows))) for name in unique}
        return result

    def resume(self, path: str | Path) -> set[int]:
        """Go on from what an interrupted run with the same settings saved; the ids that are done.

        Raises:
            InputError: the settings or the model are others, or the file is of a version that did not say which model.
        """
        found, mine = Evaluation.load(path), json.loads(json.dumps(self.settings))
        self.path = path
        if differ := [name for name in {**mine, **found.settings} if mine.get(name) != found.settings.get(name)]:
            raise self._other(", ".join(differ))
        self.result = found
        return {int(name) for name in found.digests}

    def _other(self, what: str) -> InputError:
        if self.path is None:
            return InputError(f"ids: not what was judged already under the same id: {what}; ids must not repeat")
        return InputError(
            f"path: {self.path} holds an evaluation with other settings ({what}); give another file or remove it"
        )

    def compute(self) -> Evaluation:
        """What has been judged so far."""
        if self.result is None:
            raise InputError("data: nothing was judged yet; call update(x) first")
        return self.result

    def _task(self, ready: Ready, regions: Any, reference: Any) -> tuple[tuple[str, ...], Task]:
        setting, score, points = ready.setting, ready.score, ready.points
        k, goal = setting.rows, self.goal
        choices = [*ready.names, *DERIVED, *(["weighted", "consensus"] if goal is not None else [])]
        wanted = list(self.wanted or [*ready.names, "mean", *(["consensus"] if goal is not None else [])])
        for name in wanted:
            choose("row", name, choices)
        wanted = [name for name in wanted if name not in ready.failed]
        derived = bool({"var", "median", "rank", "uniform"} & {*wanted, goal if isinstance(goal, str) else ""})

        raw = setting.raw(score, points)
        base = setting.complete(setting.stack.apply(raw, points.owner), points, derived)
        mixing = torch.zeros(len(points), len(wanted), base.shape[1], dtype=torch.float64, device=base.device)
        if {"consensus", "weighted"} & set(wanted):
            assert goal is not None
            rule = Rule(goal, setting.working)
            asked = tuple(KINDS) if "weighted" in wanted else looked_at(goal)
            for group in fit(rule, setting, score, points, base[:, :k], self.fit, self.tolerance, asked):
                rows = list(group.index)
                if "consensus" in wanted:
                    weights = group.solved[0].weights
                    mixing[rows, wanted.index("consensus")] = mixing_of(goal, weights, base.shape[1], k)
                if "weighted" in wanted:
                    mixing[rows, wanted.index("weighted"), :k] = by_quality(group.evidence, setting.working)
        for at, name in enumerate(wanted):
            if name in ("consensus", "weighted"):
                continue
            if name == "mean":
                finite = base[:, list(setting.working)].flatten(2).isfinite().all(2).to(mixing)
                mixing[:, at, list(setting.working)] = finite / finite.sum(1, keepdim=True)
            else:
                mixing[:, at, [*ready.names, *DERIVED].index(name)] = 1
        place = torch.zeros(len(ready.x), dtype=torch.int64, device=points.owner.device)
        place[points.owner] = torch.arange(len(points), device=place.device)

        def explain(where: Score, near: Points) -> Tensor:
            return mix(mixing[place[near.owner]], setting.maps(where, near, derived))

        kinds = {name: e.kind for name, e in zip(ready.names, ready.explainers, strict=True)}
        signed = raw.new_full((len(points), len(wanted), *base.shape[2:]), torch.nan)
        reduced = setting.plain(raw, points.owner)
        for at, name in enumerate(wanted):
            if kinds.get(name) in ("contribution", "gradient"):
                signed[:, at] = reduced[:, setting.working.index(ready.names.index(name))]
        pick = lambda t: None if t is None else torch.as_tensor(t, device=base.device)[ready.left]  # noqa: E731
        task = Task(
            score, points, mix(mixing, base), setting.stack.features, explain, Key(setting.seed, "measure"), tuple(wanted),
            tuple(kinds.get(name, "relevance") for name in wanted), signed, pick(regions), pick(reference),
        )  # fmt: skip
        return tuple(wanted), task


def evaluate(
    model: Any,
    data: Any,
    *,
    target: Any = None,
    path: str | Path | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    **options: Any,
) -> Evaluation:
    """Measure methods, aggregations and the consensus on a data set: one number per input first, then their statistics.

    Args:
        model: as for :func:`consilience.explain`.
        data: a batch x (B, *F), or an iterable of batches x, (x, y) or (x, y, regions); x may be packed
            (:func:`consilience.pack`). An id counts the inputs in order.
        target: None or "predicted"; "labels" takes each batch's y; an integer, or one for each input in order.
        path: a JSON file that is written every few seconds and at the end, also of a run that fails or is interrupted; the
            next run goes on from it, and ``data`` may have grown. One process at a time writes to it. It holds hashes of
            the model (parameters, buffers, plain attributes, code of functions), of the arguments, and of every input with
            its target and regions, and is refused for others.
        progress: called with (inputs done, inputs in all or None).
        options: ``methods`` ("standard"); ``measures`` (names, configured measures, or the sets "default" and "all");
            ``objective`` ("opt") for the consensus, None for no consensus; ``rows``: which rows to judge (default methods,
            mean, consensus; also var, median, rank, uniform, weighted); ``seed``, ``fit_draws``, ``kind``, ``features``,
            ``baselines``, ``sign``, ``scale``, ``kwargs``, ``max_batch``, ``precision`` as for ``explain``; without
            ``fit_draws``, until sure. ``baselines`` are also those of every measure with a field ``baseline`` that is None.

    Returns:
        An :class:`Evaluation`: ``print(t)``, ``t["road"]``, ``t.compare("consensus", "grad_cam")``, ``t.save(path)``, which
        ``consilience.load(path)`` reads back, as it does the file of ``path``.

    Raises:
        InputError: an argument cannot be used, ``data`` gave no batch, ``path`` holds another evaluation, cannot be written,
            or another process writes to it.
    """
    evaluator = Evaluator(model, **options)
    target = plain(plain_array(target, "target"))
    evaluator.settings["target"] = "given" if isinstance(target, list) else target
    with ExitStack() as stack:
        file = None if path is None else stack.enter_context(GrowingFile(output(path)))
        if path is not None and Path(path).exists():
            evaluator.resume(path)
        return _judge(evaluator, data, target, options, file, progress)


def _judge(
    evaluator: Evaluator,
    data: Any,
    target: Any,
    options: Mapping[str, Any],
    file: GrowingFile | None,
    progress: Callable[[int, int | None], None] | None,
) -> Evaluation:
    """Every batch of ``data``. ``target`` plain; ``file``: where the evaluation grows."""
    total = _count(data) if isinstance(data, Tensor | np.ndarray | Packed) or is_frame(data) else _length(data)
    start, done = 0, 0 if evaluator.result is None else len(evaluator.result.digests)
    for batch in _batches(data, options):
        x, y, regions = parts_of(batch)
        first, start = start, start + _count(x)
        if isinstance(target, str) and target == "labels" and y is None:
            raise InputError("target: 'labels' needs batches (x, y)")
        each = isinstance(target, list)
        goal = y if isinstance(target, str) and target == "labels" else target[first:start] if each else target
        found = evaluator.update(x, goal, range(first, start), regions)
        if len(found.digests) > done:
            done = len(found.digests)
            if file is not None:
                file.update(found)
        if progress:
            progress(start, total)
    if not start:
        raise InputError("data: the loader gave no batch; was it an iterator that is used up?")
    if done > start:
        raise evaluator._other(f"it has {done} inputs, the data {start}")
    return evaluator.compute()


def _batches(data: Any, options: Mapping[str, Any], size: int = 8) -> Iterable[Any]:
    """A tensor in pieces that bound the memory, unless something else has one entry for each of its inputs."""
    if isinstance(data, Packed):
        return [data]
    if not isinstance(data, Tensor | np.ndarray) and not is_frame(data):
        return data
    return [data] if options.get("kwargs") else [data[i : i + size] for i in range(0, len(data), size)]


def _length(data: Any) -> int | None:
    items: Any = getattr(data, "dataset", None)
    return len(items) if hasattr(items, "__len__") else None


def _count(x: Any) -> int:
    """B, of a batch in any of its forms."""
    try:
        return len(x)
    except TypeError as error:
        raise InputError(f"data: expected batches of tensors or arrays, got {type(x).__name__}") from error


def _numbers(measure: Measure, task: Task, ids: Sequence[int]) -> tuple[np.ndarray, dict[str, str]]:
    """(B, R) with NaN for what is missing, and why: "id row" → reason, or "" → reason for the whole measure."""
    blank = np.full((len(task.points), len(task.names)), np.nan)
    for part in measure.needs:
        if getattr(task, part) is None:
            return blank, {"": f"needs {part}, which were not given"}
    try:
        numbers = measure(task).detach().cpu().double().numpy()
    except ConsilienceError as error:
        return blank, {"": str(error)}
    reasons = {}
    flat = task.maps.flatten(2)
    finite, some = flat.isfinite().all(2).cpu(), (flat != 0).any(2).cpu()
    for i, r in zip(*np.nonzero(~np.isfinite(numbers)), strict=True):
        why = measure.undefined
        if "raw" in measure.needs and task.raw is not None and not bool(task.raw[i, r].isfinite().all()):
            why = "needs signed contributions in units of the output; this row is none"
        elif not finite[i, r]:
            why = "the map has NaN or infinite values"
        elif not some[i, r]:
            why = "the map is zero everywhere"
        reasons[f"{ids[i]} {task.names[r]}"] = why
    return np.where(np.isfinite(numbers), numbers, np.nan), reasons
