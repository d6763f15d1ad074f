"""The tables of docs/held-out.md: the goals, mean ranks, and every pair's numbers, from the stored file alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from consilience.results.evaluation import Evaluation
from consilience.statistics.paired import holm

CORRELATION = "faithfulness_correlation"
FAMILIES: dict[str, tuple[str, ...]] = {
    "fresh masks": (CORRELATION,),
    "removal": ("road_combined", "deletion", "insertion", "sensitivity_n"),
    "mosaics": ("relevance_mass", "relevance_rank", "pointing_game"),
    "stability": ("max_sensitivity", "noise_over_signal"),
    "sanity": ("random_logit", "mprt"),
}
"""What measures are about. Those of "removal" are the faithfulness measures that nothing was fitted to."""

FAITHFULNESS = (*FAMILIES["fresh masks"], *FAMILIES["removal"])

PROPOSED = "proposed default"
"""The posterior of the default sets, with mask units of 64 patches for images. Of small images and others these are the usual
units, so it is ``posterior (default set)`` there."""

COARSE = "posterior 1/8 (default set)"

CANDIDATES = (
    PROPOSED,
    "posterior (default set)", "posterior", "posterior (standard)", "opt", "faith", "robust", "paper_opt", "best_single",
    "mean", "masks alone", "ridge", "kernel_shap", "lime",
)  # fmt: skip
"""Rows that could be the default, or be used in its place."""

ASIDE = ("|abs|", "(without gradients)", "(three)", "(smooth)", "(contributions)", "ridge 1/", "posterior 1/")
"""Parts of the names of rows that answer a question of their own, on some of the inputs; they are not ranked."""

QUESTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "Signed maps beside absolute ones": tuple(
        (name, f"{name} |abs|") for name in ("faith", "opt", "robust", "best_single", "mean")
    ),
    "With a cheap perturbation method, beside the methods of gradients alone": (
        ("posterior", "posterior (standard)"),
        ("opt", "opt (standard)"),
        ("faith", "faith (standard)"),
        ("best_single", "best_single (standard)"),
        ("mean", "mean (standard)"),
    ),
    "Other sets of methods beside all": tuple(
        (f"posterior ({name})", "posterior")
        for name in ("default set", "three", "without gradients", "smooth", "contributions")
    ),
    "Detail inside the units": (("posterior", "posterior even"), (PROPOSED, "posterior even")),
    "Mask units of one size, as a share of the side, beside the default scales": (
        ("ridge 1/7", "ridge"),
        ("ridge 1/14", "ridge"),
        ("posterior 1/8 (default set)", "posterior (default set)"),
        ("posterior 1/16 (default set)", "posterior (default set)"),
    ),
    "The posterior beside its ends": (
        ("posterior", "faith"),
        ("posterior", "masks alone"),
        (PROPOSED, "faith (default set)"),
        (PROPOSED, "best_single (default set)"),
        (PROPOSED, "masks alone"),
        (PROPOSED, "kernel_shap"),
        (PROPOSED, "lime"),
        (PROPOSED, "opt"),
    ),
}
"""What the rows are asked about two at a time."""

LEVEL = 0.05
FLIPS = 2000
"""Sign flips of each test, where there are too many inputs for all of them: a page has thousands of tests."""


def evaluations(result: Mapping[str, Any]) -> dict[str, Evaluation]:
    """Pair → its numbers, as the library's own kind of table."""
    found = {}
    for pair in result["pairs"]:
        rows = [row for row in result["rows"] if row["pair"] == pair]
        methods = tuple(dict.fromkeys(row["method"] for row in rows))
        measures = tuple(dict.fromkeys(row["measure"] for row in rows))
        better = {row["measure"]: row["better"] for row in rows}
        count = len(rows[0]["values"])
        values = {name: np.full((count, len(methods)), np.nan) for name in measures}
        for row in rows:
            given = [np.nan if value is None else value for value in row["values"]]
            values[row["measure"]][:, methods.index(row["method"])] = given
        source = COARSE if COARSE in methods else "posterior (default set)"
        if source in methods:
            for name, numbers in values.items():
                values[name] = np.hstack([numbers, numbers[:, [methods.index(source)]]])
            methods = (*methods, PROPOSED)
        found[pair] = Evaluation(methods, measures, better, list(range(count)), values)
    return found


@dataclass(frozen=True)
class Behind:
    """One row beside the best one of a measure.

    Args:
        measure: its name.
        best: the row with the best mean.
        difference: row − best, in the measure's units.
        p: of the sign-flip test, corrected over the measures of a pair.
        better: the measure's direction.
    """

    measure: str
    best: str
    difference: float
    p: float
    better: str

    @property
    def significant(self) -> bool:
        """Whether the row is behind, and not by chance alone."""
        worse = self.difference < 0 if self.better == "higher" else self.difference > 0
        return worse and self.p <= LEVEL


def ranked(row: str) -> bool:
    """Whether a row is one of those that are ranked."""
    return not any(part in row for part in ASIDE)


