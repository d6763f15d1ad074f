"""Which methods are valid for a model, and the proof."""

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

SUMS, SHAPES = 0.1, 0.5
"""Completeness errors that are too large: of methods that add up exactly, and of quadratures, whose map is right long before
its sum is. :mod:`.report.sentences` has the same lines, and the measurement."""


FEW = 256
"""Evaluations that are enough to see whether a sampling method works; it draws fewer samples if it would take more."""


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
        """One line for people, with ``width`` characters for the method's name."""
        verdict = "ok " if self.valid else "no "
        return f"{verdict} {self.method:<{width}}  {self.proof}"


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`doctor` found; ``str()`` is a report for people.

    Args:
        checks: one for each method.
        calls: of activation functions, and their form.
        layer: the name of the layer that CAM methods take, or None.
        outputs: the shape of the model's outputs.
        warnings: what speaks against explanations, in sentences.
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
        """All but the methods."""
        lines = [
            f"outputs   {self.outputs[1]} per input",
            f"layer     {self.layer or 'none'} (for class activation maps)",
        ]
        found = Counter((call.op, call.form) for call in self.calls)
        places = Counter((call.op, call.module) for call in self.calls if call.module)
        reused = sorted({module for (_, module), count in places.items() if count > 1 and module})
        calls = ", ".join(f"{op} × {count} ({form})" for (op, form), count in sorted(found.items())) or "none seen"
        lines += [f"calls     {calls}", f"reused    {', '.join(reused[:8]) or 'no activation module is called twice'}"]
        return "\n".join(lines + [f"warning   {warning}" for warning in self.warnings])

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
    warnings = _modes(model)
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
        checks.append(_check(score, points, _fewer(explainer, x.shape[1:]), seed))
        if progress:
            progress(checks[-1])
    calls: list[Call] = []
    if isinstance(model, nn.Module):
        with torch.no_grad(), borrowed(model, freeze=True):
            calls = survey(model, lambda: model(torch.cat([x[:1], x[:1] / 2])))
    layer = score._layers.get("auto")
    layer_name = layer.name if layer else None
    return Diagnosis(checks, calls, layer_name, tuple(score.outputs.shape), warnings)


def _check(score: Score, points: Points, explainer: Explainer, seed: int) -> Check:
    name = explainer.name
    stack = Stack([explainer], seed)
    try:
        raw = stack.attribute(score, points)[:, 0]
    except Exception as error:  # any failure is a finding here, and is reported by name
        lines = str(error).splitlines()
        return Check(name, False, lines[0] if lines else type(error).__name__)
    if not bool(raw.isfinite().all()):
        return Check(name, False, "NaN or infinite values in the map")
    if not bool((raw.flatten(1) != 0).any(1).all()):
        return Check(name, False, "the map is zero everywhere: nothing to explain, or the layer is dead")
    if not explainer.complete or isinstance(explainer, Direct):
        return Check(name, True, "finite and not zero")
    need = explainer.need
    key = Key(seed, "explainer") / need.stream
    total = need.total(points.x.shape[1:])
    cloud = need.where.draw(points, range(1 if need.rule else total), key, total)
    assert cloud.origin is not None
    origin = score(cloud.origin, cloud.owner).double()
    fall = score.clean.double() - cloud.split(origin).mean(1)
    gap = float(((raw.flatten(1).double().sum(1) - fall).abs() / fall.abs()).max())
    proof = f"completeness error {gap:.1e} of f(x) − f(baseline)"
    along = isinstance(need.where, Path)
    if gap > SUMS and along:
        proof += ": raise the number of steps or samples for contributions that add up"
    # A quadrature's map is right long before its sum is.
    allowed = SHAPES if along else SUMS
    return Check(name, gap < allowed or name == "expected_gradients", proof, gap)


def _fewer(explainer: Explainer, shape: Sequence[int]) -> Explainer:
    """The same with no more samples than :data:`FEW` evaluations allow."""
    if isinstance(explainer, Direct) or not hasattr(explainer, "n_samples"):
        return explainer
    samples = explainer.need.samples
    total = sum(Stack([explainer]).rows(shape).values())
    if samples is None or total <= FEW:
        return explainer
    return replace(explainer, n_samples=max(1, samples * FEW // total))  # type: ignore[type-var]


def _modes(model: Any) -> list[str]:
    """What a model's mode and parameters say against explaining it, in sentences."""
    if not isinstance(model, nn.Module):
        return ["a plain callable: only methods that need no modules and, for NumPy, no gradients"]
    warnings = []
    training = [n for n, m in model.named_modules() if m.training and isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if training:
        warnings.append(
            f"{len(training)} batch norms in training mode ({training[0]}, …): explanations are made in eval mode, so they "
            "describe model.eval(), not the model as it is now"
        )
    elif model.training:
        warnings.append("the model is in training mode: explanations are made in eval mode")
    bad = [n for n, p in model.named_parameters() if not bool(p.isfinite().all())]
    if bad:
        warnings.append(f"NaN or infinite parameters: {', '.join(bad[:3])}")
    return warnings
