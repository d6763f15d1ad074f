"""``Evaluator``: judges one batch after another, by every measure, and keeps one number for each input, row and measure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..adapters.base import a_model
from ..errors import ConsilienceError, InputError
from ..explain.options import OPTION_NAMES, Options
from ..explain.prepare import NothingLeft, Ready, prepare
from ..features.frames import plain_array
from ..measures import Measure, Task
from ..measures import resolve as resolve_measures
from ..perturb.per_input import taken
from ..results.describe import describe
from ..results.evaluation import Evaluation
from ..results.fingerprint import digest, digests
from ..settings import checked
from ..signatures import KnownArguments
from .rows import Rows


class Evaluator(KnownArguments):
    """``update`` it with batches, then ``compute``: what :func:`consilience.evaluate` does over a loader.

    Args:
        model: as for :func:`consilience.explain`.
        measures: names, configured measures or metrics, or the sets "default" and "all".
        rows: what to judge; None: the methods, their mean, and the consensus. Also var, median, rank, uniform, weighted.
        objective: of the consensus; None: no consensus.
        options: any further option of :func:`consilience.explain`.
    """

    further = OPTION_NAMES

    def __init__(
        self,
        model: Any,
        *,
        measures: str | Measure | Iterable[str | Measure] = "default",
        rows: Sequence[str] | None = None,
        objective: Any = "posterior",
        **options: Any,
    ):
        self.model = a_model(model)
        self.measures = resolve_measures(measures)
        consensus = objective is not None
        # Without a consensus nothing is fitted: "mean" draws nothing.
        self.options = Options.of(objective=objective if consensus else "mean", **options)
        if isinstance(rows, str):
            rows = rows.split(",")
        wanted = checked("rows", rows, tuple[str, ...] | None)
        self.rows = Rows(self.options, wanted, consensus)
        self.result: Evaluation | None = None
        self.seen = 0
        self.path: str | Path | None = None
        # Inputs that were left out before any could be judged: there is no result yet that could name them.
        self._left_out: dict[str, str] = {}
        self._digests: dict[str, str] = {}
        self.settings = self._described(objective)

    def _described(self, objective: Any) -> dict[str, Any]:
        """What was asked for, in words; an interrupted run goes on only if all of it is the same."""
        options = self.options.described()
        # Results do not depend on the batch; the keyword arguments are in each input's digest.
        del options["max_batch"], options["kwargs"]
        described = {
            **options,
            "objective": objective if isinstance(objective, str | None) else describe(objective),
            "rows": None if self.rows.wanted is None else describe(self.rows.wanted),
            "measures": describe(self.measures),
            "fit_draws": describe(self.options.fitting) if self.rows.consensus else None,
            "tolerance": self.options.tolerance if self.options.sequential else None,
        }
        # Digests, for what words do not tell apart: models of one class, arrays of one shape.
        described["model"] = f"{type(self.model).__name__} {digest(self.model)}"
        described["arguments"] = digest(self.measures, objective, self.options.digest)
        return described

    @torch.inference_mode(False)
    def update(
        self, x: Any, target: Any = None, ids: Any = None, regions: Any = None, reference: Any = None
    ) -> Evaluation | None:
        """Judge a batch. An input whose id was judged already is left as it is.

        Args:
            x: (B, *F).
            target: as for :func:`consilience.explain`.
            ids: (B,) integers to which the draws belong; None: the inputs are counted.
            regions: (B, *A) bool, where the explanation should be, for measures that need it.
            reference: (B, *A), the true attribution, for measures that need it.

        Returns:
            What has been judged so far; None: nothing yet.

        Raises:
            InputError: it is not the input, target, regions or reference that was judged under that id.
        """
        count = count_inputs(x)
        # What was given for every input of the data, such as regions, is taken for the inputs of this batch.
        places = range(self.seen, self.seen + count)
        ids = torch.arange(places.start, places.stop) if ids is None else torch.as_tensor(ids)
        given = self._digests_of(count, x, target, ids, regions, reference)
        judged = {} if self.result is None else self.result.digests
        if self.result is not None and len(given) == count and given.keys() <= judged.keys():
            self.seen += count
            return self.result
        try:
            ready = prepare(self.model, x, target, self.options.taken(places), ids)
        except NothingLeft as error:
            self._leave_out({f"id {int(ids[number])}": why for number, why in error.out.items()}, given)
            self.seen += count
            return self.result
        # One assignment takes the batch in: a measure that raises, or an interrupt, leaves what was there before.
        self.result = self._judged(ready, ids, places, given, regions, reference)
        self.seen += count
        return self.result

    def _digests_of(
        self, count: int, x: Any, target: Any, ids: torch.Tensor, regions: Any, reference: Any
    ) -> dict[str, str]:
        """Id → hash of an input with all that was given for it.

        Raises:
            InputError: ids repeat, or another input was judged under the same id.
        """
        hashes = digests(count, plain_array(x, "x"), plain_array(target, "target"), regions, reference)
        given = dict(zip(map(str, ids.tolist()), hashes, strict=False))
        if len(given) < len(ids):
            raise InputError(f"ids: one for each of {count} inputs, which must not repeat, got {ids.tolist()[:8]}")
        judged = {} if self.result is None else self.result.digests
        for name, hash_ in given.items():
            if judged.get(name, hash_) != hash_:
                raise self.other(f"input {name}, its target or its regions")
        return given

    def _judged(
        self, ready: Ready, ids: torch.Tensor, places: range, given: dict[str, str], regions: Any, reference: Any
    ) -> Evaluation:
        """The evaluation so far, and this batch.

        Args:
            ready: the inputs that can be judged, prepared.
            ids: (B,) of all inputs of the batch.
            places: their places in the data.
            given: id → hash, of all inputs of the batch.
            regions: as for :meth:`update`.
            reference: as for :meth:`update`.
        """
        task = self.rows.task(ready, regions, reference)
        measures = resolve_measures(taken(self.measures, places), ready.baseline)
        result = self._empty(task.names) if self.result is None else self.result
        if task.names != result.rows:
            raise InputError(f"methods: {task.names} work on this batch, {result.rows} did on the first")
        kept = ready.points.ids.tolist()
        # All measures say what they will ask before the first is called, so that one pass can serve several.
        for measure in measures:
            measure.prepare(task)
        known = {} if self.result is None else self.result.digests
        new = [place for place, name in enumerate(map(str, kept)) if name not in known]
        values = {}
        reasons = dict(result.reasons)
        for label, measure in zip(result.measures, measures, strict=True):
            numbers, why = _numbers(measure, task, kept)
            values[label] = np.concatenate([result.values[label], numbers[new]])
            reasons[label] = {**reasons.get(label, {}), **why}
        counts = ready.score.counts
        return replace(
            result,
            ids=[*result.ids, *(kept[place] for place in new)],
            values=values,
            reasons=reasons,
            left_out={**result.left_out, **_left_out(ready, ids)},
            evaluations={what: number + getattr(counts, what) for what, number in result.evaluations.items()},
            digests={**result.digests, **given},
        )

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
        """No input judged yet."""
        labels = _numbered([measure.name for measure in self.measures])
        better: dict[str, str] = {
            label: measure.card.better for label, measure in zip(labels, self.measures, strict=True)
        }
        result = Evaluation(rows, labels, better, settings=self.settings)
        result.values = {label: np.empty((0, len(rows))) for label in labels}
        result.left_out = dict(self._left_out)
        result.digests = dict(self._digests)
        return result

    def resume(self, path: str | Path) -> set[int]:
        """Go on from what an interrupted run with the same settings saved at ``path``; the ids that are done.

        Raises:
            InputError: the settings or the model are others, or the file is of a version that did not say which model.
        """
        saved = Evaluation.load(path)
        settings = json.loads(json.dumps(self.settings))  # as a file gives them back: tuples are lists
        self.path = path
        names = {**settings, **saved.settings}
        differ = [name for name in names if settings.get(name) != saved.settings.get(name)]
        if differ:
            raise self.other(", ".join(differ))
        self.result = saved
        return {int(name) for name in saved.digests}

    def other(self, what: str) -> InputError:
        """The error for something that differs from what was judged before; ``what`` differs, in words."""
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


def count_inputs(x: Any) -> int:
    """B, of a batch ``x`` in any of its forms."""
    try:
        return len(x)
    except TypeError as error:
        raise InputError(f"data: expected batches of tensors or arrays, got {type(x).__name__}") from error


def _left_out(ready: Ready, ids: torch.Tensor) -> dict[str, str]:
    """Inputs and methods that could not be judged → why."""
    left_out = {f"id {int(ids[number])}": why for number, why in ready.out.items()}
    left_out |= {f"methods.{name}": why for name, why in ready.failed.items()}
    for name, reason in ready.measurement.stack.stack.failures.items():
        left_out[f"methods.{name}"] = f"NaN where it failed after it was tried: {reason}"
    return left_out


def _numbered(names: Sequence[str]) -> tuple[str, ...]:
    """Names that repeat get a number: road, road_2."""
    labels = []
    for place, name in enumerate(names):
        earlier = names[:place].count(name)
        labels.append(f"{name}_{earlier + 1}" if earlier else name)
    return tuple(labels)


def _numbers(measure: Measure, task: Task, ids: Sequence[int]) -> tuple[np.ndarray, dict[str, str]]:
    """A measure's numbers (B, rows), NaN where one is missing, and why.

    Args:
        measure: what is asked.
        task: what is judged.
        ids: (B,) of its inputs.

    Returns:
        The numbers, and "id row" → reason, or "" → the reason for the whole measure.
    """
    blank = np.full((len(task.points), len(task.names)), np.nan)
    for part in measure.needs:
        if getattr(task, part) is None:
            return blank, {"": f"needs {part}, which were not given"}
    try:
        numbers = measure(task).detach().cpu().double().numpy()
    except ConsilienceError as error:
        return blank, {"": str(error)}
    missing = ~np.isfinite(numbers)
    reasons = {}
    for place, row in zip(*np.nonzero(missing), strict=True):
        reasons[f"{ids[place]} {task.names[row]}"] = _why_undefined(measure, task, place, row)
    return np.where(missing, np.nan, numbers), reasons


def _why_undefined(measure: Measure, task: Task, place: int, row: int) -> str:
    """Why a measure has no number for one row of one input."""
    values = task.maps[place, row]
    if "raw" in measure.needs and task.raw is not None and not bool(task.raw[place, row].isfinite().all()):
        return "needs signed contributions in units of the output; this row is none"
    if not bool(values.isfinite().all()):
        return "the map has NaN or infinite values"
    if not bool((values != 0).any()):
        return "the map is zero everywhere"
    return measure.undefined
