"""Every measure on every method, on models of five kinds: no number is missing without a reason.

    python benchmarks/catalogue.py --images DIR --labels FILE --checkpoint FILE --out FILE.json
    python benchmarks/catalogue.py --show FILE.json

Photographs with ResNet18 (real weights), mosaics of four of them (whose regions are known, for the localisation measures),
a timm transformer (random weights), a tabular network and a random forest on the breast-cancer table, and a text classifier
(random weights). Sample sizes are small and stored: the point is that everything works together, and what it costs.
``--cache`` keeps each model's numbers after every batch, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

import consilience as cs
from consilience.data.images import read_image
from consilience.data.models import load_model
from consilience.explainers import METHODS, PRESETS, Explainer
from consilience.measures import MEASURES, Measure


@dataclass
class Case:
    """One model with its inputs: ``batches`` of x, (x, y) or (x, y, regions)."""

    name: str
    model: Any
    batches: list[Any]
    methods: list[Explainer]
    measures: list[Measure]
    target: Any = None
    options: dict[str, Any] = field(default_factory=dict)
    note: str = ""


def small(samples: int, image: bool = False) -> Callable[[type], Any]:
    """A method or measure with its numbers of samples cut down; further for ``image``s, where a row costs a network's pass.

    What is set here is stored with the results, and so is every default that is not."""
    wanted: dict[str, dict[str, Any]] = {
        "": {"n_samples": samples, "m_samples": 2, "n_steps": 8, "samples": 3, "channels": 16, "steps": 10, "subsets": 32},
        "gradients": {"n_samples": 4},
        "kernel_shap": {"n_samples": 4 * samples}, "shapley_sampling": {"n_samples": 2},
        "mprt": {"steps": 4}, "smooth_mprt": {"steps": 4, "samples": 2},
    }  # fmt: skip
    if image:
        wanted[""] |= {"m_samples": 1, "n_steps": 4, "samples": 2, "channels": 8, "steps": 4}
        patches, percentages = cs.Patches(56), (20, 50, 80)
        wanted |= {
            "uniformgrad": {"n_samples": 2}, "noisegrad": {"n_samples": 2}, "fusiongrad": {"n_samples": 2},
            "expected_gradients": {"n_samples": 2}, "gradient_shap": {"n_samples": 2},
            "kernel_shap": {"n_samples": samples * 3 // 2},
            "mprt": {"steps": 2}, "smooth_mprt": {"steps": 1, "samples": 2}, "random_logit": {"samples": 1},
            "road_morf": {"percentages": percentages}, "road_lerf": {"percentages": percentages},
            "road_combined": {"percentages": percentages}, "region_perturbation": {"regions": 6},
            "faithfulness_correlation": {"draws": 2 * samples}, "infidelity": {"draws": 2 * samples},
            "sensitivity_n": {"draws": samples // 2}, "local_fidelity": {"draws": samples // 2},
            "faithfulness_estimate": {"features": patches},
            "monotonicity_correlation": {"features": patches, "draws": 2},
        }  # fmt: skip

    def make(cls: type) -> Any:
        names = set(getattr(cls, "__dataclass_fields__", {}))
        named: str = cls.name  # type: ignore[attr-defined]
        given = wanted[""] | (wanted["gradients"] if "Grad" in cls.__name__ else {}) | wanted.get(named, {})
        return cls(**{name: value for name, value in given.items() if name in names})

    return make


def methods_for(kind: str, samples: int, data: Tensor | None = None) -> list[Explainer]:
    """All methods that can be meant for such a model; those that then fail are named rows with a reason."""
    images_only = {"grad_cam", "grad_cam_plus_plus", "eigen_cam", "layer_cam", "score_cam", "rise", "occlusion"}
    needs_gradients = {
        name for name, cls in METHODS.items() if name not in BLACK_BOX and not hasattr(cls, "data")
    }  # fmt: skip
    found = []
    for name, cls in METHODS.items():
        if (kind != "image" and name in images_only) or (kind == "forest" and name in needs_gradients):
            continue
        if name == "maple":
            if kind in ("table", "forest"):
                found.append(cls(data=data))
            continue
        method = small(samples, kind == "image")(cls)
        if kind == "image" and hasattr(method, "features"):  # nine patches: few enough for every explanation
            method = replace(method, features=cs.Patches(75))
        found.append(method)
    return found


BLACK_BOX = ("feature_ablation", "occlusion", "rise", "lime", "kernel_shap", "shapley_sampling", "maple")


def photographs(options: argparse.Namespace) -> tuple[Tensor, list[int], Any]:
    loaded = load_model("torchvision:resnet18", checkpoint=options.checkpoint, labels=options.labels)
    with open(options.labels, newline="", encoding="utf-8") as file:
        rows = [(row["file"], int(row["class_index"])) for row in csv.DictReader(file)]
    step = len(rows) / options.count
    chosen = [rows[int(step * i)] for i in range(options.count)]
    x = torch.stack([loaded.preprocess(read_image(Path(options.images) / file)) for file, _ in chosen])
    return x, [label for _, label in chosen], loaded.module.to(memory_format=torch.channels_last)


def mosaics(x: Tensor, labels: list[int]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """2 × 2 mosaics of photographs of different classes; the region of the first one's class is the quadrant it is in."""
    half = nnf.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)
    side, found = half.shape[-1], []
    for i in range(len(x)):
        four, corner = [half[(i + 5 * j) % len(x)] for j in range(4)], i % 4
        four[0], four[corner] = four[corner], four[0]
        picture = torch.cat([torch.cat(four[:2], 2), torch.cat(four[2:], 2)], 1)
        region = torch.zeros(2 * side, 2 * side, dtype=torch.bool)
        top, left = side * (corner // 2), side * (corner % 2)
        region[top : top + side, left : left + side] = True
        found.append((picture[None], torch.tensor([labels[i]]), region[None]))
    return found


def tables() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split

    x, y = load_breast_cancer(return_X_y=True)
    train, test, y_train, y_test = train_test_split(x, y, test_size=0.25, random_state=0, stratify=y)
    mean, std = train.mean(0), train.std(0)
    tensor = lambda a: torch.as_tensor((a - mean) / std, dtype=torch.float32)  # noqa: E731
    return tensor(train), torch.as_tensor(y_train), tensor(test), torch.as_tensor(y_test)


def network(x: Tensor, y: Tensor, seed: int = 0) -> nn.Module:
    """A small network trained on the table."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(x.shape[1], 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
        optimiser = torch.optim.Adam(net.parameters(), 1e-2, weight_decay=1e-3)
        for _ in range(200):
            optimiser.zero_grad()
            nnf.cross_entropy(net(x), y).backward()
            optimiser.step()
    return net.eval()


def text() -> tuple[Any, list[str]]:
    """A tiny BERT with random weights and a vocabulary of its own."""
    import tempfile

    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    texts = [
        "a gripping film with a fine cast", "the plot is dull and slow", "I would watch it again", "a waste of an evening",
        "the music saves a weak story", "not a bad film at all", "the best comedy of the year", "it goes on and on",
    ]  # fmt: skip
    words = sorted({word for line in texts for word in line.lower().split()})
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.txt"
        vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
        tokenizer = BertTokenizer(str(vocabulary))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(words) + 5, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
        )
        model = BertForSequenceClassification(config).eval()
        nn.init.normal_(model.classifier.weight, std=1.0)
    return cs.text(model, tokenizer), texts


def cases(options: argparse.Namespace) -> list[Case]:
    import timm
    from sklearn.ensemble import RandomForestClassifier

    every, images = ([small(options.samples, image)(cls) for cls in MEASURES.values()] for image in (False, True))
    located = [m for m in images if "regions" in m.needs]
    pictured, others = ([m for m in found if "regions" not in m.needs] for found in (images, every))
    x, labels, resnet = photographs(options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=10)
    train, y_train, test, _ = tables()
    forest = RandomForestClassifier(100, min_samples_leaf=5, random_state=0, n_jobs=1).fit(
        train.numpy(), y_train.numpy()
    )
    classifier, texts = text()
    image = methods_for("image", options.samples)
    standard = [method for method in image if method.name in {e.name for e in PRESETS["standard"]}]
    n = options.count
    draws = {"fit_draws": f"average_sensitivity={options.fit},infidelity={2 * options.samples}", "max_batch": 16}
    table = {"baselines": train, **draws}
    pieces = lambda count: list(x[: min(n, count)].split(options.batch))  # noqa: E731
    return [
        Case("resnet18", resnet, pieces(n), image, pictured, options=draws, note="ImageNet weights"),
        Case("resnet18 mosaics", resnet, mosaics(x, labels)[: options.mosaic_count], standard, located, "labels", draws,
             "ImageNet weights, standard methods"),
        Case("breast cancer network", network(train, y_train), [test[:n]], methods_for("table", options.samples, train),
             others, options=table, note="trained here"),
        Case("breast cancer forest", forest.predict_proba, [test[:n].numpy()],
             methods_for("forest", options.samples, train), others, target=1, options=table, note="trained here"),
        Case("text", classifier, [texts], methods_for("text", options.samples), others, options=draws,
             note="tiny BERT, random weights"),
        Case("vit_tiny", transformer, pieces(options.transformer_count), image, pictured, options=draws, note="random weights"),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", help="a folder of photographs")
    parser.add_argument("--labels", help="CSV with columns file and class_index")
    parser.add_argument("--checkpoint", help="weights of torchvision's resnet18")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--mosaic-count", type=int, default=3)
    parser.add_argument("--transformer-count", type=int, default=2, help="photographs for the transformer")
    parser.add_argument("--samples", type=int, default=16, help="samples of each perturbation method")
    parser.add_argument("--fit", type=int, default=2, help="neighbours that fit the consensus' weights")
    parser.add_argument(
        "--batch", type=int, default=2, help="photographs at a time; results are stored after each batch"
    )
    parser.add_argument("--only", help="names of cases, separated by commas")
    parser.add_argument("--cache", default="out/catalogue")
    parser.add_argument("--out")
    parser.add_argument("--show", metavar="FILE", help="print a stored result as Markdown and do nothing else")
    options = parser.parse_args()
    if options.show:
        print(page(json.loads(Path(options.show).read_text(encoding="utf-8"))))
        return
    for name in ("images", "labels", "checkpoint", "out"):
        if getattr(options, name) is None:
            parser.error(f"--{name} is needed")
    result: dict[str, Any] = {
        "settings": {"count": options.count, "samples": options.samples, "fit_draws": options.fit, "seed": 0},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "cases": {},
    }
    Path(options.cache).mkdir(parents=True, exist_ok=True)
    for case in cases(options):
        if options.only and case.name not in options.only.split(","):
            continue
        began, path = time.perf_counter(), Path(options.cache) / f"{case.name.replace(' ', '_')}.json"
        resumed = path.exists()

        def say(done: int, _: int | None, name: str = case.name, began: float = began) -> None:
            print(f"{name}: {done}, {time.perf_counter() - began:.0f} s", flush=True)

        found = cs.evaluate(
            case.model, case.batches, target=case.target, methods=case.methods, measures=case.measures, objective="opt",
            path=path, progress=say, **case.options,
        )  # fmt: skip
        missing = [
            f"{measure} {row} {found.ids[i]}"
            for measure in found.measures
            for r, row in enumerate(found.rows)
            for i in range(len(found))
            if found.values[measure][i, r] != found.values[measure][i, r]
            and not {"", f"{found.ids[i]} {row}"} & set(found.reasons.get(measure, {}))
        ]
        why: dict[str, dict[str, int]] = {}
        for measure, reasons in found.reasons.items():
            for text_ in reasons.values():
                why.setdefault(measure, {})[text_] = why.get(measure, {}).get(text_, 0) + 1
        result["cases"][case.name] = {
            "note": case.note, "n": len(found), "rows": list(found.rows), "measures": found.summary(),
            "missing_without_reason": missing, "reasons": why, "left_out": found.left_out, "settings": found.settings,
            "evaluations": found.evaluations, "seconds": None if resumed else round(time.perf_counter() - began, 1),
        }  # fmt: skip
        print(found, flush=True)
        assert not missing, missing[:5]
        plain = json.loads(json.dumps(result), parse_constant=lambda _: None)
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        short = json.dumps(_short(plain), ensure_ascii=False, separators=(",", ":"))
        Path(options.out).write_text(short + "\n", encoding="utf-8")


MAIN = (
    "avg_sensitivity", "road_combined", "deletion", "insertion", "faithfulness_correlation", "infidelity", "mprt",
    "random_logit", "gini_sparseness", "rank_correlation",
)  # fmt: skip


def page(result: dict[str, Any]) -> str:
    """What ran, one measure of each kind for every method, and why numbers are missing; the file holds all measures."""
    settings = result["settings"]
    lines = [
        f"{settings['samples']} samples for each perturbation method, {settings['fit_draws']} neighbours to fit the consensus, "
        f"seed {settings['seed']}; {result['machine']}.", "",
        "| model | inputs | rows × measures | forward | gradient | numbers | missing | without a reason |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, case in result["cases"].items():
        cells = [cell for row in case["measures"].values() for cell in row.values()]
        counts = [
            case["n"], f"{len(case['rows'])} × {len(case['measures'])}", case["evaluations"]["forward"],
            case["evaluations"]["gradient"], case["n"] * len(cells), sum(case["n"] - cell["n"] for cell in cells),
            len(case["missing_without_reason"]),
        ]  # fmt: skip
        lines.append(f"| {name} ({case['note']}) | {' | '.join(str(count) for count in counts)} |")
    for name, case in result["cases"].items():
        chosen = [measure for measure in MAIN if measure in case["measures"]] or list(case["measures"])
        lines += ["", f"## {name}", "", f"{case['note']}, n = {case['n']}; mean ± standard error over the inputs.", ""]
        lines += [f"| method | {' | '.join(chosen)} |", "|---" * (len(chosen) + 1) + "|"]
        for row in case["rows"]:
            cells = [_cell(case["measures"][measure][row]) for measure in chosen]
            lines.append(f"| {row} | {' | '.join(cells)} |")
        if case["left_out"] or case["reasons"]:
            lines += ["", "What is missing, and why:", ""]
        lines += [f"- {what}: {why}" for what, why in case["left_out"].items()]
        for measure, reasons in case["reasons"].items():
            lines += [f"- `{measure}`, {count} numbers: {why}" for why, count in reasons.items()]
    return "\n".join(lines)


def _cell(found: dict[str, Any]) -> str:
    if found["mean"] is None:
        return "–"
    return f"{found['mean']:.3g}" + (f" ± {found['stderr']:.1g}" if found["stderr"] else "")


def _short(value: Any) -> Any:
    """Four digits: enough to review."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_short(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
