"""Regularisers of input gradients and of attributions made of them: add their ``total`` to your task loss.

``of``: the gradient of the "loss", or of the "output" of the label (the only output, if there is one).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..arrays import AnyRows, as_tensor
from ..attacks.box import like
from ..errors import InputError
from ..settings import checked
from .attack import PGD, Bounds, Size, loss_gradient, maximise
from .base import Regulariser
from .passes import Passes, per_row


class _OfGradients(Regulariser):
    """A regulariser of the gradient of the loss, or of the label's output."""

    def __init__(self, of: str, **common: Any):
        super().__init__(**common)
        self.of = checked("of", of, str, choices=("loss", "output"))


class InputGradientPenalty(_OfGradients):
    """‖∇ℓ(x)‖² (double backpropagation, Drucker & LeCun 1992; Ross & Doshi-Velez 2018, arXiv 1711.09404).

    parts: input_gradient, weight. Rows: B, differentiated twice.

    Args:
        of: the gradient of the "loss" or of the "output" of the label.
        common: see :class:`~consilience.train.TrainingObjective`.
    """

    name = "input_gradient"

    def __init__(self, of: str = "loss", **common: Any):
        super().__init__(of, **common)

    def value(self, passes: Passes) -> Tensor:
        def gradients(numbers: Tensor, graph: bool) -> Tensor:
            return passes.gradient(passes.x[numbers], numbers, numbers, graph, self.of)

        def squares(values: Tensor, inputs: Tensor) -> Tensor:
            return (values**2).sum()

        return passes.fold(gradients, squares, rows_each=1)


