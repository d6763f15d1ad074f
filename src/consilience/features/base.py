"""The interface of features: what is attributed, as a partition of an input's elements.

A feature is a set of elements of the input; every element belongs to one, or to none (padding). Attributions add over the
elements of a feature (``reduce``), a feature's value is spread evenly over its elements (``spread``, so that
``reduce(spread(a)) = a``), and a subset of features selects elements (``mask``). F are the input's axes, A the features'
axes. ``owner`` (N,) says to which input of the batch each row belongs, for partitions that differ by input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..settings import Settings


class Features(Settings):
    """Interface: a partition of the elements of an input of shape F.

    Attributes:
        unit: what a feature is, in a word for tables.
        ordered: whether neighbouring features along an axis of A are near each other, as patches and tokens are, and columns
            and segments are not.
    """

    unit = "feature"
    ordered = True

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The axes A for inputs with axes F = ``shape``.

        Raises:
            InputError: the features are not for inputs of this shape.
        """
        raise NotImplementedError

    def reduce(self, values: Tensor, owner: Tensor) -> Tensor:
        """(N, *A): the sum of the values over the elements of each feature.

        Args:
            values: (N, *F).
            owner: (N,), the input of each row.
        """
        raise NotImplementedError

    def reduce_gradient(self, values: Tensor, owner: Tensor) -> Tensor:
        """(N, *A): gradients summed likewise; their norm, where a feature's elements are the coordinates of a vector.

        Args:
            values: (N, *F).
            owner: (N,), the input of each row.
        """
        return self.reduce(values, owner)

    def expand(self, values: Tensor, owner: Tensor, shape: Sequence[int]) -> Tensor:
        """(N, *F): each element gets its feature's value.

        Args:
            values: (N, *A).
            owner: (N,), the input of each row.
            shape: F.
        """
        raise NotImplementedError

    def sizes(self, owner: Tensor, shape: Sequence[int]) -> Tensor:
        """(N, *A): how many elements each feature has, 0 for a feature that the input lacks.

        Args:
            owner: (N,), the input of each row.
            shape: F.
        """
        # A sum of ones counts the elements.
        ones = torch.ones(len(owner), *shape, device=owner.device)
        return self.reduce(ones, owner)

    def spread(self, values: Tensor, owner: Tensor, shape: Sequence[int]) -> Tensor:
        """(N, *F): each feature's value shared evenly by its elements.

        Args:
            values: (N, *A).
            owner: (N,), the input of each row.
            shape: F.
        """
        # A feature that the input lacks has no element to which its value could go, whatever the quotient.
        sizes = self.sizes(owner, shape).clamp(min=1)
        return self.expand(values / sizes.to(values), owner, shape)

    def mask(self, subsets: Tensor, owner: Tensor, shape: Sequence[int]) -> Tensor:
        """(N, *F) bool: the elements of some features.

        Args:
            subsets: (N, *A) bool, which features.
            owner: (N,), the input of each row.
            shape: F.
        """
        return self.expand(subsets, owner, shape)

    def largest(self, shape: Sequence[int]) -> int:
        """The number of features of the input that has most of them, at most the product of A.

        Args:
            shape: F.

        Raises:
            InputError: the features are not for inputs of this shape.
        """
        return math.prod(self.shape(shape))

    def check(self, inputs: int, owner: Tensor | None = None) -> None:
        """Look whether the features are for these inputs.

        Args:
            inputs: how many there are in all; 0: not known.
            owner: (N,), the numbers of those that are used.

        Raises:
            InputError: they were given for another number of inputs, or not for all of these.
        """

    def take(self, places: Sequence[int] | Tensor) -> Features:
        """The same features for some of the inputs. A loader's batches get their own in this way.

        Only features that differ by input have something to select.

        Args:
            places: (n,), of the inputs among all for which labels were given.

        Raises:
            InputError: a place has no labels.
        """
        return self

    def settled(self, rows: Tensor) -> Features:
        """The same features, after what they suppose of the data was compared with data.

        Args:
            rows: (n, *F), of the baselines' data set or of the inputs.
        """
        return self

    def codes(self, shape: Sequence[int]) -> Tensor | None:
        """The elements that hold codes of categories, which have nothing between them: bool of shape F; None: none does.

        Args:
            shape: F.
        """
        return None

    def movable(self, shape: Sequence[int]) -> Tensor | None:
        """The elements that noise may move: bool of shape F, or (B, …) broadcastable to (B, *F); None: all of them.

        Args:
            shape: F.
        """
        return None


@dataclass(frozen=True)
class Elements(Features):
    """Every element of the input is a feature: A = F."""

    unit = "element"

    def shape(self, shape):
        return tuple(shape)

    def reduce(self, values, owner):
        return values

    def expand(self, values, owner, shape):
        return values


def check_rows(argument: str, rows: int, inputs: int, owner: Tensor | None = None) -> None:
    """Look whether what was given for each input has one row for each.

    Args:
        argument: its name, for errors.
        rows: how many it has.
        inputs: how many inputs there are; 0: not known, then no ``owner`` may be beyond the rows.
        owner: (N,), numbers of inputs.

    Raises:
        InputError: there are more or fewer rows than inputs.
    """
    # How many inputs there are is not known: at least one more than the largest number, and at least as many as rows.
    if inputs == 0 and owner is not None and len(owner):
        inputs = max(rows, int(owner.max()) + 1)
    if inputs and rows != inputs:
        raise InputError(
            f"{argument}: {rows} rows for {inputs} inputs; give one for each input of the batch (of a loader: of the "
            "whole data set, in its order)"
        )


def chosen_rows(rows: Tensor, places: Tensor | Sequence[int], argument: str) -> Tensor:
    """Some rows of what was given for all inputs.

    Args:
        rows: (B, …).
        places: (n,), which of them.
        argument: its name, for errors.

    Raises:
        InputError: a place is beyond the rows.
    """
    index = torch.as_tensor(places, dtype=torch.int64, device=rows.device)
    # Asked here: on a GPU an index out of range ends the whole process.
    if len(index) and (int(index.max()) >= len(rows) or int(index.min()) < 0):
        raise InputError(
            f"{argument}: {len(rows)} rows, but none for input {int(index.max())}; give one for each input"
        )
    return rows[index]
