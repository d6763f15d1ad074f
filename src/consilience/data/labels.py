"""Class names: ImageNet's, those of a file, and which class a name means."""

from __future__ import annotations

import csv
import difflib
import json
import os
from pathlib import Path
from typing import Any

from ..errors import InputError, need
from .files import PathLike, check_file


def imagenet_labels() -> list[str]:
    """The 1000 ImageNet class names, short and distinct, as they come with torchvision.

    >>> imagenet_labels()[285]
    'Egyptian cat'
    """
    models = need("torchvision.models", "images")
    return list(models.get_weight("ResNet18_Weights.IMAGENET1K_V1").meta["categories"])


def read_labels(path: PathLike) -> dict[int, str]:
    """Class names from a file, by class index.

    Args:
        path: of a ``.csv`` with columns ``class_index`` and ``name`` (rows may repeat a class, and leave classes out), a
            ``.json`` with a list of names or an object {index: name}, or text with one name per line, the first being class 0.

    Raises:
        InputError: for anything else; the message names the line.
    """
    path = Path(path)
    check_file(path, "labels")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"labels {str(path)!r} cannot be read as UTF-8 text: {error}") from error
    readers = {".csv": _csv_labels, ".json": _json_labels}
    read = readers.get(path.suffix.lower(), _line_labels)
    try:
        names = read(text)
    except (ValueError, TypeError, KeyError, csv.Error) as error:  # InputError is a ValueError, and keeps its text
        raise InputError(f"labels {str(path)!r}: {error}") from error
    if not names:
        raise InputError(f"labels {str(path)!r} holds no class name")
    if min(names) < 0:
        raise InputError(f"labels {str(path)!r} has a negative class index, {min(names)}")
    return names


def parse_target(text: str | int | None, labels: list[str] | None, n_classes: int) -> int | None:
    """The class to explain: None for "predicted", else an index in [0, n_classes).

    Args:
        text: "predicted", a number, or a class name, in any case and with ``_`` for a space.
        labels: the class names, or None if there are none.
        n_classes: of the model.

    Raises:
        InputError: a number out of range, or a name that no class or more than one has.

    >>> parse_target("predicted", None, 10), parse_target("7", None, 10)
    (None, 7)
    >>> parse_target("egyptian cat", imagenet_labels(), 1000)
    285
    """
    if text is None or text == "predicted":
        return None
    try:
        index = int(text)
    except ValueError:
        pass
    else:
        if not 0 <= index < n_classes:
            raise InputError(f"target {index} is out of range: the model has classes 0 to {n_classes - 1}")
        return index
    if labels is None:
        raise InputError(f"target {text!r} is not a number, and no class names are known: give a number or --labels")
    known = [_plain(label) for label in labels]
    asked = _plain(str(text))
    classes = [index for index, label in enumerate(known) if label == asked]
    if len(classes) == 1:
        return classes[0]
    if classes:
        raise InputError(f"target {text!r} names several classes, {', '.join(map(str, classes))}: give the number")
    containing = [label for label in known if asked in label.split()]
    spelt_alike = difflib.get_close_matches(asked, known, cutoff=0.5)
    near = list(dict.fromkeys([*containing, *spelt_alike]))[:5]
    hint = ";"
    if near:
        hint = f"; did you mean {', '.join(repr(labels[known.index(label)]) for label in near)}?"
    raise InputError(f"unknown target {text!r}{hint} give 'predicted', a class number or a class name")


def _csv_labels(text: str) -> dict[int, str]:
    """Class index → name, of a table with these two columns."""
    rows = csv.DictReader(text.splitlines())
    columns = rows.fieldnames or []
    if not {"class_index", "name"} <= set(columns):
        raise InputError(f"expected the columns class_index and name, found {', '.join(map(repr, columns))}")
    names: dict[int, str] = {}
    for row in rows:
        try:
            index = int(row["class_index"])
            name = (row["name"] or "").strip()
        except (TypeError, ValueError):
            raise InputError(f"line {rows.line_num}: class_index {row['class_index']!r} is not a number") from None
        if not name:
            raise InputError(f"line {rows.line_num}: class {index} has no name")
        # Tables of images name the same class in many rows.
        if names.setdefault(index, name) != name:
            raise InputError(f"line {rows.line_num}: class {index} is both {names[index]!r} and {name!r}")
    return names


def _json_labels(text: str) -> dict[int, str]:
    """Class index → name, of a list or an object."""
    content = json.loads(text)
    if isinstance(content, dict):
        items = [(int(key), _last(value)) for key, value in content.items()]
    elif isinstance(content, list):
        items = list(enumerate(content))
    else:
        raise InputError(f"expected a list of names or an object index → name, found {type(content).__name__}")
    for index, name in items:
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"class {index}: {name!r} is not a name")
    return {index: name.strip() for index, name in items}


def _last(value: Any) -> Any:
    """The name in ["n01440764", "tench"], as Keras writes it: the last entry."""
    if isinstance(value, list) and value:
        return value[-1]
    return value


def _line_labels(text: str) -> dict[int, str]:
    """Class index → name, of lines."""
    lines = [line.strip() for line in text.rstrip().splitlines()]
    for number, line in enumerate(lines, start=1):
        if not line:
            raise InputError(f"line {number} is empty; expected one class name per line")
    return dict(enumerate(lines))


def complete_labels(names: dict[int, str], n_classes: int, fallback: list[str] | None, path: PathLike) -> list[str]:
    """One name per class. A list must have exactly ``n_classes``; a table with gaps is filled up.

    Args:
        names: from :func:`read_labels`.
        n_classes: of the model.
        fallback: names for the gaps; None: "class 7".
        path: of the file, for errors.

    Raises:
        InputError: there are more names than classes, or a list has fewer.
    """
    # A file without gaps is taken for a whole list, which must be as long as the model's outputs.
    gapless = len(names) == max(names) + 1
    if max(names) >= n_classes or (gapless and len(names) != n_classes):
        content = f"{len(names)} class names" if gapless else f"a class {max(names)}"
        raise InputError(f"labels {os.fspath(path)!r} has {content}, but the model has {n_classes} classes")
    if fallback is None:
        fallback = [f"class {index}" for index in range(n_classes)]
    return [names.get(index, fallback[index]) for index in range(n_classes)]


def _plain(label: str) -> str:
    """A name without what people write differently: case, and ``_`` for a space."""
    return " ".join(label.replace("_", " ").casefold().split())
