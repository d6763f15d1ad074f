"""Segmentation models, made classifiers: the score of a class is taken over a region, so there is one number for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from ..arrays import as_tensor, with_trailing_axes
from ..errors import InputError, choose
from ..model.outputs import Outputs
from ..model.recognition import interpret, last_layer_of
from ..model.state import borrowed
from ..model.targets import resolve_target
from ..signatures import known_arguments
from .base import Adapter, Prepared
from .batch import batch_of

MEANINGS = ("logits", "probabilities", "label_logits", "label_probabilities")

AT_ONCE = 8
"""Inputs that are evaluated at a time while the regions are read off the model's maps."""


class Segmentation(Adapter):
    """A segmentation model whose score is taken over a region. :func:`segmentation` makes it.

    Args:
        model: as for :func:`segmentation`.
        region: as for :func:`segmentation`.
        reduce: as for :func:`segmentation`.
        outputs: as for :func:`segmentation`.

    Raises:
        InputError: the model is not an ``nn.Module``; an unknown ``reduce`` or ``outputs``; a region neither of integers nor of
            truth values.
    """

    def __init__(self, model: nn.Module, region: Any = None, reduce: str = "mean", outputs: str | None = None):
        if not isinstance(model, nn.Module):
            raise InputError(f"model: expected an nn.Module, got {type(model).__name__}")
        if reduce not in ("mean", "sum"):
            raise InputError(f"reduce: 'mean' or 'sum', got {reduce!r}")
        if outputs is not None:
            choose("outputs", outputs, MEANINGS)
        self.model = model
        self.region = region
        self.reduce = reduce
        self.outputs = outputs
        # Checked now, though it is read when inputs are prepared.
        if region is not None:
            self._region_tensor()

    def prepare(self, inputs: Any, target: Any = None, features: Any = None, baselines: Any = None) -> Prepared:
        """The target and its region, as the model sees them at the inputs (B, C, …), and kept at every neighbour."""
        inputs, _ = batch_of(inputs, self.model)
        # Clones: models that start with an in-place operation must not write to the caller's inputs.
        batches = inputs.detach().split(AT_ONCE)
        with torch.no_grad(), borrowed(self.model, freeze=True):
            maps = torch.cat([_maps(self.model(rows.clone()), rows) for rows in batches])
        meaning = self._meaning(maps, inputs)
        asked_region = None
        if self.region is not None:
            asked_region = self._region_at(len(maps), maps.shape[2:]).to(maps.device)
        if target is None or (isinstance(target, str) and target == "predicted"):
            target = _predicted(maps, meaning, asked_region)
        # Of the outputs only their number counts here, since the target is a number by now.
        classes = resolve_target(target, maps.flatten(2).mean(2), meaning, "logit")
        region = _region(maps, meaning, classes, asked_region)
        empty = (~region.flatten(1).any(1)).nonzero()[:, 0].tolist()
        if empty:
            missing = f"no place is of class {int(classes[empty[0]])}"
            if asked_region is not None and asked_region.dtype == torch.bool:
                missing = "nothing is True"
            raise InputError(f"inputs[{empty[0]}]: its region is empty: {missing}; give another target or region")
        return Prepared(
            model=_Pooled(self.model, self.reduce, meaning.meaning),
            x=inputs,
            target=classes,
            features=features,
            kwargs={"region": region},
            baselines=baselines,
            about={"region": region},
            warnings=tuple(meaning.warnings("output", differentiable=False)),
        )

    def _meaning(self, maps: Tensor, inputs: Tensor) -> Outputs:
        """What the classes' maps (B, C, …) hold: logits or probabilities, of classes or of labels."""

        def last_layer() -> str | None:
            first = inputs[:1].detach().clone().requires_grad_()
            with torch.enable_grad(), borrowed(self.model, freeze=True):
                return last_layer_of(_maps(self.model(first.clone()), first))

        # Every place is a row with an output for each class.
        places = maps.movedim(1, -1).flatten(0, -2)
        places = places[places.isfinite().all(1)]
        outputs = interpret(places, "logit", declared=self.outputs, last_layer=last_layer)
        # One output of a classifier may be a number; one map of a segmentation is a foreground's for certain.
        return replace(outputs, known=True)

    def _region_tensor(self) -> Tensor:
        """The caller's region as a tensor of truth values or of classes, in the shape in which it was given."""
        region = as_tensor("region", self.region)
        if region.is_floating_point() or region.is_complex() or not region.ndim:
            raise InputError(
                f"region: bool, or classes as integers, of shape F or (B, *F), got {region.dtype} {tuple(region.shape)}"
            )
        return region

    def _region_at(self, count: int, size: torch.Size) -> Tensor:
        """The caller's region at the model's resolution, (B, …) bool or classes.

        Args:
            count: B.
            size: the places of the model's maps.
        """
        region = self._region_tensor()
        asked_shape = tuple(region.shape)
        if region.ndim == len(size):
            region = region[None]
        if region.ndim != len(size) + 1 or len(region) not in (1, count):
            raise InputError(
                f"region: bool, or classes as integers, of shape F or (B, *F) with {len(size)} axes and {count} inputs, got "
                f"{region.dtype} {asked_shape}"
            )
        # Many models answer at a quarter of the input's resolution.
        if region.shape[1:] != size:
            # In float64, which holds every class number exactly; by the nearest place, so that no class lies between two.
            channel = region[:, None].double()
            region = nnf.interpolate(channel, size=size, mode="nearest-exact")[:, 0].to(region.dtype)
        return region.expand(count, *size)


