"""Measures that take features away: one table of rows × a short list of laws, slow twins from the definitions."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from nets import Small, bound, images
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import spsolve
from scipy.stats import pearsonr, rankdata, spearmanr

from consilience import metrics
from consilience.errors import InputError
from consilience.explainers import InputXGradient, IntegratedGradients, Normalised, Saliency, Stack
from consilience.features.base import Elements
from consilience.features.images import Patches, Pixels, Segments
from consilience.features.sequences import Tokens
from consilience.features.tables import Columns
from consilience.measures import MEASURES
from consilience.measures.axiomatic import Completeness, LocalFidelity
from consilience.measures.curve import Curve
from consilience.measures.faithfulness import FaithfulnessCorrelation, Infidelity, SensitivityN
from consilience.measures.faithfulness_curves import (
    Deletion,
    EffectiveComplexity,
    Insertion,
    PixelFlipping,
    RegionPerturbation,
    Selectivity,
)
from consilience.measures.leave_one_out import FaithfulnessEstimate, MonotonicityCorrelation
from consilience.measures.removal import Removal
from consilience.measures.road import RoadCombined, RoadLeRF, RoadMoRF  # fmt: skip
from consilience.measures.whole_curves import IROF, Monotonicity
from consilience.perturb.baseline import Baseline, blur
from consilience.perturb.imputation import Noise, NoisyLinear, imputer
from consilience.perturb.inpaint import inpaint
from consilience.perturb.points import Points
from consilience.statistics.keys import Key
from consilience.task import Measure, Task

KEY = Key(5, "measure")
MODEL = Small()
NAMES = ("saliency", "input_x_gradient", "integrated_gradients", "ties", "uniform")
KINDS = ("gradient", "contribution", "contribution", "relevance", "relevance")
TARGETS = [1, 0, 3]


def attributions(score, points, features, sign="keep", scale="none"):
    stack = Stack([Saliency(), InputXGradient(), IntegratedGradients(8)], 3)
    return Normalised(stack, features, sign, scale).attribute(score, points)


def task(features=None, count=3, ids=None, batch=64, index=None) -> Task:
    """Five maps of ``count`` pictures: three methods, one with many ties, a uniform one."""
    features = features or Pixels()
    x = images(count)
    score, points = bound(Small(), x, target=(TARGETS * 2)[:count], ids=ids, max_batch=batch)
    maps = attributions(score, points, features)
    ties = (maps[:, 1] / maps[:, 1].flatten(1).std(1).view(-1, *[1] * (maps.ndim - 2))).round()
    raw = torch.cat([maps, torch.full_like(maps[:, :2], torch.nan)], 1)
    shown = torch.cat([maps, ties[:, None], torch.full_like(ties, 1 / 3)[:, None]], 1)
    made = Task(score, points, shown, features, lambda *_: shown, KEY, NAMES, KINDS, raw)
    return made if index is None else made.only(index)


# -- slow twins --------------------------------------------------------------------------------------------------------


@dataclass
class One:
    """One input and one map, in NumPy: what a twin needs."""

    x: np.ndarray
    map: np.ndarray
    raw: np.ndarray
    kind: str
    id: int
    target: int

    def output(self, x, value="score"):
        out = MODEL(torch.as_tensor(x)[None]).detach()[0]
        if value == "accuracy":
            return float(out.argmax() == self.target)
        return float((out.softmax(0) if value == "probability" else out)[self.target])

    def change(self, x, value="score"):
        return self.output(x) - self.output(self.x) if value == "change" else self.output(x, value)

    def point(self):
        one = torch.tensor([self.id])
        return Points(torch.as_tensor(self.x)[None], torch.zeros(1, dtype=torch.int64), one)


def labels(size):
    """(8, 8) the patch that each pixel is in."""
    rows = np.arange(8) // size
    return rows[:, None] * (rows[-1] + 1) + rows


def order(one, label, average=False):
    """Features, most relevant first; ties by the keyed words."""
    count = label.max() + 1
    values = [one.map[label == k].mean() if average else one.map[label == k].sum() for k in range(count)]
    top = max(map(abs, values))
    values = [round(v / top, 11) for v in values] if count < one.map.size or average else values
    words = (KEY / "ties").bits(torch.tensor([one.id]), 0, int(count))[0].tolist()
    return sorted(range(count), key=lambda k: (-values[k], words[k]))


def replacement(one, spec, stream, sample=0):
    def draw(kind):
        return getattr(KEY / stream / "noise", kind)(torch.tensor([one.id]), sample, (3, 8, 8))[0].double().numpy()

    if spec == "noise":
        low, high = one.x.min((1, 2), keepdims=True), one.x.max((1, 2), keepdims=True)
        return low + (high - low) * draw("uniform")
    if spec == "linear":
        return 0.01 * draw("normal")
    if spec == "mean":
        return np.broadcast_to(one.x.mean((1, 2), keepdims=True), one.x.shape)
    if isinstance(spec, Baseline):
        return blur(torch.as_tensor(one.x)[None], spec.sigma)[0].numpy()
    return blur(torch.as_tensor(one.x)[None], 10.0)[0].numpy() if spec == "blur" else np.zeros_like(one.x)


def solved(x, gone):
    """ROAD's system, assembled pixel by pixel and handed to SciPy."""
    at = {tuple(p): i for i, p in enumerate(np.argwhere(gone))}
    if not at:
        return x
    rows, columns, entries, b = [], [], [], np.zeros((len(at), len(x)))
    for (r, c), i in at.items():
        total = 0.0
        for dr, dc in itertools.product((-1, 0, 1), repeat=2):
            r2, c2 = r + dr, c + dc
            if (dr or dc) and 0 <= r2 < gone.shape[0] and 0 <= c2 < gone.shape[1]:
                weight = 1 / 12 if dr and dc else 1 / 6
                total += weight
                if gone[r2, c2]:
                    rows, columns, entries = [*rows, i], [*columns, at[r2, c2]], [*entries, -weight]
                else:
                    b[i] += weight * x[:, r2, c2]
        rows, columns, entries = [*rows, i], [*columns, i], [*entries, total]
    out = x.copy()
    out[:, gone] = spsolve(csc_matrix((entries, (rows, columns))), b).reshape(len(at), -1).T
    return out


