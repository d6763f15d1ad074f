"""Does the combination keep its promise on draws it has not seen? Every objective, on photographs, on fresh draws.

    python benchmarks/consensus.py --images DIR --labels FILE --model torchvision:resnet18 --checkpoint FILE --out FILE.json

Two stages. *Measure* runs the model and keeps each photograph's small matrices in ``--cache`` (so an interrupted run goes
on where it stopped); *judge* needs these matrices only: it solves every objective on the fitting draws and evaluates it
on the fresh ones, with the explainers' noise common to all neighbours and, for comparison, drawn anew at each.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from consilience.combine.aggregations import DERIVED as AGGREGATIONS
from consilience.combine.draws import Draws
from consilience.combine.measurement import Measurement
from consilience.combine.named import NAMED_OBJECTIVES, named_objective
from consilience.data.images import read_image
from consilience.data.models import load_model
from consilience.explainers import (  # fmt: skip
    DeepLIFT,
    GradCAM,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    Normalised,
    Saliency,
    SmoothGrad,
    Stack,
    VarGrad,
)
from consilience.features.images import Patches, Pixels
from consilience.metrics import AverageSensitivity, Infidelity
from consilience.metrics.cross_validation import cross_validated
from consilience.metrics.front import Front
from consilience.metrics.grams import gram
from consilience.model.score import Score
from consilience.perturb.neighbourhoods import Uniform, neighbours
from consilience.perturb.points import Points
from consilience.statistics.criteria import CRITERIA as USUAL
from consilience.statistics.criteria import HIGHER_IS_BETTER, infidelity_of_either_sign
from consilience.statistics.evidence import Evidence, Quadratic, Responses
from consilience.statistics.keys import Key

SAMPLING = ("smoothgrad", "vargrad")

CRITERIA = {**USUAL, "infidelity": infidelity_of_either_sign}
"""As the papers have them: β of either sign."""


def explainers(steps: int, samples: int) -> list:
    return [
        Saliency(), InputXGradient(), IntegratedGradients(steps), SmoothGrad(samples), VarGrad(samples), GuidedBackprop(),
        DeepLIFT(), GradCAM(),
    ]  # fmt: skip


# -- measure -----------------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> tuple[list[str], list[dict[str, Tensor]], list[dict]]:
    loaded = load_model(options.model, checkpoint=options.checkpoint, labels=options.labels)
    loaded.module.to(memory_format=torch.channels_last)
    every = explainers(options.steps, options.samples)
    stack = Stack(every, options.seed)
    cache = Path(options.cache)
    cache.mkdir(parents=True, exist_ok=True)
    found, about = [], []
    for number, (file, label) in enumerate(chosen(options)):
        path = cache / f"{options.model.replace(':', '-')}-{options.settings}-{Path(file).stem}.safetensors"
        began = time.perf_counter()
        if not path.exists():
            x = loaded.preprocess(read_image(Path(options.images) / file))[None]
            score = Score(loaded.module, ids=[number], max_batch=options.max_batch).at(x)
            points = Points(x, torch.zeros(1, dtype=torch.int64), score.ids)
            setting = Measurement(
                stack=Normalised(stack, Pixels()),
                working=tuple(range(len(every))),
                rows=len(every),
                metrics={
                    "quadratic": AverageSensitivity(options.radius),
                    "responses": Infidelity(Patches(16), share=0.2),
                },
                derived=AGGREGATIONS,
                seed=options.seed,
            )
            base = setting.maps(score, points)
            tensors = {"target": score.targets, "predicted": score.outputs.argmax(1)}
            for stream, draws in (("fit", options.fit), ("fresh", options.fresh)):
                tensors |= one_stream(score, points, base, setting, draws, options.redrawn[stream], stream)
            save_file({k: v.contiguous() for k, v in tensors.items()}, path)
        tensors = load_file(path)
        found.append(tensors)
        about.append({"file": file, "correct": int(tensors["predicted"]) == label})
        print(f"{number + 1} {file} {time.perf_counter() - began:.0f} s", flush=True)
    return list(stack.names), found, about


def one_stream(score, points, base, setting: Measurement, draws: Draws, redrawn: int, stream: str) -> dict[str, Tensor]:
    """Gram matrices of the draws, the first ``redrawn`` of them also with the sampling methods' noise drawn anew."""
    key = Key(setting.seed, stream)
    count = draws.average_sensitivity
    where = setting.sensitivity.neighbourhood
    names = setting.stack.stack.names
    at = [i for i, name in enumerate(names) if name in SAMPLING]
    noisy = replace(setting.stack, stack=Stack([setting.stack.stack.explainers[i] for i in at], setting.seed))
    flat = base.flatten(2).double()
    grams, again = [], []
    step = 8
    for start in range(0, count, step):
        part = range(start, min(start + step, count))
        near = neighbours(where, points, part, key / "sensitivity", count)
        maps = setting.maps(score, near)
        grams.append(gram(flat[:, None] - maps.flatten(2).double()[None]))
        if start < redrawn:
            ids = neighbours(where, points, part, key / "sensitivity", count, redraw=True).ids
            maps = maps[:, : setting.rows].clone()
            maps[:, at] = noisy.attribute(score, replace(near, ids=ids))
            maps = setting.complete(maps, near, derived=True)
            again.append(gram(flat[:, None] - maps.flatten(2).double()[None]))
    masks = setting.evidence(score, points, base, draws, stream, ("responses",)).responses
    return {
        f"{stream}.gram": torch.cat(grams, 1), f"{stream}.redrawn": torch.cat(again, 1)[:, :redrawn],
        f"{stream}.norm": gram(flat), f"{stream}.a": masks.a, f"{stream}.y": masks.y,
    }  # fmt: skip


