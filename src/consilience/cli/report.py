"""``consilience report DIR``: the page of a finished run, made again from its files."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..results.load import load


def run(arguments: argparse.Namespace) -> int:
    saved = load(arguments.directory)
    out = Path(arguments.out) if arguments.out else Path(arguments.directory) / "report.html"
    saved.report(out, f"Explanations of {saved.records[0]['model'] or 'a model'}")
    print(saved.table())
    print(f"\n{len(saved)} inputs; see {out}")
    return 0
