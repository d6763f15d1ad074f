"""The consensus beside the best single method on the same fresh draws: a paired difference for each input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..statistics.paired import mean_interval


@dataclass(frozen=True)
class PairedDifference:
    """Consensus − best single method by one criterion, on the fresh draws that both share.

    The best single method is the one that is best on the *fitting* draws, so that being chosen does not flatter it. Both are
    judged at the same neighbours or masks: the error is that of the difference, smaller than either value's.

    Attributes:
        best_single: (B,) names; None where no method has a value.
        value: (B,); NaN where one of the two has none.
        stderr: (B,), over the draws.
        low, high: (B,), Student's 95 % interval with ``draws`` − 1 degrees of freedom.
        draws: (B,) int64, how many fresh draws both were judged on; of a batch of inputs of different lengths, a short one
            has fewer masks.
        among: among which methods the best one was looked for, in words; "" for all.
    """

    best_single: tuple[str | None, ...]
    value: Tensor
    stderr: Tensor
    low: Tensor
    high: Tensor
    draws: Tensor
    among: str = ""

    def __len__(self) -> int:
        return len(self.value)

    def over_inputs(self, level: float = 0.05) -> dict[str, float | int]:
        """mean, low, high and n of the differences over the inputs that have one.

        Args:
            level: the probability that the interval misses the mean; see
                :func:`~consilience.statistics.paired.mean_interval`.
        """
        good = self.value[self.value.isfinite()].double().cpu().numpy()
        low, high = mean_interval(good, level)
        mean = float(good.mean()) if len(good) else math.nan
        return {"mean": mean, "low": float(low), "high": float(high), "n": len(good)}

    def record(self, i: int, where: str, reasons: dict[str, str]) -> dict[str, Any]:
        """What ``explanation.json`` holds for input ``i``.

        Args:
            i: the input's place.
            where: the place in the record, under which ``reasons`` gets why a number is missing.
            reasons: is added to.
        """
        numbers: dict[str, Any] = {"best_single": self.best_single[i]}
        for name in ("value", "stderr", "low", "high"):
            number = float(getattr(self, name)[i])
            numbers[name] = number if math.isfinite(number) else None
        numbers["n"] = int(self.draws[i])
        if self.among:
            numbers["among"] = self.among
        if numbers["value"] is None:
            reasons[where] = "the consensus, or the best single method, has no value on the fresh draws"
        elif numbers["stderr"] is None:
            reasons[where] = "fewer than four draws have no standard error"
        return numbers


def recorded(differences: Mapping[str, PairedDifference], i: int, reasons: dict[str, str]) -> dict[str, Any]:
    """Criterion → :meth:`PairedDifference.record` of one input.

    Args:
        differences: by criterion.
        i: the input's place.
        reasons: is added to where a number is missing.
    """
    return {name: each.record(i, f"differences.{name}", reasons) for name, each in differences.items()}