def chosen(options: argparse.Namespace) -> list[tuple[str, int]]:
    """Evenly spaced rows of the label file, so that the photographs are of different kinds."""
    with open(options.labels, newline="", encoding="utf-8") as file:
        rows = [(row["file"], int(row["class_index"])) for row in csv.DictReader(file)]
    step = len(rows) / options.count
    return [rows[int(step * i)] for i in range(options.count)]


# -- judge -------------------------------------------------------------------------------------------------------------


def join(found: list[dict[str, Tensor]], stream: str, redrawn: bool) -> Evidence:
    stack = lambda name: torch.cat([t[f"{stream}.{name}"] for t in found])  # noqa: E731
    return Evidence(
        Quadratic(stack("redrawn" if redrawn else "gram"), stack("norm")), Responses(stack("a"), stack("y"))
    )


def solutions(fit: Evidence, fresh: Evidence, k: int) -> dict[str, Tensor]:
    """{row: weights (B, R)} over methods and derived maps; everything is decided on the fitting draws but *hindsight*."""
    count, rows = fit.quadratic.norm.shape[:2]
    only = fit.rows(slice(k))
    eye = torch.eye(rows, dtype=torch.float64)
    wide = lambda w: torch.cat([w, w.new_zeros(len(w), rows - k)], 1)  # noqa: E731
    out: dict[str, Tensor] = {}
    corners = eye[:k].expand(count, k, rows)
    for short, criterion in (("relative_sensitivity",) * 2, ("faithfulness_correlation",) * 2):
        for when, evidence in (("on fit", fit), ("in hindsight", fresh)):
            value = CRITERIA[criterion](evidence, corners).value.nan_to_num(
                -1.0 if criterion in HIGHER_IS_BETTER else torch.inf
            )
            best = value.argmax(1) if criterion in HIGHER_IS_BETTER else value.argmin(1)
            out[f"best single {when} ({short})"] = eye[best]
    for name in ("robust", "faith", "opt", "paper_robust", "paper_faith", "paper_opt", "paper_code", "infidelity"):
        goal = named_objective(name)
        out[name] = wide(goal.minimise(only).weights)
        if not isinstance(goal, Front) and name in ("robust", "faith"):
            out[f"{name} signed"] = wide(goal.minimise(only, signed=True).weights)
            out[f"{name} cross-validated"] = wide(cross_validated(goal, only).weights)
            out[f"{name} pooled"] = wide(leave_one_out(goal, only))
    for mu in (0.3, 1.0, 3.0):
        out[f"J at mu = {mu:g}"] = wide(replace(NAMED_OBJECTIVES["opt"], mu=mu).minimise(only).weights)
    return out


