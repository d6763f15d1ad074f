"""Axiomatic measures in units of the output: completeness and local fidelity, of signed, unscaled attributions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..card import Card
from ..errors import InputError
from ..perturb.baseline import AnyBaseline, Baseline
from ..settings import setting
from ..surrogates.local_linear import Local, completeness
from ..task import Measure, Task


@dataclass(frozen=True)
class Completeness(Measure):
    """|Σφ − (f(x) − f(b))| / |f(x) − f(b)| (Sundararajan, Taly & Yan 2017, arXiv 1703.01365); of contributions only.

    Against a data set f(b) is the mean score of its rows, E f(b): that is what Shapley values and expected gradients add up to.
    Methods that start from its mean row (integrated gradients, DeepLIFT) add up to another number, and have an error here.
    Elements that belong to no attributed feature (special tokens, padding) stay as they are.

    Args:
        baseline: b; None: evaluate's ``baselines``, which the methods were given, else "zero".
    """

    baseline: AnyBaseline = None

    name = "completeness"
    card = Card(
        formula="|Σφ − (f(x) − f(b))| / |f(x) − f(b)|; of a data set E f(b)",
        source="Sundararajan, Taly & Yan 2017, arXiv 1703.01365",
        better="lower",
        normalisation="by |f(x) − f(b)|; signed, unscaled contributions only",
        perturbation="everything replaced by the baseline b, zero in units of the model's input",
        cost="1 forward for each input, or as many as the data set has rows",
        differences=(
            (
                "quantus",
                "Completeness asks floating-point numbers to be equal: False for integrated gradients that "
                "are complete to 1 %; here an error",
            ),
        ),
    )
    undefined = (
        "the row is not a contribution, so its sum has no meaning, or the score at the baseline is that at the input"
    )
    needs = ("raw",)

    def __call__(self, task: Task) -> Tensor:
        baseline = Baseline.of(self.baseline)
        responses = completeness(task.score, task.points, _signed_maps(task), baseline, task.features)
        # One response: everything is taken away at once.
        sums = responses.a[:, 0]
        fall = responses.y
        error = (sums - fall).abs() / torch.where(fall == 0, torch.nan, fall.abs())
        return torch.where(_is_kind(task, "contribution", error), error, torch.nan)


@dataclass(frozen=True)
class LocalFidelity(Measure):
    """E (g(x′) − f(x′))², g the map as a linear model around x (ExpO's neighbourhood fidelity, arXiv 1902.06787).

    Gradients: x′ = x + ε, g(x′) = f(x) + Σ ε_i φ_i. Contributions: x′ − b = (1 + ε)(x − b) and the same g, since a
    contribution moves in proportion. ε ~ N(0, radius²), one for each attributed feature: squared units of the score.

    Args:
        radius: σ of ε: for gradients in the points' unit of noise (the model's input; columns' standard deviations where a
            data set of baselines was given), for contributions a share of x − b.
        draws: S, how many x′.
        baseline: b, as for :class:`Completeness`.
    """

    radius: float = setting(0.1, above=0)
    draws: int = setting(32, low=1)
    baseline: AnyBaseline = None

    name = "local_fidelity"
    card = Card(
        formula="E (f(x) + Σ ε_i φ_i − f(x′))², x′ = x + ε for gradients, x′ − b = (1 + ε)(x − b) for contributions",
        source="Plumb et al. 2020 (ExpO), arXiv 1902.06787: neighbourhood fidelity",
        better="lower",
        normalisation="none: squared units of the score; signed, unscaled gradients and contributions only",
        perturbation="ε ~ N(0, 0.1²), one for each attributed feature; gradients: in the points' unit of noise (the "
        "model's input, or columns' standard deviations); contributions: a share of x − b",
        draws="32 neighbours, stream 'local'",
        cost="32 forward for each input, for each of the two kinds that there is",
        differences=(
            ("the ExpO code", "5 neighbours of standardised tables, draws=5; its g has an intercept of its own"),
        ),
    )
    needs = ("raw",)

    def __call__(self, task: Task) -> Tensor:
        maps = _signed_maps(task)
        score = task.score
        baseline = Baseline.of(self.baseline).one()
        step = 4 * score.batch.size(False)
        key = task.stream("local")
        errors = torch.full(maps.shape[:2], torch.nan, dtype=torch.float64, device=score.clean.device)
        # The two kinds predict the score at different neighbours; each is asked about only where it occurs.
        for kind in sorted({"gradient", "contribution"} & set(task.kinds)):
            local = Local(kind, self.radius, baseline)
            responses = local.responses(score, task.points, maps, task.features, range(self.draws), key, step)
            error = ((responses.a - responses.y[..., None]) ** 2).mean(1)
            errors = torch.where(_is_kind(task, kind, error), error, errors.to(error))
        return errors


def _signed_maps(task: Task) -> Tensor:
    """(B, R, *A): the maps in units of the output."""
    if task.raw is None:
        raise InputError("raw: this measure needs signed, unscaled attributions")
    return task.raw


def _is_kind(task: Task, kind: str, like: Tensor) -> Tensor:
    """(R,) bool, on the device of ``like``: the rows of one kind."""
    return torch.tensor([each == kind for each in task.kinds], device=like.device)