def without(one, label, which, spec, stream, sample=0):
    gone = np.isin(label, list(which))
    other = replacement(one, spec, stream, sample)
    return np.where(gone, solved(one.x, gone) + other if spec == "linear" else other, one.x)


def heights(one, label, counts, spec, value, first="most", insert=False, average=False):
    ranked = order(one, label, average)
    ranked = ranked[::-1] if first == "least" else ranked
    return [
        one.change(without(one, label, ranked[c:] if insert else ranked[:c], spec, "removal"), value) for c in counts
    ]


def area(counts, curve):
    curve = np.array(curve)
    return float((np.diff(counts) * (curve[1:] + curve[:-1]) / 2).sum() / counts[-1])


def counted(steps, features):
    steps = features if steps is None else min(steps, features)
    return [int(features * t / steps + 1e-9) for t in range(steps + 1)]


PIXEL, COARSE = labels(1), labels(1)  # an 8 × 8 picture's default patches are its pixels


def road(first, value="change", percentages=(10, 20, 30, 40, 50, 60, 70, 80, 90)):
    counts = [int(64 * p / 100 + 1e-9) for p in percentages]
    return lambda one: np.mean(heights(one, PIXEL, counts, "linear", value, first))


def flipped(steps, spec, value, label=PIXEL, insert=False):
    counts = counted(steps, label.max() + 1)
    return lambda one: area(counts, heights(one, label, counts, spec, value, insert=insert))


def perturbed(one):
    curve = heights(one, labels(2), range(6), "noise", "score")
    return np.mean([curve[0] - height for height in curve])


def irof(one):
    count = labels(3).max() + 1
    counts = counted(None, count)
    curve = heights(one, labels(3), counts, "mean", "probability", average=True)
    return 1 - area(counts, np.array(curve) / curve[0])


def complexity(one):
    counts = counted(8, 64)
    curve = heights(one, PIXEL, counts, Baseline("blur", sigma=5.0), "score", insert=True)
    enough = [abs(h - curve[-1]) <= 0.1 * abs(curve[0] - curve[-1]) for h in curve]
    return counts[enough.index(True)] / 64


def monotone(strict):
    def twin(one):
        counts = counted(5, 16)
        curve = heights(one, labels(2), counts, "blur", "probability", "least", insert=True)
        rises = [b >= a for a, b in itertools.pairwise(curve)]
        return float(all(rises)) if strict else np.mean(rises)

    return twin


def subsets(one, size, share, draws, spec, values):
    """(a, y) of each draw."""
    label = labels(size)
    count = label.max() + 1
    a, y = [], []
    for s in range(draws):
        words = (KEY / "masks").bits(torch.tensor([one.id]), s, int(count))[0].numpy()
        which = np.argsort(words, kind="stable")[: max(1, int(count * share))]
        a.append(sum(values[label == k].sum() for k in which))
        y.append(one.output(one.x) - one.output(without(one, label, which, spec, "masks", s)))
    return np.array(a), np.array(y)


