"""A whole run as one self-contained page: no file beside it, no network, no script but its own."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from html import escape
from importlib import resources
from typing import Any

import numpy as np

from .colours import MISSING, Palette, background, palette, robust_limit
from .differences import FEWEST
from .entry import Entry, feature_names, surface, top_features
from .pixels import data_url, indexed_png, photo_png, pool
from .plane import plane
from .table import CRITERIA, Cell, Digits, Row, average, rows, shares, short

SIDE = 224  # pixels of an embedded picture


THUMB = 96


GRID = 56  # side of the grids that the browser mixes


def page(entries: Sequence[Entry], title: str, failures: Iterable[tuple[str, str]] = ()) -> str:
    """The report over all entries as HTML; ``failures`` are (name, reason) of inputs that could not be explained."""
    return "".join(pieces(entries, title, failures))


def pieces(entries: Sequence[Entry], title: str, failures: Iterable[tuple[str, str]] = ()) -> Iterator[str]:
    """The same page in pieces, so that a run of any length needs room for one entry: ``entries`` may make each anew."""
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    yield (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_asset('page.css')}</style>\n</head>\n<body>\n"
    )
    yield _header(entries, title, list(failures))
    for i, entry in enumerate(entries, 1):
        yield "\n" + _article(entry, i)
    yield f"\n<script>{script}</script>\n</body>\n</html>\n"


@lru_cache
def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


# -- header ----------------------------------------------------------------------------------------------------------


def _header(entries: Sequence[Entry], title: str, failures: list[tuple[str, str]]) -> str:
    parts = [f"<header><h1>{escape(title)}</h1>"]
    records, links = [], []
    for i, entry in enumerate(entries, 1):
        records.append(entry.record)
        links.append(_link(entry, i) if len(entries) > 1 else "")
    if records:
        parts.append(f"<p>{_summary(records)}</p>")
    parts.append(_failures(failures))
    if len(entries) > 1:
        parts.append('<nav aria-label="Inputs">' + "".join(links) + "</nav>")
        parts.append(f"<h2>All {len(entries)} inputs</h2>")
        parts.append(_table(average(records), f"Criteria averaged over {len(entries)} inputs"))
        parts.append(
            f'<p class="note">Means over the inputs. Fresh draws ± the standard error over the inputs; smaller, the '
            f"fitting draws. ● marks the best on fresh draws.{_fewer(average(records))}</p>"
        )
    if records:
        parts.append(_meanings(records[0]))
        parts.append(_settings(records))
    return "".join(parts) + "</header>"


def _summary(records: list[dict[str, Any]]) -> str:
    first = records[0]
    share = lambda of: sum((_number(r, *of) or 0) / ((r.get("evaluations") or {}).get("inputs") or 1) for r in records)  # noqa: E731
    forward, gradient, seconds = (
        share(("evaluations", "forward")),
        share(("evaluations", "gradient")),
        share(("seconds",)),
    )
    objectives, models = _distinct(records, "objective"), _distinct(records, "model")
    parts = [
        f"{len(records)} {'input' if len(records) == 1 else 'inputs'}",
        f"{len(first['methods'])} methods",
        f"objective <b>{escape(objectives)}</b>",
        f"model {escape(models)}" if models else "",
        f"seed {escape(_distinct(records, 'seed'))}",
        f"{forward:,.0f} forward and {gradient:,.0f} gradient evaluations",
        f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.1f} s",
    ]
    return " · ".join(part for part in parts if part)


def _distinct(records: list[dict[str, Any]], key: str) -> str:
    return ", ".join(dict.fromkeys(str(r[key]) for r in records if r.get(key) is not None))


def _failures(failures: list[tuple[str, str]]) -> str:
    if not failures:
        return ""
    items = "".join(f"<li><b>{escape(str(name))}</b>: {escape(str(reason))}</li>" for name, reason in failures)
    count = "One input" if len(failures) == 1 else f"{len(failures)} inputs"
    return f'<section class="failures"><h2>{count} could not be explained</h2><ul>{items}</ul></section>'


def _link(entry: Entry, i: int) -> str:
    image = ""
    if entry.image is not None:
        image = f'<img alt="" src="{data_url(photo_png(pool(entry.image, THUMB)))}">'
    elif (flat := surface(entry.attribution)) is not None:
        colours = palette(entry.signed)
        image = f'<img alt="" src="{data_url(_map_png(pool(flat, THUMB), colours))}">'
    image = f'<span class="pair">{image}</span>' if image else ""
    return f'<a href="#input-{i}">{image}{escape(entry.name)}</a>'


def _meanings(record: dict[str, Any]) -> str:
    """What each number means, in one sentence each."""
    settings, draws = record.get("settings") or {}, record.get("draws") or {}
    near = settings.get("sensitivity") or (f"radius {settings['radius']}" if "radius" in settings else "the same input")
    share, unit = settings.get("mask_share"), settings.get("mask_unit") or "not recorded"
    masked = f"{shares(share)} of the features" if share else "some of the features"
    masked += f" (one feature: {unit})"
    masked += f" replaced by the {settings['mask_baseline']} baseline" if settings.get("mask_baseline") else " replaced"
    redraw = ", the methods' own noise drawn anew" if settings.get("redraw") else ", the methods' own noise held fixed"
    says = {
        "relative sensitivity": "Mean squared change of the map from the input to random neighbours"
        f" ({near}{redraw}), divided by the map's squared norm. No unit; 0 is a map that never changes, as the uniform map "
        "trivially is; lower is more robust.",
        "average sensitivity": "The same change, not divided: in squared units of the map, so a map with a small norm looks "
        "robust. Lower is more robust, between maps of one scale.",
        "correlation": f"Pearson's correlation, over random masks ({masked}), between the attribution taken away and the fall "
        "of the score, given how much is taken away. From −1 to 1; higher is more faithful.",
        "infidelity": "Mean squared error of the best multiple of that attribution as a prediction of the fall of the score, "
        "over that of a uniform map. Lower is more faithful; a uniform map has 1, and who is above it explains nothing.",
        "fit, fresh": f"The weights were found on the fitting draws ({_draws(draws.get('fit'))}) and judged on fresh ones "
        f"({_draws(draws.get('fresh'))}). The optimum is guaranteed on the fitting draws; only fresh draws certify it.",
    }
    terms = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in says.items())
    return f"<details open><summary>What the numbers mean</summary><dl>{terms}</dl></details>"


def _draws(draws: Any) -> str:
    if not isinstance(draws, dict):
        return "not recorded"
    return f"{draws.get('average_sensitivity', '?')} neighbours, {draws.get('infidelity', '?')} masks"


def _settings(records: list[dict[str, Any]]) -> str:
    first = records[0]
    shown = {"draws": first.get("draws"), **(first.get("settings") or {}), "versions": first.get("versions")}
    same = all(r.get("settings") == first.get("settings") and r.get("draws") == first.get("draws") for r in records)
    note = "" if same else '<p class="note">Those of the first input; others differ, see their explanation.json.</p>'
    return f"<details><summary>Settings and versions</summary>{note}{_definitions(shown)}</details>"


def _definitions(values: dict[str, Any]) -> str:
    parts = []
    for key, value in values.items():
        if value is None or value == {}:
            continue
        inner = _definitions(value) if isinstance(value, dict) else escape(_plain(value))
        parts.append(f"<dt>{escape(str(key))}</dt><dd>{inner}</dd>")
    return f"<dl>{''.join(parts)}</dl>"


def _plain(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


# -- one input -------------------------------------------------------------------------------------------------------


def _article(entry: Entry, i: int) -> str:
    record, table = entry.record, rows(entry.record)
    other = record.get("predicted") != record.get("target")
    verdict = f"<b>{escape(entry.target)}</b>, {escape(entry.score_name)} "
    verdict += escape(short(_number(record, "score")))
    if entry.predicted is not None:
        verdict += f"; the model predicts {escape(entry.predicted)}" if other else ", as the model predicts"
    front = _front(record)
    svg = plane(table, front, f"Relative sensitivity against correlation of every map of {entry.name}")
    parts = [f'<article id="input-{i}" data-input="{i}"><h2>{escape(entry.name)}</h2><p>{verdict}</p>']
    parts.append(_pictures(entry, i, svg, front) if entry.pictured else _features(entry, svg))
    parts.append(f"<h3>Weights and criteria</h3>{_table(table, f'Criteria of every map of {entry.name}')}")
    parts.append(
        '<p class="note">Fresh draws ± standard error; smaller, the fitting draws. ● marks the best on fresh draws; trivial '
        "values do not compete. A dash has its reason on it, and below.</p>"
    )
    parts.append(_certificate(record))
    return "".join(parts) + "</article>"


def _pictures(entry: Entry, i: int, svg: str, front: dict[str, Any] | None) -> str:
    colours = palette(entry.signed)
    flat = surface(entry.attribution)
    assert flat is not None
    shape = entry.image.shape[:2] if entry.image is not None else flat.shape
    ratio = f"aspect-ratio:{shape[1]}/{shape[0]}"
    zero = "#" + "".join(f"{round(255 * float(c)):02x}" for c in colours.zero)
    coarse = " coarse" if max(flat.shape) <= 64 and entry.image is not None else ""
    lead = data_url(_map_png(pool(flat, SIDE), colours))
    parts = [f'<div class="hero{"" if entry.image is not None else " two"}" style="--zero:{zero}">']
    under, control = "", ""
    if entry.image is not None:
        small = pool(entry.image, SIDE)
        size = f'width="{small.shape[1]}" height="{small.shape[0]}"'
        parts.append(
            f'<figure><figcaption>input</figcaption><img {size} style="height:auto" alt="The input: {escape(entry.name)}" '
            f'src="{data_url(photo_png(small))}"></figure>'
        )
        plain = background(small, entry.signed)[..., :1].repeat(3, 2)
        under = f'<img class="photo" alt="" src="{data_url(photo_png(plain))}">'
        control = (
            '<label class="control"><span>photo</span><input class="opacity" type="range" min="0" max="100" value="50" '
            'aria-label="From the photograph to the map"><span>map</span></label>'
        )
    filters = f'style="filter:url(#fade-{i})"' if under else ""
    parts.append(
        f'<figure><figcaption>shown: <b class="shown" aria-live="polite">consensus</b></figcaption>'
        f'<svg class="off" aria-hidden="true"><filter id="fade-{i}" color-interpolation-filters="sRGB"><feComponentTransfer>'
        f'<feFuncA class="fade" type="gamma" amplitude="1" exponent="{1.8 if under else 1}" offset="0"/>'
        f'</feComponentTransfer></filter></svg><div class="stage" style="{ratio}">{under}'
        f'<img class="overlay{coarse}" {filters} alt="Map of consensus for {escape(entry.name)}" src="{lead}">'
        f'<canvas hidden {filters} role="img" aria-label="Map of the chosen point of the front"></canvas></div>{control}'
        f'<p class="note">{_scale_note(flat, colours)}</p></figure>'
    )
    if svg:
        line = " The line is the front on fitting draws." if front else ""
        parts.append(
            '<figure class="map"><figcaption>robust to the left, faithful upwards</figcaption>'
            f'{svg}<p class="note">Fresh draws with standard errors; rings: made from all methods.{line}</p></figure>'
        )
    parts.append("</div>")
    if front:
        parts.append(_explore(entry, front, colours))
    parts.append(_tiles(entry, colours, zero, lead, coarse))
    return "".join(parts)


def _scale_note(flat: np.ndarray, colours: Palette) -> str:
    limit = short(robust_limit(flat))
    ends = f"blue −{limit}, pale 0, red {limit}" if colours.signed else f"black 0, yellow {limit}"
    return f"Colours: {ends} (99.5th percentile of |value|; every map on its own scale)."


def _map_png(flat: np.ndarray, colours: Palette) -> bytes:
    return indexed_png(colours.levels(flat), np.vstack([colours.clear, [*MISSING, 1.0]]))


def _tiles(entry: Entry, colours: Palette, zero: str, lead: str, coarse: str) -> str:
    record, weights = entry.record, entry.weights
    failed = record.get("failed") or {}
    parts = [_tile("consensus", lead, "", coarse, pressed=True)]
    for j in entry.order:
        name = record["methods"][j]
        if name in failed or (flat := surface(entry.maps[j])) is None:
            why = escape(str(failed.get(name, "not shown")))
            parts.append(
                f'<div class="tile none idle"><span class="name">{_breakable(name)}</span>'
                f'<span class="thumb">failed: {why}</span></div>'
            )
            continue
        bar = _bar(weights[j])
        picture = data_url(_map_png(pool(flat, SIDE), colours))
        parts.append(_tile(name, picture, bar, coarse, method=j, idle=not abs(weights[j] or 0) > 5e-4))
    for name, values in entry.extra.items():
        if (flat := surface(values)) is not None:
            parts.append(_tile(name, data_url(_map_png(pool(flat, SIDE), colours)), "", coarse))
    what = 'role="group" aria-label="Maps; choose one to see it large"'
    return f'<div class="tiles" style="--zero:{zero}" {what}>{"".join(parts)}</div>'


def _tile(
    name: str, picture: str, bar: str, coarse: str, method: int | None = None, pressed: bool = False, idle: bool = False
) -> str:
    which = "" if method is None else f' data-method="{method}"'
    image = f'<img class="{coarse.strip()}" alt="Map of {escape(name)}" loading="lazy" src="{picture}">'
    return (
        f'<button type="button" class="tile{" idle" if idle else ""}" data-name="{escape(name)}"{which} '
        f'aria-pressed="{"true" if pressed else "false"}"><span class="name">{_breakable(name)}</span>'
        f'<span class="thumb">{image}</span>{bar}</button>'
    )


def _breakable(name: str) -> str:
    return escape(name).replace("_", "_<wbr>")


def _bar(weight: float | None) -> str:
    if weight is None:
        return ""
    sign = " less" if weight < 0 else ""
    value = "0" if abs(weight) < 0.005 else f"{weight:.2f}".replace("-", "−")
    return (
        f'<span class="weight"><span class="track{sign}"><i style="--w:{min(100.0, 100 * abs(weight)):.1f}%"></i></span>'
        f'<span class="value">{value}</span></span>'
    )


# -- the front -------------------------------------------------------------------------------------------------------


def _front(record: dict[str, Any]) -> dict[str, Any] | None:
    """The record's front with the chosen point replaced by what was chosen: its own weights and fitted values."""
    front = record.get("front")
    if not front or len(front.get("weights") or []) < 2 or not record.get("weights"):
        return None
    at = min(max(int(front.get("chosen") or 0), 0), len(front["weights"]) - 1)
    found = {key: list(front[key]) for key in ("relative_sensitivity", "faithfulness_correlation", "weights")}
    found["weights"][at] = record["weights"]
    for key in ("relative_sensitivity", "faithfulness_correlation"):
        fit = _number(record, "criteria", key, "consensus", "fit")
        found[key][at] = found[key][at] if fit is None else fit
    return {**found, "chosen": at, "incompatibility": front.get("incompatibility")}


