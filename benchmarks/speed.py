"""What the optimal combination costs beside its floor and beside a plain pipeline, and what fewer draws lose.

    python benchmarks/speed.py --images DIR --labels FILE --weights FILE [--device cpu] [--count 20] --out FILE.json

ResNet18, the seven methods of AGG's Table 1, the predicted class. For each photograph, one after the other in one process:

- *m50*: ``Consensus.attribute`` with 50 neighbours and 50 masks, in float32. It includes a trial of every method, the check of
  completeness and the two fresh neighbours and masks without which there is no standard error.
- *auto*: the same with ``draws="auto"``, for each objective.
- *reference*: ``reference.py``, 50 neighbours and 50 masks.
- *floor*: evaluations by the closed formula times the best measured cost of one. It is measured again and again while the
  others run (their clocks stand still meanwhile), so that a machine that slows down slows both sides of the ratio.

Then all weights are judged on the same fresh draws, noise common to all neighbours. Peak memory is measured in a process for
each pipeline. Every photograph's numbers are kept in ``--cache``: an interrupted run goes on where it stopped.
``--stage fresh`` measures only the fresh draws, which need no quiet machine; the next run finds them. Delete ``run-*`` there to
time again without measuring them again.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from consensus import chosen
from reference import Reference
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import consilience as cs
from consilience.consensus import aim
from consilience.consensus.fitting import Rule, regret
from consilience.consensus.setting import BUDGET, Draws
from consilience.data.images import read_image
from consilience.data.models import load_model
from consilience.explainers import Stack, resolve
from consilience.quadratic import CRITERIA, Evidence, Quadratic, Responses

METHODS = "paper"
OBJECTIVES = ("opt", "robust", "paper_opt", "paper_robust")
MASKS = BUDGET.infidelity
NEIGHBOURS = (2, 5, 10, 20, 30, 40, 50)
BASELINES = {"opt": "paper_opt", "robust": "paper_robust"}
"""Which of the reference's weights ours are compared with, where it has no such objective."""


# -- the floor ---------------------------------------------------------------------------------------------------------


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Floor:
    """The best measured cost of a row: forward and backward to the input only, over batch sizes and memory layouts."""

    network: nn.Module
    x: Tensor
    target: int
    best: dict[bool, tuple[float, int, torch.memory_format]] = field(default_factory=dict)
    measured: list[dict] = field(default_factory=list)

    def __post_init__(self) -> None:
        layouts = (torch.contiguous_format, torch.channels_last)
        self.networks = {layout: copy.deepcopy(self.network).to(memory_format=layout) for layout in layouts}
        for network in self.networks.values():
            network.requires_grad_(False)

    def seconds(self, gradient: bool, size: int, layout: torch.memory_format) -> float:
        """For one row of a batch of ``size``."""
        rows = self.x.expand(size, -1, -1, -1).contiguous(memory_format=layout)
        synchronise(rows.device)
        began = time.perf_counter()
        with torch.set_grad_enabled(gradient):
            rows = rows.requires_grad_() if gradient else rows
            score = self.networks[layout](rows)[:, self.target]
            if gradient:
                torch.autograd.grad(score.sum(), rows)
        synchronise(rows.device)
        return (time.perf_counter() - began) / size

    def settle(self, sizes: Iterable[int]) -> None:
        for gradient in (True, False):
            for layout in self.networks:
                for size in sizes:
                    cost = min(self.seconds(gradient, size, layout) for _ in range(3))
                    row = {"gradient": gradient, "batch": size, "layout": str(layout), "ms": round(1e3 * cost, 3)}
                    self.measured.append(row)
                    self.best[gradient] = min(self.best.get(gradient, (float("inf"),)), (cost, size, layout))  # type: ignore[type-var]

    def row(self, gradient: bool = True) -> float:
        return self.seconds(gradient, *self.best[gradient][1:])


