"""Fidelity and stability of local models: definitions, exact cases, one input at a time."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from nets import bound
from sklearn.linear_model import Ridge
from torch import nn

from consilience.errors import InputError
from consilience.measures.local_models import LocalModels
from consilience.statistics.keys import Key
from consilience.surrogates.lime_maple import Maple

KEY = Key(5, "local")
DATA = torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.tensor(
    [1, 2, 0.5, 3]
)
FOREST = Maple(trees=10, leaf=5)
LIME = LocalModels(DATA, n_samples=60, samples=3)
TABLE = {
    "lime": LIME,
    "lime_around_x": LocalModels(DATA, n_samples=60, samples=3, around="x"),
    "maple": LocalModels(DATA, "maple", samples=3, forest=FOREST),
}
tables = pytest.mark.parametrize("name", TABLE)


def net(linear=False):
    model = nn.Linear(4, 2) if linear else nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
    return model.double().eval()


@tables
def test_equal_their_definitions(name):
    """One input at a time; the local model of LIME by scikit-learn's ridge regression on the same samples."""
    models, x, ids = TABLE[name], DATA[:3], torch.tensor([4, 0, 9])
    model = net()
    score, points = bound(model, x, ids=ids)
    found = models(score, points, KEY)
    f = lambda rows: model(rows)[:, 1].detach()  # noqa: E731

    def local(at, i):
        if models.kind == "maple":
            where = type(points)(at[None], points.owner[i : i + 1], ids[i : i + 1], 3)
            return models.coefficients(score, where, KEY)[0]
        mu, sigma = DATA.mean(0), DATA.std(0, correction=0)
        noise = torch.stack([(KEY / "lime").normal(ids[i : i + 1], s, (4,), torch.float64)[0] for s in range(1, 60)])
        z = torch.cat([((at - mu) / sigma)[None], noise + ((at - mu) / sigma if models.around == "x" else 0)])
        weights = torch.exp(-((z - z[0]) ** 2).sum(1) / (2 * (0.75 * 2) ** 2))
        fit = Ridge(1.0).fit(z, f(mu + sigma * z), sample_weight=weights)
        slopes = torch.from_numpy(fit.coef_) / sigma
        return torch.cat([torch.tensor([fit.intercept_]) - slopes @ mu, slopes])

    for i in range(3):
        e = local(x[i], i)
        g = lambda row, e=e: e[0] + e[1:] @ row  # noqa: E731
        near = [x[i] + 0.1 * (KEY / "neighbours").normal(ids[i : i + 1], s, (4,))[0] for s in range(3)]
        assert found.point[i].item() == pytest.approx(((g(x[i]) - f(x[i : i + 1])) ** 2).item(), rel=1e-6)
        fit = np.mean([((g(n) - f(n[None])) ** 2).item() for n in near])
        assert found.neighbourhood[i].item() == pytest.approx(fit, rel=1e-6)
        moved = np.mean([((local(n, i) - e) ** 2).sum().item() for n in near])
        assert found.stability[i].item() == pytest.approx(moved, rel=1e-6, abs=1e-15)


@tables
def test_a_linear_model_is_its_own_local_model(name):
    models = TABLE[name]
    light = LocalModels(
        DATA,
        models.kind,
        penalty=1e-9,
        n_samples=60,
        around=models.around,
        forest=Maple(10, 5, penalty=1e-9, columns=4),
    )
    found = light(*bound(net(linear=True), DATA[:3]), KEY)
    for values in vars(found).values():
        torch.testing.assert_close(values, torch.zeros(3).double(), atol=1e-9, rtol=0)


@tables
def test_no_noise_no_change_and_no_dependence_on_the_batch(name):
    models, ids, order = TABLE[name], torch.tensor([4, 0, 9]), torch.tensor([2, 0, 1])
    model = net()
    before, random = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    whole = models(*bound(model, DATA[:3], ids=ids), KEY)
    moved = models(*bound(model, DATA[:3][order], ids=ids[order], max_batch=2), KEY)
    for a, b in zip(vars(whole).values(), vars(moved).values(), strict=True):
        torch.testing.assert_close(a[order], b)
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    still = LocalModels(DATA, models.kind, sigma=0.0, n_samples=60, around=models.around, forest=FOREST)
    found = still(*bound(model, DATA[:3], ids=ids), KEY)
    torch.testing.assert_close(found.point, found.neighbourhood)
    torch.testing.assert_close(found.stability, torch.zeros(3).double())


def test_what_cannot_be_used_is_said():
    with pytest.raises(InputError, match="kind is one of 'lime'"):
        LocalModels(DATA, "line")
    with pytest.raises(InputError, match="samples"):
        LocalModels(DATA, samples=0)
