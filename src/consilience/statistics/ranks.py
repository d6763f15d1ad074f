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

BLOCK = 2**22  # numbers in a block of rows
ROUNDING = 4  # units of rounding at a map's largest value: smaller values than that are not told from zero


def without_rounding(values: Tensor) -> Tensor:
    """(…, n) → (…, n) float64, with the ties that rounding has broken.

    The zeros of a ReLU network are exact in one batch and ±10⁻⁹ in another, and with them the ranks of half a map. So values
    at the rounding level of the row's largest one become exactly 0, and a row that is constant up to rounding is constant.

    Args:
        values: in the precision in which they were computed, which says what rounding is.
    """
    unit = torch.finfo(values.dtype).eps if values.is_floating_point() else 0.0
    found = exact(values)
    if not found.shape[-1]:
        return found
    largest = found.amax(-1, keepdim=True)
    level = ROUNDING * unit * found.abs().amax(-1, keepdim=True).nan_to_num(0, 0, 0)
    found = torch.where(found.abs() <= level, 0.0, found)
    flat = largest - found.amin(-1, keepdim=True) <= level
    return torch.where(flat & (level > 0), largest, found)


def ranks(values: Tensor, present: Tensor | None = None) -> Tensor:
    """1 for the smallest … m for the largest of the m present; tied values share their mean rank; 0 where absent."""
    flat, there = _rows(values, present)
    out = torch.empty(flat.shape, dtype=torch.float64, device=flat.device)
    for part in _blocks(flat):
        groups, sizes = _groups(flat[part], there[part])
        last = sizes.cumsum(1)
        mean = (last - (sizes - 1) / 2).gather(1, groups)
        finite = flat[part].isfinite().all(1, keepdim=True)
        out[part] = torch.where(finite, mean.masked_fill(~there[part], 0), torch.nan)
    return out.reshape(_shape(values, present))


def pearson(a: Tensor, b: Tensor, present: Tensor | None = None) -> Tensor:
    """Pearson's correlation over the present features, (…); NaN where one of the two is constant."""
    a, b = torch.broadcast_tensors(exact(a), exact(b))
    if present is None:
        there = torch.ones_like(a, dtype=torch.bool)
    else:
        there = present.to(a.device).expand_as(a)
    count = there.sum(-1, keepdim=True)

    def centred(v: Tensor) -> Tensor:
        v = v.masked_fill(~there, 0)
        constant = (v == v.masked_fill(~there, -torch.inf).amax(-1, keepdim=True)) | ~there
        v = (v - v.sum(-1, keepdim=True) / count).masked_fill(~there, 0)
        return v.masked_fill(constant.all(-1, keepdim=True), 0)  # exactly: a mean may round

    a = centred(a)
    b = centred(b)
    size = a.square().sum(-1).sqrt() * b.square().sum(-1).sqrt()
    return (a * b).sum(-1) / torch.where(size == 0, torch.nan, size)


def spearman(a: Tensor, b: Tensor, present: Tensor | None = None) -> Tensor:
    """Pearson's correlation of the ranks, (…)."""
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
        shape = _shape(values, present)
        flat, there = _rows(values, present)
        groups = torch.empty(flat.shape, dtype=torch.int64, device=flat.device)
        tied = torch.empty(len(flat), dtype=torch.float64, device=flat.device)
        count = there.sum(1).double()
        for part in _blocks(flat):
            groups[part], sizes = _groups(flat[part], there[part])
            # The absent come last and are tied with each other only.
            tied[part] = _two(sizes.double()).sum(1) - _two(flat.shape[1] - count[part])
        finite = flat.isfinite().all(1)
        leading = shape[:-1]
        return Order(groups.reshape(shape), tied.reshape(leading), finite.reshape(leading), count.reshape(leading))

    def __getitem__(self, index: Any) -> Order:
        return Order(self.groups[index], self.tied[index], self.finite[index], self.count[index])


