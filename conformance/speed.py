"""CPU seconds of ten measures beside Quantus' on the same work: one network, the same images and maps, one run, taking turns.

    python conformance/speed.py [--images 16] [--side 64] [--repeats 5] [--out conformance/speed.json]

Both sides are handed the same maps, the absolute gradient of every element, take away the same numbers of elements or patches
by the same value, draw as often from the same law, and get all images in one batch of the model; the rows that each evaluates
are counted and stored. Random draws differ, so of measures that draw the means and the correlation over images stand beside
each other; what draws nothing agrees to rounding. The median of the repeats counts, in CPU seconds of one thread, which a busy
machine disturbs least.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from consilience.explainers import Normalised, Saliency, Stack
from consilience.features.base import Elements
from consilience.features.images import Patches
from consilience.measures import (  # fmt: skip
    MPRT,
    AvgSensitivity,
    EntropyComplexity,
    FaithfulnessCorrelation,
    GiniSparseness,
    LocalLipschitz,
    MaxSensitivity,
    Measure,
    PixelFlipping,
    RandomLogit,
    RegionPerturbation,
    Task,
)
from consilience.model.score import Score
from consilience.perturb.neighbourhoods import Gaussian
from consilience.perturb.points import Points
from consilience.statistics.keys import Key

Read = Callable[[Any], np.ndarray]


def network(seed: int = 0) -> nn.Module:
    """Four convolutions with batch norm and pooling, ten classes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for before, after in ((3, 16), (16, 32), (32, 64), (64, 64)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()


def saliency(model: nn.Module, inputs: Any, targets: Any, **_: Any) -> np.ndarray:
    """Quantus' explain_func: (B, C, H, W) → (B, C, H, W)."""
    x = torch.as_tensor(np.asarray(inputs), dtype=torch.float32).requires_grad_()
    y = torch.as_tensor(np.asarray(targets)).long()
    (gradient,) = torch.autograd.grad(model(x).gather(1, y[:, None]).sum(), x)
    return gradient.abs().numpy()


def task(model: nn.Module, x: Tensor, y: Tensor) -> Task:
    """The same maps for the measures here."""
    score = Score(model, y, max_batch=len(x)).at(x)
    points = Points(x, torch.arange(len(x)), score.ids, len(x))
    shown = Normalised(Stack([Saliency()]), Elements(), "abs", "none")
    return Task(score, points, shown.attribute(score, points), Elements(), shown.attribute, Key(0, "measure"))


def table(side: int, clean: np.ndarray, layers: int) -> list[tuple[Measure, str, dict[str, Any], Read, bool]]:
    """(ours, Quantus' class, its arguments, its result → our number, whether nothing is drawn)."""
    elements, patch = 3 * side * side, side // 8
    flat = lambda r: np.asarray(r, dtype=float).reshape(-1)  # noqa: E731
    near = {"nr_samples": 10, "lower_bound": 0.1}

    def area(r: Any) -> np.ndarray:
        """Its curve leaves out x itself."""
        curve = np.concatenate([clean[:, None], np.asarray(r, dtype=float)], 1)
        return (curve[:, 1:] + curve[:, :-1]).mean(1) / 2

    def fall(r: Any) -> np.ndarray:
        """The mean over k = 0 … L; it gives the falls of k = 1 … L."""
        falls = np.asarray(r, dtype=float)
        return falls.sum(1) / (falls.shape[1] + 1)

    def without_the_trained(r: Any) -> np.ndarray:
        """It counts the trained model, of similarity 1, as one of the layers."""
        return (flat(r) * (layers + 1) - 1) / layers

    return [
        (MaxSensitivity(0.1), "MaxSensitivity", near, flat, False),
        (AvgSensitivity(0.1), "AvgSensitivity", near, flat, False),
        (LocalLipschitz(where=Gaussian(0.1)), "LocalLipschitzEstimate", {"nr_samples": 10, "perturb_std": 0.1}, flat, False),
        (FaithfulnessCorrelation(100, baseline=0.0, features=Elements()), "FaithfulnessCorrelation",
         {"nr_runs": 100, "subset_size": elements // 5, "perturb_baseline": 0.0, "return_aggregate": False}, flat, False),
        (PixelFlipping(48, value="probability"), "PixelFlipping",
         {"features_in_step": side * side // 16, "perturb_baseline": 0.0}, area, True),
        (RegionPerturbation(64, 0.0, "probability", Patches(patch)), "RegionPerturbation",
         {"patch_size": patch, "regions_evaluation": 64, "perturb_baseline": 0.0}, fall, True),
        (MPRT(), "MPRT", {"return_average_correlation": True}, without_the_trained, False),
        (RandomLogit(), "RandomLogit", {"num_classes": 10, "similarity_func": "spearman"}, flat, False),
        (GiniSparseness(), "Sparseness", {}, flat, True),
        (EntropyComplexity(), "Complexity", {}, flat, True),
    ]  # fmt: skip


def main() -> None:
    import quantus

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5, help="the two sides take turns; the median counts")
    parser.add_argument("--only", help="names of measures, separated by commas")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "speed.json")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = network()
    seen = [0]
    model.register_forward_pre_hook(lambda _, given: seen.__setitem__(0, seen[0] + len(given[0])))
    x = torch.randn(options.images, 3, options.side, options.side, generator=torch.Generator().manual_seed(1))
    y = model(x).argmax(1)
    clean = model(x).softmax(1).gather(1, y[:, None])[:, 0].detach().double().numpy()
    maps, given = saliency(model, x, y), task(model, x, y)
    layers = sum(1 for m in model.modules() if any(True for _ in m.parameters(recurse=False)))
    rows = []
    for ours, name, arguments, read, exact in table(options.side, clean, layers):
        if options.only and ours.name not in options.only.split(","):
            continue
        sides: dict[str, Callable[[], np.ndarray]] = {
            "ours": lambda ours=ours: judge(ours, given),  # type: ignore[misc]
            "quantus": lambda a=(quantus, name, arguments, model, x, y, maps, read): run(*a),  # type: ignore[misc]
        }
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        value: dict[str, np.ndarray] = {}
        asked: dict[str, int] = {}
        wrong = ""
        for turn in range(options.repeats + 1):  # the first turn warms up
            for side in list(sides)[:: 1 if turn % 2 else -1]:
                if side == "quantus" and wrong:
                    continue
                seen[0], began = 0, time.process_time()
                try:
                    value[side] = sides[side]()
                except Exception as error:  # whatever it raises is the finding
                    if side == "ours":
                        raise
                    wrong = f"{type(error).__name__}: {error}"[:100]
                    continue
                asked[side] = seen[0]
                if turn:
                    seconds[side].append(time.process_time() - began)
        row: dict[str, Any] = {
            "measure": ours.name, "quantus": name, "rows": asked["ours"], "seconds": statistics.median(seconds["ours"]),
            "mean": float(np.nanmean(value["ours"])),
        }  # fmt: skip
        if wrong:
            row["quantus_failed"] = wrong
        else:
            mine, theirs = value["ours"], value["quantus"]
            both = np.isfinite(mine) & np.isfinite(theirs)
            row |= {
                "quantus_rows": asked["quantus"], "quantus_seconds": statistics.median(seconds["quantus"]),
                "ratio": statistics.median(a / b for a, b in zip(seconds["quantus"], seconds["ours"], strict=True)),
                "quantus_mean": float(np.nanmean(theirs)),
                "correlation_over_images": float(np.corrcoef(mine[both], theirs[both])[0, 1]),
            }  # fmt: skip
            if exact:
                row["largest_difference"] = float(np.abs(mine - theirs).max())
        rows.append({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()})
        print(rows[-1], flush=True)
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    machine = f"{platform.machine()}, 1 thread, torch {torch.__version__}, {load}"
    settings = {
        "images": options.images,
        "side": options.side,
        "repeats": options.repeats,
        "map": "saliency of elements",
    }
    options.out.write_text(json.dumps({"settings": settings, "machine": machine, "rows": rows}, indent=1) + "\n")


def judge(measure: Measure, given: Task) -> np.ndarray:
    """One number per image; nothing is remembered from the turn before."""
    return measure(replace(given, memory={}))[:, 0].numpy()


def run(
    quantus: Any,
    name: str,
    arguments: dict[str, Any],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    maps: np.ndarray,
    read: Read,
) -> np.ndarray:
    if arguments.get("similarity_func") == "spearman":
        arguments = {**arguments, "similarity_func": quantus.similarity_func.correlation_spearman}
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        metric = getattr(quantus, name)(disable_warnings=True, normalise=False, abs=False, **arguments)
        found = metric(
            model=model, x_batch=x.numpy().copy(), y_batch=y.numpy().copy(), a_batch=maps.copy(), device="cpu",
            explain_func=saliency, batch_size=len(x),
        )  # fmt: skip
    return read(found)


if __name__ == "__main__":
    main()
