"""The check of a batch of inputs as the caller gives it, made once: everything after it takes a tensor of real numbers."""

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
    """The inputs as a tensor of real numbers.

    A function that is not a module is called with arrays where ``x`` is an array. Arrays in float64, NumPy's default, take
    the precision of a module.

    Args:
        x: the caller's inputs.
        model: the caller's model.

    Returns:
        (B, *F), detached; and whether the model is to be called with arrays.

    Raises:
        InputError: no batch of real numbers; the message says what to give instead.
    """
    if not isinstance(x, Tensor | np.ndarray):
        raise InputError(f"x: expected a tensor or an array (B, …), got {type(x).__name__}{_instead(x)}")
    arrays = not isinstance(x, Tensor) and not isinstance(model, nn.Module)
    batch = as_tensor("x", x)
    # float64 is NumPy's default and seldom meant, and a float32 module would refuse it.
    if not isinstance(x, Tensor) and batch.dtype == torch.float64 and isinstance(model, nn.Module):
        batch = batch.to(precision_of(model) or torch.float64)
    batch = batch.detach()
    # Tensors made in inference mode can never have a gradient; their copies can.
    if batch.is_inference():
        batch = batch.clone()
    if batch.ndim < 2 or not len(batch):
        remedy = "is the data set empty?"
        if batch.ndim and batch.numel():
            remedy = "add a first axis: x[None]"
        raise InputError(f"x: expected a batch (B, …) of at least one input, got shape {tuple(batch.shape)}; {remedy}")
    if not batch[0].numel():
        raise InputError(f"x: each input has shape {tuple(batch.shape[1:])}, which holds nothing")
    if not batch.is_floating_point():
        raise InputError(f"x: attributions need real numbers, got {batch.dtype}; {_as_real(batch, model)}")
    return batch, arrays


def _instead(x: Any) -> str:
    """What to give in place of something else than an array, for errors; "" where nothing is known."""
    is_list = isinstance(x, list | tuple)
    if isinstance(x, str) or (is_list and x and all(isinstance(part, str) for part in x)):
        return "; for texts give cs.text(model, tokenizer) as the model"
    is_tuple_of_inputs = isinstance(x, tuple) and any(isinstance(part, Tensor | np.ndarray) for part in x)
    if isinstance(x, Mapping) or is_tuple_of_inputs:
        return "; several inputs of one model are given as cs.pack(x), and those not to be explained as kwargs"
    if isinstance(x, list) and any(isinstance(part, Tensor) for part in x):
        return (
            "; one tensor holds the batch: torch.stack(x); several inputs of one model are given as cs.pack(tuple(x))"
        )
    if is_list:
        return "; give torch.tensor(x) or numpy.array(x)"
    # A picture of Pillow's.
    if hasattr(x, "convert"):
        return "; give the preprocessed picture as a tensor (1, C, H, W)"
    return ""


def _as_real(x: Tensor, model: Any) -> str:
    """What to give in place of numbers that are not real, for errors."""
    if x.is_complex():
        return "give torch.view_as_real(x), whose last axis has two parts, and a function that makes it complex again"
    if x.dtype in (torch.uint8, torch.bool):
        return "cast with .float() after preprocessing"
    has_embedding = isinstance(model, nn.Module) and any(
        isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in model.modules()
    )
    if has_embedding:
        return (
            "token ids have no gradients and nothing between them: explain their embeddings (B, T, D) with the rest of the "
            "model and features=Tokens(present); for a classifier of transformers cs.text(model, tokenizer) does it"
        )
    return (
        "cast with .float() after preprocessing, if these are numbers; explain the embeddings, if they are codes or ids"
    )
