"""The engine of removal curves: features taken away, or put in, in the order of each map.

What the model says along the way (:class:`Curves`) is evaluated once for each task, so measures that read other numbers off
the same removals share their evaluations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import InputError
from ..features.base import Features
from ..model.score import Score
from ..model.values import wide
from ..perturb.imputation import Imputer
from ..perturb.points import present
from ..statistics.keys import Key
from ..statistics.tensors import exact
from ..task import Task
from .removed_features import maps_on_features, rounded

VALUES = ("change", "score", "probability", "accuracy")
"""What may be read off a curve; see :meth:`Curves.read`."""

FEATURES_AT_ONCE = 2**25
"""Numbers, maps × features, of the inputs whose curves are evaluated together: bounds the memory of their orders."""


@dataclass(frozen=True)
class Curves:
    """What the model says along the way: float64, NaN in rows whose map orders nothing (not finite, or zero everywhere).

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
        """(B, R, T): one of the curves.

        Args:
            value: "score", "probability", "accuracy", or "change", the score minus the clean score.
        """
        if value == "change":
            return self.score - self.clean[:, None, None]
        return getattr(self, value)

    def area(self, value: str) -> Tensor:
        """(B, R): the mean height of the curve of ``value`` over ``share`` (trapezoidal rule)."""
        width = self.share.diff(dim=1)[:, None]
        heights = self.read(value)
        means = (heights[..., 1:] + heights[..., :-1]) / 2
        return (width * means).sum(-1) / width.sum(-1)


