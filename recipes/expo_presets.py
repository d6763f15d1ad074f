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


@dataclass(frozen=True)
class Preset:
    """One table. ``layers`` × ``width``: of the leaky-ReLU network; ``fidelity``, ``fidelity_1d``: c of the weight
    c · L₀ / R₀ with which each regulariser joins the task loss, R on ``guests`` rows of each batch.

    Validation every ``every`` steps; training ends when the best of them is ``patience`` validations old, or at ``steps``.
    """

    about: str
    data: str
    layers: int
    width: int
    fidelity: float
    fidelity_1d: float
    lr: float = 1e-3
    batch: int = 128
    guests: int = 16
    every: int = 20
    patience: int = 15
    steps: int = 2000


_PUBLISHED = (
    "Layers, width, c, Adam's rate, both batches and the first weights are those of arXiv 1902.06787 and its code. Ours: "
    "validation every 20 steps on the loss with its regulariser, an end 15 validations after the best one or at 2000 steps."
)


def _table(data: str, layers: int, width: int, fidelity: float, fidelity_1d: float, more: str = "") -> Preset:
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
    return nnf.mse_loss(outputs[:, 0], y) if y.is_floating_point() else nnf.cross_entropy(outputs, y)


def regulariser(preset: Preset, name: str, model: nn.Module, part: Part, seed: int) -> train.Fidelity | None:
    """The regulariser ``name`` of :data:`OBJECTIVES`, its L₀ / R₀ taken at the first weights over a batch of ``part``."""
    if name == "none":
        return None
    kind, c = (train.Fidelity, preset.fidelity) if name == "fidelity" else (train.Fidelity1D, preset.fidelity_1d)
    loss_fn = train.squared_error if part.y.is_floating_point() else train.cross_entropy
    made = kind(sigma=0.5, weight=train.Balanced(c), loss_fn=loss_fn, seed=seed, max_batch=2048)
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))[: preset.batch]
    with torch.no_grad():
        made(model, part.x[order], part.y[order], part.ids[order])
    made.step.zero_()
    return made


def losses(
    preset: Preset, model: nn.Module, extra: train.Fidelity | None, x: Tensor, y: Tensor, ids: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """A training step's loss, and its parts by name."""
    loss = task(model(x), y)
    if extra is None:
        return loss, {"task": loss.detach()}
    more = extra(model, x[: preset.guests], y[: preset.guests], ids[: preset.guests])
    return loss + more.total, {"task": loss.detach(), **more.parts}


@torch.no_grad()
def validation(preset: Preset, model: nn.Module, extra: train.Fidelity | None, part: Part) -> dict[str, Tensor]:
    """The loss on unseen rows, its task part and its regulariser; the latter of 8 × 16 rows, the same draws every time."""
    found = {"task": task(model(part.x), part.y)}
    found["loss"] = found["task"]
    if extra is None:
        return found
    mode, step = extra.training, extra.step.clone()
    extra.eval()
    values = []
    for check in range(CHECKS):
        extra.step.fill_(check)
        rows = torch.arange(check * preset.guests, (check + 1) * preset.guests, device=part.x.device) % len(part)
        values.append(extra(model, part.x[rows], part.y[rows], part.ids[rows]).total)
    extra.step.copy_(step)
    extra.train(mode)
    found["regulariser"] = torch.stack(values).mean()
    found["loss"] = found["task"] + found["regulariser"]
    return found
