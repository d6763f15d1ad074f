"""How an explanation is measured: which maps, by which metrics, on which draws."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import InputError
from ..explainers import Normalised
from ..metrics import AverageSensitivity, Contrast, Infidelity
from ..metrics.base import Metric
from ..model.score import Score
from ..perturb.points import Points, present
from ..statistics.evidence import Evidence
from ..statistics.keys import Key
from ..statistics.tensors import exact
from ..task import Task
from .aggregation import Aggregation, Combination, mix
from .draws import Draws


@dataclass(frozen=True)
class Measurement:
    """The maps and the metrics of one explanation.

    Args:
        stack: the methods that work, and the stage that makes their attributions maps.
        working: the places of those methods among all that were asked for.
        rows: k, how many were asked for; maps have k rows, NaN where a method failed.
        metrics: kind of evidence → the metric that is measured.
        derived: aggregations whose maps follow the k methods' as further rows.
        seed: names all draws.
    """

    stack: Normalised
    working: tuple[int, ...]
    rows: int
    metrics: Mapping[str, Metric]
    derived: tuple[Aggregation, ...]
    seed: int

    @property
    def sensitivity(self) -> AverageSensitivity:
        """The metric of the neighbours that every table shows."""
        return self.metrics["quadratic"]  # type: ignore[return-value]

    @property
    def infidelity(self) -> Infidelity:
        """The metric of the masks that every table shows."""
        return self.metrics["responses"]  # type: ignore[return-value]

    def mixing(self, aggregation: Aggregation, combination: Combination, rows: int) -> Tensor:
        """(B, R): an aggregation's map as coefficients on the maps of methods and derived ones, without its correction.

        Args:
            aggregation: how maps become one.
            combination: what it made of the evidence.
            rows: R, how many maps there are.
        """
        weights = combination.weights
        coefficients = weights.new_zeros(len(weights), rows)
        if combination.correction is not None:
            coefficients[:, : self.rows] = combination.correction.coefficients
        elif aggregation.linear:
            coefficients[:, : self.rows] = weights
        else:
            coefficients[:, self.rows + self.derived.index(aggregation)] = 1
        return coefficients

    def of_units(self, values: Tensor, points: Points) -> Tensor:
        """(N, *A): what mask units have, as a map: spread evenly over each unit's elements, and summed over features.

        Args:
            values: (N, U).
            points: the N inputs.
        """
        shape = points.x.shape[1:]
        units = self.infidelity.neighbourhood(shape).features
        spread = units.spread(values.unflatten(1, units.shape(shape)), points.owner, shape)
        return self.stack.features.reduce(spread, points.owner)

    def combined(self, aggregation: Aggregation, combination: Combination, maps: Tensor, points: Points) -> Tensor:
        """(N, *A) float64: the aggregation's map.

        Args:
            aggregation: how maps become one.
            combination: what it made of the evidence.
            maps: (N, R, *A), of methods and derived ones.
            points: the N points that they explain.
        """
        mixing = self.mixing(aggregation, combination, maps.shape[1])
        found = mix(mixing[:, None], exact(maps))[:, 0]
        if combination.correction is not None:
            found = found + self.of_units(combination.correction.values.to(found), points)
        return found

    def raw(self, score: Score, points: Points) -> Tensor:
        """(N, working k, *F): the methods' attributions before the stage that reduces and scales them.

        Args:
            score: the model.
            points: N inputs.
        """
        return self.stack.stack.attribute(score, points)

    def plain(self, raw: Tensor, owner: Tensor) -> Tensor:
        """(N, working k, *A): attributions reduced to features, signed and unscaled.

        Args:
            raw: (N, working k, *F).
            owner: (N,), to which input each belongs.
        """
        return replace(self.stack, sign="keep", scale="none").apply(raw, owner)

    def maps(self, score: Score, points: Points, derived: bool = True) -> Tensor:
        """(N, k [+ derived], *A): every method in order (NaN where one failed), then the derived maps.

        Args:
            score: the model.
            points: N points, inputs or neighbours of theirs.
            derived: with the derived maps.
        """
        return self.complete(self.stack.attribute(score, points), points, derived)

    def base(self, score: Score, points: Points, derived: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`maps`; Σφ (N, working k) of each attribution before it is reduced and scaled; and what its map was divided
        by, (N, k), NaN where a method failed.

        Args:
            score: the model.
            points: N inputs.
            derived: with the derived maps.
        """
        maps = []
        sums = []
        sizes = []
        for part, raw in self.stack.stack.stream(score, points):
            found, size = self.stack.scaled(raw, points.owner[part])
            maps.append(found)
            sizes.append(size)
            sums.append(exact(raw.flatten(2)).sum(2))
        scales = self.complete(torch.cat(sizes), points, derived=False)
        return self.complete(torch.cat(maps), points, derived), torch.cat(sums), scales

    def complete(self, found: Tensor, points: Points, derived: bool) -> Tensor:
        """(N, k [+ derived], *A): all methods in order, and the derived maps.

        Args:
            found: (N, working k, *A), the maps of the methods that work.
            points: the N points.
            derived: with the derived maps.
        """
        every = found.new_full((len(found), self.rows, *found.shape[2:]), torch.nan)
        every[:, list(self.working)] = found
        if not derived:
            return every
        has = present(self.stack.features, points).view(len(points), *found.shape[2:])
        equal = torch.full_like(found.flatten(2)[..., 0], 1 / found.shape[1])
        extra = [aggregation.combine(found, equal, has) for aggregation in self.derived]
        return torch.cat([every, torch.stack(extra, 1).to(every)], 1)

    def evidence(
        self,
        score: Score,
        points: Points,
        base: Tensor,
        draws: Draws,
        stream: str,
        kinds: Collection[str] | None = None,
    ) -> Evidence:
        """What the draws of several kinds say about maps.

        Args:
            score: the model.
            points: N inputs.
            base: (N, R, *A), their maps.
            draws: how many of each kind.
            stream: names the draws: "fit" or "fresh".
            kinds: which are made; None: all.
        """
        found = Evidence()
        for kind, metric in self.metrics.items():
            if kinds is None or kind in kinds:
                found = found + self.more(score, points, base, kind, range(draws.of_metric(metric)), stream)
        return found

    def more(self, score: Score, points: Points, base: Tensor, kind: str, samples: range, stream: str) -> Evidence:
        """Only some draws of one kind.

        Args:
            score: the model.
            points: N inputs.
            base: (N, R, *A), their maps.
            kind: e.g. "quadratic" (neighbours) or "responses" (masks).
            samples: the numbers of the draws.
            stream: names the draws: "fit" or "fresh".
        """
        derived = base.shape[1] > self.rows

        def explain(where: Score, at: Points) -> Tensor:
            return self.maps(where, at, derived)

        task = Task(score, points, base, self.stack.features, explain, Key(self.seed, stream))
        return Evidence.of({kind: self.metrics[kind].measure(task, samples, samples.stop)})


def metrics_of(aggregation: Aggregation) -> dict[str, Metric]:
    """Kind of evidence → the metric that is measured: those of every table, and those the aggregation looks at.

    Args:
        aggregation: how maps become one.

    Raises:
        InputError: two metrics of one kind have different settings; draws of one kind are shared.
    """
    asked: dict[str, Metric] = {}
    for metric in aggregation.metrics:
        known = asked.setdefault(metric.statistic, metric)
        if known.drawn != metric.drawn:
            raise InputError(
                f"objective: two different {type(metric).__name__} settings in one sum; draws are shared, so use one"
            )
    usual = {metric.statistic: metric for metric in (AverageSensitivity(), Infidelity(), Contrast())}
    # The order is that of every table; an aggregation's own settings take the place of the usual ones.
    return usual | asked
