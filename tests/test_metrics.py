"""Metrics: the affine law and its consequences, on a table of metrics; criteria against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import Small, bound, images, judged

from consilience import AverageSensitivity, Infidelity
from consilience.explainers import InputXGradient, Normalised, Saliency, SmoothGrad, Stack
from consilience.features.base import Elements
from consilience.features.images import Patches, Pixels, Segments
from consilience.perturb.baseline import Baseline
from consilience.perturb.masks import Masked
from consilience.perturb.neighbourhoods import Ball, Gaussian, Path, Uniform, neighbours
from consilience.perturb.points import Points
from consilience.statistics.criteria import (
    CRITERIA,
    average_sensitivity,
    faithfulness_correlation,
    infidelity,
    infidelity_of_either_sign,
    relative_sensitivity,
)
from consilience.statistics.evidence import Evidence, Quadratic, Responses  # fmt: skip
from consilience.statistics.keys import Key

KEY = Key(3, "fit")
STACK = Normalised(Stack([Saliency(), InputXGradient(), SmoothGrad(5)], 3), Pixels(), "keep", "none")
OF_TWO_METRICS = [name for name in CRITERIA if name not in ("contrast", "noise_over_signal")]
"""Criteria of neighbours or masks; the others are in test_contrast.py."""

METRICS = {
    "uniform": AverageSensitivity(0.1),
    "gaussian": AverageSensitivity(where=Gaussian(0.2)),
    "ball": AverageSensitivity(where=Ball(1.0)),
    "patches": Infidelity(Patches(2), baseline="blur"),
    "pixels": Infidelity(Pixels(), baseline="mean", share=0.1),
}
metrics = pytest.mark.parametrize("name", METRICS)


def measure(metric, samples=range(6), total=6, ids=None, weights=None, batch=64):
    """Evidence of the stack's maps, or of the single mixture ``weights`` of them."""
    score, points = bound(Small(), images(), ids=ids, max_batch=batch)

    def maps(at):
        found = STACK.attribute(score, at)
        return found if weights is None else torch.einsum("k,nk...->n...", weights, found)[:, None]

    base = maps(points)
    if isinstance(metric, AverageSensitivity):
        return Evidence(quadratic=metric.measure(judged(score, points, base, Pixels(), KEY, maps), samples, total))
    return Evidence(responses=metric.measure(judged(score, points, base, Pixels(), KEY), samples, total))


@metrics
def test_affine_law(name):
    """residuals(Σ wφ) = Σ w residuals(φ): the mixture's own statistic is the quadratic form of the parts'."""
    w = torch.tensor([0.2, 0.5, 0.3]).double()
    parts, mixed = measure(METRICS[name]), measure(METRICS[name], weights=w)
    if parts.quadratic is not None:
        torch.testing.assert_close(
            torch.einsum("r,bsrt,t->bs", w, parts.quadratic.draws, w), mixed.quadratic.draws[..., 0, 0]
        )
        torch.testing.assert_close(
            torch.einsum("r,brt,t->b", w, parts.quadratic.norm, w), mixed.quadratic.norm[:, 0, 0]
        )
    else:
        torch.testing.assert_close(parts.responses.a @ w, mixed.responses.a[..., 0])
        assert torch.equal(parts.responses.y, mixed.responses.y)


@metrics
def test_chunks_add_and_batches_do_not_matter(name):
    whole = measure(METRICS[name])
    added = measure(METRICS[name], range(2)) + measure(METRICS[name], range(2, 6), batch=2)
    for part in ("quadratic", "responses"):
        a, b = getattr(whole, part), getattr(added, part)
        if a is not None:
            for field in vars(a):
                torch.testing.assert_close(getattr(a, field), getattr(b, field))


def test_sensitivity_equals_its_slow_twin():
    score, points = bound(Small(), images())
    found = measure(AverageSensitivity(0.1)).quadratic
    base = STACK.attribute(score, points)
    for i in range(3):
        for s in range(6):
            u = (KEY / "sensitivity").uniform(torch.tensor([i]), s, (3, 8, 8))[0].double()
            near = Points(points.x[i : i + 1] + 0.1 * (2 * u - 1), points.owner[i : i + 1], points.ids[i : i + 1])
            residual = (base[i] - STACK.attribute(score, near)[0]).flatten(1)
            torch.testing.assert_close(found.draws[i, s], residual @ residual.T)
    torch.testing.assert_close(found.norm, base.flatten(2) @ base.flatten(2).mT)


