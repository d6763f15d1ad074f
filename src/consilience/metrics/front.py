"""The front between two metrics: the mixtures that cannot be better by one of them without being worse by the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import simplex
from ..errors import InputError
from ..settings import Settings, setting
from ..simplex import Solution
from ..simplex.ties import EQUAL
from ..statistics.evidence import Evidence
from .base import Metric
from .objective import Objective
from .sensitivity import AverageSensitivity


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
            statistics.append((quadratic.matrix, signal, *responses.covariances(), part.valid(), mean))
        # The solver's names: G noise, H signal, C and b the covariances of sums and falls, vy the variance of falls.
        G, H, C, b, vy, valid, mean = (torch.cat(each) for each in zip(*statistics, strict=True))
        return simplex.front(G, H, C, b, vy, valid, mean=mean)

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
        return curve.pick(self.correlation)


Goal = Objective | Front
"""What can be minimised."""
