"""Values to colours. Two palettes: inferno for unsigned maps, red–blue (ColorBrewer) centred at zero for signed ones.

Each colour c(v) also exists as a translucent p(v) with opacity a(v), chosen such that p over the palette's zero is
exactly c: a·p + (1 − a)·c(0) = c. One picture therefore serves both as the map and as its overlay on a photograph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEVELS = 63
"""Colours of a palette. An odd number, so that zero of the signed palette is a level of its own."""

MISSING = (0.54, 0.54, 0.54)
"""The grey of values that are not numbers."""

PERCENTILE = 99.5
"""Where a colour scale ends, as a percentile of |value|."""

FADE = 1.8
"""The power that opacities are raised to where a map lies over a picture."""

# matplotlib's inferno (CC0) at 33 equal steps, and ColorBrewer's RdBu (Apache-2.0) from blue to red.
INFERNO = (
    "000004 040312 0b0724 150b37 210c4a 2f0a5b 3d0965 4a0c6b 57106e 64156e 71196e 7d1e6d 8a226a 972766 a32c61 b0315b "
    "bc3754 c73e4c d24644 db503b e45a31 eb6628 f1731d f68013 f98e09 fb9d07 fcac11 fbbc21 f9cb35 f5db4c f2ea69 f3f68a "
    "fcffa4"
)

RED_BLUE = "053061 2166ac 4393c3 92c5de d1e5f0 f7f7f7 fddbc7 f4a582 d6604d b2182b 67001f"


@dataclass(frozen=True)
class Palette:
    """Colours for values, opaque and translucent; see the beginning of this module.

    Attributes:
        opaque: (LEVELS, 3) in 0…1, red, green and blue.
        clear: (LEVELS, 4) in 0…1, the same with an opacity: over the colour of zero they look like ``opaque``.
        zero: (3,), the colour of zero.
        signed: whether zero lies in the middle of the levels, rather than at their beginning.
    """

    opaque: np.ndarray
    clear: np.ndarray
    zero: np.ndarray
    signed: bool

    def levels(self, values: np.ndarray, limit: float | None = None) -> np.ndarray:
        """``values`` of any shape to levels 0…LEVELS − 1; NaN to LEVELS, one more than there are colours.

        Args:
            values: of any shape.
            limit: the value of the last level; None: :func:`robust_limit` of the values.
        """
        if limit is None:
            limit = robust_limit(values)
        share = np.nan_to_num(values) / limit
        if self.signed:
            share = (np.clip(share, -1.0, 1.0) + 1) / 2
        else:
            share = np.clip(share, 0.0, 1.0)
        return np.where(np.isfinite(values), np.rint(share * (LEVELS - 1)), LEVELS).astype(np.uint8)

    def paint(self, values: np.ndarray, limit: float | None = None) -> np.ndarray:
        """The opaque colours (…, 3) of ``values`` (…), up to ``limit`` as in :meth:`levels`."""
        return np.vstack([self.opaque, MISSING])[self.levels(values, limit)]

    def over(self, image: np.ndarray, values: np.ndarray) -> np.ndarray:
        """A map ``values`` (H, W) laid over a picture ``image`` (H, W, 3)."""
        # The last row is the colour of NaN, half translucent.
        rgba = np.vstack([self.clear, [*MISSING, 0.5]])[self.levels(values)]
        # As they are, the opacities of weak values would veil the whole picture.
        opacity = rgba[..., 3:] ** FADE
        return rgba[..., :3] * opacity + image * (1 - opacity)


def palette(signed: bool) -> Palette:
    """The palette for ``signed`` or for unsigned maps: between the listed colours, those in between."""
    listed = RED_BLUE if signed else INFERNO
    stops = np.array([[int(code[i : i + 2], 16) for i in (0, 2, 4)] for code in listed.split()])
    position = np.linspace(0, 1, LEVELS)
    stop_position = np.linspace(0, 1, len(stops))
    opaque = np.stack([np.interp(position, stop_position, stops[:, channel] / 255) for channel in range(3)], 1)
    if signed:
        zero = opaque[LEVELS // 2]
        size = np.abs(2 * position - 1)
    else:
        zero = opaque[0]
        size = position
    # Solve a·p + (1 − a)·zero = opaque for p. Each channel of p stays in 0…1 if a is at least |opaque − zero| / room, where
    # room is how far the channel can go from zero in that direction. Opacity also grows with the value at least in proportion.
    away = opaque - zero
    room = np.where(away > 0, 1 - zero, zero)
    least_alpha = (np.abs(away) / np.maximum(room, 1e-9)).max(1)
    alpha = np.clip(np.maximum(least_alpha, size), 0, 1)
    clear = np.where(alpha[:, None] > 0, zero + away / np.maximum(alpha, 1e-9)[:, None], zero)
    return Palette(opaque, np.hstack([np.clip(clear, 0, 1), alpha[:, None]]), zero, signed)


def robust_limit(values: np.ndarray) -> float:
    """The value at which a colour scale ends: the 99.5th percentile of |value|, above zero whatever the ``values`` are.

    The maximum would let one extreme pixel darken the rest of the map.
    """
    size = np.abs(values[np.isfinite(values)])
    if not size.size:
        return 1.0
    # Of a map with few values that are not zero, the percentile may be zero.
    # Of a map that is zero everywhere, so is the maximum.
    return float(np.percentile(size, PERCENTILE)) or float(size.max()) or 1.0


def grey(image: np.ndarray) -> np.ndarray:
    """``image`` (H, W, 3) without its colours, still (H, W, 3)."""
    # The weights of red, green and blue in brightness (ITU-R BT.709).
    return np.repeat((image @ np.array([0.2126, 0.7152, 0.0722]))[..., None], 3, axis=2)


def background(image: np.ndarray, signed: bool) -> np.ndarray:
    """What lies under a map: ``image`` (H, W, 3) without its colours, lighter under a ``signed`` map, darker under others.

    So the map's colours stand out: those of a signed map begin at white, those of an unsigned one at black.
    """
    if signed:
        return 0.45 + 0.55 * grey(image)
    return 0.75 * grey(image)
