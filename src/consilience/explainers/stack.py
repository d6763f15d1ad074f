"""Several explainers at once: each distinct need is evaluated once and folded into all that asked for it."""

from __future__ import annotations

import contextlib
import errno
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ConsilienceError, InputError
from ..model.score import Score
from ..perturb.points import Points
from ..statistics.keys import Key
from .base import Direct, Explainer, Need
from .coalitional import Coalitional, attributed, evaluations, tried


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

    def __len__(self) -> int:
        return len(self.explainers)

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
            if any(_takes_gradient(need) for need in needs):
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
        """Groups of points as they are done: (which, (n, k, *F)). Arguments as for :meth:`attribute`."""
        # As many groups as the rows in flight ask for, all of about the same size.
        groups = math.ceil(len(points) / score.batch.size(True))
        step = math.ceil(len(points) / groups)
        for start in range(0, len(points), step):
            part = slice(start, min(start + step, len(points)))
            yield part, self._group(score, points[part], graph)

    def _group(self, score: Score, points: Points, graph: bool) -> Tensor:
        """(n, k, *F): the maps of some points."""
        maps: dict[int, Tensor] = {}
        for members in self.clouds().values():
            with self._failing(score, points, graph, members, maps):
                states = self._fold(score, points, members, graph)
                for index, state in zip(members, states, strict=True):
                    maps[index] = self.explainers[index].finish(state, points)
        pool = self.coalitional
        if pool:
            with self._failing(score, points, graph, pool, maps):
                sharing = [explainer for explainer in self.explainers if isinstance(explainer, Coalitional)]
                maps.update(zip(pool, attributed(sharing, score, points, self._key, graph), strict=True))
        for index, explainer in enumerate(self.explainers):
            if isinstance(explainer, Direct):
                if graph:
                    raise InputError(f"methods: {explainer.name} has no graph; train with gradient or path methods")
                with self._failing(score, points, graph, [index], maps):
                    maps[index] = explainer.attribute(score, points, self._key / explainer.name)
        return torch.stack([maps[index] for index in range(len(self))], 1)

    @contextlib.contextmanager
    def _failing(
        self, score: Score, points: Points, graph: bool, members: Sequence[int], maps: dict[int, Tensor]
    ) -> Iterator[None]:
        """If something is raised inside, put into ``maps`` what ``members`` give one by one, point by point; NaN if nothing.

        So no explainer spoils another one that shares its evaluations, nor a point its neighbours in the batch.
        """
        try:
            yield
        except Exception as error:
            if not self.tolerant or graph or _is_fatal(error):
                raise
            if len(members) > 1:
                for index in members:
                    maps[index] = self.only([index])._group(score, points, graph)[:, 0]
                return
            (index,) = members
            if len(points) > 1:
                parts = [points[i : i + 1] for i in range(len(points))]
                maps[index] = torch.cat([self.only([index])._group(score, part, graph)[:, 0] for part in parts])
                return
            self.failures.setdefault(self.names[index], reason(error))
            wide = torch.promote_types(points.x.dtype, torch.float32)
            maps[index] = torch.full_like(points.x, torch.nan, dtype=wide)

    def only(self, which: Sequence[int]) -> Stack:
        """A stack of some of the explainers, which notes failures here."""
        names = [self.names[index] for index in which]
        part = Stack([self.explainers[index] for index in which], self.seed, names, self.tolerant)
        part.failures = self.failures
        return part

    @property
    def _key(self) -> Key:
        return Key(self.seed, "explainer")

    def _fold(self, score: Score, points: Points, members: list[int], graph: bool) -> list[Any]:
        """The folded states of explainers that share a cloud."""
        needs = [self.explainers[index].need for index in members]
        need = needs[0]
        layers = tuple(dict.fromkeys(each.layer for each in needs if each.layer))
        gradient = any(each.gradient for each in needs)
        backward = any(_takes_gradient(each) for each in needs)
        key = self._key / need.stream
        states: list[Any] = [None] * len(members)
        total = need.total(points.x.shape[1:])
        # Rows are made four batches at a time; evaluate runs them batch by batch.
        step = max(1, 4 * score.batch.size(backward) // len(points))
        for start in range(0, total, step):
            cloud = need.where.draw(points, range(start, min(start + step, total)), key, total)
            values = score.evaluate(
                cloud.points,
                cloud.owner,
                gradient=gradient,
                rule=need.rule,
                layers=layers,
                origin=cloud.origin,
                graph=graph,
            )
            for position, index in enumerate(members):
                states[position] = self.explainers[index].fold(states[position], cloud, values)
        return states

    def usable(self, score: Score, points: Points) -> tuple[Stack, dict[str, str]]:
        """Try each explainer on the first point, with one sample of its cloud.

        Args:
            score: what is explained.
            points: x (N, *F), N at least 1.

        Returns:
            The stack of those that work, which is tolerant, and {name: why not} of the others, whatever they raised.

        Raises:
            InputError: none works; says why.
        """
        failed: dict[str, str] = {}
        reasons: dict[Any, str] = {}  # what was tried → why it failed, "" if it did not
        for index, (name, explainer) in enumerate(zip(self.names, self.explainers, strict=True)):
            trial = _trial(index, explainer)
            if trial not in reasons:
                reasons[trial] = self._reason(score, points[:1], explainer)
            if reasons[trial]:
                failed[name] = reasons[trial]
        left = [index for index, name in enumerate(self.names) if name not in failed]
        if not left:
            raise InputError(f"methods: none works on this model. {_by_reason(failed)}")
        explainers = [self.explainers[index] for index in left]
        names = [self.names[index] for index in left]
        return Stack(explainers, self.seed, names, tolerant=True), failed

    def _reason(self, score: Score, points: Points, explainer: Explainer) -> str:
        """Why an explainer does not work at these points; "" if it does."""
        try:
            self._probe(score, points, explainer)
        except Exception as error:
            if _is_fatal(error):
                raise
            return reason(error)
        return ""

    def _probe(self, score: Score, points: Points, explainer: Explainer) -> None:
        """One sample, folded; a fold of outputs needs more than one, so it is left to the real run."""
        if isinstance(explainer, Direct):
            explainer.check(score, points, self._key / explainer.name)
            return
        if isinstance(explainer, Coalitional):
            tried(explainer, score, points, self._key)
            return
        need = explainer.need
        cloud = need.where.draw(points, range(1), self._key / need.stream, need.total(points.x.shape[1:]))
        values = score.evaluate(
            cloud.points,
            cloud.owner,
            gradient=need.gradient,
            rule=need.rule,
            layers=(need.layer,) if need.layer else (),
            origin=cloud.origin,
        )
        if _takes_gradient(need):
            explainer.finish(explainer.fold(None, cloud, values), points)


def _takes_gradient(need: Need) -> bool:
    """Whether it costs a backward pass: for the rows, or for a layer."""
    return need.gradient or need.layer is not None


def _trial(index: int, explainer: Explainer) -> Any:
    """What is tried of an explainer: those with equal trials want the same evaluations, and work or fail together."""
    if isinstance(explainer, Direct | Coalitional):
        return index
    need = explainer.need
    # What is done with a layer's activations may fail in one method and not in another.
    reduction = type(explainer) if need.layer else None
    return need.cloud, need.gradient, need.layer, reduction


def _by_reason(failed: dict[str, str]) -> str:
    """{name: reason} as "name, name: reason; name: reason"."""
    alike: dict[str, list[str]] = {}
    for name, why in failed.items():
        alike.setdefault(why, []).append(name)
    return "; ".join(f"{', '.join(names)}: {why}" for why, names in alike.items())


def reason(error: Exception) -> str:
    """Why a method failed, for people: our own messages and PyTorch's as they are, others with the name of the error."""
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
    """Names made distinct: the second ``saliency`` becomes ``saliency_2``."""
    counts: dict[str, int] = {}
    distinct = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        if counts[name] > 1:
            name = f"{name}_{counts[name]}"
        distinct.append(name)
    return tuple(distinct)
