"""Criteria of explanations with their standard errors, as functions of the evidence: (evidence, mixtures) → :class:`Estimate`.

A criterion's *influence* is what each draw contributes to it, to first order: the criterion moves by the mean of the
influences of further draws. So a standard error is that of a mean, and of a difference that of the influences' difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .evidence import Evidence, Responses

FEWEST = 4
"""Draws from which a standard error is known: three masks, less what their mean and sizes explain, correlate perfectly."""


@dataclass(frozen=True)
class Estimate:
    """A criterion of M rows, and what each draw contributes to it.

    The standard error is √(mean influence² / (S − 1)), S the input's number of draws; of a difference of rows, that of the
    influences' difference. It is 0 where the draws are all that there are: then nothing is estimated.

    Masks are drawn without replacement, which this does not count on: of n of all N masks the error is too large by
    1/√(1 − n/N), never too small. That is 1.4 at most, since from half of all masks on all are drawn (docs/numbers.md).

    Args:
        value: (B, M).
        influence: (B, M, S), of mean zero; 0 for a draw that an input does not have.
        number: (B,) how many draws each input has; None: S.
        exact: (B,) bool, inputs whose draws are all that there are; None: no input.
        groups: how many of the S draws belong to each of several independent samples, one after the other; None: they are
            one sample.
    """

    value: Tensor
    influence: Tensor
    number: Tensor | None = None
    exact: Tensor | None = None
    groups: tuple[int, ...] | None = None

    @property
    def draws(self) -> Tensor:
        """(B,) int64: how many draws each input has, of all samples together."""
        if self.number is not None:
            return self.number
        return torch.full_like(self.value[:, 0], self.influence.shape[-1], dtype=torch.int64)

    @property
    def freedom(self) -> Tensor:
        """(B, M), at least 1: the degrees of freedom of the standard error.

        One less than the number of draws; of several samples, as many as Welch and Satterthwaite count: (Σ v)² / Σ v²/(n − 1),
        v the share of a sample of n draws in the squared error. A sample without influence, such as one that is exact, adds
        none.
        """
        if self.groups is None:
            number = self.draws.to(self.value)[:, None].expand_as(self.value)
            return (number - 1).clamp(min=1)
        samples = self.influence.square().split(self.groups, -1)
        shares = torch.stack([sample.sum(-1) for sample in samples], -1)
        each = self.influence.new_tensor(self.groups).sub(1).clamp(min=1)
        weighed = (shares**2 / each).sum(-1)
        # Where nothing varies, all of them do.
        found = torch.where(weighed > 0, shares.sum(-1) ** 2 / weighed.clamp(min=1e-300), each.sum())
        return found.clamp(min=1)

    @property
    def stderr(self) -> Tensor:
        """(B, M); NaN of fewer than four draws."""
        square = (self.influence**2).sum(-1)
        number = self.draws.to(square)
        few = number < FEWEST
        # √(mean influence² / (S − 1)), with no division by zero where there are too few.
        divisor = (number * (number - 1)).masked_fill(few, 1)
        error = (square / divisor[:, None]).sqrt()
        error = error.masked_fill(few[:, None], torch.nan)
        if self.exact is not None:
            error = error.masked_fill(self.exact[:, None], 0)
        return error


# -- criteria: evidence and mixtures w (B, M, R) → Estimate (B, M) -----------------------------------------------------


def average_sensitivity(evidence: Evidence, w: Tensor) -> Estimate:
    """E‖φ_w(x) − φ_w(x + ε)‖²: absolute, the paper's.

    Args:
        evidence: with neighbours of B inputs and R rows.
        w: (B, M, R), mixtures of the rows.

    Source: Decker et al. 2024 (AGG), Definition 4.1.
    """
    quadratic = evidence.quadratic
    assert quadratic is not None
    per_draw = torch.einsum("bmr,bsrt,bmt->bms", w, quadratic.draws, w)
    value = per_draw.mean(-1)
    return Estimate(value, per_draw - value[..., None], exact=quadratic.whole)


def relative_sensitivity(evidence: Evidence, w: Tensor) -> Estimate:
    """E‖φ_w(x) − φ_w(x + ε)‖² / ‖φ_w(x)‖²; NaN for the zero map.

    Args:
        evidence: with neighbours of B inputs and R rows.
        w: (B, M, R), mixtures of the rows.
    """
    assert evidence.quadratic is not None
    absolute = average_sensitivity(evidence, w)
    size = torch.einsum("bmr,brt,bmt->bm", w, evidence.quadratic.norm, w)
    size = torch.where(size > 0, size, torch.nan)
    # ‖φ_w(x)‖² is known, not estimated: it has no error of its own.
    return Estimate(absolute.value / size, absolute.influence / size[..., None], exact=absolute.exact)


def _answers(evidence: Evidence, w: Tensor) -> tuple[Responses, Tensor, Tensor]:
    """The responses, those of the mixtures a (B, S, M), and the falls y (B, S, 1)."""
    r = evidence.responses
    assert r is not None
    return r, torch.einsum("bmr,bsr->bsm", w, r.a), r.y[..., None]


def _estimate(r: Responses, value: Tensor, influence: Tensor) -> Estimate:
    """Of responses ``r``, from (B, M) and the influences (B, S, M) of all draws."""
    if r.drawn is not None:
        # Padding of inputs with fewer masks contributes nothing.
        influence = torch.where(r.drawn[..., None], influence, 0.0)
    return Estimate(value, influence.mT, r.number, r.whole)


def faithfulness_correlation(evidence: Evidence, w: Tensor) -> Estimate:
    """Pearson's ρ over masks of the attribution taken away with the fall of the score, given how much is taken away (see
    :class:`~consilience.statistics.responses.Responses`); NaN if either does not vary.

    Args:
        evidence: with masks of B inputs and R rows.
        w: (B, M, R), mixtures of the rows.
    """
    r, a, y = _answers(evidence, w)
    za = _standardised(r, a)
    zy = _standardised(r, y)
    value = r.mean(za * zy)
    return _estimate(r, value, _left_out(r, za, zy, value))


def _standardised(r: Responses, values: Tensor) -> Tensor:
    """(B, S, …) with mean 0, nothing linear in the masks' sizes, and variance 1; NaN where they do not vary."""
    centred = r.centred(values)
    variance = r.mean(centred**2)
    variance = torch.where(variance > 0, variance, torch.nan)
    return centred / variance.sqrt()[:, None]


