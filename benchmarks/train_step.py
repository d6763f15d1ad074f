"""What one IG-SUM-NORM step costs beside its floor and beside a plain loop over points, and what ``max_batch`` does to memory.

    python benchmarks/train_step.py [--batch 16 --points 20 --attack-points 5 --steps 5 --repeats 5] [--out FILE.json]

The floor is the second-order rows that the definition needs, times the cheapest that one such row can be had for, found by
timing a bare double backward pass at many batch sizes: batch · points rows differentiated in the parameters, and batch ·
attack points · steps rows differentiated in the input with frozen parameters. The task pass, draws, projections and sums
are on top. The loop takes one point of the path after the other, a batch of inputs at a time, as released code does.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from consilience import train

BOX = {"eps": 0.3, "step_size": 0.1, "bounds": (0.0, 1.0)}
SIZES = (8, 16, 32, 64, 128, 256)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 49, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def data(count: int) -> tuple[Tensor, Tensor]:
    keyed = torch.Generator().manual_seed(1)
    return torch.rand(count, 1, 28, 28, generator=keyed), torch.randint(10, (count,), generator=keyed)


def fastest(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of each, the smallest of ``repeats`` rounds in which they take turns: other processes hit them alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    return {name: min(found) for name, found in times.items()}


def row(model: nn.Module, rows: int, inner: bool) -> Callable[[], object]:
    """One bare double backward pass over ``rows`` rows."""
    x, y = data(rows)
    x.requires_grad_()
    direction = torch.rand_like(x)

    def run() -> object:
        (gradient,) = torch.autograd.grad(nnf.cross_entropy(model(x), y, reduction="sum"), x, create_graph=True)
        return torch.autograd.grad(
            (gradient * direction).sum(), x if inner else list(model.parameters()), allow_unused=True
        )

    return run


def loop_step(model: nn.Module, x: Tensor, y: Tensor, o: argparse.Namespace) -> None:
    """IG-SUM-NORM with β = .1, one point of the path after the other."""

    def size(near: Tensor, points: int) -> Tensor:
        total = torch.zeros_like(x)
        for k in range(1, points + 1):
            there = x + k / points * (near - x)
            there = there if there.requires_grad else there.requires_grad_()
            loss = nnf.cross_entropy(model(there), y, reduction="sum")
            total = total + torch.autograd.grad(loss, there, create_graph=True)[0]
        return ((near - x) * total / points).abs().sum()

    near = (x + 0.3 * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(o.steps):
        near = near.detach().requires_grad_()
        quantity = nnf.cross_entropy(model(near), y, reduction="sum") + 0.1 * size(near, o.attack_points)
        (slope,) = torch.autograd.grad(quantity, near)
        near = (x + (near + 0.1 * slope.sign() - x).clamp(-0.3, 0.3)).clamp(0, 1)
    near = near.detach()
    total = nnf.cross_entropy(model(near), y) + 0.1 * size(near, o.points) / len(x)
    total.backward()


def peak(o: argparse.Namespace, max_batch: int) -> float:
    """MiB that one step adds to the process, in a process of its own."""
    arguments = [sys.executable, __file__, "--peak", str(max_batch), "--batch", str(o.batch), "--points", str(o.points),
                 "--attack-points", str(o.attack_points), "--threads", str(o.threads)]  # fmt: skip
    return float(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)


def memory() -> float:
    """The highest resident memory since the last reset, MiB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (
        ("batch", 16),
        ("points", 20),
        ("attack-points", 5),
        ("steps", 5),
        ("repeats", 5),
        ("threads", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--max-batch", type=int, default=128)
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    model, (x, y) = network(), data(o.batch)

    def objective(max_batch: int, steps: int = o.steps) -> train.IGSumNorm:
        return train.IGSumNorm(
            **BOX, steps=steps, points=o.points, attack_points=o.attack_points, weight=0.1, max_batch=max_batch
        )

    if o.peak:
        model(x)
        with open("/proc/self/clear_refs", "w") as reset:  # Linux: forget the highest memory so far
            reset.write("5")
        before = memory()
        objective(o.peak, 1)(model, x, y).total.backward()
        print(memory() - before)
        return
    rows = {"outer": o.batch * o.points, "inner": o.batch * o.attack_points * o.steps}
    bare = {name: network().requires_grad_(name == "outer") for name in rows}
    runs: dict[str, Callable[[], object]] = {
        f"{name} {size}": row(bare[name], size, name == "inner") for name in rows for size in SIZES
    }
    runs["step"] = lambda: objective(o.max_batch)(model, x, y).total.backward()
    runs["loop"] = lambda: loop_step(model, x, y, o)
    found = fastest(runs, o.repeats)
    cost = {name: min((found[f"{name} {size}"] / size, size) for size in SIZES) for name in rows}
    floor = sum(rows[name] * cost[name][0] for name in rows)
    result = {
        "rows": [
            {"metric": "floor_s", "value": floor},
            {"metric": "step_s", "value": found["step"]},
            {"metric": "loop_s", "value": found["loop"]},
            {"metric": "step_over_floor", "value": found["step"] / floor},
            {"metric": "loop_over_step", "value": found["loop"] / found["step"]},
            *({"metric": "peak_mib", "max_batch": n, "value": peak(o, n)} for n in (16, 64, o.batch * o.points)),
        ],
        "second_order_rows": rows,
        "best_row": {name: {"seconds": value, "batch": size} for name, (value, size) in cost.items()},
        "settings": {name: value for name, value in vars(o).items() if name not in ("out", "peak")},
        "machine": {"torch": torch.__version__, "processor": platform.processor() or platform.machine()},
    }
    text = json.dumps(result, indent=1)
    print(text)
    if o.out:
        o.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
