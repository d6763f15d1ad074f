"""A local first-order minimiser on the simplex for any smooth function, many problems at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def project(v: Tensor, valid: Tensor | None = None) -> Tensor:
    """The point of the simplex nearest to v (…, k), with zeros outside ``valid``.

    w = max(v − θ, 0), θ from the sorted entries (Held, Wolfe and Crowder 1974; Duchi et al. 2008).

    >>> project(torch.tensor([2.0, 0.0, 1.5]))
    tensor([0.7500, 0.0000, 0.2500])
    """
    v = v if valid is None else v.masked_fill(~valid, -torch.inf)
    ordered = v.sort(-1, descending=True).values
    v, ordered = v - ordered[..., :1], ordered - ordered[..., :1]
    count = torch.arange(1, v.shape[-1] + 1, dtype=v.dtype, device=v.device)
    level = (ordered.cumsum(-1) - 1) / count
    used = (ordered > level).sum(-1, keepdim=True).clamp(min=1)
    return (v - level.gather(-1, used - 1)).clamp(min=0)


def descend(
    objective: Callable[[Tensor], Tensor], starts: Tensor, iterations: int = 200, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(weights (P, k), values (P,)): the local minimum of ``objective``, (P, k) → (P,), reached from each row of
    ``starts``. Row i of the objective may depend on row i of w only; it is differentiated by autograd. See
    :func:`descend_with_slope`.
    """

    def evaluate(w: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            w = w.detach().requires_grad_()
            f = objective(w)
            (g,) = torch.autograd.grad(f.sum(), w)
        return f.detach(), g

    return descend_with_slope(evaluate, starts.detach(), iterations, valid)


def descend_with_slope(
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]], starts: Tensor, iterations: int, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(weights (…, k), values (…)): the local minimum reached from each of ``starts`` (…, k).

    ``evaluate``: w → f (…) and its gradient (…, k). Projected gradient, w ← project(w − t∇f), with a Barzilai–Borwein step
    per problem, cut by four until the function falls enough (Armijo): monotone, so never above the start. Where the function
    is not finite the point is refused; a start that is not finite stays as it is. Entries outside ``valid`` (…, k) stay 0:
    an objective that ignores them cannot keep weight from drifting there.
    """
    w = starts
    f, g = evaluate(w)
    g = g.nan_to_num(0.0, 0.0, 0.0)
    t = 0.25 / _width(g)
    settled = ~f.isfinite()
    for _ in range(iterations):
        move = torch.where(settled[..., None], 0.0, project(w - t[..., None] * g, valid) - w)
        settled = settled | (move.abs().amax(-1) < 1e-12)
        if settled.all():
            break
        slope = (g * move).sum(-1)
        f_new, g_new = evaluate(w + move)
        g_new = g_new.nan_to_num(0.0, 0.0, 0.0)
        accept = (f_new <= f + 1e-4 * slope) & ~settled
        settled = settled | (accept & (f - f_new <= 1e-14 * f.abs()) & (slope > -1e-12 * f.abs()))
        bend = (move * (g_new - g)).sum(-1)
        longest = 10 / _width(g_new)
        barzilai = torch.where(bend > 0, (move**2).sum(-1) / bend.clamp(min=1e-300), longest)
        t = torch.where(accept, torch.minimum(barzilai, longest), t / 4)
        w = torch.where(accept[..., None], w + move, w)
        f, g = torch.where(accept, f_new, f), torch.where(accept[..., None], g_new, g)
    return w, f


def _width(slope: Tensor) -> Tensor:
    """(…): the range of a slope's entries: on the simplex only their differences move weights."""
    return (slope.amax(-1) - slope.amin(-1)).clamp(min=1e-30)