class LocalGradientAlignment(_OfGradients):
    """l2 · ‖g − g'‖² + cosine · (1 − cos(g, g'))/2, g and g' the gradients at x and x + U(−ε, ε) (Joo et al. 2023, arXiv
    2211.15900: ℓ2 + Cosd).

    parts: gradient_alignment, weight. Rows: 2B, differentiated twice.

    Args:
        eps: ε, in units of the model's input; a number or a tensor per channel (:func:`normalised`).
        l2: the weight of the distance.
        cosine: the weight of the angle.
        hold: g is a fixed target, without a gradient, as the authors' code has it; False: both move.
        of: the gradient of the "loss" or of the "output" of the label.
        common: see :class:`~consilience.train.TrainingObjective`.
    """

    name = "gradient_alignment"

    def __init__(
        self, eps: Size, l2: float = 1.0, cosine: float = 1.0, hold: bool = True, of: str = "output", **common: Any
    ):
        super().__init__(of, **common)
        self.eps = checked("eps", eps, Size, low=0)
        self.l2 = checked("l2", l2, float, low=0)
        self.cosine = checked("cosine", cosine, float, low=0)
        self.hold = checked("hold", hold, bool)

    def value(self, passes: Passes) -> Tensor:
        neighbours = passes.around(self.eps, 1, "alignment")

        def gradients(numbers: Tensor, graph: bool) -> Tensor:
            return passes.gradient(neighbours(numbers), numbers // 2, numbers, graph, self.of)

        def differences(values: Tensor, inputs: Tensor) -> Tensor:
            # Of each input two rows: x itself, and its neighbour.
            here, there = values.unflatten(0, (-1, 2)).flatten(2).unbind(1)
            if self.hold:
                here = here.detach()
            distance = ((here - there) ** 2).sum(1)
            angle = (1 - cosine(here, there)) / 2
            return (self.l2 * distance + self.cosine * angle).sum()

        return passes.fold(gradients, differences, rows_each=2)


class IGCosine(_OfGradients):
    """1 − cos(IG(x), IG(x')): IG the integrated gradient from ``baseline``, x' = argmax ℓ over ‖x' − x‖∞ ≤ ε (IGR: Wang & Kong
    2022, arXiv 2205.07279).

    x' is PGD's, the very one of :class:`AdversarialTraining` with the same seed, ids, step and settings. parts: ig_cosine,
    weight. Rows: B · steps, and 2 B · points differentiated twice (right Riemann sums, k = 1 … m).

    Args:
        eps: ε, see :class:`PGD`.
        steps: of the attack, see :class:`PGD`.
        step_size: of the attack, see :class:`PGD`.
        bounds: of valid inputs, see :class:`PGD`.
        points: m, points on each path.
        baseline: where the paths start; a number, or a tensor that broadcasts over (B, *F).
        of: the gradient of the "loss" or of the "output" of the label.
        common: see :class:`~consilience.train.TrainingObjective`.
    """

    name = "ig_cosine"

    def __init__(
        self,
        eps: Size,
        steps: int = 10,
        step_size: Size | None = None,
        bounds: Bounds | None = None,
        *,
        points: int = 10,
        baseline: float | Tensor = 0.0,
        of: str = "output",
        **common: Any,
    ):
        super().__init__(of, **common)
        self.attack = PGD(eps, steps, step_size, bounds)
        self.points = checked("points", points, int, low=1)
        self.baseline = checked("baseline", baseline, Size)

    def value(self, passes: Passes) -> Tensor:
        near = maximise(self.attack, passes, loss_gradient(passes))
        # Two paths for each input, to x and to x', one after the other: rows are numbered input by input.
        ends = torch.stack([passes.x, near], 1)
        starts = like(self.baseline, passes.x).expand_as(passes.x)[:, None].expand_as(ends)

        def distances(values: Tensor, inputs: Tensor) -> Tensor:
            averages = values.unflatten(0, (-1, 2, self.points)).mean(2)
            maps = averages * (ends - starts)[inputs]
            return (1 - cosine(*maps.flatten(2).unbind(1))).sum()

        gradients = passes.path(starts.flatten(0, 1), ends.flatten(0, 1), self.points, self.of)
        return passes.fold(gradients, distances, rows_each=2 * self.points)


class AttributionPrior(_OfGradients):
    """A prior on expected gradients φ (Erion et al. 2021, arXiv 1906.10670), with φ = E (x − b) ⊙ ∇f(b + α(x − b)), b a row of
    ``background`` and α ~ U(0, 1).

    "total_variation": Σ|φ − φ of the next pixel| along every axis after the channel, per input.
    "gini": −Σᵢⱼ|aᵢ − aⱼ| / (n Σ a),
    −2 times the Gini coefficient of the features' mean absolute attribution a over the *batch*: one number, which sum
    reduction multiplies by B. parts: total_variation or gini, weight. Rows: B · samples, differentiated twice.

    Args:
        prior: "total_variation" or "gini".
        background: (rows, *F), the data set from which b is drawn.
        samples: draws of (b, α) per input and step.
        of: the gradient of the "loss" or of the "output" of the label.
        common: see :class:`~consilience.train.TrainingObjective`.

    Raises:
        InputError: an unknown prior; when called, a background of another shape, or total variation of a table.
    """

    background: Tensor

    def __init__(self, prior: str, background: Tensor, samples: int = 1, of: str = "output", **common: Any):
        super().__init__(of, **common)
        self.prior = checked("prior", prior, str, choices=("total_variation", "gini"))
        self.samples = checked("samples", samples, int, low=1)
        if background is None:
            raise InputError("background: rows (n, *F) of data are needed, got None")
        rows = as_tensor("background", checked("background", background, AnyRows))
        self.register_buffer("background", rows, persistent=False)

    @property
    def name(self) -> str:  # type: ignore[override]
        """The prior's name, which its part has."""
        return self.prior

    def value(self, passes: Passes) -> Tensor:
        x = passes.x
        if self.background.shape[1:] != x.shape[1:]:
            raise InputError(
                f"background: rows of shape {tuple(self.background.shape[1:])} for inputs {tuple(x.shape[1:])}"
            )
        if self.prior == "total_variation" and x.ndim < 3:
            raise InputError("prior: 'total_variation' is for images and series (B, C, …); use 'gini' for tables")

        def contributions(numbers: Tensor, graph: bool) -> Tensor:
            owner = numbers // self.samples
            origin, alpha = self._draws(passes, owner, numbers % self.samples)
            way = x[owner] - origin
            there = origin + per_row(alpha, x.ndim) * way
            return way * passes.gradient(there, owner, numbers, graph, self.of)

        def prior(values: Tensor, inputs: Tensor) -> Tensor:
            maps = values.unflatten(0, (-1, self.samples)).mean(1)
            if self.prior == "total_variation":
                return total_variation(maps)
            # One number for the batch; times B, since the sum over the batch is divided by B later.
            return -2 * len(x) * gini(maps.abs().flatten(1).mean(0))

        return passes.fold(contributions, prior, self.samples, coupled=self.prior == "gini")

    def _draws(self, passes: Passes, owner: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        """(b (n, *F), α (n,)) of these samples (n,) of these inputs (n,)."""
        ids = passes.ids[owner]
        draw = passes.step * self.samples + sample
        key = passes.key / "expected"
        uniform = (key / "background").uniform(ids, draw, ())
        # The product may round up to the number of rows, which is one too far.
        row = (uniform * len(self.background)).long().clamp(max=len(self.background) - 1)
        alpha = (key / "alpha").uniform(ids, draw, (), passes.x.dtype)
        return self.background.to(passes.x)[row], alpha


def total_variation(maps: Tensor) -> Tensor:
    """Σ|difference to the next| along every axis after the channel of ``maps`` (B, C, …)."""
    return torch.stack([maps.diff(dim=axis).abs().sum() for axis in range(2, maps.ndim)]).sum()


def gini(sizes: Tensor) -> Tensor:
    """The Gini coefficient Σᵢⱼ|aᵢ − aⱼ| / (2 n Σ a) of ``sizes`` a (n,) ≥ 0.

    Sorted, Σᵢⱼ|aᵢ − aⱼ| = 2 Σₖ (2k − n − 1) a₍ₖ₎, which takes n log n steps in place of n².
    """
    ordered = sizes.sort().values
    n = len(ordered)
    factor = 2 * torch.arange(1, n + 1, device=sizes.device, dtype=sizes.dtype) - n - 1
    return (factor * ordered).sum() / (n * ordered.sum().clamp(min=1e-30))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """The cosine (n,) between rows of ``a`` and ``b`` (n, D); 0 where either is zero, like the gradients of a dead network."""
    # The norm's slope at 0 is taken as 0 by PyTorch, and the divisor is 1 there: no NaN gets into the gradient.
    size = a.norm(dim=1) * b.norm(dim=1)
    return (a * b).sum(1) / torch.where(size > 0, size, 1.0)
