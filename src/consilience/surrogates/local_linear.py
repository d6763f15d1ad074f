"""A map as a linear model g of the score f around the point: what it predicts, beside what the score does.

Both are falls, so that y − a is the error of the linear model: y = f(x) − f(x′) and a = g(x) − g(x′).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..features.base import Features
from ..perturb.baseline import Baseline
from ..perturb.points import Points, shared
from ..settings import Settings, setting
from ..statistics.evidence import Responses
from ..statistics.keys import Key
from ..statistics.tensors import exact

Output = Callable[[Tensor, Tensor], Tensor]
"""(rows (N, *F), the input that each belongs to (N,)) → scores (N,)."""

ROOM = 2**24
"""Numbers of rows that are made at once."""


@dataclass(frozen=True)
class Local(Settings):
    """Points near x, whose features are moved by ε ~ N(0, radius²), one number for each feature.

    What noise leaves as it is (one-hot blocks, padding) stays.

    Args:
        kind: "gradient": x′ = x + ε, in the points' unit of noise, and a = −Σ ε_i φ_i, φ_i the sum of the gradient over the
            feature's elements. "contribution": x′ − b = (1 + ε)(x − b), and a = −Σ ε_i φ_i, φ_i the feature's share of
            f(x) − f(b): a contribution moves in proportion.
        radius: standard deviation of ε.
        baseline: b, of contributions.
    """

    kind: str = setting("gradient", choices=("gradient", "contribution"))
    radius: float = setting(0.1, above=0)
    baseline: Baseline = Baseline()

    def responses(
        self, output: Output, points: Points, maps: Tensor, features: Features, samples: range, key: Key, step: int
    ) -> Responses:
        """What the maps predict and what the score does at the points near x: a (B, S, R) and y (B, S).

        Args:
            output: rows and owners → scores.
            points: x (B, *F).
            maps: φ (B, R, *A).
            features: what the maps attribute.
            samples: numbers of the points, S of them.
            key: of the points.
            step: rows at once.
        """
        values = exact(maps.flatten(2))
        clean = exact(output(points.x, points.owner))[:, None]
        a: list[Tensor] = []
        y: list[Tensor] = []
        size = max(1, step // len(points))
        for start in range(samples.start, samples.stop, size):
            part = range(start, min(start + size, samples.stop))
            rows, moves = self._move(points, features, part, key)
            owner = points.owner.repeat_interleave(len(part))
            y.append(clean - exact(output(rows, owner)).unflatten(0, (-1, len(part))))
            a.append(-exact(moves).unflatten(0, (-1, len(part))) @ values.mT)
        return Responses(torch.cat(a, 1), torch.cat(y, 1))

    def _move(self, points: Points, features: Features, samples: range, key: Key) -> tuple[Tensor, Tensor]:
        """(N·s, *F) rows and (N·s, A) the ε of each feature."""
        shape = points.x.shape[1:]
        owner = points.owner.repeat_interleave(len(samples))
        x = points.x.repeat_interleave(len(samples), 0)
        sizes = features.sizes(owner, shape).clamp(min=1).to(x)
        # One number for each feature: all of its elements move alike.
        noise = (self.radius * shared(key.normal, points, samples, features.shape(shape))).to(x)
        if self.kind == "contribution":
            origin = self.baseline.at(points).repeat_interleave(len(samples), 0)
            # Noise would not reach one-hot blocks and padding; nor does a move toward the baseline.
            movable = points.scaled(torch.ones_like(x)) != 0
            moved = features.expand(noise, owner, shape) * movable
            rows = x + moved * (x - origin)
        else:
            moved = points.scaled(features.expand(noise, owner, shape))
            rows = x + moved
        # A feature's ε is the mean over its elements: some of them may have stayed.
        return rows, (features.reduce(moved, owner) / sizes).flatten(1)


def completeness(
    output: Output, points: Points, maps: Tensor, baseline: Baseline, features: Features | None = None
) -> Responses:
    """a (B, 1, R) = Σφ and y (B, 1) = f(x) − E f(b): one response, to everything being taken away.

    Args:
        output: rows and owners → scores.
        points: x (B, *F).
        maps: φ (B, R, *A).
        baseline: b; of a data set, the mean is over its rows' scores.
        features: what the maps attribute; None: every element of the input.
    """
    clean = exact(output(points.x, points.owner))
    y = clean - exact(score_of_nothing(output, points, baseline, features))
    return Responses(exact(maps.flatten(2)).sum(2)[:, None], y[:, None])


def score_of_nothing(
    output: Output, points: Points, baseline: Baseline, features: Features | None = None, most: int | None = None
) -> Tensor:
    """(B,): E f(b), the score when all is replaced by the baseline's values; of a data set the mean over its rows.

    Args:
        output: rows and owners → scores.
        points: x (B, *F).
        baseline: b.
        features: what is replaced; elements that belong to none (special tokens, padding) stay. None: every element.
        most: rows of a data set that are enough; None: all.
    """
    x = points.x
    shape = x.shape[1:]
    rows = baseline.count(len(shape))
    if most is not None:
        rows = min(rows, most)
    step = max(1, ROOM // x.numel())
    total: Tensor | float = 0.0
    for start in range(0, rows, step):
        part = range(start, min(start + step, rows))
        owner = points.owner.repeat_interleave(len(part))
        # A data set's rows are drawn without repeats: any n draws that follow each other are all n rows.
        there = baseline.drawn(points, part, Key(0, "everything"))
        if features is not None:
            every = torch.ones(len(owner), *features.shape(shape), dtype=torch.bool, device=x.device)
            gone = features.mask(every, owner, shape)
            there = torch.where(gone, there, x.repeat_interleave(len(part), 0))
        total = total + output(there, owner).unflatten(0, (-1, len(part))).sum(1)
    return total / rows  # type: ignore[return-value]
