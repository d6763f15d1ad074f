"""A matplotlib figure of one input: the picture, the combined map, then every method's map with its weight and qualities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..errors import need
from .colours import background, palette, robust_limit
from .criteria import CRITERIA, UNEXPLAINED, Criterion
from .entry import Entry, feature_names, surface, top_features
from .letters import drawable, fit, inches, wrapped
from .numbers import MISSING, minus, short, with_error
from .reading import number, text
from .table import Row, best_single, has_status, rows, shown_criteria, unjudged
from .verdict import verdict

# Lengths are in inches.
WIDTH = 13.0
MARGIN = 0.35
GAP = 0.28
COMPARISON = 2.95
"""The height of the bars beside the pictures."""

DPI = 110
COLUMNS = 5
"""The most small pictures in a row."""

FLATTEST = 0.45
TALLEST = 1.6
"""The smallest and largest height / width of a picture. Other maps, such as those of a long series, are stretched."""

FAINT = 5e-4
"""A method with a smaller |weight| is shown as unused."""

SHORT = {
    "noise_over_signal": "noise/signal",
    "relative_sensitivity": "sensitivity",
    "faithfulness_correlation": "correlation",
}
"""The names of criteria below a small picture."""

INK = "#1b1b1f"
SOFT = "#5c5c66"
FAINT_BAR = "#e4e4ea"
ACCENT = "#b3315b"
COOL = "#2166ac"


def figure(entry: Entry) -> Any:
    """A matplotlib ``Figure`` of one input; save it with its ``savefig``. Global state of matplotlib does not change.

    Every map has its own colour scale, to the 99.5th percentile of |value|: inferno from zero for unsigned maps, red and
    blue around zero for signed ones. NaNs are grey. Maps without two spatial axes are shown as bars, for the 20 features with
    the largest values of the combined map.

    Args:
        entry: the input.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    matplotlib = need("matplotlib", "images")
    need("matplotlib.figure", "images")
    need("matplotlib.backends.backend_agg", "images")
    with matplotlib.rc_context(
        {"font.family": ["DejaVu Sans"], "font.size": 10, "figure.constrained_layout.use": False}
    ):
        return _Sheet(matplotlib, entry).draw()


