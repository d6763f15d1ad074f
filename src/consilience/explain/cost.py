"""What an explanation costs, in closed form: evaluations of the model, by what they are for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from ..combine.aggregation import Aggregation
from ..combine.draws import SEQUENTIAL_KINDS, Draws
from ..combine.sequential import first_round
from ..explainers import Direct, Stack
from ..features.base import Features
from ..perturb.baseline import Baseline
from ..perturb.games import Game, unit
from ..statistics.criteria import PARTS
from .differences import criteria_of
from .options import Options
from .prepare import Ready

NEIGHBOURS_OF_BLACK_BOX = 11
"""Evaluations that tell whether a callable is piecewise constant at an input: ten neighbours, and the input."""

ROWS_OF_BASELINE = 8
"""Of a data set of baselines, so many rows tell what is left when everything is taken away."""


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
        """In forward evaluations: a gradient counts three."""
        return self.forward + 3 * self.gradient


Span = tuple[Rows, Rows]
"""(at least, at most)."""

STAGES = ("answer", "judgement", "weights solved anew")
"""Of a call, in order."""

USUAL = 0.1
"""Of the work between the least and the most that draws in rounds can take, the share that they usually do."""


@dataclass(frozen=True)
class Cost:
    """The evaluations that a job makes after its preparation.

    Args:
        ready: the batch, the methods and the metrics.
        options: everything that was asked for.
        aggregation: how maps become one.
    """

    ready: Ready
    options: Options
    aggregation: Aggregation

    @cached_property
    def explanation(self) -> Rows:
        """Of the maps of one input."""
        ready = self.ready
        cost = ready.measurement.stack.stack.rows(ready.x.shape[1:])
        return Rows(cost["gradient"], cost["forward"])

    @property
    def _shape(self) -> Sequence[int]:
        """The axes of one input."""
        return self.ready.x.shape[1:]

    @property
    def _inputs(self) -> int:
        return len(self.ready.points)

    @cached_property
    def _span(self) -> tuple[Draws, Draws]:
        """How many draws fit the weights, at least and at most."""
        most = self.options.fitting
        if not self.options.sequential:
            return most, most
        return first_round(most), most

    def of_weights(self) -> dict[str, Span]:
        """Of the maps, and of the draws that the weights need."""
        least, most = self._span
        kinds = self.aggregation.kinds
        low = self._of_draws(least, kinds, "fit")
        high = self._of_draws(most, kinds, "fit")
        if self.options.sequential and "responses" in kinds:
            # Each further round of masks evaluates the inputs themselves again.
            rounds = math.ceil(math.log2(most.infidelity / least.infidelity))
            high = high + Rows(0, rounds) * self._inputs
        # The first input's maps were made when the methods were tried.
        left = self._inputs - self.ready.measurement.stack.stack.begun
        return {"the maps": _known(self.explanation * left), "draws to fit": (low, high)}

    def of_explanation(self) -> dict[str, Span]:
        """Of the maps, of all draws, and of the judgement."""
        ready = self.ready
        parts = self.of_weights()
        if self.options.quick:
            if "responses" in self.aggregation.kinds:
                parts["all features taken away"] = _known(Rows(0, self._rows_of_masks()) * self._inputs)
            return parts
        chosen = Rows()
        for kind, count in self.picking().items():
            chosen = chosen + self._of_kind(kind, count, "fit")
        parts["draws to choose the best single method"] = _known(chosen)
        parts["fresh draws"] = self._fresh()
        parts["all features taken away"] = _known(Rows(0, self._rows_of_masks()) * self._inputs)
        if self.aggregation.solves and self.options.resolved_draws:
            parts["weights solved anew"] = self._resolved()
        if not isinstance(ready.score.model, nn.Module):
            parts["is it piecewise constant?"] = _known(Rows(0, NEIGHBOURS_OF_BLACK_BOX) * self._inputs)
        baselines = baselines_of(ready.measurement.stack.stack, self._shape)
        rows = sum(baseline.count(len(self._shape)) for baseline, _ in baselines)
        if rows:
            parts["completeness"] = _known(Rows(0, rows) * self._inputs)
        return {name: span for name, span in parts.items() if span[1].work}

    def expected(self, every: bool = True) -> dict[str, tuple[float, bool]]:
        """Stage → the work that it usually takes, and whether it is certain, as where no draws are made in rounds.

        Args:
            every: of a whole explanation; False: of the weights alone.
        """
        parts = self.of_explanation() if every else self.of_weights()
        stages: dict[str, tuple[float, bool]] = dict.fromkeys(STAGES, (0.0, True))
        for name, (least, most) in parts.items():
            work, certain = stages[_stage(name)]
            usual = least.work + (most.work - least.work) * USUAL
            stages[_stage(name)] = (work + usual, certain and least == most)
        return stages

    def picking(self) -> dict[str, int]:
        """Kind → fitting draws of those that the weights do not look at: so many as were asked for; else, of the kinds by which
        the best single method is chosen, the first round."""
        metrics = self.ready.measurement.metrics
        draws = self.options.fitting
        kinds = tuple(metrics)
        if not self.options.fixed_fit:
            draws = first_round(draws)
            kinds = tuple(kind for criterion in criteria_of(self.aggregation) for kind in PARTS[criterion])
        further = [kind for kind in metrics if kind in kinds and kind not in self.aggregation.kinds]
        return {kind: draws.of_metric(metrics[kind]) for kind in further}

    def _fresh(self) -> Span:
        """The draws that judge: those of the first look, and those of the last one."""
        least = Rows()
        most = Rows()
        metrics = self.ready.measurement.metrics
        for kind, metric in metrics.items():
            if kind in SEQUENTIAL_KINDS:
                looks = self.options.looks(kind)
                further = Rows()
                if metric.asks != "explanations":
                    # Each further round of masks evaluates the inputs themselves again.
                    further = Rows(0, len(looks) - 1) * self._inputs
                least = least + self._of_kind(kind, looks[0], "fresh")
                most = most + self._of_kind(kind, looks[-1], "fresh") + further
            else:
                known = self._of_kind(kind, self.options.judging.of_metric(metric), "fresh")
                least, most = least + known, most + known
        return least, most

    def _resolved(self) -> Span:
        """At each of some neighbours the maps are made, and the draws that the weights need, as many as at the input."""
        least, most = self._span
        maps = self.explanation * self._inputs
        low = maps + self._of_draws(least, self.aggregation.kinds, "fit")
        high = maps + self._of_draws(most, self.aggregation.kinds, "fit")
        times = self.options.resolved_draws
        return low * times, high * times

    def _of_draws(self, draws: Draws, kinds: Iterable[str], stream: str) -> Rows:
        """Of all inputs' draws of some kinds from a stream."""
        total = Rows()
        for kind in kinds:
            total = total + self._of_kind(kind, draws.of_metric(self.ready.measurement.metrics[kind]), stream)
        return total

    def _of_kind(self, kind: str, asked: int, stream: str) -> Rows:
        """Of so many draws of one kind, for each input."""
        points = self.ready.points
        metric = self.ready.measurement.metrics[kind]
        count = metric.evaluations(points, asked, stream)
        if metric.asks == "explanations":
            return self.explanation * count
        # Outputs are compared with those of the inputs themselves.
        return Rows(0, count + len(points))

    def _rows_of_masks(self) -> int:
        """The rows of the masks' baseline that are looked at."""
        masks = self.ready.measurement.infidelity.neighbourhood(self._shape)
        return min(ROWS_OF_BASELINE, masks.baseline.count(len(self._shape)))


def _stage(part: str) -> str:
    """The stage to which a part of the plan belongs."""
    if part in ("the maps", "draws to fit"):
        return "answer"
    return part if part in STAGES else "judgement"


def _known(rows: Rows) -> Span:
    """As many at least as at most."""
    return rows, rows


def baselines_of(stack: Stack, shape: Sequence[int]) -> dict[tuple[Baseline, Features | None], list[int]]:
    """What explainers take away that claim to add up → which explainers those are.

    What is taken away is a baseline, and the features that are replaced by it; None: every element.

    Args:
        stack: the explainers.
        shape: the axes of one input.
    """
    found: dict[tuple[Baseline, Features | None], list[int]] = {}
    for at, explainer in enumerate(stack.explainers):
        if explainer.complete and not isinstance(explainer, Direct):
            where = explainer.need.where
            features = None
            if isinstance(where, Game):
                features = unit(where.features, shape)
            baseline = getattr(where, "baseline", None)
            if baseline is not None:
                found.setdefault((baseline, features), []).append(at)
    return found
