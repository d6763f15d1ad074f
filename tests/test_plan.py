"""The plan of an explanation: evaluations by a closed formula that the counter confirms, and what attribute() leaves out."""

from __future__ import annotations

import copy

import pytest
import torch
from nets import Small, images
from torch import nn

import consilience as cs
from consilience.combine.named import named_objective
from consilience.combine.regret import regret, solve_with_regret
from consilience.combine.weights import Minimise
from consilience.explain.options import Options
from consilience.explain.run import Rows, begin
from consilience.explainers import GradCAM, InputXGradient, IntegratedGradients, Saliency, SmoothGrad
from consilience.metrics import AverageSensitivity, Infidelity
from consilience.perturb.points import Points
from consilience.statistics.evidence import joined

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
    job = begin(Small(), images(), None, Options.of(**options))
    before = copy.copy(job.ready.score.counts)
    assert before.gradient == ONE + 1  # the first input's maps, made when the methods are tried; the layer's probe
    planned = job.planned()
    (least, most) = (sum((pair[i] for pair in planned.values()), Rows()) for i in (0, 1))
    assert least == most
    r = cs.explain(Small(), images(), **options)
    assert (r.counts.gradient, r.counts.forward) == (before.gradient + most.gradient, before.forward + most.forward)
    solved = resolved if objective in GOALS else 0
    # The maps; 6 neighbours and 2 other outputs to fit; 5 and 2 that judge; at each neighbour, what the weights look at.
    looked_at = {"robust": 6, "faith": 0, "opt": 6}.get(objective, 0)
    assert ONE + most.gradient == 3 * ONE * (1 + 6 + 2 + 5 + 2 + solved * (1 + looked_at))


@pytest.mark.parametrize(
    "objective, gradients, forwards",
    [("robust", 1 + 6, 0), ("faith", 1, 41), ("opt", 1 + 6, 41), ("mean", 1, 0), ("median", 1, 0), ("weighted", 1 + 6, 41)],
)  # fmt: skip
def test_attribute_draws_only_what_its_weights_need(objective, gradients, forwards):
    options = {"methods": METHODS, "objective": GOALS.get(objective, objective), "fit_draws": FIT}
    job = begin(Small(), images(), None, Options.of(**options))
    before = copy.copy(job.ready.score.counts)
    planned = sum((most for _, most in job.planned(False).values()), Rows())
    found = job.combine(every=False)
    # The maps of one input of three were made before.
    assert spent(job, before) == Rows(3 * ONE * gradients - ONE, 3 * forwards)
    assert planned == spent(job, before)
    torch.testing.assert_close(found.attribution, cs.explain(Small(), images(), **options).attribution)


def test_given_weights_draw_nothing():
    job = begin(Small(), images(), None, Options.of(methods=METHODS, weights=torch.ones(5) / 5))
    before = copy.copy(job.ready.score.counts)
    found = job.combine(every=False)
    assert spent(job, before) == Rows(2 * ONE, 0)
    torch.testing.assert_close(found.attribution, found.base.mean(1))


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("objective", GOALS)
def test_draws_until_sure_stay_within_their_plan(objective, every):
    options = {"methods": METHODS, "objective": GOALS[objective], "fit_draws": cs.Draws(20, 512), "draws": "auto"}
    job = begin(Small(), images(), 1, Options.of(**options))
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
    if objective == "faith" and not every:  # looks at no neighbours, so there are none
        assert least.gradient == took.gradient == most.gradient
    if objective == "robust" and not every:
        assert least.forward == took.forward == most.forward


def test_draws_are_made_until_sure_unless_a_number_is_asked_for():
    small = {"methods": METHODS, "objective": GOALS["robust"]}
    assert Options.of(**small).sequential and Options.of(**small).tolerance == 0.02
    assert not Options.of(**small, fit_draws=5).sequential
    assert not Options.of(**small, draws="paper").sequential
    assert Options.of(methods=METHODS, objective="mean").fitting == cs.Draws(10, 256)
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
    assert set(quick.parts) == {"preparation", "the maps", "draws to fit"} and quick.rows[0].gradient < least.gradient


def test_completeness_is_read_off_the_maps_that_are_there():
    r = cs.explain(Small(), images(), 1, methods=METHODS, objective="mean", fit_draws=2, fresh_draws=2)
    model = Small()
    x = images()
    fall = model(x)[:, 1] - model(torch.zeros_like(x))[:, 1]
    raw = cs.explainers.Stack([IntegratedGradients(4)])
    score = cs.Score(model, 1).at(x)
    sums = raw.attribute(score, Points(x, torch.arange(3), score.ids)).flatten(1).sum(1)
    torch.testing.assert_close(r.completeness["integrated_gradients"], ((sums - fall) / fall).abs().detach())


# -- precision ---------------------------------------------------------------------------------------------------------


