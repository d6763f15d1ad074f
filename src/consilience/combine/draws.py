"""How many draws of each kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral

from ..errors import InputError, choose
from ..metrics.base import Metric

KINDS = {"quadratic": "average_sensitivity", "responses": "infidelity"}
"""Part of the evidence → the metric whose draws it holds: neighbours, and masks."""


@dataclass(frozen=True)
class Draws:
    """How many draws: neighbours for the sensitivity (each costs an explanation), masks for the infidelity (a forward)."""

    average_sensitivity: int = 10
    infidelity: int = 256

    def of_kind(self, kind: str) -> int:
        """How many neighbours ("quadratic") or masks ("responses")."""
        return getattr(self, KINDS[kind])

    def of_metric(self, metric: Metric) -> int:
        """How many draws of a metric: as many as of the one of these two that asks for the same."""
        if metric.fixed is not None:
            return metric.fixed
        return self.average_sensitivity if metric.asks == "explanations" else self.infidelity

    @classmethod
    def of(cls, spec: Draws | int | str | Mapping[str, int] | None, default: Draws, what: str) -> Draws:
        """An integer (both), a mapping, "average_sensitivity=10,infidelity=256", or None for the default."""
        if spec is None:
            return default
        if isinstance(spec, Draws):
            found = spec
        elif isinstance(spec, int | Integral):
            found = cls(int(spec), int(spec))
        elif isinstance(spec, str) and spec.strip().isdigit():
            found = cls(int(spec), int(spec))
        elif not isinstance(spec, str | Mapping):
            raise InputError(f"{what}: expected e.g. 20 or average_sensitivity=10,infidelity=256, got {spec!r}")
        else:
            pairs = dict(part.partition("=")[::2] for part in spec.split(",")) if isinstance(spec, str) else dict(spec)
            known = ("average_sensitivity", "infidelity")
            try:
                found = replace(
                    default, **{choose(what, name.strip(), known): int(value) for name, value in pairs.items()}
                )
            except ValueError as error:
                if isinstance(error, InputError):
                    raise
                raise InputError(
                    f"{what}: expected e.g. 20 or average_sensitivity=10,infidelity=256, got {spec!r}"
                ) from error
        if min(found.average_sensitivity, found.infidelity) < 2:
            raise InputError(f"{what}: at least 2 draws of each kind are needed for a standard error, got {spec!r}")
        return found


FIT, FRESH = Draws(10, 256), Draws(20, 512)


BUDGET = Draws(40, 1024)


PAPER_FIT, PAPER_FRESH = Draws(50, 50), Draws(200, 200)
