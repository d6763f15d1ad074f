"""What objectives of explainers' maps share: the explainers, the score explained, and groups of inputs that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..explainers import Explainer, Normalised, Stack, resolve
from ..features.base import Features
from ..features.images import features_for
from ..model.outputs import SCORE_KINDS, Kind
from ..model.score import Score
from ..perturb.points import Points
from ..settings import checked
from ..statistics.keys import fold
from .accumulation import chunks, sum_with_gradients, with_gradients
from .base import Regulariser, logistic
from .passes import Passes

Explainers = str | Explainer | Iterable[str | Explainer]
"""One explainer or several, by name or configured."""


class MapRegulariser(Regulariser):
    """Interface of a regulariser of explainers' maps.

    Args:
        explainers: one or several, by name or configured; differentiable ones.
        features: as for :class:`~consilience.explainers.Normalised`; None: pixels of images, else elements.
        sign: "abs" or "keep"; None: "abs" for images, else "keep".
        scale: "max" or "none"; None: "max".
        kind: of the score explained (:class:`~consilience.Score`).
        common: see :class:`~consilience.train.TrainingObjective`.
    """

    def __init__(
        self,
        explainers: Explainers,
        *,
        features: Features | str | None,
        sign: str | None,
        scale: str | None,
        kind: str,
        **common: Any,
    ):
        super().__init__(**common)
        self.explainers = resolve(explainers)
        self.features = checked("features", features, Features | str | None, choices=("pixels", "patches", "elements"))
        self.sign = checked("sign", sign, str | None, choices=("abs", "keep"))
        self.scale = checked("scale", scale, str | None, choices=("max", "l2", "none"))
        self.kind = checked("kind", kind, str, choices=SCORE_KINDS)

    def _stack(self, passes: Passes) -> Normalised:
        """The explainers with sign and scale for inputs of this shape."""
        shape = passes.x.shape[1:]
        default_sign = "abs" if len(shape) == 3 else "keep"
        stack = Stack(self.explainers, self.seed)
        return Normalised(stack, features_for(self.features, shape), self.sign or default_sign, self.scale or "max")

    def _score_of(self, passes: Passes, inputs: Tensor) -> tuple[Score, Points]:
        """The score and the points of the inputs with these numbers (b,)."""
        regression = self.kind == "output" and (passes.y is None or passes.y.is_floating_point())
        target = None if regression else passes.labels
        kind: str | Kind = self.kind
        if passes.loss_fn is logistic:
            kind = Kind(self.kind, outputs="logits")  # so that labels 0 and 1 are classes of one output
        score = Score(passes.bare, target, kind=kind, max_batch=passes.max_batch).at(passes.x, inputs)
        # Draws follow from ids, the explainers' own draws too: so every step has ids of its own.
        ids = fold(passes.ids[inputs], torch.full_like(inputs, passes.step))
        return score, Points(passes.x[inputs], inputs, ids, len(passes))

    def _sum(self, passes: Passes, rows_each: int, value: Callable[[Tensor, bool], Tensor]) -> Tensor:
        """Σ over the batch of value(numbers of some inputs, graph?).

        Inputs come in groups whose rows, ``rows_each`` for each input, fit into ``max_batch``; at least one at a time.
        """
        inputs = torch.arange(len(passes), device=passes.x.device)
        groups = chunks(inputs, passes.max_batch // rows_each)
        parameters = passes.parameters if torch.is_grad_enabled() else []
        # Attention in its plain form: the fused kernels cannot be differentiated twice.
        with sdpa_kernel(SDPBackend.MATH):
            if len(groups) == 1 or not parameters:
                return torch.stack([value(group, bool(parameters)) for group in groups]).sum()
            total, gradients = sum_with_gradients((value(group, True) for group in groups), parameters)
            return with_gradients(total, gradients, parameters)
