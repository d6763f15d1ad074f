"""The robustness–faithfulness plane as inline SVG: every map a labelled point with its error bars, the front a line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from .table import Cell, Row, short

WIDTH, HEIGHT = 520, 400


LEFT, RIGHT, TOP, BOTTOM = 52, 14, 16, 46


SIZE = 12.5  # letters, in user units


X, Y = "relative_sensitivity", "faithfulness_correlation"


@dataclass(frozen=True)
class Axis:
    """Values to pixels; logarithmic where the values span more than a decade and a half."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, log: bool = False) -> Axis:
        log = log and min(values) > 0 and max(values) > 30 * min(values)
        scale = math.log10 if log else float
        low, high = scale(min(values)), scale(max(values))
        room = 0.07 * (high - low) or 0.1 * abs(high) or 0.1
        return cls(low - room, high + room, start, end, log)

    def __call__(self, value: float) -> float:
        if self.log:
            value = math.log10(value) if value > 0 else self.low
        share = min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> Iterator[float]:
        if self.log:
            steps = (1, 2, 5) if self.high - self.low < 2.5 else (1,)
            for power in range(math.floor(self.low), math.ceil(self.high) + 1):
                yield from (s * 10.0**power for s in steps if self.low <= math.log10(s * 10.0**power) <= self.high)
            return
        rough = (self.high - self.low) / 5
        unit = 10 ** math.floor(math.log10(rough))
        step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough)
        for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1):
            yield round(i * step, 12)


def plane(table: Sequence[Row], front: dict[str, Any] | None, title: str) -> str:
    """SVG, or "" where fewer than two rows have both numbers. Points: fresh draws; the line: the front on fitting draws."""
    points = []
    for row in table:
        robust, faithful = row.cells[X], row.cells[Y]
        if robust.fresh is not None and faithful.fresh is not None:
            points.append((row, robust.fresh, faithful.fresh, robust.stderr or 0.0, faithful.stderr or 0.0))
    if len(points) < 2:
        return ""
    line = list(zip(front[X], front[Y], strict=True)) if front else []
    line = [(x, y) for x, y in line if x is not None and y is not None]
    logs = all(x > 0 for _, x, *_ in points)
    xs = [v for _, x, _, e, _ in points for v in ((x, x + e) if logs else (x - e, x + e))] + [x for x, _ in line]
    ys = [v for _, _, y, _, e in points for v in (y - e, y + e)] + [y for _, y in line]
    across = Axis.over(xs, LEFT, WIDTH - RIGHT, log=True)
    up = Axis.over(ys, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg class="plane" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        _axes(across, up),
    ]
    trace = [(across(x), up(y)) for x, y in line]
    if len(trace) > 1:
        parts.append(f'<polyline class="front" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in trace)}"/>')
    boxes = [(across(x) - 5, up(y) - 5, across(x) + 5, up(y) + 5) for _, x, y, *_ in points]
    boxes += [(x - 2, y - 2, x + 2, y + 2) for x, y in trace]
    order = sorted(points, key=lambda p: (p[0].name != "consensus", p[0].derived is False))
    for row, x, y, dx, dy in order:
        parts.append(_point(row, (across(x), up(y)), (across(x - dx), across(x + dx), up(y - dy), up(y + dy)), boxes))
    # One marker per point of the front; the page's slider shows one of them.
    parts += [f'<circle class="here" cx="{x:.1f}" cy="{y:.1f}" r="6" visibility="hidden"/>' for x, y in trace]
    parts.append("</svg>")
    return "".join(parts)


def _axes(across: Axis, up: Axis) -> str:
    parts = []
    base = HEIGHT - BOTTOM
    for value in across.ticks():
        x = across(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{base}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 16}" text-anchor="middle">{value:g}</text>')
    for value in up.ticks():
        y = up(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        words = f"{value:g}".replace("-", "−")
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{words}</text>')
    log = ", logarithmic" if across.log else ""
    parts.append(
        f'<text class="axis" x="{WIDTH - RIGHT}" y="{HEIGHT - 9}" text-anchor="end">relative sensitivity{log} '
        f"(← more robust)</text>"
        f'<text class="axis" transform="translate(13 {TOP}) rotate(-90)" text-anchor="end">'
        "correlation (more faithful →)</text>"
    )
    return "".join(parts)


def _point(
    row: Row, at: tuple[float, float], bars: tuple[float, ...], boxes: list[tuple[float, float, float, float]]
) -> str:
    x, y = at
    kind = "lead" if row.name == "consensus" else "derived" if row.derived else "single"
    left, right, low, high = bars
    words = row.name if len(row.name) <= 24 else row.name[:23] + "…"
    ty, box = _place(x, y, 0.6 * SIZE * len(words) + 2, boxes)
    anchor, tx = (
        ("start", box[0]) if box[0] > x else ("end", box[2]) if box[2] < x else ("middle", (box[0] + box[2]) / 2)
    )
    boxes.append(box)
    named = {"sensitivity": row.cells[X], "correlation": row.cells[Y]}
    said = "; ".join(f"{what} {_measured(cell)}" for what, cell in named.items())
    lead = ""
    if math.hypot(max(box[0] - x, 0, x - box[2]), max(box[1] - y, 0, y - box[3])) > 9:
        nx, ny = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
        lead = f'<line class="leader" x1="{x:.1f}" y1="{y:.1f}" x2="{nx:.1f}" y2="{ny:.1f}"/>'
    return (
        f'<g class="point {kind}" data-name="{escape(row.name)}"><title>{escape(row.name)}: {said}</title>{lead}'
        f'<path class="bar" d="M{left:.1f} {y:.1f}H{right:.1f}M{x:.1f} {low:.1f}V{high:.1f}"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{6 if kind == "lead" else 4.2}"/>'
        f'<text x="{tx:.1f}" y="{ty:.1f}" text-anchor="{anchor}">{escape(words)}</text></g>'
    )


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _place(
    x: float, y: float, wide: float, boxes: list[tuple[float, float, float, float]]
) -> tuple[float, tuple[float, float, float, float]]:
    """The label's place with the least overlap, near before far: (baseline, box)."""
    best, cost = None, math.inf
    for far, away in enumerate((8, 16, 26, 38)):
        for near, (right, down) in enumerate(
            ((1, 0), (-1, 0), (0, -1), (0, 1), (0.8, -0.8), (-0.8, -0.8), (0.8, 0.8), (-0.8, 0.8))
        ):
            cx = x + right * away + (wide / 2 if right > 0 else -wide / 2 if right < 0 else 0)
            cy = y + down * (away + 4)
            box = (cx - wide / 2, cy - SIZE * 0.62, cx + wide / 2, cy + SIZE * 0.55)
            if box[0] < LEFT + 1 or box[2] > WIDTH - 1 or box[1] < 1 or box[3] > HEIGHT - BOTTOM - 1:
                continue
            price = sum(_overlap(box, other) for other in boxes) + 6 * far + 0.5 * near
            if price < cost:
                best, cost = (cy + SIZE * 0.34, box), price
    if best is None:
        left = min(max(x - wide / 2, LEFT), WIDTH - wide)
        best = (y - 8, (left, y - 20, left + wide, y - 6))
    return best


def _measured(cell: Cell) -> str:
    """Fresh, and ± its standard error where there is one."""
    error = f" ± {short(cell.stderr)}" if cell.stderr else ""
    return short(cell.fresh) + error
