"""How far off a sum may be: the lines above which a method that claims to add up is warned of."""

from __future__ import annotations

SUMS, SHAPES = 0.1, 0.5
"""By how much of f(x) − f(baseline) a map's sum may be off, before that is a warning: where the numbers are contributions in
units of the score, and where they are scaled, so that only the map's shape is shown. A quadrature converges sooner in its shape
than in its sum: on four photographs integrated gradients of 16 steps miss 0 to 39 % of the sum, and correlate .94 to .99 with
those of 100 steps (50 steps: 3 to 13 %, and .99)."""
