"""The page's header: the run as a whole, with its settings, warnings, mean table, and links to the inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .colours import palette
from .criteria import UNEXPLAINED, UNUSABLE
from .differences import differences
from .entry import Entry, surface
from .numbers import MISSING
from .pictures import map_url
from .pixels import data_url, photo_png, pool
from .reading import Record, mapping, number, part, text
from .sentences import draws, incomplete, promise, shares, warnings
from .table import average, has_status, unjudged
from .tableview import table_view
from .verdict import verdict

THUMB = 96
"""The longest side of a picture in the list of inputs, in pixels."""


def overview(entries: Sequence[Entry], failures: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The values for ``templates/overview.html``.

    Args:
        entries: one for each input; each is read once, since it may be made anew whenever it is read.
        failures: (name, reason) of inputs that could not be explained.
    """
    records: list[dict[str, Any]] = []
    links = []
    several = len(entries) > 1
    for place, entry in enumerate(entries, 1):
        # Without the front, the largest part of a record, which the header does not show: all records are in memory here.
        records.append({name: value for name, value in entry.record.items() if name != "front"})
        if several:
            links.append({"number": place, "name": entry.name, "picture": _thumb(entry), "mark": _mark(entry.record)})
    view: dict[str, Any] = {
        "count": len(records),
        "verdict": verdict(records) if several else [],
        "failures": [(str(name), str(reason)) for name, reason in failures],
        "links": links,
    }
    if not records:
        return view
    first = records[0]
    view |= {
        "summary": _summary(records),
        "warnings": [*_shared_warnings(records), *incomplete(records)],
        "broken": _broken(records),
        "unexplained": [text(r, "input", "name") for r in records if has_status(r, UNEXPLAINED)],
        "meanings": _meanings(first),
        "same_settings": all(
            part(r, "settings") == part(first, "settings") and part(r, "draws") == part(first, "draws") for r in records
        ),
        "settings": _definitions(
            {
                "draws": part(first, "draws"),
                **mapping(first, "settings"),
                "versions": part(first, "versions"),
            }
        ),
    }
    if several:
        table = [row for row in average(records) if not (row.derived and row.unjudged)]
        view |= {"table": table_view(table), "differences": differences(records)}
    return view


def _thumb(entry: Entry) -> str:
    """A small picture of the input, or of its combined map; "" where there is neither."""
    if entry.image is not None:
        return data_url(photo_png(pool(entry.image, THUMB)))
    values = surface(entry.attribution)
    if values is None:
        return ""
    return map_url(pool(values, THUMB), palette(entry.signed))


def _mark(record: Record) -> str:
    """What a reader should know before opening the input."""
    if has_status(record, UNEXPLAINED):
        return "not explained"
    if part(record, "status") == UNUSABLE:
        return "no usable map"
    return ""


def _summary(records: Sequence[Record]) -> dict[str, Any]:
    """What was run, and what it took."""
    return {
        "methods": len(part(records[0], "methods") or ()),
        "objective": _distinct(records, "objective"),
        "model": _distinct(records, "model"),
        "seed": _distinct(records, "seed"),
        "forward": f"{_total(records, 'evaluations', 'forward'):,.0f}",
        "gradient": f"{_total(records, 'evaluations', 'gradient'):,.0f}",
        "seconds": _seconds(_total(records, "seconds")),
    }


def _total(records: Sequence[Record], *path: str) -> float:
    """A sum over inputs, each with its share of the total of its batch, which is what records hold."""
    total = 0.0
    for record in records:
        batch = number(record, "evaluations", "inputs") or 1
        total += (number(record, *path) or 0) / batch
    return total


def _seconds(seconds: float) -> str:
    """A time as text."""
    return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def _distinct(records: Sequence[Record], key: str) -> str:
    """The different values that the records have, separated by commas."""
    values = [text(record, key) for record in records if part(record, key) is not None]
    return ", ".join(dict.fromkeys(values))


def _shared_warnings(records: Sequence[Record]) -> list[str]:
    """The warnings that every input has; others are shown with their inputs."""
    everywhere = set(warnings(records[:1])).intersection(*(warnings([record]) for record in records))
    return [warning for warning in warnings(records[:1]) if warning in everywhere]


def _broken(records: Sequence[Record]) -> list[tuple[str, str]]:
    """(method, reason) of each method that failed, for whichever input."""
    broken: dict[str, str] = {}
    for record in records:
        for name, reason in mapping(record, "failed").items():
            broken.setdefault(str(name), str(reason))
    return list(broken.items())


def _meanings(record: Record) -> dict[str, Any]:
    """What the sentences about the numbers need to know."""
    settings = mapping(record, "settings")
    near = text(settings, "sensitivity")
    if not near:
        # A record of an earlier version.
        near = f"radius {settings['radius']}" if "radius" in settings else "the same input"
    fit = draws(record, "fit")
    fresh = draws(record, "fresh")
    return {
        "score": text(settings, "score") or text(settings, "kind"),
        "outputs": text(settings, "outputs").replace("_", " "),
        "neighbours": near,
        "redraw": part(settings, "redraw") is True,
        "shares": shares(part(settings, "mask_share")),
        "unit": text(settings, "mask_unit") or "not recorded",
        "baseline": text(settings, "mask_baseline"),
        "exact": "exact" in mapping(record, "draws", "masks"),
        "fit": {"neighbours": fit[0], "masks": fit[1]},
        "fresh": {"neighbours": fresh[0], "masks": fresh[1]},
        "promise": promise(record),
        "unjudged": unjudged([record]),
        "contrast": "contrast" in mapping(record, "criteria"),
    }


def _definitions(values: Mapping[Any, Any]) -> list[tuple[str, Any]]:
    """Settings as (name, text), or (name, definitions) for a mapping; without those that are None or empty."""
    shown: list[tuple[str, Any]] = []
    for key, value in values.items():
        if value is None or value == {}:
            continue
        if isinstance(value, Mapping):
            shown.append((str(key), _definitions(value)))
        else:
            shown.append((str(key), _plain(value)))
    return shown


def _plain(value: Any) -> str:
    """A setting as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or MISSING
    return str(value)
