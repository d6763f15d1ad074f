"""Results on disk: what is saved comes back, two runs are never mixed, and a damaged file is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import Small, images
from safetensors.numpy import load_file, save_file
from torch import nn

import consilience as cs
from consilience.results import files

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


@pytest.mark.parametrize("place", range(7))
def test_a_run_saved_over_another_is_whole_or_none(tmp_path, monkeypatch, place):
    """Interrupted at any of its writes: nothing loads as a run, and a folder with a record has that record's arrays."""
    before, after = run(4), run(3, seed=1)
    before.save(tmp_path)
    calls, write_text, write_bytes = [], files.write_text, Path.write_bytes

    def interrupted(how):
        def write(path, *content):
            calls.append(path)
            if len(calls) > place:
                raise KeyboardInterrupt
            return how(path, *content)

        return write

    monkeypatch.setattr(files, "write_text", interrupted(write_text))
    monkeypatch.setattr(Path, "write_bytes", interrupted(write_bytes))
    with pytest.raises(KeyboardInterrupt):
        after.save(tmp_path)
    monkeypatch.undo()
    with pytest.raises(cs.InputError, match="no such file"):
        cs.load(tmp_path)
    complete = [path.parent for path in sorted(tmp_path.glob("*/explanation.json"))]
    assert len(complete) == place // 2
    for i, folder in enumerate(complete):
        one = cs.load(folder)
        assert one.record(0)["seed"] == 1
        torch.testing.assert_close(one.weights[0], after.weights[i])


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
        for one, live in zip(found.evidence(stream), r.evidence[stream], strict=True):
            torch.testing.assert_close(one.quadratic.draws, live.quadratic.draws, equal_nan=True)
            torch.testing.assert_close(one.responses.y, live.responses.y)


def test_inputs_of_different_shapes_load_as_a_list(tmp_path, saved):
    write(tmp_path, saved)
    place = tmp_path / "001" / "attributions.safetensors"
    arrays = load_file(place)
    cut = {name: a[..., :4].copy() if name in ("maps", "attribution") or name.startswith("extra.") else a
           for name, a in arrays.items()}  # fmt: skip
    save_file(cut, place)
    found = cs.load(tmp_path)
    for each in (found.attribution, found["saliency"], found["mean"]):
        assert [tuple(a.shape) for a in each] == [(8, 8), (8, 4)]
    assert [a.shape[0] for a in found.maps] == [2, 2] and found.weights.shape == (2, 2)


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
        assert (
            '<th scope="row">&lt;b&gt;pay&lt;/b&gt;</th>' in page and "<b>pay" not in page and "feature 1" not in page
        )
