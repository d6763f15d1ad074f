"""Training for local explanations (Plumb et al. 2020, arXiv 1902.06787): how far f is from linear, or from constant, around x.

Regularisers: add their ``total`` to your task loss. f is the model's output, one number or several; labels are not needed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
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
        self.sigma, self.samples, self.shared = sigma, samples, shared

    def dimensions(self, d: int) -> int:
        """r, the number of coordinates that z has."""
        return d

    def spread(self, passes: Passes, z: Tensor) -> Tensor:
        """(…, n, r) → (…, n, d): the way each z goes."""
        return z

    def value(self, passes: Passes) -> Tensor:
        x = passes.x
        r = self.dimensions(x[0].numel())
        n = max(20, 2 * r) if self.samples is None else self.samples
        if n <= r + 1:
            raise InputError(
                f"samples: {n} draws in {r} dimensions are fitted exactly, so nothing is left to penalise; "
                f"more than {r + 1} are needed (None takes {max(20, 2 * r)})"
            )
        ids = torch.zeros_like(passes.ids[:1]) if self.shared else passes.ids
        numbers = passes.step * n + torch.arange(n, device=x.device)
        z = (passes.key / "fidelity").normal(ids.repeat_interleave(n), numbers.repeat(len(ids)), (r,), x.dtype)
        z = z.unflatten(0, (-1, n))
        base = torch.linalg.qr(exact(torch.cat([z, torch.ones_like(z[..., :1])], -1)))[0]
        move = self.sigma * self.spread(passes, z)

        def rows(numbers: Tensor, graph: bool) -> Tensor:
            owner, sample = numbers // n, numbers % n
            step = move[torch.zeros_like(owner) if self.shared else owner, sample]
            return passes.outputs(x[owner] + step.view(-1, *x.shape[1:]), numbers).reshape(len(numbers), -1)

        def finish(values: Tensor, inputs: Tensor) -> Tensor:
            y = exact(values).unflatten(0, (-1, n))
            q = base if self.shared else base[inputs.to(base.device)]
            return ((y - q @ (q.mT @ y)) ** 2).mean((1, 2)).sum().to(x.device)

        return passes.fold(rows, finish, n)


class Fidelity1D(Fidelity):
    """:class:`Fidelity` along one random coordinate, another at each step: x' moves there only, n = 20 (ExpO's 1D-Fidelity).

    The cheap form: 20 forward rows per input whatever d. Equal to :class:`Fidelity` in one dimension. parts: fidelity_1d,
    weight.
    """

    name = "fidelity_1d"

    def dimensions(self, d: int) -> int:
        return 1

    def spread(self, passes: Passes, z: Tensor) -> Tensor:
        d = passes.x[0].numel()
        u = (passes.key / "coordinate").uniform(torch.zeros_like(passes.ids[:1]), passes.step, ())
        return z * torch.nn.functional.one_hot((u * d).long().clamp(max=d - 1), d).to(z)


class Stability(Regulariser):
    """E‖f(x) − f(x + u)‖², u ~ U[−radius, radius] per element, summed over outputs: ExpO's regulariser for images.

    parts: stability, weight. ``samples`` draws a step. Rows: B · (1 + samples) forward.
    """

    name = "stability"
    second_order = False

    def __init__(self, radius: float = 0.05, samples: int = 1, **common: Any):
        super().__init__(**common)
        self.radius, self.samples = radius, samples

    def value(self, passes: Passes) -> Tensor:
        rows = passes.around(self.radius, self.samples, "stability")

        def finish(values: Tensor, inputs: Tensor) -> Tensor:
            values = values.reshape(len(inputs), 1 + self.samples, -1)
            return ((values[:, 1:] - values[:, :1]) ** 2).sum(2).mean(1).sum()

        return passes.fold(lambda numbers, graph: passes.outputs(rows(numbers), numbers), finish, 1 + self.samples)
