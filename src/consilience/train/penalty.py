"""Any metric with any differentiable explainers as a loss.

A regulariser: add its ``total`` to your task loss. The explanation is that of the model as it will be used: in eval mode, on
the input given, of the label's output (:class:`~consilience.Score`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..explainers import Normalised
from ..features.base import Features
from ..metrics.base import Metric
from ..metrics.objective import Objective
from ..model.score import Score
from ..perturb.points import Points
from ..settings import checked
from ..statistics.evidence import Evidence, Part
from ..task import Task
from .base import Loss
from .maps import Explainers, MapRegulariser
from .passes import Passes, per_row


class Penalty(MapRegulariser):
    """The metric's value for the explainer's maps, the mean over the batch: train the model so that its explanations are good.

    One explainer: the metric's loss, e.g. E‖φ(x) − φ(x + ε)‖² / ‖φ(x)‖² for ``AverageSensitivity(0.03)``, without the
    division if ``relative=False``, and 1 − ρ|ρ| for ``Infidelity()``. Several: the loss of the *optimal mixture*, wᵀGw / wᵀHw
    and its like, with the weights w* solved at every step and held while differentiating: w* minimises, so this is the
    gradient of the optimum itself (Danskin). Of a sum of metrics, the scales that
    balance them are held too. parts: penalty, weight, and ``defined``, the share of inputs that have a value: where every
    map is zero or NaN, the input is NaN, or nothing varies, there is none, and the input counts as 0.

    Args:
        metric: any metric, or a sum of metrics of different kinds, e.g. ``AverageSensitivity() + Infidelity()``.
        explainers: one or several, by name or configured; differentiable ones.
        draws: of the metric's neighbourhood, per input and step.
        features: of the maps; None: pixels of images, else elements.
        sign: of the maps (:class:`~consilience.explainers.Normalised`); None: "abs" for images, else "keep".
        scale: of the maps; None: "max".
        kind: of the score explained (:class:`~consilience.Score`); with "output", labels may be a regression's.
        common: see :class:`~consilience.train.TrainingObjective`.

    Memory: the rows of as many inputs as fit into ``max_batch``, one at least.
    Rows: B · (1 + draws) · the explainers' own (sensitivity), B · (the explainers' own + 1 + draws) (infidelity).

    Raises:
        InputError: no metric, two metrics of one kind, or ``draws`` that are not a positive integer.

    >>> from consilience import AverageSensitivity
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    >>> penalty = Penalty(AverageSensitivity(0.03), "input_x_gradient", weight=0.1)
    >>> loss = penalty(net, torch.ones(2, 4), torch.tensor([0, 2]))
    >>> loss.total.backward(); sorted(loss.parts)
    ['defined', 'penalty', 'weight']
    """

    name = "penalty"

    def __init__(
        self,
        metric: Metric | Objective,
        explainers: Explainers,
        *,
        draws: int = 4,
        features: Features | str | None = None,
        sign: str | None = None,
        scale: str | None = None,
        kind: str = "logit",
        **common: Any,
    ):
        super().__init__(explainers, features=features, sign=sign, scale=scale, kind=kind, **common)
        if isinstance(metric, Metric):
            metric = 1.0 * metric
        if not isinstance(metric, Objective) or len({term.statistic for _, term in metric.terms}) < len(metric.terms):
            raise InputError(
                f"metric: a metric, or a sum of metrics of different kinds, got {metric!r}; "
                "two of one kind would share their draws"
            )
        self.objective = metric
        self.draws = checked("draws", draws, int, low=1)

    @property
    def _metrics(self) -> tuple[Metric, ...]:
        """The metrics of the sum, and those whose draws they look at too."""
        return tuple(each for _, metric in self.objective.terms for each in (metric, *metric.beside))

    def loss(self, passes: Passes) -> Loss:
        # No slope of 0 takes a NaN out of a backward pass (0 · NaN is NaN), so that of an input must not get into one.
        finite = passes.x.flatten(1).isfinite().all(1)
        passes = replace(passes, x=torch.where(per_row(finite, passes.x.ndim), passes.x, 0.0))
        stack = self._stack(passes)
        defined = []

        def value(inputs: Tensor, graph: bool) -> Tensor:
            evidence = self._evidence(passes, stack, inputs, graph)
            total, usable = self._value(evidence, finite[inputs])
            defined.append(usable)
            return total.to(passes.x.device)

        total = self._sum(passes, self._rows_each(passes, stack), value)
        return self.weighted(passes, total, defined=torch.cat(defined).to(passes.x).mean())

    def _rows_each(self, passes: Passes, stack: Normalised) -> int:
        """Evaluations of the model for one input."""
        explanation = sum(stack.stack.rows(passes.x.shape[1:]).values())
        rows = explanation
        for metric in self._metrics:
            draws = self._draws_of(metric)
            if metric.asks == "explanations":
                rows += draws * explanation
            elif metric.asks == "outputs":
                rows += 1 + draws
        return rows

    def _draws_of(self, metric: Metric) -> int:
        """How many draws a metric gets: some have a number of their own, such as one for completeness."""
        if metric.fixed is not None:
            return metric.fixed
        return self.draws

    def _evidence(self, passes: Passes, stack: Normalised, inputs: Tensor, graph: bool) -> Evidence:
        """What the draws say about the explainers' maps at these inputs."""
        score, points = self._score_of(passes, inputs)

        def maps_at(where: Score, near: Points) -> Tensor:
            return stack.attribute(where, near, graph=graph)

        maps = maps_at(score, points)
        task = Task(score, points, maps, stack.features, maps_at, passes.key / "penalty", graph=graph)
        measured: dict[str, Part] = {}
        for metric in self._metrics:
            own = metric.of_model(score)
            draws = self._draws_of(own)
            measured[own.statistic] = own.measure(task, range(draws), draws)
        return Evidence.of(measured)

    def _value(self, evidence: Evidence, finite: Tensor) -> tuple[Tensor, Tensor]:
        """(Σ over inputs of the loss, whether each input has one (b,)).

        The loss L is linearised at the evidence e: what is returned is L(e) + ⟨∂L/∂e, e' − e⟩ at e' = e. So w* and the scales
        are held, and an input without a finite slope is left out before it can make every gradient NaN.

        Args:
            evidence: of b inputs.
            finite: (b,), whether the input itself is.
        """
        numbers = _numbers_of(evidence)
        with torch.enable_grad():
            leaves = [each.detach().requires_grad_() for each in numbers]
            # In one small graph from the evidence on; the large one, from the parameters to the evidence, is met once, below.
            losses = self._losses(_with_numbers(evidence, leaves))
            slopes = torch.autograd.grad(losses.nan_to_num(0, 0, 0).sum(), leaves, materialize_grads=True)
        usable = losses.isfinite() & finite.to(losses.device)
        for slope in slopes:
            usable &= slope.flatten(1).isfinite().all(1)
        value = losses.detach()[usable].sum()
        if any(each.requires_grad for each in numbers):
            terms = [(each[usable] * slope[usable]).sum() for each, slope in zip(numbers, slopes, strict=True)]
            linear = torch.stack(terms).sum()
            value = value + linear - linear.detach()
        return value, usable

    def _losses(self, evidence: Evidence) -> Tensor:
        """(b,): the loss of the only explainer, or of the best mixture; NaN where there is none."""
        # Without a graph, so that neither the weights nor the scales are differentiated.
        held = _with_numbers(evidence, [each.detach() for each in _numbers_of(evidence)])
        valid = held.valid()
        if valid.shape[1] == 1:
            weights = valid.double()
        else:
            weights = self.objective.minimise(held).weights.to(valid.device)
        if len(self.objective.terms) == 1:
            scales = [torch.ones_like(weights[:, 0])]
        else:
            scales = self.objective.scales(held, valid)
        # One mixture for each input: M = 1.
        losses = self.objective.balanced(evidence.clean(), weights.nan_to_num(0)[:, None], scales)[:, 0]
        return torch.where(valid.any(1), losses, torch.nan)


def _names_of_numbers(part: Part) -> list[str]:
    """The names of a part's tensors that can have a gradient. Integers, such as which draws are there, have none."""
    return [name for name, value in vars(part).items() if isinstance(value, Tensor) and value.is_floating_point()]


def _numbers_of(evidence: Evidence) -> list[Tensor]:
    """Every part's numbers, part by part."""
    return [getattr(part, name) for part in evidence.parts.values() for name in _names_of_numbers(part)]


def _with_numbers(evidence: Evidence, numbers: list[Tensor]) -> Evidence:
    """The same parts with other numbers, in the order of :func:`_numbers_of`."""
    left = iter(numbers)
    parts = {}
    for kind, part in evidence.parts.items():
        parts[kind] = replace(part, **{name: next(left) for name in _names_of_numbers(part)})  # type: ignore[arg-type]
    return Evidence.of(parts)
