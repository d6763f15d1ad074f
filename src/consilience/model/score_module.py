"""A score as an ``nn.Module``, for libraries that want one."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import InputError
from .independence import Dependence
from .random_state import forked

if TYPE_CHECKING:
    from .score import Score


class ScoreModule(nn.Module):
    """``(rows (N, *F), owner (N,)) → (N,)``: the score of rows, with its graph. :meth:`~.score.Score.module` makes it.

    Args:
        score: resolved at its inputs.

    Attributes:
        inner: the score's model, so that hooks and layers are found; None where it is no module.
    """

    def __init__(self, score: Score):
        super().__init__()
        self.score = score
        self.inner = score.model if isinstance(score.model, nn.Module) else None

    def forward(self, rows: Tensor, owner: Tensor | None = None) -> Tensor:
        """The score of each row.

        Args:
            rows: (N, *F).
            owner: (N,), to which inputs they belong; None: to the only one.

        Raises:
            InputError: the owners are missing, or not one for each row.
        """
        if owner is None and self.score.size == 1:
            owner = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        if owner is None or owner.shape != (len(rows),):
            given = "none" if owner is None else f"shape {tuple(owner.shape)}"
            raise InputError(
                f"owner: {len(rows)} rows of {self.score.size} inputs need one owner each, got {given}; give it where the rows "
                "are given, with Captum as additional_forward_args=(owner,)"
            )
        self.score.counts.add(len(rows), torch.is_grad_enabled())
        if self.score.dependence.run_alone:
            return torch.cat([self._run(rows[i : i + 1], owner[i : i + 1]) for i in range(len(rows))])
        return self._run(rows, owner)

    def _run(self, rows: Tensor, owner: Tensor) -> Tensor:
        """The score of rows as one batch."""
        # A copy, as everywhere: models that start with an in-place operation must not write to the caller's rows.
        rows = rows.clone(memory_format=self.score.layout)
        # A model that draws from the global generators draws the same for every row.
        same_draws = forked() if self.score.dependence is Dependence.DRAWS else contextlib.nullcontext()
        with same_draws:
            return self.score.of_outputs(self.score.outputs_with_graph(rows, owner), owner)
