"""Non-negative least squares in Gram form, many problems at once."""

from __future__ import annotations

import torch
from torch import Tensor

from .solution import EPS, diagonal, form, in_double, usable


@in_double
def nnls(Q: Tensor, p: Tensor, valid: Tensor | None = None, start: Tensor | None = None) -> Tensor:
    """u (B, k) = argmin over u ≥ 0 of ½uᵀQu − pᵀu, for positive semi-definite Q (B, k, k) and p (B, k).

    Primal active set (Lawson and Hanson 1974, ch. 23) on the Gram matrix: the entry with the steepest descent becomes
    passive, the passive block is solved, and a step that would leave the cone stops at its face and drops what got
    there. All problems take one step together and leave when done. Entries outside ``valid`` (B, k), or with Q_jj = 0,
    stay 0.
    ``start`` (B, k) ≥ 0 is a warm start. Bounded below is not checked: p must lie in the range of Q.

    >>> nnls(torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]), torch.tensor([[4.0, -1.0]]))
    tensor([[2., 0.]], dtype=torch.float64)
    """
    ok, Q = usable(valid, Q)
    square = diagonal(Q)
    ok = ok & (square > 0) & p.isfinite()
    # Jacobi scaling: badly scaled explainers are the same problem in other units.
    unit = torch.where(ok, square, 1.0).rsqrt() * ok
    Q = Q * unit[:, :, None] * unit[:, None]
    p = torch.where(ok, p, 0.0) * unit
    size = p.abs().amax(1, keepdim=True)
    size = torch.where(size > 0, size, 1.0)
    p = p / size
    scale = unit * size
    u = torch.zeros_like(p) if start is None else torch.where(ok, start.clamp(min=0) / scale, 0.0)

    k = p.shape[1]
    answer, live = u.clone(), torch.arange(len(p), device=p.device)
    passive, blocked = u > 0, torch.zeros_like(ok)
    entered, fresh, f = torch.zeros_like(ok), ~passive.any(1), form(Q, u) / 2 - (p * u).sum(1)
    for _ in range(10 * k + 20):  # the objective falls strictly, so this cap is met by rounding only
        slope = p - (Q @ u[:, :, None])[..., 0]
        # |Q_ij| ≤ 1 after scaling: this is what rounding alone can make of a slope.
        candidates = ok & ~passive & ~blocked & (slope > 4 * k * EPS * (p.abs() + u.sum(1, keepdim=True)))
        done = fresh & ~candidates.any(1)
        if done.any():
            answer[live[done]], stay = u[done], ~done
            if not stay.any():
                return answer * scale + 0.0  # no −0
            Q, p, ok, u, passive, blocked, entered, fresh, f, live, slope, candidates = (
                x[stay] for x in (Q, p, ok, u, passive, blocked, entered, fresh, f, live, slope, candidates)
            )
        best = torch.nn.functional.one_hot(slope.masked_fill(~candidates, -torch.inf).argmax(1), k).bool()
        entered = torch.where(fresh[:, None], best, entered)
        passive = passive | (entered & fresh[:, None])

        target = _solve(Q, p, passive)
        out = passive & ~(target > 0)
        full = ~out.any(1)
        reach = torch.where(out, u / torch.where(out, u - target, 1.0), torch.inf).nan_to_num(0.0, torch.inf)
        length = reach.amin(1, keepdim=True).clamp(max=1)
        drop = out & (reach <= length)
        moved = torch.where(full[:, None], target, u + length * (target - u)).clamp(min=0) * (passive & ~drop)
        f_moved = form(Q, moved) / 2 - (p * moved).sum(1)

        # Never uphill, and an entry that brought nothing is not tried again before something else did: no cycles.
        worse, better = ~(f_moved <= f + EPS * f.abs()), f_moved < f
        futile = (~better & (worse | full | (drop & entered).any(1)))[:, None]
        u = torch.where(worse[:, None], u, moved)
        f = torch.where(worse, f, f_moved)
        passive = torch.where(worse[:, None], u > 0, passive & ~drop)
        blocked = (blocked & ~better[:, None]) | (entered & futile)
        fresh = worse | full
    answer[live] = u  # feasible, and the best seen
    return answer * scale + 0.0  # no −0


def _solve(Q: Tensor, p: Tensor, passive: Tensor) -> Tensor:
    """Q_PP s_P = p_P, zero elsewhere: identity rows stand for the others, a tiny ridge for a singular block."""
    eye = torch.eye(p.shape[1], dtype=p.dtype, device=p.device)
    block = torch.where(passive[:, :, None] & passive[:, None], Q, eye)
    factor, failed = torch.linalg.cholesky_ex(block + 1e-14 * p.shape[1] * eye)
    if failed.any():  # indefinite by more than rounding of float64, e.g. a Gram matrix made in float32
        again = torch.linalg.cholesky_ex(block + 1e-6 * eye)[0]
        factor = torch.where((failed > 0)[:, None, None], again, factor)
    right = (p * passive)[:, :, None]
    s = torch.cholesky_solve(right, factor)
    s = s + torch.cholesky_solve(right - block @ s, factor)  # takes the ridge out again
    return s[..., 0] * passive
