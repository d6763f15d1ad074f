"""Tests and intervals of a few paired differences: exact values, laws, and the coverage that they promise."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
import torch
from nets import Small, images
from scipy import stats

import consilience as cs
from consilience import simplex
from consilience.combine.aggregations import AGGREGATIONS
from consilience.combine.draws import Draws
from consilience.combine.explained import UNEXPLAINED, best_correlation, mark_unexplained
from consilience.combine.named import named_objective
from consilience.combine.regret import regret
from consilience.combine.sequential import until_sure
from consilience.combine.spread import weights_stderr
from consilience.combine.weights import Minimise, resolve
from consilience.explain.differences import criteria_of, paired_differences
from consilience.perturb.mask_order import SHARES, Order
from consilience.report import criteria
from consilience.results.evaluation import Evaluation
from consilience.results.explanation import Measured
from consilience.statistics.criteria import CRITERIA, faithfulness_correlation
from consilience.statistics.evidence import Evidence, Quadratic, Responses
from consilience.statistics.paired import (
    EXACT_PAIRS,
    holm,
    least_p,
    mean_interval,
    sign_flip_test,
    student_cdf,
    student_quantile,
)


def evaluation(**columns: np.ndarray) -> Evaluation:
    """Rows a and b under the given measures, each (n, 2)."""
    n = len(next(iter(columns.values())))
    return Evaluation(("a", "b"), tuple(columns), dict.fromkeys(columns, "higher"), list(range(n)), columns)


# -- the test ----------------------------------------------------------------------------------------------------------


def flips(d: np.ndarray) -> float:
    """The definition: all 2^n signs, zeros included."""
    sums = np.array([np.dot(signs, d) for signs in product((-1, 1), repeat=len(d))])
    return float((np.abs(sums) >= abs(d.sum()) - 1e-9).mean())


@pytest.mark.parametrize(
    "differences",
    [
        [1.0],
        [1.0, 2.0],
        [1.0, -1.0],
        [0.3, 0.1, 0.2],
        [0.1, 0.2, -0.3, 0.1],
        [0.0, 0.0, 1.0, 1.0, -1.0, 1.0],
        [1e-200, 3e-200, -1e-200, 2e-200, 5e-200],
        [1e300, 1e300, -1e299, 1e300, 2e299, 1e300],
        [0.5, 1.5, -0.2, 0.9, 2.0, 0.1, 0.4, -0.7, 1.1],
    ],
)
def test_the_p_value_is_the_share_of_all_sign_flips(differences):
    d = np.array(differences)
    with np.errstate(over="ignore"):
        expected = flips(d / np.abs(d).max())
    assert sign_flip_test(d) == expected == sign_flip_test(-d)


def test_few_pairs_cannot_be_significant():
    for n in range(1, 8):
        d = np.arange(1.0, n + 1)
        assert sign_flip_test(d) == least_p(d) == 2.0 ** (1 - n)
    assert sign_flip_test(np.zeros(4)) == least_p(np.zeros(4)) == 1
    assert least_p(np.array([0.0, 0.0, 1.0, 2.0])) == 0.5


def test_scipy_finds_the_same_exact_p():
    for seed in range(4):
        d = np.random.default_rng(seed).normal(0.4, 1, 10)
        other = stats.permutation_test(
            (d, np.zeros(10)), lambda a, b, axis: (a - b).mean(axis), permutation_type="samples", n_resamples=10**5
        )
        assert sign_flip_test(d) == pytest.approx(other.pvalue)


def test_many_pairs_are_drawn_by_the_seed_and_agree_with_all_flips():
    d = np.random.default_rng(3).normal(0.3, 1, EXACT_PAIRS)
    exact = sign_flip_test(d)
    # A difference that changes nothing makes one pair too many to look at all flips.
    drawn = sign_flip_test(np.append(d, 1e-13), draws=20_000, seed=1)
    assert abs(drawn - exact) < 4 * np.sqrt(exact * (1 - exact) / 20_000)
    assert drawn == sign_flip_test(np.append(d, 1e-13), draws=20_000, seed=1)
    assert drawn != sign_flip_test(np.append(d, 1e-13), draws=20_000, seed=2)
    assert sign_flip_test(np.ones(30), draws=99) == least_p(np.ones(30), 99) == 1 / 100
    assert sign_flip_test(np.tile([1.0, -1.0], 20), draws=99) == 1


def test_drawn_flips_are_made_in_pieces(monkeypatch):
    from consilience.statistics.keys import Key

    asked, bits = [], Key.bits

    def watched(self, ids, sample, count):
        asked.append(len(ids) * count)
        return bits(self, ids, sample, count)

    monkeypatch.setattr(Key, "bits", watched)
    d = np.random.default_rng(0).normal(0.01, 1, 3000)
    p = sign_flip_test(d, draws=1000)
    assert len(asked) > 1 and max(asked) <= 2**20 and sum(asked) == 3_000_000
    assert p == pytest.approx(2 * stats.norm.sf(abs(d.mean()) / d.std() * np.sqrt(3000)), abs=0.06)


@pytest.mark.parametrize("n", [3, 8, 20])
@pytest.mark.parametrize("draw", ["normal", "heavy", "discrete"])
def test_the_type_one_error_is_not_above_the_level(n, draw):
    """Of exchangeable methods: p ≤ α in no more than α of the trials, at any α."""
    rng = np.random.default_rng(n)
    trials = {
        "normal": lambda: rng.normal(size=n),
        "heavy": lambda: rng.standard_t(2, size=n),
        "discrete": lambda: rng.choice([-1.0, 0.0, 1.0], size=n),
    }
    count = 400 if n < EXACT_PAIRS else 120
    p = np.array([sign_flip_test(trials[draw]()) for _ in range(count)])
    for level in (0.05, 0.25, 0.5):
        assert (p <= level).mean() <= level + 3 * np.sqrt(level * (1 - level) / count)


def test_holm_is_the_step_down_correction():
    p = np.array([0.01, 0.04, np.nan, 0.03, 0.005])
    np.testing.assert_allclose(holm(p), [0.03, 0.06, np.nan, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.9, 0.8])), [1, 1])
    assert holm(np.array([0.2])).tolist() == [0.2] and holm(np.array([])).size == 0


# -- the interval ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 8, 19, 100, 511])
def test_students_distribution(freedom):
    for t in (-30.0, -1.3, 0.0, 0.2, 2.5):
        assert student_cdf(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), abs=1e-13)
    # By scipy's distribution function: its quantiles were wrong in the ninth digit before version 1.12.
    for p in (0.0005, 0.025, 0.5, 0.9, 0.995):
        t = student_quantile(p, freedom)
        assert stats.t.cdf(-abs(t), freedom) == pytest.approx(min(p, 1 - p), rel=2e-12)
        assert p == 0.5 or (t > 0) == (p > 0.5)


def test_the_interval_of_symmetric_values_is_students():
    values = np.array([-2.0, -1.0, 1.0, 2.0]) + 5
    low, high = mean_interval(values)
    np.testing.assert_allclose((low, high), stats.t.interval(0.95, 3, 5, stats.sem(values)), rtol=1e-4)
    skewed = np.array([0.0, 0.1, 0.2, 3.0])
    low, high = mean_interval(skewed)
    student = stats.t.interval(0.95, 3, skewed.mean(), stats.sem(skewed))
    assert low == pytest.approx(student[0]) and high > student[1]
    np.testing.assert_allclose(mean_interval(-skewed), (-high, -low))
    np.testing.assert_allclose(mean_interval(skewed + 1), (low + 1, high + 1))


def test_values_that_show_no_spread_have_no_interval():
    for values in ([1.0], [1.0, 1.0, 1.0], [0.1 + 0.2, 0.3, 0.3]):
        assert np.isnan(mean_interval(np.array(values))).all()


COVERAGE = {
    "normal": (lambda rng, shape: rng.normal(size=shape), 0.94),
    "heavy": (lambda rng, shape: rng.standard_t(3, size=shape), 0.94),
    "discrete": (lambda rng, shape: rng.choice([-1.0, 0, 1], p=[0.3, 0.4, 0.3], size=shape), 0.93),
    "skewed": (lambda rng, shape: rng.exponential(size=shape) - 1, 0.91),
}


@pytest.mark.parametrize("n", [3, 8, 20])
@pytest.mark.parametrize("name", COVERAGE)
def test_the_interval_holds_the_mean_as_often_as_it_says(name, n):
    """Nominal .95; of three skewed values .926, where Student's alone holds in .883 and the bootstrap before in .695."""
    draw, least = COVERAGE[name]
    low, high = mean_interval(draw(np.random.default_rng(n), (4000, n)))
    inside = (low <= 0) & (high >= 0) | np.isnan(low)
    assert inside.mean() > least


