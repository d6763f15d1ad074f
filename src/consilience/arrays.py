"""Numbers in the forms that callers have them, as dense tensors: arrays of any memory layout, lists, numbers.

Data frames have a room of their own, :mod:`consilience.features.frames`.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Annotated, Any

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
        # NumPy would drop the mask without a word, and the values under it would count.
        given = np.ma.filled(given.astype(float), np.nan)
    try:
        array = np.asarray(given)
    except ValueError as error:  # rows of different length
        raise InputError(f"{what}: rows of different length are no array") from error
    if array.dtype == object:
        array = _numbers(what, array)
    if array.dtype.kind not in "fiubc":
        raise InputError(f"{what}: expected numbers, got an array of {array.dtype}")
    # PyTorch has no long doubles.
    if array.dtype.kind == "c" and array.dtype.itemsize > 16:
        array = array.astype(np.complex128)
    elif array.dtype.kind != "c" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    # PyTorch warns of memory that must not be written, and has no negative strides.
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


def integers(what: str, given: Any) -> list[int]:
    """``given`` as a list of whole numbers.

    Args:
        what: the argument's name, for errors.
        given: a tensor, an array or a sequence.

    Raises:
        InputError: it is something else, or a number is out of the range of 64 bits.
    """
    listed = given.tolist() if isinstance(given, Tensor | np.ndarray) else given
    try:
        # Not int(), which would cut 1.5 down to 1.
        numbers = [operator.index(number) for number in listed]
    except TypeError as error:
        raise InputError(f"{what}: expected whole numbers, one for each input, got {given!r:.60}") from error
    if any(not -(2**63) <= number < 2**63 for number in numbers):
        raise InputError(f"{what}: expected whole numbers of 64 bits, got {max(numbers, key=abs):.3g}")
    return numbers


def usable_rows(given: Any) -> None:
    """The check of :data:`AnyRows`: ``given`` is None, or rows (n, *F) of finite numbers.

    Raises:
        InputError: it is something else.
    """
    if given is None:
        return
    if isinstance(given, str | bytes | Mapping):
        raise InputError(f"expected rows (n, *F), got {type(given).__name__}")
    rows = as_tensor("rows", given)
    if rows.ndim < 2 or not rows.numel() or rows.is_complex():
        raise InputError(f"expected rows (n, *F) of real numbers, got shape {tuple(rows.shape)} of {rows.dtype}")
    if not bool(rows.isfinite().all()):
        raise InputError("NaN or infinite values; fill the missing values as the model's training data were")


AnyRows = Annotated[Any, usable_rows]
"""The type of settings that hold rows of data, or None."""


def _numbers(what: str, array: np.ndarray) -> np.ndarray:
    """An array of Python objects as one of numbers, None as NaN."""
    try:
        # Element by element, which "is" cannot do.
        return np.where(array == None, np.nan, array).astype(np.float64)  # noqa: E711
    except (TypeError, ValueError) as error:
        text = f"{str(error)[:60]}"
        raise InputError(
            f"{what}: an array of Python objects that are not all numbers ({text}); encode categories as numbers first"
        ) from error


def with_trailing_axes(values: Tensor, count: int) -> Tensor:
    """(…, 1, …, 1): values with axes of length 1 behind, so that a number for each row broadcasts over what a row holds.

    Args:
        values: (…).
        count: how many axes.
    """
    return values.reshape(*values.shape, *[1] * count)
