"""Train a classifier whose attributions withstand attacks, in four ways, and compare them on one page.

    python recipes/rar.py --preset digits --out out/rar
    python recipes/rar.py --preset fashion_mnist_small --data DIR --out out/rar-fashion
    python recipes/rar.py --preset mnist --data DIR --download --out out/rar-mnist --accelerator gpu --devices 4

Natural training, Madry's adversarial training, IG-NORM and IG-SUM-NORM (Chen et al. 2019, arXiv 1905.09957), one after the
other on the same data from the same first weights. Presets are in rar_presets.py; they say what is published and what was
scaled. Meant to be copied: change the network, the data, or the objective in ``fit`` below.

Below ``--out``, for each objective: checkpoints, ``metrics.csv`` and TensorBoard logs (the loss and its parts, validation
accuracy, and each epoch NA, AA, IN, CO of a few validation images under a short attack); at last ``results.json``, the
attacked maps, and ``index.html``. Start the same command again to go on where it stopped: epochs are resumed exactly, since
the order of the images, the attacks' starts and the rate are functions of the seed and the step. Needs the extra ``train``.
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
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from rar_page import page
from rar_presets import OBJECTIVES, PRESETS, TITLES, Preset, network, objective, optimisers, training_steps
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from consilience.attacks.robustness import attribution_robustness, averages, common
from consilience.data.sets import Data, Part, load
from consilience.statistics.keys import Key

Batch = tuple[Tensor, Tensor, Tensor]


class Training(L.LightningModule):
    """A network trained with one objective, whose draws are keyed by image and step; its step is part of the checkpoint.

    Args:
        preset: the experiment.
        name: of the objective.
        classes: how many the data has.
        seed: names the first weights and the draws.
        max_batch: rows in flight.
        probe: a few validation images, which are attacked after each epoch.
    """

    def __init__(self, preset: Preset, name: str, classes: int, seed: int, max_batch: int, probe: Part):
        super().__init__()
        self.preset = preset
        self.name = name
        self.probe = probe
        self.model = network(preset, classes, seed)
        self.objective = objective(preset, name, seed, max_batch)
        # A short attack: it is made after every epoch.
        self.attack = replace(preset.attack, steps=min(10, preset.attack.steps), restarts=1, points=16, attack_points=8)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        x, y, ids = batch
        loss = self.objective(self.model, x, y, ids)
        self.log_dict(
            {f"train/{part}": value for part, value in loss.parts.items()}, on_epoch=True, on_step=False, sync_dist=True
        )
        self.log("train/loss", loss.total, on_epoch=True, on_step=False, prog_bar=True, sync_dist=True)
        return loss.total

    def validation_step(self, batch: Batch, _: int) -> None:
        """The objective on images that it has not seen, by which training is stopped early; its step does not move here."""
        x, y, ids = batch
        loss = self.objective(self.model, x, y, ids)
        correct = (self.model(x).argmax(1) == y).float().mean()
        # Lightning averages over batches with these weights: sums over images are added up, not averaged.
        count = len(x) if self.objective.reduction == "mean" else 1
        self.log("val/loss", loss.total, batch_size=count, prog_bar=True, sync_dist=True)
        self.log("val/accuracy", correct, batch_size=len(x), prog_bar=True, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        probe = to(self.probe, self.device)
        steps, size = self.preset.judging_pgd
        robustness = attribution_robustness(
            self.model,
            probe.x,
            probe.y,
            self.attack,
            pgd_steps=steps,
            pgd_step_size=size,
            k=self.preset.k,
            ids=probe.ids,
        )
        for metric, (mean, _, count) in averages(robustness).items():
            if count:
                self.log(f"probe/{metric}", mean, rank_zero_only=True)

    def configure_optimizers(self) -> Any:
        optimiser, rate = optimisers(self.preset, self.name, list(self.model.parameters()))
        return [optimiser], [{"scheduler": rate, "interval": "step"}]


class Shuffled(DistributedSampler):
    """Images in an order that is a function of the seed and of the objective's step.

    Lightning numbers an epoch that follows a checkpoint otherwise than the same epoch of an uninterrupted run.
    """

    def __init__(self, part: Part, batch: int, seed: int, training: Training, trainer: L.Trainer):
        super().__init__(part.ids, trainer.world_size, trainer.global_rank, True, seed)  # type: ignore[arg-type]
        self.training = training
        self.batches = math.ceil(self.num_samples / batch)

    def __iter__(self) -> Iterator:
        self.set_epoch(int(self.training.objective.step) // self.batches)
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
    part = data.train[: preset.train_images]
    training = Training(
        preset, name, len(data.classes), options.seed, options.max_batch, data.validation[: options.probe_images]
    )
    finished = folder / "finished.ckpt"
    if not finished.exists():
        best = ModelCheckpoint(
            folder,
            "best",
            monitor="val/loss",
            save_last=True,
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )
        callbacks: list[Callback] = [best, StopAt(options.epochs)]
        if options.patience:
            callbacks.append(EarlyStopping("val/loss", patience=options.patience))
        trainer = L.Trainer(
            accelerator=options.accelerator, devices=options.devices, strategy=options.strategy, precision=options.precision,
            max_steps=training_steps(preset, name), max_epochs=-1, callbacks=callbacks, use_distributed_sampler=False,
            logger=[CSVLogger(folder, "logs"), TensorBoardLogger(folder, "tensorboard", 0)], log_every_n_steps=1,
            inference_mode=False, enable_progress_bar=not options.quiet, enable_model_summary=False,
        )  # fmt: skip
        sampler = Shuffled(part, preset.batch, options.seed, training, trainer)
        batches = DataLoader(TensorDataset(part.x, part.y, part.ids), preset.batch, sampler=sampler)
        held = data.validation
        again = DataLoader(TensorDataset(held.x, held.y, held.ids), preset.batch)
        last = folder / "last.ckpt"
        trainer.fit(training, batches, again, ckpt_path=str(last) if last.exists() else None)
        is_stopped = any(isinstance(c, EarlyStopping) and c.stopped_epoch for c in callbacks)
        if trainer.global_step < training_steps(preset, name) and not is_stopped:
            return None
        # One process names the checkpoint; the others wait before they load it.
        if trainer.is_global_zero:
            chosen = Path(best.best_model_path) if options.patience else last
            chosen.replace(finished)
        trainer.strategy.barrier()
    state = torch.load(finished, map_location="cpu", weights_only=True)["state_dict"]
    training.load_state_dict(state)
    return training.eval()


def to(part: Part, device: torch.device | str) -> Part:
    """The rows on a device."""
    return Part(part.x.to(device), part.y.to(device), part.ids.to(device))


def compare(preset: Preset, trained: dict[str, Training], data: Data, options: argparse.Namespace) -> None:
    """Attack every model on the same test images; results.json, maps.safetensors, index.html."""
    device = torch.device("cuda" if torch.cuda.is_available() and options.accelerator != "cpu" else "cpu")
    part = to(data.test[: options.attack_images or preset.test_images], device)
    steps, size = preset.judging_pgd
    key = Key(options.seed, "test")
    robustness = {}
    for name, training in trained.items():
        robustness[name] = attribution_robustness(
            training.model.to(device), part.x, part.y, preset.attack, pgd_steps=steps, pgd_step_size=size, k=preset.k,
            key=key, ids=part.ids, max_batch=options.attack_batch,
        )  # fmt: skip
    # Images that every model classifies correctly: only over these can the models' attributions be compared.
    all_correct = common(list(robustness.values()))
    rows = []
    for name, result in robustness.items():
        for label, where in (("", None), (" common", all_correct)):
            for metric, (mean, error, count) in averages(result, where).items():
                rows.append({"objective": name, "metric": metric + label, "value": mean, "stderr": error, "n": count})
    out = Path(options.out)
    results = {"preset": options.preset, "about": preset.about, "rows": rows}
    (out / "results.json").write_text(json.dumps(results, indent=1))

    shown = part[all_correct.nonzero()[: options.examples, 0]]
    tensors = attacked_maps(preset, trained, shown, key / "attack", options.attack_batch)
    save_file(tensors, out / "maps.safetensors")
    logs = {
        name: sorted((out / name / "logs").glob("**/metrics.csv"), key=lambda file: file.stat().st_mtime)
        for name in trained
    }
    html = page(f"Robust attributions: {options.preset}", preset.about, TITLES, rows, logs, tensors, data.classes)
    (out / "index.html").write_text(html, encoding="utf-8")
    print(f"{out / 'index.html'}: NA, AA, IN, CO of {', '.join(TITLES[name] for name in trained)}")


def attacked_maps(
    preset: Preset, trained: dict[str, Training], part: Part, key: Key, max_batch: int
) -> dict[str, Tensor]:
    """The images, and for each model their maps before and under the worst restart of the attack, on the CPU."""
    tensors = {"x": part.x, "y": part.y}
    if len(part):
        numbers = torch.arange(len(part), device=part.x.device)
        for name, training in trained.items():
            attacked = preset.attack(training.model, part.x, part.y, key=key, ids=part.ids, max_batch=max_batch)
            worst = attacked.tau.argmin(0)
            tensors[f"{name}.x"] = attacked.x[worst, numbers]
            tensors[f"{name}.clean"] = attacked.original
            tensors[f"{name}.map"] = attacked.maps[worst, numbers]
            tensors[f"{name}.tau"] = attacked.tau[worst, numbers]
    return {name: value.cpu().contiguous() for name, value in tensors.items()}


def changes(options: argparse.Namespace) -> str:
    """What the command line changed of the preset, for the page."""
    changed = [f"seed {options.seed}"]
    if options.steps:
        changed.append(f"{options.steps} training steps")
    if options.patience:
        changed.append(f"early stopping after {options.patience} epochs")
    if options.attack_images:
        changed.append(f"{options.attack_images} test images")
    if options.precision != "32-true":
        changed.append(f"precision {options.precision}")
    return f" This run: {', '.join(changed)}."


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(PRESETS), default="digits")
    parser.add_argument("--data", help="the folder that holds the data set's files")
    parser.add_argument("--download", action="store_true", help="let torchvision fetch the data set into --data")
    parser.add_argument("--out", required=True)
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="stop there; the same command without it goes on")
    parser.add_argument("--steps", type=int, help="of training, in place of the preset's")
    parser.add_argument(
        "--patience", type=int, help="stop when the validation loss has not improved for so many epochs"
    )
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--devices", default="auto")
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--precision", default="32-true", help="e.g. bf16-mixed")
    parser.add_argument("--max-batch", type=int, default=512, help="rows in flight in training")
    parser.add_argument("--attack-batch", type=int, default=2048, help="rows in flight in the final attack")
    parser.add_argument("--probe-images", type=int, default=32, help="validation images attacked after each epoch")
    parser.add_argument("--attack-images", type=int, help="test images attacked at the end, in place of the preset's")
    parser.add_argument("--examples", type=int, default=6, help="images shown on the page")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)
    preset = PRESETS[options.preset]
    if options.steps:
        preset = replace(preset, train_steps=options.steps, natural_steps=options.steps)
    preset = replace(preset, about=preset.about + changes(options))
    print(f"{options.preset}. {preset.about}")
    data = load(preset.data, options.data, download=options.download)
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
