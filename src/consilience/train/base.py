"""What a training objective is: a module that gives a loss with its parts, and keeps the step that keys its draws.

Losses (``cross_entropy`` and others), weights of a part (``WarmUp``, ``Balanced``), and the two interfaces:
:class:`TrainingObjective`, and :class:`Regulariser` for those without the task loss.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from ..errors import InputError
from ..model.recognition import SUM_OF_PROBABILITIES, are_probabilities, last_layer_of
from ..settings import Settings, checked, setting
from ..signatures import KnownArguments
from ..statistics.keys import Key
from .passes import Passes

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""(outputs (N, …), y (N, …)) → (N,)."""

Schedule = Callable[[int], float]
"""From the training step to a weight."""


@dataclass(frozen=True)
class Loss:
    """What an objective gives.

    Args:
        total: (), to call ``backward`` on.
        parts: by name, each a detached (): unweighted values, and the weight.
    """

    total: Tensor
    parts: dict[str, Tensor]


# -- losses: (outputs (N, …), y (N, …)) → (N,) -------------------------------------------------------------------------


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """−log of the label's probability, the mean over places if there are any.

    Args:
        outputs: (N, classes, …): logits, or probabilities of a model that ends in a softmax, which get no second one.
        y: (N, …) integers, or (N, classes, …) probabilities of the classes.

    Raises:
        InputError: one output, or several labels of one input; ``logistic`` is for both.
    """
    if outputs.ndim < 2 or outputs.shape[1] == 1:
        raise InputError(
            "loss_fn: the model has one output, whose cross-entropy is always 0; use loss_fn=logistic or squared_error"
        )
    if y.is_floating_point() and y.shape == outputs.shape and bool(((y.sum(1) - 1).abs() > SUM_OF_PROBABILITIES).any()):
        raise InputError(
            "y: rows that do not sum to one are several labels of one input, not one class; use loss_fn=logistic"
        )
    if are_probabilities(outputs):
        outputs = _log(outputs)  # whose softmax it is
    losses = nnf.cross_entropy(outputs, y, reduction="none")
    if losses.ndim > 1:
        losses = losses.flatten(1).mean(1)
    return losses


def logistic(outputs: Tensor, y: Tensor) -> Tensor:
    """Binary cross-entropy, the mean over an input's labels: log(1 + exp(∓ output)) of a logit.

    Args:
        outputs: (N,), (N, 1) or (N, labels): logits, or probabilities of a model that ends in a sigmoid.
        y: 1 or 0 (or a probability) for each of them.

    Raises:
        InputError: ``y`` of another shape.
    """
    if outputs.numel() != y.numel():
        raise InputError(f"y: shape {tuple(y.shape)} does not fit outputs of shape {tuple(outputs.shape)}")
    y = y.view_as(outputs).to(outputs.dtype)
    if last_layer_of(outputs) == "sigmoid":
        losses = -y * _log(outputs) - (1 - y) * _log(1 - outputs)
    else:
        losses = nnf.binary_cross_entropy_with_logits(outputs, y, reduction="none")
    return losses.reshape(len(outputs), -1).mean(1)


def squared_error(outputs: Tensor, y: Tensor) -> Tensor:
    """(output − y)², the mean over an input's outputs.

    Args:
        outputs: (N, …).
        y: (N, …), as many numbers.

    Raises:
        InputError: ``y`` of another shape.
    """
    if outputs.numel() != y.numel():
        raise InputError(f"y: shape {tuple(y.shape)} does not fit outputs of shape {tuple(outputs.shape)}")
    return ((outputs - y.view_as(outputs)) ** 2).reshape(len(outputs), -1).mean(1)


def _log(probabilities: Tensor) -> Tensor:
    """The logarithm, with a finite value (and gradient) for a probability that has been rounded to 0."""
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()


# -- weights -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WarmUp(Settings):
    """A schedule: in equal steps from 0 to ``to``, then ``to``. Any callable from the step to a weight will do.

    Args:
        steps: how many calls it takes to get to ``to``.
        to: the weight from then on.
    """

    steps: int = setting(low=1)
    to: float = 1.0

    def __call__(self, step: int) -> float:
        return self.to * min(1.0, (step + 1) / self.steps)


@dataclass(frozen=True)
class Balanced(Settings):
    """c · L₀ / |R₀|: the task loss over the unweighted part, at the first call in training (ExpO's rule, arXiv 1902.06787).

    The ratio is kept in the objective's state.

    Args:
        c: a number, or a schedule (step → number).
    """

    c: float | Schedule