def test_infidelity_equals_its_slow_twin():
    model, x = Small(), images()
    score, points = bound(model, x)
    metric = Infidelity(Patches(2), share=0.3, baseline="mean")
    found = measure(metric).responses
    base = STACK.attribute(score, points)
    for i in range(3):
        for s in range(6):
            words = (KEY / "masks").bits(torch.tensor([i]), s, 16)[0].numpy()
            mask = np.zeros(16, bool)
            mask[np.argsort(words, kind="stable")[:4]] = True  # int(.3 · 16)
            mask = torch.from_numpy(np.kron(mask.reshape(4, 4), np.ones((2, 2))).astype(bool))
            changed = torch.where(mask, x[i].mean((1, 2), keepdim=True), x[i])
            torch.testing.assert_close(found.a[i, s], (base[i] * mask).sum((1, 2)))
            torch.testing.assert_close(found.y[i, s], (model(x[i][None]) - model(changed[None])).detach()[0, 1])


def test_zero_noise_gives_zero():
    assert not measure(AverageSensitivity(0.0)).quadratic.draws.any()
    x = images()
    found = measure(Infidelity(Patches(2), baseline=Baseline.per_input(x))).responses
    assert found.y.abs().max() < 1e-12


@metrics
def test_gram_is_symmetric_and_positive_semidefinite(name):
    found = measure(METRICS[name])
    matrix = found.quadratic.matrix if found.quadratic else found.responses.covariances()[0]
    assert torch.equal(matrix, matrix.mT) or (matrix - matrix.mT).abs().max() < 1e-12
    assert (torch.linalg.eigvalsh(matrix) > -1e-10 * matrix.abs().max()).all()


def test_redrawn_noise_adds_sensitivity_only_to_sampling_methods():
    fixed, redrawn = (measure(AverageSensitivity(0.01, redraw=r)).quadratic.matrix for r in (False, True))
    torch.testing.assert_close(fixed[:, :2, :2], redrawn[:, :2, :2])
    assert (redrawn[:, 2, 2] > 3 * fixed[:, 2, 2]).all()


# -- criteria ----------------------------------------------------------------------------------------------------------


