"""What an aggregation is: a rule by which several maps of one input become one."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from ..metrics.base import Metric
from ..settings import Settings
from ..simplex import Front as Curve
from ..simplex import Solution
from ..statistics.evidence import Evidence
from .draws import Draws


class Correction(NamedTuple):
    """What is added to a mixture of methods: φ = Σ_j c_j φ_j + values, in units of the score.

    Args:
        coefficients: (B, k), c: of the maps as they are, whatever their scale.
        values: (B, U), of each mask unit.
        sums: (B, U + V), φ summed over each unit, and over V regions of them.
        error: (B, U + V), the standard errors of the sums; 0 where nothing is estimated.
        methods_share: (B,), how much of the answer the methods give.
        explained: (B,), the share of the variance of a left-out mask's fall that is predicted.
        freedom: (B,), degrees of freedom of the errors.
    """

    coefficients: Tensor
    values: Tensor
    sums: Tensor
    error: Tensor
    methods_share: Tensor
    explained: Tensor
    freedom: Tensor

    def inputs(self, index: list[int]) -> Correction:
        """Only some inputs.

        Args:
            index: their places.
        """
        return Correction(*(each[index] for each in self))


class Combination(NamedTuple):
    """What an aggregation made of the evidence.

    Args:
        solution: the weights (B, k), what they are worth, and a certificate.
        curve: the front that they were chosen from; None: from none.
        correction: what is added to the mixture; None: nothing.
    """

    solution: Solution
    curve: Curve | None = None
    correction: Correction | None = None

    @property
    def weights(self) -> Tensor:
        """(B, k)."""
        return self.solution.weights

    def inputs(self, index: list[int]) -> Combination:
        """Only some inputs.

        Args:
            index: their places.
        """
        curve = None if self.curve is None else self.curve.inputs(index)
        correction = None if self.correction is None else self.correction.inputs(index)
        return Combination(self.solution.inputs(index), curve, correction)


class Aggregation(Settings):
    """Interface of an aggregation: weights from evidence (:meth:`fit`), and one map from many (:meth:`combine`).

    The defaults are those of the plain mean: equal weights, and the weighted sum of the maps. A rule that chooses weights
    overrides :meth:`fit`, and says which draws it looks at. A rule that is no weighted sum overrides :meth:`combine` and sets
    ``linear`` to False; its map is then made at every neighbour, and judged like a method's.

    Attributes:
        name: in tables and files.
        linear: whether the map is Σ_j w_j φ_j, and what :meth:`fit` adds to it.
        signed_maps: whether it is in units of the score, so that maps keep their sign.
        budget: how many draws at most, where they are made until sure; None: the usual.

    Example: docs/architecture.md has one of thirty lines.
    """

    name: ClassVar[str]
    linear: ClassVar[bool] = True
    signed_maps: ClassVar[bool] = False
    budget: ClassVar[Draws | None] = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "combine" in vars(cls) and "linear" not in vars(cls):
            # As a weighted sum it would never be asked to combine anything.
            raise TypeError(
                f"{cls.__name__}: overrides combine(), so say what it is: linear = False, or linear = True if it is Σ w_j φ_j "
                "with the weights of fit()"
            )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(getattr(self, "name", None), str):
            raise InputError(f'{type(self).__name__}: name is missing; set a class attribute, name = "…"')

    @property
    def solves(self) -> bool:
        """Whether further draws would better the weights, so that sequential sampling makes sense."""
        return False

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics whose draws :meth:`fit` looks at."""
        return ()

    @property
    def kinds(self) -> tuple[str, ...]:
        """The parts of the evidence that :meth:`fit` looks at."""
        return tuple(dict.fromkeys(metric.statistic for metric in self.metrics))

    def pool(self, evidence: Evidence) -> Evidence:
        """The evidence of B inputs as that of one, whose weights are those of all.

        Args:
            evidence: the fitting draws of the k methods, of B inputs.
        """
        return evidence.pooled()

    def fit(self, evidence: Evidence) -> Combination:
        """The weights of every input, (B, k). A method that has no map for an input has weight 0 there.

        Args:
            evidence: the fitting draws of the k methods, of the kinds in :attr:`kinds`.
        """
        return unsolved(equal_shares(evidence), f"{self.name} of the maps, nothing solved")

    def regret(self, evidence: Evidence, combination: Combination) -> dict[str, Tensor] | None:
        """Kind of draw → (B,): what is lost for want of further draws, relative to what is reached.

        None: as the weights' cross-fitted loss says, see :mod:`~consilience.combine.regret`.

        Args:
            evidence: the fitting draws of the k methods.
            combination: what :meth:`fit` made of them.
        """
        return None

    def combine(self, maps: Tensor, weights: Tensor, present: Tensor) -> Tensor:
        """One map of each input.

        Args:
            maps: (B, k, *A); NaN where a method has none.
            weights: (B, k), from :meth:`fit`.
            present: (B, *A) bool, the features that each input has; the others are 0.

        Returns:
            (B, *A).
        """
        return mix(weights[:, None], maps)[:, 0]


def equal_shares(evidence: Evidence) -> Tensor:
    """(B, k): the same weight for every method whose maps are finite.

    Args:
        evidence: draws of the k methods.
    """
    finite = evidence.finite_maps().to(evidence.like)
    return finite / finite.sum(1, keepdim=True)


def unsolved(weights: Tensor, status: str) -> Combination:
    """Weights that minimise nothing: they have no value and no certificate.

    Args:
        weights: (B, k).
        status: how they came about, in words.
    """
    nothing = torch.full_like(weights[:, 0], torch.nan)
    return Combination(Solution(weights, nothing, nothing, (status,) * len(weights)))


def mix(rows: Tensor, maps: Tensor) -> Tensor:
    """(B, M, *A): mixtures of maps; a mixture of something that is not finite is not finite.

    Args:
        rows: (B, M, R), the coefficients.
        maps: (B, R, *A).
    """
    # 0 · NaN is NaN: a broken map of weight 0 must not break the mixture, so it is put to 0 and looked at apart.
    mixed = torch.einsum("bmr,br...->bm...", rows.to(maps), maps.nan_to_num(0, 0, 0))
    bad = (~maps.flatten(2).isfinite().all(2)).to(rows)
    mixed[torch.einsum("bmr,br->bm", (rows != 0).to(rows), bad) > 0] = torch.nan
    return mixed
