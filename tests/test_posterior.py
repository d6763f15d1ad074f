"""The posterior: its laws, a slow twin written from the definition, and its place in results, files and evaluations."""

import itertools

import numpy as np
import pytest
import torch

import consilience as cs
from consilience import simplex
from consilience.combine.kernel_fits import RATIOS, Kernel, smooth
from consilience.combine.posterior import Posterior, Ridge
from consilience.combine.regression import Problem, regions, regress
from consilience.errors import InputError
from consilience.features import Tokens
from consilience.report.table import rows
from consilience.statistics.certain import certain_signs
from consilience.statistics.responses import MaskRows, Responses


def game(seed=0, inputs=2, masks=60, units=7, methods=3, sizes=True, grid=(), block=1, noise=0.3):
    """Random masks, maps and falls: additive in the units, and some noise."""
    g = torch.Generator().manual_seed(seed)
    taken = torch.rand(inputs, masks, units, generator=g) < 0.4
    taken[:, 0, 0] = True
    maps = torch.randn(inputs, methods, units, generator=g).double()
    truth = maps.mean(1) + torch.randn(inputs, units, generator=g).double()
    y = torch.einsum("bsu,bu->bs", taken.double(), truth)
    y = y + noise * torch.randn(inputs, masks, generator=g).double()
    shares = torch.full((inputs, units), 1 / units, dtype=torch.float64)
    size = torch.einsum("bsu,bu->bs", taken.double(), shares) if sizes else None
    a = torch.einsum("bsu,bru->bsr", taken.double(), maps)
    return Responses(a, y, size=size, masks=MaskRows(taken, maps, shares, grid, block)), truth


def every(responses):
    return torch.ones_like(responses.a[:, 0], dtype=torch.bool)


def answers(found, responses):
    c = torch.einsum("bsr,br->bs", responses.a, found.coefficients)
    return c + torch.einsum("bsu,bu->bs", responses.masks.taken.double(), found.residual)


# -- laws ----------------------------------------------------------------------------------------------------------------


def test_without_a_correction_it_is_the_most_faithful_mixture():
    responses, _ = game()
    found = regress(responses, every(responses), residual=False)
    c, b, v = responses.covariances()
    faithful = simplex.correlation(c, b, v).weights
    weights = found.coefficients / found.coefficients.sum(1, keepdim=True)
    torch.testing.assert_close(weights, faithful, atol=1e-6, rtol=1e-6)


def test_without_methods_it_is_ridge_regression():
    """One λ: d = (Xᵀ X + λ)⁻¹ Xᵀ y, with the constant and the size taken out of X and y."""
    responses, _ = game(sizes=True)
    found = regress(responses, every(responses), prior=False)
    x = responses.centred(responses.masks.taken.double())
    y = responses.centred(responses.y)
    # All ridge estimates lie on one path; the mean over λ is a mean of points of the path.
    path = []
    unit = (x**2).sum((1, 2)) / x.shape[1]
    for ratio in RATIOS:
        gram = x.mT @ x + (ratio * unit)[:, None, None] * torch.eye(7).double()
        path.append(torch.linalg.solve(gram, x.mT @ y[..., None])[..., 0])
    path = torch.stack(path, -1)
    d = found.residual - found.residual.mean(1, keepdim=True)
    path = path - path.mean(1, keepdim=True)
    weights = torch.linalg.lstsq(path, d[..., None]).solution
    torch.testing.assert_close((path @ weights)[..., 0], d, atol=1e-8, rtol=1e-6)
    assert (found.coefficients == 0).all() and (found.prior == 0).all()


@pytest.mark.parametrize("sizes", [True, False])
def test_it_is_exact_for_additive_games(sizes):
    responses, truth = game(noise=0.0, sizes=sizes)
    if not sizes:
        # Masks of one size say nothing of the level but through what they take away in all.
        taken = torch.tensor(list(itertools.combinations(range(7), 3)))
        masks = torch.zeros(len(taken), 7, dtype=torch.bool).scatter_(1, taken, True).expand(2, -1, -1)
        y = torch.einsum("bsu,bu->bs", masks.double(), truth)
        a = torch.einsum("bsu,bru->bsr", masks.double(), responses.masks.maps)
        responses = Responses(a, y, masks=MaskRows(masks, responses.masks.maps, responses.masks.shares))
    found = regress(responses, every(responses))
    assert (found.explained > 1 - 1e-8).all()
    torch.testing.assert_close(found.values, truth, atol=1e-5, rtol=1e-5)


