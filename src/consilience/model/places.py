"""Which cell of an activation belongs to which place of the image: read from its shape, then proved.

A shape alone proves nothing: 16 learned queries look like a grid of 4 × 4 patches. A reading counts as proved if

- nothing but local operations lies between the input and the activation (convolutions, pooling, normalisation,
  elementwise functions, joins of channels), as its graph says: then a cell sees a window around its own place; or
- the cells follow the image when it changes: each quarter of one image is replaced in turn, and for at least three cells
  in four, and more than chance gives, the quarter that moves a cell most is the one in which the cell lies.

Learned queries, latents, pruned or sorted tokens and windows in window order fail both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MAX_PREFIX = 16
"""The most tokens in front of the grid: class, distillation and register tokens."""

SHARE = 0.75
"""The share of the cells that must follow their own quarter. Residual streams have 1.0, attention's branches .4 to .7."""

CHANCE = 0.01
"""The largest probability of so many cells that follow, were the order of cells arbitrary."""


@dataclass(frozen=True)
class Layer:
    """The ``call``-th output of the submodule ``name`` in a forward pass, and where its axes lie.

    ``str(layer)`` is a name that :func:`~consilience.model.cam_layers.named` understands: ``layer4`` or, for a module that
    runs several times, ``block.relu#1``.

    Args:
        name: qualified name of the submodule.
        call: number of its call within a forward pass, from 0.
        layout: "NCHW", "NHWC" or "tokens" (N, prefix + h·w, C), row by row.
        grid: (h, w).
        prefix: number of tokens in front of the grid.
    """

    name: str
    call: int
    layout: str
    grid: tuple[int, int]
    prefix: int = 0

    def __str__(self) -> str:
        return f"{self.name}#{self.call}" if self.call else self.name


