"""What a model gave, as one vector of numbers for each row; and in which precision and layout it wants its rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..arrays import as_tensor
from ..errors import InputError


def one_vector_each(outputs: Any, rows: Tensor) -> Tensor:
    """(N, outputs), floating: what the model gave for some rows.

    Args:
        outputs: a tensor (N, outputs) or (N,), or an object with such ``logits``.
        rows: (N, *F).

    Raises:
        InputError: it is anything else.
    """
    # The outputs of a transformers model.
    outputs = getattr(outputs, "logits", outputs)
    if not isinstance(outputs, Tensor):
        raise InputError(
            f"model: its output is a {type(outputs).__name__}, not one vector per input; wrap the model so that it returns "
            f"a tensor (N, outputs){_which(outputs)}"
        )
    if outputs.is_complex():
        raise InputError("model: its outputs are complex; explain a real number of them, such as outputs.abs()")
    if not outputs.is_floating_point():
        outputs = outputs.to(rows.dtype)  # counts and decisions: no gradients, but numbers
    if outputs.ndim == 1 and len(outputs) == len(rows):
        outputs = outputs[:, None]
    if outputs.ndim != 2 or len(outputs) != len(rows):
        raise InputError(
            f"model: its output has shape {tuple(outputs.shape)} for {len(rows)} inputs, not one vector per input; "
            "wrap the model so that it returns (N, outputs); for segmentation, consilience.segmentation(model) does"
        )
    return outputs


def from_numpy(given: Any) -> Tensor:
    """The outputs of a NumPy model, as a floating-point tensor.

    Args:
        given: an array, or anything that becomes one.

    Raises:
        InputError: it does not become an array of numbers.
    """
    try:
        outputs = as_tensor("model", given)
    except InputError as error:
        raise InputError(
            f"model: its outputs are no numbers ({error}); of a classifier give predict_proba, not predict"
        ) from error
    if not outputs.is_floating_point():
        return outputs.double()
    return outputs


def _which(outputs: Any) -> str:
    """An example of how a number is taken out of a container."""
    if isinstance(outputs, tuple | list):
        return ", e.g. lambda x: model(x)[0]"
    if isinstance(outputs, Mapping):
        return f", e.g. lambda x: model(x)[{next(iter(outputs), None)!r}]"
    return ""


def precision_of(model: Any) -> torch.dtype | None:
    """The type of a module's parameters; None if it has none.

    Args:
        model: a module, or any other callable, which has none.
    """
    if not isinstance(model, nn.Module):
        return None
    types = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return next(types, None)


def layout_of(model: Any, x: Tensor) -> torch.memory_format:
    """The order in memory in which a model wants its rows.

    Rows follow the model: after ``model.to(memory_format=torch.channels_last)`` they have their channels last, which saves
    a third of the time on a CPU.

    Args:
        model: any callable.
        x: inputs (B, *F).
    """
    if not isinstance(model, nn.Module) or x.ndim != 4:
        return torch.preserve_format
    for parameter in model.parameters():
        # A kernel of one channel or of one pixel has the same order both ways, and tells nothing.
        if parameter.ndim == 4 and parameter.shape[1] > 1 and parameter.shape[2] > 1:
            channels_last = parameter.is_contiguous(memory_format=torch.channels_last)
            if channels_last and not parameter.is_contiguous():
                return torch.channels_last
            return torch.preserve_format
    return torch.preserve_format
