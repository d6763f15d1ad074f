"""``consilience doctor``: which methods are valid for a model, and the proof."""

from __future__ import annotations

import argparse

from ..data.images import read_image
from ..data.models import parse_target
from ..doctor import doctor
from .model import load
from .terminal import say


def run(arguments: argparse.Namespace) -> int:
    loaded = load(arguments)
    x = loaded.preprocess(read_image(arguments.image))[None].to(arguments.device)
    target = parse_target(arguments.target, loaded.labels, loaded.n_classes)
    say(f"model     {loaded.name} ({loaded.weights})")
    found = doctor(loaded.module, x, target, arguments.methods, progress=lambda check: say(check.line()))
    say(found.summary)
    return 0 if found.valid else 2
