"""Runs on disk: one folder per input, read back without executing anything in it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError, choose
from ..quadratic import Evidence, Quadratic, Responses
from ..report.entry import Entry

SCHEMA = 1


@dataclass(frozen=True)
class Saved:
    """Explanations read back from files: entries for tables, plots and reports, and the evidence of each."""

    records: list[dict[str, Any]]
    arrays: list[dict[str, np.ndarray]]
    all_entries: list[Entry]
    reasons: dict[str, str] = field(default_factory=dict)
    """What was left out of the run, and why."""

    def __len__(self) -> int:
        return len(self.records)

    @property
    def attribution(self) -> list[np.ndarray]:
        return [entry.attribution for entry in self.all_entries]

    @property
    def weights(self) -> np.ndarray:
        return np.stack([arrays["weights"] for arrays in self.arrays])

    def __getitem__(self, name: str) -> list[np.ndarray]:
        """One row's maps: a method, an aggregation such as "mean", or "consensus"."""
        if name == "consensus":
            return self.attribution
        if all(name in entry.extra for entry in self.all_entries):
            return [entry.extra[name] for entry in self.all_entries]
        if name == "uniform":
            return [np.ones_like(entry.attribution) for entry in self.all_entries]
        found = []
        for entry in self.all_entries:
            found.append(entry.maps[entry.record["methods"].index(choose("row", name, entry.record["methods"]))])
        return found

    def evidence(self, stream: str = "fit") -> list[Evidence]:
        """The evidence of each input on the "fit" or "fresh" draws, as tensors with B = 1."""
        at = lambda arrays, name: torch.as_tensor(arrays[f"{stream}.{name}"])[None]  # noqa: E731
        return [
            Evidence(Quadratic(at(a, "gram"), at(a, "norm")), Responses(at(a, "responses"), at(a, "falls")))
            for a in self.arrays
        ]

    def entries(self) -> list[Entry]:
        return self.all_entries

    def table(self) -> str:
        from ..report.table import text_table

        return "\n".join([text_table(self.records), *(f"{what} left out: {why}" for what, why in self.reasons.items())])

    __str__ = table
    __repr__ = table

    def plot(self, i: int = 0) -> Any:
        from ..report.figure import figure

        return figure(self.all_entries[i])

    def report(self, path: str | Path, title: str = "Explanations") -> Path:
        from ..report.page import page

        write_text(Path(path), page(self.all_entries, title, failures=list(self.reasons.items())))
        return Path(path)


def save_entry(directory: Path, entry: Entry, arrays: dict[str, np.ndarray]) -> None:
    """One input's folder. The record is written last, so a folder with a record is complete."""
    from safetensors.numpy import save

    directory.mkdir(parents=True, exist_ok=True)
    tensors = {
        "attribution": entry.attribution,
        "maps": entry.maps,
        **{f"extra.{k}": v for k, v in entry.extra.items()},
        **arrays,
    }
    if entry.image is not None:
        tensors["image"] = (np.clip(entry.image, 0, 1) * 255).round().astype(np.uint8)
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    (directory / "attributions.safetensors").write_bytes(save(tensors, metadata={"name": entry.name}))
    write_text(directory / "explanation.json", json.dumps(entry.record, indent=1, allow_nan=False) + "\n")


def save_run(directory: Path, folders: list[str], reasons: dict[str, str]) -> None:
    """``run.json``: which folders belong to the run, in order, and what was left out of it."""
    run = {"schema": SCHEMA, "folders": folders, "left_out": reasons}
    write_text(directory / "run.json", json.dumps(run, indent=1, ensure_ascii=False) + "\n")


def load(directory: str | Path) -> Saved:
    """Read what :meth:`Explanation.save` or ``consilience explain`` wrote: a run's folder, or one input's.

    Raises InputError naming the file that is missing or damaged. Nothing in the files is executed.
    """
    from safetensors import SafetensorError, safe_open

    directory = Path(directory)
    folders, reasons = [directory], {}
    path = directory / "run.json"
    if path.exists():
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            folders = [directory / Path(name).name for name in run["folders"]]
            reasons = {str(what): str(why) for what, why in run["left_out"].items()}
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: damaged ({error})") from error
    records, arrays, entries = [], [], []
    for folder in folders:
        path = folder / "explanation.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            path = folder / "attributions.safetensors"
            with safe_open(path, framework="numpy") as file:
                name = (file.metadata() or {}).get("name", folder.name)
                tensors = {key: file.get_tensor(key) for key in file.keys()}
        except FileNotFoundError as error:
            raise InputError(
                f"{path}: no such file; expected a folder written by save() or `consilience explain`"
            ) from error
        except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
            raise InputError(f"{path}: damaged ({error})") from error
        if record.get("schema") != SCHEMA:
            raise InputError(f"{folder}: schema {record.get('schema')!r}; this version reads {SCHEMA}")
        image = tensors.pop("image", None)
        maps, attribution = tensors.pop("maps"), tensors.pop("attribution")
        order: dict[str, Any] = next(iter((record.get("criteria") or {}).values()), {})
        extra = {name: tensors.pop(f"extra.{name}") for name in order if f"extra.{name}" in tensors}
        entries.append(
            Entry(record, None if image is None else image / np.float32(255), maps, attribution, name, extra)
        )
        records.append(record)
        arrays.append(tensors)
    return Saved(records, arrays, entries, reasons)


def write_text(path: Path, text: str) -> None:
    """Write whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