@known_arguments()
def segmentation(
    model: nn.Module, *, region: Any = None, reduce: str = "mean", outputs: str | None = None
) -> Segmentation:
    """A segmentation model for :func:`consilience.explain`: its score is that of one class over one region.

    Args:
        model: gives (N, classes, …), or a mapping with "out" (torchvision), or an object with ``.logits``. One class is a
            binary segmentation: foreground (target 1) and background (target 0). (N, …) over the input's own places, or a
            coarser grid of them, is one too.
        region: where the score is taken: bool of shape F or (B, *F) with F the output's places; or a class map (integers),
            of which the target's places count; None: where the model itself says the target, at x. It stays the same at
            every neighbour, so that the score is a smooth function of the input. Other resolutions are brought to the
            model's by the nearest place.
        reduce: "mean" of the class's map over the region, or "sum".
        outputs: what the maps hold: "logits" or "probabilities" of classes (of one class: of the foreground),
            "label_logits" or "label_probabilities" of masks that are independent of each other. None: by the rule of
            :func:`~consilience.model.recognition.interpret`, which cannot know independent logits: say them.

    The target is a class; None: the most frequent one of the model's map in the region; of a binary segmentation the
    foreground, of independent masks the largest.

    Raises:
        InputError: no place is of the target's class, or a region of another shape.

    Example:
        >>> net = torch.nn.Conv2d(3, 4, 1)
        >>> segmentation(net).prepare(torch.rand(2, 3, 8, 8)).model(torch.rand(2, 3, 8, 8), torch.ones(2, 8, 8).bool()).shape
        torch.Size([2, 4])
    """
    return Segmentation(model, region, reduce, outputs)


class _Pooled(nn.Module):
    """``inner`` with each class's map reduced to one number over a region."""

    def __init__(self, inner: nn.Module, reduce: str, meaning: str):
        super().__init__()
        self.inner = inner
        self.reduce = reduce
        # A mean of logits or of probabilities is one again; a sum of probabilities is a number.
        averaged = reduce == "mean" or meaning in ("logits", "label_logits")
        self.outputs_meaning = meaning if averaged else "values"
        self.training = inner.training

    def forward(self, x: Tensor, region: Tensor, **kwargs: Any) -> Tensor:
        maps = _maps(self.inner(x, **kwargs), x)
        # A sum over thousands of places in half precision would be coarse, or overflow.
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32)).flatten(2)
        inside = region.flatten(1)[:, None]
        # Where, not a product: a map that is infinite or NaN outside the region does not count.
        total = torch.where(inside, maps, torch.zeros_like(maps)).sum(2)
        if self.reduce == "mean":
            return total / inside.sum(2)
        return total


def _maps(outputs: Any, x: Tensor) -> Tensor:
    """The maps of all classes, (N, classes, …).

    Args:
        outputs: what the model gave.
        x: (N, C, …), for which rows.

    Raises:
        InputError: the outputs are not maps.
    """
    # torchvision gives a mapping, transformers an object with logits.
    if isinstance(outputs, Mapping) and "out" in outputs:
        outputs = outputs["out"]
    maps = getattr(outputs, "logits", outputs)
    if not isinstance(maps, Tensor):
        raise InputError(f"model: its output is {type(maps).__name__}, not a tensor (N, classes, …)")
    if maps.ndim == x.ndim - 1 and _on_grid(maps.shape[1:], x.shape[2:]):
        maps = maps[:, None]
    if maps.ndim < 3:
        raise InputError(
            f"model: its output is a tensor {tuple(maps.shape)}, not (N, classes, …); for a classifier leave segmentation out"
        )
    return maps


def _on_grid(size: torch.Size, places: torch.Size) -> bool:
    """Whether an output's axes are the input's places, or a coarser grid of them, so that none of them counts classes."""
    ratios = {there / here for here, there in zip(size, places, strict=True)}
    return len(ratios) == 1 and min(ratios) >= 1


def _predicted(maps: Tensor, meaning: Outputs, asked_region: Tensor | None) -> Tensor:
    """(B,) int64: the class to explain if none is asked for.

    Args:
        maps: (B, classes, …).
        meaning: what they hold.
        asked_region: (B, …), bool or classes, in which classes are counted if it is bool; None: everywhere.
    """
    if meaning.binary:
        return torch.ones(len(maps), dtype=torch.int64, device=maps.device)
    inside = torch.ones_like(maps[:, 0], dtype=torch.bool)
    if asked_region is not None and asked_region.dtype == torch.bool:
        inside = asked_region
    inside = inside.flatten(1)
    if meaning.labels:
        masks = torch.stack([_decided(maps, meaning, label) for label in range(meaning.columns)], 1)
        return (masks.flatten(2) & inside[:, None]).sum(2).argmax(1)
    # The class that the model says at most places.
    votes = nnf.one_hot(maps.argmax(1).flatten(1), meaning.columns) * inside[..., None]
    return votes.sum(1).argmax(1)


def _region(maps: Tensor, meaning: Outputs, target: Tensor, asked_region: Tensor | None) -> Tensor:
    """(B, …) bool: where the score of each input's target is taken."""
    if asked_region is None:
        return _decided(maps, meaning, target)
    if asked_region.dtype == torch.bool:
        return asked_region
    return asked_region == with_trailing_axes(target, asked_region.ndim - 1)


def _decided(maps: Tensor, meaning: Outputs, target: Tensor | int) -> Tensor:
    """(B, …) bool: where the model says the target.

    Args:
        maps: (B, classes, …).
        meaning: what they hold.
        target: (B,), or one for all.
    """
    size = maps.shape[2:]
    places = maps.movedim(1, -1).flatten(0, -2)
    targets = torch.as_tensor(target, device=maps.device).expand(len(maps)).repeat_interleave(size.numel())
    if meaning.labels:
        decided = meaning.decision(places, targets) == 1
    else:
        decided = meaning.predicted(places) == targets
    return decided.unflatten(0, (len(maps), *size))
