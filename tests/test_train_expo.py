"""Training objectives, case by case: ExpO, gradients, penalties with any metric and explainer, weights, errors, the docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as nnf
from nets import Small, images
from torch import nn
from train_twins import BACKGROUND, IDS, X, Y

from consilience import AverageSensitivity, Front, Infidelity, train
from consilience.errors import InputError
from consilience.explainers import GradCAM, InputXGradient, IntegratedGradients, Saliency, SmoothGrad
from consilience.features.images import Patches
from consilience.metrics import Alignment, Completeness, LocalFidelity

DOCS = Path(__file__).parents[1] / "docs" / "training.md"


def tables(count, d, seed=0):
    return torch.randn(count, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Function(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x)


# -- ExpO ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_fidelity_of_a_linear_model_is_zero(shared):
    line = nn.Linear(5, 3).double()
    for objective in (train.Fidelity(shared=shared), train.Fidelity1D(shared=shared)):
        assert objective(line, tables(4, 5)).total < 1e-25
        assert objective(Function(torch.exp), tables(4, 5)).total > 1e-3


def test_one_dimension_is_one_dimension():
    x, net = tables(6, 1), nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    for _ in range(2):
        assert torch.equal(train.Fidelity()(net, x).total, train.Fidelity1D()(net, x).total)


def test_shared_draws_are_those_of_one_input():
    x, net = tables(3, 2), nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    shared = train.Fidelity(shared=True)(net, x, ids=[5, 6, 7]).total
    torch.testing.assert_close(shared, train.Fidelity()(net, x, ids=[0, 0, 0]).total)


def test_fidelity_of_a_parabola_is_its_variance():
    """(x + σz)² − its best line = σ²(z² − 1): variance 2σ⁴, in-sample (n − 2)/n of it, up to the leverage of z."""
    found = train.Fidelity(sigma=0.3, samples=400)(Function(lambda x: x**2), torch.full((300, 1), 7.0)).total
    assert float(found) == pytest.approx(2 * 0.3**4, rel=0.03)


def test_stability_of_a_line():
    """E (w·u)² = ‖w‖² r²/3."""
    w = torch.tensor([1.0, -2.0, 0.5])
    found = train.Stability(radius=0.2, samples=50)(Function(lambda x: x @ w), torch.zeros(200, 3)).total
    assert float(found) == pytest.approx(float(w @ w) * 0.04 / 3, rel=0.03)


# -- gradients -----------------------------------------------------------------------------------------------------------


def test_gradient_regularisers_of_a_line():
    """∇ is w everywhere: no misalignment, ‖w‖², attributions (x − b) ⊙ w."""
    w = torch.tensor([1.0, -2.0, 0.5]).double()
    line, x = Function(lambda x: x @ w), tables(4, 3)
    y = torch.zeros(4)
    squared = {"loss_fn": train.squared_error}
    assert float(train.InputGradientPenalty(of="output")(line, x).total) == pytest.approx(float(w @ w))
    assert train.LocalGradientAlignment(0.3)(line, x).total.abs() < 1e-12
    slope = train.InputGradientPenalty(**squared)(line, x, y).total  # ∇(w·x)² = 2 (w·x) w
    torch.testing.assert_close(slope, (4 * (x @ w) ** 2).mean() * (w @ w))
    a = ((x - x[:1]) * w).abs().mean(0)
    gini = train.AttributionPrior("gini", x[:1])(line, x).total
    torch.testing.assert_close(gini, -(a[:, None] - a).abs().sum() / (3 * a.sum()))
    parallel = train.IGCosine(1e-9, 1, **squared)(line, x, y).total
    assert parallel.abs() < 1e-12


def test_dead_networks_give_zeros_not_nan():
    class Dead(Small):
        def forward(self, x):
            return self.head(nnf.relu(self.features(x) - 1e6).mean((2, 3)))

    for objective in (
        train.LocalGradientAlignment(0.1, hold=False), train.IGCosine(0.1), train.AttributionPrior("gini", BACKGROUND),
        train.Penalty(AverageSensitivity(), Saliency()), train.Penalty(Infidelity(Patches(2)), Saliency()),
    ):  # fmt: skip
        model = Dead()
        loss = objective(model, X, Y)
        assert loss.total.isfinite()
        if isinstance(objective, train.Penalty):
            assert loss.parts["defined"] == 0 and loss.total == 0
        loss.total.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# -- Penalty -------------------------------------------------------------------------------------------------------------

THREE = (InputXGradient(), IntegratedGradients(3), SmoothGrad(3))
CASES = {
    "one, relative": (AverageSensitivity(0.1), InputXGradient()),
    "one, absolute": (AverageSensitivity(0.1, relative=False), IntegratedGradients(4)),
    "correlation": (Infidelity(Patches(2)), InputXGradient()),
    "raw": (Infidelity(Patches(2), scaling="raw"), InputXGradient()),
    "mixture, relative": (AverageSensitivity(0.1), THREE),
    "mixture, absolute": (AverageSensitivity(0.1, relative=False), THREE),
    "mixture, correlation": (Infidelity(Patches(2)), THREE),
    "alignment": (Alignment(region=images(3, 4).sum(1) > 0), THREE),
    "local fidelity": (LocalFidelity(radius=0.2), (Saliency(), SmoothGrad(3)), {"sign": "keep", "scale": "none"}),
    "completeness": (Completeness(), THREE[:2], {"sign": "keep", "scale": "none"}),
}


def numbers(model, objective):
    """(Slope of the total along a direction in conv2, central difference)."""
    direction = torch.randn(model.conv2.weight.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    objective.eval()
    (slope,) = torch.autograd.grad(objective(model, X, Y).total, [model.conv2.weight])
    sides, step = [], 1e-5
    with torch.no_grad():
        for sign in (1, -1):
            model.conv2.weight += sign * step * direction
            sides.append(objective(model, X, Y).total)
            model.conv2.weight -= sign * step * direction
    return (slope * direction).sum(), (sides[0] - sides[1]) / (2 * step)


@pytest.mark.parametrize("name", CASES)
def test_the_penaltys_gradient_agrees_with_finite_differences(name):
    """Mixtures are solved anew on either side: holding w* gives the gradient of the optimum (Danskin)."""
    metric, explainers, *more = CASES[name]
    objective = train.Penalty(metric, explainers, draws=6, weight=1.0, **(more[0] if more else {}))
    assert objective(Small(nn.Softplus), X, Y).parts["defined"] == 1
    torch.testing.assert_close(*numbers(Small(nn.Softplus), objective), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("metric", [AverageSensitivity(0.1), Infidelity(Patches(2))])
def test_the_mixture_is_at_least_as_good_as_each(metric):
    model = Small(nn.Softplus)
    value = lambda explainers: train.Penalty(metric, explainers, draws=8)(model, X, Y, IDS).parts["penalty"]  # noqa: E731
    mixture = value(THREE)
    assert all(mixture <= value(one) + 1e-12 for one in THREE)
    torch.testing.assert_close(value([*THREE, *THREE]), mixture)


def test_a_sum_of_metrics_is_balanced_by_held_scales():
    """Each part divided by its best explainer's value: 1 each for one explainer, whose gradient is that of the ratio's top."""
    model, metrics = Small(nn.Softplus), (AverageSensitivity(0.1), Infidelity(Patches(2), scaling="raw"))
    both = train.Penalty(metrics[0] + 0.5 * metrics[1], Saliency())(model, X[:1], Y[:1])
    assert both.parts["penalty"] == pytest.approx(1.5)
    alone = [train.Penalty(metric, Saliency())(model, X[:1], Y[:1]) for metric in metrics]
    wanted = alone[0].total / alone[0].parts["penalty"] + 0.5 * alone[1].total / alone[1].parts["penalty"]
    for a, b in zip(*(torch.autograd.grad(t, model.conv1.weight) for t in (both.total, wanted)), strict=True):
        torch.testing.assert_close(a, b)


def test_training_on_a_penalty_improves_it():
    model, fresh = Small(nn.Softplus), train.Penalty(AverageSensitivity(0.1), GradCAM(), seed=9, draws=8)
    objective = train.Penalty(AverageSensitivity(0.1), GradCAM())
    before = fresh(model, X, Y).total
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(10):
        optimiser.zero_grad()
        (nnf.cross_entropy(model(X), Y) + 10 * objective(model, X, Y).total).backward()
        optimiser.step()
    assert fresh(model, X, Y).total < 0.7 * before


def test_regression_has_penalties_too():
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = tables(3, 4)
    penalty = train.Penalty(AverageSensitivity(0.1), Saliency(), kind="output", loss_fn=train.squared_error)
    assert penalty(net, x, x[:, 0]).parts["defined"] == 1
    assert train.IGNorm(0.1, 2, loss_fn=train.squared_error)(net, x, x[:, 0]).parts["ig_norm"] > 0


# -- weights -------------------------------------------------------------------------------------------------------------


def test_weights():
    model, x = Small(nn.Softplus), X
    value = train.InputGradientPenalty()(model, x, Y).parts["input_gradient"]
    objective = train.InputGradientPenalty(weight=train.WarmUp(4, to=2.0))
    weights = [float(objective(model, x, Y).parts["weight"]) for _ in range(5)]
    assert weights == [0.5, 1.0, 1.5, 2.0, 2.0]
    objective = train.InputGradientPenalty(weight=train.Balanced(lambda step: 0.1 + step))
    first = objective(model, x, Y)
    ratio = nnf.cross_entropy(model(x), Y).detach() / value
    assert float(first.parts["weight"]) == pytest.approx(0.1 * float(ratio))
    assert float(objective(model, -x, Y).parts["weight"]) == pytest.approx(1.1 * float(ratio))
    attacked = train.IGNorm(0.1, 2, weight=train.Balanced(0.5))
    start = train.IGNorm(0.1, 0)(model, x, Y)
    assert float(attacked(model, x, Y).parts["weight"]) == pytest.approx(
        0.5 * float(start.parts["task"] / start.parts["ig_norm"])
    )


ERRORS = {
    "the labels, got None": lambda m: train.InputGradientPenalty()(m, X),
    "x: expected a batch": lambda m: train.NaturalTraining()(m, torch.zeros(2, 3, dtype=torch.long), Y[:2]),
    "ids: shape .2,. for 3": lambda m: train.NaturalTraining()(m, X, Y, [1, 2]),
    "y: shape .2,. for 3": lambda m: train.NaturalTraining()(m, X, Y[:2]),
    "model: expected an nn.Module": lambda m: train.NaturalTraining()(lambda x: x, X, Y),
    "one loss for each": lambda m: train.NaturalTraining(loss_fn=nnf.cross_entropy)(m, X, Y),
    "one output, whose cross-entropy": lambda m: train.NaturalTraining()(Function(lambda x: x[:, 0, 0, :1]), X, Y),
    "samples: 4 draws in 3": lambda m: train.Fidelity(samples=4)(m, tables(2, 3)),
    "Balanced divides": lambda m: train.Stability(weight=train.Balanced(1.0))(
        Function(lambda x: x[:, :2, 0, 0] * 0), X, Y % 2
    ),
    "max_batch is a whole number": lambda m: train.NaturalTraining(max_batch=0),
    "reduction is one of 'mean', 'sum'; got 'avg'": lambda m: train.NaturalTraining(reduction="avg"),
    "size is one of": lambda m: train.IGNorm(0.1, size="l2"),
    "eps is": lambda m: train.AdversarialTraining(-0.1),
    "metric: a metric, or a sum": lambda m: train.Penalty(Front(AverageSensitivity(), Infidelity()), Saliency()),
    "does not fit": lambda m: train.NaturalTraining(loss_fn=train.squared_error)(m, X, Y),
    "background: rows": lambda m: train.AttributionPrior("gini", torch.zeros(2, 5))(m, X, Y),
    "for images and series": lambda m: train.AttributionPrior("total_variation", torch.zeros(2, 5))(
        nn.Linear(5, 2), torch.zeros(2, 5), Y[:2]
    ),
    "fewer than the 64 features": lambda m: train.InsertionDeletion(Saliency(), steps=64)(m, X, Y),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_name_what_was_wrong(message):
    with pytest.raises(InputError, match=message):
        ERRORS[message](Small())


# -- the docs' code ------------------------------------------------------------------------------------------------------


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)


def test_the_docs_loop_runs(capsys):
    space: dict = {}
    for block in blocks("python"):
        exec(block, space)
    assert int(space["checkpoint"]["objective"]["step"]) == 4 and capsys.readouterr().out.count("ig_norm") == 4


def test_the_docs_trainer_runs(tmp_path):
    """And, resumed, ends where the uninterrupted run does."""
    (block,) = blocks("python trainer")
    space = {"output_dir": str(tmp_path)}
    exec(block, space)
    whole = space["trainer"]
    assert whole.state.global_step == 4 == int(whole.objective.step), "evaluation has not advanced the step"
    torch.manual_seed(1)
    again = space["RobustTrainer"](
        train.IGNorm(eps=0.1, steps=2, points=4, attack_points=2, weight=0.5),
        model=space["ConvNextForImageClassification"](space["config"]), args=whole.args, train_dataset=space["data"],
    )  # fmt: skip
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert int(again.objective.step) == 4
    for p, q in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_docs_trainer_accumulates_means(tmp_path):
    (block,) = blocks("python trainer")
    space = {"output_dir": str(tmp_path)}
    exec(block.partition("torch.manual_seed")[0], space)
    found = []
    for batch, parts in ((8, 1), (4, 2)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        model.forward = lambda pixel_values, labels=None, model=model, **kwargs: model[1](pixel_values.flatten(1))
        data = [{"pixel_values": torch.rand(1, 8, 8), "labels": n % 10} for n in range(8)]
        arguments = space["TrainingArguments"](
            str(tmp_path), max_steps=1, per_device_train_batch_size=batch, gradient_accumulation_steps=parts, optim="sgd",
            learning_rate=1.0, max_grad_norm=0.0, report_to=[], use_cpu=True, remove_unused_columns=False, save_strategy="no",
        )  # fmt: skip
        space["RobustTrainer"](train.NaturalTraining(), model=model, args=arguments, train_dataset=data).train()
        found.append(model[1].weight.detach())
    torch.testing.assert_close(*found)


def test_attention_can_be_differentiated_twice():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 3))
    for objective in (train.InputGradientPenalty(), train.Penalty(AverageSensitivity(), Saliency())):
        objective(net, torch.randn(2, 3, 8), Y[:2] % 3).total.backward()
    assert layer.self_attn.in_proj_weight.grad.any()


def test_images_are_not_written_to_by_in_place_models():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(192, 4)).double()
    x = images(2)
    train.InputGradientPenalty()(model, x, Y[:2]).total.backward()
    assert torch.equal(x, images(2))
