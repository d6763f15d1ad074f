"""Do the posterior's errors hold what they say, and what do methods and masks each add?

    python benchmarks/posterior.py --data DIR --out benchmarks/results/posterior.json
    python benchmarks/posterior.py --show benchmarks/results/posterior.json --page docs/posterior.md

Two parts, each kept when it is done: ``coverage`` (a small net, trained here on Fashion-MNIST, 24 images; the truth is least
squares on 12 000 masks) and ``photographs`` (ResNet18 with ImageNet weights, 8 photographs at 128 pixels, judged on 1024 fresh
masks). A few minutes of one core.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pages import fill
from torch import Tensor, nn

from consilience.combine.regression import Regression, regress
from consilience.explain.options import Options
from consilience.explain.run import begin
from consilience.explainers import FeatureAblation
from consilience.features.images import Patches
from consilience.statistics.certain import certain_signs
from consilience.statistics.responses import Responses

COUNTS = (64, 128, 256, 512)
TRUTH = 12_000
IMAGES, PHOTOGRAPHS = 24, 8
METHODS = ("input_x_gradient", "integrated_gradients", "deeplift", "grad_cam", FeatureAblation(Patches(16)))
LEVELS = {0.95: 1.96, 0.68: 1.0}


def responses(net: nn.Module, x: Tensor, methods: Any, fit: int, fresh: int) -> tuple[Responses, Responses]:
    """Masks of both streams, with the methods' answers."""
    job = begin(net, x, None, Options.of(objective="posterior", methods=methods))
    measurement = job.ready.measurement
    score = job.ready.score
    points = job.ready.points
    base, _, _ = measurement.base(score, points, derived=False)
    found = []
    for stream, count in (("fit", fit), ("fresh", fresh)):
        evidence = measurement.more(score, points, base, "responses", range(count), stream)
        found.append(evidence["responses"])
    return found[0], found[1]


def everything(r: Responses) -> Tensor:
    """(B, k): every method may be used."""
    return torch.ones_like(r.a[:, 0], dtype=torch.bool)


# -- coverage ------------------------------------------------------------------------------------------------------------


def fashion(data: Path) -> tuple[nn.Module, Tensor, float]:
    """A small convolutional net trained for two epochs on 10 000 images, test images, and its accuracy on 1000."""

    def images(name: str) -> Tensor:
        raw = gzip.open(data / "fashion-mnist" / name).read()
        return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 1, 28, 28).copy()).float() / 255

    def labels(name: str) -> Tensor:
        raw = gzip.open(data / "fashion-mnist" / name).read()
        return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=8).copy()).long()

    torch.manual_seed(0)
    x = images("train-first10000-images-idx3-ubyte.gz")
    y = labels("train-labels-idx1-ubyte.gz")[: len(x)]
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 49, 10)
    )  # fmt: skip
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(2):
        for batch in torch.randperm(len(x)).split(128):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimiser.step()
    test = images("t10k-images-idx3-ubyte.gz")[:1000]
    with torch.no_grad():
        right = net(test).argmax(1) == labels("t10k-labels-idx1-ubyte.gz")[:1000]
    return net.eval(), test[:IMAGES], float(right.float().mean())


def least_squares(r: Responses) -> Tensor:
    """(B, U): the additive game that is nearest to the falls of very many masks."""
    assert r.masks is not None and r.size is not None
    taken = r.masks.taken.double()
    d = torch.linalg.lstsq(r.centred(taken), r.centred(r.y)[..., None]).solution[..., 0]
    rest = r.y - torch.einsum("bsu,bu->bs", taken, d)
    size = r.size - r.size.mean(1, keepdim=True)
    level = (size * rest).sum(1) / (size**2).sum(1)
    return d + level[:, None] * r.masks.shares


def coverage(data: Path) -> dict[str, Any]:
    """How often the errors hold the truth, by the number of masks, with the methods and without."""
    net, x, accuracy = fashion(data)
    methods = ["input_x_gradient", "integrated_gradients", "grad_cam"]
    seen, many = responses(net, x, methods, max(COUNTS), TRUTH)
    truth = least_squares(many)
    rows = []
    for count in COUNTS:
        few = seen.take(torch.arange(count))
        for prior in (True, False):
            found = regress(few, everything(few), prior)
            rows.append({"masks": count, "methods": prior, **_held(found, truth)})
    return {"accuracy": round(accuracy, 3), "images": len(x), "units": truth.shape[1], "truth": TRUTH, "rows": rows}


def _held(found: Regression, truth: Tensor) -> dict[str, float]:
    units = truth.shape[1]
    values = found.values[:, :units]
    error = found.error[:, :units]
    distance = ((values - truth) / error).abs()
    signs = certain_signs(values, error)
    wrong = ((signs != 0) & (signs != truth.sign())).any(1)
    numbers = {f"within {level}": (distance < reach).double().mean() for level, reach in LEVELS.items()}
    numbers |= {
        "certain": (signs != 0).double().sum(1).mean(),
        "images with a wrong certain sign": wrong.double().mean(),
        "error": (values - truth).square().mean().sqrt() / truth.square().mean().sqrt(),
    }
    return {name: round(float(value), 4) for name, value in numbers.items()}


