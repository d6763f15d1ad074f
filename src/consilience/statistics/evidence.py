"""Sufficient statistics of L2 metrics: small matrices that score, combine and aggregate any mixture.

Axes: B inputs, S draws, R rows (explainers and derived maps). Each draw's own R × R matrix is kept: S·R² numbers are
nothing beside one map, and error bars, folds, paired differences and sums over chunks all follow from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..simplex import FLAT


@dataclass(frozen=True)
class Quadratic:
    """Q(w) = wᵀGw with G = mean over draws of ``draws`` (B, S, R, R), the residuals' Gram matrices; ``norm`` (B, R, R) is
    H = ΦᵀΦ at x, for the relative form wᵀGw / wᵀHw. float64."""

    draws: Tensor
    norm: Tensor

    @property
    def matrix(self) -> Tensor:
        return self.draws.mean(1)

    @property
    def count(self) -> int:
        return self.draws.shape[1]

    def __add__(self, more: Quadratic) -> Quadratic:
        return Quadratic(torch.cat([self.draws, more.draws], 1), self.norm)

    def take(self, draws: Tensor) -> Quadratic:
        return Quadratic(self.draws[:, draws], self.norm)

    def finite(self) -> Tensor:
        """(B, R): rows whose numbers are finite in every draw."""
        size = self.norm.diagonal(dim1=-2, dim2=-1)
        return self.draws.diagonal(dim1=-2, dim2=-1).isfinite().all(1) & size.isfinite()

    def valid(self) -> Tensor:
        return self.finite() & (self.norm.diagonal(dim1=-2, dim2=-1) > 0)

    def clean(self) -> Quadratic:
        ok = self.finite()
        both = ok[:, :, None] & ok[:, None]
        parts = torch.where(both[:, None], self.draws, 0.0), torch.where(both, self.norm, 0.0)
        return Quadratic(*(part.nan_to_num(0, 0, 0) for part in parts))

    def rows(self, index: slice) -> Quadratic:
        return Quadratic(self.draws[:, :, index][..., index], self.norm[:, index][..., index])

    def inputs(self, index: list[int]) -> Quadratic:
        return Quadratic(self.draws[index], self.norm[index])


@dataclass(frozen=True)
class Responses:
    """Answers of R attributions to S masks: ``a`` (B, S, R), the attribution taken away, and ``y`` (B, S), the fall of the
    score. Every moment of [a, y, 1] follows, centred exactly because the draws are kept. float64."""

    a: Tensor
    y: Tensor

    @property
    def count(self) -> int:
        return self.y.shape[1]

    def __add__(self, more: Responses) -> Responses:
        return Responses(torch.cat([self.a, more.a], 1), torch.cat([self.y, more.y], 1))

    def take(self, draws: Tensor) -> Responses:
        return Responses(self.a[:, draws], self.y[:, draws])

    def finite(self) -> Tensor:
        """(B, R): rows whose numbers are finite in every draw; none of an input whose y is not."""
        return self.a.isfinite().all(1) & self.y.isfinite().all(1)[:, None]

    def valid(self) -> Tensor:
        return self.finite() & (self.a != 0).any(1)

    def clean(self) -> Responses:
        return Responses(torch.where(self.a.isfinite().all(1, keepdim=True), self.a, 0.0), self.y)

    def rows(self, index: slice) -> Responses:
        return Responses(self.a[:, :, index], self.y)

    def inputs(self, index: list[int]) -> Responses:
        return Responses(self.a[index], self.y[index])

    def centred(self) -> Tensor:
        """(B, S, R): a minus its mean; zero for a row that only varies by rounding."""
        a = self.a - self.a.mean(1, keepdim=True)
        flat = (a**2).mean(1, keepdim=True) <= FLAT * (self.a**2).mean(1, keepdim=True)
        return torch.where(flat, 0.0, a)

    def covariances(self) -> tuple[Tensor, Tensor, Tensor]:
        """(C, b, v): covariance of the responses (B, R, R), with y (B, R), and variance of y (B,)."""
        a, y = self.centred(), self.y - self.y.mean(1, keepdim=True)
        count = a.shape[1]
        return a.mT @ a / count, torch.einsum("bsr,bs->br", a, y) / count, (y**2).mean(1)

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """(M, p, q): E[aaᵀ] (B, R, R), E[a y] (B, R), E[y²] (B,)."""
        count = self.a.shape[1]
        return self.a.mT @ self.a / count, torch.einsum("bsr,bs->br", self.a, self.y) / count, (self.y**2).mean(1)


@dataclass(frozen=True)
class Evidence:
    """What one set of draws says about R rows: either part may be missing."""

    quadratic: Quadratic | None = None
    responses: Responses | None = None

    def __add__(self, more: Evidence) -> Evidence:
        join = lambda a, b: b if a is None else a if b is None else a + b  # noqa: E731
        return Evidence(join(self.quadratic, more.quadratic), join(self.responses, more.responses))

    def _each(self, how: str, *args: Any) -> Evidence:
        return Evidence(
            *(None if part is None else getattr(part, how)(*args) for part in (self.quadratic, self.responses))
        )

    def rows(self, index: slice) -> Evidence:
        """Only some rows, e.g. the explainers without the derived maps."""
        return self._each("rows", index)

    def inputs(self, index: list[int]) -> Evidence:
        return self._each("inputs", index)

    def only(self, statistics: set[str]) -> Evidence:
        """Without what an objective does not look at: a NaN there is no reason to refuse."""
        return Evidence(*(getattr(self, name) if name in statistics else None for name in ("quadratic", "responses")))

    @property
    def like(self) -> Tensor:
        """(B, R) float64 on the evidence's device, to make others like it."""
        if self.quadratic is not None:
            return self.quadratic.norm[:, 0]
        assert self.responses is not None
        return self.responses.a[:, 0]

    @property
    def counts(self) -> tuple[int, ...]:
        """How many draws of each kind that is there."""
        return tuple(part.count for part in (self.quadratic, self.responses) if part is not None)

    def count(self, kind: str) -> int:
        """How many draws of the kind "quadratic" or "responses"."""
        return getattr(self, kind).count

    @property
    def draws(self) -> int:
        """The smallest number of draws of any kind."""
        return min(self.counts)

    def fold(self, part: int, parts: int, only: str | None = None) -> tuple[Evidence, Evidence]:
        """(draws outside block ``part`` of ``parts``, draws inside): contiguous blocks of each kind of draw, or of the kind
        ``only`` ("quadratic" or "responses"), the other staying whole."""

        def halves(stat: Any) -> tuple[Any, Any]:
            if stat is None:
                return None, None
            at = torch.arange(stat.count, device=self.like.device)
            low, high = len(at) * part // parts, len(at) * (part + 1) // parts
            return stat.take(torch.cat([at[:low], at[high:]])), stat.take(at[low:high])

        whole = lambda stat: (stat, stat)  # noqa: E731
        (q_out, q_in) = (whole if only == "responses" else halves)(self.quadratic)
        (r_out, r_in) = (whole if only == "quadratic" else halves)(self.responses)
        return Evidence(q_out, r_out), Evidence(q_in, r_in)

    def folds(self, parts: int, only: str) -> list[tuple[Evidence, Evidence]]:
        """:meth:`fold` for each of ``parts`` blocks of the draws of the kind ``only``, or fewer if there are not so many."""
        parts = min(parts, self.count(only))
        return [self.fold(part, parts, only) for part in range(parts)]

    def _every(self, how: str) -> Tensor:
        return torch.stack([getattr(part, how)() for part in (self.quadratic, self.responses) if part is not None]).all(
            0
        )

    def valid(self) -> Tensor:
        """(B, R): rows that can be used: finite everywhere and not the zero map."""
        return self._every("valid")

    def pooled(self) -> Evidence:
        """One input that stands for all: every input's statistics on a scale of its own, then their mean. Gram matrices are
        divided by the mean ‖φ_j‖² over rows; responses and y are centred and divided by their (mean) standard deviation.
        An input with a NaN in a row that works elsewhere is left out; a row that works nowhere stays NaN. If no input would
        be left, all are, and only rows that work everywhere."""
        finite = self._every("finite")
        works = finite.any(0)
        whole = finite[:, works].all(1)
        if bool(whole.any()) and bool(works.any()):
            kept = self.inputs(whole.nonzero()[:, 0].tolist())
        else:
            kept, works = self, finite.all(0)
        pooled = kept.clean()._pool()
        return pooled.spoil(~works[None])

    def spoil(self, rows: Tensor) -> Evidence:
        """NaN in the rows (B, R) that must not be used."""
        hole = torch.zeros_like(self.like).masked_fill(rows.to(self.like.device), torch.nan)
        q, r = self.quadratic, self.responses
        square = hole[:, :, None] + hole[:, None]
        return Evidence(
            None if q is None else Quadratic(q.draws + square[:, None], q.norm + square),
            None if r is None else Responses(r.a + hole[:, None], r.y),
        )

    def _pool(self) -> Evidence:
        e, q, r = self, None, None
        if e.quadratic is not None:
            size = e.quadratic.norm.diagonal(dim1=-2, dim2=-1).mean(1)[:, None, None]
            size = torch.where(size > 0, size, torch.ones_like(size))
            draws = (e.quadratic.draws / size[:, None]).flatten(0, 1)[None]
            q = Quadratic(draws, (e.quadratic.norm / size).mean(0, keepdim=True))
        if e.responses is not None:
            a = e.responses.centred()
            y = e.responses.y - e.responses.y.mean(1, keepdim=True)
            wide = a.pow(2).mean(1).sqrt().mean(1)[:, None, None]
            high = y.pow(2).mean(1, keepdim=True).sqrt()
            a, y = (
                a / torch.where(wide > 0, wide, torch.ones_like(wide)),
                y / torch.where(high > 0, high, torch.ones_like(high)),
            )
            r = Responses(a.flatten(0, 1)[None], y.flatten()[None])
        return Evidence(q, r)

    def clean(self) -> Evidence:
        """A row that is not finite in some draw of a kind made zero in all of that kind, so that it stays invalid, in any part
        of the draws."""
        return self._each("clean")


def joined(parts: Sequence[Evidence]) -> Evidence:
    """The evidence of several inputs, each with the same number of draws, as one batch."""
    q = [p.quadratic for p in parts if p.quadratic is not None]
    r = [p.responses for p in parts if p.responses is not None]
    return Evidence(
        Quadratic(torch.cat([p.draws for p in q]), torch.cat([p.norm for p in q])) if q else None,
        Responses(torch.cat([p.a for p in r]), torch.cat([p.y for p in r])) if r else None,
    )
