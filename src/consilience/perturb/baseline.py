"""What stands for an absent feature."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, choose
from ..statistics.keys import Key
from .points import Points, shared


@dataclass(frozen=True)
class Baseline:
    """What stands for "absent". ``kind``: zero, constant, mean (per channel), blur (Gaussian, σ pixels), given, samples,
    auto (blur for images, zero for anything else).

    Computed from the point itself, so an explainer stays a function of its point. ``given`` has shape F or (B, *F);
    ``samples`` has shape (n, *F), of which each draw takes one. The blur's kernel is renormalised at the borders.
    """

    kind: str = "zero"
    value: float = 0.0
    sigma: float = 10.0
    tensor: Tensor | None = field(default=None, compare=False)
    tag: int = field(default=0, repr=False)  # identity of the tensor, for equality of needs

    @classmethod
    def of(cls, spec: Baseline | str | float | Tensor | np.ndarray | None, x: Tensor | None = None) -> Baseline:
        """None → zero; a number → constant; a name; an array → one baseline of shape F or (B, *F).

        With the inputs ``x`` (B, *F) at hand, rows that are not one for each input, or that are the inputs themselves (which
        would explain nothing), are a data set.
        """
        if isinstance(spec, Baseline):
            return spec
        if spec is None:
            return cls()
        if isinstance(spec, str):
            return cls(choose("baseline", spec, ("zero", "mean", "blur")))
        if isinstance(spec, (int, float)):
            return cls("constant", value=float(spec))
        if isinstance(spec, Tensor | np.ndarray):
            tensor = torch.as_tensor(spec)
            if x is not None and tensor.ndim == x.ndim and len(tensor) > 1:
                if len(tensor) != len(x) or torch.equal(tensor.to(x), x):
                    return cls.samples(spec)
            return cls("given", tensor=tensor, tag=id(spec))
        tensor = torch.as_tensor(spec)  # a list: its copy dies with this object, so it is known by what it holds
        return cls("given", tensor=tensor, tag=hash(tensor.numpy().tobytes()))

    @classmethod
    def samples(cls, data: Tensor | np.ndarray) -> Baseline:
        """A data set (n, *F) from which each draw takes one row."""
        return cls("samples", tensor=torch.as_tensor(data), tag=id(data))

    def one(self) -> Baseline:
        """For what integrates from one baseline: the mean row of a data set; anything else as it is."""
        if self.kind != "samples" or self.tensor is None:
            return self
        return Baseline("given", tensor=self.tensor.double().mean(0), tag=self.tag)

    def at(self, points: Points) -> Tensor:
        """(N, *F): the baseline of each point; not for samples."""
        x = points.x
        if self.kind == "zero" or (self.kind == "auto" and x.ndim != 4):
            return torch.zeros_like(x)
        if self.kind == "constant":
            return torch.full_like(x, self.value)
        if self.kind == "mean":
            return x.mean(dim=tuple(range(2 if x.ndim > 2 else 1, x.ndim)), keepdim=True).expand_as(x)
        if self.kind in ("blur", "auto"):
            return blur(x, self.sigma)
        given = self._tensor(x)
        if given.shape == x.shape[1:]:
            return given.expand_as(x)
        if given.shape[1:] == x.shape[1:] and self.kind == "given":
            if len(given) == 1:
                return given.expand_as(x)
            inputs = points.inputs or int(points.owner.max()) + 1
            if len(given) != inputs:
                raise InputError(
                    f"baselines: {len(given)} rows for {inputs} inputs; give one, or one for each; to draw from a data set "
                    "use Baseline.samples(data) with expected_gradients or gradient_shap"
                )
            return given[points.owner]
        raise InputError(f"baselines: shape {tuple(given.shape)} does not fit inputs of shape {tuple(x.shape[1:])}")

    def drawn(self, points: Points, samples: range, key: Key) -> Tensor:
        """(N·s, *F): the baseline of each row; drawn for ``samples``, else the same for every sample."""
        s = len(samples)
        if self.kind != "samples":
            return self.at(points).repeat_interleave(s, 0)
        data = self._tensor(points.x)
        if data.shape[1:] != points.x.shape[1:]:
            raise InputError(f"baselines: rows of shape {tuple(data.shape[1:])} for inputs {tuple(points.x.shape[1:])}")
        u = shared(key.uniform, points, samples, ())
        return data[(u * len(data)).long().clamp(max=len(data) - 1)]

    def _tensor(self, x: Tensor) -> Tensor:
        assert self.tensor is not None
        return self.tensor.to(device=x.device, dtype=x.dtype)

    def check(self, left: Tensor, x: Tensor) -> None:
        """Raise InputError for values that are not finite; of one row each, for the inputs ``left`` (n,) of ``x`` (B, *F)."""
        if self.tensor is None:
            return
        each = self.kind == "given" and self.tensor.ndim == x.ndim and len(self.tensor) == len(x)
        values = self.tensor[left.to(self.tensor.device)] if each else self.tensor
        if not bool(values.isfinite().all()):
            raise InputError(
                f"baselines: {int((~values.isfinite()).sum())} of {values.numel()} values are NaN or infinite; fill the "
                "missing values as the model's training data were"
            )


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of the axes after the channel, (N, C, …): exact matrix per axis, rows renormalised at the borders."""
    if x.ndim < 3:
        raise InputError(f"baselines: 'blur' needs images or series (N, C, …), got shape {tuple(x.shape)}")
    for axis in range(2, x.ndim):
        at = torch.arange(x.shape[axis], dtype=torch.float64)
        kernel = torch.exp(-0.5 * ((at[:, None] - at) / sigma) ** 2)
        kernel = (kernel / kernel.sum(1, keepdim=True)).to(x)
        x = torch.movedim(torch.movedim(x, axis, -1) @ kernel.T, -1, axis)
    return x
