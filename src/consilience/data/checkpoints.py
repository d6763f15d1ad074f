"""Checkpoints: a state dict read without running code from the file, and put into the model that it fits."""

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
    """A new model on the CPU. PyTorch's global generator is put back.

    Args:
        build: of the architecture.
        n_classes: its outputs.
        seed: of its random weights.
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
        InputError: it cannot be read, holds anything but finite tensors, or more than a state dict.
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
    load_file = need("safetensors.torch", "images").load_file
    try:
        return load_file(path, device="cpu")
    except Exception as error:  # a damaged file can raise nearly anything
        raise InputError(f"checkpoint {str(path)!r} is not a complete safetensors file: {error}") from error


def _torch_load(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the warnings say, the errors below say
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything
        text = str(error)
        code = re.search(r"GLOBAL ([\w.]+)", text)
        if isinstance(error, pickle.UnpicklingError) and code:
            raise InputError(
                f"checkpoint {str(path)!r} is refused: it holds more than tensors ({code[1]}), and reading that could "
                f"run code from the file. If you trust it, load it yourself and save model.state_dict() again"
            ) from error
        if "TorchScript" in text:
            raise InputError(
                f"checkpoint {str(path)!r} is a TorchScript program and not a state dict; save model.state_dict()"
            ) from error
        reason = ""
        if not isinstance(error, pickle.UnpicklingError):
            # torch's own text for a damaged pickle advises to turn weights_only off; ours must not.
            first_line = text.partition("\n")[0]
            reason = f": {first_line[:90]}"
        raise InputError(
            f"checkpoint {str(path)!r} cannot be read ({type(error).__name__}{reason}); "
            f"is it truncated, or not a file of torch.save (or a .safetensors file)?"
        ) from error


def fill(build: Build, state: dict[str, Tensor], name: str, path: Path, seed: int) -> nn.Module:
    """The model that a state dict fits, with its number of classes and its weights; every key must match.

    Args:
        build: of the architecture.
        state: from :func:`read_state`.
        name: of the architecture, for errors.
        path: of the checkpoint, for errors.
        seed: of what is not in a state dict.

    Raises:
        InputError: keys are missing or unexpected, or tensors have another shape.
    """
    module = seeded(build, 1000, seed)
    own = module.state_dict()
    other_shape = _other_shapes(own, state)
    n_classes = _classes_of(own, state, other_shape)
    if n_classes is not None:
        module = seeded(build, n_classes, seed)
        own = module.state_dict()
        other_shape = _other_shapes(own, state)
    # Checkpoints of PyTorch before 0.4.1 have no batch counters; evaluation does not read them.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    problems = []
    if missing:
        problems.append(f"{len(missing)} of {len(own)} keys are missing (first {', '.join(missing[:3])})")
    if unexpected:
        problems.append(f"{len(unexpected)} of {len(state)} are unexpected (first {', '.join(unexpected[:3])})")
    if other_shape:
        shown = [f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}" for key in other_shape[:3]]
        problems.append(f"{len(other_shape)} have another shape (first {', '.join(shown)})")
    if problems:
        raise InputError(
            f"checkpoint {str(path)!r} does not fit {name}: {'; '.join(problems)}; "
            f"it seems to belong to another architecture, so give the --model it was made with"
        )
    # Not strict, for the counters; all else was compared above.
    module.load_state_dict(state, strict=False)
    return module


def _other_shapes(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """The keys in both whose tensors have different shapes."""
    return [key for key in own if key in state and own[key].shape != state[key].shape]


def _classes_of(own: Mapping[str, Tensor], state: Mapping[str, Tensor], other_shape: list[str]) -> int | None:
    """The checkpoint's number of classes, if another number than 1000 is all that tells its shapes apart."""
    counts = set()
    for key in other_shape:
        there = state[key].shape
        if own[key].shape != (1000, *there[1:]):
            return None
        if len(there):
            counts.add(there[0])
    return counts.pop() if len(counts) == 1 else None


def file_digest(path: Path) -> str:
    """The first 12 digits of the SHA-256 of the file at ``path``."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:12]