# -- Evaluation.compare ------------------------------------------------------------------------------------------------


def test_compare_shows_the_difference_its_interval_and_both_p_values():
    rng = np.random.default_rng(0)
    a = rng.normal(0, 1, 12)
    strong = np.stack([a + 0.8 + 0.1 * rng.normal(size=12), a], 1)
    weak = np.stack([a + rng.normal(size=12), a], 1)
    weak[3, 1] = np.nan
    found = evaluation(strong=strong, weak=weak).compare("a", "b")
    one, two = found
    pairs = strong[:, 0] - strong[:, 1]
    assert one.n == 12 and one.missing == 0 and one.difference == pytest.approx(pairs.mean())
    assert one.low == pytest.approx(float(mean_interval(pairs)[0]))
    assert one.p == 2 / 2**12 and one.p_holm == 2 * one.p
    assert two.n == 11 and two.missing == 1 and two.p_holm == two.p
    lines = str(found).splitlines()
    assert len(lines) == 2 and "p (Holm) = 0.000977" in lines[0] and "1 without both numbers" in lines[1]
    alone = evaluation(strong=strong, weak=weak).compare("a", "b", "strong")[0]
    assert alone.p == one.p == alone.p_holm and "Holm" not in str(alone)
    wider = evaluation(strong=strong).compare("a", "b", level=0.01)[0]
    assert wider.low < one.low < one.high < wider.high


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_compare_says_that_few_inputs_cannot_show_a_difference(n):
    values = np.column_stack([np.arange(1.0, n + 1), np.zeros(n)])
    (found,) = evaluation(m=values).compare("a", "b")
    assert found.p == 2.0 ** (1 - n)
    assert f"n is too small for any test at 0.05: the least possible p is {found.p:.2g}" in str(found)
    assert f"n = {n}" in str(found)


