"""Which objective deserves to be the default? Judged by measures that nothing was fitted to, on nets and data of many kinds.

    python benchmarks/held_out.py --data DIR --out benchmarks/results/held_out.json [--scale .1] [--only PAIR,PAIR]
    python benchmarks/held_out.py --show benchmarks/results/held_out.json --page docs/held-out.md

Every method, LIME and KernelSHAP at the same number of evaluations, a ridge regression of the same masks, means, medians,
ranks and all objectives are made of the same inputs, and judged on the same draws. A finished piece (pair × rows × kind of
measure × chunk of inputs) is kept in ``--cache``: a run that was killed goes on, and new rows cost themselves alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import held_out_page
import numpy as np
import torch
from held_out_pairs import Pair, described, makers
from held_out_rows import EVEN, NEIGHBOURS, OBJECTIVES, RowGroup, judged, measures, numbers
from pages import fill

from consilience.results.evaluation import Evaluation
from consilience.results.fingerprint import digest

IMAGES = ("integrated_gradients", "grad_cam", "feature_ablation")
TABLES = ("input_x_gradient", "integrated_gradients", "deeplift", "feature_ablation", "shapley_sampling")
TEXTS = ("input_x_gradient", "integrated_gradients", "feature_ablation", "shapley_sampling")
"""The methods that the first numbers spoke for, by kind of input: those that are proposed as the default."""

CHOSEN = ("posterior", "faith", "best_single", "mean")
"""What is made of them."""

GROUPS = (
    RowGroup(
        "signed", singles=True, mixtures=("mean", "median", "rank", *OBJECTIVES),
        standard=("mean", "best_single", "faith", "opt"), ridges=(7, 14),
    ),
    RowGroup("posterior", mixtures=("posterior", "ridge", EVEN), standard=("posterior",)),
    RowGroup(
        "sets", mixtures=("posterior", "opt"), most=8, modalities=("image",),
        sets=(
            ("without gradients", ("grad_cam", "feature_ablation")),
            ("three", ("integrated_gradients", "grad_cam", "feature_ablation")),
            ("smooth", ("smoothgrad", "grad_cam", "feature_ablation")),
            ("contributions", ("input_x_gradient", "integrated_gradients", "deeplift", "grad_cam", "feature_ablation")),
        ),
    ),
    RowGroup("default image", mixtures=CHOSEN, sets=(("default set", IMAGES),), modalities=("image",)),
    RowGroup("units", units=(8, 16), sets=(("default set", IMAGES),), modalities=("image",)),
    RowGroup("default table", mixtures=CHOSEN, sets=(("default set", TABLES),), modalities=("table",)),
    RowGroup("default text", mixtures=CHOSEN, sets=(("default set", TEXTS),), modalities=("text",)),
    RowGroup(
        "absolute", "abs", mixtures=("mean", "best_single", "faith", "robust", "opt"), label=" |abs|",
        modalities=("image",),
    ),
)  # fmt: skip

DIGITS = 4
"""Significant, of stored numbers of single inputs."""


@dataclass(frozen=True)
class Piece:
    """What is computed and kept at once.

    Args:
        pair: the model and its data.
        group: the rows.
        kind: of the measures.
        places: the inputs.
    """

    pair: Pair
    group: RowGroup
    kind: str
    places: range

    def path(self, cache: Path) -> Path:
        """Where it is kept."""
        name = f"{self.pair.name}-{self.group.name}-{self.kind}-{self.places.start}-{self.places.stop}"
        return cache / f"{name.replace(' ', '_')}.json"

    def compute(self) -> Evaluation:
        """Every measure of every row of these inputs."""
        made = judged(self.pair, self.group, self.places, light=self.kind == "stability")
        task = made.task(self.pair.regions if self.pair.regions is None else self.pair.regions[list(self.places)])
        asked = measures(self.pair, self.kind, made.ready)
        for measure in asked:
            measure.prepare(task)
        values = {}
        reasons = {}
        for measure in asked:
            found, why = numbers(measure, task)
            values[measure.name] = found.numpy()
            if why:
                reasons[measure.name] = {"": why}
        counts = made.ready.score.counts
        return Evaluation(
            task.names,
            tuple(measure.name for measure in asked),
            {measure.name: measure.card.better for measure in asked},
            made.ready.points.ids.tolist(),
            values,
            reasons,
            {},
            made.ready.failed,
            {"forward": counts.forward, "gradient": counts.gradient},
        )

    @property
    def digest(self) -> str:
        """Names everything that decides its numbers."""
        inputs = self.pair.x[self.places.start : self.places.stop]
        about = (self.pair.model, inputs, described(self.pair), repr(self.group), self.kind, NEIGHBOURS)
        return digest(*about, *self.group.sets, *self.group.units)

    def kept(self, cache: Path) -> Evaluation | None:
        """What is in the cache, if it is this; None: nothing, or what was made with other settings."""
        path = self.path(cache)
        if not path.exists():
            return None
        found = Evaluation.load(path)
        return found if found.settings.get("digest") == self.digest else None

    def get(self, cache: Path) -> Evaluation:
        """From the cache, or computed and put there."""
        kept = self.kept(cache)
        if kept is not None:
            return kept
        began = time.perf_counter()
        found = self.compute()
        seconds = round(time.perf_counter() - began, 1)
        found = replace(found, settings={"digest": self.digest, "seconds": seconds})
        found.save(self.path(cache))
        return found


def pieces(pair: Pair, groups: Sequence[RowGroup] = GROUPS) -> Iterator[Piece]:
    """The pieces of one pair, chunk by chunk, so that a run that is stopped has all rows of its first inputs."""
    for start in range(0, len(pair.x), pair.chunk):
        places = range(start, min(start + pair.chunk, len(pair.x)))
        for group in groups:
            # What signs and sets are worth, the small images tell; of what size units are, the large ones.
            answered = pair.light and group.most is not None
            answered = answered or (group.sign == "abs" and (pair.light or pair.regions is not None))
            answered = answered or (bool(group.units) and not pair.light)
            if answered or pair.modality not in group.modalities:
                continue
            for kind, count in kinds(pair, group).items():
                if start < count:
                    yield Piece(pair, group, kind, range(start, min(places.stop, count)))


def kinds(pair: Pair, group: RowGroup) -> dict[str, int]:
    """Kind of measure → how many of a pair's inputs are judged by it."""
    found = {"faithfulness": len(pair.x), "stability": pair.stable}
    if pair.regions is not None:
        found = {"localisation": len(pair.x)}
    if group.sign == "abs":
        found = {kind: min(count, 12) for kind, count in found.items()}
    if group.most is not None:
        found = {kind: min(count, group.most) for kind, count in found.items()}
    return found


