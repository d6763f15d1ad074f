"""Regularisers of input gradients and of attributions made of them: add their ``total`` to your task loss.

``of``: the gradient of the "loss", or of the "output" of the label (the only output, if there is one).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, choose
from .attack import PGD, Bounds, Size, loss_gradient, maximise
from .base import Regulariser
from .passes import Passes, like


class _OfGradients(Regulariser):
    def __init__(self, of: str, **common: Any):
        super().__init__(**common)
        self.of = choose("of", of, ("loss", "output"))


class InputGradientPenalty(_OfGradients):
    """‖∇ℓ(x)‖² (double backpropagation, Drucker & LeCun 1992; Ross & Doshi-Velez 2018, arXiv 1711.09404).

    parts: input_gradient, weight. Rows: B, differentiated twice.
    """

    name = "input_gradient"

    def __init__(self, of: str = "loss", **common: Any):
        super().__init__(of, **common)

    def value(self, passes: Passes) -> Tensor:
        return passes.fold(
            lambda i, graph: passes.gradient(passes.x[i], i, i, graph, self.of), lambda g, _: (g**2).sum(), 1
        )


class LocalGradientAlignment(_OfGradients):
    """l2 · ‖g − g'‖² + cosine · (1 − cos(g, g'))/2, g and g' the gradients at x and x + U(−ε, ε) (Joo et al. 2023, arXiv
    2211.15900: ℓ2 + Cosd).

    parts: gradient_alignment, weight. Rows: 2B, differentiated twice.

    Args:
        eps: ε, in units of the model's input; a number or a tensor per channel (:func:`normalised`).
        l2, cosine: the weights of the two terms.
        hold: g is a fixed target, without a gradient, as the authors' code has it; False: both move.
    """

    name = "gradient_alignment"

    def __init__(
        self, eps: Size, l2: float = 1.0, cosine: float = 1.0, hold: bool = True, of: str = "output", **common: Any
    ):
        super().__init__(of, **common)
        self.eps, self.l2, self.cosine, self.hold = eps, l2, cosine, hold

    def value(self, passes: Passes) -> Tensor:
        rows = passes.around(self.eps, 1, "alignment")

        def finish(values: Tensor, inputs: Tensor) -> Tensor:
            here, there = values.unflatten(0, (-1, 2)).flatten(2).unbind(1)
            here = here.detach() if self.hold else here
            apart = ((here - there) ** 2).sum(1)
            return (self.l2 * apart + self.cosine * (1 - cosine(here, there)) / 2).sum()

        return passes.fold(lambda i, graph: passes.gradient(rows(i), i // 2, i, graph, self.of), finish, 2)


class IGCosine(_OfGradients):
    """1 − cos(IG(x), IG(x')): IG the integrated gradient from ``baseline``, x' = argmax ℓ over ‖x' − x‖∞ ≤ ε (IGR: Wang & Kong
    2022, arXiv 2205.07279).

    x' is PGD's, the very one of :class:`AdversarialTraining` with the same seed, ids, step and settings. parts: ig_cosine,
    weight. Rows: B · steps, and 2 B · points differentiated twice (right Riemann sums, k = 1 … m).
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
        self.attack, self.points, self.baseline = PGD(eps, steps, step_size, bounds), points, baseline

    def value(self, passes: Passes) -> Tensor:
        near = maximise(self.attack, passes, loss_gradient(passes))
        m, ends = self.points, torch.stack([passes.x, near], 1)
        base = like(self.baseline, passes.x).expand_as(passes.x)[:, None].expand_as(ends)

        def finish(values: Tensor, inputs: Tensor) -> Tensor:
            maps = values.unflatten(0, (-1, 2, m)).mean(2) * (ends - base)[inputs]
            return (1 - cosine(*maps.flatten(2).unbind(1))).sum()

        return passes.fold(passes.path(base.flatten(0, 1), ends.flatten(0, 1), m, self.of), finish, 2 * m)


class AttributionPrior(_OfGradients):
    """A prior on expected gradients φ (Erion et al. 2021, arXiv 1906.10670), with φ = E (x − b) ⊙ ∇f(b + α(x − b)), b a row of
    ``background`` and α ~ U(0, 1), ``samples`` draws a step.

    ``prior``: "total_variation": Σ|φ − φ of the next pixel| along every axis after the channel, per input. "gini":
    −Σᵢⱼ|aᵢ − aⱼ| / (n Σ a), −2 times the Gini coefficient of the features' mean absolute attribution a over the *batch*: one
    number, which sum reduction multiplies by B. parts: total_variation or gini, weight.
    Rows: B · samples, differentiated twice.
    """

    background: Tensor

    def __init__(self, prior: str, background: Tensor, samples: int = 1, of: str = "output", **common: Any):
        super().__init__(of, **common)
        self.prior, self.samples = choose("prior", prior, ("total_variation", "gini")), samples
        self.register_buffer("background", torch.as_tensor(background), persistent=False)

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.prior

    def value(self, passes: Passes) -> Tensor:
        x, s = passes.x, self.samples
        if self.background.shape[1:] != x.shape[1:]:
            raise InputError(
                f"background: rows of shape {tuple(self.background.shape[1:])} for inputs {tuple(x.shape[1:])}"
            )
        if self.prior == "total_variation" and x.ndim < 3:
            raise InputError("prior: 'total_variation' is for images and series (B, C, …); use 'gini' for tables")
        background, key = self.background.to(x), passes.key / "expected"

        def drawn(numbers: Tensor) -> tuple[Tensor, Tensor]:
            """(origin, α) of each row."""
            ids, sample = passes.ids[numbers // s], passes.step * s + numbers % s
            which = ((key / "background").uniform(ids, sample, ()) * len(background)).long()
            return background[which.clamp(max=len(background) - 1)], (key / "alpha").uniform(ids, sample, (), x.dtype)

        def rows(numbers: Tensor, graph: bool) -> Tensor:
            owner = numbers // s
            origin, alpha = drawn(numbers)
            way = x[owner] - origin
            there = origin + alpha.view(-1, *[1] * (x.ndim - 1)) * way
            return way * passes.gradient(there, owner, numbers, graph, self.of)

        def finish(values: Tensor, inputs: Tensor) -> Tensor:
            maps = values.unflatten(0, (-1, s)).mean(1)
            if self.prior == "total_variation":
                return torch.stack([maps.diff(dim=axis).abs().sum() for axis in range(2, maps.ndim)]).sum()
            size = maps.abs().flatten(1).mean(0).sort().values
            n = len(size)
            rank = 2 * torch.arange(1, n + 1, device=size.device, dtype=size.dtype) - n - 1
            return -2 * len(x) * (rank * size).sum() / (n * size.sum().clamp(min=1e-30))

        return passes.fold(rows, finish, s, coupled=self.prior == "gini")


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """(n, D), (n, D) → (n,); 0 where either is zero, as the gradients of a dead network are, without an infinite slope."""
    size = a.norm(dim=1) * b.norm(dim=1)
    return (a * b).sum(1) / torch.where(size > 0, size, 1.0)
