"""The criteria whose best convex mixture is one non-negative least squares: exact, with a certificate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InputError
from .active_set import nnls
from .solution import EPS, Solution, corner, diagonal, even, finish, form, in_double, normalise, usable
from .ties import LOSS, TIE, even_out, evenness, with_tie_break

CONSTANT = 1e-26
"""A constant response has a variance of rounding only, about (1e-16)² of the others'."""


FLAT = 1e-13
"""… and one of this share of its own mean square: maps are float32, so a uniform map's responses differ by 1e-14 at most."""


@in_double
def quadratic(G: Tensor, valid: Tensor | None = None) -> Solution:
    """min wᵀGw over the simplex, G (B, k, k) positive semi-definite: the point of the hull nearest the origin.

    With u = t·w, min over u ≥ 0 of ½uᵀ(G/s + 11ᵀ)u − 1ᵀu is −½/(1 + wᵀGw/s) at the best t, which falls with wᵀGw: the
    same problem, as an :func:`nnls`. Certificate, with p = wᵀGw and q = min_j (Gw)_j: for the optimum w*, wᵀGw* ≥ q, so
    by Cauchy–Schwarz w*ᵀGw* ≥ max(q, 0)²/p, and by convexity ≥ p − 2(p − q). Units of G.

    >>> quadratic(torch.diag(torch.tensor([1.0, 3.0]))[None]).weights
    tensor([[0.7500, 0.2500]], dtype=torch.float64)
    """
    ok, G = usable(valid, G)
    single, first = diagonal(G).masked_fill(~ok, torch.inf).min(1)
    # The best corner's scale: the largest would drown a good method's numbers in the ones of 11ᵀ.
    positive = torch.where(ok & (diagonal(G) > 0), diagonal(G), torch.inf).amin(1)
    positive = torch.where(positive.isfinite(), positive, 1.0)
    tied = G + TIE * positive[:, None, None] * evenness(G, ok)
    w = normalise(_nearest(tied, positive, ok))
    low = form(G, w)
    redo = _gap(G, w, ok) > torch.maximum(1e-8 * low, 1e-14 * positive)
    if redo.any():  # an optimum far below every corner: its own scale, then exact line searches between pairs
        sub, mine = G[redo], ok[redo]
        finer = normalise(_nearest(sub, low[redo].clamp(min=1e-14 * positive[redo]), mine))
        finer = torch.where((form(sub, finer) < low[redo])[:, None], finer, w[redo])
        w[redo] = _pairwise(sub, finer, mine)
    w = torch.where((form(G, w) <= single)[:, None], w, corner(first, w.shape[1]))
    return finish(w, form(G, w).clamp(min=0), _gap(G, w, ok), ok, positive)


def _nearest(G: Tensor, scale: Tensor, ok: Tensor) -> Tensor:
    return nnls(G / scale[:, None, None] + 1.0, torch.ones_like(G[:, 0]), ok)


def _gap(G: Tensor, w: Tensor, ok: Tensor) -> Tensor:
    slope = torch.einsum("bij,bj->bi", G, w)
    p, q = form(G, w).clamp(min=0), slope.masked_fill(~ok, torch.inf).amin(1)
    nearest = p - q.clamp(min=0) ** 2 / p.clamp(min=1e-300)
    # What rounding can make of p: nothing is certified beyond it.
    noise = 2 * w.shape[1] * EPS * (w * diagonal(G).clamp(min=0).sqrt()).sum(1) ** 2
    return torch.minimum(nearest, 2 * (p - q)).clamp(min=0) + noise


def _pairwise(G: Tensor, w: Tensor, ok: Tensor, iterations: int = 2000) -> Tensor:
    """Pairwise Frank–Wolfe (Lacoste-Julien and Jaggi 2015): weight moves from the worst method used to the best one."""
    rows = torch.arange(len(w), device=w.device)
    for step in range(iterations):
        slope = torch.einsum("bij,bj->bi", G, w)
        into = slope.masked_fill(~ok, torch.inf).argmin(1)
        away = slope.masked_fill(~(w > 0), -torch.inf).argmax(1)
        fall = slope[rows, away] - slope[rows, into]
        bend = G[rows, into, into] + G[rows, away, away] - 2 * G[rows, into, away]
        length = torch.minimum(torch.where(bend > 0, fall / bend, torch.inf).clamp(min=0), w[rows, away])
        w = w + length[:, None] * (corner(into, w.shape[1]) - corner(away, w.shape[1]))
        if step % 50 == 49 and (_gap(G, w, ok) <= 1e-9 * form(G, w)).all():
            break
    return normalise(w.clamp(min=0))


