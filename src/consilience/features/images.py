"""Features of images (pixels, square patches, segments), and the choice of features by name, by default, or few of them.

Images are inputs with axes F = (C, H, W). :mod:`.base` says what features are.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..arrays import as_tensor
from ..errors import InputError, choose, need
from ..settings import setting
from .base import Elements, Features, check_rows, chosen_rows


@dataclass(frozen=True)
class Pixels(Features):
    """A feature is a pixel, over all channels: F = (C, H, W), A = (H, W)."""

    unit = "pixel"

    def shape(self, shape):
        _require_image(self, shape)
        return tuple(shape[1:])

    def reduce(self, values, owner):
        return values.sum(1)

    def expand(self, values, owner, shape):
        return values[:, None].expand(-1, *shape)


@dataclass(frozen=True)
class Patches(Features):
    """A feature is a square over all channels; the last row and column may be smaller. F = (C, H, W), A = (⌈H/size⌉, ⌈W/size⌉).

    Args:
        size: of the square's side, pixels.
    """

    size: int = setting(16, low=1)

    @property
    def unit(self):  # type: ignore[override]
        return f"{self.size}x{self.size} patch"

    def shape(self, shape):
        _require_image(self, shape)
        return tuple(-(-n // self.size) for n in shape[1:])

    def reduce(self, values, owner):
        over_channels = values.sum(1, keepdim=True)
        # A mean that is divided by 1 is a sum.
        return nnf.avg_pool2d(over_channels, self.size, ceil_mode=True, divisor_override=1)[:, 0]

    def expand(self, values, owner, shape):
        # The patch in which each row and each column of pixels lies.
        rows = torch.arange(shape[1], device=values.device) // self.size
        columns = torch.arange(shape[2], device=values.device) // self.size
        return values[:, None, rows[:, None], columns].expand(-1, *shape)


class Segments(Features):
    """A feature is a labelled segment: A = (largest number of segments,).

    Labels that start elsewhere or skip numbers are compacted per input.

    Args:
        labels: integers, of shape F, or F without its channels; ``batched``: with a first axis B.
        batched: every input has labels of its own: row i belongs to input i. As many rows as inputs are needed.

    Raises:
        InputError: the labels are not integers.
    """

    unit = "segment"
    ordered = False

    def __init__(self, labels: Tensor, batched: bool = False):
        labels = as_tensor("labels", labels)
        if labels.is_floating_point() or labels.is_complex():
            raise InputError(f"labels: segments are integers, got {labels.dtype}; cast with .long() if they are whole")
        rows = labels if batched else labels[None]
        # Each label's place among those that occur: numbers from 0 without gaps, so that no segment is empty.
        compact = [row.unique(return_inverse=True)[1] for row in rows]
        self.labels = torch.stack(compact).long()
        self.batched = batched
        # Of the input that has most of them: the maps of a batch have the same axes. The others lack the last segments.
        self.count = int(self.labels.max()) + 1

    def check(self, inputs, owner=None):
        if self.batched:
            check_rows("labels", len(self.labels), inputs, owner)

    def take(self, places):
        if not self.batched:
            return self
        # The count stays, so that maps of all batches have the same axes.
        taken = copy.copy(self)
        taken.labels = chosen_rows(self.labels, places, "labels")
        return taken

    @classmethod
    def slic(cls, images: Tensor, segments: int = 50, compactness: float = 10.0) -> Segments:
        """SLIC superpixels (Achanta et al. 2012), each image scaled to 0…1 first; through scikit-image, one image at a time.

        Args:
            images: (B, C, H, W).
            segments: about how many for each image.
            compactness: larger makes segments squarer, and follows colours less.
        """
        slic = need("skimage.segmentation", "images").slic
        labels = []
        for image in images.detach().double().cpu():
            # The compactness weighs distances in pixels against distances in colour, so colours need a known range.
            contrast = (image.max() - image.min()).clamp(min=1e-12)  # an image of one colour has none
            image = (image - image.min()) / contrast
            array = image.permute(1, 2, 0).numpy()
            one = slic(array, n_segments=segments, compactness=compactness, start_label=0)
            labels.append(torch.from_numpy(one))
        return cls(torch.stack(labels).to(images.device), batched=True)

    def _labels(self, owner: Tensor, shape: Sequence[int]) -> Tensor:
        """(N, elements) int64: the label of each element of each row, F flattened.

        Raises:
            InputError: the labels have neither the shape F nor that of F without channels.
        """
        labels = self.labels.to(owner.device)
        # The same for all channels.
        without_channels = labels.shape[1:] == tuple(shape[1:]) and labels.shape[1:] != tuple(shape)
        if without_channels:
            labels = labels[:, None].expand(-1, *shape)
        if labels.shape[1:] != tuple(shape):
            raise InputError(
                f"labels: shape {tuple(self.labels.shape[1:])} does not fit inputs of shape {tuple(shape)}"
            )
        row = owner if self.batched else torch.zeros_like(owner)
        return labels.flatten(1)[row]

    def shape(self, shape):
        return (self.count,)

    def reduce(self, values, owner):
        labels = self._labels(owner, values.shape[1:])
        # Not index_add: labels differ from row to row.
        return values.new_zeros(len(values), self.count).scatter_add(1, labels, values.flatten(1))

    def expand(self, values, owner, shape):
        return values.gather(1, self._labels(owner, shape)).reshape(-1, *shape)


def _require_image(features: Features, shape: Sequence[int]) -> None:
    """Raise InputError for inputs that are not images, with axes (C, H, W)."""
    if len(shape) != 3:
        raise InputError(
            f"features: {type(features).__name__} are for images of shape (channels, height, width), but each input has "
            f"shape {tuple(shape)}; use cs.Elements(), or {fewer(shape)}"
        )


def features_for(spec: Features | str | None, shape: Sequence[int]) -> Features:
    """The features that a caller means.

    Args:
        spec: None for pixels of images and elements of anything else; "pixels", "patches" or "elements"; or Features.
        shape: F.

    Raises:
        InputError: an unknown name, something else than features, or features of images for other inputs.
    """
    if spec is None:
        return Pixels() if len(shape) == 3 else Elements()
    if isinstance(spec, str):
        named: dict[str, Features] = {"elements": Elements(), "pixels": Pixels(), "patches": Patches()}
        features = named[choose("features", spec, named)]
    elif isinstance(spec, Features):
        features = spec
    else:
        raise InputError(f"features: a name or features such as cs.Patches(16), got {type(spec).__name__}")
    # Said here in the caller's terms; later it would be an index out of range.
    if isinstance(features, Pixels | Patches):
        _require_image(features, shape)
    return features


def fewer(shape: Sequence[int]) -> str:
    """What makes fewer features of inputs, for errors: in words.

    Args:
        shape: F.
    """
    if len(shape) == 1:
        return "cs.Columns(names), a name for each column, which joins those of one name"
    if len(shape) == 2:
        return "cs.Windows(size) of a series"
    if len(shape) == 3:
        return "cs.Patches(size) or cs.Segments(labels)"
    return f"cs.Segments(labels) with labels of shape {tuple(shape)}"


EIGHTH = 8
"""Patches along an image's short side for what is to be cheap and to explain much: 64 of a square one.

