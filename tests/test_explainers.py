"""One table of explainers × a short list of laws. A new row inherits every law; a test says that the table is complete."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as nnf
import twins
import twins_more
import twins_perturbation
from nets import Small, bound, images
from torch import nn
from twins import SEED

from consilience.errors import InputError
from consilience.explainers import (  # fmt: skip
    METHODS,
    PRESETS,
    DeepLIFT,
    ExpectedGradients,
    GradCAM,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    Normalised,
    Saliency,
    SmoothGrad,
    Stack,
    resolve,
)
from consilience.features.base import Elements
from consilience.features.images import Pixels
from consilience.model.score import Score

TABLE = [*twins.TABLE, *twins_more.TABLE, *twins_perturbation.TABLE]
rows = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.explainer.name)


def test_the_table_is_complete():
    assert {row.explainer.name for row in TABLE} == set(METHODS)


@rows
def test_equals_its_slow_twin(row):
    model, x = Small(), images()
    score, points = bound(model, x, target=[1, 0, 3])
    found = Stack([row.explainer], SEED).attribute(score, points)[:, 0]
    for i, target in enumerate([1, 0, 3]):
        torch.testing.assert_close(found[i], row.twin(row.explainer, model, x[i], i, target), rtol=1e-9, atol=1e-12)


@rows
def test_same_for_any_batch_order_size_and_chunk(row):
    model, x, ids = Small(), images(4), torch.tensor([5, 1, 9, 4])
    whole = Stack([row.explainer], SEED).attribute(*bound(model, x, ids=ids, max_batch=64))
    for size in (1, 3):
        torch.testing.assert_close(
            Stack([row.explainer], SEED).attribute(*bound(model, x, ids=ids, max_batch=size)), whole
        )
    order = torch.tensor([2, 0, 3, 1])
    moved = Stack([row.explainer], SEED).attribute(*bound(model, x[order], ids=ids[order], max_batch=2))
    torch.testing.assert_close(moved, whole[order])


@rows
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_dtype_and_float32_is_within_tolerance(row, dtype):
    x = images()
    exact = Stack([row.explainer], SEED).attribute(*bound(Small(), x))
    found = Stack([row.explainer], SEED).attribute(*bound(Small().to(dtype), x.to(dtype)))
    assert found.dtype == dtype and found.shape == (3, 1, 3, 8, 8)
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-4 * exact.abs().max().item())


@rows
def test_bfloat16_autocast_is_within_tolerance(row):
    """Folds and sums stay in float32; a forest's splits may fall elsewhere."""
    exact = Stack([row.explainer], SEED).attribute(*bound(Small(), images()))
    half = bound(Small().float(), images(dtype=torch.float32), precision="bfloat16")
    found = Stack([row.explainer], SEED).attribute(*half)
    assert found.dtype == torch.float32
    assert (found.double() - exact).norm() / exact.norm() < (0.5 if row.explainer.name == "maple" else 0.15)


