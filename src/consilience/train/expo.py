"""ExpO: training for local explanations (Plumb et al. 2020, arXiv 1902.06787).

:class:`Fidelity` and :class:`Fidelity1D`: how far f is from linear around x. :class:`Stability`: how far from constant.

Regularisers: add their ``total`` to your task loss. f is the model's output, one number or several; labels are not needed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..settings import checked
from ..statistics.tensors import exact
from .base import Regulariser
from .passes import Passes


class Fidelity(Regulariser):
    """‖(I − H) f(x')‖² / n: the mean squared error of the best linear fit to f at n draws x' = x + σ N(0, I), in-sample.

    H projects on [z, 1], z = (x' − x)/σ, by a QR in float64: the same space as [x', 1], better conditioned. H does not
    depend on the model. Several outputs: their mean. With d inputs the value is low by the factor (n − d − 1)/n.
    parts: fidelity, weight.

    Args:
        sigma: σ, in units of the model's input.
        samples: n; None: max(20, 2d). More than d + 1, for fewer leave nothing unexplained.
        shared: the same draws for every input of the batch, and so one factorisation: for large d.
        common: see :class:`~consilience.train.TrainingObjective`.

    Rows: B · n forward. QR: B · n d² (shared: n d²).

    >>> line = torch.nn.Linear(3, 1)
    >>> bool(Fidelity()(line, torch.ones(2, 3)).total < 1e-10)
    True
    """

    name = "fidelity"
    second_order = False

    def __init__(self, sigma: float = 0.5, samples: int | None = None, shared: bool = False, **common: Any):
        super().__init__(**common)
        self.sigma = checked("sigma", sigma, float, above=0)
        self.samples = checked("samples", samples, int | None, low=1)
        self.shared = checked("shared", shared, bool)

    def dimensions(self, d: int) -> int:
        """r, the number of coordinates that each draw z has for inputs of ``d`` elements."""
        return d

    def spread(self, passes: Passes, z: Tensor) -> Tensor:
        """The way in the input (…, n, d) that each ``z`` (…, n, r) goes, in this step of ``passes``."""
        return z

    def value(self, passes: Passes) -> Tensor:
        x = passes.x
        n = self._samples(x[0].numel())
        z = self._draws(passes, n)
        # The projection on [z, 1] is QQᵀ. In float64 and by a QR: the normal equations would square the condition of a design
        # that is nearly square.
        design = exact(torch.cat([z, torch.ones_like(z[..., :1])], -1))
        basis = torch.linalg.qr(design).Q
        moves = self.sigma * self.spread(passes, z)

        def outputs(numbers: Tensor, graph: bool) -> Tensor:
            owner = numbers // n
            draws_of = owner
            if self.shared:
                draws_of = torch.zeros_like(owner)
            move = moves[draws_of, numbers % n].view(-1, *x.shape[1:])
            return passes.outputs(x[owner] + move, numbers).reshape(len(numbers), -1)

        def residuals(values: Tensor, inputs: Tensor) -> Tensor:
            f = exact(values).unflatten(0, (-1, n))
            q = basis
            if not self.shared:
                q = basis[inputs.to(basis.device)]
            unexplained = f - q @ (q.mT @ f)
            return (unexplained**2).mean((1, 2)).sum().to(x.device)

        return passes.fold(outputs, residuals, n)

    def _samples(self, d: int) -> int:
        """n, draws for inputs of ``d`` elements."""
        r = self.dimensions(d)
        usual = max(20, 2 * r)
        n = self.samples
        if n is None:
            n = usual
        if n <= r + 1:
            raise InputError(
                f"samples: {n} draws in {r} dimensions are fitted exactly, so nothing is left to penalise; "
                f"more than {r + 1} are needed (None takes {usual})"
            )
        return n

    def _draws(self, passes: Passes, n: int) -> Tensor:
        """z, (B, n, r), or (1, n, r) if all inputs share their draws."""
        ids = passes.ids
        if self.shared:
            ids = torch.zeros_like(ids[:1])  # one draw for all, whoever is in the batch
        samples = passes.step * n + torch.arange(n, device=passes.x.device)
        r = self.dimensions(passes.x[0].numel())
        key = passes.key / "fidelity"
        z = key.normal(ids.repeat_interleave(n), samples.repeat(len(ids)), (r,), passes.x.dtype)
        return z.unflatten(0, (-1, n))


class Fidelity1D(Fidelity):
    """:class:`Fidelity` along one random coordinate, another at each step: x' moves there only, n = 20 (ExpO's 1D-Fidelity).

    The cheap form: 20 forward rows per input whatever d. Equal to :class:`Fidelity` in one dimension. parts: fidelity_1d,
    weight.

    Args:
        sigma: as for :class:`Fidelity`.
        samples: n; None: 20.
        shared: as for :class:`Fidelity`.
        common: see :class:`~consilience.train.TrainingObjective`.
    """

    name = "fidelity_1d"

    def dimensions(self, d: int) -> int:
        return 1

    def spread(self, passes: Passes, z: Tensor) -> Tensor:
        d = passes.x[0].numel()
        # One coordinate for all inputs of a step, as in the paper.
        uniform = (passes.key / "coordinate").uniform(torch.zeros_like(passes.ids[:1]), passes.step, ())
        # The product may round up to d, which is one too far.
        coordinate = (uniform * d).long().clamp(max=d - 1)
        return z * torch.nn.functional.one_hot(coordinate, d).to(z)


class Stability(Regulariser):
    """E‖f(x) − f(x + u)‖², u ~ U[−radius, radius] per element, summed over outputs: ExpO's regulariser for images.

    parts: stability, weight. Rows: B · (1 + samples) forward.

    Args:
        radius: in units of the model's input.
        samples: draws per input and step.
        common: see :class:`~consilience.train.TrainingObjective`.
    """

    name = "stability"
    second_order = False

    def __init__(self, radius: float = 0.05, samples: int = 1, **common: Any):
        super().__init__(**common)
        self.radius = checked("radius", radius, float, low=0)
        self.samples = checked("samples", samples, int, low=1)

    def value(self, passes: Passes) -> Tensor:
        rows_each = 1 + self.samples
        neighbours = passes.around(self.radius, self.samples, "stability")

        def outputs(numbers: Tensor, graph: bool) -> Tensor:
            return passes.outputs(neighbours(numbers), numbers)

        def changes(values: Tensor, inputs: Tensor) -> Tensor:
            values = values.reshape(len(inputs), rows_each, -1)
            here = values[:, :1]
            there = values[:, 1:]
            return ((there - here) ** 2).sum(2).mean(1).sum()

        return passes.fold(outputs, changes, rows_each)
