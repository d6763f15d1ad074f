"""The page that recipes/rar.py leaves: a table with standard errors, curves, example maps under attack. One HTML file."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from torch import Tensor

from consilience.report.colours import palette
from consilience.report.pixels import data_url, photo_png

COLOURS = {"natural": "#777777", "madry": "#0072b2", "ig_norm": "#d55e00", "ig_sum_norm": "#009e73"}
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left } td, th:first-child { white-space: nowrap }
td small { color: #595959; display: block }
caption { text-align: left; color: #595959 }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem }
svg { width: 100%; height: auto }
.key span { margin-right: 1.2rem } .key i { display: inline-block; width: 1.4rem; height: 3px; margin-right: .4rem }
.wide { overflow-x: auto } .maps { font-size: .8rem }
.maps img { width: 4.6rem; image-rendering: pixelated; display: block; margin: auto }
.maps th, .maps td { text-align: center !important; padding: .15rem; vertical-align: top }
"""
METRICS = {
    "NA": ("NA", "accuracy, %", 100), "AA": ("AA", "accuracy under PGD, %", 100), "IN": ("IN", "top-k kept, %", 100),
    "CO": ("CO", "Kendall's τ", 1), "IN common": ("IN", "of images all classify correctly, %", 100),
    "CO common": ("CO", "of images all classify correctly", 1),
}  # fmt: skip
CURVES = {
    "train/loss": "objective, training", "val/loss": "objective, validation", "val/accuracy": "accuracy, validation",
    "train/task": "task part", "train/ig_norm": "‖IG‖₁ part", "probe/AA": "AA, probe", "probe/IN": "IN, probe",
    "probe/CO": "CO, probe",
}  # fmt: skip


def page(
    title: str,
    about: str,
    titles: Mapping[str, str],
    rows: Sequence[Mapping],
    logs: Mapping[str, Sequence[Path]],
    tensors: Mapping[str, Tensor],
    classes: Sequence[str],
) -> str:
    """The whole page as HTML.

    Args:
        title: its heading.
        about: the paragraph below it.
        titles: objective → its name for people.
        rows: of the table, with "objective", "metric", "value", "stderr" and "n".
        logs: objective → Lightning's metrics.csv files.
        tensors: the images "x" and their classes "y"; for each objective its ".x", ".clean", ".map" and ".tau".
        classes: the classes' names.
    """
    names = list(dict.fromkeys(row["objective"] for row in rows))
    curves = {name: curve(files) for name, files in logs.items()}
    key = "".join(f'<span><i style="background:{COLOURS[name]}"></i>{escape(titles[name])}</span>' for name in names)
    plots = "".join(plot(label, {n: curves[n].get(column, []) for n in names}) for column, label in CURVES.items())
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1><p>{escape(about)}</p>"
        f'<div class="wide">{table(rows, names, titles)}</div>'
        f'<h2>Training</h2><p class="key">{key}</p><div class="curves">{plots}</div>'
        f"<h2>Attributions under attack</h2>{examples(tensors, names, titles, classes)}</body></html>\n"
    )


def table(rows: Sequence[Mapping], names: Sequence[str], titles: Mapping[str, str]) -> str:
    """One line for each objective, a column for each metric."""
    cells = {(row["objective"], row["metric"]): row for row in rows}
    head = "".join(f"<th>{short}<br><small>{escape(long)}</small></th>" for short, long, _ in METRICS.values())
    body = ""
    for name in names:
        body += f"<tr><td>{escape(titles[name])}</td>"
        for metric, (_, _, unit) in METRICS.items():
            row = cells[name, metric]
            digits = 1 if unit == 100 else 3
            if not row["n"]:
                body += "<td>no images</td>"
                continue
            value = f"{unit * row['value']:.{digits}f}"
            error = f"{unit * row['stderr']:.{digits}f}"
            body += f"<td>{value} <small>± {error}, n = {row['n']}</small></td>"
        body += "</tr>"
    return (
        "<table><caption>On test images, one seed; ± the standard error over images. IN and CO: the worst of the attack's "
        f"restarts, over correctly classified images.</caption><tr><th>training</th>{head}</tr>{body}</table>"
    )


