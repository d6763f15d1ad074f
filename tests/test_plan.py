"""The plan of an explanation: evaluations by a closed formula that the counter confirms, and what attribute() leaves out."""

from __future__ import annotations

import copy

import pytest
import torch
from nets import Small, images
from torch import nn

import consilience as cs
from consilience.consensus.fitting import Rule, regret
from consilience.consensus.job import Rows, begin
from consilience.consensus.setting import aim
from consilience.explainers import GradCAM, InputXGradient, IntegratedGradients, Saliency, SmoothGrad
from consilience.metrics import AverageSensitivity, Infidelity
from consilience.quadratic import joined

METHODS = [Saliency(), InputXGradient(), IntegratedGradients(4), SmoothGrad(4), GradCAM()]
ONE = 1 + 4 + 4  # gradients of one explanation
FIT, FRESH = cs.Draws(6, 40), cs.Draws(5, 50)
MASKS = Infidelity(cs.Patches(2))
GOALS = {"robust": AverageSensitivity(), "faith": MASKS, "opt": cs.Front(AverageSensitivity(), MASKS)}


def spent(job, before) -> Rows:
    now = job.ready.score.counts
    return Rows(now.gradient - before.gradient, now.forward - before.forward)


@pytest.mark.parametrize("resolved", [0, 2])
@pytest.mark.parametrize("objective", [*GOALS, "mean", "weighted"])
def test_evaluations_are_what_the_plan_says(objective, resolved):
    options = {"methods": METHODS, "objective": GOALS.get(objective, objective), "resolved_draws": resolved}
    options |= {"fit_draws": FIT, "fresh_draws": FRESH}
    job = begin(Small(), images(), **options)
    before = copy.copy(job.ready.score.counts)
    assert before.gradient == 5  # each distinct cloud and layer is tried once, one row each; the layer's probe
    planned = job.planned()
    (least, most) = (sum((pair[i] for pair in planned.values()), Rows()) for i in (0, 1))
    assert least == most
    r = cs.explain(Small(), images(), **options)
    assert (r.counts.gradient, r.counts.forward) == (before.gradient + most.gradient, before.forward + most.forward)
    solved = resolved if objective in GOALS else 0
    assert most.gradient == 3 * ONE * (1 + 6 + 5 + solved * (1 + 6))


@pytest.mark.parametrize(
    "objective, gradients, forwards",
    [("robust", 1 + 6, 0), ("faith", 1, 41), ("opt", 1 + 6, 41), ("mean", 1, 0), ("median", 1, 0), ("weighted", 1 + 6, 41)],
)  # fmt: skip
def test_attribute_draws_only_what_its_weights_need(objective, gradients, forwards):
    options = {"methods": METHODS, "objective": GOALS.get(objective, objective), "fit_draws": FIT}
    job = begin(Small(), images(), **options)
    before = copy.copy(job.ready.score.counts)
    found = job.combine(every=False)
    assert spent(job, before) == Rows(3 * ONE * gradients, 3 * forwards)
    assert sum((most for _, most in job.planned(False).values()), Rows()) == spent(job, before)
    torch.testing.assert_close(found.attribution, cs.explain(Small(), images(), **options).attribution)


def test_given_weights_draw_nothing():
    job = begin(Small(), images(), methods=METHODS, weights=torch.ones(5) / 5)
    before = copy.copy(job.ready.score.counts)
    found = job.combine(every=False)
    assert spent(job, before) == Rows(3 * ONE, 0)
    torch.testing.assert_close(found.attribution, found.base.mean(1))


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("objective", GOALS)
def test_draws_until_sure_stay_within_their_plan(objective, every):
    options = {"methods": METHODS, "objective": GOALS[objective], "fit_draws": cs.Draws(20, 512), "draws": "auto"}
    job = begin(Small(), images(), 1, **options)
    (least, most) = (sum((pair[i] for pair in job.planned(every).values()), Rows()) for i in (0, 1))
    before = copy.copy(job.ready.score.counts)
    if every:
        counts = cs.explain(Small(), images(), 1, **options).counts
        took = Rows(counts.gradient - before.gradient, counts.forward - before.forward)
    else:
        job.combine(every=False)
        took = spent(job, before)
    assert least.gradient <= took.gradient <= most.gradient and least.forward <= took.forward <= most.forward
    assert least.work < most.work


