"""ROAD: removal curves whose pixels are replaced by noisy linear imputation, not by a constant.

A constant leaves a visible hole, whose shape alone can tell the model what was there (Rong et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from ..card import Card
from ..errors import InputError
from ..features.base import Elements, Features
from ..features.images import Pixels
from ..perturb.imputation import NoisyLinear
from ..settings import setting
from ..task import Task
from .curve import Curve, curve_card
from .removal import VALUES, Removal


def _road(formula: str, better: Literal["lower", "higher"], cost: str) -> Card:
    return curve_card(
        formula,
        "Rong, Leemann, Borisov, Kasneci & Kasneci 2022, arXiv 2202.00449",
        better,
        "⌊p % of K⌋ pixels (or other features) replaced by noisy linear imputation: the mean of their 8 neighbours, "
        "weights 1/6 and 1/12, plus sigma · N(0, 1), 0.01 in units of the model's input",
        cost,
        (
            (
                "quantus",
                "ROAD gives the accuracy over the first batch, for inputs of one channel; "
                "for one batch its numbers are the means over inputs of percentages=(p,), "
                "value='accuracy'",
            ),
            (
                "pytorch-grad-cam",
                "its percentile is the share that is kept: percentile=80 is percentages=(20,). All "
                "pixels tied with the threshold go: of a map that is zero on 60 % of the pixels LeRF removes 60 % for "
                "20, and MoRF the whole image for 80. Its noise has no seed. Without ties and noise (sigma=0) the "
                "numbers and averages are these",
            ),
        ),
    )


@dataclass(frozen=True)
class Road(Curve):
    """Interface of ROAD (Rong et al. 2022, arXiv 2202.00449): mean over p of f(x̃ₚ) − f(x), x̃ₚ without p % of the pixels.

    Args:
        percentages: the p; a single one for the value at it.
        value: "change" of the score (the default), "score", "probability" (the paper's confidence curve), or "accuracy".
        sigma: of the imputation's noise, in units of the model's input.
        features: what is taken away as a whole. Default: the map's own features, pixels where these are elements.

    Raises:
        InputError: the inputs are not images.
    """

    percentages: tuple[float, ...] = setting((10, 20, 30, 40, 50, 60, 70, 80, 90), low=0, high=100)
    value: str = setting("change", choices=VALUES)
    sigma: float = setting(0.01, low=0)
    features: Features | None = None

    first: ClassVar[Literal["most", "least"]]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.percentages:
            raise InputError("percentages: at least one number between 0 and 100")

    def removal(self, task: Task) -> Removal:
        if task.points.x.ndim != 4:
            raise InputError(
                f"{self.name}: imputes pixels, so it is for images (B, C, H, W); use pixel_flipping or deletion"
            )
        features = self.features
        if features is None:
            features = task.features
            # The colours of a pixel are imputed together, so they are taken away together.
            if isinstance(features, Elements | Pixels):
                features = Pixels()
        shares = tuple(percentage / 100 for percentage in self.percentages)
        return Removal(features, NoisyLinear(self.sigma), shares, self.first)

    def __call__(self, task: Task) -> Tensor:
        return self.curve(task).read(self.value).mean(-1)


@dataclass(frozen=True)
class RoadMoRF(Road):
    """ROAD without the most relevant pixels first (MoRF).

    Args:
        percentages, value, sigma, features: as for :class:`Road`.
    """

    name = "road_morf"
    first = "most"
    card = _road(
        "mean over p of f(x without the p % most relevant pixels, imputed) − f(x)", "lower", "9 forward for each map"
    )


@dataclass(frozen=True)
class RoadLeRF(Road):
    """ROAD without the least relevant pixels first (LeRF).

    Args:
        percentages, value, sigma, features: as for :class:`Road`.
    """

    name = "road_lerf"
    first = "least"
    card = _road(
        "mean over p of f(x without the p % least relevant pixels, imputed) − f(x)", "higher", "9 forward for each map"
    )


@dataclass(frozen=True)
class RoadCombined(Road):
    """(LeRF − MoRF) / 2: how much less the score falls without the least than without the most relevant pixels.

    It evaluates nothing that RoadMoRF and RoadLeRF have not. ``curve`` is that of MoRF.

    Args:
        percentages, value, sigma, features: as for :class:`Road`.
    """

    name = "road_combined"
    first = "most"
    card = _road("(road_lerf − road_morf) / 2", "higher", "18 forward for each map, none after the other two")

    def __call__(self, task: Task) -> Tensor:
        most_first = self.removal(task)
        least_first = replace(most_first, first="least")
        morf = most_first.curves(task).read(self.value).mean(-1)
        lerf = least_first.curves(task).read(self.value).mean(-1)
        return (lerf - morf) / 2
