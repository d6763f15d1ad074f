"""Features of several inputs of a model that are joined into one tensor (:mod:`consilience.adapters.pack`)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ..errors import InputError
from .base import Features


class Parts(Features):
    """The features of several inputs side by side: F = (Σ elements,), A = (Σ features,).

    Args:
        parts: the features of each input.
        shapes: F of each input.
    """

    unit = "feature of a part"
    ordered = False

    def __init__(self, parts: Sequence[Features], shapes: Sequence[Sequence[int]]):
        self.parts = tuple(parts)
        self.shapes = tuple(tuple(shape) for shape in shapes)
        self.axes = tuple(features.shape(shape) for features, shape in zip(self.parts, self.shapes, strict=True))

    def shape(self, shape):
        elements = sum(map(prod, self.shapes))
        if tuple(shape) != (elements,):
            raise InputError(f"features: of inputs packed to {elements} elements, got {tuple(shape)}")
        return (sum(map(prod, self.axes)),)

    def largest(self, shape):
        self.shape(shape)  # raises for another shape
        return sum(features.largest(axes) for features, axes in zip(self.parts, self.shapes, strict=True))

    def check(self, inputs, owner=None):
        for features in self.parts:
            features.check(inputs, owner)

    def take(self, places):
        return Parts([features.take(places) for features in self.parts], self.shapes)

    def reduce(self, values, owner):
        self.shape(values.shape[1:])
        pairs = zip(self.parts, split(values, self.shapes), strict=True)
        sums = [features.reduce(part, owner).flatten(1) for features, part in pairs]
        return torch.cat(sums, 1)

    def reduce_gradient(self, values, owner):
        self.shape(values.shape[1:])
        pairs = zip(self.parts, split(values, self.shapes), strict=True)
        reduced = [features.reduce_gradient(part, owner).flatten(1) for features, part in pairs]
        return torch.cat(reduced, 1)

    def expand(self, values, owner, shape):
        self.shape(shape)
        triples = zip(self.parts, split(values, self.axes), self.shapes, strict=True)
        expanded = [features.expand(part, owner, axes).flatten(1) for features, part, axes in triples]
        return torch.cat(expanded, 1)

    def settled(self, rows):
        pairs = zip(self.parts, split(rows, self.shapes), strict=True)
        return Parts([features.settled(part) for features, part in pairs], self.shapes)

    def codes(self, shape):
        of_parts = []
        for features, axes in zip(self.parts, self.shapes, strict=True):
            codes = features.codes(axes)
            # None stands for "nowhere"; side by side with others it has to be written out.
            if codes is None:
                codes = torch.zeros(axes, dtype=torch.bool)
            of_parts.append(codes.flatten())
        joined = torch.cat(of_parts)
        if not bool(joined.any()):
            return None
        return joined

    def movable(self, shape):
        of_parts = []
        for features, axes in zip(self.parts, self.shapes, strict=True):
            free = features.movable(axes)
            if free is None:
                free = torch.ones(axes, dtype=torch.bool)
            # What is given for each input has an axis in front: (B, …), else F. Both become (B or 1, elements).
            rows = free.expand(*free.shape[: free.ndim - len(axes)], *axes)
            of_parts.append(rows.reshape(-1, prod(axes)))
        if all(bool(free.all()) for free in of_parts):
            return None
        inputs = max(map(len, of_parts))
        device = of_parts[0].device
        joined = torch.cat([free.expand(inputs, -1).to(device) for free in of_parts], 1)
        if inputs == 1:
            return joined[0]
        return joined


def split(values: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The parts of joined values, (…, *F) each.

    Args:
        values: (…, Σ elements).
        shapes: F of each part.
    """
    pieces = values.split([prod(shape) for shape in shapes], -1)
    return [piece.reshape(*values.shape[:-1], *shape) for piece, shape in zip(pieces, shapes, strict=True)]
