"""One input as a picture: the photograph, the combined map, then every method's map with its weight and qualities."""

from __future__ import annotations

import textwrap
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import need
from .colours import background, palette, robust_limit
from .entry import Entry, feature_names, surface, top_features
from .table import UNEXPLAINED, Row, rows, short

WIDTH = 13.0  # inches


DPI = 110


MARGIN, GAP = 0.35, 0.28


COLUMNS = 5


COMPARISON = 2.95  # height of the bars beside the pictures


INK, SOFT, FAINT, ACCENT, COOL = "#1b1b1f", "#5c5c66", "#e4e4ea", "#b3315b", "#2166ac"


def figure(entry: Entry) -> Any:
    """A matplotlib ``Figure`` of one entry: save it with ``savefig``. No global state of matplotlib is touched.

    Every map has its own colour scale, to the 99.5th percentile of |value|: inferno from zero for unsigned maps, red and
    blue around zero for signed ones. NaNs are grey. Maps without two spatial axes are bars: the combined map's 20 largest.
    """
    matplotlib = need("matplotlib", "images")
    need("matplotlib.figure", "images")
    need("matplotlib.backends.backend_agg", "images")
    with matplotlib.rc_context(
        {"font.family": ["DejaVu Sans"], "font.size": 10, "figure.constrained_layout.use": False}
    ):
        return _Sheet(matplotlib, entry).draw()


