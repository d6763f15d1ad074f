"""Does training for robust attributions give them? NA, AA, IN, CO of four objectives, over seeds.

    python benchmarks/rar.py --data digits --stronger --out benchmarks/results/rar_digits.json
    python benchmarks/rar.py --data fashion_mnist --folder DIR --out benchmarks/results/rar_fashion_mnist.json
    python benchmarks/rar.py --show benchmarks/results/rar_digits.json --page docs/rar.md

NA: accuracy; AA: accuracy under PGD; IN, CO: top-k intersection and Kendall's τ of the attribution maps under the iterative
feature-importance attack, on the images that the model classifies correctly, and ("common") on those that all four do.
"frozen" is the same attack on a model whose gradients cannot change: what an attacker gets from changing pixels alone, and so
the part of the damage that no stiffness of the gradients prevents. "task" and "‖IG‖₁": the two parts of IG-NORM's objective,
ℓ(x) and max ‖IG(x, x')‖₁, on the test images: who is best at what IG-NORM penalises.

Every finished (objective, seed) is kept in ``--cache``: an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from consilience import train
from consilience.attacks.importance import top_k_intersection
from consilience.attacks.robustness import attribution_robustness, averages, common
from consilience.data.sets import Part, load
from consilience.model.score import Score
from consilience.perturb.neighbourhoods import Path as Line
from consilience.perturb.points import Points
from consilience.statistics.keys import Key

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from pages import fill
from rar_presets import OBJECTIVES, PRESETS, TITLES, Preset, network, objective, optimisers, training_steps

PRESET = {"digits": "digits", "fashion_mnist": "fashion_mnist_small"}
METRICS = ("NA", "AA", "IN", "CO")
PARTS = {"task": "task", "‖IG‖₁": "ig_norm"}
STRONGER = "ig_sum_norm, weight 1"  # the β published for GTSRB, to see what the weight does


# -- one (objective, seed) ---------------------------------------------------------------------------------------------


def trained(preset: Preset, name: str, seed: int, part: Part, classes: int, max_batch: int) -> tuple[nn.Module, dict]:
    """A plain loop: the order of the images is a function of (seed, epoch)."""
    model = network(preset, classes, seed).to(part.x.device)
    goal = objective(preset, name, seed, max_batch).to(part.x.device)
    optimiser, rate = optimisers(preset, name, list(model.parameters()))
    step, epoch, last = 0, 0, {}
    model.train()
    while step < training_steps(preset, name):
        keyed = torch.Generator().manual_seed(1_000_003 * seed + epoch)
        for rows in torch.randperm(len(part), generator=keyed).split(preset.batch):
            rows = rows.to(part.x.device)
            loss = goal(model, part.x[rows], part.y[rows], part.ids[rows])
            optimiser.zero_grad()
            loss.total.backward()
            optimiser.step()
            rate.step()
            step += 1
            last = {key: float(value) for key, value in loss.parts.items()}
            if step == training_steps(preset, name):
                break
        epoch += 1
    return model.eval(), last


class Frozen(nn.Module):
    """Per input, a linear model with given gradients whose class never changes: logits (⟨z, g⟩, −∞)."""

    def forward(self, z: Tensor, gradient: Tensor) -> Tensor:
        value = (z * gradient).flatten(1).sum(1)
        return torch.stack([value, torch.full_like(value, -torch.finfo(value.dtype).max)], 1)


def frozen(preset: Preset, model: nn.Module, part: Part, max_batch: int) -> dict[str, Tensor]:
    """IN and CO when the attack may change the pixels while the path's mean gradient stays that of the clean image."""
    attack = preset.attack
    score = Score(model, part.y, ids=part.ids, max_batch=max_batch).at(part.x)
    mean = []
    for at in torch.arange(len(part)).split(max(1, max_batch // attack.points)):
        points = Points(part.x[at], at, part.ids[at])
        cloud = Line(steps=attack.points).draw(points, range(attack.points), Key(0, "path"), attack.points)
        gradient = cloud.split(score.grad(cloud.points, cloud.owner))
        mean.append(torch.einsum("s,ns...->n...", cloud.weights, gradient))
    still = Score(Frozen(), kwargs={"gradient": torch.cat(mean)})
    label = torch.zeros_like(part.y)
    found = replace(attack, points=1, attack_points=1)(still, part.x, label, ids=part.ids, max_batch=max_batch)
    share = torch.stack([top_k_intersection(found.original, maps, preset.k) for maps in found.maps])
    return {"IN frozen": share.amin(0), "CO frozen": found.tau.amin(0)}


def measured(preset: Preset, model: nn.Module, part: Part, max_batch: int) -> dict[str, Tensor]:
    steps, size = preset.judging_pgd
    result = attribution_robustness(
        model, part.x, part.y, preset.attack, pgd_steps=steps, pgd_step_size=size, k=preset.k, ids=part.ids,
        max_batch=max_batch,
    )  # fmt: skip
    at = result["counts"].nonzero()[:, 0]
    nothing = torch.full_like(result["NA"], torch.nan)
    still = frozen(preset, model, part[at], max_batch) if len(at) else {}
    return result | {name: nothing.index_put((at,), values) for name, values in still.items()}


def penalised(preset: Preset, model: nn.Module, part: Part) -> dict[str, Tensor]:
    """The parts of IG-NORM's objective for each image, with an attack of ten steps and twelve points."""
    goal = train.IGNorm(eps=preset.attack.eps, steps=10, points=12, attack_points=4, bounds=preset.attack.bounds).eval()
    with torch.no_grad():
        each = [goal(model, part.x[i], part.y[i], part.ids[i]).parts for i in torch.arange(len(part)).split(1)]
    return {name: torch.stack([parts[part] for parts in each]).cpu() for name, part in PARTS.items()}


def everything(preset: Preset, options: argparse.Namespace) -> tuple[dict[tuple[str, int], dict[str, Tensor]], dict]:
    data = load(preset.data, options.folder)
    classes, device = len(data.classes), torch.device(options.device)
    to = lambda part: Part(part.x.to(device), part.y.to(device), part.ids.to(device))  # noqa: E731
    fit, judge = to(data.train[: preset.train_images]), to(data.test[: preset.test_images])
    made = repr((replace(preset, network=None, about=""), str(network(preset, classes, 0)), len(fit), len(judge)))
    digest = hashlib.sha256(made.encode()).hexdigest()[:10]
    cache = Path(options.cache)
    cache.mkdir(parents=True, exist_ok=True)
    found, about = (
        {},
        {"train_images": len(fit), "test_images": len(judge), "notes": list(data.notes), "seconds": {}, "last": {}},
    )
    for seed in range(options.seeds):
        for name in options.objectives:
            path = cache / f"{options.preset}-{name.replace(', weight ', '-')}-{seed}-{digest}.safetensors"
            if not path.exists():
                began = time.perf_counter()
                goal = (replace(preset, ig_sum_norm=1.0), "ig_sum_norm") if name == STRONGER else (preset, name)
                model, last = trained(*goal, seed, fit, classes, options.max_batch)
                middle = time.perf_counter()
                result = measured(preset, model, judge, options.attack_batch)
                seconds = [middle - began, time.perf_counter() - middle]
                numbers = {f"last.{key}": torch.tensor(value) for key, value in last.items()}
                weights = {f"model.{key}": value for key, value in model.state_dict().items()}
                saved = {key: value.float() if value.is_floating_point() else value for key, value in result.items()}
                save_file({**saved, **numbers, **weights, "seconds": torch.tensor(seconds)}, path)
            tensors = load_file(path)
            if not PARTS.keys() <= tensors.keys():
                model = network(preset, classes, seed).to(device)
                model.load_state_dict({key[6:]: value for key, value in tensors.items() if key.startswith("model.")})
                tensors |= penalised(preset, model.eval(), judge)
                save_file(tensors, path)
            found[name, seed] = {key: tensors[key] for key in (*METRICS, *PARTS, "IN frozen", "CO frozen", "counts")}
            about["seconds"].setdefault(name, []).append([round(value, 1) for value in tensors["seconds"].tolist()])
            about["last"].setdefault(name, []).append(
                {key[5:]: round(float(value), 4) for key, value in tensors.items() if key.startswith("last.")}
            )
            line = "  ".join(f"{key} {mean:.3f}" for key, (mean, _, _) in averages(found[name, seed]).items())
            print(f"seed {seed}  {title(name):<12} {line}  ({about['seconds'][name][-1]} s)", flush=True)
    return found, about


# -- rows --------------------------------------------------------------------------------------------------------------


def title(name: str) -> str:
    return TITLES[name.partition(",")[0]] + ("" if name in TITLES else ", β = 1")


def rows(data: str, found: Mapping[tuple[str, int], Mapping[str, Tensor]], seeds: int) -> list[dict]:
    """One row for each objective and metric. ``stderr``: over seeds; with one seed over images."""
    table: list[dict] = []
    names = list(dict.fromkeys(name for name, _ in found))
    shared = [common([found[name, seed] for name in OBJECTIVES]) for seed in range(seeds)]

    def add(name: str, metric: str, values: list[Tensor]) -> None:
        values = [v[~v.isnan()].double() for v in values]
        means = torch.stack([v.mean() for v in values])
        error = means.std() / seeds**0.5 if seeds > 1 else values[0].std() / len(values[0]) ** 0.5
        table.append({
            "data": data, "objective": name, "metric": metric, "value": round(float(means.mean()), 5),
            "stderr": round(float(error), 5), "n": sum(map(len, values)), "seeds": seeds,
        })  # fmt: skip

    for name in names:
        for metric in (*METRICS, *PARTS):
            add(name, metric, [found[name, seed][metric] for seed in range(seeds)])
        for metric in ("IN", "CO", "IN frozen", "CO frozen"):
            add(name, f"{metric} common", [found[name, seed][metric][shared[seed]] for seed in range(seeds)])
        for other in names[: names.index(name)]:
            for metric in ("IN", "CO"):
                paired = [(found[name, s][metric] - found[other, s][metric])[shared[s]] for s in range(seeds)]
                add(name, f"{metric} common, minus {other}", paired)
    return table


def machine() -> dict:
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return {"cpu": model, "threads": torch.get_num_threads(), "torch": torch.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", help="print a stored file's tables and do nothing else")
    parser.add_argument(
        "--page", help="with --show: a Markdown page, in which the tables are put between the file's marks"
    )
    parser.add_argument("--data", choices=sorted({preset.data for preset in PRESETS.values()}))
    parser.add_argument("--preset", choices=sorted(PRESETS), help="default: the scaled one of this data set")
    parser.add_argument("--folder", help="where the data set's files are")
    parser.add_argument("--out")
    parser.add_argument("--cache", default="out/rar-cache")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of training, in place of the preset's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-batch", type=int, default=256, help="rows in flight in training")
    parser.add_argument("--attack-batch", type=int, default=2048, help="rows in flight in the attacks")
    parser.add_argument("--stronger", action="store_true", help="also IG-SUM-NORM with β = 1")
    options = parser.parse_args()
    if options.show:
        text = shown(json.loads(Path(options.show).read_text(encoding="utf-8"))["rows"])
        return fill(options.page, Path(options.show).stem, text) if options.page else print(text)
    if not options.data or not options.out:
        parser.error("--data and --out are needed, or --show")
    torch.set_num_threads(options.threads)
    options.objectives = [*OBJECTIVES, *([STRONGER] if options.stronger else [])]
    options.preset = options.preset or PRESET.get(options.data, options.data)
    preset = PRESETS[options.preset]
    if options.steps:
        preset = replace(preset, train_steps=options.steps, natural_steps=options.steps)
    if preset.data != options.data:
        parser.error(f"--preset {options.preset} is for {preset.data}, not {options.data}")
    found, about = everything(preset, options)
    settings = {key: value for key, value in asdict(preset).items() if key not in ("network", "about")}
    settings = {"preset": options.preset, "scaled": preset.about, **settings, **about}
    result = {"rows": rows(options.data, found, options.seeds), "settings": settings, "machine": machine()}
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    Path(options.out).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(shown(result["rows"]))


def shown(table: list[dict]) -> str:
    """Two Markdown tables: all images, and those that all four models classify correctly."""
    cells = {(row["objective"], row["metric"]): row for row in table}

    def cell(name: str, metric: str) -> str:
        row = cells[name, metric]
        if metric[:2] in ("NA", "AA", "IN"):
            return f"{100 * row['value']:.1f} ± {100 * row['stderr']:.1f}"
        return f"{row['value']:.3f} ± {row['stderr']:.3f}"

    names = list(dict.fromkeys(row["objective"] for row in table))
    columns = [*METRICS, "IN common", "CO common", "IN frozen common", "CO frozen common", *PARTS]
    columns = [column for column in columns if (names[0], column) in cells]
    lines = ["| training | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {title(name)} | " + " | ".join(cell(name, column) for column in columns) + " |" for name in names]
    lines += ["", "Paired differences on the common images:", "", "| pair | IN | CO |", "|---|---|---|"]
    for name in names:
        for other in names[: names.index(name)]:
            found = [cell(name, f"{metric} common, minus {other}") for metric in ("IN", "CO")]
            lines.append(f"| {title(name)} − {title(other)} | {' | '.join(found)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
