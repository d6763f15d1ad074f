"""Ranks, correlations and top-k sets against SciPy, with ties and with features that are absent."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from consilience.statistics import ranks as r


def values(n, seed=0):
    """(4, 2, n) with many ties, few, none, and NumPy's idea of presence."""
    g = torch.Generator().manual_seed(seed)
    tied = torch.randint(0, max(2, n // 3), (2, 2, n), generator=g)
    coarse, free = torch.randint(-2, 3, (1, 2, n), generator=g), torch.randn(1, 2, n, generator=g, dtype=torch.float64)
    there = torch.rand(4, 2, n, generator=g) < 0.7
    there[..., :2] = True
    return torch.cat([tied, coarse, free]).double(), there


@pytest.mark.parametrize("block", [2**22, 100])
@pytest.mark.parametrize("n", [2, 3, 7, 64, 129])
def test_equal_scipys(n, block, monkeypatch):
    monkeypatch.setattr(r, "BLOCK", block)
    (a, there), (b, _) = values(n), values(n, 1)
    for present in (None, there):
        ranked, tau, rho = r.ranks(a, present), r.kendall(a, b, present), r.spearman(a, b, present)
        assert ranked.shape == a.shape and tau.shape == rho.shape == (4, 2)
        for index in np.ndindex(4, 2):
            keep = there[index] if present is not None else torch.ones(n, dtype=torch.bool)
            one, two = a[index][keep].numpy(), b[index][keep].numpy()
            np.testing.assert_allclose(ranked[index][keep], scipy.stats.rankdata(one))
            assert not ranked[index][~keep].any()
            np.testing.assert_allclose(tau[index], scipy.stats.kendalltau(one, two).statistic, atol=1e-12)
            if len(set(one)) > 1 and len(set(two)) > 1:
                np.testing.assert_allclose(rho[index], scipy.stats.spearmanr(one, two).statistic, atol=1e-12)
            else:
                assert rho[index].isnan()


def test_counts_of_pairs_are_those_of_all_pairs():
    (a, there), (b, _) = values(20), values(20, 1)
    found = r.pairs(a, b, there)
    for index in np.ndindex(4, 2):
        one, two = a[index][there[index]], b[index][there[index]]
        i, j = np.triu_indices(len(one), 1)
        da, db = (one[i] - one[j]).sign(), (two[i] - two[j]).sign()
        expected = [da * db > 0, da * db < 0, da == 0, db == 0, (da == 0) & (db == 0), da == da]
        assert [getattr(found, f)[index].item() for f in vars(found)] == [int(e.sum()) for e in expected]


def test_many_features_take_little_memory_and_agree():
    g = torch.Generator().manual_seed(0)
    a = torch.randn(50176, generator=g)
    b = (a + torch.randn(50176, generator=g)).mul(8).round()
    assert r.kendall(a, b).item() == pytest.approx(scipy.stats.kendalltau(a.numpy(), b.numpy()).statistic)


def test_leading_axes_broadcast():
    (a, _), (b, _) = values(9), values(9, 1)
    torch.testing.assert_close(r.kendall(a[:, :1], b)[2, 1], r.kendall(a[2, 0], b[2, 1]))


def test_top_is_exact_under_ties():
    v = torch.tensor([[3.0, 1, 2, 2, 2], [0, 0, 0, 0, 0], [5, 4, 3, 2, 1]])
    torch.testing.assert_close(
        r.top(v, 2), torch.tensor([[1, 0, 1 / 3, 1 / 3, 1 / 3], [0.4] * 5, [1, 1, 0, 0, 0]]).double()
    )
    torch.testing.assert_close(r.top(v, 0.5), r.top(v, 2))
    torch.testing.assert_close(r.top(v, torch.tensor([[1], [0], [9]])).sum(1), torch.tensor([1.0, 0, 5]).double())
    there = torch.tensor([[False, True, True, True, False]])
    torch.testing.assert_close(r.top(v, 2, there)[0], torch.tensor([0, 0, 1, 1, 0]).double())
    torch.testing.assert_close(r.top(v, 100, there).sum(1), torch.full((3,), 3.0).double())
    torch.testing.assert_close(r.top(v, 0.01).sum(1), torch.ones(3).double())


def test_what_is_not_finite_or_constant_is_nan():
    v = torch.tensor([[1.0, 2, 3], [1, torch.nan, 3], [2, 2, 2]])
    w = torch.tensor([3.0, 1, 2])
    assert r.ranks(v)[1].isnan().all() and r.top(v, 1)[1].isnan().all()
    for how in (r.kendall, r.spearman, r.pearson):
        assert how(v, w).isnan().tolist() == [False, True, True]
    tiny = torch.full((1, 7), 0.1)  # its mean rounds, yet it is constant
    assert r.pearson(tiny, torch.arange(7.0)).isnan()


def test_ties_that_rounding_has_broken_are_ties():
    """The zeros of a ReLU network in one batch and in another."""
    g = torch.Generator().manual_seed(0)
    exact = torch.randn(2, 400, generator=g).relu()
    noisy = exact + torch.finfo(torch.float32).eps * torch.randn(2, 400, generator=g) * (exact == 0)
    other = torch.randn(2, 400, generator=g).double()
    assert (r.spearman(noisy, other) - r.spearman(exact, other)).abs().max() > 1e-3
    assert torch.equal(r.ranks(r.without_rounding(noisy)), r.ranks(r.without_rounding(exact)))
    assert torch.equal(r.without_rounding(exact), exact.double())  # nothing else moves
    signed = r.without_rounding(torch.tensor([[1e-9, -1e-9, 1.0], [1e-9, -1e-9, 2e-9]]))
    assert signed.tolist()[0] == [0, 0, 1] and (signed[1] != 0).all()  # relative to the row's largest value
    nearly = torch.full((1, 5), 0.3)
    nearly[0, 2] += 3e-8
    assert r.spearman(r.without_rounding(nearly), other[:1, :5]).isnan().all()
    for wrong in (torch.nan, torch.inf):
        assert r.ranks(r.without_rounding(torch.tensor([[wrong, 1.0]]))).isnan().all()
    assert r.without_rounding(torch.zeros(1, 0)).shape == (1, 0)