class _Sheet:
    """Panels placed in inches from the top left corner, so that nothing depends on a layout engine."""

    def __init__(self, matplotlib: Any, entry: Entry):
        self.matplotlib, self.entry = matplotlib, entry
        self.colours = palette(entry.signed)
        self.rows = {row.name: row for row in rows(entry.record)}
        k = len(entry.maps)
        self.columns = min(COLUMNS, max(k, 4))
        self.cell = (WIDTH - 2 * MARGIN - (self.columns - 1) * GAP) / self.columns
        shape = self._shape()
        self.aspect = float(np.clip(shape[0] / shape[1], 0.45, 1.6)) if shape else 1.25
        self.hero = 2.95 if shape else 4.6
        self.hero_height = self.hero * (self.aspect if shape else 0.95)
        self.tile_height = self.cell * self.aspect
        self.lines = -(-k // self.columns)
        self.step = self.tile_height + 1.22
        self.top = 1.42
        self.below = self.top + max(self.hero_height + 0.5, COMPARISON) + 0.3
        self.height = self.below + self.lines * self.step + 0.4
        self.figure = matplotlib.figure.Figure(figsize=(WIDTH, self.height), dpi=DPI, facecolor="white")
        matplotlib.backends.backend_agg.FigureCanvasAgg(self.figure)

    def _shape(self) -> tuple[int, ...] | None:
        if self.entry.image is not None and self.entry.pictured:
            return self.entry.image.shape[:2]
        flat = surface(self.entry.attribution)
        return None if flat is None else flat.shape

    def draw(self) -> Any:
        self._heading()
        (self._pictures if self.entry.pictured else self._bars)()
        for place, j in enumerate(self.entry.order):
            line, column = divmod(place, self.columns)
            self._tile(j, MARGIN + column * (self.cell + GAP), self.below + line * self.step)
        kind = "red above, blue below zero" if self.colours.signed else "from zero"
        scale = f"Every map on its own scale, to the 99.5th percentile of |value|, {kind}; grey: not a number."
        if not self.entry.pictured:
            scale = "The combined map's largest values, in its order in every panel; every panel on its own scale."
        self.text(MARGIN, self.height - 0.22, scale + "  ± standard error over fresh draws.", size=9, color=SOFT)
        return self.figure

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _heading(self) -> None:
        record, right = self.entry.record, WIDTH - MARGIN
        self.text(MARGIN, 0.42, self.entry.name, size=17, weight="bold", width=0.74 * WIDTH)
        said = f"{self.entry.target}, {self.entry.score_name} {short(record.get('score'))}"
        other = record.get("predicted") != record.get("target")
        if self.entry.predicted is not None:
            said += f"; predicted: {self.entry.predicted}" if other else ", as predicted"
        if UNEXPLAINED in str(record.get("status")):
            said += f"; {UNEXPLAINED}"
        self.text(MARGIN, 0.76, said, size=11, color=SOFT, width=0.74 * WIDTH)
        self.text(right, 0.42, f"objective {record.get('objective')}", size=11, ha="right", width=0.22 * WIDTH)
        if record.get("model"):
            self.text(right, 0.76, str(record["model"]), size=9, color=SOFT, ha="right", width=0.24 * WIDTH)

    def _pictures(self) -> None:
        entry, x, wide = self.entry, MARGIN, self.hero
        flat = surface(entry.attribution)
        assert flat is not None
        if entry.image is not None:
            self._caption(x, "input")
            self.picture(x, self.top, wide, self.hero_height, entry.image)
            x += wide + GAP
            self._caption(x, "consensus, on the input")
            under = background(entry.image, self.colours.signed)
            self.picture(x, self.top, wide, self.hero_height, self._over(under, flat), ACCENT)
            x += wide + GAP
        self._caption(x, "consensus")
        self.picture(x, self.top, wide, self.hero_height, self.colours.paint(flat), ACCENT)
        self._legend(x, self.top + self.hero_height + 0.1, wide, flat)
        x += wide + GAP
        self._comparison(x, min(4.2, WIDTH - MARGIN - x))

    def _bars(self) -> None:
        wide = self.hero
        self._caption(MARGIN + 1.7, "consensus")
        axes = self.bars(MARGIN + 1.7, self.top, wide, self.hero_height, self.entry.attribution)
        names = [fit(n, 1.6, 9) for n in np.array(feature_names(self.entry), dtype=object)[top_features(self.entry)]]
        axes.set_yticks(range(len(names)), [drawable(name) for name in names], fontsize=9, parse_math=False)
        axes.tick_params(length=0, pad=4)
        x = MARGIN + 1.7 + wide + 2 * GAP
        self._comparison(x, min(4.2, WIDTH - MARGIN - x))

    def _comparison(self, x: float, wide: float) -> None:
        """Consensus, mean and the best single method by each of the two qualities: bars a reader compares at a glance."""
        methods, y = [self.rows[name] for name in self.entry.record["methods"]], self.top
        for key, title, sign in (
            ("relative_sensitivity", "relative sensitivity", 1),
            ("faithfulness_correlation", "correlation", -1),
        ):
            self.text(x, y - 0.11, title, size=10.5, weight="bold")
            self.text(x + wide, y - 0.11, "less is better" if sign > 0 else "more is better", 9, color=SOFT, ha="right")
            known = [row for row in methods if row.cells[key].fresh is not None]
            best = min(known, key=lambda row: sign * (row.cells[key].fresh or 0.0), default=None)
            shown = [("consensus", self.rows["consensus"]), ("mean", self.rows["mean"])]
            shown += [("best: " + best.name, best)] if best else []
            top = max([abs(row.cells[key].fresh or 0.0) for _, row in shown] + [1e-12])
            for words, row in shown:
                value, colour = row.cells[key].fresh, ACCENT if words == "consensus" else INK
                said = _measured(row, key)
                self.text(x, y + 0.16, words, size=9, color=colour, width=wide - inches(said, 9) - 0.12)
                self.text(x + wide, y + 0.16, said, size=9, color=colour, ha="right")
                self.rectangle(x, y + 0.23, wide, 0.09, FAINT)
                if value is not None and value > 0:
                    self.rectangle(x, y + 0.23, wide * min(value / top, 1), 0.09, colour)
                y += 0.42
            y += 0.42

    def _tile(self, j: int, x: float, y: float) -> None:
        entry, name = self.entry, self.entry.record["methods"][j]
        failed, weight = (entry.record.get("failed") or {}).get(name), entry.weights[j]
        soft = failed is not None or weight is None or not abs(weight) > 5e-4
        self.text(x, y, name, size=10.5, weight="bold", color=SOFT if soft else INK, width=self.cell)
        y += 0.1
        if failed is not None:
            self.rectangle(x, y, self.cell, self.tile_height, "#f5f5f8")
            self._reason(x, y, str(failed))
            return
        flat = surface(entry.maps[j])
        if flat is not None:
            self.picture(x, y, self.cell, self.tile_height, self.colours.paint(flat))
        else:
            self.bars(x, y, self.cell, self.tile_height, entry.maps[j])
        y += self.tile_height + 0.1
        if weight is not None:
            room = self.cell - 0.5
            self.rectangle(x, y, room, 0.11, FAINT)
            self.rectangle(x, y, room * min(abs(weight), 1.0), 0.11, COOL if weight < 0 else ACCENT)
            value = "0" if weight == 0 else f"{weight:.2f}"
            self.text(x + self.cell, y + 0.115, value, size=10, color=SOFT if soft else INK, ha="right")
        for offset, key, words in (
            (0.38, "relative_sensitivity", "sensitivity"),
            (0.57, "faithfulness_correlation", "correlation"),
        ):
            self.text(x, y + offset, words, size=9, color=SOFT)
            best = self.rows[name].cells[key].best
            value = _measured(self.rows[name], key)
            self.text(x + self.cell, y + offset, value, size=9, ha="right", weight="bold" if best else "normal")

    def _reason(self, x: float, y: float, reason: str) -> None:
        wide = max(10, int((self.cell - 0.3) / 0.078))
        lines = textwrap.wrap(
            "failed: " + reason, wide, max_lines=max(2, int(self.tile_height / 0.2) - 1), placeholder=" …"
        )
        for i, line in enumerate(lines):
            self.text(x + 0.14, y + 0.28 + 0.19 * i, line, size=9, color=SOFT, width=self.cell - 0.2)

    def _legend(self, x: float, y: float, wide: float, values: np.ndarray) -> None:
        axes = self.axes(x, y, wide, 0.1)
        axes.imshow(self.colours.opaque[None], aspect="auto", interpolation="nearest")
        axes.set_axis_off()
        limit = short(robust_limit(values))
        self.text(x, y + 0.28, "−" + limit if self.colours.signed else "0", size=9, color=SOFT)
        self.text(x + wide, y + 0.28, limit, size=9, color=SOFT, ha="right")
        if self.colours.signed:
            self.text(x + wide / 2, y + 0.28, "0", size=9, color=SOFT, ha="center")

    def _caption(self, x: float, words: str) -> None:
        self.text(x, self.top - 0.11, words, size=10.5, weight="bold", color=ACCENT if "consensus" in words else INK)

    def _over(self, image: np.ndarray, flat: np.ndarray) -> np.ndarray:
        return self.colours.over(image, _stretch(flat, image.shape[:2]))

    # -- primitives, in inches from the top left -----------------------------------------------------------------------

    def axes(self, x: float, y: float, wide: float, high: float) -> Any:
        box = (x / WIDTH, 1 - (y + high) / self.height, wide / WIDTH, high / self.height)
        return self.figure.add_axes(box)

    def picture(self, x: float, y: float, wide: float, high: float, rgb: np.ndarray, edge: str = "none") -> None:
        ratio = rgb.shape[0] / rgb.shape[1]
        inner = (min(wide, high / ratio), min(high, wide * ratio))
        axes = self.axes(x, y, *inner)
        axes.imshow(np.clip(rgb, 0, 1), aspect="auto", interpolation="antialiased")
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(visible=edge != "none", edgecolor=edge, linewidth=1.5)

    def bars(self, x: float, y: float, wide: float, high: float, values: np.ndarray) -> Any:
        axes = self.axes(x, y, wide, high)
        chosen = values.ravel().astype(np.float64)[top_features(self.entry)]
        known = np.nan_to_num(chosen)
        axes.barh(range(len(chosen)), known, height=0.72, color=[COOL if v < 0 else ACCENT for v in known])
        for row in np.flatnonzero(~np.isfinite(chosen)):
            axes.text(0, row, " not a number", fontsize=9, va="center", color=SOFT)
        axes.axvline(0, color=SOFT, linewidth=0.8)
        limit = np.abs(known).max(initial=0) or 1.0
        axes.set(xlim=(-1.05 * limit if (known < 0).any() else 0, 1.05 * limit), ylim=(len(chosen) - 0.4, -0.6))
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_visible(False)
        return axes

    def rectangle(self, x: float, y: float, wide: float, high: float, color: str) -> None:
        box = (x / WIDTH, 1 - (y + high) / self.height)
        patch = self.matplotlib.patches.Rectangle(
            box, wide / WIDTH, high / self.height, transform=self.figure.transFigure, facecolor=color, edgecolor="none"
        )
        self.figure.add_artist(patch)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: float = 10,
        width: float = WIDTH,
        weight: str = "normal",
        **style: Any,
    ) -> None:
        style = {"color": INK, "ha": "left", "va": "baseline", "parse_math": False, **style}
        words = drawable(fit(words, width, size, weight))
        self.figure.text(x / WIDTH, 1 - y / self.height, words, fontsize=size, fontweight=weight, **style)


