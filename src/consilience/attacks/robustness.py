"""How much of an attribution survives an attack, over a data set."""

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

    Returns tensors (B,), float64:

    - "NA": 1 where the class is predicted, else 0;
    - "AA": 1 where it still is under :func:`pgd` in the ball of ``attack``; 0 where NA is;
    - "IN": share of the clean map's ``k`` largest pixels (default: the attack's k) among those of the attacked map;
    - "CO": Kendall's τ-b of clean and attacked map;

    and "counts" (B,) bool, where IN and CO are defined: for inputs that are correctly classified; elsewhere they are NaN.
    Each of IN and CO is the worst of the attack's restarts; where no step was found it is 1. See :func:`common` and
    :func:`averages`.
    """
    score = question(model, x, y, ids, max_batch)
    natural = margin(score.outputs, score.targets) > 0
    at = natural.nonzero()[:, 0]
    found = {name: torch.zeros(len(x), dtype=torch.float64, device=x.device) for name in ("NA", "AA")}
    found |= {name: torch.full_like(found["NA"], torch.nan) for name in ("IN", "CO")}
    found["NA"][at] = 1.0
    if len(at):
        named = score.ids[at]
        model, clean, classes = _subset(score, at), x[at], y.to(at.device)[at]
        z = pgd(
            model, clean, classes, eps=attack.eps, steps=pgd_steps, step_size=pgd_step_size, restarts=pgd_restarts,
            bounds=attack.bounds, key=key / "pgd", ids=named, max_batch=max_batch,
        )  # fmt: skip
        owner = torch.arange(len(at), device=at.device)
        outputs = question(model, clean, classes, named, max_batch).outputs_of(z, owner)
        found["AA"][at] = (margin(outputs, classes) > 0).double()
        attacked = attack(model, clean, classes, key=key / "attack", ids=named, max_batch=max_batch)
        share = [top_k_intersection(attacked.original, maps, k or attack.k) for maps in attacked.maps]
        found["IN"][at], found["CO"][at] = torch.stack(share).amin(0), attacked.tau.amin(0)
    return found | {"counts": natural}


def _subset(score: Score, index: Tensor) -> Score:
    """The same model and arguments, for some of the inputs."""
    arguments = score._arguments
    chosen = arguments.of(index, arrays=False)
    marked = {name: per_input(v) if name in arguments.following else constant(v) for name, v in chosen.items()}
    return Score(score.model, kwargs=marked, numpy=score.numpy)


def common(results: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """(B,) bool: the inputs that all models classify correctly, on which their IN and CO can be compared."""
    if not results:
        raise InputError("results: of at least one model")
    return torch.stack([result["counts"] for result in results]).all(0)


def averages(result: Mapping[str, Tensor], where: Tensor | None = None) -> dict[str, tuple[float, float, int]]:
    """{"NA", "AA", "IN", "CO": (mean, its standard error over inputs, inputs)}, over the inputs on which each is defined.

    ``where`` (B,) bool: over these only, e.g. :func:`common`. NaN where there are no inputs, or for the error only one.
    """
    rows = {}
    for name in ("NA", "AA", "IN", "CO"):
        values = result[name] if where is None else result[name][where]
        values = values[~values.isnan()]
        count = len(values)
        mean = float(values.mean()) if count else float("nan")
        rows[name] = (mean, float(values.std() / count**0.5) if count > 1 else float("nan"), count)
    return rows
