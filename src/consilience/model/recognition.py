"""Find out what a model's outputs mean: from the caller, the model's configuration, its last layer, or the values.

The result is an :class:`~.outputs.Outputs`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import choose
from .outputs import MEANINGS, PROBABILITY_RANGE, Outputs

SUM_OF_PROBABILITIES = 1e-3
"""How far the sum of a row of probabilities may be from one: half precision, and rounding by the caller."""

PROBLEM_TYPES = {
    "regression": "values",
    "multi_label_classification": "label_logits",
    "single_label_classification": "logits",
}
"""``config.problem_type`` of a transformers model → what its outputs mean."""


def interpret(
    outputs: Tensor,
    kind: Any,
    *,
    declared: str | None = None,
    model: Any = None,
    last_layer: Callable[[], str | None] = lambda: None,
) -> Outputs:
    """What outputs at x mean. The first of these that knows decides:

    1. the caller: ``Kind(…, outputs=…)``;
    2. the model: an attribute ``outputs_meaning`` with one of :data:`~.outputs.MEANINGS`, or a transformers' ``config``:
       ``problem_type``, and labels where ``num_labels`` is 1, as in its text classification pipeline;
    3. ``kind="output"`` of one column: values;
    4. the outputs: non-negative rows that sum to one are probabilities, unless the network's last layer is linear;
       numbers between 0 and 1 are probabilities (of labels, if several) where the last layer is a sigmoid, are logits where it
       is linear, and are *taken* for probabilities, which the result says, where there is no such layer to be seen;
    5. else logits; with ``kind="output"``, values.

    Args:
        outputs: (N, O), at inputs whose outputs are finite.
        kind: of the score: one of :data:`~.outputs.SCORE_KINDS`, or a callable.
        declared: what the caller says they mean, one of :data:`~.outputs.MEANINGS`; None: nothing.
        model: whose attributes are read; None: none are.
        last_layer: gives "sigmoid", "softmax", "linear" or None, see :func:`last_layer_of`. It costs a forward pass, so it is
            called only where it matters.

    Raises:
        InputError: the model's ``outputs_meaning`` is none of :data:`~.outputs.MEANINGS`.
    """
    columns = outputs.shape[1]
    if declared is not None:
        return Outputs(declared, columns)
    configured = _configured_meaning(model, columns)
    if configured is not None:
        return Outputs(configured, columns, "config")
    if kind == "output" and columns == 1:
        return Outputs("values", columns)
    return _meaning_of_values(outputs, kind, last_layer)


def _meaning_of_values(outputs: Tensor, kind: Any, last_layer: Callable[[], str | None]) -> Outputs:
    """Steps 4 and 5 of :func:`interpret`: what the values and the last layer tell."""
    columns = outputs.shape[1]
    single = columns == 1
    # A single output may be a logit or a plain number. Whoever asks for its probability knows that it is a logit.
    known = not single or kind in ("probability", "log_probability", "margin")
    unbounded = Outputs("values" if kind == "output" else "logits", columns, "default", known)
    low, high = PROBABILITY_RANGE
    outside = (outputs < low) | (outputs > high)
    if not len(outputs) or bool(outside.any()):
        return unbounded
    last = last_layer()
    if last == "linear":
        return unbounded
    # Saturated sigmoids may sum to one by chance: where they are seen, the columns are labels.
    if not single and last != "sigmoid" and are_probabilities(outputs.detach()):
        return Outputs("probabilities", columns, "values")
    meaning = "probabilities" if single else "label_probabilities"
    if last is not None:
        return Outputs(meaning, columns, "layer")
    if kind == "output":
        return unbounded
    return Outputs(meaning, columns, "guess")


def are_probabilities(outputs: Tensor) -> bool:
    """Whether outputs are a softmax's: by their last layer, else by rows that are non-negative and sum to one.

    Args:
        outputs: (N, classes, …).
    """
    # The graph first: it is on this side, while the values are to be waited for where they are on an accelerator.
    last = last_layer_of(outputs)
    if last in ("linear", "sigmoid"):
        return False
    with torch.no_grad():
        non_negative = (outputs >= PROBABILITY_RANGE[0]).all()
        sum_to_one = (outputs.sum(1) - 1).abs() < SUM_OF_PROBABILITIES
        return bool(non_negative & sum_to_one.all())


def _configured_meaning(model: Any, columns: int) -> str | None:
    """What the model itself says of its outputs, step 2 of :func:`interpret`; None: nothing."""
    declared = getattr(model, "outputs_meaning", None)
    if isinstance(declared, str):
        return choose("outputs_meaning", declared, MEANINGS)
    config = getattr(model, "config", None)
    problem = getattr(config, "problem_type", None)
    if problem is not None:
        return PROBLEM_TYPES.get(problem)
    if columns == 1 and getattr(config, "num_labels", None) == 1:
        return "label_logits"
    return None


# -- the last layer, as the autograd graph shows it --------------------------------------------------------------------

# Names of autograd's nodes, without "Backward0". First, those that move numbers without changing them.
MOVES = frozenset(
    "Squeeze Unsqueeze View UnsafeView ReshapeAlias Reshape Select Slice Index Transpose T Permute Expand Clone ToCopy Alias "
    "AsStrided Stack Cat".split()
)

# What comes out of these has no bounds, whatever values it happens to have. A logarithm of a softmax is a logit too.
LINEAR = frozenset("Addmm Mm Bmm Baddbmm Mv Linear Convolution LogSoftmax".split())

SIGMOIDS = frozenset("Sigmoid Hardsigmoid".split())

SOFTMAXES = frozenset("Softmax SafeSoftmax".split())


def last_layer_of(output: Tensor) -> str | None:
    """Which kind of operation made an output, as its autograd graph shows: "sigmoid", "softmax" or "linear".

    Args:
        output: of any shape, with its graph.

    Returns:
        None where it is another operation, or the tensor has no graph.
    """
    node = output.grad_fn
    while node is not None:
        name = node.name().partition("Backward")[0]
        if name in SIGMOIDS:
            return "sigmoid"
        if name in SOFTMAXES:
            return "softmax"
        if name in LINEAR:
            return "linear"
        if name not in MOVES or not node.next_functions:
            return None
        # The first tensor that a join or a move was made of stands for all of them.
        node = node.next_functions[0][0]
    return None