def in_turn(every: Sequence[Piece]) -> list[Piece]:
    """Pieces in the order in which they are made: of dear pairs a chunk of each in turn, behind all others, and what takes
    longest last."""

    def turn(piece: Piece) -> tuple[bool, bool, int]:
        dear = piece.pair.light
        return dear, dear and piece.kind == "stability", piece.places.start if dear else 0

    return sorted(every, key=turn)


def finished(own: Sequence[Piece], cache: Path) -> list[Evaluation]:
    """What is kept of a pair's pieces, of chunks of which nothing is missing: else some rows would have more inputs."""
    found = [(piece.places.start, piece.kept(cache)) for piece in own]
    missing = {start for start, kept in found if kept is None}
    return [kept for start, kept in found if kept is not None and start not in missing]


def joined(parts: Sequence[Evaluation]) -> Evaluation:
    """Pieces of one pair as one evaluation: NaN where no piece has a number."""
    rows = tuple(dict.fromkeys(row for part in parts for row in part.rows))
    names = tuple(dict.fromkeys(name for part in parts for name in part.measures))
    ids = sorted({each for part in parts for each in part.ids})
    values = {name: np.full((len(ids), len(rows)), np.nan) for name in names}
    result = Evaluation(rows, names, {}, ids, values)
    for part in parts:
        places = np.ix_([ids.index(each) for each in part.ids], [rows.index(row) for row in part.rows])
        for name in part.measures:
            values[name][places] = part.values[name]
        result.better |= part.better
        result.reasons |= part.reasons
        result.left_out |= part.left_out
        for what, number in part.evaluations.items():
            result.evaluations[what] += number
    return result


def stored(pair: Pair, evaluation: Evaluation, seconds: float) -> dict[str, Any]:
    """What the file says of one pair; the rows hold every input's number, so that all tests can be made again."""
    rows = []
    for measure in evaluation.measures:
        summary = evaluation.summary()[measure]
        for method, each in evaluation[measure].items():
            about = summary[method]
            rows.append(
                {
                    "pair": pair.name,
                    "method": method,
                    "measure": measure,
                    "better": evaluation.better[measure],
                    "value": short(about["mean"]),
                    "stderr": short(about["stderr"]),
                    "n": about["n"],
                    "values": [short(value) for value in each],
                }
            )
    about = {
        **described(pair),
        "n": len(evaluation),
        "failed": evaluation.left_out,
        "evaluations": evaluation.evaluations,
    }
    return {"about": {**about, "seconds": round(seconds), "reasons": evaluation.reasons}, "rows": rows}


def short(value: float) -> float | None:
    """Rounded to a few digits; None of what is no number."""
    return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder with weights/, imagenet/, cifar10/, gtsrb/, …")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the 24 inputs of each pair")
    parser.add_argument("--only", help="names of pairs, separated by commas")
    parser.add_argument("--groups", help="names of groups of rows, separated by commas")
    parser.add_argument("--cache", type=Path, default=Path("out/held_out"))
    parser.add_argument("--kept", action="store_true", help="compute nothing: store what the cache has")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--show", metavar="FILE", help="print a stored file's tables and do nothing else")
    parser.add_argument("--page", help="with --show: a Markdown page, in which they are put between the marks")
    options = parser.parse_args()
    if options.show:
        text = held_out_page.shown(json.loads(Path(options.show).read_text(encoding="utf-8")))
        return fill(options.page, "held-out", text) if options.page else print(text)
    if options.data is None or options.out is None:
        parser.error("--data and --out are needed")
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    count = max(2, round(24 * options.scale))
    wanted = None if options.only is None else options.only.split(",")
    groups = [each for each in GROUPS if options.groups is None or each.name in options.groups.split(",")]
    result: dict[str, Any] = {
        "settings": {"seed": 0, "scale": options.scale, "neighbours": NEIGHBOURS},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread, torch {torch.__version__}",
        "pairs": {},
        "rows": [],
    }
    pairs = [
        make() for name, make in makers(options.data, options.cache, count).items() if wanted is None or name in wanted
    ]
    every = [piece for pair in pairs for piece in pieces(pair, groups)]
    if not options.kept:
        for piece in in_turn(every):
            print(f"{piece.path(Path()).stem}: {piece.get(options.cache).settings['seconds']} s", flush=True)
    for pair in pairs:
        parts = finished([piece for piece in every if piece.pair is pair], options.cache)
        if parts:
            entry = stored(pair, joined(parts), sum(part.settings["seconds"] for part in parts))
            result["pairs"][pair.name] = entry["about"]
            result["rows"] += entry["rows"]
    text = json.dumps(result, ensure_ascii=False, separators=(",", ":")).replace('{"pair"', '\n{"pair"')
    options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
