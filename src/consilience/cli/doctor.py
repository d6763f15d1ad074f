"""``consilience doctor``: which methods are valid for a model, and the proof."""

from __future__ import annotations

import argparse

from ..data.images import read_image
from ..data.models import parse_target
from ..doctor import doctor
from .model import load
from .terminal import say


def run(arguments: argparse.Namespace) -> int:
    """Try every method on one image, as the ``arguments`` say; the exit code, 2 where no method is valid."""
    loaded = load(arguments)
    x = loaded.preprocess(read_image(arguments.image))[None].to(arguments.device)
    target = parse_target(arguments.target, loaded.labels, loaded.n_classes)
    say(f"model     {loaded.name} ({loaded.weights})")
    diagnosis = doctor(loaded.module, x, target, arguments.methods, progress=lambda check: say(check.line()))
    say(diagnosis.summary)
    return 0 if diagnosis.valid else 2