class Seen(Small):
    """Counts the rows by the dtype in which its convolutions run."""

    def __init__(self):
        super().__init__()
        self.rows = {}
        self.float()

    def forward(self, x):
        y = self.conv1(x)
        self.rows[y.dtype] = self.rows.get(y.dtype, 0) + len(x)
        return self.head(self.act2(self.conv2(self.act1(y))).mean((2, 3)))


def test_half_precision_runs_the_model_and_nothing_else():
    options = {"methods": METHODS[:4], "objective": "robust", "fit_draws": 8, "fresh_draws": 4, "resolved_draws": 0}
    x = images(dtype=torch.float32)
    model, plain = Seen(), Seen()
    half, full = cs.explain(model, x, 1, precision="bfloat16", **options), cs.explain(plain, x, 1, **options)
    # The first look at x, which resolves the target, and three passes of two rows before it are in full precision.
    assert set(model.rows) == {torch.bfloat16, torch.float32} and model.rows[torch.float32] == 3 + 6
    assert set(plain.rows) == {torch.float32}
    assert half.maps.dtype == torch.float32 and half.settings["precision"] == "bfloat16"
    assert 0 < (half.maps - full.maps).flatten(2).norm(dim=2).div(full.maps.flatten(2).norm(dim=2)).median() < 0.05
    judged = [r.criteria["relative_sensitivity"]["consensus"].fresh for r in (half, full)]
    torch.testing.assert_close(judged[0], judged[1], rtol=0.2, atol=1e-3)


def test_an_autocast_of_the_caller_stays():
    model = Seen()
    with torch.autocast("cpu", torch.bfloat16):
        cs.Score(model, 1).at(images(dtype=torch.float32))
    assert set(model.rows) == {torch.bfloat16}
    with pytest.raises(cs.InputError, match="precision"):
        cs.Score(nn.Identity(), precision="half")
    with pytest.raises(cs.InputError, match="float64"):
        cs.explain(Small(), images(), methods="saliency", precision="bfloat16")
    with pytest.raises(cs.InputError, match="NumPy"):
        cs.explain(lambda x: x, images(dtype=torch.float32).flatten(1).numpy(), methods="lime", precision="bfloat16")


def test_float16_keeps_small_gradients():
    """The lift against underflow counts under autocast too."""
    small = Small().float()
    with torch.no_grad():
        small.head.weight *= 1e-6
    x = images(dtype=torch.float32)
    plain, half = (
        cs.Score(small, 1, precision=precision).at(x).grad(x, torch.arange(3)) for precision in (None, "float16")
    )
    assert (half - plain).norm() / plain.norm() < 0.1


def test_the_target_is_resolved_in_full_precision():
    class Close(nn.Module):
        def forward(self, x):
            y = x.flatten(1)[:, :1] @ torch.tensor([[1.0, 1.0 + 2**-12]])
            return y + 64

    x = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) + 1
    assert (cs.Score(Close(), precision="bfloat16").at(x).targets == 1).all()


# -- what must not fail --------------------------------------------------------------------------------------------------


def test_maps_of_zeros_stop_at_once_and_can_be_saved(tmp_path):
    class Dead(nn.Module):
        def forward(self, x):
            return torch.relu(x[:, :2] - 100)

    r = cs.explain(
        Dead(),
        torch.rand(2, 4),
        1,
        methods=["saliency", "input_x_gradient"],
        objective="opt",
        fresh_draws=4,
        resolved_draws=0,
    )
    said = r.draws["fit"][0]
    assert said["average_sensitivity"] == 2 and said["stopped"].startswith("no regret")
    assert None in said["regret"].values()
    assert "no regret" in cs.load(r.save(tmp_path / "run")).record(0)["draws"]["fit"]["stopped"]


def test_a_perfect_criterion_needs_no_further_draws():
    """What is zero but for rounding has no regret worth a draw."""
    keyed = torch.Generator().manual_seed(0)
    linear, x = nn.Linear(6, 2), torch.rand(6, 6, generator=keyed)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(2, 6, generator=keyed))
    r = cs.explain(
        linear, x, 1, methods=["input_x_gradient", "integrated_gradients"], objective="faith", fresh_draws=4,
        resolved_draws=0,
    )  # fmt: skip
    assert all(fit["infidelity"] == 128 and "-" not in fit["stopped"] for fit in r.draws["fit"])


def test_fewer_draws_than_blocks_have_a_regret():
    r = cs.explain(
        Small(),
        images(),
        1,
        methods=METHODS,
        objective="opt",
        draws="auto",
        fit_draws=3,
        fresh_draws=2,
        resolved_draws=0,
    )
    assert all(value is not None for fit in r.draws["fit"] for value in fit["regret"].values())


def test_everything_works_in_inference_mode():
    options = {"methods": METHODS[:2], "objective": GOALS["robust"], "fit_draws": 3}
    consensus = cs.Consensus(Small(), **options)
    expected, model = consensus.attribute(images(), 1), Small()
    with torch.inference_mode():
        torch.testing.assert_close(consensus.attribute(images(), 1), expected)
        assert consensus.plan(images(), 1).rows[0].gradient > 0
        assert consensus.fit([images()], 1).weights.sum() == pytest.approx(1)
        assert len(cs.evaluate(model, images(), measures="gini_sparseness", **options)) == 3


