"""How far weights would move with other draws: their spread over halves of the fitting draws."""

from __future__ import annotations

import torch
from torch import Tensor

from ..statistics.evidence import Evidence, Part, Responses
from .aggregation import Aggregation
from .draws import SEQUENTIAL_KINDS
from .regret import solved_apart

HALVES = (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2)))
"""The three ways to halve four blocks of draws. Their three differences are independent, so that none is counted twice."""

FEWEST = 4
"""Draws of a kind, so that each half has two."""


def weights_stderr(aggregation: Aggregation, evidence: Evidence) -> Tensor:
    """(B, k): the standard error of the weights, √(mean over halvings of ((w₁ − w₂)/2)²) with w₁, w₂ fitted on the halves.

    Weights from half of the draws vary twice as much, and their difference twice as much again: a quarter of its square is the
    variance of weights from all draws. It costs small solves and no evaluation of the model. Weights move with the draws
    far more than the value that they reach, where methods are alike.

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
    few = torch.stack([_too_few(evidence[kind]) for kind in kinds]).any(0)
    # A row that fails at some draw must be unusable in both halves.
    clean = evidence.clean()
    quarters = [clean.fold(part, 4)[1] for part in range(4)]
    halves = [quarters[one] + quarters[other] for pair in HALVES for one, other in pair]
    weights = torch.stack(solved_apart(aggregation, halves)).unflatten(0, (len(HALVES), 2))
    half_difference = (weights[:, 0] - weights[:, 1]) / 2
    return half_difference.square().mean(0).sqrt().masked_fill(few[:, None], torch.nan)


def _too_few(part: Part) -> Tensor:
    """(B,) bool: inputs with two or three draws. Where these are all that there are, weights do not move with them."""
    if isinstance(part, Responses):
        return (part.number > 1) & (part.number < FEWEST) & ~part.exact
    return torch.full_like(part.norm[:, 0, 0], 1 < part.count < FEWEST, dtype=torch.bool)
