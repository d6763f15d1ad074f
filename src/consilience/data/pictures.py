"""Readers of picture sets: every one gives uint8 (n, C, H, W) and classes, or an InputError that names the file."""

from __future__ import annotations

import csv
import gzip
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError, need
from .images import Preprocess, _check_file, read_image

GARMENTS = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True, eq=False)
class Pictures:
    """``x`` uint8 (n, C, H, W), ``y`` int64 (n,); the last ``test`` rows are the set's own test part (0: it has none)."""

    x: np.ndarray
    y: np.ndarray
    classes: tuple[str, ...]
    test: int = 0
    notes: tuple[str, ...] = ()


def digits() -> Pictures:
    """scikit-learn's 1797 handwritten digits, 8 × 8, whose 17 grey levels 0 … 16 become 0 … 255, rounded."""
    bunch = need("sklearn.datasets", "tables").load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return Pictures(pixels[:, None], bunch.target.astype(np.int64), _numbers(10))


def idx(folder: Path, classes: tuple[str, ...] = ()) -> Pictures:
    """MNIST's format; a file named train-first…-images… holds the first training images of a longer list of labels."""
    notes: tuple[str, ...] = ()
    first = folder / "train-images-idx3-ubyte.gz"
    if not first.exists() and (shorter := sorted(folder.glob("train-first*-images-idx3-ubyte.gz"))):
        first = shorter[0]
    x = _idx(first, 3)
    y = _idx(folder / "train-labels-idx1-ubyte.gz", 1)
    if "first" in first.name and len(x) < len(y):
        notes = (f"the first {len(x)} of {len(y)} training images",)
        y = y[: len(x)]
    other, labels = _idx(folder / "t10k-images-idx3-ubyte.gz", 3), _idx(folder / "t10k-labels-idx1-ubyte.gz", 1)
    _paired(folder, (x, y), (other, labels))
    return _joined(folder, (x[:, None], y), (other[:, None], labels), classes or _numbers(10), notes)


def _idx(path: Path, axes: int) -> np.ndarray:
    """One gzipped IDX file of unsigned bytes with ``axes`` axes."""
    _check_file(path, "file")
    try:
        with gzip.open(path) as stream:
            content = stream.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"file {str(path)!r} cannot be decompressed ({error}): truncated or damaged?") from error
    if content[:4] != bytes([0, 0, 8, axes]):
        raise InputError(
            f"file {str(path)!r} is no IDX file of unsigned bytes with {axes} axes: it starts with {content[:4].hex()}"
        )
    shape = tuple(np.frombuffer(content, ">u4", axes, 4).tolist()) if len(content) >= 4 + 4 * axes else (0,)
    data = np.frombuffer(content, np.uint8, offset=min(len(content), 4 + 4 * axes))
    if len(data) != np.prod(shape) or not len(data):
        raise InputError(f"file {str(path)!r} holds {len(data)} bytes for the shape {shape} of its header: truncated?")
    return data.reshape(shape)