def test_compare_says_that_few_inputs_cannot_show_several_differences():
    six = np.column_stack([np.arange(1.0, 7), np.zeros(6)])
    alone = evaluation(m=six).compare("a", "b")
    assert not alone[0].note and alone[0].p == 2**-5
    both = evaluation(m=six, l=six).compare("a", "b")
    assert all("n is too small for 2 tests at 0.05 together" in each.note for each in both)
    # Sixteen inputs decide on one of them: then Holm's second step may decide on the other.
    more = np.column_stack([np.arange(1.0, 17), np.zeros(16)])
    few = more.copy()
    few[6:, 1] = np.nan
    mixed = evaluation(m=more, l=few).compare("a", "b")
    assert mixed[1].p_holm == 2**-5 and not any(each.note for each in mixed)


def test_compare_of_what_is_equal_or_missing():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(9, 2))
    same = evaluation(m=values).compare("a", "a")[0]
    assert same.p == 1 and same.difference == 0 and np.isnan(same.low)
    assert "the same for all 9 inputs: no interval" in str(same)
    shifted = evaluation(m=np.column_stack([values[:, 0] + 1, values[:, 0]])).compare("a", "b")[0]
    assert np.isnan(shifted.low) and shifted.p == 2**-8
    none = evaluation(m=np.full((4, 2), np.nan)).compare("a", "b")[0]
    assert none.n == 0 and none.missing == 4 and "no input has both numbers" in str(none)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"draws": 0}, "draws: a number of sign flips"),
        ({"draws": 1.5}, "draws: a number of sign flips"),
        ({"draws": True}, "draws: a number of sign flips"),
        ({"draws": 10**30}, "draws: a number of sign flips"),
        ({"level": "x"}, "level: a probability"),
        ({"level": 0}, "level: a probability"),
        ({"level": 1.0}, "level: a probability"),
        ({"level": float("nan")}, "level: a probability"),
        ({"measures": ["n"]}, "measure"),
        ({"measures": "n"}, "measure"),
    ],
)
def test_compare_refuses_nonsense(options, said):
    with pytest.raises(cs.InputError, match=said):
        evaluation(m=np.zeros((3, 2))).compare("a", "b", **options)


# -- consensus beside the best single method ---------------------------------------------------------------------------


def masks(rng: np.random.Generator, inputs: int, draws: int, rho: tuple[float, ...]) -> Evidence:
    """Methods whose responses have the correlations ``rho`` with the falls, and half of their noise in common."""
    y = torch.as_tensor(rng.normal(size=(inputs, draws)))
    common = torch.as_tensor(rng.normal(size=(inputs, draws)))
    own = torch.as_tensor(rng.normal(size=(inputs, draws, len(rho))))
    r = torch.tensor(rho, dtype=torch.float64)
    noise = (common[..., None] + own) / 2**0.5
    return Evidence(responses=Responses(r * y[..., None] + (1 - r**2).sqrt() * noise, y))


def neighbours(
    rng: np.random.Generator, inputs: int, draws: int, sizes: tuple[float, ...], features: int = 30
) -> Evidence:
    """Methods with the relative sensitivities ``sizes`` at normal noise in ``features`` features.

    Maps have norm one, of which .8 is common to all."""
    moves = torch.as_tensor(rng.normal(size=(inputs, draws, len(sizes), features))) / features**0.5
    moves = moves * torch.tensor(sizes, dtype=torch.float64).sqrt()[:, None]
    norm = 0.8 + 0.2 * torch.eye(len(sizes), dtype=torch.float64)
    return Evidence(Quadratic(moves @ moves.mT, norm.expand(inputs, -1, -1)))


def judged(criterion: str, fit: Evidence, fresh: Evidence, mixing: torch.Tensor, names: list[str]):
    """The table's rows, of singles and the consensus, on both kinds of draws."""
    count, k = mixing.shape
    rows = torch.cat([torch.eye(k, dtype=torch.float64).expand(count, -1, -1), mixing[:, None]], 1)
    before, after = (CRITERIA[criterion](evidence, rows) for evidence in (fit, fresh))
    every = [*names, "consensus"]
    return {
        criterion: {
            name: Measured(before.value[:, i], after.value[:, i], after.stderr[:, i]) for i, name in enumerate(every)
        }
    }


RHO = torch.tensor([0.5, 0.4, 0.45], dtype=torch.float64)
SIZES = torch.tensor([0.2, 0.3, 0.25], dtype=torch.float64)


def true_correlation(w: torch.Tensor) -> torch.Tensor:
    """Of :func:`masks`: the noise has variance 1, half of it in common."""
    noise = (1 - RHO**2).sqrt() * w
    own, common = noise.square().sum(1) / 2, noise.sum(1).square() / 2
    signal = w @ RHO
    return signal / (signal**2 + own + common).sqrt()


def true_sensitivity(w: torch.Tensor) -> torch.Tensor:
    """Of :func:`neighbours`: independent moves of maps that have .8 in common."""
    return (w**2 @ SIZES) / (0.8 * w.sum(1).square() + 0.2 * w.square().sum(1))


TRUTH = {
    "faith": ("faithfulness_correlation", lambda rng, n, s: masks(rng, n, s, tuple(RHO.tolist())), true_correlation),
    "relative_sensitivity": (
        "relative_sensitivity",
        lambda rng, n, s: neighbours(rng, n, s, tuple(SIZES.tolist())),
        true_sensitivity,
    ),
}


