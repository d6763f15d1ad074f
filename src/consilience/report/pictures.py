"""The page's part for an input whose maps have two spatial axes: the pictures, and the slider along the front.

The browser mixes small grids of the maps when the slider moves (``templates/page.js``), so that no mixture has to be stored.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .colours import FADE, MISSING, Palette, background, palette, robust_limit
from .entry import Entry, surface
from .numbers import short
from .pixels import data_url, indexed_png, photo_png, pool
from .plane import FAITHFUL, ROBUST
from .reading import Record, listing, mapping, number
from .tableview import weight_view

SIDE = 224
"""The longest side of an embedded picture, in pixels."""

GRID = 56
"""The longest side of the grids that the browser mixes."""

COARSE = 64
"""A map whose sides are at most this long is shown with sharp squares; larger ones are smoothed by the browser."""

WIDEST = 3.0
TALLEST = 0.6
"""The largest and smallest width / height. Other maps, such as those of a long series of few channels, are stretched."""

FAINT = 5e-4
"""A method with a smaller |weight| is shown as unused."""


def pictures(entry: Entry, front: Mapping[str, Any] | None) -> dict[str, Any]:
    """The values for ``templates/pictures.html``.

    Args:
        entry: an input whose maps :func:`~consilience.report.entry.surface` makes pictures of.
        front: its front, as :func:`front_of` gives it; None where there is none.
    """
    colours = palette(entry.signed)
    values = surface(entry.attribution)
    assert values is not None
    shown = values if entry.image is None else entry.image
    high, wide = shown.shape[:2]
    ratio = min(max(wide / high, TALLEST), WIDEST)
    stretched = ratio != wide / high
    tiles = _tiles(entry, colours, stretched)
    view: dict[str, Any] = {
        "ratio": f"{ratio:.4f}",
        "zero": hexadecimal(colours.zero),
        "coarse": stretched or (max(values.shape) <= COARSE and entry.image is not None),
        "lead": tiles[0]["url"],
        "photo": None,
        "fade": FADE,
        "scale": _scale(values, colours),
        "tiles": tiles,
        "explore": None if front is None else _explore(entry, front, colours, stretched),
    }
    if entry.image is not None:
        small = pool(entry.image, SIDE)
        grey = background(small, entry.signed)[..., :1].repeat(3, 2)
        view["photo"] = {
            "url": data_url(photo_png(small)),
            "grey": data_url(photo_png(grey)),
            "width": small.shape[1],
            "height": small.shape[0],
        }
    return view


def map_url(values: np.ndarray, colours: Palette) -> str:
    """The map ``values`` (H, W) as the address of a picture, translucent where it is near zero.

    Args:
        values: (H, W), NaN where there is no number.
        colours: the palette.
    """
    return data_url(indexed_png(colours.levels(values), np.vstack([colours.clear, [*MISSING, 1.0]])))


def hexadecimal(rgb: np.ndarray) -> str:
    """A colour ``rgb`` (3,) in 0…1 as "#rrggbb"."""
    return "#" + "".join(f"{round(255 * float(share)):02x}" for share in rgb)


def _scale(values: np.ndarray, colours: Palette) -> str:
    """What the colours' ends mean."""
    limit = short(robust_limit(values))
    if colours.signed:
        return f"blue −{limit}, pale 0, red {limit}"
    return f"black 0, yellow {limit}"


def _tiles(entry: Entry, colours: Palette, stretched: bool) -> list[dict[str, Any]]:
    """The consensus, every method by weight, those that failed, then the maps made from all methods."""
    tiles = [_tile("consensus", entry.attribution, colours, stretched, pressed=True)]
    if entry.by_unit is not None:
        tiles.append(_tile("by patch", entry.by_unit, colours, stretched))
    if entry.certain is not None:
        # What is not certain is clear, so that the photograph shows through.
        values = entry.attribution if entry.by_unit is None else entry.by_unit
        tiles.append(_tile("certain at 95 %", np.where(entry.certain != 0, values, 0.0), colours, stretched))
    for j in entry.order:
        name = entry.methods[j]
        weight = entry.weights[j]
        more: dict[str, Any] = {"method": j, "weight": weight_view(weight), "idle": abs(weight or 0.0) <= FAINT}
        if name in entry.failed:
            more = {"failed": entry.failed[name]}
        tiles.append(_tile(name, entry.maps[j], colours, stretched, **more))
    for name, derived in entry.extra.items():
        tiles.append(_tile(name, derived, colours, stretched))
    return tiles


