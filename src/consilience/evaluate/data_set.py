"""``cs.evaluate``: every batch of a data set given to an evaluator, and a file that grows meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..adapters import Packed
from ..arrays import integers
from ..errors import InputError
from ..explain.options import OPTION_NAMES, Options
from ..explain.prepare import parts_of
from ..features.frames import is_frame, plain_array
from ..measures import Measure
from ..results.evaluation import Evaluation
from ..results.files import output
from ..results.fingerprint import plain
from ..settings import checked
from ..signatures import known_arguments
from .evaluator import Evaluator, count_inputs
from .saving import GrowingFile


@known_arguments(*OPTION_NAMES)
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
    objective: Any = "posterior",
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
    """Every batch judged.

    Args:
        evaluator: what judges, perhaps with what an interrupted run has judged.
        data: as for :func:`evaluate`.
        target: None, a string, an integer, or a list of integers for all inputs in order.
        ids: as for :func:`evaluate`.
        file: where the evaluation grows; None: nowhere.
        progress: as for :func:`evaluate`.
    """
    total = _total(data)
    names = None if ids is None else integers("ids", ids)
    stop = 0
    done = 0
    if evaluator.result is not None:
        done = len(evaluator.result.digests)
    for batch in _batches(data, evaluator.options):
        x, y, regions = parts_of(batch)
        start = stop
        stop += count_inputs(x)
        if names is not None and len(names) < stop:
            raise InputError(f"ids: one for each input; {len(names)} were given, the data has {stop} or more")
        batch_ids = range(start, stop) if names is None else names[start:stop]
        result = evaluator.update(x, _targets(target, y, start, stop), batch_ids, regions)
        if result is not None and len(result.digests) > done:
            done = len(result.digests)
            if file is not None:
                file.update(result)
        if progress:
            progress(stop, total)
    if not stop:
        raise InputError("data: the loader gave no batch; was it an iterator that is used up?")
    if names is not None and len(names) > stop:
        raise InputError(f"ids: one for each input; {len(names)} were given, the data has {stop}")
    # A file that is gone on from may hold fewer inputs than the data, never more.
    if done > stop:
        raise evaluator.other(f"it has {done} inputs, the data {stop}")
    return evaluator.compute()


def _targets(target: Any, y: Any, start: int, stop: int) -> Any:
    """The targets of the inputs from ``start`` to ``stop``."""
    if isinstance(target, str) and target == "labels":
        if y is None:
            raise InputError("target: 'labels' needs batches (x, y)")
        return y
    if isinstance(target, list):
        return target[start:stop]
    return target


def _batches(data: Any, options: Options, size: int = 8) -> Iterable[Any]:
    """The batches of ``data``; those of a tensor have ``size`` inputs, to bound the memory."""
    if isinstance(data, Packed):
        return [data]
    if not isinstance(data, Tensor | np.ndarray) and not is_frame(data):
        if isinstance(data, str | bytes) or not isinstance(data, Iterable):
            raise InputError(
                f"data: a batch of inputs, or an iterable of batches such as a DataLoader, got {type(data).__name__}"
            )
        return data
    # The model's keyword arguments may have one entry for each input of the whole tensor, so it is not cut.
    if options.kwargs:
        return [data]
    return [data[start : start + size] for start in range(0, len(data), size)]


def _total(data: Any) -> int | None:
    """The number of inputs, or None if the data cannot say."""
    if isinstance(data, Tensor | np.ndarray | Packed) or is_frame(data):
        return count_inputs(data)
    items: Any = getattr(data, "dataset", None)
    return len(items) if hasattr(items, "__len__") else None
