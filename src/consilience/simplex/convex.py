"""The point of a convex hull that is nearest to the origin: min wᵀGw over the simplex, exact, with a certificate.

:func:`quadratic` → ties broken (``ties.py``) → :func:`nearest` (one non-negative least squares)
                  → :func:`_refined`, where the optimum is far below every single method → never above the best single method
"""

from __future__ import annotations

import torch
from torch import Tensor

from .active_set import nnls
from .solution import EPS, TINY, Solution, corner, diagonal, finish, form, in_double, normalise, usable
from .ties import TIE, evenness

DEEP = 1e-8
"""A gap above this share of the value leads to a second search, in units of the value itself; and ..."""

FLOOR = 1e-14
"""... one above this share of the best single method's value: below that, float64 has no digits left."""

ITERATIONS = 2000
"""Pairwise steps at most; each is one line search."""

EVERY = 50
"""Pairwise steps between two looks at the gap."""


@in_double
def quadratic(G: Tensor, valid: Tensor | None = None) -> Solution:
    """min wᵀGw over the simplex.

    Certificate, with p = wᵀGw and q = min_j (Gw)_j: for the optimum w*, wᵀGw* ≥ q, so by Cauchy–Schwarz
    w*ᵀGw* ≥ max(q, 0)²/p, and by convexity w*ᵀGw* ≥ p − 2(p − q).

    Args:
        G: (B, k, k), positive semi-definite; the value and the gap are in its units.
        valid: (B, k) bool, methods that may be used; all by default.

    Raises:
        InputError: shapes that do not fit.

    Source: Decker et al. 2024, arXiv 2406.05090 (AGG), for the problem; Frank and Wolfe 1956 for the gap p − q.

    >>> quadratic(torch.diag(torch.tensor([1.0, 3.0]))[None]).weights
    tensor([[0.7500, 0.2500]], dtype=torch.float64)
    """
    ok, G = usable(valid, G)
    single, first = diagonal(G).masked_fill(~ok, torch.inf).min(1)
    # The scale is the best single method's: the largest would drown a good method's numbers in the ones of 11ᵀ. A method
    # of value 0 gives no scale.
    scale = torch.where(ok & (diagonal(G) > 0), diagonal(G), torch.inf).amin(1)
    scale = torch.where(scale.isfinite(), scale, 1.0)
    tied = G + TIE * scale[:, None, None] * evenness(G, ok)
    w = normalise(nearest(tied, scale, ok))
    low = form(G, w)
    deep = _gap(G, w, ok) > torch.maximum(DEEP * low, FLOOR * scale)
    if deep.any():
        w[deep] = _refined(G[deep], w[deep], low[deep], scale[deep], ok[deep])
    w = torch.where((form(G, w) <= single)[:, None], w, corner(first, w.shape[1]))
    return finish(w, form(G, w).clamp(min=0), _gap(G, w, ok), ok, scale)


def nearest(G: Tensor, scale: Tensor, ok: Tensor) -> Tensor:
    """(B, k) ≥ 0: the minimiser of wᵀGw over the simplex, up to its sum.

    For u = t·w with Σw = 1, ½uᵀ(G/s + 11ᵀ)u − 1ᵀu = ½t²(wᵀGw/s + 1) − t. Its minimum over t is −½ / (wᵀGw/s + 1), which
    falls as wᵀGw falls: so the best u ≥ 0, an :func:`nnls`, is the best w.

    Args:
        G: (B, k, k), positive semi-definite.
        scale: s (B,) > 0, which brings G to the size of the ones.
        ok: (B, k) bool, methods that may be used.
    """
    return nnls(G / scale[:, None, None] + 1.0, torch.ones_like(G[:, 0]), ok)


def _refined(G: Tensor, w: Tensor, low: Tensor, scale: Tensor, ok: Tensor) -> Tensor:
    """(N, k): a better w where the optimum is far below every corner.

    There the ones of :func:`nearest` drown G. So it is solved once more on the scale of the value ``low`` (N,) reached so
    far, and then by exact line searches between pairs, which know no scale.
    """
    finer = normalise(nearest(G, low.clamp(min=FLOOR * scale), ok))
    finer = torch.where((form(G, finer) < low)[:, None], finer, w)
    return _pairwise(G, finer, ok)


def _gap(G: Tensor, w: Tensor, ok: Tensor) -> Tensor:
    """(B,): an upper bound of wᵀGw − optimum, by the smaller of the two certificates of :func:`quadratic`."""
    slope = torch.einsum("bij,bj->bi", G, w)
    p = form(G, w).clamp(min=0)
    q = slope.masked_fill(~ok, torch.inf).amin(1)
    by_angle = p - q.clamp(min=0) ** 2 / p.clamp(min=TINY)
    by_slope = 2 * (p - q)
    # What rounding can make of p, a sum of k² products: nothing is certified beyond it.
    noise = 2 * w.shape[1] * EPS * (w * diagonal(G).clamp(min=0).sqrt()).sum(1) ** 2
    return torch.minimum(by_angle, by_slope).clamp(min=0) + noise


def _pairwise(G: Tensor, w: Tensor, ok: Tensor) -> Tensor:
    """(N, k): pairwise Frank–Wolfe, which moves weight from the worst method in use to the best one.

    Source: Lacoste-Julien and Jaggi 2015, arXiv 1511.05932.
    """
    rows = torch.arange(len(w), device=w.device)
    k = w.shape[1]
    for step in range(ITERATIONS):
        slope = torch.einsum("bij,bj->bi", G, w)
        into = slope.masked_fill(~ok, torch.inf).argmin(1)
        away = slope.masked_fill(~(w > 0), -torch.inf).argmax(1)
        fall = slope[rows, away] - slope[rows, into]
        # The second derivative along the way e_into − e_away; the exact minimum is at fall / bend.
        bend = G[rows, into, into] + G[rows, away, away] - 2 * G[rows, into, away]
        length = torch.where(bend > 0, fall / bend, torch.inf).clamp(min=0)
        length = torch.minimum(length, w[rows, away])  # no more than there is to move
        w = w + length[:, None] * (corner(into, k) - corner(away, k))
        # A look at the gap costs as much as a step.
        if step % EVERY == EVERY - 1 and (_gap(G, w, ok) <= 1e-9 * form(G, w)).all():
            break
    return normalise(w.clamp(min=0))
