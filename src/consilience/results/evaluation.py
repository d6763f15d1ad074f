"""Numbers over a data set: means, errors, counts, paired comparisons, files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError, choose
from ..statistics.keys import Key
from .files import versions, write_text

SCHEMA = 1


@dataclass(frozen=True)
class Comparison:
    """Paired differences a − b of one measure: ``difference``, its 95 % bootstrap interval, ``n`` pairs, and ``p``, two-sided:
    2 (1 + c) / (1 + draws) with c of the bootstrap means on the other side of zero, so never below what the draws can show."""

    measure: str
    difference: float
    low: float
    high: float
    p: float
    n: int
    better: str

    def __str__(self) -> str:
        if not self.n:
            return f"{self.measure}: no input has both numbers"
        return (
            f"{self.measure}: {self.difference:+.4g} [{self.low:.4g}, {self.high:.4g}], p = {self.p:.3g}, n = {self.n}"
            + (f" ({self.better} is better)" if self.better else "")
        )


@dataclass
class Evaluation:
    """Numbers of R rows (methods, aggregations, the consensus) under M measures for n inputs.

    ``values[measure]`` is (n, R) float64 with NaN where a number is missing; ``reasons[measure]`` says why, by (input, row),
    or for the whole measure under "". ``ids`` (n,) are the inputs' identities, in the order in which they were given.
    :meth:`save` writes it as JSON, ``consilience.load(path)`` reads that back.

    Example:
        >>> from consilience.results.evaluation import Evaluation
        >>> Evaluation(("mean",), ("road",), ids=[0], values={"road": np.ones((1, 1))})
        Evaluation(1 input, rows=('mean',), measures=('road',))
    """

    rows: tuple[str, ...]
    measures: tuple[str, ...]
    better: dict[str, str] = field(default_factory=dict)
    """measure → "higher", "lower" or ""."""
    ids: list[int] = field(default_factory=list)
    values: dict[str, np.ndarray] = field(default_factory=dict)
    reasons: dict[str, dict[str, str]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    evaluations: dict[str, int] = field(default_factory=lambda: {"forward": 0, "gradient": 0})
    digests: dict[str, str] = field(default_factory=dict)
    """id → a hash of the input, its target, regions and reference; also of inputs that were left out."""

    def __repr__(self) -> str:
        inputs = f"{len(self)} input{'' if len(self) == 1 else 's'}"
        return f"Evaluation({inputs}, rows={self.rows}, measures={self.measures})"

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, measure: str) -> dict[str, np.ndarray]:
        """Row → (n,) numbers of one measure."""
        name = choose("measure", measure, self.measures)
        return {row: self.values[name][:, i] for i, row in enumerate(self.rows)}

    def summary(self) -> dict[str, dict[str, dict[str, float | int]]]:
        """measure → row → {mean, stderr, n}: over the inputs with a number; the standard error is over inputs."""
        found: dict[str, dict[str, dict[str, float | int]]] = {}
        for measure in self.measures:
            found[measure] = {}
            for row, numbers in self[measure].items():
                good = numbers[np.isfinite(numbers)]
                n = len(good)
                error = float(good.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
                found[measure][row] = {"mean": float(good.mean()) if n else math.nan, "stderr": error, "n": n}
        return found

    def compare(
        self, a: str, b: str, measures: Sequence[str] | None = None, draws: int = 10_000, seed: int = 0
    ) -> list[Comparison]:
        """Rows ``a`` and ``b`` on the inputs where both have a number: a paired bootstrap over inputs, ``draws`` times."""
        found = []
        for measure in measures or self.measures:
            numbers = self[measure]
            left, right = (numbers[choose("row", row, self.rows)] for row in (a, b))
            pairs = (left - right)[np.isfinite(left - right)]
            better = self.better.get(measure, "")
            if not len(pairs):
                found.append(Comparison(measure, math.nan, math.nan, math.nan, math.nan, 0, better))
                continue
            means = _bootstrap(pairs, draws, Key(seed, "bootstrap"))
            low, high = np.quantile(means, [0.025, 0.975])
            p = min(1.0, 2 * (1 + min((means <= 0).sum(), (means >= 0).sum())) / (1 + draws))
            found.append(
                Comparison(measure, float(pairs.mean()), float(low), float(high), float(p), len(pairs), better)
            )
        return found

    def table(self) -> str:
        """Rows × measures: mean ± standard error; the best method of each measure is marked."""
        summary = self.summary()
        cells = {row: [_cell(summary[m][row], len(self)) for m in self.measures] for row in self.rows}
        for column, measure in enumerate(self.measures):
            best = _best(summary[measure], self.better.get(measure, ""))
            if best:
                cells[best][column] += " *"
        heads = [f"{m}{ {'lower': ' ↓', 'higher': ' ↑'}.get(self.better.get(m, ''), '') }" for m in self.measures]
        wide = [max(len(head), *(len(cells[row][i]) for row in self.rows)) for i, head in enumerate(heads)]
        first = max(map(len, self.rows))

        def line(name: str, parts: Sequence[str]) -> str:
            return "  ".join([f"{name:<{first}}", *(f"{p:>{w}}" for p, w in zip(parts, wide, strict=True))])

        out = [line("", heads), *(line(row, cells[row]) for row in self.rows)]
        out.append(f"n = {len(self)}; mean ± standard error over inputs; * the best; (n) where numbers are missing")
        for measure in self.measures:
            whole = self.reasons.get(measure, {}).get("")
            if whole:
                out.append(f"{measure}: {whole}")
        out += [f"{what} left out: {why}" for what, why in self.left_out.items()]
        return "\n".join(out)

    __str__ = table

    def to_dict(self) -> dict[str, Any]:
        """Plain lists; a missing number is None."""
        plain = lambda array: [[v if math.isfinite(v) else None for v in row] for row in array.tolist()]  # noqa: E731
        return {
            "schema": SCHEMA, "rows": list(self.rows), "measures": list(self.measures), "better": self.better,
            "ids": self.ids,
            "values": {name: plain(self.values[name]) for name in self.measures}, "reasons": self.reasons,
            "left_out": self.left_out, "evaluations": self.evaluations, "settings": self.settings, "versions": versions(),
            "digests": self.digests,
        }  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """Write everything as JSON."""
        return write_text(Path(path), json.dumps(self.to_dict(), indent=1, ensure_ascii=False))

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """What :meth:`save`, ``cs.evaluate(path=…)`` or ``consilience evaluate`` wrote.

        Raises:
            InputError: the file cannot be read, or is no evaluation.
        """
        try:
            d = json.loads(Path(path).read_text())
            values = {
                k: np.array(v, dtype=float).reshape(len(d["ids"]), len(d["rows"])) for k, v in d["values"].items()
            }
            return cls(
                tuple(d["rows"]), tuple(d["measures"]), d["better"], d["ids"], values, d["reasons"], d["settings"],
                d["left_out"], d["evaluations"], d.get("digests", {}),
            )  # fmt: skip
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: not an evaluation ({error}); it is written by Evaluation.save()") from error


def _bootstrap(pairs: np.ndarray, draws: int, key: Key, room: int = 2**20) -> np.ndarray:
    """(draws,): means of as many drawn pairs as there are, at most ``room`` pairs at a time."""
    means = np.empty(draws)
    for part in torch.arange(draws).split(max(1, room // len(pairs))):
        u = key.uniform(part, 0, (len(pairs),), torch.float64)
        means[part.numpy()] = pairs[(u.numpy() * len(pairs)).astype(int)].mean(1)
    return means


def _best(rows: dict[str, dict[str, float | int]], better: str) -> str:
    numbers = {name: row["mean"] for name, row in rows.items() if row["n"]}
    if not better or len(numbers) < 2:
        return ""
    return (max if better == "higher" else min)(numbers, key=lambda name: numbers[name])


def _cell(row: dict[str, float | int], inputs: int) -> str:
    if not row["n"]:
        return "–"
    error = "" if math.isnan(row["stderr"]) else f" ± {row['stderr']:.2g}"
    missing = "" if row["n"] == inputs else f" ({row['n']})"
    return f"{row['mean']:.4g}{error}{missing}"
