"""Contrast: how much a map changes when it should, the signal beside which its changes under noise are judged."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import simplex
from ..card import Card
from ..errors import InputError
from ..model.score import Score
from ..perturb.neighbourhoods import Gaussian, neighbours
from ..perturb.points import Points
from ..settings import setting
from ..statistics.evidence import Evidence, Quadratic
from ..statistics.tensors import corners, exact
from ..task import Task
from .base import Metric
from .grams import gram

FAR = Gaussian(0.5, relative=True)
"""Where another input is drawn, for models with one output: half the input's range away, in every element."""


@dataclass(frozen=True)
class Contrast(Metric):
    """C = E‖φ_t(x) − φ_t'(x)‖², over other outputs t' of the model: how much the map changes with the question.

    A picture that is the same for every class has none, however little it moves. Adding a constant to a map changes nothing.
    The first other output is the runner-up, the largest besides the target; further ones are drawn without replacement. A
    model with one output has no other question: there, t' stands for another input, :data:`FAR` away.

    Args:
        count: how many other outputs, or other inputs; a model with fewer gives all it has.
    """

    count: int = setting(2, low=1, high=1000)

    card = Card(
        formula="E‖φ_t(x) − φ_t'(x)‖² / ‖φ_t(x)‖², t' ≠ t other outputs; for one output, φ at another input",
        source="this library, docs/concepts.md; Sixt, Granz & Landgraf 2020, arXiv 1912.09818, for the idea of the test",
        better="higher",
        normalisation="by ‖φ‖² as a criterion",
        perturbation="the output asked about; for models with one output, N(0, σ²) with σ half the input's range",
        draws="2: the runner-up and one at random to fit, two at random that judge (streams 'fit' and 'fresh')",
        cost="one explanation for each other output",
    )
    name = "contrast"
    stream = "contrast"
    statistic = "contrast"
    asks = "explanations"

    @property
    def fixed(self) -> int:
        return self.count

    def of_model(self, score: Score) -> Contrast:
        """This contrast with as many other outputs as the model has: none is asked about twice."""
        if not has_other_outputs(score):
            return self
        return replace(self, count=min(self.count, score.outputs.shape[1] - 1))

    def measure(self, task: Task, samples: range, total: int) -> Quadratic:
        """The Gram matrices of the changes of the maps, one draw for each other output."""
        flat = exact(task.maps.flatten(2))
        grams = []
        # As many of them at once as there are rows in flight.
        step = max(1, task.score.batch.size(True) // len(task.points))
        for start in range(samples.start, samples.stop, step):
            part = range(start, min(start + step, samples.stop))
            other = exact(task.explain(task.score, self._elsewhere(task, part, total)).flatten(2))
            grams.append(gram(flat[:, None] - other.unflatten(0, (-1, len(part)))))
        # Every other output was asked about: nothing is estimated.
        whole = None
        if has_other_outputs(task.score) and len(samples) == task.score.outputs.shape[1] - 1:
            whole = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
        return Quadratic(torch.cat(grams, 1), gram(flat), whole)

    def _elsewhere(self, task: Task, samples: range, total: int) -> Points:
        """The inputs asked about other outputs, or other inputs: B·s points, s ``samples`` of each input in turn."""
        score = task.score
        points = task.points
        if not has_other_outputs(score):
            return neighbours(FAR, points, samples, task.stream(self.stream), total)
        numbers = torch.tensor(samples, device=score.outputs.device) % (score.outputs.shape[1] - 1)
        targets = self._others(task)[:, numbers].flatten()
        each = torch.arange(len(points), device=points.owner.device).repeat_interleave(len(samples))
        return replace(points[each], targets=targets.to(score.targets.device))

    def _others(self, task: Task) -> Tensor:
        """(B, outputs − 1): the outputs besides the target, in the order in which they are asked about."""
        score = task.score
        points = task.points
        outputs = score.outputs[points.owner]
        target = score.targets[points.owner].to(outputs.device)
        order = task.stream(self.stream).uniform(points.ids, 0, (outputs.shape[1],)).to(outputs.device)
        # Numbers in [0, 1) order the outputs at random. The target comes behind all others, and is left out.
        order = order.scatter(1, target[:, None], 2.0)
        # The runner-up is asked about first, but on the fitting stream only: fresh draws judge by outputs chosen at random.
        if task.key.stream == "fit":
            runner_up = outputs.scatter(1, target[:, None], -torch.inf).argmax(1)
            order = order.scatter(1, runner_up[:, None], -1.0)
        return order.argsort(1)[:, :-1]

    def loss(self, evidence: Evidence, w: Tensor) -> Tensor:
        """−wᵀCw / wᵀHw: a contrast is to be large."""
        part = evidence[self.statistic]
        change = torch.einsum("bmr,brt,bmt->bm", w, part.matrix, w)
        size = torch.einsum("bmr,brt,bmt->bm", w, part.norm, w)
        return -change / torch.where(size > 0, size, torch.nan)

    def solve(self, evidence: Evidence, valid: Tensor, signed: bool) -> simplex.Solution:
        """The single method of the largest contrast; mixtures are not searched."""
        if signed:
            raise InputError("signed: not for Contrast; its weights are convex")
        alone = corners(valid)
        loss = self.loss(evidence, alone).masked_fill(~valid, torch.inf).nan_to_num(torch.inf, torch.inf)
        best = loss.argmin(1)
        weights = torch.nn.functional.one_hot(best, valid.shape[1]).double()
        value = loss.gather(1, best[:, None])[:, 0]
        gap = torch.full_like(value, torch.nan)
        return simplex.Solution(weights, value, gap, ("the method of the largest contrast",) * len(value))


def has_other_outputs(score: Score) -> bool:
    """Whether the model can be asked about another output: it has several, one of which is explained.

    Args:
        score: the model, resolved at the inputs.
    """
    # A score that is the caller's own function need not look at one output.
    return score.outputs.shape[1] > 1 and isinstance(score.kind, str)
