"""What a number means, beside the number: one card for each explainer, metric and measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Card:
    """Everything that must be known before two numbers of the same name may be compared.

    Args:
        formula: the number's definition.
        source: the paper, with its arXiv number or DOI.
        better: "lower", "higher", or "" where neither is better.
        normalisation: by what the number is divided, or what is done to the map before.
        perturbation: what is changed, by what, in which unit.
        draws: how many, and of which stream.
        cost: model evaluations for one input.
        differences: (library, what it computes instead and which arguments here give its number), one for each library that
            disagrees.
    """

    formula: str
    source: str
    better: Literal["lower", "higher", ""] = ""
    normalisation: str = "none"
    perturbation: str = "none"
    draws: str = "none"
    cost: str = ""
    differences: tuple[tuple[str, str], ...] = ()

    def lines(self) -> list[tuple[str, str]]:
        """(label, text) in reading order, without empty entries."""
        direction = f"{self.better} is better" if self.better else ""
        pairs = [
            ("formula", self.formula),
            ("source", self.source),
            ("direction", direction),
            ("normalisation", self.normalisation),
            ("perturbation", self.perturbation),
            ("draws", self.draws),
            ("cost", self.cost),
        ]
        pairs += [(f"differs from {library}", text) for library, text in self.differences]
        return [(label, text) for label, text in pairs if text]
