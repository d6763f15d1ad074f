"""Inputs with random subsets of their features taken away: the masks on which faithfulness rests."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..features.base import Elements, Features
from ..features.images import Patches
from ..settings import setting
from ..statistics.keys import Key
from .baseline import Baseline
from .mask_order import KEYED, Order, permuted, unranked
from .neighbourhoods import Neighbourhood, even_weights
from .points import Cloud, Points, present, shared

FIT = "fit"
FRESH = "fresh"
"""Draws of the stream "fresh" judge what was fitted on draws of "fit": they share one order, and no mask."""


@dataclass(frozen=True)
class Masked(Neighbourhood):
    """Random subsets of the features replaced by the baseline's values.

    K counts the features that an input has; those that it lacks are never taken away. The cloud's ``masks`` (n·s, *A) are True
    where a feature was taken away.

    Args:
        features: the mask units.
        share: a number: int(share · K) units in every mask, at least one, each mask drawn independently, as in the papers.
            A tuple: masks of all these shares, no mask twice, none in both of the streams "fit" and "fresh"; see
            :class:`~consilience.perturb.mask_order.Order`.
        baseline: what stands for "absent".
        scales: with a tuple of shares, sides of the square blocks of units that are taken away as a whole, equally often.
    """

    features: Features = Patches(16)
    share: float | tuple[float, ...] = setting(0.2, above=0, below=1, empty=False)
    baseline: Baseline = Baseline("blur")
    scales: tuple[int, ...] = setting((1,), low=1, empty=False)

    @property
    def unit(self) -> str:
        """The mask unit in words, of all scales."""
        if self.scales == (1,) or not isinstance(self.features, Patches):
            return self.features.unit
        sides = [f"{scale * self.features.size}x{scale * self.features.size}" for scale in self.scales]
        return f"{', '.join(sides[:-1])} and {sides[-1]} patch"

    def draw(self, points, samples, key, total):
        masks, rows, has = self.masks(points, samples, key)
        # With a data set, which of its rows replaces the features belongs to the mask; else the baseline draws by itself.
        origin = None
        if rows is not None:
            origin = self.baseline.rows(points.x)[rows.flatten()]
        return without(points, samples, masks, has, self.features, self.baseline, key, total, origin)

    def drawn(self, points: Points, asked: int, key: Key) -> tuple[Tensor, Tensor]:
        """How many masks each input gets of a stream.

        Args:
            points: N inputs.
            asked: how many are asked for, for each.
            key: names the stream.

        Returns:
            (N,) int64, the numbers; (N,) bool, whether these are all masks that there are.
        """
        has = present(self.features, points)
        number = torch.full_like(has[:, 0], asked, dtype=torch.int64)
        whole = torch.zeros_like(has[:, 0])
        if isinstance(self.share, tuple):
            second = _is_fresh(key)
            for order, at, _ in self._orders(points, has):
                number[at] = order.drawn(asked, second)
                # As Python integers: the number of all masks may be beyond int64.
                whole[at] = int(number[at[0]]) == order.all
        return number, whole

    def masks(self, points: Points, samples: range, key: Key) -> tuple[Tensor, Tensor | None, Tensor]:
        """The masks of some samples.

        Args:
            points: N inputs.
            samples: the numbers of s draws.
            key: names the stream.

        Returns:
            (N, s, A) bool, the features that each sample takes away; (N, s) int64, the row of the baseline's data set that
            replaces them, or None; (N, A) bool, the features that each point has.
        """
        has = present(self.features, points)
        if not isinstance(self.share, tuple):
            return self._of_one_size(points, samples, key, has), None, has
        masks = torch.zeros(len(points), len(samples), has.shape[1], dtype=torch.bool, device=has.device)
        rows = torch.zeros(masks.shape[:2], dtype=torch.int64, device=has.device)
        for order, at, owned in self._orders(points, has):
            of_scales, rows_of_order = _members(order, points.ids[at], samples, key)
            fine = self._fine(of_scales, order, points.x.shape[1:])
            # From the features that a point has to their places among all A.
            all_places = owned[:, None].expand(fine.shape)
            masks[at] = torch.zeros_like(masks[at]).scatter_(2, all_places, fine)
            rows[at] = rows_of_order
        if not self.baseline.is_data(points.x.ndim - 1):
            return masks, None, has
        return masks, rows, has

    def _of_one_size(self, points: Points, samples: range, key: Key, has: Tensor) -> Tensor:
        """(N, s, A) bool: masks of one share, drawn independently.

        Every feature gets a random word, and those with the smallest words are a random subset of a given size.

        Args:
            points: N inputs.
            samples: the numbers of s draws.
            key: names the stream.
            has: (N, A) bool, the features that each point has.
        """
        assert isinstance(self.share, float | int)
        count = (has.sum(1) * self.share).long().clamp(min=1)
        drawn = words(key, points, samples, has.shape[1])
        if bool(has.all()):
            return smallest(drawn, count)
        # Absent features get the largest word; a point that has fewer than `count` of them may reach these all the same.
        return smallest(drawn.masked_fill(~has[:, None], 2**32), count) & has[:, None]

    def _orders(self, points: Points, has: Tensor) -> Iterator[tuple[Order, Tensor, Tensor]]:
        """The points in groups with the same number of features.

        Args:
            points: N inputs.
            has: (N, A) bool, the features that each point has.

        Yields:
            for each number K > 0 of features: the order of their masks; the places (n,) of the group's points among N; the
            places (n, K) of their features among all A.
        """
        assert isinstance(self.share, tuple)
        owned = has.sum(1)
        rows = self.baseline.count(points.x.ndim - 1)
        # A stable sort of "absent" puts the features that a point has first, in their order.
        places = (~has).to(torch.uint8).argsort(dim=1, stable=True)
        for count in owned.unique().tolist():
            if count == 0:
                continue
            at = (owned == count).nonzero()[:, 0]
            counts: tuple[int, ...] = (count,)
            if self.scales != (1,):
                shape = self.features.shape(points.x.shape[1:])
                counts = tuple(int(np.prod(_blocks(shape, scale))) for scale in self.scales)
            yield Order(counts, self.share, rows), at, places[at, :count]

    def _fine(self, of_scales: list[_OfScale], order: Order, shape: Sequence[int]) -> Tensor:
        """(n, s, K) bool: masks of the features, from masks of the units of each scale.

        Args:
            of_scales: see :func:`_members`.
            order: of the masks.
            shape: F.
        """
        if self.scales == (1,):
            count = order.counts[0]
        else:
            count = math.prod(self.features.shape(shape))
        if not of_scales:
            return torch.zeros(0, 0, count, dtype=torch.bool)
        total = sum(len(samples) for _, samples, _ in of_scales)
        first_masks = of_scales[0][2]
        fine = first_masks.new_zeros(len(first_masks), total, count)
        for scale, samples, masks in of_scales:
            side = self.scales[scale]
            if side > 1:
                height, width = self.features.shape(shape)
                blocks = masks.unflatten(2, _blocks((height, width), side))
                # Each block as side × side units; what lies over the edge is cut off.
                blocks = blocks.repeat_interleave(side, 2).repeat_interleave(side, 3)
                masks = blocks[:, :, :height, :width].flatten(2)
            fine[:, samples] = masks
        return fine


_OfScale = tuple[int, Tensor, Tensor]
"""(scale, which of the samples (s′,), masks (n, s′, K′) bool of that scale's units)."""


def _members(order: Order, ids: Tensor, samples: range, key: Key) -> tuple[list[_OfScale], Tensor]:
    """The masks of some samples, class by class, and the rows of the data set that belong to them.

    Args:
        order: of the masks.
        ids: (n,), of points with the same number of features.
        samples: the numbers of s draws.
        key: names the stream.

    Returns:
        the masks of each class that has any, and the rows (n, s) int64.
    """
    classes, places = order.places(samples.stop, _is_fresh(key))
    classes = classes[samples.start :]
    places = places[samples.start :]
    rows = torch.zeros(len(ids), len(samples), dtype=torch.int64, device=ids.device)
    of_scales: list[_OfScale] = []
    for number, (scale, size) in enumerate(order.classes):
        here = np.flatnonzero(classes == number)
        if not len(here):
            continue
        at = torch.from_numpy(here).to(ids.device)
        if order.members[number] < KEYED:
            place = torch.from_numpy(places[here]).to(ids.device).expand(len(ids), -1)
            member = permuted(place, order.members[number], _shared_key(key) / "order", ids, number)
            # A member is a subset and a row: number = subset · rows + row.
            rows[:, at] = member % order.rows
            masks = unranked(member // order.rows, order.counts[scale], size)
        else:
            masks, row = _independent(order, number, ids, at + samples.start, key)
            if row is not None:
                rows[:, at] = row
        of_scales.append((scale, at, masks))
    return of_scales, rows


def _independent(order: Order, number: int, ids: Tensor, samples: Tensor, key: Key) -> tuple[Tensor, Tensor | None]:
    """Subsets of a class that is too large for a permutation, (n, s′, K′) bool, and their rows (n, s′); None: row 0.

    Args:
        order: of the masks.
        number: of the class.
        ids: (n,), of the points.
        samples: (s′,), the numbers of the draws, which name them: so they are the same in any chunk.
        key: names the stream.
    """
    scale, size = order.classes[number]
    sample = samples.repeat(len(ids))
    each = ids.repeat_interleave(len(samples))
    drawn = key.bits(each, sample, order.counts[scale]).unflatten(0, (len(ids), -1))
    masks = smallest(drawn, torch.full_like(ids, size))
    if order.rows == 1:
        return masks, None
    word = (key / "baseline").bits(each, sample, 1)[:, 0].unflatten(0, (len(ids), -1))
    # A word of 32 bits as a number in [0, rows): no division, and as good as even.
    return masks, word * order.rows >> 32


def _blocks(shape: Sequence[int], side: int) -> tuple[int, ...]:
    """The axes of a grid of square blocks over a grid of units; the last ones may be smaller."""
    return tuple(-(-length // side) for length in shape)


def _is_fresh(key: Key) -> bool:
    """Whether a stream is the one that judges, which takes the second half of the masks."""
    return key.stream.partition("/")[0] == FRESH


def _shared_key(key: Key) -> Key:
    """The key of the order that "fit" and "fresh" share, of which they take different halves; any other stream has its own."""
    first, _, rest = key.stream.partition("/")
    if first == FRESH:
        first = FIT
    return Key(key.seed, f"{first}/{rest}")


def mask_units(shape: Sequence[int]) -> tuple[Features, tuple[int, ...]]:
    """The default mask units of inputs, and their scales: elements; for images patches of about 1/28, 1/14 and 1/7 of the
    short side.

    The finest patch has a side of 4 pixels at least (finer ones hardly move the score: a mean correlation of .41 with 2 × 2
    pixels, .57 with 4 × 4, .75 with 8 × 8, on GTSRB) or, of images under 16 pixels, a quarter of the side. Where both sides of
    the image have a common divisor nearby, it is that, so that all patches are of one size. The coarser ones are blocks of
    2 × 2 and 4 × 4 of these, as long as they are not much wider than a seventh.

    Args:
        shape: F.

    Returns:
        the units, and by how many of them blocks are wide, for :class:`Masked`.

    Example:
        >>> mask_units((3, 224, 224)), mask_units((3, 32, 32)), mask_units((5,))
        ((Patches(size=8), (1, 2, 4)), (Patches(size=4), (1,)), (Elements(), (1,)))
    """
    if len(shape) != 3:
        return Elements(), (1,)
    short = min(shape[1:])
    least = max(1, min(4, short // 4))
    wanted = max(least, short / 28)
    # "Nearby", and below "not much wider", is a factor of √2: halfway to the next power of two.
    nearby = range(math.ceil(wanted / 2**0.5), math.floor(wanted * 2**0.5) + 1)
    divisors = [side for side in nearby if side >= least and shape[1] % side == 0 and shape[2] % side == 0]
    fine = max(divisors, default=round(wanted))
    scales = [scale for scale in (1, 2, 4) if scale == 1 or scale * fine <= short / 7 * 2**0.5]
    return Patches(fine), tuple(scales)


def smallest(values: Tensor, count: Tensor) -> Tensor:
    """(N, s, A) bool: the smallest values of each row, of equal ones the first.

    Args:
        values: (N, s, A) int64.
        count: (N,), how many of each row.
    """
    counts = count.unique()
    # The largest value that is taken, (N, s, 1). Where it can be, it is selected and not sorted, on a CPU by NumPy, whose
    # selection is vectorised: 50 times faster than a stable sort.
    if len(counts) > 1:
        last = (count - 1)[:, None, None].expand(-1, values.shape[1], 1)
        edge = values.sort(dim=2)[0].gather(2, last)
    elif values.is_cpu:
        at = int(counts) - 1
        edge = torch.from_numpy(np.partition(values.numpy(), at, axis=2)[..., at : at + 1])
    else:
        edge = values.kthvalue(int(counts), dim=2, keepdim=True)[0]
    masks = values <= edge
    too_many = masks.sum(2) > count[:, None]
    # Words that are equal: about once in a million draws.
    if bool(too_many.any()):
        below = values[too_many] < edge[too_many]
        tied = values[too_many] == edge[too_many]
        wanted = count[:, None].expand_as(too_many)[too_many][:, None]
        still_wanted = wanted - below.sum(1, keepdim=True)
        masks[too_many] = below | (tied & (tied.cumsum(1) <= still_wanted))
    return masks


def words(key: Key, points: Points, samples: range, count: int) -> Tensor:
    """(N, s, count) int64: keyed 32-bit words, the same for points of the same id.

    Args:
        key: names the draws.
        points: N inputs.
        samples: the numbers of the s draws.
        count: words for each.
    """
    drawn = shared(lambda ids, sample, shape: key.bits(ids, sample, count), points, samples, (count,))
    return drawn.unflatten(0, (-1, len(samples)))


def without(
    points: Points,
    samples: range,
    masks: Tensor,
    has: Tensor,
    features: Features,
    baseline: Baseline,
    key: Key,
    total: int,
    origin: Tensor | None = None,
) -> Cloud:
    """The cloud of the points with some features replaced by the baseline's values.

    Args:
        points: N inputs (N, *F).
        samples: the numbers of the s draws.
        masks: (N, s, A) bool, the features that are replaced.
        has: (N, A) bool, the features that each point has; others are never replaced.
        features: what A stands for.
        baseline: of the values.
        key: names the draws of the values.
        total: how many draws there are in all.
        origin: (N·s, *F), the values; None: drawn for each sample.
    """
    shape = points.x.shape[1:]
    owner = points.owner.repeat_interleave(len(samples))
    removed = (masks & has[:, None]).flatten(0, 1).unflatten(1, features.shape(shape))
    if origin is None:
        origin = baseline.drawn(points, samples, key / "baseline")
    whole = points.x.repeat_interleave(len(samples), 0)
    rows = torch.where(features.mask(removed, owner, shape), origin, whole)
    return Cloud(rows, owner, even_weights(points, samples, total), samples, origin, masks=removed, present=has)
