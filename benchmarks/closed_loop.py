"""Does training for better explanations make their aggregation unnecessary, or do the two add up?

    python benchmarks/closed_loop.py --data digits,diabetes --out benchmarks/results/closed_loop.json
    python benchmarks/closed_loop.py --data digits,housing --folder DIR --out benchmarks/results/closed_loop.json
    python benchmarks/closed_loop.py --show benchmarks/results/closed_loop.json --page docs/expo.md

Models trained without and with a regulariser, over seeds; for each, on the same test inputs, the single methods, their mean,
and the consensus (robust, faith, opt), fitted on one set of draws and judged on fresh ones: relative sensitivity,
faithfulness correlation, infidelity (1: as good as a uniform map). The label's output is explained. "best single": the method
that was best by the same criterion on the fitting draws, chosen for each input. Differences are paired by input and seed.

Every finished (data, training, seed) is kept in ``--cache``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import consilience as cs
from consilience import train
from consilience.combine.named import named_objective
from consilience.data.sets import Data, load
from consilience.perturb.mask_order import SHARES
from consilience.statistics.criteria import CRITERIA, HIGHER_IS_BETTER
from consilience.statistics.evidence import joined

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import expo
import expo_presets
import rar_presets
from pages import fill

JUDGED = ("relative_sensitivity", "faithfulness_correlation", "infidelity")
GOALS = ("robust", "faith", "opt")
BEST = {"relative_sensitivity": "robust", "faithfulness_correlation": "faith", "infidelity": "faith"}
METHODS = {
    "digits": "standard",
    "table": [
        "saliency", "input_x_gradient", "integrated_gradients", "smoothgrad", "vargrad", "deeplift", "feature_ablation",
    ],
}  # fmt: skip
TRAININGS = {"digits": ("natural", "ig_sum_norm", "penalty"), "table": ("natural", "fidelity")}
TITLES = {
    "natural": "natural", "ig_sum_norm": "IG-SUM-NORM", "penalty": "Penalty", "fidelity": "Fidelity",
}  # fmt: skip
ABOUT = {
    "natural": "the task loss",
    "ig_sum_norm": "recipes/rar_presets.py, preset digits, with 3 steps, 4 and 2 IG points in place of 5, 8 and 4",
    "penalty": "task + Penalty(AverageSensitivity(.1), input_x_gradient, draws=2)",
    "fidelity": "recipes/expo_presets.py, the table's preset",
}


# -- models ------------------------------------------------------------------------------------------------------------


def digits_model(name: str, data: Data, seed: int) -> nn.Module:
    """The digits network of recipes/rar_presets.py; a regulariser joins natural training, with the same rows and rate."""
    preset = replace(rar_presets.PRESETS["digits"], steps=3, points=4, attack_points=2)
    whole = rar_presets.objective(preset, name if name == "ig_sum_norm" else "natural", seed, 256)
    extra: train.TrainingObjective | None = None
    if name == "penalty":
        metric = cs.AverageSensitivity(0.1)
        extra = train.Penalty(metric, "input_x_gradient", draws=2, weight=1.0, seed=seed, max_batch=1024)
    model, part, step = rar_presets.network(preset, len(data.classes), seed), data.train, 0
    optimiser, rate = rar_presets.optimisers(preset, "natural", list(model.parameters()))
    while step < preset.train_steps:
        keyed = torch.Generator().manual_seed(1_000_003 * seed + step)
        for rows in torch.randperm(len(part), generator=keyed).split(preset.batch)[: preset.train_steps - step]:
            batch = part.x[rows], part.y[rows], part.ids[rows]
            loss = whole(model, *batch).total
            if extra is not None:
                loss = loss + extra(model, *batch).total
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            rate.step()
            step += 1
    return model.eval()


def model_of(name: str, data: Data, seed: int) -> nn.Module:
    if data.name == "digits":
        return digits_model(name, data, seed)
    objective = "none" if name == "natural" else name
    return expo.trained(expo_presets.PRESETS[data.name], objective, data, seed)[0]


# -- one (data, training, seed) ----------------------------------------------------------------------------------------


def judged(model: nn.Module, data: Data, options: Namespace) -> dict[str, Tensor]:
    """{criterion/row: (B,)} on fresh draws, and the task's error or accuracy on all test rows."""
    part = data.test[
        torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))[: options.inputs].sort()[0]
    ]
    found = cs.explain(
        model, part.x, part.y if data.classes else None, methods=METHODS["digits" if data.name == "digits" else "table"],
        objective="opt", ids=part.ids, kind="logit" if data.classes else "output", fit_draws=options.fit,
        fresh_draws=options.fresh, resolved_draws=0, max_batch=1024,
    )  # fmt: skip
    fit, fresh = (joined(found.evidence[stream]).clean() for stream in ("fit", "fresh"))
    k, count = len(found.methods), fit.quadratic.norm.shape[1]
    eye = torch.eye(count, dtype=torch.float64)
    corners = eye[:k].expand(len(part), k, count)
    rows = {name: eye[i].expand(len(part), count) for i, name in enumerate([*found.methods, "mean"])}
    for goal in GOALS:
        weights = named_objective(goal).minimise(fit.rows(slice(k))).weights
        rows[f"consensus {goal}"] = torch.cat([weights, weights.new_zeros(len(part), count - k)], 1)
    values = {}
    for criterion in JUDGED:
        inside = CRITERIA[criterion](fit, corners).value
        best = inside.nan_to_num(-9).argmax(1) if criterion in HIGHER_IS_BETTER else inside.nan_to_num(9e9).argmin(1)
        every = {**rows, "best single": eye[best]}
        fresh_values = CRITERIA[criterion](fresh, torch.stack([*every.values()], 1)).value
        values |= {f"{criterion}/{name}": fresh_values[:, i] for i, name in enumerate(every)}
    with torch.no_grad():
        outputs = model(data.test.x)
    right = (outputs.argmax(1) == data.test.y).double() if data.classes else (outputs[:, 0] - data.test.y).double() ** 2
    return {**values, "task": right, "weights": found.weights.double()}