@in_double
def correlation(
    C: Tensor,
    b: Tensor,
    vy: Tensor,
    valid: Tensor | None = None,
    ridge: float = 0.0,
    signed: bool = False,
    mean: Tensor | None = None,
) -> Solution:
    """max over the simplex of ρ(c) = cᵀb / √(cᵀCc · v), as the minimum of 1 − ρ|ρ| (1 − ρ² for ρ ≥ 0; in [0, 2]).

    C (B, k, k) covariance of the responses, b (B, k) their covariance with y, ``vy`` (B,) the variance of y. ρ does not
    see the scale of c, so with some b_j > 0 the optimum is :func:`nnls` (C, b), divided by its sum. With all b_j ≤ 0,
    fix |b|ᵀc = 1: then cᵀCc is to be maximal, which a convex function is at a corner: no mixture beats the best single.

    Certificate: for any v with Cv ≥ b and any c ≥ 0, bᵀc ≤ vᵀCc ≤ √(vᵀCv)·√(cᵀCc), so ρ² ≤ vᵀCv / v_y. The solution u
    has Cu ≥ b up to the solver's error, and v is u times the least factor that makes it so; failing that, ρ² ≤ 1.

    ``signed``: weights of either sign, (C + ``ridge`` · mean_j C_jj · I)⁻¹b, scaled to Σ|w| = 1; ``gap`` is then to the
    optimum without ridge. A method whose response is constant is left out, as are those outside ``valid`` (B, k). With the
    responses' ``mean`` (B, k), constant is what varies by :data:`FLAT` of its mean square or less, of a mixture too.

    >>> found = correlation(torch.eye(2)[None], torch.tensor([[0.6, -0.2]]), torch.ones(1))
    >>> found.weights, found.value
    (tensor([[1., 0.]], dtype=torch.float64), tensor([0.6400], dtype=torch.float64))
    """
    if ridge and not signed:
        raise InputError(f"correlation: ridge={ridge} is for signed=True; convex weights need none")
    ok, C = usable(valid, C)
    mean = torch.zeros_like(b) if mean is None else torch.where(ok & mean.isfinite(), mean, 0.0)
    given, ok = ok, ok & varies(C, mean, ok) & b.isfinite()
    b = torch.where(ok, b, 0.0)
    vy = torch.where(vy > 0, vy, 0.0)
    still = vy == 0
    v = torch.where(still, 1.0, vy)
    k = b.shape[1]

    def rho(w: Tensor) -> Tensor:
        spread = form(C, w)
        found = ((b * w).sum(1) / (spread * v).clamp(min=1e-300).sqrt()).clamp(-1, 1)
        return torch.where(spread > FLAT * (spread + (mean * w).sum(1) ** 2), found, 0.0)

    if signed:
        u, bound = _regression(C, b, ok, ridge)
    else:
        u, bound = _direction(C, b, v, ok)
    alone = torch.where(ok, b / torch.where(ok, diagonal(C) * v[:, None], 1.0).sqrt(), -torch.inf)
    if signed:
        alone = alone.abs()
    single, first = alone.max(1)
    toward = corner(first, k) * (b.gather(1, first[:, None]).sign() if signed else 1)
    helps = (b > 0).any(1) | ((b != 0).any(1) if signed else False)
    w = normalise(u)
    # A ridge gives up some correlation on these draws on purpose: fall back to a corner only without one.
    mixed = helps & (rho(w) >= single if ridge == 0 else True)
    w = torch.where(mixed[:, None], w, toward)
    if not signed:
        w = _evened(C, w, ok, rho)
    got = torch.where(ok.any(1), rho(w), 0.0)
    value = 1 - got * got.abs()
    gap = torch.where(helps, ((bound / v).clamp(max=1) - got**2).clamp(min=0), 0.0)
    gap = torch.minimum(gap + _rounding(C, w), value)  # the optimum is never negative, so value bounds the gap
    # With nothing to tell methods apart (no response varies, or the output does not), ρ is undefined: treated as 0.
    undefined = still | ~ok.any(1)
    w = torch.where(undefined[:, None], even(given), w)
    value, gap = torch.where(undefined, 1.0, value), torch.where(undefined, 0.0, gap)
    says = {"no method helps": ~helps, "no response varies": ~ok.any(1), "the output does not change": still}
    return finish(w, value, gap, given, torch.ones_like(value), says)


