"""One explanation to be made: its arguments resolved once, then combined, and whatever else is asked, measured."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..combine.aggregations import looked_at, mix, mixing_of
from ..combine.draws import BUDGET, FIT, FRESH, KINDS, PAPER_FIT, PAPER_FRESH, Draws
from ..combine.named import aim
from ..combine.sequential import ROUNDS, Fitted, fit
from ..combine.weights import Rule
from ..errors import InputError
from ..explainers import Direct, Explainer, Stack
from ..features.base import Features
from ..metrics.base import Metric
from ..metrics.front import Aim, Front
from ..perturb.baseline import Baseline
from ..perturb.coalitions import Coalitions, Permutations, unit
from ..simplex import Solution
from .prepare import Ready, prepare

Progress = Callable[[float, float], None]
"""Called with (work done, work planned), in forward evaluations; a gradient counts three."""


@dataclass(frozen=True)
class Rows:
    """Model evaluations: ``gradient`` (forward and backward) and ``forward`` only."""

    gradient: int = 0
    forward: int = 0

    def __add__(self, more: Rows) -> Rows:
        return Rows(self.gradient + more.gradient, self.forward + more.forward)

    def __mul__(self, times: int) -> Rows:
        return Rows(self.gradient * times, self.forward * times)

    @property
    def work(self) -> int:
        """In forward evaluations."""
        return self.forward + 3 * self.gradient


@dataclass(frozen=True)
class Job:
    """``draws`` fit the weights: so many if ``tolerance`` is None, else at most; ``fresh`` ones judge; at ``resolved``
    neighbours the weights are solved anew."""

    ready: Ready
    rule: Rule
    draws: Draws
    tolerance: float | None
    fresh: Draws
    resolved: int
    progress: Progress | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of draws without which there are no weights."""
        return looked_at(self.rule.goal)

    @torch.inference_mode(False)
    def combine(self, every: bool = True) -> Combined:
        """Draw and solve. ``every``: with the derived maps and both kinds of draws, for the table; else only what the weights
        need."""
        ready, goal = self.ready, self.rule.goal
        setting, score, points = ready.setting, ready.score, ready.points
        self._follow(every)
        derived = every or goal in ("var", "median", "rank")
        base, sums = setting.base(score, points, derived)
        kinds = tuple(KINDS) if every else self.kinds
        drawn = base if every else base[:, : setting.rows]
        groups = fit(self.rule, setting, score, points, drawn, self.draws, self.tolerance, kinds)
        return Combined(goal, setting.rows, base, sums, groups)

    def planned(self, every: bool = True) -> dict[str, tuple[Rows, Rows]]:
        """Model evaluations after the preparation, by what they are for: (at least, at most), in closed form.

        They differ where draws are made until sure: the first round, and the budget."""
        ready, n = self.ready, len(self.ready.points)
        cost = ready.setting.stack.stack.rows(ready.x.shape[1:])
        one = Rows(cost["gradient"], cost["forward"])
        kinds = tuple(KINDS) if every else self.kinds

        def measured(draws: Draws, which: Iterable[str] = tuple(KINDS)) -> Rows:
            """Neighbours' maps; masks, and the inputs themselves beside them."""
            found = one * (draws.average_sensitivity if "quadratic" in which else 0)
            return found + Rows(0, draws.infidelity + 1 if "responses" in which else 0)

        least = most = self.draws
        again = Rows()
        if self.tolerance is not None:
            # What the objective does not look at stays at the first round.
            least = Draws(*(min(getattr(ROUNDS, kind), getattr(self.draws, kind)) for kind in KINDS.values()))
            most = Draws(*((self.draws if kind in self.kinds else least).of_kind(kind) for kind in KINDS))
            # Each further round of masks evaluates the inputs themselves again.
            again = Rows(0, math.ceil(math.log2(most.infidelity / least.infidelity)))
        low, high = measured(least, kinds), measured(most, kinds) + again
        found = {"the maps": (one * n, one * n), "draws to fit": (low * n, high * n)}
        if every:
            found["fresh draws"] = (measured(self.fresh) * n,) * 2
            if self.resolved:
                times = self.resolved * n
                found["weights solved anew"] = ((one + measured(least)) * times, (one + measured(most)) * times)
            if not isinstance(ready.score.model, nn.Module):
                found["is it piecewise constant?"] = (Rows(0, 11 * n),) * 2
            shape = ready.x.shape[1:]
            asked = baselines_of(ready.setting.stack.stack, shape)
            if asked:
                rows = sum(baseline.count(len(shape)) for baseline, _ in asked)
                found["completeness"] = (Rows(0, rows * n),) * 2
        return found

    def _follow(self, every: bool) -> None:
        """Tie the score's counter to the caller's progress."""
        if self.progress is not None:
            counts, tell = self.ready.score.counts, self.progress
            planned = sum((most for _, most in self.planned(every).values()), Rows()).work
            begun = Rows(counts.gradient, counts.forward).work
            counts.watch = lambda now: tell(min(Rows(now.gradient, now.forward).work - begun, planned), planned)