def means(evaluation: Evaluation, measure: str) -> dict[str, float]:
    """Row → mean, of the rows that are ranked and have a number for most inputs."""
    numbers = {row: each for row, each in evaluation[measure].items() if ranked(row)}
    most = max(int(np.isfinite(each).sum()) for each in numbers.values())
    full = {row: each for row, each in numbers.items() if np.isfinite(each).sum() == most}
    return {row: float(np.nanmean(each)) for row, each in full.items()}


def ordered(evaluation: Evaluation, measure: str) -> list[str]:
    """Rows, the best first."""
    found = means(evaluation, measure)
    sign = -1 if evaluation.better[measure] == "higher" else 1
    return sorted(found, key=lambda row: sign * found[row])


def behind(evaluation: Evaluation, row: str, measures: Sequence[str]) -> list[Behind]:
    """The row beside the best of each measure, by the library's paired comparison, Holm-corrected over the measures.

    The best is chosen on the very numbers that are compared, which is against the row.
    """
    found = []
    for measure in measures:
        if measure not in evaluation.measures:
            continue
        best = ordered(evaluation, measure)[0]
        (each,) = evaluation.compare(row, best, measure, draws=FLIPS)
        found.append((measure, best, each))
    corrected = holm(np.array([each.p for _, _, each in found]))
    return [
        Behind(measure, best, each.difference, float(p), each.better)
        for (measure, best, each), p in zip(found, corrected, strict=True)
    ]


def shares(evaluation: Evaluation, measure: str) -> dict[str, float]:
    """Row → its rank, 0 for the best and 1 for the last."""
    order = ordered(evaluation, measure)
    return {row: place / max(1, len(order) - 1) for place, row in enumerate(order)}


def contest(tables: Iterable[Evaluation], a: str, b: str) -> dict[str, list[int]]:
    """Family → in how many comparisons (pair × measure) ``a`` is better than ``b`` on the same inputs, significantly better,
    significantly worse (corrected over a pair's measures), and how many there are."""
    found: dict[str, list[int]] = {}
    for evaluation in tables:
        if not {a, b} <= set(evaluation.rows):
            continue
        for each in evaluation.compare(a, b, draws=FLIPS):
            if not each.n:
                continue
            family = next(name for name, measures in FAMILIES.items() if each.measure in measures)
            better = each.difference > 0 if each.better == "higher" else each.difference < 0
            significant = each.p_holm <= LEVEL
            counts = found.setdefault(family, [0, 0, 0, 0])
            for place, yes in enumerate((better, better and significant, significant and not better, True)):
                counts[place] += yes
    return found


def mean_ranks(tables: Iterable[Evaluation]) -> dict[str, dict[str, float]]:
    """Row → family → mean rank over pairs and the family's measures; "all": over all measures and pairs."""
    collected: dict[str, dict[str, list[float]]] = {}
    for table in tables:
        for family, measures in FAMILIES.items():
            for measure in measures:
                if measure not in table.measures:
                    continue
                for row, share in shares(table, measure).items():
                    each = collected.setdefault(row, {})
                    each.setdefault(family, []).append(share)
                    each.setdefault("all", []).append(share)
    return {
        row: {family: float(np.mean(numbers)) for family, numbers in each.items()} for row, each in collected.items()
    }


def gain(tables: Iterable[Evaluation], row: str, other: str) -> float:
    """The row's correlation on fresh masks over that of another, mean over pairs; ``other``: a row, or "hindsight", the method
    of a pair with the largest correlation."""
    ratios = []
    for table in tables:
        if CORRELATION not in table.measures:
            continue
        found = means(table, CORRELATION)
        best = max(value for name, value in found.items() if name in SINGLES) if other == "hindsight" else found[other]
        ratios.append(found[row] / best)
    return float(np.mean(ratios))


SINGLES = (
    "saliency", "input_x_gradient", "integrated_gradients", "smoothgrad", "vargrad", "guided_backprop", "deeplift",
    "grad_cam", "feature_ablation", "shapley_sampling",
)  # fmt: skip
"""Single methods that are members of mixtures."""


