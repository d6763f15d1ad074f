"""What a posterior adds to the mixture of methods, as one more map beside theirs.

Then the mixture with its correction is a mixture again: of the maps, with coefficient 1 on the added one. It is held at
neighbours and for other outputs, as the weights are, so it costs no evaluation to judge it beside the methods.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..metrics.grams import gram
from ..statistics.evidence import Evidence, Part, Quadratic
from ..statistics.tensors import exact
from .aggregation import Correction


def with_correction(evidence: Evidence, maps: Tensor, added: Tensor, correction: Correction) -> Evidence:
    """The evidence of R maps and of the added one, which follows them.

    Args:
        evidence: of the R maps; masks are kept in it.
        maps: (B, R, *A).
        added: (B, *A), the correction's map.
        correction: the same, of the mask units.
    """
    every = exact(torch.cat([maps, added[:, None].to(maps)], 1).flatten(2))
    norm = gram(every)
    parts: dict[str, Part] = {}
    for kind, part in evidence.parts.items():
        if isinstance(part, Quadratic):
            # What does not move has no difference: zeros for its row and column.
            draws = torch.nn.functional.pad(part.draws, (0, 1, 0, 1))
            # A row that is spoiled in the evidence stays so.
            spoiled = torch.nn.functional.pad(part.norm - norm[:, :-1, :-1], (0, 1, 0, 1))
            broken = torch.where(spoiled.isfinite(), 0.0, torch.nan)
            parts[kind] = Quadratic(draws, norm + broken)
            continue
        masks = part.masks
        assert masks is not None
        values = correction.values.to(part.y)
        taken = torch.einsum("bsu,bu->bs", masks.taken.to(values), values)
        together = torch.cat([masks.maps, values[:, None]], 1)
        parts[kind] = replace(part, a=torch.cat([part.a, taken[..., None]], 2), masks=replace(masks, maps=together))
    return Evidence.of(parts)
