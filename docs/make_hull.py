"""Draws docs/hull.png: mixing attributions is finding the point of a convex hull nearest the origin.

Five residual vectors with three entries (three draws), two independent directions: their span is a plane, so the picture
is the geometry itself, not a sketch of it. Run: python docs/make_hull.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon
from PIL import Image
from scipy.optimize import minimize
from scipy.spatial import ConvexHull

INK, SOFT, LEAD, COOL = "#1b1b1f", "#5f5f6b", "#b3315b", "#2166ac"
# Method j's residual r_j on three draws: coordinates in an orthonormal basis of the plane they span with the origin.
PLANE = np.linalg.qr(np.array([[1.0, 0.2], [0.3, 1.0], [-0.4, 0.6]]))[0]
RESIDUALS = np.array([[-0.75, 1.75], [1.05, 2.35], [3.35, 1.55], [2.75, -0.35], [1.55, -1.0]]) @ PLANE.T


def nearest(residuals: np.ndarray) -> np.ndarray:
    """w on the simplex with the smallest wᵀGw, G = RRᵀ."""
    gram, k = residuals @ residuals.T, len(residuals)
    simplex = {"type": "eq", "fun": lambda w: w.sum() - 1}
    found = minimize(
        lambda w: w @ gram @ w, np.full(k, 1 / k), jac=lambda w: 2 * gram @ w, bounds=[(0, 1)] * k, constraints=simplex,
        options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    assert found.success and found.fun <= gram.diagonal().min(), found
    return found.x


def draw(path: Path) -> None:
    weights = nearest(RESIDUALS)
    points = RESIDUALS @ PLANE  # exact: the residuals lie in this plane
    best, mean = weights @ points, points.mean(0)
    radius = float(np.hypot(*best))
    single = points[np.argmin(np.hypot(*points.T))]

    figure = Figure(figsize=(8, 5.2), dpi=200, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.add_patch(
        Polygon(points[ConvexHull(points).vertices], facecolor="#f3e3e9", edgecolor="#d9a9ba", linewidth=1.4)
    )
    axes.add_patch(Circle((0, 0), radius, fill=False, edgecolor=LEAD, linewidth=1.2, linestyle=(0, (5, 4))))
    axes.add_patch(
        Circle((0, 0), float(np.hypot(*single)), fill=False, edgecolor="#c9c9d2", linewidth=1, linestyle=(0, (2, 4)))
    )
    for end, colour, width in ((single, "#b9b9c4", 1.1), (mean, COOL, 1.2), (best, LEAD, 2.4)):
        axes.plot(*zip((0, 0), end, strict=True), color=colour, linewidth=width, zorder=3)
    axes.scatter(*points.T, s=64, color=INK, zorder=4)
    axes.scatter(*mean, s=72, color=COOL, zorder=4)
    axes.scatter(*best, s=110, color=LEAD, zorder=5)
    axes.scatter(0, 0, s=90, facecolor="white", edgecolor=INK, linewidth=1.6, zorder=5)

    def say(
        at: np.ndarray, words: str, shift: tuple[float, float], colour: str = INK, size: float = 12, **style: str
    ) -> None:
        axes.annotate(words, at, shift, textcoords="offset points", color=colour, fontsize=size, **style)

    sides = ("right", "center", "left", "left", "center")
    shifts = ((-10, 6), (0, 12), (11, 2), (12, -6), (0, -20))
    for j, (point, shift, side) in enumerate(zip(points, shifts, sides, strict=True)):
        say(point, f"$r_{j + 1}$", shift, size=15, ha=side)

    def error(residual: np.ndarray) -> str:
        return f"error {float(residual @ residual):.2f}"

    say(np.zeros(2), "0: a perfect\nexplanation", (-46, 2), SOFT, ha="right", va="center")
    words = f"optimum  $\\Sigma\\,w_j r_j$\n{error(best)}"
    say(best, words, (38, -30), LEAD, 13, ha="left", va="center", fontweight="bold")
    say(mean, f"mean: centroid\n{error(mean)}", (10, 8), COOL, ha="left", va="center")
    say(single, f"best single method\n{error(single)}", (-34, -12), SOFT, ha="right", va="center")
    say(points[1], "corners: the methods' residuals;  the hull: all their mixtures", (-150, 36), SOFT, ha="left")
    axes.set(xlim=(-3.1, 4.9), ylim=(-2.12, 3.08))
    figure.savefig(path)
    with Image.open(path) as image:
        flat = image.convert("RGB").quantize(48, dither=Image.Dither.NONE)
    flat.save(path, optimize=True)


if __name__ == "__main__":
    out = Path(__file__).with_name("hull.png")
    draw(out)
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")
