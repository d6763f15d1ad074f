"""Non-negative least squares in Gram form, many problems at once.

:func:`nnls` → :func:`_scaled` (to a unit diagonal) → :class:`_Search`, one step at a time, until every problem is solved.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .solution import EPS, diagonal, form, in_double, usable

RIDGE = 1e-14
"""Added to a unit diagonal for each unknown, so that a singular block can be factored; one refinement takes it out again."""

LARGE_RIDGE = 1e-6
"""The same for a matrix that is indefinite by more than rounding of float64, e.g. a Gram matrix that was made in float32."""


@in_double
def nnls(Q: Tensor, p: Tensor, valid: Tensor | None = None, start: Tensor | None = None) -> Tensor:
    """u (B, k) = argmin over u ≥ 0 of ½uᵀQu − pᵀu, float64.

    Primal active set on the Gram matrix: the entry with the steepest descent becomes passive (free to move), the passive
    block is solved, and a step that would leave the cone stops at its face and drops the entries that got there. All
    problems take one step together and leave when they are solved.

    That the value is bounded below is not checked: p must lie in the range of Q.

    Args:
        Q: (B, k, k), positive semi-definite.
        p: (B, k).
        valid: (B, k) bool, entries that may be positive; all by default. Entries with Q_jj = 0 stay 0 as well.
        start: (B, k) ≥ 0, where to begin; 0 by default.

    Raises:
        InputError: shapes that do not fit.

    Source: Lawson and Hanson 1974, *Solving Least Squares Problems*, ch. 23.

    >>> nnls(torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]), torch.tensor([[4.0, -1.0]]))
    tensor([[2., 0.]], dtype=torch.float64)
    """
    ok, Q = usable(valid, Q)
    ok = ok & (diagonal(Q) > 0) & p.isfinite()
    Q, p, scale = _scaled(Q, p, ok)
    if start is None:
        u = torch.zeros_like(p)
    else:
        u = torch.where(ok, start.clamp(min=0) / scale, 0.0)

    answer = u.clone()
    live = torch.arange(len(p), device=p.device)  # the problems that are not solved yet
    search = _Search.begin(Q, p, ok, u)
    # The objective falls strictly, so no passive set comes twice: only rounding can reach this limit.
    for _ in range(10 * p.shape[1] + 20):
        slope = search.slope()
        candidates = search.candidates(slope)
        done = search.settled & ~candidates.any(1)
        if done.any():
            answer[live[done]] = search.u[done]
            going = ~done
            if not going.any():
                return _unscaled(answer, scale)
            search = search.rows(going)
            live = live[going]
            slope = slope[going]
            candidates = candidates[going]
        search = search.step(slope, candidates)
    answer[live] = search.u  # feasible, and the best point seen
    return _unscaled(answer, scale)


def _scaled(Q: Tensor, p: Tensor, ok: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(Q with a unit diagonal, p with a largest entry of 1, and the scale (B, k) that brings the solution back).

    With u = scale · u', the problem in u' is the same one in other units. Explainers whose maps differ in size by many orders
    of magnitude are then solved as precisely as others.
    """
    unit = torch.where(ok, diagonal(Q), 1.0).rsqrt() * ok
    Q = Q * unit[:, :, None] * unit[:, None]
    p = torch.where(ok, p, 0.0) * unit
    size = p.abs().amax(1, keepdim=True)
    size = torch.where(size > 0, size, 1.0)
    return Q, p / size, unit * size


def _unscaled(u: Tensor, scale: Tensor) -> Tensor:
    """The solution of the problem as it was given."""
    return u * scale + 0.0  # adding 0 turns −0 into 0


