"""The consensus against the best single method and a uniform map, on fresh draws, until each comparison is decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..combine.draws import SEQUENTIAL_KINDS
from ..statistics.criteria import PARTS
from ..statistics.evidence import Evidence, joined
from .decide import Comparison, Looks, Stream, until_decided
from .differences import UNIFORM, beside_single, beside_uniform, best_single, competitors, criteria_of
from .kept import Kept
from .run import Combined, Job
from .table import estimates

OPTIMISM = {"quadratic": 0.0, "responses": 0.5}
"""A neighbour costs a gradient through every method, a mask one output: see :class:`~.decide.Looks`. With .5, masks of
equals are given up after half of those that are allowed, on average, for a tenth of the power (docs/numbers.md)."""


@dataclass(frozen=True)
class Contest:
    """Which comparisons rest on which kind of draws.

    Args:
        aims: the criteria that the objective is about.
        best: criterion → (N,), the method that was best on the fitting draws.
        mixing: (N, R), the consensus as a mixture of the maps.
        beside: kind → of each input, its draws of a kind that is not drawn in rounds.
        tolerance: the share that does not matter.
    """

    aims: tuple[str, ...]
    best: Mapping[str, Tensor]
    mixing: Tensor
    beside: Mapping[str, Sequence[Evidence]]
    tolerance: float

    def compare(self, kind: str, index: Sequence[int], evidence: Evidence) -> list[Comparison]:
        """The comparisons that rest on one kind of draws.

        Args:
            kind: "quadratic" (neighbours) or "responses" (masks).
            index: places of the inputs.
            evidence: their draws of that kind.
        """
        at = list(index)
        for other, parts in self.beside.items():
            if any(PARTS[criterion] == (kind, other) for criterion in self.aims):
                evidence = evidence + joined([parts[i] for i in at])
        mixing = self.mixing[at]
        found = []
        for criterion in self.aims:
            if PARTS[criterion][0] == kind:
                rival = self.best[criterion][at]
                found.append(beside_single(criterion, evidence, mixing, rival, self.tolerance))
        for criterion in UNIFORM:
            if PARTS[criterion][0] == kind:
                found.append(beside_uniform(criterion, evidence, mixing, self.tolerance))
        return found


def streams_of(job: Job, combined: Combined, fit: Sequence[Evidence], kept: Kept) -> dict[str, list[Stream]]:
    """Neighbours and masks, each until its own comparisons are settled.

    Args:
        job: the call.
        combined: its maps and weights.
        fit: of each input, the fitting draws.
        kept: what was evaluated.
    """
    options = job.options
    aims = criteria_of(job.aggregation)
    fitted = {}
    for criterion in aims:
        each = [_of_methods(one, criterion, combined.measurement.rows, combined.base.shape[1]) for one in fit]
        fitted[criterion] = torch.cat(each)
    best = {criterion: best_single(criterion, competitors(job.aggregation, criterion, fitted)[0]) for criterion in aims}
    # Other outputs are asked about once: a contrast has a fixed number of draws.
    once = [kind for kind in combined.measurement.metrics if kind not in SEQUENTIAL_KINDS]
    beside = {kind: drawn_once(job, kind, kept) for kind in once}
    contest = Contest(aims, best, combined.mixing, beside, options.tolerance)
    streams = {}
    for kind in SEQUENTIAL_KINDS:
        looks = Looks(options.looks(kind), 1 - options.confidence, OPTIMISM[kind])
        draw = partial(kept.fresh.upto, kind)
        streams[kind] = until_decided(draw, range(len(fit)), looks, partial(contest.compare, kind))
    return streams


def _of_methods(fit: Evidence, criterion: str, k: int, rows: int) -> Tensor:
    """(1, k): a criterion of each of the k methods, the first ``rows``, on the fitting draws of one input."""
    singles = torch.eye(rows, dtype=torch.float64)[:k].to(fit.like)
    return estimates(fit, singles[None], {})[criterion].value


def drawn_once(job: Job, kind: str, kept: Kept) -> list[Evidence]:
    """Of each input, the fresh draws of a kind that is not drawn in rounds.

    Args:
        job: the call.
        kind: of the evidence.
        kept: what was evaluated.
    """
    count = job.options.judging.of_metric(job.ready.measurement.metrics[kind])
    return kept.fresh.upto(kind, range(len(job.ready.points)), count)


def all_kinds(job: Job, streams: Mapping[str, Sequence[Stream]], kept: Kept) -> list[Evidence]:
    """Of each input, all of its fresh draws, in the metrics' order.

    Args:
        job: the call.
        streams: neighbours and masks.
        kept: what was evaluated.
    """
    each: list[Evidence] = [Evidence() for _ in range(len(job.ready.points))]
    for kind in job.ready.measurement.metrics:
        if kind in streams:
            parts = [stream.evidence for stream in streams[kind]]
        else:
            parts = drawn_once(job, kind, kept)
        each = [evidence + part for evidence, part in zip(each, parts, strict=True)]
    return each


def stream_records(streams: Mapping[str, Sequence[Stream]], count: int) -> list[dict[str, Any]]:
    """Of each input, how many fresh draws of each kind there are, why no more, and how often they were looked at.

    Args:
        streams: neighbours and masks.
        count: N.
    """
    records: list[dict[str, Any]] = []
    for i in range(count):
        record: dict[str, Any] = {SEQUENTIAL_KINDS[kind]: each[i].count for kind, each in streams.items()}
        record["stopped"] = {SEQUENTIAL_KINDS[kind]: each[i].why for kind, each in streams.items()}
        record["looks"] = {SEQUENTIAL_KINDS[kind]: each[i].look + 1 for kind, each in streams.items()}
        records.append(record)
    return records
