"""How an explanation is measured: which maps, which draws, which named objectives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral

import torch
from torch import Tensor

from ..errors import InputError, choose
from ..explainers import Normalised
from ..keys import Key
from ..metrics import AverageSensitivity, Infidelity
from ..neighbourhood import Baseline, Points, present
from ..objective import Aim, Front, Objective, Term, parse
from ..quadratic import Evidence, exact
from ..score import Score

KINDS = {"quadratic": "average_sensitivity", "responses": "infidelity"}
"""Part of the evidence → the metric whose draws it holds: neighbours, and masks."""
DERIVED = ("mean", "var", "median", "rank", "uniform")
"""Maps made from all methods' maps; "weighted", a mixture, stands beside them in tables."""

TERMS: dict[str, Aim | Term] = {
    "robust": AverageSensitivity(),
    "faith": Infidelity(),
    "opt": Front(AverageSensitivity(), Infidelity()),
    "paper_robust": AverageSensitivity(relative=False),
    "paper_faith": Infidelity(scaling="paper"),
    "paper_opt": Objective(
        ((1.0, AverageSensitivity(relative=False)), (1.0, Infidelity(scaling="paper"))), "frobenius"
    ),
    "paper_code": Infidelity(scaling="code"),
    "relative_sensitivity": AverageSensitivity(),
    "average_sensitivity": AverageSensitivity(relative=False),
    "faithfulness_correlation": Infidelity(),
    "infidelity": Infidelity(scaling="free"),
}
UNSOLVED = ("mean", "var", "median", "rank", "weighted")
"""Aggregations to compare with: nothing is minimised."""
OBJECTIVES = ("robust", "faith", "opt", *UNSOLVED, "paper_robust", "paper_faith", "paper_opt", "paper_code")


def aim(objective: str | Aim | Term) -> Aim | str:
    """A named objective, an expression, a metric or a sum of metrics; those that solve nothing stay names."""
    if isinstance(objective, Term):
        return Objective(((1.0, objective),))
    if not isinstance(objective, str):
        return objective
    if objective in UNSOLVED:
        return objective
    return parse(objective, TERMS) if ("+" in objective or "*" in objective) else parse(
        choose("objective", objective, [*OBJECTIVES, *TERMS]), TERMS
    )  # fmt: skip


@dataclass(frozen=True)
class Draws:
    """How many draws: neighbours for the sensitivity (each costs an explanation), masks for the infidelity (a forward)."""

    average_sensitivity: int = 10
    infidelity: int = 256

    def of_kind(self, kind: str) -> int:
        return getattr(self, KINDS[kind])

    @classmethod
    def of(cls, spec: Draws | int | str | Mapping[str, int] | None, default: Draws, what: str) -> Draws:
        """An integer (both), a mapping, "average_sensitivity=10,infidelity=256", or None for the default."""
        if spec is None:
            return default
        if isinstance(spec, Draws):
            found = spec
        elif isinstance(spec, int | Integral):
            found = cls(int(spec), int(spec))
        elif isinstance(spec, str) and spec.strip().isdigit():
            found = cls(int(spec), int(spec))
        elif not isinstance(spec, str | Mapping):
            raise InputError(f"{what}: expected e.g. 20 or average_sensitivity=10,infidelity=256, got {spec!r}")
        else:
            pairs = dict(part.partition("=")[::2] for part in spec.split(",")) if isinstance(spec, str) else dict(spec)
            known = ("average_sensitivity", "infidelity")
            try:
                found = replace(
                    default, **{choose(what, name.strip(), known): int(value) for name, value in pairs.items()}
                )
            except ValueError as error:
                if isinstance(error, InputError):
                    raise
                raise InputError(
                    f"{what}: expected e.g. 20 or average_sensitivity=10,infidelity=256, got {spec!r}"
                ) from error
        if min(found.average_sensitivity, found.infidelity) < 2:
            raise InputError(f"{what}: at least 2 draws of each kind are needed for a standard error, got {spec!r}")
        return found


