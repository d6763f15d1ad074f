"""Measures that take nothing away in an order: one table of measures × a short list of laws, and slow twins."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from nets import Small, bound, images
from torch import nn

import consilience as cs
from consilience.errors import InputError
from consilience.explainers import FeatureAblation, InputXGradient, IntegratedGradients, Normalised, Saliency, Stack
from consilience.features.images import Patches, Pixels, Segments
from consilience.measures import MEASURES, Measure, Task
from consilience.measures.agreement import (
    FeatureAgreement,
    PairwiseRankAgreement,
    RankAgreement,
    RankCorrelation,
    SignAgreement,
    SignedRankAgreement,
)
from consilience.measures.complexity import EntropyComplexity, GiniSparseness, TruncatedL2
from consilience.measures.localisation import (
    AttributionLocalisation,
    LocalisationAUC,
    PointingGame,
    RelevanceMass,
    RelevanceRank,
    TopKLocalisation,
)
from consilience.measures.neighbour_pass import Nearby
from consilience.measures.randomisation import MPRT, EfficientMPRT, RandomLogit, SmoothMPRT
from consilience.measures.robustness import (
    RIS,
    ROS,
    RRS,
    AvgSensitivity,
    KendallTau,
    LocalLipschitz,
    MaxSensitivity,
    TopKIntersection,
)
from consilience.measures.similarity import ssim
from consilience.model.random_weights import randomised, redraw
from consilience.model.representation import classifier, represent
from consilience.model.score import Score
from consilience.perturb.neighbourhoods import Ball, Gaussian, Uniform
from consilience.perturb.points import Points
from consilience.statistics.keys import Key

KEY = Key(3, "measures")
STACK = Stack([Saliency(), InputXGradient(), IntegratedGradients(2)], 3)
IDS = torch.tensor([4, 0, 7])
TARGETS = [1, 0, 3]
PIXELS = Pixels()
S = 2


def task(
    x=None, ids=IDS, targets=TARGETS, max_batch=64, features=PIXELS, scale="max", model=None, factor=1.0, order=None
):
    """The maps of STACK, signed, in the rows ``order``; ``factor`` multiplies them everywhere."""
    x = images() if x is None else x
    score, points = bound(model or Small(), x, target=targets, ids=ids, max_batch=max_batch)
    stage = Normalised(STACK, features, "keep", scale)
    rows = slice(None) if order is None else order
    explain = lambda score, points: factor * stage.attribute(score, points)[:, rows]  # noqa: E731
    maps = explain(score, points)
    corner = torch.zeros(features.shape(x.shape[1:]), dtype=torch.bool)
    corner[: max(1, len(corner) // 2)] = True
    return Task(score, points, maps, features, explain, KEY, regions=corner.expand(len(x), *corner.shape))


# -- slow twins: one input, one row and one draw at a time, from the definitions ---------------------------------------


MAPS: dict = {}  # known maps of the twins, all rows


@dataclass
class Case:
    """Input i and row r of ``task``."""

    task: Task
    i: int
    r: int

    @property
    def map(self):
        return self.task.maps[self.i, self.r].numpy()

    @property
    def x(self):
        return self.task.points.x[self.i]

    @property
    def region(self):
        return self.task.regions[self.i].numpy()

    def others(self):
        return [self.task.maps[self.i, r].numpy() for r in range(self.task.maps.shape[1]) if r != self.r]

    def neighbour(self, m, s):
        ids = self.task.points.ids[self.i : self.i + 1]
        noise = (KEY / "neighbours").uniform(ids, s, tuple(self.x.shape))[0].double()
        return self.x + m.radius * (2 * noise - 1)

    def at(self, x, model=None, target=None):
        """The row's map at another point, of another model, or of another output."""
        model, target = model or self.task.score.model, TARGETS[self.i] if target is None else target
        name = x.numpy().tobytes(), tuple(p.sum().item() for p in model.parameters()), target
        if name not in MAPS:
            there = Points(x[None], torch.zeros(1, dtype=torch.int64), self.task.points.ids[self.i : self.i + 1])
            MAPS[name] = self.task.explain(Score(model, target).at(x[None]), there)[0].numpy()
        return MAPS[name][self.r]

    def outputs(self, x):
        return self.task.score.model(x[None])[0].detach().numpy()


def over(combine):
    """A twin that combines one number for each neighbour."""
    return lambda one: lambda m, c: combine([one(m, c, c.neighbour(m, s)) for s in range(m.samples)])


def norm(v):
    return np.sqrt((np.asarray(v, dtype=float) ** 2).sum())


def moved(m, c, x):
    return norm(c.at(x) - c.map) / (norm(c.map) if m.relative else 1)


def ratio(m, c, x):
    return norm(c.at(x) - c.map) / norm(x - c.x)


def per_element(a, b):
    return norm((b - a) / a)