A posterior that was fitted to masks of these explained fresh masks of three other scales, and removal by other baselines, far
better than one that was fitted to patches of 4 pixels, of which a few hundred masks say little (docs/held-out.md)."""


def patches(shape: Sequence[int], number: int) -> Patches:
    """Square patches of which about ``number`` are along an image's short side, without a remainder where that is possible.

    Args:
        shape: F = (C, H, W).
        number: how many.
    """
    short = min(shape[1:])
    wanted = short / number
    even = [side for side in range(1, short + 1) if shape[1] % side == 0 and shape[2] % side == 0]
    near = [side for side in even if wanted / 1.5 <= side <= wanted * 1.5]
    return Patches(min(near, key=lambda side: abs(side - wanted), default=max(1, round(wanted))))


def coarse(shape: Sequence[int]) -> Features:
    """Features that are few enough to take away one by one.

    Square patches, about 14 to an image's short side; elements of anything else. Of the common divisors of both sides that
    make 7 to 28 patches along the short one, the side nearest 14 patches; if there is none, a fourteenth of the short side.
    With patches of one size every mask of a given share takes the same area away, and the uniform map's response is
    constant: correlation undefined, infidelity 1. With a remainder at the edge it is not, and a uniform map can predict Δf
    from the area.

    Args:
        shape: F.
    """
    if len(shape) != 3:
        return Elements()
    short = min(shape[1:])
    common_divisors = [side for side in range(1, short + 1) if shape[1] % side == 0 and shape[2] % side == 0]
    sides = [side for side in common_divisors if 7 <= short / side <= 28]

    def distance_from_14(side: int) -> float:
        # As a ratio: 7 and 28 patches are equally far from 14.
        return abs(math.log(short / side / 14))

    return Patches(min(sides, key=distance_from_14, default=max(1, short // 14)))
