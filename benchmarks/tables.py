"""Print the stored results as Markdown tables, for docs/benchmarks.md: python benchmarks/tables.py results/consensus-*.json"""

from __future__ import annotations

import json
import sys
from pathlib import Path

CRITERIA = ("relative_sensitivity", "average_sensitivity", "faithfulness_correlation", "infidelity")


def cell(value: float | None, spread: float | None) -> str:
    if value is None:
        return "–"
    digits = 3 if abs(value) < 0.1 else 2 if abs(value) < 10 else 0
    digits = 4 if abs(value) < 0.01 else digits
    return f"{value:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread else "")


def main() -> None:
    for name in sys.argv[1:]:
        result = json.loads(Path(name).read_text(encoding="utf-8"))
        for noise in ("common_noise", "redrawn_noise"):
            table = result[noise]
            print(f"\n### {result['model']}, n = {result['n']}, {noise.replace('_', ' ')}\n")
            print(
                "| row | relative sensitivity | absolute sensitivity | correlation | infidelity |\n|---|---|---|---|---|"
            )
            for row, values in table["rows"].items():
                cells = [cell(values[c]["fresh"], values[c]["stderr"]) for c in CRITERIA]
                print(f"| {row} | {' | '.join(cells)} |")
            print("\n| paired difference | mean ± s.e. over photographs | photographs below 0 | above 0 by 2 s.e. |")
            print("|---|---|---|---|")
            for pair, values in table["paired"].items():
                if values["mean"] is not None:
                    print(
                        f"| {pair} | {cell(values['mean'], values['stderr'])} | {values['below']}/{values['n']} "
                        f"| {values['above_by_2_stderr']} |"
                    )


if __name__ == "__main__":
    main()
