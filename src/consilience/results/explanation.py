"""The result of an explanation: tensors, a table, pictures, files."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..combine.aggregations import DERIVED
from ..errors import InputError
from ..model.batching import Counts
from ..report.entry import Entry
from ..simplex import Front, Solution
from ..statistics.evidence import Evidence
from .difference import PairedDifference, recorded
from .files import SCHEMA, clear, row_named, save_entry, save_run, versions, write_text, writing

NAME = 80
"""The longest text, in letters, that is its own name."""


@dataclass(frozen=True)
class Measured:
    """One criterion of one row: on the fitting draws, on fresh draws, and the fresh value's standard error; each (B,)."""

    fit: Tensor
    fresh: Tensor
    stderr: Tensor


@dataclass(frozen=True)
class Explanation:
    """What :func:`consilience.explain` found for B inputs and k methods.

    ``attribution`` (B, *A) is Σ weights_j · maps_j; ``maps`` (B, k, *A) are the methods' (NaN where one failed), after sign
    and scale; ``derived`` (B, 6, *A) are mean, var, median, rank, uniform and weighted; ``r["grad_cam"]`` is one by name.

    ``weights_stderr`` (B, k): how far the weights would move with other draws, NaN where none were needed;
    ``differences``: criterion → consensus − best single method on the fresh draws, with its error
    (:class:`~consilience.results.difference.PairedDifference`).
    """

    attribution: Tensor
    weights: Tensor
    maps: Tensor
    derived: Tensor
    methods: tuple[str, ...]
    kinds: tuple[str, ...]
    objective: str
    solution: Solution
    curves: list[tuple[Front | None, int]]
    criteria: dict[str, dict[str, Measured]]
    evidence: dict[str, list[Evidence]]
    mixing: Tensor
    resolved: dict[str, Tensor] | None
    completeness: dict[str, Tensor]
    failed: dict[str, str]
    inputs: Tensor
    index: tuple[int, ...]
    reasons: dict[str, str]
    target: Tensor
    predicted: Tensor
    score: Tensor
    seed: int
    draws: dict[str, Any]
    counts: Counts
    seconds: float
    settings: dict[str, Any]
    weights_stderr: Tensor
    differences: dict[str, PairedDifference]
    warnings: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.attribution)

    def __getitem__(self, name: str) -> Tensor:
        """One row's maps (B, *A): a method, "mean", "var", "median", "rank", "uniform", "weighted" or "consensus"."""
        if name == "consensus":
            return self.attribution
        rows = [*self.methods, *DERIVED, "weighted"]
        at = rows.index(row_named(name, [*rows, "consensus"]))
        return self.maps[:, at] if at < len(self.methods) else self.derived[:, at - len(self.methods)]

    def __str__(self) -> str:
        return self.table()

    __repr__ = __str__

    def table(self) -> str:
        """Methods, aggregations, consensus × criteria: fresh ± standard error, fit; averaged over the inputs."""
        from ..report.table import text_table

        lines = [f"{what} left out: {why}" for what, why in self.reasons.items()]
        return "\n".join([text_table([self.record(i) for i in range(len(self))]), *lines])

    @property
    def tokens(self) -> list[list[str]] | None:
        """Of texts: (B, T) tokens, "" where padded, in the order of the attribution; None for other inputs."""
        found = self.about.get("tokens")
        return None if found is None else [found[at] for at in self.index]

    @property
    def decides(self) -> bool:
        """The model predicts a class, or labels; not so in regression, and not known of one output that may be a number."""
        return self.settings.get("outputs") not in ("values", "one output")

    @property
    def feature_names(self) -> list[str] | None:
        """(A,) of a table whose columns have names; None for other inputs."""
        found = self.about.get("features")
        return None if found is None else [str(name) for name in found]

    def describe(self, **about: Any) -> Explanation:
        """Add what only the caller knows: ``model``, ``labels``, ``names`` (B,), ``features`` (A,) the names of the features,
        ``images`` (B, H, W, 3) in 0…1, ``sources`` (B,) mappings for the record's ``input``, …"""
        self.about.update(about)
        return self

    # -- certificates --------------------------------------------------------------------------------------------------

    @property
    def diversity_gain(self) -> Tensor:
        """(B,): Σ_j w_j G_jj − wᵀGw of the absolute sensitivity, what mixing gains over its parts; ≥ 0 for convex weights."""
        found = [e.clean().quadratic for e in self.evidence["fit"]]
        matrix, w = torch.cat([q.matrix for q in found if q is not None]), self.mixing
        return torch.einsum("br,brr->b", w, matrix) - torch.einsum("br,brt,bt->b", w, matrix, w)

    @property
    def incompatibility(self) -> Tensor:
        """(B,): how far robustness and faithfulness exclude each other, on the fitting draws; 0: one mixture is best in both;
        .2: the best compromise found loses a fifth of one or the other. NaN unless a front, such as "opt", is solved for each
        input."""
        found = [
            curve.incompatibility[at] if curve is not None else torch.tensor(torch.nan) for curve, at in self.curves
        ]
        return torch.stack([value.double().cpu() for value in found])

    def hoeffding(self, delta: float = 0.05) -> float:
        """Q(ŵ) − min Q ≤ 2c₂ √(2 ln(k(k+1)/δ)/m) for the absolute sensitivity, with probability 1 − δ over the m draws.

        c₂ bounds ‖r‖² before any draw: the number of features for maps in [0, 1], four times that for signed maps.
        Hoeffding's inequality on the entries of G (DESIGN §1); compare with the fresh value beside it. Where m was found by
        looking at the draws, the bound holds for every round's m at once (δ shared by at most four rounds).
        """
        if self.settings["scale"] == "none":
            raise InputError("hoeffding: needs bounded maps; scale='none' has no a-priori bound")
        c2 = self.maps[0, 0].numel() * (1 if self.settings["sign"] == "abs" else 4)
        k, m = len(self.methods), min(fit["average_sensitivity"] for fit in self.draws["fit"])
        if any(fit["stopped"] != "as asked" for fit in self.draws["fit"]):
            delta /= 4
        return 2 * c2 * math.sqrt(2 * math.log(k * (k + 1) / delta) / m)

    # -- files ---------------------------------------------------------------------------------------------------------

    def record(self, i: int) -> dict[str, Any]:
        """What ``explanation.json`` holds for input ``i``; a number that is not finite is None, with its reason."""
        reasons: dict[str, str] = {f"methods.{name}": why for name, why in self.failed.items()}
        labels = self.about.get("labels")
        label = lambda at: labels[at] if labels and at < len(labels) else None  # noqa: E731

        def number(value: Any, where: str, why: str = "not defined") -> float | None:
            value = float(value)
            if math.isfinite(value):
                return value
            reasons[where] = why
            return None

        criteria: dict[str, Any] = {}
        for criterion, rows in self.criteria.items():
            criteria[criterion] = {}
            for name, measured in rows.items():
                where = f"criteria.{criterion}.{name}"
                why = self._why(criterion, name, i)
                criteria[criterion][name] = {
                    part: number(getattr(measured, part)[i], f"{where}.{part}", why)
                    for part in ("fit", "fresh", "stderr")
                }
        resolved: dict[str, Any] = {"value": None, "stderr": None, "n": self.draws["resolved"]}
        if self.resolved is None:
            reasons["measures.relative_sensitivity_resolved"] = "no weights are solved for, or resolved_draws is 0"
        else:
            for part in ("value", "stderr"):
                where = f"measures.relative_sensitivity_resolved.{part}"
                resolved[part] = number(self.resolved[part][i], where, "one draw has no standard error")
        target, predicted = int(self.target[i]), int(self.predicted[i])
        weighted = not bool((self.mixing[i, len(self.methods) :] != 0).any())
        if not weighted:
            reasons["weights"] = f"{self.objective} is not a weighted sum of the maps"
        solved = "nothing is solved for this objective, or its optimum has no certificate"
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "input": self._input(i),
            "model": self.about.get("model"),
            "target": target,
            "target_label": label(target),
            "predicted": predicted if self.decides else None,
            "predicted_label": label(predicted) if self.decides else None,
            "score": number(self.score[i], "score"),
            "seed": self.seed,
            "methods": list(self.methods),
            "kinds": list(self.kinds),
            "objective": self.objective,
            "weights": [number(w, "weights") for w in self.weights[i]] if weighted else None,
            "weights_stderr": self._weights_stderr(i, reasons) if weighted else None,
            "gap": number(self.solution.gap[i], "gap", solved),
            "value": number(self.solution.value[i], "value", solved),
            "status": self.solution.status[i],
            "diversity_gain": number(self.diversity_gain[i], "diversity_gain"),
            "draws": {**self.draws, "fit": self.draws["fit"][i]},
            "criteria": criteria,
            "differences": recorded(self.differences, i, reasons),
            "measures": {"relative_sensitivity_resolved": resolved},
            "completeness_error": {
                name: number(error[i], f"completeness_error.{name}", "f(x) equals f(baseline)")
                for name, error in self.completeness.items()
            },
            "failed": dict(self.failed),
            "warnings": list(self.warnings),
            "settings": self.settings,
            "evaluations": {"forward": self.counts.forward, "gradient": self.counts.gradient, "inputs": len(self)},
            "seconds": self.seconds,
            "versions": versions(),
        }
        curve, at = self.curves[i]
        if curve is not None and bool(curve.keep[at].any()):
            record["front"] = self._front(curve, at, i)
            nothing = "no mixture has a positive correlation"
            record["front"]["incompatibility"] = number(self.incompatibility[i], "front.incompatibility", nothing)
        if record["model"] is None:
            reasons["model"] = "not named by the caller"
        if not self.decides:
            reasons["predicted"] = "the outputs are numbers, or one number of which nothing says that it is a class's"
        if record["target_label"] is None:
            reasons["target_label"] = "no labels were given"
        record["reasons"] = reasons
        return record

    def _weights_stderr(self, i: int, reasons: dict[str, str]) -> list[float] | None:
        """One for each method, or None with its reason."""
        spread = self.weights_stderr[i]
        if bool(spread.isfinite().all()):
            return spread.tolist()
        if bool(self.weights[i].isfinite().all()):
            why = "the weights do not depend on draws, or there are fewer than four of a kind"
        else:
            why = "no weights"
        reasons["weights_stderr"] = why
        return None

    def _front(self, curve: Front, at: int, i: int) -> dict[str, Any]:
        keep = curve.keep[at]
        weights = curve.weights[at][keep]
        chosen = (weights - self.weights[i].to(weights)).abs().sum(1).argmin()
        return {
            "relative_sensitivity": curve.robustness[at][keep].tolist(),
            "faithfulness_correlation": curve.correlation[at][keep].tolist(),
            "weights": weights.tolist(),
            "chosen": int(chosen),
        }

    def _why(self, criterion: str, name: str, i: int) -> str:
        if name in self.failed:
            return "the method does not work on this model, see failed"
        found = [each[i].responses for each in self.evidence.values()]
        masks = torch.cat([r.y[0] for r in found if r is not None])
        if not bool(masks.isfinite().all()) and criterion in ("faithfulness_correlation", "infidelity"):
            return f"the score is NaN or infinite for {int((~masks.isfinite()).sum())} of {len(masks)} masks"
        if not bool(self[name][i].isfinite().all()):
            return "the map has NaN or infinite values"
        if not bool((self[name][i] != 0).any()):
            return "the map is zero everywhere"
        if criterion == "faithfulness_correlation" and name == "uniform":
            return "the same share is taken away by every mask: a response without variance has no correlation"
        if criterion in ("faithfulness_correlation", "infidelity"):
            return "the response, or the score, does not vary over the masks"
        return "not finite at some neighbour"

    def _name(self, i: int) -> str:
        names = self.about.get("names")
        if names:
            return str(names[i])
        text = " ".join((self._text(i) or f"input {self.index[i]}").split())
        return text if len(text) <= NAME else text[: NAME - 1] + "…"

    def _text(self, i: int) -> str | None:
        texts = self.about.get("texts")
        return None if texts is None else texts[self.index[i]]

    def _input(self, i: int) -> dict[str, Any]:
        """The record's ``input``: its name, and where there are any its text, tokens, features' names and source."""
        tokens = self.tokens
        known = {"text": self._text(i), "tokens": tokens and tokens[i], "features": self.feature_names}
        source = self.about.get("sources", [{}] * len(self))[i]
        return {"name": self._name(i), **{what: value for what, value in known.items() if value is not None}, **source}

    def entries(self) -> list[Entry]:
        """One entry per input for the report."""
        images = self.about.get("images")
        array = lambda t: t.detach().float().cpu().numpy()  # noqa: E731
        return [
            Entry(
                record=self.record(i),
                image=images[i] if images is not None else _picture(array(self.inputs[i])),
                maps=array(self.maps[i]),
                attribution=array(self.attribution[i]),
                name=self._name(i),
                extra={name: array(self[name][i]) for name in (*DERIVED, "weighted") if name != "uniform"},
            )
            for i in range(len(self))
        ]

    def plot(self, i: int = 0) -> Any:
        """A matplotlib figure of input ``i``: the image, the combined map, every method's map with weight and quality."""
        from ..report.figure import figure

        return figure(self.entries()[i])

    def report(self, path: str | Path, title: str = "Explanations") -> Path:
        """Write one self-contained HTML page over all inputs."""
        from ..report.page import page

        return write_text(Path(path), page(self.entries(), title, failures=list(self.reasons.items())))

    def save(self, directory: str | Path) -> Path:
        """Write each input's folder: ``explanation.json`` and ``attributions.safetensors``; read by :func:`load`.

        In place of what was saved there before; until the last file is written, :func:`load` finds no run.
        """
        directory = Path(directory)
        entries, folders = self.entries(), [f"{i:03d}" for i in range(len(self))]
        with writing(directory):
            clear(directory)
            for i, (folder, entry) in enumerate(zip(folders, entries, strict=True)):
                save_entry(directory / folder, entry, self._arrays(i))
            save_run(directory, folders, self.reasons)
        return directory

    def _arrays(self, i: int) -> dict[str, np.ndarray]:
        """The evidence, so that tables and fronts can be made again, and what no entry has."""
        found = {"weights": self.weights[i], "uniform": self["uniform"][i].float()}
        for stream, evidence in ((name, each[i]) for name, each in self.evidence.items()):
            if evidence.quadratic is not None:
                found[f"{stream}.gram"] = evidence.quadratic.draws[0]
                found[f"{stream}.norm"] = evidence.quadratic.norm[0]
            if evidence.responses is not None:
                found[f"{stream}.responses"] = evidence.responses.a[0]
                found[f"{stream}.falls"] = evidence.responses.y[0]
        return {name: value.detach().cpu().numpy() for name, value in found.items()}


def _picture(x: np.ndarray) -> np.ndarray | None:
    """An input of image shape stretched to 0…1 for display, when the caller gave no picture."""
    if x.ndim != 3 or x.shape[0] not in (1, 3):
        return None
    low, high = x.min(), x.max()
    shown = (x - low) / (high - low if high > low else 1)
    return np.broadcast_to(shown.transpose(1, 2, 0), (*x.shape[1:], 3)).copy()
