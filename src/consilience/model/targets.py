"""Which output of each input is explained: the caller's target, in any of its forms, as one class number for each input."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..arrays import as_tensor
from ..errors import InputError
from .outputs import Outputs

SHOWN = 60
"""Characters of a value that an error repeats."""


def resolve_target(target: Any, outputs: Tensor, meaning: Outputs, kind: Any) -> Tensor:
    """The target of each input, (B,) int64.

    Args:
        target: None or "predicted", an integer, or integers (B,), as the caller gave them.
        outputs: (B, O), at x.
        meaning: what the outputs mean.
        kind: of the score: one of :data:`~.outputs.SCORE_KINDS`, or a callable.

    Raises:
        InputError: no integers, not one for each input, out of range, or a kind that these outputs do not have.
    """
    if meaning.meaning == "values" and kind in ("probability", "log_probability", "margin"):
        raise InputError(f"kind: {kind!r} needs classes, and these outputs are values (regression); use kind='output'")
    if target is None or (isinstance(target, str) and target == "predicted"):
        return _default_target(target, outputs, meaning)
    count = len(outputs)
    numbers = _integers(target, count, meaning).to(outputs.device).long()
    # One number is meant for every input.
    if numbers.ndim == 0:
        numbers = numbers.expand(count)
    if len(numbers) != count:
        raise InputError(f"target: {len(numbers)} targets for {count} inputs; give one, or one for each")
    if bool(((numbers < 0) | (numbers >= meaning.targets)).any()):
        raise InputError(f"target: {numbers.tolist()} out of range; {_targets_in_words(meaning)}")
    return numbers


def _default_target(target: str | None, outputs: Tensor, meaning: Outputs) -> Tensor:
    """The target where the caller names none: what the model predicts; class 1 of one column for two classes."""
    if meaning.meaning == "values" and meaning.columns > 1:
        raise InputError(f"target: the model has {meaning.columns} outputs; say which one (an integer)")
    # The column itself is explained, as everywhere in the field; "predicted" asks for the class on which it decides.
    if meaning.binary and target is None:
        return torch.ones(len(outputs), dtype=torch.int64, device=outputs.device)
    return meaning.predicted(outputs)


def _targets_in_words(meaning: Outputs) -> str:
    """Which targets there are, for errors."""
    if meaning.binary:
        return "the model has one output for two classes (0 and 1)"
    if not meaning.known:
        return "the model has one output; if it is the logit of class 1, say kind=cs.Kind('logit', outputs='logits')"
    return f"the model has {meaning.columns} outputs (0 … {meaning.targets - 1})"


def _integers(target: Any, count: int, meaning: Outputs) -> Tensor:
    """A target in any form as integers, () or (n,)."""
    if isinstance(target, str):
        raise InputError(f"target: 'predicted' or integers, got {target!r}; look a class name up first")
    items = target if isinstance(target, list | tuple) else []
    # Before they become a tensor, which would take True for 1.
    if any(isinstance(item, bool | np.bool_ | str | None) for item in items):
        raise InputError(f"target: expected integers, got {_shortened(target)}; give one class number for each input")
    numbers = as_tensor("target", target)
    if numbers.dtype == torch.bool or numbers.is_floating_point() or numbers.is_complex():
        raise InputError(f"target: expected integers, got {numbers.dtype}; {_remedy_for_type(numbers)}")
    # A column (B, 1) has one number for each input, whatever its axes.
    if numbers.ndim > 1 and numbers.numel() != count:
        raise InputError(
            f"target: shape {tuple(numbers.shape)} for {count} inputs; {_remedy_for_shape(numbers, count, meaning)}"
        )
    return numbers.flatten() if numbers.ndim else numbers


def _remedy_for_type(target: Tensor) -> str:
    """What to give in place of a target that is not of integers."""
    if target.is_complex() or target.dtype == torch.bool:
        return "give class numbers"
    whole = bool((target == target.round()).all())
    if not whole:
        return "give class numbers"
    if target.ndim < 2:
        return "cast with .long()"
    return "give class numbers, of one-hot rows .argmax(1)"


def _remedy_for_shape(target: Tensor, count: int, meaning: Outputs) -> str:
    """What to give in place of integers (n, m, …)."""
    if target.shape != (count, meaning.columns):
        return "give class numbers"
    if bool((target.sum(1) == 1).all()):
        return "give class numbers, of one-hot rows .argmax(1)"
    return (
        "rows with several labels are several questions: explain one label at a time, target=number, with "
        "kind=cs.Kind('logit', outputs='label_logits')"
    )


def _shortened(value: Any) -> str:
    """A value in as many characters as fit an error."""
    text = repr(value)
    if len(text) <= SHOWN:
        return text
    return f"{text[: SHOWN - 3]}…"