def stability(change):
    def one(m, c, x):
        if m.same_class and c.outputs(x).argmax() != c.outputs(c.x).argmax():
            return -np.inf
        how = per_element if m.elementwise else lambda a, b: norm(b - a) / norm(a)
        return how(c.map, c.at(x)) / max(change(m, c, x, how), m.eps)

    return over(max)(one)


def representation(c, x):
    return c.task.score.model.features(x[None]).mean((2, 3)).detach().numpy()


def output_change(m, c, x, how):
    return how(c.outputs(c.x), c.outputs(x)) if m.relative else norm(c.outputs(x) - c.outputs(c.x))


def largest(values, k):
    return set(np.argsort(-np.abs(values).ravel())[: k if k >= 1 else max(1, int(k * values.size))].tolist())


def kept(m, c, x):
    return len(largest(c.map, m.k) & largest(c.at(x), m.k)) / len(largest(c.map, m.k))


def tau(m, c, x):
    return scipy.stats.kendalltau(np.abs(c.map).ravel(), np.abs(c.at(x)).ravel()).statistic


def fresh(model, names):
    """A copy with these submodules drawn anew, by torch's own initialisation after the same seed."""
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        if name in names:
            a, b = (KEY / "randomisation" / name).words
            state = torch.random.get_rng_state()
            torch.manual_seed(a << 31 | b >> 1)
            module.reset_parameters()
            torch.random.set_rng_state(state)
    return model


LAYERS = ["conv1", "conv2", "head"]
CASCADES = {
    "top_down": [LAYERS[2:], LAYERS[1:], LAYERS],
    "bottom_up": [LAYERS[:1], LAYERS[:2], LAYERS],
    "independent": [LAYERS[2:], LAYERS[1:2], LAYERS[:1]],
}


def alike(kind, a, b):
    if kind == "ssim":
        from skimage.metrics import structural_similarity

        return structural_similarity(a / np.abs(a).max(), b / np.abs(b).max(), win_size=7, data_range=2.0)
    return getattr(scipy.stats, {"spearman": "spearmanr", "pearson": "pearsonr"}[kind])(a.ravel(), b.ravel()).statistic


def mprt(m, c):
    states = CASCADES[m.order]
    states = states if m.steps is None else states[-1:]
    return np.mean([alike(m.similarity, c.map, c.at(c.x, fresh(c.task.score.model, s))) for s in states])


def smooth_mprt(m, c):
    ids, span = c.task.points.ids[c.i : c.i + 1], c.x.max() - c.x.min()
    noise = [(KEY / "smoothing").normal(ids, s, tuple(c.x.shape))[0].double() for s in range(m.samples)]
    mean = lambda model: np.mean([c.at(c.x + m.sigma * span * n, model) for n in noise], 0)  # noqa: E731
    here = mean(None)
    return np.mean([alike(m.similarity, here, mean(fresh(c.task.score.model, s))) for s in CASCADES[m.order]])


def entropy(values):
    values = values / values.sum()
    return -sum(p * np.log(p) for p in values.ravel() if p > 0)


def efficient_mprt(m, c):
    before, after = (entropy(np.histogram(v, m.bins)[0]) for v in (c.map, c.at(c.x, fresh(c.task.score.model, LAYERS))))
    return (after - before) / before


def random_logit(m, c):
    found = []
    for s in range(m.samples):
        u = (KEY / "random_logit").uniform(c.task.points.ids[c.i : c.i + 1], s, ()).item()
        other = [k for k in range(4) if k != TARGETS[c.i]][int(u * 3)]
        found.append(alike(m.similarity, c.map, c.at(c.x, target=other)))
    return np.mean(found)


def gini(m, c):
    """Half the mean absolute difference, relative to the mean."""
    v = np.abs(c.map).ravel()
    return np.abs(v[:, None] - v).mean() / (2 * v.mean())


def mass(m, c):
    v = np.abs(c.map) if m.magnitude else np.maximum(c.map, 0)
    weight = c.map.size / c.region.sum() if getattr(m, "weighted", False) else 1
    return weight * v[c.region].sum() / v.sum()


def ranked_inside(k):
    return lambda m, c: np.mean([c.region.ravel()[j] for j in largest(c.map, k(m, c))])


def pointing(m, c):
    v = c.map
    at = np.array(np.unravel_index(v.argmax(), v.shape))
    return float(min(norm(at - spot) for spot in np.argwhere(c.region)) <= m.tolerance)


def auc(m, c):
    v = np.abs(c.map)
    pairs = v[c.region][:, None] - v[~c.region]
    return np.mean((pairs > 0) + (pairs == 0) / 2)


def against(one):
    return lambda m, c: np.mean([one(m, c.map.ravel(), b.ravel()) for b in c.others()])