@pytest.mark.parametrize("objective", TRUTH)
@pytest.mark.parametrize("draws", [20, 200])
def test_the_paired_difference_covers_the_true_one(objective, draws):
    """Of each input's weights and pick, the true difference lies in 95 % of the intervals."""
    criterion, draw, truth = TRUTH[objective]
    rng = np.random.default_rng(draws)
    inputs, names = 600, ["a", "b", "c"]
    fit, fresh = draw(rng, inputs, 50), draw(rng, inputs, draws)
    mixing = Minimise(named_objective(objective)).fit(fit).weights
    table = judged(criterion, fit, fresh, mixing, names)
    (found,) = paired_differences(Minimise(named_objective(objective)), table, fresh, mixing, names).values()
    single = torch.eye(3, dtype=torch.float64)[[names.index(name) for name in found.best_single]]
    difference = truth(mixing) - truth(single)
    inside = (found.low <= difference) & (difference <= found.high)
    assert 0.92 < inside.double().mean() < 0.975
    assert found.draws.tolist() == [draws] * inputs and len(found) == inputs
    # Sharing the draws is what makes the error small.
    both = table[criterion]["consensus"].stderr.square() + table[criterion]["a"].stderr.square()
    assert (found.stderr < both.sqrt()).double().mean() > 0.9


def test_the_best_single_method_is_chosen_on_the_fitting_draws():
    rng = np.random.default_rng(0)
    fit, fresh = masks(rng, 50, 40, (0.3, 0.3)), masks(rng, 50, 40, (0.3, 0.3))
    mixing = torch.full((50, 2), 0.5, dtype=torch.float64)
    table = judged("faithfulness_correlation", fit, fresh, mixing, ["a", "b"])["faithfulness_correlation"]
    found = paired_differences(
        Minimise(named_objective("faith")), {"faithfulness_correlation": table}, fresh, mixing, ["a", "b"]
    )
    found = found["faithfulness_correlation"]
    for i, name in enumerate(found.best_single):
        other = "b" if name == "a" else "a"
        assert table[name].fit[i] >= table[other].fit[i]
        assert float(found.value[i]) == pytest.approx(float(table["consensus"].fresh[i] - table[name].fresh[i]))
    over = found.over_inputs()
    assert over["n"] == 50 and over["mean"] == pytest.approx(float(found.value.mean()))
    assert over["low"] < over["mean"] < over["high"]


def test_the_weights_error_of_an_input_with_few_masks_is_what_it_is_alone():
    """Three masks that are all there are estimate nothing, in a batch of longer inputs or not; three of many tell nothing."""
    long = masks(np.random.default_rng(0), 3, 40, (0.5, 0.4)).responses
    drawn = torch.arange(40) < torch.tensor([[40], [3], [3]])
    whole = torch.tensor([False, True, False])
    padded = Responses(torch.where(drawn[..., None], long.a, 0.0), torch.where(drawn, long.y, 0.0), drawn, whole)
    rule, evidence = Minimise(named_objective("faith")), Evidence(responses=padded)
    together = weights_stderr(rule, evidence)
    alone = torch.cat([weights_stderr(rule, evidence.inputs([at])) for at in range(3)])
    torch.testing.assert_close(together, alone, equal_nan=True)
    assert bool((together[0] > 0).any()) and bool((together[1] == 0).all()) and bool(together[2].isnan().all())


def test_a_differences_interval_has_each_inputs_own_degrees_of_freedom():
    """In a padded batch a short input's interval is what it is when it is judged alone."""
    rng = np.random.default_rng(0)
    fit, long = masks(rng, 2, 40, (0.5, 0.4)), masks(rng, 2, 40, (0.5, 0.4)).responses
    drawn = torch.arange(40) < torch.tensor([[40], [6]])
    padded = Responses(torch.where(drawn[..., None], long.a, 0.0), torch.where(drawn, long.y, 0.0), drawn)
    mixing = torch.full((2, 2), 0.5, dtype=torch.float64)

    def difference(places: list[int]):
        some = Evidence(responses=padded).inputs(places)
        table = judged("faithfulness_correlation", fit.inputs(places), some, mixing[places], ["a", "b"])
        (found,) = paired_differences(
            Minimise(named_objective("faith")), table, some, mixing[places], ["a", "b"]
        ).values()
        return found

    both, short = difference([0, 1]), difference([1])
    assert both.draws.tolist() == [40, 6] and short.draws.tolist() == [6]
    assert [both.record(i, "here", {})["n"] for i in range(2)] == [40, 6]
    assert float(both.low[1]) == pytest.approx(float(short.low[0]))
    assert float(both.high[1]) == pytest.approx(float(short.high[0]))
    assert float(both.high[1] - both.value[1]) == pytest.approx(2.5706 * float(both.stderr[1]), rel=1e-4)  # t of 5


