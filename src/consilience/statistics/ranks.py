"""Ranks with ties, rank correlations and top-k sets, batched over leading axes.

``values`` (…, n); ``present`` (…, n) bool, broadcast to the values: features that an input lacks are False and are never
ranked, paired or counted; None: all are there. A row that is not finite gives NaN. Rows are taken in blocks, so that
memory does not grow with their number. Results are float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .tensors import exact

BLOCK = 2**22
"""Numbers in a block of rows."""

ROUNDING = 4
"""In units of rounding at a map's largest value: values smaller than that are not told from zero."""

SMALL_BITS = 5
"""Inversions within groups of 2^5 places are counted pair by pair."""


def without_rounding(values: Tensor) -> Tensor:
    """(…, n) → (…, n) float64, with the ties that rounding has broken.

    The zeros of a ReLU network are exact in one batch and ±10⁻⁹ in another, and with them the ranks of half a map. So values
    at the rounding level of the row's largest one become exactly 0, and a row that is constant up to rounding is constant.

    Args:
        values: in the precision in which they were computed, on which the size of a rounding depends.
    """
    unit = torch.finfo(values.dtype).eps if values.is_floating_point() else 0.0
    cleaned = exact(values)
    if not cleaned.shape[-1]:
        return cleaned
    largest = cleaned.amax(-1, keepdim=True)
    level = ROUNDING * unit * cleaned.abs().amax(-1, keepdim=True).nan_to_num(0, 0, 0)
    cleaned = torch.where(cleaned.abs() <= level, 0.0, cleaned)
    constant = largest - cleaned.amin(-1, keepdim=True) <= level
    return torch.where(constant & (level > 0), largest, cleaned)


def ranks(values: Tensor, present: Tensor | None = None) -> Tensor:
    """(…, n): 1 for the smallest … m for the largest of the m present; tied values share their mean rank; 0 where absent.

    Args:
        values: (…, n).
        present: (…, n) bool; see the module's docstring.
    """
    rows, there = _rows(values, present)
    out = torch.empty(rows.shape, dtype=torch.float64, device=rows.device)
    for part in _blocks(rows):
        groups, sizes = _groups(rows[part], there[part])
        # A group of s equal values ends at rank ``last``: its ranks are last − s + 1 … last.
        last = sizes.cumsum(1)
        mean = (last - (sizes - 1) / 2).gather(1, groups)
        finite = rows[part].isfinite().all(1, keepdim=True)
        out[part] = torch.where(finite, mean.masked_fill(~there[part], 0), torch.nan)
    return out.reshape(_shape(values, present))


def pearson(a: Tensor, b: Tensor, present: Tensor | None = None) -> Tensor:
    """Pearson's correlation over the present features, (…); NaN where one of the two is constant.

    Args:
        a: (…, n).
        b: (…, n), broadcast with ``a``.
        present: (…, n) bool; see the module's docstring.
    """
    a, b = torch.broadcast_tensors(exact(a), exact(b))
    if present is None:
        there = torch.ones_like(a, dtype=torch.bool)
    else:
        there = present.to(a.device).expand_as(a)
    count = there.sum(-1, keepdim=True)

    def centred(v: Tensor) -> Tensor:
        v = v.masked_fill(~there, 0)
        largest = v.masked_fill(~there, -torch.inf).amax(-1, keepdim=True)
        constant = ((v == largest) | ~there).all(-1, keepdim=True)
        v = (v - v.sum(-1, keepdim=True) / count).masked_fill(~there, 0)
        # A constant row is exactly 0, though its mean may be rounded: a rest of rounding would correlate with anything.
        return v.masked_fill(constant, 0)

    a = centred(a)
    b = centred(b)
    size = a.square().sum(-1).sqrt() * b.square().sum(-1).sqrt()
    return (a * b).sum(-1) / torch.where(size == 0, torch.nan, size)


def spearman(a: Tensor, b: Tensor, present: Tensor | None = None) -> Tensor:
    """Pearson's correlation of the ranks, (…); NaN where one of the two is constant.

    Args:
        a: (…, n).
        b: (…, n), broadcast with ``a``.
        present: (…, n) bool; see the module's docstring.
    """
    return pearson(ranks(a, present), ranks(b, present), present)


@dataclass(frozen=True)
class Pairs:
    """How the pairs of features are ordered by a and by b.

    Args:
        concordant: (…), pairs in the same order.
        discordant: (…), pairs in opposite order.
        tied_a: (…), pairs tied in a.
        tied_b: (…), pairs tied in b.
        tied_both: (…), pairs tied in both; part of both numbers above.
        total: (…), m(m − 1)/2 of m features.
    """

    concordant: Tensor
    discordant: Tensor
    tied_a: Tensor
    tied_b: Tensor
    tied_both: Tensor
    total: Tensor

    @property
    def tau(self) -> Tensor:
        """Kendall's τ-b; NaN where one of the two is constant."""
        free = (self.total - self.tied_a) * (self.total - self.tied_b)
        return (self.concordant - self.discordant) / torch.where(free == 0, torch.nan, free).sqrt()


