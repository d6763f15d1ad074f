"""Alignment, local fidelity, completeness: the affine law and its consequences, beside slow twins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import Small, bound, images, judged
from torch import nn

from consilience.errors import InputError
from consilience.explainers import InputXGradient, IntegratedGradients, Normalised, Saliency, SmoothGrad, Stack
from consilience.features.base import Elements
from consilience.features.images import Patches, Pixels
from consilience.features.tables import Columns
from consilience.metrics.alignment import Alignment
from consilience.metrics.fidelity import Completeness, LocalFidelity
from consilience.metrics.objective import Objective
from consilience.perturb.baseline import Baseline
from consilience.perturb.neighbourhoods import noise_unit
from consilience.perturb.points import Points
from consilience.statistics.evidence import Evidence
from consilience.statistics.keys import Key
from consilience.surrogates.local_linear import Local

KEY = Key(3, "fit")
GRADIENTS = Stack([Saliency(), SmoothGrad(5), SmoothGrad(3, 0.4)], 3)
CONTRIBUTIONS = Stack([InputXGradient(), IntegratedGradients(2), IntegratedGradients(8)], 3)
ASKED = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(8), dtype=torch.float64)

METRICS = {
    "reference": (Alignment(reference=ASKED), GRADIENTS, Pixels()),
    "region": (Alignment(region=ASKED > 0), GRADIENTS, Pixels()),
    "region, absolute": (Alignment(region=ASKED > 0, relative=False), GRADIENTS, Pixels()),
    "local, gradients": (LocalFidelity(radius=0.2), GRADIENTS, Elements()),
    "local, gradients of patches": (LocalFidelity(radius=0.2), GRADIENTS, Patches(3)),
    "local, contributions": (LocalFidelity("contribution", 0.2, baseline=0.3), CONTRIBUTIONS, Pixels()),
    "completeness": (Completeness(0.3), CONTRIBUTIONS, Pixels()),
}
metrics = pytest.mark.parametrize("name", METRICS)


def evidence(name, samples=range(6), weights=None, batch=64, graph=False, model=None, index=slice(None)):
    """Of the stack's maps, or of the single mixture ``weights`` of them."""
    metric, stack, features = METRICS[name]
    score, points = bound(model or Small(), images(), target=[1, 0, 3], max_batch=batch)
    points = points[index]
    base = Normalised(stack, features, "keep", "none").attribute(score, points, graph=graph)
    if weights is not None:
        base = torch.einsum("k,nk...->n...", weights, base)[:, None]
    task = judged(score, points, base, features, KEY, graph=graph)
    return Evidence.of({metric.statistic: metric.measure(task, samples, 6)})


def matrix(name, found):
    """G, whatever the loss is."""
    metric = METRICS[name][0]
    return found["alignment"].matrix if isinstance(metric, Alignment) else metric.matrix(found)


@metrics
def test_affine_law(name):
    w = torch.tensor([0.2, 0.5, 0.3]).double()
    parts, mixed = matrix(name, evidence(name)), matrix(name, evidence(name, weights=w))
    torch.testing.assert_close(torch.einsum("r,brt,t->b", w, parts, w), mixed[:, 0, 0])
    loss = METRICS[name][0].loss
    torch.testing.assert_close(
        loss(evidence(name), w.expand(3, 1, 3)), loss(evidence(name, weights=w), torch.ones(3, 1, 1).double())
    )


@metrics
def test_gram_is_symmetric_and_positive_semidefinite(name):
    found = matrix(name, evidence(name))
    assert (found - found.mT).abs().max() < 1e-12 * found.abs().max()
    assert (torch.linalg.eigvalsh(found) > -1e-10 * found.abs().max()).all()


@metrics
def test_no_input_depends_on_its_batch(name):
    whole = matrix(name, evidence(name))
    torch.testing.assert_close(matrix(name, evidence(name, batch=4)), whole)
    torch.testing.assert_close(matrix(name, evidence(name, index=[2, 0])), whole[[2, 0]])


@pytest.mark.parametrize("name", [name for name in METRICS if name.startswith("local")])
def test_chunks_add(name):
    whole = evidence(name)["local_fidelity"]
    added = evidence(name, range(2)) + evidence(name, range(2, 6), batch=2)
    torch.testing.assert_close(added["local_fidelity"].a, whole.a)
    torch.testing.assert_close(added["local_fidelity"].y, whole.y)


