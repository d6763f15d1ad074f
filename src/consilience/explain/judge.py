"""An answer judged: fresh draws until the comparisons are decided, the table, completeness, warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..combine.aggregation import mix
from ..combine.aggregations import DERIVED, Weighted
from ..combine.draws import SEQUENTIAL_KINDS
from ..results.difference import PairedDifference
from ..results.explanation import Measured
from ..statistics.criteria import PARTS
from ..statistics.evidence import Evidence, alike, joined
from ..statistics.tensors import corners
from .caveats import caveats
from .contest import all_kinds, stream_records, streams_of
from .decide import Looks, Stream
from .differences import (
    paired_differences,
    uniform_differences,
)
from .kept import Kept
from .resolved import resolved_sensitivity
from .run import Combined, Job
from .table import Criteria, measure


@dataclass(frozen=True)
class Judgement:
    """What fresh draws say.

    Args:
        fit: of each input, the fitting draws, with those that chose the best single method.
        fresh: of each input, the draws that judge; None: nothing was judged.
        draws: of each input, how many judge, and why no more; None: nothing was judged.
        criteria: criterion → row → its values on the fitting and the fresh draws, (N,) each.
        differences: criterion → consensus − the best single method, on the fresh draws.
        over_uniform: criterion → consensus − a uniform map, on the fresh draws.
        rows: (N, 2, R), the row "weighted" and the consensus as mixtures of the maps.
        resolved: the sensitivity of weights that are solved anew; None where nothing is.
        completeness: method → (N,), how far it is from adding up.
        warnings: about the model and the methods.
    """

    fit: list[Evidence]
    fresh: list[Evidence] | None
    draws: list[dict[str, Any]] | None
    criteria: Criteria
    differences: dict[str, PairedDifference]
    over_uniform: dict[str, PairedDifference]
    rows: Tensor
    resolved: dict[str, Tensor] | None
    completeness: dict[str, Tensor]
    warnings: tuple[str, ...]


def unjudged(job: Job, combined: Combined, kept: Kept) -> Judgement:
    """The answer alone: what is known of it without any further draw.

    Args:
        job: the call.
        combined: its maps and weights.
        kept: what was evaluated.
    """
    fit = _fitting(combined)
    rows = _rows(combined, fit)
    return Judgement(
        fit=fit,
        fresh=None,
        draws=None,
        criteria=_table(job, combined, fit, None, rows),
        differences={},
        over_uniform={},
        rows=rows,
        resolved=None,
        completeness={},
        warnings=tuple(caveats(job, kept, fit)),
    )


def judge(job: Job, combined: Combined, kept: Kept) -> Judgement:
    """Measure methods, derived maps and the combined map on draws that nothing was fitted to.

    Args:
        job: the call.
        combined: its maps and weights.
        kept: what was evaluated, some of it by an earlier call.
    """
    job.meter.begin("judgement")
    # Before anything is evaluated further, so that it is clear whose sums these are.
    completeness = kept.completeness
    fit = _fitting(combined)
    for kind, count in job.cost.picking().items():
        further = kept.fit.upto(kind, range(len(fit)), count)
        fit = [own + more for own, more in zip(fit, further, strict=True)]
    rows = _rows(combined, fit)
    streams = streams_of(job, combined, fit, kept)
    fresh = all_kinds(job, streams, kept)
    criteria = _table(job, combined, fit, fresh, rows)
    differences, over_uniform = _differences(job, combined, criteria, fresh, streams)
    warnings = tuple(caveats(job, kept, fresh))
    job.meter.begin("weights solved anew")
    return Judgement(
        fit=fit,
        fresh=fresh,
        draws=stream_records(streams, len(fit)),
        criteria=criteria,
        differences=differences,
        over_uniform=over_uniform,
        rows=rows,
        resolved=resolved_sensitivity(job, combined),
        completeness=completeness,
        warnings=warnings,
    )


# -- what is judged ----------------------------------------------------------------------------------------------------


def _fitting(combined: Combined) -> list[Evidence]:
    """Of each input, the draws that the weights were fitted to."""
    found = []
    for number, at in combined.places:
        own = combined.groups[number].evidence.inputs([at])
        # Where nothing is solved there is evidence without a draw, which only says which maps are finite.
        drawn = {kind: part for kind, part in own.parts.items() if part.count}
        found.append(Evidence.of(drawn))
    return found


def _rows(combined: Combined, fit: Sequence[Evidence]) -> Tensor:
    """(N, 2, R): the row "weighted" and the consensus, as mixtures of the maps."""
    k = combined.measurement.rows
    weighted = torch.zeros_like(combined.mixing)
    for at in alike(fit):
        drawn = [fit[i].only(SEQUENTIAL_KINDS) for i in at]
        if drawn[0].parts:
            weighted[at, :k] = Weighted().fit(joined(drawn).rows(slice(k))).weights
        else:
            # Nothing says how good any method is.
            finite = combined.base[at, :k].flatten(2).isfinite().all(2).to(weighted)
            weighted[at, :k] = finite / finite.sum(1, keepdim=True)
    return torch.stack([weighted, combined.mixing], 1)


# -- what they say -----------------------------------------------------------------------------------------------------


def _table(
    job: Job, combined: Combined, fit: Sequence[Evidence], fresh: Sequence[Evidence] | None, rows: Tensor
) -> Criteria:
    """Every criterion of every row, over all inputs."""
    derived = [aggregation.name for aggregation in combined.measurement.derived]
    names = [*job.ready.names, *derived, "weighted", "consensus"]
    # Every row of the table is a mixture of the maps: the maps themselves, the row "weighted", and the consensus. So one set
    # of draws, made for the maps, judges all rows, and mixtures cost no evaluation.
    singles = corners(combined.mixing)[:, : combined.shown]
    every = torch.cat([singles, rows], 1)
    both = [Evidence()] * len(fit) if fresh is None else fresh
    # Inputs with as many draws are measured as one batch.
    counts = [(tuple(a.parts), a.counts, tuple(b.parts), b.counts) for a, b in zip(fit, both, strict=True)]
    parts = []
    places: list[int] = []
    for count in dict.fromkeys(counts):
        at = [i for i, each in enumerate(counts) if each == count]
        after = None if fresh is None else joined([fresh[i] for i in at])
        parts.append(measure(joined([fit[i] for i in at]), after, every[at], names, combined.measurement.metrics))
        places += at
    table = _in_order(parts, places)
    if not job.aggregation.linear and job.aggregation not in DERIVED:
        # Its map is the consensus: the same numbers stand in that row.
        for criterion in table.values():
            del criterion[job.aggregation.name]
    return table


def _in_order(parts: Sequence[Criteria], places: Sequence[int]) -> Criteria:
    """The criteria of groups of inputs, whose ``places`` are these one after the other, in the order of the inputs."""
    order = torch.tensor(places).argsort()
    table: Criteria = {}
    for criterion, rows in parts[0].items():
        table[criterion] = {}
        for name in rows:
            cells = [part[criterion][name] for part in parts]
            columns = []
            for column in ("fit", "fresh", "stderr"):
                values = torch.cat([getattr(cell, column) for cell in cells])
                columns.append(values[order.to(values.device)])
            table[criterion][name] = Measured(*columns)
    return table


def _differences(
    job: Job, combined: Combined, criteria: Criteria, fresh: Sequence[Evidence], streams: Mapping[str, Sequence[Stream]]
) -> tuple[dict[str, PairedDifference], dict[str, PairedDifference]]:
    """The consensus beside the best single method, and beside a uniform map."""
    options = job.options
    alpha = 1 - options.confidence
    levels = {}
    for criterion, kinds in PARTS.items():
        if kinds[0] in streams:
            looks = Looks(options.looks(kinds[0]), alpha)
            own = [looks.levels[stream.look] for stream in streams[kinds[0]]]
            levels[criterion] = torch.tensor(own, dtype=torch.float64)
        else:
            levels[criterion] = torch.full((len(fresh),), alpha, dtype=torch.float64)
    singles = []
    uniforms = []
    places: list[int] = []
    for at in alike(fresh):
        table = {name: {row: _at(cell, at) for row, cell in rows.items()} for name, rows in criteria.items()}
        level = {name: each[at] for name, each in levels.items()}
        batch = joined([fresh[i] for i in at])
        mixing = combined.mixing[at]
        singles.append(
            paired_differences(job.aggregation, table, batch, mixing, job.ready.names, level, options.tolerance, alpha)
        )
        uniforms.append(uniform_differences(table, batch, mixing, level, options.tolerance, alpha))
        places += at
    return PairedDifference.joined(singles, places), PairedDifference.joined(uniforms, places)


def _at(cell: Measured, index: Sequence[int]) -> Measured:
    at = list(index)
    return Measured(cell.fit[at], cell.fresh[at], cell.stderr[at])


def maps_of(judgement: Judgement, combined: Combined) -> tuple[Tensor, Tensor]:
    """The row "weighted" and the consensus as maps, (N, *A) each.

    Args:
        judgement: with the rows.
        combined: with the maps.
    """
    mixed = mix(judgement.rows, combined.base)
    return mixed[:, 0], mixed[:, 1]