Weight = float | Schedule | Balanced


def _weight_at(weight: float | Schedule, step: int) -> float:
    """A number, or what a schedule gives for this step."""
    if callable(weight):
        weight = weight(step)
    return float(weight)


# -- objectives --------------------------------------------------------------------------------------------------------


class TrainingObjective(KnownArguments, nn.Module):
    """Interface: ``objective(model, x, y, ids=None) → Loss``, for any training loop.

    Attributes:
        includes_task: whether ``total`` contains the task loss (a whole objective) or is a regulariser to be added to it.
        second_order: whether it differentiates gradients.

    Args (of every objective):
        weight: of the part named after the objective; a number, a schedule (step → number), or :class:`Balanced`.
        loss_fn: (outputs, y) → one loss per input; :func:`cross_entropy`, :func:`logistic`, :func:`squared_error`, or yours.
        reduction: over the batch, "mean" or "sum"; of the task loss and of the part alike.
        seed: of the draws, each a function of (seed, stream, id, step).
        max_batch: rows in flight.

    ``x`` (B, *F) floating; ``ids`` (B,) name the inputs' draws, by default 0 … B − 1: give data-set indices, or fold the
    rank in where ranks see different inputs under the same number. The buffer ``step`` counts the calls in training mode of
    the objective and is saved in its ``state_dict``, so that a resumed run draws what the uninterrupted one would have.
    ``total`` is differentiable in the model's parameters; ``x`` is a constant.
    """

    includes_task: ClassVar[bool] = False
    second_order: ClassVar[bool] = True
    step: Tensor
    ratio: Tensor

    def __init__(
        self,
        *,
        weight: Weight = 1.0,
        loss_fn: LossFunction = cross_entropy,
        reduction: str = "mean",
        seed: int = 0,
        max_batch: int = 256,
    ):
        super().__init__()
        self.weight = checked("weight", weight, Weight)
        self.loss_fn = checked("loss_fn", loss_fn, Callable)
        self.reduction = checked("reduction", reduction, str, choices=("mean", "sum"))
        self.seed = checked("seed", seed, int, low=-(2**63), high=2**63 - 1)
        self.max_batch = checked("max_batch", max_batch, int, low=1)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("ratio", torch.full((), torch.nan))

    def forward(self, model: nn.Module, x: Tensor, y: Tensor | None = None, ids: Any = None) -> Loss:
        """The loss of one batch.

        Args:
            model: a module that gives one row of outputs for each input.
            x: (B, *F), floating.
            y: (B, …), the labels; None for objectives that need none.
            ids: (B,) integers that name the inputs' draws; None: 0 … B − 1.

        Raises:
            InputError: an argument cannot be used; the message says why.
        """
        if torch.is_inference_mode_enabled():
            # Tensors made there have no gradients, which attributions need; copies made outside do.
            with torch.inference_mode(False), torch.no_grad():
                labels = None if y is None else y.clone()
                return self.forward(model, x.clone(), labels, ids)
        loss = self.loss(self._passes(model, x, y, ids))
        if self.training:
            self.step += 1
        return loss

    def loss(self, passes: Passes) -> Loss:
        """The loss of one batch, ``passes``. Every objective defines it, or :meth:`Regulariser.value`."""
        raise NotImplementedError

    def _passes(self, model: nn.Module, x: Tensor, y: Tensor | None, ids: Any) -> Passes:
        """The arguments of a call, checked, with the step and the key that name its draws."""
        if not isinstance(model, nn.Module):
            raise InputError(f"model: expected an nn.Module, got {type(model).__name__}")
        if self.second_order:
            _refuse_compiled(model, type(self).__name__)
        if not x.is_floating_point() or x.ndim < 2 or len(x) == 0:
            raise InputError(
                f"x: expected a batch (B, *F) of floating numbers, got {tuple(x.shape)} of {x.dtype}; "
                "for tokens train on their embeddings"
            )
        if ids is None:
            ids = torch.arange(len(x))
        else:
            ids = torch.as_tensor(ids, dtype=torch.int64)
        if ids.ndim != 1 or len(ids) != len(x):
            raise InputError(f"ids: shape {tuple(ids.shape)} for {len(x)} inputs; one for each is needed")
        if y is not None and (y.ndim == 0 or len(y) != len(x)):
            raise InputError(f"y: shape {tuple(y.shape)} for {len(x)} inputs; one for each is needed")
        bare = model
        if isinstance(model, nn.parallel.DistributedDataParallel):
            # Its forward synchronises ranks, which only the task pass may do: ranks need different numbers of chunks.
            bare = model.module
        return Passes(
            model=model,
            bare=bare,
            x=x.detach(),
            y=y,
            ids=ids.to(x.device),
            step=int(self.step),
            key=Key(self.seed, "train"),
            loss_fn=self.loss_fn,
            max_batch=self.max_batch,
        )

    def _reduce(self, total: Tensor, count: int) -> Tensor:
        """A sum over a batch of ``count`` inputs as ``reduction`` asks for."""
        if self.reduction == "mean":
            return total / count
        return total

    def _weight(self, passes: Passes, part: Callable[[], Tensor]) -> Tensor | float:
        """The weight of this step; ``part``: the unweighted part, for :class:`Balanced` (both sums over the batch)."""
        if not isinstance(self.weight, Balanced):
            return _weight_at(self.weight, passes.step)
        ratio = self.ratio
        if ratio.isnan():  # as it is until the first call in training
            ratio = self._first_ratio(passes, part)
            if self.training:
                self.ratio.copy_(ratio)
        return _weight_at(self.weight.c, passes.step) * ratio.to(passes.x.device)

    @torch.no_grad()
    def _first_ratio(self, passes: Passes, part: Callable[[], Tensor]) -> Tensor:
        """L₀ / |R₀|, (): the task loss over the unweighted part, by evaluations that leave no trace."""

        def task_losses(numbers: Tensor, graph: bool) -> Tensor:
            return passes.losses(passes.x[numbers], numbers, numbers)

        task = passes.fold(task_losses, lambda losses, inputs: losses.sum(), rows_each=1)
        both = torch.stack([task.float(), part().detach().float()])
        if isinstance(passes.model, nn.parallel.DistributedDataParallel):  # the same weight on every rank
            torch.distributed.all_reduce(both, group=passes.model.process_group)
        if not both[1]:
            raise InputError("weight: Balanced divides by the unweighted part, which is 0 here; give a number")
        return both[0] / both[1].abs()