@pytest.mark.parametrize("draws", [32, 100])
def test_an_error_of_many_of_few_masks_is_too_large_and_never_too_small(draws):
    """Drawn without replacement, n of N masks spread less than an error says, by √(1 − n/N) (docs/numbers.md)."""
    rng = np.random.default_rng(draws)
    features, trials = 8, 600
    order = Order((features,), SHARES)
    subsets = []
    for _, size in order.classes:
        subsets.append(
            np.array([[j in c for j in range(features)] for c in combinations(range(features), size)], float)
        )
    which, place = order.places(draws, second=True)
    rows = np.empty((trials, draws, features))
    for number, members in enumerate(subsets):
        here = np.nonzero(which == number)[0]
        permuted = np.argsort(rng.random((trials, len(members))), 1)
        rows[:, here] = members[permuted[:, place[here]]]
    effect = rng.normal(size=features)
    pairs = np.triu(rng.normal(size=(features, features)), 1)
    phi = rng.normal(size=features)

    def responses(masks):
        fall = masks @ effect + 0.5 * ((masks @ pairs) * masks).sum(-1)
        taken = torch.from_numpy(masks @ (effect + 0.5 * phi))[..., None]
        return Responses(taken, torch.from_numpy(fall), size=torch.from_numpy(masks.mean(-1)))

    whole = responses(np.concatenate(subsets)[None])
    alone = torch.ones(1, 1, 1, dtype=torch.float64)
    truth = float(faithfulness_correlation(Evidence(responses=whole), alone).value)
    found = faithfulness_correlation(Evidence(responses=responses(rows)), alone.expand(trials, 1, 1))
    spread = float((found.value - truth).square().mean().sqrt())
    too_large = float(found.stderr.mean()) / spread
    assert too_large == pytest.approx(1 / (1 - draws / order.all) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    "objective, criteria",
    [
        ("opt", ("noise_over_signal", "faithfulness_correlation")),
        ("robust", ("noise_over_signal",)),
        ("relative_sensitivity", ("relative_sensitivity",)),
        ("faith", ("faithfulness_correlation",)),
        ("paper_opt", ("average_sensitivity", "infidelity")),
        ("mean", ("noise_over_signal", "faithfulness_correlation")),
    ],
)
def test_differences_are_about_what_the_objective_is_about(objective, criteria):
    assert criteria_of(resolve(objective)) == criteria


def test_an_explanation_shows_the_difference_and_the_weights_error(tmp_path):
    methods = ["saliency", "input_x_gradient", "smoothgrad"]
    x = images(3)
    wanted = {"objective": "opt", "methods": methods, "fit_draws": 12, "fresh_draws": 16, "resolved_draws": 0}
    r = cs.explain(Small(), x, 1, **wanted)
    assert set(r.differences) == {"noise_over_signal", "faithfulness_correlation"}
    for criterion, found in r.differences.items():
        rows = r.criteria[criterion]
        for i, name in enumerate(found.best_single):
            correlation = [float(r.criteria["faithfulness_correlation"][m].fit[i]) for m in methods]
            # `opt` promises less noise among what is as faithful as the best method: no other is compared with.
            assert name == methods[correlation.index(max(correlation))]
            difference = rows["consensus"].fresh[i] - rows[name].fresh[i]
            assert float(found.value[i]) == pytest.approx(float(difference))
    record = r.record(0)
    shown = record["differences"]["faithfulness_correlation"]
    assert shown["best_single"] in methods and shown["low"] < shown["value"] < shown["high"] and shown["n"] == 16
    assert record["weights_stderr"] == r.weights_stderr[0].tolist()
    assert "consensus − best single method of the fitting draws, correlation: " in str(r) and "n = 3 inputs" in str(r)
    one = cs.explain(Small(), x[:1], 1, **wanted)
    noise = one.differences["noise_over_signal"]
    assert f"compared with {noise.best_single[0]}, the best of those as faithful as the objective asks" in str(one)
    assert noise.among and not one.differences["faithfulness_correlation"].among
    assert str(cs.load(one.save(tmp_path / "run"))) == str(one)


def test_noise_is_compared_with_the_steadiest_of_those_that_are_as_faithful_as_asked():
    """With a low floor nearly all methods are; a steadier one that is not is never compared with."""
    methods = ["saliency", "input_x_gradient", "smoothgrad", "grad_cam"]
    options = {"methods": methods, "fit_draws": 12, "fresh_draws": 16, "resolved_draws": 0}
    noise, masks = cs.AverageSensitivity(signal="contrast"), cs.Infidelity()
    for asked in (None, 0.2, 1.0, -1.0):
        r = cs.explain(Small(), images(3), 1, objective=cs.Front(noise, masks, correlation=asked), **options)
        for i, name in enumerate(r.differences["noise_over_signal"].best_single):
            rho = {m: float(r.criteria["faithfulness_correlation"][m].fit[i]) for m in methods}
            floor = max(rho.values()) if asked is None else min(asked, max(rho.values()))
            moved = {m: float(r.criteria["noise_over_signal"][m].fit[i]) for m in methods if rho[m] >= floor}
            assert name == min(moved, key=moved.get)
    free = cs.explain(Small(), images(3), 1, objective=cs.Front(noise, masks, mu=1.0), **options)
    assert not free.differences["noise_over_signal"].among


def test_a_difference_without_a_value_has_a_reason():
    class Dead(torch.nn.Module):
        def forward(self, x):
            return torch.relu(x[:, :2] - 100)

    x = torch.rand(1, 4, generator=torch.Generator().manual_seed(0))
    wanted = {"objective": "opt", "methods": ["saliency"], "fit_draws": 4, "fresh_draws": 4, "resolved_draws": 0}
    r = cs.explain(Dead(), x, 1, **wanted)
    record = r.record(0)
    assert record["differences"]["noise_over_signal"]["value"] is None
    assert "differences.noise_over_signal" in record["reasons"] and "weights_stderr" in record["reasons"]
    assert "no input has a value of both" in str(r)


# -- the correlation's standard error ----------------------------------------------------------------------------------


