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
NAMES = ("Quantus", "Captum", "pytorch-grad-cam", "OpenXAI", "lime", "shap")
LIBRARIES = ("consilience", "torch", "captum", "quantus", "grad-cam", "lime", "shap", "scikit-learn", "numpy")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"of {', '.join(PARTS)}")
    parser.add_argument("--out", default=HERE / "results.json", type=Path)
    parser.add_argument("--page", default=HERE.parent / "docs" / "conformance.md", type=Path)
    parser.add_argument("--page-only", action="store_true", help="make the page from what is stored")
    options = parser.parse_args()
    sys.path.insert(0, str(HERE))
    warnings.simplefilter("ignore")
    stored = json.loads(options.out.read_text()) if options.out.exists() else {"cases": {}}
    wrong = 0
    for part in () if options.page_only else options.parts:
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
    if not options.page_only:
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


ALSO_SEEN = """Not in the tables, seen with Quantus 0.6.0: `PointingGame(weighted=True)` raises TypeError;
`AttributionLocalisation(weighted=True)` is infinite for batches of two inputs. With Captum 0.9.0: DeepLIFT's sums around
max-pooling missed f(x) − f(b) by up to .18 of the score where windows do not overlap, too."""


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
    lines += differences(stored)
    lines += [ALSO_SEEN, ""]
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


def differences(stored: dict[str, Any]) -> list[str]:
    """Every reason for a disagreement, by library."""
    found: dict[str, dict[str, list[str]]] = {}
    library = NAMES[0]  # "the same with …" is about the one before
    for cases in stored["cases"].values():
        for case in cases:
            if not case["agrees"]:
                said = f"{case['library']} {case['measure']}".lower().replace("grad-cam", "grad_cam")
                library = next(
                    (name for name in NAMES if name.lower().replace("grad-cam", "grad_cam") in said), "others"
                )
                found.setdefault(library, {}).setdefault(case["reason"], []).append(case["measure"])
    lines = [
        "## Where the other libraries differ, and their faults",
        "",
        "Each found by running it; the cases are in the tables below.",
        "",
    ]
    for library in NAMES:
        for reason, where in found.get(library, {}).items():
            cases = where[0] if len(where) == 1 else f"{where[0]} and {len(where) - 1} more"
            lines.append(f"- **{library}**, {cases}: {reason}.")
    return [*lines, ""]


def times() -> list[str]:
    """What ``conformance/speed.py`` measured."""
    path = HERE / "speed.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    settings = found["settings"]
    lines = [
        "## Time beside Quantus, on the same work", "",
        f"`python conformance/speed.py`: {settings['images']} images of {settings['side']} × {settings['side']} and one small "
        f"network; {found['machine']}. Both sides get the same maps (the absolute gradient of every element), take away as "
        "many elements or patches by the same value, draw as often from the same law, and pass all images in one batch; *rows* "
        f"are what the model was asked. CPU seconds, the median of {settings['repeats']} turns; the ratio is the median of the "
        "turns' own, above 1 where this library is faster. Where nothing is drawn the largest difference of two numbers is "
        "given; else the correlation over the images of two independent sets of draws (100 draws know an image's faithfulness "
        "correlation to about a tenth only, so there the means say more). What several maps, or several measures on the same "
        "curves and neighbours, share here is not in this table.", "",
        "| measure | Quantus' | rows, ours | Quantus | seconds, ours | Quantus | ratio | mean, ours | Quantus | agreement |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    columns = "measure quantus rows quantus_rows seconds quantus_seconds ratio mean quantus_mean".split()
    for row in found["rows"]:
        cells = [show(row[key]) if row.get(key) is not None else "–" for key in columns]
        difference, alike = row.get("largest_difference"), row.get("correlation_over_images")
        agreement = f"r = {alike:.2f}" if alike is not None else row.get("quantus_failed", "–")
        cells.append(agreement if difference is None else f"largest difference {difference:.1g}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def show(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(show(v) for v in value[:3]) + (", …" if len(value) > 3 else "")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
