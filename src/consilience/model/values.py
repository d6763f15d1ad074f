"""What an evaluation of rows gives: scores, gradients, activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Values:
    """What an evaluation of N rows gives.

    Args:
        score: (N,).
        gradient: (N, *F), of each score with respect to its row; None: not asked for.
        activations: layer → (activation, its gradient) on the image grid, (n, C, h, w) each, of the first n rows.
        reference: (N,), the score of the origins under the rescale rule; None: another rule.
    """

    score: Tensor
    gradient: Tensor | None = None
    activations: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    reference: Tensor | None = None

    def part(self, rows: slice) -> Values:
        """The values of some consecutive rows.

        Args:
            rows: from where to where.
        """
        if rows == slice(0, len(self.score)):
            return self
        activations = {}
        for name, (values, gradients) in self.activations.items():
            if rows.start < len(values):
                activations[name] = (values[rows], gradients[rows])
        return Values(
            score=self.score[rows],
            gradient=None if self.gradient is None else self.gradient[rows],
            activations=activations,
            reference=None if self.reference is None else self.reference[rows],
        )

    @staticmethod
    def concatenate(parts: Sequence[Values]) -> Values:
        """Several batches, all asked for the same, as one.

        Args:
            parts: at least one.
        """
        if len(parts) == 1:
            return parts[0]
        # Later batches may have none: activations are those of the first rows.
        looking = [part for part in parts if part.activations]
        activations = {}
        for name in looking[0].activations if looking else ():
            values = torch.cat([part.activations[name][0] for part in looking])
            gradients = torch.cat([part.activations[name][1] for part in looking])
            activations[name] = (values, gradients)
        return Values(
            score=torch.cat([part.score for part in parts]),
            gradient=_joined([part.gradient for part in parts]),
            activations=activations,
            reference=_joined([part.reference for part in parts]),
        )


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """One after the other; None where there are none."""
    present = [part for part in parts if part is not None]
    if not present:
        return None
    return torch.cat(present)


def wide(tensor: Tensor) -> Tensor:
    """A tensor in float32 at least: what is squared and summed afterwards would underflow in half precision.

    Args:
        tensor: of any precision; float64 stays.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def kept(tensor: Tensor, graph: bool) -> Tensor:
    """A tensor with its graph, or without.

    Args:
        tensor: of any shape.
        graph: whether the graph is wanted.
    """
    return tensor if graph else tensor.detach()
