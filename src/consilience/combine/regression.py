"""Regression of the falls of the score on masks, around a mixture of methods: the mathematics of the posterior.

Of one input there are S masks of U units, M (S, U), the k methods' answers A (S, k), and the falls of the score y (S,):

    y = A c + M d + b₀ + b₁ · size + ε,     c ≥ 0,     d ~ N(0, τ²K),     ε ~ N(0, σ²).

The methods say what the map is like (A c); the masks say what the methods miss (M d). Both ends are known estimates: without
d it is the most faithful mixture of methods, without c a ridge regression on masks, as LIME is. Given K and λ = σ²/τ²
everything is generalised least squares, in closed form. Several K and λ are tried. Each is judged by the residuals of all S
fits that leave one mask out, which follow from the one fit; no model is evaluated. The answer is the mean over all of them,
weighted by how well they predict what was left out. A mean depends smoothly on the data, so rounding cannot flip a choice.

Source: universal kriging (Cressie 1993, *Statistics for Spatial Data*, §3.4) and its leave-one-out residuals (Dubrule 1983,
*Cross validation of kriging in a unique neighborhood*). BayLIME (Zhao et al. 2021, arXiv 2012.03058) takes a prior mean that is
given by hand; BayesLIME and BayesSHAP (Slack et al. 2021, arXiv 2008.05030) have intervals and no prior mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from ..simplex import FLAT
from ..simplex.active_set import nnls
from ..statistics.responses import Responses
from .kernel_fits import LENGTHS, RANK, Fit, Kernel, inverse_of_used

TEMPER = 0.25
"""A fit's weight is (mean squared left-out residual)^(−S · TEMPER), where a likelihood would have ½. Fits of neighbouring λ are
alike, so that a likelihood would trust differences too much; what it changes is small (docs/posterior.md)."""

UNDETERMINED = 1e100
"""Added to the loss of a fit that passes through all masks: it counts only where every fit does."""

CHUNK = 2**24
"""Numbers of M in one batch of inputs."""


@dataclass(frozen=True)
class Regression:
    """What masks and methods say together about B inputs. NaN where an input has no finite falls.

    Args:
        coefficients: (B, k) ≥ 0, c.
        residual: (B, U), what the masks add to the mixture: d, and b₁ spread evenly over the units.
        values: (B, U + V), Σ_j c_j φ_j + residual of each unit, and its sums over V regions, see :func:`regions`.
        error: (B, U + V), their standard deviations; 0 where nothing is estimated; NaN where there are no more masks than
            coefficients, or none moves the score otherwise than another.
        predicted: (B, S), what each fall would be for the other masks, centred; 0 for a mask that an input does not have. Where
            all masks that there are were seen, what the map says of them.
        falls: (B, S), the falls, centred: without their mean and what is linear in the masks' sizes.
        prior: (B,), the share of the weight of fits that use the methods.
    """

    coefficients: Tensor
    residual: Tensor
    values: Tensor
    error: Tensor
    predicted: Tensor
    falls: Tensor
    prior: Tensor

    @property
    def explained(self) -> Tensor:
        """(B,): the share of the falls' variance that is predicted for masks that are left out; below 0 if nothing is. Of all
        masks that there are, the share that the map says."""
        missed = ((self.falls - self.predicted) ** 2).sum(1)
        total = (self.falls**2).sum(1)
        return 1 - missed / torch.where(total > 0, total, torch.nan)


def regress(responses: Responses, valid: Tensor, prior: bool = True, residual: bool = True) -> Regression:
    """The regression of B inputs.

    Args:
        responses: of the k methods to S masks, which are kept in it.
        valid: (B, k) bool, methods that may be used.
        prior: with the methods; False: ridge regression alone, c = 0.
        residual: with d; False: the most faithful mixture alone, d = 0.
    """
    masks = responses.masks
    assert masks is not None
    inputs, count, units = masks.taken.shape
    step = max(1, CHUNK // (count * units))
    parts = []
    for start in range(0, inputs, step):
        index = list(range(start, min(start + step, inputs)))
        parts.append(Problem(responses.inputs(index), valid[index]).solve(prior, residual))
    columns = {each.name: [getattr(part, each.name) for part in parts] for each in fields(Regression)}
    # Of inputs with fewer masks the chunk may be narrower than the batch.
    for name in ("predicted", "falls"):
        columns[name] = [torch.nn.functional.pad(part, (0, count - part.shape[1])) for part in columns[name]]
    return Regression(**{name: torch.cat(values) for name, values in columns.items()})


def regions(grid: Sequence[int], block: int, like: Tensor) -> Tensor:
    """(V, U): which units are in each region, blocks of ``block`` units along each axis of a grid; none without a grid.

    One unit of a picture is small, and its error large beside it. Of a region more is certain.

    Args:
        grid: its axes.
        block: their side; 1: no regions, since the units are these.
        like: whose dtype and device it has, with U columns.
    """
    if block == 1 or not grid:
        return like.new_zeros(0, like.shape[-1])
    number = torch.zeros(tuple(grid), dtype=torch.int64, device=like.device)
    for axis, size in enumerate(grid):
        place = torch.arange(size, device=like.device) // block
        shape = [1] * len(grid)
        shape[axis] = size
        number = number * -(-size // block) + place.view(shape)
    return torch.nn.functional.one_hot(number.flatten()).mT.to(like)


class Problem:
    """The regression of one batch of inputs, centred given the masks' sizes once.

    Args:
        responses: of the k methods; masks are kept in it.
        valid: (B, k) bool, methods that may be used.
    """

    def __init__(self, responses: Responses, valid: Tensor):
        masks = responses.masks
        assert masks is not None
        self.responses = responses
        self.finite = responses.y.isfinite().all(1)
        self.y = responses.y.nan_to_num(0, 0, 0)
        self.number = responses.number.to(self.y)
        # An input without finite falls is solved as zeros and is NaN in the end.
        self.falls = responses.centred(self.y)
        ok = valid & responses.finite()
        self.answers = responses.centred(torch.where(ok[:, None], responses.a, 0.0))
        # A map that is the same for every unit says no more than the size does.
        self.valid = ok & (self.answers != 0).any(1)
        self.maps = torch.where(self.valid[..., None], masks.maps, 0.0)
        self.taken = masks.taken.to(self.y)
        self.masks = responses.centred(self.taken)
        self.shares = masks.shares
        self.grid = masks.grid
        self.regions = regions(masks.grid, masks.block, self.shares)
        # Of the units and of the regions.
        self.all_shares = self.with_regions(self.shares)
        self.all_maps = self.with_regions(self.maps.mT)
        self.exact = responses.exact

    def solve(self, prior: bool, residual: bool) -> Regression:
        """The mean of all fits, weighted by what they predict of masks that are left out.

        Args:
            prior: with the methods.
            residual: with d.
        """
        fits = []
        if residual:
            lengths = LENGTHS if self.grid else (0.0,)
            for length in lengths:
                fits += Kernel(self, length).fits(prior)
        if prior:
            fits.append(self._mixture())
        weights = self._weights(fits)
        return self._mean(fits, weights)

    def with_regions(self, values: Tensor) -> Tensor:
        """(B, U, …) → (B, U + V, …): and the sums over the regions behind.

        Args:
            values: (B, U, …), one for each unit.
        """
        return torch.cat([values, torch.einsum("vu,bu...->bv...", self.regions, values)], 1)

    # -- the fits --------------------------------------------------------------------------------------------------------

    def _mixture(self) -> Fit:
        """The fit without d: the most faithful mixture."""
        square = self.answers.mT @ self.answers
        cross = torch.einsum("bsk,bs->bk", self.answers, self.falls)
        c = nnls(square, cross, self.valid)
        used = c > 0
        inverse = inverse_of_used(square, used)
        missed = self.falls - torch.einsum("bsk,bk->bs", self.answers, c)
        # A left-out residual is the residual over 1 − its leverage: of the intercept and the size, and of the methods used.
        leverage = self.leverage + torch.einsum("bsk,bkl,bsl->bs", self.answers, inverse, self.answers)
        left_out = self.left_out(missed, 1 - leverage, torch.full_like(self.number, RANK))
        freedom = self.freedom(used)
        variance = (missed**2).sum(1) / freedom.clamp(min=1)
        error = variance[:, None] * torch.einsum("buk,bkl,bul->bu", self.levelled, inverse, self.levelled)
        nothing = torch.zeros_like(self.shares)
        spread = error + self.level_variance(variance)
        return Fit(c, nothing, left_out, spread, self.determined(freedom), prior=True, estimates=False)

    def left_out(self, missed: Tensor, weight: Tensor, floor: Tensor) -> Tensor:
        """(B, S): each fall less what a fit to the other masks predicts of it.

        Args:
            missed: (B, S), P y, with P what a fit leaves of V⁻¹.
            weight: (B, S), the diagonal of P.
            floor: (B,), below which a weight is rounding. Such a mask alone decides a coefficient, so that the others predict
                nothing of it: all of its fall is missed.
        """
        told = weight > floor[:, None]
        return torch.where(told, missed / weight.clamp(min=1e-300), self.falls)

    def determined(self, freedom: Tensor) -> Tensor:
        """(B,) bool: whether there are more masks than coefficients, or all masks that there are.

        Args:
            freedom: (B,), masks less coefficients.
        """
        return (freedom >= 1) | self.exact

    @cached_property
    def leverage(self) -> Tensor:
        """(B, S): of each mask, in a regression on a constant and the size."""
        there = self.there
        share = there / self.number.clamp(min=1)[:, None]
        size = self.sizes
        spread = (size**2).sum(1, keepdim=True)
        return share + size**2 / torch.where(spread > 0, spread, torch.inf)

    @cached_property
    def there(self) -> Tensor:
        """(B, S): 1 for masks that an input has, else 0."""
        drawn = self.responses.drawn
        return torch.ones_like(self.y) if drawn is None else drawn.to(self.y)

    @cached_property
    def sizes(self) -> Tensor:
        """(B, S): of the masks, without their mean; 0 where all are of one size."""
        if self.responses.size is None:
            return torch.zeros_like(self.y)
        return self.responses.sizes()

    @cached_property
    def varied(self) -> Tensor:
        """(B,) bool: inputs with masks of more than one size."""
        return (self.sizes != 0).any(1)

    @cached_property
    def away(self) -> Tensor:
        """(B,): the share of a uniform map that a mask takes away on average."""
        return self.responses.mean(torch.einsum("bsu,bu->bs", self.taken, self.shares))

    def levels(self, values: Tensor) -> Tensor:
        """(B, S, …) → (B, …): the level of values, per share of a uniform map that is taken away: how they grow with the size.

        Where all masks are of one size that is not told, and it is their mean by the size. What is only rounding is 0.

        Args:
            values: of each mask.
        """
        axes = [1] * (values.ndim - 2)
        size = self.sizes
        spread = (size**2).sum(1).view(-1, *axes)
        slope = torch.einsum("bs,bs...->b...", size, values) / torch.where(spread > 0, spread, torch.inf)
        total = torch.einsum("bs,bs...->b...", self.there, values**2)
        slope = torch.where(slope**2 * spread > FLAT * total, slope, 0.0)
        away = self.away.view(-1, *axes)
        alike = self.responses.mean(values) / torch.where(away > 0, away, torch.inf)
        return torch.where(self.varied.view(-1, *axes), slope, alike)

    @cached_property
    def levelled(self) -> Tensor:
        """(B, U + V, k): what c_j adds to each unit and region, its share of the level b₁ included."""
        levels = self.levels(torch.where(self.valid[:, None], self.responses.a, 0.0))
        return self.all_maps - self.all_shares[..., None] * levels[:, None]

    def level_variance(self, variance: Tensor) -> Tensor:
        """(B, U + V): what the noise alone makes of the level b₁.

        Args:
            variance: (B,), σ².
        """
        # Of a slope; or, where all masks are of one size, of a mean.
        spread = torch.where(self.varied, (self.sizes**2).sum(1), self.number * self.away**2)
        return self.all_shares**2 * (variance / torch.where(spread > 0, spread, torch.inf))[:, None]

    def freedom(self, used: Tensor) -> Tensor:
        """(B,): masks less what was fitted: a constant, the size if it varies, the methods that are ``used`` (B, k)."""
        return self.number - 1 - self.varied.to(self.number) - used.sum(1)

    # -- the mean of the fits --------------------------------------------------------------------------------------------

    def _weights(self, fits: Sequence[Fit]) -> Tensor:
        """(B, fits): how much each fit counts."""
        left_out = torch.stack([fit.left_out for fit in fits], 1)
        total = (self.falls**2).sum(1, keepdim=True)
        total = torch.where(total > 0, total, 1.0)
        # Where a fit misses nothing, that is 0 up to rounding; all such fits are the same map.
        loss = (left_out**2).sum(2) / total + FLAT
        # Where all masks there are were seen the answer is least squares, and the mixture alone is no candidate.
        estimated = torch.tensor([fit.estimates for fit in fits], device=loss.device)
        if bool(estimated.any()):
            loss = torch.where(self.exact[:, None] & ~estimated, torch.inf, loss)
        # A fit with as many coefficients as masks passes through all of them, whatever they are.
        determined = torch.stack([fit.determined for fit in fits], 1)
        loss = torch.where(determined, loss, loss + UNDETERMINED)
        likelihood = -TEMPER * self.number[:, None] * loss.log()
        ridge = torch.tensor([fit.estimates and not fit.prior for fit in fits], device=loss.device)
        candidates = [torch.softmax(likelihood, 1)]
        if bool(ridge.any()):
            candidates.append(torch.softmax(likelihood.masked_fill(~ridge, -torch.inf), 1))
        candidates.append(torch.nn.functional.one_hot(loss.argmin(1), len(fits)).to(loss))
        # The mean of all fits is nearly always better than the best of them, and than ridge regression. Where it is not, that
        # is what is returned: no end of the family is ever better on masks that are left out.
        weights = torch.stack(candidates, 1)
        losses = (torch.einsum("bcf,bfs->bcs", weights, left_out) ** 2).sum(2) / total + FLAT
        least = losses.amin(1, keepdim=True)
        first = (losses <= least * (1 + 1e-9)).int().argmax(1)
        return weights[torch.arange(len(weights), device=weights.device), first]

    def _mean(self, fits: Sequence[Fit], weights: Tensor) -> Regression:
        def averaged(values: Sequence[Tensor]) -> Tensor:
            return torch.einsum("bf,fb...->b...", weights, torch.stack(list(values)))

        c = averaged([fit.coefficients for fit in fits])
        d = averaged([fit.residual for fit in fits])
        maps = [
            torch.einsum("bpk,bk->bp", self.all_maps, fit.coefficients) + self.with_regions(fit.residual)
            for fit in fits
        ]
        mean = averaged(maps)
        # The variance of a mean of estimates: their own, and how far they are apart.
        variance = averaged([fit.variance for fit in fits]) + averaged([(each - mean) ** 2 for each in maps])
        left_out = averaged([fit.left_out for fit in fits])
        # The level: what the falls grow with the size beyond what c and d say.
        rest = self.y - torch.einsum("bsk,bk->bs", torch.where(self.valid[:, None], self.responses.a, 0.0), c)
        rest = rest - torch.einsum("bsu,bu->bs", self.taken, d)
        level = self.levels(rest)
        exact = self.exact[:, None]
        # Where all masks there are were seen none is left out, and what counts is what the map misses of them.
        fitted = torch.einsum("bsk,bk->bs", self.answers, c) + torch.einsum("bsu,bu->bs", self.masks, d)
        missed = torch.where(exact, self.falls - fitted, left_out)
        # Nothing tells how wrong a fit is that passes through all masks, nor how large noise is if no mask is unlike another.
        passing = averaged([(~fit.determined).to(c) for fit in fits]) > 0
        untold = (passing | (self.falls == 0).all(1))[:, None] & ~exact
        error = torch.where(exact, 0.0, variance.clamp(min=0).sqrt()).masked_fill(untold, torch.nan)
        lost = torch.where(self.finite, 0.0, torch.nan).to(d)
        there = self.there
        prior = averaged([torch.full_like(self.number, float(fit.prior)) for fit in fits])
        return Regression(
            coefficients=c + lost[:, None],
            residual=d + level[:, None] * self.shares + lost[:, None],
            values=mean + level[:, None] * self.all_shares + lost[:, None],
            error=error + lost[:, None],
            predicted=(self.falls - missed) * there + lost[:, None],
            falls=self.falls * there,
            prior=prior + lost,
        )


def share_of_methods(regression: Regression, responses: Responses) -> Tensor:
    """(B,): how much of the answer the methods give: Cov(A c, φ's answer) / Var(φ's answer) over the masks.

    Args:
        regression: of the inputs.
        responses: what it was made of.
    """
    masks = responses.masks
    assert masks is not None
    answers = torch.where(regression.coefficients[:, None] > 0, responses.a, 0.0)
    mixed = responses.centred(torch.einsum("bsk,bk->bs", answers, regression.coefficients))
    added = responses.centred(torch.einsum("bsu,bu->bs", masks.taken.to(responses.y), regression.residual))
    total = mixed + added
    size = (total**2).sum(1)
    return (mixed * total).sum(1) / torch.where(size > 0, size, torch.nan)
