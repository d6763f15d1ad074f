"""What several commands check before they load a model, and the id that they give an image."""

from __future__ import annotations

import hashlib

import torch

from ..errors import InputError


def rows_in_flight(given: str) -> int | str:
    """--max-batch, as it was ``given``, as a number or "auto".

    Raises:
        InputError: it is neither.
    """
    if given == "auto":
        return given
    # "²" is a digit for isdigit(), and no number for int().
    if not (given.isascii() and given.isdigit()) or int(given) < 1:
        raise InputError(f"--max-batch: a positive integer or 'auto', got {given!r}")
    return int(given)


def usable_device(name: str) -> None:
    """Raise unless tensors can be made on --device, whose ``name`` was given.

    Raises:
        InputError: they cannot.
    """
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device: {name!r} cannot be used ({str(error).splitlines()[0]})") from error


def name_of(x: torch.Tensor) -> int:
    """The id of an image, 63 bits of a hash of what the model sees of it, ``x`` (C, H, W).

    Its draws belong to its id: the same picture gets the same numbers, alone or in any list.
    """
    digest = hashlib.blake2b(x.numpy().tobytes(), digest_size=8).digest()
    # Ids are int64 and not negative, so one of 64 bits goes.
    return int.from_bytes(digest, "little") >> 1
