"""Whether a row's outputs are its own, which three passes of two rows show before anything is drawn.

An explanation evaluates many rows at once, and says of each what belongs to it. That is right only if a row's outputs do not
depend on the rows beside it, on its place in the batch, or on chance. Three passes tell: [a, b], then [b, a], then

- [a, a′], if a came out the same twice: another neighbour shows what depends on the batch as a whole (its mean, say), which
  no exchange of places changes;
- [a, b] again, if it did not: the same outputs as in the first pass are a matter of the batch, others of chance.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import torch
from torch import Tensor

Run = Callable[[Tensor, Tensor], tuple[Tensor, bool]]
"""(rows (m, *F), owner (m,)) → their outputs (m, …), and whether a global random generator was drawn from."""


class Dependence(Enum):
    """What a row's outputs depend on besides the row itself."""

    NOTHING = "nothing"
    BATCH = "the batch"
    BATCH_ALWAYS = "the batch, and the model takes no row alone"
    DRAWS = "a global random generator"
    CHANCE = "chance"

    @property
    def run_alone(self) -> bool:
        """Whether running every row alone makes its outputs a function of the row."""
        return self in (Dependence.BATCH, Dependence.DRAWS)

    @property
    def warning(self) -> str | None:
        """What to say of it; None if there is nothing to say."""
        return _WARNINGS.get(self)


_WARNINGS = {
    Dependence.BATCH: (
        "the model's outputs for an input depend on what else is in its batch (batch_first forgotten in an attention or "
        "recurrent layer? batch norm without running statistics? pairs of neighbours?), so every input was run alone: slower, "
        "and not what the model gives for a whole batch"
    ),
    Dependence.BATCH_ALWAYS: (
        "the model's outputs for an input depend on what else is in its batch, and it takes no input alone (batch norm without "
        "running statistics?): so do its attributions, and no number here is its own; use running statistics"
    ),
    Dependence.DRAWS: (
        "the model's outputs are drawn at random, in eval mode too (dropout written in forward, or a module in training mode "
        "that cannot be found behind a function?); every input was run alone, with the same random numbers: what is explained "
        "is one draw of the model, so fix the noise or turn it off"
    ),
    Dependence.CHANCE: (
        "the model's outputs are drawn at random, in eval mode too, from a generator that cannot be seeded from outside: the "
        "attributions, and what is measured of them, are random too; fix the noise or turn it off"
    ),
}


def dependence_of(run: Run, rows: Tensor, owner: Tensor) -> Dependence:
    """What the outputs of two rows depend on besides the rows: three passes of two rows, and one of one row if they do.

    Args:
        run: one forward pass of the model as it is given. A global generator starts from another seed in each pass.
        rows: (n, *F), n ≥ 1 inputs; of one alone, halves of it stand for other inputs.
        owner: (n,), to which inputs they belong.
    """
    pair, pair_owner, other_pair, other_pair_owner = _batches(rows, owner)
    outputs, drew = run(pair, pair_owner)
    exchanged, _ = run(pair.flip(0), pair_owner.flip(0))
    if _same(outputs, exchanged.flip(0)):
        beside_another, _ = run(other_pair, other_pair_owner)
        if _same(outputs[:1], beside_another[:1]):
            return Dependence.NOTHING
    elif not drew:
        # The same batch twice: what differs even so is chance, from a generator that cannot be watched.
        again, _ = run(pair, pair_owner)
        if not _same(outputs, again):
            return Dependence.CHANCE
    if drew:
        return Dependence.DRAWS
    # Batch norm without running statistics refuses a row alone; then there is nothing that could be run in place of a batch.
    try:
        run(rows[:1], owner[:1])
    except (RuntimeError, ValueError):
        return Dependence.BATCH_ALWAYS
    return Dependence.BATCH


def _batches(rows: Tensor, owner: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two pairs of rows that share their first one: [a, b], its owners, [a, a′], its owners.

    The caller's own inputs where there are two that differ, since a model may refuse made-up ones (a category that does not
    exist).
    """
    first = rows[:1]
    others = (rows != first).flatten(1).any(1).nonzero()[:, 0].tolist()
    if not others:
        # Two rows that differ from the first and from each other, and are not far from it.
        same_owner = owner[:1].expand(2)
        half = torch.cat([first, first / 2])
        turned_quarter = torch.cat([first, first.flip(-1) / 4])
        return half, same_owner, turned_quarter, same_owner
    pair = [0, others[0]]
    # Of two inputs only, a itself is the other neighbour.
    other_pair = [0, 0]
    if len(others) > 1:
        other_pair = [0, others[1]]
    return rows[pair], owner[pair], rows[other_pair], owner[other_pair]


def _same(one: Tensor, two: Tensor) -> bool:
    """Whether outputs (n, …) agree but for rounding: within 6e-5 of the largest output in float32; NaN agrees with NaN."""
    eps = torch.finfo(one.dtype).eps if one.is_floating_point() else 0.0
    # A batch of another size or order may sum in another order, in each of many layers: far more than one rounding, and far
    # less than what another neighbour changes. Half precision has the upper bound, float64 the lower one.
    tolerance = min(0.05, max(1e-9, 500 * eps))
    largest = one.nan_to_num(0, 0, 0).abs().max()
    return torch.allclose(one, two, rtol=0, atol=float(tolerance * largest), equal_nan=True)
