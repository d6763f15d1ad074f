"""How an explanation is measured: which maps, which draws, which named objectives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import InputError
from ..explainers import Normalised
from ..metrics import AverageSensitivity, Infidelity
from ..metrics.base import Metric
from ..metrics.front import Aim
from ..model.score import Score
from ..perturb.baseline import Baseline
from ..perturb.points import Points, present
from ..statistics.evidence import Evidence
from ..statistics.keys import Key
from ..statistics.tensors import exact
from ..task import Task
from .aggregations import derive
from .draws import KINDS, Draws


@dataclass(frozen=True)
class Setting:
    """The maps and the two metrics of one explanation."""

    stack: Normalised
    working: tuple[int, ...]
    rows: int
    sensitivity: AverageSensitivity
    infidelity: Infidelity
    seed: int

    def raw(self, score: Score, points: Points) -> Tensor:
        """(N, working k, *F): the methods' attributions before the stage that reduces and scales them."""
        return self.stack.stack.attribute(score, points)

    def plain(self, raw: Tensor, owner: Tensor) -> Tensor:
        """(N, working k, *F) → (N, working k, *A): reduced to features, signed and unscaled."""
        return replace(self.stack, sign="keep", scale="none").apply(raw, owner)

    def maps(self, score: Score, points: Points, derived: bool = True) -> Tensor:
        """(N, k [+ 5], *A): every method in order (NaN where one failed), then the derived maps."""
        return self.complete(self.stack.attribute(score, points), points, derived)

    def base(self, score: Score, points: Points, derived: bool = True) -> tuple[Tensor, Tensor]:
        """:meth:`maps`, and Σφ (N, working k) of each attribution before it is reduced and scaled."""
        maps, sums = [], []
        for part, raw in self.stack.stack.stream(score, points):
            maps.append(self.stack.apply(raw, points.owner[part]))
            sums.append(exact(raw.flatten(2)).sum(2))
        return self.complete(torch.cat(maps), points, derived), torch.cat(sums)

    def complete(self, found: Tensor, points: Points, derived: bool) -> Tensor:
        """(N, working k, *A) → (N, k [+ 5], *A)."""
        every = found.new_full((len(found), self.rows, *found.shape[2:]), torch.nan)
        every[:, list(self.working)] = found
        if not derived:
            return every
        has = present(self.stack.features, points).view(len(points), *found.shape[2:])
        return torch.cat([every, derive(found, has)], 1)

    def evidence(
        self, score: Score, points: Points, base: Tensor, draws: Draws, stream: str, kinds: Iterable[str] = tuple(KINDS)
    ) -> Evidence:
        """Measure the maps ``base`` (N, R, *A) at ``points`` with the named stream of draws, of these kinds."""
        parts = [
            self.more(score, points, base, kind, range(draws.of_kind(kind)), stream) for kind in KINDS if kind in kinds
        ]
        return sum(parts, Evidence())

    def more(self, score: Score, points: Points, base: Tensor, kind: str, samples: range, stream: str) -> Evidence:
        """Only the draws ``samples`` of one kind: "quadratic" (neighbours) or "responses" (masks)."""
        derived = base.shape[1] > self.rows

        def explain(where: Score, at: Points) -> Tensor:
            return self.maps(where, at, derived)

        task = Task(score, points, base, self.stack.features, explain, Key(self.seed, stream))
        metric = self.infidelity if kind == "responses" else self.sensitivity
        return Evidence.of({kind: metric.measure(task, samples, samples.stop)})


def metrics_of(target: Aim | str) -> tuple[AverageSensitivity, Infidelity]:
    """The metrics an objective is made of, defaults where it has none; one of each kind, since draws are shared."""
    terms = [] if isinstance(target, str) else [term for _, term in target.terms]
    for term in terms:
        if not isinstance(term, AverageSensitivity | Infidelity):
            raise InputError(
                f"objective: explanations are solved for AverageSensitivity and Infidelity; {type(term).__name__} can be "
                "trained for (cs.train.Penalty) and measured (cs.evaluate)"
            )
    found = []
    for kind in (AverageSensitivity, Infidelity):
        mine = [term for term in terms if isinstance(term, kind)]
        if any(_draw(term) != _draw(mine[0]) for term in mine):
            raise InputError(
                f"objective: two different {kind.__name__} settings in one sum; draws are shared, so use one"
            )
        found.append(mine[0] if mine else kind())
    return found[0], found[1]  # type: ignore[return-value]


def _draw(term: Metric) -> tuple:
    """The term as far as its draws go; arrays count by identity."""
    if isinstance(term, AverageSensitivity):
        return term.neighbourhood, term.redraw
    assert isinstance(term, Infidelity)
    return term.features, term.share, None if term.baseline is None else Baseline.of(term.baseline)
