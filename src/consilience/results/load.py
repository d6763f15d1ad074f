"""Reading back what was saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import InputError
from .files import reading
from .saved import Saved, _read


def load(directory: str | Path) -> Any:
    """Read what :meth:`Explanation.save` or ``consilience explain`` wrote, a run's folder or one input's, as a
    :class:`Saved`; or what ``evaluate`` wrote, a file, as an :class:`Evaluation`.

    Raises InputError naming the file that is missing or damaged. Nothing in the files is executed.
    """
    directory = Path(directory)
    if directory.is_file():
        from .evaluation import Evaluation

        return Evaluation.load(directory)
    folders, reasons = [directory], {}
    path = directory / "run.json"
    if path.exists():
        with reading(path):
            run = json.loads(path.read_text(encoding="utf-8"))
            folders = [directory / Path(name).name for name in run["folders"]]
            reasons = {str(what): str(why) for what, why in run["left_out"].items()}
        if not folders:
            raise InputError(f"{path}: lists no input")
    entries, arrays = zip(*map(_read, folders), strict=True)
    return Saved([entry.record for entry in entries], list(arrays), list(entries), reasons)
