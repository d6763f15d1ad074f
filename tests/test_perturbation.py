"""The perturbation methods: their laws on games whose values are known, agreement with other libraries, black boxes."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from nets import Small, bound, images
from twins import SEED

import consilience as cs
from consilience.explainers import Stack
from consilience.explainers.perturbation import FeatureAblation, Occlusion
from consilience.explainers.rise import RISE
from consilience.explainers.shapley import KernelSHAP, ShapleySampling
from consilience.explainers.surrogates import LIME, MAPLE
from consilience.features.base import Elements
from consilience.features.images import Patches, Pixels, Segments, coarse
from consilience.perturb.baseline import Baseline
from consilience.perturb.coalitions import Halves, Kernel
from consilience.perturb.games import ranks
from consilience.perturb.kernel_design import budgeted, counts, design_weights
from consilience.perturb.points import Points
from consilience.perturb.soft_masks import Grids
from consilience.statistics.keys import Key
from consilience.surrogates.lime_maple import Maple, lime_tabular, maple
from consilience.surrogates.linear_fits import lasso, moments, predict, ridge

WEIGHTS = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, -1.0, 2.0]).double()
KEY = Key(7, "perturbation")
X = torch.randn(2, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def linear(x):
    return x @ WEIGHTS[:, None] + 5


def pairwise(x):
    """Single and pairwise effects; column 4 is a dummy, columns 0 and 5 play the same part."""
    return x[:, :1] * x[:, 5:6] + x[:, :1] + x[:, 5:6] + 2 * x[:, 1:2] * x[:, 2:3] - x[:, 3:4] ** 2 + x[:, 6:7]


def odd(x):
    """Effects of every order, of columns 0 to 3 alike; column 4 is a dummy."""
    return torch.tanh(x[:, :4].sum(1, keepdim=True)) + x[:, 5:6].exp() * x[:, 6:7]


def attribute(explainer, model, x=X, target=None, **options):
    options.setdefault("kind", "output")  # games have one output, which is no logit of two classes
    return Stack([explainer], SEED).attribute(*bound(model, x, target, **options))[:, 0]


SHAPLEY = [KernelSHAP(), KernelSHAP(40), ShapleySampling(2), ShapleySampling(3), ShapleySampling(25)]
ADDITIVE = [*SHAPLEY, FeatureAblation(), Occlusion(1), LIME(200, ridge=1e-9)]
label = lambda e: f"{e.name}-{getattr(e, 'n_samples', '')}"  # noqa: E731


# -- laws --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("explainer", ADDITIVE, ids=label)
def test_a_linear_models_values_are_known(explainer):
    torch.testing.assert_close(attribute(explainer, linear), X * WEIGHTS, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("explainer", [KernelSHAP(), KernelSHAP(40), ShapleySampling(2), ShapleySampling(6)], ids=label)
def test_pairs_are_exact_for_pairwise_games(explainer):
    """A coalition and its complement, or an order and its reverse, share every pairwise effect evenly."""
    expected = X.clone()
    expected[:, 0] += X[:, 0] * X[:, 5] / 2
    expected[:, 5] += X[:, 0] * X[:, 5] / 2
    expected[:, 1] = expected[:, 2] = X[:, 1] * X[:, 2]
    expected[:, 3], expected[:, 4] = -(X[:, 3] ** 2), 0
    torch.testing.assert_close(attribute(explainer, pairwise), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("explainer", SHAPLEY, ids=label)
def test_efficiency(explainer):
    """Σφ = f(x) − f(b), whatever the number of samples."""
    found = attribute(explainer, odd, max_batch=3)
    torch.testing.assert_close(found.sum(1), (odd(X) - odd(torch.zeros_like(X)))[:, 0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("explainer", [KernelSHAP(), ShapleySampling(4), FeatureAblation()], ids=label)
def test_a_dummy_gets_nothing(explainer):
    assert attribute(explainer, odd)[:, 4].abs().max() < 1e-12


def test_symmetry():
    x = X.clone()
    x[:, :4] = x[:, :1]
    found = attribute(KernelSHAP(), odd, x)
    torch.testing.assert_close(found[:, :4], found[:, :1].expand(-1, 4), rtol=1e-9, atol=1e-12)


# -- slow twins, and the coalitions of KernelSHAP -----------------------------------------------------------------------


def enumerated(f, x, baseline):
    """Shapley values of one input by their definition: the mean marginal contribution over all sets of the others."""
    count = len(x)
    value = {}
    for there in itertools.product([False, True], repeat=count):
        value[there] = float(f(torch.where(torch.tensor(there), x, baseline)[None]).squeeze())
    found = torch.zeros(count, dtype=torch.float64)
    for there, without in value.items():
        size = sum(there)
        for a in range(count):
            if not there[a]:
                weight = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
                found[a] += weight * (value[(*there[:a], True, *there[a + 1 :])] - without)
    return found


@pytest.mark.parametrize("baseline", [0.0, 0.7])
def test_shapley_values_by_enumeration(baseline):
    row = torch.full((7,), baseline, dtype=torch.float64)
    expected = torch.stack([enumerated(odd, x, row) for x in X])
    torch.testing.assert_close(attribute(KernelSHAP(baselines=baseline), odd), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("features", [2, 3, 5, 8, 13, 14, 30])
@pytest.mark.parametrize("budget", [None, 2, 8, 60, 61, 98, 400])
def test_coalitions_come_by_size_in_pairs_and_never_twice(features, budget):
    if budget is not None and budget < min(2 * (features - 1), 2**features - 2):
        return
    taken, weights = Kernel(budget).coalitions(KEY, features), design_weights(features, budget)
    assert len(taken) == len(weights) == budgeted(features, budget)
    assert budget is None or len(taken) <= budget
    assert len(taken.unique(dim=0)) == len(taken) and not taken.all(1).any() and taken.any(1).all()
    assert torch.equal(taken[1::2], ~taken[::2])
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0).double())
    # Enough to tell all features apart: with the sum known, A − 1 differences are left.
    there = (~taken).double()
    assert int(torch.linalg.matrix_rank(there - there.mean(1, keepdim=True))) == features - 1
    sizes = taken.sum(1).minimum(features - taken.sum(1))
    number = [int((sizes == size).sum()) // 2 for size in range(1, features // 2 + 1)]
    assert number[0] == min(features if features > 2 else 1, len(taken) // 2)  # single features come first
    if len(taken) == 2**features - 2:
        kernel = [(features - 1) / (math.comb(features, int(s)) * int(s) * (features - int(s))) for s in taken.sum(1)]
        torch.testing.assert_close(weights, torch.tensor(kernel).double() / sum(kernel))


def test_sizes_that_fit_are_listed_whole():
    whole = {size: math.comb(12, size) for size in (1, 2, 3)}
    assert counts(12, 2072).items() >= whole.items() and sum(counts(12, 2072).values()) == 1036
    assert counts(50, 98) == {1: 49} and counts(4, 14) == {1: 4, 2: 3} and counts(1, 0) == {}


@pytest.mark.slow
@pytest.mark.parametrize("features", [12, 13, 14, 20])
def test_kernel_shap_is_as_near_the_shapley_values_as_shaps(features):
    """The error at our default and at shap's 2 A + 2048, over 24 games; the values are of all coalitions, or of 65 536."""
    shap = pytest.importorskip("shap")
    ours, theirs = [], []
    for seed in range(24):
        drawn = np.random.default_rng(seed)
        inner, outer = drawn.normal(size=(features, 8)) / 2, drawn.normal(size=8)
        f = lambda a, inner=inner, outer=outer: np.tanh(a @ inner) @ outer + a[:, 0] * a[:, 1] * a[:, 2]  # noqa: E731
        x, base = drawn.normal(size=(1, features)), drawn.normal(size=features)
        game = lambda rows, f=f: torch.from_numpy(f(rows.numpy()))[:, None]  # noqa: E731
        at, origin = torch.from_numpy(x), torch.from_numpy(base)
        exact = attribute(KernelSHAP(2**16, baselines=origin), game, at)
        found = attribute(KernelSHAP(baselines=origin), game, at)
        np.random.seed(seed)  # noqa: NPY002
        other = shap.KernelExplainer(f, base[None]).shap_values(x, l1_reg=0, silent=True)
        ours.append(float((found - exact).norm()))
        theirs.append(float((torch.from_numpy(other) - exact).norm()))
    ratio = np.exp(np.mean(np.log(np.array(ours) / np.array(theirs))))
    assert ratio <= 1, ratio  # of shap's, with 3/5 of its coalitions


