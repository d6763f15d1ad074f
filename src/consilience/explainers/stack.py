"""Several explainers at once: each distinct need is evaluated once and folded into all that asked for it."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import ConsilienceError, InputError
from ..model.score import Score
from ..perturb.points import Points
from ..statistics.keys import Key
from .base import Direct, Explainer
from .coalitional import Coalitional, attributed, evaluations, tried
from .queue import Group, evaluated, queued


class Stack:
    """k explainers with one seed: a function from points to attributions (N, k, *F).

    The rows in flight are bounded by the score's ``max_batch``; points are drawn as they are needed and gradients are
    folded at once, so nothing of size samples × features is kept.

    Args:
        explainers: at least one.
        seed: of the explainers' draws.
        names: one for each; by default the explainers' own, made distinct.
        tolerant: an explainer that raises gives NaN for the points where it does, and :attr:`failures` says why; else its
            error goes through. What :meth:`usable` returns is tolerant.

    Attributes:
        failures: name → why, of explainers that have raised so far.
        first: attributions that were made when the explainers were tried, until they are handed out; None: none.
    """

    def __init__(
        self,
        explainers: Sequence[Explainer],
        seed: int = 0,
        names: Sequence[str] | None = None,
        tolerant: bool = False,
    ):
        if not explainers:
            raise InputError("methods: at least one explainer is needed")
        self.explainers = tuple(explainers)
        self.names = tuple(names) if names else unique([e.name for e in explainers])
        self.seed = seed
        self.tolerant = tolerant
        self.failures: dict[str, str] = {}
        self.first: First | None = None

    def __len__(self) -> int:
        return len(self.explainers)

    @property
    def begun(self) -> int:
        """How many points have been explained already, when the explainers were tried."""
        return 0 if self.first is None else len(self.first.maps)

    def clouds(self) -> dict[tuple, list[int]]:
        """The distinct clouds to evaluate → which explainers fold them."""
        groups: dict[tuple, list[int]] = {}
        for index, explainer in enumerate(self.explainers):
            if not isinstance(explainer, Direct | Coalitional):
                groups.setdefault(explainer.need.cloud, []).append(index)
        return groups

    @property
    def coalitional(self) -> list[int]:
        """The explainers that ask for coalitions, which are evaluated once for all of them."""
        return [index for index, explainer in enumerate(self.explainers) if isinstance(explainer, Coalitional)]

    def rows(self, shape: Sequence[int] = ()) -> dict[str, int]:
        """Model evaluations for one point, in rows: a closed formula, the floor of any implementation.

        Args:
            shape: the axes F of an input; they matter to methods that go through all features or windows.

        Returns:
            {"forward": rows without a gradient, "gradient": rows with one}.
        """
        cost = {"forward": 0, "gradient": 0}
        for members in self.clouds().values():
            needs = [self.explainers[index].need for index in members]
            rows = needs[0].total(shape)
            if needs[0].rule == "rescale":
                rows *= 2  # each row has its baseline beside it
            if any(need.gradient or need.layer is not None for need in needs):
                cost["gradient"] += rows
            else:
                cost["forward"] += rows
        pool = [explainer for explainer in self.explainers if isinstance(explainer, Coalitional)]
        cost["forward"] += evaluations(pool, shape, self._key)
        for explainer in self.explainers:
            if isinstance(explainer, Direct):
                for kind, count in explainer.rows(shape).items():
                    cost[kind] += count
        return cost

    def attribute(self, score: Score, points: Points, graph: bool = False) -> Tensor:
        """The attributions of all explainers at all points, (N, k, *F).

        Args:
            score: what is explained.
            points: x (N, *F).
            graph: keep the graph, for a loss of the attributions.

        Raises:
            InputError: for a graph through an explainer that has none.
        """
        return torch.cat([maps for _, maps in self.stream(score, points, graph)])

    def stream(self, score: Score, points: Points, graph: bool = False) -> Iterator[tuple[slice, Tensor]]:
        """Consecutive points as they are done.

        Args:
            score: the model.
            points: N points.
            graph: keep the graph of the attributions.

        Yields:
            which points, and their attributions (n, k, *F).
        """
        begin = 0
        if self.first is not None and not graph and self.first.holds(score, points):
            # Handed out once: a map over all elements is not kept any longer than that.
            maps = self.first.maps
            self.first = None
            begin = len(maps)
            yield slice(0, begin), maps
        # As many groups as the rows in flight ask for, all of about the same size.
        groups = math.ceil((len(points) - begin) / score.batch.size(True))
        if groups:
            step = math.ceil((len(points) - begin) / groups)
            for start in range(begin, len(points), step):
                part = slice(start, min(start + step, len(points)))
                yield part, self._group(score, points[part], graph)

    def _group(self, score: Score, points: Points, graph: bool) -> Tensor:
        """(n, k, *F): the maps of some points; NaN of an explainer that failed, if the stack is tolerant."""
        maps: dict[int, Tensor] = {}
        for members in self._together():
            maps.update(self._attempt(score, points, graph, members))
        wide = torch.promote_types(points.x.dtype, torch.float32)
        missing = torch.full_like(points.x, torch.nan, dtype=wide)
        return torch.stack([maps.get(index, missing) for index in range(len(self))], 1)

    def _together(self) -> list[list[int]]:
        """The explainers by what is evaluated together: queues of rows, the pool of coalitions, and those that run alone."""
        queues = [[index for group in queue for index in group.members] for queue in queued(self._groups())]
        alone = [[index] for index, explainer in enumerate(self.explainers) if isinstance(explainer, Direct)]
        pool = [self.coalitional] if self.coalitional else []
        return queues + pool + alone

    def _groups(self, members: Sequence[int] | None = None) -> list[Group]:
        """Those of the members (None: all) that wait for the same clouds, a group for each cloud."""
        groups = []
        for sharing in self.clouds().values():
            wanted = tuple(index for index in sharing if members is None or index in members)
            if wanted:
                groups.append(Group(wanted, tuple(self.explainers[index].need for index in wanted)))
        return groups

    def _attempt(self, score: Score, points: Points, graph: bool, members: Sequence[int]) -> dict[int, Tensor]:
        """What some explainers give that are evaluated together: {place: (n, *F)}.

        In a tolerant stack, what fails together is tried apart: first those that read a layer, then cloud by cloud, explainer
        by explainer, and at last point by point. So no explainer spoils another one that shares its evaluations, nor a point
        its neighbours in the batch. One that fails at every point is left out, and :attr:`failures` says why.
        """
        try:
            return self._evaluated(score, points, graph, members)
        except Exception as error:
            if not self.tolerant or graph or _is_fatal(error):
                raise
            maps: dict[int, Tensor] = {}
            if len(members) > 1:
                for part in self._apart(members):
                    maps.update(self._attempt(score, points, graph, part))
                return maps
            (index,) = members
            if len(points) > 1:
                return self._point_by_point(score, points, index)
            self.failures.setdefault(self.names[index], reason(error))
            return maps

    def _evaluated(self, score: Score, points: Points, graph: bool, members: Sequence[int]) -> dict[int, Tensor]:
        """The same, without a second try."""
        first = self.explainers[members[0]]
        if isinstance(first, Direct):
            if graph:
                raise InputError(f"methods: {first.name} has no graph; train with gradient or path methods")
            return {members[0]: _direct(first, score, points, self._key / first.name)}
        if isinstance(first, Coalitional):
            sharing = [self.explainers[index] for index in members]
            return dict(zip(members, attributed(sharing, score, points, self._key, graph), strict=True))  # type: ignore[arg-type]
        (queue,) = queued(self._groups(members))
        states: dict[int, Any] = dict.fromkeys(members)
        for group, cloud, values in evaluated(queue, score, points, self._key, graph):
            for index in group.members:
                states[index] = self.explainers[index].fold(states[index], cloud, values)
        return {index: self.explainers[index].finish(state, points) for index, state in states.items()}

    def _apart(self, members: Sequence[int]) -> list[list[int]]:
        """Two explainers or more that failed together, in smaller parts."""
        groups = self._groups(members)
        # A layer that cannot be found is the commonest failure, and costs no pass of the model.
        reading = [index for index in members if self.explainers[index].need.layer is not None]
        others = [index for index in members if index not in reading]
        if reading and others:
            return [reading, others]
        if len(groups) > 1:
            return [list(group.members) for group in groups]
        return [[index] for index in members]

    def _point_by_point(self, score: Score, points: Points, index: int) -> dict[int, Tensor]:
        """One explainer that failed at several points, at each of them alone: NaN where it fails."""
        found = []
        for at in range(len(points)):
            point = points[at : at + 1]
            maps = self._attempt(score, point, False, [index])
            wide = torch.promote_types(point.x.dtype, torch.float32)
            found.append(maps.get(index, torch.full_like(point.x, torch.nan, dtype=wide)))
        return {index: torch.cat(found)}

    def only(self, which: Sequence[int]) -> Stack:
        """A stack of some of the explainers, which notes failures here.

        Args:
            which: their places.
        """
        names = [self.names[index] for index in which]
        part = Stack([self.explainers[index] for index in which], self.seed, names, self.tolerant)
        part.failures = self.failures
        if self.first is not None:
            part.first = replace(self.first, maps=self.first.maps[:, list(which)])
        return part

    @property
    def _key(self) -> Key:
        return Key(self.seed, "explainer")

    # -- which explainers work -----------------------------------------------------------------------------------------

    def usable(self, score: Score, points: Points, dry: bool = False) -> tuple[Stack, dict[str, str]]:
        """Explain the first point with every explainer: those that fail there do not work on this model.

        The maps are not made twice: the stack that is returned has them, and hands them out when it streams these points.

        Args:
            score: what is explained.
            points: x (N, *F), N at least 1.
            dry: only one row of each cloud, where nothing but a plan is wanted.

        Returns:
            The stack of those that work, which is tolerant, and {name: why not} of the others, whatever they raised.

        Raises:
            InputError: none works; says why.
        """
        trial = Stack(self.explainers, self.seed, self.names, tolerant=True)
        maps: dict[int, Tensor] = {}
        for members in trial._together():
            if dry:
                maps.update({index: points.x for index in members if trial._passes(score, points[:1], index)})
            else:
                maps.update(trial._attempt(score, points[:1], False, members))
        left = sorted(maps)
        if not left:
            raise InputError(f"methods: none works on this model. {_by_reason(trial.failures)}")
        names = [self.names[index] for index in left]
        stack = Stack([self.explainers[index] for index in left], self.seed, names, tolerant=True)
        if not dry:
            stack.first = First(score, points.x, torch.stack([maps[index] for index in left], 1))
        return stack, {name: trial.failures[name] for name in self.names if name in trial.failures}

    def _passes(self, score: Score, points: Points, index: int) -> bool:
        """Whether an explainer passes with one row of its cloud; notes why not."""
        explainer = self.explainers[index]
        try:
            if isinstance(explainer, Direct):
                explainer.check(score, points, self._key / explainer.name)
                return True
            if isinstance(explainer, Coalitional):
                tried(explainer, score, points, self._key)
                return True
            group = Group((index,), (replace(explainer.need, samples=1),))
            for _, cloud, values in evaluated([group], score, points, self._key, graph=False):
                # The fold of outputs alone needs more than one of them.
                if group.queue[1]:
                    explainer.finish(explainer.fold(None, cloud, values), points)
        except Exception as error:
            if _is_fatal(error):
                raise
            self.failures.setdefault(self.names[index], reason(error))
            return False
        return True


@dataclass(frozen=True)
class First:
    """Attributions of the first points, made when the explainers were tried.

    Args:
        score: that was explained.
        x: (N, *F), the points among which they are the first.
        maps: (n, k, *F).
    """

    score: Score
    x: Tensor
    maps: Tensor

    def holds(self, score: Score, points: Points) -> bool:
        """Whether these are attributions of the first of the ``points``, of what ``score`` asks."""
        return score is self.score and points.x is self.x and points.targets is None


def _direct(explainer: Direct, score: Score, points: Points, key: Key) -> Tensor:
    """(n, *F): what an explainer gives that runs by itself, and asks one output of each input."""
    if points.targets is None:
        return explainer.attribute(score, points, key)
    maps = torch.empty(0)
    for targets, index in score.asked(points.owner, points.targets):
        part = replace(points[index], targets=None)
        found = explainer.attribute(score.towards(targets), part, key)
        maps = maps if len(maps) else found.new_empty(len(points), *found.shape[1:])
        maps[index] = found
    return maps


def _by_reason(failed: dict[str, str]) -> str:
    """{name: reason} as "name, name: reason; name: reason"."""
    alike: dict[str, list[str]] = {}
    for name, why in failed.items():
        alike.setdefault(why, []).append(name)
    return "; ".join(f"{', '.join(names)}: {why}" for why, names in alike.items())


def reason(error: Exception) -> str:
    """Why a method failed, for people: our own messages and PyTorch's as they are, others with the name of the error.

    Args:
        error: what it raised.
    """
    text = str(error)
    if not text:
        return type(error).__name__
    if isinstance(error, ConsilienceError | RuntimeError):
        return text
    return f"{type(error).__name__}: {text}"


def _is_fatal(error: Exception) -> bool:
    """Whether going on with the other methods makes no sense: no memory left, or no disk."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOSPC)


def unique(names: Sequence[str]) -> tuple[str, ...]:
    """Names made distinct: the second ``saliency`` becomes ``saliency_2``.

    Args:
        names: of methods, which may repeat.
    """
    counts: dict[str, int] = {}
    distinct = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        if counts[name] > 1:
            name = f"{name}_{counts[name]}"
        distinct.append(name)
    return tuple(distinct)