# -- photographs -----------------------------------------------------------------------------------------------------------


def photographs(data: Path) -> dict[str, Any]:
    """The correlation on fresh masks of the best single method, both ends of the posterior, and the posterior."""
    import torchvision
    from torchvision.transforms import functional as tf

    net = torchvision.models.resnet18()
    net.load_state_dict(torch.load(data / "weights" / "resnet18_imagenet.pth", weights_only=True))
    with (data / "imagenet" / "labels.csv").open() as file:
        names = [row["file"] for row in csv.DictReader(file)]
    x = []
    for name in names[:: len(names) // PHOTOGRAPHS][:PHOTOGRAPHS]:
        image = torchvision.io.decode_image(str(data / "imagenet" / "images" / name), "RGB").float() / 255
        image = tf.center_crop(tf.resize(image, 146), 128)
        x.append(tf.normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    seen, fresh = responses(net.eval(), torch.stack(x), METHODS, max(COUNTS), 1024)
    rows = []
    for count in COUNTS:
        few = seen.take(torch.arange(count))
        singles = torch.eye(few.a.shape[2]).double().expand(len(x), -1, -1)
        best = _correlations(few, singles).argmax(1)
        row = {"masks": count, "best single": _correlations(fresh, singles).gather(1, best[:, None]).mean()}
        for name, prior, residual in (("faith", True, False), ("ridge", False, True), ("posterior", True, True)):
            found = regress(few, everything(few), prior, residual)
            row[name] = _answer(fresh, found).mean()
        rows.append({name: round(float(value), 4) for name, value in row.items()})
    return {"photographs": len(x), "fresh": 1024, "rows": rows}


def _correlations(r: Responses, w: Tensor) -> Tensor:
    """(B, M): of mixtures w (B, M, k), given the masks' sizes."""
    return _correlation(r, torch.einsum("bmr,bsr->bsm", w, r.a))


def _answer(r: Responses, found: Regression) -> Tensor:
    """(B, 1): of the regression's map."""
    assert r.masks is not None
    mixed = torch.einsum("bsr,br->bs", r.a, found.coefficients)
    added = torch.einsum("bsu,bu->bs", r.masks.taken.double(), found.residual)
    return _correlation(r, (mixed + added)[..., None])


def _correlation(r: Responses, answers: Tensor) -> Tensor:
    a = r.centred(answers)
    y = r.centred(r.y)[..., None]
    return (a * y).sum(1) / (a.square().sum(1) * y.square().sum(1)).sqrt().clamp(min=1e-300)


# -- command -------------------------------------------------------------------------------------------------------------


def page(result: dict[str, Any]) -> Iterator[str]:
    """The tables of docs/posterior.md."""
    part = result["coverage"]
    yield (
        f"Errors: a net with {part['accuracy']:.0%} accuracy on Fashion-MNIST, {part['images']} images × {part['units']} "
        f"units; truth: least squares on {part['truth']} masks."
    )
    yield ""
    yield "| masks | methods | within 1.96 errors | within 1 | certain signs an image | images with a wrong one | error |"
    yield "|---|---|---|---|---|---|---|"
    for row in part["rows"]:
        yield (
            f"| {row['masks']} | {'yes' if row['methods'] else 'no'} | {row['within 0.95']:.3f} | {row['within 0.68']:.3f} | "
            f"{row['certain']:.1f} of {part['units']} | {row['images with a wrong certain sign']:.0%} | {row['error']:.1%} |"
        )
    yield ""
    part = result["photographs"]
    yield (
        f"Correlation on {part['fresh']} fresh masks: ResNet18, {part['photographs']} photographs at 128 pixels; input × "
        "gradient, integrated gradients, DeepLIFT, Grad-CAM, feature ablation of 64 patches."
    )
    yield ""
    yield "| masks | best single | faith (methods alone) | ridge (masks alone) | posterior |"
    yield "|---|---|---|---|---|"
    for row in part["rows"]:
        numbers = " | ".join(f"{row[name]:.3f}" for name in ("best single", "faith", "ridge", "posterior"))
        yield f"| {row['masks']:.0f} | {numbers} |"


def main() -> None:
    """Run what is missing, or show what is stored."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with fashion-mnist/, imagenet/ and weights/")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--show", type=Path)
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    if arguments.show is not None:
        text = "\n".join(page(json.loads(arguments.show.read_text())))
        if arguments.page is None:
            print(text)
        else:
            fill(arguments.page, "measured", text)
        return
    result = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name, part in (("coverage", coverage), ("photographs", photographs)):
        if name not in result:
            result[name] = part(arguments.data)
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