def test_it_is_additive_in_the_score_where_nothing_is_estimated():
    """All masks there are: least squares, a linear map of the falls."""
    masks = torch.tensor(list(itertools.product([0, 1], repeat=5)))[1:].bool().expand(2, -1, -1)
    g = torch.Generator().manual_seed(3)
    falls = torch.randn(2, 2, 31, generator=g).double()
    maps = torch.randn(2, 3, 5, generator=g).double()
    shares = torch.full((2, 5), 0.2).double()
    size = masks.double() @ shares[..., None]
    a = torch.einsum("bsu,bru->bsr", masks.double(), maps)
    whole = torch.ones(2, dtype=torch.bool)

    def solved(y):
        r = Responses(a, y, whole=whole, size=size[..., 0], masks=MaskRows(masks, maps, shares))
        return regress(r, every(r))

    one, other, both = solved(falls[0]), solved(falls[1]), solved(falls.sum(0))
    torch.testing.assert_close(one.values + other.values, both.values, atol=1e-6, rtol=1e-5)
    assert (both.error == 0).all()
    # Least squares on a constant and the units, solved otherwise.
    x = np.concatenate([np.ones((31, 1)), masks[0].double().numpy()], 1)
    expected = np.linalg.lstsq(x, falls.sum(0)[0].numpy(), rcond=None)[0][1:]
    np.testing.assert_allclose(both.values[0].numpy(), expected, atol=1e-6)


def test_it_is_never_worse_on_left_out_masks_than_either_end():
    for seed in range(8):
        responses, _ = game(seed, noise=1.5, masks=25)
        both = regress(responses, every(responses)).explained
        mixture = regress(responses, every(responses), residual=False).explained
        ridge = regress(responses, every(responses), prior=False).explained
        assert (both >= mixture - 1e-9).all()
        assert (both >= ridge - 1e-9).all()


def test_scales_of_maps_and_of_the_score_change_nothing_else():
    responses, _ = game()
    found = regress(responses, every(responses))
    times = torch.tensor([2.0, 0.01, 300.0]).double()
    masks = responses.masks
    other = Responses(
        responses.a * times,
        responses.y * 7,
        size=responses.size,
        masks=MaskRows(masks.taken, masks.maps * times[:, None], masks.shares),
    )
    again = regress(other, every(other))
    torch.testing.assert_close(again.coefficients * times, found.coefficients * 7)
    torch.testing.assert_close(again.values, found.values * 7)
    torch.testing.assert_close(again.error, found.error * 7)


