"""Passes of the model, operations, and waits for a device: what is counted must not grow."""

from __future__ import annotations

import copy
import sys
import weakref
from pathlib import Path

import pytest
import torch
from nets import Small, bound, images
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import consilience as cs
from consilience.explain.options import Options
from consilience.explain.run import begin
from consilience.explainers import (
    LIME,
    DeepLIFT,
    FeatureAblation,
    Function,
    GradCAM,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    NoiseGrad,
    Saliency,
    ScoreCAM,
    SmoothGrad,
    Stack,
    VarGrad,
)
from consilience.perturb.points import Points

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from operations import Operations, passes

METHODS = [
    Saliency(), InputXGradient(), IntegratedGradients(8), SmoothGrad(5), VarGrad(5), GuidedBackprop(), DeepLIFT(), GradCAM(),
]  # fmt: skip
ONE = [1 + 8 + 5, 1, 2]
"""Rows of the passes that explain one point: all without a rule together, guided, and with the baseline beside it."""


def with_gradient(seen: list[tuple[int, bool]]) -> list[int]:
    return [rows for rows, graph in seen if graph]


def only_outputs(seen: list[tuple[int, bool]]) -> list[int]:
    return [rows for rows, graph in seen if not graph]


# -- passes ------------------------------------------------------------------------------------------------------------


def test_the_trial_of_the_methods_makes_the_first_maps():
    model = Small()
    with passes(model) as seen:
        job = begin(model, images()[:1], None, Options.of(methods=METHODS, objective="mean", max_batch=128))
    # A look at what the outputs are, before; the probe for a layer comes when the layer is asked for.
    assert with_gradient(seen)[-3:] == ONE
    with passes(model) as seen:
        found = job.combine(every=False)
    assert seen == []
    stack = Stack(METHODS)
    torch.testing.assert_close(
        found.base[:, 0], cs.explain(model, images()[:1], methods=[Saliency()], objective="mean").maps[:, 0]
    )
    assert len(stack) == found.base.shape[1]


def test_all_methods_share_passes_at_neighbours_and_for_other_outputs():
    model = Small()
    draws = {"average_sensitivity": 3, "infidelity": 12}
    options = Options.of(methods=METHODS, objective="opt", fit_draws=draws, max_batch=128)
    job = begin(model, images()[:1], None, options)
    with passes(model) as seen:
        job.combine(every=False)
    neighbours = [3 * rows for rows in ONE]
    other_outputs = [2 * rows for rows in ONE]
    assert sorted(with_gradient(seen)) == sorted(neighbours + other_outputs)
    # The masks, and the input itself beside them.
    assert only_outputs(seen) == [12 + 1]


def test_batches_are_full_but_for_the_last_ones():
    """Of a queue of 3 · 14 rows with 16 in flight: three passes, all of about the same size."""
    model = Small()
    score, points = bound(model, images(), max_batch=16)
    with passes(model) as seen:
        Stack(METHODS[:5]).attribute(score, points)
    assert with_gradient(seen) == [14, 14, 14]


def test_a_method_that_fails_costs_the_others_one_more_try_and_nothing_else():
    class Broken(Saliency):
        name = "broken"

        def fold(self, state, cloud, values):
            raise KeyError("no such thing")

    model = Small()
    score, points = bound(model, images()[:1])
    methods = [Saliency(), Broken(), IntegratedGradients(8), SmoothGrad(5)]
    stack, failed = Stack(methods).usable(score, points)
    assert failed == {"broken": "KeyError: 'no such thing'"} and stack.names == (
        "saliency",
        "integrated_gradients",
        "smoothgrad",
    )
    expected = Stack([methods[index] for index in (0, 2, 3)]).attribute(score, points)
    with passes(model) as seen:
        found = stack.attribute(score, points)
    assert seen == []
    torch.testing.assert_close(found, expected)
    # Handed out once; then they are made again.
    with passes(model) as seen:
        torch.testing.assert_close(stack.attribute(score, points), expected)
    assert with_gradient(seen) == [14]


# -- the output that each point is asked about ---------------------------------------------------------------------------


