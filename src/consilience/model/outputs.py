"""What a model's outputs mean: the one rule that scores, measures, reports and training share.

A column of outputs (N, O) can be the logit of a class, the probability of a class, the logit or the probability of a label of
its own, or a plain number. ``Outputs`` says which, and turns outputs into scores, probabilities and decisions accordingly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..arrays import as_tensor
from ..errors import InputError, choose
from ..settings import Settings, setting

SCORE_KINDS = ("logit", "probability", "log_probability", "margin", "output")

MEANINGS = {
    "logits": "logits of classes, one of which is right (a softmax); one column: a logit of two classes (a sigmoid)",
    "probabilities": "probabilities of such classes; one column: that of class 1",
    "label_logits": "a logit for each label, independent of the others (sigmoids)",
    "label_probabilities": "a probability for each such label",
    "values": "numbers, as in regression",
}

SUM_OF_PROBABILITIES = 1e-3
"""How far a row of probabilities may be from one: half precision, and rounding by the caller."""

PROPER = (-1e-4, 1 + 1e-4)
"""Where a probability lies, with room for rounding."""


@dataclass(frozen=True)
class Kind(Settings):
    """Which number of the output is explained, and what the outputs mean.

    ``kind="probability"`` is short for ``kind=Kind("probability")``, which leaves the meaning to the model:
    :func:`interpret` has the rule. Say ``outputs`` where the rule cannot know, or takes them for something else:
    ``kind=Kind("logit", outputs="label_logits")`` for independent labels.

    Args:
        name: "logit" (the output itself), "probability", "log_probability", "margin" (the target's output minus the
            runner-up's at x; of one output or of labels, minus that of the other answer), or "output" (of regression).
        outputs: "logits", "probabilities", "label_logits", "label_probabilities" or "values"; None: by the rule.

    Raises:
        InputError: an unknown name.

    >>> Kind("probability", outputs="label_logits")
    Kind('probability', outputs='label_logits')
    """

    name: str = setting("logit", choices=SCORE_KINDS)
    outputs: str | None = setting(None, choices=tuple(MEANINGS))

    def __repr__(self) -> str:
        meaning = "" if self.outputs is None else f", outputs={self.outputs!r}"
        return f"Kind({self.name!r}{meaning})"


@dataclass(frozen=True)
class Outputs:
    """What the ``columns`` of an output mean.

    Attributes:
        meaning: one of :data:`MEANINGS`. columns: O.
        source: how it is known: "said" by the caller, the model's "config", the model's last "layer", the outputs' "values"
            (non-negative with sums of one), "guess" (between 0 and 1, and nothing else is known), or "default".
        told: False for a single output that may be a logit or a plain number: nothing says which.

    One column that is known to be a logit or a probability answers for two classes: target 1 is the column, target 0 the other
    class. One column of which that is not known is output number 0.
    """

    meaning: str
    columns: int
    source: str = "said"
    told: bool = True

    @property
    def binary(self) -> bool:
        """One column for two classes."""
        return self.columns == 1 and self.told and self.meaning in ("logits", "probabilities")

    @property
    def targets(self) -> int:
        """How many targets can be asked for."""
        return 2 if self.binary else self.columns

    @property
    def labels(self) -> bool:
        """Every column is a question of its own."""
        return self.meaning in ("label_logits", "label_probabilities")

    @property
    def normalised(self) -> bool:
        """The outputs are probabilities already."""
        return self.meaning in ("probabilities", "label_probabilities")

    @property
    def described(self) -> str:
        """For records: the meaning, or "one output" where it is a logit or a plain number."""
        return self.meaning if self.told else "one output"

    # -- scores: (N, O), targets (N,) → (N,) ---------------------------------------------------------------------------

    def score(self, kind: str, outputs: Tensor, target: Tensor, runner_up: Tensor) -> Tensor:
        """The number that is explained, see :class:`Kind`."""
        if kind == "probability":
            return self.probability(outputs, target)
        if kind == "log_probability":
            return self.log_probability(outputs, target)
        if kind == "margin":
            return self.margin(outputs, target, runner_up)
        return self.value(outputs, target)

    def value(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The target's own output; of the other class of one column, −logit or 1 − probability."""
        if not self.binary:
            return outputs.gather(1, target[:, None])[:, 0]
        column = outputs[:, 0]
        other = 1 - column if self.normalised else -column
        return torch.where(target == 1, column, other)

    def probability(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The target's probability; NaN of plain values.

        Raises:
            InputError: outputs that were taken for probabilities are not.
        """
        if self.meaning == "values":
            return torch.full_like(outputs[:, 0], torch.nan)
        if self.normalised:
            self._contradicted(outputs)
            return self.value(outputs, target)
        if self.meaning == "logits" and self.columns > 1:
            return self.value(outputs.softmax(1), target)
        return self.value(outputs, target).sigmoid()

    def log_probability(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The logarithm of :meth:`probability`, from logits without rounding."""
        if self.meaning == "logits" and self.columns > 1:
            return self.value(outputs.log_softmax(1), target)
        if self.normalised or self.meaning == "values":
            probability = self.probability(outputs, target)
            return probability.clamp(min=torch.finfo(probability.dtype).tiny).log()
        return nnf.logsigmoid(self.value(outputs, target))

    def margin(self, outputs: Tensor, target: Tensor, runner_up: Tensor) -> Tensor:
        """The target's output minus that of the runner-up, or of the other answer to a question with two."""
        value = self.value(outputs, target)
        if self.binary or self.labels:
            return 2 * value - 1 if self.normalised else value  # p − (1 − p), and the logit of the other answer is 0
        return value - self.value(outputs, runner_up)

    def runner_up(self, outputs: Tensor, target: Tensor) -> Tensor:
        """(N,): what is largest besides the target."""
        if self.binary:
            return 1 - target
        return outputs.scatter(1, target[:, None], -torch.inf).argmax(1)

    # -- decisions -----------------------------------------------------------------------------------------------------

    def predicted(self, outputs: Tensor) -> Tensor:
        """(N,): the class (of labels: the likeliest label; of values: the largest) of each row (N, O)."""
        if self.binary:
            return self._positive(outputs[:, 0]).long()
        return outputs.argmax(1)

    def decision(self, outputs: Tensor, target: Tensor) -> Tensor:
        """(…, O), (…) → (…): what the model decides about the target, to be compared between rows.

        The class; of labels, whether the target's applies; nothing (0) of plain values, and of one output that may be one.
        """
        if self.meaning == "values" or not self.told:
            return torch.zeros_like(outputs[..., 0], dtype=torch.int64)
        if self.binary:
            return self._positive(outputs[..., 0]).long()
        if self.labels:
            column = outputs.gather(-1, target.expand(outputs.shape[:-1])[..., None])[..., 0]
            return self._positive(column).long()
        return outputs.argmax(-1)

    def agrees(self, outputs: Tensor, before: Tensor, target: Tensor) -> Tensor:
        """(N,) bool: the target is the largest output; of one output or of labels: on the same side as ``before`` (N, O)."""
        if self.columns == 1 or self.labels:
            now, then = (self._positive(self.value(each, target)) for each in (outputs, before))
            return now == then
        return outputs.argmax(1) == target

    def _positive(self, column: Tensor) -> Tensor:
        return column > (0.5 if self.normalised else 0.0)

    # -- words ---------------------------------------------------------------------------------------------------------

    def named(self, kind: str) -> str:
        """What to call the score in a caption: a probability is no logit, and a regression's output is no class's."""
        if kind in ("logit", "output"):
            if self.normalised:
                return "probability"
            if kind == "output" or self.meaning == "values" or not self.told:
                return "output"
            return "logit"
        return kind.replace("_", " ")

    def warnings(self, kind: Any, differentiable: bool) -> list[str]:
        """What the caller should know: probabilities explained where logits could be, and what was guessed.

        Args:
            kind: of the score.
            differentiable: the model is a network, whose logits can be had.
        """
        found = []
        if self.normalised and self.source != "guess" and (differentiable or kind == "logit"):
            last = "sigmoid" if self.columns == 1 or self.labels else "softmax"
            found.append(
                f"the model's outputs look like probabilities: explain its logits, before the {last}, which saturates"
            )
        if self.source == "guess":
            many = "the only output lies" if self.columns == 1 else "outputs lie"
            found.append(
                f"{many} between 0 and 1: taken for {self.meaning.replace('_', ' ')}; if that is wrong, say what they are, "
                "e.g. kind=cs.Kind('logit', outputs='logits') or kind='output'"
            )
        return found

    def _contradicted(self, outputs: Tensor) -> None:
        if self.source != "guess":
            return
        low, high = PROPER
        outside = (outputs < low) | (outputs > high)
        if bool(outside.any()):
            raise InputError(
                f"kind: outputs between 0 and 1 were taken for {self.meaning.replace('_', ' ')}, but another input's is "
                f"{float(outputs[outside][0]):.4g}; say what they are, e.g. kind=cs.Kind('logit', outputs='logits') or "
                "kind='output'"
            )


def interpret(
    outputs: Tensor,
    kind: Any,
    *,
    said: str | None = None,
    model: Any = None,
    last_layer: Callable[[], str | None] = lambda: None,
) -> Outputs:
    """What outputs (N, O) at x mean. The first of these that knows decides:

    1. the caller: ``Kind(…, outputs=…)``;
    2. the model: an attribute ``outputs_meaning`` with one of :data:`MEANINGS`, or a transformers' ``config``:
       ``problem_type``, and labels where ``num_labels`` is 1, as in its text classification pipeline;
    3. ``kind="output"`` of one column: values;
    4. the outputs: non-negative rows that sum to one are probabilities, unless the network's last layer is linear;
       numbers between 0 and 1 are probabilities (of labels, if several) where the last layer is a sigmoid, are logits where it
       is linear, and are *taken* for probabilities, which the result says, where there is no such layer to be seen;
    5. else logits; with ``kind="output"``, values.

    Args:
        outputs: (N, O), at inputs whose outputs are finite.
        kind: of the score: one of :data:`SCORE_KINDS`, or a callable.
        said: what the caller says. model: whose config is read.
        last_layer: gives "sigmoid", "softmax", "linear" or None, see :func:`last_layer_of`; called only where it matters.
    """
    columns = outputs.shape[1]
    if said is not None:
        return Outputs(said, columns)
    if (known := _configured(model, columns)) is not None:
        return Outputs(known, columns, "config")
    if kind == "output" and columns == 1:
        return Outputs("values", columns)
    single = columns == 1
    told = not single or kind in ("probability", "log_probability", "margin")
    otherwise = Outputs("values" if kind == "output" else "logits", columns, "default", told)
    low, high = PROPER
    if not len(outputs) or bool((outputs < low).any()) or bool((outputs > high).any()):
        return otherwise
    last = last_layer()
    if last == "linear":
        return otherwise
    # Saturated sigmoids may sum to one by chance: where they are seen, the columns are labels.
    if not single and last != "sigmoid" and are_probabilities(outputs.detach()):
        return Outputs("probabilities", columns, "values")
    meaning = "probabilities" if single else "label_probabilities"
    if last is not None:
        return Outputs(meaning, columns, "layer")
    return otherwise if kind == "output" else Outputs(meaning, columns, "guess")


def are_probabilities(outputs: Tensor) -> bool:
    """Whether outputs (N, classes, …) are a softmax's: by their last layer, else by rows that are non-negative and sum to one.

    What has a graph is told without waiting for an accelerator.
    """
    last = last_layer_of(outputs)
    if last in ("linear", "sigmoid"):
        return False
    with torch.no_grad():
        return bool((outputs >= PROPER[0]).all() & ((outputs.sum(1) - 1).abs() < SUM_OF_PROBABILITIES).all())


def _configured(model: Any, columns: int) -> str | None:
    meaning = getattr(model, "outputs_meaning", None)
    if isinstance(meaning, str):
        return choose("outputs_meaning", meaning, MEANINGS)
    config = getattr(model, "config", None)
    problem = getattr(config, "problem_type", None)
    known = {
        "regression": "values",
        "multi_label_classification": "label_logits",
        "single_label_classification": "logits",
    }
    if problem is None and columns == 1 and getattr(config, "num_labels", None) == 1:
        return "label_logits"
    return known.get(problem)  # type: ignore[arg-type]


def resolve_target(target: Any, outputs: Tensor, meaning: Outputs, kind: Any) -> Tensor:
    """(B,) int64: the target of each input, from what the caller gave and the outputs (B, O) at x.

    Raises:
        InputError: no integers, not one for each input, out of range, or a kind that these outputs do not have.
    """
    count = len(outputs)
    if meaning.meaning == "values" and kind in ("probability", "log_probability", "margin"):
        raise InputError(f"kind: {kind!r} needs classes, and these outputs are values (regression); use kind='output'")
    if target is None or (isinstance(target, str) and target == "predicted"):
        if meaning.meaning == "values" and meaning.columns > 1:
            raise InputError(f"target: the model has {meaning.columns} outputs; say which one (an integer)")
        if meaning.binary and target is None:
            return torch.ones(count, dtype=torch.int64, device=outputs.device)
        return meaning.predicted(outputs)
    given = _integers(target, count, meaning).to(outputs.device)
    given = given.long().expand(count) if given.ndim == 0 else given.long()
    if len(given) != count:
        raise InputError(f"target: {len(given)} targets for {count} inputs; give one, or one for each")
    if bool(((given < 0) | (given >= meaning.targets)).any()):
        has = f"the model has {meaning.columns} outputs (0 … {meaning.targets - 1})"
        if meaning.binary:
            has = "the model has one output for two classes (0 and 1)"
        elif not meaning.told:
            has = "the model has one output; if it is the logit of class 1, say kind=cs.Kind('logit', outputs='logits')"
        raise InputError(f"target: {given.tolist()} out of range; {has}")
    return given


def _integers(target: Any, count: int, meaning: Outputs) -> Tensor:
    """A target in any form as integers, () or (n,)."""
    if isinstance(target, str):
        raise InputError(f"target: 'predicted' or integers, got {target!r}; look a class name up first")
    listed = target if isinstance(target, list | tuple) else []
    if any(isinstance(each, bool | np.bool_ | str | None) for each in listed):
        raise InputError(f"target: expected integers, got {_shown(target)}; give one class number for each input")
    given = as_tensor("target", target)
    if given.dtype == torch.bool or given.is_floating_point() or given.is_complex():
        raise InputError(f"target: expected integers, got {given.dtype}{_cast(given)}")
    if given.ndim > 1 and given.numel() != count:
        remedy = "give class numbers"
        if given.shape == (count, meaning.columns) and bool((given.sum(1) == 1).all()):
            remedy = "give class numbers, of one-hot rows .argmax(1)"
        elif given.shape == (count, meaning.columns):
            remedy = (
                "rows with several labels are several questions: explain one label at a time, target=number, with "
                "kind=cs.Kind('logit', outputs='label_logits')"
            )
        raise InputError(f"target: shape {tuple(given.shape)} for {count} inputs; {remedy}")
    return given.flatten() if given.ndim else given


def _cast(given: Tensor) -> str:
    if given.is_complex() or given.dtype == torch.bool or not bool((given == given.round()).all()):
        return "; give class numbers"
    return "; cast with .long()" if given.ndim < 2 else "; give class numbers, of one-hot rows .argmax(1)"


def _shown(target: Any) -> str:
    text = repr(target)
    return text if len(text) <= 60 else f"{text[:57]}…"


# Operations that move numbers without changing them, as autograd names them.
MOVES = frozenset(
    "Squeeze Unsqueeze View UnsafeView ReshapeAlias Reshape Select Slice Index Transpose T Permute Expand Clone ToCopy Alias "
    "AsStrided Stack Cat".split()
)

# Whatever comes out of these has no bounds, whatever values it happens to have.
LINEAR = frozenset("Addmm Mm Bmm Baddbmm Mv Linear Convolution LogSoftmax".split())

SIGMOIDS = frozenset("Sigmoid Hardsigmoid".split())

SOFTMAXES = frozenset("Softmax SafeSoftmax".split())


def last_layer_of(output: Tensor) -> str | None:
    """ "sigmoid", "softmax" or "linear": what made ``output``, by its graph; None where that is something else or not seen."""
    node = output.grad_fn
    while node is not None:
        name = node.name().partition("Backward")[0]
        if name in SIGMOIDS:
            return "sigmoid"
        if name in SOFTMAXES:
            return "softmax"
        if name in LINEAR:
            return "linear"
        if name not in MOVES or not node.next_functions:
            return None
        node = node.next_functions[0][0]
    return None
