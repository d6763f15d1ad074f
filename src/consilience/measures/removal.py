"""Features taken away, or put in, in the order of each attribution: one engine, whose curves measures share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import InputError
from ..features.base import Elements, Features
from ..features.images import Pixels, coarse
from ..model.score import Score, _wide
from ..perturb.imputation import Imputer
from ..perturb.points import present
from ..statistics.keys import Key
from ..statistics.tensors import exact
from ..task import Task

VALUES = ("change", "score", "probability", "accuracy")


ROOM = 2**25  # numbers of maps in a group of inputs


@dataclass(frozen=True)
class Curves:
    """What the model says along the way. float64; NaN in rows whose map is not finite.

    ``count`` (B, T): how many features were taken away (or put in), ``share`` (B, T): of those that the input has;
    ``score``, ``probability``, ``accuracy`` (B, R, T): the explained score, the target's probability (NaN for regression; the
    score itself where ``kind`` is a callable), and whether the target is still the largest output (of one output or of labels:
    on the same side as at x); ``clean`` (B,): the score of the whole input.
    """

    count: Tensor
    share: Tensor
    score: Tensor
    probability: Tensor
    accuracy: Tensor
    clean: Tensor

    def read(self, value: str) -> Tensor:
        """(B, R, T): one of these, or "change": the score minus the clean score."""
        return self.score - self.clean[:, None, None] if value == "change" else getattr(self, value)

    def area(self, value: str) -> Tensor:
        """(B, R): the mean height of the curve over ``share`` (trapezoidal rule)."""
        width = self.share.diff(dim=1)[:, None]
        heights = self.read(value)
        return (width * (heights[..., 1:] + heights[..., :-1]) / 2).sum(-1) / width.sum(-1)


@dataclass(frozen=True)
class Removal:
    """Which features go, in which order, by what they are replaced, and where to look.

    Where features are replaced by rows of a data set, curves are means over up to eight of its rows, drawn without
    replacement by the input's id, the same for all maps and steps of an input.

    Args:
        features: what is taken away as a whole.
        imputer: what is put in its place.
        steps: T, for 0, 1/T, …, 1 of the features, but at most one step for each; None: one by one; shares; or a range of
            counts. Of K features, a share s takes ⌊s · K⌋.
        first: "most" or "least" relevant. Ties are broken by keyed random words, one for each feature of an input and the
            same for all its maps, so counts are exact. "least" is the reversed order of "most", and the features that an input
            lacks are in neither.
        insert: the first features are put into the replaced input, in place of the other way round.
        average: features are ordered by their mean over elements, not by their sum.

    Raises:
        InputError: no step, or a share beyond 0 … 1.
    """

    features: Features
    imputer: Imputer
    steps: int | tuple[float, ...] | range | None = 20
    first: Literal["most", "least"] = "most"
    insert: bool = False
    average: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.steps, int) and self.steps < 1:
            raise InputError(f"steps: at least 1, or None for one feature at a time, got {self.steps!r}")
        if isinstance(self.steps, tuple) and not (self.steps and all(0 <= share <= 1 for share in self.steps)):
            raise InputError(f"steps: shares between 0 and 1, got {self.steps!r}")

    def curves(self, task: Task) -> Curves:
        """At most B · R · T model evaluations, in batches of at most ``max_batch``; once for each task."""
        return task.once(("removal", self), lambda: self._curves(task))

    def counts(self, owned: Tensor) -> Tensor:
        """(B, T) int64: how many of the ``owned`` (B,) features are gone at each step."""
        if isinstance(self.steps, range):
            return torch.tensor(self.steps, device=owned.device).minimum(owned[:, None])
        if isinstance(self.steps, tuple):
            shares = list(self.steps)
        else:
            most = int(owned.max())
            last = most if self.steps is None else min(self.steps, most)
            shares = [step / last for step in range(last + 1)]
        exactly = torch.tensor(shares, dtype=torch.float64, device=owned.device) * owned[:, None]
        # A share of 0.3 of ten features is three, whatever rounding says.
        return (exactly + 1e-9).long()

    def _curves(self, task: Task) -> Curves:
        points, score = task.points, task.score
        self._refuse_invented_codes(task)
        has = present(self.features, points).to(exact(score.clean).device)
        owned = has.sum(1)
        counts = self.counts(owned)
        inputs, rows, steps = len(points), task.maps.shape[1], counts.shape[1]
        draws = self.imputer.draws(points)
        reference = self.imputer.reference(points, range(draws), task.stream("removal")).unflatten(0, (inputs, draws))
        usable = exact(task.maps).flatten(2).isfinite().all(2).flatten().nonzero()[:, 0]
        found = torch.full((3, inputs * rows, steps), torch.nan, dtype=torch.float64, device=has.device)
        room = rows * max(1, ROOM // (rows * has.shape[1]))  # maps of whole inputs
        for group in range(0, inputs * rows, room):
            pairs = usable[(usable >= group) & (usable < group + room)]
            if len(pairs):
                self._group(task, pairs, has, counts, reference, found)
        share = counts / owned.clamp(min=1)[:, None].double()
        score_, probability, accuracy = found.unflatten(1, (inputs, rows))
        return Curves(counts, share, score_, probability, accuracy, exact(score.clean)[points.owner])

    def _refuse_invented_codes(self, task: Task) -> None:
        """Raise InputError where codes of categories would be replaced by values that need not occur."""
        shape = task.points.x.shape[1:]
        codes = [features.codes(shape) for features in (self.features, task.features)]
        if any(code is not None for code in codes) and not self.imputer.occurs:
            raise InputError(
                "baseline: columns of codes are replaced by codes that occur; leave the measure's baseline open and give "
                "evaluate baselines=rows of a data set"
            )

    def _group(self, task: Task, pairs: Tensor, has: Tensor, counts: Tensor, reference: Tensor, found: Tensor) -> None:
        """Fill in the curves of maps ``pairs`` (P,): each distinct set of features of an input is evaluated once, whichever
        maps and steps ask for it (everything is asked for by all; what the model says to the whole input is known)."""
        points, score, rows = task.points, task.score, task.maps.shape[1]
        inputs = pairs // rows
        order = self._order(task, pairs, has[inputs])
        numbers = torch.arange(order.shape[1], dtype=torch.int32, device=order.device)
        places = torch.empty_like(order, dtype=torch.int32).scatter_(1, order, numbers.expand_as(order))
        after = counts[inputs]  # (P, T)
        steps = after.shape[1]
        names = torch.stack([inputs[:, None].expand_as(after), _named(order, after)], -1)
        asked, which = names.flatten(0, 1).unique(dim=0, return_inverse=True)
        # Of the maps and steps that ask for a set, the first one shows which features are in it.
        asking = torch.arange(len(which), device=which.device)
        one = torch.full_like(asked[:, 0], len(which)).scatter_reduce_(0, which, asking, "amin")
        values = torch.empty(3, len(one), dtype=torch.float64, device=found.device)
        nothing_gone = has.sum(1)[asked[:, 0]] if self.insert else torch.zeros_like(one)
        whole = after.flatten()[one] == nothing_gone
        owner = points.owner[asked[whole, 0].to(points.owner.device)]
        values[:, whole] = _read(score, _wide(score.outputs[owner]), owner)
        for part in (~whole).nonzero()[:, 0].split(4 * score.batch.size(False)):
            if not len(part):
                break  # a single feature: whole or gone, and both are known
            pair, step = one[part] // steps, one[part] % steps
            first = places[pair] < after[pair, step][:, None]
            gone = (~first if self.insert else first) & has[inputs[pair]]
            values[:, part] = self._asked(task, gone, inputs[pair], reference)
        found[:, pairs] = values[:, which].unflatten(1, after.shape)

    def _asked(self, task: Task, gone: Tensor, inputs: Tensor, reference: Tensor) -> Tensor:
        """(3, N) float64: score, probability and accuracy without the features ``gone`` (N, K) of the ``inputs`` (N,), means
        over the draws of the ``reference`` (B, draws, *F)."""
        points, score = task.points, task.score
        shape, device = points.x.shape[1:], points.x.device
        inputs = inputs.to(device)
        owner = points.owner[inputs]
        mask = self.features.mask(gone.unflatten(1, self.features.shape(shape)).to(device), owner, shape)
        total = torch.zeros(3, len(inputs), dtype=torch.float64, device=exact(score.clean).device)
        lone = bool((inputs == inputs[0]).all())  # rows of one input are not copied
        for draw in range(reference.shape[1]):
            if lone:
                x = points.x[inputs[:1]].expand(len(inputs), *shape)
                other = reference[inputs[:1], draw].expand(len(inputs), *shape)
            else:
                x = points.x[inputs]
                other = reference[inputs, draw]
            filled = self.imputer.fill(x, mask, other)
            total += _read(score, score.outputs_of(filled, owner), owner)
        return total / reference.shape[1]

    def _order(self, task: Task, pairs: Tensor, has: Tensor) -> Tensor:
        """(P, K) int64: the features in the order in which they go; those that the input lacks come last."""
        values = settled(on_units(task, self.features, pairs, self.average)).masked_fill(~has, -torch.inf)
        inputs, which = (pairs // task.maps.shape[1]).unique_consecutive(return_inverse=True)
        words = task.stream("ties").bits(task.points.ids.to(has.device)[inputs], 0, has.shape[1])
        shuffled = words.argsort(dim=1, stable=True)[which]
        order = shuffled.gather(1, values.gather(1, shuffled).argsort(dim=1, descending=True, stable=True))
        if self.first == "most":
            return order
        place, last = torch.arange(has.shape[1], device=has.device), has.sum(1, keepdim=True) - 1
        return order.gather(1, torch.where(place <= last, last - place, place))


def _named(order: Tensor, counts: Tensor) -> Tensor:
    """(P, K), (P, T) → (P, T) int64: a number for the set of the first ``counts`` features of an order, the same for equal
    sets: the sum of a random 64-bit word for each feature (Zobrist). Two different sets of a hundred million have the same
    one with probability 3 · 10⁻⁴."""
    high, low = (
        Key(0, "sets")
        .bits(torch.zeros(1, dtype=torch.int64, device=order.device), 0, 2 * order.shape[1])[0]
        .view(2, -1)
    )
    sums = (high << 32 | low)[order].cumsum(1)
    return torch.where(counts > 0, sums.gather(1, (counts - 1).clamp(min=0)), 0)


def on_units(task: Task, features: Features, pairs: Tensor, average: bool = False) -> Tensor:
    """(P, K) float64: maps number ``pairs`` (of B · R) summed (or averaged) over the elements of other features, each
    attributed feature spread evenly."""
    maps = exact(task.maps.flatten(0, 1)[pairs.to(task.maps.device)])
    if features == task.features and not average:
        return maps.flatten(1)
    owner = task.points.owner.to(maps.device)[pairs // task.maps.shape[1]]
    shape = task.points.x.shape[1:]
    values = features.reduce(task.features.spread(maps, owner, shape), owner).flatten(1)
    return values / features.sizes(owner, shape).flatten(1).clamp(min=1).to(values) if average else values


def settled(values: Tensor, unit: Tensor | None = None) -> Tensor:
    """Values rounded to multiples of the unit, 2⁻⁴⁰ of the largest along the last axis: what differs by the rounding of
    sums only becomes equal, so that ties are ties."""
    unit = values.abs().amax(-1, keepdim=True) * 2.0**-40 if unit is None else unit
    return torch.where(unit > 0, (values / unit).round() * unit, values)


def chosen(task: Task, features: Features | None) -> Features:
    """The features to take away: those asked for; else those of the maps, or, where these are elements or pixels,
    :func:`~consilience.features.images.coarse` ones."""
    if features is not None:
        return features
    fine = isinstance(task.features, Elements | Pixels)
    return coarse(task.points.x.shape[1:]) if fine else task.features


def blurred(task: Task, baseline: object, usual: object = None) -> object:
    """``None`` → ``usual``, or "blur" for images, "zero" for anything else, as for :class:`~consilience.metrics.Infidelity`."""
    baseline = usual if baseline is None else baseline
    return baseline if baseline is not None else "blur" if task.points.x.ndim == 4 else "zero"


def _read(score: Score, outputs: Tensor, owner: Tensor) -> Tensor:
    """(N, classes), (N,) → (3, N) float64: score, probability and accuracy of each row."""
    value = score._pick(outputs, owner)
    meaning, target = score.meaning, score.targets[owner]
    # A callable kind is the caller's own idea of the score; there is no other probability then.
    probability = value if callable(score.kind) else meaning.probability(outputs, target)
    if meaning.meaning == "values":
        agrees = torch.full_like(value, torch.nan)
    else:
        agrees = meaning.agrees(outputs, score.outputs[owner], target).to(value)
    return exact(torch.stack([value, probability.to(value), agrees]))