def npz(path: Path, classes: int) -> Pictures:
    """NumPy arrays x_train, y_train, x_test, y_test; pickled objects are refused."""
    _check_file(path, "file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        raise InputError(f"file {str(path)!r} is no archive of plain NumPy arrays ({error}): damaged?") from error
    if missing := [key for key in ("x_train", "y_train", "x_test", "y_test") if key not in arrays]:
        raise InputError(f"file {str(path)!r} lacks {', '.join(missing)}; it holds {', '.join(arrays) or 'nothing'}")
    for key in ("x_train", "x_test"):
        if arrays[key].dtype != np.uint8 or arrays[key].ndim != 4 or arrays[key].shape[-1] != 3:
            raise InputError(
                f"file {str(path)!r}: {key} is {arrays[key].dtype} {arrays[key].shape}, expected uint8 (n, H, W, 3)"
            )
    train, test = ((arrays[f"x_{part}"].transpose(0, 3, 1, 2), arrays[f"y_{part}"]) for part in ("train", "test"))
    _paired(path, train, test)
    return _joined(path, train, test, _numbers(classes))


def rows(folder: Path, side: int, classes: tuple[str, ...]) -> Pictures:
    """One picture whose rows are images of side × side pixels, test_batch.png, and their classes, test_labels.json."""
    pixels = read_image(folder / "test_batch.png").pixels
    if pixels.shape[1] != side * side:
        raise InputError(
            f"image {str(folder / 'test_batch.png')!r} is {pixels.shape[1]} pixels wide, not {side * side}"
        )
    path = folder / "test_labels.json"
    _check_file(path, "file")
    try:
        labels = np.asarray(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise InputError(f"file {str(path)!r} is not JSON ({error})") from error
    x = pixels.reshape(-1, side, side, 3).transpose(0, 3, 1, 2)
    _paired(path, (x, labels))
    return Pictures(np.ascontiguousarray(x), _classes(path, labels, len(classes)), classes)


def folder(folder: Path, side: int) -> Pictures:
    """labels.csv (file, class_index) and images/; other sizes: short side to ``side``, then a centre crop."""
    path = folder / "labels.csv"
    _check_file(path, "file")
    try:
        listed = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        named = [(row["file"], int(row["class_index"])) for row in listed]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"file {str(path)!r} needs the columns file and class_index ({error!r})") from error
    if not named:
        raise InputError(f"file {str(path)!r} lists no images")
    prepare = Preprocess(side, side, (0, 0, 0), (1, 1, 1))
    x = np.empty((len(named), 3, side, side), np.uint8)
    for row, (name, _) in enumerate(named):
        if Path(name).name != name:
            raise InputError(f"file {str(path)!r}: {name!r} is not a plain file name")
        x[row] = (prepare(read_image(folder / "images" / name)) * 255).round().byte().numpy()
    labels = np.array([label for _, label in named])
    count = int(labels.max()) + 1
    return Pictures(x, _classes(path, labels, count), _numbers(count))


def torchvision_set(name: str, folder: Path) -> Pictures:
    """Let torchvision fetch and read a set; traffic signs are scaled to 32 × 32, bilinear."""
    datasets = need("torchvision.datasets", "images")
    found = []
    for train in (True, False):
        part = {"split": "train" if train else "test"} if name == "GTSRB" else {"train": train}
        try:
            data = getattr(datasets, name)(str(folder), download=True, **part)
        except (OSError, RuntimeError) as error:
            raise InputError(f"download: torchvision could not fetch {name} into {str(folder)!r}: {error}") from error
        if name == "GTSRB":
            small = [(np.asarray(image.convert("RGB").resize((32, 32), 2)), label) for image, label in data]
            x, y = np.stack([image for image, _ in small]), np.array([label for _, label in small])
        else:
            x, y = np.asarray(data.data), np.asarray(data.targets)
        found.append((x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2), y))
    names = {"MNIST": _numbers(10), "FashionMNIST": GARMENTS, "GTSRB": _numbers(43), "CIFAR10": CIFAR}[name]
    return _joined(folder, found[0], found[1], names)


def _joined(
    path: Path,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    classes: tuple[str, ...],
    notes: tuple[str, ...] = (),
) -> Pictures:
    labels = _classes(path, np.concatenate([train[1], test[1]]), len(classes))
    return Pictures(np.concatenate([train[0], test[0]]), labels, classes, len(test[1]), notes)


def _paired(path: Path, *parts: tuple[np.ndarray, np.ndarray]) -> None:
    for x, y in parts:
        if y.ndim != 1 or len(x) != len(y):
            raise InputError(f"{str(path)!r}: {len(x)} images but labels of shape {y.shape}; files of different sets?")
    if len({x.shape[1:] for x, _ in parts}) > 1:
        raise InputError(f"{str(path)!r}: training images {parts[0][0].shape[1:]}, test images {parts[1][0].shape[1:]}")


def _classes(path: Path, labels: np.ndarray, count: int) -> np.ndarray:
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= count:
        raise InputError(f"{str(path)!r}: labels are {labels.dtype}, expected integers 0 … {count - 1}")
    return labels.astype(np.int64)


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))