def test_draws_are_made_until_sure_unless_a_number_is_asked_for():
    small = {"methods": METHODS, "objective": GOALS["robust"]}
    assert begin(Small(), images(), **small).tolerance == 0.02
    assert begin(Small(), images(), **small, fit_draws=5).tolerance is None
    assert begin(Small(), images(), **small, draws="paper").tolerance is None
    assert begin(Small(), images(), methods=METHODS, objective="mean").draws == cs.Draws(10, 256)
    r = cs.explain(Small(), images(), **small, fresh_draws=4, resolved_draws=0)
    assert all(fit["stopped"].startswith(("regret", "budget")) for fit in r.draws["fit"])


def test_a_plan_says_what_for_whom_and_how_long():
    consensus = cs.Consensus(Small(), METHODS, GOALS["opt"], resolved_draws=0)
    plan = consensus.plan(images())
    text = str(plan)
    for words in (
        "saliency, input_x_gradient",
        "smoothgrad",
        "3 inputs",
        "draws to fit",
        "fresh draws",
        "completeness",
        "MiB",
    ):
        assert words in text
    least, most = plan.rows
    assert sum(rows.gradient for _, _, rows in plan.needs) == ONE and 0 < least.gradient < most.gradient
    assert 0 < plan.seconds[0] < plan.seconds[1] and plan.mib > 0
    quick = consensus.plan(images(), every=False)
    assert set(quick.parts) == {"the maps", "draws to fit"} and quick.rows[0].gradient < least.gradient


def test_completeness_is_read_off_the_maps_that_are_there():
    r = cs.explain(Small(), images(), 1, methods=METHODS, objective="mean", fit_draws=2, fresh_draws=2)
    model = Small()
    x = images()
    fall = model(x)[:, 1] - model(torch.zeros_like(x))[:, 1]
    raw = cs.explainers.Stack([IntegratedGradients(4)])
    score = cs.Score(model, 1).at(x)
    sums = raw.attribute(score, cs.neighbourhood.Points(x, torch.arange(3), score.ids)).flatten(1).sum(1)
    torch.testing.assert_close(r.completeness["integrated_gradients"], ((sums - fall) / fall).abs().detach())


# -- precision ---------------------------------------------------------------------------------------------------------


class Seen(Small):
    """Records in which dtype its convolutions run."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()
        self.float()

    def forward(self, x):
        y = self.conv1(x)
        self.dtypes.add(y.dtype)
        return self.head(self.act2(self.conv2(self.act1(y))).mean((2, 3)))


def test_half_precision_runs_the_model_and_nothing_else():
    options = {"methods": METHODS[:4], "objective": "robust", "fit_draws": 8, "fresh_draws": 4, "resolved_draws": 0}
    x = images(dtype=torch.float32)
    model, plain = Seen(), Seen()
    half, full = cs.explain(model, x, 1, precision="bfloat16", **options), cs.explain(plain, x, 1, **options)
    assert model.dtypes == {torch.bfloat16} and plain.dtypes == {torch.float32}
    assert half.maps.dtype == torch.float32 and half.settings["precision"] == "bfloat16"
    assert 0 < (half.maps - full.maps).flatten(2).norm(dim=2).div(full.maps.flatten(2).norm(dim=2)).median() < 0.05
    judged = [r.criteria["relative_sensitivity"]["consensus"].fresh for r in (half, full)]
    torch.testing.assert_close(judged[0], judged[1], rtol=0.2, atol=1e-3)


def test_an_autocast_of_the_caller_stays():
    model = Seen()
    with torch.autocast("cpu", torch.bfloat16):
        cs.Score(model, 1).at(images(dtype=torch.float32))
    assert model.dtypes == {torch.bfloat16}
    with pytest.raises(cs.InputError, match="precision"):
        cs.Score(nn.Identity(), precision="half")


# -- the regret of the paper's objective ------------------------------------------------------------------------------


def test_the_papers_sum_is_judged_as_the_form_that_is_minimised():
    """Regret 0 for the weights of the same draws, and equal to the definition: each block with the scales of all."""
    goal = aim("paper_opt")
    r = cs.explain(Small(), images(), 1, methods=METHODS, objective="mean", fit_draws=20, fresh_draws=2)
    e = joined(r.evidence["fit"]).rows(slice(5))
    parts = [term.matrix(e) for _, term in goal.terms]
    form = torch.stack([m / torch.linalg.matrix_norm(m)[:, None, None] for m in parts]).sum(0)
    w = goal.minimise(e).weights
    whole = goal.over_blocks(e, [e.fold(i, 5)[1] for i in range(5)], [w] * 5)
    torch.testing.assert_close(whole, torch.einsum("bi,bij,bj->b", w, form, w))
    found = regret(Rule(goal, range(5)), e)
    assert set(found) == {"quadratic", "responses"} and all((v > -0.05).all() for v in found.values())
