"""Reading back what was saved, as the class that was saved."""

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
    # The parts that only some readers use can be damaged too, and the folder is known here alone.
    for folder, each in zip(folders, inputs, strict=True):
        with reading(folder / RECORD):
            _explanation([each], {})
    return _explanation(inputs, reasons)


def _check_alike(folders: Sequence[Path], inputs: Sequence[StoredInput]) -> None:
    first = inputs[0].entry
    for folder, each in zip(folders, inputs, strict=True):
        entry = each.entry
        if entry.record["methods"] != first.record["methods"] or entry.maps.shape != first.maps.shape:
            raise InputError(
                f"{folder}: other methods or another shape {entry.maps.shape} than in {folders[0].name} "
                f"{first.maps.shape}, so they are no one result; load each folder by itself"
            )


def _explanation(inputs: Sequence[StoredInput], reasons: Mapping[str, str]) -> Explanation:
    """One result of inputs with the same methods and shapes."""
    entries, arrays = [each.entry for each in inputs], [each.arrays for each in inputs]
    records = [entry.record for entry in entries]
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
        solution=Solution(
            weights,
            _numbers([record["value"] for record in records]),
            _numbers([record["gap"] for record in records]),
            tuple(record["status"] for record in records),
        ),
        fronts=[_front(record.get("front")) for record in records],
        criteria=_criteria(records),
        evidence={stream: [_evidence(each, stream, weights.dtype) for each in arrays] for stream in _streams(records)},
        mixing=_mixing(first, arrays, weights),
        scales=_scales(first, arrays, weights),
        resolved=_resolved(records),
        completeness={
            name: _numbers([record["completeness_error"][name] for record in records])
            for name in first["completeness_error"]
        },
        failed={name: why for record in records for name, why in (record.get("failed") or {}).items()},
        inputs=_stack([each["inputs"] for each in arrays]) if all("inputs" in each for each in arrays) else None,
        index=_index(len(records), reasons),
        reasons=dict(reasons),
        target=torch.tensor([int(record["target"]) for record in records]),
        predicted=torch.tensor([-1 if record["predicted"] is None else int(record["predicted"]) for record in records]),
        score=_numbers([record["score"] for record in records]),
        seed=first["seed"],
        draws=_draws(records),
        counts=Counts(
            round(_total(records, lambda record: record["evaluations"]["forward"])),
            round(_total(records, lambda record: record["evaluations"]["gradient"])),
        ),
        seconds=_total(records, lambda record: record["seconds"]),
        settings=first["settings"],
        weights_stderr=_weights_stderr(records),
        differences=_differences(records),
        over_uniform=_differences(records, "over_uniform"),
        warnings=tuple(dict.fromkeys(text for record in records for text in record.get("warnings") or ())),
        about={"images": [entry.image for entry in entries]},
        stored=tuple(records),
        error=_map("error", arrays),
        certain=_map("certain", arrays),
        posterior=_posterior(records),
    )


def _map(name: str, arrays: Sequence[Mapping[str, np.ndarray]]) -> Tensor | None:
    """(B, *A); None where it was not saved."""
    if not all(name in each for each in arrays):
        return None
    return _stack([each[name] for each in arrays])


def _posterior(records: Records) -> tuple[dict[str, Any], ...] | None:
    """What a posterior said of itself, NaN where a number had none."""
    if not all("posterior" in record for record in records):
        return None
    nan = float("nan")
    return tuple(
        {what: nan if value is None else value for what, value in record["posterior"].items()} for record in records
    )


def _streams(records: Records) -> tuple[str, ...]:
    """The streams of draws that there are: of what nothing judged there are no fresh ones."""
    return ("fit",) if _draws(records)["fresh"] is None else ("fit", "fresh")


def _draws(records: Records) -> dict[str, Any]:
    """What was drawn for every input. How many masks each has is not in files of earlier versions."""
    draws = {**records[0]["draws"], "fit": [record["draws"]["fit"] for record in records]}
    fresh = [record["draws"].get("fresh") for record in records]
    draws["fresh"] = None if None in fresh else fresh
    if "masks" in draws:
        draws["masks"] = [record["draws"]["masks"] for record in records]
    return draws


def _index(count: int, reasons: Mapping[str, str]) -> tuple[int, ...]:
    """The places of ``count`` inputs in their batch, of which some were left out."""
    places = [i for i in range(count + len(reasons)) if f"inputs[{i}]" not in reasons]
    return tuple(places[:count])


