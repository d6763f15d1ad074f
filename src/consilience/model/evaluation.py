"""One batch of rows through a model: scores, gradients, activations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InputError
from . import cam_layers as cam
from .backward_rules import applied
from .values import Values, kept, wide

CUT = (
    "model: its output does not depend on the input (or on the chosen layer) through differentiable operations; "
    "use methods that need outputs only, or look for .detach(), torch.no_grad() or rounding in forward"
)

LIFT = 1024.0
"""float16 would round small gradients to zero: scores are multiplied by this before the backward pass."""


@dataclass(frozen=True)
class Rows:
    """Rows to evaluate.

    Args:
        x: (N, *F).
        owner: (N,), to which inputs they belong.
        targets: (N,), the output asked of each; None: that of its input.
        origin: (N, *F), their baselines, for the rescale rule; None: another rule.
    """

    x: Tensor
    owner: Tensor
    targets: Tensor | None = None
    origin: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, part: slice) -> Rows:
        return Rows(
            x=self.x[part],
            owner=self.owner[part],
            targets=None if self.targets is None else self.targets[part],
            origin=None if self.origin is None else self.origin[part],
        )

    def beside_origins(self, x: Tensor, layout: torch.memory_format) -> Rows:
        """[x; origin], (2N, *F): copies of the rows, then their baselines.

        Args:
            x: (N, *F), the copies.
            layout: the memory format of the baselines.
        """
        assert self.origin is not None
        origin = self.origin.detach().to(memory_format=layout)
        targets = None if self.targets is None else torch.cat([self.targets, self.targets])
        return Rows(torch.cat([x, origin]), torch.cat([self.owner, self.owner]), targets)


@dataclass(frozen=True)
class Wanted:
    """What is wanted of rows besides their scores.

    Args:
        gradient: the gradient with respect to the rows.
        rule: of the backward pass: None, "guided" or "rescale".
        layers: name → layer, whose activations and gradients are wanted; for these alone the backward pass ends there.
        layer_rows: of how many of the first rows they are.
        graph: keep the graph, through rows and parameters, for a loss.
        layout: the memory format in which the model gets its rows.
        half: float16 is used somewhere, whose small gradients need a lift.
    """

    gradient: bool
    rule: str | None
    layers: Mapping[str, cam.Layer]
    layer_rows: int
    graph: bool
    layout: torch.memory_format
    half: bool


Ask = Callable[[Rows], Tensor]
"""Rows → the score of each, (N,), with its graph under grad."""


def scores(ask: Ask, rows: Rows, wanted: Wanted) -> Values:
    """Only the scores of one batch.

    Args:
        ask: the model.
        rows: the batch.
        wanted: says in which layout the model gets them.
    """
    # A copy: models that start with an in-place operation must not write to the caller's tensor.
    copied = Rows(rows.x.clone(memory_format=wanted.layout), rows.owner, rows.targets)
    return Values(ask(copied))


def gradients(ask: Ask, module: nn.Module | None, rows: Rows, wanted: Wanted) -> Values:
    """Scores, gradients and activations of one batch.

    Args:
        ask: the model.
        module: in which layers are found, and rules applied; None: a plain callable, which has no layers.
        rows: the batch.
        wanted: what is wanted of it.

    Raises:
        InputError: the score has no gradient in the rows, or in a layer.
    """
    count = len(rows)
    graph = wanted.graph
    leaf = rows.x
    if not (graph and leaf.requires_grad):
        # Of a tensor that was made in inference mode there is no gradient, but of a copy.
        leaf = leaf.clone() if leaf.is_inference() else leaf
        leaf = leaf.detach().requires_grad_()
    # A copy in any case: models that start with an in-place operation must not write to the caller's tensor.
    copied = leaf.clone(memory_format=wanted.layout)
    if wanted.rule == "rescale":
        batch = rows.beside_origins(copied, wanted.layout)
    else:
        batch = Rows(copied, rows.owner, rows.targets)
    with contextlib.ExitStack() as stack:
        seen: dict[cam.Layer, Tensor] = {}
        if module is not None and wanted.layers:
            seen = stack.enter_context(cam.captured(module, list(wanted.layers.values())))
        if wanted.rule is not None:
            stack.enter_context(applied(wanted.rule, module))
        score = ask(batch)
        if not score.requires_grad:
            raise InputError(CUT)
        ends = [seen[layer] for layer in wanted.layers.values()]
        if wanted.gradient:
            ends = [leaf, *ends]
        lift = LIFT if wanted.half else 1.0
        # Of [x; origin] only the rows themselves are explained.
        total = lift * score[:count].sum()
        found = torch.autograd.grad(total, ends, create_graph=graph, allow_unused=True)
    if any(grad is None for grad in found):
        raise InputError(CUT)
    slopes = [wide(grad) for grad in found]
    if lift != 1:
        slopes = [grad / lift for grad in slopes]
    activations = {}
    first = slice(0, wanted.layer_rows)
    for (name, layer), slope in zip(wanted.layers.items(), slopes[wanted.gradient :], strict=True):
        grid = cam.to_grid(seen[layer][first], layer)
        activations[name] = (wide(kept(grid, graph)), cam.to_grid(slope[first], layer))
    return Values(
        score=kept(score[:count], graph),
        gradient=slopes[0] if wanted.gradient else None,
        activations=activations,
        reference=kept(score[count:], graph) if wanted.rule == "rescale" else None,
    )
