"""One explained input as plain data: everything a report needs, nothing that has to be computed again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import InputError


@dataclass(frozen=True)
class Entry:
    """One input of a report.

    ``record`` is what ``explanation.json`` holds; ``image`` (H, W, 3) in 0…1, or None; ``maps`` (k, *A), in the order of
    ``record["methods"]``; ``attribution`` (*A), the combined map; ``extra``, further maps (*A) by name ("mean", …).
    """

    record: dict[str, Any]
    image: np.ndarray | None
    maps: np.ndarray
    attribution: np.ndarray
    name: str
    extra: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        k = len(self.record["methods"])
        if len(self.maps) != k:
            raise InputError(f"entry {self.name!r}: {k} methods in the record, but {len(self.maps)} maps")
        for name, array in {"maps": self.maps[0] if k else self.attribution, **self.extra}.items():
            if array.shape != self.attribution.shape:
                raise InputError(f"entry {self.name!r}: {name} {array.shape}, attribution {self.attribution.shape}")

    @property
    def weights(self) -> list[float | None]:
        """One weight per method; None where the objective has none."""
        found = self.record.get("weights")
        return list(found) if found else [None] * len(self.record["methods"])

    @property
    def order(self) -> list[int]:
        """Methods by weight, largest first; those that failed last."""
        methods, failed = self.record["methods"], self.record.get("failed") or {}
        return sorted(range(len(methods)), key=lambda j: (methods[j] in failed, -abs(self.weights[j] or 0.0)))

    @property
    def signed(self) -> bool:
        """Some map has negative values, so colours are centred at zero."""
        return bool((np.nan_to_num(self.maps) < 0).any() or (np.nan_to_num(self.attribution) < 0).any())

    @property
    def pictured(self) -> bool:
        """The maps can be shown as pictures; otherwise as bars."""
        return surface(self.attribution) is not None

    @property
    def target(self) -> str:
        return label(self.record, "target")

    @property
    def predicted(self) -> str | None:
        """The class that the model predicts; None where it predicts none (regression), or is as likely to mean a number."""
        return None if self.record.get("predicted") is None else label(self.record, "predicted")

    @property
    def score_name(self) -> str:
        """ "logit", "probability", "output", …; "score" in records of earlier versions that do not say."""
        settings = self.record.get("settings") or {}
        return str(settings.get("score", settings.get("kind", "score")))


def label(record: dict[str, Any], which: str) -> str:
    """ "tabby cat (281)"; without labels "class 281", "label 3" (independent ones), "output 2" or "the output" (numbers)."""
    number, words = record.get(which), record.get(f"{which}_label")
    if words:
        return f"{words} ({number})"
    meaning = str((record.get("settings") or {}).get("outputs", "logits"))
    if meaning == "one output":
        return "the output"
    noun = {"values": "output", "label_logits": "label", "label_probabilities": "label"}.get(meaning, "class")
    return f"{noun} {number}"


def surface(values: np.ndarray) -> np.ndarray | None:
    """(H, W) for display: channels, first or last, are summed. None for what has no two spatial axes."""
    if values.ndim == 3 and values.shape[0] <= 4:
        values = values.sum(0)
    elif values.ndim == 3 and values.shape[2] <= 4:
        values = values.sum(2)
    return np.asarray(values, dtype=np.float64) if values.ndim == 2 and min(values.shape) > 1 else None


def given_names(entry: Entry) -> list[str] | None:
    """The features' names or the tokens in ``record["input"]``, if there is one per entry of the flattened attribution."""
    known = entry.record.get("input") or {}
    given = known.get("features") or known.get("tokens")
    if isinstance(given, list) and len(given) == entry.attribution.size:
        return [str(name) for name in given]
    return None


def feature_names(entry: Entry) -> list[str]:
    """The names that were given, else numbers: one per entry of the flattened attribution."""
    given = given_names(entry)
    if given is not None:
        return given
    if entry.attribution.ndim == 1:
        return [f"feature {i}" for i in range(entry.attribution.size)]
    return [f"feature {', '.join(map(str, i))}" for i in np.ndindex(entry.attribution.shape)]


def top_features(entry: Entry, count: int = 20) -> np.ndarray:
    """Indices of the combined map's largest |values|, largest first, without padding: what has neither name nor value."""
    size = np.abs(np.nan_to_num(entry.attribution.astype(np.float64))).ravel()
    order, names = np.argsort(-size, kind="stable"), given_names(entry)
    if names is not None:
        order = order[[size[at] > 0 or names[at] != "" for at in order]]
    return order[:count]