@dataclass
class Watch:
    """A stopwatch that stops now and then to take the floor's time on the same machine."""

    floor: Floor | None
    every: float = 5.0
    costs: list[float] = field(default_factory=list)
    paused: float = 0.0

    def __post_init__(self) -> None:
        self.began = self.last = time.perf_counter()

    def __call__(self, *_: float) -> None:
        now = time.perf_counter()
        if self.floor is not None and now - self.last > self.every:
            self.costs.append(self.floor.row())
            self.last = time.perf_counter()
            self.paused += self.last - now

    def stop(self) -> float:
        seconds = time.perf_counter() - self.began - self.paused
        if self.floor is not None:
            self.costs.append(self.floor.row())
        return seconds


# -- the pipelines -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One photograph and how it is explained. ``draws``: m."""

    network: nn.Module
    x: Tensor
    target: int
    number: int
    draws: int
    seed: int

    def ours(self, objective: str, watch: Watch | None, **options: object) -> dict:
        """What ``Consensus(…).attribute(x)`` does, with what it drew beside the map."""
        consensus = cs.Consensus(self.network, METHODS, objective, seed=self.seed, ids=[self.number], progress=watch)
        found = consensus.explain(self.x, self.target, fresh_draws=2, resolved_draws=0, **options)
        evidence = found.evidence["fit"][0].rows(slice(len(found.methods)))
        return {
            "gradient": found.counts.gradient, "forward": found.counts.forward, "draws": found.draws["fit"][0],
            "weights": {objective: found.weights[0].tolist()}, "evidence": evidence,
        }  # fmt: skip

    def m50(self, watch: Watch | None) -> dict:
        found = self.ours("opt", watch, fit_draws=self.draws)
        for name in OBJECTIVES[1:]:  # the draws are the same whatever is minimised
            found["weights"][name] = aim(name).minimise(found["evidence"]).weights[0].tolist()  # type: ignore[union-attr]
        return found

    def auto(self, objective: str, watch: Watch | None) -> dict:
        budget = Draws(
            *(min(limit, scale * self.draws) for limit, scale in ((BUDGET.average_sensitivity, 1), (MASKS, 21)))
        )
        return self.ours(objective, watch, draws="auto", fit_draws=budget)

    def reference(self, watch: Watch | None) -> dict:
        between = (lambda: None) if watch is None else watch
        found = Reference(self.network, between)(self.x, self.target, self.draws, self.seed)
        return {
            "gradient": found.passes.gradient, "forward": found.passes.forward, "calls": found.passes.calls,
            "weights": {name: weights.tolist() for name, weights in found.weights.items()}, "status": found.status,
        }  # fmt: skip

    def pipelines(self) -> dict[str, Callable[[Watch | None], dict]]:
        auto = {f"auto {name}": lambda watch, name=name: self.auto(name, watch) for name in OBJECTIVES}
        return {"m50": self.m50, "reference": self.reference, **auto}


