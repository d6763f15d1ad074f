"""Seconds of ten measures beside Quantus' on the same work: one network, the same images and saliency maps, one run.

    python conformance/speed.py [--images 16] [--side 64] [--out conformance/speed.json]

Both sides judge the absolute gradient, summed over channels. Where a measure draws, both draw as often; numbers of draws do
not agree exactly then, so the means over the images stand beside each other, and the correlation over the images.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from consilience.consensus import Evaluator
from consilience.explainers import Saliency
from consilience.features import Patches
from consilience.measures import (
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
)  # fmt: skip
from consilience.neighbourhood import Uniform


def network(seed: int = 0) -> nn.Module:
    """Four convolutions with batch norm and pooling, ten classes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for before, after in ((3, 16), (16, 32), (32, 64), (64, 64)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()


def saliency(model: nn.Module, inputs: Any, targets: Any, **_: Any) -> np.ndarray:
    """Quantus' explain_func: (B, C, H, W) → (B, 1, H, W)."""
    x = torch.as_tensor(np.asarray(inputs), dtype=torch.float32).requires_grad_()
    y = torch.as_tensor(np.asarray(targets)).long()
    (gradient,) = torch.autograd.grad(model(x).gather(1, y[:, None]).sum(), x)
    return gradient.sum(1, keepdim=True).abs().numpy()


def table(side: int) -> list[tuple[Measure, str, dict[str, Any], Callable[[Any], np.ndarray]]]:
    """(ours, Quantus' class, its arguments, its result → one number per image)."""
    flat = lambda r: np.asarray(r, dtype=float).reshape(-1)  # noqa: E731
    noise = {"nr_samples": 10, "lower_bound": 0.1, "upper_bound": None, "normalise": False, "abs": False}
    size = side // 8
    # Its noise is one-sided: U[lower, upper]; both are given where it takes them.
    lipschitz = {"nr_samples": 10, "normalise": False, "abs": False, "perturb_std": 0.1}
    return [
        (MaxSensitivity(0.1), "MaxSensitivity", noise, flat),
        (AvgSensitivity(0.1), "AvgSensitivity", noise, flat),
        (LocalLipschitz(where=Uniform(0.1)), "LocalLipschitzEstimate", lipschitz, flat),
        (FaithfulnessCorrelation(), "FaithfulnessCorrelation",
         {"nr_runs": 100, "subset_size": side * side // 5, "perturb_baseline": "black", "normalise": False, "abs": False,
          "return_aggregate": False}, flat),
        (PixelFlipping(steps=16, value="probability"), "PixelFlipping",
         {"features_in_step": side * side // 16, "perturb_baseline": "black", "normalise": False, "abs": False},
         lambda r: np.asarray(r, dtype=float).mean(1)),
        (RegionPerturbation(features=Patches(size), value="probability"), "RegionPerturbation",
         {"patch_size": size, "regions_evaluation": 64, "perturb_baseline": "black", "normalise": False, "abs": False},
         lambda r: np.asarray(list(r.values()) if isinstance(r, dict) else r, dtype=float).mean(1)),
        (MPRT(), "MPRT", {"normalise": False, "abs": False, "return_average_correlation": True}, flat),
        (RandomLogit(samples=1, similarity="ssim"), "RandomLogit", {"num_classes": 10, "normalise": False, "abs": False}, flat),
        (GiniSparseness(), "Sparseness", {"normalise": False, "abs": False}, flat),
        (EntropyComplexity(), "Complexity", {"normalise": False, "abs": False}, flat),
    ]  # fmt: skip


def main() -> None:
    import quantus

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="the faster of so many, the two sides taking turns")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "speed.json")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    model = network()
    x = torch.randn(options.images, 3, options.side, options.side, generator=torch.Generator().manual_seed(1))
    y = model(x).argmax(1)
    maps = saliency(model, x, y)
    rows = []
    for ours, name, arguments, read in table(options.side):
        seconds: dict[str, list[float]] = {"ours": [], "quantus": []}
        mine, theirs, wrong = np.full(len(x), np.nan), np.full(len(x), np.nan), ""
        for _ in range(options.repeats):
            began = time.perf_counter()
            mine = judge(model, ours, x, y)
            seconds["ours"].append(time.perf_counter() - began)
            began = time.perf_counter()
            try:
                with open(os.devnull, "w") as nowhere:
                    theirs = run(quantus, name, arguments, model, x, y, maps, read, nowhere)
            except Exception as error:  # whatever it raises is the finding
                wrong = f"{type(error).__name__}: {error}"[:100]
                break
            if len(theirs) != len(x):
                wrong = f"{len(theirs)} numbers for {len(x)} images"
                break
            seconds["quantus"].append(time.perf_counter() - began)
        row = {"measure": ours.name, "quantus": name, "seconds": min(seconds["ours"]), "mean": float(np.nanmean(mine))}
        if wrong:
            row["quantus_failed"] = wrong
        else:
            both = np.isfinite(mine) & np.isfinite(theirs)
            alike = np.corrcoef(mine[both], theirs[both])[0, 1] if both.sum() > 2 and mine[both].std() > 0 else np.nan
            row |= {
                "quantus_seconds": min(seconds["quantus"]), "quantus_mean": float(np.nanmean(theirs)),
                "ratio": min(seconds["quantus"]) / min(seconds["ours"]), "correlation_over_images": float(alike),
            }  # fmt: skip
        rows.append({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()})
        print(rows[-1], flush=True)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    settings = {"images": options.images, "side": options.side, "repeats": options.repeats, "map": "saliency"}
    plain = json.loads(
        json.dumps({"settings": settings, "machine": machine, "rows": rows}), parse_constant=lambda _: None
    )
    options.out.write_text(json.dumps(plain, indent=1) + "\n")


def judge(model: nn.Module, measure: Measure, x: Tensor, y: Tensor) -> np.ndarray:
    """One number per image, batched as everything here is."""
    meter = Evaluator(
        model, methods=[Saliency()], measures=measure, objective=None, rows=["saliency"], sign="abs", scale="none",
        features="pixels",
    )  # fmt: skip
    return meter.update(x, y).values[measure.name][:, 0]


def run(
    quantus: Any, name: str, arguments: dict[str, Any], model: nn.Module, x: Tensor, y: Tensor, maps: np.ndarray,
    read: Callable[[Any], np.ndarray], nowhere: Any,
) -> np.ndarray:  # fmt: skip
    import contextlib

    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        metric = getattr(quantus, name)(disable_warnings=True, **{k: v for k, v in arguments.items() if v is not None})
        found = metric(
            model=model, x_batch=x.numpy().copy(), y_batch=y.numpy().copy(), a_batch=maps.copy(), device="cpu",
            explain_func=saliency, batch_size=len(x),
        )  # fmt: skip
    return read(found)


if __name__ == "__main__":
    main()
