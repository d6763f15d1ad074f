"""Copies of a model, to write to: weights are never changed in the caller's own."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from .locks import held, modules_and_parameters


def detached_copy(model: nn.Module) -> nn.Module:
    """A deep copy, also of a model that keeps results of calculations as attributes.

    Args:
        model: which stays as it is.
    """
    # deepcopy refuses tensors with a graph (those of old-style weight normalisation, say). Its memo maps what was copied
    # already, by id, to its copy: so it takes these values in their place.
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)


def duplicate(model: nn.Module) -> nn.Module:
    """A copy of a model with parameters and buffers of its own, made while no other thread of this library uses it.

    Args:
        model: which stays as it is.

    Raises:
        InputError: the model cannot be copied.
    """
    modules, parameters = modules_and_parameters([model])
    with held((*modules, *parameters)):
        try:
            return detached_copy(model)
        except Exception as error:
            raise InputError(
                f"model: {type(model).__name__} cannot be copied ({type(error).__name__}: {error}), and other weights are only "
                "ever given to a copy; make copy.deepcopy(model) work, or leave out what changes weights"
            ) from error
