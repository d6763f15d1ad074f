"""The rows of the held-out benchmark: every method, every aggregation and a ridge regression, as one task for every measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from held_out_pairs import SLOW, Pair, patches_of
from torch import Tensor

from consilience.card import Card
from consilience.combine.aggregation import Aggregation, Combination, mix, unsolved
from consilience.combine.aggregations import Median, Rank
from consilience.combine.draws import Draws
from consilience.combine.measurement import Measurement, metrics_of
from consilience.combine.posterior import Posterior, Ridge
from consilience.combine.weights import resolve
from consilience.errors import ConsilienceError
from consilience.explain.options import Options
from consilience.explain.prepare import Ready, prepare
from consilience.explainers import Direct, Explainer
from consilience.explainers.perturbation import give
from consilience.features.base import Elements, Features
from consilience.features.images import Patches, Pixels
from consilience.measures import (
    MPRT,
    Deletion,
    Insertion,
    MaxSensitivity,
    Measure,
    PointingGame,
    RandomLogit,
    RelevanceMass,
    RelevanceRank,
    RoadCombined,
    SensitivityN,
    Task,
)
from consilience.metrics import Infidelity
from consilience.metrics.base import Metric
from consilience.model.score import Score
from consilience.perturb.baseline import AnyBaseline
from consilience.perturb.points import Points, present
from consilience.settings import setting
from consilience.statistics.criteria import CRITERIA
from consilience.statistics.evidence import Evidence
from consilience.statistics.keys import Key
from consilience.statistics.tensors import corners, exact

SEED = 0
NEIGHBOURS = 2
"""That fit weights, and that judge them: two or three fit them within 1.5 % of what four do."""

OBJECTIVES = ("best_single", "faith", "robust", "opt", "paper_opt")


# -- a ridge regression on the masks that fit the weights --------------------------------------------------------------


def ridge_by_leaving_out(masks: Tensor, falls: Tensor) -> Tensor:
    """Coefficients (N, U) of a ridge regression with an intercept, its penalty by the smallest leave-one-out error.

    With centred masks Z, K = ZZᵀ = VΛVᵀ and H = VΛ/(Λ + λ)Vᵀ + 1/S, the error of mask s when it is left out is
    (y − Hy)_s / (1 − H_ss): one decomposition serves all penalties.

    Args:
        masks: (N, S, U), 1 where a unit is taken away.
        falls: (N, S), by how much the score falls.
    """
    z = masks - masks.mean(1, keepdim=True)
    y = falls - falls.mean(1, keepdim=True)
    size, vectors = torch.linalg.eigh(z @ z.mT)
    size = size.clamp(min=0)
    along = (vectors.mT @ y[..., None])[..., 0]
    best = torch.full_like(y[:, 0], torch.inf)
    chosen = torch.zeros_like(y)
    for power in torch.linspace(-5, 2, 22).tolist():
        penalty = 10**power * size.amax(1, keepdim=True)
        shrunk = size / (size + penalty)
        residual = y - (vectors @ (shrunk * along)[..., None])[..., 0]
        leverage = (vectors**2 @ shrunk[..., None])[..., 0] + 1 / y.shape[1]
        error = (residual / (1 - leverage).clamp(min=1e-6)).square().mean(1)
        better = error < best
        best = torch.where(better, error, best)
        dual = (vectors @ (along / (size + penalty))[..., None])[..., 0]
        chosen = torch.where(better[:, None], dual, chosen)
    return (z.mT @ chosen[..., None])[..., 0]


@dataclass(frozen=True)
class MaskRidge(Direct):
    """Ridge regression of the falls of the score on the very masks that fit weights, spread over each unit's elements.

    Args:
        draws: masks.
        features: the mask units; None: those of the metric Infidelity.
        baselines: what stands for "absent"; None: as there.
        name_: of the row.
    """

    draws: int = setting(256, low=2)
    features: Features | None = None
    baselines: AnyBaseline = None
    name_: str = "ridge"

    kind = "contribution"
    card = Card(
        formula="argmin Σ (y − c − m·φ)² + λ‖φ‖², λ by leaving out", source="this benchmark", cost="draws forward"
    )

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.name_

    def rows(self, shape: Sequence[int]) -> dict[str, int]:
        return {"forward": self.draws, "gradient": 0}

    def attribute(self, score: Score, points: Points, key: Key) -> Tensor:
        shape = points.x.shape[1:]
        where = Infidelity(features=self.features, baseline=self.baselines).neighbourhood(shape)
        fit = Key(SEED, "fit") / Infidelity.stream
        count = int(where.drawn(points, self.draws, fit)[0].max())
        clean = exact(score(points.x, points.owner))[:, None]
        masks = []
        falls = []
        step = max(1, 4 * score.batch.size(False) // len(points))
        for start in range(0, count, step):
            cloud = where.draw(points, range(start, min(start + step, count)), fit, count)
            assert cloud.masks is not None
            masks.append(cloud.split(exact(cloud.masks.flatten(1))))
            falls.append(clean - cloud.split(exact(score(cloud.points, cloud.owner))))
        coefficients = ridge_by_leaving_out(torch.cat(masks, 1), torch.cat(falls, 1))
        return give(coefficients, where.features, points)


# -- measures on fresh draws of what the weights are fitted to ---------------------------------------------------------


@dataclass(frozen=True)
class Fresh(Measure):
    """Interface: a criterion of each row on draws of the stream "fresh".

    Args:
        draws: of each kind.
        metrics: that are drawn.
    """

    draws: Draws
    metrics: tuple[Metric, ...]

    def __call__(self, task: Task) -> Tensor:
        fresh = replace(task, key=Key(SEED, "fresh"), memory={})
        parts = {}
        for metric in self.metrics:
            count = self.draws.of_metric(metric)
            parts[metric.statistic] = metric.measure(fresh, range(count), count)
        evidence = Evidence.of(parts)
        valid = evidence.valid()
        value = CRITERIA[self.criterion](evidence.clean(), corners(valid)).value
        return torch.where(valid, value, torch.nan)

    @property
    def criterion(self) -> str:
        return self.name


class FreshCorrelation(Fresh):
    """Correlation with the falls of the score, on masks that fitted nothing."""

    name = "faithfulness_correlation"
    card = Card(formula=Infidelity.card.formula, source=Infidelity.card.source, better="higher")


class NoiseOverSignal(Fresh):
    """Change at fresh neighbours beside change towards fresh other outputs."""

    name = "noise_over_signal"
    card = Card(formula="E‖φ(x) − φ(x + ε)‖² / E‖φ_t − φ_t'‖²", source="docs/concepts.md", better="lower")


# -- rows --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowGroup:
    """Rows that are made and judged together; a piece of the benchmark holds one group.

    Args:
        name: in file names.
        sign: of the maps, "keep" or "abs".
        singles: whether the methods themselves are judged.
        mixtures: names of objectives and aggregations of the pair's members.
        standard: those that are also made of the members without a perturbation method.
        ridges: further mask units of ridge regressions: shares of the short side, for images.
        label: is put behind the names of rows.
        sets: label → members, for mixtures that are made of these only.
        modalities: of the pairs for which it is made.
        units: mask units of further posteriors, as shares of an image's side.
        most: inputs that are judged at most; None: all.
    """

    name: str
    sign: str = "keep"
    singles: bool = False
    mixtures: tuple[str, ...] = ()
    standard: tuple[str, ...] = ()
    ridges: tuple[int, ...] = ()
    label: str = ""
    sets: tuple[tuple[str, tuple[str, ...]], ...] = field(default=(), repr=False)
    most: int | None = field(default=None, repr=False)
    modalities: tuple[str, ...] = field(default=("image", "table", "text"), repr=False)
    units: tuple[int, ...] = field(default=(), repr=False)


PERTURBATION = ("feature_ablation", "shapley_sampling")
UNMIXED = ("median", "rank")
CORRECTED: dict[str, tuple[str, Aggregation]] = {
    "posterior": ("posterior", Posterior(Infidelity())),
    "ridge": ("masks alone", Ridge(Infidelity())),
}
"""What is more than a mixture: objective → the row's name, and the aggregation with the masks that the other objectives are
fitted to, of images patches of up to three sizes. ``units`` says of what other sizes."""
EVEN = "posterior even"
"""The posterior whose value of each mask unit is spread evenly over its pixels, for images."""


@dataclass(frozen=True)
class Judged:
    """A chunk of a pair's inputs, ready to be judged.

    Args:
        ready: the batch, with every method of the group.
        rows: (B, rows, R), each row as coefficients on the maps of methods, median and rank.
        names: of the rows.
        weights: of the members, which are mixed.
        base: (B, R, *A), the maps at the inputs.
        corrected: rows to which masks add something that is no mixture: place → aggregation and places of the methods.
        even: places of those that are spread evenly over their units.
    """

    ready: Ready
    rows: Tensor
    names: tuple[str, ...]
    weights: Weights
    base: Tensor
    corrected: dict[int, tuple[Aggregation, tuple[int, ...]]]
    even: tuple[int, ...]

    def task(self, regions: Tensor | None) -> Task:
        """What measures are asked of."""
        ready = self.ready
        place = torch.zeros(len(ready.x), dtype=torch.int64)
        place[ready.points.owner] = torch.arange(len(ready.points))

        def explain(score: Score, near: Points) -> Tensor:
            maps = completed(ready, ready.measurement.stack.attribute(score, near), near, self.weights.members)
            # Masks are evaluated anew: what they add is a function of the point and the model, as a method is.
            weights = self.weights.elsewhere(score, near, maps)
            return self._with_corrected(mix(self.rows[place[near.owner]], maps), weights)

        return Task(
            score=ready.score,
            points=ready.points,
            maps=self._with_corrected(mix(self.rows, self.base), self.weights),
            features=ready.measurement.stack.features,
            explain=explain,
            key=Key(SEED, "measure"),
            names=self.names,
            regions=None if regions is None else regions[ready.left],
        )

    def _with_corrected(self, answers: Tensor, weights: Weights) -> Tensor:
        for row, (aggregation, chosen) in self.corrected.items():
            answers[:, row] = weights.combined(aggregation, chosen, row in self.even).to(answers)
        return answers


def completed(ready: Ready, found: Tensor, points: Points, members: Sequence[int]) -> Tensor:
    """The methods' maps (N, k, *A), and behind them the members' median and rank."""
    stack = ready.measurement.stack
    mixed = found[:, list(members)]
    has = present(stack.features, points).view(len(points), *found.shape[2:])
    equal = torch.full_like(mixed.flatten(2)[..., 0], 1 / len(members))
    extra = [each.combine(mixed, equal, has).to(found) for each in (Median(), Rank())]
    return torch.cat([found, torch.stack(extra, 1)], 1)


def judged(pair: Pair, group: RowGroup, places: range, light: bool) -> Judged:
    """Some inputs of a pair, explained, and their weights fitted.

    Args:
        pair: the model and its data.
        group: which rows.
        places: which inputs.
        light: without the slow methods and the further ridges.
    """
    inputs = pair.x[places.start : places.stop]
    target = None if pair.target is None else pair.target[places.start : places.stop]
    ready = prepare(pair.model, inputs, target, _options(pair, group, light), places)
    stack = ready.measurement.stack
    methods = stack.stack.names
    asked = [each.name for each in pair.members]
    members = tuple(i for i, name in enumerate(methods) if name in asked)
    found = stack.attribute(ready.score, ready.points)
    base = completed(ready, found, ready.points, members)
    sets = {"": (group.mixtures, members)}
    standard = tuple(i for i in members if methods[i] not in PERTURBATION)
    sets[" (standard)"] = (group.standard, standard)
    for label, wanted in group.sets:
        sets[f" ({label})"] = (group.mixtures, tuple(i for i in members if methods[i] in wanted))
    if group.sets:
        del sets[""]
    rows: dict[str, Tensor] = {}
    if group.singles:
        rows |= {name: torch.eye(base.shape[1], dtype=torch.float64)[i] for i, name in enumerate(methods)}
    weights = Weights(ready, pair.masks, members, ready.score, ready.points, base)
    corrected: dict[int, tuple[Aggregation, tuple[int, ...]]] = {}
    even = []
    for label, (names, chosen) in sets.items():
        for name in names:
            row = torch.zeros(len(ready.points), base.shape[1], dtype=torch.float64)
            if name == EVEN:
                if pair.modality != "image":
                    continue
                even.append(len(rows))
                corrected[len(rows)] = (CORRECTED["posterior"][1], chosen)
            elif name in UNMIXED:
                row[:, len(methods) + UNMIXED.index(name)] = 1
            elif name in CORRECTED:
                corrected[len(rows)] = (CORRECTED[name][1], chosen)
            else:
                row[:, list(chosen)] = weights.fit(resolve(name), chosen).weights
            shown = CORRECTED[name][0] if name in CORRECTED else name
            rows[shown + label] = row
        for parts in group.units:
            metric = Infidelity(features=Patches(-(-pair.x.shape[-1] // parts)))
            corrected[len(rows)] = (Posterior(metric), chosen)
            rows[f"posterior 1/{parts}{label}"] = torch.zeros(len(ready.points), base.shape[1], dtype=torch.float64)
    mixing = torch.stack([row.expand(len(ready.points), -1) for row in rows.values()], 1)
    return Judged(ready, mixing, tuple(name + group.label for name in rows), weights, base, corrected, tuple(even))


def _options(pair: Pair, group: RowGroup, light: bool) -> Options:
    """How the maps of a group's methods are made."""
    wanted = {name for _, names in group.sets for name in names}
    methods: list[Explainer] = [each for each in pair.members if not wanted or each.name in wanted]
    if group.singles:
        methods += [each for each in pair.others if not (light and pair.light and each.name in SLOW)]
        methods.append(MaskRidge(pair.masks))
        if pair.modality == "image" and not (light or pair.light):
            side = pair.x.shape[-1]
            methods += [MaskRidge(pair.masks, Patches(-(-side // n)), name_=f"ridge 1/{n}") for n in group.ridges]
    return Options.of(
        methods=methods, objective="mean", seed=SEED, sign=group.sign, scale="max", max_batch=64, **pair.options
    )


class Weights:
    """Weights of aggregations at some points, fitted to draws that are made once.

    Args:
        ready: the batch.
        masks: how many fit.
        members: places of the methods that are mixed.
        score: the model that is asked.
        points: N inputs, or neighbours of them.
        maps: (N, R, *A), of all methods.
    """

    def __init__(
        self, ready: Ready, masks: int, members: Sequence[int], score: Score, points: Points, maps: Tensor
    ) -> None:
        self.ready = ready
        self.draws = Draws(NEIGHBOURS, masks)
        self.members = tuple(members)
        self.score = score
        self.points = points
        self.maps = maps[:, list(members)]
        self._parts: dict[Any, Any] = {}
        self._fits: dict[Any, Combination] = {}

    def elsewhere(self, score: Score, points: Points, maps: Tensor) -> Weights:
        """Those of another model, or at other points."""
        return Weights(self.ready, self.draws.infidelity, self.members, score, points, maps)

    def fit(self, aggregation: Aggregation, chosen: Sequence[int]) -> Combination:
        """What an aggregation makes of the draws.

        Args:
            aggregation: how maps become one.
            chosen: places of the methods that are mixed, all members or some.
        """
        if not aggregation.metrics:
            even = torch.full((len(self.maps), len(chosen)), 1 / len(chosen), dtype=torch.float64)
            return unsolved(even, "the mean")
        metrics = completed_metrics(self.ready, aggregation)
        evidence = Evidence.of({kind: self._part(metrics[kind]) for kind in aggregation.kinds})
        known = (repr(aggregation), tuple(chosen))
        if known not in self._fits:
            self._fits[known] = aggregation.fit(evidence.rows(self._among(chosen)))  # type: ignore[arg-type]
        return self._fits[known]

    def combined(self, aggregation: Aggregation, chosen: Sequence[int], even: bool) -> Tensor:
        """(N, *A): a map with what masks add to the mixture.

        Args:
            aggregation: how maps become one.
            chosen: places of the methods that are mixed.
            even: each mask unit's value is spread evenly over it.
        """
        measurement = self._measurement(completed_metrics(self.ready, aggregation)["responses"], chosen)
        combination = self.fit(aggregation, chosen)
        if even:
            assert combination.correction is not None
            units = combination.correction.values.shape[1]
            return measurement.of_units(combination.correction.sums[:, :units], self.points)
        return measurement.combined(aggregation, combination, self.maps[:, self._among(chosen)], self.points)

    def _among(self, chosen: Sequence[int]) -> list[int]:
        return [self.members.index(place) for place in chosen]

    def _part(self, metric: Metric) -> Any:
        """The draws of one metric; of all members, so that every set of them shares these."""
        known = (metric.statistic, repr(metric.drawn), getattr(metric, "keep_masks", False))
        if known not in self._parts:
            draws = range(self.draws.of_metric(metric))
            measurement = self._measurement(metric, self.members)
            made = measurement.more(self.score, self.points, self.maps, metric.statistic, draws, "fit")
            self._parts[known] = made[metric.statistic]
        return self._parts[known]

    def _measurement(self, metric: Metric, chosen: Sequence[int]) -> Measurement:
        whole = self.ready.measurement
        stack = replace(whole.stack, stack=whole.stack.stack.only(chosen))
        return Measurement(stack, tuple(range(len(chosen))), len(chosen), {metric.statistic: metric}, (), SEED)


def completed_metrics(ready: Ready, aggregation: Aggregation | None = None) -> dict[str, Metric]:
    """Kind of evidence → metric, with the baseline and the mask units of the batch.

    Args:
        ready: the batch.
        aggregation: whose settings; None: the usual ones.
    """
    features = ready.measurement.stack.features
    maskable = None if isinstance(features, Pixels | Elements) else features
    usual = resolve("mean") if aggregation is None else aggregation
    return {
        kind: each.completed(ready.baseline, maskable).of_model(ready.score) for kind, each in metrics_of(usual).items()
    }


# -- measures ----------------------------------------------------------------------------------------------------------


def measures(pair: Pair, kind: str, ready: Ready) -> list[Measure]:
    """The measures of one kind.

    Args:
        pair: the model and its data.
        kind: "faithfulness", "stability" or "localisation".
        ready: a batch.
    """
    usual = completed_metrics(ready)
    first, second = pair.absent
    fresh = Draws(NEIGHBOURS, 128 if pair.light else 256)
    if kind == "localisation":
        return [RelevanceMass(magnitude=False), RelevanceRank(magnitude=False), PointingGame(magnitude=False)]
    if kind == "stability":
        return [
            MaxSensitivity(samples=NEIGHBOURS),
            NoiseOverSignal(fresh, (usual["quadratic"], usual["contrast"])),
            RandomLogit(),
            MPRT(steps=2),
        ]
    steps = 5 if pair.light else 10
    # Single pixels are ROAD's; here the 64 patches (49 of 28 pixels) that the perturbation methods take away.
    coarse = patches_of(pair) if pair.modality == "image" else None
    found: list[Measure] = [
        FreshCorrelation(fresh, (usual["responses"],)),
        Deletion(steps=steps, baseline=first, value="score", features=coarse),
        Insertion(steps=steps, baseline=second, value="score", features=coarse),
        SensitivityN(draws=48, shares=(0.03, 0.8), baseline=first),
    ]
    if pair.modality == "image":
        found.insert(1, RoadCombined(percentages=(20, 50) if pair.light else (20, 50, 80)))
    return found


def numbers(measure: Measure, task: Task) -> tuple[Tensor, str]:
    """(B, rows) of one measure, NaN where there is none; and why all are missing, if they are."""
    try:
        return measure(task).double(), ""
    except ConsilienceError as error:
        return torch.full((len(task.points), len(task.names)), torch.nan, dtype=torch.float64), str(error)
