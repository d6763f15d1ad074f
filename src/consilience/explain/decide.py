"""When fresh draws have decided: draws of one kind in rounds, until each input's comparisons are settled.

A comparison is a paired difference d of a criterion: the consensus − the best single method, or − a uniform map. At each look
it has an interval d ± t · stderr, of a level so small that the intervals of *all* looks hold together with the asked confidence
(:mod:`~consilience.statistics.looks`). It is decided once zero lies outside, or the whole interval is so near zero that the
difference does not matter.

Error control: where the two are equal, a comparison is called "better" or "worse" with probability 1 − confidence at most,
however many looks there were. That is for each statement by itself, not for all statements about all inputs together. Stopping
early because nothing will be decided (:meth:`Looks.hopeless`) can only lower that error. It costs power, which docs/numbers.md
shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..statistics.criteria import Estimate
from ..statistics.evidence import Evidence, alike, joined
from ..statistics.looks import Spending, levels, pocock
from ..statistics.paired import student_quantile

DECIDED = "decided"
EXACT = "these are all there are"
HOPELESS = "more of those allowed would hardly show a difference"
ALLOWED = "all that are allowed"
ASKED = "as asked"
SPENT = "there are no more"
PRECISION = "nothing rests on them"
"""Why no more was drawn."""


@dataclass(frozen=True)
class Looks:
    """When one kind of draws is looked at, and what counts as decided.

    Args:
        at: how many draws there are at each look, growing.
        alpha: the probability with which a comparison of equals may be called different.
        optimism: of the guess what further draws will show: the difference so far, and so many of its standard errors more.
            0 where draws are dear: what is more likely than not to stay undecided is given up.
        spending: how alpha is shared among the looks.
    """

    at: tuple[int, ...]
    alpha: float
    optimism: float = 0.0
    spending: Spending = pocock

    @cached_property
    def levels(self) -> tuple[float, ...]:
        """The level of the interval of each look."""
        return levels(self.at, self.alpha, self.spending)

    def reach(self, estimate: Estimate, number: int) -> Tensor:
        """(B, M): half the width of the interval at look ``number``.

        Args:
            estimate: the differences, with what each draw contributes.
            number: of the look, from 0.
        """
        level = torch.full_like(estimate.value[:, 0], self.levels[number])
        return estimate.stderr * students(estimate, level)

    def settled(self, comparison: Comparison, number: int) -> list[str | None]:
        """Of each of B comparisons, why no more draws are needed; None: they are.

        Args:
            comparison: of B inputs.
            number: of the look, from 0.
        """
        estimate = comparison.estimate
        size = estimate.value[:, 0].abs()
        reach = self.reach(estimate, number)[:, 0]
        # What has no value gets none by more draws; and what does not vary, such as two equal maps, is known.
        known = ~size.isfinite() | (reach == 0)
        apart = size > reach
        near = size + reach <= comparison.margin
        decided = (known | apart | near).tolist()
        exact = [False] * len(size) if estimate.exact is None else estimate.exact.tolist()
        spent = (draws_of(estimate) < self.at[number]).tolist()
        hopeless = self.hopeless(estimate, number).tolist()
        reasons: list[str | None] = []
        for i in range(len(size)):
            if exact[i]:
                reasons.append(EXACT)
            elif decided[i]:
                reasons.append(DECIDED)
            elif spent[i]:
                reasons.append(SPENT)
            elif hopeless[i]:
                reasons.append(HOPELESS)
            else:
                reasons.append(None)
        return reasons

    def hopeless(self, estimate: Estimate, number: int) -> Tensor:
        """(B,) bool: comparisons that the last look would not decide, if further draws were like those that are there.

        Args:
            estimate: (B, 1), the differences.
            number: of the look, from 0.
        """
        own, other = variances(estimate)
        at_the_end = own * self.at[number] / self.at[-1]
        level = torch.full_like(own[:, 0], self.levels[-1])
        count = torch.full_like(draws_of(estimate), self.at[-1])
        quantiles = _quantiles(level, at_the_end, count, other, beside(estimate))
        needed = (at_the_end + other).sqrt() * quantiles
        hoped = estimate.value.abs() + self.optimism * (own + other).sqrt()
        return (hoped < needed)[:, 0]


@dataclass(frozen=True)
class Comparison:
    """The consensus beside a rival, by one criterion, for B inputs.

    Args:
        estimate: (B, 1), the difference, with what each draw contributes.
        margin: (B,), below which a difference does not matter.
    """

    estimate: Estimate
    margin: Tensor


def beside(estimate: Estimate) -> int:
    """How many of an estimate's draws are of another kind, of which there is a fixed number.

    Args:
        estimate: whose first group of draws is the one that is made in rounds.
    """
    return 0 if estimate.groups is None else sum(estimate.groups[1:])


def draws_of(estimate: Estimate) -> Tensor:
    """(B,) int64: how many draws each input's estimate rests on, of the kind that is made in rounds. Of a padded batch, short
    inputs have fewer masks.

    Args:
        estimate: (B, M).
    """
    if estimate.number is not None:
        return estimate.number.to(torch.int64)
    count = estimate.influence.shape[-1] - beside(estimate)
    return torch.full_like(estimate.value[:, 0], count, dtype=torch.int64)


def variances(estimate: Estimate) -> tuple[Tensor, Tensor]:
    """(B, M) each: the variance of an estimate that comes of the draws made in rounds, and of those of another kind.

    Args:
        estimate: (B, M).
    """
    square = estimate.stderr**2
    count = estimate.influence.shape[-1] - beside(estimate)
    power = estimate.influence**2
    share = power[..., :count].sum(-1) / power.sum(-1).clamp(min=1e-300)
    return square * share, square * (1 - share)


def students(estimate: Estimate, level: Tensor) -> Tensor:
    """(B, M): how many standard errors an interval reaches: Student's 1 − level/2 quantile for each input's number of draws.

    Args:
        estimate: (B, M).
        level: (B,), of two-sided intervals.
    """
    own, other = variances(estimate)
    return _quantiles(level, own, draws_of(estimate), other, beside(estimate))


def _quantiles(level: Tensor, own: Tensor, count: Tensor, other: Tensor, others: int) -> Tensor:
    """(B, M): Student's quantiles of levels (B,), for a sum of two variances of ``count`` (B,) and of ``others`` draws.

    Each kind's quantile, weighted with its share of the variance. Welch's degrees of freedom are too many where one kind has
    two draws, as a contrast has: if these happen to agree, their share is taken for nothing. Intervals at 20 neighbours then
    miss in 12 to 15 %, with these in 6 to 8 %, and those of several looks in 3 to 5 % (docs/numbers.md).

    Source: Cochran and Cox 1950, *Experimental Designs*, §4.14.
    """
    share = (other / (own + other).clamp(min=1e-300)).nan_to_num(0)
    of_own = own.new_tensor([_quantile(*each) for each in zip(level.tolist(), count.tolist(), strict=True)])
    of_other = own.new_tensor([_quantile(each, others) for each in level.tolist()])
    return (1 - share) * of_own[:, None] + share * of_other[:, None]


def _quantile(level: float, count: int) -> float:
    """Of ``count`` draws; as if there were two where one leaves no degree of freedom."""
    return student_quantile(1 - level / 2, max(1, int(count) - 1))


@dataclass(frozen=True)
class Stream:
    """The fresh draws of one kind of one input.

    Args:
        evidence: what they say, B = 1.
        count: how many there are.
        look: the number of the last look, from 0.
        why: why there are no more.
    """

    evidence: Evidence
    count: int
    look: int
    why: str


def until_decided(
    draw: Callable[[Sequence[int], int], list[Evidence]],
    inputs: Sequence[int],
    looks: Looks,
    compare: Callable[[Sequence[int], Evidence], Sequence[Comparison]],
) -> list[Stream]:
    """Draws of one kind in rounds, until all comparisons of an input are settled. Each input decides for itself.

    Looks are at fixed numbers of draws, and every round ends at one. So how many draws an input gets is a function of its own
    draws alone, whatever else is in the batch.

    Args:
        draw: (inputs, n) → the first n draws of each of them.
        inputs: who is judged.
        looks: when to look, and what is settled.
        compare: (inputs, their draws as one batch) → the comparisons that rest on this kind; none: one round is enough.
    """
    done: dict[int, Stream] = {}
    waiting = list(inputs)
    for number, look in enumerate(looks.at):
        evidence = draw(waiting, look)
        reasons: dict[int, str | None] = {}
        for places in alike(evidence):
            index = [waiting[place] for place in places]
            batch = joined([evidence[place] for place in places])
            reasons |= dict(zip(index, _reasons(compare(index, batch), looks, number, len(index)), strict=True))
        for place, i in enumerate(waiting):
            why = reasons[i]
            if why is not None:
                done[i] = Stream(evidence[place], look, number, why)
        waiting = [i for i in waiting if i not in done]
        if not waiting:
            break
    return [done[i] for i in inputs]


def _reasons(comparisons: Sequence[Comparison], looks: Looks, number: int, count: int) -> list[str | None]:
    """Of ``count`` inputs, why each needs no more draws; None: it does."""
    each = [looks.settled(comparison, number) for comparison in comparisons]
    reasons: list[str | None] = []
    for i in range(count):
        own = [settled[i] for settled in each]
        why: str | None = None
        if not own:
            why = PRECISION
        elif None not in own:
            # Of several, the one that claims least: "decided" is said only if all are.
            why = next((reason for reason in own if reason != DECIDED), DECIDED)
        elif number == len(looks.at) - 1:
            why = ALLOWED
        if why is not None and len(looks.at) == 1:
            why = ASKED if why != EXACT else EXACT
        reasons.append(why)
    return reasons
