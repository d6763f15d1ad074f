"""Objectives by name."""

from __future__ import annotations

from ..errors import choose
from ..metrics import AverageSensitivity, Infidelity
from ..metrics.base import Metric
from ..metrics.front import Aim, Front, parse
from ..metrics.objective import Objective

TERMS: dict[str, Aim | Metric] = {
    "robust": AverageSensitivity(signal="contrast"),
    "faith": Infidelity(),
    "opt": Front(AverageSensitivity(signal="contrast"), Infidelity()),
    "paper_robust": AverageSensitivity(relative=False),
    "paper_faith": Infidelity(share=0.2, scaling="paper"),
    "paper_opt": Objective(
        ((1.0, AverageSensitivity(relative=False)), (1.0, Infidelity(share=0.2, scaling="paper"))), "frobenius"
    ),
    "paper_code": Infidelity(share=0.2, scaling="code"),
    "relative_sensitivity": AverageSensitivity(),
    "average_sensitivity": AverageSensitivity(relative=False),
    "faithfulness_correlation": Infidelity(),
    "infidelity": Infidelity(scaling="free"),
}


OBJECTIVES = ("robust", "faith", "opt", "paper_robust", "paper_faith", "paper_opt", "paper_code")


def aim(objective: str | Aim | Metric) -> Aim:
    """A named objective, an expression over names, a metric or a sum of metrics, as what is minimised.

    Raises:
        InputError: a name is not known.
    """
    if isinstance(objective, Metric):
        return Objective(((1.0, objective),))
    if not isinstance(objective, str):
        return objective
    if "+" in objective or "*" in objective:
        return parse(objective, TERMS)
    return parse(choose("objective", objective, [*OBJECTIVES, *TERMS]), TERMS)
