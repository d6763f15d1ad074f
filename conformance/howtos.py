"""Run every Python block of docs/howto.md, each by itself, and say which ran.

    .venv-conformance/bin/python conformance/howtos.py [WORD …]

A block starts with ``# needs: module, …``; one whose modules are not installed is skipped, by name. WORDs choose blocks by
their heading. The exit status is 1 if a block failed, or if ``--all`` is given and one was skipped.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "howto.md"
PART = re.compile(r"^## (?P<title>.+)|^```python\n(?P<code>[\s\S]*?)^```$", re.M)


def blocks(page: str) -> list[tuple[str, list[str], str]]:
    """(heading, modules it needs, code) of every block; each must say what it needs."""
    found, title = [], "the first lines"
    for part in PART.finditer(page):
        title = part["title"] or title
        if part["code"]:
            first = part["code"].partition("\n")[0]
            if not first.startswith("# needs: "):
                raise SystemExit(f"{title}: the block must start with '# needs: module, …'")
            found.append((title, [name.strip() for name in first.removeprefix("# needs: ").split(",")], part["code"]))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="only headings with one of these words")
    parser.add_argument("--all", action="store_true", help="a skipped block is a failure")
    parser.add_argument("--show", action="store_true", help="show what the blocks print")
    options = parser.parse_args()
    wrong = 0
    for title, needs, code in blocks(PAGE.read_text(encoding="utf-8")):
        if options.words and not any(word.lower() in title.lower() for word in options.words):
            continue
        missing = [name for name in needs if importlib.util.find_spec(name) is None]
        if missing:
            print(f"skipped  {title}: {', '.join(missing)} not installed")
            wrong += options.all
            continue
        began = time.perf_counter()
        run = subprocess.run([sys.executable, "-W", "ignore", "-"], input=code, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        print(f"{'FAILED ' if run.returncode else 'ran    '}  {title} ({seconds:.0f} s)")
        if run.returncode or options.show:
            print(run.stdout + run.stderr)
        wrong += bool(run.returncode)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