def test_the_correlations_error_is_that_of_leaving_masks_out():
    """The jackknife, by its definition."""
    rng = np.random.default_rng(0)
    responses = Responses(torch.as_tensor(rng.normal(size=(2, 9, 3))), torch.as_tensor(rng.normal(size=(2, 9))))
    found = CRITERIA["faithfulness_correlation"](Evidence(responses=responses), torch.eye(3).double().expand(2, -1, -1))
    for i, j in product(range(2), range(3)):
        a, y = responses.a[i, :, j].numpy(), responses.y[i].numpy()
        without = np.array([np.corrcoef(np.delete(a, at), np.delete(y, at))[0, 1] for at in range(9)])
        error = np.sqrt(8 / 9 * ((without - without.mean()) ** 2).sum())
        assert float(found.stderr[i, j]) == pytest.approx(error)
    assert found.influence.mean(2).abs().max() < 1e-12


@pytest.mark.parametrize("rho", [0.1, 0.9])
@pytest.mark.parametrize("draws, least", [(8, 0.86), (20, 0.9), (200, 0.93)])
def test_the_correlations_error_covers_the_true_one(draws, least, rho):
    """To first order alone it covered .82 at 8 and .89 at 20 masks."""
    rng = np.random.default_rng(draws)
    y = torch.as_tensor(rng.normal(size=(2000, draws)))
    a = rho * y + (1 - rho**2) ** 0.5 * torch.as_tensor(rng.normal(size=(2000, draws)))
    found = CRITERIA["faithfulness_correlation"](
        Evidence(responses=Responses(a[..., None], y)), torch.ones(2000, 1, 1).double()
    )
    reach = student_quantile(0.975, draws - 1) * found.stderr
    assert ((found.value - rho).abs() <= reach).double().mean() > least


def test_three_masks_correlate_perfectly_and_have_no_standard_error():
    r = cs.explain(Small(), images(1), 1, methods=["saliency", "input_x_gradient"], fit_draws=4, fresh_draws=3)
    record = r.record(0)
    row = record["criteria"]["faithfulness_correlation"]["saliency"]
    assert abs(row["fresh"]) == pytest.approx(1) and row["stderr"] is None
    where = "criteria.faithfulness_correlation.saliency.stderr"
    assert record["reasons"][where] == "fewer than four draws have no standard error"


# -- the spread of weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "objective, draw",
    [
        ("faith", lambda rng, n, s: masks(rng, n, s, (0.5, 0.5, 0.45))),
        ("robust", lambda rng, n, s: neighbours(rng, n, s, (0.2, 0.22, 0.25))),
    ],
)
def test_the_weights_errors_are_the_weights_spread_over_new_draws(objective, draw):
    evidence = draw(np.random.default_rng(1), 400, 240)
    rule = Minimise(named_objective(objective))
    actual = rule.fit(evidence).weights.std(0)
    reported = weights_stderr(rule, evidence).square().mean(0).sqrt()
    torch.testing.assert_close(reported, actual, rtol=0.15, atol=0)


def test_weights_that_need_no_draws_have_no_error():
    evidence = masks(np.random.default_rng(0), 4, 20, (0.5, 0.4))
    assert weights_stderr(AGGREGATIONS["mean"], evidence).isnan().all()
    few = masks(np.random.default_rng(0), 4, 3, (0.5, 0.4))
    assert weights_stderr(Minimise(named_objective("faith")), few).isnan().all()
    alone = masks(np.random.default_rng(0), 4, 20, (0.5,))
    assert (weights_stderr(Minimise(named_objective("faith")), alone) == 0).all()


# -- when to stop ------------------------------------------------------------------------------------------------------

GAINS = torch.tensor([1.0, 0.8, 0.6, 0.5, 0.4], dtype=torch.float64)


