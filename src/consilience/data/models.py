"""Models by name, with their weights (from a package, from a checkpoint, or random) and their class names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError
from .checkpoints import Build, file_digest, fill, read_state, seeded
from .files import PathLike
from .images import Preprocess
from .labels import complete_labels, imagenet_labels, parse_target, read_labels
from .libraries import demo_model, near_names, timm_model, torchvision_model

__all__ = ["Loaded", "imagenet_labels", "load_model", "parse_target", "read_labels"]

_SPECS = "demo, torchvision:NAME, timm:NAME"


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in evaluation mode with what belongs to it.

    Args:
        module: (B, 3, crop, crop) → (B, n_classes).
        preprocess: from a picture to its input.
        labels: ``n_classes`` names, or None.
        name: of the architecture.
        weights: where the weights come from, in words.
        n_classes: its outputs.
    """

    module: nn.Module
    preprocess: Preprocess
    labels: list[str] | None
    name: str
    weights: str
    n_classes: int


def load_model(
    spec: str,
    checkpoint: PathLike | None = None,
    random_weights: bool = False,
    labels: PathLike | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Loaded:
    """Load an image classifier; nothing is downloaded and no code from a checkpoint is run.

    Global random state is neither read nor changed.

    Args:
        spec: "demo" (EfficientNet-Lite0 with ImageNet weights from a package), "torchvision:NAME" or "timm:NAME"; the last
            two need a checkpoint, or random weights.
        checkpoint: a file with a state dict, alone or under "state_dict", "model", …, in PyTorch's format or safetensors. One
            whose classifier has another number of classes is loaded into a model with that number.
        random_weights: draw the weights.
        labels: a file for :func:`read_labels`; without one a model of 1000 classes gets ImageNet's names.
        device: where the model goes.
        seed: of random weights.

    Raises:
        InputError: for everything that does not fit.

    >>> loaded = load_model("timm:resnet18", random_weights=True)
    >>> loaded.n_classes, loaded.weights
    (1000, 'random, seed 0')
    """
    where = _device(device)
    library, _, name = spec.partition(":")
    if library not in ("demo", "torchvision", "timm") or (library == "demo") == bool(name):
        raise InputError(f"unknown model {spec!r}{near_names(spec)}; known forms: {_SPECS}")
    if library == "demo":
        if checkpoint is not None or random_weights:
            raise InputError(
                "model 'demo' brings its own weights; for others use timm:tf_efficientnet_lite0 with "
                "--checkpoint FILE or --random-weights"
            )
        module, preprocess, weights = demo_model()
        name = "tf_efficientnet_lite0"
    else:
        if library == "torchvision":
            build, preprocess = torchvision_model(name)
        else:
            build, preprocess = timm_model(name)
        module, weights = _with_weights(build, spec, name, checkpoint, random_weights, seed)
    module = module.eval().to(where)
    n_classes = _count_classes(module, preprocess, spec, where)
    names = imagenet_labels() if n_classes == 1000 else None
    if labels is not None:
        names = complete_labels(read_labels(labels), n_classes, names, labels)
    return Loaded(module, preprocess, names, name, weights, n_classes)


def _with_weights(
    build: Build, spec: str, name: str, checkpoint: PathLike | None, random_weights: bool, seed: int
) -> tuple[nn.Module, str]:
    """A model of the architecture ``build``, and where its weights come from."""
    if checkpoint is not None and random_weights:
        raise InputError("--checkpoint and --random-weights exclude each other: give one of them")
    if checkpoint is not None:
        path = Path(checkpoint)
        module = fill(build, read_state(path), name, path, seed)
        return module, f"{path.name}, sha256 {file_digest(path)}"
    if random_weights:
        return seeded(build, 1000, seed), f"random, seed {seed}"
    raise InputError(
        f"model {spec!r} needs weights, and none are downloaded: give --checkpoint FILE (a state dict saved "
        f"with torch.save or safetensors), or --random-weights to see the architecture at work, or use "
        f"--model demo, whose weights come with a package"
    )


def _count_classes(module: nn.Module, preprocess: Preprocess, spec: str, where: torch.device) -> int:
    """The number of classes, from one zero image."""
    with torch.no_grad():
        output = module(torch.zeros(1, 3, *preprocess.size, device=where))
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[0] != 1 or not output.shape[1]:
        given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(f"model {spec!r} returns {given} for one image; expected one vector per image, (1, classes)")
    if not output.isfinite().all():
        raise InputError(f"model {spec!r} returns NaN or infinity for a zero image: are its weights damaged?")
    return output.shape[1]


def _device(device: str | torch.device) -> torch.device:
    """The device, after one number was put there and read back."""
    try:
        where = torch.device(device)
        torch.zeros(1, device=where).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(device)!r} cannot be used here ({reason}); try 'cpu'") from error
    return where