def _tile(name: str, values: np.ndarray, colours: Palette, stretched: bool, **more: Any) -> dict[str, Any]:
    """One small picture with its name.

    Args:
        name: of the row.
        values: (*A), its map.
        colours: the palette.
        stretched: whether each side shrinks by itself.
        more: values of the template that differ from those of a map made from all methods.
    """
    tile = {"name": name, "url": "", "failed": "", "method": None, "weight": None, "idle": False, "pressed": False}
    if "failed" not in more:
        picture = surface(values)
        assert picture is not None
        tile["url"] = map_url(pool(picture, SIDE, stretched), colours)
    return tile | more


# -- the front ---------------------------------------------------------------------------------------------------------


def front_of(record: Record) -> dict[str, Any] | None:
    """The front in ``record``, with the weights and values of the chosen mixture in place of the point nearest to it.

    None where there are fewer than two points, or where the record is damaged.
    """
    front = mapping(record, "front")
    weights = listing(record, "weights")
    points = [_numbers(point) for point in listing(front, "weights")]
    robust = next((key for key in ROBUST if key in front), ROBUST[-1])
    values = {key: _numbers(front.get(key)) for key in (robust, FAITHFUL)}
    if len(points) < 2 or not weights:
        return None
    one_value_each = all(len(each) == len(points) for each in values.values())
    one_weight_each = all(len(point) == len(weights) for point in points)
    if not one_value_each or not one_weight_each:
        return None
    chosen = min(max(int(number(front, "chosen") or 0), 0), len(points) - 1)
    points[chosen] = _numbers(weights)
    for key, along in values.items():
        fit = number(record, "criteria", key, "consensus", "fit")
        if fit is not None:
            along[chosen] = fit
    return {
        **values,
        "robust": robust,
        "weights": points,
        "chosen": chosen,
        "incompatibility": number(front, "incompatibility"),
    }


def _numbers(values: Any) -> list[float | None]:
    """A list's finite numbers, None for its other entries; empty where ``values`` is not a list."""
    return [number({"value": value}, "value") for value in listing({"values": values}, "values")]


def _explore(entry: Entry, front: Mapping[str, Any], colours: Palette, stretched: bool) -> dict[str, Any]:
    """The slider along the front, with small grids of every map so that the browser can mix them."""
    grids: list[str] = []
    scales: list[tuple[float, float]] = []
    shape = [1, 1]
    for values in entry.maps:
        picture = surface(values)
        if picture is None:
            small = np.zeros((1, 1))
        else:
            small = np.nan_to_num(pool(picture, GRID, stretched))
        shape = list(small.shape)
        low = float(small.min())
        high = float(small.max())
        # One byte a place, value = low + step · byte, keeps pages of many inputs small.
        step = (high - low) / 255 or 1.0
        levels = np.rint((small - low) / step).astype(np.uint8)
        grids.append(_base64(levels))
        scales.append((low, step))
    table = np.rint(np.vstack([colours.clear, [*MISSING, 1.0]]) * 255).astype(np.uint8)
    data = {
        "grids": grids,
        "scales": scales,
        "shape": shape,
        "signed": colours.signed,
        "lut": _base64(table),
        "weights": front["weights"],
        "chosen": front["chosen"],
        "sensitivity": front[front["robust"]],
        "correlation": front[FAITHFUL],
    }
    lost = front["incompatibility"]
    return {
        "data": finite_json(data),
        "shape": shape,
        "last": len(front["weights"]) - 1,
        "chosen": front["chosen"],
        "lost": None if lost is None else {"value": f"{lost:.2f}", "share": f"{lost:.0%}"},
    }


def _base64(values: np.ndarray) -> str:
    """An array's bytes as text, for the browser."""
    return base64.b64encode(values.tobytes()).decode("ascii")


def finite_json(data: Any) -> str:
    """``data`` as JSON for the browser; null for NaN and infinite numbers, which JSON does not have."""
    return json.dumps(_finite(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _finite(value: Any) -> Any:
    """``value``, at any depth, with None for every number that is not finite."""
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
