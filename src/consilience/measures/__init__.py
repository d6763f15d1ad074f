"""Measures: one number for each input and each attribution. The table :data:`MEASURES` holds all of them by name.

A measure may be any function of a map; those that are affine in it, and can be minimised, are in :mod:`..metrics`. The
interface, :class:`~consilience.task.Measure`, is in :mod:`..task`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any

from ..errors import InputError, choose
from ..task import Measure, Task
from .agreement import (
    FeatureAgreement,
    PairwiseRankAgreement,
    RankAgreement,
    RankCorrelation,
    SignAgreement,
    SignedRankAgreement,
)
from .axiomatic import Completeness, LocalFidelity
from .complexity import EntropyComplexity, GiniSparseness, TruncatedL2
from .faithfulness import FaithfulnessCorrelation, Infidelity, SensitivityN
from .faithfulness_curves import (
    Deletion,
    EffectiveComplexity,
    Insertion,
    PixelFlipping,
    RegionPerturbation,
    Selectivity,
)
from .leave_one_out import FaithfulnessEstimate, MonotonicityCorrelation
from .localisation import (
    AttributionLocalisation,
    LocalisationAUC,
    PointingGame,
    RelevanceMass,
    RelevanceRank,
    TopKLocalisation,
)
from .randomisation import MPRT, EfficientMPRT, RandomLogit, SmoothMPRT
from .road import RoadCombined, RoadLeRF, RoadMoRF
from .robustness import RIS, ROS, RRS, AvgSensitivity, KendallTau, LocalLipschitz, MaxSensitivity, TopKIntersection
from .whole_curves import IROF, Monotonicity

MEASURES: dict[str, type[Measure]] = {
    cls.name: cls
    for cls in (
        # Stability: the map at neighbours.
        MaxSensitivity, AvgSensitivity, LocalLipschitz, RIS, RRS, ROS, TopKIntersection, KendallTau,
        # Faithfulness: features taken away, in the map's order or at random.
        RoadMoRF, RoadLeRF, RoadCombined, PixelFlipping, Selectivity, RegionPerturbation, Deletion, Insertion, IROF,
        FaithfulnessCorrelation, FaithfulnessEstimate, SensitivityN, Infidelity, Monotonicity, MonotonicityCorrelation,
        Completeness, LocalFidelity,
        # Randomisation: the map of another model, or of another output.
        MPRT, SmoothMPRT, EfficientMPRT, RandomLogit,
        # Complexity of the map itself.
        GiniSparseness, EntropyComplexity, EffectiveComplexity, TruncatedL2,
        # Where the evidence is known to be.
        RelevanceMass, RelevanceRank, PointingGame, AttributionLocalisation, TopKLocalisation, LocalisationAUC,
        # Agreement with the other methods.
        FeatureAgreement, RankAgreement, SignAgreement, SignedRankAgreement, RankCorrelation, PairwiseRankAgreement,
    )
}  # fmt: skip
"""Every measure by name, in the order in which tables and the catalogue list them."""

SETS: dict[str, tuple[str, ...]] = {
    # One of each kind, cheap beside the explanations themselves.
    "default": (
        "avg_sensitivity", "max_sensitivity", "road_combined", "faithfulness_correlation", "infidelity", "random_logit",
        "gini_sparseness", "rank_correlation",
    ),
    "all": tuple(MEASURES),
}  # fmt: skip
"""Measures that are asked for together by one name."""

__all__ = ["MEASURES", "SETS", "Measure", "Task", "resolve", *(cls.__name__ for cls in MEASURES.values())]


def resolve(measures: str | Measure | Iterable[str | Measure], baseline: Any = None) -> list[Measure]:
    """A set's name, names ("road,gini_sparseness" or a list) or configured measures → measures, in order.

    Args:
        measures: what is asked for.
        baseline: for those that have one and leave it open (None). None: it stays open.

    Raises:
        InputError: an unknown name, nothing at all, or something that is not a measure.
    """
    items: list[Any]
    if isinstance(measures, str):
        items = [part.strip() for part in measures.split(",")]
    elif isinstance(measures, Measure):
        items = [measures]
    elif isinstance(measures, Iterable):
        items = list(measures)
    else:
        raise InputError(f"measures: names or configured measures, got {measures!r}")
    resolved: list[Measure] = []
    for item in items:
        if isinstance(item, Measure):
            resolved.append(item)
        elif not isinstance(item, str):
            raise InputError(f"measures: names or configured measures, got {type(item).__name__}")
        elif item in SETS:
            resolved.extend(MEASURES[name]() for name in SETS[item])
        else:
            resolved.append(MEASURES[choose("measure", item, [*MEASURES, *SETS])]())
    if not resolved:
        raise InputError("measures: at least one is needed")
    for measure in resolved:
        missing = [name for name in ("name", "card") if not hasattr(measure, name)]
        if missing:
            raise InputError(
                f"measures: {type(measure).__name__} has no {' and no '.join(missing)}; a measure of your own says both, as "
                "class attributes: what tables call it, and a consilience.card.Card of what its number means"
            )
    return [_with(measure, baseline) for measure in resolved]


def _with(measure: Measure, baseline: Any) -> Measure:
    """The measure with this baseline, if it has one and leaves it open."""
    if not is_dataclass(measure):
        return measure
    for field in fields(measure):
        if field.name == "baseline" and getattr(measure, field.name) is None:
            return replace(measure, baseline=baseline)
    return measure
