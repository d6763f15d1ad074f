"""Both sides of every claim of agreement, run and stored: this library beside Captum, Quantus, pytorch-grad-cam, lime, shap.

    python -m venv .venv-conformance && .venv-conformance/bin/pip install -e . -r conformance/requirements.txt
    .venv-conformance/bin/python conformance/run.py

Writes ``conformance/results.json`` and ``docs/conformance.md``. Each case computes the same thing twice, on a small network
with fixed weights and keyed images: it agrees to a stated tolerance, or it does not and the reason, found by running, is
beside it. Quantus and zennit have licences of the GPL family: they are oracles here, and nothing of them is in this repository.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
import time
import traceback
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PARTS = ("attributions", "removal", "stability")
LIBRARIES = ("consilience", "torch", "captum", "quantus", "grad-cam", "lime", "shap", "scikit-learn", "numpy")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"of {', '.join(PARTS)}")
    parser.add_argument("--out", default=HERE / "results.json", type=Path)
    parser.add_argument("--page", default=HERE.parent / "docs" / "conformance.md", type=Path)
    options = parser.parse_args()
    sys.path.insert(0, str(HERE))
    warnings.simplefilter("ignore")
    stored = json.loads(options.out.read_text()) if options.out.exists() else {"cases": {}}
    wrong = 0
    for part in options.parts:
        began = time.perf_counter()
        try:
            cases = importlib.import_module(part).cases()
        except ImportError as error:
            print(f"{part}: skipped, {error}", file=sys.stderr)
            continue
        except Exception:
            traceback.print_exc()
            return 1
        stored["cases"][part] = [plain(case) for case in cases]
        unexplained = [c for c in cases if not c["agrees"] and not c["reason"]]
        wrong += len(unexplained)
        agree = sum(bool(c["agrees"]) for c in cases)
        print(
            f"{part}: {agree} of {len(cases)} agree, {len(unexplained)} unexplained, {time.perf_counter() - began:.0f} s"
        )
        for case in unexplained:
            print(f"  {case['measure']} ({case['library']}): ours {case['ours']}, theirs {case['theirs']}")
    stored["versions"] = {"python": platform.python_version(), **versions()}
    options.out.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n")
    options.page.write_text(page(stored))
    return 1 if wrong else 0


def versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def plain(case: dict[str, Any]) -> dict[str, Any]:
    """Numbers short enough to review."""

    def short(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [short(item) for item in value]
        return float(f"{value:.6g}") if isinstance(value, float) else value

    return {key: short(value) for key, value in case.items()}


def page(stored: dict[str, Any]) -> str:
    """The table of agreement."""
    titles = {
        "attributions": "Explainers",
        "removal": "Measures that take features away",
        "stability": "Other measures",
    }
    said = ", ".join(f"{name} {version}" for name, version in stored["versions"].items())
    lines = [
        "# Conformance", "",
        "Made by `python conformance/run.py`, which computes both sides on a small network with fixed weights. Where a number",
        "differs, the reason stands beside it; how to get the other library's number here is in the measure's card",
        "([catalogue](catalogue.md)).", "", f"Versions: {said}.", "",
    ]  # fmt: skip
    for part, cases in stored["cases"].items():
        lines += [
            f"## {titles.get(part, part)}",
            "",
            "| what | library | ours | theirs | agrees | reason |",
            "|---|---|---|---|---|---|",
        ]
        for case in cases:
            cells = [case["measure"], case["library"], show(case["ours"]), show(case["theirs"])]
            cells += ["yes" if case["agrees"] else "**no**", case["reason"] or ""]
            lines.append("| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |")
        lines.append("")
    return "\n".join(lines + times()).rstrip() + "\n"


def times() -> list[str]:
    """What ``conformance/speed.py`` measured."""
    path = HERE / "speed.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    settings = found["settings"]
    lines = [
        "## Seconds beside Quantus", "",
        f"`python conformance/speed.py`: {settings['images']} images of {settings['side']} × {settings['side']}, one network, "
        f"one map (saliency), the best of {settings['repeats']} turns; {found['machine']}; a busy machine. Quantus gets all "
        "images in one batch. With one small map both sides spend their time in the same model passes; what several maps, or "
        "several measures on the same curves and neighbours, share here is not in this table. Random draws, and where the card "
        "says so definitions, differ, hence the correlations.", "",
        "| measure | Quantus' | seconds, ours | Quantus | ratio | mean, ours | Quantus | correlation over images |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in found["rows"]:
        keys = (
            "measure",
            "quantus",
            "seconds",
            "quantus_seconds",
            "ratio",
            "mean",
            "quantus_mean",
            "correlation_over_images",
        )
        cells = [show(row[key]) if key in row and row[key] is not None else "–" for key in keys]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def show(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(show(v) for v in value[:3]) + (", …" if len(value) > 3 else "")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
