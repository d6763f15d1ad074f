"""How time, evaluations and memory of one call grow with inputs B, draws m, methods k and image side.

    python benchmarks/growth.py [--out FILE.json]

ResNet18 with random weights (speed does not depend on them), what ``Consensus.attribute`` does, 16 rows in flight. One axis
is varied at a time around B = 2, m = 8, k = 7, side = 64, each point in a process of its own; m counts neighbours and masks.
The exponent is the slope of a straight line through the logarithms: 1 is proportional, 0 is flat. Evaluations grow less than
k where methods share them.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from speed import machine, status

from consilience.data.models import load_model
from consilience.explain.options import Options
from consilience.explain.run import begin
from consilience.explainers import (
    DeepLIFT,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    Saliency,
    SmoothGrad,
    VarGrad,
)

METHODS = (
    Saliency(), InputXGradient(), GuidedBackprop(), DeepLIFT(), IntegratedGradients(8), SmoothGrad(8), VarGrad(8),
)  # fmt: skip
CENTRE = {"B": 2, "m": 8, "k": 7, "side": 64}
AXES = {"B": (1, 2, 4, 8), "m": (4, 8, 16, 32), "k": (1, 2, 3, 5, 7), "side": (48, 64, 96, 128)}


def measure(point: dict[str, int]) -> dict[str, float]:
    """In a process of its own: one call, after a small one that warms up."""
    network = load_model("torchvision:resnet18", random_weights=True).module.to(memory_format=torch.channels_last)
    keyed = torch.Generator().manual_seed(0)
    x = torch.randn(point["B"], 3, point["side"], point["side"], generator=keyed)
    options = {"methods": METHODS[: point["k"]], "objective": "opt", "max_batch": 16}
    begin(network, x[:1], None, Options.of(fit_draws=2, **options)).combine(every=False)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before, began = status("VmRSS"), time.perf_counter()
    job = begin(network, x, None, Options.of(fit_draws=point["m"], **options))
    assert bool(job.combine(every=False).attribution.isfinite().all())
    counts = job.ready.score.counts
    seconds = time.perf_counter() - began
    mib = (status("VmHWM") - before) / 2**20
    return {"seconds": seconds, "gradient": counts.gradient, "forward": counts.forward, "mib": mib}


def slope(at: list[int], values: list[float]) -> float:
    """Of log value against log place."""
    found = statistics.linear_regression([math.log(a) for a in at], [math.log(max(v, 1e-9)) for v in values])
    return round(found.slope, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        print(json.dumps(measure(options.point)))
        return
    result: dict = {"centre": CENTRE, "machine": machine(torch.device("cpu")), "system": platform.system(), "axes": {}}
    known: dict[str, dict] = {}
    for axis, places in AXES.items():
        rows = []
        for place in places:
            point = json.dumps(CENTRE | {axis: place})
            if point not in known:
                command = [sys.executable, __file__, "--point", point]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                known[point] = json.loads(done.stdout.splitlines()[-1])
            rows.append({axis: place, **known[point]})
            print(
                f"{axis} = {place:4} {rows[-1]['seconds']:8.2f} s {rows[-1]['gradient']:6} gradients "
                f"{rows[-1]['mib']:8.1f} MiB",
                flush=True,
            )
        exponents = {name: slope(list(places), [row[name] for row in rows]) for name in ("seconds", "gradient", "mib")}
        result["axes"][axis] = {"points": rows, "exponents": exponents}
        print(f"{axis}: exponents {exponents}\n", flush=True)
    if options.out:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
