"""A model, methods and an objective bound together, with Captum's calling convention."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapters.base import a_model
from ..combine.draws import FIT
from ..errors import InputError
from ..explainers import Explainer, Mixture, resolve, unique
from ..features.images import features_for
from ..perturb.baseline import Baseline
from ..results.describe import describe
from ..results.explanation import Explanation
from ..results.files import output, reading, write_text
from ..signatures import KnownArguments, known_arguments
from ..statistics.evidence import Evidence, Part, Quadratic
from .explain import explained
from .options import OPTION_NAMES, Options
from .plan import Plan, plan
from .prepare import NothingLeft, parts_of
from .run import begin

STANDARD = "standard"
"""The methods that depend on the kind of input."""


class Consensus(KnownArguments):
    """``Consensus(model, methods, objective).attribute(x, target=y)`` is the combination for each input.

    Args:
        model: as for :func:`consilience.explain`.
        methods: as for :func:`consilience.explain`.
        objective: as for :func:`consilience.explain`.
        options: any further option of :func:`consilience.explain`, e.g. ``seed``, ``fit_draws``, ``features``.

    Attributes:
        weights: (k,), set by :meth:`fit` or :meth:`load` and shared by all inputs; None: solved for each input.
        options: the :class:`~.options.Options`, checked.

    Raises:
        InputError: an option is not known or cannot be used.

    Example:
        >>> import torch, consilience as cs
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        >>> consensus = cs.Consensus(net, ["saliency", "input_x_gradient"], "robust", fit_draws=4, fresh_draws=4)
        >>> consensus.attribute(torch.ones(2, 4), target=1).shape
        torch.Size([2, 4])
        >>> consensus.fit([torch.rand(8, 4)]) is consensus
        True
    """

    further = OPTION_NAMES

    def __init__(self, model: Any, methods: Any = "standard", objective: Any = "posterior", **options: Any):
        self.model = a_model(model)
        self.options = Options.of(methods=methods, objective=objective, **options)
        self.weights: Tensor | None = None
        # To which methods the fitted weights belong: "standard" means others for other kinds of input.
        self._fitted: tuple[Explainer, ...] | None = None

    def __repr__(self) -> str:
        weights: Any = "per input"
        if self.weights is not None:
            weights = [round(w, 4) for w in self.weights.tolist()]
        asked = f"methods={self.options.methods}, objective={self.options.objective}"
        return f"Consensus({type(self.model).__name__}, {asked}, weights={weights})"

    @property
    def methods(self) -> Any:
        """The methods as asked for."""
        return self.options.methods

    @property
    def objective(self) -> Any:
        """The objective as asked for."""
        return self.options.objective

    @known_arguments(*OPTION_NAMES)
    def explain(
        self, x: Any, target: Any = None, *, ids: Any = None, progress: Any = None, **options: Any
    ) -> Explanation:
        """:func:`consilience.explain` with what is bound here.

        Args:
            x: inputs (B, *F).
            target: which output is explained.
            ids: identities of the inputs.
            progress: called with (work done, work planned).
            options: take precedence over what is bound.

        Raises:
            InputError: as :func:`consilience.explain`.
        """
        return explained(self.model, x, target, self._with(options), ids, progress)

    @known_arguments(*OPTION_NAMES)
    def attribute(
        self,
        inputs: Tensor,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        ids: Any = None,
        progress: Any = None,
        **options: Any,
    ) -> Tensor:
        """The combined attribution, without a judgement.

        Only the draws that the weights need are made: none with fitted weights, masks alone for "faith", neighbours alone for
        "robust". Judge with :meth:`explain`.

        Args:
            inputs: (B, *F).
            target: as for :func:`consilience.explain`.
            additional_forward_args: a mapping of keyword arguments of the model.
            ids: identities of the inputs.
            progress: called with (work done, work planned).
            options: take precedence over what is bound.

        Returns:
            Of ``inputs``' shape for elements, (B, 1, H, W) for pixels, (B, *A) for other features.

        Raises:
            InputError: an input cannot be explained.
        """
        if additional_forward_args is not None:
            if not isinstance(additional_forward_args, dict):
                raise InputError("additional_forward_args: give a mapping {name: value}; rows are gathered by name")
            options["kwargs"] = additional_forward_args
        job = begin(self.model, inputs, target, self._with(options), ids, progress)
        if job.ready.out:
            raise InputError(f"inputs: {'; '.join(f'{k}: {v}' for k, v in job.ready.reasons.items())}")
        attribution = job.combine(every=False).attribution
        if getattr(inputs, "ndim", 0) == 4 and attribution.ndim == 3 and attribution.shape[1:] == inputs.shape[2:]:
            attribution = attribution[:, None]
        return attribution

    @known_arguments(*OPTION_NAMES)
    def plan(self, inputs: Any, target: Any = None, every: bool = True, *, ids: Any = None, **options: Any) -> Plan:
        """What :meth:`explain` (or, with ``every=False``, :meth:`attribute`) will take: model evaluations, memory, time.

        Evaluates the model once, tries every method on one sample and times two batches; draws nothing.

        Args:
            inputs: (B, *F).
            target: which output is explained.
            every: of :meth:`explain`; False: of :meth:`attribute`.
            ids: identities of the inputs.
            options: take precedence over what is bound.
        """
        return plan(begin(self.model, inputs, target, self._with(options), ids, dry=True), every)

    def _with(self, options: dict[str, Any]) -> Options:
        """The bound options, with the fitted weights, and with others that are given in the call."""
        if self.weights is not None:
            options = {"weights": self.weights, **options}
        return self.options.but(**options)

    def fit(self, loader: Iterable[Any], target: Any = None) -> Consensus:
        """Weights for all inputs at once: the optimum of the mean of every input's own (normalised) statistics.

        Pooled weights are the stable choice for robustness; for faithfulness, per input is better. Each input gets the same
        number of draws, ``fit_draws`` (default 10 neighbours, 256 masks): none can stop by itself where all are pooled.

        Args:
            loader: batches x (a list of texts is one), or (x, …) of which the first is used. Inputs that cannot be explained
                are left out.
            target: as for :func:`consilience.explain`.

        Returns:
            This object, whose ``weights`` are set.

        Raises:
            InputError: the objective has no weights to fit, or no input can be explained.
        """
        aggregation = self.options.aggregation
        if not aggregation.solves:
            raise InputError(f"objective: {aggregation.name!r} has no weights to fit")
        usual = {} if self.options.draws == "paper" else {"draws": None, "fit_draws": self.options.fit_draws or FIT}
        options = self.options.but(weights=None, pooled=False, **usual)
        pooled: list[Evidence] = []
        start = 0
        for batch in loader:
            x = parts_of(batch)[0]
            if not hasattr(x, "__len__"):
                raise InputError(f"loader: expected batches of tensors or arrays, got {type(x).__name__}")
            ids = torch.arange(start, start + len(x))
            start += len(x)
            try:
                job = begin(self.model, x, target, options.taken(ids.tolist()), ids)
            except NothingLeft:
                continue
            fitted = tuple(job.ready.explainers)
            (group,) = job.combine(every=False).groups
            pooled.append(aggregation.pool(group.evidence))
        if not start:
            raise InputError("loader: gave no batch")
        if not pooled:
            raise InputError("loader: no input can be explained; each has NaN or infinite values")
        self.weights = options.aggregation.fit(_join(pooled)).weights[0]
        self._fitted = fitted if self.options.methods == STANDARD else None
        return self

    def mixture(self) -> Mixture:
        """The fitted weights as an explainer, to stand beside others: ``methods=[pooled.mixture(), "grad_cam"]``."""
        if self.weights is None:
            raise InputError("weights: nothing fitted; call fit(loader) first")
        options = self.options
        features = features_for(options.features, ()) if isinstance(options.features, str) else options.features
        found: Sequence[Explainer]
        if self._fitted is not None:
            found = self._fitted
        elif options.methods == STANDARD:
            raise InputError(
                "methods: 'standard' means other methods for other kinds of input, and loaded weights know none; "
                "name the methods"
            )
        else:
            baseline = None if options.baselines is None else Baseline.of(options.baselines)
            found = resolve(options.methods, baseline, features)
        scale = "max" if options.scale is None else options.scale
        return Mixture(tuple(found), tuple(self.weights.tolist()), features, options.sign or "keep", scale)

    def save(self, path: str | Path) -> Path:
        """Write the fitted weights as JSON, with what they belong to: the methods as configured, objective, and maps.

        Args:
            path: of the file.
        """
        if self.weights is None:
            raise InputError("weights: nothing fitted; call fit(loader) first")
        return write_text(output(path), json.dumps({**self._fits(), "weights": self.weights.tolist()}))

    def _fits(self) -> dict[str, Any]:
        """What fitted weights belong to."""
        options = self.options
        explainers = resolve(options.methods) if self._fitted is None else self._fitted
        return {
            "methods": list(unique([explainer.name for explainer in explainers])),
            "objective": options.objective if isinstance(options.objective, str) else describe(options.objective),
            "settings": {
                "methods": [describe(explainer) for explainer in explainers],
                "features": describe(options.features),
                "sign": options.sign or "keep",
                "scale": describe("max" if options.scale is None else options.scale),
            },
        }

    def load(self, path: str | Path) -> Consensus:
        """Take the weights that :meth:`save` wrote, of the same methods, in order, objective and maps; returns this object.

        Args:
            path: of the file.
        """
        self._fitted = None
        mine = self._fits()
        with reading(Path(path), "weights written by save()"):
            saved = json.loads(Path(path).read_text(encoding="utf-8"))
            weights = torch.tensor(saved["weights"], dtype=torch.float64)
            asked = {name: saved.get(name, mine[name]) for name in mine}
            if self.options.methods == STANDARD:
                # Which methods these are depends on the inputs, so it is seen when these are explained.
                mine["methods"] = asked["methods"]
                mine["settings"]["methods"] = asked["settings"]["methods"]
            if asked == mine and weights.shape != (len(mine["methods"]),):
                raise ValueError(f"{len(mine['methods'])} methods, weights {tuple(weights.shape)}")
        for name, value in asked.items():
            if value != mine[name]:
                raise InputError(f"{path}: weights are for the {name} {value}, this Consensus has {mine[name]}")
        self.weights = weights
        return self


def _join(parts: list[Evidence]) -> Evidence:
    """Pooled evidence of several batches, each with B = 1: all their draws; ΦᵀΦ is the mean, weighted by the draws."""
    joined: dict[str, Part] = {}
    for kind in parts[0].parts:
        batches = [evidence[kind] for evidence in parts]
        total = batches[0]
        for batch in batches[1:]:
            total = total + batch
        if isinstance(total, Quadratic):
            norm = sum(batch.norm * batch.count for batch in batches) / total.count
            total = replace(total, norm=norm)
        joined[kind] = total
    return Evidence.of(joined)
