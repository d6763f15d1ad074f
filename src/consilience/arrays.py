"""Numbers in the forms that callers have them, as dense tensors: arrays of any memory layout, lists, numbers.

Data frames have a room of their own, :mod:`consilience.features.frames`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import InputError


def as_array(what: str, given: Any) -> np.ndarray:
    """``given`` as an array that PyTorch can share: native byte order, positive strides, a type that it knows.

    Missing values of masked arrays become NaN.

    Args:
        what: the argument's name, for errors.
        given: an array, a sequence or a number.

    Raises:
        InputError: it holds no numbers.
    """
    if isinstance(given, np.ma.MaskedArray):
        given = np.ma.filled(given.astype(float), np.nan)
    try:
        array = np.asarray(given)
    except ValueError as error:  # rows of different length
        raise InputError(f"{what}: rows of different length are no array") from error
    if array.dtype == object:
        array = _numbers(what, array)
    if array.dtype.kind not in "fiubc":
        raise InputError(f"{what}: expected numbers, got an array of {array.dtype}")
    if array.dtype.itemsize > (16 if array.dtype.kind == "c" else 8):
        array = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)  # no long doubles
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    shared = array.flags.writeable and all(stride >= 0 for stride in array.strides)
    return array if shared else array.copy()


def as_tensor(what: str, given: Any) -> Tensor:
    """``given`` as a dense tensor, which shares its memory where it can.

    Args:
        what: the argument's name, for errors.
        given: a tensor, an array, a sequence or a number.

    Raises:
        InputError: it holds no numbers, or is a sparse, nested, quantised or meta tensor; the message has the remedy.
    """
    if not isinstance(given, Tensor):
        if isinstance(given, list | tuple) and given and all(isinstance(part, Tensor) for part in given):
            return torch.stack(list(given))
        return torch.from_numpy(as_array(what, given))
    if given.is_nested:
        raise InputError(f"{what}: a nested tensor; pad it: torch.nested.to_padded_tensor({what}, 0.0)")
    if given.layout != torch.strided:
        raise InputError(f"{what}: a tensor of layout {given.layout}; give {what}.to_dense()")
    if given.is_quantized:
        raise InputError(f"{what}: a quantised tensor; give {what}.dequantize()")
    if given.is_meta:
        raise InputError(f"{what}: a tensor on the meta device has no values; make it on a real one")
    return given


def _numbers(what: str, array: np.ndarray) -> np.ndarray:
    """An array of Python objects as one of numbers, None as NaN."""
    try:
        return np.where(array == None, np.nan, array).astype(np.float64)  # noqa: E711
    except (TypeError, ValueError) as error:
        text = f"{str(error)[:60]}"
        raise InputError(
            f"{what}: an array of Python objects that are not all numbers ({text}); encode categories as numbers first"
        ) from error
