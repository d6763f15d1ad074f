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
    """What r and ρ are made of, at weights u (B, M, k). Quotients are by 1 where there is nothing to divide by.

    Args:
        r: (B, M), the relative sensitivity; ∞ where the maps cancel.
        rho: (B, M), the correlation; 0 where the response does not vary.
        images: (B, M, 3, k), Gu, Hu and Cu.
        size: (B, M), uᵀHu.
        spread: (B, M), uᵀCu.
        scale: (B, M), √(uᵀCu · v).
    """

    r: Tensor
    rho: Tensor
    images: Tensor
    size: Tensor
    spread: Tensor
    scale: Tensor


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
        """r and ρ, (B, M) each, of ``u`` (B, M, k)."""
        terms = self.terms(u)
        return terms.r, terms.rho

    def terms(self, u: Tensor) -> Terms:
        """r, ρ and what they are made of, at ``u`` (B, M, k)."""
        images = (u @ self.stacked).unflatten(-1, (3, -1))
        above, size, spread = (images @ u[..., None])[..., 0].unbind(-1)
        fine = size > CANCELLED * u.sum(-1) ** 2
        size = torch.where(fine, size, 1.0)
        r = torch.where(fine, above.clamp(min=0) / size, torch.inf)
        parts, answer, mean = (u @ self.columns).unbind(-1)
        # A response that varies by rounding only has no ρ: one whose parts cancel, and one of a uniform map, which is
        # constant beside its own mean square.
        beside_parts = spread > VARIES * parts**2
        beside_mean = spread > FLAT * (spread + mean**2)
        varies = beside_parts & beside_mean & (self.vy[:, None] > 0)
        spread = torch.where(varies, spread, 1.0)
        scale = torch.where(varies, spread * self.vy[:, None], 1.0).sqrt()
        rho = torch.where(varies, answer / scale, 0.0)
        return Terms(r, rho, images, size, spread, scale)

    def slopes(self, t: Terms) -> tuple[Tensor, Tensor]:
        """(B, M, k) each, at the terms ``t``: ∇r = 2 (Gu − r Hu) / uᵀHu and ∇ρ = b/√(uᵀCu v) − ρ Cu/uᵀCu."""
        Gu, Hu, Cu = t.images.unbind(-2)
        of_r = 2 * (Gu - t.r[..., None] * Hu) / t.size[..., None]
        of_rho = self.columns[:, None, :, 1] / t.scale[..., None] - (t.rho / t.spread)[..., None] * Cu
        return of_r, of_rho

    def slope(
        self, u: Tensor, function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """A function of r and ρ (B, M), and its gradient (B, M, k).

        Args:
            u: (B, M, k).
            function: (r, ρ) → its value and its derivatives by r and by ρ, (B, M) each.
        """
        t = self.terms(u)
        value, by_r, by_rho = function(t.r, t.rho)
        # by_r · ∇r + by_ρ · ∇ρ, written as one product with the three images and a multiple of b: the scan spends most of
        # its time here.
        of_Gu = 2 * by_r / t.size
        of_Hu = -t.r * of_Gu
        of_Cu = -by_rho * t.rho / t.spread
        of_images = (torch.stack([of_Gu, of_Hu, of_Cu], -1)[..., None, :] @ t.images)[..., 0, :]
        of_b = (by_rho / t.scale)[..., None] * self.columns[:, None, :, 1]
        return value, of_images + of_b

    def curvatures(self, t: Terms) -> tuple[Tensor, Tensor]:
        """(B, M, k, k) each: the Hessians of r and of ρ at the terms ``t``.

        Of a quotient n/s: ∇²(n/s) = (∇²n − (n/s) ∇²s − ∇s ∇(n/s)ᵀ − ∇(n/s) ∇sᵀ) / s.
        """
        k = self.stacked.shape[1]
        G, H, C = (part[:, None] for part in self.stacked.split(k, 2))
        _, Hu, Cu = t.images.unbind(-2)
        of_r, of_rho = self.slopes(t)
        r, size, spread, rho = (x[..., None, None] for x in (t.r, t.size, t.spread, t.rho))
        bend_r = 2 * (G - r * H - _product(Hu, of_r)) / size
        # The same for ρ, whose divisor is the root of a quadratic form: that root is not linear in u either.
        bend_rho = (rho * (_outer(Cu, Cu) / spread - C) - _product(Cu, of_rho)) / spread
        return bend_r, bend_rho

    def inputs(self, i: Tensor) -> Criteria:
        """Only those of the B inputs that ``i``, int64 numbers, names; one may come several times."""
        return convert(self, lambda x: x[i])

    def weights(self, u: Tensor) -> Tensor:
        """``u`` (B, k) or (B, M, k) as weights of the maps as they are, Σ|w| = 1."""
        return normalise(u * self._unit_like(u))

    def scaled(self, w: Tensor) -> Tensor:
        """The reverse of :meth:`weights`: ``w`` (B, k) or (B, M, k) as mixtures of maps of norm 1."""
        unit = self._unit_like(w)
        return normalise(torch.where(unit > 0, w / torch.where(unit > 0, unit, 1.0), 0.0))

    def _unit_like(self, w: Tensor) -> Tensor:
        """``unit`` with an axis for mixtures if ``w`` has one."""
        return self.unit if w.ndim == 2 else self.unit[:, None]


def _outer(x: Tensor, y: Tensor) -> Tensor:
    """xyᵀ (…, k, k)."""
    return x[..., :, None] * y[..., None, :]


def _product(x: Tensor, y: Tensor) -> Tensor:
    """xyᵀ + yxᵀ, of a quotient's Hessian."""
    outer = _outer(x, y)
    return outer + outer.mT


def loss(r: Tensor, rho: Tensor, rate: Tensor) -> Tensor:
    """J = (1 − ρ|ρ|) + rate · r, in the shape to which the arguments broadcast.

    Args:
        r: the relative sensitivity.
        rho: ρ, the correlation.
        rate: μ / r₀.
    """
    return (1 - rho * rho.abs()) + rate * r


def loss_with_derivatives(r: Tensor, rho: Tensor, rate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """J, ∂J/∂r and ∂J/∂ρ.

    Args:
        r: as for :func:`loss`.
        rho: as for :func:`loss`.
        rate: as for :func:`loss`.
    """
    return loss(r, rho, rate), rate, -2 * rho.abs()


@dataclass(frozen=True)
class MostRobust:
    """P problems for :func:`~consilience.simplex.newton.minimise`: r, where ρ − ``floor`` is not negative.

    Args:
        criteria: of P inputs, one mixture of each.
        floor: (P,), the least ρ.
    """

    criteria: Criteria
    floor: Tensor

    def at(self, w: Tensor) -> _RobustnessAbove:
        """r and the margin at ``w`` (P, k)."""
        return _RobustnessAbove(self.criteria, self.floor, self.criteria.terms(w[:, None]))

    def inward(self, w: Tensor, inside: Tensor) -> Tensor:
        """(P, k): the first point with ρ ≥ floor on the way from w to a point that has it.

        (bᵀu)² − floor² v uᵀCu is quadratic along the way. For a floor ≥ 0 what has that ρ is a convex cone, so the way enters
        it once; for a negative one the answer is ``inside``.

        Args:
            w: (P, k), where the way begins.
            inside: (P, k), where it ends, with ρ ≥ floor.
        """
        k = w.shape[1]
        C = self.criteria.stacked[..., 2 * k :]
        b = self.criteria.columns[..., 1]
        way = inside - w
        bound = self.floor**2 * self.criteria.vy
        b_way = (b * way).sum(1)
        b_here = (b * w).sum(1)
        second = b_way**2 - bound * form(C, way)
        first = 2 * (b_way * b_here - bound * (way * (C @ w[..., None])[..., 0]).sum(1))
        zeroth = b_here**2 - bound * form(C, w)
        root = (first**2 - 4 * second * zeroth).clamp(min=0).sqrt()
        # Of the two roots the one at which the polynomial rises, (root − first) / 2·second; for first ≥ 0 in the form that
        # does not subtract two numbers that are nearly equal.
        share = torch.where(first >= 0, -2 * zeroth / (first + root), (root - first) / (2 * second))
        # 0/0, where the whole way has this very ρ, leads to ``inside``.
        share = torch.where(self.floor >= 0, share, 1.0).nan_to_num(1.0, 1.0, 1.0).clamp(0, 1)
        # A rounding further, so that the point is not just outside.
        return w + (share * (1 + EPS))[:, None].clamp(max=1) * way

    def rows(self, index: Tensor) -> MostRobust:
        """Only those of the P problems that ``index``, int64 numbers, names."""
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
    """P problems: J = (1 − ρ|ρ|) + rate · r, without a margin.

    Args:
        criteria: of P inputs, one mixture of each.
        rate: (P,), μ / r₀.
    """

    criteria: Criteria
    rate: Tensor

    def at(self, w: Tensor) -> _Loss:
        """J at ``w`` (P, k)."""
        return _Loss(self.criteria, self.rate, self.criteria.terms(w[:, None]))

    def rows(self, index: Tensor) -> WeightedSum:
        """Only those of the P problems that ``index``, int64 numbers, names."""
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
        # ∇(ρ|ρ|) = 2 |ρ| ∇ρ.
        slope = self.rate[:, None] * of_r[:, 0] - 2 * self.terms.rho.abs() * of_rho[:, 0]
        return slope, torch.zeros_like(slope)

    def curvature(self, price: Tensor) -> Tensor:
        _, slope = self.criteria.slopes(self.terms)
        of_r, of_rho = self.criteria.curvatures(self.terms)
        rho = self.terms.rho[..., None]
        # ∇²(ρ|ρ|) = 2 |ρ| ∇²ρ + 2 sign(ρ) ∇ρ ∇ρᵀ.
        of_square = 2 * (rho.abs() * of_rho[:, 0] + rho.sign() * _outer(slope, slope)[:, 0])
        return self.rate[:, None, None] * of_r[:, 0] - of_square