def top_agreement(ranks, signs):
    def one(m, a, b):
        ra, rb = np.argsort(np.argsort(-np.abs(a))), np.argsort(np.argsort(-np.abs(b)))
        both = largest(a, m.k) & largest(b, m.k)
        both = {j for j in both if not ranks or ra[j] == rb[j]}
        return len({j for j in both if not signs or np.sign(a[j]) == np.sign(b[j])}) / len(largest(a, m.k))

    return against(one)


def pairwise(m, a, b):
    a, b = np.abs(a), np.abs(b)
    j, k = np.triu_indices(len(a), 1)
    return np.mean(np.sign(a[j] - a[k]) == np.sign(b[j] - b[k]))


# -- the table ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """``still``: the value without noise (None: not asked). ``power``: value(c · maps) = c^power · value."""

    measure: Any
    twin: Callable[[Any, Case], float]
    still: float | None = None
    power: int | None = 0

    def __str__(self):
        default = type(self.measure)()
        fields = [f.name for f in dataclasses.fields(default) if f.name not in ("samples", "where")]
        changed = [f"{n}={getattr(self.measure, n)}" for n in fields if getattr(self.measure, n) != getattr(default, n)]
        return "-".join([self.measure.name, *changed])


def eps(m, c, x, how):
    return how(c.x.numpy(), x.numpy())


def latent(m, c, x, how):
    return how(representation(c, c.x), representation(c, x))


TABLE = [
    Row(MaxSensitivity(samples=S), over(max)(moved), 0),
    Row(MaxSensitivity(samples=S, relative=False), over(max)(moved), 0, 1),
    Row(AvgSensitivity(samples=S), over(np.mean)(moved), 0),
    Row(AvgSensitivity(samples=S, relative=False), over(np.mean)(moved), 0, 1),
    Row(LocalLipschitz(samples=S), over(max)(ratio), np.nan, 1),
    Row(RIS(samples=S), stability(eps), 0),
    Row(RIS(samples=S, elementwise=False, same_class=False), stability(eps), 0),
    Row(RRS(samples=S, radius=0.3), stability(latent), 0),
    Row(RRS(samples=S, elementwise=False), stability(latent), 0),
    Row(ROS(samples=S, radius=0.5), stability(output_change), 0),
    Row(ROS(samples=S, elementwise=False, relative=True), stability(output_change), 0),
    Row(TopKIntersection(samples=S, k=0.2), over(np.mean)(kept), 1),
    Row(TopKIntersection(samples=S, k=5, radius=0.4), over(np.mean)(kept), 1),
    Row(KendallTau(samples=S), over(np.mean)(tau), 1),
    Row(MPRT(), mprt),
    Row(MPRT("bottom_up", "pearson"), mprt),
    Row(MPRT("independent", "ssim"), mprt),
    Row(MPRT(steps=1), mprt),
    Row(SmoothMPRT(samples=S), smooth_mprt),
    Row(EfficientMPRT(), efficient_mprt),
    Row(RandomLogit(samples=2), random_logit),
    Row(RandomLogit("ssim"), random_logit),
    Row(GiniSparseness(), gini),
    Row(EntropyComplexity(), lambda m, c: entropy(np.abs(c.map))),
    Row(TruncatedL2(0.2), lambda m, c: norm(np.minimum(np.abs(c.map), m.threshold)) ** 2, power=None),
    Row(RelevanceMass(), mass),
    Row(RelevanceMass(magnitude=False), mass),
    Row(AttributionLocalisation(), mass),
    Row(AttributionLocalisation(weighted=True), mass),
    Row(RelevanceRank(), ranked_inside(lambda m, c: c.region.sum())),
    Row(TopKLocalisation(k=0.2), ranked_inside(lambda m, c: m.k)),
    Row(PointingGame(), pointing),
    Row(PointingGame(tolerance=2), pointing),
    Row(LocalisationAUC(), auc),
    Row(FeatureAgreement(k=0.2), top_agreement(False, False)),
    Row(RankAgreement(k=0.4), top_agreement(True, False)),
    Row(SignAgreement(k=10), top_agreement(False, True)),
    Row(SignedRankAgreement(k=0.9), top_agreement(True, True)),
    Row(RankCorrelation(), against(lambda m, a, b: scipy.stats.spearmanr(np.abs(a), np.abs(b)).statistic)),
    Row(PairwiseRankAgreement(), against(pairwise)),
]
rows = pytest.mark.parametrize("row", TABLE, ids=str)


@cache
def whole(row):
    return row.measure(task())


@rows
def test_equals_its_slow_twin(row):
    t, found = task(), whole(row)
    assert found.shape == (3, 3) and found.dtype == torch.float64
    expected = [[row.twin(row.measure, Case(t, i, r)) for r in range(3)] for i in range(3)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-7, atol=1e-12)


