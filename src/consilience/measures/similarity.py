"""Similarity of two maps, and the entropy of one: what the randomisation tests compare."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..errors import InputError
from ..statistics.ranks import pearson, spearman
from .task_maps import flattened, flattened_for_order, nan_unless


def similarity(kind: str, a: Tensor, b: Tensor, present: Tensor | None) -> Tensor:
    """The similarity of two attributions, (N, R). Correlations are 0 where only ``b`` is constant, NaN where ``a`` is.

    Args:
        kind: "spearman", "pearson" or "ssim".
        a: (N, R, *A).
        b: (N, R, *A).
        present: (N, 1, A) bool, which features the inputs have; None: all. SSIM looks at all.
    """
    if kind == "ssim":
        return ssim(a, b)
    one = flattened_for_order(a)
    two = flattened_for_order(b)
    correlation = spearman if kind == "spearman" else pearson
    value = correlation(one, two, present)
    return torch.where(constant(one, present), torch.nan, zero_if_only_other_constant(value, one, two, present))


def ssim(a: Tensor, b: Tensor, window: int = 7) -> Tensor:
    """Mean structural similarity of maps, each divided by its largest absolute value: (N, R).

    Unbiased moments over square windows inside the map, K = (.01, .03), and the range 1 of maps without negative values,
    else 2 (Wang et al. 2004, doi 10.1109/TIP.2003.819861).

    Args:
        a: (N, R, H, W).
        b: (N, R, H, W).
        window: side of the window in pixels; at most the map's.

    Raises:
        InputError: for maps that are not on a grid.
    """
    if a.ndim != 4:
        raise InputError(f"similarity: 'ssim' is for maps on a grid (H, W), these have shape {tuple(a.shape[2:])}")
    n, rows, height, width = a.shape
    side = min(window, height, width)

    def mean(pictures: Tensor) -> Tensor:
        return nnf.avg_pool2d(pictures, side, stride=1)[:, 0]

    one = flattened(a)
    two = flattened(b)
    signed = (one < 0).any(-1) | (two < 0).any(-1)
    span = torch.where(signed, 2.0, 1.0).double().reshape(-1, 1, 1)
    one = _by_largest(one).reshape(n * rows, 1, height, width)
    two = _by_largest(two).reshape(n * rows, 1, height, width)
    unbiased = side**2 / max(1, side**2 - 1)
    mean_one = mean(one)
    mean_two = mean(two)
    variance_one = unbiased * (mean(one * one) - mean_one * mean_one)
    variance_two = unbiased * (mean(two * two) - mean_two * mean_two)
    covariance = unbiased * (mean(one * two) - mean_one * mean_two)
    # Wang's constants: they decide where a window is nearly empty in both maps.
    c1 = (0.01 * span) ** 2
    c2 = (0.03 * span) ** 2
    above = (2 * mean_one * mean_two + c1) * (2 * covariance + c2)
    below = (mean_one**2 + mean_two**2 + c1) * (variance_one + variance_two + c2)
    return (above / below).mean((1, 2)).reshape(n, rows)


def _by_largest(values: Tensor) -> Tensor:
    """(…, A): divided by the largest absolute value; zeros stay."""
    largest = values.abs().amax(-1, keepdim=True)
    return values / torch.where(largest > 0, largest, 1.0)


def histogram_entropy(maps: Tensor, bins: int, present: Tensor | None) -> Tensor:
    """Entropy (nats) of the histogram of a map's values, (N, R); NaN where the map is not finite.

    Args:
        maps: (N, R, A).
        bins: number of equal bins from the least to the largest value.
        present: (N, 1, A) bool, which features count; None: all.
    """
    # Absent features count for neither end of the range, and for no bin.
    lower = maps
    upper = maps
    ones = torch.ones_like(maps)
    if present is not None:
        lower = maps.masked_fill(~present, torch.inf)
        upper = maps.masked_fill(~present, -torch.inf)
        ones = present.expand_as(maps).double()
    low = lower.amin(-1, keepdim=True)
    span = upper.amax(-1, keepdim=True) - low
    place = (maps - low) / torch.where(span > 0, span, 1.0) * bins
    # The largest value lies at the upper edge of the last bin and belongs to it.
    bin_number = place.nan_to_num(0).long().clamp(0, bins - 1)
    counts = torch.zeros(*maps.shape[:-1], bins, dtype=torch.float64, device=maps.device)
    counts.scatter_add_(-1, bin_number, ones)
    entropy = torch.special.entr(counts / counts.sum(-1, keepdim=True)).sum(-1)
    return nan_unless(maps.isfinite().all(-1), entropy)


def zero_if_only_other_constant(value: Tensor, one: Tensor, two: Tensor, present: Tensor | None) -> Tensor:
    """A correlation with 0 in place of NaN where only the second map is constant: its covariance with any map is 0.

    Args:
        value: (…), the correlation.
        one: (…, A), the first map.
        two: (…, A), the second.
        present: (…, A) bool, which features there are; None: all.
    """
    lone = constant(two, present) & ~constant(one, present)
    return torch.where(lone & one.isfinite().all(-1), 0.0, value)


def constant(values: Tensor, present: Tensor | None) -> Tensor:
    """(…) bool: whether all features of a map that are present have the same finite value.

    Args:
        values: (…, A), the maps.
        present: (…, A) bool, which features there are; None: all.
    """
    low = values
    high = values
    if present is not None:
        low = values.masked_fill(~present, torch.inf)
        high = values.masked_fill(~present, -torch.inf)
    return (low.amin(-1) == high.amax(-1)) & values.isfinite().all(-1)
