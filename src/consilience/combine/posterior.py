"""The posterior: a mixture of the methods where masks say nothing, and what the masks say beyond it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import InputError
from ..features.images import EIGHTH
from ..metrics import Infidelity
from ..metrics.base import Metric
from ..settings import Settings
from ..simplex import Solution
from ..statistics.evidence import Evidence
from ..statistics.responses import Responses
from .aggregation import Aggregation, Combination, Correction
from .draws import Draws
from .regression import Regression, regress, share_of_methods

MASKS = Draws(2, 224)
"""At most so many, of ``draws="auto"``: with feature ablation of 64 patches, the answer of an image in 300 forwards."""


@dataclass(frozen=True)
class Posterior(Aggregation, Settings):
    """φ = Σ_j c_j φ_j + d: the methods as a prior, the masks as data, with an error for every feature.

    c ≥ 0 and d follow from one regression of the falls of the score on masks, see :mod:`~.regression`. The result is in units
    of the score, with its sign: what taking a feature away costs. Without masks that say more, it is the most faithful
    mixture of methods; without methods that say anything, it is ridge regression on masks.

    Args:
        metric: whose masks. Default: of images 8 × 8 patches, of anything else its features; 10 to 60 % of them.
        methods: with the methods as prior; False: ridge regression on the masks alone.
        masks: with what the masks add; False: the mixture alone, as ``objective="faith"`` has it.

    Raises:
        InputError: neither methods nor masks.

    Example:
        >>> Posterior().name
        'posterior'
    """

    metric: Infidelity = field(default_factory=lambda: Infidelity(patches=EIGHTH))
    methods: bool = True
    masks: bool = True

    name = "posterior"
    signed_maps = True
    budget = MASKS

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.methods and not self.masks:
            raise InputError("masks: with methods=False and masks=False nothing is left to regress on; set one to True")

    @property
    def solves(self) -> bool:
        """True: more masks make the errors smaller."""
        return True

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return (replace(self.metric, keep_masks=True),)

    def pool(self, evidence: Evidence) -> Evidence:
        """Refused: each input has a correction of its own.

        Args:
            evidence: of any inputs.

        Raises:
            InputError: always; an objective that has weights alone can be pooled.
        """
        raise InputError(
            f"objective: {self.name!r} is made for each input by itself, so there are no weights for all; use "
            "objective='faith', 'robust' or 'opt'"
        )

    def fit(self, evidence: Evidence) -> Combination:
        """Coefficients, correction and errors of every input.

        Args:
            evidence: masks of the k methods, of B inputs, with the masks themselves.
        """
        responses = evidence["responses"]
        valid = evidence.only(self.kinds).valid()
        found = regress(responses, valid, self.methods, self.masks)
        # A coefficient is in units of its map. What a method has in the answer is c_j times how far its answers vary.
        answers = responses.centred(torch.where(valid[:, None], responses.a, 0.0))
        parts = found.coefficients * responses.mean(answers**2).sqrt()
        total = parts.sum(1, keepdim=True)
        # Where no method takes part, equal weights stand for "none is preferred".
        even = valid.double() / valid.sum(1, keepdim=True).clamp(min=1)
        weights = torch.where(total > 0, parts / torch.where(total > 0, total, 1.0), even) + 0 * total
        unexplained = 1 - found.explained
        nothing = torch.full_like(unexplained, torch.nan)
        solution = Solution(weights, unexplained, nothing, _status(found, responses))
        share = share_of_methods(found, responses)
        # Masks less a constant, the size, and the methods that are used.
        freedom = (responses.number - 2 - (found.coefficients > 0).sum(1)).clamp(min=1)
        correction = Correction(
            found.coefficients, found.residual, found.values, found.error, share, found.explained, freedom
        )
        return Combination(solution, correction=correction)

    def regret(self, evidence: Evidence, combination: Combination) -> dict[str, Tensor]:
        """Kind of draw → (B,): the share of what could be explained that is still missing, 1 − explained / possible.

        A fit to S masks that explains R² of a left-out fall would explain more with more masks. By how much is told by the
        fits to halves of the masks: a loss that halves with every doubling is as large as what the last doubling gained.

        Args:
            evidence: the masks of the k methods.
            combination: what :meth:`fit` made of them.
        """
        halves = evidence.folds(2, "responses")
        seen = [self.fit(outside).correction for outside, _ in halves]
        half = torch.stack([each.explained for each in seen if each is not None]).mean(0).clamp(min=0)
        assert combination.correction is not None
        whole = combination.correction.explained.clamp(min=0)
        gain = (whole - half).clamp(min=0)
        # R²(∞) ≈ R²(S) + (R²(S) − R²(S/2)): the loss halves with every doubling.
        # Where nothing is explained yet, all of it may be missing.
        some = whole + gain > 0
        missing = torch.where(some, gain / torch.where(some, whole + gain, 1.0), 1.0)
        missing = missing.masked_fill(combination.correction.explained.isnan(), torch.nan)
        return {"responses": torch.where(evidence["responses"].exact, 0.0, missing)}


@dataclass(frozen=True)
class Ridge(Posterior):
    """Ridge regression of the falls on masks, without the methods: what LIME does, with the masks that everything here uses.

    Args:
        metric: whose masks; see :class:`Posterior`.
        methods: False.
        masks: True.
    """

    methods: bool = False

    name = "ridge"


def _status(found: Regression, responses: Responses) -> tuple[str, ...]:
    """In words, how much of what masks do is explained, or why that is not known."""
    words = []
    finite = responses.y.isfinite().all(1).tolist()
    moved = (responses.y != 0).any(1).tolist()
    exact = responses.exact.tolist()
    numbers = responses.number.tolist()
    for i, explained in enumerate(found.explained.tolist()):
        if not finite[i]:
            words.append("a mask's score is not finite, so nothing is known of any feature")
        elif not moved[i]:
            words.append("no mask moves the score, so nothing is known of any feature")
        elif exact[i]:
            words.append(_status_of_all(explained, numbers[i]))
        elif explained != explained:
            words.append("every mask moves the score as its size says, so nothing is known of any feature by itself")
        elif explained <= 0:
            words.append(f"nothing explains these masks: none of {numbers[i]} is predicted by the others")
        else:
            words.append(f"explains {explained:.0%} of what a left-out mask does, of {numbers[i]}")
    return tuple(words)


def _status_of_all(explained: float, number: int) -> str:
    """The status where all ``number`` masks that there are were seen."""
    if explained != explained:
        return f"every feature counts alike in all masks that there are, {number}"
    return f"explains {explained:.0%} of what all {number} masks that there are do"
