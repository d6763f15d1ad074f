"""The base class of measures that are read off a removal curve, and what their cards share."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ..card import Card
from ..task import Measure, Task
from .removal import Curves, Removal

ONCE = "what several maps or steps take away alike is asked once"

TIES = (
    "ties are broken by keyed random words, the same for all maps of an input (stream 'ties'); a map that is zero everywhere "
    "has no order: NaN"
)


def curve_card(
    formula: str,
    source: str,
    better: Literal["lower", "higher"],
    perturbation: str,
    cost: str,
    differences: tuple[tuple[str, str], ...] = (),
    normalisation: str = "none: of the map only the order counts",
) -> Card:
    """A card of a measure that is read off a removal curve.

    Args:
        formula: the measure's formula.
        source: its paper.
        better: "lower" or "higher".
        perturbation: what is taken away, and by what it is replaced.
        cost: how many evaluations each map takes.
        differences: (library, how its number differs).
        normalisation: what the number is divided by.
    """
    return Card(
        formula,
        source,
        better,
        normalisation,
        perturbation,
        f"{TIES}; noise from 'removal'",
        f"{cost}; {ONCE}",
        differences,
    )


class Curve(Measure):
    """Interface: a measure read off the curves of one :class:`~consilience.measures.removal.Removal`.

    By default it is the area under one of them.

    Attributes:
        value: which of them is read: "score", "probability", "accuracy" or "change".
    """

    value: str
    undefined = "the map is zero on all that is taken away, or regression has no probability (use value='score')"

    def removal(self, task: Task) -> Removal:
        """What is taken away from the inputs, and how.

        Args:
            task: what is judged.
        """
        raise NotImplementedError

    def curve(self, task: Task) -> Curves:
        """The curves of all maps: counts and shares (B, T); score, probability and accuracy (B, R, T).

        Args:
            task: what is judged.
        """
        return self.removal(task).curves(task)

    def __call__(self, task: Task) -> Tensor:
        return self.curve(task).area(self.value)
