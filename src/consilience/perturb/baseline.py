"""Baselines: the values that stand for absent features, computed from the input, given, or drawn from a data set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from ..arrays import as_tensor
from ..errors import InputError, choose
from ..features.base import check_rows, chosen_rows
from ..features.frames import plain_array
from ..settings import Rule, Settings, setting
from ..statistics.keys import Key
from .points import Points, shared

KINDS = ("zero", "constant", "mean", "blur", "auto", "given", "samples", "average", "per_input")

COMPUTED = ("zero", "mean", "blur", "auto")
"""Kinds whose values are computed, and need not occur in any data."""

GOLDEN = (math.sqrt(5) - 1) / 2
"""The golden section. Steps of this share of a circle spread most evenly over it, however many there are."""


@dataclass(frozen=True)
class Baseline(Settings):
    """The values of absent features.

    Computed from the point itself, drawn from data, or looked up by the input to which the point belongs, so that an
    explainer stays a function of its point.

    Args:
        kind: "zero"; "constant"; "mean", of each channel; "blur", Gaussian; "auto", blur for images and zero for anything
            else; "given", an array of shape F, or a data set (n, *F) with n > 1; "samples", a data set (n, *F) also where
            n = 1; "average", the mean row of a data set; "per_input", one row for each input, (B, *F).
        value: of "constant".
        sigma: of "blur", in pixels. The kernel is renormalised at the borders.
        tensor: of the last four kinds.
        tag: identity of the tensor. Tensors are not compared, but two explainers with the same baseline share evaluations.
    """

    kind: str = setting("zero", choices=KINDS)
    value: float = 0.0
    sigma: float = setting(10.0, above=0)
    tensor: Tensor | None = field(default=None, compare=False, metadata={"rule": Rule(finite=False)})
    tag: Any = field(default=0, repr=False)

    @classmethod
    def of(
        cls, spec: Baseline | str | float | Tensor | np.ndarray | Sequence | None, x: Tensor | None = None
    ) -> Baseline:
        """None → zero; a number → constant; a name → that; an array → itself.

        An array of shape F, or (1, *F), stands for every input. One of shape (n, *F) is a data set, however many inputs there
        are; :meth:`per_input` says that it is one row for each.

        Args:
            spec: what stands for "absent".
            x: inputs (B, *F), if they are at hand: then the kind of a data set is "samples" at once.

        Raises:
            InputError: an unknown name.
        """
        if isinstance(spec, Baseline):
            return spec
        if spec is None:
            return cls()
        if isinstance(spec, str):
            return cls(choose("baseline", spec, ("zero", "mean", "blur")))
        if isinstance(spec, (int, float)):
            return cls("constant", value=float(spec))
        given = cls._holding("given", spec)
        if x is not None and given.is_data(x.ndim - 1):
            return replace(given, kind="samples")
        return given

    @classmethod
    def samples(cls, data: Tensor | np.ndarray | Sequence) -> Baseline:
        """A data set, ``data`` (n, *F): the background over whose rows is averaged, or from which each draw takes one."""
        return cls._holding("samples", data)

    @classmethod
    def per_input(cls, rows: Tensor | np.ndarray | Sequence) -> Baseline:
        """One baseline for each input: row i of ``rows`` (B, *F) belongs to input i, and to its neighbours."""
        return cls._holding("per_input", rows)

    @classmethod
    def _holding(cls, kind: str, rows: Tensor | np.ndarray | Sequence) -> Baseline:
        """A baseline with a tensor of its own."""
        tensor = as_tensor("baselines", rows)
        if isinstance(rows, Tensor | np.ndarray):
            return cls(kind, tensor=tensor, tag=id(rows))
        # The copy of a list dies with this object, so it is known by what it holds.
        return cls(kind, tensor=tensor, tag=hash(tensor.numpy().tobytes()))

    # -- one row, or many ----------------------------------------------------------------------------------------------

    def is_data(self, axes: int) -> bool:
        """Whether this is a data set of inputs with so many ``axes`` F."""
        if self.kind == "samples":
            return True
        if self.kind != "given" or self.tensor is None:
            return False
        return self.tensor.ndim == axes + 1 and len(self.tensor) > 1

    def count(self, axes: int) -> int:
        """n, the rows of a data set of inputs with so many ``axes`` F; 1 where there is one baseline for a point."""
        if not self.is_data(axes):
            return 1
        assert self.tensor is not None
        return len(self.tensor)

    def one(self) -> Baseline:
        """One baseline, for what integrates along a path: the mean row of a data set; anything else as it is."""
        # "given" is the mean of one row where it is an array of shape F.
        if self.kind in ("given", "samples"):
            return replace(self, kind="average")
        return self

    def take(self, places: Tensor | Sequence[int]) -> Baseline:
        """The same baseline for some of the inputs: ``places`` (n,) among all that rows were given for.

        Only :meth:`per_input` has something to select. A loader's batches get their own rows in this way.

        Raises:
            InputError: a place has no row.
        """
        if self.kind != "per_input" or self.tensor is None:
            return self
        rows = chosen_rows(self.tensor, places, "baselines")
        return replace(self, tensor=rows, tag=hash((self.tag, tuple(map(int, places)))))

    # -- values --------------------------------------------------------------------------------------------------------

    def at(self, points: Points) -> Tensor:
        """(N, *F): the baseline of each of the ``points``.

        Raises:
            InputError: this is a data set, another number of rows than inputs, or another shape.
        """
        x = points.x
        if self.kind == "zero" or (self.kind == "auto" and x.ndim != 4):
            return torch.zeros_like(x)
        if self.kind == "constant":
            return torch.full_like(x, self.value)
        if self.kind == "mean":
            # Of each channel; of rows (N, d), which have none, of the whole row.
            first = 2 if x.ndim > 2 else 1
            return x.mean(dim=tuple(range(first, x.ndim)), keepdim=True).expand_as(x)
        if self.kind in ("blur", "auto"):
            return blur(x, self.sigma)
        if self.is_data(x.ndim - 1):
            raise InputError(
                f"baselines: a data set of {self.count(x.ndim - 1)} rows where one baseline for each input is needed; give "
                "Baseline.per_input(rows) if they are one for each, or one row, e.g. data.mean(0)"
            )
        rows = self.rows(x)
        if self.kind == "average":
            return rows.double().mean(0).to(x.dtype).expand_as(x)
        if self.kind == "per_input":
            check_rows("baselines", len(rows), points.inputs, points.owner)
            return rows[points.owner]
        return rows[0].expand_as(x)

    def drawn(self, points: Points, samples: range, key: Key) -> Tensor:
        """(N·s, *F): the baseline of each row; of a data set, the row drawn for each sample, else the same for all.

        Args:
            points: N points.
            samples: the numbers of s samples.
            key: of the draws.

        Raises:
            InputError: as :meth:`at`, but for data sets.
        """
        numbers = torch.arange(samples.start, samples.stop, device=points.x.device)
        return self.numbered(points, numbers.expand(len(points), -1), key)

    def numbered(self, points: Points, numbers: Tensor, key: Key) -> Tensor:
        """(N·s, *F): as :meth:`drawn`, for draws of any numbers.

        Rows are drawn without replacement: row (start + number · step) mod n, where the input's id draws the start and the
        step has no divisor in common with n. So n draws in a row meet every row once, and fewer are spread evenly.

        Args:
            points: N points.
            numbers: (N, s), of the draws.
            key: of the draws.

        Raises:
            InputError: as :meth:`at`, but for data sets.
        """
        if not self.is_data(points.x.ndim - 1):
            return self.at(points).repeat_interleave(numbers.shape[1], 0)
        rows = self.rows(points.x)
        count = len(rows)
        uniform = shared(key.uniform, points, range(1), ())
        # In float64, and clamped: a float32 just below 1 times n may round to n.
        start = (uniform.double() * count).long().clamp(max=count - 1)
        # The numbers modulo n first, so that the product does not leave int64.
        place = start[:, None] + (numbers % count) * _coprime_step(count)
        return rows[(place % count).flatten()]

    def rows(self, x: Tensor) -> Tensor:
        """(n, *F): all rows of the tensor.

        Args:
            x: (N, *F), whose device and type they get.

        Raises:
            InputError: they have another shape.
        """
        assert self.tensor is not None
        tensor = self.tensor.to(device=x.device, dtype=x.dtype)
        if tensor.shape == x.shape[1:] and self.kind != "per_input":
            return tensor[None]
        if tensor.shape[1:] != x.shape[1:] or tensor.ndim != x.ndim:
            raise InputError(
                f"baselines: shape {tuple(tensor.shape)} does not fit inputs of shape {tuple(x.shape[1:])}; give one input, or "
                "rows of a data set with a first axis more"
            )
        return tensor

    def check(self, left: Tensor, x: Tensor) -> None:
        """Refuse values that are not finite.

        Args:
            left: (n,), the places of the inputs that are explained; of one row for each input, only theirs are looked at.
            x: (B, *F), all inputs.

        Raises:
            InputError: there are such values, or rows of another shape or number.
        """
        if self.tensor is None:
            return
        rows = self.rows(x)
        if self.kind == "per_input":
            check_rows("baselines", len(rows), len(x))
            rows = rows[left]
        unusable = ~rows.isfinite()
        if bool(unusable.any()):
            raise InputError(
                f"baselines: {int(unusable.sum())} of {rows.numel()} values are NaN or infinite; fill the "
                "missing values as the model's training data were"
            )


def usable_baseline(spec: Any) -> None:
    """The check of :data:`AnyBaseline`, made when a setting is constructed.

    Args:
        spec: what :meth:`Baseline.of` reads.

    Raises:
        InputError: :meth:`Baseline.of` cannot read it, or it has values that are not finite.
    """
    if spec is None or isinstance(spec, Baseline):
        return
    if isinstance(spec, bool | bytes | Mapping):
        raise InputError(f"a number, a name, an array or a Baseline, got {spec!r}")
    rows = Baseline.of(plain_array(spec, "baselines")).tensor
    if rows is None:
        return
    if not rows.numel() or rows.is_complex():
        raise InputError(f"real numbers, got an array of shape {tuple(rows.shape)} of {rows.dtype}")
    if not bool(rows.isfinite().all()):
        raise InputError("NaN or infinite values; fill the missing values as the model's training data were")


AnyBaseline = Annotated[Any, usable_baseline]
"""The type of settings that :meth:`Baseline.of` reads: None, a number, a name, an array, or a Baseline."""


def _coprime_step(count: int) -> int:
    """The step nearest to the golden section of a number that has no divisor in common with it."""
    golden = round(count * GOLDEN)
    for distance in range(count):
        for step in (golden - distance, golden + distance):
            if step > 0 and math.gcd(step, count) == 1:
                return step
    return 1


def blur(x: Tensor, sigma: float) -> Tensor:
    """Inputs blurred by a Gaussian along the axes after the channel, its kernel renormalised at the borders.

    Args:
        x: (N, C, …).
        sigma: σ, in pixels.

    Raises:
        InputError: the inputs have no axis after the channel.
    """
    if x.ndim < 3:
        raise InputError(f"baselines: 'blur' needs images or series (N, C, …), got shape {tuple(x.shape)}")
    # In float32 at least: a kernel in half precision does not sum to one.
    blurred = x.to(torch.promote_types(x.dtype, torch.float32))
    for axis in range(2, x.ndim):
        # An exact matrix (places, places) for each axis, not a kernel of fixed width: σ may exceed the image.
        place = torch.arange(x.shape[axis], dtype=torch.float64)
        kernel = torch.exp(-0.5 * ((place[:, None] - place) / sigma) ** 2)
        kernel = (kernel / kernel.sum(1, keepdim=True)).to(blurred)
        blurred = torch.movedim(torch.movedim(blurred, axis, -1) @ kernel.T, -1, axis)
    return blurred.to(x.dtype)
