"""Every option of an explanation: typed, checked once, frozen. From it everything else is served."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

from ..combine.aggregation import Aggregation
from ..combine.aggregations import DERIVED
from ..combine.draws import AUTO, BUDGET, FIT, FRESH, LOOKS, PAPER_FIT, PAPER_FRESH, Draws
from ..combine.weights import CHOICES, resolve
from ..errors import InputError, choose
from ..explainers import Explainer
from ..explainers import resolve as resolve_methods
from ..features import Features
from ..features.frames import plain_array
from ..model.outputs import SCORE_KINDS, Kind
from ..perturb.baseline import AnyBaseline
from ..perturb.per_input import taken
from ..results.describe import describe
from ..results.fingerprint import digest
from ..settings import Settings, checked, setting
from ..signatures import check_arguments

SIGNS = ("abs", "keep")
SCALES = ("max", "l2", "none")


@dataclass(frozen=True, eq=False)
class Options(Settings):
    """What :func:`consilience.explain`, :func:`consilience.evaluate`, :class:`consilience.Consensus`, the plan and the command
    line are asked for, beside the model and the data.

    Args:
        methods: a preset ("standard", "gradient", "paper", …), names, or configured explainers.
        objective: the name of an objective or an aggregation, an expression over names, a metric, a sum of metrics, a front, or
            an aggregation.
        seed: names all random draws.
        fit_draws: draws that fit the weights, by kind, or one number of neighbours and of masks alike; None: see ``draws``.
        fresh_draws: draws that judge them: "auto" (so many that the comparisons are decided, at most 20 neighbours and 512
            masks), or a number in the same forms; None: "auto".
        confidence: at which the comparisons are decided.
        resolved_draws: neighbours at which the weights are solved anew, for the sensitivity of that.
        quick: the answer alone, which nothing judges.
        draws: "auto", "paper", or None: "auto" unless ``fit_draws`` says how many.
        tolerance: for "auto", the cross-fitted regret at which to stop, relative to the objective's value.
        kind: which number of the output is explained; see :class:`~consilience.model.score.Score`.
        features: what is attributed; None: pixels for images, elements otherwise.
        baselines: what stands for "absent".
        sign: "abs" or "keep"; None: "keep".
        scale: "max", "l2" or "none"; None: "none" where a metric in units of the output asks for it, else "max".
        signed: allow negative weights.
        choice: "convex", or "cross_validated".
        pooled: one set of weights for the whole batch.
        weights: (k,) or (B, k), in place of any objective.
        kwargs: further arguments of the model.
        max_batch: rows in flight, or "auto".
        precision: "bfloat16" or "float16" for autocast; None: as the model is.

    Raises:
        InputError: an option is not known, has the wrong type, is out of range, or does not fit another one.
    """

    methods: Any = "standard"
    objective: Any = "posterior"
    seed: int = setting(0, low=-(2**63), high=2**63 - 1)
    fit_draws: Any = None
    fresh_draws: Any = AUTO
    confidence: float = setting(0.95, above=0.5, below=1)
    resolved_draws: int = setting(0, low=0)
    quick: bool = False
    draws: Literal["auto", "paper"] | None = None
    tolerance: float = setting(0.02, above=0)
    kind: str | Kind | Callable = "logit"
    features: Features | str | None = setting(None, choices=("pixels", "patches", "elements"))
    baselines: Any = None
    sign: Literal["abs", "keep"] | None = None
    scale: Literal["max", "l2", "none"] | None = None
    signed: bool = False
    choice: str = setting("convex", choices=CHOICES)
    pooled: bool = False
    weights: Any = None
    kwargs: Mapping[str, Any] | None = None
    max_batch: int | str = setting("auto", low=1)
    precision: Literal["bfloat16", "float16"] | None = None

    @classmethod
    def of(cls, **options: Any) -> Options:
        """Options by name.

        Args:
            options: any of the fields.

        Raises:
            InputError: a name is not known; the message has the near ones.
        """
        check_arguments("Options", options, OPTION_NAMES)
        return cls(**options)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.methods, Iterable) and not isinstance(self.methods, str):
            object.__setattr__(self, "methods", tuple(self.methods))  # an iterator can be read once
        if isinstance(self.kind, str):
            choose("kind", self.kind, SCORE_KINDS)
        # An adapter may have a meaning of its own for words and sequences.
        if not isinstance(self.baselines, Mapping | list | tuple | str):
            checked("baselines", self.baselines, AnyBaseline)
        object.__setattr__(self, "baselines", plain_array(self.baselines, "baselines"))
        if isinstance(self.max_batch, str) and self.max_batch != "auto":
            raise InputError(f"Options: max_batch is a whole number, at least 1, or 'auto'; got {self.max_batch!r}")
        # Whatever can be wrong in these is found now, not after the model has been evaluated.
        self.aggregation, self.fitting, self.judging, self.explainers  # noqa: B018

    def taken(self, places: Sequence[int]) -> Options:
        """The options of some inputs, where features, baselines or methods have one entry for each input of the data.

        Args:
            places: of these inputs, among all that the entries were given for.
        """
        own = {name: taken(getattr(self, name), places) for name in ("methods", "objective", "features", "baselines")}
        return replace(self, **own)

    def but(self, **options: Any) -> Options:
        """The same with other options.

        Args:
            options: by name; they take precedence.

        Raises:
            InputError: a name is not known, or a value cannot be used.
        """
        check_arguments("Options", options, OPTION_NAMES)
        return replace(self, **options)

    @cached_property
    def aggregation(self) -> Aggregation:
        """How maps become one: from ``weights`` if there are any, else from ``objective``."""
        return resolve(self.objective, signed=self.signed, choice=self.choice, pooled=self.pooled, weights=self.weights)

    @cached_property
    def explainers(self) -> list[Explainer]:
        """The methods as configured, before baselines and features are given to those that leave them open."""
        return resolve_methods(self.methods)

    @property
    def derived(self) -> tuple[Aggregation, ...]:
        """The aggregations whose maps are made beside the methods'."""
        own = self.aggregation
        if own.linear or own in DERIVED:
            return DERIVED
        # No mixture of the methods' maps, so it is made and judged as a map of its own.
        return (*DERIVED, own)

    @property
    def sequential(self) -> bool:
        """Whether draws are made until sure: where something is solved, unless a number is asked for."""
        asked = self.draws == "auto" or (self.draws is None and self.fit_draws is None)
        return asked and self.aggregation.solves

    @cached_property
    def fitting(self) -> Draws:
        """The draws that fit the weights; where sampling is sequential, at most so many."""
        usual = FIT
        if self.draws == "paper":
            usual = PAPER_FIT
        elif self.sequential:
            usual = self.aggregation.budget or BUDGET
        return Draws.of(self.fit_draws, usual, "fit_draws")

    @property
    def fixed_fit(self) -> bool:
        """Whether the caller says how many draws fit, so that those of every kind are made, for the table."""
        return self.draws == "paper" or (self.fit_draws is not None and not self.sequential)

    @cached_property
    def judging(self) -> Draws:
        """The fresh draws that judge; where they are made until decided, at most so many."""
        usual = PAPER_FRESH if self.draws == "paper" else FRESH
        asked = None if self._judges_until_decided else self.fresh_draws
        return Draws.of(asked, usual, "fresh_draws")

    def looks(self, kind: str) -> tuple[int, ...]:
        """At how many fresh draws of a kind it is asked whether they have decided: once, where a number is asked for.

        Args:
            kind: "quadratic" (neighbours) or "responses" (masks).
        """
        if self._judges_until_decided and self.draws != "paper":
            return LOOKS[kind]
        return (self.judging.of_kind(kind),)

    @property
    def _judges_until_decided(self) -> bool:
        return self.fresh_draws is None or (isinstance(self.fresh_draws, str) and self.fresh_draws == AUTO)

    @property
    def in_output_units(self) -> bool:
        """Whether a metric of the objective wants maps signed and unscaled."""
        return any(metric.in_output_units for metric in self.aggregation.metrics)

    def presented(self) -> tuple[str, str]:
        """(sign, scale) of the maps.

        Raises:
            InputError: a metric in units of the output is asked for, with another sign or scale.
        """
        if self.in_output_units:
            for name, value, wanted in (("sign", self.sign, "keep"), ("scale", self.scale, "none")):
                if value not in (None, wanted):
                    raise InputError(
                        f"{name}: the objective is in units of the output, so maps keep their sign and scale; "
                        f"use {name}={wanted!r} or leave it out, got {value!r}"
                    )
            return "keep", "none"
        if self.aggregation.signed_maps and self.sign == "abs":
            raise InputError(
                f"sign: {self.aggregation.name!r} is in units of the score, so maps keep their sign; use sign='keep' "
                "or leave it out, or another objective, such as 'opt', got 'abs'"
            )
        return self.sign or "keep", self.scale or "max"

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that name a run: of all options but the rows in flight, arrays by what they hold."""
        # Rows in flight change the speed and no number.
        names = [each.name for each in fields(self) if each.name != "max_batch"]
        return digest({name: getattr(self, name) for name in names})

    def described(self) -> dict[str, Any]:
        """The options in words, for records."""
        words = {}
        for each in fields(self):
            value = getattr(self, each.name)
            plain = value is None or isinstance(value, str | int | float)
            words[each.name] = value if plain else describe(value)
        return words


OPTION_NAMES = tuple(each.name for each in fields(Options))
"""What ``**options`` takes wherever options are handed on."""
