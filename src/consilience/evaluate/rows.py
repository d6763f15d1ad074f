"""The rows that an evaluation judges (methods, aggregations, the consensus), made into one task for every measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import choose
from ..explain.options import Options
from ..explain.prepare import Ready
from ..measures import Task
from ..statistics.keys import Key
from .mixtures import CONSENSUS, Mixtures


@dataclass(frozen=True)
class Rows:
    """The rows of an evaluation, which are the same for every batch.

    Args:
        options: of the explanation, which say how the consensus is made.
        wanted: names of rows; None: the methods, their mean, and the consensus if there is one.
        consensus: whether there is one.
    """

    options: Options
    wanted: Sequence[str] | None
    consensus: bool

    def names(self, ready: Ready) -> tuple[str, ...]:
        """The names of the rows that are judged for the batch ``ready``: those asked for, without methods that fail."""
        derived = [aggregation.name for aggregation in ready.measurement.derived]
        known = [*ready.names, *derived]
        usual = [*ready.names, "mean"]
        if self.consensus:
            known += ["weighted", "consensus"]
            usual += ["consensus"]
        wanted = self.wanted or usual
        for name in wanted:
            choose("row", name, known)
        return tuple(name for name in wanted if name not in ready.failed)

    def task(self, ready: Ready, regions: Any, reference: Any) -> Task:
        """What every measure is asked of.

        Args:
            ready: the batch.
            regions: (B, *A) bool for all inputs that were given, or None.
            reference: (B, *A) for all inputs that were given, or None.
        """
        measurement = ready.measurement
        points = ready.points
        rows = self.names(ready)
        derived = self._needs_derived(ready, rows)
        elements = measurement.raw(ready.score, points)
        maps = measurement.complete(measurement.stack.apply(elements, points.owner), points, derived)
        mixtures = Mixtures.of(self.options, ready, rows, maps, derived)
        kinds = {name: explainer.kind for name, explainer in zip(ready.names, ready.explainers, strict=True)}
        raw = _signed(ready, elements, rows, kinds)

        def of_inputs_left(given: Any) -> Tensor | None:
            """What was given for all inputs, of those that can be judged."""
            if given is None:
                return None
            return torch.as_tensor(given, device=maps.device)[ready.left]

        return Task(
            score=ready.score,
            points=points,
            maps=mixtures.at_inputs(points, maps, raw),
            features=measurement.stack.features,
            explain=mixtures.explain,
            key=Key(measurement.seed, "measure"),
            names=rows,
            kinds=tuple(kinds.get(name, "relevance") for name in rows),
            raw=raw,
            regions=of_inputs_left(regions),
            reference=of_inputs_left(reference),
        )

    def _needs_derived(self, ready: Ready, rows: tuple[str, ...]) -> bool:
        """Whether maps of derived aggregations have to be made: a row is not a weighted sum of the methods' maps."""
        nonlinear = {aggregation.name for aggregation in ready.measurement.derived if not aggregation.linear}
        if nonlinear & set(rows):
            return True
        return CONSENSUS in rows and not self.options.aggregation.linear


def _signed(ready: Ready, elements: Tensor, rows: tuple[str, ...], kinds: Mapping[str, str]) -> Tensor:
    """The maps with their signs, in units of the output, (B, rows, *A); NaN for rows that have none.

    Args:
        ready: the batch.
        elements: (B, k, *F), what the methods that work give.
        rows: their names.
        kinds: method → what its attributions are.
    """
    measurement = ready.measurement
    reduced = measurement.plain(elements, ready.points.owner)
    signed = elements.new_full((len(ready.points), len(rows), *reduced.shape[2:]), torch.nan)
    for row, name in enumerate(rows):
        if kinds.get(name) in ("contribution", "gradient"):
            signed[:, row] = reduced[:, measurement.working.index(ready.names.index(name))]
    return signed
