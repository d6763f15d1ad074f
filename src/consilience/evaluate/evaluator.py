"""Quality over a data set: every measure of every row of every input, then means, errors, counts and comparisons."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..adapters import Packed
from ..adapters.base import a_model
from ..arrays import integers
from ..combine.aggregation import mix
from ..combine.aggregations import Weighted
from ..combine.draws import SEQUENTIAL_KINDS
from ..combine.sequential import fit
from ..errors import ConsilienceError, InputError, choose
from ..explain.options import Options
from ..explain.prepare import NothingLeft, Ready, parts_of, prepare
from ..features.frames import is_frame, plain_array
from ..measures import Measure, Task
from ..measures import resolve as resolve_measures
from ..model.score import Score
from ..perturb.per_input import taken
from ..perturb.points import Points
from ..results.describe import describe
from ..results.evaluation import Evaluation
from ..results.files import output
from ..results.fingerprint import digest, digests, plain
from ..settings import checked
from ..statistics.keys import Key
from .saving import GrowingFile


class Evaluator:
    """``update`` with batches, ``compute`` when done: what :func:`evaluate` does over a loader.

    Args:
        model: as for :func:`consilience.explain`.
        measures: names, configured measures or metrics, or the sets "default" and "all".
        rows: what to judge; None: the methods, their mean, and the consensus. Also var, median, rank, uniform, weighted.
        objective: of the consensus; None: no consensus.
        options: any further option of :func:`consilience.explain`.
    """

    def __init__(
        self,
        model: Any,
        *,
        measures: str | Measure | Iterable[str | Measure] = "default",
        rows: Sequence[str] | None = None,
        objective: Any = "opt",
        **options: Any,
    ):
        self.model = a_model(model)
        self.measures = resolve_measures(measures)
        self.wanted = checked("rows", rows.split(",") if isinstance(rows, str) else rows, tuple[str, ...] | None)
        self.consensus = objective is not None
        self.options = Options.of(objective=objective if self.consensus else "mean", **options)
        self.result: Evaluation | None = None
        self.seen = 0
        self.path: str | Path | None = None
        # Of inputs that were left out before any could be judged.
        self._left_out: dict[str, str] = {}
        self._digests: dict[str, str] = {}
        self.settings = self._described(objective)

    def _described(self, objective: Any) -> dict[str, Any]:
        """What names the evaluation, in words; an interrupted run goes on only if all of it is the same."""
        options = self.options.described()
        del options["max_batch"], options["kwargs"]
        described = {
            **options,
            "objective": objective if isinstance(objective, str | None) else describe(objective),
            "rows": None if self.wanted is None else describe(self.wanted),
            "measures": describe(self.measures),
            "fit_draws": describe(self.options.fitting) if self.consensus else None,
            "tolerance": self.options.tolerance if self.options.sequential else None,
        }
        # What words do not tell apart: models of one class, arrays of one shape.
        described["model"] = f"{type(self.model).__name__} {digest(self.model)}"
        described["arguments"] = digest(self.measures, objective, self.options.digest)
        return described

    @torch.inference_mode(False)
    def update(
        self, x: Any, target: Any = None, ids: Any = None, regions: Any = None, reference: Any = None
    ) -> Evaluation | None:
        """Judge a batch: ``x`` (B, *F), targets as for ``explain``, ``ids`` (B,), ``regions`` (B, *A) bool, ``reference``
        (B, *A). An input whose id was judged already is left as it is.

        Raises:
            InputError: it is not the input, target, regions or reference that was judged under that id.
        """
        count = _count(x)
        # What was given for every input of the data, such as regions, is taken for the inputs of this batch.
        places = range(self.seen, self.seen + count)
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
        try:
            ready = prepare(self.model, x, target, self.options.taken(places), ids)
        except NothingLeft as error:
            self._leave_out({f"id {int(ids[i])}": why for i, why in error.out.items()}, given)
            self.seen += count
            return self.result
        names, task = self._task(ready, regions, reference)
        measures = resolve_measures(taken(self.measures, places), ready.baseline)
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
        for name, reason in ready.measurement.stack.stack.failures.items():
            left_out[f"methods.{name}"] = f"NaN where it failed after it was tried: {reason}"
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

    def _leave_out(self, left_out: dict[str, str], digests: dict[str, str]) -> None:
        """Note a batch of which no input can be judged."""
        if self.result is None:
            self._left_out |= left_out
            self._digests |= digests
            return
        self.result = replace(
            self.result,
            left_out={**self.result.left_out, **left_out},
            digests={**self.result.digests, **digests},
        )

    def _empty(self, rows: tuple[str, ...]) -> Evaluation:
        """No input judged yet; measures of one name are numbered."""
        labels = [measure.name for measure in self.measures]
        unique = tuple(f"{n}_{labels[:i].count(n) + 1}" if labels[:i].count(n) else n for i, n in enumerate(labels))
        better = {name: measure.card.better for name, measure in zip(unique, self.measures, strict=True)}
        result = Evaluation(rows, unique, dict(better), settings=self.settings)
        result.values = {name: np.empty((0, len(rows))) for name in unique}
        result.left_out, result.digests = dict(self._left_out), dict(self._digests)
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
        if self.result is None and self._left_out:
            name, why = next(iter(self._left_out.items()))
            raise InputError(f"data: none of {len(self._left_out)} inputs can be judged; {name}: {why}")
        if self.result is None:
            raise InputError("data: nothing was judged yet; call update(x) first")
        return self.result

    def _task(self, ready: Ready, regions: Any, reference: Any) -> tuple[tuple[str, ...], Task]:
        """The rows that are judged, and the task of judging them."""
        measurement, score, points = ready.measurement, ready.score, ready.points
        rows = self._rows(ready)
        own = self.options.aggregation
        made = {aggregation.name for aggregation in measurement.derived if not aggregation.linear}
        derived = bool(made & set(rows)) or ("consensus" in rows and not own.linear)
        raw = measurement.raw(score, points)
        base = measurement.complete(measurement.stack.apply(raw, points.owner), points, derived)
        mixing = self._mixing(ready, base, rows)
        place = torch.zeros(len(ready.x), dtype=torch.int64, device=points.owner.device)
        place[points.owner] = torch.arange(len(points), device=place.device)

        def explain(where: Score, near: Points) -> Tensor:
            return mix(mixing[place[near.owner]], measurement.maps(where, near, derived))

        def of_inputs(given: Any) -> Tensor | None:
            return None if given is None else torch.as_tensor(given, device=base.device)[ready.left]

        kinds = {name: explainer.kind for name, explainer in zip(ready.names, ready.explainers, strict=True)}
        signed = raw.new_full((len(points), len(rows), *base.shape[2:]), torch.nan)
        reduced = measurement.plain(raw, points.owner)
        for at, name in enumerate(rows):
            if kinds.get(name) in ("contribution", "gradient"):
                signed[:, at] = reduced[:, measurement.working.index(ready.names.index(name))]
        task = Task(
            score=score,
            points=points,
            maps=mix(mixing, base),
            features=measurement.stack.features,
            explain=explain,
            key=Key(measurement.seed, "measure"),
            names=rows,
            kinds=tuple(kinds.get(name, "relevance") for name in rows),
            raw=signed,
            regions=of_inputs(regions),
            reference=of_inputs(reference),
        )
        return rows, task

    def _rows(self, ready: Ready) -> tuple[str, ...]:
        """The names of the rows that are judged: those asked for, without methods that fail."""
        derived = [aggregation.name for aggregation in ready.measurement.derived]
        last = ["weighted", "consensus"] if self.consensus else []
        usual = [*ready.names, "mean", *last[1:]]
        wanted = list(self.wanted or usual)
        for name in wanted:
            choose("row", name, [*ready.names, *derived, *last])
        return tuple(name for name in wanted if name not in ready.failed)

    def _mixing(self, ready: Ready, base: Tensor, rows: tuple[str, ...]) -> Tensor:
        """(B, rows, R): every row as coefficients on the maps ``base`` (B, R, *A) of methods and derived ones."""
        measurement, own = ready.measurement, self.options.aggregation
        k = measurement.rows
        mixing = torch.zeros(len(base), len(rows), base.shape[1], dtype=torch.float64, device=base.device)
        if {"consensus", "weighted"} & set(rows):
            kinds = own.kinds
            if "weighted" in rows:
                kinds = tuple(dict.fromkeys((*kinds, *SEQUENTIAL_KINDS)))
            tolerance = self.options.tolerance if self.options.sequential else None
            draws = self.options.fitting
            groups = fit(own, measurement, ready.score, ready.points, base[:, :k], draws, tolerance, kinds)
            for group in groups:
                index = list(group.index)
                if "consensus" in rows:
                    weights = group.solved.weights
                    mixing[index, rows.index("consensus")] = measurement.mixing(own, weights, base.shape[1])
                if "weighted" in rows:
                    weights = Weighted().fit(group.evidence.only(SEQUENTIAL_KINDS)).weights
                    mixing[index, rows.index("weighted"), :k] = weights
        names = [*ready.names, *(aggregation.name for aggregation in measurement.derived)]
        working = list(measurement.working)
        for at, name in enumerate(rows):
            if name == "mean":
                finite = base[:, working].flatten(2).isfinite().all(2).to(mixing)
                mixing[:, at, working] = finite / finite.sum(1, keepdim=True)
            elif name not in ("consensus", "weighted"):
                mixing[:, at, names.index(name)] = 1
        return mixing


def evaluate(
    model: Any,
    data: Any,
    *,
    target: Any = None,
    measures: str | Measure | Iterable[str | Measure] = "default",
    rows: Sequence[str] | None = None,
    ids: Sequence[int] | Tensor | None = None,
    path: str | Path | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    methods: Any = "standard",
    objective: Any = "opt",
    **options: Any,
) -> Evaluation:
    """Measure methods, aggregations and the consensus on a data set: one number per input first, then their statistics.

    Args:
        model: as for :func:`consilience.explain`.
        data: a batch x (B, *F), or an iterable of batches x, (x, y) or (x, y, regions); x may be packed
            (:func:`consilience.pack`).
        target: None or "predicted"; "labels" takes each batch's y; an integer, or one for each input in order.
        measures: names, configured measures or metrics, or the sets "default" and "all".
        rows: what to judge; None: the methods, their mean, and the consensus. Also var, median, rank, uniform, weighted.
        ids: one integer for each input in order, to which its draws belong; None: 0, 1, 2, … With ids, a part of the data
            gets the numbers that the whole would give it.
        path: a JSON file that is written every few seconds and at the end, also of a run that fails or is interrupted; the
            next run goes on from it, and ``data`` may have grown. One process at a time writes to it. It holds hashes of
            the model (parameters, buffers, plain attributes, code of functions), of the arguments, and of every input with
            its target and regions, and is refused for others.
        progress: called with (inputs done, inputs in all or None).
        methods: as for :func:`consilience.explain`.
        objective: of the consensus, as for :func:`consilience.explain`; None: no consensus.
        options: any further option of :func:`consilience.explain`. ``baselines`` are also those of every measure with a field
            ``baseline`` that is None.

    Returns:
        An :class:`Evaluation`: ``print(t)``, ``t["road"]``, ``t.compare("consensus", "grad_cam")``, ``t.save(path)``, which
        ``consilience.load(path)`` reads back, as it does the file of ``path``.

    Raises:
        InputError: an argument cannot be used, ``data`` gave no batch, ``path`` holds another evaluation, cannot be written,
            or another process writes to it.
    """
    progress = checked("progress", progress, Callable | None)
    evaluator = Evaluator(model, measures=measures, rows=rows, methods=methods, objective=objective, **options)
    target = plain(plain_array(target, "target"))
    evaluator.settings["target"] = "given" if isinstance(target, list) else target
    with ExitStack() as stack:
        file = None if path is None else stack.enter_context(GrowingFile(output(path)))
        if path is not None and Path(path).exists():
            evaluator.resume(path)
        return _judge(evaluator, data, target, ids, file, progress)


def _judge(
    evaluator: Evaluator,
    data: Any,
    target: Any,
    ids: Any,
    file: GrowingFile | None,
    progress: Callable[[int, int | None], None] | None,
) -> Evaluation:
    """Every batch of ``data``. ``target`` plain; ``file``: where the evaluation grows."""
    total = _count(data) if isinstance(data, Tensor | np.ndarray | Packed) or is_frame(data) else _length(data)
    names = None if ids is None else integers("ids", ids)
    start, done = 0, 0 if evaluator.result is None else len(evaluator.result.digests)
    for batch in _batches(data, evaluator.options):
        x, y, regions = parts_of(batch)
        first, start = start, start + _count(x)
        if names is not None and len(names) < start:
            raise InputError(f"ids: one for each input; {len(names)} were given, the data has {start} or more")
        goal = _targets(target, y, first, start)
        found = evaluator.update(x, goal, range(first, start) if names is None else names[first:start], regions)
        if found is not None and len(found.digests) > done:
            done = len(found.digests)
            if file is not None:
                file.update(found)
        if progress:
            progress(start, total)
    if not start:
        raise InputError("data: the loader gave no batch; was it an iterator that is used up?")
    if names is not None and len(names) > start:
        raise InputError(f"ids: one for each input; {len(names)} were given, the data has {start}")
    if done > start:
        raise evaluator._other(f"it has {done} inputs, the data {start}")
    return evaluator.compute()


def _targets(target: Any, y: Any, first: int, stop: int) -> Any:
    """The targets of the inputs from ``first`` to ``stop``."""
    if isinstance(target, str) and target == "labels":
        if y is None:
            raise InputError("target: 'labels' needs batches (x, y)")
        return y
    return target[first:stop] if isinstance(target, list) else target


def _batches(data: Any, options: Options, size: int = 8) -> Iterable[Any]:
    """A tensor in pieces that bound the memory, unless something else has one entry for each of its inputs."""
    if isinstance(data, Packed):
        return [data]
    if not isinstance(data, Tensor | np.ndarray) and not is_frame(data):
        if isinstance(data, str | bytes) or not isinstance(data, Iterable):
            raise InputError(
                f"data: a batch of inputs, or an iterable of batches such as a DataLoader, got {type(data).__name__}"
            )
        return data
    return [data] if options.kwargs else [data[i : i + size] for i in range(0, len(data), size)]


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
