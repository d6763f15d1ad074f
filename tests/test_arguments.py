"""Keyword arguments follow their inputs where that is said, or where the model takes them no other way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import consilience as cs
from consilience.errors import InputError

FEW = {"fit_draws": 2, "fresh_draws": 2, "objective": "mean", "resolved_draws": 0}
X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
torch.manual_seed(1)
NET = nn.Linear(4, 3).double().eval()
BANK = torch.randn(3, 4, dtype=torch.float64)
AGE = torch.tensor([63.0, 41.0, 7.0], dtype=torch.float64)


class Model(nn.Module):
    """The same under names; ``use`` picks what is done with the argument."""

    def __init__(self, use):
        super().__init__()
        self.net, self.use = NET, use

    def forward(self, x, more):
        return self.use(self.net(x), x, more)


def bank(h, x, more):
    return (x + torch.as_tensor(more).mean()).tanh() @ torch.as_tensor(more).T


def scale_classes(h, x, more):
    return h * torch.as_tensor(more)


def joined(h, x, more):
    return h + torch.cat([x, torch.as_tensor(more).view(-1, 1)], 1).tanh().sum(1, keepdim=True)


def gained(h, x, more):
    return h * torch.as_tensor(more)[:, None]


def paired(h, x, more):
    return h * (x * torch.as_tensor(more)).sum(1, keepdim=True)


def words(h, x, more):
    return h * torch.tensor([float(len(word)) for word in more])[:, None]


def ignored(h, x, more):
    return h


CASES = [
    ("a bank of class vectors", bank, BANK, False),
    ("a weight for each class", scale_classes, AGE, False),
    ("an array of class vectors", bank, BANK.numpy(), False),
    ("a list of class weights", scale_classes, AGE.tolist(), False),
    ("what is not used", ignored, AGE, False),
    ("a number beside each input", joined, AGE, True),
    ("a factor of each input", gained, AGE, True),
    ("a vector for each input", paired, BANK, True),
    ("an array with a number for each", joined, AGE.numpy(), True),
    ("a list with a word for each", words, ["a", "bcd", "ef"], True),
]


def explained(model, x, **options):
    return cs.explain(model, x, 1, methods=["saliency"], sign="keep", scale="none", **FEW, **options)["saliency"]


def alone(use, more, follows):
    """The twin: every input by itself, with its own entry or with everything."""
    rows = []
    for i in range(3):
        given = more[i : i + 1] if follows else more
        rows.append(
            explained(
                lambda z, given=given: use(NET(z), z, _as_many(given, len(z)) if follows else given), X[i : i + 1]
            )
        )
    return torch.cat(rows)


def _as_many(entry, count):
    if isinstance(entry, list):
        return entry * count
    return torch.as_tensor(entry).expand(count, *entry.shape[1:])


@pytest.mark.parametrize(("use", "more", "follows"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_an_argument_follows_its_input_if_the_model_takes_it_no_other_way(use, more, follows):
    model = Model(use).eval()
    expected = alone(use, more, follows)
    torch.testing.assert_close(explained(model, X, kwargs={"more": more}), expected)
    said = cs.per_input(more) if follows else cs.constant(more)
    torch.testing.assert_close(explained(model, X, kwargs={"more": said}), expected)
    # One input with one entry is no special case.
    one = more[:1] if follows else more
    torch.testing.assert_close(explained(model, X[:1], kwargs={"more": one}), expected[:1])
    # And nothing depends on the rows in flight.
    torch.testing.assert_close(explained(model, X, kwargs={"more": more}, max_batch=1), expected)


def test_two_arguments_of_one_length_are_told_apart():
    model = lambda x, gain, classes: NET(x) * gain[:, None] * classes  # noqa: E731
    found = explained(model, X, kwargs={"gain": AGE, "classes": AGE / 9})
    torch.testing.assert_close(found, NET.weight[1].detach() * (AGE * AGE[1] / 9)[:, None])


def test_a_model_of_arrays_gets_arrays():
    seen = []

    def model(x, gain):
        seen.append(type(gain))
        return x[:, :2] * gain[:, None]

    r = cs.explain(
        model, X.numpy(), 0, kwargs={"gain": AGE}, methods=["feature_ablation"], sign="keep", scale="none", **FEW
    )
    assert set(seen) == {np.ndarray}
    torch.testing.assert_close(r["feature_ablation"][:, 0], X[:, 0] * AGE)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        (
            {"more": cs.per_input(AGE[:2])},
            r"kwargs\['more'\]: per_input needs one entry for each of 3 inputs, got shape \(2,\)",
        ),
        ({"more": torch.zeros(3, 2).double()}, r"kwargs: more: .*cs.constant"),
    ],
)
def test_what_fits_no_way_is_named(kwargs, said):
    with pytest.raises(InputError, match=said):
        explained(Model(paired).eval(), X, kwargs=kwargs)


def test_two_ways_that_both_work_are_asked_about():
    def either(x, one, two):
        if len(one) == len(two) == len(X):
            raise ValueError("one of them must have an entry for each row")
        return NET(x) * (one.mean() + two.mean())

    with pytest.raises(InputError, match=r"one or two may have one entry.*cs.per_input"):
        explained(either, X, kwargs={"one": AGE, "two": AGE})
    assert (
        explained(either, X, kwargs={"one": cs.per_input(AGE), "two": cs.constant(AGE)}, max_batch=2).isfinite().all()
    )
