"""The ratio of two quadratic forms over the simplex: not convex, yet exact for up to a dozen explainers.

G, H → unit diagonal of H, the best single method's ratio 1, ties broken (``ties.py``)
     → :func:`_local` (Newton from a few starts: the answer above a dozen methods, a first guess below)
     → :func:`_enumerate` (every support, from the largest down)
     → never above the best single; the most even weights of the same map; value, gap
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import newton
from .convex import nearest
from .solution import EPS, Solution, corner, diagonal, even, finish, form, in_double, normalise, usable
from .ties import LOSS, ROUNDING, TIE, even_out, evenness

EXHAUSTIVE = 12
"""Up to this many explainers every support is looked at (or provably need not be)."""

CORNERS = 16
"""Above, searches start from so many of the best single methods."""

GUESS = 10
"""Newton's steps for a first guess, which spares most supports."""

RIDGE = 1e-13
"""Added to (G + H) in units of its diagonal, so that it can be factored."""

CANCELLED = 1e-10
"""wᵀHw below this share of (Σ w_j √H_jj)²: the maps cancel and what is left is rounding."""

CHUNK = 2**21
"""Numbers in one batch of k × k blocks."""


@in_double
def ratio(
    G: Tensor, H: Tensor, valid: Tensor | None = None, signed: bool = False, silent: Tensor | None = None
) -> Solution:
    """min wᵀGw / wᵀHw over the simplex, G and H positive semi-definite: noise over signal. Without units.

    H may be any such matrix, singular too: maps' Gram matrix ΦᵀΦ (relative sensitivity), or how much maps change when they
    should (contrast). A method without any signal, H_jj = 0, is no candidate, and mixtures in which the signal cancels,
    wᵀHw < 1e-10 (Σ w_j√H_jj)², are not considered.

    On the optimum's support S the ratio is stationary: w_S is a generalised eigenvector of (H_SS, (G + H)_SS) without a
    negative entry, and the ratio is 1/μ − 1. For k ≤ 12 all supports are looked at, from the largest down; where even
    signed weights on S do no better than what is known, S and all its subsets are skipped. Above, Newton's method from the
    best corners, the mean and the minimiser of wᵀGw, certified by the best signed ratio.

    Args:
        G: (B, k, k), the noise.
        H: (B, k, k), the signal.
        valid: (B, k) bool, methods that may be used; all by default.
        signed: over Σ|w| = 1 in place of the simplex: the smallest generalised eigenvector.
        silent: (B, k), a signal H_jj that counts as none, such as what rounding alone makes of it; 0 by default.

    >>> G, H = torch.diag(torch.tensor([1.0, 1.0])), torch.ones(2, 2)
    >>> ratio(G[None], H[None]).value
    tensor([0.5000], dtype=torch.float64)
    """
    ok, G, H = usable(valid, G, H)
    ok = ok & (diagonal(H) > (0 if silent is None else silent))
    ok, G, H = usable(ok, G, H)
    # The ratio sees no scale, so the cone may be cut anywhere: unit maps, and the best single method's ratio 1.
    unit = torch.where(ok, diagonal(H), 1.0).rsqrt() * ok
    G, H = (m * unit[:, :, None] * unit[:, None] for m in (G, H))
    single = diagonal(G).clamp(min=0).masked_fill(~ok, torch.inf).amin(1)
    scale = torch.where((single > 0) & single.isfinite(), single, 1.0)
    G = G / scale[:, None, None]
    bound, vectors = _stationary(G, H, ok)
    if signed:
        w = _signed(G, H, ok, vectors)
    else:
        w, exact = _convex(G, H, ok, scale)
        bound = torch.maximum(bound, exact)
    value = _value(G, H, w[:, None])[:, 0]
    gap = (value - bound.clamp(min=0)).clamp(min=0) + _noise(G, H, w)
    return finish(normalise(w * unit), value * scale, gap * scale, ok, scale)


def _signed(G: Tensor, H: Tensor, ok: Tensor, vectors: Tensor) -> Tensor:
    """(B, k): the best of the stationary ``vectors`` (B, k, k) and the best single method, its sum not negative."""
    first = diagonal(G).masked_fill(~ok, torch.inf).argmin(1)
    both = torch.cat([vectors, corner(first, ok.shape[1])[:, None]], 1)
    best = _value(G, H, both).argmin(1)
    w = both[torch.arange(len(both), device=both.device), best]
    return w * torch.where((w.sum(1) < 0)[:, None], -1.0, 1.0)


