"""The objectives that have a name, and the parsing of ``objective=``."""

from __future__ import annotations

from ..errors import choose
from ..metrics import AverageSensitivity, Infidelity
from ..metrics.base import Metric
from ..metrics.expressions import parse_objective
from ..metrics.front import Front, Goal
from ..metrics.objective import Objective

# The two metrics exactly as the paper of AGG prints them.
SENSITIVITY_AS_PRINTED = AverageSensitivity(relative=False)
INFIDELITY_AS_PRINTED = Infidelity(share=0.2, scaling="raw")

NAMED_OBJECTIVES: dict[str, Goal | Metric] = {
    "robust": AverageSensitivity(signal="contrast"),
    "faith": Infidelity(),
    "opt": Front(AverageSensitivity(signal="contrast"), Infidelity()),
    # AGG as printed: the QP of App. C.2 with β = 1, each matrix of a sum divided by its own Frobenius norm. Weights are for the
    # maps that are returned and sum to one.
    "paper_robust": SENSITIVITY_AS_PRINTED,
    "paper_faith": INFIDELITY_AS_PRINTED,
    "paper_opt": Objective(((1.0, SENSITIVITY_AS_PRINTED), (1.0, INFIDELITY_AS_PRINTED)), "frobenius"),
    # What the released code does instead of paper_faith: weights are solved for β_j φ_j and put on φ_j.
    "paper_code": Infidelity(share=0.2, scaling="code"),
    "relative_sensitivity": AverageSensitivity(),
    "average_sensitivity": SENSITIVITY_AS_PRINTED,
    "faithfulness_correlation": Infidelity(),
    "infidelity": Infidelity(scaling="free"),
}
"""Objectives, and the metrics whose names may stand in sums."""

OBJECTIVES = ("robust", "faith", "opt", "paper_robust", "paper_faith", "paper_opt", "paper_code")
"""The names that errors and the command line list for ``objective=``."""


def named_objective(objective: str | Goal | Metric) -> Goal:
    """What ``objective=`` asks to minimise, in whichever form it was given.

    Args:
        objective: a key of :data:`NAMED_OBJECTIVES`; a sum of them such as "relative_sensitivity + 0.5*infidelity"; a metric;
            or an objective, which stays as it is.

    Raises:
        InputError: a name is not known.
    """
    if isinstance(objective, Metric):
        return Objective(((1.0, objective),))
    if not isinstance(objective, str):
        return objective
    if "+" in objective or "*" in objective:
        return parse_objective(objective, NAMED_OBJECTIVES)
    return parse_objective(choose("objective", objective, [*OBJECTIVES, *NAMED_OBJECTIVES]), NAMED_OBJECTIVES)
