"""What the optimal combination costs beside its floor and beside a plain pipeline, and what fewer draws lose.

    python benchmarks/speed.py --images DIR --labels FILE --weights FILE [--device cpu] [--count 20] --out FILE.json
    python benchmarks/speed.py --show FILE.json --page docs/speed.md

ResNet18, the seven methods of AGG's Table 1, the predicted class. Two stages, of which each photograph's numbers are kept in
``--cache``, so that an interrupted run goes on where it stopped:

*draws*, of ``--count`` photographs; needs no quiet machine. Neighbours and masks to fit on, and fresh ones to judge on. Draws
are keyed, so the weights of m = 50, and of ``draws="auto"``, which stops earlier on the same draws, follow from these. The
plain pipeline's weights as well, once for all devices, where no timed run gave them.

*time*, of the first ``--timed`` of them, one pipeline after the other in one process:

- *m50*: ``Consensus.attribute`` with 50 neighbours and 50 masks, in float32. It includes a trial of every method.
- *auto*: the same with ``draws="auto"``, for each objective; *auto opt, bfloat16* under autocast.
- *auto opt, together*: ``--together`` photographs in one call; on an accelerator the median of three calls.
- *reference*: ``reference.py``, 50 neighbours and 50 masks.
- *floor*: evaluations by the closed formula times the best measured cost of one. It is measured again and again while the
  others run (their clocks stand still meanwhile), so that a machine that slows down slows both sides of the ratio.

All weights are judged on the same fresh draws, noise common to all neighbours. Peak memory is measured in a process for each
pipeline.
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
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from consensus import chosen
from pages import fill
from reference import Reference
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from consilience.combine.draws import BUDGET, Draws
from consilience.combine.named import named_objective
from consilience.combine.regret import regret
from consilience.combine.sequential import prices, until_sure
from consilience.combine.weights import Minimise
from consilience.data.images import read_image
from consilience.data.models import load_model
from consilience.explain.options import Options
from consilience.explain.run import begin
from consilience.explainers import Stack, resolve
from consilience.results.files import write_text
from consilience.statistics.criteria import CRITERIA
from consilience.statistics.evidence import Evidence, Quadratic, Responses

METHODS = "paper"
OBJECTIVES = ("opt", "robust", "paper_opt", "paper_robust")
TOLERANCE = 0.02
PIPELINES = ("m50", "reference", *(f"auto {name}" for name in OBJECTIVES), "auto opt, bfloat16")
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
        asked = Options.of(methods=METHODS, objective=objective, seed=self.seed, **options)
        job = begin(self.network, self.x, self.target, asked, [self.number], watch)
        found = job.combine(every=False)
        assert bool(found.attribution.isfinite().all())
        counts = job.ready.score.counts
        return {
            "gradient": counts.gradient, "forward": counts.forward, "draws": found.groups[0].record(0),
            "weights": {objective: found.solution.weights[0].tolist()}, "batch": job.ready.score.batch.sizes,
            "evidence": found.groups[0].evidence,
        }  # fmt: skip

    def m50(self, watch: Watch | None) -> dict:
        return self.ours("opt", watch, fit_draws=self.draws)

    def auto(self, objective: str, watch: Watch | None, **options: object) -> dict:
        return self.ours(objective, watch, draws="auto", fit_draws=budget(self.draws), **options)

    def reference(self, watch: Watch | None) -> dict:
        between = (lambda: None) if watch is None else watch
        found = Reference(self.network, between)(self.x, self.target, self.draws, self.seed)
        return {
            "gradient": found.passes.gradient, "forward": found.passes.forward, "calls": found.passes.calls,
            "weights": {name: weights.tolist() for name, weights in found.weights.items()}, "status": found.status,
        }  # fmt: skip

    def pipelines(self) -> dict[str, Callable[[Watch | None], dict]]:
        auto = {name: lambda watch, name=name: self.auto(name, watch) for name in OBJECTIVES}
        auto["bfloat16"] = lambda watch: self.auto("opt", watch, precision="bfloat16")
        return dict(zip(PIPELINES, [self.m50, self.reference, *auto.values()], strict=True))


def budget(draws: int) -> Draws:
    return Draws(min(BUDGET.average_sensitivity, draws), min(BUDGET.infidelity, 21 * draws))


def replayed(evidence: Evidence, objective: str, draws: int) -> tuple[list[float], dict]:
    """The weights of ``draws="auto"`` from draws that are there already, and how many of them it would have made."""
    stack = Stack(resolve(METHODS))
    rule = Minimise(named_objective(objective))

    def draw(_: object, kind: str, samples: range) -> Evidence:
        return Evidence(**{kind: getattr(evidence, kind).take(torch.arange(samples.start, samples.stop))})

    (group,) = until_sure(rule, draw, (0,), budget(draws), TOLERANCE, prices(stack), rule.kinds, len(stack))
    return group.solved.weights[0].tolist(), group.record(0)


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
            str(s) for s in (Path(self.files[number][0]).stem, Path(o.weights).stem, o.side, o.seed, *settings)
        )
        return self.cache / f"{stage}-{tag}.safetensors"

    def timed(self, number: int) -> bool:
        """Whether every pipeline was timed on this photograph."""
        path = self.path("run", number, self.options.draws, self.options.device).with_suffix(".json")
        return path.exists() and set(json.loads(path.read_text(encoding="utf-8"))["pipelines"]) >= {*PIPELINES}

    def run(self, number: int, floor: Floor | None) -> dict:
        """Times, evaluations and weights of every pipeline on one photograph."""
        path = self.path("run", number, self.options.draws, self.options.device).with_suffix(".json")
        numbers = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"pipelines": {}}
        found: dict[str, dict] = numbers["pipelines"]
        # The reference gets the network as it is loaded; ours the layout that the command line gives it.
        job, plain = self.job(number), self.job(number, self.loaded.module)
        pipelines = {**job.pipelines(), "reference": plain.reference}
        names = [name for name in pipelines if name not in found]
        if names:
            assert floor is not None
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                synchronise(self.device)
                watch = Watch(floor)
                row = pipelines[name](watch)
                synchronise(self.device)
                row["seconds"] = watch.stop()
                row["floor_ms"] = [round(1e3 * cost, 4) for cost in watch.costs]
                evidence = row.pop("evidence", None)
                if name == "m50":
                    row["forward_ms"] = 1e3 * min(floor.row(gradient=False) for _ in range(3))
                    write(self.path("m50", number, self.options.draws, self.options.device), evidence)
                found[name] = row
                print(f"  {name:18}{row['seconds']:8.1f} s {row['gradient']:6} gradients", flush=True)
            numbers = {"machine": machine(self.device), "floor": floor.measured, **numbers}
            numbers["pipelines"] = {name: found[name] for name in pipelines}
            write_text(path, json.dumps(numbers))
        return numbers

    def plain(self, number: int) -> dict:
        """The plain pipeline's weights on one photograph, by objective, and the device that found them."""
        path = self.path("reference", number, self.options.draws).with_suffix(".json")
        if not path.exists():
            if self.timed(number):
                row = self.run(number, None)["pipelines"]["reference"]
            else:
                row = self.job(number, self.loaded.module).reference(None)
            found = {"weights": row["weights"], "device": machine(self.device)["device"]}
            write_text(path, json.dumps(found))
        return json.loads(path.read_text(encoding="utf-8"))

    def together(self) -> dict[str, dict]:
        """Precision → seconds, each of several calls, and evaluations of ``draws="auto"`` on several photographs at once."""
        o, count = self.options, self.options.together
        path = self.path("together", 0, o.draws, count, o.device).with_suffix(".json")
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for precision in (None, "bfloat16"):
            name = precision or "float32"
            if name not in found:
                x, targets = zip(*(self.input(i) for i in range(count)), strict=True)
                seconds = []
                for _ in range(1 if self.device.type == "cpu" else 3):
                    synchronise(self.device)
                    began = time.perf_counter()
                    asked = Options.of(
                        methods=METHODS,
                        objective="opt",
                        seed=o.seed,
                        draws="auto",
                        fit_draws=budget(o.draws),
                        precision=precision,
                    )
                    job = begin(self.network, torch.cat(x), [*targets], asked, range(count))
                    assert bool(job.combine(every=False).attribution.isfinite().all())
                    synchronise(self.device)
                    seconds.append(time.perf_counter() - began)
                counts = job.ready.score.counts
                found[name] = {
                    "seconds": seconds, "n": count, "images_per_second": count / statistics.median(seconds),
                    "gradient": counts.gradient / count, "forward": counts.forward / count,
                    "batch": job.ready.score.batch.sizes,
                }  # fmt: skip
                path.write_text(json.dumps(found), encoding="utf-8")
                print(f"together, {name}: {found[name]['images_per_second']:.2f} photographs a second", flush=True)
        return found

    def drawn(self, number: int) -> tuple[Evidence, Evidence]:
        """m neighbours and 1 024 masks to fit on, and the fresh draws: the same on every device but for rounding."""
        o = self.options
        paths = [self.path(kind, number, o.draws, o.fresh) for kind in ("fit", "fresh")]
        if not all(path.exists() for path in paths):
            x, target = self.input(number)
            asked = Options.of(methods=METHODS, objective="mean", seed=o.seed)
            job = begin(self.network, x, target, asked, [number])
            setting, score, points = job.ready.measurement, job.ready.score, job.ready.points
            base = setting.maps(score, points, derived=False)
            counts = Draws(o.draws, budget(o.draws).infidelity), Draws(o.fresh, max(200, o.fresh))
            tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
            known = self.path("m50", number, o.draws, o.device)
            for path, stream, count in zip(paths, ("fit", "fresh"), counts, strict=True):
                if stream == "fit" and known.exists():  # the neighbours of the timed run
                    masks = setting.evidence(score, points, base, count, stream, ("responses",))
                    write(path, Evidence(read(known).quadratic, masks.responses))
                else:
                    write(path, setting.evidence(score, points, base, count, stream))
            torch.backends.cudnn.allow_tf32 = tf32
        fit, fresh = map(read, paths)
        return fit, fresh


