"""Data sets for training and benchmarks: split first, statistics from the training part only, no column that leaks.

scikit-learn's digits, breast-cancer and diabetes sets need no files. The others are read from a folder; what is expected
there, and where it comes from, is in :data:`SETS` and in every error.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, choose, need
from . import pictures, tables


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows of a data set.

    Args:
        x: (n, C, H, W) in [0, 1], or (n, F) standardised; float32.
        y: (n,), int64 classes or float32 standardised targets.
        ids: (n,) int64, each row's place in the source, which names its random draws whatever the split.
    """

    x: Tensor
    y: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Tensor | slice) -> Part:
        return Part(self.x[index], self.y[index], self.ids[index])


@dataclass(frozen=True, eq=False)
class Data:
    """A data set in three parts.

    Args:
        name: of the set.
        train: what is trained on, and what all statistics are of.
        validation: what decisions are made on.
        test: what is judged on.
        classes: the classes' names, empty for regression.
        features: a name for each column of a table's x; empty for pictures.
        columns: the source column of each feature, which one-hot features share; empty for pictures.
        target: (mean, standard deviation) of a regression target; y · std + mean is in its unit.
        notes: what was left out or filled in, in words.
    """

    name: str
    train: Part
    validation: Part
    test: Part
    classes: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    target: tuple[float, float] = (0.0, 1.0)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """How a set is read.

    Args:
        layout: what is expected below the folder, in words; empty: nothing, the set is packaged with scikit-learn.
        origin: where the set comes from, in words.
        read: from the folder to the raw set.
        fetch: from the folder, into which torchvision downloads, to the raw set; None: torchvision does not know it.
        shares: of validation and of test rows.
    """

    layout: str
    origin: str
    read: Callable[[Path], pictures.Pictures | tables.Table]
    fetch: Callable[[Path], pictures.Pictures] | None = None
    shares: tuple[float, float] = (0.25, 0.25)


_IDX = "{}/ with train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz"


_UCI = "the UCI Machine Learning Repository, as prepared for the ExpO experiments (arXiv 1902.06787)"


def _regression(file: str, title: str, drop: dict[str, str] | None = None, *notes: str) -> Source:
    """A regression set of the repository.

    Args:
        file: below uci/.
        title: the set's published name.
        drop: columns that are left out → why.
        *notes: to keep with the table.
    """
    layout = f"uci/{file}, comma-separated with a header: a row index, the features, last the target"

    def read(folder: Path) -> tables.Table:
        return tables.regression(folder / "uci" / file, drop or {}, notes)

    return Source(layout, f"{title}, {_UCI}", read)


SETS: dict[str, Source] = {
    "mnist": Source(
        _IDX.format("mnist"),
        "LeCun, Cortes and Burges, MNIST",
        lambda folder: pictures.idx(folder / "mnist"),
        lambda folder: pictures.torchvision_set("MNIST", folder),
        (0.1, 0),
    ),
    "fashion_mnist": Source(
        _IDX.format("fashion-mnist") + "; train-first10000-images-idx3-ubyte.gz will do for the first",
        "Zalando Research, Fashion-MNIST (arXiv 1708.07747)",
        lambda folder: pictures.idx(folder / "fashion-mnist", pictures.GARMENTS),
        lambda folder: pictures.torchvision_set("FashionMNIST", folder),
        (0.1, 0),
    ),
    "gtsrb": Source(
        "gtsrb/gtsrb32.npz with uint8 arrays x_train, x_test (n, 32, 32, 3) and y_train, y_test (n,)",
        "the German Traffic Sign Recognition Benchmark, scaled to 32 × 32",
        lambda folder: pictures.npz(folder / "gtsrb" / "gtsrb32.npz", 43),
        lambda folder: pictures.torchvision_set("GTSRB", folder),
        (0.1, 0),
    ),
    "flowers17": Source(
        "flowers17/labels.csv with the columns file, class_index, and flowers17/images/ (17 × 80 photographs)",
        "the 17 Category Flower Dataset of the Visual Geometry Group, Oxford",
        lambda folder: pictures.folder(folder / "flowers17", 128),
        None,
        (0.125, 0.25),
    ),
    "cifar10": Source(
        "cifar10/test_batch.png, an RGB picture whose rows are 1024 pixels, one 32 × 32 image each, and "
        "cifar10/test_labels.json, a list of classes; only the test set, which is split",
        "Krizhevsky, CIFAR-10",
        lambda folder: pictures.rows(folder / "cifar10", 32, pictures.CIFAR),
        lambda folder: pictures.torchvision_set("CIFAR10", folder),
        (0.1, 0.25),
    ),
    "autompg": _regression("autompgs.csv", "Auto MPG"),
    "communities": _regression(
        "communities.csv",
        "Communities and Crime",
        {"0": "the number of a published cross-validation fold"},
        "the target is what these files hold last: the state's number (1 … 56), not the rate of crimes",
    ),
    "day": _regression(
        "day.csv",
        "Bike Sharing (day)",
        {
            "0": "the record's number",
            **dict.fromkeys(("12", "13"), "casual and registered rentals: their sum is the target"),
        },
    ),
    "housing": _regression("housing.csv", "Boston Housing"),
    "music": _regression("music.csv", "Geographical Origin of Music"),
    "winequality-red": _regression("winequality-red.csv", "Wine Quality (red)"),
    "support2": Source(
        "uci/support2.csv, as published: a row index without a name in the header, 47 columns, death the label",
        "SUPPORT2, Vanderbilt University and the UCI Machine Learning Repository",
        lambda folder: tables.classification(folder / "uci" / "support2.csv", "death", tables.SUPPORT2_LEAKS),
    ),
    "digits": Source("", "scikit-learn", lambda _: pictures.digits(), None, (0.1, 0.25)),
    "breast_cancer": Source("", "scikit-learn", lambda _: tables.sklearn_table("load_breast_cancer")),
    "diabetes": Source("", "scikit-learn", lambda _: tables.sklearn_table("load_diabetes")),
}
"""Every set by name. Those with an empty layout are packaged with scikit-learn and need no folder."""


