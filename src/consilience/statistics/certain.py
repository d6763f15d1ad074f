"""Which of many estimates differ from zero, all at once."""

from __future__ import annotations

import torch
from torch import Tensor


def certain_signs(
    values: Tensor, error: Tensor, level: float = 0.95, freedom: Tensor | None = None, there: Tensor | None = None
) -> Tensor:
    """(B, U) int8: 1 where a value is above zero, −1 where it is below, 0 where that is not known.

    All signs of one input are right together with probability ``level``: Holm's step-down over its U values. An error of 0
    means that nothing is estimated, one of NaN that nothing is known.

    Args:
        values: (B, U), estimates that are normal about the truth.
        error: (B, U), their standard errors.
        level: the confidence.
        freedom: (B,), degrees of freedom of the errors, at least 1; None: the errors are known.
        there: (B, U) bool, the values that an input has, among which it is corrected; None: all.

    Source: Holm 1979, *A simple sequentially rejective multiple test procedure*. Student's t as a normal deviate: Wallace 1959,
    *Bounds on normal approximations to Student's and the chi-square distributions*.
    """
    distance = values.abs() / torch.where(error > 0, error, torch.inf)
    if freedom is not None:
        # (8ν + 1)/(8ν + 3) · √(ν log(1 + t²/ν)): its 5 % tail is that of t within 3 % from ν = 3 on.
        nu = freedom.to(distance)[:, None].clamp(min=1)
        distance = (8 * nu + 1) / (8 * nu + 3) * (nu * torch.log1p(distance**2 / nu)).sqrt()
    # Two-sided, P(|Z| > z).
    chance = torch.erfc(distance / 2**0.5)
    known = (error == 0) & (values != 0)
    chance = torch.where(known, 0.0, chance.nan_to_num(1.0))
    if there is not None:
        chance = torch.where(there, chance, torch.inf)
    ordered, order = chance.sort(1)
    count = torch.full_like(order[:, :1], values.shape[1])
    if there is not None:
        count = there.sum(1, keepdim=True)
    left = (count - torch.arange(values.shape[1], device=values.device)).clamp(min=1)
    # The smallest against α/U, the next against α/(U − 1), …, up to the first that fails.
    passed = (ordered <= (1 - level) / left).to(torch.int8).cumprod(1, dtype=torch.int8)
    found = torch.zeros_like(passed).scatter_(1, order, passed)
    return found * values.nan_to_num(0).sign().to(torch.int8)