@dataclass(frozen=True)
class Removal:
    """Which features go, in which order, what stands in their place, and where to look.

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
        """The curves of all maps, evaluated once for each task.

        At most B · R · T model evaluations, in batches of at most ``max_batch``. A map that is zero on every feature taken
        away has no order, and so no curve: NaN.

        Args:
            task: what is judged.

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
        # A share of 0.3 of ten features is three, although 0.3 · 10 is a little less in floating point.
        return (exactly + 1e-9).long()

    def _curves(self, task: Task) -> Curves:
        points = task.points
        clean = exact(task.score.clean)
        self._refuse_invented_codes(task)
        has = present(self.features, points).to(clean.device)
        owned = has.sum(1)
        counts = self.counts(owned)
        reference = self._reference(task)
        inputs, rows = task.maps.shape[:2]
        # Maps are numbered over inputs and rows together, 0 … B·R − 1.
        finite = exact(task.maps).flatten(2).isfinite().all(2).flatten().nonzero()[:, 0]
        heights = torch.full((3, inputs * rows, counts.shape[1]), torch.nan, dtype=torch.float64, device=has.device)
        # Groups hold all maps of their inputs: maps of one input share evaluations.
        group_size = rows * max(1, FEATURES_AT_ONCE // (rows * has.shape[1]))
        for start in range(0, inputs * rows, group_size):
            pairs = finite[(finite >= start) & (finite < start + group_size)]
            if not len(pairs):
                continue
            relevance = rounded(maps_on_features(task, self.features, pairs, self.average))
            # A map of zeros orders nothing: its curve would be that of the random words that break ties.
            orders = ((relevance != 0) & has[pairs // rows]).any(1)
            pairs = pairs[orders]
            if len(pairs):
                heights[:, pairs] = self._group(task, pairs, relevance[orders], has, counts, reference)
        share = counts / owned.clamp(min=1)[:, None].double()
        score, probability, accuracy = heights.unflatten(1, (inputs, rows))
        return Curves(counts, share, score, probability, accuracy, clean[points.owner])

    def _reference(self, task: Task) -> Tensor:
        """(B, draws, *F): what is put in the place of the features."""
        points = task.points
        draws = self.imputer.draws(points)
        rows = self.imputer.reference(points, range(draws), task.stream("removal"))
        return rows.unflatten(0, (len(points), draws))

    def _refuse_invented_codes(self, task: Task) -> None:
        """Raise InputError where codes of categories would be replaced by values that need not occur."""
        shape = task.points.x.shape[1:]
        codes = [features.codes(shape) for features in (self.features, task.features)]
        if any(code is not None for code in codes) and not self.imputer.occurs:
            raise InputError(
                "baseline: columns of codes are replaced by codes that occur; leave the measure's baseline open and give "
                "evaluate baselines=rows of a data set"
            )

    def _group(
        self, task: Task, pairs: Tensor, relevance: Tensor, has: Tensor, counts: Tensor, reference: Tensor
    ) -> Tensor:
        """The curves of some maps, (3, P, T): score, probability and accuracy.

        Each distinct set of features of an input is evaluated once, whichever maps and steps ask for it: all maps ask for the
        full set, good maps begin with the same features, and the score of the whole input is known already.

        Args:
            task: what is judged.
            pairs: (P,) numbers of maps, input · R + row.
            relevance: (P, K), how much each map gives each feature.
            has: (B, K) bool, which features the inputs have.
            counts: (B, T), how many are gone (or put in) at each step.
            reference: (B, draws, *F), what is put in their place.
        """
        points = task.points
        score = task.score
        inputs = pairs // task.maps.shape[1]
        after = counts[inputs]  # (P, T)
        steps = after.shape[1]
        order = self._order(task, inputs, relevance, has[inputs])
        places = _places(order)
        # A set is named by its input and a number made of its features; each distinct name is evaluated once.
        names = torch.stack([inputs[:, None].expand_as(after), _set_numbers(order, after)], -1)
        sets, set_of = names.flatten(0, 1).unique(dim=0, return_inverse=True)
        # Of the maps and steps that ask for a set, the first one shows which features are in it.
        asking = torch.arange(len(set_of), device=set_of.device)
        shown_by = torch.full_like(sets[:, 0], len(set_of)).scatter_reduce_(0, set_of, asking, "amin")
        values = torch.empty(3, len(sets), dtype=torch.float64, device=has.device)

        # Sets that leave the input whole: the model has answered these already.
        whole_count = torch.zeros_like(shown_by)
        if self.insert:
            whole_count = has.sum(1)[sets[:, 0]]
        whole = after.flatten()[shown_by] == whole_count
        owner = points.owner[sets[whole, 0].to(points.owner.device)]
        values[:, whole] = _read(score, wide(score.outputs[owner]), owner)

        for part in (~whole).nonzero()[:, 0].split(4 * score.batch.size(False)):
            if not len(part):
                break  # split gives one empty part where every set leaves its input whole
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
        is_one_input = bool((inputs == inputs[0]).all())
        for draw in range(reference.shape[1]):
            if is_one_input:  # an expanded row costs no copy
                x = points.x[inputs[:1]].expand(len(inputs), *shape)
                other = reference[inputs[:1], draw].expand(len(inputs), *shape)
            else:
                x = points.x[inputs]
                other = reference[inputs, draw]
            filled = self.imputer.fill(x, mask, other)
            total += _read(score, score.outputs_of(filled, owner), owner)
        return total / reference.shape[1]

    def _order(self, task: Task, inputs: Tensor, relevance: Tensor, has: Tensor) -> Tensor:
        """The features in the order in which they go, (P, K) int64; those that the input lacks come last.

        Args:
            task: what is judged.
            inputs: (P,), of which input each map is.
            relevance: (P, K), how much each map gives each feature.
            has: (P, K) bool, which features that input has.
        """
        values = relevance.masked_fill(~has, -torch.inf)
        distinct, input_of = inputs.unique_consecutive(return_inverse=True)
        words = task.stream("ties").bits(task.points.ids.to(has.device)[distinct], 0, has.shape[1])
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
    # One fixed id: the words belong to the features, whatever the input and the task's own key.
    one_id = torch.zeros(1, dtype=torch.int64, device=order.device)
    high, low = Key(0, "sets").bits(one_id, 0, 2 * order.shape[1])[0].view(2, -1)
    words = high << 32 | low
    # Sums of whole numbers wrap around without rounding, so they do not depend on the order of the features.
    sums = words[order].cumsum(1)
    return torch.where(counts > 0, sums.gather(1, (counts - 1).clamp(min=0)), 0)


def _read(score: Score, outputs: Tensor, owner: Tensor) -> Tensor:
    """(N, classes), (N,) → (3, N) float64: score, probability and accuracy of each row."""
    value = score.of_outputs(outputs, owner)
    meaning = score.meaning
    target = score.targets[owner]
    if callable(score.kind):
        probability = value  # of a score of the caller's own, no probability is known
    else:
        probability = meaning.probability(outputs, target)
    if meaning.meaning == "values":
        agrees = torch.full_like(value, torch.nan)
    else:
        agrees = meaning.agrees(outputs, score.outputs[owner], target).to(value)
    return exact(torch.stack([value, probability.to(value), agrees]))