class Bench:
    """The model, the photographs, and where their numbers are kept."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.device = torch.device(options.device)
        self.loaded = load_model("torchvision:resnet18", checkpoint=options.weights, device=options.device)
        self.network = copy.deepcopy(self.loaded.module).to(memory_format=torch.channels_last)
        self.cache = Path(options.cache)
        self.cache.mkdir(parents=True, exist_ok=True)
        self.files = chosen(options)

    def input(self, number: int) -> tuple[Tensor, int]:
        x = self.loaded.preprocess(read_image(Path(self.options.images) / self.files[number][0]))[None].to(self.device)
        side = self.options.side
        x = x[:, :, :side, :side] if side else x
        with torch.no_grad():
            return x, int(self.loaded.module(x).argmax())

    def job(self, number: int, network: nn.Module | None = None) -> Job:
        x, target = self.input(number)
        return Job(network or self.network, x, target, number, self.options.draws, self.options.seed)

    def path(self, stage: str, number: int, *settings: object) -> Path:
        o = self.options
        tag = "-".join(
            str(s)
            for s in (Path(self.files[number][0]).stem, Path(o.weights).stem, o.device, o.side, o.seed, *settings)
        )
        return self.cache / f"{stage}-{tag}.safetensors"

    def run(self, number: int, floor: Floor | None) -> tuple[dict, Evidence]:
        """Times, evaluations and weights of every pipeline on one photograph, and the m draws of m50."""
        path = self.path("run", number, self.options.draws)
        if not path.exists():
            assert floor is not None
            # The reference gets the network as it is loaded; ours the layout that the command line gives it.
            job, plain = self.job(number), self.job(number, self.loaded.module)
            pipelines = {**job.pipelines(), "reference": plain.reference}
            names = [*pipelines]
            turn = number % len(names)
            found: dict[str, dict] = {}
            for name in names[turn:] + names[:turn]:
                synchronise(self.device)
                watch = Watch(floor)
                row = pipelines[name](watch)
                synchronise(self.device)
                row["seconds"] = watch.stop()
                row["floor_ms"] = [round(1e3 * cost, 4) for cost in watch.costs]
                found[name] = row
                print(f"  {name:18}{row['seconds']:8.1f} s {row['gradient']:6} gradients", flush=True)
            found["m50"]["forward_ms"] = 1e3 * min(floor.row(gradient=False) for _ in range(3))
            evidence = found["m50"]["evidence"]
            for row in found.values():
                row.pop("evidence", None)
            about = {"machine": machine(self.device), "floor": floor.measured}
            write(path, evidence, {"pipelines": {name: found[name] for name in names}, **about})
        return read(path)

    def judged(self, number: int) -> tuple[Evidence, Evidence]:
        """The fresh draws, and 1 024 masks to fit on, for the curves."""
        fresh = self.options.fresh
        paths = [self.path(kind, number, fresh) for kind in ("fresh", "masks")]
        if not all(path.exists() for path in paths):
            x, target = self.input(number)
            found = cs.explain(
                self.network, x, target, methods=METHODS, objective="mean", seed=self.options.seed, ids=[number],
                fit_draws=Draws(2, min(MASKS, 21 * self.options.draws)), fresh_draws=fresh, resolved_draws=0,
            )  # fmt: skip
            for path, kind in zip(paths, ("fresh", "fit"), strict=True):
                write(path, found.evidence[kind][0].rows(slice(len(found.methods))), {"target": target})
        return read(paths[0])[1], read(paths[1])[1]


def write(path: Path, evidence: Evidence, numbers: dict) -> None:
    assert evidence.quadratic is not None and evidence.responses is not None
    tensors = {**vars(evidence.quadratic), **vars(evidence.responses)}
    part = path.with_suffix(".part")
    save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, part, {"numbers": json.dumps(numbers)})
    part.replace(path)


def read(path: Path) -> tuple[dict, Evidence]:
    with safe_open(path, "pt") as file:
        numbers = json.loads(file.metadata()["numbers"])
    t = load_file(path)
    return numbers, Evidence(Quadratic(t["draws"], t["norm"]), Responses(t["a"], t["y"]))


# -- judging -----------------------------------------------------------------------------------------------------------


def values(fresh: Evidence, weights: list[float]) -> dict[str, float]:
    """What mixtures are worth on one photograph's fresh draws; lower is better. ``opt`` is the sum of its two parts."""
    w = torch.tensor(weights, dtype=torch.float64).view(1, 1, -1)
    value = {name: float(judge(fresh, w).value) for name, judge in CRITERIA.items()}
    rho = value["faithfulness_correlation"]
    loss = 1 - rho * abs(rho)
    return {
        "robust": value["relative_sensitivity"],
        "opt": value["relative_sensitivity"] + loss,
        "opt_sensitivity": value["relative_sensitivity"],
        "opt_faithfulness": loss,
        "paper_robust": value["average_sensitivity"],
        "paper_opt": float(torch.einsum("bmi,bij,bmj->bm", w, paper_form(fresh), w)),
    }


def paper_form(fresh: Evidence) -> Tensor:
    """The two matrices of AGG's App. C.2, each divided by its Frobenius norm: a form that is the same for all weights."""
    parts = [term.matrix(fresh) for _, term in aim("paper_opt").terms]  # type: ignore[union-attr]
    return torch.stack([part / torch.linalg.matrix_norm(part)[:, None, None] for part in parts]).sum(0)  # type: ignore[operator]


