"""Small networks and data for the laws: fast, float64 where exactness matters."""

from __future__ import annotations

import torch
from torch import nn

from consilience.model.score import Score
from consilience.perturb.points import Points
from consilience.task import Task


class Small(nn.Module):
    """conv, act, conv, act, mean over space, linear: (N, 3, 8, 8) → (N, 4)."""

    def __init__(self, act: type[nn.Module] = nn.ReLU, seed: int = 0):
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(3, 5, 3, padding=1), act()
        self.conv2, self.act2 = nn.Conv2d(5, 6, 3, padding=1, stride=2), act()
        self.head = nn.Linear(6, 4)
        keyed = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=keyed) * 0.4)
        self.double().eval()

    def features(self, x):
        return self.act2(self.conv2(self.act1(self.conv1(x))))

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


def images(count: int = 3, seed: int = 1, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def bound(model, x, target=1, ids=None, **options) -> tuple[Score, Points]:
    score = Score(model, target, ids=ids, **options).at(x)
    return score, Points(x, torch.arange(len(x), device=x.device), score.ids)


def judged(score, points, maps, features, key, explain=None, **parts) -> Task:
    """A task of maps (B, R, *A); ``explain(points)`` gives them elsewhere."""

    def elsewhere(where, at):
        return explain(at)

    return Task(score, points, maps, features, elsewhere, key, **parts)