def write(path: Path, evidence: Evidence) -> None:
    assert evidence.quadratic is not None and evidence.responses is not None
    tensors = {**vars(evidence.quadratic), **vars(evidence.responses)}
    part = path.with_suffix(".part")
    save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, part)
    part.replace(path)


def read(path: Path) -> Evidence:
    t = load_file(path)
    return Evidence(Quadratic(t["draws"], t["norm"]), Responses(t["a"], t["y"]))


def shortened(evidence: Evidence, neighbours: int, masks: int) -> Evidence:
    """The first draws of each kind."""
    q, r = evidence.quadratic, evidence.responses
    assert q is not None and r is not None
    return Evidence(q.take(torch.arange(neighbours)), r.take(torch.arange(masks)))


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
    parts = [term.matrix(fresh) for _, term in named_objective("paper_opt").terms]  # type: ignore[union-attr]
    return torch.stack([part / torch.linalg.matrix_norm(part)[:, None, None] for part in parts]).sum(0)  # type: ignore[operator]


JUDGED = {
    "opt": "opt", "opt_sensitivity": "opt", "opt_faithfulness": "opt", "robust": "robust", "paper_opt": "paper_opt",
    "paper_robust": "paper_robust",
}  # fmt: skip
"""Value → the objective whose weights it judges."""


