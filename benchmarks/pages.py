"""Tables of stored results in the pages of docs/: what every benchmark's ``--show FILE --page PAGE`` does."""

from __future__ import annotations

from pathlib import Path


def fill(page: str | Path, name: str, text: str) -> None:
    """Put the text between the page's marks <!-- name --> and <!-- /name -->."""
    before, begin, rest = Path(page).read_text(encoding="utf-8").partition(f"<!-- {name} -->")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not (begin and end):
        raise SystemExit(f"{page} has no marks <!-- {name} --> and <!-- /{name} -->")
    Path(page).write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
