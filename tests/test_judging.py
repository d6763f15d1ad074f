"""Judging until decided: levels of several looks, what stops an input, the answer alone, and going on from there."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref

import pytest
import torch
from nets import Small, images

import consilience as cs
from consilience.combine.draws import LOOKS
from consilience.explain.decide import (
    ALLOWED,
    ASKED,
    DECIDED,
    EXACT,
    HOPELESS,
    PRECISION,
    SPENT,
    Comparison,
    Looks,
    until_decided,
)
from consilience.statistics.criteria import Estimate
from consilience.statistics.evidence import Evidence, Quadratic
from consilience.statistics.looks import levels, obrien_fleming, pocock
from consilience.statistics.paired import student_quantile

METHODS = ["saliency", "input_x_gradient", "integrated_gradients"]
OPTIONS = {"methods": METHODS, "max_batch": 16, "features": "pixels"}


# -- levels --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spending, bounds",
    [
        # Lan and DeMets' bounds for five equal steps, as published (e.g. Reboussin et al. 2000).
        (obrien_fleming, [4.8769, 3.3570, 2.6803, 2.2898, 2.0310]),
        (pocock, [2.4380, 2.4268, 2.4101, 2.3966, 2.3859]),
    ],
)
def test_levels_are_those_of_published_bounds(spending, bounds):
    found = levels((1, 2, 3, 4, 5), 0.05, spending)
    assert found == pytest.approx([math.erfc(bound / math.sqrt(2)) for bound in bounds], rel=2e-3)


@pytest.mark.parametrize("looks", [*LOOKS.values(), (3, 50), (10, 11, 12, 13, 14, 15)])
@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_all_looks_together_err_with_probability_alpha(looks, alpha):
    """Counted on paths of a Brownian motion, without any integral."""
    keyed = torch.Generator().manual_seed(1)
    steps = torch.tensor(looks, dtype=torch.float64)
    lengths = steps.diff(prepend=torch.zeros(1, dtype=torch.float64))
    paths = (torch.randn(200_000, len(looks), generator=keyed, dtype=torch.float64) * lengths.sqrt()).cumsum(1)
    p = torch.erfc((paths / steps.sqrt()).abs() / math.sqrt(2))
    wrong = (p <= torch.tensor(levels(looks, alpha))).any(1).double().mean()
    assert float(wrong) == pytest.approx(alpha, abs=4 * math.sqrt(alpha / 200_000))
    assert levels((7,), alpha) == (alpha,)


# -- when to stop --------------------------------------------------------------------------------------------------------


def differences(rows: torch.Tensor, exact: bool = False) -> Comparison:
    """(B, S) draws of a difference as a comparison of their means."""
    mean = rows.mean(1, keepdim=True)
    whole = torch.full((len(rows),), exact) if exact else None
    return Comparison(Estimate(mean, (rows - mean)[:, None], exact=whole), torch.full((len(rows),), 0.1))


def test_each_reason_to_stop_is_found():
    looks = Looks((4, 8), 0.05)
    sway = torch.tensor([-1.0, 1.0, -1.0, 1.0]).double()
    rows = torch.stack(
        [
            10 + sway,  # far from zero
            0.02 * sway,  # nearer than what matters
            torch.full((4,), 0.3).double(),  # does not vary
            torch.tensor([torch.nan, 1, 1, 1]).double(),  # has no value
            1.9 + sway,  # may be decided by twice as many
            0.2 + sway,  # will not
        ]
    )
    reasons = looks.settled(differences(rows), 0)
    assert reasons == [DECIDED] * 4 + [None, HOPELESS]
    assert looks.settled(differences(rows[:1], exact=True), 0) == [EXACT]
    assert looks.settled(differences(rows[4:5]), 1) == [SPENT]  # half as many as the look asks for
    assert Looks((4, 8), 0.05, optimism=4.0).settled(differences(rows[5:]), 0) == [None]


def test_a_difference_of_two_kinds_of_draws_is_as_unsure_as_both():
    """Its quantile is between those of the two kinds; that of the neighbours where the other kind contributes nothing."""
    looks = Looks((12,), 0.05)
    estimate = Estimate(torch.zeros(1, 1).double(), torch.randn(1, 1, 12 + 5).double(), groups=(12, 5))
    reach = float(looks.reach(estimate, 0) / estimate.stderr)
    assert student_quantile(0.975, 11) < reach < student_quantile(0.975, 4)
    alone = Estimate(
        estimate.value, torch.cat([torch.randn(1, 1, 12), torch.zeros(1, 1, 5)], -1).double(), groups=(12, 5)
    )
    assert float(looks.reach(alone, 0) / alone.stderr) == pytest.approx(student_quantile(0.975, 11))


def sampled(rows: torch.Tensor):
    """Draws (B, S) of a difference as evidence, and how it is compared."""

    def draw(inputs, count):
        return [Evidence(Quadratic(rows[[i], :count, None, None], torch.ones(1, 1, 1).double())) for i in inputs]

    def compare(index, evidence):
        return [differences(evidence.quadratic.draws[..., 0, 0])]

    return draw, compare


def test_an_input_stops_where_it_would_stop_alone():
    keyed = torch.Generator().manual_seed(3)
    shift = torch.linspace(0, 1.5, 40).double()[:, None]
    rows = shift + torch.randn(40, 20, generator=keyed).double()
    draw, compare = sampled(rows)
    looks = Looks(LOOKS["quadratic"], 0.05, optimism=1.0)
    together = until_decided(draw, range(40), looks, compare)
    assert {each.count for each in together} == {4, 8, 12, 20} and {each.why for each in together} > {DECIDED, ALLOWED}
    for i in (0, 11, 25, 39):
        (alone,) = until_decided(draw, [i], looks, compare)
        assert (alone.count, alone.look, alone.why) == (together[i].count, together[i].look, together[i].why)
        assert torch.equal(alone.evidence.quadratic.draws, together[i].evidence.quadratic.draws)
    fixed = until_decided(draw, range(3), Looks((7,), 0.05), compare)
    assert [(each.count, each.why) for each in fixed] == [(7, ASKED)] * 3
    none = until_decided(draw, [0], looks, lambda index, evidence: [])
    assert [(each.count, each.why) for each in none] == [(4, PRECISION)]


@pytest.mark.parametrize("tail", ["normal", "skewed", "heavy"])
def test_equals_are_called_different_no_more_often_than_stated(tail):
    keyed = torch.Generator().manual_seed(5)
    noise = torch.randn(3000, 20, 3, generator=keyed).double()
    rows = {
        "normal": noise[..., 0],
        "skewed": noise[..., 0].square() - noise[..., 1].square() + noise[..., 2],
        "heavy": noise[..., 0] * noise[..., 1].exp(),
    }[tail]
    draw, compare = sampled(rows)
    looks = Looks(LOOKS["quadratic"], 0.05, optimism=1.0)
    found = until_decided(draw, range(len(rows)), looks, compare)
    wrong = []
    for i, each in enumerate(found):
        estimate = differences(rows[[i], : each.count]).estimate
        wrong.append(float(estimate.value.abs()) > float(looks.reach(estimate, each.look)))
    assert sum(wrong) / len(wrong) < 0.05 + 3 * math.sqrt(0.05 / len(rows))


# -- explain -------------------------------------------------------------------------------------------------------------


def same_numbers(one, other, digits=0.0):
    """Equal to the bit, or but for the last ``digits``."""
    same = {"rtol": digits, "atol": digits / 100, "equal_nan": True}
    assert torch.equal(one.attribution, other.attribution) and torch.equal(one.weights, other.weights)
    assert one.draws == other.draws and one.warnings == other.warnings
    assert list(one.criteria) == list(other.criteria)
    for criterion, rows in one.criteria.items():
        for name, cell in rows.items():
            for part in ("fit", "fresh", "stderr"):
                torch.testing.assert_close(getattr(cell, part), getattr(other.criteria[criterion][name], part), **same)
    for name in ("differences", "over_uniform"):
        for criterion, found in getattr(one, name).items():
            again = getattr(other, name)[criterion]
            torch.testing.assert_close(found.low, again.low, **same)
            assert torch.equal(found.draws, again.draws)


@pytest.mark.parametrize("objective", ["opt", "robust", "faith", "posterior", "mean", "median", "weighted"])
def test_an_answer_refined_is_the_answer_judged_at_once(objective):
    whole = cs.explain(Small(), images(), objective=objective, **OPTIONS)
    quick = cs.explain(Small(), images(), objective=objective, quick=True, **OPTIONS)
    assert not quick.judged and whole.judged and torch.equal(quick.attribution, whole.attribution)
    assert quick.counts.gradient < whole.counts.gradient
    refined = quick.describe(model="m").refine()
    same_numbers(refined, whole)
    assert (refined.counts.forward, refined.counts.gradient) == (whole.counts.forward, whole.counts.gradient)
    assert refined.about["model"] == "m" and not quick.judged
    again = refined.refine()
    same_numbers(again, whole)
    assert (again.counts.forward, again.counts.gradient) == (whole.counts.forward, whole.counts.gradient)


def test_more_draws_go_on_from_those_that_there_are():
    few = cs.explain(Small(), images(1), objective="faith", fresh_draws=cs.Draws(4, 64), **OPTIONS)
    asked = {"fresh_draws": cs.Draws(6, 128), "resolved_draws": 2}
    many = few.refine(**asked)
    same_numbers(many, cs.explain(Small(), images(1), objective="faith", **asked, **OPTIONS), digits=1e-5)
    assert many.resolved is not None
    assert many.counts.gradient == few.counts.gradient + 2 * 17 + 2 * 17  # two more neighbours, and two re-solved ones
    less = many.refine(fresh_draws=cs.Draws(4, 64), resolved_draws=0)
    same_numbers(less, few)


def test_what_is_missing_of_an_answer_alone_is_said(tmp_path):
    quick = cs.explain(Small(), images(2), quick=True, **OPTIONS)
    assert "not judged: quick=True" in str(quick) and "nan" not in str(quick).lower() and "–" not in str(quick)
    record = quick.record(0)
    assert record["draws"]["fresh"] is None and "quick=True" in record["reasons"]["draws.fresh"]
    assert record["differences"] == {} == record["over_uniform"]
    loaded = cs.load(quick.save(tmp_path / "run"))
    assert not loaded.judged and str(loaded) == str(quick) and loaded.record(1) == quick.record(1)
    assert "quick=True" in quick.report(tmp_path / "page.html").read_text(encoding="utf-8")
    for copied in (loaded, pickle.loads(pickle.dumps(quick)), copy.copy(quick)):
        with pytest.raises(cs.InputError, match=r"no model to ask; call consilience\.explain"):
            copied.refine()
    with pytest.raises(cs.InputError, match="tolerance=0.1 is not about the judgement"):
        quick.refine(tolerance=0.1)


def test_a_model_that_was_trained_since_is_refused():
    model = Small()
    quick = cs.explain(model, images(1), quick=True, **OPTIONS)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.parameters(), 0.1).step()
    with pytest.raises(cs.InputError, match="parameters have changed"):
        quick.refine()


def test_a_result_is_freed_with_its_last_name():
    """It keeps what refine() needs, and no ring of references, which would wait for the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        r = cs.explain(Small(), images(1), objective="faith", quick=True, **OPTIONS)
        alive = weakref.ref(r.maps)
        del r
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("objective", ["opt", "faith", "mean"])
def test_what_is_judged_depends_on_no_batch(objective):
    options = {"objective": objective, "methods": METHODS, "features": "pixels"}
    whole = cs.explain(Small(), images(4), max_batch=64, **options)
    for i in (0, 3):
        one = cs.explain(Small(), images(4)[[i]], ids=[i], max_batch=3, **options)
        assert one.draws["fresh"][0] == whole.draws["fresh"][i]
        for criterion, rows in whole.criteria.items():
            torch.testing.assert_close(
                one.criteria[criterion]["consensus"].fresh,
                rows["consensus"].fresh[[i]],
                equal_nan=True,
                rtol=1e-4,
                atol=1e-6,
            )


