"""``consilience explain``: one folder per image, one page over all; what is finished is on disk whatever happens next."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch

from ..combine.draws import AUTO, FIT, FRESH, Draws
from ..combine.weights import resolve as aggregation
from ..data.images import Picture, expand, read_image
from ..data.models import Loaded, parse_target
from ..errors import ConsilienceError, InputError
from ..explain.explain import explain
from ..explain.options import Options
from ..explain.plan import plan
from ..explain.run import begin
from ..explainers import resolve
from ..results.explanation import Explanation
from ..results.files import versions
from ..results.fingerprint import digest
from ..results.runs import RunFolder
from .checks import name_of, rows_in_flight, usable_device
from .images_run import ImagesRun
from .model import load
from .terminal import say

SAME_NAME = (
    "objective", "seed", "fit_draws", "fresh_draws", "confidence", "resolved_draws", "quick", "draws", "kind", "features",
    "signed", "choice", "precision",
)  # fmt: skip
"""The command's options that explain() takes under the same name."""


def run(arguments: argparse.Namespace) -> int:
    """Explain every image that the ``arguments`` name; the exit code."""
    images = expand(arguments.image)
    _check(arguments)
    max_batch = rows_in_flight(arguments.max_batch)
    if arguments.dry_run:
        return _dry(images, _Command(arguments, max_batch))
    # The folder is opened first: that it cannot be written is seen before a model is loaded.
    with RunFolder(arguments.out, "--out") as folder:
        return ImagesRun(folder, images, _Command(arguments, max_batch)).run()


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what can be refused before a model is loaded."""
    resolve(arguments.methods)
    aggregation(arguments.objective, signed=arguments.signed, choice=arguments.choice)
    Draws.of(arguments.fit_draws, FIT, "--fit-draws")
    if arguments.fresh_draws != AUTO:
        Draws.of(arguments.fresh_draws, FRESH, "--fresh-draws")
    if not 0.5 < arguments.confidence < 1:
        raise InputError(f"--confidence: between 0.5 and 1, got {arguments.confidence}")
    if arguments.resolved_draws < 0:
        raise InputError(f"--resolved-draws: 0 or more, got {arguments.resolved_draws}")
    usable_device(arguments.device)


class _Command:
    """The model and the options of one command, which are the same for every image."""

    def __init__(self, arguments: argparse.Namespace, max_batch: int | str):
        self.loaded: Loaded = load(arguments)
        # A quarter to two fifths faster on CPUs. Nobody else holds this model, so it may be changed.
        self.loaded.module.to(memory_format=torch.channels_last)
        self.title = f"Explanations of {self.loaded.name}"
        self.device = arguments.device
        self.target = parse_target(arguments.target, self.loaded.labels, self.loaded.n_classes)
        self.options = {name: getattr(arguments, name) for name in SAME_NAME}
        # By name: the standard methods depend on the size of the image.
        self.options |= {"methods": arguments.methods, "target": self.target}
        self.max_batch = max_batch
        self.key = digest(
            versions()["consilience"], self.loaded.module, self.loaded.name, self.loaded.labels, self.options
        )
        """Tells runs apart: two of the same key give the same numbers for the same picture."""

    def read(self, image: str) -> tuple[Picture, torch.Tensor]:
        """The picture, and what the model sees of it (1, 3, H, W)."""
        picture = read_image(image)
        return picture, self.loaded.preprocess(picture)[None]

    def key_of(self, picture: Picture, x: torch.Tensor) -> str:
        """The run's key, and the picture's behind a dash."""
        return f"{self.key}-{digest(picture.name, picture.source, x)}"

    def arguments(self, x: torch.Tensor) -> dict:
        """What explain() takes besides the model and the input ``x``."""
        return {**self.options, "ids": [name_of(x)], "max_batch": self.max_batch}

    def explain(self, picture: Picture, x: torch.Tensor, progress: Callable[[float, float], None]) -> Explanation:
        """One picture explained, and described for its record."""
        loaded = self.loaded
        result = explain(loaded.module, x.to(self.device), progress=progress, **self.arguments(x))
        source = {"source": picture.source, "size": list(picture.size), "key": self.key_of(picture, x)}
        return result.describe(
            model=f"{loaded.name} ({loaded.weights})",
            labels=loaded.labels,
            names=[picture.name],
            images=[loaded.preprocess.display(x[0])],
            sources=[source],
        )


def _dry(images: Sequence[str], command: _Command) -> int:
    """Print the plan of the first image that can be read, since each image takes as much; the exit code."""
    for image in images:
        try:
            _, x = command.read(image)
            options = command.arguments(x)
            target = options.pop("target")
            ids = options.pop("ids")
            job = begin(command.loaded.module, x.to(command.device), target, Options.of(**options), ids, dry=True)
            planned = plan(job)
        except ConsilienceError as error:
            say(f"{image}: {error}", error=True)
            continue
        say(f"{image}\n{planned}")
        if len(images) > 1:
            low, high = (len(images) * seconds / 60 for seconds in planned.seconds)
            upper = f" … {high:.1f}" if high > low else ""
            say(f"{len(images)} images: about {low:.1f}{upper} min")
        return 0
    return 2
