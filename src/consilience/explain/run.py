"""One explanation to be made: its arguments resolved once, then combined, and whatever else is asked, measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..combine.aggregation import Aggregation, mix
from ..combine.aggregations import Given
from ..combine.draws import KINDS, Draws
from ..combine.measurement import Measurement
from ..combine.sequential import ROUNDS, Fitted, fit
from ..explainers import Direct, Stack
from ..features.base import Features
from ..model.batching import Counts
from ..perturb.baseline import Baseline
from ..perturb.coalitions import Coalitions, Permutations, unit
from ..settings import checked
from ..simplex import Solution
from .options import Options
from .prepare import Ready, prepare

Progress = Callable[[float, float], None]
"""Called with (work done, work planned), in forward evaluations; a gradient counts three."""


@dataclass(frozen=True)
class Rows:
    """Model evaluations: ``gradient`` (forward and backward) and ``forward`` only."""

    gradient: int = 0
    forward: int = 0

    def __add__(self, more: Rows) -> Rows:
        return Rows(self.gradient + more.gradient, self.forward + more.forward)

    def __mul__(self, times: int) -> Rows:
        return Rows(self.gradient * times, self.forward * times)

    @property
    def work(self) -> int:
        """In forward evaluations."""
        return self.forward + 3 * self.gradient


@dataclass(frozen=True)
class Job:
    """One call of :func:`~consilience.explain`, resolved: what is ready, and how its maps become one.

    Args:
        ready: the batch, the methods and the metrics.
        options: everything that was asked for.
        aggregation: the options' own, with given weights narrowed to the inputs that are left.
        progress: told what is done and what is planned.
    """

    ready: Ready
    options: Options
    aggregation: Aggregation
    progress: Progress | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of draws without which there are no weights."""
        return self.aggregation.kinds

    @property
    def tolerance(self) -> float | None:
        """The regret at which to stop drawing; None: a fixed number of draws."""
        return self.options.tolerance if self.options.sequential else None

    @property
    def resolved(self) -> int:
        """Neighbours at which the weights are solved anew."""
        return self.options.resolved_draws if self.aggregation.solves else 0

    @torch.inference_mode(False)
    def combine(self, every: bool = True) -> Combined:
        """Draw and solve. ``every``: with the derived maps and all kinds of draws, for the table; else only what the weights
        need."""
        ready = self.ready
        measurement, score, points = ready.measurement, ready.score, ready.points
        self._follow(every)
        derived = every or not self.aggregation.linear
        base, sums, scales = measurement.base(score, points, derived)
        kinds = tuple(measurement.metrics) if every else self.kinds
        drawn = base if every else base[:, : measurement.rows]
        groups = fit(self.aggregation, measurement, score, points, drawn, self.options.fitting, self.tolerance, kinds)
        return Combined(self.aggregation, measurement, base, sums, scales, groups)

    def planned(self, every: bool = True) -> dict[str, tuple[Rows, Rows]]:
        """Model evaluations after the preparation, by what they are for: (at least, at most), in closed form.

        They differ where draws are made until sure: the first round, and the budget."""
        ready, inputs = self.ready, len(self.ready.points)
        stack = ready.measurement.stack.stack
        cost = stack.rows(ready.x.shape[1:])
        one = Rows(cost["gradient"], cost["forward"])
        kinds = tuple(ready.measurement.metrics) if every else self.kinds
        fitting = self.options.fitting
        least = most = fitting
        again = Rows()
        if self.tolerance is not None:
            first = [min(getattr(ROUNDS, name), getattr(fitting, name)) for name in KINDS.values()]
            least = Draws(*first)
            # What the objective does not look at stays at the first round.
            most = Draws(*((fitting if kind in self.kinds else least).of_kind(kind) for kind in KINDS))
            # Each further round of masks evaluates the inputs themselves again.
            again = Rows(0, inputs * math.ceil(math.log2(most.infidelity / least.infidelity)))
        low, high = self._measured(least, kinds, one, "fit"), self._measured(most, kinds, one, "fit")
        found = {"the maps": (one * inputs, one * inputs), "draws to fit": (low, high + again)}
        if every:
            fresh = self._measured(self.options.judging, kinds, one, "fresh")
            found["fresh draws"] = (fresh, fresh)
            masks = ready.measurement.infidelity.neighbourhood(ready.x.shape[1:])
            rows = min(8, masks.baseline.count(ready.x.ndim - 1))
            found["all features taken away"] = (Rows(0, rows * inputs),) * 2
            if self.resolved:
                again_low = self._measured(least, self.kinds, one, "fit")
                again_high = self._measured(most, self.kinds, one, "fit")
                found["weights solved anew"] = (
                    (one * inputs + again_low) * self.resolved,
                    (one * inputs + again_high) * self.resolved,
                )
            if not isinstance(ready.score.model, nn.Module):
                found["is it piecewise constant?"] = (Rows(0, 11 * inputs),) * 2
            shape = ready.x.shape[1:]
            rows = sum(baseline.count(len(shape)) for baseline, _ in baselines_of(stack, shape))
            if rows:
                found["completeness"] = (Rows(0, rows * inputs),) * 2
        return found

    def _measured(self, draws: Draws, kinds: Iterable[str], one: Rows, stream: str) -> Rows:
        """Evaluations of all inputs' draws of some kinds from a stream; ``one``: of an explanation."""
        points = self.ready.points
        total = Rows()
        for kind in kinds:
            metric = self.ready.measurement.metrics[kind]
            count = metric.evaluations(points, draws.of_metric(metric), stream)
            if metric.asks == "explanations":
                total = total + one * count
            else:
                # Outputs are compared with those of the inputs themselves.
                total = total + Rows(0, count + len(points))
        return total

    def _follow(self, every: bool) -> None:
        """Tie the score's counter to the caller's progress."""
        if self.progress is None:
            return
        counts, tell = self.ready.score.counts, self.progress
        planned = sum((most for _, most in self.planned(every).values()), Rows()).work
        begun = Rows(counts.gradient, counts.forward).work

        def watch(now: Counts) -> None:
            done = Rows(now.gradient, now.forward).work - begun
            tell(min(done, planned), planned)

        counts.watch = watch