def _stack(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.as_tensor(np.stack(arrays))


def _numbers(values: Sequence[float | None]) -> Tensor:
    """(B,) float64; what has no number is NaN."""
    return torch.tensor([torch.nan if value is None else float(value) for value in values], dtype=torch.float64)


def _derived(each: StoredInput) -> np.ndarray:
    """(6, *A). A uniform map was not always kept, and is all ones unless something is padded."""
    entry = each.entry
    rows = {"uniform": each.arrays.get("uniform", np.ones_like(entry.attribution)), **entry.extra}
    missing = np.full_like(entry.attribution, np.nan)
    return np.stack([rows.get(name, missing) for name in ROWS])


def _front(front: Mapping[str, Any] | None) -> FrontPoints | None:
    if front is None:
        return None
    criterion = "noise_over_signal" if "noise_over_signal" in front else "relative_sensitivity"
    robustness = torch.tensor(front[criterion], dtype=torch.float64)
    correlation = torch.tensor(front["faithfulness_correlation"], dtype=torch.float64)
    points = torch.tensor(front["weights"], dtype=torch.float64)
    least = front.get("incompatibility")
    return FrontPoints(robustness, correlation, points, torch.nan if least is None else float(least), criterion)


def _criteria(records: Records) -> dict[str, dict[str, Measured]]:
    """criterion → row → numbers of all inputs."""
    found: dict[str, dict[str, Measured]] = {}
    for criterion, rows in records[0]["criteria"].items():
        found[criterion] = {}
        for row in rows:
            cells = [record["criteria"][criterion][row] for record in records]
            parts = {part: _numbers([cell[part] for cell in cells]) for part in ("fit", "fresh", "stderr")}
            found[criterion][row] = Measured(**parts)
    return found


def _evidence(arrays: Mapping[str, np.ndarray], stream: str, dtype: torch.dtype) -> Evidence:
    """The evidence of one input, B = 1."""
    parts: dict[str, Quadratic | Responses] = {}
    for name in arrays:
        if not name.startswith(f"{stream}."):
            continue
        kind, _, what = name.removeprefix(f"{stream}.").rpartition(".")
        prefix = name.removesuffix(what)
        exact = torch.as_tensor(arrays[f"{prefix}exact"]) if f"{prefix}exact" in arrays else None
        if what == "gram":
            draws, norm = (torch.as_tensor(arrays[prefix + part])[None] for part in ("gram", "norm"))
            parts[kind or "quadratic"] = Quadratic(draws, norm, exact)
        elif what == "responses":
            taken, falls = (torch.as_tensor(arrays[prefix + part])[None] for part in ("responses", "falls"))
            sizes = torch.as_tensor(arrays[f"{prefix}sizes"])[None] if f"{prefix}sizes" in arrays else None
            parts[kind or "responses"] = Responses(taken, falls, whole=exact, size=sizes)
    return Evidence.of(parts)


def _mixing(record: Mapping[str, Any], arrays: Sequence[Mapping[str, np.ndarray]], weights: Tensor) -> Tensor:
    """(B, R). Earlier versions kept the weights alone, from which it follows."""
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
    """(B, k); NaN of earlier versions, unless nothing was divided."""
    if all("scales" in each for each in arrays):
        return _stack([each["scales"] for each in arrays])
    known = 1.0 if record["settings"].get("scale") == "none" else torch.nan
    return torch.full_like(weights, known, dtype=torch.float64)


def _weights_stderr(records: Records) -> Tensor:
    """(B, k); NaN where it was not known, or not yet recorded."""
    unknown = [None] * len(records[0]["methods"])
    return torch.stack([_numbers(record.get("weights_stderr") or unknown) for record in records])


def _differences(records: Records, where: str = "differences") -> dict[str, PairedDifference]:
    """By criterion; empty of versions that did not record them."""
    found = {}
    for criterion in records[0].get(where) or {}:
        each = [record[where][criterion] for record in records]
        numbers = {part: _numbers([one[part] for one in each]) for part in ("value", "stderr", "low", "high")}
        found[criterion] = PairedDifference(
            tuple(one["best_single"] for one in each),
            **numbers,
            among=each[0].get("among", ""),
            draws=torch.tensor([int(one["n"]) for one in each]),
            # Versions without a margin took every difference to matter.
            margin=_numbers([one.get("margin", 0.0) for one in each]),
            confidence=float(each[0].get("confidence", 0.95)),
        )
    return found


def _resolved(records: Records) -> dict[str, Tensor] | None:
    numbers = [record["measures"]["relative_sensitivity_resolved"] for record in records]
    where = "measures.relative_sensitivity_resolved"
    if any(where in (record.get("reasons") or {}) for record in records):
        return None
    return {part: _numbers([each[part] for each in numbers]) for part in ("value", "stderr")}


def _total(records: Records, of: Any) -> float:
    """A sum over runs of what each record says of its whole run, which may have had several inputs."""
    if all(record["evaluations"]["inputs"] == len(records) for record in records):
        return of(records[0])
    return fsum(of(record) / record["evaluations"]["inputs"] for record in records)
