"""Tests whether any method explains the masks: the best correlation of a mixture on masks that it was not fitted to."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from ..metrics import Infidelity
from ..metrics.objective import Objective
from ..simplex import Solution
from ..statistics.criteria import Estimate, faithfulness_correlation
from ..statistics.evidence import Evidence
from .aggregation import Aggregation
from .regret import BLOCKS, solved_apart
from .weights import Minimise

UNEXPLAINED = "no method explains these masks"
"""Part of a status: the methods may be unrelated to how the score answers to the masks that the weights are fitted to."""

ERRORS = 2
"""How many standard errors above zero the correlation must be."""


def best_correlation(evidence: Evidence) -> Estimate:
    """(B, 1): the cross-fitted correlation of the most faithful mixture, with its influence.

    Each of five blocks of the masks is answered by the convex mixture that has the largest correlation on the other four,
    and the answers of all blocks are correlated with the falls of the score. The mixture is chosen on other masks than it is
    measured on, so that the choice does not make its correlation larger.

    Args:
        evidence: the fitting draws of the k methods, among them masks.
    """
    masks = evidence.only(["responses"]).clean()
    folds = masks.folds(BLOCKS, "responses")
    most_faithful = Minimise(Objective(((1.0, Infidelity()),)))
    weights = solved_apart(most_faithful, [outside for outside, _ in folds])
    answers = Evidence()
    for w, (outside, inside) in zip(weights, folds, strict=True):
        # Each fold has its own mixture, with its own scale, and a larger mask removes more of each. Raw answers of all folds
        # together would vary for these reasons alone. So each block is centred given the masks' size, and divided by the scale
        # of its mixture on the other blocks.
        known = outside["responses"]
        asked = inside["responses"]
        scale = known.centred(torch.einsum("bsr,br->bs", known.a, w)).square().mean(1).sqrt()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        mixed = asked.centred(torch.einsum("bsr,br->bs", asked.a, w)) / scale[:, None]
        block = replace(asked, a=mixed[..., None], y=asked.centred(asked.y), size=None)
        answers = answers + Evidence(responses=block)
    one = torch.ones_like(answers.like[:, None])
    return faithfulness_correlation(answers, one)


def mark_unexplained(aggregation: Aggregation, evidence: Evidence, solution: Solution) -> Solution:
    """The solution, with a note in the status of inputs where no method is known to explain the masks.

    These are the inputs where :func:`best_correlation` is not two standard errors above zero. Objectives whose weights do not
    depend on masks, and inputs without a valid method, get no note.

    Args:
        aggregation: how evidence became weights.
        evidence: the fitting draws of the k methods.
        solution: the weights of B inputs.
    """
    if "responses" not in aggregation.kinds:
        return solution
    inputs = len(solution.weights)
    if isinstance(aggregation, Minimise) and aggregation.pooled:
        evidence = evidence.pooled()
    best = best_correlation(evidence)
    # Pooled evidence has one correlation for all inputs.
    correlation = best.value[:, 0].expand(inputs).tolist()
    error = best.stderr[:, 0].expand(inputs).tolist()
    usable = solution.weights.isfinite().all(1).tolist()
    marked = []
    for status, rho, stderr, ok in zip(solution.status, correlation, error, usable, strict=True):
        # False also where one of the two is NaN: then nothing is known to be explained. "rho <= …" would let NaN pass.
        explained = rho > ERRORS * stderr
        if ok and not explained:
            status = f"{status}; {UNEXPLAINED} ({_words(rho, stderr)})"
        marked.append(status)
    return replace(solution, status=tuple(marked))


def _words(rho: float, stderr: float) -> str:
    """The correlation with its error, where there is one."""
    if math.isnan(rho):
        return "too few masks to tell, or the score or every response is the same for all of them"
    if math.isnan(stderr):
        return f"cross-fitted correlation {rho:.2f}"
    return f"cross-fitted correlation {rho:.2f} ± {stderr:.2f}"
