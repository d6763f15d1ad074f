"""Draws docs/speed.png from a result of benchmarks/speed.py: what is left to gain, against draws, and what the rule sees.

Run: python docs/make_speed.py FILE.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

INK, SOFT, LEAD, COOL = "#1b1b1f", "#5f5f6b", "#b3315b", "#2166ac"
UNITS = {"robust": "neighbours", "faith": "masks"}
TOLERANCE = 0.02


def draw(result: dict, path: Path) -> None:
    figure = Figure(figsize=(9, 3.6), dpi=160, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, points) in zip(figure.subplots(1, 2), result["curves"].items(), strict=True):
        draws = [p["draws"] for p in points]
        above = [100 * p["above_optimum"] for p in points]
        error = [100 * (p["stderr"] or 0) for p in points]
        axes.errorbar(draws, above, error, color=LEAD, marker="o", capsize=3, label="above the optimum, fresh draws")
        seen = [(p["draws"], 100 * p["regret"]) for p in points if p["regret"] is not None]
        axes.plot(*zip(*seen, strict=True), color=COOL, marker="s", label="cross-fitted regret")
        axes.axhline(100 * TOLERANCE, color=SOFT, linewidth=1, linestyle=(0, (5, 4)))
        axes.set_xscale("log", base=2)
        axes.set_xticks(draws, [str(d) for d in draws], color=INK)
        axes.minorticks_off()
        axes.set_ylim(bottom=min(0, *above))
        axes.set_xlabel(UNITS[name], color=INK)
        axes.set_ylabel("per cent", color=INK)
        axes.set_title(f"{name}, mean of {result['n']} photographs", color=INK, fontsize=11)
        axes.legend(frameon=False, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    with Image.open(path) as image:
        flat = image.convert("RGB").quantize(48, dither=Image.Dither.NONE)
    flat.save(path, optimize=True)


if __name__ == "__main__":
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).with_name("speed.png")
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), out)
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")
