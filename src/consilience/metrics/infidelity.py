"""Whether an attribution says how the score falls when features are taken away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import simplex
from ..card import Card
from ..errors import InputError
from ..features.base import Elements, Features
from ..features.images import coarse, patches
from ..model.calling import precision_of
from ..model.score import Score
from ..perturb.baseline import AnyBaseline, Baseline
from ..perturb.mask_order import SHARES
from ..perturb.masks import Masked, mask_units
from ..perturb.points import Cloud, Points, present
from ..settings import Settings, setting
from ..simplex import FLAT
from ..statistics.criteria import faithfulness_correlation
from ..statistics.evidence import Evidence, Responses
from ..statistics.keys import Key
from ..statistics.responses import MaskRows
from ..statistics.tensors import exact
from ..surrogates.local_linear import score_of_nothing
from ..task import Task
from .base import Block, Metric

SCALINGS = ("correlation", "free", "yeh", "raw", "code")

WEAK = 0.01
"""Masks that move the score by less than this share of f(x) − f(baseline) are no evidence of what made it."""

ROUNDING = {torch.float16: 0.5, torch.bfloat16: 0.5, torch.float32: 4, torch.float64: 4}
"""Falls of at most so many roundings of the score are zero. Two scores are subtracted, each the end of a long sum. In half
precision sums are made in float32, and only the last rounding counts: what is left of a fall is a step of it, or several."""


@dataclass(frozen=True)
class Infidelity(Metric, Settings):
    """r_j = Iᵀφ_j − (f(x) − f(x with I replaced)), I a random mask (Yeh et al. 2019; AGG §4).

    Args:
        features: the mask unit, whose name is printed beside every value, which depends on it strongly. Default: elements;
            for images square patches of about 1/28, 1/14 and 1/7 of the short side, never under 4 pixels, see
            :func:`~consilience.perturb.masks.mask_units`. With a single ``share``, patches of about 1/14, see
            :func:`~consilience.features.images.coarse`.
        share: the shares of the units that masks take away, .1 to .6 by default: no mask is drawn twice, none for fitting and
            for judging both, and where all masks are drawn the numbers are exact. A single number, such as the papers' 0.2:
            int(share · K) of the K units in every mask, each drawn independently.
        baseline: what replaces them: "blur" (σ = 10 pixels; the default for images), "mean", "zero" (the default otherwise), a
            number, or a tensor.
        scaling: as an objective: "correlation" (1 − ρ|ρ|, the default), "free" (one β ≥ 0 for the mixture), "yeh" (one β of
            either sign, which does not tell φ from −φ), "raw" (β = 1, AGG's App. C.2 as printed), "code" (weights for β_j φ_j
            put on the unscaled φ_j, as the authors' code does: what is minimised is not what is returned).
        patches: of images without ``features``, how many square patches are along the short side; None: the usual ones.
        keep_masks: keep the masks themselves in the evidence, for what regresses on them; S · U bytes for each input.

    Raises:
        InputError: a share is not between 0 and 1, or the scaling is unknown.
    """

    features: Features | None = None
    share: float | tuple[float, ...] = setting(SHARES, above=0, below=1, empty=False)
    baseline: AnyBaseline = None
    scaling: str = setting("correlation", choices=SCALINGS)
    patches: int | None = setting(None, low=1, high=10_000)
    keep_masks: bool = False

    card = Card(
        formula="min over β ≥ 0 of E(β Σ_mask φ − Δf)², Δf = f(x) − f(x masked), over that of a uniform map; as an objective "
        "1 − ρ|ρ|, ρ = corr(Σ_mask φ, Δf), given how much the mask takes away",
        source="Yeh et al. 2019, arXiv 1901.09392; Decker et al. 2024 (AGG), §4, arXiv 2406.05090",
        better="lower",
        normalisation="one β ≥ 0 fitted on the draws that are judged, and a uniform map's own error: 1 for a map that says "
        "that every feature matters alike",
        perturbation="10 to 60 % of the features replaced by the blurred image (σ = 10 px) or zero; of images, patches of up "
        "to three sizes; unit: see mask_unit",
        draws="128 to 1024 masks to fit, until sure; 512 fresh (streams 'fit' and 'fresh'), none in both; all masks, and "
        "exact numbers, where there are few",
        cost="one forward for each mask",
        differences=(
            (
                "Quantus",
                "no β and no normalisation, pixels in windows: the measure infidelity says how to get its number",
            ),
            ("Captum", "the perturbation is the caller's; normalize=True fits β of either sign: scaling='yeh'"),
            (
                "the authors' code",
                "β per method, weights for βφ put on φ, masks of 20 %: scaling='code', share=0.2",
            ),
        ),
    )
    name = "infidelity"
    stream = "masks"
    statistic = "responses"
    draws = 512

    @property
    def scale_free(self) -> bool:
        return self.scaling == "correlation"

    @property
    def centred(self) -> bool:
        """Whether it is the correlation, which sees neither means nor scales."""
        return self.scale_free

    @property
    def drawn(self) -> Infidelity:
        baseline = None if self.baseline is None else Baseline.of(self.baseline)
        return replace(self, scaling="correlation", baseline=baseline)

    def neighbourhood(self, shape: Sequence[int]) -> Masked:
        """The masked neighbourhood of inputs with axes ``shape``."""
        usual = "blur" if len(shape) == 3 else "zero"
        baseline = Baseline.of(usual if self.baseline is None else self.baseline)
        if self.features is not None:
            return Masked(self.features, self.share, baseline)
        if self.patches is not None and len(shape) == 3:
            return Masked(patches(shape, self.patches), self.share, baseline)
        if not isinstance(self.share, tuple):
            return Masked(coarse(shape), self.share, baseline)
        features, scales = mask_units(shape)
        return Masked(features, self.share, baseline, scales)

    def evaluations(self, points: Points, asked: int, stream: str) -> int:
        """How many masks the points have together, for a stream ("fit", "fresh") of which ``asked`` are asked for."""
        where = self.neighbourhood(points.x.shape[1:])
        number, _ = where.drawn(points, asked, Key(0, stream))
        return int(number.sum())

    def measure(self, task: Task, samples: range, total: int) -> Responses:
        """Responses to the masks ``samples`` out of ``total``.

        Of an input that has few masks there are all, once they are more than half asked for, and none afterwards.
        """
        points = task.points
        shape = points.x.shape[1:]
        where = self.neighbourhood(shape)
        key = task.stream(self.stream)
        before, _ = where.drawn(points, samples.start, key)
        after, whole = where.drawn(points, samples.stop, key)
        # An input that had all its masks before has no more; any other goes on where it stopped.
        last = torch.where(before == samples.start, after, 0)
        wanted = range(samples.start, max(samples.start, int(last.max())))
        all_of_all = bool((last == wanted.stop).all())
        per_unit = self._per_unit(task, where, task.maps)
        uniform = self._per_unit(task, where, _uniform(task).to(per_unit))
        clean = None
        a = per_unit.new_zeros(len(points), len(wanted), per_unit.shape[1])
        y = per_unit.new_zeros(len(points), len(wanted))
        size = torch.zeros_like(y)
        kept = None
        grid = _grid(where.features, shape)
        if self.keep_masks:
            kept = torch.zeros(*y.shape, per_unit.shape[2], dtype=torch.bool, device=y.device)
        numbers = torch.arange(wanted.start, wanted.stop, device=last.device)
        drawn = numbers < last[:, None]
        # Results are written into place: small tensors that outlive large ones would scatter over the heap.
        # Masks are drawn four batches at a time; evaluate runs them batch by batch.
        step = max(1, 4 * task.score.batch.size(False) // len(points))
        for start in range(wanted.start, wanted.stop, step):
            part = range(start, min(start + step, wanted.stop))
            at = slice(part.start - wanted.start, part.stop - wanted.start)
            cloud = where.draw(points, part, key, total)
            assert cloud.masks is not None
            here = drawn[:, at]
            asked = None if all_of_all else here.flatten()
            if clean is None:
                # The inputs themselves are asked beside the first masks, not in a pass of their own.
                clean, scores = _outputs(task, cloud, asked, points)
            else:
                _, scores = _outputs(task, cloud, asked)
            fall = clean[:, None] - cloud.split(scores)
            if not task.graph:
                fall = _settled(fall, clean, task)
            taken = cloud.split(cloud.masks.flatten(1))
            masks = exact(taken)
            here = here.to(y.device)
            if kept is not None:
                kept[:, at] = taken.to(y.device) & here[..., None]
            a[:, at] = torch.where(here[..., None], masks @ per_unit.mT, 0.0)
            y[:, at] = torch.where(here, fall, 0.0)
            # What the mask takes away of a map that is the same everywhere.
            size[:, at] = (masks @ uniform.mT)[..., 0]
        return Responses(
            a,
            y,
            drawn=None if all_of_all else drawn.to(y.device),
            whole=whole.to(y.device) if bool(whole.any()) else None,
            # With masks of one size it is a constant.
            size=size if isinstance(self.share, tuple) else None,
            masks=None if kept is None else MaskRows(kept, per_unit, uniform[:, 0], grid, max(where.scales)),
        )

    @staticmethod
    def _per_unit(task: Task, where: Masked, maps: Tensor) -> Tensor:
        """(B, R, *A) → (B, R, U) float64: every map summed over the mask units."""
        shape = task.points.x.shape[1:]
        inputs, rows = maps.shape[:2]
        owner = task.points.owner.repeat_interleave(rows)
        spread = task.features.spread(maps.flatten(0, 1), owner, shape)
        return exact(where.features.reduce(spread, owner).reshape(inputs, rows, -1))

    def everything(self, score: Score, points: Points) -> Tensor:
        """(B,): f(x) − f(baseline), the fall of the score when all features are taken away; of a data set, the mean over up to
        eight of its rows.

        Args:
            score: the model.
            points: B inputs.
        """
        where = self.neighbourhood(points.x.shape[1:])
        nothing = score_of_nothing(score, points, where.baseline, where.features, most=8)
        return exact(score.clean)[points.owner] - exact(nothing)

    def loss(self, evidence: Evidence, w: Tensor) -> Tensor:
        """(B, M): what is minimised, by the scaling.

        - correlation: 1 − ρ|ρ|, which orders mixtures as ρ does, of either sign;
        - free: the same without centring, 1 − c|c|. That is min over β ≥ 0 of E(βa − y)² / E y² where c ≥ 0, and above 1 where
          the map points the wrong way;
        - raw: E(a − y)²;
        - else min over β of E(βa − y)² / E y², which every single method's own β reaches.

        Args:
            evidence: with masks of B inputs and R rows.
            w: (B, M, R), mixtures of the rows.
        """
        r = evidence.responses
        assert r is not None
        if self.scaling == "correlation":
            rho = faithfulness_correlation(evidence, w).value.nan_to_num(0)
            return 1 - rho * rho.abs()
        matrix, p, q = r.moments()
        square = torch.einsum("bmr,brt,bmt->bm", w, matrix, w)
        cross = torch.einsum("bmr,br->bm", w, p)
        if self.scaling == "raw":
            return square - 2 * cross + q[:, None]
        share = cross**2 / (square * q[:, None]).clamp(min=1e-300)
        if self.scaling == "free":
            share = share * cross.sign()
        return 1 - share

    def over_blocks(self, whole: Evidence, blocks: Sequence[Block], weights: Sequence[Tensor]) -> Tensor:
        """For the correlation, moments are summed over the blocks before they are divided: ρ² of a few masks is biased.

        Each block's answers are in units of their deviation over all draws. Mixtures of different methods answer on different
        scales, which a correlation of each does not see, and one of all together would.
        """
        if self.scaling != "correlation":
            return super().over_blocks(whole, blocks, weights)
        covariance = whole["responses"].covariances()[0]
        parts = []
        for (share, block), w in zip(blocks, weights, strict=True):
            r = block.responses
            assert r is not None
            deviation = torch.einsum("br,brt,bt->b", w, covariance, w).clamp(min=0).sqrt()
            unit = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
            a = torch.einsum("bsr,br->bs", r.a, w) / unit[:, None]
            da = r.centred(a)
            dy = r.centred(r.y)
            moments = [r.mean(values) for values in (da**2, dy**2, a**2, da * dy)]
            parts.append(share * torch.stack(moments))
        spread, change, size, cross = torch.stack(parts).sum(0)
        undefined = (spread <= FLAT * size) | (change <= 0)
        rho = torch.where(undefined, 0.0, cross / (spread.sqrt() * change.sqrt()).clamp(min=1e-300))
        return 1 - rho * rho.abs()

    def matrix(self, evidence: Evidence, whole: Evidence | None = None) -> Tensor | None:
        """E[(β_i a_i − y)(β_j a_j − y)], β = 1 for "raw"; the correlation and one β for the mixture are no quadratic form."""
        r = evidence.responses
        if r is None or self.scaling in ("correlation", "free", "yeh"):
            return None
        fitted = (whole or evidence).responses
        assert fitted is not None
        if self.scaling == "raw":
            beta = torch.ones_like(r.a[:, 0])
        else:
            beta = self._beta(fitted)
        residual = r.a * beta[:, None] - r.y[..., None]
        return residual.mT @ residual / r.number.clamp(min=1).to(residual)[:, None, None]

    @staticmethod
    def _beta(r: Responses) -> Tensor:
        """(B, R): E[a_j y] / E[a_j²]."""
        matrix, p, _ = r.moments()
        square = matrix.diagonal(dim1=-2, dim2=-1)
        return torch.where(square > 0, p / square.clamp(min=1e-300), torch.zeros_like(p))

    def solve(self, evidence: Evidence, valid: Tensor, signed: bool) -> simplex.Solution:
        r = evidence.responses
        assert r is not None
        if self.scaling == "correlation":
            c, b, v = r.covariances()
            ridge = 0.1 if signed else 0.0
            return simplex.correlation(c, b, v, valid=valid, signed=signed, ridge=ridge, mean=r.mean(r.a))
        if signed:
            raise InputError("signed: for infidelity with scaling='correlation'")
        if self.scaling == "free":
            return simplex.correlation(*r.moments(), valid=valid)  # about zero in place of the mean
        if self.scaling == "yeh":
            return simplex.scale_free(*r.moments(), valid=valid)
        matrix = self.matrix(evidence)
        assert matrix is not None
        return simplex.quadratic(matrix, valid=valid)


def _grid(features: Features, shape: Sequence[int]) -> tuple[int, ...]:
    """The axes of the mask units of inputs with axes ``shape``; () where units beside each other are not near each other."""
    is_table = isinstance(features, Elements) and len(shape) == 1
    if is_table or not features.ordered:
        return ()
    return features.shape(shape)


def _uniform(task: Task) -> Tensor:
    """(B, 1, *A): a map that is the same for every feature that an input has, and sums to one."""
    even = present(task.features, task.points).view(len(task.points), 1, *task.maps.shape[2:]).double()
    count = even.flatten(1).sum(1).clamp(min=1)
    return even / count.view(-1, *[1] * (even.ndim - 1))


def _outputs(task: Task, cloud: Cloud, asked: Tensor | None, beside: Points | None = None) -> tuple[Tensor, Tensor]:
    """The scores of some points, (n,), and of a cloud's points, (N,).

    Args:
        task: asks the model.
        cloud: N points.
        asked: (N,) bool, of which of them the model is asked; the score of the others is 0. None: of all.
        beside: the n points that are asked in the same pass; None: none.
    """
    rows = cloud.points
    owner = cloud.owner
    if asked is not None:
        rows = rows[asked]
        owner = owner[asked]
    first = 0
    if beside is not None:
        first = len(beside)
        rows = torch.cat([beside.x, rows])
        owner = torch.cat([beside.owner, owner])
    found = exact(task.output(rows, owner))
    scores = found[first:]
    if asked is not None:
        scores = found.new_zeros(asked.shape)
        scores[asked.to(scores.device)] = found[first:]
    return found[:first], scores


def _settled(fall: Tensor, clean: Tensor, task: Task) -> Tensor:
    """(B, s): falls at the level of the score's rounding made zero. They are no evidence: a sum of rounding errors correlates
    with nothing, or, by chance, with anything."""
    score = task.score
    known = [score.outputs.dtype, precision_of(score.model), score.precision]
    unit = max(ROUNDING[kind] * torch.finfo(kind).eps for kind in known if kind in ROUNDING)
    size = torch.maximum(clean[:, None].abs(), (clean[:, None] - fall).abs())
    return torch.where(fall.abs() <= unit * size, 0.0, fall)


def too_weak(responses: Sequence[Responses], everything: Tensor) -> list[tuple[int, float]]:
    """(place, the most that a mask moves the score by) of each input whose masks are no evidence: all of them move the score by
    less than :data:`WEAK` of f(x) − f(baseline).

    Args:
        responses: one for each input, of that input alone.
        everything: (B,), f(x) − f(baseline).
    """
    found = []
    for at, (each, whole) in enumerate(zip(responses, everything.abs().tolist(), strict=True)):
        most = float(each.y.nan_to_num(0).abs().amax()) if each.y.numel() else 0.0
        if most < WEAK * whole:
            found.append((at, most))
    return found
