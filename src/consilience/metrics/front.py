"""The front between two metrics: the mixtures that cannot be better by one of them without being worse by the other."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import simplex
from ..errors import InputError
from ..settings import Settings, setting
from ..simplex import Solution
from ..simplex.ties import EQUAL
from ..statistics.criteria import FEWEST, faithfulness_correlation
from ..statistics.evidence import Evidence
from ..statistics.tensors import corners
from .base import Metric
from .objective import Objective
from .sensitivity import AverageSensitivity

LENIENT = 1e-6
"""By so much a mixture's correlation may be below the best single method's."""

ANY = -1.0
"""The correlation that every mixture has at least."""

FEW = "most robust; so few masks decide nothing: every map correlates with them by 1 or −1"
"""The status where an input has fewer than four masks."""


@dataclass(frozen=True)
class Front(Settings):
    """Robustness against faithfulness: the most robust mixture that is at least as faithful as the best single method.

    The front is scanned by J(w) = (1 − ρ|ρ|) + μ · relative sensitivity over a grid of μ.

    Args:
        robust: ``AverageSensitivity(relative=True)``, of any neighbourhood.
        faithful: ``Infidelity(scaling="correlation")``, of any masks.
        mu: take the mixture with the least J for this μ instead.
        correlation: ask for this ρ instead of the best single method's.

    Raises:
        InputError: the parts are others, or a number is out of its range.
    """

    robust: AverageSensitivity
    faithful: Metric
    mu: float | None = setting(None, low=0)
    correlation: float | None = setting(None, low=-1, high=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = ((self.robust, "quadratic"), (self.faithful, "responses"))
        for term, kind in parts:
            if not isinstance(term, Metric) or term.statistic != kind or not term.scale_free:
                raise InputError(
                    "Front: its parts are AverageSensitivity(relative=True) and Infidelity(scaling='correlation'), "
                    "in this order"
                )

    @property
    def terms(self) -> tuple[tuple[float, Metric], ...]:
        """Both metrics with weight 1, as the terms of an :class:`~consilience.metrics.objective.Objective`."""
        return (1.0, self.robust), (1.0, self.faithful)

    @property
    def statistics(self) -> frozenset[str]:
        """The names of all parts of the evidence that both metrics look at."""
        return self.robust.statistics | self.faithful.statistics

    def curve(self, *parts: Evidence) -> simplex.Front:
        """The fronts of all inputs, in one batch.

        Args:
            *parts: the draws of some inputs each; how many draws they have may differ.
        """
        statistics = []
        for part in parts:
            clean = part.clean()
            quadratic = clean.quadratic
            responses = clean.responses
            assert quadratic is not None and responses is not None
            signal = self.robust.signal_matrix(clean)
            mean = responses.mean(responses.a)
            few = responses.number < FEWEST
            usable = part.valid() & _telling(clean, few)
            statistics.append((quadratic.matrix, signal, *responses.covariances(), usable, mean, few))
        # The solver's names: G noise, H signal, C and b the covariances of sums and falls, vy the variance of falls.
        G, H, C, b, vy, valid, mean, few = (torch.cat(each) for each in zip(*statistics, strict=True))
        front = simplex.front(G, H, C, b, vy, valid, mean=mean)
        return replace(front, floor=front.floor.masked_fill(few & front.floor.isfinite(), ANY))

    def minimise(self, evidence: Evidence, *, signed: bool = False) -> Solution:
        """The mixture that is asked for, on the front of these draws.

        Args:
            evidence: the draws.
            signed: must be False; the front is over convex weights.

        Raises:
            InputError: ``signed``.
        """
        if signed:
            raise InputError("signed: the front is over convex weights; use objective='faith' or 'robust'")
        return self.choose(self.curve(evidence))

    def as_faithful(self, correlation: Tensor) -> Tensor:
        """(B, k) bool: the methods that are as faithful as a mixture must be, or that come nearest to it.

        Args:
            correlation: (B, k), of the methods on the fitting draws; NaN where a method has none.
        """
        known = correlation.nan_to_num(-torch.inf)
        floor = known.amax(1, keepdim=True)
        if self.correlation is not None:
            floor = floor.clamp(max=self.correlation)
        # The table and the solver sum the same numbers in another order.
        return known >= floor - EQUAL

    def choose(self, curve: simplex.Front) -> Solution:
        """The mixture that is asked for.

        Args:
            curve: of :meth:`curve`.
        """
        if self.mu is not None:
            return curve.at(self.mu)
        few = curve.floor == ANY
        # Beside the best single method's own correlation the mixtures that reach it may be so few that rounding decides whether
        # there are any.
        floor = torch.where(few, curve.floor, curve.floor - LENIENT)
        if self.correlation is not None:
            floor = torch.full_like(floor, self.correlation).masked_fill(few, ANY)
        solution = curve.pick(floor)
        status = [FEW if is_few else own for is_few, own in zip(few.tolist(), solution.status, strict=True)]
        return replace(solution, status=tuple(status))


def _telling(evidence: Evidence, few: Tensor) -> Tensor:
    """(B, R): the methods that a mixture may be made of.

    All of them, but of the inputs that have ``few`` (B,) masks those with the largest correlation. There every map correlates
    with 1 or −1, and a mixture changes between the two where its answers cancel: rounding would choose a point at that edge.
    Mixtures of maps with 1 have 1.
    """
    correlation = faithfulness_correlation(evidence, corners(evidence.like)).value.nan_to_num(-torch.inf)
    best = correlation >= correlation.amax(1, keepdim=True) - EQUAL
    return best | ~few[:, None]


Goal = Objective | Front
"""What can be minimised."""
