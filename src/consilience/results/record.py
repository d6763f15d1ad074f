"""The record of one input, which ``explanation.json`` holds: everything about an explanation but its arrays.

Every number that is missing or not finite is None, and "reasons" tells why, by its place in the record.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..report.verdict import verdict
from ..statistics.criteria import PARTS
from .difference import recorded
from .files import SCHEMA, versions

if TYPE_CHECKING:
    from .explanation import Explanation

UNJUDGED = "not judged: quick=True makes no fresh draws; refine() of the result does"
"""The reason why fresh values are missing."""

UNFITTED = "no fitting draws of this kind were made: the objective does not look at them"
"""The reason why values on the fitting draws are missing."""

NAME = 80
"""The most letters of a name that is made from a text."""


def as_json(value: Any) -> Any:
    """``value`` as it would come back from a JSON file: tuples are lists, numbers of arrays are plain ones."""
    if isinstance(value, Mapping):
        return {str(name): as_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(each) for each in value]
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.tolist()
    return value


def record_of(explanation: Explanation, i: int) -> dict[str, Any]:
    """The record of input ``i`` of an ``explanation``.

    For a loaded result it is the record that was read, with what :meth:`Explanation.describe` has added since.
    """
    if explanation.stored:
        return _stored(explanation, i)
    reasons = {f"methods.{name}": why for name, why in explanation.failed.items()}
    numbers = _Numbers(reasons)
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "input": _input(explanation, i),
        "model": explanation.about.get("model"),
        **_outputs(explanation, i, numbers),
        "seed": explanation.seed,
        "methods": list(explanation.methods),
        "kinds": list(explanation.kinds),
        "objective": explanation.objective,
        **_solution(explanation, i, numbers),
        "draws": _draws(explanation, i, reasons),
        "criteria": _criteria(explanation, i, numbers),
        "differences": recorded(explanation.differences, i, reasons),
        "over_uniform": recorded(explanation.over_uniform, i, reasons, "over_uniform"),
        "measures": {"relative_sensitivity_resolved": _resolved(explanation, i, numbers)},
        "completeness_error": {
            name: numbers.read(error[i], f"completeness_error.{name}", "f(x) equals f(baseline)")
            for name, error in explanation.completeness.items()
        },
        "failed": dict(explanation.failed),
        "warnings": list(explanation.warnings),
        "settings": explanation.settings,
        "evaluations": {
            "forward": explanation.counts.forward,
            "gradient": explanation.counts.gradient,
            "inputs": len(explanation),
        },
        "seconds": explanation.seconds,
        "versions": versions(),
    }
    if explanation.posterior is not None:
        record["posterior"] = _posterior(explanation.posterior[i], numbers)
    front = _front(explanation, i, numbers)
    if front is not None:
        record["front"] = front
    if record["model"] is None:
        reasons["model"] = "not named by the caller"
    # Last, when every part has added its own.
    record["reasons"] = reasons
    record["verdict"] = verdict([record])
    return record


def name_of(explanation: Explanation, i: int) -> str:
    """The name of input ``i`` of an ``explanation``: the given one, the beginning of its text, or its place."""
    names = explanation.about.get("names")
    if names:
        return str(names[i])
    if explanation.stored:
        return str((explanation.stored[i].get("input") or {}).get("name", f"input {explanation.index[i]}"))
    text = " ".join((_text(explanation, i) or f"input {explanation.index[i]}").split())
    if len(text) <= NAME:
        return text
    return text[: NAME - 1] + "…"


def _outputs(explanation: Explanation, i: int, numbers: _Numbers) -> dict[str, Any]:
    """What is explained, and what the model predicts."""
    target = int(explanation.target[i])
    target_label = _label(explanation, target)
    if target_label is None:
        numbers.reasons["target_label"] = "no labels were given"
    if explanation.decides:
        predicted = int(explanation.predicted[i])
        predicted_label = _label(explanation, predicted)
    else:
        predicted = None
        predicted_label = None
        numbers.reasons["predicted"] = (
            "the outputs are numbers, or one number of which nothing says that it is a class's"
        )
    return {
        "target": target,
        "target_label": target_label,
        "predicted": predicted,
        "predicted_label": predicted_label,
        "score": numbers.read(explanation.score[i], "score"),
    }


def _solution(explanation: Explanation, i: int, numbers: _Numbers) -> dict[str, Any]:
    """The weights, their error, and how near to optimal they are."""
    weights = _weights(explanation, i, numbers)
    weights_stderr = None
    if weights is not None:
        weights_stderr = _weights_stderr(explanation, i, numbers.reasons)
    unsolved = "nothing is solved for this objective, or its optimum has no certificate"
    return {
        "weights": weights,
        "weights_stderr": weights_stderr,
        "gap": numbers.read(explanation.solution.gap[i], "gap", unsolved),
        "value": numbers.read(explanation.solution.value[i], "value", unsolved),
        "status": explanation.solution.status[i],
        "diversity_gain": numbers.read(explanation.diversity_gain[i], "diversity_gain"),
    }


class _Numbers:
    """Turns numbers into JSON: None for those that are not finite, with a reason.

    Args:
        reasons: place in the record → why its number is missing; is added to.
    """

    def __init__(self, reasons: dict[str, str]):
        self.reasons = reasons

    def read(self, value: Any, where: str, why: str = "not defined") -> float | None:
        """``value`` as a number of JSON; if it is not finite, None, with the reason ``why`` at the place ``where``."""
        number = float(value)
        if math.isfinite(number):
            return number
        self.reasons[where] = why
        return None


def _stored(explanation: Explanation, i: int) -> dict[str, Any]:
    """A record that was read from a file, with what the caller has told about the input since."""
    record = dict(explanation.stored[i])
    about = explanation.about
    reasons = dict(record.get("reasons") or {})
    record["input"] = {**(record.get("input") or {}), **_input(explanation, i)}
    if about.get("model") is not None:
        record["model"] = about["model"]
        reasons.pop("model", None)
    if about.get("labels"):
        record["target_label"] = _label(explanation, record["target"])
        if record["predicted"] is not None:
            record["predicted_label"] = _label(explanation, record["predicted"])
        if record["target_label"] is not None:
            reasons.pop("target_label", None)
    record["reasons"] = reasons
    return record


def _label(explanation: Explanation, number: int) -> Any:
    """The name of a class; None where it has none."""
    labels = explanation.about.get("labels")
    if not labels or number >= len(labels):
        return None
    return labels[number]


def _text(explanation: Explanation, i: int) -> str | None:
    """The text that input ``i`` was made from; None for other inputs."""
    texts = explanation.about.get("texts")
    return None if texts is None else texts[explanation.index[i]]


def _input(explanation: Explanation, i: int) -> dict[str, Any]:
    """The record's ``input``: its name, and as far as they are known its text, tokens, features' names and source."""
    about: dict[str, Any] = {"name": name_of(explanation, i)}
    tokens = explanation.tokens
    known = {
        "text": _text(explanation, i),
        "tokens": None if tokens is None else tokens[i],
        "features": explanation.feature_names,
    }
    about |= {what: value for what, value in known.items() if value is not None}
    sources = explanation.about.get("sources")
    if sources is not None:
        about |= sources[i]
    return about


def _weights(explanation: Explanation, i: int, numbers: _Numbers) -> list[float | None] | None:
    """One for each method; None where the combined map is not a weighted sum of the methods' maps."""
    others = explanation.mixing[i, len(explanation.methods) :]
    if explanation.posterior is None and bool((others != 0).any()):
        numbers.reasons["weights"] = f"{explanation.objective} is not a weighted sum of the maps"
        return None
    return [numbers.read(weight, "weights") for weight in explanation.weights[i]]


