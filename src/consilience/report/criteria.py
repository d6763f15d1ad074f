"""The names of criteria and objectives in reports: titles, directions, and what each objective promises."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Criterion:
    """How one criterion is named, and which direction is better.

    Attributes:
        key: its name in records.
        title: its name for readers.
        higher: whether higher is better.
        masked: whether it is measured with masks. Few features have so few masks that all of them can be drawn: the value is
            then exact.
    """

    key: str
    title: str
    higher: bool
    masked: bool = False

    @property
    def direction(self) -> str:
        """The direction in words."""
        return "higher is better" if self.higher else "lower is better"

    @property
    def arrow(self) -> str:
        """The direction as one letter."""
        return "↑" if self.higher else "↓"


# In the order of tables: first what the named objectives minimise.
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
"""Objective → what its optimum guarantees, on the draws that the weights were fitted to."""

UNEXPLAINED = "no method explains these masks"
"""Part of the status of an input: the answers of all methods to the masks may be unrelated to the changes of the score."""

UNUSABLE = "no valid method"
"""The status of an input for which no method gave a map that is finite and not zero."""
