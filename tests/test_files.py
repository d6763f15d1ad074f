"""Results on disk: what is saved comes back, two runs are never mixed, and a damaged file is named."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import Small, images
from safetensors.numpy import load_file, save_file
from torch import nn

import consilience as cs
from consilience.errors import printable
from consilience.results import explanation, lock
from consilience.results.lock import Lock
from consilience.results.runs import RunFolder
from consilience.statistics.evidence import Quadratic

FEW = {"fit_draws": 4, "fresh_draws": 4, "resolved_draws": 0}
NAMES = ["age", "<b>pay</b>", "job", "children"]


def run(count=4, seed=0, **options):
    options = {"methods": ["saliency", "grad_cam"], "objective": "robust", **FEW, **options}
    return cs.explain(Small(), images(count).float().double(), seed=seed, **options)


def table(**options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    return cs.explain(
        net, torch.eye(4)[:2], methods=["saliency", "input_x_gradient"], objective="robust", **FEW, **options
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Files of a run of two inputs, as bytes by their path in its folder."""
    folder = run(2).save(tmp_path_factory.mktemp("run"))
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write(folder, contents):
    for path, content in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


# -- writing -----------------------------------------------------------------------------------------------------------


class Disk:
    """The calls that change a disk. From the ``last``-th on they fail: once (``error``), or for ever, as after a kill."""

    CALLS = ("open", "mkdir", "fsync", "sync", "rename", "replace", "unlink", "rmdir", "utime")

    def __init__(self, last, error, for_ever):
        self.last, self.error, self.for_ever = last, error, for_ever
        self.count = 0

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        for name in self.CALLS:
            self.patch.setattr(os, name, self.failing(getattr(os, name)))
        return self

    def __exit__(self, *_):
        self.patch.undo()

    def failing(self, real):
        def call(*args, **kwargs):
            self.count += 1
            if self.count == self.last or (self.for_ever and self.count > self.last):
                raise self.error
            return real(*args, **kwargs)

        return call


FULL = OSError(28, "No space left on device")


def tree(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("error, for_ever, count", [
    (FULL, False, 1), (KeyboardInterrupt(), True, 1), pytest.param(KeyboardInterrupt(), True, 3, marks=pytest.mark.slow),
    pytest.param(FULL, True, 3, marks=pytest.mark.slow), pytest.param(KeyboardInterrupt(), False, 3, marks=pytest.mark.slow),
])  # fmt: skip
def test_a_run_saved_over_another_is_the_old_or_the_new_one(tmp_path, monkeypatch, saved, error, for_ever, count):
    """Failing, interrupted or killed at each of its steps; and the next save leaves nothing but the new run."""
    for name in ("fsync", "sync"):  # slow, and of no effect on what is read
        monkeypatch.setattr(os, name, lambda *_: None)
    before, after = run(2).weights, run(count, seed=1)
    expected = tree(after.save(tmp_path / "alone"))
    seen = set()
    for last in itertools.count(1):
        folder = write(tmp_path / f"run{last}", saved)
        (folder / "000" / "notes.txt").write_text("mine")
        with Disk(last, error, for_ever) as disk:
            try:
                after.save(folder)
            except (cs.InputError, KeyboardInterrupt, OSError):
                pass
        ran_through = disk.count < last
        found = cs.load(folder)
        new = found.seed == 1
        seen.add(new)
        torch.testing.assert_close(found.weights, after.weights if new else before)
        assert len(found) == (count if new else 2)
        if not for_ever and not new and isinstance(error, OSError):
            assert {path.parent.name for path in folder.rglob("*")} <= {folder.name, "000", "001", ".ready"}
        with monkeypatch.context() as patch:
            patch.setattr(lock, "_runs", lambda pid: False)  # the killed process, which in truth is this one
            after.save(folder)
        assert tree(folder) == expected | {Path("000/notes.txt"): b"mine"}, last
        shutil.rmtree(folder)
        if ran_through:
            break
    assert seen == {True, False} and last > 20


KILLED = """
import sys, consilience as cs
from consilience.results.load import load
a, b = load(sys.argv[1]), load(sys.argv[2])
print("ready", flush=True)
while True:
    a.save(sys.argv[3])
    b.save(sys.argv[3])
"""


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_saves_leaves_a_run(tmp_path):
    one, two = run(2).save(tmp_path / "one"), run(3, seed=1).save(tmp_path / "two")
    # There is a run from the start: on a busy machine the first process is killed before its first save ends.
    target = cs.load(one).save(tmp_path / "run")
    for i in range(25):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(one), str(two), str(target)], stdout=subprocess.PIPE, text=True
        )
        process.stdout.readline()
        time.sleep(0.05 + 0.013 * i)
        process.kill()
        process.wait()
        process.stdout.close()
        found = cs.load(target)
        assert len(found) == (3 if found.seed == 1 else 2)
    cs.load(one).save(target)
    assert tree(target) == tree(one)