JUDGED = {
    "opt": "opt", "opt_sensitivity": "opt", "opt_faithfulness": "opt", "robust": "robust", "paper_opt": "paper_opt",
    "paper_robust": "paper_robust",
}  # fmt: skip
"""Value → the objective whose weights it judges."""


def of(pipelines: dict, pipeline: str, objective: str) -> list[float]:
    """Weights of a pipeline for an objective."""
    if pipeline == "auto":
        return pipelines[f"auto {objective}"]["weights"][objective]
    if pipeline == "reference":
        objective = BASELINES.get(objective, objective)
    return pipelines[pipeline]["weights"][objective]


def paired(runs: list[dict], fresh: list[Evidence], ours: str, other: str) -> dict[str, dict]:
    """Value → mean over photographs of ours / other, and mean + 1.645 standard errors."""
    found = {}
    for value, objective in JUDGED.items():
        ratios = [
            values(e, of(run, ours, objective))[value] / values(e, of(run, other, objective))[value]
            for run, e in zip(runs, fresh, strict=True)
        ]
        mean, error = statistics.fmean(ratios), spread(ratios)
        found[value] = {
            "mean": mean, "upper95": None if error is None else mean + 1.645 * error, "stderr": error,
            "median": statistics.median(ratios), "each": [round(r, 5) for r in ratios],
        }  # fmt: skip
    return found


def curves(fit: list[Evidence], masks: list[Evidence], fresh: list[Evidence], gradients: int) -> dict[str, list[dict]]:
    """By number of draws: the fresh value above the fresh draws' own optimum, the cross-fitted regret, the evaluations.

    ``robust`` against neighbours and ``faith`` against masks, means over photographs; ``gradients`` of one explanation.
    """
    kinds = {"robust": (fit, NEIGHBOURS), "faith": (masks, tuple(16 * 2**i for i in range(8)))}
    found: dict[str, list[dict]] = {}
    for name, (evidence, counts) in kinds.items():
        found[name] = []
        goal = aim(name)
        ((_, term),) = goal.terms  # type: ignore[union-attr]
        for count in counts:
            parts = [first(e, count, name) for e in evidence]
            if any(part is None for part in parts):
                break
            weights = [
                (goal.minimise(part).weights, goal.minimise(e).weights) for part, e in zip(parts, fresh, strict=True)
            ]  # type: ignore[union-attr, arg-type]
            above = [
                float(term.loss(e, got[:, None]) / term.loss(e, best[:, None])) - 1
                for e, (got, best) in zip(fresh, weights, strict=True)
            ]
            doubts = [float(v) for part in parts for v in regret(Rule(goal, ()), part).values()] if count >= 5 else []  # type: ignore[arg-type]
            found[name].append({
                "draws": count, "above_optimum": statistics.fmean(above), "stderr": spread(above),
                "regret": statistics.fmean(doubts) if doubts else None,
                "gradients": gradients * (1 + count if name == "robust" else 1), "forwards": count if name == "faith" else 0,
            })  # fmt: skip
    return found


def first(evidence: Evidence, count: int, name: str) -> Evidence | None:
    """The first neighbours (``robust``) or masks (``faith``), the other kind whole; None if there are not so many."""
    q, r = evidence.quadratic, evidence.responses
    assert q is not None and r is not None
    had = q.draws.shape[1] if name == "robust" else r.y.shape[1]
    part = torch.arange(count)
    if count > had:
        return None
    return Evidence(q.take(part), r) if name == "robust" else Evidence(q, r.take(part))


def spread(numbers: list[float]) -> float | None:
    """The mean's standard error."""
    return statistics.stdev(numbers) / len(numbers) ** 0.5 if len(numbers) > 1 else None


# -- memory ------------------------------------------------------------------------------------------------------------


