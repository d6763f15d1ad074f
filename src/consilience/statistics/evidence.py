"""Sufficient statistics of L2 metrics: small matrices that score, combine and aggregate any mixture.

Axes: B inputs, S draws, R rows (explainers and derived maps). Each draw's own R × R matrix is kept: S·R² numbers are
nothing beside one map, and error bars, folds, paired differences and sums over chunks all follow from it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .responses import Responses, within


@dataclass(frozen=True)
class Quadratic:
    """Q(w) = wᵀGw, G the mean over draws of the residuals' Gram matrices.

    Args:
        draws: (B, S, R, R) float64, the Gram matrix of each draw.
        norm: (B, R, R) float64, H = ΦᵀΦ at x, for the relative form wᵀGw / wᵀHw.
        whole: (B,) bool, inputs whose draws are all that there are: what follows from them is exact. None: no input.
    """

    draws: Tensor
    norm: Tensor
    whole: Tensor | None = None

    @property
    def matrix(self) -> Tensor:
        """G (B, R, R)."""
        return self.draws.mean(1)

    @property
    def count(self) -> int:
        """S."""
        return self.draws.shape[1]

    @property
    def exact(self) -> Tensor:
        """(B,) bool: inputs whose numbers are no estimates."""
        if self.whole is None:
            return torch.zeros(len(self.norm), dtype=torch.bool, device=self.norm.device)
        return self.whole

    def __add__(self, more: Quadratic) -> Quadratic:
        return Quadratic(torch.cat([self.draws, more.draws], 1), self.norm, self.whole)

    def take(self, draws: Tensor) -> Quadratic:
        """Only the draws number ``draws``: no longer all there are."""
        return Quadratic(self.draws[:, draws], self.norm)

    def blocks(self, chosen: Collection[int], parts: int) -> Quadratic:
        """The draws in the ``chosen`` ones of ``parts`` contiguous blocks."""
        at = torch.arange(self.count, device=self.norm.device)
        return self.take(within(at, self.count, chosen, parts))

    def finite(self) -> Tensor:
        """(B, R): rows whose numbers are finite in every draw."""
        size = self.norm.diagonal(dim1=-2, dim2=-1)
        return self.draws.diagonal(dim1=-2, dim2=-1).isfinite().all(1) & size.isfinite()

    def valid(self) -> Tensor:
        """(B, R): rows that are finite and not the zero map."""
        return self.finite() & (self.norm.diagonal(dim1=-2, dim2=-1) > 0)

    def clean(self) -> Quadratic:
        """A row that is not finite in some draw made zero in all of them."""
        ok = self.finite()
        both = ok[:, :, None] & ok[:, None]
        draws = torch.where(both[:, None], self.draws, 0.0)
        norm = torch.where(both, self.norm, 0.0)
        # Two finite maps may have a product that is not.
        return Quadratic(draws.nan_to_num(0, 0, 0), norm.nan_to_num(0, 0, 0), self.whole)

    def rows(self, index: slice) -> Quadratic:
        """Only some rows.

        Args:
            index: which rows.
        """
        return Quadratic(self.draws[:, :, index][..., index], self.norm[:, index][..., index], self.whole)

    def inputs(self, index: list[int]) -> Quadratic:
        """Only some inputs.

        Args:
            index: their places.
        """
        whole = None if self.whole is None else self.whole[index]
        return Quadratic(self.draws[index], self.norm[index], whole)

    def spoil(self, hole: Tensor) -> Quadratic:
        """``hole`` (B, R): 0, or NaN for rows that must not be used."""
        square = hole[:, :, None] + hole[:, None]
        return Quadratic(self.draws + square[:, None], self.norm + square, self.whole)

    def pooled(self, centred: bool = True) -> Quadratic:
        """All inputs' draws as those of one, Gram matrices divided by the input's mean ‖φ_j‖² over rows.

        Args:
            centred: for :meth:`Responses.pooled`; squared residuals are never centred.
        """
        size = self.norm.diagonal(dim1=-2, dim2=-1).mean(1)[:, None, None]
        size = torch.where(size > 0, size, torch.ones_like(size))
        draws = (self.draws / size[:, None]).flatten(0, 1)[None]
        norm = (self.norm / size).mean(0, keepdim=True)
        return Quadratic(draws, norm)

    @staticmethod
    def stack(parts: Sequence[Quadratic]) -> Quadratic:
        """Several inputs, each with as many draws, as one batch.

        Args:
            parts: of the inputs.
        """
        draws = torch.cat([part.draws for part in parts])
        norm = torch.cat([part.norm for part in parts])
        if all(part.whole is None for part in parts):
            return Quadratic(draws, norm)
        return Quadratic(draws, norm, torch.cat([part.exact for part in parts]))


Part = Quadratic | Responses
"""What the draws of one metric say."""


@dataclass(frozen=True)
class Evidence:
    """What one set of draws says about R rows: a part for each metric that was measured. Any part may be missing.

    Args:
        quadratic: of :class:`~consilience.metrics.AverageSensitivity`, which every table shows.
        responses: of :class:`~consilience.metrics.Infidelity`, which every table shows.
        others: parts of other metrics, by their ``statistic``.
    """

    quadratic: Quadratic | None = None
    responses: Responses | None = None
    others: Mapping[str, Part] = field(default_factory=dict)

    @classmethod
    def of(cls, parts: Mapping[str, Part]) -> Evidence:
        """Evidence with ``parts`` by name: "quadratic", "responses", and any others."""
        others = dict(parts)
        quadratic = others.pop("quadratic", None)
        responses = others.pop("responses", None)
        return cls(quadratic, responses, others)  # type: ignore[arg-type]

    @property
    def parts(self) -> dict[str, Part]:
        """The parts that are there, by name."""
        named = {"quadratic": self.quadratic, "responses": self.responses, **self.others}
        return {name: part for name, part in named.items() if part is not None}

    def __getitem__(self, kind: str) -> Any:
        """The part of one kind.

        Raises:
            KeyError: it was not measured.
        """
        return self.parts[kind]

    def __add__(self, more: Evidence) -> Evidence:
        """Further draws of the kinds that are there already; kinds that were not there join them."""
        parts = self.parts
        for kind, part in more.parts.items():
            parts[kind] = parts[kind] + part if kind in parts else part  # type: ignore[operator]
        return Evidence.of(parts)

    def _each(self, how: str, *args: Any) -> Evidence:
        return Evidence.of({kind: getattr(part, how)(*args) for kind, part in self.parts.items()})

    def rows(self, index: slice) -> Evidence:
        """Only some rows, e.g. the explainers without the derived maps.

        Args:
            index: which rows.
        """
        return self._each("rows", index)

    def inputs(self, index: list[int]) -> Evidence:
        """Only some inputs.

        Args:
            index: their places.
        """
        return self._each("inputs", index)

    def only(self, kinds: Collection[str]) -> Evidence:
        """Without what an objective does not look at: a NaN there is no reason to refuse.

        Args:
            kinds: of the parts that stay.
        """
        return Evidence.of({kind: part for kind, part in self.parts.items() if kind in kinds})

    @property
    def like(self) -> Tensor:
        """(B, R) float64 on the evidence's device, to make others like it."""
        part = next(iter(self.parts.values()))
        return part.norm[:, 0] if isinstance(part, Quadratic) else part.a[:, 0]

    @property
    def counts(self) -> tuple[int, ...]:
        """How many draws of each kind that is there."""
        return tuple(part.count for part in self.parts.values())

    def count(self, kind: str) -> int:
        """How many draws of one kind.

        Args:
            kind: e.g. "quadratic" or "responses".
        """
        return self[kind].count

    @property
    def draws(self) -> int:
        """The smallest number of draws of the kinds of which more can be had: neighbours and masks."""
        counts = [part.count for kind, part in self.parts.items() if kind in ("quadratic", "responses")]
        return min(counts or self.counts)

    def fold(self, part: int, parts: int, only: str | None = None) -> tuple[Evidence, Evidence]:
        """(draws outside block ``part`` of ``parts``, draws inside): contiguous blocks of each kind of draw, or of the kind
        ``only``, the others staying whole. A kind with fewer draws than blocks stays whole.

        Args:
            part: the number of the block, from 0.
            parts: how many blocks.
            only: the kind that is cut; None: all.
        """
        outside, inside = {}, {}
        for kind, drawn in self.parts.items():
            outside[kind] = inside[kind] = drawn
            if drawn.count < parts or (only is not None and kind != only):
                continue
            outside[kind] = drawn.blocks([block for block in range(parts) if block != part], parts)
            inside[kind] = drawn.blocks([part], parts)
        return Evidence.of(outside), Evidence.of(inside)

    def folds(self, parts: int, only: str) -> list[tuple[Evidence, Evidence]]:
        """:meth:`fold` for each of ``parts`` blocks of the draws of the kind ``only``, or fewer if there are not so many."""
        parts = min(parts, self.count(only))
        return [self.fold(part, parts, only) for part in range(parts)]

    def _every(self, how: str) -> Tensor:
        return torch.stack([getattr(part, how)() for part in self.parts.values()]).all(0)

    def valid(self) -> Tensor:
        """(B, R): rows that can be used: finite everywhere and not the zero map."""
        return self._every("valid")

    def finite(self) -> Tensor:
        """(B, R): rows whose numbers are finite in every draw of every kind."""
        return self._every("finite")

    def finite_maps(self) -> Tensor:
        """(B, R): rows whose map at x is finite, whatever the draws."""
        part = next(iter(self.parts.values()))
        if isinstance(part, Quadratic):
            return part.norm.diagonal(dim1=-2, dim2=-1).isfinite()
        return part.a.isfinite().all(1)

    def pooled(self, centred: bool = True) -> Evidence:
        """One input that stands for all: every input's statistics on a scale of its own, then their mean.

        See :meth:`Quadratic.pooled` and :meth:`Responses.pooled` for the scales. An input with a NaN in a row that works
        elsewhere is left out; a row that works nowhere stays NaN. If no input would be left, all are, and only rows that
        work everywhere.

        Args:
            centred: what is minimised is a correlation, see :meth:`Responses.pooled`.
        """
        finite = self.finite()
        works = finite.any(0)
        whole = finite[:, works].all(1)
        if bool(whole.any()) and bool(works.any()):
            kept = self.inputs(whole.nonzero()[:, 0].tolist())
        else:
            kept, works = self, finite.all(0)
        # A row that one kind of draws rules out is ruled out in all: it would count in the scale of the other kinds only.
        usable = kept.spoil(~works.expand_as(kept.like)).clean()
        return usable._each("pooled", centred).spoil(~works[None])

    def spoil(self, rows: Tensor) -> Evidence:
        """NaN in rows that must not be used.

        Args:
            rows: (B, R) bool, which.
        """
        hole = torch.zeros_like(self.like).masked_fill(rows.to(self.like.device), torch.nan)
        return self._each("spoil", hole)

    def clean(self) -> Evidence:
        """A row that is not finite in some draw of a kind made zero in all of that kind, so that it stays invalid, in any part
        of the draws."""
        return self._each("clean")


def joined(parts: Sequence[Evidence]) -> Evidence:
    """The evidence of several inputs, each with the same number of draws, as one batch.

    Args:
        parts: of the inputs, with the same kinds.
    """
    return Evidence.of(
        {kind: type(first).stack([part[kind] for part in parts]) for kind, first in parts[0].parts.items()}
    )


def alike(evidence: Sequence[Evidence]) -> list[list[int]]:
    """Places of inputs that have as many draws of each kind, so that they can stand in one batch.

    Args:
        evidence: one for each input, B = 1.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, each in enumerate(evidence):
        groups.setdefault((tuple(each.parts), each.counts), []).append(place)
    return list(groups.values())
