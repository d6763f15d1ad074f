"""Does training for local explanations give them? Error, and fidelity and stability of LIME's and MAPLE's local models.

    python benchmarks/expo.py --data autompg,housing,winequality-red,support2,day,music,communities --folder DIR \\
        --out benchmarks/results/expo_tables.json
    python benchmarks/expo.py --data support2 --folder DIR --steps 600 --splits 2 --rows 40 \\
        --out benchmarks/results/expo_steps.json
    python benchmarks/expo.py --show benchmarks/results/expo_tables.json --page docs/expo.md

For no regulariser, Fidelity and 1D-Fidelity (Plumb et al. 2020, arXiv 1902.06787): the mean squared error or the accuracy on
all test rows; of LIME (samples around the training mean, as the lime package draws them, and around x) and of MAPLE on
``--rows`` of them: PF, NF and S, see :class:`consilience.measures.local_models.LocalModels`. A factor is the mean without
regulariser over the mean with it; above 1 is better. The published ones are beside. ``--steps`` trains for exactly so many and
takes the last weights, instead of those of the best validation.

Every finished (data, objective, split) is kept in ``--cache``: an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from consilience.data.sets import Data, load
from consilience.measures.local_models import LocalModels
from consilience.model.score import Score
from consilience.perturb.points import Points
from consilience.statistics.keys import Key

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from expo_presets import OBJECTIVES, PRESETS, TITLES, Preset, losses, network, regulariser, task, validation
from pages import fill

SCALED = {"music": 300, "communities": 300}
SCALED_ABOUT = "At most 300 training steps in place of 2000: n = 2d draws make a Fidelity step dear."
LAST_ABOUT = "Here: exactly {} training steps and the last weights, no early stopping."
LOCAL = ("LIME-PF", "LIME-NF", "LIME-S", "LIME-x-PF", "LIME-x-NF", "LIME-x-S", "MAPLE-PF", "MAPLE-NF", "MAPLE-S")

# None / Fidelity / 1D-Fidelity, from the paper's tables.
PUBLISHED: dict[str, dict[str, Sequence[float]]] = {
    "autompg": {
        "MSE": (0.14, 0.13, 0.13), "LIME-NF": (0.041, 0.011, 0.029), "MAPLE-NF": (0.018, 0.0015, 0.0084),
        "MAPLE-S": (0.015, 0.0017, 0.0077),
    },
    "communities": {
        "MSE": (0.49, 0.46, 0.55), "LIME-NF": (0.11, 0.079, 0.080), "MAPLE-NF": (0.31, 0.24, 0.16),
        "MAPLE-S": (1.2, 0.77, 0.60),
    },
    "housing": {
        "MSE": (0.14, 0.15, 0.15), "LIME-NF": (0.14, 0.057, 0.064), "MAPLE-NF": (0.066, 0.033, 0.032),
        "MAPLE-S": (0.18, 0.10, 0.088),
    },
    "music": {
        "MSE": (0.72, 0.67, 0.74), "LIME-NF": (0.11, 0.066, 0.080), "MAPLE-NF": (0.18, 0.14, 0.14),
        "MAPLE-S": (0.081, 0.050, 0.045),
    },
    "winequality-red": {
        "MSE": (0.65, 0.64, 0.66), "LIME-NF": (0.033, 0.0025, 0.0029), "MAPLE-NF": (0.013, 0.0028, 0.0017),
        "MAPLE-S": (0.0043, 0.0009, 0.0004),
    },
    "support2": {
        "LIME-NF": (0.182, 0.051, 0.0852), "MAPLE-NF": (0.0348, 0.0180, 0.0250), "MAPLE-S": (0.341, 0.133, 0.158),
    },
}  # fmt: skip


# -- one (data, objective, split) --------------------------------------------------------------------------------------


def trained(preset: Preset, name: str, data: Data, seed: int, last: bool = False) -> tuple[nn.Module, dict]:
    """The weights of the best validation, or the last ones. The order of the rows is a function of (seed, epoch)."""
    part, model = data.train, network(preset, data, seed)
    extra = regulariser(preset, name, model, part, seed)
    optimiser = torch.optim.Adam(model.parameters(), preset.lr)
    best, kept, checked, step, epoch, found = float("inf"), copy.deepcopy(model.state_dict()), 0, 0, 0, {}
    patience = preset.steps if last else preset.patience
    while step < preset.steps and checked < patience:
        keyed = torch.Generator().manual_seed(1_000_003 * seed + epoch)
        for rows in torch.randperm(len(part), generator=keyed).split(preset.batch):
            loss, parts = losses(preset, model, extra, part.x[rows], part.y[rows], part.ids[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
            if step % preset.every == 0:
                value = float(validation(preset, model, extra, data.validation)["loss"])
                checked += 1
                if value < best or last:
                    best, checked, kept = value, 0, copy.deepcopy(model.state_dict())
                    found = {"step": step, "validation loss": value} | {k: float(v) for k, v in parts.items()}
            if step == preset.steps or checked == patience:
                break
        epoch += 1
    if last:
        kept = model.state_dict()
    model.load_state_dict(kept)
    return model.eval(), found | {"steps": step}


@torch.no_grad()
def error(model: nn.Module, data: Data) -> dict[str, float]:
    outputs, y = model(data.test.x), data.test.y
    if data.classes:
        return {"accuracy": float((outputs.argmax(1) == y).double().mean()), "cross-entropy": float(task(outputs, y))}
    return {"MSE": float(task(outputs, y))}


def measured(model: nn.Module, data: Data, rows: int, seed: int) -> dict[str, float]:
    """Means over test rows. Of two logits the second, that of the positive class, is explained."""
    part = data.test[torch.randperm(len(data.test), generator=torch.Generator().manual_seed(seed))[:rows].sort()[0]]
    score = Score(
        model, 1 if data.classes else None, kind="logit" if data.classes else "output", ids=part.ids, max_batch=1024
    )
    score, points = score.at(part.x), Points(part.x, torch.arange(len(part)), part.ids, len(part))
    models = {
        "LIME": LocalModels(data.train.x),
        "LIME-x": LocalModels(data.train.x, around="x"),
        "MAPLE": LocalModels(data.train.x, "maple", validation=data.validation.x),
    }
    found = {}
    for name, local in models.items():
        quality = local(score, points, Key(seed, "expo"))
        for short, values in (("PF", quality.point), ("NF", quality.neighbourhood), ("S", quality.stability)):
            found[f"{name}-{short}"] = float(values.mean())
    return found


def finished(preset: Preset, name: str, seed: int, options: argparse.Namespace) -> dict:
    made = (replace(preset, about=""), options.rows, *(["last"] if options.steps else []))
    digest = hashlib.sha256(repr(made).encode()).hexdigest()[:10]
    path = Path(options.cache) / f"{preset.data}-{name}-{seed}-{digest}.json"
    if not path.exists():
        data, began = load(preset.data, options.folder, seed=seed), time.perf_counter()
        model, last = trained(preset, name, data, seed, last=bool(options.steps))
        middle = time.perf_counter()
        values = error(model, data) | measured(model, data, options.rows, seed)
        seconds = [round(middle - began, 1), round(time.perf_counter() - middle, 1)]
        about = {
            "last": last, "seconds": seconds, "rows": min(options.rows, len(data.test)), "test": len(data.test),
            "features": data.train.x.shape[1], "notes": list(data.notes),
        }  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps({"values": values, **about}), encoding="utf-8")
        unfinished.replace(path)
    return json.loads(path.read_text(encoding="utf-8"))


# -- rows --------------------------------------------------------------------------------------------------------------


def ratio(over: Tensor, under: Tensor) -> tuple[float, float]:
    """mean(over) / mean(under) of paired splits, with the jackknife's standard error."""
    n = len(over)
    left = (over.sum() - over) / (under.sum() - under)
    spread = ((n - 1) / n * (left - left.mean()).square().sum()).sqrt()
    return float(over.mean() / under.mean()), float(spread)


