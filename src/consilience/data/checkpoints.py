"""Checkpoints: state dicts read without running code from the file, and loaded into the model that they fit."""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, need
from .files import check_file

Build = Callable[[int], nn.Module]
"""From a number of classes to a model."""

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training scripts put the state dict."""

_PREFIXES = ("module.", "_orig_mod.")
"""Left in front of names by DataParallel and torch.compile."""


def seeded(build: Build, n_classes: int, seed: int) -> nn.Module:
    """A new model on the CPU with random weights; PyTorch's global generator comes back as it was.

    Args:
        build: makes the architecture.
        n_classes: how many outputs it has.
        seed: names the weights.
    """
    state = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators too
        return build(n_classes)
    finally:
        torch.set_rng_state(state)


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU, without running code from it.

    Args:
        path: a file of ``torch.save`` or safetensors, with the state dict alone or under "state_dict", "model", …

    Raises:
        InputError: it cannot be read, or holds anything but finite tensors by name.
    """
    check_file(path, "checkpoint")
    if path.suffix == ".safetensors":
        content = _safetensors_load(path)
    else:
        content = _torch_load(path)
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"checkpoint {str(path)!r} holds {type(content).__name__} and no state dict (name → tensor)")
    others = [f"{key!r} ({type(value).__name__})" for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise InputError(
            f"checkpoint {str(path)!r} holds no bare state dict: {len(others)} of its {len(content)} entries are no "
            f"tensors, first {', '.join(others[:3])}; save model.state_dict(), alone or under 'state_dict'"
        )
    state = {str(key): value for key, value in content.items()}
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    for key, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise InputError(f"checkpoint {str(path)!r}: {key!r} holds NaN or infinity; did the training diverge?")
    return state


def _safetensors_load(path: Path) -> Any:
    """The content of a safetensors file."""
    load_file = need("safetensors.torch", "images").load_file
    try:
        return load_file(path, device="cpu")
    except Exception as error:  # a damaged file can raise nearly anything
        raise InputError(f"checkpoint {str(path)!r} is not a complete safetensors file: {error}") from error


def _torch_load(path: Path) -> Any:
    """The content of a file of ``torch.save``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whatever PyTorch warns of is an error below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything
        raise InputError(f"checkpoint {str(path)!r} {_why_unreadable(error)}") from error


def _why_unreadable(error: Exception) -> str:
    """What ``torch.load`` raised, in words."""
    text = str(error)
    code = re.search(r"GLOBAL ([\w.]+)", text)
    if isinstance(error, pickle.UnpicklingError) and code:
        return (
            f"is refused: it holds more than tensors ({code[1]}), and reading that could run code from the file. If you "
            "trust it, load it yourself and save model.state_dict() again"
        )
    if "TorchScript" in text:
        return "is a TorchScript program and not a state dict; save model.state_dict()"
    reason = ""
    # PyTorch's own text for a damaged pickle advises to turn weights_only off, which must not be repeated.
    if not isinstance(error, pickle.UnpicklingError):
        first_line = text.partition("\n")[0]
        reason = f": {first_line[:90]}"
    return (
        f"cannot be read ({type(error).__name__}{reason}); is it truncated, or not a file of torch.save (or a .safetensors "
        "file)?"
    )


def fill(build: Build, state: dict[str, Tensor], name: str, path: Path, seed: int) -> nn.Module:
    """The model that a state dict fits, with its number of classes and its weights; every key must match.

    Args:
        build: makes the architecture.
        state: from :func:`read_state`.
        name: of the architecture, for errors.
        path: of the checkpoint, for errors.
        seed: names the random weights that the state dict replaces.

    Raises:
        InputError: keys are missing or unexpected, or tensors have another shape.
    """
    module = seeded(build, 1000, seed)
    own = module.state_dict()
    n_classes = _classes_of(own, state, _other_shapes(own, state))
    if n_classes is not None:
        module = seeded(build, n_classes, seed)
        own = module.state_dict()
    problems = _differences(own, state)
    if problems:
        raise InputError(
            f"checkpoint {str(path)!r} does not fit {name}: {'; '.join(problems)}; "
            f"it seems to belong to another architecture, so give the --model it was made with"
        )
    # Not strict, for the counters; all else was compared above.
    module.load_state_dict(state, strict=False)
    return module


def _differences(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """How a state dict differs from a model's own, in words; empty where it fits."""
    # Checkpoints of PyTorch before 0.4.1 have no batch counters; evaluation does not read them.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    other_shape = _other_shapes(own, state)
    differences = []
    if missing:
        differences.append(f"{len(missing)} of {len(own)} keys are missing (first {', '.join(missing[:3])})")
    if unexpected:
        differences.append(f"{len(unexpected)} of {len(state)} are unexpected (first {', '.join(unexpected[:3])})")
    if other_shape:
        shown = [f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}" for key in other_shape[:3]]
        differences.append(f"{len(other_shape)} have another shape (first {', '.join(shown)})")
    return differences


def _other_shapes(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """The keys in both whose tensors have different shapes."""
    return [key for key in own if key in state and own[key].shape != state[key].shape]


def _classes_of(own: Mapping[str, Tensor], state: Mapping[str, Tensor], other_shape: list[str]) -> int | None:
    """The checkpoint's number of classes, if another number than 1000 explains all shapes that differ; else None.

    Args:
        own: the state of a model of 1000 classes.
        state: the checkpoint's.
        other_shape: the keys whose shapes differ.
    """
    counts = set()
    for key in other_shape:
        shape = state[key].shape
        if own[key].shape != (1000, *shape[1:]):
            return None
        if len(shape):
            counts.add(shape[0])
    if len(counts) != 1:
        return None
    return counts.pop()


def file_digest(path: Path) -> str:
    """The first 12 digits of the SHA-256 of the file at ``path``."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:12]
