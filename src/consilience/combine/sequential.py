"""Sequential sampling: draws in rounds, until the weights would hardly gain by more."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..explainers import Stack
from ..model.score import Score
from ..perturb.points import Points
from ..statistics.evidence import Evidence, Quadratic
from ..statistics.tensors import exact
from .aggregation import Aggregation, Combination
from .draws import FIRST, SEQUENTIAL_KINDS, Draws
from .explained import mark_unexplained
from .measurement import Measurement
from .regret import solve_with_regret


@dataclass(frozen=True)
class Fitted:
    """Inputs that have the same number of draws, and their weights.

    Attributes:
        index: the inputs' places among the points.
        evidence: their draws.
        solved: the solution, and the front that it was chosen from, if any.
        draws: how many of each kind.
        regret: kind of draw → (B,), where it was looked at.
        why: for each input, why no more was drawn.
    """

    index: tuple[int, ...]
    evidence: Evidence
    solved: Combination
    draws: Draws
    regret: dict[str, Tensor]
    why: tuple[str, ...]

    def record(self, at: int) -> dict[str, Any]:
        """What a record says of one input: draws of each kind, why no more, and the regret of each kind.

        Args:
            at: the input's place in this group.
        """
        record: dict[str, Any] = {**vars(self.draws), "stopped": self.why[at]}
        if self.regret:
            record["regret"] = {}
            for kind, value in self.regret.items():
                number = float(value[at])
                record["regret"][SEQUENTIAL_KINDS[kind]] = number if math.isfinite(number) else None
        return record


def fit(
    aggregation: Aggregation,
    measurement: Measurement,
    score: Score,
    points: Points,
    base: Tensor,
    draws: Draws,
    tolerance: float | None,
    kinds: Sequence[str] | None = None,
) -> list[Fitted]:
    """The evidence on which weights rest, and the weights.

    Args:
        aggregation: how evidence becomes weights.
        measurement: how maps are made and measured.
        score: the model.
        points: the inputs.
        base: (B, R, *A), the maps that are measured, the k methods first.
        draws: how many of each kind; at most so many if there is a tolerance.
        tolerance: the regret at which an input needs no further draws; None: as many as asked.
        kinds: which draws to make; None: those that the aggregation looks at. Of others the first round is made.
    """
    inputs = tuple(range(len(points)))
    if kinds is None:
        kinds = aggregation.kinds
    skipped = {name: 0 for kind, name in SEQUENTIAL_KINDS.items() if kind not in kinds}
    draws = replace(draws, **skipped)
    if kinds and tolerance is not None:

        def draw(at: Sequence[int], kind: str, samples: range) -> Evidence:
            return measurement.more(score, points[list(at)], base[list(at)], kind, samples, "fit")

        price = prices(measurement.stack.stack, points.x.shape[1:])
        # Sequential sampling is for neighbours and masks. Other metrics are drawn once.
        once = {kind: draws.of_metric(measurement.metrics[kind]) for kind in kinds if kind not in SEQUENTIAL_KINDS}
        groups = until_sure(aggregation, draw, inputs, draws, tolerance, price, kinds, measurement.rows, once)
    else:
        if kinds:
            evidence = measurement.evidence(score, points, base, draws, "fit", kinds)
            why = "as asked"
        else:
            evidence = _nothing(base)
            why = "nothing is solved"
        solved = aggregation.fit(evidence.rows(slice(measurement.rows)))
        groups = [Fitted(inputs, evidence, solved, draws, {}, (why,) * len(points))]
    return [_marked(aggregation, group, measurement.rows) for group in groups]


def _nothing(base: Tensor) -> Evidence:
    """No draws of maps (B, R, *A), and which of them are not finite."""
    inputs, rows = base.shape[:2]
    norm = exact(base.new_zeros((inputs, rows, rows)))
    no_draws = norm[:, None][:, :0]
    broken = ~base.flatten(2).isfinite().all(2)
    return Evidence(Quadratic(no_draws, norm)).spoil(broken)


def _marked(aggregation: Aggregation, group: Fitted, k: int) -> Fitted:
    """The group, whose status says where no method explains the masks."""
    if group.solved.correction is not None:
        # It says by itself how much of the masks is explained, by the methods or beyond them.
        return group
    solution = mark_unexplained(aggregation, group.evidence.rows(slice(k)), group.solved.solution)
    return replace(group, solved=group.solved._replace(solution=solution))


def first_round(draws: Draws) -> Draws:
    """The draws of the first round, of each kind at most as many as are allowed.

    Args:
        draws: at most so many of each kind.
    """
    return Draws(
        average_sensitivity=min(FIRST.average_sensitivity, draws.average_sensitivity),
        infidelity=min(FIRST.infidelity, draws.infidelity),
    )


def prices(stack: Stack, shape: Sequence[int] = ()) -> dict[str, int]:
    """Kind of draw → what one costs in forward evaluations: an explanation for a neighbour, an output for a mask.

    Args:
        stack: the explainers.
        shape: the axes of one input.
    """
    cost = stack.rows(shape)
    return {"quadratic": cost["forward"] + 3 * cost["gradient"], "responses": 1}


def until_sure(
    aggregation: Aggregation,
    draw: Callable[[Sequence[int], str, range], Evidence],
    inputs: tuple[int, ...],
    draws: Draws,
    tolerance: float,
    price: Mapping[str, int],
    kinds: Sequence[str],
    k: int,
    once: Mapping[str, int] | None = None,
) -> list[Fitted]:
    """Draws in rounds until each input's regret is within tolerance, or the budget is reached.

    Args:
        aggregation: how evidence becomes weights.
        draw: (inputs, kind, samples) → the evidence of those draws.
        inputs: the inputs' places.
        draws: at most so many of each kind.
        tolerance: the regret at which to stop.
        price: kind → what one draw of it costs.
        kinds: which draws to make.
        k: how many rows of the evidence are methods.
        once: other kinds of draws, with the number that is made of each at the start.
    """
    first = first_round(draws)
    start = Evidence()
    for kind in SEQUENTIAL_KINDS:
        if kind in kinds:
            start = start + draw(inputs, kind, range(first.of_kind(kind)))
    for kind, count in (once or {}).items():
        start = start + draw(inputs, kind, range(count))
    # Inputs part where they need different kinds of draws: each group goes its own way, and is done or waits for a round.
    done: list[Fitted] = []
    waiting = [(inputs, start, first)]
    while waiting:
        index, evidence, had = waiting.pop()
        combination, regrets = solve_with_regret(aggregation, evidence.rows(slice(k)))
        stopped: dict[int, str] = {}
        further: dict[str, list[int]] = {kind: [] for kind in SEQUENTIAL_KINDS}
        for i in range(len(index)):
            regret = {kind: float(value[i]) for kind, value in regrets.items()}
            wanted = _next_kind(regret, had, draws, tolerance, price)
            if wanted is None:
                stopped[i] = _why(regret, tolerance)
            else:
                further[wanted].append(i)
        if stopped:
            at = list(stopped)
            solved = combination.inputs(at)
            regret_of = {kind: value[at] for kind, value in regrets.items()}
            places = tuple(index[i] for i in at)
            done.append(Fitted(places, evidence.inputs(at), solved, had, regret_of, tuple(stopped.values())))
        for kind, at in further.items():
            if at:
                count = min(2 * had.of_kind(kind), draws.of_kind(kind))
                places = tuple(index[i] for i in at)
                more = draw(places, kind, range(had.of_kind(kind), count))
                waiting.append((places, evidence.inputs(at) + more, replace(had, **{SEQUENTIAL_KINDS[kind]: count})))
    return done


def _next_kind(
    regret: Mapping[str, float], had: Draws, draws: Draws, tolerance: float, price: Mapping[str, int]
) -> str | None:
    """The kind of draw of which one input needs another round; None if it is sure, or the budget is reached."""
    worth = {}
    for kind, value in regret.items():
        if value > tolerance and had.of_kind(kind) < draws.of_kind(kind):
            # A doubling halves the regret, so this is what a round may mend for each evaluation.
            worth[kind] = value / (had.of_kind(kind) * price[kind])
    return max(worth, key=lambda kind: worth[kind], default=None)


def _why(regret: Mapping[str, float], tolerance: float) -> str:
    """Why one input gets no more draws."""
    if any(math.isnan(value) for value in regret.values()):
        return "no regret: no method can be used for this input, or no mask moves its score"
    worst = max((0.0, *regret.values()))
    if worst > tolerance:
        return f"budget reached, regret {worst:.1%}"
    return f"regret {worst:.1%} ≤ {tolerance:.1%}"