def varies(a, y, correlation):
    return correlation(a, y)[0] if np.ptp(a) > 1e-9 * np.abs(a).max() else np.nan


def faithfulness(correlation):
    return lambda one: varies(*subsets(one, 2, 0.3, 12, "blur", one.map), correlation)


def sensitivity_n(one):
    found = [varies(*subsets(one, 2, share, 9, "zero", one.map), pearsonr) for share in (0.1, 0.5)]
    return np.nan if np.isnan(found).all() else np.nanmean(found)


def infidelity(spec, signed=False):
    def twin(one):
        a, y = subsets(one, 2, 0.2, 10, spec, one.map)
        beta = (a * y).mean() / (a * a).mean()
        beta = beta if signed else max(0.0, beta)
        return ((beta * a - y) ** 2).mean() / y.var()

    return twin


def raw_infidelity(one):
    a, y = subsets(one, 2, 0.2, 10, "zero", one.raw)
    return ((a - y) ** 2).mean()


def single(one, spec, draws, label=COARSE):
    """(attributions, falls (draws, K))."""
    count = label.max() + 1
    clean = one.output(one.x)
    falls = [
        [clean - one.output(without(one, label, [k], spec, "singles", s)) for k in range(count)] for s in range(draws)
    ]
    return np.array([one.map[label == k].sum() for k in range(count)]), np.array(falls)


def estimate(correlation):
    def twin(one):
        a, y = single(one, "blur", 1, labels(2))
        return varies(a, y[0], correlation)

    return twin


def monotonicity(one):
    a, y = single(one, "noise", 2, labels(2))
    return varies(rankdata(abs(a)), rankdata((y**2).mean(0)), pearsonr)


def complete(one):
    y = one.output(one.x) - one.output(np.zeros_like(one.x))
    return abs(one.raw.sum() - y) / abs(y) if one.kind == "contribution" else np.nan


def local(one):
    errors = []
    for s in range(6):
        noise = 0.2 * (KEY / "local").normal(torch.tensor([one.id]), s, (8, 8))[0].double().numpy()
        near = one.x + noise if one.kind == "gradient" else one.x * (1 + noise)
        errors.append((one.output(one.x) + (noise * one.raw).sum() - one.output(near)) ** 2)
    return np.mean(errors) if one.kind in ("gradient", "contribution") else np.nan


@dataclass(frozen=True)
class Row:
    measure: Measure
    twin: Callable[[One], float]
    free: bool = True  # of the map's positive scale
    perfect: bool = True  # φ = w ⊙ x of a linear model with positive terms has the best value
    undefined: tuple[str, ...] = ()  # rows that have no number


