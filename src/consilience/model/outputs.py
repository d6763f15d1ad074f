"""What a model's outputs mean, and the scores, probabilities and decisions that follow: one rule for the whole library.

A column of outputs (N, O) can be the logit of a class, the probability of a class, the logit or the probability of an
independent label, or a plain number. :class:`Outputs` holds which of these it is. :mod:`.recognition` finds it out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..errors import InputError
from ..settings import Settings, setting

SCORE_KINDS = ("logit", "probability", "log_probability", "margin", "output")

MEANINGS = {
    "logits": "logits of classes, one of which is right (a softmax); one column: a logit of two classes (a sigmoid)",
    "probabilities": "probabilities of such classes; one column: that of class 1",
    "label_logits": "a logit for each label, independent of the others (sigmoids)",
    "label_probabilities": "a probability for each such label",
    "values": "numbers, as in regression",
}

PROBABILITY_RANGE = (-1e-4, 1 + 1e-4)
"""The smallest and largest value that is taken for a probability: 0 and 1, with room for rounding."""


@dataclass(frozen=True)
class Kind(Settings):
    """Which number of the output is explained, and what the outputs mean.

    ``kind="probability"`` is short for ``kind=Kind("probability")``, which leaves the meaning to the model:
    :func:`~.recognition.interpret` has the rule. Say ``outputs`` where the rule cannot know, or takes them for something else:
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
    """What the columns of a model's output mean.

    One column that is known to be a logit or a probability answers for two classes: target 1 is the column, target 0 the other
    class. One column of which that is not known is output number 0.

    Args:
        meaning: one of :data:`MEANINGS`.
        columns: O, the number of columns.
        source: how the meaning is known: from the "caller", the model's "config", the model's last "layer", the outputs'
            "values" (non-negative with sums of one), a "guess" (between 0 and 1, and nothing else is known), or "default".
        known: False for a single output that may be a logit or a plain number, where nothing says which.
    """

    meaning: str
    columns: int
    source: str = "caller"
    known: bool = True

    @property
    def binary(self) -> bool:
        """Whether one column answers for two classes."""
        return self.columns == 1 and self.known and self.meaning in ("logits", "probabilities")

    @property
    def targets(self) -> int:
        """How many targets can be asked for."""
        return 2 if self.binary else self.columns

    @property
    def labels(self) -> bool:
        """Whether every column is a question of its own, as in multi-label classification."""
        return self.meaning in ("label_logits", "label_probabilities")

    @property
    def normalised(self) -> bool:
        """Whether the outputs are probabilities already."""
        return self.meaning in ("probabilities", "label_probabilities")

    @property
    def described(self) -> str:
        """The meaning as records keep it; "one output" where it is a logit or a plain number."""
        return self.meaning if self.known else "one output"

    # -- scores --------------------------------------------------------------------------------------------------------

    def score(self, kind: str, outputs: Tensor, target: Tensor, runner_up: Tensor) -> Tensor:
        """The number that is explained, of each row: (N,).

        Args:
            kind: one of :data:`SCORE_KINDS`; :class:`Kind` says what they are.
            outputs: (N, O).
            target: (N,) int64.
            runner_up: (N,) int64, for the margin.
        """
        if kind == "probability":
            return self.probability(outputs, target)
        if kind == "log_probability":
            return self.log_probability(outputs, target)
        if kind == "margin":
            return self.margin(outputs, target, runner_up)
        return self.value(outputs, target)

    def value(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The target's own output; of the other class of one column, −logit or 1 − probability.

        Args:
            outputs: (N, O).
            target: (N,) int64.

        Returns:
            (N,).
        """
        if not self.binary:
            return outputs.gather(1, target[:, None])[:, 0]
        column = outputs[:, 0]
        other_class = 1 - column if self.normalised else -column
        return torch.where(target == 1, column, other_class)

    def probability(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The target's probability; NaN of plain values.

        Args:
            outputs: (N, O).
            target: (N,) int64.

        Returns:
            (N,).

        Raises:
            InputError: outputs that were taken for probabilities are none.
        """
        if self.meaning == "values":
            return torch.full_like(outputs[:, 0], torch.nan)
        if self.normalised:
            self._refuse_contradiction(outputs)
            return self.value(outputs, target)
        if self.meaning == "logits" and self.columns > 1:
            return self.value(outputs.softmax(1), target)
        return self.value(outputs, target).sigmoid()

    def log_probability(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The logarithm of :meth:`probability`.

        Args:
            outputs: (N, O).
            target: (N,) int64.

        Returns:
            (N,).

        Raises:
            InputError: as :meth:`probability`.
        """
        # From logits by the functions made for it: the logarithm of a rounded probability loses what is near 0 and 1.
        if self.meaning == "logits" and self.columns > 1:
            return self.value(outputs.log_softmax(1), target)
        if self.normalised or self.meaning == "values":
            probability = self.probability(outputs, target)
            # A probability of exactly 0 would give −∞, and a gradient without direction.
            return probability.clamp(min=torch.finfo(probability.dtype).tiny).log()
        return nnf.logsigmoid(self.value(outputs, target))

    def margin(self, outputs: Tensor, target: Tensor, runner_up: Tensor) -> Tensor:
        """The target's output minus that of the runner-up, or of the other answer to a question with two.

        Args:
            outputs: (N, O).
            target: (N,) int64.
            runner_up: (N,) int64; not read where a question has two answers.

        Returns:
            (N,).
        """
        value = self.value(outputs, target)
        if self.binary or self.labels:
            # Of a probability, p − (1 − p). Of a logit z, z − 0: two classes with logits z and 0 have its sigmoid.
            return 2 * value - 1 if self.normalised else value
        return value - self.value(outputs, runner_up)

    def runner_up(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The largest output besides the target; of one column for two classes, the other class.

        Args:
            outputs: (N, O).
            target: (N,) int64.

        Returns:
            (N,) int64.
        """
        if self.binary:
            return 1 - target
        return outputs.scatter(1, target[:, None], -torch.inf).argmax(1)

    # -- decisions -----------------------------------------------------------------------------------------------------

    def predicted(self, outputs: Tensor) -> Tensor:
        """The class of each row; of labels the likeliest one, of values the largest.

        Args:
            outputs: (N, O).

        Returns:
            (N,) int64.
        """
        if self.binary:
            return self._is_positive(outputs[:, 0]).long()
        return outputs.argmax(1)

    def decision(self, outputs: Tensor, target: Tensor) -> Tensor:
        """What the model decides about the target, to be compared between rows.

        The class; of labels, whether the target's applies (0 or 1); always 0 of plain values, and of one output that may be
        a plain value.

        Args:
            outputs: (…, O).
            target: (…) int64.

        Returns:
            (…) int64.
        """
        if self.meaning == "values" or not self.known:
            return torch.zeros_like(outputs[..., 0], dtype=torch.int64)
        if self.binary:
            return self._is_positive(outputs[..., 0]).long()
        if self.labels:
            # The target may lack the first axes, e.g. (B,) beside outputs (draws, B, O).
            index = target.expand(outputs.shape[:-1])[..., None]
            column = outputs.gather(-1, index)[..., 0]
            return self._is_positive(column).long()
        return outputs.argmax(-1)

    def agrees(self, outputs: Tensor, before: Tensor, target: Tensor) -> Tensor:
        """Whether the model still decides for the target.

        The target is the largest output; of one output or of labels, it is on the same side as before.

        Args:
            outputs: (N, O).
            before: (N, O), the outputs to which they are compared.
            target: (N,) int64.

        Returns:
            (N,) bool.
        """
        if self.columns == 1 or self.labels:
            now = self._is_positive(self.value(outputs, target))
            then = self._is_positive(self.value(before, target))
            return now == then
        return outputs.argmax(1) == target

    def _is_positive(self, column: Tensor) -> Tensor:
        """Whether a logit or probability decides for yes."""
        threshold = 0.5 if self.normalised else 0.0
        return column > threshold

    # -- words ---------------------------------------------------------------------------------------------------------

    def named(self, kind: str) -> str:
        """What a caption calls the score: no probability is called a logit, and no output of a regression a class's.

        Args:
            kind: one of :data:`SCORE_KINDS`.
        """
        if kind not in ("logit", "output"):
            return kind.replace("_", " ")
        if self.normalised:
            return "probability"
        if kind == "output" or self.meaning == "values" or not self.known:
            return "output"
        return "logit"

    def warnings(self, kind: Any, differentiable: bool) -> list[str]:
        """What the caller should know: probabilities explained where logits could be, and what was guessed.

        Args:
            kind: of the score.
            differentiable: whether the model is a network, whose logits can be had.
        """
        sentences = []
        guessed = self.source == "guess"
        if self.normalised and not guessed and (differentiable or kind == "logit"):
            last = "sigmoid" if self.columns == 1 or self.labels else "softmax"
            sentences.append(
                f"the model's outputs look like probabilities: explain its logits, before the {last}, which saturates"
            )
        if guessed:
            subject = "the only output lies" if self.columns == 1 else "outputs lie"
            sentences.append(
                f"{subject} between 0 and 1: taken for {self.meaning.replace('_', ' ')}; if that is wrong, say what they are, "
                "e.g. kind=cs.Kind('logit', outputs='logits') or kind='output'"
            )
        return sentences

    def _refuse_contradiction(self, outputs: Tensor) -> None:
        """Raise where outputs that were guessed to be probabilities turn out to be none."""
        # Only after a guess: what the caller or the model says is taken at its word, and a check costs a wait for the GPU.
        if self.source != "guess":
            return
        low, high = PROBABILITY_RANGE
        outside = (outputs < low) | (outputs > high)
        if bool(outside.any()):
            raise InputError(
                f"kind: outputs between 0 and 1 were taken for {self.meaning.replace('_', ' ')}, but another input's is "
                f"{float(outputs[outside][0]):.4g}; say what they are, e.g. kind=cs.Kind('logit', outputs='logits') or "
                "kind='output'"
            )
