"""Any metric with any differentiable explainers as a loss, and the insertion/deletion curves of a map as a loss.

Regularisers: add their ``total`` to your task loss. The explanation itself is that of the model as it will be used: in eval
mode, on the input given, of the label's output (:class:`~consilience.Score`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import InputError
from ..explainers import Explainer, Normalised, Stack, resolve
from ..features.base import Features
from ..features.images import features_for
from ..metrics.base import Metric
from ..metrics.objective import Objective
from ..model.outputs import Kind
from ..model.score import Score
from ..perturb.baseline import Baseline
from ..perturb.points import Points
from ..statistics.evidence import Evidence, Part
from ..statistics.keys import fold
from ..task import Task
from .base import Loss, Regulariser, logistic
from .passes import Passes, chunks, known, summed

Methods = str | Explainer | Iterable[str | Explainer]


class _OfMaps(Regulariser):
    """What needs the explainers' maps."""

    def __init__(
        self,
        explainers: Methods,
        *,
        features: Features | str | None,
        sign: str | None,
        scale: str | None,
        kind: str,
        **common: Any,
    ):
        super().__init__(**common)
        self.explainers, self.kind = resolve(explainers), kind
        self.features, self.sign, self.scale = features, sign, scale

    def _stack(self, passes: Passes) -> Normalised:
        shape = passes.x.shape[1:]
        sign = self.sign or ("abs" if len(shape) == 3 else "keep")
        return Normalised(
            Stack(self.explainers, self.seed), features_for(self.features, shape), sign, self.scale or "max"
        )

    def _at(self, passes: Passes, part: Tensor) -> tuple[Score, Points]:
        """Score and points of the inputs ``part``. A step's draws, the explainers' own too, hang on ids of its own."""
        regression = self.kind == "output" and (passes.y is None or passes.y.is_floating_point())
        target = None if regression else passes.labels
        kind: str | Kind = self.kind
        if passes.loss_fn is logistic:
            kind = Kind(self.kind, outputs="logits")  # so that labels 0 and 1 are classes of one output
        score = Score(passes.bare, target, kind=kind, max_batch=passes.max_batch).at(passes.x, part)
        ids = fold(passes.ids[part], torch.full_like(part, passes.step))
        return score, Points(passes.x[part], part, ids, len(passes))

    def _sum(self, passes: Passes, per: int, value: Callable[[Tensor, bool], Tensor]) -> Tensor:
        """Σ over the batch of value(inputs, graph): inputs in groups whose rows (``per`` each) fit, at least one."""
        inputs = torch.arange(len(passes), device=passes.x.device)
        groups = chunks(inputs, passes.max_batch // per)
        wanted = passes.parameters if torch.is_grad_enabled() else []
        with sdpa_kernel(SDPBackend.MATH):
            if len(groups) == 1 or not wanted:
                return torch.stack([value(part, bool(wanted)) for part in groups]).sum()
            return known(*summed((value(part, True) for part in groups), wanted), wanted)


class Penalty(_OfMaps):
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
        features, sign, scale: of the maps (:class:`~consilience.explainers.Normalised`); None: pixels, "abs", "max" for
            images, and elements, "keep", "max" otherwise.
        kind: of the score explained (:class:`~consilience.Score`); with "output", labels may be a regression's.
        common: see :class:`~consilience.train.TrainingObjective`.

    Memory: the rows of as many inputs as fit into ``max_batch``, one at least.
    Rows: B · (1 + draws) · the explainers' own (sensitivity), B · (the explainers' own + 1 + draws) (infidelity).

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
        explainers: Methods,
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
        if not isinstance(metric, Objective) or len(metric.statistics) < len(metric.terms):
            raise InputError(
                f"metric: a metric, or a sum of metrics of different kinds, got {metric!r}; "
                "two of one kind would share their draws"
            )
        if not (isinstance(draws, int) and draws > 0):
            raise InputError(f"draws: a positive integer, got {draws!r}")
        self.objective, self.draws = metric, draws

    def loss(self, passes: Passes) -> Loss:
        # No slope of 0 takes a NaN out of a backward pass, so that of an input must not get into one.
        fine = passes.x.flatten(1).isfinite().all(1)
        passes = replace(passes, x=torch.where(fine.view(-1, *[1] * (passes.x.ndim - 1)), passes.x, 0.0))
        stack, defined = self._stack(passes), []
        asked = {metric.asks for _, metric in self.objective.terms}
        maps = sum(stack.stack.rows(passes.x.shape[1:]).values())
        per = maps * (1 + self.draws * ("explanations" in asked)) + (1 + self.draws) * ("outputs" in asked)

        def value(part: Tensor, graph: bool) -> Tensor:
            total, usable = self._value(self._evidence(passes, stack, part, graph), fine[part])
            defined.append(usable)
            return total.to(passes.x.device)

        total = self._sum(passes, per, value)
        return self.weighted(passes, total, defined=torch.cat(defined).to(passes.x).mean())

    def _evidence(self, passes: Passes, stack: Normalised, part: Tensor, graph: bool) -> Evidence:
        score, points = self._at(passes, part)

        def maps(where: Score, at: Points) -> Tensor:
            return stack.attribute(where, at, graph=graph)

        task = Task(score, points, maps(score, points), stack.features, maps, passes.key / "penalty", graph=graph)
        samples = range(self.draws)
        measured = {metric.statistic: metric.measure(task, samples, self.draws) for _, metric in self.objective.terms}
        return Evidence.of(measured)

    def _value(self, evidence: Evidence, fine: Tensor) -> tuple[Tensor, Tensor]:
        """(Σ over inputs of the loss, whether each has one (b,), of those that are ``fine`` (b,)).

        The loss is linearised where the evidence is: w* and scales are held, and an input without a finite slope is left out
        before it can make every gradient NaN.
        """
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in _tensors(evidence)]
            losses = self._losses(_like(evidence, leaves))
            slopes = torch.autograd.grad(losses.nan_to_num(0, 0, 0).sum(), leaves, materialize_grads=True)
        usable = losses.isfinite() & fine.to(losses.device)
        for slope in slopes:
            usable &= slope.flatten(1).isfinite().all(1)
        value = losses.detach()[usable].sum()
        if any(t.requires_grad for t in _tensors(evidence)):
            linear = [(t[usable] * s[usable]).sum() for t, s in zip(_tensors(evidence), slopes, strict=True)]
            total = torch.stack(linear).sum()
            value = value + total - total.detach()
        return value, usable

    def _losses(self, evidence: Evidence) -> Tensor:
        """(b,): the loss of the only explainer, or of the best mixture; NaN where there is none."""
        held = _like(evidence, [t.detach() for t in _tensors(evidence)])
        valid = held.valid()
        w = valid.double() if valid.shape[1] == 1 else self.objective.minimise(held).weights.to(valid.device)
        scales = [torch.ones_like(w[:, 0])] if len(self.objective.terms) == 1 else self.objective._scales(held, valid)
        losses = self.objective._sum(evidence.clean(), w.nan_to_num(0)[:, None], scales)[:, 0]
        return torch.where(valid.any(1), losses, torch.nan)


