"""What a first answer costs: passes, rows, waits and time of the present code beside commit d8669c4, in the same run.

    python benchmarks/first_answer.py --out benchmarks/results/first_answer.json [--cases coffee,table] [--again]
    python benchmarks/first_answer.py --show benchmarks/results/first_answer.json [--page docs/speed.md]

The four photographs and the model of ``make demo``, in its layout, and a table of 13 columns with a small network. Two jobs:

- *answer*: ``Consensus(…).attribute(x)``, weights and map alone;
- *explain*: ``cs.explain(…)``, with the table and the verdict.

Each job of each case runs in a process of its own, the reference's and the present one's in turn, so that a machine that slows
down slows both: what is stored of the clock is the ratio. The reference is checked out into a git worktree under ``--cache``.
Counts come from a second run of every job, with small photographs (``SIDE``) and 128 rows in flight, the number that an
accelerator gets: there a pass costs about the same whatever it holds, so few large passes are what counts. Waits are what
would make the host wait for an accelerator (:mod:`operations`), of 20 photographs in one call.

A number that is in the file is not made again, unless the code has changed or ``--again`` is given.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pages import fill

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = "d8669c4"
PHOTOGRAPHS = ("coffee", "chelsea", "rocket", "motorcycle")
JOBS = ("answer", "explain")
SIDE = 64
IN_FLIGHT = 128
TOGETHER = 20
FEW = 32
"""Passes of fewer rows leave an accelerator idle."""

GOALS = {
    "explain": {"gradients": 300, "forwards": 500, "ratio": 0.25},
    "answer": {"gradients": 100, "forwards": 300, "ratio": 0.25},
}
"""Of one photograph. The ratio is of seconds, to the reference."""


# -- one measurement, in a process of its own --------------------------------------------------------------------------


def photograph(name: str, side: int | None) -> tuple[Any, Any]:
    """The demo's model in its layout, and one photograph (1, 3, H, W)."""
    import torch

    from consilience.data.images import read_image
    from consilience.data.models import load_model

    loaded = load_model("demo")
    x = loaded.preprocess(read_image(f"sample:{name}"))[None]
    if side is not None:
        x = torch.nn.functional.interpolate(x, size=side, mode="area")
    return loaded.module.to(memory_format=torch.channels_last), x


def table() -> tuple[Any, Any]:
    """A network with random weights on 13 columns, and one row."""
    import torch
    from torch import nn

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)).eval()
        return model, torch.randn(1, 13)


def made(case: str, side: int | None = None, inputs: int = 1) -> tuple[Any, Any]:
    """The model and the inputs of a case."""
    import torch

    model, x = table() if case == "table" else photograph(case, side)
    if inputs > 1:
        # Other photographs of the same size: the same one, shifted and mirrored.
        shifted = [x.roll(number, -1) if number % 2 else x.roll(number, -1).flip(-1) for number in range(inputs)]
        x = torch.cat(shifted)
    return model, x


def run(job: str, model: Any, x: Any, **options: Any) -> Any:
    """One call."""
    import consilience as cs

    if job == "answer":
        return cs.Consensus(model, **options).attribute(x)
    return cs.explain(model, x, **options)


def measured(kind: str, case: str, job: str) -> dict[str, Any]:
    """One measurement: "time", "counts" or "waits"."""
    import torch
    from operations import Operations, passes

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    if kind == "time":
        model, x = made(case)
        with passes(model) as seen:
            wall, cpu = time.perf_counter(), time.process_time()
            run(job, model, x)
            seconds = time.perf_counter() - wall
            cpu_seconds = time.process_time() - cpu
        return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu_seconds, 2), **summary(seen)}
    if kind == "counts":
        model, x = made(case, SIDE)
        with passes(model) as seen:
            run(job, model, x, max_batch=IN_FLIGHT)
        return {**summary(seen), "rows of each pass": [rows if forward else -rows for rows, forward in _signed(seen)]}
    model, x = made(case, SIDE, TOGETHER)
    with passes(model) as seen, Operations() as operations:
        run(job, model, x, max_batch=IN_FLIGHT)
    return {
        "waits": operations.synchronisations,
        "operations": operations.total,
        "passes": len(seen),
        "where": dict(operations.waits.most_common(12)),
    }


def _signed(seen: list[tuple[int, bool]]) -> Iterator[tuple[int, bool]]:
    """(rows, whether only outputs were asked) of each pass."""
    for rows, graph in seen:
        yield rows, not graph


def summary(seen: list[tuple[int, bool]]) -> dict[str, int]:
    """Passes, and rows with and without a gradient."""
    return {
        "passes": len(seen),
        f"passes under {FEW} rows": sum(rows < FEW for rows, _ in seen),
        "gradients": sum(rows for rows, graph in seen if graph),
        "forwards": sum(rows for rows, graph in seen if not graph),
    }


