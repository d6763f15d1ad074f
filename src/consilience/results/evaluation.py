"""The result of :func:`consilience.evaluate`: a number for each input, row and measure; means, comparisons, and the file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, choose
from .comparison import Comparisons, compared
from .files import versions, write_text
from .summary import missing_lines, summarised, summary_table

SCHEMA = 1
"""The version of the file."""


@dataclass
class Evaluation:
    """Numbers of R rows (methods, aggregations, the consensus) under M measures for n inputs.

    :meth:`save` writes it as JSON, ``consilience.load(path)`` reads that back.

    Args:
        rows: R names.
        measures: M names.
        better: measure → "higher", "lower" or "".
        ids: (n,), the inputs' numbers, in the order in which they were given.
        values: measure → (n, R) float64, with NaN where a number is missing.
        reasons: measure → why a number is missing, by "input row", or for the whole measure under "".
        settings: what was asked for, in plain words and numbers.
        left_out: inputs and methods that were left out → why.
        evaluations: how often the model was evaluated, "forward" and "gradient".
        digests: id → a hash of the input, its target, regions and reference; also of inputs that were left out.

    Example:
        >>> from consilience.results.evaluation import Evaluation
        >>> Evaluation(("mean",), ("road",), ids=[0], values={"road": np.ones((1, 1))})
        Evaluation(1 input, rows=('mean',), measures=('road',))
    """

    rows: tuple[str, ...]
    measures: tuple[str, ...]
    better: dict[str, str] = field(default_factory=dict)
    ids: list[int] = field(default_factory=list)
    values: dict[str, np.ndarray] = field(default_factory=dict)
    reasons: dict[str, dict[str, str]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    evaluations: dict[str, int] = field(default_factory=lambda: {"forward": 0, "gradient": 0})
    digests: dict[str, str] = field(default_factory=dict)

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
        """measure → row → mean, stderr, low, high and n, over the inputs with a number.

        ``stderr`` is over inputs, NaN for fewer than two; ``low`` and ``high`` hold the mean with probability .95
        (:func:`~consilience.statistics.paired.mean_interval`), NaN where all numbers are the same.
        """
        return {
            measure: {row: summarised(numbers) for row, numbers in self[measure].items()} for measure in self.measures
        }

    def compare(
        self,
        a: str,
        b: str,
        measures: str | Sequence[str] | None = None,
        draws: int = 10_000,
        seed: int = 0,
        level: float = 0.05,
    ) -> Comparisons:
        """Rows ``a`` and ``b`` on the inputs where both have a number: mean difference, interval, exact sign-flip test.

        ``print`` of the result shows p for each measure alone and, corrected by Holm's method, for all of the call.

        Args:
            a: a row, e.g. "consensus".
            b: the row that is subtracted.
            measures: a name, or several; default all. The correction is for as many as are compared here.
            draws: how many sign flips are drawn where more than 20 differences are not zero; up to 20, all flips are tried.
            seed: names the draws.
            level: the probability of error of intervals and tests.

        Raises:
            InputError: a name is unknown, or ``draws`` or ``level`` cannot be used.
        """
        wanted: Sequence[str]
        if isinstance(measures, str):
            wanted = [measures]
        else:
            wanted = measures or self.measures
        names = [choose("measure", measure, self.measures) for measure in wanted]
        one = choose("row", a, self.rows)
        other = choose("row", b, self.rows)
        left = {name: self[name][one] for name in names}
        right = {name: self[name][other] for name in names}
        return compared(left, right, self.better, draws, seed, level)

    def table(self) -> str:
        """Rows × measures: mean ± standard error over inputs, and n; the best row of each measure is marked.

        Below it, why numbers are missing, one line for each reason.
        """
        lines = [summary_table(self.rows, self.summary(), self.better, len(self))]
        lines += missing_lines(self.reasons)
        lines += [f"{what} left out: {why}" for what, why in self.left_out.items()]
        return "\n".join(lines)

    __str__ = table

    def to_dict(self) -> dict[str, Any]:
        """What the file holds: lists, mappings, words and numbers; a missing number is None."""
        return {
            "schema": SCHEMA,
            "rows": list(self.rows),
            "measures": list(self.measures),
            "better": self.better,
            "ids": self.ids,
            "values": {name: _without_nan(self.values[name]) for name in self.measures},
            "reasons": self.reasons,
            "left_out": self.left_out,
            "evaluations": self.evaluations,
            "settings": self.settings,
            "versions": versions(),
            "digests": self.digests,
        }

    def save(self, path: str | Path) -> Path:
        """Write everything as JSON to ``path``."""
        return write_text(Path(path), json.dumps(self.to_dict(), indent=1, ensure_ascii=False))

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """What :meth:`save`, ``cs.evaluate(path=…)`` or ``consilience evaluate`` wrote to ``path``.

        Raises:
            InputError: the file cannot be read, or is not an evaluation.
        """
        try:
            stored = json.loads(Path(path).read_text())
            shape = (len(stored["ids"]), len(stored["rows"]))
            return cls(
                rows=tuple(stored["rows"]),
                measures=tuple(stored["measures"]),
                better=stored["better"],
                ids=stored["ids"],
                # None becomes NaN. Without an input the shape (0, R) is not in the lists.
                values={name: np.array(rows, dtype=float).reshape(shape) for name, rows in stored["values"].items()},
                reasons=stored["reasons"],
                settings=stored["settings"],
                left_out=stored["left_out"],
                evaluations=stored["evaluations"],
                # Not in files of earlier versions.
                digests=stored.get("digests", {}),
            )
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: not an evaluation ({error}); it is written by Evaluation.save()") from error


def _without_nan(numbers: np.ndarray) -> list[list[float | None]]:
    """The rows of ``numbers`` (n, R) as lists, None for what is not finite, which JSON cannot hold."""
    return [[number if math.isfinite(number) else None for number in row] for row in numbers.tolist()]
