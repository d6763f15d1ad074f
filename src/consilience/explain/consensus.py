"""A model, methods and an objective bound together, with Captum's calling convention."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..combine.draws import FIT
from ..combine.named import aim
from ..combine.weights import solve
from ..errors import InputError, choose
from ..explainers import Mixture, resolve, unique
from ..features.images import features_for
from ..perturb.baseline import Baseline
from ..perturb.per_input import taken
from ..results.describe import _brief
from ..results.explanation import Explanation
from ..results.files import output, reading, write_text
from ..statistics.evidence import Evidence, Quadratic
from .explain import explain
from .plan import Plan, plan
from .prepare import parts_of
from .run import Job, begin

OPTIONS = tuple(inspect.signature(explain).parameters)[4:]
"""What :func:`explain` takes besides model, x, target and methods."""


class Consensus:
    """``Consensus(model, methods, objective).attribute(x, target=y)`` is the optimal combination for each input.

    ``options``: any further argument of :func:`consilience.explain`, e.g. ``seed``, ``fit_draws``, ``features``.
    ``weights`` (k,), set by :meth:`fit`, are shared by all inputs; None solves for each input.

    Example:
        >>> import torch, consilience as cs
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        >>> consensus = cs.Consensus(net, ["saliency", "input_x_gradient"], "robust", fit_draws=4, fresh_draws=4)
        >>> consensus.attribute(torch.ones(2, 4), target=1).shape
        torch.Size([2, 4])
    """

    def __repr__(self) -> str:
        weights = "per input" if self.weights is None else [round(w, 4) for w in self.weights.tolist()]
        return f"Consensus({type(self.model).__name__}, methods={self.methods}, objective={self.objective}, weights={weights})"

    def __init__(self, model: Any, methods: Any = "standard", objective: Any = "opt", **options: Any):
        self.model, self.methods, self.objective, self.options = model, methods, objective, options
        self.weights: Tensor | None = None
        aim(objective)
        for name in options:
            choose("option", name, OPTIONS)
        if isinstance(methods, str | list | tuple):
            resolve(methods)

    def explain(self, x: Any, target: Any = None, **options: Any) -> Explanation:
        """:func:`consilience.explain` with what is bound here."""
        chosen = {"weights": self.weights, **self.options, **options}
        return explain(self.model, x, target, methods=self.methods, objective=self.objective, **chosen)

    def attribute(
        self, inputs: Tensor, target: Any = None, additional_forward_args: Any = None, **options: Any
    ) -> Tensor:
        """The combined attribution: of ``inputs``' shape for elements, (B, 1, H, W) for pixels, (B, *A) for other features.

        ``additional_forward_args``: a mapping of keyword arguments of the model. Only the draws that the weights need are made:
        none with fitted weights, masks alone for "faith", neighbours alone for "robust". Judge with :meth:`explain`.
        """
        if additional_forward_args is not None and not isinstance(additional_forward_args, dict):
            raise InputError("additional_forward_args: give a mapping {name: value}; rows are gathered by name")
        if additional_forward_args is not None:
            options["kwargs"] = additional_forward_args
        job = self._begin(inputs, target, **options)
        if job.ready.out:
            raise InputError(f"inputs: {'; '.join(f'{k}: {v}' for k, v in job.ready.reasons.items())}")
        attribution = job.combine(every=False).attribution
        if getattr(inputs, "ndim", 0) == 4 and attribution.ndim == 3 and attribution.shape[1:] == inputs.shape[2:]:
            attribution = attribution[:, None]
        return attribution

    def plan(self, inputs: Any, target: Any = None, every: bool = True, **options: Any) -> Plan:
        """What :meth:`explain` (or, with ``every=False``, :meth:`attribute`) will take: model evaluations, memory, time.

        Evaluates the model once, tries every method on one sample and times two batches; draws nothing."""
        return plan(self._begin(inputs, target, **options), every)

    def _begin(self, x: Any, target: Any, places: Sequence[int] | None = None, **options: Any) -> Job:
        """``places``: of the inputs, among all that features and baselines were given for; None: these are all."""
        chosen = {"weights": self.weights, **self.options, **options}
        bound = {"methods": self.methods, "objective": self.objective, **chosen}
        if places is not None:
            for name in ("methods", "objective", "features", "baselines"):
                if name in bound:
                    bound[name] = taken(bound[name], places)
        return begin(self.model, x, target, **bound)

    def fit(self, loader: Iterable[Any], target: Any = None) -> Consensus:
        """Weights for all inputs at once: the optimum of the mean of every input's own (normalised) statistics.

        ``loader`` gives batches x (a list of texts is one), or (x, …) of which the first is used. Returns a Consensus with
        ``weights`` set, which solves nothing any more. Pooled weights are the stable choice for robustness; for faithfulness,
        per input is better.
        Each input gets the same number of draws, ``fit_draws`` (default 10 neighbours, 256 masks): none can stop by itself
        where all are pooled.
        """
        goal = aim(self.objective)
        if isinstance(goal, str):
            raise InputError(f"objective: {goal!r} has no weights to fit")
        usual = None if self.options.get("draws") == "paper" else FIT
        fixed = {
            "weights": None, "draws": None if usual else "paper", "fit_draws": self.options.get("fit_draws") or usual,
        }  # fmt: skip
        parts: list[Evidence] = []
        start, job = 0, None
        for batch in loader:
            x = parts_of(batch)[0]
            if not hasattr(x, "__len__"):
                raise InputError(f"loader: expected batches of tensors or arrays, got {type(x).__name__}")
            places = range(start, start + len(x))
            job = self._begin(x, target, places, ids=torch.arange(start, start + len(x)), **fixed)
            (group,) = job.combine(every=False).groups
            parts.append(group.evidence.pooled())
            start += len(x)
        if job is None:
            raise InputError("loader: gave no batch")
        choices = {name: self.options[name] for name in ("signed", "choice") if name in self.options}
        return self._fitted(solve(goal, _join(parts), job.ready.setting.working, **choices)[0].weights[0])

    def mixture(self) -> Mixture:
        """The fitted weights as an explainer, to stand beside others: ``methods=[pooled.mixture(), "grad_cam"]``."""
        if self.weights is None:
            raise InputError("weights: nothing fitted; call fit(loader) first")
        given = {name: self.options.get(name) for name in ("features", "sign")}
        features = features_for(given["features"], ()) if isinstance(given["features"], str) else given["features"]
        baselines = self.options.get("baselines")
        found = resolve(self.methods, None if baselines is None else Baseline.of(baselines), features)
        scale = self.options.get("scale", "max")
        return Mixture(tuple(found), tuple(self.weights.tolist()), features, given["sign"], scale)

    def _fitted(self, weights: Tensor) -> Consensus:
        """The same, with weights."""
        fitted = Consensus(self.model, self.methods, self.objective, **self.options)
        fitted.weights = weights
        return fitted

    def save(self, path: str | Path) -> Path:
        """Write the fitted weights as JSON, with what they belong to: the methods as configured, objective, and maps."""
        if self.weights is None:
            raise InputError("weights: nothing fitted; call fit(loader) first")
        return write_text(output(path), json.dumps({**self._fits(), "weights": self.weights.tolist()}))

    def _fits(self) -> dict[str, Any]:
        explainers = resolve(self.methods)
        usual = {"features": None, "sign": None, "scale": "max"}
        maps = {name: _brief(self.options.get(name, value)) for name, value in usual.items()}
        return {
            "methods": list(unique([e.name for e in explainers])),
            "objective": self.objective if isinstance(self.objective, str) else _brief(self.objective),
            "settings": {"methods": [_brief(e) for e in explainers], **maps},
        }

    def load(self, path: str | Path) -> Consensus:
        """A Consensus with the weights that :meth:`save` wrote, of the same methods, in order, objective and maps."""
        mine = self._fits()
        with reading(Path(path), "weights written by save()"):
            saved = json.loads(Path(path).read_text(encoding="utf-8"))
            weights = torch.tensor(saved["weights"], dtype=torch.float64)
            asked = {name: saved.get(name, mine[name]) for name in mine}
            if asked == mine and weights.shape != (len(mine["methods"]),):
                raise ValueError(f"{len(mine['methods'])} methods, weights {tuple(weights.shape)}")
        for name, value in asked.items():
            if value != mine[name]:
                raise InputError(f"{path}: weights are for the {name} {value}, this Consensus has {mine[name]}")
        return self._fitted(weights)


def _join(parts: list[Evidence]) -> Evidence:
    """Pooled evidence of several batches: each has B = 1; H is the mean, weighted by the draws."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    quadratics = [p.quadratic for p in parts if p.quadratic is not None]
    if quadratics:
        counts = [q.draws.shape[1] for q in quadratics]
        norm = sum(q.norm * c for q, c in zip(quadratics, counts, strict=True)) / sum(counts)
        total = Evidence(Quadratic(total.quadratic.draws, norm), total.responses)  # type: ignore[union-attr, arg-type]
    return total
