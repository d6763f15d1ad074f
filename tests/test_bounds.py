"""Bounds before any draw: their coverage, simulated, and the largest change of a map by its sign and scale."""

from __future__ import annotations

import math

import pytest
import torch

from consilience import simplex
from consilience.errors import InputError
from consilience.statistics.bounds import largest_change, weights_bound


@pytest.mark.parametrize("draws", [20, 200, 2000])
def test_a_bound_fails_in_fewer_cases_than_it_says(draws):
    """Residuals of length one in two opposite directions or none: entries of G at both ends of what they can be."""
    k, delta, trials = 3, 0.2, 400
    g = torch.Generator().manual_seed(draws)
    chance = torch.tensor([0.5, 0.45, 0.4], dtype=torch.float64)
    sign = torch.where(torch.rand(trials, draws, k, generator=g).double() < chance, 1.0, -1.0)
    expected = (2 * chance - 1)[:, None] * (2 * chance - 1)
    expected[range(k), range(k)] = 1
    w = simplex.quadratic(sign.mT @ sign / draws).weights
    lost = torch.einsum("bi,ij,bj->b", w, expected, w) - simplex.quadratic(expected[None]).value
    bound = weights_bound(k, draws, 1.0, delta)
    assert float((lost > bound).double().mean()) <= delta
    assert bound <= 1 and weights_bound(k, draws, 1.0, delta, rounds=4) >= bound


def test_entries_stay_within_their_half_of_the_bound():
    """The bound is twice what every entry of G keeps to at once; here the entries themselves, at a δ that shows failures."""
    k, draws, delta, trials = 4, 100, 0.5, 2000
    g = torch.Generator().manual_seed(0)
    sign = torch.randint(0, 2, (trials, draws, k), generator=g).double() * 2 - 1
    errors = (sign.mT @ sign / draws - torch.eye(k)).abs().amax((1, 2))
    each = math.sqrt(2 * math.log(k * (k + 1) / delta) / draws)
    assert 0 < float((errors > each).double().mean()) <= delta


@pytest.mark.parametrize("sign", ["abs", "keep"])
@pytest.mark.parametrize("scale", ["max", "l2"])
@pytest.mark.parametrize("features", [1, 2, 7])
def test_no_two_maps_are_further_apart(sign, scale, features):
    g = torch.Generator().manual_seed(features)
    maps = torch.randn(4000, features, generator=g, dtype=torch.float64) ** 5
    maps = torch.cat(
        [maps, torch.eye(features).double(), -torch.eye(features).double(), torch.ones(1, features).double()]
    )
    maps = torch.cat([maps, -maps, torch.zeros(1, features).double()])
    maps = maps.abs() if sign == "abs" else maps
    size = maps.abs().amax(1) if scale == "max" else maps.norm(dim=1)
    maps = maps / torch.where(size > 0, size, 1.0)[:, None]
    furthest = float(torch.cdist(maps, maps).max()) ** 2
    bound = largest_change(features, sign, scale)
    assert furthest <= bound * (1 + 1e-9) and furthest >= 0.99 * bound


def test_what_has_no_bound_is_refused():
    with pytest.raises(InputError, match="bounded maps"):
        largest_change(5, "abs", "none")
    with pytest.raises(InputError, match="delta"):
        weights_bound(5, 10, 1.0, 1.0)