def test_an_input_is_what_it_is_alone_and_beside_shorter_ones():
    responses, _ = game(inputs=3)
    drawn = torch.ones(3, 60, dtype=torch.bool)
    drawn[1, 20:] = False
    cut = Responses(
        torch.where(drawn[..., None], responses.a, 0.0),
        torch.where(drawn, responses.y, 0.0),
        drawn,
        size=torch.where(drawn, responses.size, 0.0),
        masks=MaskRows(responses.masks.taken & drawn[..., None], responses.masks.maps, responses.masks.shares),
    )
    together = regress(cut, every(cut))
    alone = regress(cut.inputs([1]), every(cut)[:1])
    short = responses.take(torch.arange(20)).inputs([1])
    directly = regress(short, every(short))
    for name in ("coefficients", "values", "error", "explained"):
        torch.testing.assert_close(getattr(together, name)[1:2], getattr(alone, name), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(getattr(directly, name), getattr(alone, name), atol=1e-6, rtol=1e-5)


# -- twins -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid, block", [((), 1), ((2, 4), 2)])
def test_left_out_masks_and_errors_are_those_of_the_definition(grid, block):
    """Every mask left out in turn, every matrix written out: one λ and one K at a time."""
    units = 8
    responses, _ = game(5, inputs=1, masks=18, units=units, methods=2, grid=grid, block=block)
    problem = Problem(responses, every(responses))
    length = 1.0 if grid else 0.0
    kernel = Kernel(problem, length)
    shrinkage = torch.tensor([0.7]).double()
    fit = kernel._fit(shrinkage, True)

    M = responses.masks.taken[0].double().numpy()
    A = responses.a[0].numpy()
    y = responses.y[0].numpy()
    size = responses.size[0].numpy()
    K = np.eye(units) if not grid else smooth(grid, length).numpy()
    used = fit.coefficients[0].numpy() > 0

    def solve(rows):
        X = np.concatenate([np.ones((len(rows), 1)), size[rows, None], A[rows][:, used]], 1)
        V = M[rows] @ K @ M[rows].T + 0.7 * np.eye(len(rows))
        inverse = np.linalg.inv(V)
        covariance = np.linalg.inv(X.T @ inverse @ X)
        beta = covariance @ X.T @ inverse @ y[rows]
        missed = y[rows] - X @ beta
        d = K @ M[rows].T @ inverse @ missed
        return X, V, inverse, covariance, beta, missed, d

    whole = np.arange(18)
    X, _, inverse, covariance, beta, missed, d = solve(whole)
    np.testing.assert_allclose(fit.coefficients[0].numpy()[used], beta[2:], rtol=1e-6)
    np.testing.assert_allclose(fit.residual[0].numpy(), d, atol=1e-6)
    for left in range(18):
        rows = np.delete(whole, left)
        _, _, _, _, beta_, _, d_ = solve(rows)
        x = np.concatenate([[1.0, size[left]], A[left, used]])
        predicted = x @ beta_ + M[left] @ d_
        np.testing.assert_allclose(fit.left_out[0, left], y[left] - predicted, atol=1e-6)
    # The variance of each unit's d + Σ c φ + b₁ · share, jointly.
    scale = missed @ inverse @ missed / (18 - 2 - used.sum())
    shares = responses.masks.shares[0].numpy()
    maps = responses.masks.maps[0].numpy()[used]
    members = np.concatenate([np.eye(units), regions(grid, block, responses.masks.shares).numpy()])
    reach = K @ M.T
    slope = reach @ inverse
    functional = np.concatenate([np.zeros((units, 1)), shares[:, None], maps.T], 1) - slope @ X
    variance = K - slope @ reach.T + functional @ covariance @ functional.T
    expected = scale * np.diag(members @ variance @ members.T)
    np.testing.assert_allclose(fit.variance[0].numpy(), expected, rtol=1e-5)


def test_regions_are_blocks_of_the_grid():
    like = torch.zeros(1, 15).double()
    found = regions((3, 5), 2, like)
    assert found.shape == (6, 15) and (found.sum(0) == 1).all()
    assert found[0].nonzero()[:, 0].tolist() == [0, 1, 5, 6]
    assert found[5].nonzero()[:, 0].tolist() == [14]
    assert len(regions((), 2, like)) == 0


def test_certain_signs_are_holms():
    values = torch.tensor([[5.0, -4.0, 2.2, 0.1, 0.0]]).double()
    error = torch.ones(1, 5).double()
    # p: 5.7e-7, 6.3e-5, .0278, .92, 1 against .01, .0125, .0167, …
    assert certain_signs(values, error).tolist() == [[1, -1, 0, 0, 0]]
    assert certain_signs(values, error, level=0.8).tolist() == [[1, -1, 1, 0, 0]]
    assert certain_signs(values, torch.zeros(1, 5).double()).tolist() == [[1, -1, 1, 1, 0]]
    assert certain_signs(values * torch.nan, error).tolist() == [[0, 0, 0, 0, 0]]


def test_certain_signs_are_rarely_wrong():
    """All units are nothing: of 200 games at most 5 % may have a certain sign, which chance takes to 9 %."""
    wrong = 0
    for seed in range(200):
        g = torch.Generator().manual_seed(seed)
        taken = torch.rand(1, 80, 10, generator=g) < 0.4
        y = torch.randn(1, 80, generator=g).double()
        shares = torch.full((1, 10), 0.1).double()
        maps = torch.randn(1, 2, 10, generator=g).double()
        size = (taken.double() @ shares[..., None])[..., 0]
        a = torch.einsum("bsu,bru->bsr", taken.double(), maps)
        r = Responses(a, y, size=size, masks=MaskRows(taken, maps, shares))
        found = regress(r, every(r))
        wrong += int((certain_signs(found.values, found.error) != 0).any())
    assert wrong <= 18


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Additive games with noise, a prior that is partly right: ± 1.96 errors hold 95 % of 20 · 12 units, within chance."""
    held = []
    for seed in range(20):
        responses, truth = game(seed, inputs=1, masks=90, units=12, noise=1.0)
        found = regress(responses, every(responses))
        held.append(((found.values - truth).abs() < 1.96 * found.error).double())
    share = torch.cat(held).mean().item()
    assert 0.91 < share < 0.99


# -- its place -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(4),
        torch.nn.Flatten(),
        torch.nn.Linear(128, 4),
    )


@pytest.fixture(scope="module")
def x():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


FEW = {"methods": ["input_x_gradient", "grad_cam"], "fit_draws": 64, "fresh_draws": 64, "resolved_draws": 0}


def test_explain_gives_map_errors_and_shares(net, x, tmp_path):
    r = cs.explain(net, x, objective="posterior", **FEW)
    assert r.attribution.shape == r.error.shape == r.certain.shape == (2, 32, 32)
    assert (r.error > 0).all() and r.settings["sign"] == "keep"
    for said in r.posterior:
        assert 0 < said["explained"] <= 1 and said["certain_of"] > 0
    rho = r.criteria["faithfulness_correlation"]
    best = torch.stack([rho[name].fresh for name in r.methods]).amax(0)
    assert (rho["consensus"].fresh > best).all()
    # What is measured is what is returned.
    norm = torch.stack([each.quadratic.norm[0] for each in r.evidence["fit"]])
    size = torch.einsum("br,brt,bt->b", r.mixing, norm, r.mixing)
    torch.testing.assert_close(size, r.attribution.double().flatten(1).pow(2).sum(1), rtol=1e-4, atol=1e-6)
    # A file gives it back.
    again = cs.load(r.save(tmp_path / "run"))
    assert again.posterior == r.posterior
    torch.testing.assert_close(again.error, r.error)
    # By unit: the same sums, evenly spread.
    torch.testing.assert_close(again.by_unit, r.by_unit)
    units = cs.Patches(4)
    owner = torch.arange(2)
    even, detailed = (units.reduce(each[:, None].double(), owner) for each in (r.by_unit, r.attribution))
    torch.testing.assert_close(even, detailed, atol=1e-5, rtol=1e-4)
    assert (r.by_unit[:, :4, :4] == r.by_unit[:, :1, :1]).all()
    torch.testing.assert_close(again.certain, r.certain)
    assert [again.record(i) for i in range(2)] == [r.record(i) for i in range(2)]


def test_the_map_is_the_same_alone_and_without_a_table(net, x):
    r = cs.explain(net, x, objective="posterior", **FEW)
    alone = cs.explain(net, x[1:], objective="posterior", ids=[1], max_batch=7, **FEW)
    torch.testing.assert_close(alone.attribution, r.attribution[1:], atol=1e-6, rtol=1e-5)
    plain = cs.Consensus(net, objective="posterior", **FEW).attribute(x)
    torch.testing.assert_close(plain[:, 0], r.attribution, atol=1e-7, rtol=1e-6)


def test_evaluate_asks_it_anew_at_every_neighbour(net, x):
    """Its map is a function of the point: one that did not move with it would have no sensitivity of its residual."""
    t = cs.evaluate(net, x, objective="ridge", measures=["max_sensitivity", "random_logit"], rows=["consensus"], **FEW)
    assert (t.values["max_sensitivity"] > 0).all()
    assert (t.values["random_logit"] < 0.99).all()


def test_a_linear_model_is_explained_exactly():
    torch.manual_seed(0)
    linear = torch.nn.Linear(9, 2)
    x = torch.randn(3, 9)
    r = cs.explain(linear, x, objective="ridge", methods=["saliency"], baselines="zero", fit_draws=64, fresh_draws=16)
    expected = (linear.weight[r.target] * x).detach()
    torch.testing.assert_close(r.attribution.float(), expected, atol=1e-5, rtol=1e-4)


def test_masks_that_do_nothing_are_said(x):
    class Constant(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :2] * 0 + torch.tensor([1.0, 2.0])

    r = cs.explain(
        Constant(), x, objective="posterior", methods=["saliency", "input_x_gradient"], fit_draws=16, fresh_draws=16
    )
    assert "nothing is known" in r.solution.status[0]
    assert (r.certain == 0).all()


def test_settings_that_make_no_sense_are_refused(net, x):
    with pytest.raises(InputError, match="masks"):
        Posterior(methods=False, masks=False)
    with pytest.raises(InputError, match="sign"):
        cs.explain(net, x, objective="posterior", sign="abs")
    assert Ridge().methods is False


# -- few masks, and masks that say little ------------------------------------------------------------------------------------


def of_masks(taken, maps, y, shares, whole=False):
    """Responses of one input to masks (S, U)."""
    size = taken.double() @ shares
    a = taken.double() @ maps.mT
    all_there_are = torch.ones(1, dtype=torch.bool) if whole else None
    return Responses(
        a[None], y[None], whole=all_there_are, size=size[None], masks=MaskRows(taken[None], maps[None], shares[None])
    )


@pytest.mark.parametrize("masks", [2, 3, 4, 5])
def test_a_fit_that_passes_through_all_masks_predicts_none_of_them(masks):
    """With as many methods as masks everything is hit, and nothing is known: no full explanation, no error of 0."""
    for seed in range(5):
        responses, _ = game(seed, inputs=1, masks=masks, methods=4, noise=1.0)
        found = regress(responses, every(responses))
        assert not (found.explained > 0.999).any()
        assert not (found.error < 1e-6).any()
        alone = regress(responses, every(responses), residual=False)
        assert not (alone.explained > 0.999).any() and not (alone.error < 1e-6).any()


def test_few_masks_are_judged_by_students_quantiles():
    values = torch.full((1, 3), 4.0).double()
    error = torch.ones(1, 3).double()
    assert certain_signs(values, error).tolist() == [[1, 1, 1]]
    # Of three, P(|t| > 4) < .05/3: .0103 with 5 degrees of freedom, .057 with 2.
    assert certain_signs(values, error, freedom=torch.tensor([5])).tolist() == [[1, 1, 1]]
    assert certain_signs(values, error, freedom=torch.tensor([2])).tolist() == [[0, 0, 0]]
    assert certain_signs(values, torch.zeros(1, 3).double(), freedom=torch.tensor([2])).tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("level", [0.0, 1.0, -0.37])
def test_falls_that_are_all_alike_say_nothing(level):
    responses, _ = game(inputs=1)
    alike = Responses(responses.a, torch.full_like(responses.y, level), size=responses.size, masks=responses.masks)
    found = regress(alike, every(alike))
    assert (found.values == 0).all() and found.explained.isnan().all() and found.error.isnan().all()
    assert (certain_signs(found.values, found.error) == 0).all()


def test_masks_of_one_size_have_the_level_of_their_mean_with_its_error():
    """Whether the size is kept, as a constant with rounding, or left out."""
    g = torch.Generator().manual_seed(2)
    maps = torch.randn(3, 6, generator=g).double()
    truth = maps.mean(0) + torch.randn(6, generator=g).double()
    shares = torch.full((6,), 1 / 6).double()
    missed = []
    for seed in range(30):
        g = torch.Generator().manual_seed(seed)
        chosen = torch.stack([torch.randperm(6, generator=g)[:2] for _ in range(40)])
        taken = torch.zeros(40, 6, dtype=torch.bool).scatter_(1, chosen, True)
        y = taken.double() @ truth + 0.5 * torch.randn(40, generator=g).double()
        responses = of_masks(taken, maps, y, shares)
        found = regress(responses, every(responses))
        without = Responses(responses.a, responses.y, masks=responses.masks)
        again = regress(without, every(without))
        torch.testing.assert_close(found.values, again.values)
        torch.testing.assert_close(found.error, again.error)
        missed.append((found.values - truth) / found.error)
    assert 0.9 < (torch.cat(missed).abs() < 1.96).double().mean() < 0.995


def test_one_unit_has_all_of_the_fall_and_two_have_theirs():
    all_of_it = torch.tensor([0.7], dtype=torch.float64)
    one = of_masks(torch.ones(1, 1).bool(), torch.ones(2, 1).double(), all_of_it, torch.ones(1).double(), whole=True)
    assert regress(one, every(one)).values.tolist() == [[0.7]]
    halves = torch.full((2,), 0.5).double()
    for masks, falls in (([[1, 0], [0, 1]], [0.7, 0.3]), ([[1, 0], [0, 1], [1, 1]], [0.7, 0.3, 1.0])):
        maps = torch.tensor([[1.0, 0.2]]).double()
        two = of_masks(torch.tensor(masks).bool(), maps, torch.tensor(falls, dtype=torch.float64), halves, True)
        found = regress(two, every(two))
        np.testing.assert_allclose(found.values[0].numpy(), [0.7, 0.3], atol=1e-6)
        assert found.explained.item() == pytest.approx(1) and (found.error == 0).all()


def test_what_is_held_is_not_called_robust(net, x):
    """Without methods the whole map is held at neighbours: a sensitivity of 0 is no merit, and a contrast of 0 no fault."""
    held = cs.explain(net, x[:1], objective="ridge", **FEW)
    cells = {row.name: row.cells for row in rows(held.record(0))}
    for criterion in ("relative_sensitivity", "contrast"):
        assert cells["consensus"][criterion].fresh == 0 and cells["consensus"][criterion].trivial
    assert not cells["consensus"]["faithfulness_correlation"].trivial
    mixed = cs.explain(net, x[:1], objective="posterior", **FEW)
    assert not any(
        cell.trivial for cell in {row.name: row for row in rows(mixed.record(0))}["consensus"].cells.values()
    )


class PooledTokens(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.tanh(2 * x).sum(1))


def test_only_the_units_that_an_input_has_are_counted():
    """A short text beside a longer one: the parts are its own tokens, and Holm corrects for these."""
    values = torch.tensor([[2.4, 2.4, 0.0, 0.0]]).double()
    error = torch.tensor([[1.0, 1.0, 0.0, 0.0]]).double()
    there = torch.tensor([[True, True, False, False]])
    assert certain_signs(values, error).tolist() == [[0, 0, 0, 0]]
    assert certain_signs(values, error, there=there).tolist() == [[1, 1, 0, 0]]
    tokens = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    x = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)) * tokens[..., None]
    r = cs.explain(
        PooledTokens(), x, features=Tokens(tokens), objective="posterior", methods=["input_x_gradient"], quick=True
    )
    assert [each["certain_of"] for each in r.posterior] == [6, 2]
    assert (r.certain[1, 2:] == 0).all()


@pytest.mark.parametrize("option", [{"signed": True}, {"choice": "cross_validated"}, {"pooled": True}, {"sign": "abs"}])
def test_options_of_weights_name_objectives_that_take_them(option):
    net = torch.nn.Linear(5, 2)
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=f"{next(iter(option))}: .*('faith'|'opt')"):
        cs.explain(net, x, **option)
    cs.explain(net, x, objective="faith", methods=["input_x_gradient", "saliency"], quick=True, **option)


def test_fitted_standard_weights_belong_to_the_methods_of_the_input(tmp_path):
    """Of a table other methods are standard than of an image: what was fitted is saved, mixed and loaded as such."""
    net = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    fitted = cs.Consensus(net, objective="faith", fit_draws=8).fit([x])
    assert len(fitted.mixture().explainers) == len(fitted.weights) == 5
    saved = fitted.save(tmp_path / "weights.json")
    loaded = cs.Consensus(net, objective="faith", fit_draws=8).load(saved)
    torch.testing.assert_close(loaded.attribute(x), fitted.attribute(x))
    with pytest.raises(InputError, match="name the methods"):
        loaded.mixture()
    image = torch.randn(1, 3, 8, 8)
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    with pytest.raises(InputError, match="weights"):
        cs.Consensus(flat, objective="faith").load(saved).attribute(image)


def test_it_does_not_lose_to_a_ridge_regression_of_its_own_masks():
    """On a net where no single method explains much; both are judged alike, given how much a mask takes away."""
    torch.manual_seed(3)
    sizes = (24, 64, 64, 64, 3)
    layers = [each for a, b in itertools.pairwise(sizes) for each in (torch.nn.Linear(a, b), torch.nn.ReLU())][:-1]
    net = torch.nn.Sequential(*layers)
    for p in net.parameters():
        p.data *= 3
    x = torch.randn(4, 24)
    methods = ["saliency", "input_x_gradient", "integrated_gradients"]
    r = cs.explain(net, x, methods=methods, fit_draws=256, fresh_draws=512)
    ours = r.criteria["faithfulness_correlation"]["consensus"].fresh
    ridge = []
    for fit, fresh in zip(r.evidence["fit"], r.evidence["fresh"], strict=True):
        seen, asked = fit.responses, fresh.responses
        taken = seen.masks.taken[0].double()
        m = taken - taken.mean(0)
        d = torch.linalg.solve(m.T @ m + torch.eye(24).double(), m.T @ (seen.y[0] - seen.y[0].mean()))
        answer = asked.centred((asked.masks.taken[0].double() @ d)[None])[0]
        fall = asked.centred(asked.y)[0]
        ridge.append(answer @ fall / (answer.norm() * fall.norm()))
    assert float(ours.mean()) > float(torch.stack(ridge).mean()) - 0.01
