"""Loads saved results: a run's folder as an Explanation, an evaluation's file as an Evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import fsum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..combine.aggregations import AGGREGATIONS
from ..errors import InputError
from ..model.batching import Counts
from ..signatures import known_arguments
from ..simplex import Solution
from ..statistics.evidence import Evidence, Quadratic, Responses
from .difference import PairedDifference
from .evaluation import Evaluation
from .explanation import ROWS, Explanation, FrontPoints, Measured
from .files import output, reading
from .runs import index_of
from .stored import RECORD, StoredInput, read_input

Records = Sequence[dict[str, Any]]


@known_arguments()
def load(path: str | Path) -> Any:
    """Read what :meth:`Explanation.save` or ``consilience explain`` wrote, a run's folder or one input's, as an
    :class:`~consilience.Explanation`; or what ``evaluate`` wrote, a file, as an
    :class:`~consilience.results.evaluation.Evaluation`.

    Nothing in the files is executed.

    Args:
        path: the folder or the file. Files of every earlier version are read.

    Raises:
        InputError: a file is missing or damaged; names it.
    """
    path = output(path)
    if path.is_file():
        return Evaluation.load(path)
    folders, reasons = index_of(path)
    inputs = [read_input(folder) for folder in folders]
    _check_alike(folders, inputs)
    # Each input is read by itself first, so that the error of a damaged one can name its folder.
    for folder, each in zip(folders, inputs, strict=True):
        with reading(folder / RECORD):
            _explanation([each], {})
    return _explanation(inputs, reasons)


def _check_alike(folders: Sequence[Path], inputs: Sequence[StoredInput]) -> None:
    """Raise an InputError unless all inputs have the same methods and shapes."""
    first = inputs[0].entry
    for folder, each in zip(folders, inputs, strict=True):
        entry = each.entry
        if entry.record["methods"] != first.record["methods"] or entry.maps.shape != first.maps.shape:
            raise InputError(
                f"{folder}: other methods or another shape {entry.maps.shape} than in {folders[0].name} "
                f"{first.maps.shape}, so they are not one result; load each folder by itself"
            )


def _explanation(inputs: Sequence[StoredInput], reasons: Mapping[str, str]) -> Explanation:
    """One result of inputs with the same methods and shapes."""
    entries = [each.entry for each in inputs]
    arrays = [each.arrays for each in inputs]
    records = [entry.record for entry in entries]
    # What does not depend on the input is the same in every record.
    first = records[0]
    weights = _stack([each["weights"] for each in arrays])
    return Explanation(
        attribution=_stack([entry.attribution for entry in entries]),
        weights=weights,
        maps=_stack([entry.maps for entry in entries]),
        derived=_stack([_derived(each) for each in inputs]),
        methods=tuple(first["methods"]),
        kinds=tuple(first["kinds"]),
        objective=first["objective"],
        solution=_solution(records, weights),
        fronts=[_front(record.get("front")) for record in records],
        criteria=_criteria(records),
        evidence={stream: [_evidence(each, stream) for each in arrays] for stream in _streams(records)},
        mixing=_mixing(first, arrays, weights),
        scales=_scales(first, arrays, weights),
        resolved=_resolved(records),
        completeness=_completeness(records),
        failed={name: why for record in records for name, why in (record.get("failed") or {}).items()},
        inputs=_saved("inputs", arrays),
        index=_index(len(records), reasons),
        reasons=dict(reasons),
        target=torch.tensor([int(record["target"]) for record in records]),
        predicted=_predicted(records),
        score=_numbers([record["score"] for record in records]),
        seed=first["seed"],
        draws=_draws(records),
        counts=_counts(records),
        seconds=_total(records, lambda record: record["seconds"]),
        settings=first["settings"],
        weights_stderr=_weights_stderr(records),
        differences=_differences(records),
        over_uniform=_differences(records, "over_uniform"),
        warnings=tuple(dict.fromkeys(text for record in records for text in record.get("warnings") or ())),
        about={"images": [entry.image for entry in entries]},
        stored=tuple(records),
        error=_saved("error", arrays),
        by_unit=_saved("by_unit", arrays),
        certain=_saved("certain", arrays),
        posterior=_posterior(records),
    )


def _solution(records: Records, weights: Tensor) -> Solution:
    """The weights (B, k) with the value, gap and status of each input."""
    return Solution(
        weights,
        value=_numbers([record["value"] for record in records]),
        gap=_numbers([record["gap"] for record in records]),
        status=tuple(record["status"] for record in records),
    )


def _completeness(records: Records) -> dict[str, Tensor]:
    """method → (B,), its completeness errors."""
    names = records[0]["completeness_error"]
    return {name: _numbers([record["completeness_error"][name] for record in records]) for name in names}


def _predicted(records: Records) -> Tensor:
    """(B,) int64, the predicted classes; −1 where the model predicts none."""
    predicted = [record["predicted"] for record in records]
    return torch.tensor([-1 if number is None else int(number) for number in predicted])


def _counts(records: Records) -> Counts:
    """How often the model was evaluated, for all inputs together."""
    return Counts(
        forward=round(_total(records, lambda record: record["evaluations"]["forward"])),
        gradient=round(_total(records, lambda record: record["evaluations"]["gradient"])),
    )


def _saved(name: str, arrays: Sequence[Mapping[str, np.ndarray]]) -> Tensor | None:
    """The array of that name for all inputs (B, …); None where it was not saved."""
    if not all(name in each for each in arrays):
        return None
    return _stack([each[name] for each in arrays])


def _posterior(records: Records) -> tuple[dict[str, Any], ...] | None:
    """What a posterior measured of itself, NaN for missing numbers; None for other objectives."""
    if not all("posterior" in record for record in records):
        return None
    nan = float("nan")
    return tuple(
        {what: nan if value is None else value for what, value in record["posterior"].items()} for record in records
    )


def _streams(records: Records) -> tuple[str, ...]:
    """The streams of draws: without a judgement there are no fresh ones."""
    if _draws(records)["fresh"] is None:
        return ("fit",)
    return ("fit", "fresh")


def _draws(records: Records) -> dict[str, Any]:
    """What was drawn for every input, as :attr:`Explanation.draws` holds it."""
    draws = {**records[0]["draws"], "fit": [record["draws"]["fit"] for record in records]}
    fresh = [record["draws"].get("fresh") for record in records]
    draws["fresh"] = None if None in fresh else fresh
    if "masks" in draws:  # not in files of earlier versions
        draws["masks"] = [record["draws"]["masks"] for record in records]
    return draws


def _index(count: int, reasons: Mapping[str, str]) -> tuple[int, ...]:
    """The places of ``count`` inputs in their batch, of which some were left out."""
    places = [i for i in range(count + len(reasons)) if f"inputs[{i}]" not in reasons]
    return tuple(places[:count])


def _stack(arrays: Sequence[np.ndarray]) -> Tensor:
    """(B, …), one array of each input."""
    return torch.as_tensor(np.stack(arrays))


def _numbers(values: Sequence[float | None]) -> Tensor:
    """(B,) float64, NaN for None."""
    return torch.tensor([torch.nan if value is None else float(value) for value in values], dtype=torch.float64)


def _derived(each: StoredInput) -> np.ndarray:
    """(6, *A), the maps made from all methods, in the order of :data:`ROWS`; NaN where a version did not save one."""
    entry = each.entry
    # Earlier versions did not save the uniform map, which is 1 everywhere unless something is padded.
    rows = {"uniform": each.arrays.get("uniform", np.ones_like(entry.attribution)), **entry.extra}
    missing = np.full_like(entry.attribution, np.nan)
    return np.stack([rows.get(name, missing) for name in ROWS])


def _front(front: Mapping[str, Any] | None) -> FrontPoints | None:
    """The front of one record; None where there is none."""
    if front is None:
        return None
    criterion = "noise_over_signal" if "noise_over_signal" in front else "relative_sensitivity"
    robustness = torch.tensor(front[criterion], dtype=torch.float64)
    correlation = torch.tensor(front["faithfulness_correlation"], dtype=torch.float64)
    points = torch.tensor(front["weights"], dtype=torch.float64)
    incompatibility = front.get("incompatibility")
    if incompatibility is None:
        incompatibility = torch.nan
    return FrontPoints(robustness, correlation, points, float(incompatibility), criterion)


def _criteria(records: Records) -> dict[str, dict[str, Measured]]:
    """criterion → row → the numbers of all inputs."""
    criteria: dict[str, dict[str, Measured]] = {}
    for criterion, rows in records[0]["criteria"].items():
        criteria[criterion] = {}
        for row in rows:
            cells = [record["criteria"][criterion][row] for record in records]
            parts = {part: _numbers([cell[part] for cell in cells]) for part in ("fit", "fresh", "stderr")}
            criteria[criterion][row] = Measured(**parts)
    return criteria


def _evidence(arrays: Mapping[str, np.ndarray], stream: str) -> Evidence:
    """The evidence of one input (B = 1) and one stream of draws, from the names that ``evidence_arrays`` gives.

    They are "<stream>.<kind>.<part>", without the kind for the first two kinds.
    """
    parts: dict[str, Quadratic | Responses] = {}
    for name in arrays:
        if not name.startswith(f"{stream}."):
            continue
        kind, _, part = name.removeprefix(f"{stream}.").rpartition(".")
        prefix = name.removesuffix(part)
        exact = _optional(arrays, f"{prefix}exact")
        # One array of each kind stands for all of that kind.
        if part == "gram":
            parts[kind or "quadratic"] = Quadratic(_one(arrays, name), _one(arrays, f"{prefix}norm"), exact)
        elif part == "responses":
            sizes = _optional(arrays, f"{prefix}sizes")
            parts[kind or "responses"] = Responses(
                _one(arrays, name),
                _one(arrays, f"{prefix}falls"),
                whole=exact,
                size=None if sizes is None else sizes[None],
            )
    return Evidence.of(parts)


def _one(arrays: Mapping[str, np.ndarray], name: str) -> Tensor:
    """The array of one input with an axis for inputs, (1, …)."""
    return torch.as_tensor(arrays[name])[None]


def _optional(arrays: Mapping[str, np.ndarray], name: str) -> Tensor | None:
    """The array of that name; None where there is none."""
    if name not in arrays:
        return None
    return torch.as_tensor(arrays[name])


def _mixing(record: Mapping[str, Any], arrays: Sequence[Mapping[str, np.ndarray]], weights: Tensor) -> Tensor:
    """(B, R). Earlier versions saved the weights alone, from which the coefficients follow."""
    if all("mixing" in each for each in arrays):
        return _stack([each["mixing"] for each in arrays])
    k = len(record["methods"])
    mixing = weights.new_zeros(len(weights), k + len(ROWS) - 1)
    aggregation = AGGREGATIONS.get(record["objective"])
    if aggregation is None or aggregation.linear:
        mixing[:, :k] = weights
    else:
        mixing[:, k + ROWS.index(aggregation.name)] = 1
    return mixing


def _scales(record: Mapping[str, Any], arrays: Sequence[Mapping[str, np.ndarray]], weights: Tensor) -> Tensor:
    """(B, k). Earlier versions did not save them: NaN, or 1 where maps were not scaled."""
    if all("scales" in each for each in arrays):
        return _stack([each["scales"] for each in arrays])
    known = 1.0 if record["settings"].get("scale") == "none" else torch.nan
    return torch.full_like(weights, known, dtype=torch.float64)


def _weights_stderr(records: Records) -> Tensor:
    """(B, k); NaN where it is not known, or was not yet recorded."""
    unknown = [None] * len(records[0]["methods"])
    return torch.stack([_numbers(record.get("weights_stderr") or unknown) for record in records])


def _differences(records: Records, where: str = "differences") -> dict[str, PairedDifference]:
    """By criterion; empty where a version did not record them.

    Args:
        records: of all inputs.
        where: their key in records.
    """
    differences = {}
    for criterion in records[0].get(where) or {}:
        each = [record[where][criterion] for record in records]
        numbers = {part: _numbers([one[part] for one in each]) for part in ("value", "stderr", "low", "high")}
        differences[criterion] = PairedDifference(
            tuple(one["best_single"] for one in each),
            **numbers,
            among=each[0].get("among", ""),
            draws=torch.tensor([int(one["n"]) for one in each]),
            # In versions without a margin every difference mattered.
            margin=_numbers([one.get("margin", 0.0) for one in each]),
            confidence=float(each[0].get("confidence", 0.95)),
        )
    return differences


def _resolved(records: Records) -> dict[str, Tensor] | None:
    """The sensitivity of weights that were solved anew at every neighbour; None where that was not measured."""
    numbers = [record["measures"]["relative_sensitivity_resolved"] for record in records]
    where = "measures.relative_sensitivity_resolved"
    if any(where in (record.get("reasons") or {}) for record in records):
        return None
    return {part: _numbers([each[part] for each in numbers]) for part in ("value", "stderr")}


def _total(records: Records, of: Any) -> float:
    """A total over all runs that the inputs are from.

    Each record has the total of its own run. Where all are of one run that is the answer; otherwise each input counts with its
    share of its run.

    Args:
        records: of all inputs.
        of: record → the total of its run.
    """
    if all(record["evaluations"]["inputs"] == len(records) for record in records):
        return of(records[0])
    return fsum(of(record) / record["evaluations"]["inputs"] for record in records)
