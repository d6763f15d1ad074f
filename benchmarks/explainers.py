"""Single methods beside Captum's: time, peak memory, and how far the maps are apart.

    python benchmarks/explainers.py --weights FILE [--images DIR --labels FILE] [--out FILE.json]

ResNet18 on a batch of two 224 × 224 photographs, the predicted classes, float32, both sides with the same number of samples,
Captum with its defaults otherwise (all steps or samples of an input in one batch). Each method runs in a process of its own,
one side after the other ``--rounds`` times; the ratio is the median over rounds. Peak memory beyond the loaded model is taken
in further processes. ``apart``: ‖ours − Captum's‖ / ‖Captum's‖, the largest of the batch, for
gradients without chance; ``conformance/`` has the others.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import captum.attr as ca
import torch
from reference import separate
from speed import machine, status
from torch import Tensor, nn

import consilience as cs
from consilience import explainers as ours
from consilience.data.images import read_image
from consilience.data.models import load_model
from consilience.perturb.points import Points

PATCH = 32


def apply(method: ca.Attribution, x: Tensor, **options: object) -> Callable[[Tensor], Tensor]:
    return lambda target: method.attribute(x, target=target, **options)


METHODS: dict[str, tuple[ours.Explainer, Callable[[nn.Module, Tensor], Callable[[Tensor], Tensor]], bool]] = {
    "saliency": (ours.Saliency(), lambda m, x: apply(ca.Saliency(m), x, abs=False), True),
    "input_x_gradient": (ours.InputXGradient(), lambda m, x: apply(ca.InputXGradient(m), x), True),
    "guided_backprop": (ours.GuidedBackprop(), lambda m, x: apply(ca.GuidedBackprop(separate(m)), x), True),
    "deeplift": (ours.DeepLIFT(), lambda m, x: apply(ca.DeepLift(separate(m)), x), True),
    "integrated_gradients": (
        ours.IntegratedGradients(50), lambda m, x: apply(ca.IntegratedGradients(m), x, n_steps=50), True,
    ),
    "smoothgrad": (
        ours.SmoothGrad(20), lambda m, x: apply(ca.NoiseTunnel(ca.Saliency(m)), x, nt_samples=20, stdevs=0.5, abs=False), False,
    ),
    "gradient_shap": (
        ours.GradientSHAP(20),
        lambda m, x: apply(ca.GradientShap(m), x, baselines=torch.zeros_like(x), n_samples=20, stdevs=0.09), False,
    ),
    "grad_cam": (ours.GradCAM(layer="layer4"), lambda m, x: apply(ca.LayerGradCam(m, m.layer4), x), False),
    "feature_ablation": (
        ours.FeatureAblation(features=cs.Patches(PATCH)),
        lambda m, x: apply(ca.FeatureAblation(m), x, feature_mask=patches(x)), False,
    ),
    "kernel_shap": (
        ours.KernelSHAP(n_samples=128, features=cs.Patches(PATCH)),
        lambda m, x: apply(ca.KernelShap(m), x, n_samples=128, feature_mask=patches(x)), False,
    ),
}  # fmt: skip


def patches(x: Tensor) -> Tensor:
    at = torch.arange(x.shape[-1]) // PATCH
    return (at[:, None] * (int(at[-1]) + 1) + at).expand(1, 1, -1, -1)


def sides(name: str, options: argparse.Namespace) -> dict[str, Callable[[], Tensor]]:
    """Both as functions without arguments. Ours in the layout that the command line gives a model."""
    loaded = load_model("torchvision:resnet18", checkpoint=options.weights)
    if options.images:
        with open(options.labels, newline="", encoding="utf-8") as file:
            files = [row["file"] for row in csv.DictReader(file)][::250][:2]
        x = torch.stack([loaded.preprocess(read_image(Path(options.images) / file)) for file in files])
    else:
        x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    x = x[..., : options.side, : options.side].contiguous()
    mine, theirs, _ = METHODS[name]
    plain = load_model("torchvision:resnet18", checkpoint=options.weights).module
    with torch.no_grad():
        target = plain(x).argmax(1)
    call = theirs(plain, x.clone().requires_grad_())
    network = loaded.module.to(memory_format=torch.channels_last)
    score = cs.Score(network, target).at(x)
    points, stack = Points(x, torch.arange(len(x)), score.ids), ours.Stack([mine])

    def captum() -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Captum says that it sets hooks
            return call(target).detach()

    return {"ours": lambda: stack.attribute(score, points)[:, 0], "captum": captum}


def one(options: argparse.Namespace) -> dict:
    both = sides(options.method, options)
    if options.memory:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
        before = status("VmRSS")
        both[options.memory]()
        return {"mib": (status("VmHWM") - before) / 2**20}
    seconds: dict[str, list[float]] = {name: [] for name in both}
    maps: dict[str, Tensor] = {}
    for _ in range(options.rounds):
        for name, run in both.items():
            began = time.perf_counter()
            maps[name] = run()
            seconds[name].append(time.perf_counter() - began)
    found: dict = {f"seconds_{name}": round(min(times), 4) for name, times in seconds.items()}
    found["ratio"] = round(statistics.median(b / a for a, b in zip(seconds["ours"], seconds["captum"], strict=True)), 3)
    if METHODS[options.method][2]:
        a, b = (maps[name].flatten(1) for name in ("ours", "captum"))
        found["apart"] = float(f"{float(((a - b).norm(dim=1) / b.norm(dim=1)).max()):.2g}")
    return found


def apart(name: str, *more: str) -> dict:
    """What :func:`one` finds in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--method", name, *more]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="a state dict of torchvision's resnet18")
    parser.add_argument("--images", help="default: noise")
    parser.add_argument("--labels", help="CSV with a column file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="names, separated by commas")
    parser.add_argument("--out")
    parser.add_argument("--side", type=int, default=224, help="of the photographs, cut to it")
    parser.add_argument("--method", help=argparse.SUPPRESS)
    parser.add_argument("--memory", choices=("ours", "captum"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.method:
        print(json.dumps(one(options)))
        return
    rows = []
    print("| method | ours, s | Captum, s | Captum / ours | apart | ours, MiB | Captum, MiB |\n|---" + "|---" * 6 + "|")
    for name in options.only.split(",") if options.only else METHODS:
        row = {"method": name, **apart(name)}
        row |= {f"mib_{side}": round(apart(name, "--memory", side)["mib"], 1) for side in ("ours", "captum")}
        rows.append(row)
        cells = [f"{row[key]:.2f}" for key in ("seconds_ours", "seconds_captum", "ratio")]
        cells += [str(row.get("apart", "–")), *(f"{row[key]:.0f}" for key in ("mib_ours", "mib_captum"))]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    if options.out:
        result = {"rows": rows, "settings": {"inputs": 2, "side": options.side, "rounds": options.rounds, "patch": PATCH},
                  "machine": machine(torch.device("cpu"))}  # fmt: skip
        Path(options.out).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