def _measured(row: Row, key: str) -> str:
    """Fresh ± standard error, with the error's two digits."""
    cell = row.cells[key]
    if cell.fresh is None:
        return "–"
    if not cell.stderr:
        return short(cell.fresh)
    decimals = int(np.clip(1 - np.floor(np.log10(cell.stderr)), 0, 4))
    if abs(cell.fresh) >= 1e5 or cell.stderr < 1e-4:
        return f"{cell.fresh:.1e} ± {cell.stderr:.0e}"
    return f"{cell.fresh:.{decimals}f} ± {cell.stderr:.{decimals}f}".replace("-", "−")


def _stretch(flat: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The map on the picture's grid, by the nearest value."""
    down, across = (np.arange(shape[i]) * flat.shape[i] // shape[i] for i in (0, 1))
    return flat[down[:, None], across]


@lru_cache(maxsize=4)
def _font(weight: str) -> Any:
    manager, ft2font = need("matplotlib.font_manager", "images"), need("matplotlib.ft2font", "images")
    return ft2font.FT2Font(manager.findfont(manager.FontProperties(family="DejaVu Sans", weight=weight)))


@lru_cache(maxsize=1)
def _letters() -> frozenset[int]:
    return frozenset(_font("normal").get_charmap())


def drawable(words: str) -> str:
    """Letters that the packaged font lacks become boxes, rather than warnings; line breaks become spaces."""
    known = _letters()
    return "".join(c if ord(c) in known else "\N{WHITE SQUARE}" for c in " ".join(words.split()))


def inches(words: str, size: float, weight: str = "normal") -> float:
    """The width of a text, with a little room for hinting."""
    font = _font(weight)
    font.set_size(size, 72)
    font.set_text(drawable(words), 0.0)
    return 1.04 * float(font.get_width_height()[0]) / 64 / 72


def fit(words: str, width: float, size: float, weight: str = "normal") -> str:
    """The text, shortened in the middle with an ellipsis so that it is at most ``width`` inches wide."""
    if inches(words, size, weight) <= width:
        return words
    low, high = 1, len(words) - 1
    while low < high:
        middle = (low + high + 1) // 2
        fits = inches(_shortened(words, middle), size, weight) <= width
        low, high = (middle, high) if fits else (low, middle - 1)
    return _shortened(words, low)


def _shortened(words: str, keep: int) -> str:
    head = -(-2 * keep // 3)
    return words[:head] + "…" + words[len(words) - (keep - head) :]
