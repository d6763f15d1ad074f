"""What a report says of each criterion and each objective."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Criterion:
    """How one criterion is named, and which direction is better.

    Attributes:
        key: its name in records.
        title: its name for readers.
        higher: whether higher is better.
        masked: it rests on masks, which are sometimes few enough to be all.
    """

    key: str
    title: str
    higher: bool
    masked: bool = False

    @property
    def direction(self) -> str:
        return "higher is better" if self.higher else "lower is better"

    @property
    def arrow(self) -> str:
        """The direction as one letter."""
        return "↑" if self.higher else "↓"


# In the order of tables: what objectives are about by default first.
CRITERIA = (
    Criterion("noise_over_signal", "noise over signal", False),
    Criterion("contrast", "contrast", True),
    Criterion("faithfulness_correlation", "correlation", True, masked=True),
    Criterion("relative_sensitivity", "relative sensitivity", False),
    Criterion("infidelity", "infidelity", False, masked=True),
)

PROMISES = {
    "opt": "promised on the fitting draws: correlation not below the best single method's",
    "robust": "promised on the fitting draws: noise over signal not above the best single method's",
    "faith": "promised on the fitting draws: correlation not below the best single method's",
}
"""What the optimum holds on the draws that it was found on."""

UNEXPLAINED = "no method explains these masks"
"""Part of the status of an input whose masks no method is known to explain."""

UNUSABLE = "no valid method"
"""The status of an input for which no method gave a map that is finite and not zero."""
