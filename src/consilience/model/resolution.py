"""What is resolved once, at the inputs x, before a score is asked of rows: arguments, dependence, outputs and their meaning.

:meth:`.score.Score.at` calls these in this order, with a score in full precision.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ConsilienceError, InputError
from .arguments import Arguments, resolved
from .calling import precision_of
from .independence import Dependence, dependence_of
from .outputs import Outputs
from .random_state import seeded
from .recognition import interpret, last_layer_of
from .state import borrowed
from .values import wide

if TYPE_CHECKING:
    from .score import Score


def arguments_at(score: Score, x: Tensor, index: Tensor) -> Arguments:
    """Which keyword arguments follow the inputs.

    Args:
        score: whose arguments they are.
        x: (B, *F).
        index: (n,), the inputs that are evaluated; the model is tried on copies of the first of them.

    Raises:
        InputError: see :func:`~.arguments.resolved`.
    """

    def accepts(arguments: Arguments, count: int) -> Exception | None:
        first = index[:1].expand(count)
        score.counts.add(count, False)
        try:
            with torch.no_grad(), borrowed(score.model, freeze=True):
                score.call(x[first], arguments.of(first, score.numpy))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # Whatever a model raises that is called in another way than it is meant to be.
            return error
        return None

    return resolved(score.kwargs, len(x), accepts)


def dependence_at(score: Score, x: Tensor, index: Tensor) -> Dependence:
    """What a row's outputs depend on besides the row, by three passes of two rows; NOTHING of a model that fails on them.

    Args:
        score: with its arguments.
        x: (B, *F).
        index: (n,), the inputs that are evaluated.
    """
    # Each pass has another seed: with the same one, outputs that are drawn would look like the row's own.
    seeds = itertools.count()

    def run(rows: Tensor, owner: Tensor) -> tuple[Tensor, bool]:
        score.counts.add(len(rows), False)
        # A model lent anew for each pass: buffers that a pass moves must not make the next one differ.
        with borrowed(score.model, freeze=True, draws=True):
            return seeded(lambda: score.outputs_with_graph(rows.clone(), owner), next(seeds))

    try:
        with torch.no_grad():
            return dependence_of(run, x[index], index)
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        return Dependence.NOTHING


def outputs_at(score: Score, x: Tensor, index: Tensor) -> Tensor:
    """The outputs of some of the inputs, (n, classes), without gradients.

    Args:
        score: with its arguments.
        x: (B, *F).
        index: (n,), which of them.

    Raises:
        InputError: the model fails; says what the likeliest cause is.
    """

    def run(part: slice) -> Tensor:
        with torch.no_grad(), score.borrowed(freeze=True):
            return score.outputs_with_graph(x[index[part]], index[part])

    try:
        return torch.cat(score.batch.run(len(index), run, score.counts))
    except Exception as error:
        # Whatever else a model raises on its first pass is a matter of the inputs.
        if isinstance(error, ConsilienceError | torch.OutOfMemoryError | MemoryError):
            raise
        raise InputError(_failure(score, x, error)) from error


def _failure(score: Score, x: Tensor, error: Exception) -> str:
    """What to say of a model that does not take the inputs."""
    own = precision_of(score.model) or x.dtype
    if own != x.dtype:
        remedy = f"its parameters are {own}: cast x to that"
    elif isinstance(error, TypeError):
        remedy = "further arguments of the model are given as kwargs={name: value}"
    else:
        remedy = "is this the shape (batch first, then channels for images) that the model takes?"
    reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
    return f"x: the model fails on {tuple(x.shape)} {x.dtype}: {reason}; {remedy}"


def meaning_at(score: Score, outputs: Tensor, x: Tensor, index: Tensor) -> Outputs:
    """What the model's outputs mean.

    Args:
        score: with its arguments.
        outputs: (n, O), at the inputs.
        x: (n, *F), the inputs.
        index: (n,), their numbers.

    Raises:
        InputError: see :func:`~.recognition.interpret`.
    """
    finite = outputs.isfinite().all(1)

    def last_layer() -> str | None:
        if score.numpy:
            return None
        first = finite.nonzero()[:1, 0]
        score.counts.add(1, False)
        # A clone of the leaf: a model may start with an in-place operation, which a leaf refuses.
        row = x[first].clone().requires_grad_().clone()
        with torch.enable_grad(), score.borrowed(freeze=True):
            return last_layer_of(score.outputs_with_graph(row, index[first]))

    usable = wide(outputs[finite])
    return interpret(usable, score.kind, declared=score.declared, model=score.model, last_layer=last_layer)