def leave_one_out(goal, evidence: Evidence) -> Tensor:
    """Pooled weights for each photograph from all the others."""
    count = len(evidence.quadratic.norm)
    if count < 2:
        return goal.minimise(evidence).weights
    others = [[j for j in range(count) if j != i] for i in range(count)]
    return torch.cat([goal.minimise(evidence.inputs(index).pooled()).weights for index in others])


def judge(names: list[str], found: list[dict[str, Tensor]], redrawn: bool) -> dict:
    fit, fresh = join(found, "fit", redrawn), join(found, "fresh", redrawn)
    k = len(names)
    derived = [aggregation.name for aggregation in AGGREGATIONS]
    rows = k + len(derived)
    solved = solutions(fit, fresh, k)
    labels = [*names, *derived, *solved]
    weights = torch.cat(
        [torch.eye(rows, dtype=torch.float64).expand(len(found), -1, -1), torch.stack([*solved.values()], 1)], 1
    )
    table: dict = {"rows": {}, "paired": {}}
    estimates = {name: f(fresh, weights) for name, f in CRITERIA.items()}
    inside = {name: f(fit, weights).value for name, f in CRITERIA.items()}
    for i, label in enumerate(labels):
        table["rows"][label] = {
            c: {"fresh": mean(e.value[:, i]), "stderr": error(e.value[:, i]), "fit": mean(inside[c][:, i])}
            for c, e in estimates.items()
        }
    pairs = [
        ("robust", "best single in hindsight (relative_sensitivity)", "relative_sensitivity"),
        ("robust", "best single on fit (relative_sensitivity)", "relative_sensitivity"),
        ("robust", "mean", "relative_sensitivity"), ("robust", "var", "relative_sensitivity"),
        ("robust", "paper_robust", "relative_sensitivity"), ("paper_robust", "robust", "average_sensitivity"),
        ("robust signed", "robust", "relative_sensitivity"), ("robust cross-validated", "robust", "relative_sensitivity"),
        ("robust pooled", "robust", "relative_sensitivity"),
        ("opt", "best single on fit (faithfulness_correlation)", "faithfulness_correlation"),
        ("opt", "best single on fit (faithfulness_correlation)", "relative_sensitivity"),
        ("opt", "paper_opt", "relative_sensitivity"), ("opt", "paper_opt", "faithfulness_correlation"),
        ("opt", "mean", "relative_sensitivity"), ("opt", "mean", "faithfulness_correlation"),
        *(("faith", other, c) for c in ("faithfulness_correlation", "infidelity")
          for other in ("best single on fit (faithfulness_correlation)", "mean", "paper_code", "paper_faith", "uniform")),
        *((f"faith {kind}", "faith", "faithfulness_correlation") for kind in ("signed", "cross-validated", "pooled")),
    ]  # fmt: skip
    for a, b, criterion in pairs:
        e, (i, j) = estimates[criterion], (labels.index(a), labels.index(b))
        difference = e.value[:, i] - e.value[:, j]
        influence = e.influence[:, i] - e.influence[:, j]
        own = (influence.pow(2).mean(1) / (influence.shape[1] - 1)).sqrt()
        table["paired"][f"{a} − {b}: {criterion}"] = {
            "mean": mean(difference), "stderr": error(difference), "n": int(difference.isfinite().sum()),
            "below": int((difference < 0).sum()), "above": int((difference > 0).sum()),
            "above_by_2_stderr": int((difference > 2 * own).sum()), "below_by_2_stderr": int((difference < -2 * own).sum()),
            "each": [[round(d, 6), round(s, 6)] for d, s in zip(difference.tolist(), own.tolist(), strict=True)],
        }  # fmt: skip
    table["weights"] = {row: [mean(w) for w in value.mT[:k]] for row, value in solved.items()}
    return table


