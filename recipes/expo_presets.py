"""The settings of recipes/expo.py and benchmarks/expo.py: networks, the three objectives, the published numbers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from consilience import train
from consilience.data.sets import Data, Part

OBJECTIVES = ("none", "fidelity", "fidelity_1d")
TITLES = {"none": "none", "fidelity": "Fidelity", "fidelity_1d": "1D-Fidelity"}
CHECKS = 8
"""So many batches of the regulariser make one validation."""


@dataclass(frozen=True)
class Preset:
    """One table.

    Args:
        about: what is published and what is our choice.
        data: the data set's name.
        layers: hidden layers of the leaky-ReLU network.
        width: of each.
        fidelity: c of the weight c · L₀ / R₀ with which Fidelity joins the task loss.
        fidelity_1d: that of 1D-Fidelity.
        lr: Adam's rate.
        batch: rows of a training step.
        regularised_rows: so many of them are regularised.
        every: steps from one validation to the next.
        patience: training ends when the best validation is so many validations old.
        steps: training ends here at the latest.
    """

    about: str
    data: str
    layers: int
    width: int
    fidelity: float
    fidelity_1d: float
    lr: float = 1e-3
    batch: int = 128
    regularised_rows: int = 16
    every: int = 20
    patience: int = 15
    steps: int = 2000


_PUBLISHED = (
    "Layers, width, c, Adam's rate, both batches and the first weights are those of arXiv 1902.06787 and its code. Ours: "
    "validation every 20 steps on the loss with its regulariser, an end 15 validations after the best one or at 2000 steps."
)


def _table(data: str, layers: int, width: int, fidelity: float, fidelity_1d: float, more: str = "") -> Preset:
    """A table of the paper; ``more`` is added to what is said about it."""
    return Preset(_PUBLISHED + more, data, layers, width, fidelity, fidelity_1d)


PRESETS = {
    "diabetes": Preset(
        "scikit-learn's diabetes, which needs no files; not in the paper. Network and c are those of autompg.",
        "diabetes", 2, 200, 0.05, 0.005,
    ),
    "autompg": _table("autompg", 2, 200, 0.05, 0.005),
    "communities": _table("communities", 5, 400, 0.001, 0.01),
    "day": _table("day", 1, 500, 0.1, 0.1),
    "housing": _table("housing", 5, 100, 0.005, 0.005),
    "music": _table("music", 4, 500, 0.01, 0.005),
    "winequality-red": _table("winequality-red", 4, 300, 0.05, 0.1),
    "support2": _table("support2", 4, 400, 0.005, 0.0025, " The label is not among the features, as it was in the paper."),
}  # fmt: skip


class Network(nn.Sequential):
    """(N, d) → (N, outputs): ``layers`` hidden layers, leaky rectifiers (0.2), Xavier's uniform weights, no first biases."""

    def __init__(self, d: int, layers: int, width: int, outputs: int):
        sizes = [d] + layers * [width]
        hidden = [(nn.Linear(a, b), nn.LeakyReLU(0.2)) for a, b in itertools.pairwise(sizes)]
        super().__init__(*(part for pair in hidden for part in pair), nn.Linear(width, outputs))
        for module in self:
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)


def network(preset: Preset, data: Data, seed: int) -> nn.Module:
    """One output for a number, two logits for two classes; a function of the seed, the global random state comes back."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Network(data.train.x.shape[1], preset.layers, preset.width, len(data.classes) or 1)


def task(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean squared error for numbers, cross-entropy for classes."""
    if y.is_floating_point():
        return nnf.mse_loss(outputs[:, 0], y)
    return nnf.cross_entropy(outputs, y)


def regulariser(preset: Preset, name: str, model: nn.Module, part: Part, seed: int) -> train.Fidelity | None:
    """The regulariser ``name`` of :data:`OBJECTIVES`, its L₀ / R₀ taken at the first weights over a batch of ``part``."""
    if name == "none":
        return None
    if name == "fidelity":
        kind = train.Fidelity
        c = preset.fidelity
    else:
        kind = train.Fidelity1D
        c = preset.fidelity_1d
    loss_fn = train.squared_error if part.y.is_floating_point() else train.cross_entropy
    fidelity = kind(sigma=0.5, weight=train.Balanced(c), loss_fn=loss_fn, seed=seed, max_batch=2048)
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))[: preset.batch]
    # The first call fixes the balance, and is not a training step.
    with torch.no_grad():
        fidelity(model, part.x[order], part.y[order], part.ids[order])
    fidelity.step.zero_()
    return fidelity


def losses(
    preset: Preset, model: nn.Module, extra: train.Fidelity | None, x: Tensor, y: Tensor, ids: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """A training step's loss, and its parts by name."""
    loss = task(model(x), y)
    if extra is None:
        return loss, {"task": loss.detach()}
    few = slice(preset.regularised_rows)
    more = extra(model, x[few], y[few], ids[few])
    return loss + more.total, {"task": loss.detach(), **more.parts}


@torch.no_grad()
def validation(preset: Preset, model: nn.Module, extra: train.Fidelity | None, part: Part) -> dict[str, Tensor]:
    """The loss on unseen rows, its task part and its regulariser; the latter of 8 × 16 rows, the same draws every time."""
    of_task = task(model(part.x), part.y)
    if extra is None:
        return {"task": of_task, "loss": of_task}
    mode = extra.training
    step = extra.step.clone()
    extra.eval()
    values = []
    count = preset.regularised_rows
    for check in range(CHECKS):
        extra.step.fill_(check)  # the step names the draws
        rows = torch.arange(check * count, (check + 1) * count, device=part.x.device) % len(part)
        values.append(extra(model, part.x[rows], part.y[rows], part.ids[rows]).total)
    extra.step.copy_(step)
    extra.train(mode)
    of_regulariser = torch.stack(values).mean()
    return {"task": of_task, "loss": of_task + of_regulariser, "regulariser": of_regulariser}