def readings(name: str, call: int, shape: torch.Size, spatial: tuple[int, int]) -> list[Layer]:
    """How an output of this shape may lie on an image of H × W, the likeliest reading first; none if it cannot.

    Args:
        name: of the submodule that gave it.
        call: number of the submodule's call.
        shape: (N, C, h, w), (N, h, w, C) or (N, p + h·w, C).
        spatial: (H, W) of the input.
    """
    height, width = spatial
    if len(shape) == 4:
        layouts = {"NCHW": (shape[2], shape[3]), "NHWC": (shape[1], shape[2])}
        layers = [Layer(name, call, layout, grid) for layout, grid in layouts.items()]
        # A cell may be twice as high as wide, not more: (N, C, h, w) read as NHWC is mostly a stripe.
        layers = [layer for layer in layers if _distortion(layer.grid, spatial) <= math.log(2)]
        return sorted(layers, key=lambda layer: _distortion(layer.grid, spatial))
    # Not (N, C, 1), the mean over tokens: C may well be a square.
    if len(shape) == 3 and shape[2] > 1:
        # Square patches of every size, where the rest of the image is cut off or padded.
        strides = range(1, max(spatial) + 1)
        rounded_down = {(height // s, width // s) for s in strides}
        rounded_up = {(-(-height // s), -(-width // s)) for s in strides}
        grid_of_count = {h * w: (h, w) for h, w in sorted(rounded_down | rounded_up) if h * w > 1}
        counts = [(prefix, shape[1] - prefix) for prefix in range(MAX_PREFIX + 1)]
        return [
            Layer(name, call, "tokens", grid_of_count[count], prefix)
            for prefix, count in counts
            if count in grid_of_count
        ]
    return []


def to_grid(tensor: Tensor, layer: Layer) -> Tensor:
    """A layer's activation or gradient as (N, C, h, w).

    Args:
        tensor: (N, C, h, w), (N, h, w, C) or (N, prefix + h·w, C).
        layer: says which.
    """
    if layer.layout == "NHWC":
        return tensor.permute(0, 3, 1, 2)
    if layer.layout == "tokens":
        return tensor[:, layer.prefix :].transpose(1, 2).unflatten(2, layer.grid)
    return tensor


# -- proof by what is between the input and the activation -------------------------------------------------------------

# Nodes of an autograd graph that leave every place where it is, by name without "Backward0". Not among them: matrix products
# and attention, which mix places; views and permutations, which may move them.
_LOCAL = frozenset(
    "Convolution MkldnnConvolution CudnnConvolution ThnnConv2D SlowConv2D ConvDepthwise2D"
    " NativeBatchNorm CudnnBatchNorm MiopenBatchNorm NativeGroupNorm"
    " Relu LeakyRelu PreluKernel Elu Selu Celu Gelu Silu Mish Hardswish Hardsigmoid Hardtanh Sigmoid Tanh Softplus"
    " Threshold Clamp ClampMin ClampMax Abs Exp Log Neg Pow Sqrt Square"
    " MaxPool2DWithIndices MkldnnMaxPool2D AvgPool2D AdaptiveAvgPool2D MkldnnAdaptiveAvgPool2D AdaptiveMaxPool2D"
    " UpsampleNearest2D UpsampleBilinear2D ConstantPadNd ReflectionPad2D ReplicationPad2D"
    " Add Sub Mul Div Cat Mean NativeDropout Dropout FeatureDropout Clone ToCopy Alias".split()
)


def is_local(tensor: Tensor, layer: Layer) -> bool:
    """Whether only local operations lead from the leaves of its graph to this activation.

    Args:
        tensor: (N, C, h, w), with its graph.
        layer: where its axes lie; False for any other layout than NCHW.
    """
    if layer.layout != "NCHW" or tensor.grad_fn is None:
        return False
    todo = [tensor.grad_fn]
    seen = set[Any]()
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        parents = [parent for parent, _ in node.next_functions if parent is not None]
        if not parents:  # a leaf: the image, or a parameter
            continue
        operation = node.name().rstrip("0123456789").removesuffix("Backward")
        # A join of channels leaves places where they are; one along height or width does not.
        along_space = operation == "Cat" and node._saved_dim != 1  # type: ignore[attr-defined]
        # A mean that keeps its axes is a factor for all places alike (squeeze and excitation).
        squeezed = operation == "Mean" and not node._saved_keepdim  # type: ignore[attr-defined]
        if operation not in _LOCAL or along_space or squeezed:
            return False
        todo += parents
    return True


# -- proof by what moves when the image changes ------------------------------------------------------------------------


@dataclass(frozen=True)
class Tiles:
    """The image in equal parts, numbered row by row: its quarters, or halves of one that is a line.

    Args:
        rows: how many parts lie above one another.
        columns: how many lie side by side.
    """

    rows: int
    columns: int

    @staticmethod
    def of(spatial: tuple[int, int]) -> Tiles:
        """Quarters of an image of ``spatial`` (H, W); halves of one that is one pixel high or wide."""
        height, width = spatial
        return Tiles(min(2, height), min(2, width))

    def __len__(self) -> int:
        return self.rows * self.columns

    def replaced(self, image: Tensor, other: Tensor) -> Iterator[Tensor]:
        """For each tile, the image with that tile taken from another one.

        Args:
            image: (1, C, H, W).
            other: (1, C, H, W).
        """
        height, width = image.shape[2:]
        for row in range(self.rows):
            for column in range(self.columns):
                down = slice(row * height // self.rows, (row + 1) * height // self.rows)
                across = slice(column * width // self.columns, (column + 1) * width // self.columns)
                changed = image.clone()
                changed[:, :, down, across] = other[:, :, down, across]
                yield changed

    def of_cells(self, grid: tuple[int, int]) -> Tensor:
        """(h, w) int64: the tile in which each cell of a ``grid`` (h, w) lies; −1 for a cell that lies across two."""
        along_axes = []
        for cells, parts in zip(grid, (self.rows, self.columns), strict=True):
            # Cell c covers [c, c + 1) / cells of the axis: the part in which that begins, and the one in which it ends.
            start = torch.arange(cells) * parts // cells
            end = ((torch.arange(cells) + 1) * parts - 1) // cells
            along_axes.append(torch.where(start == end, start, -1))
        down = along_axes[0][:, None]
        across = along_axes[1][None]
        return torch.where((down < 0) | (across < 0), -1, down * self.columns + across)


def follow(changes: Tensor, tiles: Tiles) -> tuple[int, int]:
    """How many cells follow their own tile: they move most when the tile in which they lie is replaced.

    Args:
        changes: (tiles, h, w), how far each cell moves when each tile is replaced.
        tiles: the tiles.

    Returns:
        (cells that follow, cells that could: those that lie in one tile and move at all). See :func:`proved`.
    """
    # A tile that moves the whole layer more than others must not win everywhere.
    overall = changes.mean((1, 2), keepdim=True)
    relative = changes / torch.where(overall > 0, overall, 1.0)
    expected = tiles.of_cells((changes.shape[1], changes.shape[2])).to(changes.device)
    moves = changes.amax(0) > 0
    judged = (expected >= 0) & moves & changes.isfinite().all(0)
    right = (relative.argmax(0) == expected) & judged
    return int(right.sum()), int(judged.sum())


def proved(right: int, judged: int, tiles: Tiles) -> bool:
    """Whether so many cells follow their tile that their order is the image's.

    Args:
        right: cells that follow.
        judged: cells that could.
        tiles: the tiles.
    """
    if judged == 0 or right < SHARE * judged or len(tiles) < 2:
        return False
    # In an arbitrary order each cell follows its own tile with this probability: a binomial tail.
    chance = 1 / len(tiles)
    at_least = range(right, judged + 1)
    tail = sum(math.comb(judged, k) * chance**k * (1 - chance) ** (judged - k) for k in at_least)
    return tail <= CHANCE


def _distortion(grid: tuple[int, int], spatial: tuple[int, int]) -> float:
    """|log| of a cell's height over its width, in pixels; infinite for a single cell or a grid finer than the image."""
    h, w = grid
    height, width = spatial
    if h * w <= 1 or h > height or w > width:
        return math.inf
    return abs(math.log(h * width / (w * height)))