def pairs(a: Tensor | Order, b: Tensor | Order, present: Tensor | None = None) -> Pairs:
    """Counts of pairs in O(n log² n) time and O(n) memory for each row (Knight 1966): sort by a, then by b, and count the
    inversions left in b. Rows already ordered broadcast likewise."""
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
    found = []
    for part in _blocks(groups_a):
        # One whole number for each feature, ordered by a and among equals by b.
        joint = _sorted(groups_a[part] * n + groups_b[part])
        _, sizes = _runs(joint)
        present_count = count[part]
        total = _two(present_count)
        # The absent are all tied with each other, and count nowhere.
        both = _two(sizes.double()).sum(1) - _two(n - present_count)
        discordant = _inversions(joint % n).double()
        concordant = total - tied_a[part] - tied_b[part] + both - discordant
        counts = torch.stack([concordant, discordant, tied_a[part], tied_b[part], both, total])
        found.append(torch.where(finite[part], counts, torch.nan))
    return Pairs(*torch.cat(found, 1).reshape(6, *shape))


def kendall(a: Tensor, b: Tensor, present: Tensor | None = None) -> Tensor:
    """Kendall's τ-b, (…)."""
    return pairs(a, b, present).tau


def top(values: Tensor, k: int | float | Tensor, present: Tensor | None = None) -> Tensor:
    """Membership of the k largest, (…, n) in 0…1: it adds up to exactly k, because the features tied at the k-th place share
    the places that are left. ``k``: a number of features, or below 1 a share of those present (at least one); or int64
    numbers (…, 1), broadcast to the rows. At most all that are present."""
    flat, there = _rows(values, present)
    shape = _shape(values, present)
    if isinstance(k, Tensor):
        count = k.expand(*shape[:-1], 1).reshape(-1).minimum(there.sum(1))
    else:
        count = places(k, there)
    out = torch.empty(flat.shape, dtype=torch.float64, device=flat.device)
    for part in _blocks(flat):
        v = flat[part].masked_fill(~there[part], -torch.inf)
        edge = _sorted(v).gather(1, v.shape[1] - count[part, None].clamp(min=1))
        above = v > edge
        tied = v == edge
        left = (count[part, None] - above.sum(1, keepdim=True)).clamp(min=0)  # k = 0: none
        weight = above + tied * (left / tied.sum(1, keepdim=True).clamp(min=1))
        finite = flat[part].isfinite().all(1, keepdim=True)
        out[part] = torch.where(finite, weight.double(), torch.nan)
    return out.reshape(shape)


def places(k: int | float, present: Tensor) -> Tensor:
    """(…): how many features the k largest are, at most those that are present."""
    if not k > 0 or (k >= 1 and int(k) != k):
        raise InputError(f"k: a positive integer, or a share above 0 and below 1, got {k!r}")
    m = present.sum(-1)
    return (m * k).long().clamp(min=1).minimum(m) if k < 1 else m.clamp(max=int(k))


# -- inside ------------------------------------------------------------------------------------------------------------


def _shape(values: Tensor, present: Tensor | None) -> torch.Size:
    return values.shape if present is None else torch.broadcast_shapes(values.shape, present.shape)


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


def _two(count: Tensor) -> Tensor:
    """The pairs among so many."""
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

    By the bits of the ranks: among those whose higher bits agree, each 0 is inverted with every 1 before it. The ranks fill up
    a power of two, so these groups have equal sizes; the smallest ones are counted pair by pair."""
    count, n = values.shape
    bits = max(1, (n - 1).bit_length())
    at = torch.arange(2**bits, device=values.device, dtype=torch.int32)
    place = at.repeat(count, 1)
    # The rank of each place. The place is added to n times the value, so that ties stay in their order.
    in_order = _sorted(values * n + at[:n]) % n
    place[:, :n].scatter_(1, in_order, place[:, :n].clone())
    total = torch.zeros(count, dtype=torch.int64, device=values.device)
    groups = place.view(count, 1, -1)
    small = min(bits, 5)
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
