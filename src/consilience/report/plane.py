"""The layout of the plot of robustness and faithfulness: a labelled point with error bars for each map, a line for the front.

Here positions are computed, in pixels from the top left corner; ``templates/plane.svg`` draws them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .criteria import CRITERIA
from .numbers import minus, short
from .table import Cell, Row

WIDTH = 520
HEIGHT = 400

# Margins around the axes.
LEFT = 52
RIGHT = 14
TOP = 16
BOTTOM = 46

SIZE = 12.5
"""The size of letters."""

LONGEST = 24
"""The most letters of a label."""

ROBUST = ("noise_over_signal", "relative_sensitivity")
"""The criteria of the horizontal axis: the first that there are values of."""

FAITHFUL = "faithfulness_correlation"
"""The criterion of the vertical axis."""

TITLES = {criterion.key: criterion.title for criterion in CRITERIA}

NOTHING = 1e-9
"""A share of the largest value below which a value counts as zero."""

Box = tuple[float, float, float, float]
"""A rectangle: left, top, right, bottom."""


@dataclass(frozen=True)
class Axis:
    """Turns values into pixels. A logarithmic axis draws zero and negative values at its beginning.

    Attributes:
        low, high: the values at both ends; of a logarithmic axis, their logarithms to base 10.
        start, end: the pixels at both ends.
        log: whether the axis is logarithmic.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, log: bool = False) -> Axis:
        """An axis with room for all values.

        Args:
            values: at least one.
            start, end: the pixels at both ends.
            log: make it logarithmic if no value is negative and they span a factor of more than 30.
        """
        # Zeros, and numbers that are zero up to rounding, would stretch a logarithmic axis until all other points coincide.
        positive = [value for value in values if value > NOTHING * max(values)]
        log = log and min(values) >= 0 and len(positive) > 1 and max(positive) > 30 * min(positive)
        if log:
            low = math.log10(min(positive))
            high = math.log10(max(positive))
        else:
            low = min(values)
            high = max(values)
        # Where all values are the same, the axis still needs a length.
        room = 0.07 * (high - low) or 0.1 * abs(high) or 0.1
        return cls(low - room, high + room, start, end, log)

    def __call__(self, value: float) -> float:
        if self.log:
            value = math.log10(value) if value > 0 else self.low
        share = min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> Iterator[float]:
        """Round values along the axis, about five."""
        if self.log:
            # Over many decades only the powers of ten have room.
            multiples = (1, 2, 5) if self.high - self.low < 2.5 else (1,)
            for power in range(math.floor(self.low), math.ceil(self.high) + 1):
                for multiple in multiples:
                    value = multiple * 10.0**power
                    if self.low <= math.log10(value) <= self.high:
                        yield value
            return
        rough = (self.high - self.low) / 5
        unit = 10 ** math.floor(math.log10(rough))
        step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough)
        for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1):
            yield round(i * step, 12)  # 3 · 0.1 is 0.30000000000000004


@dataclass(frozen=True)
class Point:
    """One map in the plot.

    Attributes:
        row: of the table.
        x, y: its robustness and its faithfulness, on fresh draws.
        dx, dy: their standard errors; 0 where there is none.
    """

    row: Row
    x: float
    y: float
    dx: float
    dy: float


def robust_criterion(table: Sequence[Row], front: Mapping[str, Any] | None) -> str:
    """The criterion of the horizontal axis: the front's, else the first of :data:`ROBUST` that two maps have.

    Args:
        table: the input's rows.
        front: the criteria's values along the front; None where there is none.
    """
    for key in ROBUST:
        if front is not None:
            if key in front:
                return key
        elif len(_points(table, key)) > 1:
            return key
    return ROBUST[-1]