@rows
def test_same_for_any_batch_order_size_and_chunk(row, monkeypatch):
    order = torch.tensor([2, 0, 1])
    targets = [TARGETS[i] for i in order]
    moved = row.measure(task(images()[order], IDS[order], targets, max_batch=1))
    torch.testing.assert_close(moved, whole(row)[order], rtol=1e-9, atol=1e-12)
    monkeypatch.setattr("consilience.statistics.ranks.BLOCK", 70)
    monkeypatch.setattr("consilience.measures.neighbour_pass.MAP_VALUES_AT_ONCE", 400)
    part = row.measure(task(max_batch=3).only(slice(1, 3)))
    torch.testing.assert_close(part, whole(row)[1:], rtol=1e-9, atol=1e-12)


@rows
def test_permuting_the_rows_permutes_the_result(row):
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(row.measure(task(order=order)), whole(row)[:, order])


@rows
def test_scaling_the_maps_behaves_as_documented(row):
    one, ten = whole(row), row.measure(task(factor=10.0))
    if row.power is None:
        ten, power = dataclasses.replace(row.measure, threshold=10 * row.measure.threshold)(task(factor=10.0)), 2
    else:
        power = row.power
    torch.testing.assert_close(ten, one * 10.0**power, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("row", [row for row in TABLE if row.still is not None], ids=str)
def test_without_noise_nothing_changes(row):
    found = dataclasses.replace(row.measure, radius=0.0)(task())
    torch.testing.assert_close(found, torch.full((3, 3), float(row.still)).double(), equal_nan=True)


ASKING = [row for row in TABLE if row.measure.card.cost != "0"]


@pytest.mark.parametrize(
    ("row", "fails"), [*((row, False) for row in TABLE), *((row, True) for row in ASKING)], ids=str
)
def test_leaves_everything_of_the_callers_untouched(row, fails):
    model = Small()
    model.train()
    model.conv1.eval()
    model.conv2.weight.requires_grad_(False)
    t = task(model=model)
    if fails:
        handle = model.head.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("broken head")))
    before = copy.deepcopy(model.state_dict()), t.points.x.clone(), t.maps.clone(), t.regions.clone()
    random = torch.random.get_rng_state()
    modes, flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    try:
        row.measure(t)
    except RuntimeError as error:
        assert fails and "broken head" in str(error)
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    if fails:
        handle.remove()
    assert all(torch.equal(before[0][k], v) for k, v in model.state_dict().items())
    assert torch.equal(before[1], t.points.x) and torch.equal(before[2], t.maps) and torch.equal(before[3], t.regions)
    assert torch.equal(random, torch.random.get_rng_state())
    assert modes == [m.training for m in model.modules()] and flags == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters()) and not t.points.x.requires_grad


@rows
def test_a_nan_has_a_reason(row):
    """Finite on ordinary maps. A map of zeros gives a number or a NaN whose reason is said; a broken map breaks its own row."""
    t = task()
    assert whole(row).isfinite().all()
    for value, row_at in ((0.0, 1), (torch.nan, 2)):

        def spoil(maps, value=value, row_at=row_at):
            maps = maps.clone()
            maps[:, row_at] = value
            return maps

        explain = lambda score, points, spoil=spoil: spoil(t.explain(score, points))  # noqa: E731
        found = row.measure(dataclasses.replace(t, maps=spoil(t.maps), explain=explain, memory={}))
        rest = [r for r in range(3) if r != row_at]
        assert found[:, rest].isfinite().all()
        if value == 0.0 and type(row.measure).undefined == Measure.undefined:
            assert found[:, row_at].isfinite().all()
        if value != 0.0:
            assert found[:, row_at].isnan().all()


