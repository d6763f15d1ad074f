"""Which methods are valid for a model, and the proof: :func:`doctor` tries every one on a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .adapters.batch import batch_of
from .explainers import METHODS, Direct, Explainer, Stack, resolve
from .model.backward_rules import Call, survey
from .model.score import Score
from .model.state import borrowed
from .perturb.neighbourhoods import Path
from .perturb.points import Points
from .settings import checked
from .signatures import known_arguments
from .statistics.keys import Key

SATURATED = 1 - 1e-4
"""A probability above which its gradient vanishes."""

EXACT_SUM = 0.1
"""The completeness error from which a method that adds up exactly is not valid."""

QUADRATURE_SUM = 0.5
"""That of a quadrature, whose map is right long before its sum is. :mod:`.report.sentences` has the same limits, and the
measurement behind them."""

FEW = 256
"""So many evaluations are enough to see whether a sampling method works; it draws fewer samples where it would take more."""


@dataclass(frozen=True)
class Check:
    """One method on this model.

    Args:
        method: its name.
        valid: whether it works.
        proof: what shows that it does, or why it does not.
        completeness_error: |Σφ − (f(x) − f(b))| / |f(x) − f(b)|, the largest over the batch; None where it says nothing.
    """

    method: str
    valid: bool
    proof: str
    completeness_error: float | None = None

    def line(self, width: int = 18) -> str:
        """The verdict in one line, with ``width`` characters for the method's name."""
        verdict = "ok " if self.valid else "no "
        return f"{verdict} {self.method:<{width}}  {self.proof}"


@dataclass(frozen=True)
class Diagnosis:
    """The result of :func:`doctor`; ``str()`` is a report.

    Args:
        checks: one for each method.
        calls: of activation functions, and their form.
        layer: the name of the layer that CAM methods take, or None.
        outputs: the shape of the model's outputs.
        warnings: what makes explanations doubtful, in sentences.
    """

    checks: list[Check]
    calls: list[Call]
    layer: str | None
    outputs: tuple[int, ...]
    warnings: list[str] = field(default_factory=list)

    @property
    def valid(self) -> list[str]:
        """The methods that work."""
        return [check.method for check in self.checks if check.valid]

    def __str__(self) -> str:
        width = max(len(check.method) for check in self.checks)
        return "\n".join([self.summary, "", *(check.line(width) for check in self.checks)])

    @property
    def summary(self) -> str:
        """What was seen of the model, and the warnings; without the methods."""
        forms = Counter((call.op, call.form) for call in self.calls)
        calls = ", ".join(f"{op} × {count} ({form})" for (op, form), count in sorted(forms.items()))
        modules = Counter((call.op, call.module) for call in self.calls if call.module)
        reused = sorted({module for (_, module), count in modules.items() if count > 1 and module})
        lines = [
            f"outputs   {self.outputs[1]} per input",
            f"layer     {self.layer or 'none'} (for class activation maps)",
            f"calls     {calls or 'none seen'}",
            f"reused    {', '.join(reused[:8]) or 'no activation module is called twice'}",
            *(f"warning   {warning}" for warning in self.warnings),
        ]
        return "\n".join(lines)

    __repr__ = __str__


@known_arguments()
def doctor(
    model: Any,
    x: Tensor,
    target: Any = None,
    methods: Any = None,
    seed: int = 0,
    progress: Callable[[Check], None] | None = None,
) -> Diagnosis:
    """Try every method on a batch and prove what can be proved.

    Path and rescale methods are proved by their completeness error |Σφ − (f(x) − f(b))| / |f(x) − f(b)|, the largest over
    the batch; the others by a finite, non-zero map, of about ``FEW`` samples. Also: activation calls and their form, batch
    norm left in training mode, saturated or non-finite outputs, outputs that depend on the other rows of a batch or are drawn
    at random.

    Args:
        model: as for :func:`consilience.explain`.
        x: (B, *F).
        target: as for :func:`consilience.explain`.
        methods: names or configured explainers; None: all.
        seed: of the methods' draws.
        progress: called with each method's :class:`Check`.
    """
    x, _ = batch_of(x, model)
    progress = checked("progress", progress, Callable | None)
    seed = checked("seed", seed, int, low=-(2**63), high=2**63 - 1)
    explainers: list[Explainer] = resolve(list(METHODS) if methods is None else methods)
    warnings = _warnings_of_state(model)
    score = Score(model, target).at(x, check_rows=True)
    points = Points(x, torch.arange(len(x), device=x.device), score.ids)
    if not bool(score.outputs.isfinite().all()):
        warnings.append("outputs are not finite: check the weights and the preprocessing")
    elif bool((score.meaning.probability(score.outputs, score.targets) > SATURATED).any()):
        warnings.append(
            "a probability is above 0.9999: gradients of kind='probability' vanish there; explain the logit or the margin"
        )
    warnings += [*score.warnings(), *score.row_warnings]
    checks = []
    for explainer in explainers:
        check = _check(score, points, _with_few_samples(explainer, x.shape[1:]), seed)
        checks.append(check)
        if progress:
            progress(check)
    # Two rows that differ, as the backward rules have them: calls of one row may take other branches.
    calls: list[Call] = []
    if isinstance(model, nn.Module):
        with torch.no_grad(), borrowed(model, freeze=True):
            calls = survey(model, lambda: model(torch.cat([x[:1], x[:1] / 2])))
    layer = score._layers.get("auto")
    layer_name = layer.name if layer else None
    return Diagnosis(checks, calls, layer_name, tuple(score.outputs.shape), warnings)


