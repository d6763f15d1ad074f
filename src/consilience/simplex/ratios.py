"""The ratio of two quadratic forms over the simplex: not convex, yet exact for up to a dozen explainers."""

from __future__ import annotations

import torch
from torch import Tensor

from .active_set import nnls
from .convex import _nearest
from .solution import EPS, Solution, corner, diagonal, even, finish, form, in_double, normalise, usable

EXHAUSTIVE = 12  # up to this many explainers every support is looked at (or provably need not be)


RIDGE = 1e-13


CANCELLED = 1e-10  # wᵀHw below this share of (Σ w_j √H_jj)²: the maps cancel and what is left is rounding


CHUNK = 2**21  # numbers in one batch of k × k blocks


@in_double
def ratio(G: Tensor, H: Tensor, valid: Tensor | None = None, signed: bool = False) -> Solution:
    """min wᵀGw / wᵀHw over the simplex, G and H (B, k, k) positive semi-definite. Without units.

    On the optimum's support S the ratio is stationary: w_S is a generalised eigenvector of (H_SS, (G + H)_SS) without a
    negative entry, and the ratio is 1/μ − 1. For k ≤ 12 all supports are looked at, from the largest down; where even
    signed weights on S do no better than what is known, S and all its subsets are skipped. Above, majorise–minimise: by
    Cauchy–Schwarz wᵀHw ≥ (w₀ᵀHw)² / w₀ᵀHw₀, so argmin wᵀGw with (Hw₀)ᵀw = 1, an :func:`nnls`, never goes up; started
    from every corner, the mean and the minimiser of wᵀGw, and certified by the best signed ratio.

    A method with H_jj = 0 (a zero map) is not valid. Mixtures that cancel (wᵀHw < 1e-10 (Σ w_j√H_jj)²) are not
    considered.
    ``signed``: over Σ|w| = 1, the smallest generalised eigenvector.

    >>> G, H = torch.diag(torch.tensor([1.0, 1.0])), torch.ones(2, 2)
    >>> ratio(G[None], H[None]).value
    tensor([0.5000], dtype=torch.float64)
    """
    ok, G, H = usable(valid, G, H)
    ok = ok & (diagonal(H) > 0)
    ok, G, H = usable(ok, G, H)
    # The ratio sees no scale, so the cone may be cut anywhere: unit maps, and the best single method's ratio 1.
    unit = torch.where(ok, diagonal(H), 1.0).rsqrt() * ok
    G, H = (m * unit[:, :, None] * unit[:, None] for m in (G, H))
    single, first = diagonal(G).clamp(min=0).masked_fill(~ok, torch.inf).min(1)
    scale = torch.where((single > 0) & single.isfinite(), single, 1.0)
    G = G / scale[:, None, None]

    k = G.shape[1]
    bound, vectors = _stationary(G, H, ok)
    if signed:
        both = torch.cat([vectors, corner(first, k)[:, None]], 1)
        values = _value(G, H, both)
        value, best = values.min(1)
        w = both[torch.arange(len(both), device=both.device), best]
        w = w * torch.where((w.sum(1) < 0)[:, None], -1.0, 1.0)
    else:
        w, value = _majorise(G, H, ok, _starts(G, ok, first, k > EXHAUSTIVE), 50 if k > EXHAUSTIVE else 3)
        if k <= EXHAUSTIVE:
            w, value, exact = _enumerate(G, H, ok, w, value)
            bound = torch.maximum(bound, exact)
    alone = torch.where(single > 0, 1.0, 0.0)
    w = torch.where((value < alone)[:, None], w, corner(first, k))
    value = torch.minimum(value, alone)
    gap = (value - bound.clamp(min=0)).clamp(min=0) + _noise(G, H, w)
    return finish(normalise(w * unit), value * scale, gap * scale, ok, scale)


def _value(G: Tensor, H: Tensor, w: Tensor) -> Tensor:
    """(…, i, j) matrices, (…, M, i) → (…, M): the ratio itself; ∞ where the maps cancel. H has a unit diagonal."""
    above, below = ((w @ m * w).sum(-1) for m in (G, H))
    fine = below > CANCELLED * w.abs().sum(-1) ** 2
    return torch.where(fine, above.clamp(min=0) / torch.where(fine, below, 1.0), torch.inf)


def _noise(G: Tensor, H: Tensor, w: Tensor) -> Tensor:
    """(B,): what rounding, and the ridge, can make of the ratio at w."""
    above, below = form(G, w).clamp(min=0), form(H, w).clamp(min=1e-300)
    size = (w.abs() * diagonal(G).clamp(min=0).sqrt()).sum(1) ** 2, w.abs().sum(1) ** 2
    return (4 * w.shape[1] * EPS + 2 * RIDGE) * (size[0] + size[1] * (1 + above / below)) / below


def _bits(masks: Tensor, k: int) -> Tensor:
    return (masks[..., None] >> torch.arange(k, device=masks.device) & 1).bool()


