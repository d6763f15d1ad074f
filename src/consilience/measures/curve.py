"""What measures have in common that are read off a curve of removals."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ..card import Card
from ..task import Task
from .base import Measure
from .removal import Curves, Removal

ONCE = "what several maps or steps take away alike is asked once"


TIES = "ties are broken by keyed random words, the same for all maps of an input (stream 'ties')"


def curve_card(
    formula: str,
    source: str,
    better: Literal["lower", "higher"],
    perturbation: str,
    cost: str,
    differences: tuple[tuple[str, str], ...] = (),
    normalisation: str = "none: of the map only the order counts",
) -> Card:
    """A card with what is said alike of all curves.

    Args:
        formula: of the measure.
        source: its paper.
        better: "lower" or "higher".
        perturbation: what is taken away, and by what it is replaced.
        cost: in evaluations for each map.
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

    ``curve(task)`` gives the curves themselves: counts and shares (B, T); score, probability, accuracy (B, R, T).

    Attributes:
        value: which of them is read: "score", "probability", "accuracy" or "change".
    """

    value: str
    undefined = "regression has no probability or accuracy; use value='score'"

    def removal(self, task: Task) -> Removal:
        """What is taken away from the inputs of the ``task``, and how."""
        raise NotImplementedError

    def curve(self, task: Task) -> Curves:
        """The curves of all maps of the ``task``."""
        return self.removal(task).curves(task)

    def __call__(self, task: Task) -> Tensor:
        return self.curve(task).area(self.value)