def _convex(G: Tensor, H: Tensor, ok: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """(weights (B, k) ≥ 0, proven lower bound (B,)); the bound is −∞ where not all supports were looked at.

    ``scale`` (B,): the ratio that is 1 here. What counts as equal is ``TIE`` of it, or ``ROUNDING`` as such."""
    k = ok.shape[1]
    tie = torch.maximum(torch.full_like(scale, TIE), ROUNDING / scale)
    tied = G + tie[:, None, None] * evenness(H, ok)
    alone, first = diagonal(tied).masked_fill(~ok, torch.inf).min(1)
    starts = _starts(tied, ok, first, k > EXHAUSTIVE)
    w, value = _local(tied, H, ok, starts, newton.ITERATIONS if k > EXHAUSTIVE else GUESS)
    bound = torch.full_like(value, -torch.inf)
    if k <= EXHAUSTIVE:
        w, value, bound = _enumerate(tied, H, ok, w, value)
        # The tie-break's own share of the value, as far as it can be told at w.
        bound = bound - tie * k / form(H, w).clamp(min=1e-300) * w.abs().sum(1) ** 2
    w = torch.where((value < alone)[:, None], w, corner(first, k))
    spread = even_out(w, H + tied, ok)
    kept = _value(tied, H, spread[:, None])[:, 0] <= torch.minimum(value, alone) * (1 + LOSS)
    return torch.where(kept[:, None], spread, w), bound


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
    mu, vectors, found = _eigenvectors((middle + middle.mT) / 2)
    vectors = torch.linalg.solve_triangular(factor.mT, vectors, upper=True).mT * size[:, None] * support[:, None]
    low = torch.where((failed > 0) | ~found, -torch.inf, (1 / mu[:, -1].clamp(min=1e-300) - 1).clamp(min=0))
    return low, normalise(vectors)


def _eigenvectors(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(values (n, k) rising, vectors (n, k, k), found (n,)) of symmetric matrices; unit vectors where LAPACK gives up, as it
    does on some of hundreds of methods, most of them nearly alike. One that fails must not stop the others."""
    found = torch.ones(len(matrix), dtype=torch.bool, device=matrix.device)
    try:
        return *torch.linalg.eigh(matrix), found
    except torch.linalg.LinAlgError:
        if len(matrix) > 1:
            parts = [_eigenvectors(one[None]) for one in matrix]
            values, vectors, found = (torch.cat(each) for each in zip(*parts, strict=True))
            return values, vectors, found
        return torch.ones_like(matrix[:, 0]), torch.eye(matrix.shape[1]).to(matrix)[None], ~found


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
    """(B, M, k): the mean, the minimiser of wᵀGw, and the best corner, or the ``CORNERS`` best ones."""
    k = ok.shape[1]
    chosen = first[:, None]
    if many:
        chosen = diagonal(G).masked_fill(~ok, torch.inf).topk(min(k, CORNERS), 1, largest=False).indices
        # An invalid method's corner is replaced by the best one's: a start more that finds nothing new.
        chosen = torch.where(ok.gather(1, chosen), chosen, first[:, None])
    corners = torch.nn.functional.one_hot(chosen, k).double()
    others = torch.stack([even(ok), normalise(nearest(G, torch.ones_like(G[:, 0, 0]), ok))], 1)
    return torch.cat([others, corners], 1)


@dataclass(frozen=True)
class _Ratio:
    """P problems for :func:`~consilience.simplex.newton.minimise`: wᵀGw / wᵀHw, without a margin."""

    G: Tensor
    H: Tensor

    def at(self, w: Tensor) -> _Quotient:
        Gw, Hw = ((m @ w[..., None])[..., 0] for m in (self.G, self.H))
        size = (w * Hw).sum(1)
        fine = size > CANCELLED * w.abs().sum(1) ** 2
        size = torch.where(fine, size, 1.0)
        value = torch.where(fine, (w * Gw).sum(1).clamp(min=0) / size, torch.inf)
        return _Quotient(self, value, size, Gw, Hw)

    def rows(self, index: Tensor) -> _Ratio:
        return _Ratio(self.G[index], self.H[index])


@dataclass(frozen=True)
class _Quotient:
    """The ratio at w: its value, wᵀHw, Gw and Hw."""

    of: _Ratio
    value: Tensor
    size: Tensor
    Gw: Tensor
    Hw: Tensor

    @property
    def margin(self) -> Tensor:
        return torch.full_like(self.value, torch.inf)

    def slopes(self) -> tuple[Tensor, Tensor]:
        slope = 2 * (self.Gw - self.value[:, None] * self.Hw) / self.size[:, None]
        return slope, torch.zeros_like(slope)

    def curvature(self, price: Tensor) -> Tensor:
        slope, _ = self.slopes()
        outer = self.Hw[:, :, None] * slope[:, None]
        return 2 * (self.of.G - self.value[:, None, None] * self.of.H - outer - outer.mT) / self.size[:, None, None]


def _local(G: Tensor, H: Tensor, ok: Tensor, starts: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """The best local minimum reached from ``starts`` (B, M, k): (weights (B, k), ratio (B,))."""
    count, many, _ = starts.shape
    owner = torch.arange(count, device=ok.device).repeat_interleave(many)
    problem = _Ratio(G[owner], H[owner])
    w = newton.minimise(problem, starts.flatten(0, 1), ok[owner], iterations)
    value, best = problem.at(w).value.view(count, many).min(1)
    return w.view_as(starts)[torch.arange(count, device=w.device), best], value
