"""Settings: what each type of field takes, and that nonsense is refused by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
import torch

from consilience.errors import InputError
from consilience.settings import Settings, setting


@dataclass(frozen=True)
class Every(Settings):
    whole: int = setting(20, low=1)
    real: float = setting(0.5, above=0, high=2)
    flag: bool = False
    word: str = setting("a", choices=("a", "b"))
    either: Literal["x", "y"] = "x"
    perhaps: float | None = None
    mixed: int | str = "auto"
    several: tuple[float, ...] = (0.1,)


FINE = {
    "whole": (1, 10**9, np.int64(3), torch.tensor(4)),
    "real": (2, 0.1, np.float32(0.5), torch.tensor(1.0)),
    "flag": (True, np.bool_(False)),
    "word": ("b",),
    "either": ("y",),
    "perhaps": (None, 3, 0.1),
    "mixed": ("auto", 3),
    "several": ((), [1, 2], np.array([0.5])),
}
NONSENSE = {
    "whole": (0, -1, 1.5, math.nan, math.inf, 10**30, "3", None, True, [3], torch.ones(2)),
    "real": (0, -1, 3, math.nan, math.inf, -math.inf, "1", None, True, 1j),
    "flag": (1, 0, "yes", None),
    "word": ("c", "", 1, None),
    "either": ("z", None),
    "perhaps": (math.nan, "1", True),
    "mixed": (1.5, math.nan, None, (1,)),
    "several": ("ab", 1.0, (math.nan,), ("a",)),
}


@pytest.mark.parametrize("name", FINE)
def test_what_a_field_takes_is_a_plain_value(name):
    for value in FINE[name]:
        got = getattr(Every(**{name: value}), name)
        assert got == value or list(got) == list(value)
        assert type(got) in (int, float, bool, str, type(None), tuple)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in NONSENSE.items() for value in values])
def test_nonsense_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=f"Every: {name} "):
        Every(**{name: value})