class Regulariser(TrainingObjective):
    """Interface of an objective without the task loss: ``total`` = weight × value, to be added to yours.

    Args:
        weight: see :class:`TrainingObjective`, as for all of these.
        loss_fn: see :class:`TrainingObjective`.
        reduction: see :class:`TrainingObjective`.
        seed: see :class:`TrainingObjective`.
        max_batch: see :class:`TrainingObjective`.
    """

    name: ClassVar[str]

    def value(self, passes: Passes) -> Tensor:
        """The sum over the batch ``passes``, ()."""
        raise NotImplementedError

    def loss(self, passes: Passes) -> Loss:
        return self.weighted(passes, self.value(passes))

    def weighted(self, passes: Passes, total: Tensor, **more: Tensor) -> Loss:
        """The loss of an unweighted value.

        Args:
            passes: the batch.
            total: (), the value's sum over the batch.
            more: further parts to report, by name.
        """
        weight = self._weight(passes, lambda: total)
        value = self._reduce(total, len(passes)).to(torch.promote_types(passes.x.dtype, torch.float32))
        return Loss(weight * value, parts(weight, **{self.name: value}, **more))


def parts(weight: Tensor | float, **values: Tensor) -> dict[str, Tensor]:
    """The parts of a loss as they are reported: detached ``values`` by name, and the ``weight`` beside them."""
    detached = {name: value.detach() for name, value in values.items()}
    device = next(iter(detached.values())).device
    return {**detached, "weight": torch.as_tensor(weight).to(device)}


def _refuse_compiled(model: nn.Module, name: str) -> None:
    """Raise an InputError for a model that ``torch.compile`` has compiled, as a whole or in part."""
    # Looked up, not imported: importing the compiler takes seconds, and without it nothing is compiled.
    frames = sys.modules.get("torch._dynamo.eval_frame")
    optimized = () if frames is None else (frames.OptimizedModule,)
    for module in model.modules():
        if isinstance(module, optimized) or module._compiled_call_impl is not None:
            raise InputError(
                f"model: {type(module).__name__} is compiled, and {name} differentiates twice, which torch.compile does not "
                "support; pass the original module (the compiled one's _orig_mod: they share their parameters)"
            )
