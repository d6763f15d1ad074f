"""Inputs that leave little to measure: every measure gives a number, or NaN with a reason, and stops no other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from consilience.evaluate.evaluator import Evaluator
from consilience.measures import MEASURES


class Net(nn.Module):
    def __init__(self, features, outputs):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(features, 6), nn.Linear(6, outputs)

    def forward(self, x):
        return self.last(self.first(x.flatten(1)).relu())


class Constant(Net):
    """Its outputs, and so its maps, are the same everywhere."""

    def forward(self, x):
        return 0 * super().forward(x) + torch.arange(3)


class Uniform(nn.Module):
    """Every element weighs the same."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x):
        return x.flatten(1).sum(1, keepdim=True) * self.weight


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


CASES = {
    "one pixel": (Net(3, 3), noise(2, 3, 1, 1)),
    "one pixel of one channel": (Net(1, 3), noise(2, 1, 1, 1)),
    "four pixels": (Net(12, 3), noise(2, 3, 2, 2)),
    "a line of pixels": (Net(15, 3), noise(2, 3, 1, 5)),
    "one column": (Net(1, 3), noise(3, 1)),
    "two columns": (Net(2, 3), noise(3, 2)),
    "one output": (Net(12, 1), noise(2, 3, 2, 2)),
    "a series": (Net(8, 3), noise(2, 2, 4)),
    "an input of zeros": (Net(48, 3), torch.zeros(2, 3, 4, 4)),
    "a constant model": (Constant(48, 3), noise(2, 3, 4, 4)),
    "a constant map": (Uniform(), noise(2, 3, 4, 4)),
    "one input, one method": (Net(48, 3), noise(1, 3, 4, 4)),
}
FEW = {"samples": 2, "draws": 8, "steps": 2}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("inside", ["nothing", "half", "everything"])
def test_every_measure_gives_a_number_or_a_reason(case, inside):
    model, x = CASES[case]
    measures = [
        cls(**{name: value for name, value in FEW.items() if name in cls.__dataclass_fields__})
        for cls in MEASURES.values()
        if inside == "half" or "regions" in cls.needs
    ]
    methods = ["saliency"] if "one method" in case else ["saliency", "input_x_gradient"]
    shape = (len(x), *x.shape[2:]) if x.ndim == 4 else x.shape
    regions = torch.zeros(shape, dtype=torch.bool)
    if inside == "half":
        regions.view(-1)[::2] = True
    elif inside == "everything":
        regions[:] = True
    result = Evaluator(model.eval(), methods=methods, measures=measures, objective=None).update(x, regions=regions)
    rows = result.rows
    assert len(result.values) == len(measures)
    for label, numbers in result.values.items():
        assert numbers.shape == (len(x), len(rows)) and not np.isinf(numbers).any(), label
        reasons = result.reasons[label]
        for i, r in np.argwhere(np.isnan(numbers)):
            assert reasons.get("") or reasons.get(f"{i} {rows[r]}"), (label, i, r)
