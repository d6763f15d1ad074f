"""Features taken away, or put in, in the order of each attribution: one engine, whose curves measures share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import InputError
from ..features.base import Elements, Features
from ..features.images import Pixels, coarse
from ..model.score import Score
from ..model.values import wide
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

    Args:
        count: (B, T) int64, how many features were taken away (or put in).
        share: (B, T), of those that the input has.
        score: (B, R, T), the explained score.
        probability: (B, R, T), the target's probability; NaN for regression; the score itself where ``kind`` is a callable.
        accuracy: (B, R, T), 1 where the target is still the largest output (of one output or of labels: on the same side
            as at x), else 0; NaN for regression.
        clean: (B,), the score of the whole input.
    """

    count: Tensor
    share: Tensor
    score: Tensor
    probability: Tensor
    accuracy: Tensor
    clean: Tensor

    def read(self, value: str) -> Tensor:
        """(B, R, T): "score", "probability" or "accuracy", or "change", the score minus the clean score."""
        if value == "change":
            return self.score - self.clean[:, None, None]
        return getattr(self, value)

    def area(self, value: str) -> Tensor:
        """(B, R): the mean height of the curve of ``value`` over ``share`` (trapezoidal rule)."""
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
        """The curves of all maps of a task, evaluated once for each task.

        At most B · R · T model evaluations, in batches of at most ``max_batch``.

        Raises:
            InputError: where codes of categories would be replaced by values that need not occur.
        """
        return task.once(("removal", self), lambda: self._curves(task))

    def counts(self, owned: Tensor) -> Tensor:
        """(B, T) int64: how many of the ``owned`` (B,) features are gone at each step."""
        if isinstance(self.steps, range):
            return torch.tensor(self.steps, device=owned.device).minimum(owned[:, None])
        if isinstance(self.steps, tuple):
            shares = list(self.steps)
        else:
            last = int(owned.max())
            if self.steps is not None:
                last = min(self.steps, last)
            shares = [step / last for step in range(last + 1)]
        exactly = torch.tensor(shares, dtype=torch.float64, device=owned.device) * owned[:, None]
        # A share of 0.3 of ten features is three, whatever rounding says.
        return (exactly + 1e-9).long()

    def _curves(self, task: Task) -> Curves:
        points = task.points
        clean = exact(task.score.clean)
        self._refuse_invented_codes(task)
        has = present(self.features, points).to(clean.device)
        owned = has.sum(1)
        counts = self.counts(owned)
        inputs = len(points)
        rows = task.maps.shape[1]
        steps = counts.shape[1]
        draws = self.imputer.draws(points)
        reference = self.imputer.reference(points, range(draws), task.stream("removal")).unflatten(0, (inputs, draws))
        # Maps are numbered over inputs and rows together, 0 … B·R − 1: those that are not finite are left out at once.
        usable = exact(task.maps).flatten(2).isfinite().all(2).flatten().nonzero()[:, 0]
        heights = torch.full((3, inputs * rows, steps), torch.nan, dtype=torch.float64, device=has.device)
        group_size = rows * max(1, ROOM // (rows * has.shape[1]))  # all maps of some inputs, which share evaluations
        for start in range(0, inputs * rows, group_size):
            pairs = usable[(usable >= start) & (usable < start + group_size)]
            if len(pairs):
                heights[:, pairs] = self._group(task, pairs, has, counts, reference)
        share = counts / owned.clamp(min=1)[:, None].double()
        score, probability, accuracy = heights.unflatten(1, (inputs, rows))
        return Curves(counts, share, score, probability, accuracy, clean[points.owner])

    def _refuse_invented_codes(self, task: Task) -> None:
        """Raise InputError where codes of categories would be replaced by values that need not occur."""
        shape = task.points.x.shape[1:]
        codes = [features.codes(shape) for features in (self.features, task.features)]
        if any(code is not None for code in codes) and not self.imputer.occurs:
            raise InputError(
                "baseline: columns of codes are replaced by codes that occur; leave the measure's baseline open and give "
                "evaluate baselines=rows of a data set"
            )

    def _group(self, task: Task, pairs: Tensor, has: Tensor, counts: Tensor, reference: Tensor) -> Tensor:
        """The curves of some maps, (3, P, T): score, probability and accuracy.

        Each distinct set of features of an input is evaluated once, whichever maps and steps ask for it: everything is asked
        for by all maps, good ones begin alike, and what the model says to the whole input is known.

        Args:
            task: what is judged.
            pairs: (P,) numbers of maps, input · R + row.
            has: (B, K) bool, which features the inputs have.
            counts: (B, T), how many are gone (or put in) at each step.
            reference: (B, draws, *F), what is put in their place.
        """
        points = task.points
        score = task.score
        inputs = pairs // task.maps.shape[1]
        after = counts[inputs]  # (P, T)
        steps = after.shape[1]
        order = self._order(task, pairs, has[inputs])
        places = _places(order)
        # A set is named by its input and a number made of its features; equal names are asked once.
        names = torch.stack([inputs[:, None].expand_as(after), _set_numbers(order, after)], -1)
        sets, set_of = names.flatten(0, 1).unique(dim=0, return_inverse=True)
        # Of the maps and steps that ask for a set, the first one shows which features are in it.
        asking = torch.arange(len(set_of), device=set_of.device)
        shown_by = torch.full_like(sets[:, 0], len(set_of)).scatter_reduce_(0, set_of, asking, "amin")
        values = torch.empty(3, len(sets), dtype=torch.float64, device=has.device)
        whole_count = torch.zeros_like(shown_by)
        if self.insert:
            whole_count = has.sum(1)[sets[:, 0]]
        whole = after.flatten()[shown_by] == whole_count
        owner = points.owner[sets[whole, 0].to(points.owner.device)]
        values[:, whole] = _read(score, wide(score.outputs[owner]), owner)
        for part in (~whole).nonzero()[:, 0].split(4 * score.batch.size(False)):
            if not len(part):
                break  # a single feature: whole or gone, and both are known
            pair = shown_by[part] // steps
            step = shown_by[part] % steps
            chosen = places[pair] < after[pair, step][:, None]
            gone = ~chosen if self.insert else chosen
            values[:, part] = self._evaluate(task, gone & has[inputs[pair]], inputs[pair], reference)
        return values[:, set_of].unflatten(1, after.shape)

    def _evaluate(self, task: Task, gone: Tensor, inputs: Tensor, reference: Tensor) -> Tensor:
        """Score, probability and accuracy without some features, (3, N) float64: means over the reference's draws.

        Args:
            task: what is judged.
            gone: (N, K) bool.
            inputs: (N,), of which inputs.
            reference: (B, draws, *F).
        """
        points = task.points
        score = task.score
        shape = points.x.shape[1:]
        device = points.x.device
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
        values = settled(on_features(task, self.features, pairs, self.average)).masked_fill(~has, -torch.inf)
        inputs, input_of = (pairs // task.maps.shape[1]).unique_consecutive(return_inverse=True)
        words = task.stream("ties").bits(task.points.ids.to(has.device)[inputs], 0, has.shape[1])
        # A stable sort of shuffled features leaves ties in the shuffled order, which all maps of an input share.
        shuffled = words.argsort(dim=1, stable=True)[input_of]
        order = shuffled.gather(1, values.gather(1, shuffled).argsort(dim=1, descending=True, stable=True))
        if self.first == "most":
            return order
        # The same order backwards, up to the last feature that the input has.
        place = torch.arange(has.shape[1], device=has.device)
        last = has.sum(1, keepdim=True) - 1
        return order.gather(1, torch.where(place <= last, last - place, place))


def _places(order: Tensor) -> Tensor:
    """(P, K) int32: at which place of the order each feature stands; the inverse permutation."""
    numbers = torch.arange(order.shape[1], dtype=torch.int32, device=order.device)
    return torch.empty_like(order, dtype=torch.int32).scatter_(1, order, numbers.expand_as(order))


def _set_numbers(order: Tensor, counts: Tensor) -> Tensor:
    """A number for the set of the first features of an order, the same for equal sets: (P, T) int64.

    It is the sum of a random 64-bit word for each feature (Zobrist hashing). Among a hundred million different sets two
    have the same number with probability 3 · 10⁻⁴.

    Args:
        order: (P, K), the features as they go.
        counts: (P, T), how many are in the set.
    """
    nobody = torch.zeros(1, dtype=torch.int64, device=order.device)
    high, low = Key(0, "sets").bits(nobody, 0, 2 * order.shape[1])[0].view(2, -1)
    words = high << 32 | low
    sums = words[order].cumsum(1)
    return torch.where(counts > 0, sums.gather(1, (counts - 1).clamp(min=0)), 0)


def on_features(task: Task, features: Features, pairs: Tensor, average: bool = False) -> Tensor:
    """Maps summed over the elements of other features, (P, K) float64; each attributed feature is spread evenly.

    Args:
        task: what is judged.
        features: the other features.
        pairs: (P,) numbers of maps, input · R + row.
        average: over the elements, in place of the sum.
    """
    maps = exact(task.maps.flatten(0, 1)[pairs.to(task.maps.device)])
    if features == task.features and not average:
        return maps.flatten(1)
    owner = task.points.owner.to(maps.device)[pairs // task.maps.shape[1]]
    shape = task.points.x.shape[1:]
    values = features.reduce(task.features.spread(maps, owner, shape), owner).flatten(1)
    if not average:
        return values
    return values / features.sizes(owner, shape).flatten(1).clamp(min=1).to(values)


def settled(values: Tensor, unit: Tensor | None = None) -> Tensor:
    """Values rounded, so that what differs by the rounding of sums only becomes equal, and ties are ties.

    Args:
        values: (…, K).
        unit: they become multiples of this; None: of 2⁻⁴⁰ of the largest along the last axis.
    """
    if unit is None:
        unit = values.abs().amax(-1, keepdim=True) * 2.0**-40
    return torch.where(unit > 0, (values / unit).round() * unit, values)


def chosen(task: Task, features: Features | None) -> Features:
    """The features to take away: those asked for, else those of the maps, or coarser ones.

    Args:
        task: what is judged.
        features: those asked for; None: open. Then elements and pixels become :func:`~consilience.features.images.coarse`
            features: single ones hardly move a score.
    """
    if features is not None:
        return features
    if isinstance(task.features, Elements | Pixels):
        return coarse(task.points.x.shape[1:])
    return task.features


def blurred(task: Task, baseline: object, usual: object = None) -> object:
    """The baseline asked for; else the usual one; else "blur" for images and "zero" for anything else.

    Args:
        task: what is judged.
        baseline: what was asked for; None: open.
        usual: the measure's own; None: as for :class:`~consilience.metrics.Infidelity`.
    """
    if baseline is not None:
        return baseline
    if usual is not None:
        return usual
    return "blur" if task.points.x.ndim == 4 else "zero"


def _read(score: Score, outputs: Tensor, owner: Tensor) -> Tensor:
    """(N, classes), (N,) → (3, N) float64: score, probability and accuracy of each row."""
    value = score._pick(outputs, owner)
    meaning = score.meaning
    target = score.targets[owner]
    if callable(score.kind):  # the caller's own idea of the score: there is no other probability then
        probability = value
    else:
        probability = meaning.probability(outputs, target)
    if meaning.meaning == "values":
        agrees = torch.full_like(value, torch.nan)
    else:
        agrees = meaning.agrees(outputs, score.outputs[owner], target).to(value)
    return exact(torch.stack([value, probability.to(value), agrees]))
