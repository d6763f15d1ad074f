"""The page's part for one input: pictures or bars, the plot, the table, the certificate, and what is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .colours import palette, robust_limit
from .criteria import CRITERIA, UNEXPLAINED, UNUSABLE
from .differences import FEWEST, differences
from .entry import Entry, feature_names, top_features
from .numbers import MISSING, minus, short
from .pictures import front_of, hexadecimal, pictures
from .plane import TITLES, plane, robust_criterion
from .reading import Record, mapping, number, part, text
from .sentences import warnings
from .table import has_status, rows, unjudged
from .tableview import table_view
from .verdict import verdict

MOST_TOKENS = 600
"""The most tokens of a text that are shown."""


def article(entry: Entry, place: int, count: int, shared: Sequence[str] = ()) -> dict[str, Any]:
    """The values for ``templates/article.html``.

    Args:
        entry: the input.
        place: its number on the page, from 1.
        count: how many inputs the page has.
        shared: warnings that the header shows, for all inputs.
    """
    record = entry.record
    table = rows(record)
    front = front_of(record)
    score = number(record, "score")
    view: dict[str, Any] = {
        "number": place,
        "alone": count == 1,
        "name": entry.name,
        "target": entry.target,
        "score_name": entry.score_name,
        "score": minus(short(score)),
        "predicted": entry.predicted,
        "agrees": entry.agrees,
        "unexplained": UNEXPLAINED if has_status(record, UNEXPLAINED) else "",
        "unusable": part(record, "status") == UNUSABLE,
        "verdict": verdict([record]),
        "warnings": [warning for warning in warnings([record]) if warning not in shared],
        "plane": plane(table, front),
        "robust": TITLES[robust_criterion(table, front)],
        "front": front is not None,
        "pictures": None,
        "features": None,
        "tokens": None,
        "table": table_view([row for row in table if not (row.derived and row.unjudged)]),
        "unjudged": unjudged([record]),
        "differences": differences([record]),
        "certificate": _certificate(record),
        "missing": _missing(record),
    }
    if entry.pictured:
        view["pictures"] = pictures(entry, front)
    else:
        view["features"] = _features(entry)
        view["tokens"] = _tokens(entry)
    return view


# -- maps without two spatial axes -------------------------------------------------------------------------------------


def _features(entry: Entry) -> dict[str, Any]:
    """The combined map's largest features as bars, with every method's value as a colour."""
    colours = palette(True)
    names = feature_names(entry)
    chosen = top_features(entry)
    lead = entry.attribution.ravel()[chosen].astype(np.float64)
    # The longest bar; 1 where there is no number, or where all are zero.
    limit = 1.0
    if np.isfinite(lead).any():
        limit = float(np.nanmax(np.abs(lead))) or 1.0
    working = [j for j in entry.order if entry.methods[j] not in entry.failed]
    # By method: the values of the chosen features, and their colours on the scale of the method's whole map.
    values = {j: entry.maps[j].ravel()[chosen].astype(np.float64) for j in working}
    paints = {j: colours.paint(values[j], robust_limit(entry.maps[j])) for j in working}
    errors = None if entry.error is None else entry.error.ravel()
    certain = None if entry.certain is None else entry.certain.ravel()
    body = []
    for row, feature in enumerate(chosen):
        share = 100 * abs(float(np.nan_to_num(lead[row]))) / limit
        line = {
            "error": "" if errors is None else short(float(errors[feature])),
            "certain": certain is not None and bool(certain[feature] != 0),
            "name": names[feature] or MISSING,
            "share": f"{share:.1f}",
            "negative": bool(lead[row] < 0),
            "value": _value(lead[row]),
            "cells": [{"colour": hexadecimal(paints[j][row]), "value": _value(values[j][row])} for j in working],
        }
        body.append(line)
    return {
        "methods": [entry.methods[j] for j in working],
        "rows": body,
        "total": entry.attribution.size,
        "signed": entry.signed,
        "certain": certain is not None,
    }


def _value(value: float) -> str:
    """A map's value as text."""
    if not math.isfinite(value):
        return "not a number"
    return minus(short(float(value)))


def _tokens(entry: Entry) -> dict[str, Any] | None:
    """A text's tokens in order, each on its colour; None for other inputs."""
    tokens = entry.tokens
    if tokens is None:
        return None
    values = entry.attribution.ravel().astype(np.float64)
    colours = palette(True)
    # The scale goes beyond the largest value, since the darkest colours would hide the letters.
    paints = colours.paint(values, 1.6 * robust_limit(values))
    shown = []
    for token, value, paint in zip(tokens, values, paints, strict=True):
        if token:
            shown.append({"words": token, "value": _value(value), "colour": hexadecimal(paint)})
    return {"shown": shown[:MOST_TOKENS], "left_out": max(0, len(shown) - MOST_TOKENS)}


# -- certificate -------------------------------------------------------------------------------------------------------


def _certificate(record: Record) -> dict[str, Any]:
    """How the weights were solved for: status, gap, and what else certifies them."""
    place = ("measures", "relative_sensitivity_resolved")
    count = number(record, *place, "n") or 0
    again = short(number(record, *place, "value"))
    stderr = number(record, *place, "stderr")
    if stderr is not None and count >= FEWEST:
        again += f" ± {short(stderr)}"
    errors = mapping(record, "completeness_error")
    resolved = None
    if number(record, *place, "value") is not None:
        held = short(number(record, "criteria", "relative_sensitivity", "consensus", "fresh"))
        resolved = {"value": again, "neighbours": f"{count:.0f}", "held": held}
    return {
        "status": text(record, "status") or MISSING,
        "value": _reasoned(record, "value"),
        "gap": _reasoned(record, "gap"),
        "diversity_gain": _reasoned(record, "diversity_gain"),
        "resolved": resolved,
        "completeness": [(str(name), short(number(errors, name))) for name in errors],
    }


def _reasoned(record: Record, key: str) -> dict[str, str]:
    """A number, or why there is none."""
    value = number(record, key)
    reason = ""
    if value is None:
        reason = text(record, "reasons", key) or "not recorded"
    return {"value": minus(short(value)), "reason": reason}


def _missing(record: Record) -> list[tuple[str, list[str]]]:
    """(reason, places) of every number that is missing, but for those of failed methods, which the page shows by themselves."""
    titles = {criterion.key: criterion.title for criterion in CRITERIA}
    grouped: dict[str, dict[str, None]] = {}
    for where, reason in mapping(record, "reasons").items():
        where = str(where)
        if where.startswith("methods."):
            continue
        for ending in (".fit", ".fresh", ".stderr"):
            where = where.removesuffix(ending)
        kind, _, rest = where.partition(".")
        if kind == "criteria":
            criterion, _, name = rest.partition(".")
            where = f"{titles.get(criterion, criterion.replace('_', ' '))} of {name}"
        grouped.setdefault(str(reason), {})[where] = None
    return [(reason, list(places)) for reason, places in grouped.items()]
