"""The examples of docs/architecture.md run, and the files and tables it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import consilience

PAGE = (Path(__file__).parent.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
ROOT = Path(consilience.__file__).parent
EXAMPLES = dict(re.findall(r"^### (.+?)\n.*?^```python\n(.*?)^```", PAGE, re.M | re.S))


@pytest.mark.parametrize("title", EXAMPLES)
def test_the_example_runs(title):
    exec(compile(EXAMPLES[title], title, "exec"), {"__name__": "example"})


def test_there_is_an_example_of_each_kind():
    assert set(EXAMPLES) == {"An explainer", "A metric", "A measure", "An aggregation", "A kind of features"}


def test_every_file_and_room_that_is_named_exists():
    named = re.findall(r"`((?:\w+/)*\w+\.py|\w+/)`", PAGE)
    assert len(named) > 30
    for path in named:
        assert (ROOT / path).exists() or (ROOT.parent.parent / path).exists(), path


def test_every_room_is_on_the_page():
    rooms = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert rooms <= set(re.findall(r"`(\w+)/`", PAGE))
