"""The recipes run: a few steps of each, resumed exactly, and the page they leave."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))
pytestmark = pytest.mark.slow
FEW = "--preset digits --accelerator cpu --quiet --attack-images 6 --probe-images 2 --examples 2".split()


@pytest.fixture(scope="module")
def rar():
    import rar

    preset = rar.PRESETS["digits"]
    attack = replace(preset.attack, steps=2, points=4, attack_points=2, restarts=1)
    rar.PRESETS["digits"] = replace(
        preset, attack=attack, steps=2, points=3, attack_points=2, pgd=(2, 0.05), train_images=250
    )
    return rar


def test_rar_trains_compares_and_shows(rar, tmp_path):
    rar.main([*FEW, "--out", str(tmp_path), "--steps", "6"])
    result = json.loads((tmp_path / "results.json").read_text())
    assert {(row["objective"], row["metric"]) for row in result["rows"]} >= {
        (name, metric) for name in rar.OBJECTIVES for metric in ("NA", "AA", "IN", "CO", "IN common")
    }
    html = (tmp_path / "index.html").read_text()
    assert all(title in html for title in rar.TITLES.values()) and "http:" not in html and "https:" not in html
    assert "This run: seed 0, 6 training steps, 6 test images." in html, "the page says what the command line changed"
    for name in rar.OBJECTIVES:
        head = (tmp_path / name / "logs/version_0/metrics.csv").read_text().splitlines()[0].split(",")
        assert {"train/loss", "train/task", "val/loss", "val/accuracy", "probe/NA"} <= set(head)
        assert ("train/ig_norm" in head) == name.startswith("ig")
        assert list((tmp_path / name / "tensorboard").rglob("events*"))
    state = torch.load(tmp_path / "ig_norm/finished.ckpt", weights_only=True)["state_dict"]
    assert state["objective.step"] == 6
    finished = (tmp_path / "madry/finished.ckpt").stat().st_mtime
    rar.main([*FEW, "--out", str(tmp_path), "--steps", "6"])
    assert (tmp_path / "madry/finished.ckpt").stat().st_mtime == finished, "what is finished is not trained again"


@pytest.mark.parametrize("name", ["madry", "ig_sum_norm"])
def test_rar_goes_on_exactly_where_it_stopped(rar, tmp_path, name):
    few = [*FEW, "--steps", "9", "--objectives", name]
    rar.main([*few, "--out", str(tmp_path / "whole")])
    rar.main([*few, "--out", str(tmp_path / "parts"), "--epochs", "1"])
    assert not (tmp_path / "parts" / name / "finished.ckpt").exists()
    torch.rand(7)  # the global random state must not matter
    rar.main([*few, "--out", str(tmp_path / "parts")])
    whole, parts = (
        torch.load(tmp_path / folder / name / "finished.ckpt", weights_only=True)["state_dict"]
        for folder in ("whole", "parts")
    )
    assert whole["objective.step"] == 9
    assert all(torch.equal(value, parts[key]) or value.isnan().all() for key, value in whole.items())


def test_rar_stops_early_at_the_best_epoch(rar, tmp_path):
    preset = replace(rar.PRESETS["digits"], lr=0.0, train_steps=30, natural_steps=30, one_cycle=False)
    options = rar.argparse.Namespace(
        out=str(tmp_path), seed=0, epochs=None, patience=2, accelerator="cpu", devices="auto", strategy="auto",
        precision="32-true", max_batch=256, probe_images=2, quiet=True,
    )  # fmt: skip
    data = rar.load("digits")
    training = rar.fit(preset, "natural", data, options)
    assert training is not None and training.objective.step == 3, "the best of epochs that are all alike is the first"


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "gtsrb", "flowers17", "fashion_mnist_small"])
def test_rar_presets_take_a_step(rar, name):
    """Networks fit their data's shape and the two IG losses differentiate; fewer steps and points, for speed."""
    preset = replace(rar.PRESETS[name], steps=1, points=2, attack_points=1)
    shape = {"gtsrb": (3, 32, 32), "flowers17": (3, 128, 128)}.get(name, (1, 28, 28))
    classes = {"gtsrb": 43, "flowers17": 17}.get(name, 10)
    x, y = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0, classes - 1])
    for kind in rar.OBJECTIVES:
        model = rar.network(preset, classes, 0)
        assert model(x).shape == (2, classes)
        made, rate = rar.optimisers(preset, kind, list(model.parameters()))
        before = [p.detach().clone() for p in model.parameters()]
        loss = rar.objective(preset, kind, 0, 64)(model, x, y)
        loss.total.backward()
        made.step()
        rate.step()
        assert loss.total.isfinite()
        assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_rar_networks_are_functions_of_the_seed(rar):
    state = torch.get_rng_state()
    one, two, other = (rar.network(rar.PRESETS["digits"], 10, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[key], two[key]) for key in one) and not torch.equal(one["0.weight"], other["0.weight"])
