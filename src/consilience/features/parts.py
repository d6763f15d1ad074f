"""Features of several inputs joined into one."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ..errors import InputError
from .base import Features


class Parts(Features):
    """The features of several inputs side by side: F = (Σ elements,), A = (Σ features,).

    ``parts``: the features of each input; ``shapes``: their axes.
    """

    unit = "feature of a part"
    ordered = False

    def __init__(self, parts: Sequence[Features], shapes: Sequence[Sequence[int]]):
        self.parts, self.shapes = tuple(parts), tuple(tuple(shape) for shape in shapes)
        self.axes = tuple(features.shape(shape) for features, shape in zip(self.parts, self.shapes, strict=True))

    def shape(self, shape):
        if tuple(shape) != (sum(map(prod, self.shapes)),):
            raise InputError(
                f"features: of inputs packed to {sum(map(prod, self.shapes))} elements, got {tuple(shape)}"
            )
        return (sum(map(prod, self.axes)),)

    def largest(self, shape):
        self.shape(shape)
        return sum(features.largest(axes) for features, axes in zip(self.parts, self.shapes, strict=True))

    def check(self, inputs, owner=None):
        for features in self.parts:
            features.check(inputs, owner)

    def take(self, places):
        return Parts([features.take(places) for features in self.parts], self.shapes)

    def reduce(self, values, owner):
        self.shape(values.shape[1:])
        pairs = zip(self.parts, split(values, self.shapes), strict=True)
        return torch.cat([features.reduce(part, owner).flatten(1) for features, part in pairs], 1)

    def reduce_gradient(self, values, owner):
        self.shape(values.shape[1:])
        pairs = zip(self.parts, split(values, self.shapes), strict=True)
        return torch.cat([features.reduce_gradient(part, owner).flatten(1) for features, part in pairs], 1)

    def expand(self, values, owner, shape):
        self.shape(shape)
        rows = zip(self.parts, split(values, self.axes), self.shapes, strict=True)
        return torch.cat([features.expand(part, owner, axes).flatten(1) for features, part, axes in rows], 1)

    def settled(self, rows):
        pairs = zip(self.parts, split(rows, self.shapes), strict=True)
        return Parts([features.settled(part) for features, part in pairs], self.shapes)

    def codes(self, shape):
        found = []
        for features, axes in zip(self.parts, self.shapes, strict=True):
            codes = features.codes(axes)
            found.append(torch.zeros(prod(axes), dtype=torch.bool) if codes is None else codes.flatten())
        joined = torch.cat(found)
        return joined if bool(joined.any()) else None

    def movable(self, shape):
        found = []
        for features, axes in zip(self.parts, self.shapes, strict=True):
            free = features.movable(axes)
            if free is None:
                free = torch.ones(axes, dtype=torch.bool)
            # What is given for each input has an axis in front.
            rows = free.expand(*free.shape[: free.ndim - len(axes)], *axes)
            found.append(rows.reshape(-1, prod(axes)))
        if all(bool(free.all()) for free in found):
            return None
        count = max(map(len, found))
        joined = torch.cat([free.expand(count, -1).to(found[0].device) for free in found], 1)
        return joined if count > 1 else joined[0]


def split(values: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """(…, Σ elements) → (…, *shape) for each shape."""
    pieces = values.split([prod(shape) for shape in shapes], -1)
    return [piece.reshape(*values.shape[:-1], *shape) for piece, shape in zip(pieces, shapes, strict=True)]
