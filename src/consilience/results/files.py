"""Files of a run: written beside and swapped in, read with errors that name the file."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, choose
from ..report.entry import Entry

SCHEMA = 1


def row_named(name: Any, rows: Iterable[str]) -> str:
    """``name`` if it is one of a result's rows.

    Raises:
        InputError: it is not; of a number, how one input's numbers are had.
    """
    if isinstance(name, str):
        return choose("row", name, rows)
    raise InputError(
        f"unknown row {name!r}: rows have names, such as 'consensus'; one input's numbers are r.attribution[i], "
        "r['consensus'][i] and r.record(i)"
    )


# -- writing -----------------------------------------------------------------------------------------------------------


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the file system refuses, as an InputError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def write_text(path: Path, text: str) -> Path:
    """Write whole or not at all, with the folders above."""
    part = path.parent / f"{path.name}.part"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_text(text, encoding="utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return path


def clear(directory: Path) -> None:
    """Before a run is written over an earlier one, maybe longer: its list goes first, then all its records."""
    (directory / "run.json").unlink(missing_ok=True)
    for record in directory.glob("[0-9]*/explanation.json"):
        if record.parent.name.isdigit():
            record.unlink()


def save_entry(directory: Path, entry: Entry, arrays: dict[str, np.ndarray]) -> None:
    """One input's folder. An old record goes first and the new one comes last, so a folder with a record is complete."""
    from safetensors.numpy import save

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "explanation.json").unlink(missing_ok=True)
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


# -- reading -----------------------------------------------------------------------------------------------------------


@contextmanager
def reading(path: Path, expected: str = "a folder written by save() or `consilience explain`") -> Iterator[None]:
    """What a missing or damaged file makes its reader raise, as an InputError that names it."""
    from safetensors import SafetensorError

    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path}: no such file; expected {expected}") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise InputError(f"{path}: damaged, or of another version ({type(error).__name__}: {error})") from error


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("consilience", "torch", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "source"
    return found
