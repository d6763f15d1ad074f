"""Readers of picture sets: each gives pixels, uint8 (n, C, H, W), and classes, or an InputError that names the file."""

from __future__ import annotations

import csv
import gzip
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, need
from .files import check_file
from .images import Preprocess, read_image

GARMENTS = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True, eq=False)
class Pictures:
    """A picture set as read.

    Args:
        x: uint8 (n, C, H, W).
        y: int64 (n,), classes.
        classes: their names.
        test: how many of the last rows are the set's own test part; 0: it has none.
        notes: what was left out, in words.
    """

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
    """A set in MNIST's format.

    A file named train-first…-images… in place of the training images holds the first of them, of a longer list of labels.

    Args:
        folder: where the four files are.
        classes: the classes' names; numbers if empty.
    """
    notes: tuple[str, ...] = ()
    images = folder / "train-images-idx3-ubyte.gz"
    shorter = sorted(folder.glob("train-first*-images-idx3-ubyte.gz"))
    if shorter and not images.exists():
        images = shorter[0]
    x = _idx(images, 3)
    y = _idx(folder / "train-labels-idx1-ubyte.gz", 1)
    if "first" in images.name and len(x) < len(y):
        notes = (f"the first {len(x)} of {len(y)} training images",)
        y = y[: len(x)]
    test_x = _idx(folder / "t10k-images-idx3-ubyte.gz", 3)
    test_y = _idx(folder / "t10k-labels-idx1-ubyte.gz", 1)
    _paired(folder, (x, y), (test_x, test_y))
    return _joined(folder, (x[:, None], y), (test_x[:, None], test_y), classes or _numbers(10), notes)


def _idx(path: Path, axes: int) -> np.ndarray:
    """One gzipped IDX file of unsigned bytes with ``axes`` axes."""
    check_file(path, "file")
    try:
        with gzip.open(path) as stream:
            content = stream.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"file {str(path)!r} cannot be decompressed ({error}): truncated or damaged?") from error
    if content[:4] != bytes([0, 0, 8, axes]):
        raise InputError(
            f"file {str(path)!r} is no IDX file of unsigned bytes with {axes} axes: it starts with {content[:4].hex()}"
        )
    # The header: four bytes that say what follows, then the length of each axis in four.
    header = 4 + 4 * axes
    shape: tuple[int, ...] = (0,)
    if len(content) >= header:
        shape = tuple(np.frombuffer(content, ">u4", axes, 4).tolist())
    data = np.frombuffer(content, np.uint8, offset=min(len(content), header))
    if len(data) != np.prod(shape) or not len(data):
        raise InputError(f"file {str(path)!r} holds {len(data)} bytes for the shape {shape} of its header: truncated?")
    return data.reshape(shape)


