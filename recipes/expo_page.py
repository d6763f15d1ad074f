"""The page that recipes/expo.py leaves: a table with factors of improvement, curves, example explanations. One HTML file."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from rar_page import POLICY, STYLE

COLOURS = {"none": "#777777", "fidelity": "#0072b2", "fidelity_1d": "#d55e00"}
METRICS = {
    "MSE": "mean squared error", "accuracy": "share correct", "LIME-NF": "neighbourhood fidelity", "LIME-S": "stability",
    "LIME-x-NF": "samples around x", "LIME-x-S": "samples around x", "MAPLE-NF": "neighbourhood fidelity",
    "MAPLE-S": "stability",
}  # fmt: skip
CURVES = {
    "train/loss": "loss, training", "val/loss": "loss, validation", "val/task": "task part, validation",
    "val/regulariser": "weighted regulariser, validation", "probe/LIME-NF": "LIME-x-NF, probe",
    "probe/LIME-S": "LIME-x-S, probe",
}  # fmt: skip


def page(
    title: str,
    about: str,
    titles: Mapping[str, str],
    rows: Sequence[Mapping],
    logs: Mapping[str, Sequence[Path]],
    features: Sequence[str],
    values: Sequence[Sequence[float]],
    slopes: Mapping[str, Sequence[Sequence[float]]],
) -> str:
    """The whole page as HTML.

    Args:
        title: its heading.
        about: the paragraph below it.
        titles: objective → its name for people.
        rows: of the table, with "objective", "metric", "value" and "stderr".
        logs: objective → Lightning's metrics.csv files.
        features: the columns' names.
        values: the rows that are explained.
        slopes: objective → for each of these rows, the slope of every column.
    """
    names = list(slopes)
    curves = {name: curve(files) for name, files in logs.items()}
    key = "".join(f'<span><i style="background:{COLOURS[name]}"></i>{escape(titles[name])}</span>' for name in names)
    plots = "".join(plot(label, {n: curves[n].get(column, []) for n in names}) for column, label in CURVES.items())
    shown = "".join(example(i, names, titles, features, row, slopes) for i, row in enumerate(values))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1><p>{escape(about)}</p>"
        f'<div class="wide">{table(rows, names, titles)}</div>'
        f'<h2>Training</h2><p>By epoch, on logarithmic axes.</p><p class="key">{key}</p><div class="curves">{plots}</div>'
        "<h2>Explanations of test rows</h2><p>Slopes of LIME's local model with samples around the row, per standard "
        f'deviation of the column: the five largest without regulariser.</p><div class="wide maps">{shown}</div>'
        "</body></html>\n"
    )


def table(rows: Sequence[Mapping], names: Sequence[str], titles: Mapping[str, str]) -> str:
    """One line for each objective, a column for each metric, and the factor by which it is less than without regulariser."""
    cells = {(row["objective"], row["metric"]): row for row in rows}
    metrics = [metric for metric in METRICS if (names[0], metric) in cells]
    head = "".join(f"<th>{metric.replace('-', '‑')}<br><small>{METRICS[metric]}</small></th>" for metric in metrics)
    body = ""
    for name in names:
        body += f"<tr><td>{escape(titles[name])}</td>"
        for metric in metrics:
            row = cells[name, metric]
            plain = cells.get(("none", metric))
            factor = ""
            # The error of the task has no dash in its name, and is not what training is to lower.
            if name != "none" and plain is not None and "-" in metric:
                factor = f"÷ {plain['value'] / row['value']:.3g}"
            body += f"<td>{row['value']:.3g} <small>± {row['stderr']:.1g}</small>{factor}</td>"
        body += "</tr>"
    return (
        "<table><caption>On test rows of one split; ± the standard error over rows; ÷ by what factor less than without "
        f"regulariser.</caption><tr><th>training</th>{head}</tr>{body}</table>"
    )


def example(
    i: int, names: Sequence[str], titles: Mapping[str, str], features: Sequence[str], row: Sequence[float],
    slopes: Mapping[str, Sequence[Sequence[float]]],
) -> str:  # fmt: skip
    """The five largest slopes of the row number ``i``, for each objective."""
    order = np.argsort(-np.abs(slopes[names[0]][i]))[:5]
    head = "".join(f"<th>{escape(titles[name])}</th>" for name in names)
    body = "".join(
        f"<tr><td>{escape(features[j])} = {row[j]:.2f}</td>"
        + "".join(f"<td>{slopes[name][i][j]:+.3f}</td>" for name in names)
        + "</tr>"
        for j in order
    )
    return f"<table><caption>row {i + 1}</caption><tr><th>column, standardised</th>{head}</tr>{body}</table>"


def curve(files: Sequence[Path]) -> dict[str, list[tuple[float, float]]]:
    """{column: (epoch, value) in order} of one or more of Lightning's metrics.csv; later files overwrite earlier epochs."""
    columns: dict[str, dict[float, float]] = {}
    for file in files:
        with file.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                for column in CURVES:
                    if row.get(column):
                        columns.setdefault(column, {})[float(row["epoch"])] = float(row[column])
    return {column: sorted(points.items()) for column, points in columns.items()}


def plot(label: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Values on a logarithmic axis: they are errors."""
    kept = {name: [(x, np.log10(y)) for x, y in line if y > 0] for name, line in lines.items()}
    points = np.array([point for line in kept.values() for point in line])
    if not len(points):
        return ""
    left, low = points.min(0)
    right, high = points.max(0)
    wide = max(right - left, 1)
    tall = (high - low) or 1  # a curve that is constant is drawn at the bottom
    drawn = ""
    for name, line in kept.items():
        path = " ".join(f"{45 + 245 * (x - left) / wide:.1f},{130 - 110 * (y - low) / tall:.1f}" for x, y in line)
        drawn += f'<polyline fill="none" stroke="{COLOURS[name]}" stroke-width="1.6" points="{path}"/>' if line else ""
    marks = "".join(f'<text x="41" y="{y}" text-anchor="end">{10**v:.2g}</text>' for y, v in ((134, low), (24, high)))
    return (
        f'<svg viewBox="0 0 300 150" role="img" aria-label="{escape(label)} by epoch" font-size="10">'
        f'<text x="45" y="12" font-size="12">{escape(label)}</text><path d="M45 20V130H290" fill="none" stroke="#999"/>'
        f'{marks}<text x="290" y="145" text-anchor="end">epoch {right:g}</text>{drawn}</svg>'
    )
