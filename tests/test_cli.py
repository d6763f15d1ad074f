"""The command line, through its own entry point: files, exit codes, words on failure."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

import consilience as cs
from consilience.cli import main
from consilience.report.entry import Entry
from consilience.results import stored

MODEL = ["--model", "timm:test_resnet.r160_in1k", "--random-weights"]
QUICK = [
    "--methods", "saliency,input_x_gradient,grad_cam", "--fit-draws", "average_sensitivity=3,infidelity=12",
    "--fresh-draws", "average_sensitivity=2,infidelity=10", "--resolved-draws", "1",
]  # fmt: skip


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "my <b>cat.png"
    Image.effect_noise((200, 180), 60).convert("RGB").save(path)
    return path


def explain(*arguments, out):
    return main(["explain", *MODEL, *QUICK, *map(str, arguments), "--out", str(out)])


def test_two_images_one_bad(tmp_path, picture, capsys):
    bad = tmp_path / "broken.jpg"
    bad.write_bytes(b"\xff\xd8\xff")
    code = explain("--image", picture, "--image", bad, "--image", "sample:camera", out=tmp_path / "out")
    said = capsys.readouterr()
    assert code == 1 and "broken.jpg" in said.err and "2 of 3 images explained" in said.out
    folders = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert folders == ["000-my_b_cat", "002-camera", "report.html", "run.json"]
    record = json.loads((tmp_path / "out" / folders[1] / "explanation.json").read_text())
    assert record["schema"] == 1 and len(record["weights"]) == 3 and record["model"].startswith("test_resnet")
    arrays = load_file(tmp_path / "out" / folders[1] / "attributions.safetensors")
    assert arrays["maps"].shape[0] == 3 and arrays["attribution"].shape == arrays["maps"].shape[1:]
    with Image.open(tmp_path / "out" / folders[1] / "explanation.png") as image:
        assert min(image.size) > 300
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<b>cat" not in page and "broken.jpg" in page and "camera" in page
    assert 'src="http' not in page and 'href="http' not in page


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, picture, capsys):
    assert explain("--image", picture, "--image", "sample:camera", "--dry-run", out=tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "saliency, input_x_gradient" in said and "MiB" in said and "2 images: about" in said
    assert not (tmp_path / "out").exists()
    assert explain("--image", tmp_path / "none.png", "--dry-run", out=tmp_path / "out") == 2


def test_the_same_picture_gets_the_same_numbers_in_any_list(tmp_path):
    explain("--image", "sample:camera", out=tmp_path / "one")
    explain("--image", "sample:rocket", "--image", "sample:camera", out=tmp_path / "two")
    a = load_file(tmp_path / "one" / "000-camera" / "attributions.safetensors")
    b = load_file(tmp_path / "two" / "001-camera" / "attributions.safetensors")
    assert (abs(a["attribution"] - b["attribution"]) < 1e-4).all()


def test_report_can_be_made_again(tmp_path, capsys):
    explain("--image", "sample:camera", out=tmp_path / "one")
    before = (tmp_path / "one" / "report.html").read_text()
    (tmp_path / "one" / "report.html").unlink()
    assert main(["report", str(tmp_path / "one")]) == 0
    again = (tmp_path / "one" / "report.html").read_text()
    assert "camera" in again and abs(len(again) - len(before)) < 0.02 * len(before)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--image", "sample:cofee"], "did you mean 'coffee'"),
        (["--image", "nowhere.png"], "nowhere.png"),
        (["--image", "sample:coffee", "--methods", "salincy"], "did you mean 'saliency'"),
        (["--image", "sample:coffee", "--objective", "fath"], "did you mean 'faith'"),
        (["--image", "sample:coffee", "--fit-draws", "many"], "--fit-draws"),
        (["--image", "sample:coffee", "--max-batch", "-3"], "--max-batch"),
        (["--image", "sample:coffee", "--device", "abacus"], "--device"),
        (["--image", "sample:coffee", "--target", "100000"], "100000"),
    ],
)
def test_nothing_done_is_exit_code_2_and_leaves_nothing_half_written(tmp_path, capsys, arguments, words):
    out = tmp_path / "out"
    assert explain(*arguments, out=out) == 2
    assert words in capsys.readouterr().err
    assert not out.exists() or not list(out.iterdir())


def test_unknown_model_names_near_matches(tmp_path, capsys):
    assert (
        main(
            [
                "explain",
                "--image",
                "sample:coffee",
                "--model",
                "torchvision:resnet19",
                "--random-weights",
                "--out",
                str(tmp_path),
            ]
        )
        == 2
    )
    assert "resnet18" in capsys.readouterr().err


def test_an_interrupt_keeps_what_is_finished(tmp_path, monkeypatch, capsys):
    import consilience.cli.explain as command

    real, calls = command.explain, []

    def once(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(command, "explain", once)
    assert explain("--image", "sample:camera", "--image", "sample:rocket", out=tmp_path / "out") == 130
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["000-camera", "report.html", "run.json"]


def test_methods_and_doctor(capsys):
    assert main(["methods"]) == 0
    said = capsys.readouterr().out
    assert "integrated_gradients" in said and "paper_opt" in said and "faithfulness_correlation" in said
    assert main(["methods", "deeplift"]) == 0 and "rescale" in capsys.readouterr().out
    assert main(["methods", "deplift"]) == 2 and "deeplift" in capsys.readouterr().err
    assert main(["doctor", *MODEL, "--methods", "saliency,deeplift,guided_backprop"]) == 0
    said = capsys.readouterr().out
    assert "completeness error" in said and "relu" in said


def test_the_demo_model_explains_a_photograph(tmp_path):
    code = main(
        [
            "explain",
            "--image",
            "sample:chelsea",
            "--model",
            "demo",
            *QUICK,
            "--target",
            "tabby",
            "--out",
            str(tmp_path / "o"),
        ]
    )
    if code == 2:  # the label is written differently in this version of timm's names
        code = main(["explain", "--image", "sample:chelsea", "--model", "demo", *QUICK, "--out", str(tmp_path / "o")])
    record = json.loads(next((tmp_path / "o").glob("*/explanation.json")).read_text())
    assert code == 0 and "cat" in (record["predicted_label"] + "tabby cat").lower()
    assert torch.tensor(record["weights"]).sum() == pytest.approx(1)


def test_evaluate_a_folder_and_go_on(tmp_path, capsys):
    folder, out = tmp_path / "pictures", tmp_path / "quality.json"
    folder.mkdir()
    for i in range(2):
        Image.effect_noise((180, 180), 40 + 20 * i).convert("RGB").save(folder / f"{i}.png")
    (folder / "2.jpg").write_bytes(b"\xff\xd8\xff")
    command = [
        "evaluate", "--image", str(folder), *MODEL, "--methods", "saliency,grad_cam", "--objective", "robust",
        "--fit-draws", "average_sensitivity=2,infidelity=8", "--measures", "gini_sparseness,random_logit", "--out", str(out),
    ]  # fmt: skip
    assert main(command) == 1
    said = capsys.readouterr()
    assert "2.jpg" in said.err and "gini_sparseness ↑" in said.out
    assert re.search(r"^consensus +2 ", said.out, re.MULTILINE)
    before = out.read_text()
    assert main(command) == 1
    assert "already" in capsys.readouterr().err and out.read_text() == before
    assert main([*command[:-1], str(folder)]) == 2 and "is a folder" in capsys.readouterr().err
    assert main([*command, "--seed", "1"]) == 2 and "other settings" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["evaluate", "--image", str(empty), *MODEL, "--out", str(out)]) == 2
    assert "no pictures" in capsys.readouterr().err


# -- going on ----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """As SIGKILL: nobody catches it."""


@pytest.fixture
def calls(monkeypatch):
    """How often images were explained; ``calls.stop[n]`` is raised in the n-th. Pictures, which take longest, are blank."""
    import consilience.cli.explain as command
    import consilience.cli.images_run as images_run

    class Blank:
        def savefig(self, file):
            file.write(b"png")

    monkeypatch.setattr(images_run, "figure", lambda entry: Blank())

    real = command.explain

    class Calls(list):
        stop: dict = {}

        def __call__(self, *arguments, **options):
            self.append(1)
            if len(self) in self.stop:
                raise self.stop.pop(len(self))
            return real(*arguments, **options)

    found = Calls()
    monkeypatch.setattr(command, "explain", found)
    return found


CAMERA, ROCKET, COFFEE = (("--image", f"sample:{name}") for name in ("camera", "rocket", "coffee"))


def test_the_same_command_makes_finished_images_once(tmp_path, calls, capsys):
    out = tmp_path / "out"
    assert explain(*CAMERA, *ROCKET, out=out) == 0 and len(calls) == 2
    first = (out / "000-camera" / "explanation.json").read_bytes()
    capsys.readouterr()
    assert explain(*CAMERA, *ROCKET, out=out) == 0 and len(calls) == 2
    assert capsys.readouterr().err.count("already") == 2
    assert explain(*COFFEE, *CAMERA, out=out) == 0 and len(calls) == 3
    assert (out / "001-camera" / "explanation.json").read_bytes() == first
    assert [r["input"]["name"] for r in cs.load(out).records] == ["coffee", "camera"]
    assert sorted(path.name for path in out.iterdir()) == ["000-coffee", "001-camera", "report.html", "run.json"]
    assert explain(*CAMERA, "--seed", "1", out=out) == 0 and len(calls) == 4
    assert cs.load(out).seed == 1


@pytest.mark.parametrize("stop", [KeyboardInterrupt, pytest.param(Killed, marks=pytest.mark.slow)])
def test_a_first_run_that_is_stopped_goes_on(tmp_path, calls, stop):
    calls.stop = {2: stop()}
    out = tmp_path / "out"
    if stop is Killed:
        with pytest.raises(Killed):
            explain(*CAMERA, *ROCKET, *COFFEE, out=out)
    else:
        assert explain(*CAMERA, *ROCKET, *COFFEE, out=out) == 130
    assert [r["input"]["name"] for r in cs.load(out).records] == ["camera"]
    assert explain(*CAMERA, *ROCKET, *COFFEE, out=out) == 0
    assert len(calls) == 4 and len(cs.load(out)) == 3
    assert not list(out.glob(".*"))


@pytest.mark.parametrize("stop", [pytest.param(KeyboardInterrupt, marks=pytest.mark.slow), Killed])
def test_a_run_with_other_options_does_not_forget_the_earlier_one(tmp_path, calls, stop, capsys):
    out = tmp_path / "out"
    explain(*CAMERA, *ROCKET, out=out)
    calls.stop = {4: stop()}
    command = (*CAMERA, *ROCKET, "--seed", "1")
    if stop is Killed:
        with pytest.raises(Killed):
            explain(*command, out=out)
    else:
        assert explain(*command, out=out) == 130
        said = capsys.readouterr().err
        assert "1 of 2 images are in" in said and "is as it was; the same command goes on" in said
    found = cs.load(out)
    assert len(found) == 2 and found.seed == 0
    assert explain(*command, out=out) == 0 and len(calls) == 5
    found = cs.load(out)
    assert len(found) == 2 and found.seed == 1 and not list(out.glob(".*"))


@pytest.mark.parametrize("earlier", [False, True])
def test_a_disk_that_is_full_after_an_image_is_exit_code_1(tmp_path, calls, monkeypatch, capsys, earlier):
    out, real, writes = tmp_path / "out", stored.write_bytes, []
    if earlier:
        explain(*CAMERA, "--seed", "1", out=out)

    def full(path, *arguments, **options):
        writes.append(path)
        if len(writes) > 3:
            raise OSError(28, "No space left on device")
        return real(path, *arguments, **options)

    monkeypatch.setattr(stored, "write_bytes", full)
    assert explain(*CAMERA, *ROCKET, out=out) == 1
    assert "No space left" in capsys.readouterr().err
    monkeypatch.undo()
    assert [r["input"]["name"] for r in cs.load(out).records] == ["camera"] and cs.load(out).seed == 0
    assert not list(out.glob(".*")) and not list(out.rglob("*.part"))


def test_what_cannot_be_written_or_is_not_ours_is_said_before_a_model_is_loaded(tmp_path, monkeypatch, capsys):
    import consilience.cli.explain as command

    monkeypatch.setattr(command, "load", lambda arguments: pytest.fail("loaded"))
    (tmp_path / "file").write_text("")
    (tmp_path / "npm").mkdir()
    (tmp_path / "npm" / "run.json").write_text('{"scripts": {}}')
    places = {"": "empty string", "file": "cannot be written", "file/out": "cannot be written", "npm": "not written by"}
    for place, words in places.items():
        assert explain(*CAMERA, out=tmp_path / place if place else "") == 2
        assert words in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "npm", "run.json"]


def test_an_input_that_is_in_the_way_is_kept(tmp_path, calls, capsys):
    out = tmp_path / "out"
    (out / "000-camera").mkdir(parents=True)
    (out / "000-camera" / "thesis.txt").write_text("mine")
    assert explain(*CAMERA, *ROCKET, out=out) == 1
    assert "000-camera: is in the way" in capsys.readouterr().err
    assert (out / "000-camera" / "thesis.txt").read_text() == "mine" and len(cs.load(out)) == 1


def test_one_image_at_a_time_is_kept_in_memory(tmp_path, monkeypatch, calls):
    """Nothing that grows with the number of images holds a map."""
    import consilience.cli.images_run as images_run

    def entries():
        return sum(type(each) is Entry for each in gc.get_objects())

    gc.collect()
    before, alive = entries(), []
    real = images_run.write_text

    def written(path, pieces):
        def counted():
            for piece in pieces:
                # Once for each image's article: looking through all objects takes a while.
                if "<article" in piece:
                    alive.append(entries() - before)
                yield piece

        return real(path, counted())

    monkeypatch.setattr(images_run, "write_text", written)
    assert explain(*CAMERA, *ROCKET, *COFFEE, out=tmp_path / "out") == 0
    assert len(alive) >= 3 and max(alive) <= 2


# -- words -------------------------------------------------------------------------------------------------------------


def test_names_of_any_bytes_are_explained_and_shown_as_escapes(tmp_path, picture, capsys):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9\x1b[31m\n.png")
    with open(path, "wb") as file:
        file.write(picture.read_bytes())
    bad = os.fsdecode(path).replace("caf", "bad")
    with open(bad, "w") as file:
        file.write("no image")
    assert (
        main(["explain", *MODEL, *QUICK, "--image", os.fsdecode(path), "--image", bad, "--out", str(tmp_path / "o")])
        == 1
    )
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err and "bad\\udce9\\x1b[31m\\n.png" in said.err
    record = cs.load(tmp_path / "o").record(0)
    assert record["input"]["name"] == "caf\\udce9\\x1b[31m\\n" and record["input"]["source"].endswith("[31m\\n.png")
    page = (tmp_path / "o" / "report.html").read_text(encoding="utf-8")
    assert "caf\\udce9" in page and "\x1b" not in page
    assert (
        main(["evaluate", *MODEL, "--methods", "saliency", "--measures", "gini_sparseness", "--objective", "none",
              "--image", os.fsdecode(path), "--out", os.fsdecode(path) + ".json"]) == 0
    )  # fmt: skip
    assert "\x1b" not in capsys.readouterr().err and len(cs.load(os.fsdecode(path) + ".json")) == 1


def test_a_terminal_of_another_encoding_shows_escapes():
    code = "import sys; from consilience.cli import main; sys.exit(main(['methods', 'road_morf']))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert b"\\u" in done.stdout and not done.stderr


def test_version_and_bare_and_wrong_commands(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0 and capsys.readouterr().out == f"consilience {cs.__version__}\n"
    assert main([]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("explain", "evaluate", "report", "methods", "doctor"))
    with pytest.raises(SystemExit) as left:
        main(["explian"])
    assert left.value.code == 2


def test_an_interrupt_while_modules_are_imported_is_said_in_a_line():
    code = (
        "import os, signal, sys, threading; from consilience.cli import main; "
        "threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start(); sys.exit(main(['methods']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "consilience: interrupted\n")


def test_report_of_an_evaluation_is_its_table(tmp_path, capsys):
    torch.manual_seed(0)
    path = tmp_path / "quality.json"
    found = cs.evaluate(torch.nn.Linear(4, 3), torch.randn(3, 4), methods=["saliency"], measures="gini_sparseness",
                        objective=None, path=path)  # fmt: skip
    assert main(["report", str(path)]) == 0 and capsys.readouterr().out == f"{found}\n"
    assert main(["report", str(path), "--out", str(tmp_path / "x.html")]) == 2
    assert "is an evaluation" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none")]) == 2 and "no such file" in capsys.readouterr().err
    path.write_text("{}")
    assert main(["report", str(path)]) == 2 and "not an evaluation" in capsys.readouterr().err


@pytest.mark.parametrize("rows", ["²", "0", "1.5", "", "٣"])
def test_rows_in_flight_are_a_plain_number(tmp_path, capsys, rows):
    assert explain(*CAMERA, "--max-batch", rows, out=tmp_path / "out") == 2
    assert "--max-batch: a positive integer" in capsys.readouterr().err


def test_methods_shows_cards(capsys):
    assert main(["methods", "road_morf"]) == 0
    said = capsys.readouterr().out
    assert "arXiv 2202.00449" in said and "lower is better" in said and "pytorch-grad-cam" in said


def test_the_standard_methods_are_those_of_the_image(tmp_path, capsys):
    """Feature ablation of eight patches along the short side, as in Python, whatever the model's input size."""
    command = ["--methods", "standard", "--image", "sample:camera", "--dry-run", "--out", str(tmp_path / "out")]
    assert main(["explain", *MODEL, *command]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "feature_ablation" in line]
    assert int(line.split()[-1]) in (64, 65)