@rows
def test_features_that_an_input_lacks_do_not_count(row):
    """An input with 12 segments gets the same numbers alone and beside one that has 30."""
    few, many = (torch.arange(64).reshape(8, 8) * n // 64 for n in (12, 30))
    beside = task(images(2), IDS[:2], [1, 0], features=Segments(torch.stack([few, many]), batched=True))
    alone = task(images(1), IDS[:1], [1], features=Segments(few[None], batched=True))
    regions = torch.zeros(2, 30, dtype=torch.bool)
    regions[:, 3:9] = True
    measure = row.measure
    if getattr(measure, "similarity", "") == "ssim":
        measure = dataclasses.replace(measure, similarity="spearman")
    beside, alone = (dataclasses.replace(t, regions=r) for t, r in ((beside, regions), (alone, regions[:1, :12])))
    torch.testing.assert_close(measure(beside)[:1], measure(alone), rtol=1e-9, atol=1e-12)


def test_the_table_is_complete_and_every_card_is_written():
    def final(cls):
        below = [leaf for sub in cls.__subclasses__() for leaf in final(sub)]
        return below + ([cls] if "card" in vars(cls) else [])

    files = ("neighbour_pass", "robustness", "randomisation", "complexity", "localisation", "agreement")
    mine = {cls for cls in final(Measure) if cls.__module__.rpartition(".")[2] in files}
    assert mine == {type(row.measure) for row in TABLE}
    for cls in mine:
        card = cls.card
        assert card.formula and card.source and card.cost and card.normalisation, cls
        assert "arXiv" in card.source or "doi" in card.source, cls
        assert card.better or cls.__module__.endswith("agreement"), cls
    assert len({cls.name for cls in mine}) == len(mine)


# -- neighbours --------------------------------------------------------------------------------------------------------

NEARBY = [row.measure for row in TABLE if isinstance(row.measure, Nearby)]


def test_measures_with_the_same_neighbours_share_one_pass_and_keep_statistics_only():
    t = task()
    asked = []
    explain = lambda score, points: asked.append(len(points)) or t.explain(score, points)  # noqa: E731
    shared = dataclasses.replace(t, explain=explain, memory={})
    group = [dataclasses.replace(m, radius=0.2) for m in NEARBY]
    for measure in group:
        measure.prepare(shared)
    found = [measure(shared) for measure in group]
    assert sum(asked) == 3 * S
    for measure, value in zip(group, found, strict=True):
        torch.testing.assert_close(value, measure(dataclasses.replace(t, memory={})))
    (statistics,) = (value for name, value in shared.memory.items() if name[0] == "neighbours")
    assert all(value.shape in ((3, S), (3, S, 3)) for value in statistics.values())


def test_what_one_measure_cannot_have_does_not_stop_the_others():
    t = task()
    plain = dataclasses.replace(t, score=Score(lambda x: x.flatten(1)[:, :4], 1).at(images()), memory={})
    measures = [RRS(samples=S), MaxSensitivity(samples=S)]
    for measure in measures:
        measure.prepare(plain)
    with pytest.raises(InputError, match=r"needs an nn\.Module"):
        measures[0](plain)
    assert measures[1](plain).isfinite().all()


@pytest.mark.parametrize("where", [Ball(0.7), Gaussian(0.2)])
def test_any_neighbourhood_will_do(where):
    t = task()
    cloud = where.draw(t.points, range(S), KEY / "neighbours", S)
    near = t.explain(
        t.score, dataclasses.replace(t.points, x=cloud.points, owner=cloud.owner, ids=t.points.ids.repeat_interleave(S))
    )
    change = (near.unflatten(0, (3, S)) - t.maps[:, None]).flatten(3).norm(dim=3)
    found = MaxSensitivity(where=where, samples=S, relative=False)(t)
    torch.testing.assert_close(found, change.amax(1))


def test_redrawn_noise_is_another_map():
    from consilience.explainers import SmoothGrad

    score, points = bound(Small(), images())
    stage = Normalised(Stack([Saliency(), SmoothGrad(3)], 3), Pixels(), "keep", "none")
    t = Task(score, points, stage.attribute(score, points), Pixels(), stage.attribute, KEY)
    fixed, drawn = (AvgSensitivity(0.001, samples=S, redraw=r)(t) for r in (False, True))
    torch.testing.assert_close(fixed[:, 0], drawn[:, 0])
    assert (drawn[:, 1] > 3 * fixed[:, 1]).all()


def test_neighbours_of_another_class_do_not_count():
    """At this radius the first draw changes the class of inputs 0 and 1, and others that of input 2."""
    t, wide = task(), RIS(radius=10.0, samples=6)
    classes = [[Case(t, i, 0).outputs(Case(t, i, 0).neighbour(wide, s)).argmax() for s in range(6)] for i in range(3)]
    own = [Case(t, i, 0).outputs(t.points.x[i]).argmax() for i in range(3)]
    assert [classes[i][0] == own[i] for i in range(3)] == [False, False, True]
    alone = dataclasses.replace(wide, samples=1)(t)
    assert alone[:2].isnan().all() and alone[2].isfinite().all()
    found, every = wide(t), dataclasses.replace(wide, same_class=False)(t)
    expected = [[stability(eps)(wide, Case(t, i, r)) for r in range(3)] for i in range(3)]
    np.testing.assert_allclose(found, expected)
    assert (found < every).any() and (found <= every).all()


def test_a_zero_in_the_map_counts_with_eps_in_its_place():
    t = task()
    maps = t.maps.clone()
    maps[:, :, 0, 0] = 0
    found = RIS(samples=1, eps=1e-3, same_class=False)(dataclasses.replace(t, maps=maps))
    c = Case(t, 1, 2)
    x = c.neighbour(RIS(), 0)
    here = np.where(maps[1, 2] == 0, 1e-3, maps[1, 2])
    expected = norm((c.at(x) - maps[1, 2].numpy()) / here) / per_element(c.x.numpy(), x.numpy())
    assert found[1, 2].item() == pytest.approx(expected)


def test_the_layer_before_the_classifier_is_found():
    model, x = Small(), images()
    score, points = bound(model, x)
    assert classifier(score, x[:1], points.owner[:1]) == "head"
    expected = model.features(x).mean((2, 3)).detach()
    torch.testing.assert_close(represent(score, x, points.owner, "head", before=True), expected)
    torch.testing.assert_close(
        represent(score, x, points.owner, "act2", before=False), model.features(x).detach().flatten(1)
    )

    class Nested(nn.Module):
        """Position embeddings outside, a classifier inside with weights that are computed, and a LogSoftmax after it."""

        def __init__(self):
            super().__init__()
            self.position = nn.Parameter(torch.zeros(3, 8, 8))
            last = nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))
            self.head = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.LayerNorm(5), last, nn.LogSoftmax(1))

        def forward(self, x):
            return self.head(x + self.position)

    score, points = bound(Nested().double(), x)
    assert classifier(score, x[:1], points.owner[:1]) == "head.3"