def _left_out(r: Responses, za: Tensor, zy: Tensor, value: Tensor) -> Tensor:
    """(B, S, M): the influence of each mask on the correlation ``value`` (B, M), by leaving it out.

    To first order it is z_a z_y − ρ (z_a² + z_y²)/2, which is too small with few masks: ± t standard errors held the truth in
    .81 of trials at 8 masks and .89 at 20. Left out, it is .89 and .93, and .95 for differences (docs/numbers.md, Trials).
    """
    number = r.number.to(za)[:, None, None]
    # Leaving a draw out moves the mean too: of n draws a squared deviation z² takes n/(n − 1) · z² out of the sum of squares.
    grown = number / (number - 1)
    first_order = za * zy - value[:, None] * (za**2 + zy**2) / 2
    room = (number - grown * za**2) * (number - grown * zy**2)
    without = (number * value[:, None] - grown * za * zy) / room.sqrt()
    # The jackknife's pseudo-values: n − 1 times the change.
    influence = (number - 1) * (value[:, None] - without)
    # Where all of the variance is one mask's, nothing is left without it.
    influence = torch.where(room > 1e-9 * number**2, influence, first_order)
    if r.drawn is not None:
        influence = torch.where(r.drawn[..., None], influence, 0.0)
    return influence - r.mean(influence)[:, None]


def infidelity(evidence: Evidence, w: Tensor) -> Estimate:
    """min over β ≥ 0 of E(βa − y)², over the same of a uniform map (β of either sign), on the draws that are judged.

    1: as good as saying that every feature matters alike. With masks of one size that is Var y. φ and −φ are told apart: of a
    map that points the wrong way β is 0, and the value is E y² over the same, which is 1 or more. Yeh et al. 2019 let β have
    either sign, so that theirs are the same.

    Args:
        evidence: with masks of B inputs and R rows.
        w: (B, M, R), mixtures of the rows.
    """
    return _infidelity(evidence, w, positive=True)


def infidelity_of_either_sign(evidence: Evidence, w: Tensor) -> Estimate:
    """:func:`infidelity` with β of either sign, as Yeh et al. 2019 and the code of AGG have it: the same for φ and −φ.

    Args:
        evidence: with masks of B inputs and R rows.
        w: (B, M, R), mixtures of the rows.
    """
    return _infidelity(evidence, w, positive=False)


