"""``consilience explain``: one folder per image, one page over all; what is finished is on disk whatever happens next."""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from ..combine.draws import FIT, FRESH, Draws
from ..combine.named import aim
from ..data.images import Picture, expand, read_image
from ..data.models import Loaded, parse_target
from ..errors import ConsilienceError, InputError
from ..explain.explain import explain
from ..explain.plan import plan
from ..explain.run import begin
from ..explainers import Explainer, resolve
from ..metrics.front import Front
from ..report.entry import Entry
from ..results.explanation import Explanation
from ..results.files import clear, save_entry, save_run, write_text
from .model import load
from .progress import Progress


def run(arguments: argparse.Namespace) -> int:
    images = expand(arguments.image)
    methods, max_batch = _check(arguments)
    loaded = load(arguments)
    # A quarter to two fifths faster on CPUs, and this model is ours to change.
    loaded.module.to(memory_format=torch.channels_last)
    if arguments.dry_run:
        return _dry(images, loaded, arguments, methods, max_batch)
    out = Path(arguments.out)
    make(out, out)
    done: list[Entry] = []
    failures: list[tuple[str, str]] = []
    folders: list[str] = []
    interrupted = False
    with Progress(len(images)) as progress:
        for number, image in enumerate(images):
            progress.start(number, image)
            try:
                picture = read_image(image)
                result = _explain(picture, loaded, arguments, methods, max_batch, progress.update)
                entry = result.entries()[0]
                folder = f"{number:03d}-{_stem(picture.name)}"
                if not done:
                    clear(out)
                _write(out / folder, result, entry)
                done.append(entry)
                folders.append(folder)
                save_run(out, folders, dict(failures))
                progress.finish(f"{image}: {_headline(entry)}")
            except KeyboardInterrupt:
                interrupted = True
                break
            except Exception as error:  # whatever a model or a decoder raises: the other images go on
                kind = "" if isinstance(error, ConsilienceError) else f"{type(error).__name__}: "
                failures.append((image, f"{kind}{error}"))
                progress.finish(f"{image}: FAILED: {failures[-1][1]}")
    if done:
        from ..report.page import page
        from ..report.table import text_table

        save_run(out, folders, dict(failures))
        write_text(out / "report.html", page(done, f"Explanations of {loaded.name}", failures=failures))
        print(text_table([entry.record for entry in done]))
        print(f"\n{len(done)} of {len(images)} images explained; see {out / 'report.html'}")
    if failures:
        print(f"{len(failures)} failed:", file=sys.stderr)
        for name, reason in failures:
            print(f"  {name}: {reason}", file=sys.stderr)
    if interrupted:
        print(f"interrupted; {len(done)} of {len(images)} images are in {out}", file=sys.stderr)
        return 130
    return 2 if not done else 1 if failures else 0


def _check(arguments: argparse.Namespace) -> tuple[list[Explainer], int | str]:
    """Everything that can be refused before a model is loaded."""
    methods = resolve(arguments.methods)
    goal = aim(arguments.objective)
    if isinstance(goal, Front) and (arguments.signed or arguments.choice != "convex"):
        raise InputError(
            "--signed and --choice cross_validated are for objectives of one number, such as robust or faith"
        )
    Draws.of(arguments.fit_draws, FIT, "--fit-draws")
    Draws.of(arguments.fresh_draws, FRESH, "--fresh-draws")
    if arguments.resolved_draws < 0:
        raise InputError(f"--resolved-draws: 0 or more, got {arguments.resolved_draws}")
    usable_device(arguments.device)
    return methods, rows_in_flight(arguments.max_batch)


def rows_in_flight(given: str) -> int | str:
    if given == "auto":
        return given
    if not given.isdigit() or int(given) < 1:
        raise InputError(f"--max-batch: a positive integer or 'auto', got {given!r}")
    return int(given)


def make(folder: Path, out: Path) -> None:
    """The folder that ``--out`` needs."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: cannot write to {str(out)!r} ({error.strerror})") from error


def usable_device(name: str) -> None:
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device: {name!r} cannot be used ({str(error).splitlines()[0]})") from error


def _options(
    picture: Picture, loaded: Loaded, arguments: argparse.Namespace, methods: list[Explainer], max_batch: int | str
) -> tuple[torch.Tensor, dict]:
    """The picture as the model wants it, and everything else that explain() takes."""
    x = loaded.preprocess(picture)
    # The picture itself names its draws: the same picture gets the same numbers, alone or in any list.
    name = int.from_bytes(hashlib.blake2b(x.numpy().tobytes(), digest_size=8).digest(), "little") >> 1
    asked = (
        "objective",
        "seed",
        "fit_draws",
        "fresh_draws",
        "resolved_draws",
        "draws",
        "kind",
        "features",
        "signed",
        "choice",
    )
    options = {name: getattr(arguments, name) for name in (*asked, "precision")}
    options |= {
        "target": parse_target(arguments.target, loaded.labels, loaded.n_classes), "methods": methods, "ids": [name],
        "max_batch": max_batch,
    }  # fmt: skip
    return x, options


def _dry(
    images: list[str], loaded: Loaded, arguments: argparse.Namespace, methods: list[Explainer], max_batch: int | str
) -> int:
    """The plan of the first image that can be read; each image takes as much."""
    for image in images:
        try:
            x, options = _options(read_image(image), loaded, arguments, methods, max_batch)
            found = plan(begin(loaded.module, x[None].to(arguments.device), **options))
        except ConsilienceError as error:
            print(f"{image}: {error}", file=sys.stderr)
            continue
        print(f"{image}\n{found}")
        if len(images) > 1:
            low, high = (len(images) * seconds / 60 for seconds in found.seconds)
            print(f"{len(images)} images: about {low:.1f}" + (f" … {high:.1f}" if high > low else "") + " min")
        return 0
    return 2


def _explain(
    picture: Picture,
    loaded: Loaded,
    arguments: argparse.Namespace,
    methods: list[Explainer],
    max_batch: int | str,
    progress: Callable[[float, float], None],
) -> Explanation:
    x, options = _options(picture, loaded, arguments, methods, max_batch)
    result = explain(loaded.module, x[None].to(arguments.device), progress=progress, **options)
    return result.describe(
        model=f"{loaded.name} ({loaded.weights})",
        labels=loaded.labels,
        names=[picture.name],
        images=[loaded.preprocess.display(x)],
        sources=[{"source": picture.source, "size": list(picture.size)}],
    )


def _write(folder: Path, result: Explanation, entry: Entry) -> None:
    """The whole folder or nothing: written beside, then renamed."""
    from ..report.figure import figure

    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    figure(entry).savefig(part / "explanation.png")
    save_entry(part, entry, result._arrays(0))
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)


def _stem(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[:60] or "image"


def _headline(entry: Entry) -> str:
    record = entry.record
    return f"{record['target_label'] or entry.target}, {record['status']}, {record['seconds']:.0f} s"