ROWS = {
    "road_morf": Row(RoadMoRF(), road("most"), perfect=False),
    "road_lerf": Row(RoadLeRF(value="probability"), road("least", "probability"), perfect=False),
    "road_combined": Row(
        RoadCombined((20, 60), "accuracy"),
        lambda one: (road("least", "accuracy", (20, 60))(one) - road("most", "accuracy", (20, 60))(one)) / 2,
        perfect=False,
    ),
    "pixel_flipping": Row(PixelFlipping(9), flipped(9, "zero", "score")),
    "pixel_flipping by one": Row(
        PixelFlipping(None, "mean", "change", Patches(2)), flipped(None, "mean", "change", labels(2))
    ),
    "selectivity": Row(Selectivity(5, features=Patches(2)), flipped(5, "zero", "score", labels(2))),
    "region_perturbation": Row(RegionPerturbation(5, features=Patches(2)), perturbed, perfect=False),
    "deletion": Row(Deletion(7), flipped(7, "zero", "probability")),
    "insertion": Row(Insertion(7), flipped(7, Baseline("blur", sigma=5.0), "probability", insert=True)),
    "irof": Row(IROF(features=Patches(3)), irof),
    "effective_complexity": Row(EffectiveComplexity(steps=8), complexity),
    "monotonicity": Row(Monotonicity(True, 5, features=Patches(2)), monotone(True)),
    "monotonicity share": Row(Monotonicity(False, 5, features=Patches(2)), monotone(False)),
    "faithfulness_correlation": Row(
        FaithfulnessCorrelation(12, features=Patches(2), share=0.3), faithfulness(pearsonr), undefined=("uniform",)
    ),
    "faithfulness_correlation ranks": Row(
        FaithfulnessCorrelation(12, features=Patches(2), share=0.3, method="spearman"), faithfulness(spearmanr),
        undefined=("uniform",),
    ),
    "sensitivity_n": Row(
        SensitivityN(9, features=Patches(2), shares=(0.1, 0.5)), sensitivity_n, undefined=("uniform",)
    ),
    "infidelity": Row(Infidelity(10, features=Patches(2)), infidelity("blur")),
    "infidelity zero": Row(Infidelity(10, "zero", Patches(2)), infidelity("zero")),
    "infidelity mean": Row(Infidelity(10, "mean", Patches(2)), infidelity("mean")),
    "infidelity of either sign": Row(
        Infidelity(10, features=Patches(2), scaling="yeh"), infidelity("blur", signed=True)
    ),
    "infidelity noise": Row(Infidelity(10, "noise", Patches(2)), infidelity("noise"), perfect=False),
    "infidelity raw": Row(
        Infidelity(10, "zero", Patches(2), scaling="raw"), raw_infidelity, free=False, undefined=("ties", "uniform")
    ),
    "faithfulness_estimate": Row(
        FaithfulnessEstimate(features=Patches(2)), estimate(pearsonr), undefined=("uniform",)
    ),
    "faithfulness_estimate ranks": Row(
        FaithfulnessEstimate(features=Patches(2), method="spearman"), estimate(spearmanr), undefined=("uniform",)
    ),
    "monotonicity_correlation": Row(
        MonotonicityCorrelation(2, features=Patches(2)), monotonicity, perfect=False, undefined=("uniform",)
    ),
    "completeness": Row(Completeness(), complete, free=False, undefined=("saliency", "ties", "uniform")),
    "local_fidelity": Row(LocalFidelity(0.2, 6), local, free=False, undefined=("ties", "uniform")),
}  # fmt: skip
rows = pytest.mark.parametrize("name", ROWS)


# -- laws --------------------------------------------------------------------------------------------------------------


@rows
def test_equals_its_slow_twin(name):
    row, given = ROWS[name], task(ids=torch.tensor([4, 0, 7]))
    found = row.measure(given)
    assert found.dtype == torch.float64 and found.shape == (3, 5)
    for i, r in itertools.product(range(3), range(5)):
        one = One(
            given.points.x[i].numpy(), given.maps[i, r].numpy(), given.raw[i, r].numpy(), KINDS[r],
            int(given.points.ids[i]), TARGETS[i],
        )  # fmt: skip
        tolerance = 1e-4 if name.startswith("road") else 1e-9
        assert found[i, r].item() == pytest.approx(row.twin(one), rel=tolerance, abs=tolerance, nan_ok=True), (i, r)


@rows
def test_same_for_any_batch_order_and_chunk(name):
    ids = torch.tensor([4, 0, 7])
    measure, whole = ROWS[name].measure, ROWS[name].measure(task(ids=ids))
    torch.testing.assert_close(measure(task(ids=ids, batch=5)), whole, equal_nan=True)
    for index in ([2], [1, 0]):
        torch.testing.assert_close(measure(task(ids=ids, batch=7, index=index)), whole[index], equal_nan=True)