def status(field: str) -> int:
    """Bytes, of this process (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def memory(options: argparse.Namespace) -> None:
    """In a process of its own: MiB at the peak of one pipeline beyond the loaded model and one forward pass."""
    bench = Bench(options)
    job = bench.job(0, bench.loaded.module if options.pipeline == "reference" else None)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here, not from loading the weights
        before = status("VmRSS")
    job.pipelines()[options.pipeline](None)
    after = torch.cuda.max_memory_allocated() if bench.device.type == "cuda" else status("VmHWM")
    print(json.dumps({"mib": (after - before) / 2**20}))


def memories(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Pipeline → {m: MiB}."""
    path = Path(options.cache) / f"memory-{options.device}-{options.side}-{options.draws}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    few = max(5, options.draws // 5)
    for name, m in (
        ("m50", few),
        ("m50", options.draws),
        ("auto opt", options.draws),
        ("reference", few),
        ("reference", options.draws),
    ):
        if str(m) not in found.setdefault(name, {}):
            changed = {"--draws": str(m), "--pipeline": name}
            given = [*sys.argv[1:], *(part for pair in changed.items() for part in pair)]
            done = subprocess.run([sys.executable, __file__, *given], stdout=subprocess.PIPE, text=True, check=True)
            found[name][str(m)] = round(json.loads(done.stdout.splitlines()[-1])["mib"], 1)
            path.write_text(json.dumps(found))
            print(f"memory {name}, m = {m}: {found[name][str(m)]:.0f} MiB", flush=True)
    return found


# -- the report --------------------------------------------------------------------------------------------------------


def machine(device: torch.device) -> dict:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next(
            (line.split(": ")[1] for line in info.read_text().splitlines() if line.startswith("model name")), cpu
        )
    return {
        "cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "load": os.getloadavg(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu", "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "captum", "cvxpy")},
    }  # fmt: skip


def floors(runs: list[dict], row: dict, m: int) -> list[float]:
    """Seconds of the floor, with each photograph's costs as they were while m50 ran."""
    gradients, forwards = (m + 1) * row["gradient"], (m + 1) * row["forward"] + m
    return [
        (gradients * statistics.median(run["m50"]["floor_ms"]) + forwards * run["m50"]["forward_ms"]) / 1e3
        for run in runs
    ]


