"""The standard error of weights: how far they would move with other draws, from their spread over halves of the draws."""

from __future__ import annotations

import torch
from torch import Tensor

from ..statistics.evidence import Evidence, Part, Responses
from .aggregation import Aggregation
from .draws import SEQUENTIAL_KINDS
from .regret import solved_apart

HALVES = (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2)))
"""The three ways to split four blocks of draws into halves. The differences between their halves are uncorrelated."""

FEWEST = 4
"""The fewest draws of a kind: two for each half."""


def weights_stderr(aggregation: Aggregation, evidence: Evidence) -> Tensor:
    """(B, k): the standard error of the weights, √(mean over halvings of ((w₁ − w₂)/2)²) with w₁, w₂ fitted on the halves.

    The variance of weights from half of the draws is twice that of weights from all, and the variance of the difference of
    two independent ones is twice that again: a quarter of the squared difference estimates the variance of weights from all.
    It costs six small solves and no evaluation of the model. Where methods are alike, weights can move far while the value
    that they reach hardly changes.

    Args:
        aggregation: how evidence becomes weights.
        evidence: the fitting draws of the k methods.

    Returns:
        (B, k) float64; NaN where the weights do not depend on draws, where an input has fewer than four of a kind that are
        not all there are, and where no method can be used.

    Source: balanced half-samples, McCarthy 1969, *Pseudo-replication: half samples*.
    """
    unknown = torch.full_like(evidence.like, torch.nan)
    kinds = [kind for kind in aggregation.kinds if kind in SEQUENTIAL_KINDS]
    if not kinds:
        return unknown
    # Weights are uncertain if they look at too few draws of any kind.
    few = torch.stack([_too_few(evidence[kind]) for kind in kinds]).any(0)
    # A method that fails at some draw must be left out of both halves: so invalid rows are marked before the split.
    clean = evidence.clean()
    quarters = [clean.fold(part, 4)[1] for part in range(4)]
    halves = [quarters[one] + quarters[other] for pair in HALVES for one, other in pair]
    # (halvings, 2, B, k)
    weights = torch.stack(solved_apart(aggregation, halves)).unflatten(0, (len(HALVES), 2))
    half_difference = (weights[:, 0] - weights[:, 1]) / 2
    return half_difference.square().mean(0).sqrt().masked_fill(few[:, None], torch.nan)


def _too_few(part: Part) -> Tensor:
    """(B,) bool: inputs with two or three draws, unless these are all possible ones, with which weights cannot vary."""
    if isinstance(part, Responses):
        return (part.number > 1) & (part.number < FEWEST) & ~part.exact
    return torch.full_like(part.norm[:, 0, 0], 1 < part.count < FEWEST, dtype=torch.bool)
