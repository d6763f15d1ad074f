"""``consilience methods``: lists methods, metrics and measures; with a name, its card; ``--markdown``, all cards as a page."""

from __future__ import annotations

import argparse
import inspect
from typing import Any

from ..combine.aggregations import AGGREGATIONS
from ..combine.named import NAMED_OBJECTIVES, OBJECTIVES
from ..errors import choose
from ..explainers import METHODS, PRESETS
from ..measures import MEASURES, SETS
from ..metrics import METRICS
from ..statistics.criteria import CRITERIA, HIGHER_IS_BETTER
from .terminal import say

OBJECTIVE_LINES = {
    "posterior": "methods as a prior, masks as data: a mixture and what masks add to it, with an error for every feature",
    "ridge": "ridge regression on the masks alone, as LIME",
    "opt": "the most robust mixture that is at least as faithful as the best single method",
    "robust": "least noise over signal, wᵀGw / wᵀCw: change under noise beside change with the question",
    "faith": "greatest correlation of the attribution taken away with the fall of the score",
    "paper_robust": "AGG's: least absolute sensitivity, which favours maps of small norm",
    "paper_faith": "AGG's: least infidelity E(Σ_mask φ − Δf)², as printed",
    "paper_opt": "AGG's: the sum of both, each matrix divided by its Frobenius norm",
    "paper_code": "the authors' code: weights solved for β·φ, put on the unscaled φ (not what it minimises)",
}
"""Named objectives in one line each."""

CARDS: dict[str, dict[str, Any]] = {"Methods": METHODS, "Metrics": METRICS, "Measures": MEASURES}
"""The tables whose classes have cards, by the heading of their section."""


def run(arguments: argparse.Namespace) -> int:
    """Print what the ``arguments`` ask for; the exit code."""
    if arguments.markdown:
        say(markdown().removesuffix("\n"))
    elif arguments.name:
        say(describe(arguments.name))
    else:
        say(overview())
    return 0


def describe(name: str) -> str:
    """The method, metric, measure, criterion, objective or set of this ``name`` in full."""
    cards = {key: thing for things in CARDS.values() for key, thing in things.items()}
    name = choose("name", name, [*cards, *CRITERIA, *OBJECTIVES, *AGGREGATIONS, *PRESETS, *SETS])
    if name in cards:
        thing = cards[name]
        width = max(len(label) for label, _ in thing.card.lines())
        card = [f"{label:<{width}}  {text}" for label, text in thing.card.lines()]
        call = f"{name}: {thing.__name__}{inspect.signature(thing)}"
        return "\n".join([call, "", *card, "", inspect.getdoc(thing) or ""])
    if name in CRITERIA:
        better = "higher" if name in HIGHER_IS_BETTER else "lower"
        return f"{name} ({better} is better)\n\n{inspect.getdoc(CRITERIA[name])}"
    if name in OBJECTIVE_LINES:
        return f"{name}: {OBJECTIVE_LINES[name]}\n{NAMED_OBJECTIVES.get(name, AGGREGATIONS.get(name))}"
    if name in AGGREGATIONS:
        return f"{name}: {inspect.getdoc(AGGREGATIONS[name])}"
    if name in PRESETS:
        return f"{name}:\n" + "\n".join(f"  {e.name:22} {e}" for e in PRESETS[name])
    return f"{name}: {', '.join(SETS[name])}"


def overview() -> str:
    """Everything there is, one line each."""
    lines = ["Methods"]
    lines += [f"  {name:22} {cls.kind:13} {cls.card.formula}" for name, cls in METHODS.items()]
    lines += ["", "Sets of methods"]
    lines += [f"  {name:22} {', '.join(e.name for e in members)}" for name, members in PRESETS.items()]
    lines += ["", "Objectives (or a sum of criteria, e.g. 'relative_sensitivity + 0.5*infidelity')"]
    lines += [f"  {name:22} {OBJECTIVE_LINES[name]}" for name in OBJECTIVE_LINES]
    lines += ["", "Aggregations that minimise nothing"]
    lines += [
        f"  {name:22} {_first(aggregation)}"
        for name, aggregation in AGGREGATIONS.items()
        if name not in OBJECTIVE_LINES
    ]
    lines += ["", "Criteria of every explanation"]
    for name in CRITERIA:
        better = "higher" if name in HIGHER_IS_BETTER else "lower"
        lines.append(f"  {name:26} {better:6} is better  {_first(CRITERIA[name])}")
    lines += ["", "Measures of an evaluation"]
    for name, measure in MEASURES.items():
        better = f"{measure.card.better} is better" if measure.card.better else ""
        lines.append(f"  {name:26} {better:16} {measure.card.formula}")
    lines += ["", "Sets of measures"]
    for name, members in SETS.items():
        listed = "every measure" if name == "all" else ", ".join(members)
        lines.append(f"  {name:22} {listed}")
    return "\n".join([*lines, "", "`consilience methods NAME` shows one in full."])


def markdown() -> str:
    """Every card, as the page docs/catalogue.md."""
    out = ["# Catalogue", "", "Made by `consilience methods --markdown`: what each number means, beside its name.", ""]
    for section, things in CARDS.items():
        out += [f"## {section}", ""]
        for name, thing in things.items():
            kind = f" ({thing.kind})" if section == "Methods" else ""
            out += [f"### `{name}`{kind}", ""]
            out += [f"- **{label}**: {text}" for label, text in thing.card.lines()] + [""]
    return "\n".join(out)


def _first(thing: object) -> str:
    """The first paragraph of a docstring, on one line."""
    return (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")