@dataclass(frozen=True)
class Order:
    """How rows (…, n) order their features. To compare one row with many, order it once.

    Args:
        groups: (…, n), 0 for the smallest value, 1 for the next, …; the absent last.
        tied: (…), pairs tied.
        finite: (…) bool, rows whose values are finite.
        count: (…), features present.
    """

    groups: Tensor
    tied: Tensor
    finite: Tensor
    count: Tensor

    @staticmethod
    def of(values: Tensor, present: Tensor | None = None) -> Order:
        """The order of ``values`` (…, n), of the features that are ``present`` (…, n)."""
        shape = _shape(values, present)
        rows, there = _rows(values, present)
        groups = torch.empty(rows.shape, dtype=torch.int64, device=rows.device)
        tied = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
        count = there.sum(1).double()
        for part in _blocks(rows):
            groups[part], sizes = _groups(rows[part], there[part])
            # The absent come last and are tied with each other only.
            tied[part] = _pairs_among(sizes.double()).sum(1) - _pairs_among(rows.shape[1] - count[part])
        finite = rows.isfinite().all(1)
        leading = shape[:-1]
        return Order(groups.reshape(shape), tied.reshape(leading), finite.reshape(leading), count.reshape(leading))

    def __getitem__(self, index: Any) -> Order:
        return Order(self.groups[index], self.tied[index], self.finite[index], self.count[index])


def pairs(a: Tensor | Order, b: Tensor | Order, present: Tensor | None = None) -> Pairs:
    """Counts of concordant, discordant and tied pairs of features, in O(n log² n) time and O(n) memory for each row.

    Sorted by a, and among equals by b, the discordant pairs are the inversions that are left in b.

    Args:
        a: (…, n), or its order.
        b: (…, n), or its order; broadcast with ``a``.
        present: (…, n) bool; see the module's docstring. Of orders it is known.

    Source: Knight 1966, *A computer method for calculating Kendall's tau with ungrouped data*.
    """
    one = a if isinstance(a, Order) else Order.of(a, present)
    two = b if isinstance(b, Order) else Order.of(b, present)
    n = one.groups.shape[-1]
    groups_a, groups_b = torch.broadcast_tensors(one.groups, two.groups)
    groups_a = groups_a.reshape(-1, n)
    groups_b = groups_b.reshape(-1, n)
    shape = torch.broadcast_shapes(one.tied.shape, two.tied.shape)
    tied_a = one.tied.broadcast_to(shape).flatten()
    tied_b = two.tied.broadcast_to(shape).flatten()
    count = one.count.broadcast_to(shape).flatten()
    finite = (one.finite & two.finite).broadcast_to(shape).flatten()
    blocks = []
    for part in _blocks(groups_a):
        # One whole number for each feature, ordered by a and among equals by b.
        joint = _sorted(groups_a[part] * n + groups_b[part])
        _, sizes = _runs(joint)
        present_count = count[part]
        total = _pairs_among(present_count)
        # The absent are all tied with each other, and count nowhere.
        both = _pairs_among(sizes.double()).sum(1) - _pairs_among(n - present_count)
        discordant = _inversions(joint % n).double()
        # Pairs tied in both are in both numbers of ties, and taken away once only.
        concordant = total - tied_a[part] - tied_b[part] + both - discordant
        counts = torch.stack([concordant, discordant, tied_a[part], tied_b[part], both, total])
        blocks.append(torch.where(finite[part], counts, torch.nan))
    return Pairs(*torch.cat(blocks, 1).reshape(6, *shape))


def kendall(a: Tensor, b: Tensor, present: Tensor | None = None) -> Tensor:
    """Kendall's τ-b, (…); NaN where one of the two is constant.

    Args:
        a: (…, n), or its order.
        b: (…, n), or its order; broadcast with ``a``.
        present: (…, n) bool; see the module's docstring.
    """
    return pairs(a, b, present).tau


def top(values: Tensor, k: int | float | Tensor, present: Tensor | None = None) -> Tensor:
    """Membership of the k largest, (…, n) in 0…1.

    It adds up to exactly k, because the features tied at the k-th place share the places that are left.

    Args:
        values: (…, n).
        k: a number of features, at most all that are present; or below 1 a share of those present, at least one; or int64
            numbers (…, 1), broadcast to the rows.
        present: (…, n) bool; see the module's docstring.

    Raises:
        InputError: any other ``k``.
    """
    rows, there = _rows(values, present)
    shape = _shape(values, present)
    if isinstance(k, Tensor):
        count = k.expand(*shape[:-1], 1).reshape(-1).minimum(there.sum(1))
    else:
        count = places(k, there)
    out = torch.empty(rows.shape, dtype=torch.float64, device=rows.device)
    for part in _blocks(rows):
        v = rows[part].masked_fill(~there[part], -torch.inf)
        edge = _sorted(v).gather(1, v.shape[1] - count[part, None].clamp(min=1))  # the k-th largest value
        above = v > edge
        tied = v == edge
        left = (count[part, None] - above.sum(1, keepdim=True)).clamp(min=0)  # k = 0: none
        weight = above + tied * (left / tied.sum(1, keepdim=True).clamp(min=1))
        finite = rows[part].isfinite().all(1, keepdim=True)
        out[part] = torch.where(finite, weight.double(), torch.nan)
    return out.reshape(shape)


