"""How many draws of each kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral

from ..errors import InputError, choose
from ..metrics.base import Metric
from ..settings import Settings, setting

SEQUENTIAL_KINDS = {"quadratic": "average_sensitivity", "responses": "infidelity"}
"""The kinds of draws that can be made in rounds: part of the evidence → the metric whose draws it holds, which is also the
field of :class:`Draws`. Neighbours, and masks."""

FEWEST = 2
"""Draws of a kind that can be asked for: a single one says nothing about how it varies."""


@dataclass(frozen=True)
class Draws(Settings):
    """How many draws of each of the two kinds that sequential sampling knows.

    Args:
        average_sensitivity: neighbours; each costs an explanation.
        infidelity: masks; each costs a forward evaluation.

    Raises:
        InputError: a number is no whole number from 0 to 10⁹.
    """

    average_sensitivity: int = setting(10, low=0)
    infidelity: int = setting(256, low=0)

    def of_kind(self, kind: str) -> int:
        """How many draws of one kind.

        Args:
            kind: "quadratic" (neighbours) or "responses" (masks).
        """
        return getattr(self, SEQUENTIAL_KINDS[kind])

    def of_metric(self, metric: Metric) -> int:
        """How many draws of a metric: as many as of the one of these two that asks for the same.

        Args:
            metric: any; one that makes a fixed number of draws has that number.
        """
        if metric.fixed is not None:
            return metric.fixed
        if metric.asks == "explanations":
            return self.average_sensitivity
        return self.infidelity

    @classmethod
    def of(cls, spec: Draws | int | str | Mapping[str, int] | None, default: Draws, what: str) -> Draws:
        """What a caller asks for, in any of its forms.

        Args:
            spec: one number, of neighbours and of masks alike; a mapping; text such as "20" or
                "average_sensitivity=10,infidelity=256"; None for the default. A kind that a mapping or a text leaves out is
                that of the default.
            default: what is meant by nothing.
            what: the argument's name, for errors.

        Raises:
            InputError: it is none of these, or asks for fewer than two draws of a kind.
        """
        if spec is None:
            return default
        draws = spec
        if not isinstance(draws, Draws):
            numbers = _numbers(spec, what)
            try:
                draws = replace(default, **numbers)
            except InputError as error:
                raise InputError(f"{what}: {error}") from error
        if min(draws.average_sensitivity, draws.infidelity) < FEWEST:
            raise InputError(
                f"{what}: at least {FEWEST} draws of each kind, and four for a standard error, got {spec!r}"
            )
        return draws


def one_number(spec: object) -> int | None:
    """The one number that is asked for neighbours and masks alike; None where kinds are named, or nothing is asked.

    Args:
        spec: as for :meth:`Draws.of`.
    """
    if isinstance(spec, str) and spec.strip().isdigit():
        return int(spec)
    if isinstance(spec, int | Integral):
        return int(spec)
    return None


def _numbers(spec: object, what: str) -> dict[str, int]:
    """Kind → how many, of the kinds that are named; a single number is for all."""
    names = [each.name for each in fields(Draws)]
    alike = one_number(spec)
    if alike is not None:
        return dict.fromkeys(names, alike)
    if isinstance(spec, str):
        numbers = {}
        for part in spec.split(","):
            name, _, number = part.partition("=")
            known = choose(what, name.strip(), names)
            if not number.strip().isdigit():
                raise InputError(_expected(what, spec))
            numbers[known] = int(number)
        return numbers
    if isinstance(spec, Mapping):
        return {choose(what, str(name).strip(), names): number for name, number in spec.items()}
    raise InputError(_expected(what, spec))


def _expected(what: str, spec: object) -> str:
    return f"{what}: expected e.g. 20 or average_sensitivity=10,infidelity=256, got {spec!r}"


AUTO = "auto"
"""As many as are needed, and no more than the last of :data:`LOOKS`."""

FIT = Draws(10, 256)
"""To fit the weights, where a fixed number is asked for."""

FIRST = Draws(2, 128)
"""The first round of the draws that fit, where they are made until sure; each further one doubles. Two or three neighbours fit
the matrix of robustness within 1.5 % of what four do, and a neighbour is an explanation: a gradient through every method."""

BUDGET = Draws(40, 1024)
"""At most, of ``draws="auto"``."""

FRESH = Draws(20, 512)
"""To judge, at most."""

LOOKS = {"quadratic": (4, 8, 12, 20), "responses": (128, 256, 512)}
"""Kind of draw → at how many fresh draws it is asked whether they have decided. Four neighbours are the fewest with a standard
error."""

PAPER_FIT = Draws(50, 50)
"""AGG's, to fit."""

PAPER_FRESH = Draws(200, 200)
"""AGG's, to judge."""
