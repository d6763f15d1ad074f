"""The same numbers on a GPU as on the processor, in float64; skipped where there is none. Draws are the same bits anywhere."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from nets import Small, bound, images

import consilience as cs
from consilience.combine.aggregations import AGGREGATIONS
from consilience.combine.named import OBJECTIVES
from consilience.explainers import MAPLE, METHODS, Stack, resolve
from consilience.measures import MEASURES
from consilience.perturb.baseline import Baseline

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # normal draws are float32-grade: erfinv may differ in the last bit


def pair() -> tuple[torch.nn.Module, torch.nn.Module]:
    model = Small()
    return model, copy.deepcopy(model).cuda()


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name):
    x, others = images(2), images(40, seed=5)
    baseline = Baseline.samples(others) if name in ("expected_gradients", "gradient_shap") else None
    (method,) = resolve([MAPLE(data=others) if name == "maple" else name], baseline)
    plain, fast = pair()
    expected = Stack([method]).attribute(*bound(plain, x))
    found = Stack([method]).attribute(*bound(fast, x.cuda()))
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, **CLOSE)


@pytest.mark.parametrize("objective", [*OBJECTIVES, *AGGREGATIONS])
def test_every_objective(objective):
    plain, fast = pair()
    settings = {"objective": objective, "fresh_draws": 8, "features": cs.Pixels(), "tolerance": 0.05}
    expected, found = cs.explain(plain, images(2), **settings), cs.explain(fast, images(2).cuda(), **settings)
    assert found.attribution.is_cuda
    torch.testing.assert_close(found.weights.cpu(), expected.weights, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.attribution.cpu(), expected.attribution, rtol=1e-3, atol=1e-4)
    assert str(found).splitlines()[0] == str(expected).splitlines()[0]


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure(name):
    plain, fast = pair()
    x, regions = images(2), torch.zeros(2, *images(2).shape[2:], dtype=torch.bool)
    regions[:, 2:5, 2:5] = True
    settings = {"methods": ["saliency", "smoothgrad"], "measures": name, "objective": None, "target": 1}
    labels = torch.ones(2, dtype=torch.int64)
    expected = cs.evaluate(plain, [(x, labels, regions)], **settings)
    found = cs.evaluate(fast, [(x.cuda(), labels.cuda(), regions.cuda())], **settings)
    assert found.reasons == expected.reasons
    np.testing.assert_allclose(found.values[name], expected.values[name], **CLOSE)


def test_pooled_weights_and_bfloat16(tmp_path):
    plain, fast = pair()
    loader = [images(3), images(2, seed=7)]
    fitted = [
        cs.Consensus(model, "gradient", "robust", fit_draws=4).fit([x.to(where) for x in loader])
        for model, where in ((plain, "cpu"), (fast, "cuda"))
    ]
    torch.testing.assert_close(fitted[1].weights.cpu(), fitted[0].weights.cpu(), rtol=0, atol=1e-4)
    again = cs.Consensus(fast, "gradient", "robust").load(fitted[1].save(tmp_path / "w.json"))
    assert again.attribute(images(2).cuda()).is_cuda
    half = cs.explain(fast.float(), images(2).float().cuda(), precision="bfloat16", fit_draws=4, fresh_draws=4)
    assert bool(half.attribution.isfinite().all())
    half.save(tmp_path / "run")
    np.testing.assert_allclose(
        np.stack(cs.load(tmp_path / "run").attribution), half.attribution.cpu().numpy(), atol=1e-3
    )
    half.report(tmp_path / "page.html")


def test_training_and_random_state():
    plain, fast = pair()
    losses = []
    for model, x in ((plain, images(2)), (fast, images(2).cuda())):
        state = torch.cuda.get_rng_state()
        penalty = cs.train.Penalty(cs.AverageSensitivity(0.03), "input_x_gradient", weight=0.1)
        loss = penalty(model, x, torch.ones(2, dtype=torch.int64, device=x.device)).total
        loss.backward()
        assert torch.equal(state, torch.cuda.get_rng_state())
        losses.append((loss.detach().cpu(), [p.grad.cpu() for p in model.parameters() if p.grad is not None]))
    for a, b in zip(*losses, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)
