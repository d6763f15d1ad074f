"""What one IG-SUM-NORM step costs beside its floor and beside a plain loop over points, and what ``max_batch`` does to memory.

    python benchmarks/train_step.py --out benchmarks/results/train_step.json
    python benchmarks/train_step.py --show benchmarks/results/train_step.json --page docs/training.md

The floor is the second-order rows that the definition needs, times the cheapest that one such row can be had for, found by
timing a bare double backward pass at many batch sizes: batch · points rows differentiated in the parameters, and batch ·
attack points · steps rows differentiated in the input with frozen parameters. The task pass, draws, projections and sums
are on top. The loop takes one point of the path after the other, a batch of inputs at a time, as released code does. Each time
is the smallest of ``--repeats`` in which all take turns; ± the standard error over ``--rounds`` of that.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from consilience import train

sys.path.insert(0, str(Path(__file__).resolve().parent))
from pages import fill
from rar import machine

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


def measured(o: argparse.Namespace) -> dict:
    model, (x, y) = network(), data(o.batch)
    rows = {"outer": o.batch * o.points, "inner": o.batch * o.attack_points * o.steps}
    bare = {name: network().requires_grad_(name == "outer") for name in rows}
    runs: dict[str, Callable[[], object]] = {
        f"{name} {size}": row(bare[name], size, name == "inner") for name in rows for size in SIZES
    }
    runs["step"] = lambda: objective(o, o.max_batch)(model, x, y).total.backward()
    runs["loop"] = lambda: loop_step(model, x, y, o)
    values: dict[str, list[float]] = {}
    for _ in range(o.rounds):
        found = fastest(runs, o.repeats)
        best = {name: min((found[f"{name} {size}"] / size, size) for size in SIZES) for name in rows}
        floor = sum(rows[name] * best[name][0] for name in rows)
        for metric, value in (
            ("floor, s", floor), ("step, s", found["step"]), ("loop, s", found["loop"]),
            ("step / floor", found["step"] / floor), ("loop / step", found["loop"] / found["step"]),
            *((f"one row of the {'outer step' if name == 'outer' else 'attack'}, ms", 1e3 * best[name][0]) for name in rows),
        ):  # fmt: skip
            values.setdefault(metric, []).append(value)
    line = {"data": "28 × 28 noise", "objective": "ig_sum_norm", "seeds": 1}
    table = []
    for metric, several in values.items():
        each = torch.tensor(several, dtype=torch.float64)
        error = float(each.std()) / len(each) ** 0.5 if len(each) > 1 else None
        table.append(line | {"metric": metric, "value": float(each.mean()), "stderr": error, "n": len(each)})
    for size in (16, 64, o.batch * o.points):
        table.append(
            line | {"metric": f"peak at max_batch {size}, MiB", "value": peak(o, size), "stderr": None, "n": 1}
        )
    settings = {name: value for name, value in vars(o).items() if name not in ("out", "peak", "show", "page")}
    load = round(os.getloadavg()[0], 1)
    return {
        "rows": table,
        "settings": settings | {"second_order_rows": rows},
        "machine": machine() | {"cores": os.cpu_count(), "load": load},
    }


def objective(o: argparse.Namespace, max_batch: int, steps: int | None = None) -> train.IGSumNorm:
    return train.IGSumNorm(
        **BOX, steps=o.steps if steps is None else steps, points=o.points, attack_points=o.attack_points, weight=0.1,
        max_batch=max_batch,
    )  # fmt: skip


def shown(result: dict) -> str:
    """Markdown."""
    o, m = result["settings"], result["machine"]
    lines = ["| one IG-SUM-NORM step | |", "|---|---|"]
    for one in result["rows"]:
        digits = 0 if "MiB" in one["metric"] else 2
        error = "" if one["stderr"] is None else f" ± {one['stderr']:.{max(2, digits)}f}"
        lines.append(f"| {one['metric']} | {one['value']:.{digits}f}{error} |")
    return "\n".join(lines) + (
        f"\n\n({o['batch']} images, {o['points']} points, {o['steps']} attack steps of {o['attack_points']} points, max_batch "
        f"{o['max_batch']}, two convolutions and two linear layers; {m['threads']} thread of {m['cores']} × {m['cpu']}, load "
        f"{m['load']}, torch {m['torch']}; ± over {o['rounds']} rounds.)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (
        ("batch", 16), ("points", 20), ("attack-points", 5), ("steps", 5), ("repeats", 5), ("rounds", 3), ("threads", 1),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--max-batch", type=int, default=128)
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--show", type=Path, help="print a stored file's table and do nothing else")
    parser.add_argument(
        "--page", help="with --show: a Markdown page, in which the table is put between the file's marks"
    )
    o = parser.parse_args()
    if o.show:
        text = shown(json.loads(o.show.read_text(encoding="utf-8")))
        return fill(o.page, o.show.stem, text) if o.page else print(text)
    torch.set_num_threads(o.threads)
    if o.peak:
        model, (x, y) = network(), data(o.batch)
        model(x)
        with open("/proc/self/clear_refs", "w") as reset:  # Linux: forget the highest memory so far
            reset.write("5")
        before = memory()
        objective(o, o.peak, 1)(model, x, y).total.backward()
        print(memory() - before)
        return
    result = measured(o)
    print(shown(result))
    if o.out:
        o.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
