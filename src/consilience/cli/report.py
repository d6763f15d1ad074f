"""``consilience report``: the page of a finished run made again from its files, or the table of an evaluation."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InputError
from ..report.page import pieces
from ..report.text import text_table
from ..results.entries import Entries
from ..results.evaluation import Evaluation
from ..results.files import output, write_text
from ..results.runs import index_of
from ..results.stored import read_input, read_record
from .terminal import say


def run(arguments: argparse.Namespace) -> int:
    """Make the page that the ``arguments`` ask for; the exit code."""
    place = Path(arguments.directory)
    if place.is_file():
        return _evaluation(place, arguments.out)
    folders, reasons = index_of(place)
    records = [read_record(folder) for folder in folders]
    entries = Entries(len(folders), lambda i: read_input(folders[i]).entry)
    out = place / "report.html" if arguments.out is None else output(arguments.out, "--out")
    title = f"Explanations of {records[0].get('model') or 'a model'}"
    write_text(out, pieces(entries, title, list(reasons.items())))
    say(text_table(records))
    for what, why in reasons.items():
        say(f"{what} left out: {why}")
    say(f"\n{len(folders)} inputs; see {out}")
    return 0


def _evaluation(path: Path, out: str | None) -> int:
    """Print the numbers of a file of ``consilience evaluate``; it holds no maps, so no page is made of it."""
    evaluation = Evaluation.load(path)
    if out is not None:
        raise InputError(f"--out: {str(path)!r} is an evaluation, which is a table and no page; leave --out away")
    say(evaluation)
    return 0
