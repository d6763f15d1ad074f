"""The attack on the predicted class: :func:`pgd`, which maximises the cross-entropy.

The ascent itself, of any quantity, is :class:`consilience.attacks.box.PGD`.

Every input is attacked by itself, many at once; every draw is a function of (key, id, number of the restart), so no
result depends on batch, chunk or order.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..errors import InputError
from ..model.batching import Batch
from ..model.score import Score
from ..model.state import borrowed
from ..statistics.keys import Key
from .box import PGD, Bound, Bounds, bounds_around

DEFAULT_KEY = Key(0, "attacks")


def pgd(
    model: Any,
    x: Tensor,
    y: Tensor,
    *,
    eps: Bound,
    steps: int,
    step_size: Bound,
    restarts: int = 1,
    bounds: Bounds = (0.0, 1.0),
    key: Key = DEFAULT_KEY,
    ids: Any = None,
    max_batch: int = 1024,
) -> Tensor:
    """Misclassified inputs near x, by :class:`~consilience.attacks.box.PGD` on the cross-entropy (Madry et al. 2018, arXiv
    1706.06083).

    Of the restarts' last iterates each input gets a misclassified one if there is any, then the one with the largest
    cross-entropy.

    Args:
        model: an ``nn.Module`` or callable from inputs to logits, or a :class:`~consilience.Score` of one; in eval mode.
        x: (B, *F), within ``bounds``.
        y: (B,) int64, the classes.
        eps: see :class:`~consilience.attacks.box.PGD`.
        steps: see :class:`~consilience.attacks.box.PGD`.
        step_size: see :class:`~consilience.attacks.box.PGD`.
        bounds: see :class:`~consilience.attacks.box.PGD`.
        restarts: each from another random start.
        key: of the draws.
        ids: (B,) identities of the inputs, which name their draws; default 0 … B − 1.
        max_batch: rows in flight.

    Returns:
        (B, *F).

    Raises:
        InputError: x beyond the bounds, or a model with one output.
    """
    score = question(model, x, y, ids, max_batch)
    # The same model and arguments; what is maximised is the loss, not the logit.
    ascent = copy.copy(score)
    ascent.kind = cross_entropy
    attack = PGD(eps, steps, step_size, bounds_around(x, bounds))
    owner = torch.arange(len(x), device=x.device)
    chosen = x.clone()
    largest = x.new_full((len(x),), -torch.inf)  # the loss there
    wrong = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    with borrowed(score.model, freeze=True):
        for restart in range(restarts):
            start = attack.start(x, key / "start", score.ids, restart)
            z = attack.ascend(x, start, lambda there: ascent.grad(there, owner))
            outputs = score.outputs_of(z, owner)
            loss = cross_entropy(outputs, score.targets)
            missed = margin(outputs, score.targets) <= 0
            # A misclassified point beats one that is not; of two of a kind the loss decides.
            better = (missed & ~wrong) | ((missed == wrong) & (loss > largest))
            chosen[better] = z[better]
            largest[better] = loss[better].to(largest)
            wrong = wrong | missed
    return chosen


def question(model: Any, x: Tensor, y: Tensor, ids: Any, max_batch: int) -> Score:
    """The score of given classes: the logit of each input's class.

    Args:
        model: a model, or a score, whose arguments are kept.
        x: (B, *F).
        y: (B,) int64, the classes.
        ids: (B,), of the inputs; None: the score's, or 0 … B − 1.
        max_batch: rows in flight.

    Raises:
        InputError: a model with one output.
    """
    if isinstance(model, Score):
        score = copy.copy(model)  # the caller's own score stays as it is
    else:
        score = Score(model)
    score.target = y
    score.kind = "logit"
    score.batch = Batch(max_batch)
    if ids is not None:
        score.ids = ids
    bound = score.at(x)
    if bound.outputs.shape[1] < 2:
        raise InputError("model: attacks need logits of two classes or more, got one output")
    return bound


def margin(outputs: Tensor, target: Tensor) -> Tensor:
    """(N,): logit of the class minus the largest other one; positive where the class is predicted.

    ``outputs`` (N, classes), ``target`` (N,) int64.
    """
    own = target[:, None]
    others = outputs.scatter(1, own, -torch.inf)
    return (outputs.gather(1, own) - others.amax(1, keepdim=True))[:, 0]


def cross_entropy(outputs: Tensor, target: Tensor) -> Tensor:
    """(N,): of each row; ``outputs`` (N, classes), ``target`` (N,) int64."""
    return nnf.cross_entropy(outputs, target, reduction="none")