FIT, FRESH = Draws(10, 256), Draws(20, 512)
BUDGET = Draws(40, 1024)
PAPER_FIT, PAPER_FRESH = Draws(50, 50), Draws(200, 200)


@dataclass(frozen=True)
class Setting:
    """The maps and the two metrics of one explanation."""

    stack: Normalised
    working: tuple[int, ...]
    rows: int
    sensitivity: AverageSensitivity
    infidelity: Infidelity
    seed: int

    def raw(self, score: Score, points: Points) -> Tensor:
        """(N, working k, *F): the methods' attributions before the stage that reduces and scales them."""
        return self.stack.stack.attribute(score, points)

    def plain(self, raw: Tensor, owner: Tensor) -> Tensor:
        """(N, working k, *F) → (N, working k, *A): reduced to features, signed and unscaled."""
        return replace(self.stack, sign="keep", scale="none").apply(raw, owner)

    def maps(self, score: Score, points: Points, derived: bool = True) -> Tensor:
        """(N, k [+ 5], *A): every method in order (NaN where one failed), then the derived maps."""
        return self.complete(self.stack.attribute(score, points), points, derived)

    def base(self, score: Score, points: Points, derived: bool = True) -> tuple[Tensor, Tensor]:
        """:meth:`maps`, and Σφ (N, working k) of each attribution before it is reduced and scaled."""
        maps, sums = [], []
        for part, raw in self.stack.stack.stream(score, points):
            maps.append(self.stack.apply(raw, points.owner[part]))
            sums.append(exact(raw.flatten(2)).sum(2))
        return self.complete(torch.cat(maps), points, derived), torch.cat(sums)

    def complete(self, found: Tensor, points: Points, derived: bool) -> Tensor:
        """(N, working k, *A) → (N, k [+ 5], *A)."""
        every = found.new_full((len(found), self.rows, *found.shape[2:]), torch.nan)
        every[:, list(self.working)] = found
        if not derived:
            return every
        has = present(self.stack.features, points).view(len(points), *found.shape[2:])
        return torch.cat([every, derive(found, has)], 1)

    def evidence(
        self, score: Score, points: Points, base: Tensor, draws: Draws, stream: str, kinds: Iterable[str] = tuple(KINDS)
    ) -> Evidence:
        """Measure the maps ``base`` (N, R, *A) at ``points`` with the named stream of draws, of these kinds."""
        parts = [
            self.more(score, points, base, kind, range(draws.of_kind(kind)), stream) for kind in KINDS if kind in kinds
        ]
        return sum(parts, Evidence())

    def more(self, score: Score, points: Points, base: Tensor, kind: str, samples: range, stream: str) -> Evidence:
        """Only the draws ``samples`` of one kind: "quadratic" (neighbours) or "responses" (masks)."""
        key = Key(self.seed, stream)
        if kind == "responses":
            masks = self.infidelity.measure(self.stack.features, score, points, base, samples, key, samples.stop)
            return Evidence(responses=masks)
        derived = base.shape[1] > self.rows
        near = lambda at: self.maps(score, at, derived)  # noqa: E731
        return Evidence(self.sensitivity.measure(near, score, points, base, samples, key, samples.stop))