def _weights_stderr(explanation: Explanation, i: int, reasons: dict[str, str]) -> list[float] | None:
    """One for each method, or None with its reason."""
    spread = explanation.weights_stderr[i]
    if bool(spread.isfinite().all()):
        return spread.tolist()
    if bool(explanation.weights[i].isfinite().all()):
        reasons["weights_stderr"] = "the weights do not depend on draws, or there are fewer than four of a kind"
    else:
        reasons["weights_stderr"] = "no weights"
    return None


def _draws(explanation: Explanation, i: int, reasons: dict[str, str]) -> dict[str, Any]:
    """How many draws fitted and judged input ``i``: of what :attr:`Explanation.draws` lists by input, its own entry."""
    own = {name: explanation.draws[name][i] for name in ("fit", "masks")}
    fresh = explanation.draws["fresh"]
    if fresh is None:
        reasons["draws.fresh"] = UNJUDGED
        return {**explanation.draws, **own, "fresh": None}
    return {**explanation.draws, **own, "fresh": fresh[i]}


def _criteria(explanation: Explanation, i: int, numbers: _Numbers) -> dict[str, Any]:
    """criterion → row → fit, fresh, stderr."""
    if not explanation.judged:
        # One reason for all fresh values, rather than one for each.
        numbers.reasons["criteria"] = UNJUDGED
    drawn = explanation.evidence["fit"][i].parts
    unfitted = [criterion for criterion, parts in PARTS.items() if any(kind not in drawn for kind in parts)]
    criteria: dict[str, Any] = {}
    for criterion, rows in explanation.criteria.items():
        criteria[criterion] = {}
        for name in rows:
            criteria[criterion][name] = _cell(explanation, criterion, name, i, numbers)
            fit = f"criteria.{criterion}.{name}.fit"
            if explanation.judged and criterion in unfitted and fit in numbers.reasons:
                numbers.reasons[fit] = UNFITTED
    return criteria


