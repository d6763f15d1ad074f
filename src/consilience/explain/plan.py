"""What an explanation will take, before it is made: evaluations by formula, memory and time by a short calibration."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..explainers import Direct, Stack
from ..model.batching import Counts
from ..model.score import Score
from ..perturb.points import Points
from .cost import Rows
from .run import Job

ROUNDS = 3  # of the calibration; the fastest counts


@dataclass(frozen=True)
class Plan:
    """What a call will take.

    Args:
        inputs: how many are explained.
        needs: for one explanation of one input: what is evaluated, for whom, and how many rows.
        parts: model evaluations of the whole call by what they are for, (at least, at most). They differ where draws are made
            until sure.
        cost: "gradient", "forward" → seconds of one row.
        batch: rows in flight.
        mib: memory in flight beside the model, an estimate.
    """

    inputs: int
    needs: tuple[tuple[str, str, Rows], ...]
    parts: dict[str, tuple[Rows, Rows]]
    cost: dict[str, float]
    batch: int
    mib: float

    @property
    def rows(self) -> tuple[Rows, Rows]:
        """All evaluations, at least and at most."""
        least = sum((low for low, _ in self.parts.values()), Rows())
        most = sum((high for _, high in self.parts.values()), Rows())
        return least, most

    @property
    def seconds(self) -> tuple[float, float]:
        """At least and at most."""
        least, most = self.rows
        return self._seconds(least), self._seconds(most)

    def _seconds(self, rows: Rows) -> float:
        return rows.gradient * self.cost["gradient"] + rows.forward * self.cost["forward"]

    def __str__(self) -> str:
        table = [("one explanation of one input", "gradients", "forwards")]
        for what, who, rows in self.needs:
            table.append((f"  {what}: {who}", str(rows.gradient), str(rows.forward)))
        plural = "s" if self.inputs > 1 else ""
        table.append((f"{self.inputs} input{plural}", "", ""))
        for name, (least, most) in [*self.parts.items(), ("in all", self.rows)]:
            gradient = _span(least.gradient, most.gradient)
            forward = _span(least.forward, most.forward)
            table.append((f"  {name}", gradient, forward))
        wide = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
        lines = [f"{a:<{wide[0]}}  {b:>{wide[1]}}  {c:>{wide[2]}}".rstrip() for a, b, c in table]
        known = "; ".join(f"a {kind} {1e3 * seconds:.3g} ms" for kind, seconds in self.cost.items() if seconds)
        decimals = 0 if self.seconds[0] > 10 else 1
        took = _span(*self.seconds, decimals)
        lines.append(
            f"about {took} s ({known}), about {self.mib:.0f} MiB beside the model, {self.batch} rows in flight"
        )
        return "\n".join(lines)

    __repr__ = __str__


def _span(least: float, most: float, decimals: int = 0) -> str:
    """One number, or from where to where."""
    low = f"{least:.{decimals}f}"
    if least == most:
        return low
    return f"{low} … {most:.{decimals}f}"


@torch.inference_mode(False)
def plan(job: Job, every: bool = True) -> Plan:
    """The plan of a job. Times a batch of gradients and one of outputs, on the job's first input.

    Rows are exact for methods that declare what they need; those that run by themselves give an estimate of their own.

    Args:
        job: the call.
        every: of a whole explanation; False: of the weights alone.
    """
    ready = job.ready
    score = ready.score
    points = ready.points
    stack = ready.measurement.stack.stack
    shape = points.x.shape[1:]
    counts = score.counts
    parts = {"preparation": (Rows(counts.gradient, counts.forward),) * 2, **job.planned(every)}
    wanted = sum((most for _, most in parts.values()), Rows())
    cost = {"gradient": 0.0, "forward": 0.0}
    saved = 0
    for kind in cost:
        if getattr(wanted, kind):
            cost[kind], size = _timed(score, points, kind == "gradient")
            saved = max(saved, size)
    gradient = cost["gradient"] > 0
    batch = score.batch.size(gradient)
    one = math.prod(shape) * points.x.element_size()
    maps = math.prod(ready.measurement.stack.features.shape(shape))
    rows = ready.measurement.rows
    if every:
        rows += len(ready.measurement.derived)
    # In flight at once; the small factors are how many copies were seen.
    activations = batch * (saved + 6 * one)
    raw_maps = batch * 3 * len(stack) * one
    residuals = 3 * batch * rows * maps * 8  # float64
    mib = (activations + raw_maps + residuals) / 2**20
    return Plan(len(points), _needs(stack, shape), parts, cost, batch, mib)


def _needs(stack: Stack, shape: torch.Size) -> tuple[tuple[str, str, Rows], ...]:
    """What is evaluated for one explanation of one input, for which methods, and how many rows."""
    found = []
    for members in stack.clouds().values():
        need = stack.explainers[members[0]].need
        one = Stack([stack.explainers[i] for i in members]).rows(shape)
        where = type(need.where).__name__.lower()
        if need.rule:
            where = f"{where}, {need.rule}"
        who = ", ".join(stack.names[i] for i in members)
        found.append((where, who, Rows(one["gradient"], one["forward"])))
    if stack.coalitional:
        pool = stack.only(stack.coalitional)
        found.append(("coalitions", ", ".join(pool.names), Rows(0, pool.rows(shape)["forward"])))
    for name, explainer in zip(stack.names, stack.explainers, strict=True):
        if isinstance(explainer, Direct):
            alone = explainer.rows(shape)
            found.append(("by itself", name, Rows(alone.get("gradient", 0), alone.get("forward", 0))))
    return tuple(found)


def _timed(score: Score, points: Points, gradient: bool) -> tuple[float, int]:
    """Seconds of one row of a batch, and bytes kept for its backward pass."""
    best = math.inf
    apart = copy.copy(score)
    apart.counts = Counts()  # the calibration is not part of the plan
    rows: Tensor = points.x[:1].repeat_interleave(score.batch.size(gradient), 0)
    owner = points.owner[:1].repeat_interleave(len(rows))
    for _ in range(ROUNDS):
        began = time.perf_counter()
        apart.evaluate(rows, owner, gradient=gradient)
        best = min(best, (time.perf_counter() - began) / len(rows))
    if not gradient:
        return best, 0
    weights = set()
    if isinstance(score.model, nn.Module):
        weights = {parameter.untyped_storage().data_ptr() for parameter in score.model.parameters()}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        apart.evaluate(rows[:1], owner[:1], gradient=True)
    return best, sum(kept.values())