# -- Markdown ----------------------------------------------------------------------------------------------------------


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A Markdown table, and an empty line."""
    lines = [heads, ["---"] * len(heads), *rows]
    return [*("| " + " | ".join(map(str, line)) + " |" for line in lines), ""]


def number(value: float) -> str:
    """Three significant digits, without an exponent where that is readable."""
    if not np.isfinite(value):
        return "–"
    return f"{value:.3g}"


def goals(tables: Mapping[str, Evaluation]) -> list[str]:
    """The goals of the benchmark for each candidate."""
    ranks = mean_ranks(tables.values())
    rows = []
    for row in CANDIDATES:
        having = {pair: each for pair, each in tables.items() if row in each.rows}
        if not having:
            continue
        judged = [each for table_ in having.values() for each in behind(table_, row, FAITHFULNESS)]
        held_out = [each for each in judged if each.measure != CORRELATION]
        lost = sum(each.significant for each in held_out)
        lost_all = sum(each.significant for each in judged)
        ratios = [gain(having.values(), row, other) for other in ("best_single (standard)", "best_single", "hindsight")]
        place = sorted(ranks, key=lambda name: ranks[name]["all"]).index(row) + 1
        rows.append(
            [
                f"`{row}`",
                f"{lost} of {len(held_out)}",
                f"{lost_all} of {len(judged)}",
                f"{ranks[row]['all']:.3f} ({place}. of {len(ranks)})",
                " / ".join(f"{ratio:.2f}" for ratio in ratios),
            ]
        )
    heads = [
        "candidate", "significantly behind the best row: removal", "with fresh masks", "mean rank, 0 best (place)",
        "correlation on fresh masks, × that of `best_single` of gradients alone / of all / best method in hindsight",
    ]  # fmt: skip
    return table(heads, rows)


def question_tables(tables: Mapping[str, Evaluation]) -> list[str]:
    """What the rows say two at a time."""
    lines = []
    for question, duels in QUESTIONS.items():
        rows = []
        for a, b in duels:
            counts = contest(tables.values(), a, b)
            if counts:
                cells = [
                    "{0} of {3} (+{1} −{2})".format(*counts[family]) if family in counts else "–" for family in FAMILIES
                ]
                rows.append([f"{a} beside {b}".replace("|", "\\|"), *cells])
        if rows:
            lines += [f"{question}:", "", *table(["better on", *FAMILIES], rows)]
    return lines


def rank_table(tables: Mapping[str, Evaluation]) -> list[str]:
    """Mean ranks of every row, the best first."""
    ranks = mean_ranks(tables.values())
    families = [*FAMILIES, "all"]
    rows = []
    for row in sorted(ranks, key=lambda name: ranks[name]["all"]):
        rows.append([row.replace("|", "\\|"), *(number(ranks[row].get(family, np.nan)) for family in families)])
    return table(["row", *families], rows)


def pair_table(evaluation: Evaluation) -> list[str]:
    """Every number of a pair: mean ± standard error, the best in bold, * where a row is significantly behind the best."""
    summary = evaluation.summary()
    first = {measure: ordered(evaluation, measure)[0] for measure in evaluation.measures}
    rows = []
    for row in evaluation.rows:
        lost = set()
        if ranked(row):
            lost = {each.measure for each in behind(evaluation, row, evaluation.measures) if each.significant}
        cells = []
        for measure in evaluation.measures:
            about = summary[measure][row]
            text = number(about["mean"])
            if np.isfinite(about["mean"]) and np.isfinite(about["stderr"]):
                text = f"{text} ± {about['stderr']:.2g}"
            if about["n"] and about["n"] < len(evaluation) and not ranked(row):
                text += f" (n = {about['n']})"
            if row == first[measure]:
                text = f"**{text}**"
            cells.append(text + ("*" if measure in lost else ""))
        rows.append([row.replace("|", "\\|"), *cells])
    heads = [f"{measure} ({evaluation.better[measure]})" for measure in evaluation.measures]
    return table(["row", *heads], rows)


def pairs_table(result: Mapping[str, Any]) -> list[str]:
    """What was explained, and what it cost."""
    rows = []
    for name, about in result["pairs"].items():
        counts = about["evaluations"]
        failed = ", ".join(about["failed"]) or "none"
        cost = f"{counts['forward']:,} and {counts['gradient']:,}".replace(",", " ")
        rows.append([name, about["n"], about["note"], about["masks"], failed, cost, f"{about['seconds']} s"])
    heads = ["pair", "n", "model", "masks to fit", "methods that fail", "forwards and gradients", "time"]
    return table(heads, rows)


def shown(result: Mapping[str, Any]) -> str:
    """The tables of docs/held-out.md."""
    tables = evaluations(result)
    lines = [f"{result['machine']}.", "", *pairs_table(result)]
    lines += [
        "**The goals.** Best or not significantly behind the best row on every faithfulness measure of every pair:",
        "",
    ]
    lines += goals(tables)
    lines += ["**Mean ranks** over pairs and measures, 0 for the best row and 1 for the last:", "", *rank_table(tables)]
    for modality in dict.fromkeys(about["modality"] for about in result["pairs"].values()):
        own = {pair: each for pair, each in tables.items() if result["pairs"][pair]["modality"] == modality}
        if len(own) < len(tables):
            lines += [f"Mean ranks, {modality} only:", "", *rank_table(own)]
    lines += [
        "**Two rows at a time**, on the inputs that both have: on how many comparisons (pair and measure) the first one is "
        "better (+ significantly better, − significantly worse, corrected over a pair's measures):",
        "",
        *question_tables(tables),
    ]
    for pair, each in tables.items():
        lines += [f"### {pair}", "", *pair_table(each)]
    return "\n".join(lines).strip()
