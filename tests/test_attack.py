"""Attacks and what survives them: equal to plain loops over single images, and the laws that any attack must obey."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from nets import Small
from torch import nn

from consilience.attacks.importance import ImportanceAttack, ig_map, pgd, top_k, top_k_intersection
from consilience.attacks.robustness import attribution_robustness, averages, common
from consilience.errors import InputError, UnsupportedOp
from consilience.model.score import Score
from consilience.model.softplus import Softplus
from consilience.perturb.points import Points
from consilience.statistics.keys import Key
from consilience.statistics.ranks import kendall

KEY = Key(5, "attack")
EPS, BOUNDS = 0.1, (0.0, 1.0)
ATTACK = ImportanceAttack(EPS, steps=4, step_size=0.03, k=12, restarts=2, points=7, attack_points=5, beta=8.0)


def data(count=6, seed=2):
    x = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, Small()(x).argmax(1).detach()


# -- rank agreement ----------------------------------------------------------------------------------------------------


def tau(a, b):
    return kendall(a.flatten(1), b.flatten(1))


@pytest.mark.parametrize("levels", [1, 5, 1000])
def test_tau_equals_scipys(levels):
    stats = pytest.importorskip("scipy.stats")
    g = torch.Generator().manual_seed(levels)
    a, b = (torch.randint(0, levels + 1, (5, 8, 8), generator=g).double() / 7 for _ in range(2))
    a[0], b[1] = b[0], -a[1]
    expected = [float(stats.kendalltau(p, q).statistic) for p, q in zip(a.numpy(), b.numpy(), strict=True)]
    torch.testing.assert_close(tau(a, b), torch.tensor(expected).double(), equal_nan=True)


def test_top_k_equals_its_slow_twin():
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 9, (4, 5, 6), generator=g) for _ in range(2))
    for k in (1, 7, 30):
        for i in range(4):
            first = sorted(range(30), key=lambda j: (-a[i].flatten()[j].item(), j))[:k]
            second = sorted(range(30), key=lambda j: (-b[i].flatten()[j].item(), j))[:k]
            assert top_k(a, k)[i].flatten().nonzero()[:, 0].tolist() == sorted(first)
            assert top_k_intersection(a, b, k)[i].item() == len(set(first) & set(second)) / k
    assert (top_k_intersection(a, a, 9) == 1).all()


# -- the smooth copy ---------------------------------------------------------------------------------------------------

soft = lambda z, beta=8.0: (1 + (beta * z).exp()).log() / beta  # noqa: E731
RECTIFIERS = {
    "module": (nn.ReLU(), soft),
    "module in-place": (nn.ReLU(inplace=True), soft),
    "functional": (lambda z: nnf.relu(z), soft),
    "functional in-place": (lambda z: nnf.relu(z, inplace=True), soft),
    "torch": (torch.relu, soft),
    "method": (lambda z: z.relu(), soft),
    "method in-place": (lambda z: (z.relu_(), z)[1], soft),
    "clamp": (lambda z: z.clamp(min=0), soft),
    "clamp_min": (lambda z: z.clamp_min(0), soft),
    "clamp to a range": (lambda z: z.clamp(0, 2), lambda z: soft(z) - soft(z - 2)),
    "relu6": (nn.ReLU6(), lambda z: soft(z) - soft(z - 6)),
    "hardtanh": (nn.Hardtanh(0, 1), lambda z: soft(z) - soft(z - 1)),
    "threshold": (nn.Threshold(0, 0), soft),
    "leaky": (nn.LeakyReLU(0.1), lambda z: 0.1 * z + 0.9 * soft(z)),
    "leaky functional": (lambda z: nnf.leaky_relu(z, 0.3, inplace=True), lambda z: 0.3 * z + 0.7 * soft(z)),
    "prelu": (nn.PReLU(3, 0.2), lambda z: 0.2 * z + 0.8 * soft(z)),
    "sigmoid": (nn.Sigmoid(), torch.sigmoid),
    "clamp elsewhere": (lambda z: z.clamp(-1, 1), lambda z: z.clamp(-1, 1)),
}


class Calls(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, z):
        return self.call(z * 1)


@pytest.mark.parametrize("name", RECTIFIERS)
def test_every_rectifier_is_smoothed_however_it_is_called(name):
    call, expected = RECTIFIERS[name]
    z = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    model = Calls(call).double()
    before = model(z).detach()
    found = Softplus(model, 8.0)(z)
    torch.testing.assert_close(found, expected(z))
    one, two = (torch.autograd.grad(f.square().sum(), z)[0] for f in (found, expected(z)))
    torch.testing.assert_close(one, two)
    assert torch.equal(model(z), before), "the model itself stays a rectifier network"


def test_the_smooth_copy_approaches_the_model_and_shares_its_parameters():
    model, (x, _) = Small(), data()
    errors = [(Softplus(model, beta)(x) - model(x)).abs().max().item() for beta in (10, 100, 1000)]
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    twin = Small(lambda: nn.Softplus(8.0))
    torch.testing.assert_close(Softplus(model, 8.0)(x), twin(x))
    assert [id(p) for p in Softplus(model).parameters()] == [id(p) for p in model.parameters()]


def test_what_cannot_be_smoothed_is_refused():
    with pytest.raises(InputError, match="nn.Module"):
        Softplus(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="beta"):
        Softplus(Small(), 0)
    x, y = data(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.trace(Small(), x)
    with pytest.raises(UnsupportedOp, match="TorchScript"):
        ATTACK(scripted, x, y)


# -- PGD ---------------------------------------------------------------------------------------------------------------


def project(z, x, eps=EPS):
    return z.clamp(x - eps, x + eps).clamp(*BOUNDS)


def start(x, i, restart):
    u = (KEY / "start").uniform(torch.tensor([i]), restart, x.shape[1:])[0].double()
    return project(x[i] + (2 * u - 1) * EPS, x[i])


def test_pgd_equals_its_slow_twin():
    model, (x, y) = Small(), data()
    y[0] = (y[0] + 1) % 4
    found = pgd(model, x, y, eps=EPS, steps=3, step_size=0.04, restarts=3, key=KEY)
    for i in range(len(x)):
        best = None
        for restart in range(3):
            z = start(x, i, restart)
            for _ in range(3):
                z.requires_grad_()
                (g,) = torch.autograd.grad(nnf.cross_entropy(model(z[None]), y[i : i + 1]), z)
                z = project(z.detach() + 0.04 * g.sign(), x[i])
            out = model(z[None]).detach()
            rank = (bool(out.argmax() != y[i]), nnf.cross_entropy(out, y[i : i + 1]).item())
            if best is None or rank > best[0]:
                best = rank, z
        torch.testing.assert_close(found[i], best[1])


def test_pgd_raises_the_loss_within_the_ball():
    model, (x, y) = Small(), data()
    before = nnf.cross_entropy(model(x), y, reduction="none")
    for restarts in (1, 4):
        z = pgd(model, x, y, eps=EPS, steps=10, step_size=0.03, restarts=restarts, key=KEY)
        assert (z - x).abs().max() <= EPS + 1e-12 and z.min() >= 0 and z.max() <= 1
        after = nnf.cross_entropy(model(z), y, reduction="none")
        assert (after > before).all()
        before = after - 1e-12


def test_bounds_and_eps_may_differ_by_channel():
    model, (x, y) = Small(), data()
    std, mean = (
        torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1).double(),
        torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1).double(),
    )
    scaled = nn.Sequential(Unscale(mean, std), model)
    z = pgd(scaled, (x - mean) / std, y, eps=EPS / std, steps=0, step_size=1.0,
            bounds=((0 - mean) / std, (1 - mean) / std), key=KEY)  # fmt: skip
    torch.testing.assert_close(z * std + mean, pgd(model, x, y, eps=EPS, steps=0, step_size=1.0, key=KEY))


class Unscale(nn.Module):
    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x):
        return x * self.std + self.mean


# -- the attack on attributions ----------------------------------------------------------------------------------------


def slow_map(model, x, label, steps, graph=False):
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    total = 0
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        z = x * node if graph else (x * node).detach().requires_grad_()
        (g,) = torch.autograd.grad(model(z[None])[0, label], z, create_graph=graph)
        total = total + weight * g
    s = (total * x).abs().sum(0)
    return s * s.numel() / s.sum()


def slow_attack(model, smooth, x, i, label, kind):
    clean = slow_map(model, x[i], label, 7)
    chosen = torch.zeros(64, dtype=torch.bool)
    chosen[clean.flatten().sort(descending=True, stable=True).indices[:12]] = True
    grid = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")).double()
    centre = lambda s: (grid * s).sum((1, 2)) / s.sum()  # noqa: E731
    found = []
    for restart in range(2):
        z, best = start(x, i, restart), (1.0, x[i], clean)
        for step in range(4):
            if kind == "random":
                u = (KEY / "signs").uniform(torch.tensor([i]), restart * 4 + step, x.shape[1:])[0].double()
                sign = (u - 0.5).sign()
            else:
                z = z.requires_grad_()
                s = slow_map(smooth, z, label, 5, graph=True)
                goal = -s.flatten()[chosen].sum() if kind == "top_k" else (centre(s) - centre(clean)).square().sum()
                sign = torch.autograd.grad(goal, z)[0].sign()
            z = project(z.detach() + 0.03 * sign, x[i])
            if model(z[None]).argmax() == label:
                s = slow_map(model, z, label, 7)
                a, b = clean.flatten().numpy(), s.flatten().numpy()
                pairs = [(np.sign(a[p] - a[q]), np.sign(b[p] - b[q])) for p in range(64) for q in range(p)]
                tau = sum(u * v for u, v in pairs) / np.sqrt(
                    sum(u * u for u, _ in pairs) * sum(v * v for _, v in pairs)
                )
                best = min(best, (tau, z, s), key=lambda item: item[0])
        found.append(best)
    return clean, found


@pytest.mark.parametrize("kind", ["top_k", "mass_centre", "random"])
def test_the_importance_attack_equals_its_slow_twin(kind):
    model, (x, y) = Small(), data(4)
    found = replace(ATTACK, kind=kind)(model, x, y, key=KEY)
    for i in range(2):
        clean, expected = slow_attack(model, Small(lambda: nn.Softplus(8.0)), x, i, int(y[i]), kind)
        torch.testing.assert_close(found.original[i], clean)
        for restart, (least, z, s) in enumerate(expected):
            assert found.tau[restart, i].item() == pytest.approx(least)
            torch.testing.assert_close(found.x[restart, i], z)
            torch.testing.assert_close(found.maps[restart, i], s)


def test_the_map_sums_to_the_number_of_pixels_and_is_the_gradient_of_the_class():
    model, (x, y) = Small(), data()
    score = Score(model, y).at(x)
    s = ig_map(score, Points(x, torch.arange(6), score.ids), 50)
    torch.testing.assert_close(s.sum((1, 2)), torch.full((6,), 64.0).double())
    black = ig_map(score, Points(x * 0, torch.arange(6), score.ids), 5)
    assert (black == 0).all(), "the baseline itself has no attribution, and no division by zero"


def test_an_attack_that_aims_is_stronger_than_random_signs():
    model, (x, y) = Small(), data(8)
    attack = replace(ATTACK, steps=10, points=16, attack_points=16)
    left = {kind: replace(attack, kind=kind)(model, x, y, key=KEY).tau.amin(0).mean() for kind in ("top_k", "random")}
    assert left["top_k"] < left["random"] - 0.05


def test_no_room_no_attack():
    model, (x, y) = Small(), data()
    attack = replace(ATTACK, eps=0.0)
    found = attack(model, x, y, key=KEY)
    assert torch.equal(found.x, x.expand(2, *x.shape)) and (found.tau == 1).all() and not found.found.any()
    result = attribution_robustness(model, x, y, attack, pgd_steps=3, pgd_step_size=0.1, key=KEY)
    assert all((result[name] == 1).all() for name in ("NA", "AA", "IN", "CO")) and result["counts"].all()


def test_restarts_start_at_different_points_and_the_worst_counts():
    model, (x, y) = Small(), data()
    attack = replace(ATTACK, restarts=3)
    found = attack(model, x, y, key=KEY)
    assert not torch.equal(found.x[0], found.x[1]) and not torch.equal(found.x[1], found.x[2])
    assert ((found.x - x).abs() <= EPS + 1e-12).all() and (found.x >= 0).all() and (found.x <= 1).all()
    result = attribution_robustness(model, x, y, attack, pgd_steps=2, pgd_step_size=0.1, key=KEY)
    again = attack(model, x, y, key=KEY / "attack")
    torch.testing.assert_close(result["CO"], again.tau.amin(0))
    shares = torch.stack([top_k_intersection(again.original, maps, 12) for maps in again.maps])
    torch.testing.assert_close(result["IN"], shares.amin(0))


def test_kept_iterates_keep_the_label_and_say_the_truth():
    model, (x, y) = Small(), data()
    found = ATTACK(model, x, y, key=KEY)
    score = Score(model, y).at(x)
    for restart in range(2):
        assert (model(found.x[restart]).argmax(1) == y).all()
        s = ig_map(score, Points(found.x[restart], torch.arange(6), score.ids), 7)
        torch.testing.assert_close(found.maps[restart], s)
        torch.testing.assert_close(found.tau[restart], tau(found.original, s))


def test_misclassified_inputs_do_not_count():
    model, (x, y) = Small(), data()
    wrong = y.clone()
    wrong[[1, 4]] = (y[[1, 4]] + 1) % 4
    result, clean = (
        attribution_robustness(model, x, labels, ATTACK, pgd_steps=2, pgd_step_size=0.05, key=KEY)
        for labels in (wrong, y)
    )
    assert result["counts"].tolist() == [True, False, True, True, False, True]
    assert result["NA"][[1, 4]].tolist() == result["AA"][[1, 4]].tolist() == [0, 0]
    assert result["IN"][[1, 4]].isnan().all() and result["CO"][[1, 4]].isnan().all()
    for name in ("NA", "AA", "IN", "CO"):
        torch.testing.assert_close(result[name][result["counts"]], clean[name][result["counts"]])
    both = common([result, clean])
    assert torch.equal(both, result["counts"])
    rows = averages(clean, both)
    kept = clean["CO"][both]
    assert rows["CO"] == pytest.approx((kept.mean().item(), kept.std().item() / 2, 4))
    assert averages(result)["NA"][0] == pytest.approx(4 / 6) and averages(result)["IN"][2] == 4
    nothing = attribution_robustness(model, x, (y + 1) % 4, ATTACK, pgd_steps=1, pgd_step_size=0.1)
    assert averages(nothing)["NA"][0] == 0 and np.isnan(averages(nothing)["CO"][0]) and averages(nothing)["CO"][2] == 0


def test_a_misclassified_start_is_never_kept():
    model, (x, y) = Small(), data()
    found = ATTACK(model, x, (y + 1) % 4, key=KEY)
    moved = found.tau < 1
    assert torch.equal(model(found.x[moved]).argmax(1), ((y + 1) % 4).expand(2, -1)[moved])


def test_batch_chunk_and_order_do_not_matter():
    model, (x, y) = Small(), data()
    options = {"pgd_steps": 2, "pgd_step_size": 0.05, "key": KEY}
    whole = attribution_robustness(model, x, y, ATTACK, ids=torch.arange(6) + 40, **options)
    at = torch.tensor([4, 1, 5])
    part = attribution_robustness(model, x[at], y[at], ATTACK, ids=at + 40, max_batch=3, **options)
    for name in whole:
        torch.testing.assert_close(part[name], whole[name][at])


def test_everything_of_the_callers_comes_back_untouched():
    model, (x, y) = Small(), data()
    model.train()
    model.conv1.weight.requires_grad_(False)
    kept, state, before = x.clone(), torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    attribution_robustness(model, x, y, ATTACK, pgd_steps=2, pgd_step_size=0.05)
    assert torch.equal(x, kept) and torch.equal(torch.get_rng_state(), state) and model.training and model.act1.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.conv1.weight.requires_grad and model.conv2.weight.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_float32_and_a_score_with_arguments():
    model, (x, y) = Small(), data()
    wide = ATTACK(model, x, y, key=KEY)
    narrow = ATTACK(Small().float(), x.float(), y, key=KEY)
    assert narrow.x.dtype == torch.float32
    torch.testing.assert_close(narrow.original, wide.original, rtol=1e-3, atol=1e-4)

    def shifted(rows, shift):
        return model(rows + shift)

    shift = 0.01 * torch.arange(6).double().view(6, 1, 1, 1)
    score = Score(shifted, kwargs={"shift": shift})
    labels = model(x + shift).argmax(1)
    labels[2] = (labels[2] + 1) % 4
    attack = replace(ATTACK, kind="random")
    together = attribution_robustness(score, x, labels, attack, pgd_steps=1, pgd_step_size=0.05, key=KEY)
    for i in (0, 5):
        alone = Score(shifted, kwargs={"shift": shift[i : i + 1]})
        one = attribution_robustness(
            alone, x[i : i + 1], labels[i : i + 1], attack, pgd_steps=1, pgd_step_size=0.05, key=KEY, ids=[i]
        )
        torch.testing.assert_close(one["CO"], together["CO"][i : i + 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: pgd(Small(), x + 1, y, eps=0.1, steps=1, step_size=0.1), "bounds: x ranges over"),
        (lambda x, y: pgd(lambda rows: rows.mean((1, 2, 3)), x, y * 0, eps=0.1, steps=1, step_size=0.1), "two classes"),
        (lambda x, y: ImportanceAttack(0.1, 1, 0.1, 5, kind="topk"), "kind is one of 'top_k'"),
        (lambda x, y: ImportanceAttack(0.1, 0, 0.1, 5), "steps"),
        (lambda x, y: ImportanceAttack(0.1, 1, 0.1, 65)(Small(), x, y), "k: from 1 to .* 64"),
        (lambda x, y: top_k_intersection(x, x[:, :1], 3), "same shape"),
        (lambda x, y: common([]), "results"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(*data(2))


def test_mass_centre_is_for_images():
    flat = nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 3)).double()
    x = torch.rand(2, 5, dtype=torch.float64)
    y = flat(x).argmax(1)
    with pytest.raises(InputError, match="mass_centre"):
        replace(ATTACK, kind="mass_centre", k=2)(flat, x, y)
    assert replace(ATTACK, k=2)(flat, x, y).maps.shape == (2, 2, 5)


def test_training_and_attacks_share_one_ascent():
    """The same box, start and steps: what an objective maximises is what :func:`pgd` finds."""
    from consilience import train
    from consilience.attacks.box import PGD, project

    assert train.PGD is PGD
    x, y = data(4)
    model = Small()
    attack = PGD(EPS, 3, 0.04, (0.0, 1.0))
    start = attack.start(x, KEY / "start", torch.arange(4), 0)

    def gradient(there):
        leaf = there.detach().requires_grad_()
        return torch.autograd.grad(nn.functional.cross_entropy(model(leaf), y, reduction="sum"), leaf)[0]

    found = attack.ascend(x, start, gradient)
    assert torch.equal(found, pgd(model, x, y, eps=EPS, steps=3, step_size=0.04, key=KEY))
    assert torch.equal(project(x + 5, x, 0.1, None), x + 0.1)
    with pytest.raises(InputError, match="eps has numbers, at least 0"):
        PGD(torch.tensor([-0.1]))