def mean(values: Tensor) -> float | None:
    values = values[values.isfinite()]
    return round(float(values.mean()), 6) if len(values) else None


def error(values: Tensor) -> float | None:
    values = values[values.isfinite()]
    return round(float(values.std() / len(values) ** 0.5), 6) if len(values) > 1 else None


def show(title: str, table: dict) -> None:
    print(f"\n{title}\n{'':52}{'rel.sens.':>18}{'abs.sens.':>20}{'correlation':>18}{'infidelity':>18}")
    for label, row in table["rows"].items():
        cells = []
        for criterion in CRITERIA:
            value, spread = row[criterion]["fresh"], row[criterion]["stderr"]
            cells.append("–" if value is None else f"{value:.4g} ± {spread or 0:.2g}")
        print(f"{label:52}" + "".join(f"{cell:>19}" for cell in cells))
    for label, pair in table["paired"].items():
        if pair["mean"] is None or pair["stderr"] is None:
            continue  # the uniform map has no correlation
        counts = f"below {pair['below']}/{pair['n']}, above by 2 s.e. {pair['above_by_2_stderr']}"
        print(f"{label:105} {pair['mean']:+.4g} ± {pair['stderr']:.2g}  {counts}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True)
    parser.add_argument("--labels", required=True, help="CSV with columns file and class_index")
    parser.add_argument("--model", default="torchvision:resnet18")
    parser.add_argument("--checkpoint")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--fit-draws", default="average_sensitivity=10,infidelity=256")
    parser.add_argument("--fresh-draws", default="average_sensitivity=100,infidelity=512")
    parser.add_argument("--redrawn-draws", type=int, default=32, help="fresh draws also measured with redrawn noise")
    parser.add_argument("--steps", type=int, default=8, help="Gauss–Legendre points of integrated gradients")
    parser.add_argument("--samples", type=int, default=8, help="noise draws of SmoothGrad and VarGrad")
    parser.add_argument("--radius", type=float, default=0.1)
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", default="out/benchmark-cache")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    options.fit = Draws.of(options.fit_draws, Draws(), "--fit-draws")
    options.fresh = Draws.of(options.fresh_draws, Draws(), "--fresh-draws")
    options.redrawn = {
        "fit": options.fit.average_sensitivity,
        "fresh": min(options.redrawn_draws, options.fresh.average_sensitivity),
    }
    options.settings = "-".join(str(v) for v in (
        options.steps, options.samples, options.radius, options.seed, options.redrawn["fresh"],
        *vars(options.fit).values(), *vars(options.fresh).values(),
    ))  # fmt: skip
    names, found, about = measure(options)
    result = {
        "model": options.model,
        "n": len(found),
        "settings": {
            "methods": names, "steps": options.steps, "samples": options.samples, "sigma": "0.15 of max − min",
            "neighbourhood": repr(Uniform(options.radius)), "mask_unit": "16x16 patch", "mask_share": 0.2,
            "mask_baseline": "blur, σ = 10 px", "fit": vars(options.fit), "fresh": vars(options.fresh),
            "fresh_redrawn": options.redrawn["fresh"], "seed": options.seed,
        },
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "images": about,
        "common_noise": judge(names, found, redrawn=False),
        "redrawn_noise": judge(names, found, redrawn=True),
    }  # fmt: skip
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    Path(options.out).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for kind in ("common_noise", "redrawn_noise"):
        show(f"{options.model}, {len(found)} photographs, {kind.replace('_', ' ')}", result[kind])


if __name__ == "__main__":
    main()
