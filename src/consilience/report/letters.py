"""Texts in pictures: measuring their width, and shortening or wrapping them to fit.

Widths are in inches, sizes of letters in points, as matplotlib has them.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from ..errors import need


@lru_cache(maxsize=4)
def _font(weight: str) -> Any:
    """The font that comes with matplotlib, so that a picture looks the same on every machine."""
    manager = need("matplotlib.font_manager", "images")
    ft2font = need("matplotlib.ft2font", "images")
    return ft2font.FT2Font(manager.findfont(manager.FontProperties(family="DejaVu Sans", weight=weight)))


@lru_cache(maxsize=1)
def _letters() -> frozenset[int]:
    """The code points that the font can draw."""
    return frozenset(_font("normal").get_charmap())


def drawable(words: str) -> str:
    """``words`` on one line, with a box for each letter that the font lacks: matplotlib would warn of each of them."""
    known = _letters()
    letters = []
    for letter in " ".join(words.split()):
        letters.append(letter if ord(letter) in known else "\N{WHITE SQUARE}")
    return "".join(letters)


def inches(words: str, size: float, weight: str = "normal") -> float:
    """The width of a text, with a little room for hinting.

    Args:
        words: the text.
        size: of the letters, in points.
        weight: "normal" or "bold".
    """
    font = _font(weight)
    font.set_size(size, 72)
    font.set_text(drawable(words), 0.0)
    return 1.04 * float(font.get_width_height()[0]) / 64 / 72


def fit(words: str, width: float, size: float, weight: str = "normal") -> str:
    """The text, shortened in the middle with an ellipsis where it is too wide.

    Args:
        words: the text.
        width: the most inches.
        size: of the letters, in points.
        weight: "normal" or "bold".
    """
    if inches(words, size, weight) <= width:
        return words
    # Bisection for the largest number of letters that fits.
    low = 1
    high = len(words) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if inches(shortened(words, middle), size, weight) <= width:
            low = middle
        else:
            high = middle - 1
    return shortened(words, low)


def wrapped(words: str, width: float, size: float, most: int) -> list[str]:
    """The text in lines; an ellipsis stands for what does not fit.

    Args:
        words: the text.
        width: the most inches of a line.
        size: of the letters, in points.
        most: the most lines, at least 1.
    """
    lines: list[str] = []
    rest = words.split()
    while rest and len(lines) < most:
        count = 1
        while count < len(rest) and inches(" ".join(rest[: count + 1]), size) <= width:
            count += 1
        lines.append(fit(" ".join(rest[:count]), width, size))
        rest = rest[count:]
    if rest:
        lines[-1] = fit(lines[-1] + " …", width, size)
    return lines


def shortened(words: str, keep: int) -> str:
    """``words`` with only ``keep`` letters around an ellipsis, two thirds of them from the beginning; unchanged if shorter."""
    if len(words) <= keep:
        return words
    head = math.ceil(2 * keep / 3)
    return words[:head] + "…" + words[len(words) - (keep - head) :]