def test_fit_takes_as_many_draws_as_are_asked_for():
    seen = []

    class Counting(Small):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    for options, draws in (({"draws": "paper"}, 50), ({"draws": "auto"}, 10), ({"fit_draws": 4}, 4), ({}, 10)):
        seen.clear()
        cs.Consensus(Counting(), [Saliency()], GOALS["robust"], **options).fit([images()], 1)
        # Do rows depend on their batch? Outputs at x; maps at x and at its neighbours; no trial beside them.
        assert sum(seen) == 6 + 3 + 3 * (1 + draws)


def test_running_out_of_memory_at_the_first_look_halves_too():
    class Hungry(Small):
        def forward(self, x):
            if len(x) > 8:
                raise torch.OutOfMemoryError("simulated")
            return super().forward(x)

    score = cs.Score(Hungry(), 1).at(images(20))
    assert score.outputs.isfinite().all() and score.batch.size(False) <= 8
    torch.testing.assert_close(score.outputs_of(images(20), torch.arange(20)), Small()(images(20)).detach())


def test_members_of_a_mixture_get_the_baselines_and_patches_by_name():
    from consilience.explainers import FeatureAblation, Mixture

    mixture = Mixture((IntegratedGradients(8), FeatureAblation()), (0.5, 0.5), features=cs.Patches(16))
    options = {"methods": [mixture, IntegratedGradients(8), FeatureAblation()], "objective": "mean", "scale": "none"}
    options |= {"features": "patches", "fit_draws": 2, "fresh_draws": 2, "sign": "abs"}
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    one, other = (cs.explain(Small(), x, 1, baselines=b, **options) for b in (0.0, 5.0))
    scaled = [r.maps[:, 1:] / r.maps[:, 1:].flatten(2).amax(2)[..., None, None] for r in (one, other)]
    for r, parts in zip((one, other), scaled, strict=True):
        torch.testing.assert_close(r["mixture"], parts.mean(1))
    assert (one["mixture"] - other["mixture"]).abs().max() > 1e-3


def test_an_evaluation_until_sure_is_not_continued_by_one_of_fixed_draws(tmp_path):
    options = {"methods": METHODS[:2], "objective": GOALS["robust"], "measures": "gini_sparseness"}
    path = tmp_path / "t.json"
    cs.evaluate(Small(), images(), path=path, **options)
    with pytest.raises(cs.InputError, match="other settings"):
        cs.evaluate(Small(), images(), path=path, fit_draws=cs.Draws(40, 1024), **options)
    assert len(
        cs.evaluate(
            Small().bfloat16(), images().bfloat16(), methods=METHODS[:2], objective=None, measures="gini_sparseness"
        )
    )


# -- the regret of the paper's objective ------------------------------------------------------------------------------


def test_the_papers_sum_is_judged_as_the_form_that_is_minimised():
    """Regret 0 for the weights of the same draws, and equal to the definition: each block with the scales of all."""
    goal = named_objective("paper_opt")
    r = cs.explain(Small(), images(), 1, methods=METHODS, objective="mean", fit_draws=20, fresh_draws=2)
    e = joined(r.evidence["fit"]).rows(slice(5))
    parts = [term.matrix(e) for _, term in goal.terms]
    form = torch.stack([m / torch.linalg.matrix_norm(m)[:, None, None] for m in parts]).sum(0)
    w = goal.minimise(e).weights
    whole = goal.over_blocks(e, [(0.2, e.fold(i, 5)[1]) for i in range(5)], [w] * 5)
    torch.testing.assert_close(whole, torch.einsum("bi,bij,bj->b", w, form, w))
    found = regret(Minimise(goal), e, w)
    assert set(found) == {"quadratic", "responses"} and all((v > -0.05).all() for v in found.values())


@pytest.mark.parametrize("objective", ["opt", "robust", "faith", "paper_opt"])
@pytest.mark.parametrize("pooled", [False, True])
def test_weights_and_regret_of_one_batch_are_those_of_one_after_the_other(objective, pooled):
    r = cs.explain(
        Small(), images(), 1, methods=METHODS, objective="mean", fit_draws={"average_sensitivity": 6, "infidelity": 33}
    )
    e = joined(r.evidence["fit"]).rows(slice(5))
    rule = Minimise(named_objective(objective), pooled=pooled)
    found, regrets = solve_with_regret(rule, e)
    expected = rule.fit(e)
    torch.testing.assert_close(found.weights, expected.weights)
    torch.testing.assert_close(found.solution.value, expected.solution.value)
    assert found.solution.status == expected.solution.status
    assert (found.curve is None) == (expected.curve is None)
    for kind, value in regret(rule, e, expected.weights).items():
        torch.testing.assert_close(regrets[kind], value)
        assert value.shape == (3,)