def rows(data: str, found: dict[tuple[str, int], dict], seeds: int) -> list[dict]:
    """Means over splits with standard errors, and the factors none / regularised with the published ones."""
    table = []
    first = found["none", 0]

    def add(name: str, metric: str, value: float, spread: float, **more: object) -> None:
        n = seeds * first["rows" if metric.startswith(("LIME", "MAPLE")) else "test"]
        line = {
            "data": data,
            "objective": name,
            "metric": metric,
            "value": value,
            "stderr": spread,
            "n": n,
            "seeds": seeds,
        }
        table.append({key: float(f"{v:.5g}") if isinstance(v, float) else v for key, v in (line | more).items()})

    for metric in first["values"]:
        plain = torch.tensor([found["none", s]["values"][metric] for s in range(seeds)], dtype=torch.float64)
        published = PUBLISHED.get(data, {}).get(metric)
        for at, name in enumerate(OBJECTIVES):
            values = torch.tensor([found[name, s]["values"][metric] for s in range(seeds)], dtype=torch.float64)
            more = {"published": published[at]} if published else {}
            add(name, metric, float(values.mean()), float(values.std() / seeds**0.5), **more)
            if at and metric in LOCAL:
                more = {"published": published[0] / published[at]} if published else {}
                add(name, f"{metric} factor", *ratio(plain, values), **more)
            elif at:
                difference = values - plain
                add(name, f"{metric}, minus none", float(difference.mean()), float(difference.std() / seeds**0.5))
    return table


