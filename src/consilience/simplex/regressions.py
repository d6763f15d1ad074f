"""The criteria that compare a mixture's responses with the output: exact, by one non-negative least squares, and certified.

:func:`correlation`, about the mean, and :func:`scale_free`, about zero. A response is a_c = Σ_j c_j a_j over the draws, the
output is y; only their second moments are needed.

    moments → :class:`_Moments` (methods that can be used) → :func:`_direction` (weights and an upper bound of ρ²)
            → never below the best single method → the most even weights of the same response → value, gap, status
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from .active_set import nnls
from .solution import EPS, TINY, Solution, corner, diagonal, even, finish, form, in_double, normalise, usable
from .ties import LOSS, even_out, with_tie_break

CONSTANT = 1e-26
"""A constant response has a variance of rounding only, about (1e-16)² of the others'; and ..."""

FLAT = 1e-13
"""... one of this share of its own mean square: maps are float32, so a uniform map's responses differ by 1e-14 at most."""

KNOWN = 1e-13
"""The share of √(C_jj v) to which a covariance b_j is known: it is a sum of many products in float64."""


@dataclass(frozen=True)
class _Moments:
    """Second moments of k responses and the output, and the methods that can be used."""

    C: Tensor  # (B, k, k): of the responses; rows and columns of methods that the caller left out are 0
    b: Tensor  # (B, k): of the responses with the output; 0 where a method cannot be used
    v: Tensor  # (B,): of the output; 1 where that is 0
    mean: Tensor  # (B, k): the responses' means, by which a constant response is recognised
    given: Tensor  # (B, k) bool: methods that the caller allows, with finite numbers
    ok: Tensor  # (B, k) bool: those of them whose response varies
    still: Tensor  # (B,) bool: the output does not vary

    @staticmethod
    def of(C: Tensor, b: Tensor, v: Tensor, valid: Tensor | None, mean: Tensor | None) -> _Moments:
        """The moments as they were given, without what cannot be used."""
        given, C = usable(valid, C)
        if mean is None:
            mean = torch.zeros_like(b)
        else:
            mean = torch.where(given & mean.isfinite(), mean, 0.0)
        ok = given & varies(C, mean, given) & b.isfinite()
        still = ~(v > 0)
        return _Moments(C, torch.where(ok, b, 0.0), torch.where(still, 1.0, v), mean, given, ok, still)

    def rho(self, w: Tensor) -> Tensor:
        """(B,): the correlation of the mixtures w (B, k); 0 where the response does not vary."""
        spread = form(self.C, w)
        rho = (self.b * w).sum(1) / (spread * self.v).clamp(min=TINY).sqrt()
        varying = spread > FLAT * (spread + (self.mean * w).sum(1) ** 2)
        # Rounding can put a perfect correlation just above 1.
        return torch.where(varying, rho.clamp(-1, 1), 0.0)

    def rho_of_singles(self) -> Tensor:
        """(B, k): the correlation of each method alone; −∞ where it cannot be used."""
        size = torch.where(self.ok, diagonal(self.C) * self.v[:, None], 1.0).sqrt()
        return torch.where(self.ok, self.b / size, -torch.inf)

    def explained(self, w: Tensor) -> Tensor:
        """(B,): (bᵀw)² / (wᵀCw · v), the share of the output's moment that w (B, k), with a scale of its own, explains."""
        square = form(self.C, w) * self.v
        share = (w * self.b).sum(1) ** 2 / square.clamp(min=TINY)
        return torch.where(square > 0, share, 0.0).clamp(max=1)

    def reasons(self, helps: Tensor) -> dict[str, Tensor]:
        """Status → (B,) where it holds; ``helps`` (B,): whether any method does better than none."""
        return {
            "no method helps": ~helps,
            "no response varies": ~self.ok.any(1),
            "the output does not change": self.still,
        }


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

    ρ does not see the scale of c, so with some b_j > 0 the optimum is :func:`~consilience.simplex.nnls` (C, b), divided by its
    sum. With all b_j ≤ 0, fix |b|ᵀc = 1: then cᵀCc is to be maximal, which a convex function is at a corner, so that no mixture
    beats the best single method.

    Certificate: for any v with Cv ≥ b and any c ≥ 0, bᵀc ≤ vᵀCc ≤ √(vᵀCv)·√(cᵀCc), so ρ² ≤ vᵀCv / v_y. The solution u
    has Cu ≥ b up to the solver's error, and v is u times the least factor that makes it so; failing that, ρ² ≤ 1.

    A method whose response is constant is left out. With the responses' ``mean``, constant is what varies by :data:`FLAT` of
    its mean square or less, of a mixture too. Where nothing tells methods apart (no response varies, or the output does not),
    ρ is undefined and counts as 0, and the weights are even.

    Args:
        C: (B, k, k), covariances of the responses.
        b: (B, k), the responses' covariances with the output.
        vy: v_y (B,), the variance of the output.
        valid: (B, k) bool, methods that may be used; all by default.
        ridge: with ``signed`` only, added to C in units of the mean C_jj.
        signed: weights of either sign, (C + ridge · mean_j C_jj · I)⁻¹b scaled to Σ|w| = 1, in place of the simplex; ``gap`` is
            then to the optimum without ridge.
        mean: (B, k), the responses' means; 0 by default.

    Raises:
        InputError: a ridge for convex weights, or shapes that do not fit.

    >>> best = correlation(torch.eye(2)[None], torch.tensor([[0.6, -0.2]]), torch.ones(1))
    >>> best.weights, best.value
    (tensor([[1., 0.]], dtype=torch.float64), tensor([0.6400], dtype=torch.float64))
    """
    if ridge and not signed:
        raise InputError(f"correlation: ridge={ridge} is for signed=True; convex weights need none")
    m = _Moments.of(C, b, vy, valid, mean)
    if signed:
        helps = (m.b != 0).any(1)
        w, bound = _signed_weights(m, helps, ridge)
    else:
        helps = (m.b > 0).any(1)
        w, bound = _convex_weights(m, helps)
    rho = torch.where(m.ok.any(1), m.rho(w), 0.0)
    value = 1 - rho * rho.abs()
    gap = torch.where(helps, ((bound / m.v).clamp(max=1) - rho**2).clamp(min=0), 0.0)
    gap = torch.minimum(gap + _rounding(m.C, w), value)  # the optimum is not negative, so the value bounds the gap
    undefined = m.still | ~m.ok.any(1)
    w = torch.where(undefined[:, None], even(m.given), w)
    value = torch.where(undefined, 1.0, value)
    gap = torch.where(undefined, 0.0, gap)
    return finish(w, value, gap, m.given, torch.ones_like(value), m.reasons(helps))


def _convex_weights(m: _Moments, helps: Tensor) -> tuple[Tensor, Tensor]:
    """(weights (B, k) on the simplex, an upper bound (B,) of ρ² v): the optimum, never below the best single method."""
    u, bound = _direction(m.C, m.b, m.v, m.ok)
    single, first = m.rho_of_singles().max(1)
    w = normalise(u)
    mixed = helps & (m.rho(w) >= single)
    w = torch.where(mixed[:, None], w, corner(first, w.shape[1]))
    return _evened(m.C, w, m.ok, m.rho), bound


def _signed_weights(m: _Moments, helps: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """(weights (B, k) of either sign, Σ|w| = 1, and an upper bound (B,) of ρ² v)."""
    u, bound = _regression(m.C, m.b, m.ok, ridge)
    size_of_singles = torch.where(m.ok, m.rho_of_singles().abs(), -torch.inf)
    single, first = size_of_singles.max(1)
    negative = m.b.gather(1, first[:, None]) < 0
    toward = torch.where(negative, -1.0, 1.0) * corner(first, u.shape[1])
    w = normalise(u)
    mixed = helps
    if ridge == 0:
        # A ridge gives up some correlation on these draws on purpose: only without one is a single method better.
        mixed = mixed & (m.rho(w) >= single)
    return torch.where(mixed[:, None], w, toward), bound


@in_double
def scale_free(M: Tensor, p: Tensor, y2: Tensor, valid: Tensor | None = None) -> Solution:
    """min over the simplex and β of either sign of E(βa_c − y)² / E y² = 1 − (pᵀc)² / (cᵀMc · E y²), in [0, 1].

    The two signs of pᵀc are two :func:`~consilience.simplex.nnls` problems, (M, p) and (M, −p); the better one is the optimum,
    certified as in :func:`correlation`.

    Args:
        M: (B, k, k), E[aaᵀ], not centred.
        p: (B, k), E[a y].
        y2: (B,), E[y²].
        valid: (B, k) bool, methods that may be used; all by default.

    Raises:
        InputError: shapes that do not fit.

    Source: Yeh et al. 2019, arXiv 1901.09392, for the optimal scale β.

    >>> scale_free(torch.eye(2)[None], torch.tensor([[0.0, -0.5]]), torch.ones(1)).value
    tensor([0.7500], dtype=torch.float64)
    """
    m = _Moments.of(M, p, y2, valid, None)
    explained_by_single = torch.where(m.ok, m.b**2 / torch.where(m.ok, diagonal(m.C), 1.0), -1.0)
    single = corner(explained_by_single.argmax(1), p.shape[1])
    upward, bound_upward = _direction(m.C, m.b, m.v, m.ok)
    downward, bound_downward = _direction(m.C, -m.b, m.v, m.ok)
    candidates = torch.stack([single, normalise(upward), normalise(downward)], 1)
    shares = torch.stack([m.explained(w) for w in candidates.unbind(1)], 1)
    rows = torch.arange(len(candidates), device=candidates.device)
    w = _evened(m.C, candidates[rows, shares.argmax(1)], m.ok, m.explained)
    share = m.explained(w)
    bound = torch.maximum(bound_upward, bound_downward) / m.v
    gap = (bound.clamp(max=1) - share).clamp(min=0) + _rounding(m.C, w)
    gap = torch.minimum(gap, 1 - share)  # the optimum is not negative, so the value bounds the gap
    helps = (m.b != 0).any(1)
    undefined = m.still | ~helps
    w = torch.where((m.still | ~m.ok.any(1))[:, None], even(m.given), w)
    value = torch.where(undefined, 1.0, 1 - share)
    gap = torch.where(undefined, 0.0, gap)
    return finish(w, value, gap, m.given, torch.ones_like(value), m.reasons(helps))


def varies(C: Tensor, mean: Tensor, ok: Tensor) -> Tensor:
    """(B, k) bool: the methods whose response is not constant.

    Args:
        C: (B, k, k), covariances of the responses.
        mean: (B, k), their means.
        ok: (B, k) bool, methods that are looked at.
    """
    square = torch.where(ok, diagonal(C), 0.0)
    beside_mean = square > FLAT * (square + torch.where(ok, mean, 0.0) ** 2)
    beside_others = square > CONSTANT * square.amax(1, keepdim=True)
    return (square > 0) & beside_mean & beside_others


def _rounding(C: Tensor, w: Tensor) -> Tensor:
    """(B,): what rounding can make of ρ² at w where responses cancel."""
    size = (w.abs() * diagonal(C).clamp(min=0).sqrt()).sum(1) ** 2
    return 4 * w.shape[1] * EPS * size / form(C, w).clamp(min=TINY)


def _evened(C: Tensor, w: Tensor, ok: Tensor, explained: Callable[[Tensor], Tensor]) -> Tensor:
    """(B, k): w with the most even weights for nearly the same response, if ``explained`` (B, k) → (B,) hardly falls."""
    size = torch.where(ok, diagonal(C), 1.0).clamp(min=TINY).sqrt()
    alike = C / (size[:, :, None] * size[:, None])
    # In units in which every response has norm 1: there the weights of two methods that agree can be compared.
    spread = normalise(even_out(normalise(w * size), alike, ok) / size)
    before = explained(w)
    kept = explained(spread) >= before - LOSS * before.abs()
    return torch.where(kept[:, None], spread, w)


def _direction(C: Tensor, b: Tensor, v: Tensor, ok: Tensor) -> tuple[Tensor, Tensor]:
    """(u (B, k) = nnls(C, b), an upper bound (B,) of (bᵀc)² / cᵀCc over c ≥ 0 with bᵀc ≥ 0).

    The bound is the certificate of :func:`correlation`: the factor that makes factor · Cu ≥ b, squared, times uᵀCu.
    """
    u = nnls(with_tie_break(C, ok), b, ok)
    reached = torch.einsum("bij,bj->bi", C, u)
    noise = KNOWN * (diagonal(C).clamp(min=0) * v[:, None]).sqrt()
    factor = torch.where(b > noise, b / reached.clamp(min=TINY), 0.0).amax(1)
    certified = (factor[:, None] * reached >= b - noise).all(1)
    some = (b > 0).any(1)
    # Without a certificate ρ² ≤ 1, which is (bᵀc)² / cᵀCc ≤ v. With all b ≤ 0 the only such value is 0.
    trivial = torch.where(some, v, 0.0)
    return u, torch.where(certified & some, factor**2 * form(C, u), trivial)


def _regression(C: Tensor, b: Tensor, ok: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """(least-squares weights of either sign (B, k), (C + ridge · mean C_jj · I)⁻¹b, and bᵀC⁺b (B,), the most of ρ² v)."""
    mean = (diagonal(C) * ok).sum(1) / ok.sum(1).clamp(min=1)
    C = C * (ok[:, :, None] & ok[:, None])
    # A diagonal of 1 for methods left out keeps the matrix regular; their b is 0, so they get no weight.
    damped = C + torch.diag_embed(torch.where(ok, ridge * mean[:, None], 1.0))
    unit = torch.where(ok, diagonal(damped), 1.0).clamp(min=TINY).rsqrt()

    def solve(matrix: Tensor) -> Tensor:
        """The pseudo-inverse times b, in units of the diagonal, so that the cut does not depend on the maps' scales.

        A pseudo-inverse, since two methods that agree make the matrix singular.
        """
        scaled = matrix * unit[:, :, None] * unit[:, None]
        inverse = torch.linalg.pinv(scaled, rtol=1e-12, hermitian=True)
        return unit * torch.einsum("bij,bj->bi", inverse, unit * b) * ok

    return solve(damped), (b * solve(C)).sum(1)
