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
from .solution import EPS, TINY, Solution, corner, diagonal, even, finish, form, in_double, normalise, usable
from .ties import ROUNDING, TIE, as_small, even_out, evenness

EXHAUSTIVE = 12
"""Up to this many explainers every support is looked at (or provably need not be)."""

CORNERS = 16
"""Above, searches start from so many of the best single methods."""

GUESS = 10
"""Newton's steps for a first guess, which spares most supports."""

RIDGE = 1e-13
"""Added to (G + H) in units of its diagonal, so that it can be factored; and ..."""

LARGE_RIDGE = 1e-6
"""... this, if it is indefinite by more than rounding, e.g. because it was made in float32."""

CANCELLED = 1e-10
"""wᵀHw below this share of (Σ w_j √H_jj)²: the maps cancel and what is left is rounding."""

PRUNED = 1e-12
"""A support whose bound is below the best value by less than this share is skipped: rounding."""

CHUNK = 2**21
"""Numbers in one batch of k × k blocks."""

FLAGS = 2**24
"""Flags, one for each input and support, at a time."""


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

    Raises:
        InputError: shapes that do not fit.

    >>> G, H = torch.diag(torch.tensor([1.0, 1.0])), torch.ones(2, 2)
    >>> ratio(G[None], H[None]).value
    tensor([0.5000], dtype=torch.float64)
    """
    ok, G, H = usable(valid, G, H)
    ok = ok & (diagonal(H) > (0 if silent is None else silent))
    ok, G, H = usable(ok, G, H)
    # The ratio sees no scale of w, so the cone may be cut anywhere: in units of the maps' norms, where H has a unit diagonal.
    unit = torch.where(ok, diagonal(H), 1.0).rsqrt() * ok
    G = G * unit[:, :, None] * unit[:, None]
    H = H * unit[:, :, None] * unit[:, None]
    # And the best single method's ratio is 1, so that one tolerance fits small and large ratios.
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
    candidates = torch.cat([vectors, corner(first, ok.shape[1])[:, None]], 1)
    best = _value(G, H, candidates).argmin(1)
    w = candidates[torch.arange(len(candidates), device=candidates.device), best]
    # w and −w have the same ratio.
    return w * torch.where((w.sum(1) < 0)[:, None], -1.0, 1.0)


def _convex(G: Tensor, H: Tensor, ok: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """(weights (B, k) ≥ 0, proven lower bound (B,)); the bound is −∞ where not all supports were looked at.

    ``scale`` (B,): the ratio that is 1 here. What counts as equal is ``TIE`` of it, or ``ROUNDING`` as such."""
    k = ok.shape[1]
    few = k <= EXHAUSTIVE
    tie = torch.maximum(torch.full_like(scale, TIE), ROUNDING / scale)
    tied = G + tie[:, None, None] * evenness(H, ok)
    alone, first = diagonal(tied).masked_fill(~ok, torch.inf).min(1)
    starts = _starts(tied, ok, first, many=not few)
    w, value = _local(tied, H, ok, starts, GUESS if few else newton.ITERATIONS)
    bound = torch.full_like(value, -torch.inf)
    if few:
        w, value, bound = _enumerate(tied, H, ok, w, value)
        # The bound is one of the tied problem. wᵀEw ≤ k (Σ|w|)², so this is the most that the tie-break added to the value.
        bound = bound - tie * k / form(H, w).clamp(min=TINY) * w.abs().sum(1) ** 2
    w = torch.where((value < alone)[:, None], w, corner(first, k))
    spread = even_out(w, H + tied, ok)
    kept = as_small(_value(tied, H, spread[:, None])[:, 0], torch.minimum(value, alone), ROUNDING / scale)
    return torch.where(kept[:, None], spread, w), bound


def _value(G: Tensor, H: Tensor, w: Tensor) -> Tensor:
    """(…, M): the ratio itself, of matrices (…, i, j) at w (…, M, i); ∞ where the maps cancel. H has a unit diagonal."""
    noise = (w @ G * w).sum(-1)
    signal = (w @ H * w).sum(-1)
    fine = signal > CANCELLED * w.abs().sum(-1) ** 2
    return torch.where(fine, noise.clamp(min=0) / torch.where(fine, signal, 1.0), torch.inf)


def _noise(G: Tensor, H: Tensor, w: Tensor) -> Tensor:
    """(B,): what rounding, and the ridge, can make of the ratio at w."""
    above = form(G, w).clamp(min=0)
    below = form(H, w).clamp(min=TINY)
    # What the quadratic forms would be if nothing in them cancelled: rounding is a share of that.
    size_above = (w.abs() * diagonal(G).clamp(min=0).sqrt()).sum(1) ** 2
    size_below = w.abs().sum(1) ** 2
    share = 4 * w.shape[1] * EPS + 2 * RIDGE
    return share * (size_above + size_below * (1 + above / below)) / below


def _stationary(G: Tensor, H: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
    """(smallest ratio over signed weights (n,), all stationary weights (n, k, k), one a row) on ``support`` (n, k).

    Stationary is (G + H)w ∝ Hw: with (G + H) = LLᵀ and v = Lᵀw, an ordinary symmetric eigenproblem L⁻¹HL⁻ᵀv = μv. The sum
    is factored, not H, since H may be singular; where G and H both vanish the ridge stands in.

    Rows and columns outside the support become those of a direction with H = 0, G = 1, whose μ is 0.
    """
    k = support.shape[1]
    both = support[:, :, None] & support[:, None]
    eye = torch.eye(k, dtype=G.dtype, device=G.device)
    H = torch.where(both, H, 0.0)
    A = torch.where(both, G, eye) + H
    size = diagonal(A).clamp(min=TINY).rsqrt()
    A = A * size[:, :, None] * size[:, None]
    H = H * size[:, :, None] * size[:, None]
    factor, failed = torch.linalg.cholesky_ex(A + RIDGE * eye)
    if failed.any():  # indefinite beyond rounding: its candidates are judged like all others, its bound says nothing
        again, hopeless = torch.linalg.cholesky_ex(A + LARGE_RIDGE * eye)
        again = torch.where((hopeless > 0)[:, None, None], eye, again)
        factor = torch.where((failed > 0)[:, None, None], again, factor)
    middle = torch.linalg.solve_triangular(factor, H, upper=False)
    middle = torch.linalg.solve_triangular(factor, middle.mT, upper=False)
    mu, vectors, converged = _eigenvectors((middle + middle.mT) / 2)
    vectors = torch.linalg.solve_triangular(factor.mT, vectors, upper=True).mT * size[:, None] * support[:, None]
    smallest = (1 / mu[:, -1].clamp(min=TINY) - 1).clamp(min=0)
    low = torch.where((failed > 0) | ~converged, -torch.inf, smallest)
    return low, normalise(vectors)


def _eigenvectors(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(values (n, k) rising, vectors (n, k, k), converged (n,)) of symmetric matrices.

    LAPACK gives up on some of hundreds of methods, most of them nearly alike. One that fails must not stop the others: it gets
    unit vectors, alone.
    """
    converged = torch.ones(len(matrix), dtype=torch.bool, device=matrix.device)
    try:
        return *torch.linalg.eigh(matrix), converged
    except torch.linalg.LinAlgError:
        if len(matrix) > 1:
            parts = [_eigenvectors(one[None]) for one in matrix]
            values, vectors, converged = (torch.cat(each) for each in zip(*parts, strict=True))
            return values, vectors, converged
        return torch.ones_like(matrix[:, 0]), torch.eye(matrix.shape[1]).to(matrix)[None], ~converged