# -- both versions -----------------------------------------------------------------------------------------------------


def reference(cache: Path) -> Path:
    """A checkout of the reference commit."""
    folder = cache / REFERENCE
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "-C", ROOT, "worktree", "prune"], check=True)
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--detach", folder, REFERENCE], check=True)
    return folder


def measure_apart(folder: Path, kind: str, case: str, job: str) -> dict[str, Any]:
    """A measurement of the library in ``folder``."""
    environment = {**os.environ, "PYTHONPATH": str(folder / "src")}
    command = [sys.executable, __file__, "--measure", kind, case, job]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[2:])} in {folder}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def version() -> str:
    """What the present code is known by: a hash of what is in src/."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "src").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def wanted(cases: list[str], jobs: list[str], kinds: list[str]) -> Iterator[tuple[str, str, str]]:
    """(kind, case, job) of every measurement; waits of one photograph are enough."""
    for case in cases:
        for job in jobs:
            for kind in kinds:
                if kind != "waits" or case == "coffee":
                    yield kind, case, job


# -- showing -----------------------------------------------------------------------------------------------------------


def shown(result: dict[str, Any]) -> str:
    """Tables of what is stored, beside the goals."""
    lines = [
        "| case | job | gradients | forwards | seconds / reference | CPU seconds / reference |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in result["measured"].items():
        kind, case, job = name.split("/")
        if kind != "time":
            continue
        before, now = row["reference"], row["now"]
        cells = [case, job]
        for count in ("gradients", "forwards"):
            goal = f" (goal {GOALS[job][count]})" if case != "table" else ""
            cells.append(f"{before[count]} → {now[count]}{goal}")
        goal = f" (goal {GOALS[job]['ratio']})" if case != "table" else ""
        cells.append(f"{now['seconds'] / before['seconds']:.2f}{goal}")
        cells.append(f"{now['cpu_seconds'] / before['cpu_seconds']:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"| {IN_FLIGHT} rows in flight | job | passes | under {FEW} rows |", "|---|---|---|---|"]
    for name, row in result["measured"].items():
        kind, case, job = name.split("/")
        if kind == "counts":
            few = f"passes under {FEW} rows"
            before, now = row["reference"], row["now"]
            lines.append(f"| {case} | {job} | {before['passes']} → {now['passes']} | {before[few]} → {now[few]} |")
    lines += ["", f"| {TOGETHER} photographs in one call | waits | operations | passes |", "|---|---|---|---|"]
    for name, row in result["measured"].items():
        kind, _, job = name.split("/")
        if kind == "waits":
            counts = [f"{row['reference'][count]} → {row['now'][count]}" for count in ("waits", "operations", "passes")]
            lines.append(f"| {job} | {' | '.join(counts)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "first_answer.json"))
    parser.add_argument(
        "--cache", default=str(ROOT / "out" / "first_answer"), help="where the reference is checked out"
    )
    parser.add_argument("--cases", default=",".join((*PHOTOGRAPHS, "table")))
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument("--kinds", default="counts,waits,time")
    parser.add_argument("--again", action="store_true", help="make what is there already anew")
    parser.add_argument("--show", help="print a stored file's tables and do nothing else")
    parser.add_argument("--page", help="with --show: a Markdown page, in which they are put between the marks")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measured(*options.measure)))
        return
    if options.show:
        text = shown(json.loads(Path(options.show).read_text(encoding="utf-8")))
        return fill(options.page, "first_answer", text) if options.page else print(text)
    path = Path(options.out)
    result: dict[str, Any] = {"reference": REFERENCE, "goals": GOALS, "measured": {}}
    if path.exists():
        result = json.loads(path.read_text(encoding="utf-8"))
    folder = reference(Path(options.cache))
    now = version()
    for kind, case, job in wanted(options.cases.split(","), options.jobs.split(","), options.kinds.split(",")):
        name = f"{kind}/{case}/{job}"
        known = result["measured"].get(name, {})
        if known.get("version") == now and not options.again:
            continue
        row: dict[str, Any] = {"version": now}
        # The reference's counts do not change; its clock is read beside ours.
        row["reference"] = known.get("reference") if kind != "time" else None
        if row["reference"] is None:
            row["reference"] = measure_apart(folder, kind, case, job)
        row["now"] = measure_apart(ROOT, kind, case, job)
        result["measured"][name] = row
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(
            name, json.dumps({"reference": row["reference"], "now": row["now"]}, ensure_ascii=False)[:400], flush=True
        )
    print(shown(result))


if __name__ == "__main__":
    main()
