"""Missing pixels as the weighted mean of their neighbours: ROAD's linear system, solved for a batch of images at once.

The equations of one mask are a weighted graph Laplacian with fixed values at its known pixels: symmetric and positive
definite. Conjugate gradients (Hestenes & Stiefel 1952), preconditioned by one multigrid cycle, need about 10 to 20 iterations
at any image size and any share of missing pixels. Nothing is assembled: the matrix is a 3 × 3 stencil and a mask.

The matrix A acts on images u that are zero at known pixels: (A u)_p = (Σ of the weights of p's neighbours) · u_p − Σ of
weight · u at the neighbours, at missing pixels p, and 0 at known ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

CACHED = 600_000
"""Numbers of one block of images on a CPU, so that its caches hold what an iteration reads and writes."""

DAMPING = 0.8
"""The share of a Jacobi step that is made; a whole one would not damp the finest waves."""

STAY = 0.2
"""The share that is not made: 1 − DAMPING, which is another number in floating point."""

COARSEST = 4
"""The shorter side of the coarsest grid at most, in pixels: from there on a few Jacobi steps solve it."""

JACOBI_STEPS = 5
"""On the coarsest grid."""


def inpaint(x: Tensor, missing: Tensor, tolerance: float = 1e-5, most: int = 200) -> Tensor:
    """Images whose missing pixels are the weighted mean of their 8 neighbours.

    The weights are 1/6 for direct and 1/12 for diagonal neighbours, divided by their sum where the border leaves some out
    (Rong et al. 2022, arXiv 2202.00449). An image without any known pixel becomes its own mean. Each channel stops when
    the norm of its residual is below ``tolerance`` times the first one's, or rounding; at the latest after ``most`` iterations.

    Args:
        x: (N, C, H, W).
        missing: (N, H, W) bool.
        tolerance: of the residual's norm, as a share of the first one's.
        most: iterations.

    Returns:
        (N, C, H, W), in float32 or better.

    >>> x = torch.tensor([[[[1.0, 9.0, 3.0]]]])
    >>> inpaint(x, x[:, 0] == 9)
    tensor([[[[1., 2., 3.]]]])
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    block = max(1, len(x))
    if x.device.type == "cpu":
        block = max(1, CACHED // max(1, x[:1].numel()))
    blocks = zip(x.split(block), missing.split(block), strict=True)
    return torch.cat([_solve(images, holes, tolerance, most) for images, holes in blocks])


def _solve(x: Tensor, missing: Tensor, tolerance: float, most: int) -> Tensor:
    """Preconditioned conjugate gradients for a block of images, each channel by itself.

    Args:
        x: (N, C, H, W).
        missing: (N, H, W) bool.
        tolerance: see :func:`inpaint`.
        most: iterations.
    """
    start = torch.where(missing[:, None], _known_mean(x, missing), x)
    grids = _grids(missing[:, None], x.dtype)

    change = torch.zeros_like(start)
    direction = torch.zeros_like(start)
    residual = grids[0].minus_product(start)
    norm = _dot(residual, residual).sqrt()
    # The residual cannot become smaller than the rounding of the image's own size.
    rounding = 8 * torch.finfo(x.dtype).eps * _dot(start, start).sqrt()
    enough = (tolerance * norm).maximum(rounding)
    # rᵀz of the residual r and its preconditioned form z; 1 at first, when there is no earlier direction to add.
    inner = torch.ones_like(norm)
    for _ in range(most):
        active = norm > enough
        if not bool(active.any()):
            break
        preconditioned = _cycle(grids, residual)
        inner_before = inner
        inner = _dot(residual, preconditioned)
        direction = preconditioned.addcmul_(direction, torch.where(active, inner / inner_before, 0))
        minus_image = grids[0].minus_product(direction)
        curvature = -_dot(direction, minus_image)
        # What has converged stays as it is, so that an image is the same in any batch.
        length = torch.where(active & (curvature > 0), inner / curvature, 0)
        change.addcmul_(direction, length)
        residual.addcmul_(minus_image, length)
        norm = _dot(residual, residual).sqrt()
    return start + change


def _known_mean(x: Tensor, missing: Tensor) -> Tensor:
    """(N, C, 1, 1): the mean of each channel's known pixels; of all of them where none is known."""
    known = (~missing[:, None]).to(x)
    count = known.sum((2, 3), keepdim=True)
    mean_of_known = (x * known).sum((2, 3), keepdim=True) / count.clamp(min=1)
    return torch.where(count > 0, mean_of_known, x.mean((2, 3), keepdim=True))


def neighbours(u: Tensor) -> Tensor:
    """The weighted sum of each pixel's 8 neighbours: 1/6 for direct and 1/12 for diagonal ones, 0 beyond the border.

    Args:
        u: (…, H, W).
    """
    # The stencil is (1 2 1)ᵀ(1 2 1) / 12 without its centre, so two passes along one axis each make it. Shifted sums: on one
    # core 4 to 15 times faster than a convolution of single channels.
    rows = u / 6
    rows[..., 1:, :].add_(u[..., :-1, :], alpha=1 / 12)
    rows[..., :-1, :].add_(u[..., 1:, :], alpha=1 / 12)
    both = rows * 2
    both[..., 1:].add_(rows[..., :-1])
    both[..., :-1].add_(rows[..., 1:])
    return both.sub_(u, alpha=1 / 3)


@dataclass(frozen=True)
class _Grid:
    """The equations on one grid of the multigrid cycle.

    Args:
        mask: (N, 1, h, w), 1 where a pixel is missing, else 0.
        degree: (1, 1, h, w), the sum of a pixel's weights inside the image, the matrix's diagonal.
        damped: (N, 1, h, w), a damped Jacobi step: :data:`DAMPING` over the diagonal, zero at known pixels.
    """

    mask: Tensor
    degree: Tensor
    damped: Tensor

    def minus_product(self, u: Tensor) -> Tensor:
        """−A u of an image that is zero at known pixels. Of one that is not, the right-hand side minus A u: the residual.

        Args:
            u: (N, C, h, w).
        """
        return neighbours(u).addcmul_(u, self.degree, value=-1).mul_(self.mask)

    def smooth(self, u: Tensor, residual: Tensor) -> Tensor:
        """One damped Jacobi step towards the solution of A u = residual.

        Args:
            u: (N, C, h, w), zero at known pixels.
            residual: (N, C, h, w).
        """
        return neighbours(u).add_(residual).mul_(self.damped).add_(u, alpha=STAY)


def _grids(missing: Tensor, dtype: torch.dtype) -> list[_Grid]:
    """The image's grid and coarser and coarser ones, each of half the sides.

    A coarse pixel is missing if all of its four are. In two dimensions one stencil serves all grids: the second derivative
    is a quarter at twice the distance, and a coarse pixel stands for four.

    Args:
        missing: (N, 1, H, W) bool.
        dtype: of the images.
    """
    grids = []
    while True:
        mask = missing.to(dtype)
        degree = neighbours(torch.ones_like(mask[:1]))
        # An image of a single pixel has no neighbours: no division by zero. Elsewhere the diagonal is 1/6 at least.
        grids.append(_Grid(mask, degree, mask * (DAMPING / degree.clamp(min=1 / 12))))
        if min(missing.shape[2:]) <= COARSEST:
            return grids
        missing = nnf.max_pool2d(1 - mask, 2, ceil_mode=True) == 0


def _cycle(grids: list[_Grid], residual: Tensor) -> Tensor:
    """One symmetric V-cycle: smooth, correct from the next grid, smooth.

    It is symmetric, as conjugate gradients need it: the same smoothing before and after, and a restriction that is the
    transpose of the interpolation.

    Args:
        grids: of this and all coarser levels.
        residual: (N, C, h, w), on the first of them; overwritten at coarser levels only.

    Returns:
        (N, C, h, w), an approximate solution u of A u = residual.
    """
    here = grids[0]
    coarser = grids[1:]
    # A step from u = 0.
    u = here.damped * residual
    if not coarser:
        for _ in range(JACOBI_STEPS):
            u = here.smooth(u, residual)
        return u
    height, width = residual.shape[2:]
    # Restriction: a coarse pixel gets the sum of what is left at its four; an odd side is padded with zeros.
    left = nnf.pad(here.minus_product(u).add_(residual), (0, width % 2, 0, height % 2))
    left = left[..., ::2] + left[..., 1::2]
    left = left[..., ::2, :] + left[..., 1::2, :]
    correction = _cycle(coarser, left.mul_(coarser[0].mask))
    # Interpolation: the coarse pixel's value at each of its four.
    correction = correction.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :height, :width]
    return here.smooth(u.addcmul_(here.mask, correction), residual)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(N, C, 1, 1): the inner product of each channel."""
    return (a * b).sum((2, 3), keepdim=True)