@rows
def test_leaves_everything_untouched(name):
    given = task()
    model = given.score.model.train()
    model.conv1.eval()
    before = [t.clone() for t in (given.points.x, given.maps, given.raw)], copy.deepcopy(model.state_dict())
    modes, state = [m.training for m in model.modules()], torch.random.get_rng_state()
    ROWS[name].measure(given)
    after = (given.points.x, given.maps, given.raw)
    assert all(torch.equal(a.nan_to_num(9), b.nan_to_num(9)) for a, b in zip(before[0], after, strict=True))
    assert modes == [m.training for m in model.modules()] and torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[1][k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@rows
def test_is_nan_only_with_a_reason(name):
    row, given = ROWS[name], task()
    expected = torch.tensor([each in row.undefined for each in NAMES])
    assert torch.equal(row.measure(given).isnan(), expected.expand(3, 5))
    broken = given.maps.clone()
    broken[1, 2, 0, 0] = torch.nan
    raw = given.raw.clone()
    raw[1, 2, 0, 0] = torch.nan
    expected = expected.repeat(3, 1)
    expected[1, 2] = True
    assert torch.equal(row.measure(replace(given, maps=broken, raw=raw, memory={})).isnan(), expected)


@rows
def test_permuting_the_rows_permutes_the_result(name):
    given, order = task(), [3, 0, 4, 2, 1]
    moved = replace(
        given, maps=given.maps[:, order], raw=given.raw[:, order], kinds=tuple(KINDS[i] for i in order), memory={}
    )
    measure = ROWS[name].measure
    torch.testing.assert_close(measure(moved), measure(given)[:, order], equal_nan=True)


@pytest.mark.parametrize("name", [name for name in ROWS if ROWS[name].free])
def test_a_positive_scale_changes_nothing(name):
    given = task()
    scaled = replace(given, maps=given.maps * torch.tensor([1e-3, 4, 7.3, 1e5, 2]).double()[:, None, None], memory={})
    measure = ROWS[name].measure
    torch.testing.assert_close(measure(scaled), measure(given), equal_nan=True)


@pytest.mark.parametrize("name", [name for name in ROWS if ROWS[name].perfect])
def test_a_perfect_map_of_a_linear_model_is_best(name):
    """f = Σ w x with w, x > 0: φ = w ⊙ x is never worse than maps made from it by noise, shuffling or chance."""
    g = torch.Generator().manual_seed(1)
    w, x = (torch.rand(2, 3, 8, 8, generator=g, dtype=torch.float64) + 0.1 for _ in range(2))
    w = w[:1].expand(2, -1, -1, -1)

    def model(rows):
        total = (rows * w[0].to(rows)).flatten(1).sum(1) / 30
        return torch.stack([total, torch.zeros_like(total)], 1)

    score, points = bound(model, x, target=0)
    perfect = (w * x / 30).sum(1)
    noisy = perfect * (0.2 + 1.6 * torch.rand(2, 8, 8, generator=g, dtype=torch.float64))
    shuffled = perfect.flatten(1)[:, torch.randperm(64, generator=g)].view(2, 8, 8)
    chance = torch.rand(2, 8, 8, generator=g, dtype=torch.float64)
    maps = torch.stack([perfect, noisy, shuffled, chance], 1)
    measure = ROWS[name].measure
    if hasattr(measure, "baseline"):
        measure = replace(measure, baseline="zero")
    if name == "irof":  # regions of one size: the order of means is that of sums
        measure = replace(measure, features=Patches(2))
    given = Task(score, points, maps, Pixels(), lambda *_: maps, KEY, kinds=("contribution",) * 4, raw=maps)
    found = measure(given) * (1 if measure.card.better == "higher" else -1)
    assert (found[:, :1] >= found[:, 1:] - 1e-12).all(), found
    if "correlation" in name or "estimate" in name or name == "sensitivity_n":
        torch.testing.assert_close(found[:, 0], torch.ones(2).double())
    if "infidelity" in name or name in ("completeness", "local_fidelity"):
        torch.testing.assert_close(found[:, 0], torch.zeros(2).double())


@rows
def test_its_card_says_everything(name):
    measure = ROWS[name].measure
    card = measure.card
    assert name.split(" ")[0] == measure.name and card.better and card.formula and card.cost
    assert "arXiv" in card.source or "doi" in card.source
    assert all(library and text for library, text in card.differences)


# -- the engine --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first, insert", list(itertools.product(("most", "least"), (False, True))))
def test_counts_are_exact_under_ties_and_orders_are_each_others_reverse(first, insert):
    shares, other = (0.1, 0.5, 0.9), {"most": "least", "least": "most"}[first]
    weights = torch.randn(64, generator=torch.Generator().manual_seed(0)).double()

    def read(weights, first, insert, shares):
        """(B, R, T): Σ weights over the features that were taken away."""
        given = task()
        classes = given.score.outputs.shape[1]
        given.score.model = lambda rows: ((rows[:, 0] == 9).flatten(1).double() @ weights)[:, None].expand(-1, classes)
        return Removal(Pixels(), imputer(9.0), shares, first, insert).curves(given)

    curve = read(torch.ones(64).double(), first, insert, shares)
    expected = torch.tensor([6, 32, 57])
    assert torch.equal(curve.score, (64 - expected if insert else expected).double().expand(3, 5, 3))
    assert torch.equal(curve.count, expected.expand(3, 3))
    here, there = read(weights, first, insert, shares), read(weights, other, not insert, (0.5,))
    torch.testing.assert_close(here.score[..., 1:2], there.score)
    assert len(here.score[..., 1].unique()) > 3  # and the sets do differ


@pytest.mark.parametrize("batch", [3, 64])
def test_each_set_of_features_is_evaluated_once(batch):
    given = task()
    maps = torch.cat([given.maps, given.maps[:, :2], torch.zeros_like(given.maps[:, :1])], 1)
    maps[1, 1] = torch.nan
    given = replace(given, maps=maps, memory={})
    given.score.batch.sizes[False] = batch
    seen = []
    given.score.model = lambda rows: (seen.append(rows.flatten(1).clone()), Small()(rows))[1]
    curve = Removal(Pixels(), imputer(9.0), 8).curves(given)
    rows = torch.cat(seen)
    assert len(rows.unique(dim=0)) == len(rows) - 2  # the inputs without anything are alike, all others differ
    most = 3 + 7 * 3 * 5  # all, and what lies between; of the eight maps two repeat others and two are constant
    assert most - 3 <= len(rows) <= most  # a map and its rounded values may meet now and then
    torch.testing.assert_close(curve.score[0, :2], curve.score[0, 5:7], rtol=0, atol=0)
    assert curve.score[1, 1].isnan().all() and curve.score[1, [0, 2, 5, 6]].isfinite().all()
    assert curve.score[:, 7].isnan().all()  # a map of zeros orders nothing


@pytest.mark.parametrize("name", [name for name, cls in MEASURES.items() if issubclass(cls, Curve)])
def test_a_map_that_orders_nothing_has_no_removal_curve(name):
    """Zero everywhere, or on everything that is taken away: the number would be that of the words that break ties."""
    given = task()
    zero = torch.zeros_like(given.maps[:, :1])
    cancelling = zero + torch.tensor([1.0, -1.0]).double().repeat(8, 4)  # every patch of 2 × 2 pixels sums to zero
    given = replace(given, maps=torch.cat([given.maps, zero, cancelling], 1), memory={})
    measure = MEASURES[name](features=Patches(2))
    numbers = measure(given)
    assert numbers[:, 5:].isnan().all() and "zero on all" in measure.undefined
    torch.testing.assert_close(numbers[:, :5], measure(task()), rtol=0, atol=0)


def test_curves_are_evaluated_once_for_all_measures_and_nothing_else():
    given = task()
    count = lambda: given.score.counts.forward  # noqa: E731
    start = count()
    PixelFlipping(7)(given)
    flipping = count() - start
    assert 0.9 < flipping / (3 * (5 * 6 + 1)) <= 1  # the first of eight steps is known, the last the same for all maps
    Deletion(7)(given), PixelFlipping(7, value="accuracy")(given)
    assert count() - start == flipping
    RoadMoRF()(given), RoadLeRF()(given)
    both = count() - start
    assert 0.9 < (both - flipping) / (3 * 5 * (9 + 9)) <= 1
    RoadCombined()(given), RoadMoRF(value="probability")(given)
    assert count() - start == both
    start = count()
    FaithfulnessCorrelation(20)(given), FaithfulnessCorrelation(20, method="spearman")(given), Infidelity(20)(given)
    assert count() - start == 3 * 20
    FaithfulnessEstimate()(given), FaithfulnessEstimate(method="spearman")(given)
    assert count() - start == 3 * (20 + 64)


def test_features_that_an_input_lacks_are_never_taken_away():
    tokens = torch.tensor([[True] * 5, [True, True, True, False, False]])
    embedded = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    seen = []

    def model(rows):
        seen.append(rows.clone())
        return torch.stack([rows.tanh().sum((1, 2)), rows.sum((1, 2))], 1)

    score, points = bound(model, embedded, target=0)
    maps = torch.tensor([[[5.0, 1, 3, 2, 4]], [[1, 3, 2, 0, 0]]]).double()
    given = Task(score, points, maps, Tokens(tokens), lambda *_: maps, KEY, raw=maps, kinds=("contribution",))
    for measure in (
        PixelFlipping(), Insertion(), Deletion(None), Selectivity(), IROF(baseline="zero"), Monotonicity(),
        RegionPerturbation(3, "zero"), EffectiveComplexity(), FaithfulnessCorrelation(12), SensitivityN(12, shares=(0.5,)),
        Infidelity(8), FaithfulnessEstimate(), MonotonicityCorrelation(baseline=7.0), Completeness(), LocalFidelity(),
    ):  # fmt: skip
        seen.clear()
        alone = measure(given.only([1]))
        together = measure(given)[1:]
        assert together.isfinite().all(), measure
        torch.testing.assert_close(alone, together)
        padded = torch.cat(seen)
        if measure.name != "completeness":  # which asks for the baseline itself
            is_second = (padded[:, 3:] == embedded[1, 3:]).flatten(1).all(1)
            is_first = ~(padded[:, :, 0] == embedded[1, :, 0]).any(1) | (padded[:, 3:] != embedded[1, 3:]).any((1, 2))
            assert (is_second | is_first).all()
    curve = PixelFlipping().curve(given)
    assert curve.count[0, -1] == 5 and curve.count[1].tolist() == [0, 0, 1, 1, 2, 3]


def test_a_table_loses_columns_and_blocks():
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    features = Columns(["a", "b", "b", "c", "c", "c"])
    score, points = bound(lambda rows: torch.stack([rows.sum(1), rows[:, 0]], 1), x, target=0)
    maps = features.reduce(x, points.owner)[:, None]
    given = Task(score, points, maps, features, lambda *_: maps, KEY, raw=maps, kinds=("contribution",))
    assert torch.allclose(FaithfulnessEstimate()(given), torch.ones(3, 1).double())
    assert torch.allclose(FaithfulnessCorrelation(20, share=0.4)(given), torch.ones(3, 1).double())
    expected = torch.stack([x.sum(1), x[:, :0].sum(1)], 1)
    first = PixelFlipping(None).curve(given)
    torch.testing.assert_close(first.score[:, 0, [0, -1]], expected)
    drawn = PixelFlipping(baseline=Baseline.samples(x)).curve(given).score[:, 0, -1]
    torch.testing.assert_close(drawn, x.sum(1).mean().expand(3))
    with pytest.raises(InputError, match="for images"):
        RoadMoRF()(given)


@pytest.mark.parametrize(
    "measure", [PixelFlipping(3), Deletion(3), Insertion(3), Monotonicity(steps=3), RegionPerturbation(3)]
)
def test_curves_against_a_data_set_are_means_over_its_rows(measure):
    """Over all of few rows, over eight of many: no row decides, and no other input does."""
    x, rows = images(2), images(5, seed=9)
    score, points = bound(Small(), x, target=[1, 0])
    maps = attributions(score, points, Pixels())
    given = Task(score, points, maps, Pixels(), lambda *_: maps, KEY)
    each = [replace(measure, baseline=row).curve(given) for row in rows]
    found = replace(measure, baseline=rows).curve(given)
    for name in ("score", "probability", "accuracy"):
        torch.testing.assert_close(getattr(found, name), torch.stack([getattr(one, name) for one in each]).mean(0))
    many = replace(measure, baseline=images(40, seed=9))
    both, alone = many.curve(given), many.curve(given.only([1]))
    torch.testing.assert_close(both.score[1:], alone.score)
    score.counts.forward = 0
    many.curve(given.only([0]))
    first = score.counts.forward
    replace(measure, baseline=rows[0]).curve(given.only([0]))
    assert first == 8 * (score.counts.forward - first)


def test_slic_segments_stay_with_their_input():
    pytest.importorskip("skimage")
    x = images(2).repeat_interleave(4, 2).repeat_interleave(4, 3)
    score, points = bound(Small(), x, target=[1, 0])
    maps = attributions(score, points, Pixels())
    given = Task(score, points, maps, Pixels(), lambda *_: maps, KEY)
    torch.testing.assert_close(IROF(12)(given.only([1])), IROF(12)(given)[1:])


def test_probabilities_come_from_logits_probabilities_or_one_logit():
    x = images(2)
    logits = Small()(x).detach()
    maps = torch.rand(2, 1, 8, 8).double()
    for model, target, expected in (
        (Small(), [1, 0], logits.softmax(1)[[0, 1], [1, 0]]),
        (lambda rows: Small()(rows).softmax(1), [1, 0], logits.softmax(1)[[0, 1], [1, 0]]),
        (lambda rows: Small()(rows)[:, :1], None, logits[:, 0].sigmoid()),
    ):
        score, points = bound(model, x, target=target)
        given = Task(score, points, maps, Pixels(), lambda *_: maps, KEY)
        curve = PixelFlipping(2).curve(given)
        torch.testing.assert_close(curve.probability[:, 0, 0], expected)
        assert (curve.accuracy[:, 0, 0] == 1).all() or target == [1, 0]
    score, points = bound(lambda rows: Small()(rows)[:, :1], x, target=None, kind="output")
    given = Task(score, points, maps, Pixels(), lambda *_: maps, KEY)
    assert Deletion()(given).isnan().all() and PixelFlipping()(given).isfinite().all()


def test_constant_scores_have_no_correlation():
    x = images(2)
    score, points = bound(lambda rows: rows.flatten(1)[:, :2] * 0 + 1, x, target=0)
    maps = torch.rand(2, 1, 8, 8).double()
    given = Task(score, points, maps, Pixels(), lambda *_: maps, KEY, kinds=("contribution",), raw=maps)
    for measure in (
        FaithfulnessCorrelation(8), SensitivityN(8), Infidelity(8), FaithfulnessEstimate(), MonotonicityCorrelation(1),
        Monotonicity(), EffectiveComplexity(), Completeness(),
    ):  # fmt: skip
        assert measure(given).isnan().all(), measure
        assert measure.undefined != Measure.undefined


def test_infidelity_is_the_metrics_on_the_same_masks():
    given = task()
    metric = metrics.Infidelity(Patches(2), 0.2, "mean")
    found = metric.measure(given, range(10), 10)
    mine = Infidelity(10, "mean", Patches(2)).responses(given, 0.2)
    torch.testing.assert_close(mine.a, found.a)
    torch.testing.assert_close(mine.y, found.y)


# -- imputation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 8), (33, 20), (5, 64), (1, 9), (2, 2)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_inpainting_solves_the_papers_system(shape, share):
    g = torch.Generator().manual_seed(3)
    x = torch.randn(3, 2, *shape, generator=g, dtype=torch.float64)
    count = min(int(share * shape[0] * shape[1]), shape[0] * shape[1] - 1)
    scores = torch.rand(3, *shape, generator=g)
    scores[1] = torch.arange(shape[0] * shape[1]).view(shape)  # a hole in one piece
    missing = (scores.flatten(1).argsort(1).argsort(1) < count).view(3, *shape)
    found = inpaint(x, missing, 1e-13)
    expected = np.stack([solved(a.numpy(), m.numpy()) for a, m in zip(x, missing, strict=True)])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    assert torch.equal(found.masked_select(~missing[:, None]), x.masked_select(~missing[:, None]))
    torch.testing.assert_close(inpaint(x[1:2], missing[1:2], 1e-13), found[1:2], rtol=0, atol=1e-12)
    single = inpaint(x.float(), missing)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single, expected, rtol=0, atol=2e-3)


