"""Explainers that ask for the values of coalitions, and what they share: each coalition is evaluated once for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..features.base import Features
from ..model.score import Score
from ..perturb.coalitions import Design
from ..perturb.games import Game, ranks, unit
from ..perturb.points import Points, present
from ..perturb.union import Union, union
from ..statistics.keys import Key
from ..statistics.tensors import exact
from .base import Explainer, Need
from .spread import absent, give

STREAM = "coalitions"
"""The stream of all coalitions of explainers. Masks that fit or judge are drawn from streams of their own."""


class Coalitional(Explainer):
    """An explainer that is a function of the values of coalitions of features.

    Those that play the same :class:`~consilience.perturb.games.Game` share evaluations, and get what they get alone: which
    coalitions a method has depends on its own :attr:`design` only.
    """

    features: Features | None
    baselines: Any

    @property
    def design(self) -> Design:
        """Which coalitions it wants."""
        raise NotImplementedError

    def values(self, score: Tensor, key: Key, features: int, rows: int) -> Tensor:
        """The features' attributions, (N, A) float64.

        Args:
            score: (N, n) float64, of the coalitions of the design, in its order.
            key: of the draws.
            features: A, the number of features that these inputs have.
            rows: of the baseline's data set; 1 where there is one baseline.
        """
        raise NotImplementedError

    def check_features(self, shape: Sequence[int]) -> None:
        """Look whether the method can do with this number of features of inputs with axes ``shape``.

        Raises:
            InputError: it cannot; says what to change.
        """

    def game(self, shape: Sequence[int]) -> Game | None:
        """What is played with inputs with axes ``shape``; None: coalitions are not what it needs of such inputs."""
        return Game(absent(self.baselines), unit(self.features, shape))

    @property
    def need(self) -> Need:
        """The point beside what may replace it. The coalitions are in :attr:`design`."""
        return Need(Game(absent(self.baselines), self.features), None, STREAM, gradient=False)


def games_of(explainers: Sequence[Coalitional], shape: Sequence[int]) -> dict[Game | None, list[int]]:
    """What some ``explainers`` play with inputs with axes ``shape`` → the places of those that do; None: no game."""
    groups: dict[Game | None, list[int]] = {}
    for place, explainer in enumerate(explainers):
        groups.setdefault(explainer.game(shape), []).append(place)
    return groups


def evaluations(explainers: Sequence[Coalitional], shape: Sequence[int], key: Key) -> int:
    """How many forward evaluations some explainers need together, of an input with axes ``shape`` that has all features.

    Args:
        explainers: each coalition that several of them want counts once.
        shape: F.
        key: of the explainers' draws.
    """
    number = 0
    for game, places in games_of(explainers, shape).items():
        members = [explainers[place] for place in places]
        if game is None:
            clouds = {explainer.need.cloud: explainer.need.total(shape) for explainer in members}
            number += sum(clouds.values())
        else:
            number += len(_union(members, game, shape, key))
    return number


def attributed(
    explainers: Sequence[Coalitional], score: Score, points: Points, key: Key, graph: bool = False
) -> list[Tensor]:
    """The attributions of some explainers, (N, *F) each; what several of them want is evaluated once.

    Args:
        explainers: any number.
        score: what is explained.
        points: x (N, *F).
        key: of the explainers' draws.
        graph: keep the graph, for a loss of the attributions.

    Raises:
        InputError: a method cannot do with so many features.
    """
    maps: dict[int, Tensor] = {}
    for game, places in games_of(explainers, points.x.shape[1:]).items():
        members = [explainers[place] for place in places]
        if game is None:
            found = [_streamed(explainer, score, points, key, graph) for explainer in members]
        else:
            found = play(members, game, score, points, key, graph)
        maps.update(zip(places, found, strict=True))
    return [maps[place] for place in range(len(explainers))]


def tried(explainer: Coalitional, score: Score, points: Points, key: Key) -> None:
    """Raise whatever would make an explainer fail, with one evaluation of each point.

    Args:
        explainer: what is tried.
        score: what is explained.
        points: x (N, *F).
        key: of the explainers' draws.
    """
    shape = points.x.shape[1:]
    explainer.check_features(shape)
    game = explainer.game(shape)
    if game is not None:
        assert game.features is not None
        present(game.features, points)
    need = explainer.need
    cloud = need.where.draw(points, range(1), key / need.stream, need.total(shape))
    score.evaluate(cloud.points, cloud.owner)


def _streamed(explainer: Coalitional, score: Score, points: Points, key: Key, graph: bool) -> Tensor:
    """The attributions of an explainer of samples that are no coalitions, (N, *F). Arguments as for :func:`attributed`."""
    need = explainer.need
    total = need.total(points.x.shape[1:])
    state = None
    step = max(1, 4 * score.batch.size(False) // len(points))
    for start in range(0, total, step):
        cloud = need.where.draw(points, range(start, min(start + step, total)), key / need.stream, total)
        targets = None if points.targets is None else points.targets.repeat_interleave(len(cloud.samples))
        values = score.evaluate(cloud.points, cloud.owner, graph=graph, targets=targets)
        state = explainer.fold(state, cloud, values)
    return explainer.finish(state, points)


def _union(explainers: Sequence[Coalitional], game: Game, shape: Sequence[int], key: Key) -> Union:
    """The coalitions that some explainers of one ``game`` need, of an input with axes ``shape`` that has all features."""
    assert game.features is not None
    designs = tuple(explainer.design for explainer in explainers)
    return union(designs, key / STREAM, game.features.largest(shape), game.baseline.count(len(shape)))


def play(
    explainers: Sequence[Coalitional], game: Game, score: Score, points: Points, key: Key, graph: bool = False
) -> list[Tensor]:
    """The attributions of some explainers of one ``game``, (N, *F) each.

    Args:
        explainers: at least one.
        game: which they play.
        score: what is explained.
        points: x (N, *F).
        key: of the explainers' draws.
        graph: keep the graph, for a loss of the attributions.

    Raises:
        InputError: a method cannot do with so many features.
    """
    assert game.features is not None
    shape = points.x.shape[1:]
    for explainer in explainers:
        explainer.check_features(shape)
    key = key / STREAM
    has = present(game.features, points)
    rank = ranks(key / "order", points, has)
    rows = game.baseline.count(len(shape))
    designs = tuple(explainer.design for explainer in explainers)
    parts: list[list[Tensor]] = [[] for _ in explainers]
    order = []
    for alike, features in alike_inputs(has):
        order.append(alike)
        if features == 0:
            for part in parts:
                part.append(torch.zeros(len(alike), has.shape[1], dtype=torch.float64, device=has.device))
            continue
        listed = union(designs, key, features, rows)
        values = _scores(listed, game, score, points[alike], rank[alike], key, graph)
        for explainer, places, part in zip(explainers, listed.places, parts, strict=True):
            found = explainer.values(values[:, places.to(values.device)], key, features, rows)
            # From canonical places to the input's own features; those that it lacks have places beyond.
            padded = nnf.pad(found, (0, has.shape[1] - features))
            part.append(padded.gather(1, rank[alike].to(padded.device)))
    back = torch.cat(order).argsort()
    return [give(torch.cat(part)[back.to(part[0].device)], game.features, points) for part in parts]


def alike_inputs(has: Tensor) -> Iterator[tuple[Tensor, int]]:
    """``has`` (N, A) bool, the features that inputs have → the inputs with equally many of them, and how many these are."""
    owned = has.sum(1)
    for number in owned.unique().tolist():
        yield (owned == number).nonzero()[:, 0], number


def _scores(listed: Union, game: Game, score: Score, points: Points, rank: Tensor, key: Key, graph: bool) -> Tensor:
    """(N, U) float64: the scores of all points without the features that each of U coalitions lacks.

    Args:
        listed: the coalitions, of as many features as the points have.
        game: which is played.
        score: what is explained.
        points: N points.
        rank: (N, A), the canonical place of each feature.
        key: of the draws.
        graph: keep the graph.
    """
    assert game.features is not None
    baseline = game.baseline
    shape = points.x.shape[1:]
    axes = game.features.shape(shape)
    data = baseline.is_data(len(shape))
    base = None if data else baseline.at(points)
    missing = rank.shape[1] - listed.features
    total = len(points) * len(listed)
    # Rows are made four batches at a time; evaluate runs them batch by batch.
    step = 4 * score.batch.size(False)
    found = []
    for start in range(0, total, step):
        numbers = torch.arange(start, min(start + step, total))
        # Coalition by coalition, each with all points, so that the coalitions of a step are few and ascending.
        coalition = torch.div(numbers, len(points), rounding_mode="floor")
        at = (numbers % len(points)).to(points.x.device)
        alike, where = coalition.unique(return_inverse=True)
        gone, draws = listed.part(alike)
        gone = nnf.pad(gone, (0, missing))[where].to(rank.device).gather(1, rank[at])
        here = points[at]
        if base is None:
            origin = baseline.numbered(here, draws[where].to(rank.device)[:, None], key / "baseline")
        else:
            origin = base[at]
        replaced = game.features.mask(gone.unflatten(1, axes), here.owner, shape)
        rows = torch.where(replaced, origin, here.x)
        found.append(exact(score.evaluate(rows, here.owner, graph=graph, targets=here.targets).score))
    return torch.cat(found).unflatten(0, (len(listed), len(points))).mT
