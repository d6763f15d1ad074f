"""Several explainers at once: each distinct need is evaluated once and folded into all that asked for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ConsilienceError, InputError
from ..model.score import Score
from ..perturb.points import Points
from ..statistics.keys import Key
from .base import Direct, Explainer, Need


class Stack:
    """k explainers with one seed: a function from points to attributions (N, k, *F).

    The rows in flight are bounded by the score's ``max_batch``; points are drawn as they are needed and gradients are
    folded at once, so nothing of size samples × features is kept.
    """

    def __init__(self, explainers: Sequence[Explainer], seed: int = 0, names: Sequence[str] | None = None):
        if not explainers:
            raise InputError("methods: at least one explainer is needed")
        self.explainers = tuple(explainers)
        self.names = tuple(names) if names else unique([e.name for e in explainers])
        self.seed = seed

    def __len__(self) -> int:
        return len(self.explainers)

    def clouds(self) -> dict[tuple, list[int]]:
        """The distinct clouds to evaluate → which explainers fold them."""
        groups: dict[tuple, list[int]] = {}
        for index, explainer in enumerate(self.explainers):
            if not isinstance(explainer, Direct):
                groups.setdefault(explainer.need.cloud, []).append(index)
        return groups

    def rows(self, shape: Sequence[int] = ()) -> dict[str, int]:
        """Model evaluations for one point with axes ``shape``, in rows: a closed formula, the floor of any implementation.

        The shape matters to methods that go through all features or windows."""
        cost = {"forward": 0, "gradient": 0}
        for members in self.clouds().values():
            need = self.explainers[members[0]].need
            gradient = any(self._gradient(self.explainers[i].need) for i in members)
            cost["gradient" if gradient else "forward"] += need.total(shape) * (2 if need.rule == "rescale" else 1)
        for explainer in self.explainers:
            if isinstance(explainer, Direct):
                for kind, count in explainer.rows(shape).items():
                    cost[kind] += count
        return cost

    def attribute(self, score: Score, points: Points, graph: bool = False) -> Tensor:
        """(N, k, *F), everything at once."""
        return torch.cat([maps for _, maps in self.stream(score, points, graph)])

    def stream(self, score: Score, points: Points, graph: bool = False) -> Iterator[tuple[slice, Tensor]]:
        """Groups of points as they are done: (which, (n, k, *F))."""
        size = score.batch.size(True)
        groups = -(-len(points) // size)
        step = -(-len(points) // groups)
        for start in range(0, len(points), step):
            part = slice(start, min(start + step, len(points)))
            yield part, self._group(score, points[part], graph)

    def _group(self, score: Score, points: Points, graph: bool) -> Tensor:
        maps: list[Any] = [None] * len(self)
        for members in self.clouds().values():
            needs = [self.explainers[i].need for i in members]
            states = self._fold(score, points, members, needs, graph)
            for index, state in zip(members, states, strict=True):
                maps[index] = self.explainers[index].finish(state, points)
        for index, explainer in enumerate(self.explainers):
            if isinstance(explainer, Direct):
                if graph:
                    raise InputError(f"methods: {explainer.name} has no graph; train with gradient or path methods")
                maps[index] = explainer.attribute(score, points, Key(self.seed, "explainer") / explainer.name)
        return torch.stack(maps, 1)

    def _fold(self, score: Score, points: Points, members: list[int], needs: list[Need], graph: bool) -> list[Any]:
        need = needs[0]
        layers = tuple(dict.fromkeys(n.layer for n in needs if n.layer))
        gradient, back = any(n.gradient for n in needs), any(self._gradient(n) for n in needs)
        key = Key(self.seed, "explainer") / need.stream
        states: list[Any] = [None] * len(members)
        total = need.total(points.x.shape[1:])
        step = max(1, 4 * score.batch.size(back) // len(points))
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
            for at, index in enumerate(members):
                states[at] = self.explainers[index].fold(states[at], cloud, values)
        return states

    @staticmethod
    def _gradient(need: Need) -> bool:
        return need.gradient or need.layer is not None

    def usable(self, score: Score, points: Points) -> tuple[Stack, dict[str, str]]:
        """Try each explainer on the first point, one sample of its cloud: (the stack that works, {name: why not})."""
        failed: dict[str, str] = {}
        tried: dict[Any, str] = {}
        for index, (name, explainer) in enumerate(zip(self.names, self.explainers, strict=True)):
            if isinstance(explainer, Direct):
                what: Any = index
            else:
                need = explainer.need
                what = need.cloud, need.gradient, need.layer, type(explainer) if need.layer else None
            if what not in tried:
                try:
                    self._probe(score, points[:1], explainer)
                    tried[what] = ""
                except (ConsilienceError, RuntimeError) as error:
                    tried[what] = str(error) or type(error).__name__
            if tried[what]:
                failed[name] = tried[what]
        left = [i for i, name in enumerate(self.names) if name not in failed]
        if not left:
            alike: dict[str, list[str]] = {}
            for name, why in failed.items():
                alike.setdefault(why, []).append(name)
            reasons = "; ".join(f"{', '.join(names)}: {why}" for why, names in alike.items())
            raise InputError(f"methods: none works on this model. {reasons}")
        return Stack([self.explainers[i] for i in left], self.seed, [self.names[i] for i in left]), failed

    def _probe(self, score: Score, points: Points, explainer: Explainer) -> None:
        """One sample, folded; a fold of outputs needs more than one, so it is left to the real run."""
        if isinstance(explainer, Direct):
            explainer.check(score, points, Key(self.seed, "explainer") / explainer.name)
            return
        need = explainer.need
        key = Key(self.seed, "explainer") / need.stream
        cloud = need.where.draw(points, range(1), key, need.total(points.x.shape[1:]))
        values = score.evaluate(
            cloud.points, cloud.owner, gradient=need.gradient, rule=need.rule,
            layers=(need.layer,) if need.layer else (), origin=cloud.origin,
        )  # fmt: skip
        if self._gradient(need):
            explainer.finish(explainer.fold(None, cloud, values), points)


def unique(names: Sequence[str]) -> tuple[str, ...]:
    """Names made distinct: the second ``saliency`` becomes ``saliency_2``."""
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return tuple(out)
