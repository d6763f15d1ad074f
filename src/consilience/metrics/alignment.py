"""Alignment: how far a map is from an attribution that is asked for, or lies outside a region."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from .. import simplex
from ..card import Card
from ..errors import InputError
from ..settings import Settings
from ..statistics.criteria import average_sensitivity, relative_sensitivity
from ..statistics.evidence import Evidence, Quadratic
from ..statistics.tensors import exact
from ..task import Task
from .base import Metric
from .grams import gram


@dataclass(frozen=True)
class Alignment(Metric, Settings):
    """r_j = φ_j − φ*, or r_j = φ_j outside a region; Q = ‖r‖² (AGG §4: γ₁ = I, γ₂ = φ*; γ₁ the projection, γ₂ = 0).

    Nothing is drawn: one residual for each input. Exactly one of the two is given:

    Args:
        reference: φ* (B, *A), an attribution that is asked for, on the scale of the maps.
        region: (B, *A) bool, True where attributions may be.
        relative: for a region, the share of ‖φ‖² outside it, wᵀGw / wᵀHw (the default), or wᵀGw, which maps with a small
            norm win.

    Raises:
        InputError: neither or both are given, or their shape is not the maps'.
    """

    reference: Tensor | None = field(default=None, compare=False)
    region: Tensor | None = field(default=None, compare=False)
    relative: bool = True

    card = Card(
        formula="‖φ − φ*‖², or ‖φ outside the region‖² / ‖φ‖² (relative=False: not divided)",
        source="Decker et al. 2024 (AGG), §4, arXiv 2406.05090",
        better="lower",
        normalisation="by ‖φ‖² for a region; none for a reference, which has to be on the scale of the maps",
        cost="none beside the maps",
    )
    name = "alignment"
    statistic = "alignment"
    asks = "nothing"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("reference", "region"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Tensor):
                raise InputError(
                    f"{name}: a tensor (B, *A), got {type(value).__name__}; torch.as_tensor makes one of an array"
                )
        if (self.reference is None) == (self.region is None):
            raise InputError("Alignment: give either reference=, an attribution (B, *A), or region=, bool (B, *A)")

    @property
    def _is_share(self) -> bool:
        """Whether it is a share of ‖φ‖²."""
        return self.relative and self.region is not None

    @property
    def allows_signed(self) -> bool:
        return self._is_share

    def measure(self, task: Task, samples: range, total: int) -> Quadratic:
        """The residuals' Gram matrices, as one draw."""
        owner = task.points.owner
        maps = exact(task.maps.flatten(2))

        def of_inputs(name: str, given: Tensor) -> Tensor:
            """What was ``given`` for all inputs, for those of the task: (B, 1, A)."""
            if given.shape[1:] != task.maps.shape[2:] or len(given) <= int(owner.max()):
                raise InputError(
                    f"{name}: shape {tuple(given.shape)}, expected one for each input and feature of the maps, "
                    f"(B, {', '.join(map(str, task.maps.shape[2:]))})"
                )
            return given.to(owner.device)[owner].flatten(1)[:, None].to(maps.device)

        if self.region is not None:
            residual = maps * ~of_inputs("region", self.region).bool()
        else:
            assert self.reference is not None
            residual = maps - of_inputs("reference", self.reference).to(maps)
        return Quadratic(gram(residual)[:, None], gram(maps))

    def loss(self, evidence: Evidence, w: Tensor) -> Tensor:
        # The forms wᵀGw / wᵀHw and wᵀGw are those of the sensitivities, with other residuals in G.
        criterion = relative_sensitivity if self._is_share else average_sensitivity
        return criterion(Evidence(evidence[self.statistic]), w).value

    def matrix(self, evidence: Evidence, whole: Evidence | None = None) -> Tensor | None:
        if self._is_share:
            return None
        return evidence[self.statistic].matrix

    def solve(self, evidence: Evidence, valid: Tensor, signed: bool) -> simplex.Solution:
        part = evidence[self.statistic]
        if self._is_share:
            return simplex.ratio(part.matrix, part.norm, valid=valid, signed=signed)
        if signed:
            raise InputError("signed: for Alignment to a region with relative=True")
        return simplex.quadratic(part.matrix, valid=valid)
