"""How much is done and how long it will take; an interrupted command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest
from nets import Small, images

import consilience as cs
from consilience.cli.progress import TimeLeft


@pytest.mark.parametrize("objective", ["opt", "faith", "mean"])
@pytest.mark.parametrize("options", [{}, {"quick": True}, {"resolved_draws": 2}, {"fresh_draws": 8, "fit_draws": 8}])
def test_what_is_done_never_falls_and_ends_at_what_is_expected(objective, options):
    told = []
    r = cs.explain(
        Small(), images(2), objective=objective, methods="gradient", progress=lambda *each: told.append(each), **options
    )
    done = [each for each, _ in told]
    assert all(before <= after for before, after in pairwise(done))
    assert all(each <= expected for each, expected in told) and told[-1][0] == told[-1][1]
    if "fresh_draws" in options:
        # Nothing is drawn in rounds, so all is known from the start.
        assert {expected for _, expected in told[:-1]} == {told[-1][1]}
    # Nothing looks done before it is, and the first guess is no wild one.
    assert all(each < expected for each, expected in told if each < told[-1][0])
    assert told[-1][1] / 3 < told[0][1] < 3 * told[-1][1]
    again = []
    r.refine(resolved_draws=3, progress=lambda *each: again.append(each))
    assert again and again[-1][0] == again[-1][1]


@pytest.mark.parametrize("objective", ["opt", "mean"])
def test_an_attribution_alone_ends_at_what_is_expected(objective):
    told = []
    consensus = cs.Consensus(Small(), "gradient", objective)
    consensus.attribute(images(2), progress=lambda *each: told.append(each))
    assert told[-1][0] == told[-1][1] and told[-1][1] / 3 < told[0][1] < 3 * told[-1][1]


def test_no_time_is_told_before_something_was_measured():
    clock = TimeLeft(4)
    clock.start(0, 100.0)
    assert clock.left(100.0) is None
    clock.report(0.5)
    assert clock.left(100.5) is None  # half a second
    clock.report(0.02)
    assert clock.share == 0.5  # what is expected has grown; what is done has not become less
    assert clock.left(110.0) == pytest.approx(10 + 3 * 20)
    clock.finish(121.0, worked=True)
    clock.start(1, 121.0)
    assert clock.left(121.0) == pytest.approx(3 * 21)
    clock.finish(121.1, worked=False)  # found on disk: it took no work, and says nothing of the others
    clock.start(2, 121.1)
    assert clock.left(121.1) == pytest.approx(2 * 21)
    clock.report(1.5)
    assert clock.completed == 3 and clock.left(200.0) < 2 * 79


RUN = """
import sys
from consilience.cli import main
sys.exit(main(sys.argv[1:]))
"""


def folders(out):
    return [path.name for path in sorted(out.glob("[0-9]*")) if (path / "explanation.json").exists()]


def test_a_killed_run_goes_on_and_makes_nothing_again(tmp_path):
    """Killed without a warning after its first image: what was finished stands, the rest is made, as in one go."""
    names = ("camera", "rocket", "coffee")
    command = [sys.executable, "-c", RUN, "explain", "--model", "torchvision:resnet18", "--random-weights"]
    command += ["--methods", "saliency,input_x_gradient", "--objective", "faith", "--quick", "--fit-draws", "8"]
    command += [part for name in names for part in ("--image", f"sample:{name}")]
    out = tmp_path / "run"
    process = subprocess.Popen([*command, "--out", str(out)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not folders(out) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = folders(out)
    assert finished and process.returncode in (-signal.SIGKILL, 0)
    before = {name: os.stat(out / name / "explanation.json").st_mtime_ns for name in finished}
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(folders(out)) == 3 and done.stderr.count("already") == len(finished)
    assert before == {name: os.stat(out / name / "explanation.json").st_mtime_ns for name in finished}
    whole = tmp_path / "whole"
    subprocess.run([*command, "--out", str(whole)], capture_output=True, check=True)
    for name in folders(out):
        one, other = (json.loads((each / name / "explanation.json").read_text()) for each in (out, whole))
        assert one["weights"] == pytest.approx(other["weights"], abs=1e-5)
        assert one["draws"] == other["draws"]
