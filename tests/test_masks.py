"""The masks that faithfulness rests on: sizes, order, no repeats, two streams without overlap, exact where they are all."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from nets import Small, bound, images
from torch import nn

import consilience as cs
from consilience import Infidelity
from consilience.explainers import InputXGradient, Normalised, Saliency, Stack
from consilience.features.base import Elements
from consilience.features.images import Patches, Pixels, Segments
from consilience.features.sequences import Tokens
from consilience.metrics.infidelity import too_weak
from consilience.perturb.baseline import Baseline
from consilience.perturb.mask_order import EVEN, SHARES, Order, permuted, sizes, unranked
from consilience.perturb.masks import Masked, mask_units
from consilience.perturb.points import Points
from consilience.statistics.criteria import CRITERIA, faithfulness_correlation
from consilience.statistics.evidence import Evidence, Responses, joined
from consilience.statistics.keys import Key
from consilience.task import Task

FIT, FRESH = Key(5, "fit") / "masks", Key(5, "fresh") / "masks"
COUNTS = (1, 2, 3, 4, 5, 7, 9, 12, 20, 64)
ZERO = Baseline.of(0.0)


def points(count, ids=(7, 1)):
    x = torch.ones(len(ids), count, dtype=torch.float64)
    return Points(x, torch.arange(len(ids)), torch.tensor(ids))


def sets(masks):
    """(n, A) bool → the subsets as tuples of places."""
    return [tuple(np.flatnonzero(row)) for row in masks.numpy()]


EACH = Elements()


def task(model, x, key=FIT, ids=None, maps=None, features=EACH, batch=64):
    score, at = bound(model, x, ids=ids, max_batch=batch)
    if maps is None:
        stack = Normalised(Stack([Saliency(), InputXGradient()], 0), features, "keep", "none")
        maps = stack.attribute(score, at)
    return Task(score, at, maps, features, lambda *_: maps, key)


class Linear(nn.Module):
    """f(x) = wᵀx, w = 1, −2, 3, −4, …"""

    def __init__(self, count):
        super().__init__()
        w = torch.arange(1, count + 1, dtype=torch.float64)
        self.w = nn.Parameter(w * (-1) ** (torch.arange(count) % 2))

    def forward(self, x):
        return torch.stack([x @ self.w, -(x @ self.w)], 1)


# -- subsets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count, size", [(1, 1), (5, 2), (7, 3), (9, 9)])
def test_unranking_lists_every_subset_once(count, size):
    found = sets(unranked(torch.arange(math.comb(count, size)), count, size))
    assert sorted(found) == sorted(itertools.combinations(range(count), size))


@pytest.mark.parametrize("members", [1, 2, 3, 12, 66, 1000])
def test_a_permutation_has_every_member_once_and_every_order_alike(members):
    ids = torch.arange(2000)
    place = torch.arange(members).expand(2000, -1)
    found = permuted(place, members, Key(0, "fit"), ids, 0)
    assert bool((found.sort(1).values == place).all())
    # A place holds each member equally often: χ² of members − 1 degrees of freedom, for the first and the last place.
    for at in (0, -1):
        counts = found[:, at].bincount(minlength=members).double()
        chi = float(((counts - 2000 / members) ** 2 / (2000 / members)).sum())
        assert chi <= (members - 1) + 5 * math.sqrt(2 * members)


@pytest.mark.parametrize("count", COUNTS)
def test_sizes_vary_and_follow_the_stated_shares(count):
    found = sizes(count, SHARES)
    assert found[0] == -(-count // 10) and found[-1] == -(-count * 6 // 10)
    assert len(found) == min(11, found[-1] - found[0] + 1) and (len(found) > 1 or count == 1)
    # In any run of samples each size is there in proportion to its masks, but none counts for more than EVEN.
    order = Order((count,), SHARES)
    asked = min(256, order.drawn(256, False))
    which, _ = order.places(asked, False)
    alike = np.array([min(number, EVEN) for number in order.subsets])
    expected = asked * alike / alike.sum()
    assert np.abs(np.bincount(which, minlength=len(alike)) - expected).max() <= 1.5


# -- streams -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("count", COUNTS)
def test_no_mask_is_drawn_twice_in_both_streams_together(count, rows):
    """Unless one of them has them all: then nothing is estimated. Of drawn baselines, no mask with the same row."""
    data = torch.arange(rows, dtype=torch.float64)[:, None].expand(rows, count) + 5
    where = Masked(Elements(), SHARES, ZERO if rows == 1 else Baseline.samples(data))
    at = points(count)
    for fit, fresh in ((4, 4), (16, 32), (128, 512)):
        numbers = [where.drawn(at, asked, key) for asked, key in ((fit, FIT), (fresh, FRESH))]
        clouds = [
            where.draw(at, range(int(number[0])), key, 1)
            for (number, _), key in zip(numbers, (FIT, FRESH), strict=True)
        ]
        for i in range(2):
            streams = [[tuple(row) for row in cloud.split(cloud.points)[i].tolist()] for cloud in clouds]
            assert all(len(set(stream)) == len(stream) for stream in streams)
            whole = [bool(each[1][i]) for each in numbers]
            assert any(whole) or not set(streams[0]) & set(streams[1])
            everything = sum(math.comb(count, size) for size in sizes(count, SHARES)) * rows
            for asked, (number, _), all_there in zip((fit, fresh), numbers, whole, strict=True):
                assert all_there == (int(number[i]) == everything)
                assert min(asked, everything) <= int(number[i]) <= min(2 * asked, everything)


@pytest.mark.parametrize("count", [12, 64])
def test_large_spaces_hold_no_repeats_either(count):
    where = Masked(Elements(), SHARES, ZERO)
    found = [where.masks(points(count), range(1024), key)[0] for key in (FIT, FRESH)]
    for i in range(2):
        fit, fresh = (sets(each[i]) for each in found)
        assert len(set(fit) | set(fresh)) == 2048


@pytest.mark.parametrize("count", [5, 12, 64])
def test_a_mask_is_a_function_of_stream_id_and_sample(count):
    """Whatever the batch, the order, the chunk, and how many are asked for."""
    where = Masked(Elements(), SHARES, ZERO)
    whole = where.masks(points(count), range(256), FIT)[0]
    assert torch.equal(where.masks(points(count), range(128, 256), FIT)[0], whole[:, 128:])
    assert torch.equal(where.masks(points(count), range(3, 9), FIT)[0], whole[:, 3:9])
    assert torch.equal(where.masks(points(count, (1,)), range(256), FIT)[0], whole[1:])
    assert torch.equal(where.masks(points(count, (1, 3, 7)), range(256), FIT)[0][[2, 0]], whole)
    for other in (Key(6, "fit") / "masks", Key(5, "step 3") / "masks"):
        assert not torch.equal(where.masks(points(count), range(256), other)[0], whole)
    assert not torch.equal(whole[0], whole[1])  # another id


def test_features_that_an_input_lacks_are_never_taken_away():
    """A short text beside a longer one has the masks that it has alone, by id."""
    there = torch.tensor([[True, False, True, True, False, True, False], [True] * 7])
    at = Points(torch.ones(2, 7, 3), torch.arange(2), torch.tensor([4, 9]))
    where = Masked(Tokens(there), SHARES, ZERO)
    masks, _, has = where.masks(at, range(64), FIT)
    assert torch.equal(has, there) and not masks[0, :, ~there[0]].any()
    alone = Masked(Tokens(there[:1, there[0]]), SHARES, ZERO)
    short = Points(torch.ones(1, 4, 3), torch.zeros(1).long(), torch.tensor([4]))
    assert torch.equal(alone.masks(short, range(64), FIT)[0][0], masks[0][:, there[0]])
    number, whole = where.drawn(at, 128, FIT)
    assert number.tolist() == [14, 119] and whole.tolist() == [True, True]


# -- images ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape, size, scales",
    [((3, 224, 224), 8, (1, 2, 4)), ((3, 299, 299), 13, (1, 2, 4)), ((3, 128, 128), 4, (1, 2, 4)),
     ((1, 64, 96), 4, (1, 2)), ((3, 32, 32), 4, (1,)), ((1, 28, 28), 4, (1,)), ((1, 8, 8), 2, (1,)), ((1, 2, 2), 1, (1,))],
)  # fmt: skip
def test_images_have_patches_of_several_sizes(shape, size, scales):
    assert mask_units(shape) == (Patches(size), scales)
    short = min(shape[1:])
    assert size >= min(4, short // 4) and all(size * scale <= max(4, short / 5) for scale in scales)


def test_masks_of_several_scales_are_blocks_of_the_finest():
    x = torch.ones(1, 3, 48, 48)
    where = Infidelity(baseline=0.0).neighbourhood(x.shape[1:])
    assert where.features == Patches(4) and where.scales == (1, 2) and where.unit == "4x4 and 8x8 patch"
    cloud = where.draw(Points(x, torch.zeros(1).long(), torch.zeros(1).long()), range(200), FIT, 200)
    assert cloud.masks.shape == (200, 12, 12)
    assert torch.equal(cloud.points[:, 0] == 0, cloud.masks.repeat_interleave(4, 1).repeat_interleave(4, 2))
    # A mask of blocks has in every 2 × 2 of units all or none; finer ones hardly ever do.
    blocks = cloud.masks.unflatten(1, (6, 2)).unflatten(3, (6, 2)).float().mean((2, 4))
    coarse = ((blocks == 0) | (blocks == 1)).flatten(1).all(1)
    assert coarse.sum() == 99  # of 200 samples, over classes in turn
    large = Infidelity(baseline=0.0)
    at = Points(torch.zeros(2, 3, 224, 224), torch.arange(2), torch.arange(2))
    assert large.evaluations(at, 64, "fit") == 128  # of 784 units there are more masks than 64 bits can count
    assert large.neighbourhood((3, 224, 224)).masks(at, range(40), FIT)[0].shape == (2, 40, 784)
    shares = cloud.masks.flatten(1).float().mean(1)
    assert float(shares.min()) < 0.12 and float(shares.max()) > 0.58


def test_the_papers_masks_are_there_under_one_share():
    assert Infidelity(share=0.2).neighbourhood((3, 224, 224)) == Masked(Patches(16), 0.2, Baseline.of("blur"))
    for name in ("paper_faith", "paper_opt", "paper_code"):
        goal = cs.combine.named.named_objective(name)
        assert [term.share for _, term in goal.terms if isinstance(term, Infidelity)] == [0.2]


# -- evidence ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 4, 8, 9, 30])
def test_a_linear_models_own_contributions_are_perfectly_faithful(count):
    x = torch.randn(3, count, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    judged = task(Linear(count), x)
    found = Infidelity(baseline="zero").measure(judged, range(64), 64)
    rho = faithfulness_correlation(Evidence(responses=found), torch.eye(2).double().expand(3, 2, 2)).value
    torch.testing.assert_close(rho[:, 1], torch.ones(3).double())


@pytest.mark.parametrize("count", [2, 3, 6])
def test_enumerated_evidence_is_that_of_every_mask_once(count):
    torch.manual_seed(count)
    model = nn.Sequential(nn.Linear(count, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    x = torch.randn(2, count, dtype=torch.float64)
    streams = []
    for stream in ("fit", "fresh"):
        judged = task(model, x, Key(0, stream))
        streams.append(Infidelity().measure(judged, range(128), 128))
    w = torch.eye(2).double().expand(2, 2, 2)
    for i in range(2):
        masks = torch.tensor(
            [[place in subset for place in range(count)] for size in sizes(count, SHARES)
             for subset in itertools.combinations(range(count), size)]
        ).double()  # fmt: skip
        with torch.no_grad():
            y = model(x[i])[1] - model(x[i] * (1 - masks))[:, 1]
        a = masks @ judged.maps[i].T.detach()
        for r in streams:
            assert r.number.tolist() == [len(masks)] * 2 and r.exact.all()
            said = faithfulness_correlation(Evidence(responses=r), w)
            # Partial correlation, given how many are taken away: of the residuals of two regressions on that.
            given = np.stack([np.ones(len(masks)), masks.sum(1).numpy()], 1)
            rest = [v - given @ np.linalg.lstsq(given, v, rcond=None)[0] for v in (*a.T.numpy(), y.numpy())]
            expected = [np.corrcoef(rest[row], rest[-1])[0, 1] for row in range(2)]
            np.testing.assert_allclose(said.value[i].numpy(), expected)
            assert (said.stderr == 0).all()


def test_inputs_with_few_and_with_many_masks_share_a_batch():
    """Each has the evidence that it has alone, over rounds and chunks, although one has all its masks at once."""
    torch.manual_seed(0)
    there = torch.zeros(2, 14, dtype=torch.bool)
    there[0, :5], there[1] = True, True

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(14, 8), nn.Tanh(), nn.Linear(8, 2)).double()

        def forward(self, x):
            return self.inner(x[..., 0])

    model = Net()
    x = torch.randn(2, 14, 1, dtype=torch.float64)
    maps = torch.randn(2, 3, 14, dtype=torch.float64) * there[:, None]
    metric = Infidelity(Tokens(there))
    both = task(model, x, maps=maps, features=Tokens(there), ids=[3, 8], batch=7)
    rounds = metric.measure(both, range(32), 32) + metric.measure(both, range(32, 64), 64)
    assert rounds.number.tolist() == [25, 64] and rounds.exact.tolist() == [True, False]
    w = torch.eye(3).double().expand(2, 3, 3)
    for i in range(2):
        alone = task(model, x[[i]], maps=maps[[i]], features=Tokens(there[[i]]), ids=[[3], [8]][i])
        one = Infidelity(Tokens(there[[i]])).measure(alone, range(64), 64)
        assert bool(one.exact) == (i == 0)
        for name in ("faithfulness_correlation", "infidelity"):
            left, right = CRITERIA[name](Evidence(responses=rounds), w), CRITERIA[name](Evidence(responses=one), w[:1])
            torch.testing.assert_close(left.value[i], right.value[0])
            torch.testing.assert_close(left.stderr[i], right.stderr[0])
        mine = rounds.inputs([i])
        assert mine.drawn is None
        torch.testing.assert_close(mine.y, one.y)
        for a, b in zip(rounds.covariances(), one.covariances(), strict=True):
            torch.testing.assert_close(a[i], b[0])
        for a, b in zip(rounds.moments(), one.moments(), strict=True):
            torch.testing.assert_close(a[i], b[0])
    # Blocks are of each input's own masks; together they are all. Who has all there are keeps them: nothing was drawn.
    parts = [inside for _, inside in Evidence(responses=rounds).folds(5, "responses")]
    assert torch.stack([part.responses.number for part in parts]).tolist() == [[25, 12]] + 4 * [[25, 13]]
    pooled = rounds.pooled()
    assert pooled.number.tolist() == [89]
    stacked = joined([Evidence(responses=rounds), Evidence(responses=rounds)]).responses
    assert stacked.exact.tolist() == [True, False] * 2


def test_falls_at_the_level_of_rounding_are_no_evidence():
    class Saturated(nn.Module):
        """1000 + 1e-9 Σx: in float32 nothing but rounding changes."""

        def forward(self, x):
            return torch.stack([1000 + 1e-5 * x.sum(1), x[:, 0]], 1)

    x = torch.randn(2, 20)
    found = Infidelity().measure(task(Saturated(), x, maps=torch.randn(2, 2, 20)), range(64), 64)
    assert (not found.y[0].any() and not found.y[1].any()) or found.y.abs().amax() > 4 * 1000 * torch.finfo(
        torch.float32
    ).eps


def test_masks_that_hardly_move_the_score_are_named():
    y = torch.tensor([[1e-3, -2e-3], [0.5, 0.1]], dtype=torch.float64)
    evidence = [Responses(torch.zeros(1, 2, 1), each[None]) for each in y]
    assert too_weak(evidence, torch.tensor([6.7, -6.7], dtype=torch.float64)) == [(0, 2e-3)]
    assert too_weak(evidence, torch.tensor([0.1, 0.0], dtype=torch.float64)) == []


def test_a_result_says_that_its_masks_are_no_evidence():
    """Two of many elements are enough, either alone: no mask of up to 60 % is likely to hold all of them."""

    class Any(nn.Module):
        def forward(self, x):
            gone = (x < 0.5).double().prod(1)
            return torch.stack([5 * (1 - gone), gone], 1)

    x = torch.ones(2, 40, dtype=torch.float64)
    r = cs.explain(
        Any(), x, 0, methods=["feature_ablation", "kernel_shap"], objective="faith", fit_draws=16, fresh_draws=16
    )
    said = [line for line in r.warnings if "masks move the score" in line]
    assert len(said) == 2 and "input 1" in said[1] and "5.0e+00" in said[0]
    assert all("masks move" not in line for line in cs.explain(Linear(5), x[:, :5], 0, methods=["saliency"]).warnings)


def test_a_result_says_exact_where_all_masks_were_drawn():
    x = torch.randn(2, 4, dtype=torch.float64)
    r = cs.explain(Linear(4), x, 0, methods=["saliency", "input_x_gradient"], objective="faith", sign="keep")
    assert all(masks["fit"] == masks["fresh"] == 14 and "exact" in masks for masks in r.draws["masks"])
    assert all(fit["regret"]["infidelity"] < 1e-12 for fit in r.draws["fit"])
    measured = r.criteria["faithfulness_correlation"]["consensus"]
    torch.testing.assert_close(measured.fit, measured.fresh)
    assert not measured.stderr.any()
    one = cs.explain(Linear(4), x[:1], 0, methods=["saliency"], objective="faith", sign="keep")
    assert " exact " in str(one) and "14 masks fit" in str(one) and r.settings["mask_share"] == [0.1, 0.6]
    many = cs.explain(Linear(30), torch.randn(2, 30).double(), 0, methods=["saliency"], objective="faith")
    assert not any("exact" in masks for masks in many.draws["masks"]) and "exact" not in str(many)


def test_a_constant_added_to_a_map_changes_no_correlation_and_a_uniform_map_has_none():
    """Masks of many sizes move the score by what a uniform map says; also where patches at the edge are smaller."""
    x = images()[:, :, :7]
    maps = torch.rand(3, 3, 7, 8, dtype=torch.float64)
    maps[:, 1] = maps[:, 0] + 5
    maps[:, 2] = 1
    for metric in (Infidelity(), Infidelity(Patches(3))):
        found = Evidence(responses=metric.measure(task(Small(), x, maps=maps, features=Pixels()), range(64), 64))
        rho = faithfulness_correlation(found, torch.eye(3).double().expand(3, 3, 3)).value
        torch.testing.assert_close(rho[:, 0], rho[:, 1])
        assert rho[:, 2].isnan().all() and rho[:, 0].abs().max() < 1


def test_segments_of_an_input_of_its_own_are_counted():
    labels = torch.stack([torch.zeros(8, 8).long(), torch.arange(64).reshape(8, 8) // 8])
    where = Masked(Segments(labels, batched=True), SHARES, ZERO)
    at = Points(images(2), torch.arange(2), torch.arange(2))
    assert where.drawn(at, 512, FRESH)[0].tolist() == [1, 218]
    masks = where.masks(at, range(8), FIT)[0]
    assert masks[0].sum(1).tolist() == [1] * 8 and not masks[0, :, 1:].any() and masks[1].sum(1).unique().numel() > 2


@pytest.mark.parametrize("correlation", [None, 0.3])
def test_where_masks_are_too_few_to_tell_they_decide_nothing(correlation):
    """Two columns have three masks, by which every map correlates with 1 or −1: rounding chose at the edge."""
    objective = cs.Front(cs.AverageSensitivity(signal="contrast"), Infidelity(), correlation=correlation)
    options = {"methods": ["saliency", "input_x_gradient", "vargrad"], "objective": objective, "resolved_draws": 0}
    for seed in range(2 if correlation is None else 1):
        torch.manual_seed(seed)
        net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        x = torch.randn(3, 2)
        draws = {"fit_draws": {"average_sensitivity": 4}, "fresh_draws": {"average_sensitivity": 4}}
        whole = cs.explain(net, x, 0, **options, **draws)
        assert whole.evidence["fit"][0].responses.count == 3
        assert all("so few masks decide nothing" in status for status in whole.solution.status)
        table = whole.criteria["faithfulness_correlation"]
        best = torch.stack([table[name].fit for name in whole.methods]).amax(0)
        torch.testing.assert_close(table["consensus"].fit, best)  # the sign of the best single method
        for i in range(3):
            alone = cs.explain(net, x[i : i + 1], 0, ids=[i], max_batch=1, **options, **draws)
            torch.testing.assert_close(alone.weights[0], whole.weights[i], rtol=0, atol=1e-3)