def _check(score: Score, points: Points, explainer: Explainer, seed: int) -> Check:
    """One method tried on the points."""
    name = explainer.name
    stack = Stack([explainer], seed)
    try:
        raw = stack.attribute(score, points)[:, 0]
    except Exception as error:  # whatever it raises is what was to be found out
        lines = str(error).splitlines()
        return Check(name, False, lines[0] if lines else type(error).__name__)
    if not bool(raw.isfinite().all()):
        return Check(name, False, "NaN or infinite values in the map")
    if not bool((raw.flatten(1) != 0).any(1).all()):
        return Check(name, False, "the map is zero everywhere: nothing to explain, or the layer is dead")
    if not explainer.complete or isinstance(explainer, Direct):
        return Check(name, True, "finite and not zero")
    gap = _completeness_error(score, points, explainer, raw, seed)
    proof = f"completeness error {gap:.1e} of f(x) − f(baseline)"
    is_quadrature = isinstance(explainer.need.where, Path)
    if abs(gap - 1) < 1e-6:
        proof += (
            ": the map adds up to zero although the score changes, as where a model rounds or cuts its gradients, which more "
            "steps do not mend"
        )
    elif gap > EXACT_SUM and is_quadrature:
        proof += ": raise the number of steps or samples for contributions that add up"
    allowed = QUADRATURE_SUM if is_quadrature else EXACT_SUM
    # Expected gradients add up in expectation only: a few samples prove nothing against them.
    is_valid = gap < allowed or name == "expected_gradients"
    return Check(name, is_valid, proof, gap)


def _completeness_error(score: Score, points: Points, explainer: Explainer, raw: Tensor, seed: int) -> float:
    """|Σφ − (f(x) − f(b))| / |f(x) − f(b)|, the largest over the points.

    Args:
        score: what is explained.
        points: x (N, *F).
        explainer: one whose contributions add up.
        raw: (N, *F), its contributions.
        seed: that of its draws, which are made again: b may be drawn.
    """
    need = explainer.need
    key = Key(seed, "explainer") / need.stream
    total = need.total(points.x.shape[1:])
    # Under a backward rule the whole cloud has one baseline.
    samples = range(1) if need.rule else range(total)
    cloud = need.where.draw(points, samples, key, total)
    assert cloud.origin is not None
    at_baseline = score(cloud.origin, cloud.owner).double()
    fall = score.clean.double() - cloud.split(at_baseline).mean(1)
    sums = raw.flatten(1).double().sum(1)
    return float(((sums - fall).abs() / fall.abs()).max())


def _with_few_samples(explainer: Explainer, shape: Sequence[int]) -> Explainer:
    """The explainer with no more samples than :data:`FEW` evaluations allow."""
    if isinstance(explainer, Direct) or not hasattr(explainer, "n_samples"):
        return explainer
    samples = explainer.need.samples
    total = sum(Stack([explainer]).rows(shape).values())
    if samples is None or total <= FEW:
        return explainer
    return replace(explainer, n_samples=max(1, samples * FEW // total))  # type: ignore[type-var]


def _warnings_of_state(model: Any) -> list[str]:
    """What a model's mode and parameters say against explaining it, in sentences."""
    if not isinstance(model, nn.Module):
        return ["a plain callable: only methods that need no modules and, for NumPy, no gradients"]
    warnings = []
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    training = [name for name in norms if model.get_submodule(name).training]
    if training:
        warnings.append(
            f"{len(training)} batch norms in training mode ({training[0]}, …): explanations are made in eval mode, so they "
            "describe model.eval(), not the model as it is now"
        )
    elif model.training:
        warnings.append("the model is in training mode: explanations are made in eval mode")
    bad = [name for name, parameter in model.named_parameters() if not bool(parameter.isfinite().all())]
    if bad:
        warnings.append(f"NaN or infinite parameters: {', '.join(bad[:3])}")
    return warnings
