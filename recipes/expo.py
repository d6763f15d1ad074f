"""Train a network for tables whose local explanations hold, three ways, and compare them on one page.

    python recipes/expo.py --preset diabetes --out out/expo
    python recipes/expo.py --preset housing --data DIR --out out/expo-housing
    python recipes/expo.py --preset support2 --data DIR --out out/expo-support2 --accelerator gpu

No regulariser, Fidelity and 1D-Fidelity (Plumb et al. 2020, arXiv 1902.06787), one after the other on the same split from the
same first weights. Presets are in expo_presets.py; they say what is published and what is ours. Meant to be copied: change
the network, the data, or the regulariser in ``Training`` below.

Below ``--out``, for each objective: checkpoints, ``metrics.csv`` and TensorBoard logs (the loss and its parts; at each
validation the same, and the fidelity and stability of LIME's local models of a few rows); at last ``results.json`` and
``index.html``. Start the same command again to go on where it stopped: epochs are resumed exactly, since the order of the
rows and the draws are functions of the seed, the epoch and the step. Needs the extras ``train`` and ``tables``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from expo_page import page
from expo_presets import OBJECTIVES, PRESETS, TITLES, Preset, losses, network, regulariser, validation
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from consilience.data.sets import Data, Part, load
from consilience.measures.local_models import LocalModels
from consilience.model.score import Score
from consilience.perturb.points import Points
from consilience.statistics.keys import Key

Batch = tuple[Tensor, Tensor, Tensor]


def question(model: torch.nn.Module, part: Part) -> tuple[Score, Points]:
    """The output that is explained: the only one, or the logit of the second class."""
    classes = not part.y.is_floating_point()
    kind = "logit" if classes else "output"
    score = Score(model, 1 if classes else None, kind=kind, ids=part.ids, max_batch=1024).at(part.x)
    return score, Points(part.x, torch.arange(len(part), device=part.x.device), part.ids, len(part))


class Training(L.LightningModule):
    """A network trained with one objective, whose draws are keyed by row and step; its step is part of the checkpoint.

    Args:
        preset: the experiment.
        name: of the objective.
        data: the table.
        seed: names the first weights and the draws.
        probe: how many validation rows are explained at each validation.
    """

    def __init__(self, preset: Preset, name: str, data: Data, seed: int, probe: int):
        super().__init__()
        self.preset = preset
        self.data = data
        self.probe = data.validation[:probe]
        self.model = network(preset, data, seed)
        self.regulariser = regulariser(preset, name, self.model, data.train, seed)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        loss, parts = losses(self.preset, self.model, self.regulariser, *batch)
        self.log_dict(
            {f"train/{part}": value for part, value in parts.items()}, on_epoch=True, on_step=False, sync_dist=True
        )
        self.log("train/loss", loss, on_epoch=True, on_step=False, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        values = validation(self.preset, self.model, self.regulariser, Part(*batch))
        self.log_dict({f"val/{part}": value for part, value in values.items()}, sync_dist=True, prog_bar=True)
        if not self.trainer.sanity_checking and len(self.probe):
            table = self.data.train.x.to(self.device)
            local = LocalModels(table, n_samples=300, around="x")
            quality = local(*question(self.model, to(self.probe, self.device)), Key(0, "probe"))
            self.log("probe/LIME-NF", quality.neighbourhood.mean().float(), rank_zero_only=True)
            self.log("probe/LIME-S", quality.stability.mean().float(), rank_zero_only=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.model.parameters(), self.preset.lr)


class Order(DistributedSampler):
    """Rows in an order that is a function of the seed and the steps taken. Lightning's own count of epochs may skip one when
    it resumes."""

    def __init__(self, part: Part, batch: int, trainer: L.Trainer, seed: int):
        super().__init__(part.ids, trainer.world_size, trainer.global_rank, True, seed)
        self.trainer = trainer
        self.batches = math.ceil(len(self) / batch)

    def __iter__(self) -> Iterator[int]:
        self.epoch = self.trainer.global_step // self.batches
        return super().__iter__()


class StopAt(Callback):
    """End after a number of epochs, leaving a checkpoint to go on from (--epochs)."""

    def __init__(self, epochs: int | None):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or trainer.current_epoch + 1 == self.epochs


def fit(preset: Preset, name: str, data: Data, options: argparse.Namespace) -> Training | None:
    """Train, or go on, or load what is finished; None when stopped early by --epochs."""
    folder = Path(options.out) / name
    training = Training(preset, name, data, options.seed, options.probe_rows)
    finished = folder / "finished.ckpt"
    if not finished.exists():
        batches = math.ceil(len(data.train) / preset.batch)
        best = ModelCheckpoint(
            folder,
            "best",
            monitor="val/loss",
            save_last=True,
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )
        early = EarlyStopping("val/loss", patience=preset.patience, check_on_train_epoch_end=False)
        trainer = L.Trainer(
            accelerator=options.accelerator, devices=options.devices, strategy=options.strategy, precision=options.precision,
            max_steps=preset.steps, max_epochs=-1, check_val_every_n_epoch=math.ceil(preset.every / batches),
            callbacks=[best, early, StopAt(options.epochs)], use_distributed_sampler=False,
            logger=[CSVLogger(folder, "logs"), TensorBoardLogger(folder, "tensorboard", 0)], log_every_n_steps=1,
            inference_mode=False, enable_progress_bar=not options.quiet, enable_model_summary=False,
        )  # fmt: skip
        part = data.train
        held = data.validation
        sampler = Order(part, preset.batch, trainer, options.seed)
        rows = DataLoader(TensorDataset(part.x, part.y, part.ids), preset.batch, sampler=sampler)
        check = DataLoader(TensorDataset(held.x, held.y, held.ids), len(held))
        last = folder / "last.ckpt"
        trainer.fit(training, rows, check, ckpt_path=str(last) if last.exists() else None)
        if trainer.global_step < preset.steps and not early.stopped_epoch:
            return None
        # One process names the checkpoint; the others wait before they load it.
        if trainer.is_global_zero:
            chosen = Path(best.best_model_path) if best.best_model_path else last
            chosen.replace(finished)
        trainer.strategy.barrier()
    training.load_state_dict(torch.load(finished, map_location="cpu", weights_only=True)["state_dict"])
    return training.eval()


def to(part: Part, device: torch.device | str) -> Part:
    """The rows on a device."""
    return Part(part.x.to(device), part.y.to(device), part.ids.to(device))


def compare(preset: Preset, trained: dict[str, Training], data: Data, options: argparse.Namespace) -> None:
    """The error on all test rows, local models of some of them; results.json, index.html."""
    part = data.test[: options.test_rows]
    local = {
        "LIME": LocalModels(data.train.x),
        "LIME-x": LocalModels(data.train.x, around="x"),
        "MAPLE": LocalModels(data.train.x, "maple", validation=data.validation.x),
    }
    key = Key(options.seed, "test")
    rows: list[dict[str, Any]] = []
    slopes = {}

    def add(name: str, metric: str, values: Tensor) -> None:
        mean = float(values.double().mean())
        error = float(values.double().std() / len(values) ** 0.5)
        rows.append({"objective": name, "metric": metric, "value": mean, "stderr": error, "n": len(values)})

    for name, training in trained.items():
        model = training.model.cpu()
        y = data.test.y
        with torch.no_grad():
            outputs = model(data.test.x)
        if data.classes:
            add(name, "accuracy", (outputs.argmax(1) == y).double())
        else:
            add(name, "MSE", (outputs[:, 0] - y) ** 2)
        score, points = question(model, part)
        for short, models in local.items():
            quality = models(score, points, key)
            add(name, f"{short}-PF", quality.point)
            add(name, f"{short}-NF", quality.neighbourhood)
            add(name, f"{short}-S", quality.stability)
        # Without the intercept, which comes first.
        slopes[name] = local["LIME-x"].coefficients(score, points[: options.examples], key)[:, 1:].tolist()
    out = Path(options.out)
    result = {"preset": options.preset, "about": preset.about, "notes": data.notes, "rows": rows}
    (out / "results.json").write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
    logs = {
        name: sorted((out / name / "logs").glob("**/metrics.csv"), key=lambda file: file.stat().st_mtime)
        for name in trained
    }
    values = part.x[: options.examples].tolist()
    html = page(
        f"Local explanations: {options.preset}", preset.about, TITLES, rows, logs, data.features, values, slopes
    )
    (out / "index.html").write_text(html, encoding="utf-8")
    print(f"{out / 'index.html'}: error, fidelity and stability of {', '.join(TITLES[name] for name in trained)}")


def changes(options: argparse.Namespace) -> str:
    """What the command line changed of the preset, for the page."""
    changed = [f"seed {options.seed}", f"local models at {options.test_rows} test rows at most"]
    if options.steps:
        changed.append(f"{options.steps} training steps at most")
    if options.precision != "32-true":
        changed.append(f"precision {options.precision}")
    return f" This run: {', '.join(changed)}."


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(PRESETS), default="diabetes")
    parser.add_argument("--data", help="the folder that holds the table's file")
    parser.add_argument("--out", required=True)
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--seed", type=int, default=0, help="of the split, the first weights and the draws")
    parser.add_argument("--epochs", type=int, help="stop there; the same command without it goes on")
    parser.add_argument("--steps", type=int, help="of training at most, in place of the preset's")
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--devices", default="auto")
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--precision", default="32-true", help="e.g. bf16-mixed")
    parser.add_argument("--probe-rows", type=int, default=16, help="validation rows explained at each validation")
    parser.add_argument("--test-rows", type=int, default=100, help="test rows explained at the end")
    parser.add_argument("--examples", type=int, default=3, help="test rows whose explanations are shown")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)
    preset = PRESETS[options.preset]
    if options.steps:
        preset = replace(preset, steps=options.steps)
    preset = replace(preset, about=preset.about + changes(options))
    print(f"{options.preset}. {preset.about}")
    data = load(preset.data, options.data, seed=options.seed)
    trained = {name: fit(preset, name, data, options) for name in options.objectives}
    finished = {name: training for name, training in trained.items() if training is not None}
    if len(finished) < len(trained):
        print(f"stopped after {options.epochs} epochs; the same command without --epochs goes on")
    elif is_first_process():
        compare(preset, finished, data, options)


def is_first_process() -> bool:
    """Whether this is the process that writes the page, of several that trained together."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


if __name__ == "__main__":
    main()