def places(k: int | float, present: Tensor) -> Tensor:
    """(…) int64: how many features the k largest are, at most those that are present.

    Args:
        k: a positive integer, or a share above 0 and below 1, which gives at least one feature.
        present: (…, n) bool.

    Raises:
        InputError: a ``k`` that is neither.
    """
    if not k > 0 or (k >= 1 and int(k) != k):
        raise InputError(f"k: a positive integer, or a share above 0 and below 1, got {k!r}")
    m = present.sum(-1)
    if k < 1:
        return (m * k).long().clamp(min=1).minimum(m)
    return m.clamp(max=int(k))


# -- inside ------------------------------------------------------------------------------------------------------------


def _shape(values: Tensor, present: Tensor | None) -> torch.Size:
    """What values and presence broadcast to."""
    if present is None:
        return values.shape
    return torch.broadcast_shapes(values.shape, present.shape)


def _rows(values: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
    """(N, n) values, zero where absent, and (N, n) presence."""
    values = exact(values)
    if present is None:
        there = torch.ones(values.shape, dtype=torch.bool, device=values.device)
    else:
        values, there = torch.broadcast_tensors(values, present.to(values.device))
        values = values.masked_fill(~there, 0)
    n = values.shape[-1]
    return values.reshape(-1, n), there.reshape(-1, n)


def _blocks(values: Tensor) -> Iterator[slice]:
    """Rows of (N, n) values in blocks of at most ``BLOCK`` numbers, one row at least."""
    step = max(1, BLOCK // max(1, values.shape[1]))
    for start in range(0, len(values), step):
        yield slice(start, start + step)


def _pairs_among(count: Tensor) -> Tensor:
    """How many pairs there are among so many features."""
    return count * (count - 1) / 2


def _runs(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """Number of the run of equal values each place is in, and the size of each run; both (N, n) int64."""
    runs = torch.zeros(ordered.shape, dtype=torch.int64, device=ordered.device)
    runs[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(1)
    sizes = torch.zeros_like(runs).scatter_add_(1, runs, torch.ones_like(runs))
    return runs, sizes


def _groups(values: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """0 for the smallest value, 1 for the next, … (the absent last), and how many features have each."""
    values = values.masked_fill(~present, torch.inf)
    if values.is_cpu:
        # NumPy's sort is vectorised: ten times faster than torch's on a CPU. Equal values may come in any order here.
        order = torch.from_numpy(np.argsort(values.detach().numpy(), axis=1))
    else:
        order = values.argsort(dim=1)
    ordered = values.gather(1, order)
    runs, sizes = _runs(ordered)
    return torch.empty_like(runs).scatter_(1, order, runs), sizes


def _sorted(values: Tensor) -> Tensor:
    """(N, n) ascending. On a CPU by NumPy, whose sort is vectorised: ten times faster than torch's."""
    if values.is_cpu:
        return torch.from_numpy(np.sort(values.detach().numpy(), axis=1))
    return values.sort(1)[0]


def _inversions(values: Tensor) -> Tensor:
    """(N, n) whole numbers in 0 … n − 1 → (N,): pairs i < j with values_i > values_j.

    By the bits of the ranks, from the highest: among those whose higher bits agree, each 0 is inverted with every 1 before it.
    The ranks fill up a power of two, so these groups have equal sizes; the smallest ones are counted pair by pair. In place of
    a merge sort, which takes n steps one after the other.
    """
    count, n = values.shape
    bits = max(1, (n - 1).bit_length())
    at = torch.arange(2**bits, device=values.device, dtype=torch.int32)
    place = at.repeat(count, 1)  # the places beyond n are in order already: they are inverted with nothing
    # The rank of each place. The place is added to n times the value, so that ties stay in their order.
    in_order = _sorted(values * n + at[:n]) % n
    place[:, :n].scatter_(1, in_order, place[:, :n].clone())
    total = torch.zeros(count, dtype=torch.int64, device=values.device)
    groups = place.view(count, 1, -1)
    small = min(bits, SMALL_BITS)
    for bit in reversed(range(small, bits)):
        high = (groups & 2**bit) != 0
        ones = high.cumsum(2, dtype=torch.int32)
        total += ones.masked_fill(high, 0).sum((1, 2))
        # A stable partition: zeros to the front half of their group, ones to the back half.
        to = torch.where(high, ones + (2**bit - 1), at[: 2 ** (bit + 1)] - ones)
        groups = torch.empty_like(groups).scatter_(2, to.long(), groups).view(count, -1, 2**bit)
    for j in range(1, 2**small):
        total += (groups[..., :j] > groups[..., j : j + 1]).sum((1, 2))
    return total
