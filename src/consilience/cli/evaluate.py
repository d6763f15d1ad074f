"""``consilience evaluate``: methods, aggregations and the consensus on images, by any of the measures; one JSON file."""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import torch

from ..combine.draws import FIT, Draws
from ..combine.named import aim
from ..data.images import expand, read_image
from ..data.models import parse_target
from ..errors import ConsilienceError, InputError
from ..evaluate.evaluator import Evaluator
from ..explainers import resolve
from ..measures import resolve as resolve_measures
from ..results.evaluation import Evaluation
from .explain import make, rows_in_flight, usable_device
from .model import load
from .progress import Progress


def run(arguments: argparse.Namespace) -> int:
    images = expand(arguments.image)
    objective = None if arguments.objective == "none" else arguments.objective
    methods, measures, max_batch = _check(arguments, objective)
    loaded = load(arguments)
    loaded.module.to(memory_format=torch.channels_last)
    target = parse_target(arguments.target, loaded.labels, loaded.n_classes)
    out = Path(arguments.out)
    evaluator = Evaluator(
        loaded.module, methods=methods, measures=measures, objective=objective, seed=arguments.seed,
        fit_draws=arguments.fit_draws, max_batch=max_batch, rows=arguments.rows.split(",") if arguments.rows else None,
    )  # fmt: skip
    named = f"{loaded.name} ({loaded.weights}), {evaluator.settings['model']}"
    evaluator.settings |= {"model": named, "target": arguments.target}
    done = evaluator.resume(out) if out.exists() else set()
    failures: list[tuple[str, str]] = []
    with Progress(len(images)) as progress:
        for number, image in enumerate(images):
            progress.start(number, image)
            try:
                x = loaded.preprocess(read_image(image))
                name = int.from_bytes(hashlib.blake2b(x.numpy().tobytes(), digest_size=8).digest(), "little") >> 1
                if name in done:
                    progress.finish(f"{image}: in {out} already")
                    continue
                evaluator.update(x[None].to(arguments.device), target, [name])
                evaluator.compute().save(out)
                done.add(name)
                progress.finish(image)
            except KeyboardInterrupt:
                print(f"interrupted; what is finished is in {out}, and the same command goes on", file=sys.stderr)
                return 130
            except (ConsilienceError, RuntimeError, OSError) as error:
                failures.append((image, str(error)))
                progress.finish(f"{image}: FAILED: {error}")
    for image, why in failures:
        print(f"{image}: {why}", file=sys.stderr)
    if not done:
        return 2
    print(Evaluation.load(out))
    return 1 if failures else 0


def _check(arguments: argparse.Namespace, objective: str | None) -> tuple[list, list, int | str]:
    """Everything that can be refused before a model is loaded."""
    methods, measures = resolve(arguments.methods), resolve_measures(arguments.measures)
    if objective is not None:
        aim(objective)
    Draws.of(arguments.fit_draws, FIT, "--fit-draws")
    usable_device(arguments.device)
    out = Path(arguments.out)
    if out.is_dir():
        raise InputError(f"--out: {arguments.out!r} is a folder; give a JSON file")
    make(out.parent, out)
    return methods, measures, rows_in_flight(arguments.max_batch)
