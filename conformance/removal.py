"""Measures that take features away, beside Quantus', pytorch-grad-cam's and Captum's, on one small network.

A reason counts only if its proof holds: what is said to be computed elsewhere is computed here by plain loops, and must give
the other library's number.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from consilience.explainers import InputXGradient, IntegratedGradients, Saliency, Stack
from consilience.features.base import Elements, Features
from consilience.features.images import Patches, Pixels, Segments
from consilience.measures.axiomatic import Completeness
from consilience.measures.faithfulness import Infidelity, SensitivityN
from consilience.measures.faithfulness_curves import EffectiveComplexity, PixelFlipping, RegionPerturbation, Selectivity
from consilience.measures.leave_one_out import FaithfulnessEstimate, MonotonicityCorrelation
from consilience.measures.road import RoadCombined, RoadLeRF, RoadMoRF  # fmt: skip
from consilience.measures.whole_curves import IROF, Monotonicity
from consilience.model.score import Score
from consilience.perturb.points import Points
from consilience.statistics.criteria import faithfulness_correlation
from consilience.statistics.evidence import Evidence, Responses
from consilience.statistics.keys import Key
from consilience.statistics.ranks import pearson
from consilience.task import Task


class Net(nn.Module):
    """conv, relu, conv, relu, mean, linear; fixed weights, float32."""

    def __init__(self, channels: int = 3):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 5, 3, padding=1)
        self.conv2 = nn.Conv2d(5, 6, 3, padding=1, stride=2)
        self.head = nn.Linear(6, 4)
        keyed = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=keyed) * 0.4)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv2(self.conv1(x).relu()).relu().mean((2, 3)))


def pictures(count: int = 4, channels: int = 3, side: int = 8) -> Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(1))


def task(
    model: nn.Module, x: Tensor, maps: Tensor, features: Features, kind: str = "logit", target: Any = None
) -> Task:
    """One row of maps (B, *A), explained class: the predicted one."""
    score = Score(model, target, kind=kind, max_batch=64).at(x)
    points = Points(x, torch.arange(len(x)), score.ids)
    return Task(score, points, maps[:, None], features, lambda *_: maps[:, None], Key(0, "measure"))


def contributions(model: nn.Module, x: Tensor) -> Tensor:
    """(B, *F) input × gradient."""
    score = Score(model).at(x)
    return Stack([InputXGradient()]).attribute(score, Points(x, torch.arange(len(x)), score.ids))[:, 0]


def case(
    measure: str, library: str, ours: Any, theirs: Any, reason: str = "", proof: bool = True, tolerance: float = 1e-4
) -> dict[str, Any]:
    """``reason`` holds if ``proof`` does; where the numbers agree none is needed."""
    mine, other = numbers(ours), numbers(theirs)
    agrees = not isinstance(other, str) and np.shape(mine) == np.shape(other)
    agrees = agrees and np.allclose(mine, other, rtol=tolerance, atol=tolerance)
    return {
        "measure": measure, "library": library, "ours": mine, "theirs": other, "agrees": bool(agrees),
        "reason": reason if proof and not agrees else "",
    }  # fmt: skip


def numbers(value: Any) -> Any:
    if isinstance(value, str):
        return value
    flat = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=float).flatten().tolist()
    return flat[0] if len(flat) == 1 else flat


def attempt(run: Callable[[], Any]) -> Any:
    """The result, or the error as text."""
    try:
        return run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:120]


@contextlib.contextmanager
def with_trapz() -> Iterator[None]:
    """np.trapz, which NumPy 2.4 has removed, put back while another library runs."""
    missing = not hasattr(np, "trapz")
    if missing:
        vars(np)["trapz"] = np.trapezoid
    try:
        yield
    finally:
        if missing:
            del vars(np)["trapz"]


def cases() -> list[dict[str, Any]]:
    return [*quantus_curves(), *quantus_road(), *quantus_subsets(), *quantus_others(), *grad_cam(), *captum()]


# -- Quantus -----------------------------------------------------------------------------------------------------------


def quantus(
    name: str, model: nn.Module, x: Tensor, y: Tensor, maps: Tensor, call: dict | None = None, **options: Any
) -> Any:
    import quantus as library

    warnings.simplefilter("ignore")
    measure = getattr(library, name)(disable_warnings=True, **options)
    return measure(
        model=model, x_batch=x.numpy().copy(), y_batch=y.numpy().copy(), a_batch=maps.numpy().copy(), channel_first=True,
        **(call or {}),
    )  # fmt: skip


def outputs(model: nn.Module, rows: np.ndarray, y: Tensor, softmax: bool) -> np.ndarray:
    with torch.no_grad():
        found = model(torch.as_tensor(rows, dtype=torch.float32))
        found = found.softmax(1) if softmax else found
    return found[torch.arange(len(y)), y].double().numpy()


def quantus_curves() -> list[dict[str, Any]]:
    model, x = Net(), pictures()
    y, maps = model(x).argmax(1), contributions(Net(), pictures())
    found = []
    curve = PixelFlipping(12, value="probability").curve(task(model, x, maps, Elements())).probability[:, 0]
    theirs = quantus("PixelFlipping", model, x, y, maps, features_in_step=16, perturb_baseline=0.0)
    found.append(case("pixel_flipping: its curve, steps=12, value='probability'", "Quantus PixelFlipping(features_in_step=16)",
                      curve[:, 1:], theirs))  # fmt: skip
    area = PixelFlipping(12, value="probability")(task(model, x, maps, Elements()))
    asked = {"features_in_step": 16, "perturb_baseline": 0.0, "return_auc_per_sample": True}
    found.append(
        case("pixel_flipping", f"Quantus PixelFlipping(return_auc_per_sample=True), NumPy {np.__version__}", area,
             attempt(lambda: quantus("PixelFlipping", model, x, y, maps, **asked)),
             "it calls np.trapz, which NumPy 2.4 no longer has", not hasattr(np, "trapz"))
    )  # fmt: skip
    with with_trapz():
        theirs = quantus("PixelFlipping", model, x, y, maps, **asked)
    found.append(
        case("pixel_flipping", "the same with np.trapz put back", area, theirs,
             "its area has the width of the number of steps and leaves out the first step, x itself: the trapezoidal sum of "
             "curve(task)[1:]", np.allclose(np.trapezoid(curve[:, 1:], axis=1), theirs, rtol=1e-4))
    )  # fmt: skip

    pixel = maps.sum(1)
    mine = PixelFlipping(12, value="probability").curve(task(model, x, pixel, Pixels())).probability[:, 0, 1:]
    theirs = quantus("PixelFlipping", model, x, y, pixel[:, None], features_in_step=16, perturb_baseline=0.0)
    order = np.argsort(-np.broadcast_to(pixel[:, None].numpy(), x.shape).reshape(len(x), -1), axis=1)
    rows, again = x.numpy().reshape(len(x), -1).copy(), []
    for step in range(12):
        rows[np.arange(len(x))[:, None], order[:, 16 * step : 16 * step + 16]] = 0
        again.append(outputs(model, rows.reshape(x.shape), y, True))
    found.append(
        case("pixel_flipping of pixels, 12 steps", "Quantus PixelFlipping(features_in_step=16), a_batch (B, 1, H, W)", mine,
             theirs, "it spreads the map over the channels and takes away single channels, tied ones in the order of argsort; "
             "whole pixels here", np.allclose(np.stack(again, 1), theirs, atol=1e-5))
    )  # fmt: skip

    region = (
        RegionPerturbation(16, 0.0, "probability", Patches(2)).curve(task(model, x, pixel, Pixels())).probability[:, 0]
    )
    theirs = quantus("RegionPerturbation", model, x, y, pixel[:, None], patch_size=2, perturb_baseline=0.0)
    found.append(case("region_perturbation: its curve, value='probability'", "Quantus RegionPerturbation(patch_size=2)",
                      region[:, :1] - region[:, 1:], np.stack(theirs)))  # fmt: skip
    theirs = quantus("Selectivity", model, x, y, pixel[:, None], patch_size=2, perturb_baseline=0.0)
    mine = (
        Selectivity(None, value="probability", features=Patches(2))
        .curve(task(model, x, pixel, Pixels()))
        .probability[:, 0]
    )
    found.append(case("selectivity: its curve, steps=None, value='probability'", "Quantus Selectivity(patch_size=2)",
                      mine[:, 1:], np.stack(theirs)))  # fmt: skip
    return found + quantus_irof()


def quantus_irof() -> list[dict[str, Any]]:
    from quantus.helpers.utils import get_superpixel_segments

    found = []
    x, model = pictures(side=32), Net()
    maps = contributions(model, x)
    theirs = attempt(
        lambda: quantus("IROF", model, x, model(x).argmax(1), maps.sum(1, keepdim=True), perturb_baseline="mean")
    )
    found.append(
        case("irof", "Quantus IROF, three channels", IROF()(task(model, x, maps.sum(1), Pixels())), theirs,
             "it refuses a mask of one channel for inputs of three", isinstance(theirs, str))
    )  # fmt: skip
    x, model = pictures(channels=1, side=32), Net(1)
    y, maps = model(x).argmax(1), contributions(model, x)
    label = np.stack([get_superpixel_segments(np.moveaxis(row, 0, -1).astype("double"), "slic") for row in x.numpy()])
    mine = task(model, x, maps.sum(1), Pixels())
    # Its "mean" is taken anew of what is left after each step; a constant is the same in both.
    measure = IROF(features=Segments(torch.as_tensor(label), batched=True), baseline=0.5)
    asked = {"perturb_baseline": 0.5, "return_aggregate": False}
    curve = measure.curve(mine)
    found.append(
        case("irof", f"Quantus IROF, NumPy {np.__version__}", measure(mine),
             attempt(lambda: quantus("IROF", model, x, y, maps, **asked)),
             "it calls np.trapz, which NumPy 2.4 no longer has", not hasattr(np, "trapz"))
    )  # fmt: skip
    with with_trapz():
        theirs = quantus("IROF", model, x, y, maps, **asked)
    relative = (curve.probability / curve.probability[..., :1])[:, 0].numpy()
    again = []
    for i, count in enumerate([int(row.max()) + 1 for row in measure.features.labels]):
        ends = np.searchsorted(curve.count[i].numpy(), np.arange(1, count + 1))
        values = np.concatenate([relative[i, ends], np.zeros(measure.features.count - count)])
        again.append(count - np.trapezoid(values))
    found.append(
        case("irof", "the same with np.trapz put back", measure(mine), theirs,
             "its area has the width of the number of segments, L, and leaves out x itself: L − the trapezoidal sum over "
             "l = 1 … L, so images with more segments have larger values", np.allclose(again, theirs, rtol=1e-3))
    )  # fmt: skip
    return found


def quantus_road() -> list[dict[str, Any]]:
    found, percentages = [], list(range(10, 100, 10))
    asked = {"percentages": percentages, "noise": 0.0}
    accuracy = RoadMoRF(value="accuracy", sigma=0.0)
    model, x = Net(), pictures()
    maps = contributions(model, x).sum(1)
    theirs = attempt(lambda: quantus("ROAD", model, x, model(x).argmax(1), maps[:, None], **asked))
    found.append(
        case("road_morf: accuracy at 10 … 90 %", "Quantus ROAD, three channels",
             accuracy.curve(task(model, x, maps, Pixels())).accuracy.mean((0, 1)), theirs,
             "it ranks elements over all channels and uses their numbers as those of pixels", isinstance(theirs, str))
    )  # fmt: skip
    model, x = Net(1), pictures(10, 1)
    y, maps = model(x).argmax(1), contributions(model, x).sum(1)
    curve = accuracy.curve(task(model, x, maps, Pixels())).accuracy[:, 0]
    theirs = quantus("ROAD", model, x, y, maps[:, None], **asked)
    found.append(case("road_morf: accuracy at 10 … 90 %", "Quantus ROAD(noise=0), one channel, one batch", curve.mean(0),
                      [theirs[p] for p in percentages]))  # fmt: skip
    theirs = quantus("ROAD", model, x, y, maps[:, None], {"batch_size": 2}, **asked)
    theirs = [theirs[p] for p in percentages]
    found.append(
        case("road_morf: accuracy at 10 … 90 %", "Quantus ROAD(noise=0), ten images in batches of two", curve.mean(0), theirs,
             "it averages over the first batch only", np.allclose(curve[:2].mean(0), theirs))
    )  # fmt: skip
    return found


def quantus_subsets() -> list[dict[str, Any]]:
    model, x = Net(), pictures()
    y, maps = model(x).argmax(1), contributions(Net(), pictures())
    values, found, size = maps.flatten(1).double().numpy(), [], 12

    np.random.seed(3)  # noqa: NPY002
    theirs = quantus("FaithfulnessCorrelation", model, x, y, maps, nr_runs=40, subset_size=size, perturb_baseline=0.0,
                     return_aggregate=False)  # fmt: skip
    np.random.seed(3)  # noqa: NPY002
    a, falls, clean = [], [], outputs(model, x.numpy(), y, False)
    for _ in range(40):
        which = np.stack([np.random.choice(values.shape[1], size, replace=False) for _ in x])  # noqa: NPY002
        rows = x.numpy().reshape(len(x), -1).copy()
        rows[np.arange(len(x))[:, None], which] = 0
        falls.append(clean - outputs(model, rows.reshape(x.shape), y, False))
        a.append(np.take_along_axis(values, which, 1).sum(1))
    drawn = Responses(torch.as_tensor(np.stack(a, 1))[..., None], torch.as_tensor(np.stack(falls, 1)))
    mine = faithfulness_correlation(Evidence(responses=drawn), torch.ones(len(x), 1, 1).double()).value
    found.append(case("faithfulness_correlation, on the same subsets", "Quantus FaithfulnessCorrelation", mine, theirs))

    mine = FaithfulnessEstimate(baseline=0.0, features=Elements())(task(model, x, maps, Elements()))
    theirs = quantus("FaithfulnessEstimate", model, x, y, maps, perturb_baseline=0.0)
    found.append(
        case("faithfulness_estimate(baseline=0.0)", "Quantus FaithfulnessEstimate(features_in_step=1)", mine, theirs)
    )

    one = {"nr_samples": 1, "perturb_baseline": 0.0}
    mine = MonotonicityCorrelation(1, 0.0, Elements())(task(model, x, maps, Elements()))
    theirs = quantus("MonotonicityCorrelation", model, x, y, maps, {"softmax": False}, **one)
    found.append(case("monotonicity_correlation(draws=1, baseline=0.0)", "Quantus MonotonicityCorrelation(nr_samples=1)",
                      mine, theirs, tolerance=2e-3))  # fmt: skip
    sure = nn.Sequential(model, Scaled(3.0)).eval()
    least = torch.stack([model(x)[0].argmin(), *model(x)[1:].argmax(1)])
    mine = MonotonicityCorrelation(1, 0.0, Elements())(task(sure, x, maps, Elements(), "probability", least))
    theirs = attempt(lambda: quantus("MonotonicityCorrelation", sure, x, least, maps, **one))
    singly = attempt(lambda: quantus("MonotonicityCorrelation", sure, x, least, maps, {"batch_size": 1}, **one))
    found.append(
        case("monotonicity_correlation", "Quantus MonotonicityCorrelation, one of four targets below eps=1e-5", mine, theirs,
             "it assigns a value for each input to those above eps only; the same with batches of one",
             isinstance(theirs, str) and not isinstance(singly, str))
    )  # fmt: skip

    # Infidelity of blocks of 4 × 4: each block alone, in ours; everything up to this block, in theirs.
    order = [np.arange(64).reshape(8, 8)[r : r + 4, c : c + 4].ravel() for r in (0, 4) for c in (0, 4)]
    asked = {"n_perturb_samples": 1, "perturb_patch_sizes": [4], "perturb_baseline": 0.0}
    gradients = Stack([Saliency()]).attribute(*scored(model, x))[:, 0]
    theirs = quantus("Infidelity", model, x, y, gradients, **asked)
    blocks = task(model, x, maps.sum(1), Pixels())
    units, each, _ = FaithfulnessEstimate(baseline=0.0, features=Patches(4)).falls(blocks)
    rows, errors = x.numpy().reshape(len(x), 3, 64).copy(), []
    for block in order:
        rows[:, :, block] = 0
        said = (gradients.numpy() * (x.numpy() - rows.reshape(x.shape))).sum((1, 2, 3))
        errors.append((clean - outputs(model, rows.reshape(x.shape), y, False) - said) ** 2)
    found.append(
        case("infidelity(scaling='raw') of single blocks", "Quantus Infidelity(perturb_patch_sizes=[4])",
             ((units - each) ** 2).mean(-1), theirs,
             "it never puts a block back before it takes the next: the masks are the first block, the first two, …, all",
             np.allclose(np.mean(errors, 0), theirs, rtol=1e-3))
    )  # fmt: skip
    theirs = attempt(lambda: quantus("Infidelity", model, x, y, gradients, **{**asked, "perturb_patch_sizes": [3]}))
    found.append(
        case("infidelity(features=Patches(3), baseline=0.0)", "Quantus Infidelity(perturb_patch_sizes=[3]) of 8 × 8 pixels",
             Infidelity(64, 0.0, Patches(3))(blocks), theirs,
             "it takes the places of blocks in the padded image for places in the image", isinstance(theirs, str))
    )  # fmt: skip

    # Sensitivity-n: per input over random subsets of each size, in ours.
    step = 8
    mine = SensitivityN(100, 0.0, Elements(), shares=(0.1, 0.5))(task(model, x, maps, Elements()))
    theirs = quantus("SensitivityN", model, x, y, maps, {"softmax": False}, features_in_step=step, n_max_percentage=0.5,
                     perturb_baseline=0.0, return_aggregate=False)  # fmt: skip
    order = np.argsort(-values, 1)
    rows, falls, sums = x.numpy().reshape(len(x), -1).copy(), [], []
    for start in range(0, step * len(theirs), step):
        which = order[:, start : start + step]
        rows[np.arange(len(x))[:, None], which] = 0
        falls.append(clean - outputs(model, rows.reshape(x.shape), y, False))
        sums.append(np.take_along_axis(values, which, 1).sum(1))
    again = pearson(torch.as_tensor(np.stack(falls)), torch.as_tensor(np.stack(sums)))
    found.append(
        case("sensitivity_n: one number for each input", "Quantus SensitivityN: one number for each n", mine, theirs,
             "it correlates over inputs, not over subsets of one input; its subsets are the most relevant features, and the "
             "fall after all steps so far is compared with the attribution of the last step alone",
             np.allclose(again, theirs, atol=1e-3))
    )  # fmt: skip
    return found


def quantus_others() -> list[dict[str, Any]]:
    model, x = Net(), pictures()
    y, maps = model(x).argmax(1), contributions(Net(), pictures())
    mine = Monotonicity(True, None, 0.0)(task(model, x, maps, Elements()))
    theirs = quantus("Monotonicity", model, x, y, maps, perturb_baseline=0.0)
    turned = [quantus("Monotonicity", model, x, y, other, {"softmax": False}, perturb_baseline=0.0, abs=False)
              for other in (-maps, pictures(4) + 2, maps.flip(3))]  # fmt: skip
    found = [
        case("monotonicity(steps=None, baseline=0.0)", "Quantus Monotonicity", mine, np.array(theirs, float),
             "it replaces features of the baseline by the baseline, so the input never changes and the answer is always True",
             bool(np.all(turned)))
    ]  # fmt: skip

    integrated = Stack([IntegratedGradients(64)]).attribute(*scored(model, x))[:, 0]
    given = task(model, x, integrated, Elements())
    given = Task(**{**vars(given), "kinds": ("contribution",), "raw": given.maps, "memory": {}})
    theirs = quantus("Completeness", model, x, y, integrated, {"softmax": False}, perturb_baseline=0.0, normalise=False)
    error = Completeness()(given)
    found.append(
        case("completeness (relative error) of integrated gradients", "Quantus Completeness (True or False)", error,
             np.array(theirs, float), "it asks two floating-point numbers to be equal: False although the error is about 1 %",
             bool((error < 0.02).all()) and not np.any(theirs))
    )  # fmt: skip
    pixel = maps.sum(1)
    theirs = quantus("EffectiveComplexity", model, x, y, pixel[:, None], eps=0.2)
    share = (pixel.abs() / pixel.abs().max() > 0.2).flatten(1).sum(1)
    found.append(
        case("effective_complexity", "Quantus EffectiveComplexity(eps=0.2)",
             EffectiveComplexity()(task(model, x, pixel, Pixels())), np.array(theirs),
             "it counts the attributions above eps times the largest of the batch, and asks the model nothing",
             np.array_equal(share, theirs))
    )  # fmt: skip
    return found


def scored(model: nn.Module, x: Tensor) -> tuple[Score, Points]:
    score = Score(model).at(x)
    return score, Points(x, torch.arange(len(x)), score.ids)


class Scaled(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


# -- pytorch-grad-cam --------------------------------------------------------------------------------------------------


def grad_cam() -> list[dict[str, Any]]:
    from pytorch_grad_cam.metrics import perturbation_confidence as library
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, x = Net(), pictures(side=10)
    targets = [ClassifierOutputTarget(int(t)) for t in model(x).argmax(1)]
    maps = contributions(model, x).sum(1)
    maps = maps - maps.amin((1, 2), keepdim=True)

    def theirs(remove: Any, percentile: int, x: Tensor = x, maps: Tensor = maps) -> np.ndarray:
        metric = library.PerturbationConfidenceMetric(remove(percentile, NoisyLinearImputer(noise=0.0)))
        return metric(x, maps.numpy(), targets, model)

    def kept(remove: Any, percentile: int, map: Tensor) -> int:
        """How many pixels its mask keeps."""
        masks: list[Tensor] = []
        remove(percentile, lambda image, mask: masks.append(mask))(x[0], map)
        return int(masks[0].sum())

    most, least = library.RemoveMostRelevantFirst, library.RemoveLeastRelevantFirst
    given = task(model, x, maps, Pixels())
    road = lambda p, cls=RoadMoRF: cls((p,), sigma=0.0)(given)  # noqa: E731
    found = [
        case("road_morf((20,), sigma=0)", "pytorch-grad-cam ROADMostRelevantFirst(percentile=80), noise 0", road(20),
             theirs(most, 80)),
        case("road_morf((20,), sigma=0)", "pytorch-grad-cam ROADMostRelevantFirst(percentile=20), noise 0", road(20),
             theirs(most, 20), "its percentile is the share that is kept",
             np.allclose(road(80)[:, 0], theirs(most, 20), atol=1e-3)),
        case("road_lerf((20,), sigma=0)", "pytorch-grad-cam ROADLeastRelevantFirst(percentile=80), noise 0", road(20, RoadLeRF),
             theirs(least, 80)),
        case("road_lerf((20,), sigma=0)", "pytorch-grad-cam ROADLeastRelevantFirst(percentile=20, its default), noise 0",
             road(20, RoadLeRF), theirs(least, 20), "its percentile is the share that is kept",
             np.allclose(road(80, RoadLeRF)[:, 0], theirs(least, 20), atol=1e-3)),
    ]  # fmt: skip
    tens = range(10, 100, 10)
    averages = [np.mean([theirs(remove, p) for p in tens], 0) for remove in (most, least)]
    found += [
        case("road_morf(sigma=0)", "pytorch-grad-cam ROADMostRelevantFirstAverage, noise 0",
             RoadMoRF(sigma=0.0)(given), averages[0]),
        case("road_lerf(sigma=0)", "pytorch-grad-cam ROADLeastRelevantFirstAverage, noise 0",
             RoadLeRF(sigma=0.0)(given), averages[1]),
        case("road_combined(sigma=0)", "pytorch-grad-cam ROADCombined, noise 0", RoadCombined(sigma=0.0)(given),
             (averages[1] - averages[0]) / 2),
    ]  # fmt: skip

    small, value = pictures(), contributions(model, pictures()).sum(1)
    removed = 64 - kept(most, 80, value[0])
    found.append(
        case("pixels that 20 % of 8 × 8 are", "pytorch-grad-cam, percentile=80", int(0.2 * 64), removed,
             "np.percentile interpolates: with no ties it removes ⌈20 % of 63⌉ pixels",
             removed == int(np.ceil(0.2 * 63)) and len(small) == 4)
    )  # fmt: skip
    flat = (maps - maps.flatten(1).quantile(0.6, 1)[:, None, None]).clamp(min=0)  # 60 % zeros, as after a rectifier
    curve = RoadLeRF((20,)).curve(task(model, x, flat, Pixels()))
    removed = 100 - kept(least, 80, flat[0])
    found.append(
        case("pixels taken away by road_lerf((20,)) of a map that is zero on 60 %", "pytorch-grad-cam, percentile=80",
             int(curve.count[0, 0]), removed, "it removes every pixel tied with the threshold: three times as many",
             removed == 60)
    )  # fmt: skip
    curve = RoadMoRF((80,)).curve(task(model, x, flat, Pixels()))
    removed = 100 - kept(most, 20, flat[0])
    found.append(
        case("pixels taken away by road_morf((80,)) of the same map", "pytorch-grad-cam, percentile=20", int(curve.count[0, 0]),
             removed, "the threshold is zero, nothing is below it, and the whole image goes", removed == 100)
    )  # fmt: skip
    broken = theirs(most, 20, maps=flat)
    blank = outputs(model, np.zeros_like(x), model(x).argmax(1), False) - given.score.clean.numpy()
    found.append(
        case("road_morf((80,), sigma=0) of the same map", "pytorch-grad-cam, percentile=20, noise 0",
             RoadMoRF((80,), sigma=0.0)(task(model, x, flat, Pixels())), broken,
             "nothing is left: its singular system answers 0, so this is the score of a blank image",
             np.allclose(broken, blank, atol=1e-4))
    )  # fmt: skip
    return found


# -- Captum ------------------------------------------------------------------------------------------------------------


def captum() -> list[dict[str, Any]]:
    from captum.metrics import infidelity

    model, x = Net(), pictures()
    gradients = Stack([Saliency()]).attribute(*scored(model, x))[:, 0]
    measure = Infidelity(30, "zero", Elements(), scaling="raw")
    given = task(model, x, gradients * x, Elements())
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    mine = measure(given)
    rows = torch.cat(seen)
    rows = rows[-30 * len(x) :].unflatten(0, (-1, 30))  # input-major, as Captum expands
    masks = (rows == 0) & (x != 0)[:, None]

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        step = masks.flatten(0, 1) * inputs
        return step, inputs - step

    theirs = infidelity(model, perturb, x, gradients, target=model(x).argmax(1), n_perturb_samples=30)
    return [
        case("infidelity(baseline='zero', scaling='raw') of input × gradient, on the same masks",
             "Captum infidelity of the gradient, perturbation mask ⊙ x", mine, theirs)
    ]  # fmt: skip


if __name__ == "__main__":
    for found in cases():
        print({**found, "ours": str(found["ours"])[:60], "theirs": str(found["theirs"])[:60]})
