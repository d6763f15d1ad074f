"""What masks say: the attribution that each takes away, and by how much the score falls."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..simplex import FLAT


@dataclass(frozen=True)
class MaskRows:
    """The masks themselves, and the maps summed over their units: what a regression on masks needs besides the responses.

    Args:
        taken: (B, S, U) bool, the units that each mask takes away.
        maps: (B, R, U) float64, the attribution of each unit.
        shares: (B, U) float64, the share of a uniform map that each unit has; 0 for a unit that the input lacks.
        grid: the axes of the units, U their product, if units beside each other are near each other; () if they are not.
        block: the side of the largest blocks of units that masks take away as a whole.
    """

    taken: Tensor
    maps: Tensor
    shares: Tensor
    grid: tuple[int, ...] = ()
    block: int = 1

    def chosen(self, draws: Tensor) -> MaskRows:
        """Only some masks.

        Args:
            draws: their numbers, or (S,) bool.
        """
        return replace(self, taken=self.taken[:, draws])

    def rows(self, index: slice) -> MaskRows:
        """Only the maps of some rows.

        Args:
            index: which rows.
        """
        return replace(self, maps=self.maps[:, index])

    def inputs(self, index: list[int]) -> MaskRows:
        """Only some inputs.

        Args:
            index: their places.
        """
        return replace(self, taken=self.taken[index], maps=self.maps[index], shares=self.shares[index])

    @staticmethod
    def joined(parts: Sequence[MaskRows], axis: int) -> MaskRows:
        """Several, one after the other.

        Args:
            parts: of the same maps, or of as many masks.
            axis: over inputs (0) or masks (1).
        """
        first = parts[0]
        taken = torch.cat([part.taken for part in parts], axis)
        if axis == 1:
            return replace(first, taken=taken)
        maps = torch.cat([part.maps for part in parts])
        shares = torch.cat([part.shares for part in parts])
        return replace(first, taken=taken, maps=maps, shares=shares)


@dataclass(frozen=True)
class Responses:
    """Answers of R attributions to S masks. Every moment of [a, y, 1] follows, centred exactly because the draws are kept.

    Masks of different sizes move the score by different amounts, whichever features they take away, and a map that says
    nothing, the same everywhere, predicts that much. So a correlation is one given the size: :meth:`centred` takes the mean
    and what is linear in the size out of a and y both. A constant added to a map then changes no correlation, and a uniform
    map has none, as with masks of one size.

    Inputs of one batch may have different numbers of masks: a short text has few. ``drawn`` says which are there; the others
    are zero, and count nowhere.

    Args:
        a: (B, S, R) float64, the attribution taken away.
        y: (B, S) float64, the fall of the score.
        drawn: (B, S) bool, the masks that were evaluated; None: all of them.
        whole: (B,) bool, inputs whose masks are all that there are: what follows from them is exact. None: no input.
        size: (B, S) float64, the share that each mask takes away of a uniform map; None: the same for all masks.
        group: (B, S) int64, from 0: to which input a mask belongs, where those of several inputs are pooled as one's. Each
            input's are centred by themselves. None: all belong to one.
        masks: the masks themselves; None: not kept.
    """

    a: Tensor
    y: Tensor
    drawn: Tensor | None = None
    whole: Tensor | None = None
    size: Tensor | None = None
    group: Tensor | None = None
    masks: MaskRows | None = None

    @property
    def number(self) -> Tensor:
        """(B,) int64: how many masks each input has."""
        if self.drawn is None:
            return torch.full_like(self.y[:, 0], self.y.shape[1], dtype=torch.int64)
        return self.drawn.sum(1)

    @property
    def count(self) -> int:
        """How many masks the input with the most of them has."""
        if self.drawn is None:
            return self.y.shape[1]
        return int(self.number.max())

    @property
    def exact(self) -> Tensor:
        """(B,) bool: inputs whose numbers are no estimates."""
        if self.whole is None:
            return torch.zeros_like(self.y[:, 0], dtype=torch.bool)
        return self.whole

    def mean(self, values: Tensor) -> Tensor:
        """(B, S, …) → (B, …): the mean over each input's masks.

        Args:
            values: (B, S, …), one for each mask.
        """
        if self.drawn is None:
            return values.mean(1)
        share = self.drawn / self.drawn.sum(1, keepdim=True).clamp(min=1)
        return (values * _like_masks(share.to(values), values)).sum(1)

    def __add__(self, more: Responses) -> Responses:
        """Further masks of the same inputs; of a pool, those of further inputs."""
        whole = None if self.whole is None and more.whole is None else self.exact | more.exact
        return _joined([self, more], 1, whole)

    def take(self, draws: Tensor) -> Responses:
        """Only the masks number ``draws``: no longer all there are."""
        drawn = None if self.drawn is None else self.drawn[:, draws]
        size = None if self.size is None else self.size[:, draws]
        group = None if self.group is None else self.group[:, draws]
        masks = None if self.masks is None else self.masks.chosen(draws)
        return Responses(self.a[:, draws], self.y[:, draws], drawn, None, size, group, masks)

    def blocks(self, chosen: Collection[int], parts: int) -> Responses:
        """The masks in the ``chosen`` ones of ``parts`` contiguous blocks of each input's own masks.

        An input whose masks are all there are keeps them: it has no other draws, so nothing depends on which were drawn."""
        # On an accelerator the host waits for what it asks of a tensor, so it asks only where there is one.
        exact = self.exact
        if self.whole is not None and bool(exact.all()):
            return self
        if self.drawn is None and (self.whole is None or not bool(exact.any())):
            at = torch.arange(self.y.shape[1], device=self.y.device)
            return self.take(within(at, self.y.shape[1], chosen, parts))
        drawn = self._drawn_or_all()
        # The place of each mask among the input's own.
        place = drawn.cumsum(1) - 1
        inside = within(place, self.number[:, None], chosen, parts)
        drawn = drawn & (inside | exact[:, None])
        a = torch.where(drawn[..., None], self.a, 0.0)
        y = torch.where(drawn, self.y, 0.0)
        return replace(self, a=a, y=y, drawn=drawn)

    def _drawn_or_all(self) -> Tensor:
        """(B, S) bool: the masks that were evaluated."""
        if self.drawn is None:
            return torch.ones_like(self.y, dtype=torch.bool)
        return self.drawn

    def finite(self) -> Tensor:
        """(B, R): rows whose numbers are finite in every draw; none of an input whose y is not."""
        return self.a.isfinite().all(1) & self.y.isfinite().all(1)[:, None]

    def valid(self) -> Tensor:
        """(B, R): rows that are finite, and not zero for every mask."""
        return self.finite() & (self.a != 0).any(1)

    def clean(self) -> Responses:
        """A row that is not finite for some mask made zero for all of them."""
        return replace(self, a=torch.where(self.a.isfinite().all(1, keepdim=True), self.a, 0.0))

    def rows(self, index: slice) -> Responses:
        """Only some rows.

        Args:
            index: which rows.
        """
        masks = None if self.masks is None else self.masks.rows(index)
        return replace(self, a=self.a[:, :, index], masks=masks)

    def inputs(self, index: list[int]) -> Responses:
        """Only some inputs, without the masks that none of them has.

        Args:
            index: their places.
        """
        whole = None if self.whole is None else self.whole[index]
        size = None if self.size is None else self.size[index]
        group = None if self.group is None else self.group[index]
        masks = None if self.masks is None else self.masks.inputs(index)
        chosen = Responses(self.a[index], self.y[index], None, whole, size, group, masks)
        if self.drawn is None:
            return chosen
        drawn = self.drawn[index]
        some = drawn.any(0)
        kept = replace(chosen, drawn=drawn).take(some)
        left: Tensor | None = drawn[:, some]
        if bool(drawn[:, some].all()):
            left = None
        return replace(kept, whole=whole, drawn=left)

    def spoil(self, hole: Tensor) -> Responses:
        """``hole`` (B, R): 0, or NaN for rows that must not be used."""
        return replace(self, a=self.a + hole[:, None])

    def pooled(self, centred: bool = True) -> Responses:
        """All inputs' draws as those of one.

        Args:
            centred: responses and falls are centred, and divided by their standard deviations, each by its own: no correlation
                sees that. Else both are divided by √E y², so that what is no correlation, such as E(a − y)², is only divided by
                one number for each input; a correlation beside it still centres each input's by themselves.
        """
        if not centred:
            level = self.mean(self.y**2).sqrt()[:, None]
            level = torch.where(level > 0, level, torch.ones_like(level))
            one = self._as_one(self.a / level[..., None], self.y / level)
            group = torch.arange(len(self.y), device=self.y.device)[:, None].expand_as(self.y)
            size = None if self.size is None else self.size.flatten()[None]
            return replace(one, size=size, group=group.flatten()[None])
        a = self.centred(self.a)
        y = self.centred(self.y)
        width = self.mean(a**2).sqrt().mean(1)[:, None, None]
        height = self.mean(y**2).sqrt()[:, None]
        a = a / torch.where(width > 0, width, torch.ones_like(width))
        y = y / torch.where(height > 0, height, torch.ones_like(height))
        return self._as_one(a, y)

    def _as_one(self, a: Tensor, y: Tensor) -> Responses:
        """Responses a (B, S, R) and falls y (B, S) in place of these, as those of one input."""
        drawn = None if self.drawn is None else self.drawn.flatten()[None]
        whole = None if self.whole is None else self.whole.all()[None]
        return Responses(a.flatten(0, 1)[None], y.flatten()[None], drawn, whole)

    @staticmethod
    def stack(parts: Sequence[Responses]) -> Responses:
        """Several inputs, each with as many draws, as one batch.

        Args:
            parts: of the inputs.
        """
        whole = None if all(part.whole is None for part in parts) else torch.cat([part.exact for part in parts])
        return _joined(parts, 0, whole)

    def centred(self, values: Tensor) -> Tensor:
        """(B, S, …) of these masks, without its mean and without what is linear in their size.

        What is left of values that only vary by rounding is zero.

        Args:
            values: (B, S, …), one for each mask.
        """
        there = torch.ones((), dtype=torch.bool, device=values.device)
        if self.drawn is not None:
            there = _like_masks(self.drawn, values)
        rest = torch.where(there, values - self._mean_beside(values), 0.0)
        if self.size is not None:
            # The slope of a least-squares line through the masks that are there.
            size = _like_masks(self.sizes(), values)
            spread = self._mean_beside(size**2)
            slope = torch.where(spread > 0, self._mean_beside(size * rest) / spread.clamp(min=1e-300), 0.0)
            rest = rest - size * slope
        flat = self._mean_beside(rest**2) <= FLAT * self._mean_beside(values**2)
        return torch.where(flat, 0.0, rest)

    def sizes(self) -> Tensor:
        """(B, S): the masks' sizes without their mean; 0 where they only vary by rounding, and of masks that are not there."""
        if self.size is None:
            return torch.zeros_like(self.y)
        rest = torch.where(self._drawn_or_all(), self.size - self._mean_beside(self.size), 0.0)
        flat = self._mean_beside(rest**2) <= FLAT * self._mean_beside(self.size**2)
        return torch.where(flat, 0.0, rest)

    def _mean_beside(self, values: Tensor) -> Tensor:
        """(B, S, …) → (B, 1 or S, …): beside each mask, the mean over those of its group."""
        if self.group is None:
            return self.mean(values)[:, None]
        groups = 1 + int(self.group.max())
        drawn = self._drawn_or_all()
        at = _like_masks(self.group, values).expand_as(values)
        seen = torch.where(_like_masks(drawn, values), values, 0.0)
        total = values.new_zeros(len(values), groups, *values.shape[2:]).scatter_add(1, at, seen)
        number = values.new_zeros(len(values), groups).scatter_add(1, self.group, drawn.to(values))
        return (total / _like_masks(number.clamp(min=1), total)).gather(1, at)

    def covariances(self) -> tuple[Tensor, Tensor, Tensor]:
        """(C, b, v): covariance of the responses (B, R, R), with y (B, R), and variance of y (B,), given the size."""
        a = self.centred(self.a)
        y = self.centred(self.y)
        number = self.number.clamp(min=1).to(y)
        covariance = a.mT @ a / number[:, None, None]
        with_y = torch.einsum("bsr,bs->br", a, y) / number[:, None]
        return covariance, with_y, self.mean(y**2)

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """(M, p, q): E[aaᵀ] (B, R, R), E[a y] (B, R), E[y²] (B,)."""
        number = self.number.clamp(min=1).to(self.y)
        second = self.a.mT @ self.a / number[:, None, None]
        with_y = torch.einsum("bsr,bs->br", self.a, self.y) / number[:, None]
        return second, with_y, self.mean(self.y**2)


