"""What is chosen where mixtures are equally good: a rule that rounding cannot flip.

Three things leave a choice open. Different maps may have the same value (residuals of a linear model are all zero); then the
mixture nearest to equal shares is taken, by a term that is far below any difference that could matter (:func:`evenness`). And
the same map may be written with different weights (two methods that agree); then its most even weights are taken
(:func:`even_out`). And two local minima may be as good as each other (:func:`most_even`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .active_set import nnls
from .solution import TINY, diagonal

TIE = 1e-12
"""The weight of :func:`evenness`, in units of the best single method's value."""

SAME = 1e-9
"""Mixtures whose maps differ by this share of their square are one map: float32 leaves about 1e-13."""

LOSS = 1e-7
"""What more even weights may cost, relative."""

ROUNDING = 1e-14
"""A relative sensitivity of this size is what float32 maps have by rounding alone, (1e-7)²."""

UNSEEN = 1e-8
"""A difference of two correlations that float32 maps do not tell apart: of two equal maps it is 1e-9 and less."""

EQUAL = 1e-6
"""Local minima whose values differ by less than this share are equally good."""

NOTHING = 1e-6
"""A share of the weight that is too small to bring in a further method."""


def evenness(likeness: Tensor, ok: Tensor) -> Tensor:
    """E (B, k, k), positive semi-definite: wᵀEw = Σ w_j² / m_j − (Σ w_j)² / Σ m_j, zero for w ∝ m only.

    m_j = 1 / Σ_i max(cos_ij, 0)¹⁶ is the share of a method among those like it: two equal methods count as one, so listing a
    method twice changes no mixture's value.

    Args:
        likeness: (B, k, k), the Gram matrix of what makes methods alike.
        ok: (B, k) bool, methods that may be used.
    """
    size = torch.where(ok, diagonal(likeness), 1.0).clamp(min=TINY).rsqrt()
    cosine = (likeness * size[:, :, None] * size[:, None]).clamp(0, 1)
    # The power lets only methods that nearly coincide count as one: a cosine of .8 gives .03, one of .99 gives .85.
    alike = (cosine**16).sum(2).clamp(min=1)
    share = ok / alike
    total = share.sum(1).clamp(min=1)[:, None, None]
    both = (ok[:, :, None] & ok[:, None]).to(likeness)
    return torch.diag_embed(torch.where(ok, alike, 0.0)) - both / total


def with_tie_break(matrix: Tensor, ok: Tensor) -> Tensor:
    """(B, k, k): ``matrix`` (B, k, k), a Gram matrix, plus ``TIE`` · :func:`evenness` of the methods ``ok`` (B, k).

    Each method counts in the unit of its own norm.
    """
    size = torch.where(ok, diagonal(matrix), 0.0).clamp(min=0).sqrt()
    return matrix + TIE * evenness(matrix, ok) * size[:, :, None] * size[:, None]


def even_out(w: Tensor, likeness: Tensor, ok: Tensor) -> Tensor:
    """(B, k): the most even weights ≥ 0 with nearly the same mixture, argmin ‖Φ(v − w)‖² + SAME · ‖v‖².

    Directions in which Φ changes by more than ``SAME`` hardly move; along the others, which only rounding tells apart, weights
    become equal.

    Args:
        w: (B, k) ≥ 0.
        likeness: (B, k, k), ΦᵀΦ with a unit diagonal.
        ok: (B, k) bool, methods that may be used.
    """
    eye = torch.eye(w.shape[1], dtype=w.dtype, device=w.device)
    target = torch.einsum("bij,bj->bi", likeness, w)
    spread = nnls(likeness + SAME * eye, target, ok)
    # A weight that was 0 and gets next to nothing stays 0: the answer keeps its support.
    before = w.sum(1, keepdim=True)
    spread = torch.where((w <= 0) & (spread < NOTHING * before), 0.0, spread)
    return spread * (before / spread.sum(1, keepdim=True).clamp(min=TINY))


def as_small(value: Tensor, least: Tensor, rounding: Tensor | float = ROUNDING) -> Tensor:
    """Whether relative sensitivities ``value`` are ``least``, but for ``LOSS`` and for what float32 maps leave of them.

    A map that is known to 1e-7 of its size has a change that is known to that too, so √r is, not r.

    Args:
        value: any shape.
        least: of that shape.
        rounding: :data:`ROUNDING`, in units of the two.
    """
    return value.sqrt() <= least.sqrt() * (1 + LOSS) + torch.as_tensor(rounding).sqrt()


def most_even(w: Tensor, value: Tensor) -> Tensor:
    """(B, k): the best of S candidates; of those that are equally good the one of least norm.

    Args:
        w: (B, S, k), the candidates.
        value: (B, S), their values; NaN counts as the worst.
    """
    value = value.nan_to_num(torch.inf)
    least = value.amin(1, keepdim=True)
    equal = value <= least * (1 + EQUAL)
    norm = (w**2).sum(2).masked_fill(~equal, torch.inf)
    return w[torch.arange(len(w), device=w.device), norm.argmin(1)]
