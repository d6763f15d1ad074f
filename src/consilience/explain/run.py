"""One explanation to be made: its arguments resolved once, then combined, and whatever else is asked, measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..combine.aggregation import Aggregation, Combination, Correction, mix
from ..combine.aggregations import Given
from ..combine.correction import with_correction
from ..combine.measurement import Measurement
from ..combine.regression import regions
from ..combine.sequential import Fitted, fit
from ..perturb.points import Points, present
from ..settings import checked
from ..simplex import Solution
from ..statistics.certain import certain_signs
from .cost import Cost, Rows
from .options import Options
from .prepare import Ready, prepare
from .progress import Meter, Progress


@dataclass(frozen=True)
class Job:
    """One call of :func:`~consilience.explain`, resolved: what is ready, and how its maps become one.

    Args:
        ready: the batch, the methods and the metrics.
        options: everything that was asked for.
        aggregation: the options' own, with given weights narrowed to the inputs that are left.
        progress: told what is done and what is expected.
    """

    ready: Ready
    options: Options
    aggregation: Aggregation
    progress: Progress | None = None

    @cached_property
    def meter(self) -> Meter:
        """What is done so far; its first use is where the work begins."""
        return Meter(self.progress, self.ready.score.counts, self.cost.expected())

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of draws without which there are no weights."""
        return self.aggregation.kinds

    @property
    def tolerance(self) -> float | None:
        """The regret at which to stop drawing; None: a fixed number of draws."""
        if not self.options.sequential:
            return None
        return self.options.tolerance

    @property
    def resolved(self) -> int:
        """Neighbours at which the weights are solved anew; none where nothing is solved."""
        if not self.aggregation.solves:
            return 0
        return self.options.resolved_draws

    @torch.inference_mode(False)
    def combine(self, every: bool = True) -> Combined:
        """Draw what the weights need, and solve.

        Args:
            every: with the derived maps, which stand in tables; False: the weights alone.
        """
        meter = self.meter
        if not every:
            # Nothing follows, so the answer is all that is expected.
            meter = Meter(self.progress, self.ready.score.counts, self.cost.expected(every=False))
        meter.begin("answer")
        score = self.ready.score
        points = self.ready.points
        measurement = self.ready.measurement
        # A map that is no weighted sum is one of the derived maps itself.
        derived = every or not self.aggregation.linear
        base, sums, scales = measurement.base(score, points, derived)
        measured = base if every else base[:, : measurement.rows]
        groups = fit(self.aggregation, measurement, score, points, measured, self.options.fitting, self.tolerance)
        if not every:
            meter.end()
        return Combined(self.aggregation, measurement, points, base, sums, scales, groups).with_correction()

    def planned(self, every: bool = True) -> dict[str, tuple[Rows, Rows]]:
        """Model evaluations after the preparation, by what they are for: (at least, at most), in closed form.

        They differ where draws are made until sure, or until decided: the first round, and the budget.

        Args:
            every: of a whole explanation; False: of the weights alone.
        """
        return self.cost.of_explanation() if every else self.cost.of_weights()

    @property
    def cost(self) -> Cost:
        """What it takes."""
        return Cost(self.ready, self.options, self.aggregation)


@dataclass(frozen=True)
class Certain:
    """Which signs are certain, all of one input together, at 95 %.

    Args:
        signs: (N, *A) int8: 1, −1, or 0 where it is not known.
        positive: (N,), how many units or regions are certain to raise the score.
        negative: (N,), how many are certain to lower it.
        number: (N,), how many there are.
        unit: what is counted, in words.
    """

    signs: Tensor
    positive: Tensor
    negative: Tensor
    number: Tensor
    unit: str