# -- all supports ------------------------------------------------------------------------------------------------------


def _enumerate(G: Tensor, H: Tensor, ok: Tensor, w: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best over all supports, from a first guess (w, value): (weights, value, proven lower bound).

    A support is a number whose bit j says whether method j is in it. Stationary weights are clipped at 0 and judged by the
    ratio itself, so no tolerance decides what is non-negative. A singular support needs no care: along a null vector the ratio
    is constant up to a smaller support.
    """
    count, k = ok.shape
    best = _Best(w.clone(), value.clone(), torch.ones_like(value, dtype=torch.bool))
    supports = torch.arange(2**k, device=ok.device)
    sizes = _members(supports, k).sum(1)
    for part in torch.arange(count, device=ok.device).split(max(1, FLAGS // 2**k)):
        outside = (~ok[part]).long().mul(1 << torch.arange(k, device=ok.device)).sum(1)
        skip = (supports & outside[:, None]) != 0  # (b, 2^k): has a method that may not be used
        pruned = torch.zeros_like(skip)  # (b, 2^k): cannot be better than what is known
        for size in range(k, 1, -1):  # corners are known
            inputs, masks = ((sizes == size) & ~skip & ~pruned).nonzero(as_tuple=True)
            members = _members(masks, k).nonzero()[:, 1].view(-1, size)
            for rows in torch.arange(len(inputs), device=inputs.device).split(CHUNK // size**2):
                hopeless = best.improve(G, H, part[inputs[rows]], members[rows])
                pruned[inputs[rows], masks[rows]] = hopeless
            # Whatever is pruned prunes its subsets: weights on them are weights on it, too.
            for j in range(k):
                parents = supports[(sizes == size) & (supports >> j & 1).bool()]
                pruned[:, parents ^ (1 << j)] |= pruned[:, parents]
    return normalise(best.w), best.value, torch.where(best.sure, best.value * (1 - PRUNED), 0.0)


@dataclass
class _Best:
    """The best mixture so far of each of B inputs."""

    w: Tensor  # (B, k)
    value: Tensor  # (B,)
    sure: Tensor  # (B,) bool: every support's bound could be computed

    def improve(self, G: Tensor, H: Tensor, inputs: Tensor, members: Tensor) -> Tensor:
        """Look at n supports; returns (n,) bool, which of them, with all their subsets, can do no better than what is known.

        Args:
            G, H: (B, k, k).
            inputs: (n,), to which input a support belongs.
            members: (n, size), the methods in it.
        """
        everyone = torch.ones_like(members, dtype=torch.bool)
        at = (inputs[:, None, None], members[:, :, None], members[:, None])
        g = G[at]
        h = H[at]
        low, vectors = _stationary(g, h, everyone)
        # An eigenvector has no sign: both ways are clipped to the cone.
        candidates = torch.cat([vectors.clamp(min=0), (-vectors).clamp(min=0)], 1)
        value, which = _value(g, h, candidates).min(1)
        chosen = candidates[torch.arange(len(candidates), device=candidates.device), which]
        # Several supports of one input are looked at together: the best of them counts.
        best = self.value.scatter_reduce(0, inputs, value, "amin")
        won = (value == best[inputs]) & (value < self.value[inputs])
        full = torch.zeros(len(inputs), self.w.shape[1], dtype=self.w.dtype, device=self.w.device)
        full = full.scatter(1, members, chosen)
        self.w[inputs[won]] = full[won]
        self.value = best
        self.sure[inputs[low.isneginf()]] = False
        return low >= self.value[inputs] * (1 - PRUNED)


def _members(supports: Tensor, k: int) -> Tensor:
    """(n, k) bool: which methods are in each of the supports (n,), written as whole numbers."""
    return (supports[..., None] >> torch.arange(k, device=supports.device) & 1).bool()


# -- local search ------------------------------------------------------------------------------------------------------


def _starts(G: Tensor, ok: Tensor, first: Tensor, many: bool) -> Tensor:
    """(B, M, k): the mean, the minimiser of wᵀGw, and the best corner, or the ``CORNERS`` best ones."""
    k = ok.shape[1]
    chosen = first[:, None]
    if many:
        chosen = diagonal(G).masked_fill(~ok, torch.inf).topk(min(k, CORNERS), 1, largest=False).indices
        # An invalid method's corner is replaced by the best one's: one more start that leads nowhere new.
        chosen = torch.where(ok.gather(1, chosen), chosen, first[:, None])
    corners = torch.nn.functional.one_hot(chosen, k).double()
    quietest = normalise(nearest(G, torch.ones_like(G[:, 0, 0]), ok))
    return torch.cat([torch.stack([even(ok), quietest], 1), corners], 1)


def _local(G: Tensor, H: Tensor, ok: Tensor, starts: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """The best local minimum reached from ``starts`` (B, M, k): (weights (B, k), ratio (B,))."""
    count, many, _ = starts.shape
    owner = torch.arange(count, device=ok.device).repeat_interleave(many)
    problem = _Ratio(G[owner], H[owner])
    w = newton.minimise(problem, starts.flatten(0, 1), ok[owner], iterations)
    value, best = problem.at(w).value.view(count, many).min(1)
    return w.view_as(starts)[torch.arange(count, device=w.device), best], value


@dataclass(frozen=True)
class _Ratio:
    """P problems for :func:`~consilience.simplex.newton.minimise`: wᵀGw / wᵀHw, without a margin."""

    G: Tensor  # (P, k, k)
    H: Tensor  # (P, k, k), with a unit diagonal

    def at(self, w: Tensor) -> _Quotient:
        Gw = (self.G @ w[..., None])[..., 0]
        Hw = (self.H @ w[..., None])[..., 0]
        size = (w * Hw).sum(1)
        fine = size > CANCELLED * w.abs().sum(1) ** 2
        size = torch.where(fine, size, 1.0)
        value = torch.where(fine, (w * Gw).sum(1).clamp(min=0) / size, torch.inf)
        return _Quotient(self, value, size, Gw, Hw)

    def rows(self, index: Tensor) -> _Ratio:
        return _Ratio(self.G[index], self.H[index])


@dataclass(frozen=True)
class _Quotient:
    """The ratio r = wᵀGw / wᵀHw at w (P, k)."""

    of: _Ratio
    value: Tensor  # (P,): r; ∞ where the maps cancel
    size: Tensor  # (P,): wᵀHw; 1 where the maps cancel
    Gw: Tensor  # (P, k)
    Hw: Tensor  # (P, k)

    @property
    def margin(self) -> Tensor:
        return torch.full_like(self.value, torch.inf)

    def slopes(self) -> tuple[Tensor, Tensor]:
        """∇r = 2 (Gw − r Hw) / wᵀHw, and the margin's, which is 0."""
        slope = 2 * (self.Gw - self.value[:, None] * self.Hw) / self.size[:, None]
        return slope, torch.zeros_like(slope)

    def curvature(self, price: Tensor) -> Tensor:
        """∇²r = 2 (G − r H − Hw ∇rᵀ − ∇r (Hw)ᵀ) / wᵀHw."""
        slope, _ = self.slopes()
        outer = self.Hw[:, :, None] * slope[:, None]
        form_of_r = self.of.G - self.value[:, None, None] * self.of.H
        return 2 * (form_of_r - outer - outer.mT) / self.size[:, None, None]