def weights(fit: Evidence, plain: dict[str, list[float]], m: int) -> dict[str, dict[str, list[float]]]:
    """Pipeline → objective → weights of one photograph; ``plain``: the reference's, by its own objectives."""
    few = shortened(fit, m, m)
    return {
        "m50": {name: Minimise(named_objective(name)).fit(few).weights[0].tolist() for name in OBJECTIVES},
        "auto": {name: replayed(fit, name, m)[0] for name in OBJECTIVES},
        "reference": {name: plain[BASELINES.get(name, name)] for name in OBJECTIVES},
    }


def halves(evidence: Evidence) -> list[Evidence]:
    """All draws, and each half of them."""
    q, r = evidence.quadratic, evidence.responses
    assert q is not None and r is not None
    parts = [(torch.arange(q.draws.shape[1]) % 2 == i, torch.arange(r.y.shape[1]) % 2 == i) for i in (0, 1)]
    return [evidence, *(Evidence(q.take(a), r.take(b)) for a, b in parts)]


def paired(found: list[dict], fresh: list[Evidence], ours: str, other: str) -> dict[str, dict]:
    """Value → mean over photographs of ours / other, and mean + 1.645 standard errors; the mean by each half of the fresh
    draws says what their number leaves open."""
    both = [(one, e) for one, e in zip(found, fresh, strict=True) if ours in one and other in one]
    table = {}
    for value, objective in JUDGED.items():
        ratios, *split = (
            [
                values(part, one[ours][objective])[value] / values(part, one[other][objective])[value]
                for one, part in parts
            ]
            for parts in zip(*([(one, part) for part in halves(e)] for one, e in both), strict=True)
        )
        mean, error = statistics.fmean(ratios), spread(ratios)
        table[value] = {
            "mean": mean, "upper95": None if error is None else mean + 1.645 * error, "stderr": error, "n": len(ratios),
            "median": statistics.median(ratios), "by_half": [statistics.fmean(half) for half in split],
            "each": [round(r, 5) for r in ratios],
        }  # fmt: skip
    return table


