"""Robust attribution regularisation (Chen et al. 2019, arXiv 1905.09957), and what it contains: Madry's and natural training.

All are whole objectives: ``total`` contains the task loss. With ℓ the loss of one input, the integrated gradient *of the
loss* from x to x' with m points is IG(x, x') = (x' − x) ⊙ (1/m) Σₖ ∇ℓ(x + (k/m)(x' − x)), k = 1 … m.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import InputError, choose
from .attack import PGD, Bounds, Size, _only, loss_gradient, maximise, start
from .base import Loss, TrainingObjective, parts
from .passes import Finish, Passes


class NaturalTraining(TrainingObjective):
    """ℓ(x): the task loss itself, so that it can stand in a table beside the others. parts: task."""

    includes_task = True
    second_order = False

    def loss(self, passes: Passes) -> Loss:
        task = self._reduce(passes.task(passes.x).sum(), len(passes))
        return Loss(task, {"task": task.detach()})


class AdversarialTraining(TrainingObjective):
    """max ℓ(x') over ‖x' − x‖∞ ≤ ε (Madry et al. 2018, arXiv 1706.06083). parts: task, which is ℓ(x').

    ``eps``, ``steps``, ``step_size``, ``bounds``: see :class:`PGD`; the others: see :class:`TrainingObjective`.
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
        for name, value in (("points", points), ("attack_points", attack_points)):
            if not (isinstance(value, int) and value > 0):
                raise InputError(f"{name}: a positive integer, got {value!r}")
        self.attack, self.points, self.attack_points = PGD(eps, steps, step_size, bounds), points, attack_points
        self.size = choose("size", size, ("l1", "sum"))

    def _sizes(self, gradients: Tensor, way: Tensor) -> Tensor:
        """Σ over inputs of the size of IG; gradients (b, m, *F), way = x' − x (b, *F)."""
        attribution = way * gradients.mean(1)
        return (attribution.abs() if self.size == "l1" else attribution).sum()

    def _part(self, passes: Passes, near: Tensor) -> Tensor:
        """Σ over the batch of the size of IG(x, x')."""
        way = near - passes.x
        finish: Finish = lambda values, i: self._sizes(values.unflatten(0, (-1, self.points)), way[i])  # noqa: E731
        return passes.fold(passes.path(passes.x, near, self.points), finish, self.points)

    def _gradient(self, passes: Passes, weight: Tensor | float) -> Callable[[Tensor], Tensor]:
        """∇ of what the attack maximises, at x': ℓ(x') + weight · size, or the size alone."""
        m = self.attack_points

        def gradient(there: Tensor) -> Tensor:
            leaf = there.detach().requires_grad_()

            def finish(values: Tensor, inputs: Tensor) -> Tensor:
                values, mine = values.unflatten(0, (-1, m)), leaf[inputs]
                size = self._sizes(values, mine - passes.x[inputs])
                # The path's last point is x' itself: its gradient is ∇ℓ(x'), for nothing.
                return weight * size + (values[:, -1].detach() * mine).sum() if self.at_attack else size

            return _only(passes.slopes(passes.path(passes.x, leaf, m), finish, m, [leaf])[1])

        return gradient

    def loss(self, passes: Passes) -> Loss:
        weight = self._weight(passes, lambda: self._part(passes, start(self.attack, passes)))
        value, near = torch.zeros((), device=passes.x.device), passes.x
        if isinstance(weight, Tensor) or weight != 0:
            near = maximise(self.attack, passes, self._gradient(passes, weight))
            value = self._reduce(self._part(passes, near), len(passes))
        elif self.at_attack:
            near = maximise(self.attack, passes, loss_gradient(passes))
        task = self._reduce(passes.task(near if self.at_attack else passes.x).sum(), len(passes))
        return Loss(task + weight * value, parts(weight, task=task, ig_norm=value))


class IGNorm(_Integrated):
    """IG-NORM: ℓ(x) + λ max ‖IG(x, x')‖₁ over ‖x' − x‖∞ ≤ ε. parts: task, ig_norm, weight.

    λ = ``weight``; 0 is natural training. ``points`` m of the loss' path and ``attack_points`` of the attack's;
    ``size``: "l1", or "sum" for ΣIG ≈ ℓ(x') − ℓ(x). ``eps``, ``steps``, ``step_size``, ``bounds``: see :class:`PGD`; the
    others: see :class:`TrainingObjective`. :class:`Balanced` takes R₀ at the attack's random start.

    In networks with kinks (ReLU, max-pooling) the gradient in the parameters misses what moving kinks do to IG, whatever m
    (docs/training.md); smooth activations have none.

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
    """

    at_attack = True
