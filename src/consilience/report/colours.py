"""Values to colours. Two palettes: inferno for unsigned maps, red–blue (ColorBrewer) centred at zero for signed ones.

Each colour c(v) also exists as a translucent p(v) with opacity a(v), chosen such that p over the palette's zero is
exactly c: a·p + (1 − a)·c(0) = c. One picture therefore serves both as the map and as its overlay on a photograph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEVELS = 63  # odd: zero of the signed palette is a level of its own


MISSING = (0.54, 0.54, 0.54)


PERCENTILE = 99.5


FADE = 1.8


# matplotlib's inferno (CC0) at 33 equal steps, and ColorBrewer's RdBu (Apache-2.0) from blue to red.
INFERNO = (
    "000004 040312 0b0724 150b37 210c4a 2f0a5b 3d0965 4a0c6b 57106e 64156e 71196e 7d1e6d 8a226a 972766 a32c61 b0315b "
    "bc3754 c73e4c d24644 db503b e45a31 eb6628 f1731d f68013 f98e09 fb9d07 fcac11 fbbc21 f9cb35 f5db4c f2ea69 f3f68a "
    "fcffa4"
)


RED_BLUE = "053061 2166ac 4393c3 92c5de d1e5f0 f7f7f7 fddbc7 f4a582 d6604d b2182b 67001f"


@dataclass(frozen=True)
class Palette:
    """``opaque`` (LEVELS, 3) and ``clear`` (LEVELS, 4), in 0…1, and the colour of zero."""

    opaque: np.ndarray
    clear: np.ndarray
    zero: np.ndarray
    signed: bool

    def levels(self, values: np.ndarray, limit: float | None = None) -> np.ndarray:
        """Values of any shape to levels 0…LEVELS − 1; NaN to LEVELS. ``limit`` is the value of the last level."""
        limit = robust_limit(values) if limit is None else limit
        share = np.clip(np.nan_to_num(values) / limit, -1.0 if self.signed else 0.0, 1.0)
        share = (share + 1) / 2 if self.signed else share
        return np.where(np.isfinite(values), np.rint(share * (LEVELS - 1)), LEVELS).astype(np.uint8)

    def paint(self, values: np.ndarray, limit: float | None = None) -> np.ndarray:
        """(…) → (…, 3)."""
        return np.vstack([self.opaque, MISSING])[self.levels(values, limit)]

    def over(self, image: np.ndarray, values: np.ndarray) -> np.ndarray:
        """The map (H, W) over a picture (H, W, 3): opacities to the power ``FADE``, or weak values would veil it."""
        rgba = np.vstack([self.clear, [*MISSING, 0.5]])[self.levels(values)]
        opacity = rgba[..., 3:] ** FADE
        return rgba[..., :3] * opacity + image * (1 - opacity)


def palette(signed: bool) -> Palette:
    """The palette for signed or for unsigned maps."""
    stops = np.array([[int(c[i : i + 2], 16) for i in (0, 2, 4)] for c in (RED_BLUE if signed else INFERNO).split()])
    at, where = np.linspace(0, 1, LEVELS), np.linspace(0, 1, len(stops))
    opaque = np.stack([np.interp(at, where, stops[:, c] / 255) for c in range(3)], 1)
    zero = opaque[LEVELS // 2 if signed else 0]
    away = opaque - zero
    room = np.where(away > 0, 1 - zero, zero)
    alpha = (np.abs(away) / np.maximum(room, 1e-9)).max(1)  # the most translucent that stays a colour
    alpha = np.clip(np.maximum(alpha, np.abs(2 * at - 1 if signed else at)), 0, 1)
    clear = np.where(alpha[:, None] > 0, zero + away / np.maximum(alpha, 1e-9)[:, None], zero)
    return Palette(opaque, np.hstack([np.clip(clear, 0, 1), alpha[:, None]]), zero, signed)


def robust_limit(values: np.ndarray) -> float:
    """The 99.5th percentile of |value|: one hot pixel does not darken the map. Positive for any input."""
    size = np.abs(values[np.isfinite(values)])
    if not size.size:
        return 1.0
    limit = float(np.percentile(size, PERCENTILE)) or float(size.max())
    return limit if limit > 0 else 1.0


def grey(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) → the same, without colour: what lies under a map."""
    return np.repeat((image @ np.array([0.2126, 0.7152, 0.0722]))[..., None], 3, axis=2)


def background(image: np.ndarray, signed: bool) -> np.ndarray:
    """The picture without colour, darkened (unsigned) or lightened (signed), so that the map's colours stand out."""
    return 0.45 + 0.55 * grey(image) if signed else 0.75 * grey(image)