@in_double
def scale_free(M: Tensor, p: Tensor, y2: Tensor, valid: Tensor | None = None) -> Solution:
    """min over the simplex and β of either sign of E(βa_c − y)² / E y² = 1 − (pᵀc)² / (cᵀMc · E y²), in [0, 1].

    M (B, k, k) = E[aaᵀ], p (B, k) = E[a y], ``y2`` (B,) = E[y²], not centred. The two signs of pᵀc are two :func:`nnls`
    problems, (M, p) and (M, −p); the better one is the optimum, certified as in :func:`correlation`.

    >>> scale_free(torch.eye(2)[None], torch.tensor([[0.0, -0.5]]), torch.ones(1)).value
    tensor([0.7500], dtype=torch.float64)
    """
    ok, M = usable(valid, M)
    given, ok = ok, ok & varies(M, torch.zeros_like(p), ok) & p.isfinite()
    p = torch.where(ok, p, 0.0)
    still = ~(y2 > 0)
    v = torch.where(still, 1.0, y2)
    k = p.shape[1]
    single = torch.where(ok, p**2 / torch.where(ok, diagonal(M), 1.0), -1.0).argmax(1)
    directions = [_direction(M, sign * p, v, ok) for sign in (1, -1)]
    w = torch.stack([corner(single, k), *(normalise(u) for u, _ in directions)], 1)

    def explained_by(w: Tensor) -> Tensor:
        """(pᵀw)² / (wᵀMw · E y²) of weights (B, k)."""
        square = form(M, w) * v
        return torch.where(square > 0, (w * p).sum(1) ** 2 / square.clamp(min=1e-300), 0.0).clamp(max=1)

    best = torch.stack([explained_by(each) for each in w.unbind(1)], 1).argmax(1)
    w = _evened(M, w[torch.arange(len(w), device=w.device), best], ok, explained_by)
    share = explained_by(w)
    bound = torch.maximum(*(bound for _, bound in directions)) / v
    gap = torch.minimum((bound.clamp(max=1) - share).clamp(min=0) + _rounding(M, w), 1 - share)
    undefined = still | ~(p != 0).any(1)
    w = torch.where((still | ~ok.any(1))[:, None], even(given), w)
    value, gap = torch.where(undefined, 1.0, 1 - share), torch.where(undefined, 0.0, gap)
    says = {"no method helps": ~(p != 0).any(1), "no response varies": ~ok.any(1), "the output does not change": still}
    return finish(w, value, gap, given, torch.ones_like(value), says)


def varies(C: Tensor, mean: Tensor, ok: Tensor) -> Tensor:
    """(B, k): the methods whose response is not constant."""
    square = torch.where(ok, diagonal(C), 0.0)
    own = square > FLAT * (square + torch.where(ok, mean, 0.0) ** 2)
    return (square > 0) & own & (square > CONSTANT * square.amax(1, keepdim=True))


def _rounding(C: Tensor, w: Tensor) -> Tensor:
    """(B,): what rounding can make of ρ² where responses cancel."""
    size = (w.abs() * diagonal(C).clamp(min=0).sqrt()).sum(1) ** 2
    return 4 * w.shape[1] * EPS * size / form(C, w).clamp(min=1e-300)


def _evened(C: Tensor, w: Tensor, ok: Tensor, explained: Callable[[Tensor], Tensor]) -> Tensor:
    """(B, k): w with the most even weights for nearly the same response, if ``explained`` (B, k) → (B,) hardly falls."""
    size = torch.where(ok, diagonal(C), 1.0).clamp(min=1e-300).sqrt()
    alike = C / (size[:, :, None] * size[:, None])
    even = normalise(even_out(normalise(w * size), alike, ok) / size)
    kept = explained(even) >= explained(w) - LOSS * explained(w).abs()
    return torch.where(kept[:, None], even, w)


def _direction(C: Tensor, b: Tensor, v: Tensor, ok: Tensor) -> tuple[Tensor, Tensor]:
    """u = nnls(C, b) and an upper bound (B,) of max over c ≥ 0 of (bᵀc)²/cᵀCc with bᵀc ≥ 0 (see ``correlation``)."""
    u = nnls(with_tie_break(C, ok), b, ok)
    reached = torch.einsum("bij,bj->bi", C, u)
    noise = 1e-13 * (diagonal(C).clamp(min=0) * v[:, None]).sqrt()  # what b is known to
    factor = torch.where(b > noise, b / reached.clamp(min=1e-300), 0.0).amax(1)
    certified = (factor[:, None] * reached >= b - noise).all(1)
    return u, torch.where(certified & (b > 0).any(1), factor**2 * form(C, u), torch.where((b > 0).any(1), v, 0.0))


def _regression(C: Tensor, b: Tensor, ok: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """((C + ridge · mean C_jj · I)⁻¹ b, bᵀC⁺b): least squares over weights of either sign."""
    square = diagonal(C)
    mean = (square * ok).sum(1) / ok.sum(1).clamp(min=1)
    C = C * (ok[:, :, None] & ok[:, None])
    damped = C + torch.diag_embed(torch.where(ok, ridge * mean[:, None], 1.0))
    unit = torch.where(ok, diagonal(damped), 1.0).clamp(min=1e-300).rsqrt()

    def solve(matrix: Tensor) -> Tensor:
        """Pseudo-inverse in units of the diagonal: collinear responses are no matter of scale."""
        scaled = matrix * unit[:, :, None] * unit[:, None]
        inverse = torch.linalg.pinv(scaled, rtol=1e-12, hermitian=True)
        return unit * torch.einsum("bij,bj->bi", inverse, unit * b) * ok

    return solve(damped), (b * solve(C)).sum(1)
