"""Draws: known answers, and the law that a draw is a function of (seed, stream, id, sample, position)."""

import pytest
import torch

from consilience.statistics.keys import Key, fold, philox

IDS = torch.tensor([0, 3, 2**40 + 7])


@pytest.mark.parametrize(
    "counter, key, answer",
    [  # the Random123 library's known answers for philox4x32-10
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers(counter, key, answer):
    assert tuple(int(word) for word in philox([torch.tensor(c) for c in counter], key)) == answer


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_a_draw_depends_on_nothing_but_its_name(kind):
    draw = getattr(Key(5, "fit"), kind)
    together = draw(IDS, torch.tensor([4, 4, 9]), (3, 5))
    assert torch.equal(together[1], draw(IDS[1:2], 4, (3, 5))[0])
    assert torch.equal(together[2].flatten()[:7], draw(IDS[2:], 9, (7,))[0])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together, getattr(Key(5, "fresh"), kind)(IDS, torch.tensor([4, 4, 9]), (3, 5)))
    assert not torch.equal(together, getattr(Key(6, "fit"), kind)(IDS, torch.tensor([4, 4, 9]), (3, 5)))


def test_ids_above_32_bits_differ():
    key = Key(0, "x")
    assert not torch.equal(key.uniform(torch.tensor([7]), 0, (8,)), key.uniform(torch.tensor([2**40 + 7]), 0, (8,)))


def test_moments_and_range():
    key = Key(1, "moments")
    uniform, normal = key.uniform(torch.arange(40), 0, (5000,)), key.normal(torch.arange(40), 1, (5000,))
    error = (40 * 5000) ** -0.5
    assert 0 < uniform.min() and uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 5 * error * 12**-0.5 and abs(uniform.var() - 1 / 12) < 5 * error * 180**-0.5
    assert abs(normal.mean()) < 5 * error and abs(normal.var() - 1) < 5 * error * 2**0.5
    assert normal.isfinite().all() and normal.abs().max() < 5.4
    assert abs((normal**4).mean() - 3) < 5 * error * 96**0.5
    # neighbouring positions, samples and ids are uncorrelated
    other = key.normal(torch.arange(40), 2, (5000,))
    for a, b in ((normal[:, 1:], normal[:, :-1]), (normal, other), (normal[1:], normal[:-1])):
        assert abs((a * b).mean()) < 5 * error


def test_fold_zero_is_the_identity_and_others_differ():
    ids = torch.arange(100)
    assert torch.equal(fold(ids, torch.zeros(100)), ids)
    folded = torch.cat([fold(ids, torch.full((100,), n)) for n in range(5)])
    assert len(folded.unique()) == 500 and (folded >= 0).all()


def test_the_global_random_state_is_neither_read_nor_changed():
    before = torch.random.get_rng_state()
    first = Key(0, "a").normal(IDS, 0, (10,))
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(123)
    assert torch.equal(first, Key(0, "a").normal(IDS, 0, (10,)))