def _cell(explanation: Explanation, criterion: str, name: str, i: int, numbers: _Numbers) -> dict[str, float | None]:
    """The fit, fresh and stderr of one criterion of the row ``name``."""
    measured = explanation.criteria[criterion][name]
    parts = {part: float(getattr(measured, part)[i]) for part in ("fit", "fresh", "stderr")}
    where = f"criteria.{criterion}.{name}"
    if not explanation.judged:
        return {"fit": numbers.read(parts["fit"], f"{where}.fit"), "fresh": None, "stderr": None}
    why = ""
    if math.isnan(parts["stderr"]) and math.isfinite(parts["fresh"]) and math.isfinite(parts["fit"]):
        why = "fewer than four draws have no standard error"
    elif not all(map(math.isfinite, parts.values())):
        why = _why(explanation, criterion, name, i)
    return {part: numbers.read(value, f"{where}.{part}", why) for part, value in parts.items()}


def _resolved(explanation: Explanation, i: int, numbers: _Numbers) -> dict[str, Any]:
    """The sensitivity of weights that are solved anew at every neighbour."""
    resolved: dict[str, Any] = {"value": None, "stderr": None, "n": explanation.draws["resolved"]}
    where = "measures.relative_sensitivity_resolved"
    if explanation.resolved is None:
        numbers.reasons[where] = "no weights are solved for, or resolved_draws is 0"
        return resolved
    for part in ("value", "stderr"):
        number = explanation.resolved[part][i]
        resolved[part] = numbers.read(number, f"{where}.{part}", "one draw has no standard error")
    return resolved


def _posterior(measured: Mapping[str, Any], numbers: _Numbers) -> dict[str, Any]:
    """What a posterior measured of itself."""
    record = dict(measured)
    nothing = "no mask moves the score otherwise than another of its size"
    for part in ("explained", "methods_share"):
        record[part] = numbers.read(measured[part], f"posterior.{part}", nothing)
    return record


def _front(explanation: Explanation, i: int, numbers: _Numbers) -> dict[str, Any] | None:
    """The mixtures of which none is better in both criteria, and which of them is nearest to the chosen one."""
    points = explanation.fronts[i]
    if points is None:
        return None
    chosen = (points.weights - explanation.weights[i].to(points.weights)).abs().sum(1).argmin()
    nothing = "no mixture has a positive correlation"
    return {
        points.criterion: points.robustness.tolist(),
        "faithfulness_correlation": points.correlation.tolist(),
        "weights": points.weights.tolist(),
        "chosen": int(chosen),
        "incompatibility": numbers.read(points.incompatibility, "front.incompatibility", nothing),
    }


def _why(explanation: Explanation, criterion: str, name: str, i: int) -> str:
    """Why a criterion of one row has no number: the first cause that holds, from the most general to the most particular."""
    if name in explanation.failed:
        return "the method does not work on this model, see failed"
    responses = [each[i].responses for each in explanation.evidence.values()]
    falls = torch.cat([part.y[0] for part in responses if part is not None])
    masked = criterion in ("faithfulness_correlation", "infidelity")
    if masked and not bool(falls.isfinite().all()):
        return f"the score is NaN or infinite for {int((~falls.isfinite()).sum())} of {len(falls)} masks"
    values = explanation[name][i]
    if not bool(values.isfinite().all()):
        return "the map has NaN or infinite values"
    if not bool((values != 0).any()):
        return "the map is zero everywhere"
    if criterion == "faithfulness_correlation" and name == "uniform":
        return "given how much a mask takes away, a uniform map's response has no variance, hence no correlation"
    if masked:
        return "the response, or the score, does not vary over the masks"
    return "not finite at some neighbour"