def machine() -> dict:
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return {"cpu": model, "threads": torch.get_num_threads(), "torch": torch.__version__}


def shown(table: list[dict]) -> str:
    """Markdown: the error, NF and S, and the factors (published in brackets)."""
    cells = {(row["data"], row["objective"], row["metric"]): row for row in table}
    local = [metric for metric in LOCAL if not metric.endswith("PF")]

    def cell(data: str, name: str, metric: str) -> str:
        row = cells.get((data, name, metric))
        if row is None:
            return "–"
        known = f" [{number(row['published'], 2)}]" if "published" in row else ""
        return f"{number(row['value'], 3)} ± {number(row['stderr'], 1)}{known}"

    def number(value: float, digits: int) -> str:
        if value and not 1e-3 <= abs(value) < 1000:
            return f"{value:.{min(digits, 2) - 1}e}"
        text = f"{value:.{digits}g}"
        return f"{float(text):.0f}" if "e" in text else text

    def lines(head: list[str], body: list[list[str]]) -> list[str]:
        return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body)]

    values, factors = [], []
    for data in dict.fromkeys(row["data"] for row in table):
        kind = "accuracy" if (data, "none", "accuracy") in cells else "MSE"
        for name in OBJECTIVES:
            title = f"{data}, {kind}" if name == "none" else ""
            values.append(
                [title, TITLES[name], cell(data, name, kind), *(cell(data, name, metric) for metric in local)]
            )
            if name != "none":
                title = data if name == OBJECTIVES[1] else ""
                factors.append([title, TITLES[name], *(cell(data, name, f"{metric} factor") for metric in local)])
    first = lines(["data", "training", "error", *local], values)
    return "\n".join([*first, "", "Factors, none / regularised:", "", *lines(["data", "training", *local], factors)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="autompg,housing,winequality-red,support2,day,music,communities")
    parser.add_argument("--folder", help="where the data sets' files are")
    parser.add_argument("--out", help="the JSON file; written anew after each data set")
    parser.add_argument("--show", help="print a stored file's tables and do nothing else")
    parser.add_argument("--page", help="with --show: a Markdown page, in which the tables are put between its marks")
    parser.add_argument("--cache", default="out/expo-cache")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument(
        "--rows", type=int, default=100, help="test rows of each split at which local models are fitted"
    )
    parser.add_argument("--steps", type=int, help="train for exactly so many, without early stopping")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.show:
        text = shown(json.loads(Path(options.show).read_text(encoding="utf-8"))["rows"])
        mark = "expo" if Path(options.show).stem == "expo_tables" else Path(options.show).stem
        return fill(options.page, mark, text) if options.page else print(text)
    if not options.out or not set(names := options.data.split(",")) <= set(PRESETS) or options.splits < 2:
        parser.error(f"--out is needed, --data from {', '.join(PRESETS)}, and at least 2 --splits")
    torch.set_num_threads(options.threads)
    table, settings = [], {"splits": options.splits, "rows": options.rows, "data": {}}
    for name in names:
        preset, about = PRESETS[name], PRESETS[name].about
        if options.steps:
            preset, about = replace(preset, steps=options.steps), f"{about} {LAST_ABOUT.format(options.steps)}"
        elif name in SCALED:
            preset, about = replace(preset, steps=SCALED[name]), f"{about} {SCALED_ABOUT}"
        found = {}
        for seed in range(options.splits):
            for objective in OBJECTIVES:
                one = found[objective, seed] = finished(preset, objective, seed, options)
                some = {k: v for k, v in one["values"].items() if k[-2:] in ("NF", "-S") or k in ("MSE", "accuracy")}
                line = "  ".join(f"{key} {value:.3g}" for key, value in some.items())
                print(f"{name} {seed} {TITLES[objective]:<12} {line}  {one['last']} {one['seconds']}", flush=True)
        table += rows(name, found, options.splits)
        settings["data"][name] = asdict(preset) | {
            "about": about, "features": found["none", 0]["features"], "test_rows": found["none", 0]["test"],
            "notes": found["none", 0]["notes"],
            "best_step": {o: [found[o, s]["last"].get("step") for s in range(options.splits)] for o in OBJECTIVES},
            "weight": {o: [found[o, s]["last"].get("weight") for s in range(options.splits)] for o in OBJECTIVES[1:]},
            "seconds": {o: [found[o, s]["seconds"] for s in range(options.splits)] for o in OBJECTIVES},
        }  # fmt: skip
        result = {"rows": table, "settings": settings, "machine": machine()}
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        Path(options.out).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(shown(table))


if __name__ == "__main__":
    main()
