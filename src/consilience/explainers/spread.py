"""What methods that take features away have in common: what replaces them, and whose a feature's value is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..features.base import Features
from ..perturb.baseline import Baseline
from ..perturb.games import AUTO, unit
from ..perturb.points import Points
from ..statistics.tensors import exact

UNIT = "features (default: about 14 × 14 square patches of an image, elements otherwise)"

ABSENT = "replaced by the baseline: for images blurred with σ = 10 pixels, else zero, unless given"


def absent(spec: Any) -> Baseline:
    """What stands for "absent" by a setting ``spec``; None: blur for images, zero otherwise."""
    if spec is None:
        return AUTO
    return Baseline.of(spec)


def give(values: Tensor, features: Features | None, points: Points) -> Tensor:
    """Each feature's value shared evenly by its elements, (n, *F) in the input's dtype, float32 at least.

    Args:
        values: (n, A).
        features: None: :func:`~consilience.features.images.coarse`.
        points: x (n, *F).
    """
    shape: Sequence[int] = points.x.shape[1:]
    what = unit(features, shape)
    size = exact(what.sizes(points.owner, shape))
    each = torch.where(size > 0, values.unflatten(1, what.shape(shape)) / size.clamp(min=1), 0)
    return what.expand(like(each, points), points.owner, shape)


def like(values: Tensor, points: Points) -> Tensor:
    """``values`` on the device of the ``points``, in their dtype, float32 at least."""
    return values.to(points.x.device, torch.promote_types(points.x.dtype, torch.float32))
