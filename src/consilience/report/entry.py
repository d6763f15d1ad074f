"""One explained input as plain data: its record, picture and maps, which is all that reports are made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import InputError
from .reading import listing, mapping, number, part, text

NOUNS = {"values": "output", "label_logits": "label", "label_probabilities": "label"}
"""The meaning of the model's outputs → what one of them is called; others are called "class"."""

MOST_CHANNELS = 4
"""An axis of a map of three axes, the first or the last, is taken for channels if it has at most this many entries."""


@dataclass(frozen=True)
class Entry:
    """One input of a report.

    Attributes:
        record: what ``explanation.json`` holds.
        image: (H, W, 3) in 0…1, or None.
        maps: (k, *A), the methods' maps in the order of ``record["methods"]``.
        attribution: (*A), the combined map.
        name: the input's name.
        extra: further maps (*A) by name ("mean", …).
        error: (*A), the standard errors of the combined map; None: not known.
        by_unit: (*A), the combined map with each mask unit's value spread evenly; None: not known.
        certain: (*A), 1 and −1 where a sign is certain, else 0; None: not known.

    Raises:
        InputError: the maps' number or shapes do not fit.
    """

    record: dict[str, Any]
    image: np.ndarray | None
    maps: np.ndarray
    attribution: np.ndarray
    name: str
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    error: np.ndarray | None = None
    by_unit: np.ndarray | None = None
    certain: np.ndarray | None = None

    def __post_init__(self) -> None:
        k = len(self.methods)
        if len(self.maps) != k:
            raise InputError(f"entry {self.name!r}: {k} methods in the record, but {len(self.maps)} maps")
        arrays = dict(self.extra)
        if k:
            arrays["maps"] = self.maps[0]
        optional = {"error": self.error, "by_unit": self.by_unit, "certain": self.certain}
        arrays |= {name: each for name, each in optional.items() if each is not None}
        for name, array in arrays.items():
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
        """Places of the methods, by |weight|, largest first; those that failed last."""
        methods = self.methods
        weights = self.weights
        failed = self.failed
        return sorted(range(len(methods)), key=lambda j: (methods[j] in failed, -abs(weights[j] or 0.0)))

    @property
    def signed(self) -> bool:
        """Whether some map has negative values, so that colours are centred at zero."""
        return bool((np.nan_to_num(self.maps) < 0).any() or (np.nan_to_num(self.attribution) < 0).any())

    @property
    def pictured(self) -> bool:
        """Whether the maps can be shown as pictures; otherwise they are shown as bars."""
        return surface(self.attribution) is not None

    @property
    def target(self) -> str:
        """What is explained, in words; see :func:`label`."""
        return label(self.record, "target")

    @property
    def predicted(self) -> str | None:
        """The class that the model predicts, in words; None in regression, and where one output may be a number."""
        if part(self.record, "predicted") is None:
            return None
        return label(self.record, "predicted")

    @property
    def agrees(self) -> bool:
        """Whether what is explained is what the model predicts."""
        return bool(part(self.record, "predicted") == part(self.record, "target"))

    @property
    def score_name(self) -> str:
        """ "logit", "probability", "output", …; "score" in records of earlier versions that do not say."""
        return text(self.record, "settings", "score") or text(self.record, "settings", "kind") or "score"

    @property
    def tokens(self) -> list[str] | None:
        """A text's tokens, one for each entry of the attribution, "" where it is padded; None for other inputs."""
        tokens = listing(self.record, "input", "tokens")
        if not tokens or len(tokens) != self.attribution.size:
            return None
        return [str(token) for token in tokens]


def label(record: dict[str, Any], which: str) -> str:
    """ "tabby cat (281)"; without labels "class 281", "label 3" (independent ones), "output 2" or "the output" (numbers).

    Args:
        record: the input's.
        which: "target" or "predicted".
    """
    place = part(record, which)
    words = part(record, f"{which}_label")
    if words:
        return f"{words} ({place})"
    meaning = text(record, "settings", "outputs")
    if meaning == "one output":
        return "the output"
    return f"{NOUNS.get(meaning, 'class')} {place}"


def surface(values: np.ndarray) -> np.ndarray | None:
    """A map as a picture (H, W): channels, first or last, are summed. None where there are not two spatial axes.

    Args:
        values: (*A), the map.
    """
    if values.ndim == 3 and values.shape[0] <= MOST_CHANNELS:
        values = values.sum(0)
    elif values.ndim == 3 and values.shape[2] <= MOST_CHANNELS:
        values = values.sum(2)
    if values.ndim != 2 or min(values.shape) < 2:
        return None
    return np.asarray(values, dtype=np.float64)


def given_names(entry: Entry) -> list[str] | None:
    """The features' names or the tokens in the record of ``entry``; None if their number is not that of the features."""
    given = listing(entry.record, "input", "features") or listing(entry.record, "input", "tokens")
    if given and len(given) == entry.attribution.size:
        return [str(name) for name in given]
    return None


def feature_names(entry: Entry) -> list[str]:
    """One name for each feature of ``entry``, in the order of the flattened attribution: :func:`given_names`, or numbers."""
    given = given_names(entry)
    if given is not None:
        return given
    if entry.attribution.ndim == 1:
        return [f"feature {i}" for i in range(entry.attribution.size)]
    return [f"feature {', '.join(map(str, place))}" for place in np.ndindex(entry.attribution.shape)]


def top_features(entry: Entry, count: int = 20) -> np.ndarray:
    """Places of the largest |values| of the flattened combined map, largest first.

    Args:
        entry: the input.
        count: the most places to return.
    """
    size = np.abs(np.nan_to_num(entry.attribution.astype(np.float64))).ravel()
    order = np.argsort(-size, kind="stable")
    names = given_names(entry)
    if names is not None:
        # A padded token has neither a name nor a value.
        order = order[[size[at] > 0 or names[at] != "" for at in order]]
    return order[:count]