def test_shapley_sampling_converges_to_the_exact_values():
    exact = attribute(KernelSHAP(), odd)
    few, many = ((attribute(ShapleySampling(n), odd) - exact).norm() for n in (8, 800))
    assert many < 0.2 * few and many < 0.02 * exact.norm()


DATA = torch.randn(5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_an_order_takes_a_row_of_the_data():
    """Štrumbelj & Kononenko: the mean over orders, each with its own baseline. Five orders meet five rows, each once."""
    for batch in (64, 3):
        found = attribute(ShapleySampling(5, baselines=Baseline.samples(DATA)), odd, max_batch=batch)
        torch.testing.assert_close(found.sum(1), (odd(X) - odd(DATA).mean(0))[:, 0])
    found = attribute(ShapleySampling(10, baselines=Baseline.samples(DATA)), linear)
    torch.testing.assert_close(found, (X - DATA.mean(0)) * WEIGHTS)


@pytest.mark.parametrize("rows", [2, 3, 10, 97])
def test_rows_are_drawn_without_replacement_by_the_inputs_id(rows):
    data = torch.arange(float(rows))[:, None]
    points = Points(torch.zeros(3, 1), torch.arange(3), torch.tensor([4, 9, 11]), 3)
    drawn = Baseline.samples(data).drawn(points, range(7, 7 + rows), KEY).view(3, rows)
    assert torch.equal(drawn.sort(1)[0], data[:, 0].expand(3, -1))
    alone = Baseline.samples(data).drawn(points[[1]], range(8, 8 + rows - 1), KEY)[:, 0]
    assert torch.equal(alone, drawn[1, 1:])
    # Few draws are spread over the data: no gap is larger than twice the even one.
    few = drawn[0, : max(2, rows // 3)].sort()[0]
    assert rows < 10 or few.diff().max() <= 2 * rows / len(few)


@pytest.mark.parametrize("method", [FeatureAblation(), KernelSHAP(), KernelSHAP(40), ShapleySampling(10)], ids=label)
def test_a_data_set_is_averaged_over(method):
    """Against a data set the game is v(S) = E f(x_S, b), exactly where all its rows are met."""
    given = replace(method, baselines=DATA)
    each = torch.stack([attribute(replace(method, baselines=row), pairwise) for row in DATA])
    found = attribute(given, pairwise)
    if method.name != "shapley_sampling":
        torch.testing.assert_close(found, each.mean(0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(attribute(given, linear), (X - DATA.mean(0)) * WEIGHTS)
    if method.complete:
        torch.testing.assert_close(found.sum(1), (pairwise(X) - pairwise(DATA).mean(0))[:, 0])


def test_a_large_data_set_is_met_in_part():
    """As many rows as fit for each coalition, others for each pair: better than these rows for all."""
    data = torch.randn(3000, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    method = KernelSHAP(60, baselines=data)
    each = 2**15 // 60
    assert method.design.count(7, 3000) == 1 + 3000 + 60 * each
    assert Stack([method]).rows((7,))["forward"] == 1 + 3000 + 60 * each
    found = attribute(method, linear)
    torch.testing.assert_close(found.sum(1), (linear(X) - linear(data).mean(0))[:, 0])
    expected = (X - data.mean(0)) * WEIGHTS
    shared = [attribute(replace(method, baselines=part), linear) - expected for part in data.split(each)[:5]]
    assert (found - expected).square().mean() < torch.stack(shared).square().mean()


def test_features_that_an_input_lacks_are_never_counted():
    """In a batch with an input of more segments, each input's values are those it has alone."""
    labels = torch.stack([torch.arange(8).clamp(max=4).repeat(8, 1), torch.arange(8).repeat(8, 1) // 3])
    x, model = images(2), Small()
    for make in (
        lambda f: FeatureAblation(f), lambda f: LIME(40, f), lambda f: LIME(40, f, l1=0.01), lambda f: KernelSHAP(30, f),
        lambda f: ShapleySampling(2, f),
    ):  # fmt: skip
        both = attribute(make(Segments(labels, batched=True)), model, x, target=1)
        assert both.isfinite().all()
        total = Segments(labels, batched=True).reduce(both, torch.arange(2))
        assert total.shape == (2, 5) and not total[1, 3:].any()
    alone = attribute(KernelSHAP(30, Segments(labels[1])), model, x[1:], target=1)
    both = attribute(KernelSHAP(30, Segments(labels, batched=True)), model, x, target=1)
    torch.testing.assert_close(alone[0], both[1])


def test_values_are_shared_by_a_features_elements():
    x, model = images(), Small()
    found = attribute(FeatureAblation(), model, x, target=1)
    patches = coarse((3, 8, 8))
    owner = torch.arange(3)
    torch.testing.assert_close(patches.spread(patches.reduce(found, owner), owner, (3, 8, 8)), found)


# -- soft masks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 16, 20), (2, 30)])
def test_rise_masks_have_the_expectation_they_are_divided_by(shape):
    _, points = bound(lambda x: x.flatten(1)[:, :1], torch.zeros(1, *shape), None)
    cloud = Grids(Baseline("zero"), 4, 0.3).draw(points, range(3000), Key(0, "rise"), 3000)
    assert cloud.masks.shape == (3000, *shape[1:]) and cloud.masks.amin() >= 0 and cloud.masks.amax() <= 1
    torch.testing.assert_close((1 - cloud.masks).mean(0), torch.full(shape[1:], 0.3), rtol=0, atol=0.035)


def test_rise_finds_where_a_model_looks():
    looks = lambda x: x[:, 0, 2:4, 9:12].mean((1, 2))[:, None]  # noqa: E731
    found = attribute(RISE(500, baselines="zero"), looks, torch.ones(1, 1, 16, 16))[0, 0]
    level = found[8:].mean()
    assert 1.25 < found[2:4, 9:12].mean() / level < 2  # E[M²] / E[M]², of masks between soft and hard; 1 far from there
    assert found.argmax() // 16 in (2, 3) and found.argmax() % 16 in (9, 10, 11)


# -- agreement ---------------------------------------------------------------------------------------------------------


def test_captum_ablation_and_occlusion():
    captum = pytest.importorskip("captum.attr")
    model, x = Small(), images()
    target = torch.tensor([1, 0, 3])
    mask = (torch.arange(8)[:, None] // 4 * 2 + torch.arange(8) // 4).expand(1, 3, 8, 8)
    theirs = captum.FeatureAblation(model).attribute(x, 0.2, target, feature_mask=mask)
    ours = attribute(FeatureAblation(Patches(4), 0.2), model, x, target)
    torch.testing.assert_close(ours * 48, theirs.detach(), rtol=1e-9, atol=1e-12)
    theirs = captum.Occlusion(model).attribute(x, (3, 4, 2), (3, 2, 2), 0.2, target)
    ours = attribute(Occlusion((4, 2), 2, Pixels(), 0.2), model, x, target)
    torch.testing.assert_close(ours.float() * 24, theirs.detach())


def test_captum_shapley_values():
    captum = pytest.importorskip("captum.attr")
    theirs = captum.ShapleyValues(lambda x: odd(x)[:, 0]).attribute(
        X[:1], 0.1, feature_mask=torch.tensor([[0, 0, 0, 1, 1, 2, 3]])
    )
    groups = Segments(torch.tensor([0, 0, 0, 1, 1, 2, 3]))
    ours = attribute(KernelSHAP(features=groups, baselines=0.1), odd)[0]
    torch.testing.assert_close(ours * torch.tensor([3, 3, 3, 2, 2, 1, 1]), theirs[0].double(), rtol=1e-5, atol=1e-6)
    theirs = captum.ShapleyValueSampling(lambda x: pairwise(x)[:, 0]).attribute(X, n_samples=400)
    torch.testing.assert_close(attribute(ShapleySampling(2), pairwise), theirs.double(), rtol=0, atol=0.25)


def test_shap_kernel_explainer():
    shap = pytest.importorskip("shap")
    base = np.full((1, 7), 0.1)
    theirs = shap.KernelExplainer(lambda x: odd(torch.from_numpy(x))[:, 0].numpy(), base)
    found = theirs.shap_values(X.numpy(), l1_reg=0, silent=True)
    ours = attribute(KernelSHAP(baselines=0.1), odd)
    torch.testing.assert_close(ours, torch.from_numpy(found), rtol=1e-6, atol=1e-8)


class Fed(np.random.RandomState):
    """A random state that gives what it is fed."""

    def __init__(self, numbers):
        super().__init__(0)
        self.numbers = np.asarray(numbers)

    def randint(self, *_, **__):
        return self.numbers.reshape(-1)

    def normal(self, *_, **__):
        return self.numbers.reshape(-1)


def test_lime_package_for_images():
    """Fed our masks, the package gives our number: kernel, ridge and intercept are the same."""
    lime = pytest.importorskip("lime.lime_image")
    labels = torch.tensor([0, 1, 1, 2, 3, 3, 4, 5]).repeat(8, 1)
    model, x = Small(), images(1)
    _, points = bound(model, x, 2)
    key = Key(SEED, "explainer/coalitions")
    gone = Halves(50).gone(key, 6, 1, torch.arange(50))
    rank = ranks(key / "order", points, torch.ones(1, 6, dtype=torch.bool))[0]
    package = lime.LimeImageExplainer(random_state=Fed((~gone[:, rank]).long()))
    run = lambda rows: model(torch.from_numpy(rows).permute(0, 3, 1, 2)).detach().numpy()  # noqa: E731
    found = package.explain_instance(
        x[0].permute(1, 2, 0).numpy(), run, [2], 0.3, None, num_samples=50, segmentation_fn=lambda _: labels.numpy(),
        random_seed=0,
    )  # fmt: skip
    theirs = torch.tensor([weight for _, weight in sorted(found.local_exp[2])])
    features = Segments(labels)
    ours = features.reduce(attribute(LIME(50, features, 0.3), model, x, target=2), torch.zeros(1).long())
    torch.testing.assert_close(ours[0], theirs.double(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("around", ["mean", "x"])
def test_lime_package_for_tables(around):
    lime = pytest.importorskip("lime.lime_tabular")
    data = 3 + torch.randn(50, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * torch.arange(1, 8)
    key = Key(5, "lime")
    score, points = bound(odd, X, None)
    ours = lime_tabular(score, points, data, key, n_samples=300, around=around)
    for i in range(2):
        noise = key.normal(torch.full((300,), i), torch.arange(300), (7,), torch.float64)
        package = lime.LimeTabularExplainer(
            data.numpy(), mode="regression", discretize_continuous=False, feature_selection="none",
            sample_around_instance=around == "x", random_state=Fed(noise),
        )  # fmt: skip
        found = package.explain_instance(
            X[i].numpy(), lambda x: odd(torch.from_numpy(x))[:, 0].numpy(), num_samples=300
        )
        slopes = torch.tensor([weight for _, weight in sorted(found.local_exp[1])]).double()
        sigma = data.std(0, correction=0)
        torch.testing.assert_close(ours[i, 1:] * sigma, slopes, rtol=1e-8, atol=1e-10)
        level = ours[i, 0] + (ours[i, 1:] * data.mean(0)).sum()
        torch.testing.assert_close(level, torch.tensor(found.intercept[1]).double(), rtol=1e-8, atol=1e-10)


# -- surrogates --------------------------------------------------------------------------------------------------------


def problem(samples=60, columns=9):
    keyed = torch.Generator().manual_seed(2)
    rows = 4 + torch.randn(3, samples, columns, generator=keyed, dtype=torch.float64)
    weights = torch.rand(3, samples, generator=keyed, dtype=torch.float64)
    return rows, weights, torch.randn(3, samples, generator=keyed, dtype=torch.float64) + rows[..., 0]


@pytest.mark.parametrize("samples, penalty", [(60, 0.5), (60, 1e-6), (6, 0.1)])
def test_ridge_and_lasso_agree_with_scikit_learn(samples, penalty):
    linear_model = pytest.importorskip("sklearn.linear_model")
    rows, weights, values = problem(samples)
    gram, cross = (
        sum(parts)
        for parts in zip(*(moments(rows[:, s::2], weights[:, s::2], values[:, s::2]) for s in (0, 1)), strict=True)
    )
    for ours, make in (
        (ridge(gram, cross, penalty), linear_model.Ridge(penalty)),
        (lasso(gram, cross, penalty), linear_model.Lasso(penalty, tol=1e-14, max_iter=200000)),
    ):
        for i in range(3):
            theirs = make.fit(rows[i].numpy(), values[i].numpy(), weights[i].numpy())
            torch.testing.assert_close(ours[i, 1:], torch.from_numpy(theirs.coef_), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(ours[i, 0].item(), float(theirs.intercept_), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(
                predict(ours[i : i + 1], rows[i : i + 1])[0].numpy(),
                theirs.predict(rows[i].numpy()),
                rtol=1e-5,
                atol=1e-5,
            )


def test_an_input_does_not_wait_for_the_others_lasso():
    rows, weights, values = problem()
    values[1] *= 1e6
    gram, cross = moments(rows, weights, values)
    assert torch.equal(lasso(gram, cross, 0.1)[0], lasso(gram[:1], cross[:1], 0.1)[0])


def test_lime_tabular_of_a_linear_score_and_shared_samples():
    data = torch.randn(80, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    score, points = bound(linear, X, None, max_batch=7)
    found = lime_tabular(score, points, data, Key(0, "lime"), n_samples=200, penalty=1e-9)
    torch.testing.assert_close(found[:, 1:], WEIGHTS.expand(2, -1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[:, 0], torch.full((2,), 5.0).double(), rtol=1e-6, atol=1e-6)
    before = score.counts.forward
    lime_tabular(score, points[torch.tensor([0, 1, 0, 1, 0])], data, Key(0, "lime"), n_samples=200)
    assert score.counts.forward - before == 5 + 2 * 199  # an input's samples around the mean are evaluated once
    with pytest.raises(cs.InputError, match="data: rows of 3 columns"):
        lime_tabular(score, points, data[:, :3], Key(0, "lime"))


def table(rows=300):
    pytest.importorskip("sklearn")
    return torch.randn(rows, 7, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


def test_maple_chooses_its_columns_by_the_validation_error():
    from sklearn.linear_model import Ridge

    data, check = table(), table(20) + 0.1
    settings = Maple(trees=10)
    values = lambda x: odd(x)[:, 0]  # noqa: E731
    forest = settings.fit(data, values(data), Key(0, "maple"), (check, values(check)))
    whole = settings.fit(data, values(data), Key(0, "maple"), (check, values(check)))
    everything = Maple(trees=10, columns=7).fit(data, values(data), Key(0, "maple"))
    near, errors = everything.weights(check), []
    for count in range(1, 8):
        used, wrong = everything.columns[:count].numpy(), 0.0
        for i in range(20):
            local = Ridge(0.001).fit(data[:, used].numpy(), values(data).numpy(), near[i].numpy())
            wrong += (local.predict(check[i : i + 1, used].numpy())[0] - values(check)[i].item()) ** 2
        errors.append(wrong)
    assert len(forest.columns) == 1 + int(np.argmin(errors)) and torch.equal(forest.columns, whole.columns)
    assert 1 < len(forest.columns) and 4 not in forest.columns[:3]  # the dummy is not among the first


def test_maple_is_the_package_in_shap_with_its_forest():
    module = pytest.importorskip("shap.explainers.other._maple")
    data = table(120)
    values = odd(data)[:, 0]
    ours = Maple(trees=10, columns=7).fit(data, values, Key(0, "maple"))
    theirs = module.MAPLE(data.numpy(), values.numpy(), data[:9].numpy(), values[:9].numpy(), fe=ours.grown)
    theirs.retain, theirs.X = 7, data.numpy()
    for i in range(2):
        expected = theirs.explain(X[i].numpy())
        torch.testing.assert_close(ours.weights(X)[i], torch.from_numpy(expected["weights"]))
        torch.testing.assert_close(ours.coefficients(X)[i], torch.from_numpy(expected["coefs"]), rtol=1e-6, atol=1e-8)


def test_maple_learns_each_target_once_and_a_changed_model_anew():
    data = table()
    model = torch.nn.Linear(7, 3).double()
    explainer = MAPLE(data, forest=Maple(trees=5, penalty=1e-9))
    score, points = bound(model, X, target=[0, 2])
    first = Stack([explainer]).attribute(score, points)[:, 0]
    torch.testing.assert_close(first, model.weight[[0, 2]].detach(), rtol=1e-5, atol=1e-6)
    before = score.counts.forward
    Stack([explainer]).attribute(score, points)
    assert score.counts.forward - before == 2 * 16
    with torch.no_grad():
        model.weight *= 2
    torch.testing.assert_close(Stack([explainer]).attribute(score, points)[:, 0], 2 * first, rtol=1e-5, atol=1e-6)


def test_maple_predicts_what_it_learns():
    data = table()
    score, points = bound(odd, X, None)
    found = maple(score, points, data, Key(0, "maple"), Maple(trees=20), validation=table(30))
    assert found.shape == (2, 8)
    assert (predict(found, X[:, None])[:, 0] - odd(X)[:, 0]).abs().max() < odd(data).std()


# -- black boxes -------------------------------------------------------------------------------------------------------


def test_numpy_callables_through_explain():
    linear_model = pytest.importorskip("sklearn.linear_model")
    data = table().numpy()
    labels = (data[:, 0] + data[:, 1] * data[:, 2] > 0).astype(int)
    classifier = linear_model.LogisticRegression().fit(data, labels)
    methods = [
        FeatureAblation(),
        Occlusion(1),
        LIME(100),
        KernelSHAP(),
        ShapleySampling(4),
        MAPLE(data, forest=Maple(trees=5)),
    ]
    result = cs.explain(
        classifier.predict_proba, data[:3], target=1, methods=methods, baselines=data.mean(0), fit_draws=3, fresh_draws=3,
        resolved_draws=0,
    )  # fmt: skip
    assert not result.failed and result.attribution.isfinite().all() and result.counts.gradient == 0
    margin = cs.explain(
        classifier.decision_function, data[:3], methods=methods, fit_draws=3, fresh_draws=3, scale="none"
    )
    expected = torch.from_numpy(data[:3] * classifier.coef_)
    for name in ("feature_ablation", "kernel_shap", "shapley_sampling"):
        torch.testing.assert_close(margin[name], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "explainer, message",
    [
        (LIME(features=Pixels()), "lime solves a system in all features, and 1600 .* more than 1024; .*Patches"),
        (KernelSHAP(features=Elements()), "kernel_shap solves a system in all features, and 4800 .*Segments"),
        (KernelSHAP(20, features=Patches(8)), "20 coalitions do not determine 25 Shapley values; .* at least 48"),
        (Occlusion(features=Segments(torch.arange(40).repeat(40, 1))), "segments have no order"),
        (Occlusion((1, 2, 3)), "window: a positive integer, or one for each of the 2 axes"),
        (Occlusion(2, 3), "stride: 3 is more than the window, 2"),
        (MAPLE(), "maple fits a forest to data; give MAPLE"),
        (MAPLE(torch.zeros(9, 5)), "data: at least 4 rows of shape"),
    ],
)
def test_what_cannot_work_says_why(explainer, message):
    score, points = bound(lambda x: x.mean((2, 3)), torch.zeros(1, 3, 40, 40), target=0)
    with pytest.raises(cs.InputError, match=message):
        Stack([explainer]).attribute(score, points)


def test_settings_that_cannot_be_meant():
    for make, message in (
        (lambda: LIME(l1=-1), "LIME: l1 is a number, at least 0; got -1"),
        (lambda: RISE(keep=0), "RISE: keep is a number, above 0, at most 1; got 0"),
        (lambda: ShapleySampling(0).need, "n_samples"),
        (lambda: attribute(Occlusion(), linear), "have no order"),
    ):
        with pytest.raises(cs.InputError, match=message):
            make()


@pytest.mark.parametrize("cls", [FeatureAblation, Occlusion, RISE, LIME, MAPLE, KernelSHAP, ShapleySampling])
def test_cards_are_complete(cls):
    assert cls.card.formula and cls.card.source and cls.card.cost and cls.card.perturbation and cls.card.differences


def test_lime_at_the_three_sparsities_of_agg():
    """AGG §5.3: without L1 every feature gets a coefficient; with .01 those below about .04 vanish, with .1 those below .4."""
    effects = torch.tensor([2.0, 1.0, 0.6, 0.2, 0.1, 0.08, 0.02, 0.01], dtype=torch.float64)
    score, points = bound(lambda x: (x @ effects)[:, None], torch.ones(1, 8, dtype=torch.float64), None, kind="output")
    found = Stack([LIME(4000, l1=l1) for l1 in (0.0, 0.01, 0.1)]).attribute(score, points)[0]
    assert [(row != 0).sum().item() for row in found] == [8, 6, 3]
    torch.testing.assert_close(found[0], effects, rtol=0.05, atol=0.01)