@dataclass(frozen=True)
class Combined:
    """Maps ``base`` (N, R, *A), sums Σφ (N, working k) of raw attributions, and inputs in ``groups`` of as many draws each."""

    goal: Aim | str
    k: int
    base: Tensor
    sums: Tensor
    groups: list[Fitted]

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        """Of each input, its group and its place there."""
        found = [(i, part, at) for part, group in enumerate(self.groups) for at, i in enumerate(group.index)]
        return [(part, at) for _, part, at in sorted(found)]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """A tensor for each group, its inputs first, → one in the inputs' order."""
        order = torch.tensor([i for group in self.groups for i in group.index], device=parts[0].device).argsort()
        return torch.cat(list(parts))[order]

    @cached_property
    def solution(self) -> Solution:
        found = [group.solved[0] for group in self.groups]
        status = tuple(found[part].status[at] for part, at in self.places)
        return Solution(
            self.join([s.weights for s in found]), self.join([s.value for s in found]), self.join([s.gap for s in found]),
            status,
        )  # fmt: skip

    @cached_property
    def mixing(self) -> Tensor:
        """(N, R): the combined map's coefficients on the methods and the derived maps."""
        return mixing_of(self.goal, self.solution.weights, self.base.shape[1], self.k)

    @cached_property
    def attribution(self) -> Tensor:
        """(N, *A)."""
        return mix(self.mixing[:, None], self.base)[:, 0]


@torch.inference_mode(False)
def begin(
    model: nn.Module | Callable,
    x: Tensor | np.ndarray,
    target: Any = None,
    *,
    methods: str | Explainer | Iterable[str | Explainer] = "standard",
    objective: str | Aim | Metric = "opt",
    seed: int = 0,
    fit_draws: Draws | int | str | Mapping[str, int] | None = None,
    fresh_draws: Draws | int | str | Mapping[str, int] | None = None,
    resolved_draws: int = 2,
    draws: str | None = None,
    tolerance: float = 0.02,
    kind: str | Callable = "logit",
    features: Features | str | None = None,
    baselines: Any = None,
    sign: str | None = None,
    scale: str = "max",
    signed: bool = False,
    choice: str = "convex",
    pooled: bool = False,
    weights: Tensor | None = None,
    kwargs: Mapping[str, Any] | None = None,
    ids: Sequence[int] | Tensor | None = None,
    max_batch: int | str = "auto",
    precision: str | None = None,
    progress: Progress | None = None,
) -> Job:
    """Check everything, evaluate the model once, try every method. Arguments as for :func:`consilience.explain`."""
    if draws not in (None, "paper", "auto"):
        raise InputError(f"draws: 'auto', 'paper' or None, got {draws!r}")
    goal = aim(objective)
    try:
        seed = operator.index(seed)
    except TypeError as error:
        raise InputError(f"seed: an integer, got {seed!r}") from error
    if not tolerance > 0:
        raise InputError(f"tolerance: above 0, a share of the objective's value, got {tolerance!r}")
    if choice not in ("convex", "cross_validated"):
        raise InputError(f"choice: 'convex' or 'cross_validated', got {choice!r}")
    if isinstance(goal, Front) and weights is None and (signed or choice != "convex"):
        raise InputError(
            "objective: the front is over convex weights and has two numbers, so it takes neither signed=True nor "
            "choice='cross_validated'; use objective='robust' or 'faith'"
        )
    # Draws until sure, unless a number is asked for; where nothing is solved there is nothing to be sure of.
    sure = draws == "auto" or (draws is None and fit_draws is None)
    sure = sure and not isinstance(goal, str) and weights is None
    usual = PAPER_FIT if draws == "paper" else BUDGET if sure else FIT
    asked = Draws.of(fit_draws, usual, "fit_draws")
    fresh = Draws.of(fresh_draws, PAPER_FRESH if draws == "paper" else FRESH, "fresh_draws")
    ready = prepare(
        model, x, target, goal, methods=methods, seed=seed, kind=kind, features=features, baselines=baselines, sign=sign,
        scale=scale, kwargs=kwargs, ids=ids, max_batch=max_batch, precision=precision,
    )  # fmt: skip
    if weights is not None:
        goal, weights = "given", _given(weights, ready.left, len(ready.x), ready.setting.rows)
    rule = Rule(goal, ready.setting.working, signed, choice, pooled, weights)
    resolved = 0 if isinstance(goal, str) else resolved_draws
    return Job(ready, rule, asked, tolerance if sure else None, fresh, resolved, progress)


def baselines_of(stack: Stack, shape: Sequence[int]) -> dict[tuple[Baseline, Features | None], list[int]]:
    """What explainers take away that claim to add up → which explainers those are.

    That is a baseline, and the features that are replaced by it; None: every element of inputs with axes ``shape``."""
    found: dict[tuple[Baseline, Features | None], list[int]] = {}
    for at, explainer in enumerate(stack.explainers):
        if explainer.complete and not isinstance(explainer, Direct):
            where = explainer.need.where
            features = unit(where.features, shape) if isinstance(where, Coalitions | Permutations) else None
            baseline = getattr(where, "baseline", None)
            if baseline is not None:
                found.setdefault((baseline, features), []).append(at)
    return found


def _given(weights: Any, left: Tensor, inputs: int, k: int) -> Tensor:
    """(k,) or (B, k), of the inputs that are left."""
    given = torch.as_tensor(weights, dtype=torch.float64)
    if given.shape not in ((k,), (inputs, k)):
        raise InputError(
            f"weights: shape ({k},) or ({inputs}, {k}) for these methods and inputs, got {tuple(given.shape)}"
        )
    if not bool(given.isfinite().all()) or not bool((given != 0).any(-1).all()):
        raise InputError("weights: finite, and not all zero")
    return given.expand(len(left), -1) if given.ndim == 1 else given[left.cpu()]
