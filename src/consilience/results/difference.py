"""The difference of the consensus and a rival on the same fresh draws, with its error, for each input."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..statistics.paired import mean_interval


@dataclass(frozen=True)
class PairedDifference:
    """Consensus − rival by one criterion, on the fresh draws that both share.

    The rival is a uniform map, or the single method that is best on the *fitting* draws, so that being chosen does not flatter
    it. Both are judged at the same neighbours or masks: the error is that of the difference, smaller than either value's.

    Attributes:
        best_single: (B,) names of the rivals; None for an input without a value.
        value: (B,); NaN where one of the two has none.
        stderr: (B,), the standard error over the draws.
        low, high: (B,), Student's interval with ``draws`` − 1 degrees of freedom. Where the draws were looked at several times,
            it is so wide that the intervals of all looks hold together with the ``confidence``.
        draws: (B,) int64, how many fresh draws both were judged on.
        margin: (B,), the size below which a difference does not matter; 0 where none was asked for.
        confidence: the interval's.
        among: which methods the best one was chosen from, in words; "" for all.
    """

    best_single: tuple[str | None, ...]
    value: Tensor
    stderr: Tensor
    low: Tensor
    high: Tensor
    draws: Tensor
    margin: Tensor
    confidence: float = 0.95
    among: str = ""

    def __len__(self) -> int:
        return len(self.value)

    @staticmethod
    def joined(parts: Sequence[Mapping[str, PairedDifference]], places: Sequence[int]) -> dict[str, PairedDifference]:
        """The differences of several groups of inputs as those of all inputs, by criterion.

        Args:
            parts: criterion → differences, for each group.
            places: the place of every input among all inputs, one group after the other.
        """
        # places[order] is 0, 1, 2, …: the inputs in the order in which they were given.
        order = torch.tensor(places).argsort()
        whole = {}
        for criterion, first in parts[0].items():
            each = [part[criterion] for part in parts]
            names = [name for one in each for name in one.best_single]
            numbers = {}
            for column in ("value", "stderr", "low", "high", "draws", "margin"):
                values = torch.cat([getattr(one, column) for one in each])
                numbers[column] = values[order.to(values.device)]
            whole[criterion] = PairedDifference(
                tuple(names[at] for at in order.tolist()), **numbers, confidence=first.confidence, among=first.among
            )
        return whole

    def over_inputs(self, level: float = 0.05) -> dict[str, float | int]:
        """The mean difference over the inputs that have one, with an interval: "mean", "low", "high" and "n".

        Args:
            level: the probability that the interval does not hold the true mean; see
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
            where: the difference's place in the record.
            reasons: gets, under ``where``, why a number is missing.
        """
        numbers: dict[str, Any] = {"best_single": self.best_single[i]}
        for name in ("value", "stderr", "low", "high"):
            number = float(getattr(self, name)[i])
            numbers[name] = number if math.isfinite(number) else None
        numbers["n"] = int(self.draws[i])
        margin = float(self.margin[i])
        numbers["margin"] = margin if math.isfinite(margin) else None
        numbers["confidence"] = self.confidence
        if self.among:
            numbers["among"] = self.among
        if numbers["value"] is None:
            reasons[where] = "the consensus, or its rival, has no value on the fresh draws"
        elif numbers["stderr"] is None:
            reasons[where] = "fewer than four draws have no standard error"
        return numbers


def recorded(
    differences: Mapping[str, PairedDifference], i: int, reasons: dict[str, str], where: str = "differences"
) -> dict[str, Any]:
    """The record of one input's differences: criterion → :meth:`PairedDifference.record`.

    Args:
        differences: by criterion.
        i: the input's place.
        reasons: gets, by place, why a number is missing.
        where: the differences' place in the record.
    """
    return {name: each.record(i, f"{where}.{name}", reasons) for name, each in differences.items()}