@rows
@pytest.mark.parametrize("fails", [False, True])
def test_leaves_model_input_and_random_state_untouched(row, fails):
    model, x = Small(), images()
    model.train()
    model.conv1.eval()
    model.conv2.weight.requires_grad_(False)
    hooks = [len(m._forward_hooks) for m in model.modules()]
    if fails:
        handle = model.head.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("broken head")))
    before = copy.deepcopy(model.state_dict()), x.clone(), torch.random.get_rng_state()
    modes = [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    try:
        Stack([row.explainer], SEED).attribute(*bound(model, x))
    except (RuntimeError, InputError) as error:
        assert fails and "broken head" in str(error)
        handle.remove()
    assert modes == [m.training for m in model.modules()] and flags == [p.requires_grad for p in model.parameters()]
    assert hooks == [len(m._forward_hooks) for m in model.modules()]
    assert all(p.grad is None for p in model.parameters()) and x.grad is None and not x.requires_grad
    assert all(torch.equal(before[0][k], v) for k, v in model.state_dict().items())
    assert torch.equal(before[1], x) and torch.equal(before[2], torch.random.get_rng_state())


@pytest.mark.parametrize("row", [r for r in TABLE if r.differentiable], ids=lambda row: row.explainer.name)
def test_is_differentiable_in_the_parameters(row):
    """The gradient of a smooth function of the map agrees with central differences along a random direction."""
    model, x = Small(nn.Softplus), images(2)
    mixed = images(2, seed=9)
    direction = torch.randn(model.conv2.weight.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def value(graph=False):
        score, points = bound(model, x)
        return (Stack([row.explainer], SEED).attribute(score, points, graph=graph)[:, 0] * mixed).sum()

    (slope,) = torch.autograd.grad(value(graph=True), [model.conv2.weight])
    step, sides = 1e-5, []
    with torch.no_grad():
        for sign in (1, -1):
            model.conv2.weight += sign * step * direction
            sides.append(value())
            model.conv2.weight -= sign * step * direction
    torch.testing.assert_close((slope * direction).sum(), (sides[0] - sides[1]) / (2 * step), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("row", [r for r in TABLE if r.explainer.complete], ids=lambda row: row.explainer.name)
def test_completeness_where_it_is_claimed(row):
    from dataclasses import replace

    model, x = Small(nn.Softplus), images()
    explainer = replace(row.explainer, n_steps=12) if hasattr(row.explainer, "n_steps") else row.explainer
    if isinstance(explainer, ExpectedGradients):
        explainer = ExpectedGradients(4000, baselines=0.3)  # Monte-Carlo along one path
    score, points = bound(model, x)
    total = Stack([explainer], SEED).attribute(score, points).flatten(1).sum(1)
    fall = score.clean - model(torch.full_like(x, 0.3))[:, 1]
    torch.testing.assert_close(
        total, fall.detach(), rtol=0.05 if isinstance(explainer, ExpectedGradients) else 1e-6, atol=1e-3
    )


def test_a_stack_evaluates_each_distinct_need_once():
    score, points = bound(Small(), images(2))
    start = score.counts.gradient
    Stack(PRESETS["paper"], SEED).attribute(score, points)
    assert score.counts.gradient - start == 2 * 74  # 1 + 1 + 2 + 50 + 20: AGG's seven methods share what they can
    assert Stack(PRESETS["paper"]).rows() == {"forward": 0, "gradient": 74}
    assert 51 * 74 == 3774


def test_one_explainer_is_a_stack_of_one():
    everything = [row.explainer for row in TABLE]
    together = Stack(everything, SEED).attribute(*bound(Small(), images()))
    for i, explainer in enumerate(everything):
        torch.testing.assert_close(together[:, i], Stack([explainer], SEED).attribute(*bound(Small(), images()))[:, 0])


def test_integrated_gradients_are_exact_for_polynomials():
    """n Gauss–Legendre points integrate degree 2n − 1 exactly: 2 steps are enough for f = Σx⁴ (its gradient has degree 3)."""
    score, points = bound(lambda x: (x**4).sum(1, keepdim=True), torch.tensor([[1.0, -2.0, 3.0]]).double(), target=None)
    found = Stack([IntegratedGradients(2)]).attribute(score, points)
    torch.testing.assert_close(found[0, 0], torch.tensor([1.0, 16.0, 81.0]).double())


def test_reused_functional_and_in_place_activations_give_the_same_maps():
    class Odd(Small):
        def features(self, x):
            h = self.conv1(x)
            h.relu_()
            return nnf.relu(self.conv2(h), inplace=True)

    for explainer in (GuidedBackprop(), DeepLIFT(), Saliency(), GradCAM(layer="auto")):
        plain = Stack([explainer]).attribute(*bound(Small(), images()))
        odd = Stack([explainer]).attribute(*bound(Odd(), images())) if not isinstance(explainer, GradCAM) else plain
        torch.testing.assert_close(plain, odd)


def test_for_a_layer_alone_no_gradient_of_the_input_is_taken():
    score, points = bound(Small(), images())
    alone, both = (score.evaluate(points.x, points.owner, gradient=g, layers=("auto",)) for g in (False, True))
    assert alone.gradient is None and both.gradient is not None
    torch.testing.assert_close(alone.activations["auto"], both.activations["auto"])


@pytest.mark.parametrize("sign", ["abs", "keep"])
@pytest.mark.parametrize("scale", ["max", "l2", "none"])
def test_normalisation(sign, scale):
    stack = Stack([Saliency(), InputXGradient()])
    score, points = bound(Small(), images())
    raw = stack.attribute(score, points).sum(2)
    found = Normalised(stack, Pixels(), sign, scale).attribute(score, points)
    expected = raw.abs() if sign == "abs" else raw
    size = {"max": raw.abs().amax((2, 3)), "l2": raw.pow(2).sum((2, 3)).sqrt(), "none": torch.ones(3, 2).double()}[
        scale
    ]
    torch.testing.assert_close(found, expected / size[..., None, None])


def test_zero_maps_stay_zero_and_nan_is_seen():
    stage = Normalised(Stack([Saliency()]), Elements())
    maps = torch.tensor([[[0.0, 0.0]], [[torch.nan, 1.0]]])
    found = stage.apply(maps, torch.arange(2))
    assert torch.equal(found[0], torch.zeros(1, 2)) and found[1].isnan().any()


def test_names():
    assert [e.name for e in resolve("saliency, grad_cam")] == ["saliency", "grad_cam"]
    assert Stack([SmoothGrad(), SmoothGrad(5)]).names == ("smoothgrad", "smoothgrad_2")
    with pytest.raises(ValueError, match="did you mean 'smoothgrad'"):
        resolve("smothgrad")
    with pytest.raises(ValueError, match="names, explainers"):
        resolve([3])


def test_score_kinds():
    x, model = images(), Small()
    logits = model(x).detach()
    owner = torch.arange(3)
    target = logits.argmax(1)
    second = logits.scatter(1, target[:, None], -torch.inf).argmax(1)
    pick = lambda t, at: t.gather(1, at[:, None])[:, 0]  # noqa: E731
    expected = {
        "logit": pick(logits, target),
        "probability": pick(logits.softmax(1), target),
        "log_probability": pick(logits.log_softmax(1), target),
        "margin": pick(logits, target) - pick(logits, second),
    }
    for kind, value in expected.items():
        torch.testing.assert_close(Score(model, kind=kind).at(x)(x, owner), value)
    torch.testing.assert_close(Score(model, 2, kind=lambda out, t: out.sum(1)).at(x)(x, owner), logits.sum(1))


def test_the_runner_up_and_the_prediction_are_frozen_at_x():
    model, x = Small(), images(2)
    score = Score(model, kind="margin").at(x)
    far = x + 50 * images(2, seed=11)
    logits = model(far).detach()
    expected = logits.gather(1, score.targets[:, None])[:, 0] - logits.gather(1, score.runner_up[:, None])[:, 0]
    torch.testing.assert_close(score(far, torch.arange(2)), expected)


def test_rows_follow_their_owner():
    class Scaled(nn.Module):
        def forward(self, x, gain):
            return (x * gain).flatten(1).cumsum(1)[:, -2:]

    x = images(3)
    score = Score(Scaled(), [0, 1, 0], kwargs={"gain": torch.arange(3.0).double().view(3, 1, 1, 1)}).at(x)
    owner = torch.tensor([2, 0, 2, 1])
    alone = [Score(Scaled(), [0, 1, 0][i], kwargs={"gain": torch.tensor(float(i))}).at(x[i : i + 1]) for i in owner]
    each = torch.stack([s(x[i : i + 1], torch.tensor([0]))[0] for s, i in zip(alone, owner, strict=True)])
    torch.testing.assert_close(score(x[owner], owner), each)