def plane(table: Sequence[Row], front: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The values for ``templates/plane.svg``; None where fewer than two rows have both numbers.

    Args:
        table: the input's rows; their points are the values on fresh draws.
        front: the criteria's values along the front, on fitting draws; drawn as a line.
    """
    across_key = robust_criterion(table, front)
    points = _points(table, across_key)
    if len(points) < 2:
        return None
    line: list[tuple[float, float]] = []
    if front is not None:
        pairs = zip(front[across_key], front[FAITHFUL], strict=True)
        line = [(x, y) for x, y in pairs if x is not None and y is not None]
    across, up = _axes(points, line)
    trace = [(across(x), up(y)) for x, y in line]
    # What labels keep away from: the points and the line.
    taken: list[Box] = [(across(p.x) - 5, up(p.y) - 5, across(p.x) + 5, up(p.y) + 5) for p in points]
    taken += [(x - 2, y - 2, x + 2, y + 2) for x, y in trace]
    # The consensus gets the best place for its label, then what is made from all methods.
    order = sorted(points, key=lambda p: (p.row.name != "consensus", not p.row.derived))
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "base": HEIGHT - BOTTOM,
        "across": [(_pixels(across(value)), f"{value:g}") for value in across.ticks()],
        "up": [(_pixels(up(value)), minus(f"{value:g}")) for value in up.ticks()],
        "robust": TITLES[across_key],
        "log": across.log,
        "line": [(_pixels(x), _pixels(y)) for x, y in trace],
        "points": [_point(point, across, up, across_key, taken) for point in order],
    }


def _points(table: Sequence[Row], across_key: str) -> list[Point]:
    """The rows that have both numbers."""
    points = []
    for row in table:
        x = row.cells[across_key]
        y = row.cells[FAITHFUL]
        if x.fresh is not None and y.fresh is not None:
            points.append(Point(row, x.fresh, y.fresh, x.stderr or 0.0, y.stderr or 0.0))
    return points


def _axes(points: Sequence[Point], line: Sequence[tuple[float, float]]) -> tuple[Axis, Axis]:
    """The two axes, with room for error bars and the line."""
    positive = all(point.x >= 0 for point in points)
    xs = [x for x, _ in line]
    ys = [y for _, y in line]
    for point in points:
        # An error bar may reach below zero, which would rule out a logarithmic axis: there it ends at the axis instead.
        xs.append(point.x if positive else point.x - point.dx)
        xs.append(point.x + point.dx)
        ys += [point.y - point.dy, point.y + point.dy]
    return Axis.over(xs, LEFT, WIDTH - RIGHT, log=True), Axis.over(ys, HEIGHT - BOTTOM, TOP)


def _pixels(value: float) -> str:
    """A position in the SVG file."""
    return f"{value:.1f}"


def _point(point: Point, across: Axis, up: Axis, across_key: str, taken: list[Box]) -> dict[str, Any]:
    """Where one point, its bars and its label lie; adds the label's box to ``taken``."""
    row = point.row
    x = across(point.x)
    y = up(point.y)
    kind = "derived" if row.derived else "single"
    if row.name == "consensus":
        kind = "lead"
    words = row.name
    if len(words) > LONGEST:
        words = words[: LONGEST - 1] + "…"
    # Letters of the page's font are about 0.6 of their size wide.
    baseline, box = _place(x, y, 0.6 * SIZE * len(words) + 2, taken)
    taken.append(box)
    anchor, text_x = _anchored(box, x)
    # A label that is far from its point gets a line to it, from the box's nearest place.
    near_x = min(max(x, box[0]), box[2])
    near_y = min(max(y, box[1]), box[3])
    far = math.hypot(near_x - x, near_y - y) > 9
    robustness = f"{TITLES[across_key]} {_measured(row.cells[across_key])}"
    faithfulness = f"correlation {_measured(row.cells[FAITHFUL])}"
    ends = (across(point.x - point.dx), across(point.x + point.dx), up(point.y - point.dy), up(point.y + point.dy))
    return {
        "kind": kind,
        "name": row.name,
        "words": words,
        "tooltip": f"{robustness}; {faithfulness}",
        "leader": (_pixels(near_x), _pixels(near_y)) if far else None,
        "x": _pixels(x),
        "y": _pixels(y),
        "bars": [_pixels(end) for end in ends],
        "radius": 6 if kind == "lead" else 4.2,
        "anchor": anchor,
        "text_x": _pixels(text_x),
        "text_y": _pixels(baseline),
    }


def _anchored(box: Box, x: float) -> tuple[str, float]:
    """The anchor of a label and its position: the side of its box that faces the point at ``x``.

    Only the browser knows how wide the text really is: at the anchor, a difference does not matter.
    """
    if box[0] > x:
        return "start", box[0]
    if box[2] < x:
        return "end", box[2]
    return "middle", (box[0] + box[2]) / 2


def _overlap(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return wide * high


AROUND = ((1, 0), (-1, 0), (0, -1), (0, 1), (0.8, -0.8), (-0.8, -0.8), (0.8, 0.8), (-0.8, 0.8))
"""Directions from a point to its label, the best first: right, left, above, below, then the corners."""


def _place(x: float, y: float, wide: float, taken: Sequence[Box]) -> tuple[float, Box]:
    """Where a label goes: its baseline and box. The least overlap wins; of equal ones the nearest, then the best direction.

    Args:
        x, y: the point.
        wide: the label's width.
        taken: what it should not cover.
    """
    best = None
    lowest = math.inf
    for far, away in enumerate((8, 16, 26, 38)):
        for near, (right, down) in enumerate(AROUND):
            center_x = x + right * away
            if right:
                center_x += math.copysign(wide / 2, right)
            center_y = y + down * (away + 4)
            box = (center_x - wide / 2, center_y - SIZE * 0.62, center_x + wide / 2, center_y + SIZE * 0.55)
            beside = box[0] < LEFT + 1 or box[2] > WIDTH - 1
            if beside or box[1] < 1 or box[3] > HEIGHT - BOTTOM - 1:
                continue
            # In square pixels of overlap: a step farther away costs 6, a step to a worse direction half a pixel.
            cost = sum(_overlap(box, other) for other in taken) + 6 * far + 0.5 * near
            if cost < lowest:
                best = (center_y + SIZE * 0.34, box)
                lowest = cost
    if best is None:
        # Every place leaves the plot: above the point, moved inwards.
        left = min(max(x - wide / 2, LEFT), WIDTH - wide)
        best = (y - 8, (left, y - 20, left + wide, y - 6))
    return best


def _measured(cell: Cell) -> str:
    """The fresh value, with ± its standard error where there is one."""
    if cell.exact:
        return f"{short(cell.fresh)}, exact"
    if not cell.stderr:
        return short(cell.fresh)
    return f"{short(cell.fresh)} ± {short(cell.stderr)}"