@dataclass(frozen=True)
class Combined:
    """What a job drew and solved.

    Args:
        aggregation: how maps become one.
        measurement: of the job.
        base: maps (N, R, *A) of the methods and the derived ones.
        sums: Σφ (N, working k) of raw attributions.
        scales: (N, k), what the methods' maps were divided by.
        groups: inputs with as many draws each.
    """

    aggregation: Aggregation
    measurement: Measurement
    base: Tensor
    sums: Tensor
    scales: Tensor
    groups: list[Fitted]

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        """Of each input, its group and its place there."""
        found = [(i, part, at) for part, group in enumerate(self.groups) for at, i in enumerate(group.index)]
        return [(part, at) for _, part, at in sorted(found)]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """A tensor for each group, its inputs first, → one in the inputs' order."""
        order = torch.tensor([i for group in self.groups for i in group.index], device=parts[0].device).argsort()
        return torch.cat(list(parts))[order]

    @cached_property
    def solution(self) -> Solution:
        """Weights, values, gaps and status of all inputs."""
        found = [group.solved.solution for group in self.groups]
        return Solution(
            weights=self.join([each.weights for each in found]),
            value=self.join([each.value for each in found]),
            gap=self.join([each.gap for each in found]),
            status=tuple(found[part].status[at] for part, at in self.places),
        )

    @cached_property
    def mixing(self) -> Tensor:
        """(N, R): the combined map's coefficients on the methods and the derived maps."""
        return self.measurement.mixing(self.aggregation, self.solution.weights, self.base.shape[1])

    @cached_property
    def attribution(self) -> Tensor:
        """(N, *A)."""
        return mix(self.mixing[:, None], self.base)[:, 0]


def begin(
    model: nn.Module | Callable,
    x: Tensor | np.ndarray,
    target: Any,
    options: Options,
    ids: Sequence[int] | Tensor | None = None,
    progress: Progress | None = None,
) -> Job:
    """Check everything, evaluate the model once, try every method. Arguments as for :func:`consilience.explain`."""
    progress = checked("progress", progress, Callable | None)
    with torch.inference_mode(False):
        ready = prepare(model, x, target, options, ids)
    aggregation = options.aggregation
    if isinstance(aggregation, Given):
        aggregation = aggregation.narrowed(ready.left, len(ready.x), ready.measurement.rows)
    return Job(ready, options, aggregation, progress)


def baselines_of(stack: Stack, shape: Sequence[int]) -> dict[tuple[Baseline, Features | None], list[int]]:
    """What explainers take away that claim to add up → which explainers those are.

    That is a baseline, and the features that are replaced by it; None: every element of inputs with axes ``shape``."""
    found: dict[tuple[Baseline, Features | None], list[int]] = {}
    for at, explainer in enumerate(stack.explainers):
        if explainer.complete and not isinstance(explainer, Direct):
            where = explainer.need.where
            features = unit(where.features, shape) if isinstance(where, Coalitions | Permutations) else None
            baseline = getattr(where, "baseline", None)
            if baseline is not None:
                found.setdefault((baseline, features), []).append(at)
    return found