def test_a_named_layer_is_the_representation_and_a_wrong_one_is_an_error():
    t = task()
    named = RRS(samples=S, layer="act2", elementwise=False, same_class=False)
    c = Case(t, 0, 1)
    deep = lambda x: c.task.score.model.features(x[None]).detach().numpy()  # noqa: E731
    how = lambda a, b: norm(b - a) / norm(a)  # noqa: E731
    expected = max(how(c.map, c.at(x)) / how(deep(c.x), deep(x)) for x in (c.neighbour(named, s) for s in range(S)))
    assert named(t)[0, 1].item() == pytest.approx(expected)
    with pytest.raises(InputError, match="did you mean 'act2'"):
        RRS(layer="akt2")(t)
    plain = dataclasses.replace(t, score=Score(lambda x: x.flatten(1)[:, :4], 1).at(images()))
    with pytest.raises(InputError, match=r"needs an nn\.Module"):
        RRS()(plain)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaxSensitivity(samples=0), "samples is a whole number, at least 1"),
        (lambda: TopKIntersection(k=0)(task()), "k is a"),
        (lambda: TopKIntersection(k=2.5)(task()), "k: a whole number"),
        (lambda: MPRT("topdown"), "order is one of 'top_down'"),
        (lambda: MPRT(similarity="hog"), "similarity is one of 'spearman'"),
        (lambda: MPRT(steps=0), "steps is None, or it is a whole number, at least 1"),
        (lambda: RandomLogit(samples=0), "samples is a whole number, at least 1"),
        (lambda: SmoothMPRT(samples=0), "samples is a whole number, at least 1"),
        (lambda: EfficientMPRT(1), "bins is a whole number, at least 2"),
        (lambda: TruncatedL2(0.0), "threshold is a number, above 0"),
        (lambda: PointingGame(tolerance=-1), "tolerance"),
        (lambda: RelevanceMass()(dataclasses.replace(task(), regions=None)), "regions: this measure needs"),
        (lambda: RelevanceMass()(dataclasses.replace(task(), regions=torch.ones(3, 64))), r"expected \(3, 8, 8\)"),
        (lambda: MPRT()(dataclasses.replace(task(), score=Score(lambda x: x.flatten(1), 1).at(images()))), "nn.Module"),
        (lambda: MPRT(similarity="ssim")(task(features=Segments(torch.arange(64).reshape(8, 8) // 9))), "on a grid"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said(make, message):
    with pytest.raises(InputError, match=message):
        make()


# -- randomisation -----------------------------------------------------------------------------------------------------


class Odd(Small):
    """Parameters outside any submodule that could reset them, a single number, and a BatchNorm with statistics."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.arange(6.0).double())
        self.scale = nn.Parameter(torch.tensor(2.0).double())
        self.norm = nn.BatchNorm1d(6).double()
        self.norm.running_mean += 3
        self.eval()

    def forward(self, x):
        return self.head(self.scale * (self.norm(self.features(x).mean((2, 3))) + self.token))


def test_random_models_are_keyed_copies_that_differ_where_they_should():
    model = Odd()
    before = copy.deepcopy(model.state_dict())
    names = ["", "conv1", "conv2", "head", "norm"]
    own = lambda name, state: {k: v for k, v in state.items() if k.rpartition(".")[0] == name}  # noqa: E731
    same = lambda a, b: all(torch.equal(a[k], b[k]) for k in a)  # noqa: E731
    states = [copy.deepcopy(m.state_dict()) for m in randomised(model, "top_down", KEY)]
    assert len(states) == 5
    for step, state in enumerate(states):
        for at, name in enumerate(reversed(names)):
            assert same(own(name, state), own(name, before)) == (at > step), (step, name)
    assert states[-1]["scale"] == 2.0  # a single number has no spread to draw from
    assert not states[0]["norm.running_mean"].any()
    again = [m.state_dict() for m in randomised(model, "top_down", KEY, steps=1)]
    assert len(again) == 1 and same(states[-1], again[0])
    other = next(randomised(model, "top_down", Key(4, "other"), steps=1)).state_dict()
    assert not same(states[-1], other)
    for steps, shown in ((None, reversed(names)), (2, ("conv2", ""))):
        alone = [copy.deepcopy(m.state_dict()) for m in randomised(model, "independent", KEY, steps)]
        for state, changed in zip(alone, shown, strict=True):
            assert [name for name in names if not same(own(name, state), own(name, before))] == [changed]
    assert same(before, model.state_dict())


def test_a_parameter_without_reset_keeps_its_mean_and_deviation():
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(3 + 2 * torch.randn(20000, generator=torch.Generator().manual_seed(0)))

    module = Token()
    before = module.token.detach().clone()
    redraw(module, KEY)
    assert abs(module.token.mean() - before.mean()) < 0.05 and abs(module.token.std() - before.std()) < 0.05
    assert abs(torch.corrcoef(torch.stack([before, module.token.detach()]))[0, 1]) < 0.03


@pytest.mark.parametrize("measure", [MPRT(), SmoothMPRT(samples=2), EfficientMPRT()], ids=lambda m: m.name)
def test_a_model_that_does_not_use_its_parameters_cannot_be_tested(measure):
    """Its map is the same because it computes the same; that passed for a map that does not depend on the model."""

    class Fixed(Small):
        def forward(self, x):
            return (x.flatten(1)[:, :4] ** 3).cumsum(1) + 0 * super().forward(x)

    with pytest.raises(InputError, match="changes no output"):
        measure(task(model=Fixed(), scale="none"))


@pytest.mark.parametrize("order", ["top_down", "bottom_up", "independent"])
def test_efficient_mprt_has_the_random_model_from_mprt(order):
    t = task()
    asked = []
    explain = lambda score, points: asked.append(len(points)) or t.explain(score, points)  # noqa: E731
    shared = dataclasses.replace(t, explain=explain, memory={})
    group = [MPRT(order, steps=2), EfficientMPRT(), EfficientMPRT(7)]
    for measure in group:
        measure.prepare(shared)
    found = [measure(shared) for measure in group]
    assert sum(asked) == (2 if order != "independent" else 4) * 3
    for measure, value in zip(group, found, strict=True):
        torch.testing.assert_close(value, measure(dataclasses.replace(t, memory={})))
        assert value.isfinite().all() and (value != 0).all()


def test_a_map_that_vanishes_is_not_similar():
    t = task()
    calls = []

    def explain(score, points):
        calls.append(score)
        return torch.zeros_like(t.explain(score, points))

    gone = dataclasses.replace(t, explain=explain, memory={})
    assert (MPRT()(gone) == 0).all() and (MPRT(similarity="pearson")(gone) == 0).all()
    assert len(calls) == 3  # both similarities come from one pass
    assert (KendallTau(samples=S)(gone) == 0).all()


def test_the_curve_has_a_value_for_each_layer():
    t = task()
    curve = MPRT().curve(t)
    assert curve.shape == (3, 3, 3)
    torch.testing.assert_close(MPRT()(t), curve.mean(-1))
    torch.testing.assert_close(MPRT(steps=1).curve(t)[..., 0], curve[..., -1])


def test_ssim_is_skimages():
    from skimage.metrics import structural_similarity

    g = torch.Generator().manual_seed(2)
    a, b = (torch.rand(2, 3, 12, 9, generator=g).double() for _ in range(2))
    found = ssim(a, b)
    for i in range(2):
        for r in range(3):
            one, two = (v[i, r].numpy() / v[i, r].max().item() for v in (a, b))
            assert found[i, r].item() == pytest.approx(structural_similarity(one, two, win_size=7, data_range=1.0))
    torch.testing.assert_close(ssim(a, 5 * a), torch.ones(2, 3).double())


# -- maps, regions, agreement ------------------------------------------------------------------------------------------


def flat_task(maps, regions=None, features=None):
    """Maps (B, R, h, w) given, on patches of 8 × 8 images, by default 2 × 2 of them."""
    score, points = bound(Small(), images(len(maps)))
    return Task(score, points, maps.double(), features or Patches(4), lambda *_: None, KEY, regions=regions)


def test_concentration_of_extreme_maps():
    t = flat_task(torch.tensor([[[[1.0, 1], [1, 1]], [[0, 0], [2, 0]]]]))
    torch.testing.assert_close(GiniSparseness()(t), torch.tensor([[0, 0.75]]).double())
    torch.testing.assert_close(EntropyComplexity()(t), torch.tensor([[np.log(4), 0]]).double())
    torch.testing.assert_close(TruncatedL2(0.5)(t), torch.tensor([[1, 0.25]]).double())


def test_ties_share_what_is_left():
    """One pixel stands out and the others are tied: what is found is the expectation over the ways to break the tie."""
    inside = torch.tensor([[[True, False], [True, False]]])
    t = flat_task(torch.tensor([[[[5.0, 1], [1, 1]], [[2, 2], [2, 2]], [[1, 2], [0, 2]]]]), inside)
    torch.testing.assert_close(RelevanceRank()(t), torch.tensor([[(1 + 1 / 3) / 2, 0.5, 0]]).double())
    torch.testing.assert_close(TopKLocalisation(k=1)(t), torch.tensor([[1, 0.5, 0]]).double())
    torch.testing.assert_close(PointingGame()(t), torch.tensor([[1, 0.5, 0]]).double())
    torch.testing.assert_close(LocalisationAUC()(t), torch.tensor([[0.75, 0.5, 0]]).double())
    agree = FeatureAgreement(k=2).matrix(t)[0]
    torch.testing.assert_close(agree.diagonal(), torch.ones(3).double())
    torch.testing.assert_close(agree[0, 1].item(), (1 / 2 + 3 / 3) / 2)
    ordered = PairwiseRankAgreement().matrix(t)[0]
    torch.testing.assert_close(ordered.diagonal(), torch.ones(3).double())
    assert ordered[0, 1].item() == 3 / 6  # the three pairs that are tied in both


@pytest.mark.parametrize(("place", "hit"), [((0, 2), 1), ((2, 0), 1), ((1, 1), 1), ((0, 3), 0), ((2, 2), 0)])
def test_the_pointing_games_tolerance_is_a_disc(place, hit):
    maps, inside = torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool)
    maps[0, 0][place] = 1
    inside[0, 0, 0] = True
    assert PointingGame(tolerance=2)(flat_task(maps, inside, Patches(2))).item() == hit


@pytest.mark.parametrize(
    "measure", [RelevanceMass(), RelevanceRank(), PointingGame(), LocalisationAUC()], ids=lambda m: m.name
)
def test_an_empty_region_is_undefined(measure):
    inside = torch.zeros(2, 2, 2, dtype=torch.bool)
    inside[1, 0] = True
    found = measure(flat_task(torch.rand(2, 1, 2, 2, generator=torch.Generator().manual_seed(0)) + 0.1, inside))
    assert found[0].isnan() and found[1].isfinite()


AGREEMENTS = [row.measure for row in TABLE if hasattr(row.measure, "matrix")]


@pytest.mark.parametrize("measure", AGREEMENTS, ids=lambda m: m.name)
def test_agreement_is_symmetric_and_whole_with_itself(measure):
    t = task()
    matrix = measure.matrix(t)
    assert matrix.shape == (3, 3, 3)
    torch.testing.assert_close(matrix, matrix.mT)
    torch.testing.assert_close(matrix.diagonal(dim1=1, dim2=2), torch.ones(3, 3).double())
    assert measure(dataclasses.replace(t, maps=t.maps[:, :1])).isnan().all()


@pytest.mark.parametrize("measure", AGREEMENTS, ids=lambda m: m.name)
def test_agreement_with_a_reference_is_that_with_one_more_row(measure):
    t = task()
    known = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(5)).double()
    beside = dataclasses.replace(t, maps=torch.cat([t.maps, known[:, None]], 1), memory={})
    found = measure(dataclasses.replace(t, reference=known, memory={}))
    torch.testing.assert_close(found, measure.matrix(beside)[:, :3, 3])
    own = measure(dataclasses.replace(t, reference=t.maps[:, 1], memory={}))
    torch.testing.assert_close(own[:, 1], torch.ones(3).double())
    with pytest.raises(InputError, match=r"reference: shape \(3, 64\), expected \(3, 8, 8\)"):
        measure(dataclasses.replace(t, reference=known.flatten(1), memory={}))
    with pytest.raises(InputError, match="reference: it has NaN"):
        measure(dataclasses.replace(t, reference=known / 0 * 0, memory={}))


def test_uniform_neighbourhood_is_the_default():
    assert MaxSensitivity(0.3).neighbourhood == Uniform(0.3)


# -- half precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.15), (torch.float16, 0.03)])
def test_all_measures_judge_models_in_half_precision(dtype, tolerance):
    """The same numbers as in float64 up to the model's own rounding, and none is missing. Random parameters are drawn in the
    model's dtype, so the random models are others."""
    few = {"samples": 2, "draws": 16, "steps": 3, "features": cs.Patches(2)}
    measures = [
        cls(**{name: value for name, value in few.items() if name in cls.__dataclass_fields__})
        for cls in MEASURES.values()
        if "regions" not in cls.needs
    ]
    methods = ["saliency", "integrated_gradients", "smoothgrad", "deeplift", "grad_cam", FeatureAblation(cs.Patches(2))]
    run = lambda d: cs.evaluate(Small().to(d), [images(2).to(d)], methods=methods, measures=measures, fit_draws=4)  # noqa: E731
    half, full = run(dtype), run(torch.float64)
    assert not half.left_out
    for name, exact in full.values.items():
        found = half.values[name]
        assert np.array_equal(np.isfinite(found), np.isfinite(exact)), name
        if "mprt" not in name:
            assert np.nanmedian(np.abs(found - exact)) <= tolerance * np.nanstd(exact) + 1e-6, name
