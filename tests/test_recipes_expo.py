"""recipes/expo.py runs: a few steps of each objective, resumed exactly, and the page it leaves."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))
pytestmark = pytest.mark.slow
FEW = "--preset diabetes --accelerator cpu --quiet --test-rows 6 --probe-rows 2 --examples 1".split()


@pytest.fixture(scope="module")
def expo():
    import expo

    expo.PRESETS["diabetes"] = replace(expo.PRESETS["diabetes"], width=12, every=2)
    return expo


def states(*folders):
    return [torch.load(folder / "finished.ckpt", weights_only=True)["state_dict"] for folder in folders]


def test_expo_trains_compares_and_shows(expo, tmp_path):
    expo.main([*FEW, "--out", str(tmp_path), "--steps", "6"])
    result = json.loads((tmp_path / "results.json").read_text())
    metrics = {"MSE"} | {f"{name}-{short}" for name in ("LIME", "LIME-x", "MAPLE") for short in ("PF", "NF", "S")}
    assert {(row["objective"], row["metric"]) for row in result["rows"]} == {
        (name, metric) for name in expo.OBJECTIVES for metric in metrics
    }
    assert all(row["value"] >= 0 and row["n"] == (110 if row["metric"] == "MSE" else 6) for row in result["rows"])
    html = (tmp_path / "index.html").read_text()
    assert all(title in html for title in expo.TITLES.values()) and "http:" not in html and "https:" not in html
    assert "This run: seed 0, local models at 6 test rows at most, 6 training steps at most." in html
    for name in expo.OBJECTIVES:
        head = (tmp_path / name / "logs/version_0/metrics.csv").read_text().splitlines()[0].split(",")
        assert {"train/loss", "train/task", "val/loss", "val/task", "probe/LIME-NF", "probe/LIME-S"} <= set(head)
        assert (f"train/{name}" in head) == ("train/weight" in head) == (name != "none")
        assert list((tmp_path / name / "tensorboard").rglob("events*"))
    before = (tmp_path / "fidelity/finished.ckpt").stat().st_mtime
    expo.main([*FEW, "--out", str(tmp_path), "--steps", "6"])
    assert (tmp_path / "fidelity/finished.ckpt").stat().st_mtime == before, "what is finished is not trained again"


@pytest.mark.parametrize("name", ["fidelity", "fidelity_1d"])
def test_expo_goes_on_exactly_where_it_stopped(expo, tmp_path, name):
    few = [*FEW, "--steps", "8", "--objectives", name]
    expo.main([*few, "--out", str(tmp_path / "whole")])
    expo.main([*few, "--out", str(tmp_path / "parts"), "--epochs", "2"])
    assert not (tmp_path / "parts" / name / "finished.ckpt").exists()
    torch.rand(7)  # the global random state must not matter
    expo.main([*few, "--out", str(tmp_path / "parts")])
    whole, parts = states(tmp_path / "whole" / name, tmp_path / "parts" / name)
    assert whole["regulariser.step"] > 4, "the best epoch is not before the interruption"
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())


def test_expo_stops_early_at_the_best_validation(expo, tmp_path):
    expo.PRESETS["diabetes"], kept = (
        replace(expo.PRESETS["diabetes"], lr=0.0, patience=2, steps=40),
        expo.PRESETS["diabetes"],
    )
    try:
        expo.main([*FEW, "--objectives", "none", "fidelity", "--out", str(tmp_path)])
    finally:
        expo.PRESETS["diabetes"] = kept
    (state,) = states(tmp_path / "fidelity")
    assert state["regulariser.step"] == 2, "the best of validations that are all alike is the first"


@pytest.mark.parametrize("name", ["autompg", "day", "winequality-red", "support2"])
def test_expo_presets_take_a_step(expo, name):
    preset, g = expo.PRESETS[name], torch.Generator().manual_seed(0)
    classes = ("no", "yes") if name == "support2" else ()
    x = torch.randn(20, 5, generator=g)
    y = torch.randint(2, (20,), generator=g) if classes else torch.randn(20, generator=g)
    part = expo.Part(x, y, torch.arange(20))
    data = expo.Data(name, part, part, part, classes)
    for kind in expo.OBJECTIVES:
        model = expo.network(preset, data, 0)
        assert model(x).shape == (20, len(classes) or 1)
        assert sum(isinstance(m, torch.nn.LeakyReLU) for m in model) == preset.layers
        extra = expo.regulariser(preset, kind, model, part, 0)
        loss, parts = expo.losses(preset, model, extra, x, y, part.ids)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        if extra is not None:
            c = preset.fidelity if kind == "fidelity" else preset.fidelity_1d
            assert extra.step == 1 and extra.training
            torch.testing.assert_close(loss.detach(), parts["task"] + parts["weight"] * parts[kind])
            with torch.no_grad():  # the first weight makes the regulariser c times the task loss
                extra.step.zero_()
                order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
                again = extra(model, x[order], y[order], part.ids[order])
            torch.testing.assert_close(again.total, c * expo_task(expo, model, part))
            step = extra.step.clone()
            first, second = (expo.validation(preset, model, extra, part) for _ in range(2))
            assert torch.equal(first["loss"], second["loss"]) and torch.equal(extra.step, step)


def expo_task(expo, model, part):
    import expo_presets

    return expo_presets.task(model(part.x), part.y).detach()
