"""Runs on disk: one folder per input, read back without executing anything in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..report.entry import Entry
from ..report.table import text_table
from ..statistics.evidence import Evidence, Quadratic, Responses
from .files import SCHEMA, reading, row_named, write_text


@dataclass(frozen=True)
class Saved:
    """Explanations read back from files: what an :class:`Explanation` shows, and the evidence of each input.

    Maps are tensors (B, …) in float32, or a list of B tensors where the inputs' shapes differ. What has no name here is in
    ``records``, one for each input.
    """

    records: list[dict[str, Any]]
    arrays: list[dict[str, np.ndarray]]
    all_entries: list[Entry]
    reasons: dict[str, str] = field(default_factory=dict)
    """What was left out of the run, and why."""

    def __len__(self) -> int:
        return len(self.records)

    @property
    def attribution(self) -> Tensor | list[Tensor]:
        """(B, *A)."""
        return self["consensus"]

    @property
    def weights(self) -> Tensor | list[Tensor]:
        """(B, k)."""
        return _joined([arrays["weights"] for arrays in self.arrays])

    @property
    def maps(self) -> Tensor | list[Tensor]:
        """(B, k, *A)."""
        return _joined([entry.maps for entry in self.all_entries])

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(self.records[0]["methods"])

    @property
    def target(self) -> Tensor:
        """(B,)."""
        return torch.tensor([record["target"] for record in self.records])

    @property
    def failed(self) -> dict[str, str]:
        return {name: why for record in self.records for name, why in (record.get("failed") or {}).items()}

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(said for record in self.records for said in record.get("warnings") or ()))

    @property
    def tokens(self) -> list[list[str]] | None:
        """Of texts: B lists of tokens, "" where padded, in the order of the attribution; None for other inputs."""
        inputs = [record.get("input") or {} for record in self.records]
        return [each["tokens"] for each in inputs] if all("tokens" in each for each in inputs) else None

    @property
    def feature_names(self) -> list[str] | None:
        """(A,) of a table whose columns have names; None for other inputs."""
        return (self.records[0].get("input") or {}).get("features")

    def __getitem__(self, name: str) -> Tensor | list[Tensor]:
        """One row's maps (B, *A): a method, an aggregation such as "mean", or "consensus"."""
        found = []
        for entry, arrays in zip(self.all_entries, self.arrays, strict=True):
            rows = {
                **dict(zip(entry.record["methods"], entry.maps, strict=True)),
                "uniform": arrays.get("uniform", np.ones_like(entry.attribution)),
                **entry.extra,
                "consensus": entry.attribution,
            }
            found.append(rows[row_named(name, rows)])
        return _joined(found)

    def record(self, i: int) -> dict[str, Any]:
        """What ``explanation.json`` holds for input ``i``."""
        return self.records[i]

    def evidence(self, stream: str = "fit") -> list[Evidence]:
        """The evidence of each input on the "fit" or "fresh" draws, as tensors with B = 1."""

        def read(arrays: Mapping[str, np.ndarray], kind: Any, *names: str) -> Any:
            each = [arrays.get(f"{stream}.{name}") for name in names]
            return None if any(a is None for a in each) else kind(*(torch.as_tensor(a)[None] for a in each))

        return [
            Evidence(read(a, Quadratic, "gram", "norm"), read(a, Responses, "responses", "falls")) for a in self.arrays
        ]

    def entries(self) -> list[Entry]:
        return self.all_entries

    def table(self) -> str:
        return "\n".join([text_table(self.records), *(f"{what} left out: {why}" for what, why in self.reasons.items())])

    __str__ = table
    __repr__ = table

    def plot(self, i: int = 0) -> Any:
        from ..report.figure import figure

        return figure(self.all_entries[i])

    def report(self, path: str | Path, title: str = "Explanations") -> Path:
        from ..report.page import page

        return write_text(Path(path), page(self.all_entries, title, failures=list(self.reasons.items())))


def _read(folder: Path) -> tuple[Entry, dict[str, np.ndarray]]:
    """One input's folder, with every part that a result must have."""
    from safetensors import safe_open

    path = folder / "explanation.json"
    with reading(path):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["schema"] != SCHEMA:
            raise ValueError(f"schema {record['schema']!r}; this version reads {SCHEMA}")
        int(record["target"])
        text_table([record])  # so that damage shows here, where the file is known
        order: dict[str, Any] = next(iter((record.get("criteria") or {}).values()), {})
    path = folder / "attributions.safetensors"
    with reading(path):
        with safe_open(path, framework="numpy") as file:
            name = (file.metadata() or {}).get("name", folder.name)
            arrays = {key: file.get_tensor(key) for key in file.keys()}
        image = arrays.pop("image", None)
        shown = None if image is None else image / np.float32(255)
        extra = {name: arrays.pop(f"extra.{name}") for name in order if f"extra.{name}" in arrays}
        entry = Entry(record, shown, arrays.pop("maps"), arrays.pop("attribution"), name, extra)
        if arrays["weights"].shape != (len(record["methods"]),):
            raise ValueError(f"{len(record['methods'])} methods, weights {arrays['weights'].shape}")
    return entry, arrays


def _joined(arrays: list[np.ndarray]) -> Tensor | list[Tensor]:
    """One tensor over the inputs, or a list where their shapes differ."""
    tensors = [torch.as_tensor(array) for array in arrays]
    return torch.stack(tensors) if len({tensor.shape for tensor in tensors}) == 1 else tensors