def test_inpainting_nothing_and_everything():
    x = images(2)
    none, every = torch.zeros(2, 8, 8, dtype=torch.bool), torch.ones(2, 8, 8, dtype=torch.bool)
    assert torch.equal(inpaint(x, none), x)
    torch.testing.assert_close(inpaint(x, every), x.mean((2, 3), keepdim=True).expand_as(x))


def test_noise_is_keyed_and_within_limits():
    points = task(count=2).points
    whole = Noise().reference(points, range(3), KEY)
    assert torch.equal(Noise().reference(points[1:], range(1, 2), KEY), whole[4:5])
    low, high = points.x.amin((2, 3), keepdim=True), points.x.amax((2, 3), keepdim=True)
    parts = whole.unflatten(0, (2, 3))
    assert (parts >= low[:, None]).all() and (parts <= high[:, None]).all() and parts.std() > 0.5
    assert Noise(0.0, 1.0).reference(points, range(1), KEY).aminmax().max <= 1


def test_imputation_refuses_what_it_cannot_do():
    with pytest.raises(InputError, match="over all channels"):
        RoadMoRF(features=Elements())(task())
    assert RoadMoRF()(task(Elements())).isfinite().all()  # maps of elements: pixels are taken away
    assert isinstance(imputer("linear"), NoisyLinear)
    for make in (
        lambda: RoadMoRF(percentages=(120,)), lambda: PixelFlipping(value="logit"), lambda: PixelFlipping(0)(task()),
        lambda: FaithfulnessCorrelation(1), lambda: Infidelity(share=0.0), lambda: Infidelity(scaling="best"),
        lambda: SensitivityN(shares=()), lambda: FaithfulnessEstimate(draws=0), lambda: LocalFidelity(radius=0.0),
        lambda: RegionPerturbation(0), lambda: imputer("middle"), lambda: Completeness()(replace(task(), raw=None)),
    ):  # fmt: skip
        with pytest.raises(InputError):
            make()


def test_segments_of_uneven_size_are_ordered_by_their_mean():
    label = torch.zeros(8, 8, dtype=torch.int64)
    label[:2, :2] = 1
    seen = []
    given = task()
    given.score.model = lambda rows: (seen.append(rows.clone()), Small()(rows))[1]
    maps = torch.where(label == 1, 2.0, 1.0).double().expand(3, 1, 8, 8)  # the large one has the larger sum
    IROF(features=Segments(label), baseline=9.0)(replace(given, maps=maps))
    gone = torch.cat(seen)[:, 0] == 9
    some = gone.flatten(1).any(1) & ~gone.flatten(1).all(1)
    assert torch.equal(gone[some], (label == 1).expand(3, 8, 8))
