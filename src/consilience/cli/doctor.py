"""``consilience doctor``: which methods are valid for a model, and the proof."""

from __future__ import annotations

import argparse

from ..data.images import read_image
from ..data.models import parse_target
from ..doctor import doctor
from .model import load


def run(arguments: argparse.Namespace) -> int:
    loaded = load(arguments)
    x = loaded.preprocess(read_image(arguments.image))[None].to(arguments.device)
    target = parse_target(arguments.target, loaded.labels, loaded.n_classes)
    print(f"model     {loaded.name} ({loaded.weights})", flush=True)
    found = doctor(loaded.module, x, target, arguments.methods, progress=lambda check: print(check.line(), flush=True))
    print(found.summary)
    return 0 if found.valid else 2
