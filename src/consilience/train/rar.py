"""Robust attribution regularisation (Chen et al. 2019, arXiv 1905.09957), and what it contains: Madry's and natural training.

All are whole objectives: ``total`` contains the task loss. With ℓ the loss of one input, the integrated gradient *of the
loss* from x to x' with m points is IG(x, x') = (x' − x) ⊙ (1/m) Σₖ ∇ℓ(x + (k/m)(x' − x)), k = 1 … m.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..settings import checked
from .attack import PGD, Bounds, Size, loss_gradient, maximise, of_input, start
from .base import Loss, TrainingObjective, parts
from .passes import Passes


class NaturalTraining(TrainingObjective):
    """ℓ(x): the task loss itself, so that it can stand in a table beside the others. parts: task.

    Args:
        weight: without effect; there is no part to weigh.
        loss_fn: see :class:`TrainingObjective`.
        reduction: see :class:`TrainingObjective`.
        seed: see :class:`TrainingObjective`.
        max_batch: see :class:`TrainingObjective`.
    """

    includes_task = True
    second_order = False

    def loss(self, passes: Passes) -> Loss:
        task = self._reduce(passes.task(passes.x).sum(), len(passes))
        return Loss(task, {"task": task.detach()})


class AdversarialTraining(TrainingObjective):
    """max ℓ(x') over ‖x' − x‖∞ ≤ ε (Madry et al. 2018, arXiv 1706.06083). parts: task, which is ℓ(x').

    Args:
        eps: ε, see :class:`PGD`.
        steps: of the attack, see :class:`PGD`.
        step_size: of the attack, see :class:`PGD`.
        bounds: of valid inputs, see :class:`PGD`.
        common: see :class:`TrainingObjective`.
    """

    includes_task = True
    second_order = False

    def __init__(
        self, eps: Size, steps: int = 10, step_size: Size | None = None, bounds: Bounds | None = None, **common: Any
    ):
        super().__init__(**common)
        self.attack = PGD(eps, steps, step_size, bounds)

    def loss(self, passes: Passes) -> Loss:
        near = maximise(self.attack, passes, loss_gradient(passes))
        task = self._reduce(passes.task(near).sum(), len(passes))
        return Loss(task, {"task": task.detach()})


class _Integrated(TrainingObjective):
    """IG-NORM and IG-SUM-NORM differ in where the task loss is taken: at x, or at the attacked point."""

    includes_task = True
    at_attack: ClassVar[bool]

    def __init__(
        self,
        eps: Size,
        steps: int = 10,
        step_size: Size | None = None,
        bounds: Bounds | None = None,
        *,
        points: int = 50,
        attack_points: int = 10,
        size: str = "l1",
        **common: Any,
    ):
        super().__init__(**common)
        self.attack = PGD(eps, steps, step_size, bounds)
        self.points = checked("points", points, int, low=1)
        self.attack_points = checked("attack_points", attack_points, int, low=1)
        self.size = checked("size", size, str, choices=("l1", "sum"))

    def _sizes(self, gradients: Tensor, way: Tensor) -> Tensor:
        """Σ over inputs of the size of IG; gradients (b, m, *F), way = x' − x (b, *F)."""
        attribution = way * gradients.mean(1)
        if self.size == "l1":
            attribution = attribution.abs()
        return attribution.sum()

    def _part(self, passes: Passes, near: Tensor) -> Tensor:
        """Σ over the batch of the size of IG(x, x')."""
        way = near - passes.x

        def sizes(values: Tensor, inputs: Tensor) -> Tensor:
            return self._sizes(values.unflatten(0, (-1, self.points)), way[inputs])

        return passes.fold(passes.path(passes.x, near, self.points), sizes, self.points)

    def _attack_gradient(self, passes: Passes, weight: Tensor | float) -> Callable[[Tensor], Tensor]:
        """∇ of what the attack maximises, at x': ℓ(x') + weight · size, or the size alone."""

        def gradient(there: Tensor) -> Tensor:
            leaf = there.detach().requires_grad_()

            def maximised(values: Tensor, inputs: Tensor) -> Tensor:
                gradients = values.unflatten(0, (-1, self.attack_points))
                near = leaf[inputs]
                size = self._sizes(gradients, near - passes.x[inputs])
                if not self.at_attack:
                    return size
                # The path's last point is x' itself, so ∇ℓ(x') is known. ⟨∇ℓ(x'), x'⟩ with the gradient held has the same
                # gradient in x' as ℓ(x'), without another evaluation.
                loss = (gradients[:, -1].detach() * near).sum()
                return weight * size + loss

            path = passes.path(passes.x, leaf, self.attack_points)
            _, gradients = passes.slopes(path, maximised, self.attack_points, [leaf])
            return of_input(gradients)

        return gradient

    def loss(self, passes: Passes) -> Loss:
        # Balanced's R₀ is taken at the random start: at x itself the part is 0.
        weight = self._weight(passes, lambda: self._part(passes, start(self.attack, passes)))
        value = torch.zeros((), device=passes.x.device)
        near = passes.x
        if isinstance(weight, Tensor) or weight != 0:  # a tensor is not looked at, which would wait for the device
            near = maximise(self.attack, passes, self._attack_gradient(passes, weight))
            value = self._reduce(self._part(passes, near), len(passes))
        elif self.at_attack:
            near = maximise(self.attack, passes, loss_gradient(passes))
        task_at = near if self.at_attack else passes.x
        task = self._reduce(passes.task(task_at).sum(), len(passes))
        return Loss(task + weight * value, parts(weight, task=task, ig_norm=value))


class IGNorm(_Integrated):
    """IG-NORM: ℓ(x) + λ max ‖IG(x, x')‖₁ over ‖x' − x‖∞ ≤ ε. parts: task, ig_norm, weight.

    λ = ``weight``; 0 is natural training.

    In networks with kinks (ReLU, max-pooling) the gradient in the parameters misses what moving kinks do to IG, whatever m
    (docs/training.md); smooth activations have none.

    Args:
        eps: ε, see :class:`PGD`.
        steps: of the attack, see :class:`PGD`.
        step_size: of the attack, see :class:`PGD`.
        bounds: of valid inputs, see :class:`PGD`.
        points: m, points on the loss' path.
        attack_points: points on the attack's path.
        size: "l1", or "sum" for ΣIG ≈ ℓ(x') − ℓ(x).
        common: see :class:`TrainingObjective`. With :class:`Balanced`, R₀ is taken at the attack's random start.

    Rows: B + B · attack_points · steps (twice differentiated in x') + B · points (twice, in the parameters).

    >>> _ = torch.manual_seed(0)
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Softplus(), torch.nn.Linear(8, 3))
    >>> objective = IGNorm(eps=0.1, steps=5, points=10, attack_points=4)
    >>> loss = objective(net, torch.ones(2, 4), torch.tensor([0, 2]))
    >>> loss.total.backward(); sorted(loss.parts), objective.step
    (['ig_norm', 'task', 'weight'], tensor(1))
    """

    at_attack = False


class IGSumNorm(_Integrated):
    """IG-SUM-NORM: max ℓ(x') + β ‖IG(x, x')‖₁ over ‖x' − x‖∞ ≤ ε. parts: task, which is ℓ(x'), ig_norm, weight.

    β = ``weight``; 0 is :class:`AdversarialTraining` with the same start, steps and draws. The rest as for :class:`IGNorm`.

    Args:
        eps: ε, see :class:`PGD`.
        steps: of the attack, see :class:`PGD`.
        step_size: of the attack, see :class:`PGD`.
        bounds: of valid inputs, see :class:`PGD`.
        points: m, points on the loss' path.
        attack_points: points on the attack's path.
        size: "l1", or "sum" for ΣIG ≈ ℓ(x') − ℓ(x).
        common: see :class:`TrainingObjective`. With :class:`Balanced`, R₀ is taken at the attack's random start.
    """

    at_attack = True
