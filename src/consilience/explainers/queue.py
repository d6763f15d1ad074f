"""The queue of rows that several explainers wait for: clouds of all kinds go through the model in the same batches.

An explainer says what it needs around each point (:class:`~.base.Need`). Needs for the same cloud are evaluated once. Clouds
that can share a forward and a backward pass stand in one queue, one after the other: the point itself, the steps of a path,
noisy neighbours. So a model sees few large batches instead of one small batch for each method.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.score import Score
from ..model.values import Values
from ..perturb.points import Cloud, Points
from ..statistics.keys import Key
from .base import Need

BATCHES_AHEAD = 4
"""Rows are drawn for so many batches at once: enough to make the batches equal, and little memory."""


@dataclass(frozen=True)
class Group:
    """Explainers that fold the same cloud.

    Args:
        members: their places in the stack.
        needs: of each member; they differ in whether they look at gradients, and at which layer.
    """

    members: tuple[int, ...]
    needs: tuple[Need, ...]

    @property
    def need(self) -> Need:
        """What decides the rows, the same for all members."""
        return self.needs[0]

    @property
    def gradient(self) -> bool:
        """Whether a member looks at gradients of the rows."""
        return any(need.gradient for need in self.needs)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that members look at, each once."""
        return tuple(dict.fromkeys(need.layer for need in self.needs if need.layer is not None))

    @property
    def queue(self) -> tuple[str | None, bool]:
        """The queue in which it stands: the rule of its backward pass, and whether there is one."""
        return self.need.rule, self.gradient or bool(self.layers)


@dataclass(frozen=True)
class Piece:
    """Some samples of one group's cloud: the numbers ``samples`` of the ``group``."""

    group: Group
    samples: range


def queued(groups: Sequence[Group]) -> list[list[Group]]:
    """The groups by queue, groups that look at layers first.

    Args:
        groups: of one stack.
    """
    queues: dict[tuple, list[Group]] = {}
    for group in groups:
        queues.setdefault(group.queue, []).append(group)
    return [sorted(queue, key=lambda group: not group.layers) for queue in queues.values()]


def evaluated(
    queue: Sequence[Group], score: Score, points: Points, key: Key, graph: bool
) -> Iterator[tuple[Group, Cloud, Values]]:
    """The clouds of one queue, and what the model gives for them, in parts.

    Args:
        queue: groups that can share batches.
        score: what is explained.
        points: x (n, *F).
        key: of all draws.
        graph: keep the graph, for a loss.

    Yields:
        a group, some samples of its cloud, and the values of these rows. The samples of a group come in order.
    """
    shape = points.x.shape[1:]
    totals = [group.need.total(shape) for group in queue]
    rule, backward = queue[0].queue
    gradient = any(group.gradient for group in queue)
    room = max(1, BATCHES_AHEAD * score.batch.size(backward) // len(points))
    for pieces in _parts(queue, totals, room):
        yield from _values(pieces, score, points, key, rule, gradient, graph)


def _parts(queue: Sequence[Group], totals: Sequence[int], room: int) -> Iterator[list[Piece]]:
    """Pieces that are evaluated together: at most ``room`` samples of each point, in parts of about the same size."""
    parts = math.ceil(sum(totals) / room)
    room = math.ceil(sum(totals) / parts)
    pieces: list[Piece] = []
    left = room
    for group, total in zip(queue, totals, strict=True):
        start = 0
        while start < total:
            stop = min(total, start + left)
            pieces.append(Piece(group, range(start, stop)))
            left -= stop - start
            start = stop
            if left == 0:
                yield pieces
                pieces = []
                left = room
    if pieces:
        yield pieces


def _values(
    pieces: Sequence[Piece],
    score: Score,
    points: Points,
    key: Key,
    rule: str | None,
    gradient: bool,
    graph: bool,
) -> Iterator[tuple[Group, Cloud, Values]]:
    """Draw the rows of all pieces, evaluate them together, and hand each piece its own values."""
    shape = points.x.shape[1:]
    clouds = []
    for piece in pieces:
        need = piece.group.need
        clouds.append(need.where.draw(points, piece.samples, key / need.stream, need.total(shape)))
    # The pieces that look at a layer come first, so only the first rows' activations are kept.
    looking = [cloud for piece, cloud in zip(pieces, clouds, strict=True) if piece.group.layers]
    layers = tuple(dict.fromkeys(layer for piece in pieces for layer in piece.group.layers))
    origins = [cloud.origin for cloud in clouds if cloud.origin is not None] if rule == "rescale" else []
    values = score.evaluate(
        _joined([cloud.points for cloud in clouds]),
        _joined([cloud.owner for cloud in clouds]),
        gradient=gradient,
        rule=rule,
        layers=layers,
        origin=_joined(origins) if origins else None,
        graph=graph,
        targets=_joined([_targets(points, cloud) for cloud in clouds]) if points.targets is not None else None,
        layer_rows=sum(len(cloud.points) for cloud in looking),
    )
    start = 0
    for piece, cloud in zip(pieces, clouds, strict=True):
        stop = start + len(cloud.points)
        yield piece.group, cloud, values.part(slice(start, stop))
        start = stop


def _targets(points: Points, cloud: Cloud) -> Tensor:
    """(n·s,): the output that each row of a cloud is asked about."""
    assert points.targets is not None
    return points.targets.repeat_interleave(len(cloud.samples))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """One after the other; a single one as it is, without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