def everything(data: Data, options: Namespace) -> Iterator[tuple[str, int, dict[str, Tensor]]]:
    kind = "digits" if data.name == "digits" else "table"
    preset = rar_presets.PRESETS["digits"] if kind == "digits" else expo_presets.PRESETS[data.name]
    functions = {"network": None} if kind == "digits" else {}
    made = (options.inputs, options.fit, options.fresh, METHODS[kind], ABOUT, replace(preset, about="", **functions))
    digest = hashlib.sha256(repr(made).encode()).hexdigest()[:10]
    for seed in range(options.seeds):
        for name in TRAININGS[kind]:
            path = Path(options.cache) / f"{data.name}-{name}-{seed}-{digest}.safetensors"
            began = time.perf_counter()
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                save_file(
                    {k: v.contiguous() for k, v in judged(model_of(name, data, seed), data, options).items()}, path
                )
            values = load_file(path)
            line = "  ".join(f"{c} {float(values[f'{c}/consensus {BEST[c]}'].nanmean()):.3f}" for c in JUDGED)
            print(f"{data.name} {seed} {name:<12} task {float(values['task'].mean()):.3f}  {line}  "
                  f"{time.perf_counter() - began:.0f} s", flush=True)  # fmt: skip
            yield name, seed, values


# -- rows --------------------------------------------------------------------------------------------------------------


def rows(data: Data, found: dict[tuple[str, int], dict[str, Tensor]], seeds: int) -> list[dict]:
    """One row for each training, metric and explanation. ``stderr``: over seeds; ``stderr_inputs``: over inputs."""
    table: list[dict] = []
    trainings = list(dict.fromkeys(name for name, _ in found))
    names = [key.partition("/")[2] for key in found["natural", 0] if key.startswith(JUDGED[0])]

    def add(training: str, explanation: str, metric: str, values: list[Tensor]) -> None:
        stacked = torch.stack(values)
        means, each = stacked.nanmean(1), stacked.nanmean(0)
        each = each[each.isfinite()]
        if len(each) and bool(means.isfinite().all()):
            table.append({
                "data": data.name, "objective": training, "explanation": explanation, "metric": metric,
                "value": round(float(means.mean()), 7), "stderr": round(float(means.std() / seeds**0.5), 7),
                "stderr_inputs": round(float(each.std() / len(each) ** 0.5), 7), "n": int(stacked.isfinite().sum()),
                "seeds": seeds,
            })  # fmt: skip

    for training in trainings:
        get = lambda key, training=training: [found[training, s][key] for s in range(seeds)]  # noqa: E731
        minus = lambda a, b: [x - y for x, y in zip(a, b, strict=True)]  # noqa: E731
        add(training, "", "accuracy" if data.classes else "MSE", get("task"))
        for criterion in JUDGED:
            own = f"consensus {BEST[criterion]}"
            for name in names:
                add(training, name, criterion, get(f"{criterion}/{name}"))
            gain = minus(get(f"{criterion}/{own}"), get(f"{criterion}/best single"))
            for other in ("best single", "mean"):
                add(
                    training,
                    f"{own} − {other}",
                    criterion,
                    minus(get(f"{criterion}/{own}"), get(f"{criterion}/{other}")),
                )
            add(training, "consensus opt − best single", criterion,
                minus(get(f"{criterion}/consensus opt"), get(f"{criterion}/best single")))  # fmt: skip
            if training == "natural":
                continue
            plain = lambda name, c=criterion: [found["natural", s][f"{c}/{name}"] for s in range(seeds)]  # noqa: E731
            for name in ("best single", "mean", own, "consensus opt"):
                add(training, f"{name}, minus natural", criterion, minus(get(f"{criterion}/{name}"), plain(name)))
            add(training, f"best single, minus natural {own}", criterion,
                minus(get(f"{criterion}/best single"), plain(own)))  # fmt: skip
            add(training, f"gain of {own} over best single, minus natural's", criterion,
                minus(gain, minus(plain(own), plain("best single"))))  # fmt: skip
    return table