def evidence(b=2, s=40, r=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    residuals = torch.randn(b, s, r, 9, generator=g, dtype=torch.float64)
    maps = torch.randn(b, r, 9, generator=g, dtype=torch.float64) + 1
    a = torch.randn(b, s, r, generator=g, dtype=torch.float64) + 0.5
    y = a[..., 0] - 0.3 * a[..., 1] + torch.randn(b, s, generator=g, dtype=torch.float64)
    return Evidence(Quadratic(residuals @ residuals.mT, maps @ maps.mT), Responses(a, y))


def test_criteria_equal_their_definitions():
    e = evidence()
    w = torch.tensor([[0.1, 0.2, 0.3, 0.4], [1, 0, 0, 0]]).double().expand(2, 2, 4)
    for b in range(2):
        for m in range(2):
            a, y = (e.responses.a[b] @ w[b, m]).numpy(), e.responses.y[b].numpy()
            assert faithfulness_correlation(e, w).value[b, m].item() == pytest.approx(np.corrcoef(a, y)[0, 1])
            beta = max(0.0, (a * y).mean() / (a * a).mean())
            assert infidelity(e, w).value[b, m].item() == pytest.approx(((beta * a - y) ** 2).mean() / y.var())
            value = np.mean([w[b, m].numpy() @ g.numpy() @ w[b, m].numpy() for g in e.quadratic.draws[b]])
            assert average_sensitivity(e, w).value[b, m].item() == pytest.approx(value)
            size = w[b, m] @ e.quadratic.norm[b] @ w[b, m]
            assert relative_sensitivity(e, w).value[b, m].item() == pytest.approx(value / size.item())


@pytest.mark.parametrize("name", OF_TWO_METRICS)
def test_scaling_behaves_as_documented(name):
    w = torch.eye(4).double().expand(2, 4, 4)
    one, ten = CRITERIA[name](evidence(), w).value, CRITERIA[name](evidence(), 10 * w).value
    torch.testing.assert_close(ten, one * (100 if name == "average_sensitivity" else 1))


def test_infidelity_tells_a_map_from_its_negative():
    """As a criterion and as an objective; Yeh et al.'s β of either sign does not."""
    e = evidence()
    w = torch.eye(4).double().expand(2, 4, 4)
    one, other = infidelity(e, w).value, infidelity(e, -w).value
    torch.testing.assert_close(infidelity_of_either_sign(e, w).value, infidelity_of_either_sign(e, -w).value)
    torch.testing.assert_close(infidelity_of_either_sign(e, w).value, torch.minimum(one, other))
    y = e.responses.y
    nothing = (y.square().mean(1) / y.var(1, correction=0))[:, None].expand(2, 4)
    torch.testing.assert_close(torch.maximum(one, other), nothing)
    assert (torch.minimum(one, other) < nothing).all()
    for scaling, differ in {"free": True, "yeh": False}.items():
        metric = Infidelity(scaling=scaling)
        losses = metric.loss(e, w) - metric.loss(e, -w)
        assert bool((losses.abs() > 1e-3).all() if differ else (losses.abs() < 1e-12).all())
    away = Evidence(e.quadratic, Responses(-e.responses.a, y))
    valid = torch.ones(2, 4, dtype=torch.bool)
    for batch in (e, away):
        found = Infidelity(scaling="free").solve(batch, valid, False)
        torch.testing.assert_close(found.value, Infidelity(scaling="free").loss(batch, found.weights[:, None])[:, 0])
        assert bool((found.value <= Infidelity(scaling="free").loss(batch, w).amin(1) + 1e-9).all())


def test_infidelity_is_measured_in_a_uniform_maps_own_error():
    """With masks of many sizes too: the twin fits both by least squares."""
    e = evidence()
    size = torch.rand(2, 40, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    r = Responses(torch.cat([e.responses.a, size[..., None]], 2), e.responses.y + 2 * size, size=size)
    found = infidelity(Evidence(responses=r), torch.eye(5).double().expand(2, 5, 5)).value
    for b in range(2):
        errors = []
        for row in range(5):
            a, y = r.a[b, :, row].numpy(), r.y[b].numpy()
            errors.append(((max(0.0, a @ y / (a @ a)) * a - y) ** 2).mean())
        np.testing.assert_allclose(found[b].numpy(), np.array(errors) / errors[-1])


def test_a_uniform_map_has_infidelity_one_and_no_correlation():
    e = evidence()
    e = Evidence(None, Responses(torch.full_like(e.responses.a, 3.0), e.responses.y))
    w = torch.eye(4).double().expand(2, 4, 4)
    torch.testing.assert_close(infidelity(e, w).value, torch.ones(2, 4).double())
    assert faithfulness_correlation(e, w).value.isnan().all()


@pytest.mark.parametrize("name", OF_TWO_METRICS)
def test_the_standard_error_is_right(name):
    """The spread of the criterion over many independent sets of draws is what each set's own standard error says."""
    w = torch.eye(4).double()[None, :2]
    norm = evidence(1).quadratic.norm
    values, errors = [], []
    for seed in range(300):
        e = evidence(1, 60, seed=seed)
        e = Evidence(Quadratic(e.quadratic.draws, norm), e.responses)
        estimate = CRITERIA[name](e, w)
        values.append(estimate.value[0])
        errors.append(estimate.stderr[0])
    spread, said = torch.stack(values).std(0), torch.stack(errors).mean(0)
    torch.testing.assert_close(said, spread, rtol=0.15, atol=0)


def test_pooling_is_free_of_each_inputs_scale():
    e = evidence()
    factor = torch.tensor([1.0, 1000.0]).double()
    scaled = Evidence(
        Quadratic(e.quadratic.draws * factor[:, None, None, None] ** 2, e.quadratic.norm * factor[:, None, None] ** 2),
        Responses(e.responses.a * factor[:, None, None], e.responses.y * factor[:, None]),
    )
    for a, b in zip(
        (e.pooled().quadratic, e.pooled().responses),
        (scaled.pooled().quadratic, scaled.pooled().responses),
        strict=True,
    ):
        for field in vars(a):
            torch.testing.assert_close(getattr(a, field), getattr(b, field))


# -- neighbourhoods ----------------------------------------------------------------------------------------------------

NEIGHBOURHOODS = {
    "uniform": (Uniform(0.3), lambda p, x: (p - x).abs().flatten(1).amax(1).max() <= 0.3),
    "gaussian": (Gaussian(0.3), lambda p, x: abs((p - x).std() - 0.3) < 0.02),
    "relative": (Gaussian(0.1, True), lambda p, x: (p - x).std() > 0.1),
    "ball": (Ball(0.5), lambda p, x: (p - x).flatten(1).norm(dim=1).max() <= 0.5 + 1e-9),
    "path": (
        Path(Baseline.of(0.0)),
        lambda p, x: ((p / x).flatten(1).std(1) < 1e-9).all() and (p.abs() <= x.abs()).all(),
    ),
    "masked": (
        Masked(Patches(2), 0.25, Baseline.of(9.0)),
        lambda p, x: ((p == 9.0).flatten(1).sum(1) == 4 * 3 * 4).all(),
    ),
}


@pytest.mark.parametrize("name", NEIGHBOURHOODS)
def test_neighbourhoods_stay_where_they_say_and_do_not_depend_on_chunks(name):
    where, law = NEIGHBOURHOODS[name]
    points = Points(images(), torch.arange(3), torch.tensor([7, 1, 4]))
    cloud = where.draw(points, range(8), KEY, 8)
    assert law(cloud.points, points.x.repeat_interleave(8, 0))
    assert cloud.weights.sum() == pytest.approx(1)
    part = where.draw(points[1:2], range(3, 5), KEY, 8)
    torch.testing.assert_close(part.points, cloud.split(cloud.points)[1, 3:5])
    assert torch.equal(cloud.owner, torch.arange(3).repeat_interleave(8))


def test_ball_is_uniform_in_volume():
    points = Points(torch.zeros(1, 2).double(), torch.zeros(1).long(), torch.zeros(1).long())
    inside = Ball(1.0).draw(points, range(4000), KEY, 4000).points.norm(dim=1)
    assert abs((inside < 0.5).double().mean() - 0.25) < 0.03


def test_neighbours_keep_their_noise_unless_redrawn():
    points = Points(images(), torch.arange(3), torch.tensor([7, 1, 4]))
    kept = neighbours(Uniform(0.1), points, range(4), KEY, 4)
    redrawn = neighbours(Uniform(0.1), points, range(4), KEY, 4, redraw=True)
    assert torch.equal(kept.ids, points.ids.repeat_interleave(4))
    assert len(redrawn.ids.unique()) == 12 and torch.equal(kept.x, redrawn.x)


# -- features ----------------------------------------------------------------------------------------------------------

LABELS = torch.arange(64).reshape(8, 8) // 20 * 3
FEATURES = {
    "elements": Elements(),
    "pixels": Pixels(),
    "patches": Patches(3),
    "segments": Segments(LABELS, batched=False),
}


@pytest.mark.parametrize("name", FEATURES)
def test_features_are_a_partition(name):
    features, owner, shape = FEATURES[name], torch.arange(2), (3, 8, 8)
    axes = features.shape(shape)
    values = torch.rand(2, *axes, dtype=torch.float64)
    torch.testing.assert_close(features.reduce(features.spread(values, owner, shape), owner), values)
    assert features.sizes(owner, shape).sum() == 2 * 3 * 64
    subsets = torch.rand(2, *axes) < 0.5
    mask = features.mask(subsets, owner, shape)
    torch.testing.assert_close(features.reduce(mask.double(), owner), subsets * features.sizes(owner, shape).double())


def test_segments_may_differ_by_input_and_are_masked_by_what_each_has():
    labels = torch.stack([torch.zeros(8, 8).long(), LABELS])
    features = Segments(labels, batched=True)
    points = Points(images(2), torch.arange(2), torch.arange(2))
    cloud = Masked(features, 0.5, Baseline.of(0.0)).draw(points, range(3), KEY, 3)
    assert cloud.masks.sum(1).tolist() == [1, 1, 1, 2, 2, 2] and not cloud.masks[:3, 1:].any()


def test_slic_gives_segments_of_each_image():
    pytest.importorskip("skimage")
    ramp = torch.linspace(0, 1, 32).expand(2, 3, 32, 32)
    assert 4 <= Segments.slic(ramp, segments=9).shape((3, 32, 32))[0] <= 16
