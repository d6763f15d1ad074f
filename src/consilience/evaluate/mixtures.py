"""Every row of an evaluation as a mixture of the methods' maps, at the inputs and anywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..combine.aggregation import Aggregation, mix
from ..combine.aggregations import Weighted
from ..combine.draws import SEQUENTIAL_KINDS
from ..combine.measurement import Measurement
from ..combine.sequential import Fitted, fit
from ..explain.options import Options
from ..explain.prepare import Ready
from ..model.score import Score
from ..perturb.points import Points

CONSENSUS = "consensus"
WEIGHTED = "weighted"


@dataclass(frozen=True)
class Mixtures:
    """How the rows are made of R maps: those of the methods, then those of derived aggregations.

    Args:
        measurement: makes the maps.
        aggregation: that of the consensus.
        rows: their names.
        derived: whether derived maps are made, which takes them at neighbours too.
        coefficients: (B, rows, R), of each row.
        corrected: inputs whose consensus has a correction, which no coefficients express, in groups.
        place: the place among the B inputs of each owner.
    """

    measurement: Measurement
    aggregation: Aggregation
    rows: tuple[str, ...]
    derived: bool
    coefficients: Tensor
    corrected: Sequence[Fitted]
    place: Tensor

    @classmethod
    def of(cls, options: Options, ready: Ready, rows: tuple[str, ...], maps: Tensor, derived: bool) -> Mixtures:
        """The mixtures of a batch. What is fitted to draws is fitted here.

        Args:
            options: of the explanation.
            ready: the batch.
            rows: their names.
            maps: (B, R, *A), at the inputs.
            derived: whether derived maps are among them.
        """
        points = ready.points
        place = torch.zeros(len(ready.x), dtype=torch.int64, device=points.owner.device)
        place[points.owner] = torch.arange(len(points), device=place.device)
        coefficients = _of_names(ready, rows, maps)
        corrected: list[Fitted] = []
        if {CONSENSUS, WEIGHTED} & set(rows):
            groups = _fill_in_fitted(coefficients, options, ready, rows, maps)
            if CONSENSUS in rows:
                corrected = [group for group in groups if group.solved.correction is not None]
        return cls(ready.measurement, options.aggregation, rows, derived, coefficients, corrected, place)

    def at_inputs(self, points: Points, maps: Tensor, raw: Tensor) -> Tensor:
        """The rows at the inputs, (B, rows, *A).

        Args:
            points: the B inputs.
            maps: (B, R, *A).
            raw: (B, rows, *A), signed and in units of the output. A corrected consensus, which is in these units, is put there.
        """
        made = mix(self.coefficients, maps)
        for group in self.corrected:
            index = list(group.index)
            consensus = self.measurement.combined(self.aggregation, group.solved, maps[index], points[index])
            made[index, self.rows.index(CONSENSUS)] = consensus.to(made)
            raw[index, self.rows.index(CONSENSUS)] = consensus.to(raw)
        return made

    def explain(self, where: Score, near: Points) -> Tensor:
        """The rows at other points or of another model, (N, rows, *A), with the coefficients of the inputs.

        Args:
            where: the model, and what is asked of it.
            near: x (N, *F), of the inputs.
        """
        of_input = self.place[near.owner]
        maps = self.measurement.maps(where, near, self.derived)
        made = mix(self.coefficients[of_input], maps)
        for group in self.corrected:
            index = torch.isin(of_input, of_input.new_tensor(group.index)).nonzero()[:, 0].tolist()
            if not index:
                continue
            # What masks add is a function of the point and the model too, so they are evaluated anew.
            methods = maps[index][:, : self.measurement.rows]
            kinds = self.aggregation.kinds
            evidence = self.measurement.evidence(where, near[index], methods, group.draws, "fit", kinds)
            solved = self.aggregation.fit(evidence)
            consensus = self.measurement.combined(self.aggregation, solved, maps[index], near[index])
            made[index, self.rows.index(CONSENSUS)] = consensus.to(made)
        return made


def _of_names(ready: Ready, rows: tuple[str, ...], maps: Tensor) -> Tensor:
    """(B, rows, R): the coefficients of methods, derived aggregations and the mean; zero for rows that are fitted."""
    measurement = ready.measurement
    coefficients = torch.zeros(len(maps), len(rows), maps.shape[1], dtype=torch.float64, device=maps.device)
    names = [*ready.names, *(aggregation.name for aggregation in measurement.derived)]
    working = list(measurement.working)
    for row, name in enumerate(rows):
        if name == "mean":
            # Of the methods whose map is finite at this input.
            finite = maps[:, working].flatten(2).isfinite().all(2).to(coefficients)
            coefficients[:, row, working] = finite / finite.sum(1, keepdim=True)
        elif name not in (CONSENSUS, WEIGHTED):
            coefficients[:, row, names.index(name)] = 1
    return coefficients


def _fill_in_fitted(
    coefficients: Tensor, options: Options, ready: Ready, rows: tuple[str, ...], maps: Tensor
) -> list[Fitted]:
    """Fill in the rows whose coefficients are fitted to draws.

    Args:
        coefficients: (B, rows, R), changed in place.
        options: of the explanation.
        ready: the batch.
        rows: their names.
        maps: (B, R, *A), at the inputs.

    Returns:
        The inputs, in groups that have the same number of draws.
    """
    measurement = ready.measurement
    aggregation = options.aggregation
    k = measurement.rows
    kinds = aggregation.kinds
    # Weights by quality look at both usual kinds of draws, whatever the consensus is fitted to.
    if WEIGHTED in rows:
        kinds = tuple(dict.fromkeys((*kinds, *SEQUENTIAL_KINDS)))
    tolerance = options.tolerance if options.sequential else None
    groups = fit(aggregation, measurement, ready.score, ready.points, maps[:, :k], options.fitting, tolerance, kinds)
    for group in groups:
        index = list(group.index)
        if CONSENSUS in rows:
            solved = measurement.mixing(aggregation, group.solved, maps.shape[1])
            coefficients[index, rows.index(CONSENSUS)] = solved
        if WEIGHTED in rows:
            by_quality = Weighted().fit(group.evidence.only(SEQUENTIAL_KINDS))
            coefficients[index, rows.index(WEIGHTED), :k] = by_quality.weights
    return groups