class InsertionDeletion(_OfMaps):
    """insertion · mean ℓ(inserted) − deletion · mean (ℓ(deleted) − ℓ(x)): ID-ExpO (Yoshikawa & Iwata 2024, arXiv 2310.12553).

    Features are kept (inserted) or replaced by the baseline (deleted) by soft masks σ(T (φ − τ)/s): thresholds τ half-way
    between the values of φ on either side of ``steps`` evenly spaced ranks, s the mean gap between φ's sorted values; τ and s
    are held. The deletion part has no lower bound. Unlike the authors' code, the last mask leaves some features out. parts:
    insertion_deletion, weight.

    Args:
        explainer: one, by name or configured; differentiable.
        steps: masks per curve; fewer than features.
        insertion, deletion: the weights of the two curves.
        temperature: T; larger is closer to a hard mask.
        baseline: what stands for "absent": a number, "mean", "blur", or a tensor.
        features, sign, kind: as for :class:`Penalty`; the sign is kept by default. φ's scale does not matter.

    Rows: the explainer's own, and B · (1 + 2 steps) in the caller's mode. Memory: as for :class:`Penalty`.
    """

    name = "insertion_deletion"

    def __init__(
        self,
        explainer: str | Explainer,
        steps: int = 10,
        *,
        insertion: float = 1.0,
        deletion: float = 1.0,
        temperature: float = 1.0,
        baseline: Any = 0.0,
        features: Features | str | None = None,
        sign: str = "keep",
        kind: str = "logit",
        **common: Any,
    ):
        super().__init__(explainer, features=features, sign=sign, scale="none", kind=kind, **common)
        if len(self.explainers) > 1:
            raise InputError(f"explainer: one map makes one curve, got {len(self.explainers)} explainers")
        self.steps, self.insertion, self.deletion = steps, insertion, deletion
        self.temperature, self.baseline = temperature, Baseline.of(baseline)

    def value(self, passes: Passes) -> Tensor:
        stack, steps = self._stack(passes), self.steps
        shape = passes.x.shape[1:]
        count = math.prod(stack.features.shape(shape))
        if not 0 < steps < count:
            raise InputError(f"steps: at least 1 and fewer than the {count} features, got {steps}")
        per = sum(stack.stack.rows(shape).values()) + 2 * steps + 1
        ranks = torch.arange(1, steps + 1, device=passes.x.device) * count // (steps + 1)

        def value(part: Tensor, graph: bool) -> Tensor:
            score, points = self._at(passes, part)
            maps = stack.attribute(score, points, graph=graph)[:, 0]
            owner, keep = part.repeat_interleave(steps), self._masks(maps.flatten(1), ranks)
            keep = keep.flatten(0, 1).unflatten(1, maps.shape[1:])
            keep = stack.features.expand(keep, owner, shape).to(points.x)
            base = self.baseline.at(points).repeat_interleave(steps, 0)
            change = keep * (points.x.repeat_interleave(steps, 0) - base)
            rows = torch.cat([base + change, points.x.repeat_interleave(steps, 0) - change, points.x])
            losses = passes.losses(rows, torch.cat([owner, owner, part]), part * per)
            inserted, deleted, clean = losses.split([len(owner), len(owner), len(part)])
            return self.insertion * inserted.sum() / steps - self.deletion * (deleted.sum() / steps - clean.sum())

        return self._sum(passes, per, value)

    def _masks(self, maps: Tensor, ranks: Tensor) -> Tensor:
        """(b, K) → (b, steps, K)."""
        ordered = maps.detach().sort(dim=1, descending=True).values
        at = (ordered[:, ranks - 1] + ordered[:, ranks]) / 2
        distinct = (ordered.diff(dim=1) != 0).sum(1).clamp(min=1)
        gap = (ordered[:, 0] - ordered[:, -1]) / distinct
        gap = torch.where(gap > 0, gap, 1.0)
        return torch.sigmoid(self.temperature * (maps[:, None] - at[..., None]) / gap[:, None, None])


def _numbers(part: Part) -> list[str]:
    """The names of a part's tensors that have a gradient; which draws are there has none."""
    return [name for name, value in vars(part).items() if isinstance(value, Tensor) and value.is_floating_point()]


def _tensors(evidence: Evidence) -> list[Tensor]:
    """Every part's numbers, part by part."""
    return [getattr(part, name) for part in evidence.parts.values() for name in _numbers(part)]


def _like(evidence: Evidence, tensors: list[Tensor]) -> Evidence:
    """The same parts with other numbers, in the order of :func:`_tensors`."""
    left = iter(tensors)
    parts = {}
    for kind, part in evidence.parts.items():
        parts[kind] = replace(part, **{name: next(left) for name in _numbers(part)})  # type: ignore[arg-type]
    return Evidence.of(parts)