@dataclass(frozen=True)
class _Search:
    """N problems that are not solved yet, and where each of them stands."""

    Q: Tensor  # (N, k, k), with a unit diagonal
    p: Tensor  # (N, k)
    ok: Tensor  # (N, k) bool: entries that may be positive
    u: Tensor  # (N, k): the best feasible point so far
    value: Tensor  # (N,): ½uᵀQu − pᵀu there
    passive: Tensor  # (N, k) bool: entries that are free to move; the others are held at 0
    blocked: Tensor  # (N, k) bool: entries that brought nothing when they entered
    entered: Tensor  # (N, k) bool: the entry that became passive last
    settled: Tensor  # (N,) bool: the passive block is solved, so that another entry may enter

    @staticmethod
    def begin(Q: Tensor, p: Tensor, ok: Tensor, u: Tensor) -> _Search:
        """Before the first step from ``u`` (N, k) ≥ 0."""
        passive = u > 0
        nothing = torch.zeros_like(ok)
        # A start with positive entries has its passive block solved first.
        settled = ~passive.any(1)
        return _Search(Q, p, ok, u, _objective(Q, p, u), passive, nothing, nothing, settled)

    def rows(self, which: Tensor) -> _Search:
        """Only some of the problems."""
        return _Search(*(getattr(self, each.name)[which] for each in fields(self)))

    def slope(self) -> Tensor:
        """(N, k): how fast the value falls as each entry grows."""
        return self.p - (self.Q @ self.u[:, :, None])[..., 0]

    def candidates(self, slope: Tensor) -> Tensor:
        """(N, k) bool: the entries that would lower the value if they became positive."""
        # |Q_ij| ≤ 1 after scaling, so a slope of p − Qu below this may be made of rounding alone.
        rounding = 4 * slope.shape[1] * EPS * (self.p.abs() + self.u.sum(1, keepdim=True))
        return self.ok & ~self.passive & ~self.blocked & (slope > rounding)

    def step(self, slope: Tensor, candidates: Tensor) -> _Search:
        """One step of each problem: toward the solution of its passive block, up to the first face of the cone."""
        k = slope.shape[1]
        steepest = slope.masked_fill(~candidates, -torch.inf).argmax(1)
        entering = torch.nn.functional.one_hot(steepest, k).bool()
        entered = torch.where(self.settled[:, None], entering, self.entered)
        passive = self.passive | (entered & self.settled[:, None])

        target = _solve(self.Q, self.p, passive)
        leaves = passive & ~(target > 0)
        whole = ~leaves.any(1)  # the whole step stays within the cone
        # The share of the way to the target at which each entry meets 0. One that is at 0 already gives 0/0: no way to go.
        way = torch.where(leaves, self.u - target, 1.0)
        reach = torch.where(leaves, self.u / way, torch.inf).nan_to_num(0.0, torch.inf)
        length = reach.amin(1, keepdim=True).clamp(max=1)
        drop = leaves & (reach <= length)
        partial = self.u + length * (target - self.u)
        moved = torch.where(whole[:, None], target, partial).clamp(min=0) * (passive & ~drop)
        value = _objective(self.Q, self.p, moved)

        # Never uphill; and an entry that brought nothing is not tried again before another one did. So there are no cycles.
        worse = ~(value <= self.value + EPS * self.value.abs())
        better = value < self.value
        fell_back = worse | whole | (drop & entered).any(1)
        futile = (~better & fell_back)[:, None]
        return _Search(
            Q=self.Q,
            p=self.p,
            ok=self.ok,
            u=torch.where(worse[:, None], self.u, moved),
            value=torch.where(worse, self.value, value),
            passive=torch.where(worse[:, None], self.u > 0, passive & ~drop),
            blocked=(self.blocked & ~better[:, None]) | (entered & futile),
            entered=entered,
            settled=worse | whole,
        )


def _objective(Q: Tensor, p: Tensor, u: Tensor) -> Tensor:
    """(N,): ½uᵀQu − pᵀu."""
    return form(Q, u) / 2 - (p * u).sum(1)


def _solve(Q: Tensor, p: Tensor, passive: Tensor) -> Tensor:
    """(N, k): s with Q_PP s_P = p_P on the passive entries P, and zero elsewhere."""
    k = p.shape[1]
    eye = torch.eye(k, dtype=p.dtype, device=p.device)
    # Passive sets differ in size from problem to problem: identity rows in place of the others keep one batch of (k, k).
    block = torch.where(passive[:, :, None] & passive[:, None], Q, eye)
    factor, failed = torch.linalg.cholesky_ex(block + RIDGE * k * eye)
    if failed.any():
        again = torch.linalg.cholesky_ex(block + LARGE_RIDGE * eye)[0]
        factor = torch.where((failed > 0)[:, None, None], again, factor)
    right = (p * passive)[:, :, None]
    s = torch.cholesky_solve(right, factor)
    # One step of iterative refinement, with the residual of the matrix without the ridge.
    s = s + torch.cholesky_solve(right - block @ s, factor)
    return s[..., 0] * passive