def faint(rho: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Signals and noise covariance of five methods whose best convex mixture has the correlation ``rho`` with the falls."""
    noise = 0.5 + 0.5 * torch.eye(5, dtype=torch.float64)
    first = simplex.correlation((GAINS[:, None] * GAINS + noise)[None], GAINS[None], torch.ones(1).double()).weights[0]
    scale = (first @ noise @ first).sqrt() / (first @ GAINS) * rho / (1 - rho**2) ** 0.5
    return GAINS * scale, noise


def answers(rng: np.random.Generator, inputs: int, draws: int, rho: float) -> Responses:
    """The responses of such methods to masks."""
    signal, noise = faint(rho)
    y = torch.as_tensor(rng.normal(size=(inputs, draws)))
    own = torch.as_tensor(rng.normal(size=(inputs, draws, 5))) @ torch.linalg.cholesky(noise).mT
    return Responses(signal * y[..., None] + own, y)


def true_rho(w: torch.Tensor, rho: float) -> torch.Tensor:
    signal, noise = faint(rho)
    reached = w @ signal
    return reached / (reached**2 + torch.einsum("bi,ij,bj->b", w, noise, w)).sqrt()


def drawn_until_sure(every: Responses, tolerance: float = 0.02):
    """The groups of ``draws="auto"`` with at most as many masks as there are."""
    inputs, count = every.y.shape

    def draw(at, kind, samples):
        assert kind == "responses"
        return Evidence(responses=every.inputs(list(at)).take(torch.arange(samples.start, samples.stop)))

    rule = Minimise(named_objective("faith"))
    price = {"quadratic": 100, "responses": 1}
    return until_sure(rule, draw, tuple(range(inputs)), Draws(2, count), tolerance, price, ("responses",), 5)


def test_the_regret_of_masks_is_the_share_of_what_is_explained():
    """The definition: folds by hand, each block's answers in units of their deviation over all masks, ρ² of the pooled
    moments."""
    e = Evidence(responses=answers(np.random.default_rng(0), 3, 100, 0.6))
    rule = Minimise(named_objective("faith"))
    w = rule.fit(e).weights
    found = regret(rule, e, w)["responses"]
    for i in range(3):
        a, y = e.responses.a[i], e.responses.y[i]
        moments = {"cross-fitted": 0.0, "fitted": 0.0}
        for block in range(5):
            inside = torch.arange(100) // 20 == block
            outside = Evidence(responses=Responses(a[None, ~inside], y[None, ~inside]))
            for name, weights in (("cross-fitted", rule.fit(outside).weights[0]), ("fitted", w[i])):
                answer, fall = (a @ weights / (a @ weights).std(correction=0))[inside], y[inside]
                moments[name] = moments[name] + torch.cov(torch.stack([answer, fall]), correction=0) / 5
        squares = {name: float(m[0, 1] ** 2 / (m[0, 0] * m[1, 1])) for name, m in moments.items()}
        lost = (squares["fitted"] - squares["cross-fitted"]) * 4 / 9
        assert float(found[i]) == pytest.approx(lost / (squares["fitted"] - lost), rel=1e-6)


def test_the_regret_of_masks_does_not_depend_on_the_methods_scales():
    """Folds that choose methods of other scales are pooled as correlations, not as raw answers."""
    plain = answers(np.random.default_rng(0), 4, 100, 0.3)
    scaled = Responses(plain.a * torch.tensor([1.0, 10, 100, 1e3, 1e4]).double(), plain.y)
    rule = Minimise(named_objective("faith"))
    both = [Evidence(responses=responses) for responses in (plain, scaled)]
    one, other = (regret(rule, e, rule.fit(e).weights)["responses"] for e in both)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rho", [0.1, 0.2, 0.5, 0.9])
def test_masks_are_drawn_until_little_of_the_correlation_is_lost(rho):
    """Judged by 1 − ρ², all inputs with a correlation of .1 stopped at 128 masks, with a loss of a quarter."""
    every = answers(np.random.default_rng(5), 60, 1024, rho)
    groups = drawn_until_sure(every)
    masks = sum(len(group.index) * group.draws.infidelity for group in groups) / 60
    lost = torch.cat([1 - true_rho(group.solved[0].weights, rho) / rho for group in groups]).mean()
    first = Minimise(named_objective("faith")).fit(Evidence(responses=every.take(torch.arange(128)))).weights
    lost_at_first = (1 - true_rho(first, rho) / rho).mean()
    if rho < 0.3:
        assert masks > 800 and lost < 0.6 * lost_at_first
    else:
        assert lost < 0.02
    if rho > 0.8:
        assert masks == 128


def test_a_single_method_has_nothing_to_gain_by_more_masks():
    one = answers(np.random.default_rng(0), 4, 1024, 0.05)
    one = Responses(one.a[..., :1], one.y)
    rule = Minimise(named_objective("faith"))
    assert (regret(rule, Evidence(responses=one), torch.ones(4, 1).double())["responses"] <= 0).all()


@pytest.mark.parametrize("objective", ["robust + faith", "faith"])
def test_the_regret_of_masks_is_a_share_for_every_objective(objective):
    """Not above 1, and larger where methods explain little; 1 − ρ² showed .01 for both."""
    values = []
    for rho in (0.05, 0.9):
        rng = np.random.default_rng(1)
        e = Evidence(neighbours(rng, 20, 10, (0.2, 0.22, 0.25, 0.3, 0.4)).quadratic, answers(rng, 20, 128, rho))
        rule = Minimise(named_objective(objective))
        found = regret(rule, e, rule.fit(e).weights)["responses"]
        assert (found <= 1).all()
        values.append(float(found.mean()))
    assert values[0] > 0.2 and values[1] < 0.1


def test_a_sum_of_quadratic_forms_explains_what_its_masks_explain():
    rng = np.random.default_rng(1)
    e = Evidence(neighbours(rng, 4, 10, (0.2, 0.22, 0.25, 0.3, 0.4)).quadratic, answers(rng, 4, 128, 0.8))
    goal = named_objective("paper_opt")
    w = goal.minimise(e).weights
    faithful = goal.terms[1][1].matrix(e)
    scale = torch.linalg.matrix_norm(faithful)
    expected = (e.responses.y.square().mean(1) - torch.einsum("bi,bij,bj->b", w, faithful, w)) / scale
    torch.testing.assert_close(goal.explained(e, w), expected)
    found = regret(Minimise(goal), e, w)["responses"]
    assert (found <= 1).all() and (found > -0.01).all()


# -- when nothing is explained -----------------------------------------------------------------------------------------


def test_masks_that_no_method_explains_are_said_to_be():
    """At most one in twenty of noise passes for an explanation, and what explains is not doubted."""
    rule = Minimise(named_objective("faith"))
    said = {}
    for rho in (0.0, 0.5):
        e = Evidence(responses=answers(np.random.default_rng(2), 300, 256, rho))
        status = mark_unexplained(rule, e, rule.fit(e)[0]).status
        said[rho] = np.mean([UNEXPLAINED in each for each in status])
    assert said[0.0] > 0.95 and said[0.5] == 0


def test_the_best_correlation_is_cross_fitted():
    """Fitted, noise seems to be explained; cross-fitted, it does not."""
    e = Evidence(responses=answers(np.random.default_rng(3), 400, 64, 0.0))
    w = Minimise(named_objective("faith")).fit(e).weights
    assert CRITERIA["faithfulness_correlation"](e, w[:, None]).value.mean() > 0.08
    best = best_correlation(e)
    assert abs(float(best.value.mean())) < 0.03
    assert float(best.stderr.square().mean().sqrt()) == pytest.approx(float(best.value.std()), rel=0.15)


def test_what_explains_is_not_doubted_where_folds_choose_different_methods():
    """Two methods say nearly the same given the size of the mask; one of them grows with it: chance decides in each fold."""
    rng = np.random.default_rng(4)
    inputs, masks = 40, 250
    size = torch.from_numpy(rng.uniform(0.1, 0.6, (inputs, masks)))
    signal, noise, first, second = torch.from_numpy(rng.normal(size=(4, inputs, masks)))
    shared = 0.5 * signal + noise
    answered = torch.stack([shared + 0.01 * first, shared + 0.01 * second + 50 * size], -1)
    evidence = Evidence(responses=Responses(answered, signal + 2 * size, None, None, size))
    best = best_correlation(evidence)
    assert float(best.value.min()) > 0.2
    assert float(best.value.mean()) == pytest.approx(0.5 / 1.25**0.5, abs=0.02)
    rule = Minimise(named_objective("faith"))
    status = mark_unexplained(rule, evidence, rule.fit(evidence)[0]).status
    assert not any(UNEXPLAINED in each for each in status)


class Chaotic(torch.nn.Module):
    """Two methods say nearly the same given the size of the mask; one of them grows with it: chance decides in each fold."""

    def forward(self, x):
        keyed = torch.Generator().manual_seed(0)
        w = torch.randn(x.shape[1], 2, generator=keyed, dtype=x.dtype)
        return torch.sin(1000 * x @ w)


def test_the_status_that_nothing_is_explained_is_everywhere(tmp_path):
    x = torch.randn(2, 12, generator=torch.Generator().manual_seed(1))
    wanted = {"methods": ["saliency", "input_x_gradient"], "fit_draws": 40, "fresh_draws": 8, "resolved_draws": 0}
    r = cs.explain(Chaotic(), x, 1, objective="faith", **wanted)
    assert all(UNEXPLAINED in status for status in r.solution.status)
    assert UNEXPLAINED in r.record(0)["status"]
    assert f"{UNEXPLAINED} of input 0, input 1" in str(r)
    one = cs.explain(Chaotic(), x[:1], 1, objective="faith", **wanted)
    assert UNEXPLAINED in str(one)
    assert UNEXPLAINED in str(cs.load(one.save(tmp_path / "run")))
    words = [text.get_text() for text in one.plot().texts]
    assert any(UNEXPLAINED[:20] in each for each in words)
    assert UNEXPLAINED in one.report(tmp_path / "page.html").read_text(encoding="utf-8")
    assert UNEXPLAINED == criteria.UNEXPLAINED
    robust = cs.explain(Chaotic(), x, 1, objective="robust", **wanted)
    assert not any(UNEXPLAINED in status for status in robust.solution.status)
    clear = cs.explain(torch.nn.Linear(12, 2), x, 1, objective="faith", **wanted)
    assert not any(UNEXPLAINED in status for status in clear.solution.status)


# -- errors of too few -------------------------------------------------------------------------------------------------


def test_two_inputs_have_no_standard_error():
    """Neither have two neighbours at which weights are solved anew."""
    wanted = {"methods": ["saliency", "input_x_gradient"], "fit_draws": 8, "fresh_draws": 8}
    x = images(3)
    two, three = (str(cs.explain(Small(), x[:count], 1, **wanted)) for count in (2, 3))
    numbers = two.partition("warning:")[0]  # a warning tells how far a correlation of 8 masks may be off
    assert "means over n = 2 inputs, too few for a standard error" in numbers and "±" not in numbers
    assert "fresh ± standard error over 3 inputs" in three and "±" in three
    one = cs.explain(Small(), x[:1], 1, resolved_draws=2, **wanted)
    (line,) = [line for line in str(one).splitlines() if "solved anew" in line]
    assert "2 neighbours" in line and "±" not in line
    more = cs.explain(Small(), x[:1], 1, resolved_draws=3, **wanted)
    (line,) = [line for line in str(more).splitlines() if "solved anew" in line]
    assert "3 neighbours" in line and "±" in line


@pytest.mark.parametrize("spec", [20, "20", np.int64(20), {"average_sensitivity": 20, "infidelity": 20}, Draws(20, 20)])
def test_draws_in_any_form(spec):
    assert Draws.of(spec, Draws(), "fit_draws") == Draws(20, 20)
    assert Draws.of("infidelity=30", Draws(5, 6), "fit_draws") == Draws(5, 30)
    assert Draws.of(None, Draws(5, 6), "fit_draws") == Draws(5, 6)


@pytest.mark.parametrize(
    "spec",
    [True, 1.5, -1, 0, 1, 10**30, "x", "infidelity=x", "masks=3", "infidelity=3,", [3], {3: 4}, object()]
    + [{"infidelity": value} for value in (1.5, float("nan"), float("inf"), None, "x", -2)],
)
def test_nonsense_in_place_of_draws_names_the_argument(spec):
    with pytest.raises(cs.InputError, match="fit_draws"):
        Draws.of(spec, Draws(), "fit_draws")