def test_only_the_draws_are_made_that_something_rests_on():
    faith = cs.explain(Small(), images(1), objective="faith", **OPTIONS)
    assert faith.draws["fit"][0]["average_sensitivity"] == 0
    assert faith.draws["fresh"][0]["average_sensitivity"] == LOOKS["quadratic"][0]
    assert faith.draws["fresh"][0]["stopped"]["average_sensitivity"] == PRECISION
    assert bool(faith.criteria["noise_over_signal"]["consensus"].fresh.isfinite().all())
    reasons = faith.record(0)["reasons"]
    assert "no fitting draws" in reasons["criteria.relative_sensitivity.consensus.fit"]


def test_intervals_are_as_wide_as_their_look_demands():
    r = cs.explain(Small(), images(3), objective="faith", confidence=0.9, **OPTIONS)
    found = r.over_uniform["faithfulness_correlation"]
    assert found.confidence == pytest.approx(0.9)
    for i, fresh in enumerate(r.draws["fresh"]):
        level = levels(LOOKS["responses"], 0.1)[fresh["looks"]["infidelity"] - 1]
        reach = student_quantile(1 - level / 2, int(found.draws[i]) - 1) * found.stderr[i]
        assert float(found.high[i] - found.low[i]) == pytest.approx(2 * float(reach), rel=1e-6)