def _infidelity(evidence: Evidence, w: Tensor, positive: bool) -> Estimate:
    """Both of the above; ``positive``: β ≥ 0."""
    r, a, y = _answers(evidence, w)
    square = r.mean(a**2)
    cross = r.mean(a * y)
    if positive:
        cross = cross.clamp(min=0)
    beta = cross / torch.where(square > 0, square, torch.nan)
    error = (beta[:, None] * a - y) ** 2
    # What masks take away of a uniform map: their size, or the same of all.
    uniform = torch.ones_like(y)
    if r.size is not None:
        uniform = r.size[..., None]
    level = r.mean(uniform * y) / r.mean(uniform**2).clamp(min=1e-300)  # the uniform map's own β
    plain = (level[:, None] * uniform - y) ** 2
    mse = r.mean(error)
    unit = r.mean(plain)
    unit = torch.where(unit > 0, unit, torch.nan)
    # d(m/u) = dm/u − (m/u²) du. Both β minimise their errors, so to first order their own noise does not count.
    influence = (error - mse[:, None]) / unit[:, None] - (mse / unit**2)[:, None] * (plain - unit[:, None])
    return _estimate(r, mse / unit, influence)


def contrast(evidence: Evidence, w: Tensor) -> Estimate:
    """E‖φ_w,t(x) − φ_w,t'(x)‖² / ‖φ_w,t(x)‖² over other outputs t': how much the map changes with the question.

    Args:
        evidence: with the contrast of B inputs and R rows.
        w: (B, M, R), mixtures of the rows.
    """
    changed = average_sensitivity(Evidence(evidence["contrast"]), w)
    size = torch.einsum("bmr,brt,bmt->bm", w, evidence["contrast"].norm, w)
    size = torch.where(size > 0, size, torch.nan)
    return Estimate(changed.value / size, changed.influence / size[..., None], exact=changed.exact)


def noise_over_signal(evidence: Evidence, w: Tensor) -> Estimate:
    """E‖φ_w(x) − φ_w(x + ε)‖² / E‖φ_w,t(x) − φ_w,t'(x)‖²: change under noise beside change with the question.

    Args:
        evidence: with neighbours and the contrast of B inputs and R rows.
        w: (B, M, R), mixtures of the rows.
    """
    noise = average_sensitivity(evidence, w)
    signal = average_sensitivity(Evidence(evidence["contrast"]), w)
    divisor = torch.where(signal.value > 0, signal.value, torch.nan)
    value = noise.value / divisor
    # First order: d(n/s) = dn/s − (n/s) ds/s.
    of_noise = noise.influence / divisor[..., None]
    of_signal = -signal.influence * (value / divisor)[..., None]
    # Where every other output was asked about, the signal is known.
    known = evidence["contrast"].exact
    of_signal = of_signal.masked_fill(known[:, None, None], 0)
    # The two kinds of draws are independent: their variances add. Each influence is scaled, so that one sum of squares over
    # all draws gives that.
    total = of_noise.shape[-1] + of_signal.shape[-1]
    scaled = [_scaled(of_noise, total), _scaled(of_signal, total)]
    influence = torch.cat(scaled, -1)
    # Other outputs do not stand in for neighbours: of few neighbours no error is known.
    if of_noise.shape[-1] < FEWEST:
        influence = torch.full_like(influence, torch.nan)
    return Estimate(value, influence, groups=(of_noise.shape[-1], of_signal.shape[-1]))


def _scaled(influence: Tensor, total: int) -> Tensor:
    """Influences of S draws so that among ``total`` draws they give the standard error that they give alone; 0 of one draw."""
    count = influence.shape[-1]
    if count < 2:
        return torch.zeros_like(influence)
    return influence * (total * (total - 1) / (count * (count - 1))) ** 0.5


CRITERIA: dict[str, Callable[[Evidence, Tensor], Estimate]] = {
    "relative_sensitivity": relative_sensitivity,
    "average_sensitivity": average_sensitivity,
    "faithfulness_correlation": faithfulness_correlation,
    "infidelity": infidelity,
    "contrast": contrast,
    "noise_over_signal": noise_over_signal,
}


PARTS = {
    "relative_sensitivity": ("quadratic",),
    "average_sensitivity": ("quadratic",),
    "faithfulness_correlation": ("responses",),
    "infidelity": ("responses",),
    "contrast": ("contrast",),
    "noise_over_signal": ("quadratic", "contrast"),
}
"""Criterion → the parts of the evidence that it is a function of. Where one is missing, the criterion has no value."""

HIGHER_IS_BETTER = {"faithfulness_correlation", "contrast"}
"""Of the criteria; all others are better when lower."""
