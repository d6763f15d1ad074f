"""Parameters drawn anew: what the network uses is random, however its weights are kept."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from consilience.errors import InputError
from consilience.model.copies import detached_copy
from consilience.model.random_weights import randomised, redraw, with_parameters
from consilience.statistics.keys import Key

KEY = Key(3, "random")


class Half(nn.Module):
    """Every second weight is zero: a parametrisation without inverse."""

    def forward(self, raw):
        return raw * (torch.arange(raw.shape[-1]) % 2)


def half(module):
    parametrize.register_parametrization(module, "weight", Half())
    return module


def every_third(module):
    mask = torch.ones_like(module.weight)
    mask.view(-1)[::3] = 0
    return prune.custom_from_mask(module, "weight", mask)


def pruned_twice(module):
    return prune.random_unstructured(prune.random_unstructured(module, "weight", 0.2), "weight", 0.2)


WRAPS = {
    "plain": lambda module: module,
    "weight_norm": parametrizations.weight_norm,
    "older weight_norm": weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "older spectral_norm": spectral_norm,
    "pruned": every_third,
    "pruned twice": pruned_twice,
    "orthogonal": parametrizations.orthogonal,
    "orthogonal, householder": lambda m: parametrizations.orthogonal(m, orthogonal_map="householder"),
    "orthogonal, exp": lambda m: parametrizations.orthogonal(m, orthogonal_map="matrix_exp", use_trivialization=False),
    "no inverse": half,
    "norm and mask": lambda m: prune.l1_unstructured(weight_norm(m), "weight_v", 0.3),
}
wraps = pytest.mark.parametrize("wrap", WRAPS)
pytestmark = pytest.mark.filterwarnings("ignore")  # the older weight norm is deprecated


def network(wrap):
    torch.manual_seed(0)
    first, last = (WRAPS[wrap](nn.Linear(12, 12)) for _ in range(2))
    return nn.Sequential(first, nn.Tanh(), last).eval()


def used(net, number):
    """The weight that a forward pass uses: the image of the unit vectors."""
    with torch.no_grad():
        return (net[number](torch.eye(12)) - net[number](torch.zeros(1, 12))).T


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@wraps
def test_the_weight_in_use_is_drawn(wrap):
    net = network(wrap)
    with torch.no_grad():
        before = used(net, 0)
    state = copy.deepcopy(net.state_dict())
    (drawn,) = randomised(net, "top_down", KEY, steps=1)
    for number in (0, 2):
        after = used(drawn, number)
        assert abs(correlation(after, used(net, number))) < 0.5 and after.std() > 0.01
    assert torch.equal(used(net, 0), before)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    (again,) = randomised(net, "bottom_up", KEY, steps=1)
    torch.testing.assert_close(used(again, 0), used(drawn, 0))  # a function of key and name


@wraps
def test_what_the_parametrisation_promises_still_holds(wrap):
    net = network(wrap)
    before = used(net, 0)
    (drawn,) = randomised(net, "top_down", KEY, steps=1)
    after = used(drawn, 0)
    if "orthogonal" in wrap:
        torch.testing.assert_close(after @ after.T, torch.eye(12), atol=1e-5, rtol=0)
    elif "spectral" in wrap:
        assert abs(float(torch.linalg.matrix_norm(after, 2)) - 1) < 1e-3
    elif "pruned" in wrap or wrap in ("no inverse", "norm and mask"):
        assert torch.equal(after == 0, before == 0)
    else:
        plain = network("plain")
        redraw(plain[0], KEY / "0")
        torch.testing.assert_close(after, used(plain, 0))  # the same draws as without it


@wraps
def test_one_submodule_at_a_time_comes_back(wrap):
    net = network(wrap)
    trained = [used(net, 0), used(net, 2)]
    changed = []
    for state in randomised(net, "independent", KEY):
        same = [torch.allclose(used(state, number), old) for number, old in zip((0, 2), trained, strict=True)]
        changed.append(same)
    assert changed == [[True, False], [False, True]]


@wraps
def test_a_parametrised_network_is_copied_after_a_forward_pass_with_a_graph(wrap):
    net = network(wrap)
    net(torch.randn(2, 12))  # older hooks leave a weight that deepcopy refuses
    copied = detached_copy(net)
    assert torch.equal(used(copied, 0), used(net, 0))
    assert len(with_parameters(net)) == 2


def test_tied_weights_are_drawn_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mid, self.head = nn.Linear(6, 6, bias=False), nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
            self.head.weight = self.embed.weight

    net = Tied()
    assert with_parameters(net) == ["embed", "mid"]
    states = [copy.deepcopy(state.state_dict()) for state in randomised(net, "top_down", KEY)]
    assert len(states) == 2
    assert all(torch.equal(state["head.weight"], state["embed.weight"]) for state in states)
    assert not torch.equal(states[0]["head.weight"], net.head.weight)  # from the output down, the head comes first
    assert torch.equal(states[1]["head.weight"], states[0]["head.weight"])


def test_what_a_reset_leaves_as_trained_is_drawn():
    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(4, 4)
            self.scale = nn.Parameter(torch.arange(4.0))

    module = Scaled()
    redraw(module, KEY)
    assert not torch.equal(module.scale, torch.arange(4.0))


def test_complex_parameters_are_drawn_in_both_parts():
    class Fourier(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(50, dtype=torch.complex64))

    module = Fourier()
    before = module.weight.detach().clone()
    redraw(module, KEY)
    assert not (module.weight.real == before.real).any() and not (module.weight.imag == before.imag).any()


@pytest.mark.filterwarnings("ignore")
def test_weights_that_cannot_be_drawn_are_refused_by_name():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 2))
    quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(InputError, match="'2'.*quantised.*float model"):
        with_parameters(quantised)
    whole = nn.Module()
    whole.weight = nn.Parameter(torch.arange(4), requires_grad=False)
    with pytest.raises(InputError, match="int64"):
        with_parameters(whole)
    with pytest.raises(InputError, match="no parameters"):
        with_parameters(nn.ReLU())
    with pytest.raises(InputError, match="plain callable"):
        with_parameters(torch.relu)