def curve(files: Sequence[Path]) -> dict[str, list[tuple[float, float]]]:
    """{column: (epoch, value) in order} of one or more of Lightning's metrics.csv; later files overwrite earlier epochs."""
    columns: dict[str, dict[float, float]] = {}
    for file in files:
        with file.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                for column, value in row.items():
                    if column in CURVES and value:
                        columns.setdefault(column, {})[float(row["epoch"])] = float(value)
    return {column: sorted(points.items()) for column, points in columns.items()}


def plot(label: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """One column's curves by epoch, a line for each objective; "" where there is none."""
    points = np.array([point for line in lines.values() for point in line if np.isfinite(point[1])])
    if not len(points):
        return ""
    left, low = points.min(0)
    right, high = points.max(0)
    wide = max(right - left, 1)
    tall = (high - low) or 1  # a curve that is constant is drawn at the bottom
    drawn = ""
    for name, line in lines.items():
        path = " ".join(f"{40 + 250 * (x - left) / wide:.1f},{130 - 110 * (y - low) / tall:.1f}" for x, y in line)
        drawn += f'<polyline fill="none" stroke="{COLOURS[name]}" stroke-width="1.6" points="{path}"/>' if line else ""
    marks = f'<text x="36" y="134" text-anchor="end">{low:.3g}</text><text x="36" y="24" text-anchor="end">{high:.3g}</text>'
    return (
        f'<svg viewBox="0 0 300 150" role="img" aria-label="{escape(label)} by epoch" font-size="10">'
        f'<text x="40" y="12" font-size="12">{escape(label)}</text><path d="M40 20V130H290" fill="none" stroke="#999"/>'
        f'{marks}<text x="290" y="145" text-anchor="end">epoch {right:g}</text>{drawn}</svg>'
    )


def examples(
    tensors: Mapping[str, Tensor], names: Sequence[str], titles: Mapping[str, str], classes: Sequence[str]
) -> str:
    """The images, and for each objective the map, the attacked image and its map."""
    if not len(tensors["x"]):
        return "<p>No image is classified correctly by all models.</p>"
    head = "".join(f'<th colspan="3">{escape(titles[name])}</th>' for name in names)
    under = "<th>map</th><th>attacked image</th><th>its map</th>" * len(names)
    body = ""
    for i in range(len(tensors["x"])):
        body += f"<tr><td>{picture(tensors['x'][i])}{escape(classes[int(tensors['y'][i])])}</td>"
        for name in names:
            clean = tensors[f"{name}.clean"][i]
            moved = tensors[f"{name}.map"][i]
            tau = float(tensors[f"{name}.tau"][i])
            body += (
                f"<td>{heat(clean)}</td><td>{picture(tensors[f'{name}.x'][i])}</td><td>{heat(moved)}τ {tau:.2f}</td>"
            )
        body += "</tr>"
    return (
        "<p>Integrated gradients of the class, absolute, summed over channels; each map has its own colour scale. Attacked "
        "within the ball that training used; the class stays the same.</p>"
        f'<div class="wide maps"><table><tr><th rowspan="2">image</th>{head}</tr><tr>{under}</tr>{body}</table></div>'
    )


def picture(x: Tensor) -> str:
    """An image (C, H, W), grey or in colour."""
    image = x.float().permute(1, 2, 0).numpy()
    if image.shape[2] == 1:
        image = np.repeat(image, 3, 2)
    return _image(image, "image")


def heat(values: Tensor) -> str:
    """A map (H, W) in colours."""
    return _image(palette(signed=False).paint(values.float().numpy()), "attribution map")


def _image(pixels: np.ndarray, words: str) -> str:
    return f'<img src="{data_url(photo_png(pixels))}" alt="{words}">'