def report(bench: Bench, floor: Floor | None) -> dict:
    o = bench.options
    row = Stack(resolve(METHODS)).rows()
    about, fit = map(list, zip(*(bench.run(i, floor) for i in range(len(bench.files))), strict=True))
    runs = [numbers["pipelines"] for numbers in about]
    fresh, masks = map(list, zip(*(bench.judged(i) for i in range(len(bench.files))), strict=True))
    memory = memories(o)
    seconds = {name: [run[name]["seconds"] for run in runs] for name in runs[0]}
    lowest = floors(runs, row, o.draws)
    over = lambda a, b: statistics.fmean(x / y for x, y in zip(a, b, strict=True))  # noqa: E731
    m = str(o.draws)
    return {
        "ratio_floor": over(seconds["m50"], lowest),
        "ratio_reference": over(seconds["reference"], seconds["auto opt"]),
        "ratio_reference_m50": over(seconds["reference"], seconds["m50"]),
        "ratio_reference_by_objective": {n: over(seconds["reference"], seconds[f"auto {n}"]) for n in OBJECTIVES},
        "value_auto_over_m50": paired(runs, fresh, "auto", "m50"),
        "value_auto_over_reference": paired(runs, fresh, "auto", "reference"),
        "value_m50_over_reference": paired(runs, fresh, "m50", "reference"),
        "peak_memory_ratio": memory["m50"][m] / memory["reference"][m],
        "peak_memory_ratio_auto": memory["auto opt"][m] / memory["reference"][m],
        "peak_memory_growth": memory["m50"][m] / memory["m50"][str(max(5, o.draws // 5))],
        "images_per_second": 1 / statistics.fmean(seconds["auto opt"]),
        "machine": about[0]["machine"],
        "n": len(runs),
        "seconds": {n: {"mean": statistics.fmean(s), "median": statistics.median(s)} for n, s in seconds.items()}
        | {"floor": {"mean": statistics.fmean(lowest), "median": statistics.median(lowest)}},
        "evaluations": {
            n: {kind: statistics.fmean(run[n][kind] for run in runs) for kind in ("gradient", "forward")} for n in runs[0]
        } | {"floor": {"gradient": (o.draws + 1) * row["gradient"], "forward": (o.draws + 1) * row["forward"] + o.draws}},
        "peak_memory_mib": memory,
        "curves": curves(fit, masks, fresh, row["gradient"]),
        "settings": {
            "model": "torchvision:resnet18", "weights": bench.loaded.weights, "methods": list(Stack(resolve(METHODS)).names),
            "draws": o.draws, "fresh": o.fresh, "seed": o.seed, "side": o.side or 224, "layout": "channels_last",
            "reference_layout": "contiguous", "noise": "common to all neighbours when judged; redrawn in the reference",
        },
        "floor_settings": about[0]["floor"],
        "images": [
            {"file": file, "floor": f, "load": numbers["machine"]["load"], "pipelines": numbers["pipelines"]}
            for (file, _), f, numbers in zip(bench.files, lowest, about, strict=True)
        ],
    }  # fmt: skip


def show(result: dict) -> None:
    """Markdown, for docs/speed.md."""
    print("\n| pipeline | seconds | gradients | forwards | peak memory, MiB |\n|---|---|---|---|---|")
    for name, took in result["seconds"].items():
        count = result["evaluations"][name]
        peak = result["peak_memory_mib"].get(name, {}).get(str(result["settings"]["draws"]))
        print(f"| {name} | {took['mean']:.1f} | {count['gradient']:.0f} | {count['forward']:.0f} | {peak or '–'} |")
    print("\n| value on fresh draws | auto / m50 | auto / reference | m50 / reference |\n|---|---|---|---|")
    tables = [result[f"value_{pair}"] for pair in ("auto_over_m50", "auto_over_reference", "m50_over_reference")]
    for name in tables[0]:
        print(
            f"| {name} | "
            + " | ".join(f"{t[name]['mean']:.3f} (≤ {t[name]['upper95'] or math.nan:.3f})" for t in tables)
            + " |"
        )
    for name, points in result["curves"].items():
        print(f"\n| {name}: draws | gradients | above the optimum | regret |\n|---|---|---|---|")
        for p in points:
            said = "–" if p["regret"] is None else f"{p['regret']:.1%}"
            print(f"| {p['draws']} | {p['gradients']} | {p['above_optimum']:.1%} | {said} |")
    for name in ("ratio_floor", "ratio_reference", "ratio_reference_m50", "peak_memory_ratio", "peak_memory_growth"):
        print(f"{name} {result[name]:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True)
    parser.add_argument("--labels", required=True, help="CSV with columns file and class_index")
    parser.add_argument("--weights", required=True, help="a state dict of torchvision's resnet18")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--fresh", type=int, default=200, help="neighbours and masks that judge the weights")
    parser.add_argument("--stage", choices=("all", "fresh"), default="all")
    parser.add_argument("--threads", type=int, help="default: PyTorch's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", default="out/speed-cache")
    parser.add_argument("--out", required=True)
    parser.add_argument("--draws", type=int, default=50, help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--pipeline", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.pipeline:
        memory(options)
        return
    bench = Bench(options)
    floor = None
    if options.stage == "all" and any(
        not bench.path("run", i, options.draws).exists() for i in range(len(bench.files))
    ):
        floor = Floor(bench.loaded.module, *bench.input(0))
        floor.settle((1, 2, 4, 8, 16, 32) if bench.device.type == "cpu" else (16, 32, 64, 128, 256, 512))
    for i, (file, _) in enumerate(bench.files):
        began = time.perf_counter()
        print(f"{i + 1} {file}", flush=True)
        if options.stage == "all":
            bench.run(i, floor)
        bench.judged(i)
        print(f"  done in {time.perf_counter() - began:.0f} s", flush=True)
    if options.stage == "fresh":
        return
    result = report(bench, floor)
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    Path(options.out).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    show(result)


if __name__ == "__main__":
    main()
