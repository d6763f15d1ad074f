"""Writes and reads one input's folder: its record (JSON), its arrays (safetensors), and maybe a picture (PNG)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..report.entry import Entry
from .files import SCHEMA, reading, write_bytes

RECORD = "explanation.json"
ARRAYS = "attributions.safetensors"
PICTURE = "explanation.png"


@dataclass(frozen=True)
class StoredInput:
    """What one folder holds.

    Attributes:
        entry: the record with maps and image.
        arrays: other arrays by name: weights, evidence, the input, …
    """

    entry: Entry
    arrays: Mapping[str, np.ndarray]


def write_input(folder: Path, entry: Entry, arrays: Mapping[str, np.ndarray], picture: bytes | None = None) -> None:
    """Make ``folder`` for one input. The record comes last, so that a folder with a record is complete.

    It does not wait until the files are on the disk: the run that the folder is added to does.

    Args:
        folder: does not exist yet; the one above does.
        entry: record, maps and image.
        arrays: whatever else belongs to the input, by name.
        picture: a PNG file.
    """
    from safetensors.numpy import save

    tensors = {"attribution": entry.attribution, "maps": entry.maps}
    tensors |= {f"extra.{name}": value for name, value in entry.extra.items()}
    tensors |= arrays
    if entry.image is not None:
        tensors["image"] = (np.clip(entry.image, 0, 1) * 255).round().astype(np.uint8)
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    name = entry.name.encode("utf-8", "backslashreplace").decode()
    record = json.dumps(entry.record, indent=1, allow_nan=False) + "\n"

    os.mkdir(folder)
    if picture is not None:
        write_bytes(folder / PICTURE, [picture], sync=False)
    write_bytes(folder / ARRAYS, [save(tensors, metadata={"name": name})], sync=False)
    write_bytes(folder / RECORD, [record.encode()], sync=False)


def read_record(folder: Path) -> dict[str, Any]:
    """The record in an input's ``folder``.

    Raises:
        InputError: it is missing, damaged, or of a newer version; names the file.
    """
    path = folder / RECORD
    with reading(path):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["schema"] != SCHEMA:
            raise ValueError(f"schema {record['schema']!r}; this version reads {SCHEMA}")
        _check(record)
    return record


SHAPE: dict[str, tuple[type, ...]] = {
    "methods": (list,),
    "weights": (list, dict, type(None)),  # None where nothing was solved
    "criteria": (dict,),
    "failed": (dict,),
    "input": (dict,),
}
"""The parts that every record has, and their types."""


def _check(record: dict[str, Any]) -> None:
    """Raise an error if a part of a record is missing or of another type; here, where the file's name is known."""
    int(record["target"])
    for name, kinds in SHAPE.items():
        if not isinstance(record[name], kinds):
            raise ValueError(f"{name} is {type(record[name]).__name__}, not {kinds[0].__name__}")


def read_input(folder: Path) -> StoredInput:
    """Everything in an input's ``folder``.

    Raises:
        InputError: a file is missing or damaged; the error names it.
    """
    from safetensors import safe_open

    record = read_record(folder)
    path = folder / ARRAYS
    with reading(path):
        with safe_open(path, framework="numpy") as file:
            name = (file.metadata() or {}).get("name", folder.name)
            arrays = {key: file.get_tensor(key) for key in file.keys()}
        image = arrays.pop("image", None)
        shown = None if image is None else image / np.float32(255)
        # Files of arrays have no order of their own: the maps come in the order of the table's rows.
        order: dict[str, Any] = next(iter((record.get("criteria") or {}).values()), {})
        extra = {row: arrays.pop(f"extra.{row}") for row in order if f"extra.{row}" in arrays}
        entry = Entry(
            record,
            shown,
            arrays.pop("maps"),
            arrays.pop("attribution"),
            name,
            extra,
            error=arrays.get("error"),
            by_unit=arrays.get("by_unit"),
            certain=arrays.get("certain"),
        )
        if arrays["weights"].shape != (len(record["methods"]),):
            raise ValueError(f"{len(record['methods'])} methods, weights {arrays['weights'].shape}")
    return StoredInput(entry, arrays)