def load(
    name: str,
    folder: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    validation: float | None = None,
    test: float | None = None,
    download: bool = False,
) -> Data:
    """Read, split and scale a data set of :data:`SETS`.

    The rows are split before anything is computed from them: a row's rank is a hash of (seed, name, its place in the
    source), so a split is a function of these and of nothing else. Pictures are pixel / 255, in [0, 1]. A table's missing
    numbers become the training rows' median, then columns (and a regression's target) are standardised by the training
    rows' mean and standard deviation; a column that is constant there is left out. Words become one-hot features of the
    levels seen in training, a missing word being a level of its own.

    Args:
        name: one of :data:`SETS`.
        folder: where the files are, unless the set is packaged with scikit-learn.
        seed: of the split.
        validation: share of all rows; None: the set's own. Of a set with a published test part, a share of the others.
        test: share of all rows; None: the set's own. A published test part stays the test part: ``test`` must not be given.
        download: let torchvision fetch the set into ``folder`` (mnist, fashion_mnist, gtsrb, cifar10).

    Raises:
        InputError: for an unknown name, a missing, damaged or unexpected file, shares that leave a part without rows.

    >>> data = load("diabetes")
    >>> data.train.x.shape, data.validation.x.shape, data.test.x.shape
    (torch.Size([222, 10]), torch.Size([110, 10]), torch.Size([110, 10]))
    """
    source = SETS[choose("data set", name, SETS)]
    raw = _read(name, source, folder, download)
    if raw.test and test is not None:
        raise InputError(f"test: {name} comes with {raw.test} test rows of its own; leave test out")
    if validation is None:
        validation = source.shares[0]
    if test is None:
        test = source.shares[1]
    train, middle, last = _split(name, len(raw.y), raw.test, (validation, test), seed)
    if not isinstance(raw, tables.Table):
        return Data(
            name,
            train=_part(raw.x, raw.y, train),
            validation=_part(raw.x, raw.y, middle),
            test=_part(raw.x, raw.y, last),
            classes=raw.classes,
            notes=raw.notes,
        )
    table = tables.encode(raw, train)
    return Data(
        name,
        train=_part(table.x, table.y, train),
        validation=_part(table.x, table.y, middle),
        test=_part(table.x, table.y, last),
        classes=raw.classes,
        features=table.features,
        columns=table.columns,
        target=table.target,
        notes=(*raw.notes, *table.notes),
    )


def _part(x: np.ndarray, y: np.ndarray, rows: np.ndarray) -> Part:
    """The rows with these numbers (n,) of a raw set; bytes of pictures become 0 … 1."""
    values = torch.from_numpy(x[rows]).float()
    if x.dtype == np.uint8:
        values = values / 255
    return Part(values, torch.from_numpy(y[rows]), torch.from_numpy(rows))


def _read(
    name: str, source: Source, folder: str | os.PathLike[str] | None, download: bool
) -> pictures.Pictures | tables.Table:
    """The raw set; arguments as of :func:`load`."""
    if not source.layout:
        if download:
            raise InputError(f"download: {name} is packaged with scikit-learn; leave download out")
        return source.read(Path())
    if folder is None:
        embedded = ", ".join(key for key, value in SETS.items() if not value.layout)
        raise InputError(
            f"folder: {name} is read from files, so give the folder that holds {source.layout} ({source.origin}); "
            f"without files there are {embedded}"
        )
    if download:
        if source.fetch is None:
            known = ", ".join(key for key, value in SETS.items() if value.fetch)
            raise InputError(f"download: torchvision does not know {name}, only {known}; origin: {source.origin}")
        need("torchvision", "images")
        return source.fetch(Path(folder))
    try:
        return source.read(Path(folder))
    except InputError as error:
        hint = "; download=True fetches it through torchvision" if source.fetch else ""
        raise InputError(f"{error}; {name} is expected as {source.layout} (origin: {source.origin}){hint}") from error


def _split(
    name: str, count: int, official: int, shares: tuple[float, float], seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorted row numbers of training, validation and test; the last ``official`` rows are the set's own test part."""
    own = count - official
    validation = int(own * shares[0])
    test = official or int(own * shares[1])
    taken = validation if official else validation + test
    if min(shares) < 0 or min(validation, test) < 1 or own <= taken:
        raise InputError(
            f"validation, test: shares {shares[0]:g} and {shares[1]:g} of {own} rows leave a part of {name} without rows"
        )
    # A hash of each row's own number: where a row goes does not depend on how many rows there are.
    rank = [hashlib.blake2b(f"{seed}:{name}:{row}".encode(), digest_size=8).digest() for row in range(own)]
    order = np.array(sorted(range(own), key=rank.__getitem__))
    train_rows = np.sort(order[taken:])
    validation_rows = np.sort(order[:validation])
    test_rows = np.arange(own, count) if official else np.sort(order[validation:taken])
    return train_rows, validation_rows, test_rows