def _stationary(G: Tensor, H: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
    """(smallest ratio over signed weights (n,), all stationary weights (n, k, k), one a row) on ``support`` (n, k).

    Rows and columns outside the support become those of a direction with H = 0, G = 1, whose μ is 0.
    """
    k = support.shape[1]
    both = support[:, :, None] & support[:, None]
    eye = torch.eye(k, dtype=G.dtype, device=G.device)
    H = torch.where(both, H, 0.0)
    A = torch.where(both, G, eye) + H
    size = diagonal(A).clamp(min=1e-300).rsqrt()
    A, H = (m * size[:, :, None] * size[:, None] for m in (A, H))
    factor, failed = torch.linalg.cholesky_ex(A + RIDGE * eye)
    if failed.any():  # indefinite beyond rounding: its candidates are judged like all others, its bound says nothing
        again, hopeless = torch.linalg.cholesky_ex(A + 1e-6 * eye)
        again = torch.where((hopeless > 0)[:, None, None], eye, again)
        factor = torch.where((failed > 0)[:, None, None], again, factor)
    middle = torch.linalg.solve_triangular(factor, H, upper=False)
    middle = torch.linalg.solve_triangular(factor, middle.mT, upper=False)
    mu, vectors = torch.linalg.eigh((middle + middle.mT) / 2)
    vectors = torch.linalg.solve_triangular(factor.mT, vectors, upper=True).mT * size[:, None] * support[:, None]
    low = torch.where(failed > 0, -torch.inf, (1 / mu[:, -1].clamp(min=1e-300) - 1).clamp(min=0))
    return low, normalise(vectors)


def _enumerate(G: Tensor, H: Tensor, ok: Tensor, w: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best over all supports, from a first guess (w, value): (weights, value, proven lower bound).

    Stationary weights are clipped at 0 and judged by the ratio itself, so no tolerance decides what is non-negative.
    A singular support needs no care: along a null vector the ratio is constant up to a smaller support.
    """
    count, k = ok.shape
    w, value, sure = w.clone(), value.clone(), torch.ones_like(value, dtype=torch.bool)
    table = torch.arange(2**k, device=ok.device)
    sizes = _bits(table, k).sum(1)
    for part in torch.arange(count, device=ok.device).split(max(1, 2**24 // 2**k)):
        outside = (~ok[part]).long().mul(1 << torch.arange(k, device=ok.device)).sum(1)
        skip = (table & outside[:, None]) != 0
        pruned = torch.zeros_like(skip)
        for size in range(k, 1, -1):  # corners are known
            b, masks = ((sizes == size) & ~skip & ~pruned).nonzero(as_tuple=True)
            members = _bits(masks, k).nonzero()[:, 1].view(-1, size)
            for rows in torch.arange(len(b), device=b.device).split(CHUNK // size**2):
                i, who = part[b[rows]], members[rows]
                g, h = (m[i[:, None, None], who[:, :, None], who[:, None]] for m in (G, H))
                low, v = _stationary(g, h, torch.ones_like(who, dtype=torch.bool))
                v = torch.cat([v.clamp(min=0), (-v).clamp(min=0)], 1)
                found, at = _value(g, h, v).min(1)
                v = v[torch.arange(len(v), device=v.device), at]
                best = value.scatter_reduce(0, i, found, "amin")
                won = (found == best[i]) & (found < value[i])
                full = torch.zeros(len(i), k, dtype=w.dtype, device=w.device).scatter(1, who, v)
                w[i[won]], value = full[won], best
                sure[i[low.isneginf()]] = False
                pruned[b[rows], masks[rows]] = low >= value[i] * (1 - 1e-12)
            for j in range(k):  # whatever is pruned prunes its subsets
                parents = table[(sizes == size) & (table >> j & 1).bool()]
                pruned[:, parents ^ (1 << j)] |= pruned[:, parents]
    return normalise(w), value, torch.where(sure, value * (1 - 1e-12), 0.0)


def _starts(G: Tensor, ok: Tensor, first: Tensor, many: bool) -> Tensor:
    """(B, M, k): the mean, the minimiser of wᵀGw, and the best corner or all of them."""
    k = ok.shape[1]
    corners = torch.eye(k, dtype=G.dtype, device=G.device).expand(len(G), k, k)
    # An invalid method's corner is replaced by the best one's: a start more that finds nothing new.
    corners = torch.where(ok[:, :, None], corners, corner(first, k)[:, None])
    others = torch.stack([even(ok), normalise(_nearest(G, torch.ones_like(G[:, 0, 0]), ok))], 1)
    return torch.cat([others, corners if many else corner(first, k)[:, None]], 1)


def _majorise(G: Tensor, H: Tensor, ok: Tensor, starts: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """The best local minimum reached from ``starts`` (B, M, k): (weights (B, k), ratio (B,)).

    Alone it converges linearly; the stationary weights on each step's support are where it is heading, so try them.
    """
    count, many, _ = starts.shape
    owner = torch.arange(count, device=ok.device).repeat_interleave(many)
    w = starts.flatten(0, 1).clone()
    value = _value(G[owner], H[owner], w[:, None])[:, 0]
    live = ((value > 0) & value.isfinite()).nonzero()[:, 0]
    for _ in range(iterations):
        if not len(live):
            break
        g, norm, before = G[owner[live]], H[owner[live]], w[live]
        h = torch.einsum("bij,bj->bi", norm, before)
        # Scaled so that the two terms of Q weigh the same at w₀, where hᵀw₀ = 1 and w₀ᵀGw₀ = 1.
        h, q = h / (h * before).sum(1, keepdim=True), g / form(g, before)[:, None, None]
        after = normalise(nnls(q + h[:, :, None] * h[:, None], h, ok[owner[live]], before / 2))
        _, v = _stationary(g, norm, after > 0)
        after = torch.cat([after[:, None], v.clamp(min=0), (-v).clamp(min=0)], 1)
        now, best = _value(g, norm, after).min(1)
        after = normalise(after[torch.arange(len(after), device=ok.device), best])
        fell = now < value[live]
        moving = now < value[live] * (1 - 1e-11)
        w[live[fell]], value[live[fell]] = after[fell], now[fell]
        live = live[moving & (now > 0)]
    w, value = w.unflatten(0, (count, many)), value.unflatten(0, (count, many))
    value, best = value.min(1)
    return w[torch.arange(count, device=w.device), best], value
