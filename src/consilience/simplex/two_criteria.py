"""The two criteria of the trade-off as smooth functions of the weights: relative sensitivity r and correlation ρ.

Values, slopes and curvatures, and the two problems that are solved over them: the least r whose ρ reaches a floor
(:class:`MostRobust`), and the least weighted sum of both (:class:`WeightedSum`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .ratios import CANCELLED
from .regressions import FLAT
from .solution import EPS, convert, form, normalise

VARIES = 1e-12
"""A response that varies by less than this share of its parts' squared sum is what rounding left of them."""


@dataclass(frozen=True)
class Terms:
    """What r and ρ are made of, at weights u (B, M, k). Quotients are by 1 where there is nothing to divide by."""

    r: Tensor  # (B, M): ∞ where the maps cancel
    rho: Tensor  # (B, M): 0 where the response does not vary
    images: Tensor  # (B, M, 3, k): Gu, Hu, Cu
    size: Tensor  # (B, M): uᵀHu
    spread: Tensor  # (B, M): uᵀCu
    scale: Tensor  # (B, M): √(uᵀCu · v)


@dataclass(frozen=True)
class Criteria:
    """r = uᵀGu / uᵀHu and ρ = bᵀu / √(uᵀCu · v) of mixtures u in units where every map has norm 1.

    B inputs, M mixtures of each, k methods:

    Args:
        stacked: (B, k, 3k), the matrices G, H and C side by side, so that one product gives all three images of u.
        columns: (B, k, 3), √C_jj, b and the responses' means.
        vy: (B,), the variance v of the output.
        unit: (B, k), 1/‖φ_j‖, which brings weights back to the maps as they are; 0 for methods that are left out.
    """

    stacked: Tensor
    columns: Tensor
    vy: Tensor
    unit: Tensor

    @property
    def valid(self) -> Tensor:
        """(B, k): methods that may get weight."""
        return self.unit > 0

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(B, M, k) → r and ρ, (B, M)."""
        terms = self.terms(u)
        return terms.r, terms.rho

    def terms(self, u: Tensor) -> Terms:
        images = (u @ self.stacked).unflatten(-1, (3, -1))
        above, size, spread = (images @ u[..., None])[..., 0].unbind(-1)
        fine = size > CANCELLED * u.sum(-1) ** 2
        size = torch.where(fine, size, 1.0)
        r = torch.where(fine, above.clamp(min=0) / size, torch.inf)
        parts, answer, mean = (u @ self.columns).unbind(-1)
        # The response of a uniform map varies by rounding only, beside its own mean square.
        varies = (spread > VARIES * parts**2) & (spread > FLAT * (spread + mean**2)) & (self.vy[:, None] > 0)
        spread = torch.where(varies, spread, 1.0)
        scale = torch.where(varies, spread * self.vy[:, None], 1.0).sqrt()
        rho = torch.where(varies, answer / scale, 0.0)
        return Terms(r, rho, images, size, spread, scale)

    def slopes(self, t: Terms) -> tuple[Tensor, Tensor]:
        """(B, M, k) each: ∇r = 2 (Gu − r Hu) / uᵀHu and ∇ρ = b/√(uᵀCu v) − ρ Cu/uᵀCu."""
        Gu, Hu, Cu = t.images.unbind(-2)
        of_r = 2 * (Gu - t.r[..., None] * Hu) / t.size[..., None]
        of_rho = self.columns[:, None, :, 1] / t.scale[..., None] - (t.rho / t.spread)[..., None] * Cu
        return of_r, of_rho

    def slope(
        self, u: Tensor, function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """A function of r and ρ (B, M), and its gradient (B, M, k). ``function`` (r, ρ) gives its value and its derivatives
        by r and by ρ."""
        t = self.terms(u)
        value, by_r, by_rho = function(t.r, t.rho)
        half = 2 * by_r / t.size
        # ∇ = half · (Gu − r Hu) + by_ρ · ∇ρ, as one product with the three images.
        shares = torch.stack([half, -t.r * half, -by_rho * t.rho / t.spread], -1)
        slopes = (shares[..., None, :] @ t.images)[..., 0, :]
        return value, slopes + (by_rho / t.scale)[..., None] * self.columns[:, None, :, 1]

    def curvatures(self, t: Terms) -> tuple[Tensor, Tensor]:
        """(B, M, k, k) each: the Hessians of r and of ρ."""
        k = self.stacked.shape[1]
        G, H, C = (part[:, None] for part in self.stacked.split(k, 2))
        _, Hu, Cu = t.images.unbind(-2)
        of_r, of_rho = self.slopes(t)
        r, size, spread, rho = (x[..., None, None] for x in (t.r, t.size, t.spread, t.rho))
        bend_r = 2 * (G - r * H - _product(Hu, of_r)) / size
        bend_rho = (rho * (_outer(Cu, Cu) / spread - C) - _product(Cu, of_rho)) / spread
        return bend_r, bend_rho

    def inputs(self, i: Tensor) -> Criteria:
        """Only some of the B inputs, or one several times."""
        return convert(self, lambda x: x[i])

    def weights(self, u: Tensor) -> Tensor:
        """u (B, k) or (B, M, k) as weights of the maps as they are, Σ|w| = 1."""
        return normalise(u * (self.unit if u.ndim == 2 else self.unit[:, None]))

    def scaled(self, w: Tensor) -> Tensor:
        """The reverse of :meth:`weights`."""
        unit = self.unit if w.ndim == 2 else self.unit[:, None]
        return normalise(torch.where(unit > 0, w / torch.where(unit > 0, unit, 1.0), 0.0))


def _outer(x: Tensor, y: Tensor) -> Tensor:
    return x[..., :, None] * y[..., None, :]


def _product(x: Tensor, y: Tensor) -> Tensor:
    """xyᵀ + yxᵀ, of a quotient's Hessian."""
    outer = _outer(x, y)
    return outer + outer.mT