def _joined(parts: Sequence[Responses], axis: int, whole: Tensor | None) -> Responses:
    """Responses one after the other, over inputs (0) or masks (1)."""
    drawn = None
    size = None
    if any(part.drawn is not None for part in parts):
        drawn = torch.cat([part._drawn_or_all() for part in parts], axis)
    if any(part.size is not None for part in parts):
        # Masks of one size may stand beside others: theirs is a constant.
        size = torch.cat([torch.zeros_like(part.y) if part.size is None else part.size for part in parts], axis)
    group = _joined_groups(parts, axis)
    a = torch.cat([part.a for part in parts], axis)
    y = torch.cat([part.y for part in parts], axis)
    kept = [part.masks for part in parts if part.masks is not None]
    masks = MaskRows.joined(kept, axis) if len(kept) == len(parts) else None
    if whole is not None and not bool(whole.any()):
        whole = None
    return Responses(a, y, drawn, whole, size, group, masks)


def _joined_groups(parts: Sequence[Responses], axis: int) -> Tensor | None:
    """The groups of pools, one after the other over inputs (0) or masks (1); there, each part's are numbered further."""
    numbered: list[Tensor] = []
    first = 0
    for part in parts:
        if part.group is None:
            return None
        numbered.append(part.group + first)
        if axis == 1:
            first += 1 + int(part.group.max())
    return torch.cat(numbered, axis)


def _like_masks(each: Tensor, values: Tensor) -> Tensor:
    """(B, S) as (B, S, 1…), beside ``values`` (B, S, …)."""
    return each.view(*each.shape, *[1] * (values.ndim - 2))


def within(place: Tensor, number: int | Tensor, chosen: Collection[int], parts: int) -> Tensor:
    """Whether draws at ``place`` of ``number`` are in one of the ``chosen`` ones of ``parts`` contiguous blocks.

    Args:
        place: any shape, the draws' places.
        number: how many draws there are.
        chosen: the numbers of the blocks.
        parts: how many blocks.
    """
    inside = torch.zeros_like(place, dtype=torch.bool)
    for part in chosen:
        inside = inside | ((place >= number * part // parts) & (place < number * (part + 1) // parts))
    return inside