DIFFERENCES = (
    "consensus * − best single", "consensus * − mean", "consensus opt − best single", "best single, minus natural",
    "consensus *, minus natural", "best single, minus natural consensus *",
    "gain of consensus * over best single, minus natural's",
)  # fmt: skip


def shown(table: list[dict]) -> str:
    """Markdown: for each data set what explanations are worth, and the paired differences (* stands for ``BEST``)."""
    cells = {(r["data"], r["objective"], r["explanation"], r["metric"]): r for r in table}
    lines = []
    for data in dict.fromkeys(r["data"] for r in table):
        mine = [r for r in table if r["data"] == data]
        trainings = list(dict.fromkeys(r["objective"] for r in mine))
        columns = [(metric, training) for metric in JUDGED for training in trainings]

        def cell(name: str, metric: str, training: str, data: str = data) -> str:
            row = cells.get((data, training, name.replace("*", BEST.get(metric, "")), metric))
            return f"{row['value']:.3g} ± {row['stderr']:.1g}" if row else "–"

        task = "MSE" if (data, "natural", "", "MSE") in cells else "accuracy"
        errors = ", ".join(f"{TITLES[t]} {cell('', task, t)}" for t in trainings)
        last = ["mean", "best single", *(f"consensus {goal}" for goal in GOALS)]
        methods = dict.fromkeys(r["explanation"] for r in mine if r["metric"] == JUDGED[0])
        methods = [name for name in methods if name not in last and "natural" not in name and "−" not in name]
        head = " | ".join(f"{metric.replace('_', ' ')}: {TITLES[training]}" for metric, training in columns)
        for names in ([*methods, *last], DIFFERENCES):
            lines += ["", f"**{data}**, {task}: {errors}", ""] if names is not DIFFERENCES else [""]
            lines += [f"| | {head} |", "|---" * (1 + len(columns)) + "|"]
            lines += [f"| {name} | {' | '.join(cell(name, *column) for column in columns)} |" for name in names]
    return "\n".join(lines[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits,diabetes", help="digits, and tables of recipes/expo_presets.py")
    parser.add_argument("--folder", help="where the tables' files are")
    parser.add_argument("--out")
    parser.add_argument("--show", help="print a stored file's tables and do nothing else")
    parser.add_argument("--page", help="with --show: a Markdown page, in which the tables are put between its marks")
    parser.add_argument("--cache", default="out/closed-loop-cache")
    parser.add_argument("--inputs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fit", default="average_sensitivity=10,infidelity=256")
    parser.add_argument("--fresh", default="average_sensitivity=40,infidelity=512")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.show:
        text = shown(json.loads(Path(options.show).read_text(encoding="utf-8"))["rows"])
        return fill(options.page, "closed loop", text) if options.page else print(text)
    names = options.data.split(",")
    if not options.out or not set(names) <= {"digits", *expo_presets.PRESETS} or options.seeds < 2:
        parser.error(f"--out is needed, --data from digits, {', '.join(expo_presets.PRESETS)}, and at least 2 --seeds")
    torch.set_num_threads(options.threads)
    table = []
    for name in names:
        data = load(name, options.folder)
        table += rows(data, {(t, s): values for t, s, values in everything(data, options)}, options.seeds)
    settings = {
        **{key: getattr(options, key) for key in ("inputs", "seeds", "fit", "fresh")}, "methods": METHODS, "trainings": ABOUT,
        "neighbourhood": "U[−.1, .1] of the input's unit per element", "mask_shares": list(SHARES),
    }  # fmt: skip
    result = {"rows": table, "settings": settings, "machine": expo.machine()}
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    Path(options.out).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(shown(table))


if __name__ == "__main__":
    main()
