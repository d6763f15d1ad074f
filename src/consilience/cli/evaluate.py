"""``consilience evaluate``: methods, aggregations and the consensus on images, by any of the measures; one JSON file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..combine.draws import FIT, Draws
from ..combine.weights import resolve as aggregation
from ..data.images import expand, read_image
from ..data.models import Loaded, parse_target
from ..errors import ConsilienceError, InputError, printable
from ..evaluate.evaluator import Evaluator
from ..evaluate.saving import GrowingFile
from ..explainers import resolve
from ..measures import resolve as resolve_measures
from ..results.evaluation import Evaluation
from ..results.files import output
from .checks import name_of, rows_in_flight, usable_device
from .model import load
from .progress import Progress
from .terminal import say


def run(arguments: argparse.Namespace) -> int:
    """Judge every image that the ``arguments`` name; the exit code."""
    images = expand(arguments.image)
    out = output(arguments.out, "--out")
    objective = None if arguments.objective == "none" else arguments.objective
    measures, max_batch = _check(arguments, objective)
    with _growing(out) as file:
        loaded = load(arguments)
        loaded.module.to(memory_format=torch.channels_last)
        evaluator = Evaluator(
            loaded.module,
            # By name: the standard methods depend on the size of the image.
            methods=arguments.methods,
            measures=measures,
            objective=objective,
            seed=arguments.seed,
            fit_draws=arguments.fit_draws,
            max_batch=max_batch,
            rows=arguments.rows.split(",") if arguments.rows else None,
        )
        named = f"{loaded.name} ({loaded.weights}), {evaluator.settings['model']}"
        evaluator.settings |= {"model": named, "target": arguments.target}
        done = evaluator.resume(out) if out.exists() else set()
        target = parse_target(arguments.target, loaded.labels, loaded.n_classes)
        failures, interrupted = _judge(images, evaluator, done, loaded, target, arguments.device, file)
    if interrupted:
        say(f"interrupted; what is finished is in {out}, and the same command goes on", error=True)
        return 130
    for image, why in failures:
        say(f"{image}: {why}", error=True)
    if not done:
        return 2
    say(Evaluation.load(out))
    return 1 if failures else 0


def _growing(out: Path) -> GrowingFile:
    """The file of --out, which must not be a folder."""
    if out.is_dir():
        raise InputError(f"--out: {str(out)!r} is a folder; give a JSON file")
    return GrowingFile(out, "--out")


def _judge(
    images: Sequence[str],
    evaluator: Evaluator,
    done: set[int],
    loaded: Loaded,
    target: Any,
    device: str,
    file: GrowingFile,
) -> tuple[list[tuple[str, str]], bool]:
    """Every image judged, one after another.

    Args:
        images: files, or names of samples.
        evaluator: what judges.
        done: the ids that are judged already; those of this run are added.
        loaded: the model, with its preprocessing.
        target: a class number, or None for the predicted one.
        device: where the model is.
        file: where the evaluation grows.

    Returns:
        The images that failed, each with the reason, and whether it was interrupted.
    """
    failures: list[tuple[str, str]] = []
    with Progress(len(images)) as progress:
        for number, image in enumerate(images):
            progress.start(number, printable(image))
            try:
                x = loaded.preprocess(read_image(image))[None]
                name = name_of(x)
                message = f"{image}: in {file.path} already"
                if name not in done:
                    evaluation = evaluator.update(x.to(device), target, [name])
                    if evaluation is None:
                        raise InputError("the model's output has NaN or infinite values for it")
                    file.update(evaluation)
                    done.add(name)
                    message = image
                left_out = evaluator.compute().left_out.get(f"id {name}")
                if left_out is not None:
                    raise InputError(left_out)
                progress.finish(message, worked=message == image)
            except KeyboardInterrupt:
                return failures, True
            except (ConsilienceError, RuntimeError, OSError) as error:
                failures.append((image, str(error)))
                progress.finish(f"{image}: FAILED: {error}")
    return failures, False


def _check(arguments: argparse.Namespace, objective: str | None) -> tuple[list, int | str]:
    """(measures, rows in flight), with everything checked that can be refused before a model is loaded."""
    resolve(arguments.methods)
    measures = resolve_measures(arguments.measures)
    if objective is not None:
        aggregation(objective)
    Draws.of(arguments.fit_draws, FIT, "--fit-draws")
    usable_device(arguments.device)
    return measures, rows_in_flight(arguments.max_batch)
