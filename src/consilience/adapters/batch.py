"""A batch of inputs as it is given, checked once: what all else takes for granted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..arrays import as_tensor
from ..errors import InputError
from ..model.calling import precision_of


def batch_of(x: Any, model: Any) -> tuple[Tensor, bool]:
    """The inputs as real numbers (B, *F), detached, and whether the model is to be called with arrays.

    A callable that is no module is called with arrays where ``x`` is an array. Arrays in float64, NumPy's
    default, take the precision of a module.

    Args:
        x: the caller's inputs.
        model: the caller's model.

    Raises:
        InputError: no batch of real numbers; the message says what to give instead.
    """
    if not isinstance(x, Tensor | np.ndarray):
        raise InputError(f"x: expected a tensor or an array (B, …), got {type(x).__name__}{_instead(x)}")
    arrays = not isinstance(x, Tensor) and not isinstance(model, nn.Module)
    batch = as_tensor("x", x)
    if not isinstance(x, Tensor) and batch.dtype == torch.float64 and isinstance(model, nn.Module):
        batch = batch.to(precision_of(model) or torch.float64)
    batch = batch.detach()
    if batch.is_inference():  # such tensors can never have a gradient; their copies can
        batch = batch.clone()
    if batch.ndim < 2 or not len(batch):
        remedy = "is the data set empty?"
        if batch.ndim and batch.numel():
            remedy = "add a first axis: x[None]"
        raise InputError(f"x: expected a batch (B, …) of at least one input, got shape {tuple(batch.shape)}; {remedy}")
    if not batch[0].numel():
        raise InputError(f"x: each input has shape {tuple(batch.shape[1:])}, which holds nothing")
    if not batch.is_floating_point():
        raise InputError(f"x: attributions need real numbers, got {batch.dtype}; {_real(batch, model)}")
    return batch, arrays


def _instead(x: Any) -> str:
    """What to give in place of something that is no array."""
    if isinstance(x, str) or (isinstance(x, list | tuple) and x and all(isinstance(part, str) for part in x)):
        return "; for texts give cs.text(model, tokenizer) as the model"
    if isinstance(x, Mapping):
        return "; several inputs of one model are given as cs.pack(x), and those not to be explained as kwargs"
    if isinstance(x, tuple) and any(isinstance(part, Tensor | np.ndarray) for part in x):
        return "; several inputs of one model are given as cs.pack(x), and those not to be explained as kwargs"
    if isinstance(x, list) and any(isinstance(part, Tensor) for part in x):
        return (
            "; one tensor holds the batch: torch.stack(x); several inputs of one model are given as cs.pack(tuple(x))"
        )
    if isinstance(x, list | tuple):
        return "; give torch.tensor(x) or numpy.array(x)"
    if hasattr(x, "convert"):
        return "; give the preprocessed picture as a tensor (1, C, H, W)"
    return ""


def _real(x: Tensor, model: Any) -> str:
    """How numbers that are not real become so."""
    if x.is_complex():
        return "give torch.view_as_real(x), whose last axis has two parts, and a function that makes it complex again"
    if x.dtype in (torch.uint8, torch.bool):
        return "cast with .float() after preprocessing"
    looked_up = isinstance(model, nn.Module) and any(
        isinstance(m, nn.Embedding | nn.EmbeddingBag) for m in model.modules()
    )
    if looked_up:
        return (
            "token ids have no gradients and nothing between them: explain their embeddings (B, T, D) with the rest of the "
            "model and features=Tokens(present); for a classifier of transformers cs.text(model, tokenizer) does it"
        )
    return (
        "cast with .float() after preprocessing, if these are numbers; explain the embeddings, if they are codes or ids"
    )
