"""``consilience methods``: what there is, one line each; with a name, its whole description."""

from __future__ import annotations

import argparse
import inspect

from ..consensus import OBJECTIVES, TERMS
from ..errors import choose
from ..explainers import METHODS, PRESETS
from ..metrics import AverageSensitivity, Infidelity
from ..quadratic import CRITERIA, HIGHER_IS_BETTER

OBJECTIVE_LINES = {
    "opt": "the most robust mixture that is at least as faithful as the best single method",
    "robust": "least relative sensitivity, wᵀGw / wᵀHw",
    "faith": "greatest correlation of the attribution taken away with the fall of the score",
    "mean": "the plain mean of the maps",
    "var": "the mean divided by the deviation between methods",
    "median": "the median over methods of each feature",
    "rank": "the mean of the features' ranks (Borda count)",
    "weighted": "the mean, each method weighted by 1 / (relative sensitivity · (1 − ρ|ρ|))",
    "paper_robust": "AGG's: least absolute sensitivity, which favours maps of small norm",
    "paper_faith": "AGG's: least infidelity, one scale β for each method",
    "paper_opt": "AGG's: the sum of both, balanced by Frobenius norm",
    "paper_code": "the authors' code: weights solved for β·φ, put on the unscaled φ",
}


def run(arguments: argparse.Namespace) -> int:
    things = {**METHODS, **CRITERIA, "AverageSensitivity": AverageSensitivity, "Infidelity": Infidelity}
    if arguments.name:
        name = choose("name", arguments.name, [*things, *OBJECTIVES, *PRESETS])
        if name in things:
            thing = things[name]
            print(f"{name}{inspect.signature(thing) if inspect.isclass(thing) else ''}\n\n{inspect.getdoc(thing)}")
        elif name in OBJECTIVE_LINES:
            print(f"{name}: {OBJECTIVE_LINES[name]}\n{TERMS.get(name, '')}")
        else:
            print(f"{name}:\n" + "\n".join(f"  {e.name:22} {e}" for e in PRESETS[name]))
        return 0
    print("Methods")
    for name, cls in METHODS.items():
        print(f"  {name:22} {cls.kind:13} {_first(cls)}")
    print("\nSets of methods")
    for name, members in PRESETS.items():
        print(f"  {name:22} {', '.join(e.name for e in members)}")
    print("\nObjectives (or a sum of criteria, e.g. 'relative_sensitivity + 0.5*infidelity')")
    for name in OBJECTIVES:
        print(f"  {name:22} {OBJECTIVE_LINES[name]}")
    print("\nCriteria")
    for name, function in CRITERIA.items():
        print(f"  {name:26} {'higher' if name in HIGHER_IS_BETTER else 'lower'} is better  {_first(function)}")
    return 0


def _first(thing: object) -> str:
    return (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")