def test_points_may_be_asked_about_outputs_of_their_own():
    """In one call the maps that as many calls give, of methods of every kind."""

    def foreign(model, inputs, target):
        x = inputs.detach().clone().requires_grad_()
        return torch.autograd.grad(model(x).gather(1, target[:, None]).sum(), x)[0]

    by_itself = Function(foreign)
    methods = [*METHODS, NoiseGrad(2), ScoreCAM(), FeatureAblation(cs.Patches(4)), LIME(30, cs.Patches(4)), by_itself]
    x = images()
    score, _ = bound(Small(), x)
    stack = Stack(methods)
    owner = torch.tensor([0, 1, 0, 2, 0])
    targets = torch.tensor([1, 3, 2, 0, 1])
    asked = Points(x[owner], owner, score.ids[owner], 3, None, targets)
    found = stack.attribute(score, asked)
    for at in range(len(owner)):
        one = asked[at : at + 1]
        alone, _ = bound(Small(), x, target=int(targets[at]))
        expected = stack.attribute(alone, Points(one.x, one.owner, one.ids, 3))
        torch.testing.assert_close(found[at : at + 1], expected, msg=lambda text, at=at: f"point {at}: {text}")


# -- waits -------------------------------------------------------------------------------------------------------------


def test_the_hot_path_waits_for_nothing():
    """After a first pass, which looks whether buffers move without a trace, nothing is read back from the device."""
    model = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)).double().eval()
    )
    score, points = bound(model, images()[:1])
    stack = Stack(METHODS[:5])
    stack.attribute(score, points)
    with Operations() as operations:
        stack.attribute(score, points)
    assert not operations.waits, operations.waits


def test_operations_count_what_waits():
    x = torch.arange(6.0)
    for wait in (
        lambda: bool((x > 2).any()),
        lambda: float(x[1]),
        lambda: x.tolist(),
        lambda: x[x > 2],
        lambda: x.nonzero(),
        lambda: x.unique(),
        lambda: torch.equal(x, x.clone()),
        lambda: x.cpu(),
    ):
        with Operations() as operations:
            wait()
        assert operations.synchronisations >= 1
    with Operations() as operations:
        torch.where(x > 2, x, 0.0).sum() + x[2:4].mean()
    assert operations.synchronisations == 0 and operations.total > 3


# -- operations, beside Captum ---------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """Activations as Captum needs them: modules, each used once, none in place."""

    def __init__(self, blocks: int):
        super().__init__()
        layers = [nn.Conv2d(3, 8, 3, padding=1)]
        for _ in range(blocks):
            layers += [nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(8, 4)
        # As it is lent: Captum would compute the parameters' gradients, too.
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.eval()

    def forward(self, x):
        return self.head(self.layers(x).mean((2, 3)))


class Peak(TorchDispatchMode):
    """The most bytes of tensors made inside that were alive at once."""

    def __init__(self):
        super().__init__()
        self.alive = 0
        self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return result

    def add(self, storage):
        if id(storage) not in self.known:
            self.known.add(id(storage))
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self.remove, id(storage), storage.nbytes())

    def remove(self, number, size):
        self.known.discard(number)
        self.alive -= size


@pytest.mark.parametrize(
    "ours, theirs, share",
    [(Saliency(), "Saliency", 1.0), (GuidedBackprop(), "GuidedBackprop", 1.0), (DeepLIFT(), "DeepLift", 1.3)],
)
@pytest.mark.filterwarnings("ignore")
def test_operations_for_each_layer_and_memory_beside_captum(ours, theirs, share):
    """What a deep network costs, layer by layer; besides, some thirty small operations for a batch, whatever its model."""
    attr = pytest.importorskip("captum.attr")
    x = images(2, dtype=torch.float32)
    counted: dict[str, list[int]] = {"ours": [], "theirs": []}
    for blocks in (4, 8):
        model = Plain(blocks)
        score, points = bound(model, x, target=1)
        stack = Stack([ours])
        other = getattr(attr, theirs)(copy.deepcopy(model))
        runs = {
            "ours": lambda stack=stack, score=score, points=points: stack.attribute(score, points),
            "theirs": lambda other=other: other.attribute(x.clone().requires_grad_(), target=1),
        }
        peaks = {}
        for name, run in runs.items():
            run()  # what is looked at once
            with Operations() as operations:
                run()
            counted[name].append(operations.total)
            with Peak() as memory:
                run()
            peaks[name] = memory.peak
        # Besides the copy that the model may write to, the maps of all methods side by side.
        assert peaks["ours"] <= peaks["theirs"] + 2 * x.nbytes
    each = {name: (deep - shallow) / 4 for name, (shallow, deep) in counted.items()}
    assert each["ours"] <= share * each["theirs"]
    assert counted["ours"][0] - 4 * each["ours"] <= counted["theirs"][0] - 4 * each["theirs"] + 35
