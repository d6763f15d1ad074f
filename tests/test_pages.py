"""The tables on the pages about training, speed and statistics are those of the stored results, as benchmarks print them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = {
    "rar": "rar.md",
    "expo": "expo.md",
    "closed_loop": "expo.md",
    "train_step": "training.md",
    "speed": "speed.md",
    "fronts": "speed.md",
    "statistics": "numbers.md",
    "held_out": "held-out.md",
    "first_answer": "speed.md",
}
SCRIPTS = {"statistics": "trials"}  # a script named statistics.py would hide Python's own module from the others
MARKS = {"expo_tables": "expo", "closed_loop": "closed loop", "held_out": "held-out"}
STORED = [(name, file) for name in PAGES for file in sorted(RESULTS.glob(f"{name}*.json"))]


@pytest.mark.slow
@pytest.mark.parametrize("name, file", STORED, ids=[file.stem for _, file in STORED])
def test_the_page_shows_what_is_stored(name, file):
    command = [sys.executable, str(ROOT / "benchmarks" / f"{SCRIPTS.get(name, name)}.py"), "--show", str(file)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    mark, page = MARKS.get(file.stem, file.stem), (ROOT / "docs" / PAGES[name]).read_text(encoding="utf-8")
    (found,) = re.findall(rf"<!-- {mark} -->\n(.*?)\n<!-- /{mark} -->", page, re.DOTALL)
    assert found.strip() == printed.strip()


def test_every_result_is_on_a_page():
    stems = {file.stem for _, file in STORED}
    assert stems >= {
        "rar_digits",
        "rar_fashion_mnist",
        "expo_tables",
        "closed_loop",
        "train_step",
        "speed",
        "speed-h200",
        "fronts",
        "statistics",
        "held_out",
        "first_answer",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "part, name",
    [
        ("compare", "discrete (−1, 0, 1), n = 3"),
        ("differences", "relative_sensitivity, 8 draws"),
        ("decided", "neighbours, noise over signal .2 both, normal"),
    ],
)
def test_a_stored_trial_can_be_made_again(monkeypatch, part, name):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    trials = pytest.importorskip("trials")
    stored = json.loads((RESULTS / "statistics.json").read_text(encoding="utf-8"))[part][name]
    (make,) = [make for at, each, make in trials.trials() if (at, each) == (part, name)]
    for key, value in make().items():
        assert value == pytest.approx(stored[key], abs=2e-3)