class _Sheet:
    """One figure in the making. Positions are in inches from the top left corner, so that no layout engine is needed.

    Args:
        matplotlib: the module.
        entry: the input.
    """

    def __init__(self, matplotlib: Any, entry: Entry):
        self.matplotlib = matplotlib
        self.entry = entry
        self.colours = palette(entry.signed)
        table = rows(entry.record)
        self.rows = {row.name: row for row in table}
        self.unjudged = unjudged([entry.record])
        self.compared = [] if self.unjudged else _compared(table)
        k = len(entry.maps)
        self.columns = min(COLUMNS, max(k, 4))
        self.cell = (WIDTH - 2 * MARGIN - (self.columns - 1) * GAP) / self.columns
        self._measure()
        lines = math.ceil(k / self.columns)
        self.step = self.tile_height + 1.22
        self.top = 1.42
        self.below = self.top + max(self.hero_height + 0.5, COMPARISON) + 0.3
        self.height = self.below + lines * self.step + 0.4
        self.figure = matplotlib.figure.Figure(figsize=(WIDTH, self.height), dpi=DPI, facecolor="white")
        matplotlib.backends.backend_agg.FigureCanvasAgg(self.figure)

    def _measure(self) -> None:
        """The sizes of the large and the small pictures, or of the bars."""
        shape = self._shape()
        if shape is None:
            count = len(top_features(self.entry))
            self.hero = 4.6
            self.hero_height = min(4.4, max(1.2, 0.3 * count))
            self.tile_height = min(1.25 * self.cell, max(0.9, 0.16 * count))
            self.stretched = False
            return
        ratio = shape[0] / shape[1]
        aspect = min(max(ratio, FLATTEST), TALLEST)
        self.stretched = aspect != ratio
        self.hero = 2.95
        self.hero_height = self.hero * aspect
        self.tile_height = self.cell * aspect

    def _shape(self) -> tuple[int, ...] | None:
        """The height and width of what is shown as a picture; None for bars."""
        if self.entry.image is not None and self.entry.pictured:
            return self.entry.image.shape[:2]
        values = surface(self.entry.attribution)
        if values is None:
            return None
        return values.shape

    def draw(self) -> Any:
        """Everything, from top to bottom."""
        self._heading()
        if self.entry.pictured:
            self._pictures()
        else:
            self._bars()
        for place, j in enumerate(self.entry.order):
            line, column = divmod(place, self.columns)
            self._tile(j, MARGIN + column * (self.cell + GAP), self.below + line * self.step)
        kind = "red above, blue below zero" if self.colours.signed else "from zero"
        scale = f"Every map on its own scale, to the 99.5th percentile of |value|, {kind}; grey: not a number."
        if not self.entry.pictured:
            scale = "The combined map's largest values, in its order in every panel; every panel on its own scale."
        errors = f"  {self.unjudged}." if self.unjudged else "  ± standard error over fresh draws."
        self.text(MARGIN, self.height - 0.22, scale + errors, size=9, color=SOFT)
        return self.figure

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _heading(self) -> None:
        """The name, what is explained, and the verdict; on the right, the objective and the model."""
        entry = self.entry
        right = WIDTH - MARGIN
        self.text(MARGIN, 0.42, entry.name, size=17, weight="bold", width=0.74 * WIDTH)
        answer = f"{entry.target}, {entry.score_name} {minus(short(number(entry.record, 'score')))}"
        if entry.predicted is not None:
            answer += ", as predicted" if entry.agrees else f"; predicted: {entry.predicted}"
        self.text(MARGIN, 0.76, answer, size=11, color=SOFT, width=0.74 * WIDTH)
        sentences = verdict([entry.record])
        if has_status(entry.record, UNEXPLAINED):
            # A warning takes the place of the verdict's first sentence.
            warning = f"{UNEXPLAINED}: weights, correlations and the combined map are noise"
            self.text(MARGIN, 1.02, warning, size=10, color=ACCENT, weight="bold", width=0.74 * WIDTH)
        elif sentences:
            self.text(MARGIN, 1.02, sentences[0], size=10, width=WIDTH - 2 * MARGIN)
        objective = f"objective {text(entry.record, 'objective')}"
        self.text(right, 0.42, objective, size=11, ha="right", width=0.22 * WIDTH)
        model = text(entry.record, "model")
        if model:
            self.text(right, 0.76, model, size=9, color=SOFT, ha="right", width=0.24 * WIDTH)

    def _pictures(self) -> None:
        """The input, the combined map on it, the combined map alone, and the comparison."""
        entry = self.entry
        x = MARGIN
        wide = self.hero
        combined = surface(entry.attribution)
        assert combined is not None
        if entry.image is not None:
            self._caption(x, "input")
            self.picture(x, self.top, wide, self.hero_height, entry.image)
            x += wide + GAP
            # Of the detail within a mask unit no mask says anything, and what is certain is so of whole units.
            by_unit = None if entry.by_unit is None else surface(entry.by_unit)
            laid = combined if by_unit is None else by_unit
            words = "consensus, on the input" if by_unit is None else "consensus by patch, on the input"
            self._caption(x, words)
            under = background(entry.image, self.colours.signed)
            axes = self.picture(x, self.top, wide, self.hero_height, self._over(under, laid), ACCENT)
            self._outline(axes, entry.image.shape[:2])
            x += wide + GAP
        self._caption(x, "consensus")
        self.picture(x, self.top, wide, self.hero_height, self.colours.paint(combined), ACCENT)
        self._legend(x, self.top + self.hero_height + 0.1, wide, combined)
        x += wide + GAP
        self._comparison(x, min(4.2, WIDTH - MARGIN - x))

    def _bars(self) -> None:
        """The combined map's largest values as bars with their names, and the comparison."""
        left = MARGIN + 1.7
        wide = self.hero
        self._caption(left, "consensus")
        axes = self.bars(left, self.top, wide, self.hero_height, self.entry.attribution, self.entry.error)
        every = feature_names(self.entry)
        names = [drawable(fit(every[at], 1.6, 9)) for at in top_features(self.entry)]
        axes.set_yticks(range(len(names)), names, fontsize=9, parse_math=False)
        axes.tick_params(length=0, pad=4)
        x = left + wide + 2 * GAP
        self._comparison(x, min(4.2, WIDTH - MARGIN - x))

    def _comparison(self, x: float, wide: float) -> None:
        """Consensus, mean and the best single method by robustness and by faithfulness: bars to compare at a glance."""
        y = self.top
        for criterion in self.compared:
            words = "more is better" if criterion.higher else "less is better"
            self.text(x, y - 0.11, criterion.title, size=10.5, weight="bold")
            self.text(x + wide, y - 0.11, words, size=9, color=SOFT, ha="right")
            shown: list[tuple[str, Row]] = [
                (name, self.rows[name]) for name in ("consensus", "mean") if name in self.rows
            ]
            best = best_single(list(self.rows.values()), criterion)
            if best is not None:
                shown.append((f"best: {best.name}", best))
            sizes = [abs(row.cells[criterion.key].fresh or 0.0) for _, row in shown]
            y = self._compare(x, y, wide, criterion, shown, max([*sizes, 1e-12]))

    def _compare(
        self, x: float, y: float, wide: float, criterion: Criterion, shown: list[tuple[str, Row]], longest: float
    ) -> float:
        """The bars of one criterion; the height below them."""
        for words, row in shown:
            value = row.cells[criterion.key].fresh
            colour = ACCENT if words == "consensus" else INK
            measured = _measured(row, criterion)
            self.text(x, y + 0.16, words, size=9, color=colour, width=wide - inches(measured, 9) - 0.12)
            self.text(x + wide, y + 0.16, measured, size=9, color=colour, ha="right")
            self.rectangle(x, y + 0.23, wide, 0.09, FAINT_BAR)
            if value is not None and value > 0:
                self.rectangle(x, y + 0.23, wide * min(value / longest, 1), 0.09, colour)
            y += 0.42
        return y + 0.42

    def _tile(self, j: int, x: float, y: float) -> None:
        """One method: name, map, weight and qualities; or why it failed."""
        entry = self.entry
        name = entry.methods[j]
        failed = entry.failed.get(name)
        weight = entry.weights[j]
        idle = failed is not None or weight is None or abs(weight) <= FAINT
        self.text(x, y, name, size=10.5, weight="bold", color=SOFT if idle else INK, width=self.cell)
        y += 0.1
        if failed is not None:
            self.rectangle(x, y, self.cell, self.tile_height, "#f5f5f8")
            self._reason(x, y, failed)
            return
        values = surface(entry.maps[j])
        if values is not None:
            self.picture(x, y, self.cell, self.tile_height, self.colours.paint(values))
        else:
            self.bars(x, y, self.cell, self.tile_height, entry.maps[j])
        y += self.tile_height + 0.1
        if weight is not None:
            self._weight(x, y, weight, self.rows[name].stderr, SOFT if idle else INK)
        for offset, criterion in zip((0.38, 0.57), self.compared, strict=False):
            self.text(x, y + offset, SHORT[criterion.key], size=9, color=SOFT)
            best = self.rows[name].cells[criterion.key].best
            value = _measured(self.rows[name], criterion)
            self.text(x + self.cell, y + offset, value, size=9, ha="right", weight="bold" if best else "normal")

    def _weight(self, x: float, y: float, weight: float, stderr: float | None, colour: str) -> None:
        """A weight as a bar and as a number with its error."""
        words = "0" if abs(weight) < 0.005 else minus(f"{weight:.2f}")
        if stderr and stderr >= 0.005:
            words += f" ± {stderr:.2f}"
        room = self.cell - 0.98
        self.rectangle(x, y, room, 0.11, FAINT_BAR)
        self.rectangle(x, y, room * min(abs(weight), 1.0), 0.11, COOL if weight < 0 else ACCENT)
        self.text(x + self.cell, y + 0.115, words, size=10, color=colour, ha="right")

    def _reason(self, x: float, y: float, reason: str) -> None:
        """Why a method failed, in as many lines as its tile has room for."""
        most = max(2, int((self.tile_height - 0.2) / 0.19))
        for i, line in enumerate(wrapped(f"failed: {reason}", self.cell - 0.28, 9, most)):
            self.text(x + 0.14, y + 0.28 + 0.19 * i, line, size=9, color=SOFT, width=self.cell - 0.2)

    def _legend(self, x: float, y: float, wide: float, values: np.ndarray) -> None:
        """The colours of the combined map with their values."""
        axes = self.axes(x, y, wide, 0.1)
        axes.imshow(self.colours.opaque[None], aspect="auto", interpolation="nearest")
        axes.set_axis_off()
        limit = short(robust_limit(values))
        self.text(x + wide, y + 0.28, limit, size=9, color=SOFT, ha="right")
        if self.colours.signed:
            self.text(x, y + 0.28, "−" + limit, size=9, color=SOFT)
            self.text(x + wide / 2, y + 0.28, "0", size=9, color=SOFT, ha="center")
        else:
            self.text(x, y + 0.28, "0", size=9, color=SOFT)

    def _caption(self, x: float, words: str) -> None:
        """The title of a large picture."""
        self.text(x, self.top - 0.11, words, size=10.5, weight="bold", color=ACCENT if "consensus" in words else INK)

    def _over(self, image: np.ndarray, values: np.ndarray) -> np.ndarray:
        """A map (h, w) over a picture (H, W, 3)."""
        return self.colours.over(image, _resized(values, image.shape[:2]))

    # -- primitives, in inches from the top left -----------------------------------------------------------------------

    def axes(self, x: float, y: float, wide: float, high: float) -> Any:
        """New axes in a rectangle. Matplotlib counts from the bottom, in shares of the figure."""
        box = (x / WIDTH, 1 - (y + high) / self.height, wide / WIDTH, high / self.height)
        return self.figure.add_axes(box)

    def _outline(self, axes: Any, shape: tuple[int, ...]) -> None:
        """Lines around what is certain: solid where it raises the score, dashed where it lowers it."""
        if self.entry.certain is None:
            return
        signs = surface(self.entry.certain)
        if signs is None:
            return
        signs = _resized(np.sign(signs), shape)
        for sign, line in ((1, "solid"), (-1, "dashed")):
            inside = (signs == sign).astype(np.float64)
            if inside.any():
                axes.contour(inside, levels=[0.5], colors=[INK], linewidths=1.2, linestyles=[line])

    def picture(self, x: float, y: float, wide: float, high: float, rgb: np.ndarray, edge: str = "none") -> Any:
        """A picture (H, W, 3) as large as a rectangle allows, with its own ratio of sides unless maps are stretched."""
        ratio = rgb.shape[0] / rgb.shape[1]
        inner_wide = wide
        inner_high = high
        if not self.stretched:
            inner_wide = min(wide, high / ratio)
            inner_high = min(high, wide * ratio)
        axes = self.axes(x, y, inner_wide, inner_high)
        # Smoothing would blur the few places of a stretched map into each other.
        axes.imshow(np.clip(rgb, 0, 1), aspect="auto", interpolation="nearest" if self.stretched else "antialiased")
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(visible=edge != "none", edgecolor=edge, linewidth=1.5)
        return axes

    def bars(
        self, x: float, y: float, wide: float, high: float, values: np.ndarray, errors: np.ndarray | None = None
    ) -> Any:
        """A map's values at the features that the combined map chooses, as horizontal bars with errors."""
        axes = self.axes(x, y, wide, high)
        chosen = values.ravel().astype(np.float64)[top_features(self.entry)]
        known = np.nan_to_num(chosen)
        axes.barh(range(len(chosen)), known, height=0.72, color=[COOL if v < 0 else ACCENT for v in known])
        if errors is not None:
            # Twice the standard error to either side: about 95 %, each feature by itself.
            reach = 2 * np.nan_to_num(errors.ravel().astype(np.float64)[top_features(self.entry)])
            axes.errorbar(known, range(len(chosen)), xerr=reach, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
        for row in np.flatnonzero(~np.isfinite(chosen)):
            axes.text(0, row, " not a number", fontsize=9, va="center", color=SOFT)
        axes.axvline(0, color=SOFT, linewidth=0.8)
        limit = np.abs(known).max(initial=0) or 1.0
        left = -1.05 * limit if (known < 0).any() else 0
        # The first feature is at the top: the vertical axis points downwards.
        axes.set(xlim=(left, 1.05 * limit), ylim=(len(chosen) - 0.4, -0.6), xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_visible(False)
        return axes

    def rectangle(self, x: float, y: float, wide: float, high: float, color: str) -> None:
        """A filled rectangle, of which ``y`` is the top."""
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
        """A line of text with its baseline at ``y``, shortened to ``width``; ``style`` is matplotlib's."""
        # parse_math: a "$" in a name is not the beginning of a formula.
        style = {"color": INK, "ha": "left", "va": "baseline", "parse_math": False, **style}
        words = drawable(fit(words, width, size, weight))
        self.figure.text(x / WIDTH, 1 - y / self.height, words, fontsize=size, fontweight=weight, **style)


def _measured(row: Row, criterion: Criterion) -> str:
    """The fresh value ± its standard error."""
    cell = row.cells[criterion.key]
    if cell.fresh is None:
        return MISSING
    if cell.exact:
        return f"{minus(short(cell.fresh))} exact"
    return minus(with_error(cell.fresh, cell.stderr))


def _compared(table: list[Row]) -> list[Criterion]:
    """The criteria that small pictures show: one of robustness, and the correlation."""
    shown = {criterion.key: criterion for criterion in shown_criteria(table)}
    known = {criterion.key: criterion for criterion in CRITERIA} | shown
    robust = "noise_over_signal" if "noise_over_signal" in shown else "relative_sensitivity"
    return [known[robust], known["faithfulness_correlation"]]


def _resized(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A map (h, w) on the grid of a picture of this ``shape``, by the nearest value."""
    rows_at = np.arange(shape[0]) * values.shape[0] // shape[0]
    columns_at = np.arange(shape[1]) * values.shape[1] // shape[1]
    return values[rows_at[:, None], columns_at]
