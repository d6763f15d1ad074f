"""Imputers: what removal tests put in place of the features that they take away (values, noise, ROAD's neighbours)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from ..errors import InputError
from ..settings import Settings, setting
from ..statistics.keys import Key
from .baseline import COMPUTED, Baseline, usable_baseline
from .inpaint import inpaint
from .points import Points, shared

ROWS = 8
"""Rows of a data set that stand for it, where a curve is a mean over them."""


@dataclass(frozen=True)
class Imputer(Settings):
    """Interface: a frozen description of replacements.

    ``reference`` makes what belongs to an input, whatever is taken away from it; ``fill`` puts it into rows. Draws are
    keyed, so that every map, step and chunk of one input meets the same replacements.

    Attributes:
        occurs: whether what is put in are values that occur in data, or that the caller chose: codes of categories must.
    """

    @property
    def occurs(self) -> bool:
        """Whether what is put in place occurs in data, as codes of categories must."""
        return False

    def draws(self, points: Points) -> int:
        """How many draws of the replacement a curve is averaged over; 1 where there is one, or its noise hardly matters.

        Args:
            points: the inputs from which features are taken away.
        """
        return 1

    def reference(self, points: Points, samples: range, key: Key) -> Tensor:
        """(N·s, *F): what belongs to each point and draw, rows in that order.

        Args:
            points: N points.
            samples: the numbers of s draws.
            key: of the draws.
        """
        raise NotImplementedError

    def fill(self, x: Tensor, masks: Tensor, reference: Tensor) -> Tensor:
        """(N, *F): rows in which some elements are replaced.

        Args:
            x: (N, *F).
            masks: (N, *F) bool, what is replaced.
            reference: (N, *F), of :meth:`reference`.
        """
        return torch.where(masks, reference, x)


@dataclass(frozen=True)
class Replacement(Imputer):
    """The values of a baseline: zero, a constant, mean, blur, given, or drawn from data.

    Args:
        baseline: a :class:`~.baseline.Baseline`.
    """

    baseline: Baseline = Baseline()

    @property
    def occurs(self) -> bool:
        # The mean of rows need not occur in any of them: half of two codes is no code.
        return self.baseline.kind not in (*COMPUTED, "average")

    def draws(self, points: Points) -> int:
        # A few rows of a large data set: every one of them costs as many evaluations as the whole curve.
        return min(ROWS, self.baseline.count(points.x.ndim - 1))

    def reference(self, points: Points, samples: range, key: Key) -> Tensor:
        return self.baseline.drawn(points, samples, key / "baseline")


@dataclass(frozen=True)
class Noise(Imputer):
    """Uniform noise between two limits.

    Args:
        low: the lower limit; None: the smallest value of the input's channel, of inputs (N, d) of the whole row.
        high: the upper limit; None: the largest value, likewise.
    """

    low: float | None = None
    high: float | None = None

    def reference(self, points: Points, samples: range, key: Key) -> Tensor:
        x = points.x
        # Over all axes but the input's and, where there is one, the channel's.
        first = 2 if x.ndim > 2 else 1
        axes = tuple(range(first, x.ndim))
        low = x.amin(axes, keepdim=True)
        if self.low is not None:
            low = torch.full_like(x, self.low)
        high = x.amax(axes, keepdim=True)
        if self.high is not None:
            high = torch.full_like(x, self.high)
        low = low.repeat_interleave(len(samples), 0)
        high = high.repeat_interleave(len(samples), 0)
        uniform = shared((key / "noise").uniform, points, samples, x.shape[1:]).to(x)
        return low + (high - low) * uniform


@dataclass(frozen=True)
class NoisyLinear(Imputer):
    """ROAD's imputation (Rong et al. 2022, arXiv 2202.00449): each pixel that is taken away is the weighted mean of its
    neighbours (:func:`~consilience.perturb.inpaint.inpaint`), plus σ · N(0, 1).

    Args:
        sigma: σ, in units of the model's input.
        tolerance: of the linear solver; at 1e-5 its error is about 1e-4 of the image's standard deviation.
    """

    sigma: float = setting(0.01, low=0)
    tolerance: float = setting(1e-5, above=0)

    def reference(self, points: Points, samples: range, key: Key) -> Tensor:
        if points.x.ndim != 4:
            raise InputError(
                "baseline: noisy linear imputation is for images (channels, height, width), but each input has shape "
                f"{tuple(points.x.shape[1:])}; use 'mean', 'zero' or 'noise'"
            )
        noise = shared((key / "noise").normal, points, samples, points.x.shape[1:])
        return self.sigma * noise.to(points.x)

    def fill(self, x: Tensor, masks: Tensor, reference: Tensor) -> Tensor:
        # The linear system is one of pixels: it has no equation for a pixel that keeps some of its channels.
        missing = masks[:, 0]
        if not bool((masks == missing[:, None]).all()):
            raise InputError(
                "features: noisy linear imputation takes pixels away over all channels; use Pixels(), Patches(size) or "
                "Segments(labels without channels)"
            )
        # The noise was drawn for all pixels at once, so a pixel has the same, whatever else is taken away.
        filled = inpaint(x, missing, self.tolerance).to(x.dtype)
        return torch.where(masks, filled + reference, x)


def imputer(spec: Any) -> Imputer:
    """The imputer that is meant.

    Args:
        spec: an imputer; "noise", "linear"; or what :meth:`~consilience.perturb.baseline.Baseline.of` takes: "zero", "mean",
            "blur", a number, an array of shape F or (B, *F), a Baseline.
    """
    if isinstance(spec, Imputer):
        return spec
    if isinstance(spec, str) and spec in ("noise", "linear"):
        return Noise() if spec == "noise" else NoisyLinear()
    return Replacement(Baseline.of(spec))


def _usable(spec: Any) -> None:
    """The check of :data:`AnyImputer`; raises InputError."""
    known = isinstance(spec, Imputer) or (isinstance(spec, str) and spec in ("noise", "linear"))
    if not known:
        usable_baseline(spec)


AnyImputer = Annotated[Any, _usable]
"""The type of settings that :func:`imputer` reads, or None."""