def _explore(entry: Entry, front: dict[str, Any], colours: Palette) -> str:
    """The slider along the front, with small grids of every map so that the browser can mix them."""
    grids: list[str | None] = []
    scales: list[tuple[float, float]] = []
    shape: list[int] = [1, 1]
    for values in entry.maps:
        flat = surface(values)
        small = np.nan_to_num(pool(flat, GRID)) if flat is not None else np.zeros((1, 1))
        shape = list(small.shape)
        low, high = float(small.min()), float(small.max())
        step = (high - low) / 255 or 1.0
        grids.append(base64.b64encode(np.rint((small - low) / step).astype(np.uint8).tobytes()).decode("ascii"))
        scales.append((low, step))
    lut = np.rint(np.vstack([colours.clear, [*MISSING, 1.0]]) * 255).astype(np.uint8)
    data = {
        "grids": grids, "scales": scales, "shape": shape, "signed": colours.signed,
        "lut": base64.b64encode(lut.tobytes()).decode("ascii"), "weights": front["weights"], "chosen": front["chosen"],
        "sensitivity": front["relative_sensitivity"], "correlation": front["faithfulness_correlation"],
    }  # fmt: skip
    last = len(front["weights"]) - 1
    lost = front.get("incompatibility")
    conflict = "" if lost is None else (
        f'<p class="soft">Incompatibility {lost:.2f}: the best compromise found loses {lost:.0%} of the best robustness or of '
        "the best correlation; 0 would be a mixture that is best in both.</p>"
    )  # fmt: skip
    return (
        '<div class="explore"><p>Along the front: relative sensitivity <output class="sensitivity"></output>, correlation '
        '<output class="correlation"></output> <span class="soft">(fitting draws; the maps are mixed here, at '
        f"{shape[0]} × {shape[1]}, nothing is recomputed)</span></p>"
        '<div class="control"><span>robust</span>'
        f'<input class="along" type="range" min="0" max="{last}" step="1" value="{front["chosen"]}" '
        'aria-label="Point of the front">'
        f'<span>faithful <button type="button" class="plain reset">reset</button></span></div>{conflict}'
        f'<script type="application/json" class="front-data">{embed(data)}</script></div>'
    )


