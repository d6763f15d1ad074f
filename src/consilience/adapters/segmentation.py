"""Segmentation: one number for a region, so that what explains classifiers explains it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from ..errors import InputError
from ..model.state import borrowed
from .base import Adapter, Prepared


class Segmentation(Adapter):
    """See :func:`segmentation`."""

    def __init__(self, model: nn.Module, region: Any = None, reduce: str = "mean"):
        if not isinstance(model, nn.Module):
            raise InputError(f"model: expected an nn.Module, got {type(model).__name__}")
        if reduce not in ("mean", "sum"):
            raise InputError(f"reduce: 'mean' or 'sum', got {reduce!r}")
        self.model, self.region, self.reduce = model, region, reduce

    def prepare(self, inputs: Any, target: Any = None, features: Any = None, baselines: Any = None) -> Prepared:
        """The target and its region, found at ``inputs`` (B, C, …) and kept at every neighbour."""
        inputs = torch.as_tensor(inputs)
        with torch.no_grad(), borrowed(self.model, freeze=True):
            found = torch.cat([_classes(self.model(rows.clone())).argmax(1) for rows in inputs.detach().split(8)])
            count, size = len(found), found.shape[1:]
        given = None if self.region is None else self._given(count, size).to(found.device)
        if target is None or (isinstance(target, str) and target == "predicted"):
            inside = torch.ones_like(found) if given is None or given.dtype != torch.bool else given.long()
            votes = nnf.one_hot(found.flatten(1)) * inside.flatten(1)[..., None]
            target = votes.sum(1).argmax(1)
        numbers = torch.as_tensor(target, device=found.device).long().expand(count)
        classes = found if given is None else given
        region = classes if classes.dtype == torch.bool else classes == numbers.view(-1, *[1] * len(size))
        if empty := (~region.flatten(1).any(1)).nonzero()[:, 0].tolist():
            raise InputError(
                f"inputs[{empty[0]}]: its region is empty: "
                + (
                    f"no place is of class {int(numbers[empty[0]])}"
                    if classes.dtype != torch.bool
                    else "nothing is True"
                )
                + "; give another target or region"
            )
        return Prepared(
            _Pooled(self.model, self.reduce), inputs, numbers, features, {"region": region}, baselines,
            about={"region": region},
        )  # fmt: skip

    def _given(self, count: int, size: torch.Size) -> Tensor:
        """The caller's region at the model's resolution, (B, …) bool or classes."""
        region = torch.as_tensor(self.region)
        whole = region.dtype == torch.bool or not (region.is_floating_point() or region.is_complex())
        region = region[None] if region.ndim == len(size) else region
        if not whole or region.ndim != len(size) + 1 or len(region) not in (1, count):
            raise InputError(
                f"region: bool, or classes as integers, of shape F or (B, *F) with {len(size)} axes and {count} inputs, got "
                f"{region.dtype} {tuple(torch.as_tensor(self.region).shape)}"
            )
        if region.shape[1:] != size:  # many models answer at a quarter of the input's resolution
            region = nnf.interpolate(region[:, None].double(), size=size, mode="nearest-exact")[:, 0].to(region.dtype)
        return region.expand(count, *size)


def segmentation(model: nn.Module, *, region: Any = None, reduce: str = "mean") -> Segmentation:
    """A segmentation model for :func:`consilience.explain`: its score is that of one class over one region.

    Args:
        model: gives (N, classes, …) logits, or a mapping with "out" (torchvision), or an object with ``.logits``.
        region: where the score is taken: bool of shape F or (B, *F) with F the output's places; or a class map (integers),
            of which the target's places count; None: where the model itself says the target, at x. It stays the same at
            every neighbour, so that the score is a smooth function of the input. Other resolutions are brought to the
            model's by the nearest place.
        reduce: "mean" of the logits over the region, or "sum".

    The target is a class; None: the most frequent one of the model's map in the region.

    Raises:
        InputError: no place is of the target's class, or a region of another shape.

    Example:
        >>> net = torch.nn.Conv2d(3, 4, 1)
        >>> segmentation(net).prepare(torch.rand(2, 3, 8, 8)).model(torch.rand(2, 3, 8, 8), torch.ones(2, 8, 8).bool()).shape
        torch.Size([2, 4])
    """
    return Segmentation(model, region, reduce)


class _Pooled(nn.Module):
    def __init__(self, inner: nn.Module, reduce: str):
        super().__init__()
        self.inner, self.reduce = inner, reduce
        self.training = inner.training

    def forward(self, x: Tensor, region: Tensor, **kwargs: Any) -> Tensor:
        maps = _classes(self.inner(x, **kwargs))
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32)).flatten(2)
        inside = region.flatten(1)[:, None]
        total = torch.where(inside, maps, torch.zeros_like(maps)).sum(2)
        return total / inside.sum(2) if self.reduce == "mean" else total


def _classes(outputs: Any) -> Tensor:
    """(N, classes, …)."""
    found = outputs["out"] if isinstance(outputs, Mapping) and "out" in outputs else getattr(outputs, "logits", outputs)
    if not isinstance(found, Tensor) or found.ndim < 3:
        what = f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"model: its output is {what}, not (N, classes, …); for a classifier leave segmentation out")
    return found
