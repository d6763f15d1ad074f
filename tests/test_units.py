"""Features of tables, series, texts and several inputs; noise in a unit of its own; data sets as baselines."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from nets import Small, bound, images, judged
from torch import nn

import consilience as cs
from consilience.errors import InputError
from consilience.explainers import Normalised, Saliency, SmoothGrad, Stack
from consilience.features.base import Elements
from consilience.features.images import Patches, Pixels, Segments
from consilience.features.parts import Parts
from consilience.features.sequences import Tokens, Windows
from consilience.features.tables import Columns
from consilience.metrics import AverageSensitivity, Infidelity
from consilience.perturb.baseline import Baseline
from consilience.perturb.masks import Masked
from consilience.perturb.neighbourhoods import Ball, Gaussian, Path, Uniform, neighbours, noise_unit, unmoved
from consilience.perturb.points import Points  # fmt: skip
from consilience.statistics.keys import Key

KEY = Key(5, "units")
NAMES = ["age", "job_clerk", "job_cook", "job_none", "pay"]
PRESENT = torch.tensor([[0, 1, 1, 1, 0], [0, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# name → (features, F, the feature of each element of input i or -1, the features' axes)
UNITS = {
    "labels": (Columns(["a", "b", "b", "c", "b"]), (5,), lambda i: [0, 1, 1, 2, 1], (3,)),
    "lists": (Columns([[3, 1]]), (5,), lambda i: [0, 1, 2, 1, 3], (4,)),
    "mapping": (Columns({"y": [4, 0], "x": 2}), (5,), lambda i: [0, 1, 2, 3, 0], (4,)),
    "onehot": (Columns.onehot(NAMES), (5,), lambda i: [0, 1, 1, 1, 2], (3,)),
    "windows": (Windows(3), (2, 7), lambda i: [0, 0, 0, 1, 1, 1, 2] * 2, (3,)),
    "windows in front": (Windows(2, axis=0), (3, 2), lambda i: [0, 0, 0, 0, 1, 1], (2,)),
    "windows alone": (Windows(4), (6,), lambda i: [0, 0, 0, 0, 1, 1], (2,)),
    "tokens": (Tokens(PRESENT), (5, 2), lambda i: [t if p else -1 for t, p in enumerate(PRESENT[i]) for _ in (0, 1)], (5,)),
    "parts": (
        Parts([Pixels(), Columns([[0, 1]]), Tokens(PRESENT)], [(2, 1, 2), (3,), (5,)]), (12,),
        lambda i: [0, 1, 0, 1, 2, 2, 3, *[t + 4 if p else -1 for t, p in enumerate(PRESENT[i])]], (9,),
    ),
}  # fmt: skip
units = pytest.mark.parametrize("name", UNITS)
OWNER = torch.tensor([2, 0, 1, 1])


@units
def test_a_unit_is_a_partition(name):
    features, shape, labels, axes = UNITS[name]
    assert features.shape(shape) == axes
    values = rand(4, *shape)
    count = math.prod(axes)
    sums, sizes = torch.zeros(4, count).double(), torch.zeros(4, count).double()
    for row, owner in enumerate(OWNER.tolist()):
        for element, label in zip(values[row].flatten(), labels(owner), strict=True):
            if label >= 0:
                sums[row, label] += element
                sizes[row, label] += 1
    torch.testing.assert_close(features.reduce(values, OWNER).flatten(1), sums)
    assert torch.equal(features.sizes(OWNER, shape).double().flatten(1), sizes)
    squares = features.reduce(values**2, OWNER).flatten(1).sqrt()
    vector = torch.zeros(count, dtype=torch.bool)
    vector[{"tokens": slice(None), "parts": slice(4, None)}.get(name, slice(0))] = True  # embeddings
    expected = torch.where(vector, squares, sums)
    torch.testing.assert_close(features.reduce_gradient(values, OWNER).flatten(1), expected)


@units
def test_spread_mask_and_expand_agree(name):
    features, shape, labels, axes = UNITS[name]
    has = features.sizes(OWNER, shape) > 0
    values = rand(4, *axes) * has
    torch.testing.assert_close(features.reduce(features.spread(values, OWNER, shape), OWNER), values)
    subsets = rand(4, *axes, seed=1) > 0
    mask = features.mask(subsets, OWNER, shape)
    assert mask.dtype == torch.bool and mask.shape == (4, *shape)
    expected = [
        [label >= 0 and bool(subsets[row].flatten()[label]) for label in labels(o)] for row, o in enumerate(OWNER)
    ]
    assert mask.flatten(1).tolist() == expected
    assert torch.equal(mask, features.expand(subsets.double(), OWNER, shape) > 0)


@units
def test_masks_take_whole_features_that_are_there(name):
    features, shape, labels, _ = UNITS[name]
    points = Points(rand(4, *shape), OWNER, torch.arange(4), 3)
    cloud = Masked(features, 0.4, Baseline.of(9.0)).draw(points, range(6), KEY, 6)
    taken = cloud.split((cloud.points == 9.0).flatten(1))
    has = (features.sizes(OWNER, shape) > 0).flatten(1).sum(1)
    for row, owner in enumerate(OWNER.tolist()):
        for sample in range(6):
            gone = {label for label, t in zip(labels(owner), taken[row, sample], strict=True) if t}
            kept = {label for label, t in zip(labels(owner), taken[row, sample], strict=True) if not t}
            assert -1 not in gone and not gone & kept and len(gone) == max(1, int(0.4 * has[row]))


def test_columns_are_values():
    """Equal configurations are equal needs, and a configuration can be printed."""
    assert Columns([[1, 2]]) == Columns([(np.int64(1), 2)]) and hash(Columns(["a", "a"])) == hash(Columns(("a", "a")))
    assert Columns(Columns({"x": 1}).blocks) == Columns({"x": 1}) and "job" in repr(Columns(["job", "job"]))
    assert Windows(3) == Windows(3, -1)


def test_onehot_blocks_by_name():
    names = ["capital_gain", "marital_status_single", "marital_status_not_single", "marital_age"]
    assert Columns.onehot(names, of=["marital", "marital_status"]).names(4) == (
        "capital_gain",
        "marital_status",
        "marital",
    )
    assert Columns.onehot(names).names(4) == ("capital_gain", "marital")
    assert Columns.onehot(["a=1", "a=2", "b"], separator="=").names(3) == ("a", "b")
    with pytest.raises(InputError, match="no column begins with 'sex_'"):
        Columns.onehot(names, of=["sex"])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Columns([[0, 1], [1]]), "column 1 is in two blocks"),
        (lambda: Columns([["a", 1]]), "expected column numbers"),
        (lambda: Columns([[-1]]), "expected column numbers"),
        (lambda: Columns([[0, 7]]).shape((5,)), "column 7 of a table of 5 columns"),
        (lambda: Columns(["a", "b"]).shape((5,)), "2 labels for a table of 5"),
        (lambda: Columns().shape((3, 8, 8)), "Columns are for tables"),
        (lambda: Windows(0), "at least 1"),
        (lambda: Windows(3, axis=2).shape((4, 5)), "axis: 2"),
        (lambda: Tokens(torch.ones(2, 3)), "bool of shape"),
        (lambda: Tokens(PRESENT).shape((4, 2)), "5 tokens"),
        (lambda: Parts([Elements()], [(3,)]).shape((4,)), "packed to 3"),
    ],
)
def test_units_that_do_not_fit_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


# -- noise in a unit of its own ----------------------------------------------------------------------------------------

NOISE = {
    "uniform": Uniform(0.3),
    "gaussian": Gaussian(0.3),
    "relative": Gaussian(0.3, relative=True),
    "ball": Ball(0.5),
    "path": Path(Baseline.of(0.0), noise=0.3),
}


def offsets(where, unit, x=None, samples=range(4), ids=(7, 1, 4, 2)):
    x = rand(4, 5, 2) if x is None else x
    points = Points(x, OWNER, torch.tensor(ids), 3, unit)
    cloud = where.draw(points, samples, KEY, 4)
    return cloud.split(
        (cloud.origin + cloud.delta if cloud.delta is not None else cloud.points) - x.repeat_interleave(len(samples), 0)
    )


@pytest.mark.parametrize("name", NOISE)
def test_noise_is_in_the_points_unit(name):
    """Twice the unit is twice the noise, zero leaves an element as it is, and a unit of ones changes nothing."""
    where = NOISE[name]
    unit = rand(5, 2, seed=2).abs() + 0.1
    unit[3] = 0
    found = offsets(where, unit)
    assert not found[:, :, 3].any() and (found[:, :, :3] != 0).all()
    torch.testing.assert_close(offsets(where, 2 * unit), 2 * found)
    if name != "relative":  # with a unit, shares of the input's range mean nothing
        torch.testing.assert_close(offsets(where, torch.ones(5, 2).double()), offsets(where, None))
    else:
        torch.testing.assert_close(found, offsets(NOISE["gaussian"], unit))
    if name in ("uniform", "gaussian", "path"):
        torch.testing.assert_close(found, offsets(where, None) * unit)


@pytest.mark.parametrize("name", NOISE)
def test_units_belong_to_their_input_and_padding_changes_no_noise(name):
    unit = PRESENT[..., None] * torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    found = offsets(NOISE[name], unit)
    for row, owner in enumerate(OWNER.tolist()):
        torch.testing.assert_close(offsets(NOISE[name], unit[owner])[row], found[row])
        assert not found[row][:, ~PRESENT[owner]].any()
    longer = torch.cat([unit, torch.zeros(3, 2, 1)], 1)
    padded = offsets(NOISE[name], longer, torch.cat([rand(4, 5, 2), rand(4, 2, 2, seed=3)], 1))
    torch.testing.assert_close(padded[:, :, :5], found)


def test_the_ball_is_a_ball_in_the_points_unit():
    unit = torch.tensor([2.0, 0.0, 0.5])
    points = Points(torch.zeros(1, 3).double(), torch.zeros(1).long(), torch.zeros(1).long(), 1, unit)
    inside = (Ball(1.0).draw(points, range(4000), KEY, 4000).points / unit)[:, [0, 2]].norm(dim=1)
    assert inside.max() <= 1 + 1e-9 and abs((inside < 0.5).double().mean() - 0.25) < 0.03  # two axes are free


@pytest.mark.parametrize("name", NOISE)
def test_a_unit_keeps_the_inputs_dtype(name):
    x = rand(4, 5, 2).half()
    points = Points(x, OWNER, torch.arange(4), 3, torch.ones(5, 2).double())
    assert NOISE[name].draw(points, range(2), KEY, 2).points.dtype == torch.float16


def test_neighbours_keep_their_unit():
    points = Points(rand(4, 5), OWNER, torch.arange(4), 3, torch.arange(5.0))
    assert torch.equal(neighbours(Uniform(), points, range(2), KEY, 2).unit, points.unit)
    assert torch.equal(points[1:3].unit, points.unit) and points[1:3].inputs == 3


TABLE = torch.cat(
    [rand(40, 1) * 5 + 100, nn.functional.one_hot(torch.arange(40) % 3).double(), rand(40, 1, seed=4) * 0.01], 1
)


def test_the_unit_of_a_table_is_its_columns_standard_deviation():
    x, data = TABLE[:6], Baseline.samples(TABLE)
    found = noise_unit(Elements(), x, data)
    std = TABLE.numpy().std(0)
    np.testing.assert_allclose(found, [std[0], 0, 0, 0, std[4]], rtol=1e-6)  # columns of 0 and 1 are indicators
    scaled = TABLE * torch.tensor([1.0, 7, 7, 7, 1])  # a scaled one-hot block is known by its block only
    assert noise_unit(Elements(), x, Baseline.samples(scaled))[1:4].all()
    columns = Columns.onehot(NAMES)
    assert not noise_unit(columns, x, Baseline.samples(scaled))[1:4].any()
    np.testing.assert_allclose(noise_unit(columns, x), [1, 0, 0, 0, 1])
    assert noise_unit(Columns(columns.blocks, fixed=False), x) is None and noise_unit(Elements(), x) is None
    assert noise_unit(Elements(), x, Baseline.of(0.0)) is None
    assert noise_unit(Pixels(), rand(2, 3, 4, 4), Baseline.samples(rand(9, 3, 4, 4))) is None
    with pytest.raises(InputError, match="has missing values"):
        noise_unit(Elements(), x, Baseline.samples(torch.where(TABLE > 100, torch.nan, TABLE)))
    with pytest.raises(InputError, match="does not fit inputs of shape"):
        noise_unit(Elements(), x, Baseline.samples(TABLE[:, :3]))


def test_sensitivity_in_standard_deviations_does_not_depend_on_the_units_of_the_columns():
    """A column in grams or in tonnes: the same change of the map, for the metric and for SmoothGrad."""
    factor = torch.tensor([1000.0, 1, 1, 1, 0.001]).double()
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    other = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    other.load_state_dict(net.state_dict())
    other[0].weight.data /= factor
    stack = Normalised(Stack([Saliency(), SmoothGrad(4)], 1), Columns.onehot(NAMES), "keep", "none")

    def measured(model, scale):
        score, points = bound(model, TABLE[:3] * scale)
        unit = noise_unit(stack.features, points.x, Baseline.samples(TABLE * scale))
        points = Points(points.x, points.owner, points.ids, 3, unit)
        maps = lambda at: stack.attribute(score, at) * stack.features.reduce(scale[None], torch.zeros(1).long())  # noqa: E731
        return AverageSensitivity().measure(judged(score, points, maps(points), stack.features, KEY, maps), range(3), 3)

    one, two = measured(net, torch.ones(5).double()), measured(other, factor)
    torch.testing.assert_close(one.draws[:, :, :1, :1], two.draws[:, :, :1, :1], rtol=1e-4, atol=1e-9)


def test_a_piecewise_constant_model_is_recognised():
    ensemble = pytest.importorskip("sklearn.ensemble")
    x, y = TABLE.numpy(), (TABLE[:, 0] > 100).long().numpy()
    forest = ensemble.RandomForestClassifier(5, random_state=0).fit(x, y)
    score, points = bound(forest.predict_proba, TABLE[:6], numpy=True)
    points = Points(points.x, points.owner, points.ids, 6, noise_unit(Elements(), TABLE, Baseline.samples(TABLE)))
    still, fixed = unmoved(score, points, Uniform(1e-6), KEY)
    assert still.all() and not fixed.any() and not unmoved(score, points, Uniform(3.0), KEY)[0].all()
    smooth, _ = bound(nn.Linear(5, 2).double(), TABLE[:6])
    assert not unmoved(smooth, points, Uniform(1e-3), KEY)[0].any()


def test_noise_that_moves_nothing_makes_no_model_piecewise_constant():
    """A smooth function of one-hot blocks, whose noise is nothing."""
    rows = nn.functional.one_hot(torch.arange(12) % 3, 3).double()
    columns = Columns([[0, 1, 2]])
    options = {"kind": "output", "methods": ["feature_ablation"], "objective": "mean", "fit_draws": 2, "fresh_draws": 2}
    f = lambda a: a @ np.array([1.0, 5.0, -2.0])  # noqa: E731
    said = " ".join(cs.explain(f, rows[:4].numpy(), baselines=rows.numpy(), features=columns, **options).warnings)
    assert "moves nothing in 4 of 4" in said and "piecewise" not in said


# -- data sets as baselines --------------------------------------------------------------------------------------------


def test_rows_are_a_data_set_however_many_they_are():
    """Also as many as there are inputs: one baseline for each input is said, not guessed."""
    x = TABLE[:6]
    kind = lambda spec: Baseline.of(spec, x).kind  # noqa: E731
    assert kind(TABLE) == kind(TABLE.numpy()) == kind(TABLE[6:12]) == kind(x) == "samples"
    assert kind(TABLE[:1]) == kind(TABLE[0]) == "given" and kind(Baseline.per_input(x)) == "per_input"
    assert kind(None) == "zero" and kind(2) == "constant"
    for rows in (TABLE[6:12], TABLE):  # without the inputs at hand, what it is shows when they are
        assert Baseline.of(rows).is_data(1) and not Baseline.of(rows).is_data(2)
    points = Points(x, torch.arange(6), torch.arange(6), 6)
    with pytest.raises(InputError, match="Baseline.per_input"):
        Baseline.of(TABLE[6:12]).at(points)


PER_INPUT = {
    "baselines": lambda rows: Baseline.per_input(rand(rows, 2, 4, 4)),
    "labels": lambda rows: Segments(torch.arange(16).view(1, 4, 4).expand(rows, -1, -1) % 3, batched=True),
    "present": lambda rows: Tokens(torch.ones(rows, 4).bool()),
}


@pytest.mark.parametrize("name", PER_INPUT)
def test_one_thing_for_each_input_needs_as_many_rows_as_inputs(name):
    shape = (4, 2) if name == "present" else (2, 4, 4)
    points = Points(rand(3, *shape), torch.arange(3), torch.arange(3), 3)

    def use(what, at):
        if isinstance(what, Baseline):
            return what.at(at)
        return Masked(what, 0.5, Baseline()).draw(at, range(2), KEY, 2).points

    assert len(use(PER_INPUT[name](3), points)) > 0
    for rows in (5, 8, 2):
        with pytest.raises(InputError, match=f"{name}: {rows} rows for 3 inputs"):
            use(PER_INPUT[name](rows), points)
    # Neighbours keep the numbers of their inputs.
    use(PER_INPUT[name](3), points[torch.tensor([2, 2, 0, 1])])


@pytest.mark.parametrize("name", PER_INPUT)
def test_a_batch_takes_its_own_rows(name):
    """Of what was given for all inputs of a loader, input 4 of 8 is input 0 of the second batch of four."""
    whole = PER_INPUT[name](8)
    if name == "labels":
        whole = Segments(torch.arange(8 * 16).view(8, 4, 4) % torch.arange(2, 10)[:, None, None], batched=True)
    if name == "baselines":
        whole = Baseline.per_input(rand(8, 2, 4, 4, seed=3))
    if name == "present":
        whole = Tokens(rand(8, 4) > -1)
    shape = (4, 2) if name == "present" else (2, 4, 4)
    x = rand(8, *shape, seed=1)
    second = whole.take(torch.arange(4, 8))
    owner = torch.arange(4)
    if name == "baselines":
        points = Points(x, torch.arange(8), torch.arange(8), 8)
        there = Points(x[4:], owner, torch.arange(4, 8), 4)
        assert torch.equal(second.at(there), whole.at(points)[4:]) and second != whole.take(torch.arange(4))
    else:
        assert torch.equal(second.reduce(x[4:], owner), whole.reduce(x, torch.arange(8))[4:])
        assert second.shape(shape) == whole.shape(shape)
    with pytest.raises(InputError, match="none for input 8"):
        whole.take([7, 8])


def test_one_baseline_of_a_data_set_is_its_mean_row():
    points = Points(TABLE[:2], torch.arange(2), torch.arange(2), 2)
    torch.testing.assert_close(Baseline.samples(TABLE).one().at(points), TABLE.mean(0).expand(2, -1))
    assert Baseline.of(3.0).one() == Baseline.of(3.0)


def test_masks_put_in_rows_of_a_data_set_whole():
    """A one-hot block taken away is another row's block: never half a category."""
    points = Points(TABLE[:6], torch.arange(6), torch.arange(6), 6)
    cloud = Masked(Columns.onehot(NAMES), 0.7, Baseline.samples(TABLE)).draw(points, range(20), KEY, 20)
    assert (cloud.points[:, 1:4].sum(1) == 1).all() and ((cloud.points == 0) | (cloud.points == 1))[:, 1:4].all()
    assert any(not torch.equal(row[1:4], TABLE[i // 20, 1:4]) for i, row in enumerate(cloud.points))


# -- padding, in the metrics -------------------------------------------------------------------------------------------


class Bag(nn.Module):
    """The mean over attended tokens of a non-linear function of each, times a function of the place."""

    def forward(self, x, attention_mask):
        place = 1 + torch.arange(x.shape[1]).to(x) / 7
        mask = attention_mask.to(x)
        return ((x * place[:, None]).sin().cumsum(2) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


@pytest.mark.parametrize(
    "metric",
    [AverageSensitivity(0.2), Infidelity(share=0.4)],
    ids=lambda m: m.name if hasattr(m, "name") else type(m).__name__,
)
def test_padding_changes_no_statistic(metric):
    present = torch.tensor([[True, True, True, False, False], [True] * 5])
    x = rand(2, 5, 3) * present[..., None]

    def measured(inputs, length):
        here, values = present[inputs, :length], x[inputs, :length]
        score = bound(Bag(), values, target=2, ids=torch.tensor(inputs), kwargs={"attention_mask": here.long()})[0]
        points = Points(values, torch.arange(len(inputs)), score.ids, len(inputs), here[..., None] * 0.5)
        stack = Normalised(Stack([Saliency(), SmoothGrad(4)], 1), Tokens(here), "keep", "max")
        base = stack.attribute(score, points)
        if isinstance(metric, AverageSensitivity):
            task = judged(score, points, base, Tokens(here), KEY, lambda at: stack.attribute(score, at))
            found = metric.measure(task, range(3), 3)
            return base, found.draws, found.norm
        task = judged(score, points, base, Tokens(here), KEY)
        found = replace(metric, features=Tokens(here)).measure(task, range(3), 3)
        return base, found.a, found.y

    together, alone = measured([0, 1], 5), measured([0], 3)
    assert not together[0][0, :, 3:].any()
    torch.testing.assert_close(together[0][:1, :, :3], alone[0])
    for a, b in zip(together[1:], alone[1:], strict=True):
        torch.testing.assert_close(a[:1], b)


# -- half precision, in the metrics ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 0.05), (torch.bfloat16, 0.15)])
def test_metrics_of_models_in_half_precision_are_summed_in_float64(dtype, tolerance):
    """The statistics are those of the float64 model up to the rounding of its maps and scores, also where squares of them
    would be zero in half precision."""

    def measured(kind):
        model, x = Small().to(kind), images(2).to(kind)
        with torch.no_grad():
            model.head.weight *= 2**-8
        score, points = bound(model, x)
        stack = Normalised(Stack([Saliency(), SmoothGrad(4)], 1), Pixels(), "keep", "none")
        base = stack.attribute(score, points)
        task = judged(score, points, base, Pixels(), KEY, lambda at: stack.attribute(score, at))
        near = AverageSensitivity(0.5).measure(task, range(6), 6)
        masks = Infidelity(Patches(2), baseline="zero").measure(task, range(40), 40)
        return near, masks

    (near, masks), (exact_near, exact_masks) = measured(dtype), measured(torch.float64)
    for found, expected in (
        (near.norm, exact_near.norm), (near.matrix, exact_near.matrix), (masks.a, exact_masks.a), (masks.y, exact_masks.y),
    ):  # fmt: skip
        assert found.dtype == torch.float64
        assert (found - expected).norm() < tolerance * expected.norm() and expected.norm() > 0
    assert exact_near.norm.amin() < 2**-14  # smaller than float16's least normal number