def residual(name, i, r, maps, output, x):
    """From the definition: of every draw, or of every feature."""
    if name == "reference":
        return maps[i, r] - ASKED[i].numpy()
    if name.startswith("region"):
        return np.where(ASKED[i].numpy() > 0, 0, maps[i, r])
    if name == "completeness":
        return np.array([maps[i, r].sum() - (output(x[i]) - output(np.full_like(x[i], 0.3)))])
    errors = []
    for s in range(6):
        axes = maps.shape[2:]
        noise = 0.2 * (KEY / "local").normal(torch.tensor([i]), s, axes)[0].double().numpy()
        wide = np.kron(noise, np.ones((3, 3)))[:8, :8] if axes == (3, 3) else noise
        near = x[i] + wide if "gradients" in name else 0.3 + (1 + wide) * (x[i] - 0.3)
        errors.append(output(x[i]) + (noise * maps[i, r]).sum() - output(near))
    return np.array(errors)


@metrics
def test_the_diagonal_equals_its_slow_twin(name):
    _, stack, features = METRICS[name]
    model, x = Small(), images()
    maps = Normalised(stack, features, "keep", "none").attribute(*bound(model, x, target=[1, 0, 3])).numpy()
    found = matrix(name, evidence(name))
    for i, target in enumerate([1, 0, 3]):
        output = lambda row, t=target: model(torch.as_tensor(row)[None])[0, t].item()  # noqa: E731
        for r in range(3):
            twin = (residual(name, i, r, maps, output, x.numpy()) ** 2).sum()
            assert found[i, r, r].item() == pytest.approx(twin / (6 if name.startswith("local") else 1))


@metrics
def test_the_optimum_is_never_above_a_corner(name):
    metric, found = METRICS[name][0], evidence(name)
    solution = Objective(((1.0, metric),)).minimise(found)
    corners = metric.loss(found, torch.eye(3).double().expand(3, 3, 3)).amin(1)
    value = metric.loss(found, solution.weights[:, None])[:, 0]
    assert (value <= corners * (1 + 1e-9)).all() and (solution.gap < 1e-6 * corners.clamp(min=1)).all()
    torch.testing.assert_close(solution.weights.sum(1), torch.ones(3).double())


def test_a_perfect_map_has_no_residual():
    """Of f = w · x: its gradient and contributions are exact at any radius."""
    x, w = images(2), images(1, seed=5)[0]
    score, points = bound(lambda rows: (rows * w.to(rows)).flatten(1).sum(1, keepdim=True), x, target=None)
    gradient, contribution = w.expand(2, 1, -1, -1, -1), (w * (x - 0.3))[:, None]
    for metric, maps in (
        (LocalFidelity(radius=3.0), gradient),
        (LocalFidelity("contribution", 3.0, 0.3), contribution),
    ):
        found = metric.measure(judged(score, points, maps, Elements(), KEY), range(4), 4)
        torch.testing.assert_close(found.a[..., 0], found.y)
    task = judged(score, points, contribution, Elements(), KEY)
    whole = Completeness(0.3).measure(task, range(1), 1)
    torch.testing.assert_close(whole.a[..., 0], whole.y)
    assert not Alignment(reference=contribution[:, 0]).measure(task, range(1), 1).draws.any()
    everywhere = torch.ones(2, 3, 8, 8, dtype=torch.bool)
    assert not Alignment(region=everywhere).measure(task, range(1), 1).draws.any()