def loss(r: Tensor, rho: Tensor, rate: Tensor) -> Tensor:
    """J = (1 − ρ|ρ|) + rate · r."""
    return (1 - rho * rho.abs()) + rate * r


def loss_with_derivatives(r: Tensor, rho: Tensor, rate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """J, ∂J/∂r and ∂J/∂ρ."""
    return loss(r, rho, rate), rate, -2 * rho.abs()


@dataclass(frozen=True)
class MostRobust:
    """P problems for :func:`~consilience.simplex.newton.minimise`: r, where ρ − ``floor`` (P,) is not negative."""

    criteria: Criteria  # of P inputs, one mixture of each
    floor: Tensor

    def at(self, w: Tensor) -> _RobustnessAbove:
        return _RobustnessAbove(self.criteria, self.floor, self.criteria.terms(w[:, None]))

    def inward(self, w: Tensor, inside: Tensor) -> Tensor:
        """(P, k): the first point with ρ ≥ floor on the way from w (P, k) to ``inside`` (P, k), which has it.

        (bᵀu)² − floor² v uᵀCu is quadratic along the way. For a floor ≥ 0 what has that ρ is a convex cone, so the way enters
        it once; for a negative one the answer is ``inside``.
        """
        k = w.shape[1]
        C, b = self.criteria.stacked[..., 2 * k :], self.criteria.columns[..., 1]
        way = inside - w
        bound = self.floor**2 * self.criteria.vy
        b_way, b_here = (b * way).sum(1), (b * w).sum(1)
        second = b_way**2 - bound * form(C, way)
        first = 2 * (b_way * b_here - bound * (way * (C @ w[..., None])[..., 0]).sum(1))
        zeroth = b_here**2 - bound * form(C, w)
        root = (first**2 - 4 * second * zeroth).clamp(min=0).sqrt()
        # The stable form of the quadratic formula; of its two roots the one at which the polynomial rises.
        share = torch.where(first >= 0, -2 * zeroth / (first + root), (root - first) / (2 * second))
        share = torch.where(self.floor >= 0, share, 1.0).nan_to_num(1.0, 1.0, 1.0).clamp(0, 1)
        return w + (share * (1 + EPS))[:, None].clamp(max=1) * way

    def rows(self, index: Tensor) -> MostRobust:
        return MostRobust(self.criteria.inputs(index), self.floor[index])


@dataclass(frozen=True)
class _RobustnessAbove:
    """r and the margin ρ − floor at one mixture of each input."""

    criteria: Criteria
    floor: Tensor
    terms: Terms

    @property
    def value(self) -> Tensor:
        return self.terms.r[:, 0]

    @property
    def margin(self) -> Tensor:
        return self.terms.rho[:, 0] - self.floor

    def slopes(self) -> tuple[Tensor, Tensor]:
        of_r, of_rho = self.criteria.slopes(self.terms)
        return of_r[:, 0], of_rho[:, 0]

    def curvature(self, price: Tensor) -> Tensor:
        of_r, of_rho = self.criteria.curvatures(self.terms)
        return of_r[:, 0] - price[:, None, None] * of_rho[:, 0]


@dataclass(frozen=True)
class WeightedSum:
    """P problems: J = (1 − ρ|ρ|) + ``rate`` (P,) · r, without a margin."""

    criteria: Criteria  # of P inputs, one mixture of each
    rate: Tensor

    def at(self, w: Tensor) -> _Loss:
        return _Loss(self.criteria, self.rate, self.criteria.terms(w[:, None]))

    def rows(self, index: Tensor) -> WeightedSum:
        return WeightedSum(self.criteria.inputs(index), self.rate[index])


@dataclass(frozen=True)
class _Loss:
    """J at one mixture of each input."""

    criteria: Criteria
    rate: Tensor
    terms: Terms

    @property
    def value(self) -> Tensor:
        return loss(self.terms.r[:, 0], self.terms.rho[:, 0], self.rate)

    @property
    def margin(self) -> Tensor:
        return torch.full_like(self.rate, torch.inf)

    def slopes(self) -> tuple[Tensor, Tensor]:
        of_r, of_rho = self.criteria.slopes(self.terms)
        slope = self.rate[:, None] * of_r[:, 0] - 2 * self.terms.rho.abs() * of_rho[:, 0]
        return slope, torch.zeros_like(slope)

    def curvature(self, price: Tensor) -> Tensor:
        _, slope = self.criteria.slopes(self.terms)
        of_r, of_rho = self.criteria.curvatures(self.terms)
        rho = self.terms.rho[..., None]
        of_square = 2 * (rho.abs() * of_rho[:, 0] + rho.sign() * _outer(slope, slope)[:, 0])
        return self.rate[:, None, None] * of_r[:, 0] - of_square
