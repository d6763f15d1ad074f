"""The rows that an evaluation judges (methods, aggregations, the consensus), made into one task for every measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..combine.aggregation import mix
from ..combine.aggregations import Weighted
from ..combine.draws import SEQUENTIAL_KINDS
from ..combine.sequential import Fitted, fit
from ..errors import choose
from ..explain.options import Options
from ..explain.prepare import Ready
from ..measures import Task
from ..model.score import Score
from ..perturb.points import Points
from ..statistics.keys import Key


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
        score = ready.score
        points = ready.points
        rows = self.names(ready)
        own = self.options.aggregation
        # Derived maps that are no mixtures of the methods' maps have to be made at every neighbour.
        nonlinear = {aggregation.name for aggregation in measurement.derived if not aggregation.linear}
        derived = bool(nonlinear & set(rows)) or ("consensus" in rows and not own.linear)
        raw = measurement.raw(score, points)
        maps = measurement.complete(measurement.stack.apply(raw, points.owner), points, derived)
        mixing, corrected = self._mixing(ready, maps, rows)
        place = torch.zeros(len(ready.x), dtype=torch.int64, device=points.owner.device)
        place[points.owner] = torch.arange(len(points), device=place.device)

        kinds = {name: explainer.kind for name, explainer in zip(ready.names, ready.explainers, strict=True)}
        judged = mix(mixing, maps)
        raw_rows = _signed(ready, raw, rows, kinds)
        for group in corrected:
            index = list(group.index)
            found = measurement.combined(own, group.solved, maps[index], points[index])
            judged[index, rows.index("consensus")] = found.to(judged)
            # It is in units of the score.
            raw_rows[index, rows.index("consensus")] = found.to(raw_rows)

        def explain(where: Score, near: Points) -> Tensor:
            at = place[near.owner]
            there = measurement.maps(where, near, derived)
            answers = mix(mixing[at], there)
            for group in corrected:
                # What masks add is a function of the point and the model too, so they are evaluated anew.
                index = torch.isin(at, at.new_tensor(group.index)).nonzero()[:, 0].tolist()
                if index:
                    methods = there[index][:, : measurement.rows]
                    evidence = measurement.evidence(where, near[index], methods, group.draws, "fit", own.kinds)
                    found = measurement.combined(own, own.fit(evidence), there[index], near[index])
                    answers[index, rows.index("consensus")] = found.to(answers)
            return answers

        def of_inputs_left(given: Any) -> Tensor | None:
            if given is None:
                return None
            return torch.as_tensor(given, device=maps.device)[ready.left]

        return Task(
            score=score,
            points=points,
            maps=judged,
            features=measurement.stack.features,
            explain=explain,
            key=Key(measurement.seed, "measure"),
            names=rows,
            kinds=tuple(kinds.get(name, "relevance") for name in rows),
            raw=raw_rows,
            regions=of_inputs_left(regions),
            reference=of_inputs_left(reference),
        )

    def _mixing(self, ready: Ready, maps: Tensor, rows: tuple[str, ...]) -> tuple[Tensor, list[Fitted]]:
        """(B, rows, R): every row as coefficients on ``maps`` (B, R, *A) of methods and derived ones; and the inputs whose
        consensus has a correction, which is no such row."""
        measurement = ready.measurement
        mixing = torch.zeros(len(maps), len(rows), maps.shape[1], dtype=torch.float64, device=maps.device)
        names = [*ready.names, *(aggregation.name for aggregation in measurement.derived)]
        working = list(measurement.working)
        for row, name in enumerate(rows):
            if name == "mean":
                finite = maps[:, working].flatten(2).isfinite().all(2).to(mixing)
                mixing[:, row, working] = finite / finite.sum(1, keepdim=True)
            elif name not in ("consensus", "weighted"):
                mixing[:, row, names.index(name)] = 1
        corrected = []
        if {"consensus", "weighted"} & set(rows):
            groups = self._mix_fitted(mixing, ready, maps, rows)
            if "consensus" in rows:
                corrected = [group for group in groups if group.solved.correction is not None]
        return mixing, corrected

    def _mix_fitted(self, mixing: Tensor, ready: Ready, maps: Tensor, rows: tuple[str, ...]) -> list[Fitted]:
        """Fill in the rows whose coefficients are fitted to draws; the inputs, in groups with as many draws each."""
        measurement = ready.measurement
        own = self.options.aggregation
        k = measurement.rows
        kinds = own.kinds
        if "weighted" in rows:
            kinds = tuple(dict.fromkeys((*kinds, *SEQUENTIAL_KINDS)))
        tolerance = self.options.tolerance if self.options.sequential else None
        draws = self.options.fitting
        groups = fit(own, measurement, ready.score, ready.points, maps[:, :k], draws, tolerance, kinds)
        for group in groups:
            index = list(group.index)
            if "consensus" in rows:
                solved = measurement.mixing(own, group.solved, maps.shape[1])
                mixing[index, rows.index("consensus")] = solved
            if "weighted" in rows:
                weighted = Weighted().fit(group.evidence.only(SEQUENTIAL_KINDS))
                mixing[index, rows.index("weighted"), :k] = weighted.weights
        return groups


def _signed(ready: Ready, raw: Tensor, rows: tuple[str, ...], kinds: Mapping[str, str]) -> Tensor:
    """(B, rows, *A): maps with their signs in units of the output; NaN for rows that have none."""
    measurement = ready.measurement
    reduced = measurement.plain(raw, ready.points.owner)
    signed = raw.new_full((len(ready.points), len(rows), *reduced.shape[2:]), torch.nan)
    for row, name in enumerate(rows):
        if kinds.get(name) in ("contribution", "gradient"):
            signed[:, row] = reduced[:, measurement.working.index(ready.names.index(name))]
    return signed