def test_the_region_that_is_asked_for_wins():
    """Of three maps with their mass in, half in and out of the region, the first gets all the weight."""
    region = torch.zeros(1, 2, 2, dtype=torch.bool)
    region[0, 0] = True
    maps = torch.tensor([[[[1.0, 2], [0, 0]], [[1, 1], [1, 1]], [[0, 0], [3, 3]]]]).double()
    points = Points(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    metric = Alignment(region=region)
    task = judged(None, points, maps, Elements(), KEY)
    found = Evidence.of({"alignment": metric.measure(task, range(1), 1)})
    torch.testing.assert_close(metric.loss(found, torch.eye(3).double()[None]), torch.tensor([[0, 0.5, 1]]).double())
    assert Objective(((1.0, metric),)).minimise(found).weights[0, 0] == pytest.approx(1)


def test_noise_keeps_to_the_points_unit():
    """Columns move in their own standard deviations, one-hot blocks do not move."""
    data = torch.tensor([[0.0, 0, 1], [2, 1, 0], [4, 0, 1], [6, 1, 0]]).double()
    features = Columns([[1, 2]])
    unit = noise_unit(features, data[:2], Baseline.samples(data))
    points = Points(data[:2], torch.arange(2), torch.arange(2), unit=unit)
    seen = []

    def output(rows, owner):
        seen.append(rows)
        return rows.sum(1)

    for kind in ("gradient", "contribution"):
        where = Local(kind, 1.0, Baseline())
        found = where.responses(output, points, torch.ones(2, 1, 2).double(), features, range(50), KEY, 400)
        moved = seen[-1].unflatten(0, (2, 50)) - data[:2, None]
        assert not moved[..., 1:].any()
        scale = data.std(0, correction=0)[0] if kind == "gradient" else data[:2, 0]
        assert moved[..., 0].std(1) == pytest.approx((torch.ones(2) * scale).numpy(), rel=0.3)
        if kind == "gradient":
            torch.testing.assert_close(found.a[..., 0], found.y)


@pytest.mark.parametrize("name", ["local, gradients", "local, contributions", "completeness"])
def test_a_loss_has_a_gradient_in_the_parameters(name):
    model = Small(nn.Softplus)
    found = evidence(name, graph=True, model=model)
    loss = METRICS[name][0].loss(found, torch.eye(3).double().expand(3, 3, 3)).sum()
    (slope,) = torch.autograd.grad(loss, [model.conv2.weight])
    step, sides = 1e-5, []
    direction = torch.randn(slope.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for sign in (1, -1):
        with torch.no_grad():
            model.conv2.weight += sign * step * direction
        sides.append(METRICS[name][0].loss(evidence(name, model=model), torch.eye(3).double().expand(3, 3, 3)).sum())
        with torch.no_grad():
            model.conv2.weight -= sign * step * direction
    torch.testing.assert_close(
        (slope * direction).sum(), (sides[0] - sides[1]).detach() / (2 * step), rtol=1e-5, atol=1e-9
    )


def test_errors_name_the_argument():
    score, points = bound(Small(), images())
    task = judged(score, points, torch.zeros(3, 2, 8, 8).double(), Pixels(), KEY)
    for make, match in (
        (lambda: Alignment(), "either reference"),
        (lambda: Alignment(ASKED, ASKED > 0), "either reference"),
        (lambda: Alignment(ASKED[:, 0]).measure(task, range(1), 1), "reference: shape"),
        (lambda: Alignment(region=ASKED[:2] > 0).measure(task, range(1), 1), "region: shape"),
        (lambda: LocalFidelity("relevance"), "kind"),
        (lambda: LocalFidelity(radius=0), "radius"),
        (lambda: Objective(((1.0, Completeness()),)).minimise(evidence("completeness"), signed=True), "signed"),
    ):
        with pytest.raises(InputError, match=match):
            make()


def test_metrics_of_any_kind_stand_side_by_side():
    """Evidence keeps a part for each kind; a sum looks at its own parts only, and is solved over all of them."""
    parts = evidence("region") + evidence("local, gradients")
    assert set(parts.parts) == {"alignment", "local_fidelity"}
    region, local = METRICS["region"][0], METRICS["local, gradients"][0]
    alone = Objective(((1.0, region),)).minimise(parts)
    torch.testing.assert_close(alone.weights, Objective(((1.0, region),)).minimise(evidence("region")).weights)
    both = (region + local).minimise(parts)
    corners = (region + local).at(parts, torch.eye(3).double().expand(3, -1, -1))
    assert bool((both.value <= corners.amin(1) + 1e-9).all())


@metrics
def test_a_metric_is_a_measure(name):
    """Called with a task it gives each row's own loss."""
    metric, stack, features = METRICS[name]
    score, points = bound(Small(), images(), target=[1, 0, 3])
    maps = Normalised(stack, features, "keep", "none").attribute(score, points)
    task = judged(score, points, maps, features, KEY)
    count = 1 if metric.asks == "nothing" else metric.draws
    found = Evidence.of({metric.statistic: metric.measure(task, range(count), count)})
    corners = torch.eye(3).double().expand(3, -1, -1)
    torch.testing.assert_close(metric(task), metric.loss(found, corners))