def curves(fit: list[Evidence], fresh: list[Evidence], gradients: int) -> dict[str, list[dict]]:
    """By number of draws: the fresh value above the fresh draws' own optimum, the cross-fitted regret, the evaluations.

    ``robust`` against neighbours and ``faith`` against masks, means over photographs; ``gradients`` of one explanation.
    """
    kinds = {"robust": NEIGHBOURS, "faith": tuple(16 * 2**i for i in range(8))}
    found: dict[str, list[dict]] = {}
    for name, counts in kinds.items():
        found[name] = []
        goal = named_objective(name)
        ((_, term),) = goal.terms  # type: ignore[union-attr]
        for count in counts:
            parts = [first(e, count, name) for e in fit]
            if any(part is None for part in parts):
                break
            weights = [
                (goal.minimise(part).weights, goal.minimise(e).weights) for part, e in zip(parts, fresh, strict=True)
            ]  # type: ignore[union-attr, arg-type]
            above = [
                float(term.loss(e, got[:, None]) / term.loss(e, best[:, None])) - 1
                for e, (got, best) in zip(fresh, weights, strict=True)
            ]
            doubts = (
                [
                    float(v)
                    for part, (got, _) in zip(parts, weights, strict=True)
                    for v in regret(Minimise(goal), part, got).values()
                ]
                if count >= 5
                else []
            )
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
    about = [bench.run(i, floor) for i in range(o.timed)]
    runs = [numbers["pipelines"] for numbers in about]
    fit, fresh = map(list, zip(*(bench.drawn(i) for i in range(o.count)), strict=True))
    plain = [bench.plain(i) for i in range(o.count)]
    found = [weights(e, one["weights"], o.draws) for e, one in zip(fit, plain, strict=True)]
    stops = {name: [replayed(e, name, o.draws)[1] for e in fit] for name in OBJECTIVES}
    # The weights of the pipelines as they were timed, beside those that follow from the stored draws.
    apart = {
        name: max(
            max(abs(a - b) for a, b in zip(run[f"auto {name}"]["weights"][name], one["auto"][name], strict=True))
            for run, one in zip(runs, found, strict=False)
        )
        for name in OBJECTIVES
    }
    for run, one in zip(runs, found, strict=False):
        one["bfloat16"] = dict.fromkeys(OBJECTIVES, run["auto opt, bfloat16"]["weights"]["opt"])
    memory, together = memories(o), bench.together()
    seconds = {name: [run[name]["seconds"] for run in runs] for name in runs[0]}
    lowest = floors(runs, row, o.draws)
    over = lambda a, b: statistics.fmean(x / y for x, y in zip(a, b, strict=True))  # noqa: E731
    m = str(o.draws)
    return {
        "ratio_floor": over(seconds["m50"], lowest),
        "ratio_reference": over(seconds["reference"], seconds["auto opt"]),
        "ratio_reference_bfloat16": over(seconds["reference"], seconds["auto opt, bfloat16"]),
        "ratio_reference_together": {
            name: statistics.fmean(seconds["reference"]) * call["images_per_second"] for name, call in together.items()
        },
        "ratio_reference_m50": over(seconds["reference"], seconds["m50"]),
        "ratio_reference_by_objective": {n: over(seconds["reference"], seconds[f"auto {n}"]) for n in OBJECTIVES},
        "value_auto_over_m50": paired(found, fresh, "auto", "m50"),
        "value_auto_over_reference": paired(found, fresh, "auto", "reference"),
        "value_m50_over_reference": paired(found, fresh, "m50", "reference"),
        "reference_on": dict(Counter(one["device"] for one in plain)),
        "value_bfloat16_over_auto": {
            name: value for name, value in paired(found, fresh, "bfloat16", "auto").items() if JUDGED[name] == "opt"
        },
        "peak_memory_ratio": memory["m50"][m] / memory["reference"][m],
        "peak_memory_ratio_auto": memory["auto opt"][m] / memory["reference"][m],
        "peak_memory_growth": memory["m50"][m] / memory["m50"][str(max(5, o.draws // 5))],
        "images_per_second": together["float32"]["images_per_second"],
        "together": together,
        "machine": about[0]["machine"],
        "n": len(fresh),
        "n_timed": len(runs),
        "seconds": {n: {"mean": statistics.fmean(s), "median": statistics.median(s)} for n, s in seconds.items()}
        | {"floor": {"mean": statistics.fmean(lowest), "median": statistics.median(lowest)}},
        "evaluations": {
            n: {kind: statistics.fmean(run[n][kind] for run in runs) for kind in ("gradient", "forward")} for n in runs[0]
        } | {"floor": {"gradient": (o.draws + 1) * row["gradient"], "forward": (o.draws + 1) * row["forward"] + o.draws}},
        "draws_until_sure": {
            name: {
                kind: statistics.fmean(said[kind] for said in each) for kind in ("average_sensitivity", "infidelity")
            } | {"stopped": dict(Counter(said["stopped"].split(",")[0].split(" ")[0] for said in each))}
            for name, each in stops.items()
        },
        "weights_apart": apart,
        "peak_memory_mib": memory,
        "curves": curves(fit, fresh, row["gradient"]),
        "settings": {
            "model": "torchvision:resnet18", "weights": bench.loaded.weights, "methods": list(Stack(resolve(METHODS)).names),
            "draws": o.draws, "fresh_neighbours": o.fresh, "fresh_masks": max(200, o.fresh), "seed": o.seed,
            "side": o.side or 224, "layout": "channels_last", "reference_layout": "contiguous",
            "noise": "common to all neighbours when judged; redrawn in the reference",
        },
        "floor_settings": about[0]["floor"],
        "images": [
            {"file": file, "floor": f, "load": numbers["machine"]["load"], "pipelines": numbers["pipelines"]}
            for (file, _), f, numbers in zip(bench.files, lowest, about, strict=False)
        ],
    }  # fmt: skip


def shown(result: dict) -> str:
    """Markdown, for docs/speed.md."""
    settings, about = result["settings"], result["machine"]
    versions = ", ".join(f"{name} {about[name]}" for name in ("torch", "captum", "cvxpy"))
    lines = [
        f"{result['n']} photographs judged on {settings['fresh_neighbours']} fresh neighbours and {settings['fresh_masks']}",
        f"fresh masks, the first {result['n_timed']} of them timed. {about['threads']} threads of {about['cpu']}",
        f"({about['device']}), {versions}.",
        f"The plain pipeline's weights: {', '.join(f'{n} from {name}' for name, n in result['reference_on'].items())}.",
        "", "| | |", "|---|---|",
    ]  # fmt: skip
    for name, words in (
        ("ratio_floor", "time at m = 50 / floor"),
        ("ratio_reference_m50", "plain pipeline / ours, same draws"),
        ("ratio_reference", 'plain pipeline / ours with `draws="auto"`, `opt`'),
        ("ratio_reference_bfloat16", "… under bfloat16 autocast"),
        ("peak_memory_ratio", "peak memory, ours at m = 50 / plain pipeline"),
        ("peak_memory_growth", "peak memory, ours at m = 50 / at m = 10"),
    ):
        lines.append(f"| {words} (`{name}`) | **{result[name]:.2f}** |")
    lines += [
        "",
        "| pipeline | seconds a photograph | gradients | forwards | peak memory, MiB |",
        "|---|---|---|---|---|",
    ]
    for name, took in result["seconds"].items():
        count = result["evaluations"][name]
        peak = result["peak_memory_mib"].get(name, {}).get(str(settings["draws"]))
        peak = "" if peak is None else f"{peak:.0f}"
        lines.append(f"| {name} | {took['mean']:.3g} | {count['gradient']:.0f} | {count['forward']:.0f} | {peak} |")
    for name, call in result["together"].items():
        lines.append(
            f"| auto opt, {call['n']} photographs in one call, {name} | {1 / call['images_per_second']:.3g} | "
            f"{call['gradient']:.0f} | {call['forward']:.0f} | |"
        )
    lines += ["", "| draws until sure | neighbours | masks | stopped by |", "|---|---|---|---|"]
    for name, drew in result["draws_until_sure"].items():
        why = ", ".join(f"{reason} {count}" for reason, count in drew["stopped"].items())
        lines.append(f"| {name} | {drew['average_sensitivity']:.1f} | {drew['infidelity']:.0f} | {why} |")
    pairs = ("auto_over_m50", "auto_over_reference", "m50_over_reference")
    tables = [result[f"value_{pair}"] for pair in pairs]
    heads = " | ".join(
        f"{pair.replace('_over_', ' / ')}, n = {t['opt']['n']}" for pair, t in zip(pairs, tables, strict=True)
    )
    lines += ["", f"| ratio of values on fresh draws, mean (upper 95 % limit) | {heads} |", "|---" * 4 + "|"]
    for name in tables[0]:
        cells = (f"{t[name]['mean']:.3f} ({t[name]['upper95'] or math.nan:.3f})" for t in tables)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    half = (
        f"{name} {value['mean']:.3f} ({value['upper95'] or math.nan:.3f})"
        for name, value in result["value_bfloat16_over_auto"].items()
    )
    lines += [
        "",
        "Weights for `opt` found under bfloat16 autocast over those found in float32, both judged in float32:",
    ]
    lines.append(", ".join(half) + ".")
    for name, points in result["curves"].items():
        unit = "neighbours" if name == "robust" else "masks"
        lines += ["", f"| {name}: {unit} | gradients | above the optimum | regret |", "|---|---|---|---|"]
        for p in points:
            said = "–" if p["regret"] is None else f"{p['regret']:.1%}"
            lines.append(
                f"| {p['draws']} | {p['gradients']} | {p['above_optimum']:.1%} ± {p['stderr'] or 0:.1%} | {said} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--show", help="print a stored file's tables and do nothing else")
    parser.add_argument("--page", help="with --show: a Markdown page, in which the tables are put between the marks")
    parser.add_argument("--images")
    parser.add_argument("--labels", help="CSV with columns file and class_index")
    parser.add_argument("--weights", help="a state dict of torchvision's resnet18")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--timed", type=int, help="how many of them are timed (default: all)")
    parser.add_argument("--together", type=int, help="how many of them in one call (default: those timed)")
    parser.add_argument(
        "--fresh", type=int, default=200, help="neighbours (and masks, at least 200) that judge the weights"
    )
    parser.add_argument("--stage", choices=("draws", "time", "all"), default="all")
    parser.add_argument("--threads", type=int, help="default: PyTorch's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", default="out/speed-cache")
    parser.add_argument("--out")
    parser.add_argument("--draws", type=int, default=50, help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--pipeline", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.show:
        text = shown(json.loads(Path(options.show).read_text(encoding="utf-8")))
        return fill(options.page, Path(options.show).stem, text) if options.page else print(text)
    if not (options.images and options.labels and options.weights and options.out):
        parser.error("--images, --labels, --weights and --out are needed, or --show")
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.pipeline:
        memory(options)
        return
    options.timed = min(options.timed or options.count, options.count)
    options.together = min(options.together or options.timed, options.count)
    bench = Bench(options)
    floor = None
    files = [file for file, _ in bench.files]
    if options.stage != "draws":
        if not all(bench.timed(i) for i in range(options.timed)):
            floor = Floor(bench.loaded.module, *bench.input(0))
            floor.settle((1, 2, 4, 8, 16, 32) if bench.device.type == "cpu" else (16, 32, 64, 128, 256, 512))
        bench.together()
        for i, file in enumerate(files[: options.timed]):
            print(f"time {i + 1} {file}", flush=True)
            bench.run(i, floor)
    if options.stage != "time":
        for i, file in reversed(
            [*enumerate(files)]
        ):  # those that are not timed first: the others' neighbours will be there
            began = time.perf_counter()
            bench.drawn(i)
            bench.plain(i)
            print(f"draws {i + 1} {file}: {time.perf_counter() - began:.0f} s", flush=True)
    if options.stage != "all":
        return
    result = report(bench, floor)
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    Path(options.out).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(shown(result))


if __name__ == "__main__":
    main()
