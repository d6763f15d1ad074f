"""One explained input as plain data: everything a report needs, nothing that has to be computed again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import InputError
from .reading import listing, mapping, number, part, text

# What a column of the outputs is, by what they mean.
NOUNS = {"values": "output", "label_logits": "label", "label_probabilities": "label"}
MOST_CHANNELS = 4
"""An axis of at most so many entries beside two longer ones is taken for channels."""


@dataclass(frozen=True)
class Entry:
    """One input of a report.

    Attributes:
        record: what ``explanation.json`` holds.
        image: (H, W, 3) in 0…1, or None.
        maps: (k, *A), in the order of ``record["methods"]``.
        attribution: (*A), the combined map.
        name: of the input.
        extra: further maps (*A) by name ("mean", …).

    Raises:
        InputError: the maps' number or shapes do not fit.
    """

    record: dict[str, Any]
    image: np.ndarray | None
    maps: np.ndarray
    attribution: np.ndarray
    name: str
    extra: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        k = len(self.methods)
        if len(self.maps) != k:
            raise InputError(f"entry {self.name!r}: {k} methods in the record, but {len(self.maps)} maps")
        first = self.maps[0] if k else self.attribution
        for name, array in {"maps": first, **self.extra}.items():
            if array.shape != self.attribution.shape:
                raise InputError(f"entry {self.name!r}: {name} {array.shape}, attribution {self.attribution.shape}")

    @property
    def methods(self) -> list[str]:
        """k names."""
        return [str(name) for name in listing(self.record, "methods")]

    @property
    def weights(self) -> list[float | None]:
        """One weight per method; None where the objective has none."""
        given = listing(self.record, "weights")
        if len(given) != len(self.methods):
            return [None] * len(self.methods)
        return [number({"weight": weight}, "weight") for weight in given]

    @property
    def failed(self) -> dict[str, str]:
        """Method → why it failed."""
        return {str(name): str(why) for name, why in mapping(self.record, "failed").items()}

    @property
    def order(self) -> list[int]:
        """Methods by weight, largest first; those that failed last."""
        methods, weights, failed = self.methods, self.weights, self.failed
        return sorted(range(len(methods)), key=lambda j: (methods[j] in failed, -abs(weights[j] or 0.0)))

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
        return None if part(self.record, "predicted") is None else label(self.record, "predicted")

    @property
    def agrees(self) -> bool:
        """What is explained is what the model predicts."""
        return bool(part(self.record, "predicted") == part(self.record, "target"))

    @property
    def score_name(self) -> str:
        """ "logit", "probability", "output", …; "score" in records of earlier versions that do not say."""
        return text(self.record, "settings", "score") or text(self.record, "settings", "kind") or "score"

    @property
    def tokens(self) -> list[str] | None:
        """Of a text, one token for each entry of the attribution, "" where it is padded; None for other inputs."""
        tokens = listing(self.record, "input", "tokens")
        return [str(token) for token in tokens] if tokens and len(tokens) == self.attribution.size else None


def label(record: dict[str, Any], which: str) -> str:
    """ "tabby cat (281)"; without labels "class 281", "label 3" (independent ones), "output 2" or "the output" (numbers).

    Args:
        record: the input's.
        which: "target" or "predicted".
    """
    place, words = part(record, which), part(record, f"{which}_label")
    if words:
        return f"{words} ({place})"
    meaning = text(record, "settings", "outputs")
    if meaning == "one output":
        return "the output"
    return f"{NOUNS.get(meaning, 'class')} {place}"


def surface(values: np.ndarray) -> np.ndarray | None:
    """(H, W) for display: channels, first or last, are summed. None for what has no two spatial axes."""
    if values.ndim == 3 and values.shape[0] <= MOST_CHANNELS:
        values = values.sum(0)
    elif values.ndim == 3 and values.shape[2] <= MOST_CHANNELS:
        values = values.sum(2)
    if values.ndim != 2 or min(values.shape) < 2:
        return None
    return np.asarray(values, dtype=np.float64)


def given_names(entry: Entry) -> list[str] | None:
    """The features' names or the tokens in ``record["input"]``, if there is one per entry of the flattened attribution."""
    given = listing(entry.record, "input", "features") or listing(entry.record, "input", "tokens")
    if given and len(given) == entry.attribution.size:
        return [str(name) for name in given]
    return None


def feature_names(entry: Entry) -> list[str]:
    """The names that were given, else numbers: one per entry of the flattened attribution."""
    given = given_names(entry)
    if given is not None:
        return given
    if entry.attribution.ndim == 1:
        return [f"feature {i}" for i in range(entry.attribution.size)]
    return [f"feature {', '.join(map(str, place))}" for place in np.ndindex(entry.attribution.shape)]


def top_features(entry: Entry, count: int = 20) -> np.ndarray:
    """Indices of the combined map's largest |values|, largest first, without padding: what has neither name nor value.

    Args:
        entry: the input.
        count: at most so many.
    """
    size = np.abs(np.nan_to_num(entry.attribution.astype(np.float64))).ravel()
    order, names = np.argsort(-size, kind="stable"), given_names(entry)
    if names is not None:
        order = order[[size[at] > 0 or names[at] != "" for at in order]]
    return order[:count]