def test_a_folder_of_another_origin_is_not_replaced(tmp_path):
    r = run(2)
    for name, make in {
        "000": lambda path: path.write_text("mine"),
        "001": lambda path: (path.mkdir(), (path / "thesis.txt").write_text("mine")),
        "run.json": lambda path: path.write_text('{"name": "an npm script"}'),
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        make(folder / name)
        before = tree(folder)
        with pytest.raises(cs.InputError, match=f"{folder / name}: .*was not written by consilience.*another folder"):
            r.save(folder)
        assert tree(folder) == before and not list(folder.glob(".*"))


def test_links_in_the_way_are_not_followed(tmp_path):
    """Neither one at a temporary name nor one at the place itself."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    (tmp_path / "run").mkdir()
    for name in (".next", ".ready"):
        (tmp_path / "run" / name).symlink_to(mine)
    (tmp_path / "page.html").symlink_to(mine / "thesis.txt")
    r = run(1)
    r.save(tmp_path / "run")
    r.report(tmp_path / "page.html")
    assert tree(mine) == {Path("thesis.txt"): b"mine"}
    assert not (tmp_path / "page.html").is_symlink() and len(cs.load(tmp_path / "run")) == 1


def test_no_name_is_no_place():
    for write in (run(1).save, run(1).report, cs.Consensus(Small(), "gradient", "robust", **FEW).fit([images()]).save):
        with pytest.raises(cs.InputError, match="empty string"):
            write("")


def test_one_process_at_a_time_saves_a_run(tmp_path):
    r = run(1)
    with RunFolder(tmp_path / "run"), pytest.raises(cs.InputError, match="run: another process writes"):
        r.save(tmp_path / "run")
    r.save(tmp_path / "run")


def test_names_that_no_terminal_or_encoding_likes(tmp_path):
    """A name that is no UTF-8, with escape codes and markup."""
    names = [os.fsdecode(b"caf\xe9 <b>\x1b[2J"), "ok"]
    r = run(2).describe(names=names, model="m\x1b[31m", sources=[{"source": os.fsdecode(b"\xff.png")}] * 2)
    found = cs.load(r.save(tmp_path / "run"))
    assert found.record(0)["input"]["name"] == names[0] and found.record(0) == r.record(0)
    for each in (r, found):
        assert "m\\x1b[31m" in str(each) and "\x1b" not in str(each)
        page = each.report(tmp_path / "page.html").read_bytes()
        assert b"caf\\udce9 &lt;b&gt;" in page
    assert printable(names[0]) == "caf\\udce9 <b>\\x1b[2J" and printable("a\nb\u202e") == "a\\nb\\u202e"


def test_a_shorter_run_leaves_nothing_of_a_longer_one(tmp_path):
    run(4).save(tmp_path)
    (tmp_path / "000-other").mkdir()
    (tmp_path / "000-other" / "explanation.json").write_text("mine")
    run(2, seed=1).save(tmp_path)
    assert [record["seed"] for record in cs.load(tmp_path).records] == [1, 1]
    assert sorted(path.parent.name for path in tmp_path.glob("*/explanation.json")) == ["000", "000-other", "001"]


def test_what_cannot_be_written_is_named_and_leaves_nothing_behind(tmp_path):
    r = run(1)
    loaded = cs.load(r.save(tmp_path / "run"))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for write in (
        lambda: r.save(tmp_path / "file"),
        lambda: r.save(tmp_path / "file" / "run"),
        lambda: r.report(tmp_path / "folder"),
        lambda: loaded.report(tmp_path / "folder"),
        lambda: loaded.report(tmp_path / "file" / "page.html"),
    ):
        with pytest.raises(cs.InputError, match=rf"{tmp_path}/(file|folder).*: cannot be written"):
            write()
    assert {path.name for path in tmp_path.iterdir()} == {"run", "file", "folder"}
    assert (tmp_path / "file").read_text() == "mine"
    for i, source in enumerate((r, loaded)):
        assert source.report(tmp_path / f"new{i}" / "deep" / "page.html").exists()


# -- reading -----------------------------------------------------------------------------------------------------------


def test_what_is_loaded_is_like_the_live_result(tmp_path):
    r = run(3, methods=["saliency", "grad_cam", lambda x, target: 1 / 0]).describe(names=["a", "b", "c"])
    found = cs.load(r.save(tmp_path))
    for row in (*r.methods, "mean", "var", "median", "rank", "uniform", "weighted", "consensus"):
        torch.testing.assert_close(found[row], r[row].float(), equal_nan=True)
    torch.testing.assert_close(found.attribution, r.attribution.float())
    torch.testing.assert_close(found.maps, r.maps.float(), equal_nan=True)
    torch.testing.assert_close(found.weights, r.weights)
    torch.testing.assert_close(found.target, r.target)
    assert r.failed and found.failed == r.failed and found.methods == r.methods and found.warnings == r.warnings
    assert found.tokens is None and found.feature_names is None and found.reasons == r.reasons
    assert found.record(1) == json.loads(json.dumps(r.record(1)))
    for stream in ("fit", "fresh"):
        for one, live in zip(found.evidence[stream], r.evidence[stream], strict=True):
            torch.testing.assert_close(one.quadratic.draws, live.quadratic.draws, equal_nan=True)
            torch.testing.assert_close(one.responses.y, live.responses.y)


def parts(value, path=""):
    """Every tensor, number and word in a result, by its place."""
    if isinstance(value, torch.Tensor):
        return {path: value}
    if dataclasses.is_dataclass(value):
        return {
            k: v
            for f in dataclasses.fields(value)
            for k, v in parts(getattr(value, f.name), f"{path}.{f.name}").items()
        }
    if isinstance(value, dict):
        return {k: v for name, each in value.items() for k, v in parts(each, f"{path}[{name}]").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, each in enumerate(value) for k, v in parts(each, f"{path}[{i}]").items()}
    return {path: value}


def same(one, other, skip):
    """Equal in every field but ``skip``; tensors in value, whatever their precision."""
    a, b = ({k: v for k, v in parts(each).items() if not k.startswith(skip)} for each in (one, other))
    assert a.keys() == b.keys()
    for place, value in a.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(
                b[place].double(), value.double(), rtol=1e-6, atol=1e-7, equal_nan=True, msg=place
            )
        else:
            assert b[place] == value or (value != value and b[place] != b[place]), place


@pytest.mark.parametrize("options", [
    {"objective": "opt"}, {"objective": "robust", "resolved_draws": 2}, {"objective": "median"}, {"objective": "mean"},
    {"objective": "weighted"}, {"objective": "faith", "signed": True}, {"objective": "robust + 0.5*infidelity"},
    {"objective": cs.AverageSensitivity(0.2) + cs.Infidelity()}, {"weights": [0.5, 0.5]}, {"pooled": True},
    {"objective": "opt", "pooled": True}, {"fit_draws": None},
], ids=str)  # fmt: skip
def test_every_field_comes_back_and_is_saved_again_as_it_was(tmp_path, options):
    """Of every objective: the class is the same, the fields are, and what is written again is the same, byte for byte."""
    r = run(3, **options).describe(labels=list("abcd"), model="m")
    found = cs.load(r.save(tmp_path / "one"))
    assert type(found) is type(r) is cs.Explanation
    same(r, found, (".about", ".stored", ".counts.watch", ".go_on"))
    assert found.evidence["fit"][0].quadratic.draws.equal(r.evidence["fit"][0].quadratic.draws)
    assert found.draws == r.draws and found.settings == r.settings and found.seconds == r.seconds
    assert str(found) == str(r) and found.inputs.equal(r.inputs)
    for name in ("diversity_gain", "incompatibility"):
        torch.testing.assert_close(getattr(found, name), getattr(r, name), equal_nan=True)
    if r.settings["scale"] != "none":
        assert found.hoeffding() == r.hoeffding()
    assert tree(found.save(tmp_path / "two")) == tree(tmp_path / "one")
    assert found.records == json.loads(json.dumps(r.records))


def test_inputs_that_were_left_out_and_methods_that_failed_come_back(tmp_path):
    x = images(4).float().double()
    x[1] = torch.nan
    r = cs.explain(Small(), x, methods=["saliency", lambda x, target: 1 / 0], objective="mean", **FEW)
    found = cs.load(r.save(tmp_path))
    assert found.index == r.index == (0, 2, 3)
    assert len(found) == 3 and found.reasons == r.reasons and found.failed == r.failed and str(found) == str(r)
    torch.testing.assert_close(found.maps[:, 1], torch.full_like(found.maps[:, 1], torch.nan), equal_nan=True)


def test_a_loaded_result_can_be_described(tmp_path):
    found = cs.load(run(2).save(tmp_path / "run"))
    assert found.record(0)["model"] is None and "model" in found.record(0)["reasons"]
    found.describe(model="m", labels=list("abcd"), names=["x", "y"])
    record = cs.load(found.save(tmp_path / "again")).record(1)
    assert record["model"] == "m" and record["predicted_label"] in "abcd" and record["input"]["name"] == "y"
    assert not {"model", "target_label"} & record["reasons"].keys()


def test_inputs_of_different_shapes_are_no_one_result(tmp_path, saved):
    write(tmp_path, saved)
    place = tmp_path / "001" / "attributions.safetensors"
    arrays = load_file(place)
    cut = {name: a[..., :4].copy() if name in ("maps", "attribution") or name.startswith("extra.") else a
           for name, a in arrays.items() if name not in ("inputs", "uniform")}  # fmt: skip
    save_file(cut, place)
    with pytest.raises(cs.InputError, match="001: .*another shape.*load each folder by itself"):
        cs.load(tmp_path)
    assert [cs.load(tmp_path / name).attribution.shape for name in ("000", "001")] == [(1, 8, 8), (1, 8, 4)]


# -- files of earlier versions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run_schema_1", "run_schema_1_median"])
def test_a_run_of_an_earlier_version_is_read(tmp_path, name):
    """Made by version 0.1, with Explanation.save: two inputs, one left out; it kept no inputs and no mixture."""
    folder = Path(__file__).parent / "data" / name
    found = cs.load(folder)
    assert isinstance(found, cs.Explanation) and len(found) == 2 and found.inputs is None
    records = [json.loads((folder / f"00{i}" / "explanation.json").read_text(encoding="utf-8")) for i in range(2)]
    assert found.records == records
    torch.testing.assert_close(found.diversity_gain, torch.tensor([r["diversity_gain"] for r in records]).double())
    mixed = (found.maps.nan_to_num() * found.weights[:, :, None].float()).sum(1)
    torch.testing.assert_close(found.attribution, mixed if name == "run_schema_1" else found["median"])
    again = cs.load(found.save(tmp_path / "again"))
    assert str(again) == str(found) and "saliency" in str(found) and again.records == records
    same(found, again, (".about", ".stored"))
    assert found.report(tmp_path / "page.html").stat().st_size > 10_000


def test_an_evaluation_of_an_earlier_version_is_read(tmp_path):
    found = cs.load(Path(__file__).parent / "data" / "evaluation_schema_1.json")
    assert len(found) == 2 and found.left_out and "gini_sparseness" in str(found)
    again = cs.load(found.save(tmp_path / "e.json"))
    assert again.to_dict() == found.to_dict()


# -- long runs ---------------------------------------------------------------------------------------------------------


def test_printing_saving_and_reporting_cost_as_much_for_each_input(tmp_path, monkeypatch):
    """The statistics of the whole batch are made once, and each input's record a fixed number of times."""
    counts = {}

    def counted(name, real):
        def call(*args, **kwargs):
            counts[name] = counts.get(name, 0) + 1
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(Quadratic, "clean", counted("clean", Quadratic.clean))
    monkeypatch.setattr(explanation, "record_of", counted("record", explanation.record_of))
    for act in (
        str,
        lambda r: r.save(tmp_path / "run"),
        lambda r: r.report(tmp_path / "page.html"),
        lambda r: r.plot(0),
    ):
        cost = []
        for size in (2, 4, 8):
            r = run(size)
            counts.clear()
            act(r)
            cost.append((counts.get("clean", 0) / size, counts["record"] / (1 if act.__name__ == "plot" else size)))
        # Each of the two quadratic parts of the evidence, neighbours and contrast.
        assert cost[1][0] <= cost[0][0] <= 2 and cost[2][0] <= 2
        assert max(records for _, records in cost) <= 3


@pytest.mark.parametrize("where", ["live", "loaded"])
def test_a_number_is_no_row(tmp_path, where):
    r = run(2) if where == "live" else cs.load(run(2).save(tmp_path))
    for wrong in (lambda: r[0], lambda: r[-1], lambda: list(r)):
        with pytest.raises(cs.InputError, match=r"r\.attribution\[i\].*r\.record\(i\)"):
            wrong()
    with pytest.raises(cs.InputError, match="did you mean 'saliency'"):
        r["salience"]
    with pytest.raises(cs.InputError, match="known: .*saliency.*consensus"):
        r["?"]


def with_content(content):
    return lambda place: place.write_bytes(content)


def with_fields(**values):
    return lambda place: place.write_text(json.dumps(json.loads(place.read_text()) | values))


def without(name):
    """A record without a field, or a file of arrays without one of them."""

    def change(place):
        if place.suffix == ".json":
            place.write_text(json.dumps({k: v for k, v in json.loads(place.read_text()).items() if k != name}))
        else:
            save_file({k: v for k, v in load_file(place).items() if k != name}, place)

    return change


RECORD, ARRAYS, RUN = "001/explanation.json", "001/attributions.safetensors", "run.json"
DAMAGE = [
    *((path, with_content(content)) for path in (RECORD, ARRAYS, RUN)
      for content in (b"", b"[]", b"3", b"{}", b'{"schema":1}', b"\xff\xfe", b"[" * 100_000)),
    *((RECORD, without(key)) for key in ("schema", "methods", "target")),
    *((RECORD, with_fields(**{key: value})) for key, value in {
        "schema": 2, "methods": 3, "target": "cat", "weights": 1.0, "criteria": [1], "failed": 3, "input": 4,
    }.items()),
    *((ARRAYS, without(name)) for name in ("maps", "attribution", "weights")),
    (ARRAYS, lambda place: save_file({"other": np.zeros(3)}, place)),
    (ARRAYS, lambda place: save_file(load_file(place) | {"maps": np.zeros((1, 8, 8))}, place)),
    *((RUN, with_fields(**{key: value})) for key, value in (("folders", []), ("folders", [1]), ("left_out", []))),
]  # fmt: skip


@pytest.mark.parametrize("path, change", DAMAGE)
def test_a_damaged_file_is_named(tmp_path, saved, path, change):
    place = write(tmp_path, saved) / path
    change(place)
    with pytest.raises(cs.InputError, match=rf"{place}: (damaged|lists no input)"):
        cs.load(tmp_path)


def test_what_is_no_folder_of_a_run_is_named(tmp_path, saved):
    write(tmp_path, saved)
    for path in (tmp_path / "run.json", tmp_path / "000" / "explanation.json"):
        with pytest.raises(cs.InputError, match=f"{path}: not an evaluation"):
            cs.load(path)
    with pytest.raises(cs.InputError, match="none/explanation.json: no such file; expected a folder"):
        cs.load(tmp_path / "none")
    (tmp_path / "000" / "attributions.safetensors").unlink()
    with pytest.raises(cs.InputError, match="000/attributions.safetensors: no such file"):
        cs.load(tmp_path)
    (tmp_path / "run.json").unlink()
    (tmp_path / "run.json").mkdir()
    with pytest.raises(cs.InputError, match=r"run\.json: damaged"):
        cs.load(tmp_path)


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["columns", "describe"])
def test_the_names_of_columns_are_shown_stored_and_loaded(tmp_path, how):
    pytest.importorskip("matplotlib")
    r = table(features=cs.Columns(NAMES)) if how == "columns" else table().describe(features=NAMES)
    found = cs.load(r.save(tmp_path / "run"))
    for each in (r, found):
        assert each.feature_names == NAMES and each.record(1)["input"]["features"] == NAMES
        labels = [label.get_text() for axes in each.plot(1).axes for label in axes.get_yticklabels()]
        assert sorted(labels) == sorted(NAMES)
        page = each.report(tmp_path / "page.html").read_text()
        assert ">&lt;b&gt;pay&lt;/b&gt;</th>" in page and "<b>pay" not in page and "feature 1" not in page


def test_a_lock_that_holds_nothing_is_taken_over(tmp_path):
    """Its writer was killed between creating it and writing its few bytes."""
    path = tmp_path / ".lock"
    path.touch()
    os.utime(path, (time.time() - 10, time.time() - 10))
    with Lock(path, tmp_path):
        assert path.stat().st_size > 0
    assert not path.exists()
    path.write_text("somebody's own file")
    os.utime(path, (time.time() - 10, time.time() - 10))
    with pytest.raises(cs.InputError, match="another process writes"), Lock(path, tmp_path):
        pass