def derive(maps: Tensor, has: Tensor | None = None) -> Tensor:
    """(N, k, *A) → (N, 5, *A): the mean; AGG's var, mean / (σ + ε) with σ the feature-wise standard deviation over methods
    and ε its mean over features (the paper leaves ε open; this makes the map's shape free of scale); the median; the mean of
    the features' ranks in 0…1, ties averaged (Borda count); and a uniform map.

    ``has`` (N, *A) bool: the features that each input has; the others are 0 and count nowhere, nor do maps that are not
    finite."""
    has = torch.ones_like(maps[:, 0], dtype=torch.bool) if has is None else has
    fine = maps.flatten(2).isfinite().all(2)
    good, count = fine.view(*fine.shape, *[1] * has[0].ndim), fine.sum(1).view(-1, *[1] * has[0].ndim)
    average = lambda values: torch.where(good, values, 0.0).sum(1) / count  # noqa: E731  NaN where there is none
    mean = average(maps)
    sigma = average((maps - mean[:, None]) ** 2).sqrt()
    epsilon = (sigma * has).flatten(1).sum(1).div(has.flatten(1).sum(1).clamp(min=1)).view(-1, *[1] * (mean.ndim - 1))
    alike = epsilon <= 1e-6 * mean.abs().flatten(1).amax(1).view_as(epsilon)
    epsilon = torch.where(alike, torch.ones_like(epsilon), epsilon)  # one method, or all alike: var is the mean
    ordered = torch.where(good, maps, torch.inf).sort(1).values  # its middle, or the mean of the two middle ones
    middle = [
        ordered.gather(1, at.clamp(min=0)[:, None].expand_as(ordered[:, :1])) for at in ((count - 1) // 2, count // 2)
    ]
    median = torch.where(count > 0, (middle[0] + middle[1])[:, 0] / 2, torch.nan)
    return torch.stack([mean, mean / (sigma + epsilon), median, average(_ranks(maps, has)), has.to(mean)], 1)


def _ranks(maps: Tensor, has: Tensor) -> Tensor:
    """(N, k, *A): the share of features that are below, ties counting half."""
    here = has.flatten(1)[:, None]
    flat = maps.flatten(2).masked_fill(~here, torch.inf)
    ordered = flat.sort(2).values
    below = torch.searchsorted(ordered, flat) + torch.searchsorted(ordered, flat, right=True) - 1
    rank = below.to(maps) / (2 * (here.sum(2, keepdim=True) - 1).clamp(min=1))
    return rank.masked_fill(~here, 0).view_as(maps)


def by_quality(evidence: Evidence, working: Sequence[int]) -> Tensor:
    """(B, k): metric weighting, w_j ∝ 1 / (relative sensitivity · (1 − ρ|ρ|)) of the fitting draws."""
    eye = torch.eye(evidence.quadratic.norm.shape[1], dtype=torch.float64, device=evidence.quadratic.norm.device)  # type: ignore[union-attr]
    corners = eye.expand(len(evidence.quadratic.norm), -1, -1)  # type: ignore[union-attr]
    clean = evidence.clean()
    quality = 1 / (AverageSensitivity().loss(clean, corners) * Infidelity().loss(clean, corners)).clamp(min=1e-12)
    usable = torch.zeros_like(quality, dtype=torch.bool)
    usable[:, list(working)] = True
    quality = torch.where(usable & evidence.valid(), quality.nan_to_num(0), torch.zeros_like(quality))
    return quality / quality.sum(1, keepdim=True)


def metrics_of(target: Aim | str) -> tuple[AverageSensitivity, Infidelity]:
    """The metrics an objective is made of, defaults where it has none; one of each kind, since draws are shared."""
    terms = [] if isinstance(target, str) else [term for _, term in target.terms]
    for term in terms:
        if not isinstance(term, AverageSensitivity | Infidelity):
            raise InputError(
                f"objective: explanations are solved for AverageSensitivity and Infidelity; {type(term).__name__} can be "
                "trained for (cs.train.Penalty) and measured (cs.evaluate)"
            )
    found = []
    for kind in (AverageSensitivity, Infidelity):
        mine = [term for term in terms if isinstance(term, kind)]
        if any(_draw(term) != _draw(mine[0]) for term in mine):
            raise InputError(
                f"objective: two different {kind.__name__} settings in one sum; draws are shared, so use one"
            )
        found.append(mine[0] if mine else kind())
    return found[0], found[1]  # type: ignore[return-value]


def _draw(term: Term) -> tuple:
    """The term as far as its draws go; arrays count by identity."""
    if isinstance(term, AverageSensitivity):
        return term.neighbourhood, term.redraw
    assert isinstance(term, Infidelity)
    return term.features, term.share, None if term.baseline is None else Baseline.of(term.baseline)
