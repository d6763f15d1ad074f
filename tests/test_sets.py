"""Data sets: every reader on files made here, splits, statistics of the training part only, damaged files, no leaks."""

from __future__ import annotations

import gzip
import io
import json
import sys
import types

import numpy as np
import pytest
import torch

from consilience.data.sets import SETS, load
from consilience.errors import InputError

pytest.importorskip("sklearn")
EMBEDDED = [name for name, source in SETS.items() if not source.layout]
UCI = {"autompg": 8, "communities": 103, "day": 15, "housing": 12, "music": 70, "winequality-red": 12}  # columns
FILES = {"autompg": "autompgs.csv"}


def idx(array: np.ndarray) -> bytes:
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes())


def support2(rows: int = 60) -> str:
    names = (
        "age,death,sex,hospdead,slos,d.time,income,charges,totcst,totmcst,avtisst,sps,surv2m,surv6m,dnr,dnrday,"
        "urine,sfdm2"
    )
    rng = np.random.default_rng(0)
    lines = [names]
    for i in range(rows):
        death = int(rng.random() < 0.5)
        urine = "" if i % 3 else f" {1000 + 100 * i}"
        leak = "<2 mo. follow-up" if death else ""
        sex, income = ("male", "female")[i % 2], ("", "under $11k", ">$50k")[i % 3]
        lines.append(
            f"{i + 1},{rng.normal(60, 10):.3f},{death},{sex},{death},5,{9 * death},{income},1,2,3,4,{rng.random():.2f},"
            f"{1 - death},{1 - death},no dnr,3,{urine},{leak}"
        )
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a small file for every set that is read from one."""
    from PIL import Image

    root, rng = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    for name in ("mnist", "fashion-mnist"):
        (root / name).mkdir()
        first = "train-first40" if name == "fashion-mnist" else "train"
        arrays = {
            f"{first}-images-idx3-ubyte.gz": rng.integers(0, 256, (40, 6, 5), np.uint8),
            "train-labels-idx1-ubyte.gz": rng.integers(0, 10, 60 if first != "train" else 40).astype(np.uint8),
            "t10k-images-idx3-ubyte.gz": rng.integers(0, 256, (7, 6, 5), np.uint8),
            "t10k-labels-idx1-ubyte.gz": rng.integers(0, 10, 7).astype(np.uint8),
        }
        for file, array in arrays.items():
            (root / name / file).write_bytes(idx(array))
    (root / "gtsrb").mkdir()
    np.savez(
        root / "gtsrb/gtsrb32.npz",
        x_train=rng.integers(0, 256, (30, 4, 4, 3), np.uint8), y_train=rng.integers(0, 43, 30),
        x_test=rng.integers(0, 256, (6, 4, 4, 3), np.uint8), y_test=rng.integers(0, 43, 6),
    )  # fmt: skip
    (root / "flowers17/images").mkdir(parents=True)
    for i in range(17):
        Image.fromarray(np.full((150, 140, 3), 10 * i, np.uint8)).save(root / f"flowers17/images/{i}.png")
    (root / "flowers17/labels.csv").write_text("file,class_index\n" + "".join(f"{i}.png,{i}\n" for i in range(17)))
    (root / "cifar10").mkdir()
    Image.fromarray(rng.integers(0, 256, (20, 1024, 3), np.uint8)).save(root / "cifar10/test_batch.png")
    (root / "cifar10/test_labels.json").write_text(json.dumps([i % 10 for i in range(20)]))
    (root / "uci").mkdir()
    for name, columns in UCI.items():
        table = rng.normal(50, 7, (40, columns))
        if name == "day":
            table[:, -1] = table[:, -2] + table[:, -3]
        lines = ["," + ",".join(map(str, range(columns)))]
        lines += [f"{i}," + ",".join(map(str, row)) for i, row in enumerate(table.tolist())]
        (root / "uci" / FILES.get(name, f"{name}.csv")).write_text("\n".join(lines))
    (root / "uci/support2.csv").write_text(support2())
    return root


@pytest.mark.parametrize("name", SETS)
def test_every_set(name, root):
    data = load(name, root)
    again = load(name, root)
    assert data.name == name
    rows = torch.cat([part.ids for part in (data.train, data.validation, data.test)])
    assert len(rows.unique()) == len(rows) and rows.max() == len(rows) - 1, "the parts are a partition of the rows"
    assert len(data.train) > len(data.validation) > 0 < len(data.test)
    for part, same in zip(
        (data.train, data.validation, data.test), (again.train, again.validation, again.test), strict=True
    ):
        assert torch.equal(part.ids, same.ids) and torch.equal(part.x, same.x)
        assert part.x.dtype == torch.float32 and part.x.isfinite().all() and len(part.x) == len(part.y) == len(part)
        assert part.y.dtype == (torch.int64 if data.classes else torch.float32)
        if data.classes:
            assert 0 <= part.y.min() and part.y.max() < len(data.classes)
        if part.x.ndim == 4:
            assert 0 <= part.x.min() and part.x.max() <= 1
    if data.train.x.ndim == 2:
        assert len(data.features) == len(data.columns) == data.train.x.shape[1]
        torch.testing.assert_close(data.train.x.mean(0), torch.zeros(len(data.features)), atol=1e-5, rtol=0)
        torch.testing.assert_close(data.train.x.std(0, False), torch.ones(len(data.features)), atol=1e-4, rtol=0)
        if not data.classes:
            assert data.train.y.mean().abs() < 1e-5 and abs(data.train.y.std(correction=0) - 1) < 1e-4


@pytest.mark.parametrize("name", ["digits", "day", "mnist"])
def test_the_seed_moves_rows_between_the_parts_but_a_published_test_part_stays(name, root):
    one, two = load(name, root, seed=0), load(name, root, seed=1)
    assert not torch.equal(one.validation.ids, two.validation.ids)
    assert torch.equal(one.test.ids, two.test.ids) == (name == "mnist")
    if name == "mnist":
        assert one.test.ids.tolist() == list(range(40, 47))


def test_pictures_are_what_the_files_hold(root):
    raw = gzip.decompress((root / "mnist/t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    expected = np.frombuffer(raw, np.uint8).reshape(7, 1, 6, 5) / np.float32(255)
    torch.testing.assert_close(load("mnist", root).test.x, torch.from_numpy(expected))
    data = load("cifar10", root)
    from PIL import Image

    row = np.array(Image.open(root / "cifar10/test_batch.png"))[int(data.test.ids[0])]
    torch.testing.assert_close(
        data.test.x[0], torch.from_numpy(row.reshape(32, 32, 3).transpose(2, 0, 1) / 255).float()
    )
    assert data.test.y[0] == data.test.ids[0] % 10
    flowers = load("flowers17", root)
    assert flowers.train.x.shape[1:] == (3, 128, 128)
    torch.testing.assert_close(flowers.train.x[:, 0, 0, 0] * 255, flowers.train.ids * 10.0)
    fashion = load("fashion_mnist", root)
    assert fashion.notes == ("the first 40 of 60 training images",) and fashion.classes[9] == "ankle boot"
    digits = load("digits")
    assert (digits.train.x * 16 - (digits.train.x * 16).round()).abs().max() < 0.04


def test_statistics_are_of_the_training_rows_only(root, tmp_path):
    """Changing a value of the test part changes nothing in the other parts, and nothing of the scale."""
    path = tmp_path / "uci/housing.csv"
    path.parent.mkdir()
    before = load("housing", root)
    lines = (root / "uci/housing.csv").read_text().split("\n")
    row = int(before.test.ids[0])
    cells = lines[1 + row].split(",")
    cells[1], cells[-1] = "1e6", "-1e6"
    lines[1 + row] = ",".join(cells)
    path.write_text("\n".join(lines))
    after = load("housing", tmp_path)
    for part in ("train", "validation"):
        assert torch.equal(getattr(before, part).x, getattr(after, part).x)
        assert torch.equal(getattr(before, part).y, getattr(after, part).y)
    assert before.target == after.target and after.test.x[0, 0] > 1e4
    std, mean = before.target[1], before.target[0]
    original = float((root / "uci/housing.csv").read_text().split("\n")[1 + row].split(",")[-1])
    assert before.test.y[0].item() * std + mean == pytest.approx(original, rel=1e-4)


def test_gaps_are_filled_with_the_training_rows_median_before_scaling(root):
    data = load("support2", root)
    column = data.features.index("urine")
    lines = [line.split(",") for line in (root / "uci/support2.csv").read_text().strip().split("\n")[1:]]
    raw = np.array([float(line[17]) if line[17].strip() else np.nan for line in lines])
    train = data.train.ids.numpy()
    filled = np.where(np.isnan(raw), np.nanmedian(raw[train]), raw)
    expected = (filled - filled[train].mean()) / filled[train].std()
    for part in (data.train, data.validation, data.test):
        np.testing.assert_allclose(part.x[:, column], expected[part.ids.numpy()], rtol=1e-4, atol=1e-5)
    assert any(note.startswith("urine: 40 of 60") for note in data.notes)


def test_no_column_leaks(root):
    data = load("support2", root)
    assert set(data.columns) == {"age", "sex", "income", "urine"}
    assert {"income=missing", "income=>$50k", "sex=male"} <= set(data.features)
    assert any("sfdm2 left out" in note for note in data.notes)
    day = load("day", root)
    assert not {"0", "12", "13"} & set(day.columns) and "14" not in day.columns and len(day.columns) == 11
    x, y = day.train.x.double(), day.train.y.double()[:, None]
    fitted = x @ torch.linalg.lstsq(x, y).solution
    assert (fitted - y).std() > 0.3, "a linear model must not reproduce the target"
    assert len(load("communities", root).columns) == 101


def test_one_hot_features_are_of_levels_seen_in_training(root, tmp_path):
    (tmp_path / "uci").mkdir()
    row = int(load("support2", root).test.ids[0])
    lines = support2().split("\n")
    lines[1 + row] = lines[1 + row].replace("female", "male").replace("male", "unknown")
    (tmp_path / "uci/support2.csv").write_text("\n".join(lines))
    data = load("support2", tmp_path)
    columns = [j for j, name in enumerate(data.columns) if name == "sex"]
    assert [data.features[j] for j in columns] == ["sex=female", "sex=male"]
    assert data.test.x[0, columns].max() < 0, "an unseen level is none of the known ones"


def test_a_constant_column_is_left_out(root, tmp_path):
    (tmp_path / "uci").mkdir()
    lines = (root / "uci/autompgs.csv").read_text().split("\n")
    changed = [lines[0], *(",".join([*line.split(",")[:1], "0.1", *line.split(",")[2:]]) for line in lines[1:])]
    (tmp_path / "uci/autompgs.csv").write_text("\n".join(changed))
    data = load("autompg", tmp_path)
    assert "0" not in data.features and "0 left out: constant in the training rows" in data.notes


# -- what is refused ---------------------------------------------------------------------------------------------------


def npz(**arrays) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


x32, y32 = np.zeros((3, 4, 4, 3), np.uint8), np.zeros(3, np.int64)
GOOD = {"x_train": x32, "x_test": x32, "y_train": y32, "y_test": y32}
DAMAGED = {
    "missing": ("mnist", "mnist/t10k-images-idx3-ubyte.gz", None, "no such file"),
    "empty": ("mnist", "mnist/t10k-labels-idx1-ubyte.gz", b"", "empty"),
    "no gzip": ("mnist", "mnist/train-images-idx3-ubyte.gz", b"<html>not found</html>", "cannot be decompressed"),
    "cut gzip": ("mnist", "mnist/train-images-idx3-ubyte.gz", idx(np.zeros((40, 6, 5), np.uint8))[:-9], "truncated"),
    "no idx": ("mnist", "mnist/train-images-idx3-ubyte.gz", gzip.compress(b"abcdefghijk"), "no IDX file"),
    "short header": ("mnist", "mnist/train-images-idx3-ubyte.gz", gzip.compress(bytes([0, 0, 8, 3, 0])), "truncated"),
    "cut idx": ("mnist", "mnist/train-images-idx3-ubyte.gz",
                gzip.compress(gzip.decompress(idx(np.zeros((40, 6, 5), np.uint8)))[:-5]), "truncated"),
    "other count": ("mnist", "mnist/train-labels-idx1-ubyte.gz", idx(np.zeros(39, np.uint8)), "different sets"),
    "other size": ("mnist", "mnist/t10k-images-idx3-ubyte.gz", idx(np.zeros((7, 9, 9), np.uint8)), r"\(1, 9, 9\)|\(9, 9\)"),
    "label": ("mnist", "mnist/t10k-labels-idx1-ubyte.gz", idx(np.full(7, 10, np.uint8)), "integers 0 … 9"),
    "no npz": ("gtsrb", "gtsrb/gtsrb32.npz", b"PK\x03\x04 not a zip", "damaged"),
    "pickle": ("gtsrb", "gtsrb/gtsrb32.npz", npz(**(GOOD | {"y_test": np.array([{}, 1, 2], object)})), "plain NumPy"),
    "lacks": ("gtsrb", "gtsrb/gtsrb32.npz", npz(x_train=x32), "lacks y_train, x_test, y_test"),
    "dtype": ("gtsrb", "gtsrb/gtsrb32.npz", npz(**(GOOD | {"x_test": x32.astype(np.float32)})), "expected uint8"),
    "columns": ("flowers17", "flowers17/labels.csv", b"name,label\n0.png,0\n", "file and class_index"),
    "outside": ("flowers17", "flowers17/labels.csv", b"file,class_index\n../0.png,0\n", "plain file name"),
    "picture": ("flowers17", "flowers17/images/3.png", b"\x89PNG\r\n\x1a\n", "damaged|known format|decoded"),
    "width": ("cifar10", "cifar10/test_batch.png", "narrow", "wide, not 1024"),
    "json": ("cifar10", "cifar10/test_labels.json", b"[1, 2", "not JSON"),
    "count": ("cifar10", "cifar10/test_labels.json", b"[1, 2]", "different sets"),
    "ragged": ("housing", "uci/housing.csv", b",0,1,2\n0,1,2,3\n1,1,2\n", "line 3: 3 values for 4 columns"),
    "no rows": ("housing", "uci/housing.csv", b",0,1,2\n", "no rows"),
    "no index": ("housing", "uci/housing.csv", b"0,1,2\n1,2,3\n1,5,3\n", "row index"),
    "words": ("housing", "uci/housing.csv", b",0,1,2\n0,1,2,x\n1,1,2,y\n", "must be a number"),
    "another": ("day", "uci/day.csv", b",0,1,2\n0,1,2,3\n1,1,2,3\n", "lacks the column"),
    "bytes": ("music", "uci/music.csv", b",0,1\n0,\xff\xfe,2\n", "comma-separated text"),
    "twice": ("music", "uci/music.csv", b",0,0\n0,1,2\n", "the same name"),
    "label column": ("support2", "uci/support2.csv", support2().replace("death", "dead", 1).encode(), "no column 'death'"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_a_clear_error(case, root, tmp_path):
    import shutil

    name, file, content, message = DAMAGED[case]
    shutil.copytree(root / file.split("/")[0], tmp_path / file.split("/")[0])
    if content == "narrow":
        from PIL import Image

        Image.fromarray(np.zeros((20, 32, 3), np.uint8)).save(tmp_path / file)
    elif content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        load(name, tmp_path)
    assert file.split("/")[-1] in str(error.value) or file.split("/")[0] in str(error.value)
    assert SETS[name].layout in str(error.value) and SETS[name].origin in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda root: load("minst", root), "did you mean 'mnist'"),
        (lambda root: load("mnist"), "give the folder"),
        (lambda root: load("mnist", root, test=0.2), "leave test out"),
        (lambda root: load("digits", validation=0.6, test=0.5), "without rows"),
        (lambda root: load("digits", validation=0.0), "without rows"),
        (lambda root: load("digits", download=True), "packaged"),
        (lambda root: load("day", root, download=True), "does not know day"),
        (lambda root: load("mnist", download=True), "give the folder"),
    ],
)
def test_what_is_refused(call, message, root):
    with pytest.raises(InputError, match=message):
        call(root)


@pytest.mark.parametrize("name", [name for name, source in SETS.items() if source.fetch])
def test_downloads_go_through_torchvision(name, tmp_path, monkeypatch):
    """A torchvision of our own notes what it is asked for: nothing is downloaded here."""
    from PIL import Image

    asked = []

    class Fake:
        def __init__(self, root, download, train=None, split=None):
            asked.append((root, download))
            count = 9 if train or split == "train" else 4
            shape = (count, 28, 28) if "mnist" in name else (count, 32, 32, 3)
            self.data, self.targets = torch.zeros(shape, dtype=torch.uint8), torch.arange(count) % 10
            if name == "cifar10":
                self.data, self.targets = self.data.numpy(), self.targets.tolist()

        def __iter__(self):
            return iter((Image.new("RGB", (20 + i, 40)), i % 43) for i in range(len(self.targets)))

    fake = types.ModuleType("torchvision.datasets")
    fake.MNIST = fake.FashionMNIST = fake.CIFAR10 = fake.GTSRB = Fake
    monkeypatch.setitem(sys.modules, "torchvision.datasets", fake)
    data = load(name, tmp_path, download=True, validation=0.2)
    assert asked == [(str(tmp_path), True)] * 2
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 1, 4)
    assert data.train.x.shape[1] == (1 if "mnist" in name else 3)
    monkeypatch.setattr(Fake, "__init__", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("no internet")))
    with pytest.raises(InputError, match="could not fetch .* no internet"):
        load(name, tmp_path, download=True)