def embed(data: Any) -> str:
    """JSON that no string in it can end: <, > and & as escapes; numbers that are not finite as null."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(k): clean(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    text = json.dumps(clean(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# -- other parts -----------------------------------------------------------------------------------------------------


def _features(entry: Entry, svg: str) -> str:
    """Maps without two spatial axes: the combined map's 20 largest features as bars, with every method's value as colour."""
    colours, names, record = palette(True), feature_names(entry), entry.record
    chosen = top_features(entry)
    lead = entry.attribution.ravel()[chosen].astype(np.float64)
    limit = float(np.nanmax(np.abs(lead))) if np.isfinite(lead).any() else 1.0
    failed = record.get("failed") or {}
    order = [j for j in entry.order if record["methods"][j] not in failed]
    heads = "".join(f'<th scope="col">{_breakable(record["methods"][j])}</th>' for j in order)
    body = []
    paints = {j: colours.paint(entry.maps[j].ravel()[chosen], robust_limit(entry.maps[j])) for j in order}
    for row, feature in enumerate(chosen):
        share = 100 * abs(float(np.nan_to_num(lead[row]))) / (limit or 1.0)
        bar = f'<span class="signed{" less" if lead[row] < 0 else ""}"><i style="--w:{share:.1f}%"></i></span>'
        cells = []
        for j in order:
            value = float(entry.maps[j].ravel()[feature])
            rgb = "#" + "".join(f"{round(255 * float(c)):02x}" for c in paints[j][row])
            said = short(value) if math.isfinite(value) else "not a number"
            what = f'role="img" title="{said}" aria-label="{said}"'
            cells.append(f'<td><span class="cell" style="background:{rgb}" {what}></span></td>')
        name, total = escape(names[feature]), short(float(lead[row])).replace("-", "−")
        body.append(f'<tr><th scope="row">{name}</th><td>{bar}</td><td>{total}</td>{"".join(cells)}</tr>')
    figure = f'<figure class="map" style="max-width:40rem">{svg}</figure>' if svg else ""
    return (
        '<div class="scroll"><table class="features"><thead><tr><th scope="col">feature</th>'
        '<th scope="col" colspan="2">consensus</th>'
        f"{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        f'<p class="note">The {len(chosen)} features with the largest |consensus| of {entry.attribution.size}. Colours: blue '
        f"below, red above zero, each method on its own scale.</p>{figure}"
    )


def _table(table: list[Row], caption: str) -> str:
    digits = {c.key: Digits([r.cells[c.key].fresh for r in table if not r.cells[c.key].trivial]) for c in CRITERIA}
    heads = "".join(f'<th scope="col">{c.title}<small>{c.direction}</small></th>' for c in CRITERIA)
    groups: tuple[list[str], list[str]] = ([], [])
    for row in table:
        cells = "".join(_cell(row.cells[c.key], digits[c.key]) for c in CRITERIA)
        weight = _bar(row.weight) if not row.failed else f'<abbr title="{escape(row.failed)}">failed</abbr>'
        lead = ' class="lead"' if row.name == "consensus" else ""
        groups[row.derived].append(
            f'<tr{lead} data-name="{escape(row.name)}"><th scope="row" title="{escape(row.name)}">{escape(row.name)}</th>'
            f"<td>{weight}</td>{cells}</tr>"
        )
    bodies = "".join(f"<tbody>{''.join(group)}</tbody>" for group in groups if group)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table><thead><tr>'
        f'<th scope="col">map</th><th scope="col">weight</th>{heads}</tr></thead>{bodies}</table></div>'
    )


def _cell(cell: Cell, digits: Digits) -> str:
    def write(value: float | None) -> str:
        return digits(value).replace("-", "−")

    if cell.fresh is None:
        return f'<td><abbr title="{escape(cell.reason)}">–</abbr><small></small></td>'
    if cell.trivial:
        return f'<td class="soft">{write(cell.fresh)}<small>trivial</small></td>'
    error = f" ± {write(cell.stderr)}" if cell.stderr else ""
    error = " exact" if cell.exact else error
    fit = write(cell.fit) if cell.fit is not None else f'<abbr title="{escape(cell.reason)}">–</abbr>'
    few = f' title="{cell.n} of {cell.of} inputs"' if cell.n < cell.of else ""
    star = "<sup>†</sup>" if few else ""
    best = ' class="best"' if cell.best else ""
    return f"<td{best}{few}>{write(cell.fresh)}{error}{star}<small>{fit}</small></td>"


def _fewer(table: list[Row]) -> str:
    found = any(0 < cell.n < cell.of for row in table for cell in row.cells.values())
    return " † over fewer inputs, as other inputs have no number there." if found else ""


def _certificate(record: dict[str, Any]) -> str:
    reasons = record.get("reasons") or {}

    def number(key: str) -> str:
        value = _number(record, key)
        return (
            short(value)
            if value is not None
            else f'<abbr title="{escape(str(reasons.get(key, "not recorded")))}">–</abbr>'
        )

    resolved = (record.get("measures") or {}).get("relative_sensitivity_resolved") or {}
    held = _number(record, "criteria", "relative_sensitivity", "consensus", "fresh")
    again = short(_number(resolved, "value"))
    if _number(resolved, "stderr") is not None and (resolved.get("n") or 0) >= FEWEST:
        again += f" ± {short(_number(resolved, 'stderr'))}"
    terms = {
        "status": escape(str(record.get("status") or "–")),
        "objective's value": number("value"),
        "gap": f"{number('gap')} <span class=soft>the true optimum on the fitting draws is at most this much better</span>",
        "diversity gain": f"{number('diversity_gain')} <span class=soft>average sensitivity saved by mixing, against the "
        "weighted mean of the parts; never negative for weights ≥ 0</span>",
        "weights solved anew": f"{again} <span class=soft>relative sensitivity when each of {resolved.get('n', 0)} neighbours "
        f"gets weights of its own; {short(held)} with the weights held</span>",
    }
    errors = record.get("completeness_error") or {}
    if errors:
        said = ", ".join(f"{escape(str(name))} {short(_number(errors, name))}" for name in errors)
        terms["completeness error"] = f"{said} <span class=soft>share of f(x) − f(baseline) that the map misses</span>"
    left = "<h3>Certificate</h3><dl>" + "".join(f"<dt>{k}</dt><dd>{v}</dd>" for k, v in terms.items()) + "</dl>"
    missing = {**{f"methods.{k}": v for k, v in (record.get("failed") or {}).items()}, **reasons}
    right = ""
    if missing:
        grouped: dict[str, list[str]] = {}
        for where, reason in missing.items():
            where = where.removesuffix(".fit").removesuffix(".fresh").removesuffix(".stderr")
            places = grouped.setdefault(str(reason), [])
            if where not in places:
                places.append(where)
        items = "".join(f"<dt>{escape(reason)}</dt><dd>{escape(', '.join(w))}</dd>" for reason, w in grouped.items())
        opened = " open" if record.get("failed") else ""
        right = f"<details{opened}><summary>What is missing, and why</summary><dl>{items}</dl></details>"
    return f"{left}{right}"


def _number(record: dict[str, Any], *path: str) -> float | None:
    value: Any = record
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
