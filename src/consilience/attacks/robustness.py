"""How much of accuracy and of attributions is left under attack, input by input and on average over a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..model.arguments import constant, per_input
from ..model.score import Score
from ..statistics.keys import Key
from .importance import ImportanceAttack, top_k_intersection
from .pgd import DEFAULT_KEY, margin, pgd, question


def attribution_robustness(
    model: Any,
    x: Tensor,
    y: Tensor,
    attack: ImportanceAttack,
    *,
    pgd_steps: int,
    pgd_step_size: float,
    pgd_restarts: int = 1,
    k: int | None = None,
    key: Key = DEFAULT_KEY,
    ids: Any = None,
    max_batch: int = 1024,
) -> dict[str, Tensor]:
    """How accuracy and attributions stand up to attack (Chen et al. 2019, arXiv 1905.09957, section 5), for each input.

    Args:
        model: as for :func:`~consilience.attacks.pgd.pgd`.
        x: (B, *F).
        y: (B,) int64, the classes.
        attack: on the attributions.
        pgd_steps: of :func:`~consilience.attacks.pgd.pgd`, for AA.
        pgd_step_size: of the same, in units of the model's input.
        pgd_restarts: of the same.
        k: how many pixels IN compares; None: the attack's k.
        key: of the draws.
        ids: (B,), which name the draws; None: 0 … B − 1.
        max_batch: rows in flight.

    Returns:
        {name: (B,)}, float64 but for the last:

    - "NA": 1 where the class is predicted, else 0;
    - "AA": 1 where it still is under :func:`pgd` in the ball of ``attack``; 0 where NA is;
    - "IN": share of the clean map's k largest pixels among those of the attacked map;
    - "CO": Kendall's τ-b of clean and attacked map;
    - "counts", bool: where IN and CO are defined, for inputs that are correctly classified; elsewhere they are NaN.

    Each of IN and CO is the worst of the attack's restarts; where no step was found it is 1. See :func:`common` and
    :func:`averages`.
    """
    score = question(model, x, y, ids, max_batch)
    natural = margin(score.outputs, score.targets) > 0
    correct = natural.nonzero()[:, 0]
    result = {name: torch.zeros(len(x), dtype=torch.float64, device=x.device) for name in ("NA", "AA")}
    result |= {name: torch.full_like(result["NA"], torch.nan) for name in ("IN", "CO")}
    result["NA"][correct] = 1.0
    result["counts"] = natural
    if not len(correct):
        return result
    # Only inputs that are classified correctly have an attribution to keep.
    names = score.ids[correct]
    model = _subset(score, correct)
    clean = x[correct]
    classes = y.to(correct.device)[correct]
    z = pgd(
        model,
        clean,
        classes,
        eps=attack.eps,
        steps=pgd_steps,
        step_size=pgd_step_size,
        restarts=pgd_restarts,
        bounds=attack.bounds,
        key=key / "pgd",
        ids=names,
        max_batch=max_batch,
    )
    owner = torch.arange(len(correct), device=correct.device)
    outputs = question(model, clean, classes, names, max_batch).outputs_of(z, owner)
    result["AA"][correct] = (margin(outputs, classes) > 0).double()
    attacked = attack(model, clean, classes, key=key / "attack", ids=names, max_batch=max_batch)
    shares = [top_k_intersection(attacked.original, maps, k or attack.k) for maps in attacked.maps]
    result["IN"][correct] = torch.stack(shares).amin(0)
    result["CO"][correct] = attacked.tau.amin(0)
    return result


def _subset(score: Score, index: Tensor) -> Score:
    """The same model and arguments, for some of the inputs."""
    arguments = score._arguments
    marked = {}
    for name, value in arguments.of(index, arrays=False).items():
        # Marked, so that the part does not guess again whether an argument follows its inputs.
        marked[name] = per_input(value) if name in arguments.following else constant(value)
    return Score(score.model, kwargs=marked, numpy=score.numpy)


def common(results: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """(B,) bool: the inputs that all models classify correctly, on which their IN and CO can be compared.

    ``results``: one for each model, of :func:`attribution_robustness`.

    Raises:
        InputError: there is none.
    """
    if not results:
        raise InputError("results: of at least one model")
    return torch.stack([result["counts"] for result in results]).all(0)


def averages(result: Mapping[str, Tensor], where: Tensor | None = None) -> dict[str, tuple[float, float, int]]:
    """{"NA", "AA", "IN", "CO": (mean, its standard error over inputs, inputs)}, over the inputs on which each is defined.

    NaN where there are no inputs, or for the error only one.

    Args:
        result: of :func:`attribution_robustness`.
        where: (B,) bool, over these only, e.g. :func:`common`; None: all.
    """
    rows = {}
    for name in ("NA", "AA", "IN", "CO"):
        values = result[name]
        if where is not None:
            values = values[where]
        values = values[~values.isnan()]
        count = len(values)
        mean = float(values.mean())  # of nothing it is NaN, as it should be
        stderr = float("nan")
        if count > 1:  # of one value the deviation would be NaN too, with a warning
            stderr = float(values.std() / count**0.5)
        rows[name] = (mean, stderr, count)
    return rows
