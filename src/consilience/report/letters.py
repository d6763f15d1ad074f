"""Texts in pictures: how wide they are, and shortened so that they fit."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ..errors import need


@lru_cache(maxsize=4)
def _font(weight: str) -> Any:
    manager, ft2font = need("matplotlib.font_manager", "images"), need("matplotlib.ft2font", "images")
    return ft2font.FT2Font(manager.findfont(manager.FontProperties(family="DejaVu Sans", weight=weight)))


@lru_cache(maxsize=1)
def _letters() -> frozenset[int]:
    return frozenset(_font("normal").get_charmap())


def drawable(words: str) -> str:
    """Letters that the packaged font lacks become boxes, rather than warnings; line breaks become spaces."""
    known = _letters()
    return "".join(c if ord(c) in known else "\N{WHITE SQUARE}" for c in " ".join(words.split()))


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
    """The text, shortened in the middle with an ellipsis so that it is at most ``width`` inches wide."""
    if inches(words, size, weight) <= width:
        return words
    low, high = 1, len(words) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if inches(shortened(words, middle), size, weight) <= width:
            low = middle
        else:
            high = middle - 1
    return shortened(words, low)


def wrapped(words: str, width: float, size: float, most: int) -> list[str]:
    """The text in lines of at most ``width`` inches; what does not fit in ``most`` lines is an ellipsis."""
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
    """``keep`` letters, two thirds of them from the beginning, around an ellipsis; all of them where they are no more."""
    if len(words) <= keep:
        return words
    head = -(-2 * keep // 3)
    return words[:head] + "…" + words[len(words) - (keep - head) :]