def npz(path: Path, classes: int) -> Pictures:
    """A set of NumPy arrays x_train, y_train, x_test, y_test in one file. Pickled objects are refused.

    Args:
        path: of the file.
        classes: how many there are.
    """
    check_file(path, "file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        raise InputError(f"file {str(path)!r} is not an archive of plain NumPy arrays ({error}): damaged?") from error
    if missing := [key for key in ("x_train", "y_train", "x_test", "y_test") if key not in arrays]:
        raise InputError(f"file {str(path)!r} lacks {', '.join(missing)}; it holds {', '.join(arrays) or 'nothing'}")
    for key in ("x_train", "x_test"):
        if arrays[key].dtype != np.uint8 or arrays[key].ndim != 4 or arrays[key].shape[-1] != 3:
            raise InputError(
                f"file {str(path)!r}: {key} is {arrays[key].dtype} {arrays[key].shape}, expected uint8 (n, H, W, 3)"
            )
    train = (arrays["x_train"].transpose(0, 3, 1, 2), arrays["y_train"])
    test = (arrays["x_test"].transpose(0, 3, 1, 2), arrays["y_test"])
    _paired(path, train, test)
    return _joined(path, train, test, _numbers(classes))


def rows(folder: Path, side: int, classes: tuple[str, ...]) -> Pictures:
    """One picture whose rows are images, test_batch.png, and their classes, test_labels.json.

    Args:
        folder: where the two files are.
        side: of the images, pixels.
        classes: the classes' names.
    """
    pixels = read_image(folder / "test_batch.png").pixels
    if pixels.shape[1] != side * side:
        raise InputError(
            f"image {str(folder / 'test_batch.png')!r} is {pixels.shape[1]} pixels wide, not {side * side}"
        )
    path = folder / "test_labels.json"
    check_file(path, "file")
    try:
        labels = np.asarray(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise InputError(f"file {str(path)!r} is not JSON ({error})") from error
    x = pixels.reshape(-1, side, side, 3).transpose(0, 3, 1, 2)
    _paired(path, (x, labels))
    return Pictures(np.ascontiguousarray(x), _classes(path, labels, len(classes)), classes)


def folder(folder: Path, side: int) -> Pictures:
    """A folder with labels.csv, of the columns file and class_index, and images/.

    Args:
        folder: where they are.
        side: of the square pictures, in pixels. Others are scaled, their short side to this, and cut to their centre.
    """
    path = folder / "labels.csv"
    check_file(path, "file")
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
        # A name such as ../x would lead out of the folder.
        if Path(name).name != name:
            raise InputError(f"file {str(path)!r}: {name!r} is not a plain file name")
        x[row] = (prepare(read_image(folder / "images" / name)) * 255).round().byte().numpy()
    labels = np.array([label for _, label in named])
    count = int(labels.max()) + 1
    return Pictures(x, _classes(path, labels, count), _numbers(count))


def torchvision_set(name: str, folder: Path) -> Pictures:
    """A set that torchvision fetches and reads. Traffic signs are scaled to 32 × 32, bilinear.

    Args:
        name: of torchvision's class: MNIST, FashionMNIST, GTSRB or CIFAR10.
        folder: where the set is put.
    """
    datasets = need("torchvision.datasets", "images")
    parts = []
    for train in (True, False):
        options: dict[str, Any] = {"train": train}
        if name == "GTSRB":
            options = {"split": "train" if train else "test"}
        try:
            data = getattr(datasets, name)(str(folder), download=True, **options)
        except (OSError, RuntimeError) as error:
            raise InputError(f"download: torchvision could not fetch {name} into {str(folder)!r}: {error}") from error
        if name == "GTSRB":
            bilinear = 2
            small = [(np.asarray(image.convert("RGB").resize((32, 32), bilinear)), label) for image, label in data]
            x = np.stack([image for image, _ in small])
            y = np.array([label for _, label in small])
        else:
            x = np.asarray(data.data)
            y = np.asarray(data.targets)
        if x.ndim == 3:
            x = x[:, None]  # grey pictures have no axis of channels
        else:
            x = x.transpose(0, 3, 1, 2)
        parts.append((x, y))
    names = {"MNIST": _numbers(10), "FashionMNIST": GARMENTS, "GTSRB": _numbers(43), "CIFAR10": CIFAR}[name]
    train_part, test_part = parts
    return _joined(folder, train_part, test_part, names)


def _joined(
    path: Path,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    classes: tuple[str, ...],
    notes: tuple[str, ...] = (),
) -> Pictures:
    """Both parts of a set, (x, y) each, the test part last."""
    labels = _classes(path, np.concatenate([train[1], test[1]]), len(classes))
    return Pictures(np.concatenate([train[0], test[0]]), labels, classes, len(test[1]), notes)


def _paired(path: Path, *parts: tuple[np.ndarray, np.ndarray]) -> None:
    """Raise InputError unless every part (x, y) has a label for each picture, and all pictures one size."""
    for x, y in parts:
        if y.ndim != 1 or len(x) != len(y):
            raise InputError(f"{str(path)!r}: {len(x)} images but labels of shape {y.shape}; files of different sets?")
    if len({x.shape[1:] for x, _ in parts}) > 1:
        raise InputError(f"{str(path)!r}: training images {parts[0][0].shape[1:]}, test images {parts[1][0].shape[1:]}")


def _classes(path: Path, labels: np.ndarray, count: int) -> np.ndarray:
    """The labels as int64; InputError unless they are integers below ``count``."""
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= count:
        raise InputError(f"{str(path)!r}: labels are {labels.dtype}, expected integers 0 … {count - 1}")
    return labels.astype(np.int64)


def _numbers(count: int) -> tuple[str, ...]:
    """Names for classes that have none: "0", "1", …"""
    return tuple(map(str, range(count)))