@dataclass(frozen=True)
class Combined:
    """What a job drew and solved.

    Args:
        aggregation: how maps become one.
        measurement: of the job.
        points: the N inputs.
        base: maps (N, R, *A) of the methods and the derived ones, and the correction's behind them, if there is one.
        sums: Σφ (N, working k) of raw attributions.
        scales: (N, k), what the methods' maps were divided by.
        groups: inputs that have as many draws each, and their weights.
    """

    aggregation: Aggregation
    measurement: Measurement
    points: Points
    base: Tensor
    sums: Tensor
    scales: Tensor
    groups: list[Fitted]

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        """Of each input, its group and its place there."""
        place_of = {}
        for number, group in enumerate(self.groups):
            for at, i in enumerate(group.index):
                place_of[i] = (number, at)
        return [place_of[i] for i in sorted(place_of)]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """(N, …) in the inputs' order.

        Args:
            parts: (n, …) of each group, in its own order.
        """
        grouped = [i for group in self.groups for i in group.index]
        order = torch.tensor(grouped, device=parts[0].device).argsort()
        return torch.cat(list(parts))[order]

    @cached_property
    def solution(self) -> Solution:
        """Weights, values, gaps and status of all N inputs."""
        solutions = [group.solved.solution for group in self.groups]
        return Solution(
            weights=self.join([each.weights for each in solutions]),
            value=self.join([each.value for each in solutions]),
            gap=self.join([each.gap for each in solutions]),
            status=tuple(solutions[number].status[at] for number, at in self.places),
        )

    @property
    def shown(self) -> int:
        """How many of the maps stand in tables: all but the correction's."""
        return self.base.shape[1] - (self.correction is not None)

    @cached_property
    def correction(self) -> Correction | None:
        """What is added to the mixtures of all N inputs; None: nothing."""
        parts = [group.solved.correction for group in self.groups]
        if any(part is None for part in parts):
            return None
        return Correction(*(self.join(columns) for columns in zip(*parts, strict=True)))

    @cached_property
    def error(self) -> Tensor | None:
        """(N, *A): the standard error of each mask unit's sum, spread over its features as the map is; None: not known."""
        if self.correction is None:
            return None
        units = self.correction.values.shape[1]
        return self.measurement.of_units(self.correction.error[:, :units], self.points)

    @cached_property
    def by_unit(self) -> Tensor | None:
        """(N, *A): the posterior with the value of each mask unit spread evenly over its features; None: no posterior."""
        if self.correction is None:
            return None
        units = self.correction.values.shape[1]
        return self.measurement.of_units(self.correction.sums[:, :units], self.points)

    @cached_property
    def certain(self) -> Certain | None:
        """Which features are certain to raise or to lower the score; None: not known."""
        correction = self.correction
        if correction is None:
            return None
        shape = self.points.x.shape[1:]
        where = self.measurement.infidelity.neighbourhood(shape)
        units = correction.values.shape[1]
        grid = where.features.shape(shape)
        unit = where.features.unit
        freedom = correction.freedom
        there = present(where.features, self.points).to(freedom.device)
        signs = certain_signs(correction.sums[:, :units], correction.error[:, :units], freedom=freedom, there=there)
        number = there.sum(1)
        of_regions = correction.sums[:, units:]
        counted = signs
        if of_regions.shape[1]:
            counted = certain_signs(of_regions, correction.error[:, units:], freedom=freedom)
            number = torch.full_like(number, counted.shape[1])
            # A region's sign is that of each of its units.
            block = max(where.scales)
            members = regions(grid, block, of_regions.new_zeros(1, units))
            signs = (counted.to(members) @ members).to(torch.int8)
            unit = f"{block} x {block} block of {unit}es"
        elements = where.features.expand(signs.unflatten(1, grid), self.points.owner, shape)
        features = self.measurement.stack.features
        found = features.reduce(elements.to(self.base), self.points.owner).sign().to(torch.int8)
        return Certain(found, (counted > 0).sum(1), (counted < 0).sum(1), number, unit)

    def with_correction(self) -> Combined:
        """The correction's map and its evidence behind the others, so that whatever judges rows judges it too."""
        correction = self.correction
        if correction is None:
            return self
        added = self.measurement.of_units(correction.values, self.points)
        groups = []
        for group in self.groups:
            at = list(group.index)
            assert group.solved.correction is not None
            # Without the table only the methods were measured.
            measured = self.base[at][:, : group.evidence.like.shape[1]]
            evidence = with_correction(group.evidence, measured, added[at], group.solved.correction)
            groups.append(replace(group, evidence=evidence))
        base = torch.cat([self.base, added[:, None].to(self.base)], 1)
        return replace(self, base=base, groups=groups)

    @cached_property
    def mixing(self) -> Tensor:
        """(N, R): the combined map's coefficients on the methods, the derived maps and the correction."""
        whole = Combination(self.solution, correction=self.correction)
        mixing = self.measurement.mixing(self.aggregation, whole, self.base.shape[1])
        if self.correction is not None:
            mixing[:, -1] = 1
        return mixing

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
    dry: bool = False,
) -> Job:
    """Check everything, evaluate the model once, try every method.

    Args:
        model: as for :func:`consilience.explain`.
        x: inputs (B, *F).
        target: which output is explained.
        options: everything else that is asked for, checked.
        ids: (B,) integers to which the inputs' draws belong; None: their places in the batch.
        progress: called with (work done, work planned).
        dry: for a plan: nothing is explained yet.

    Raises:
        InputError: the data cannot be used, or no input or no method is left.
    """
    progress = checked("progress", progress, Callable | None)
    with torch.inference_mode(False):
        ready = prepare(model, x, target, options, ids, dry)
    aggregation = options.aggregation
    if isinstance(aggregation, Given):
        aggregation = aggregation.narrowed(ready.left, len(ready.x), ready.measurement.rows)
    return Job(ready, options, aggregation, progress)
