"""Measures that take nothing away, beside Captum's, Quantus' and OpenXAI's, on one small network with the same draws.

Both sides get the same neighbours (through the other library's own perturbation function) and the same random models (the
network's layers draw themselves anew in one fixed way). A reason counts only if its proof holds: what is said to be computed
elsewhere is computed here by plain loops, and must give the other library's number. OpenXAI cannot be installed beside the
others; its formulas are written here in our words, from its repository at commit 054a8f2.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from consilience.features.images import Pixels
from consilience.measures.agreement import (
    FeatureAgreement,
    PairwiseRankAgreement,
    RankAgreement,
    RankCorrelation,
    SignAgreement,
    SignedRankAgreement,
)
from consilience.measures.complexity import EntropyComplexity, GiniSparseness
from consilience.measures.localisation import (
    AttributionLocalisation,
    LocalisationAUC,
    PointingGame,
    RelevanceMass,
    RelevanceRank,
    TopKLocalisation,
)
from consilience.measures.randomisation import MPRT, EfficientMPRT, RandomLogit, SmoothMPRT
from consilience.measures.robustness import RIS, ROS, RRS, AvgSensitivity, LocalLipschitz, MaxSensitivity
from consilience.model.score import Score
from consilience.perturb.neighbourhoods import neighbours
from consilience.perturb.points import Points
from consilience.statistics.keys import Key
from consilience.task import Task

B, S, RADIUS, KEY = 4, 5, 0.3, Key(0, "conformance")
MODIFIED: set[str] = set()  # measures of Quantus that changed what they were given


class Fixed:
    """A layer whose random parameters are always the same, so that every library draws the same random model."""

    def reset_parameters(self) -> None:
        keyed = torch.Generator().manual_seed(self.weight.numel())  # type: ignore[attr-defined]
        with torch.no_grad():
            for parameter in self.parameters():  # type: ignore[attr-defined]
                parameter.copy_(torch.randn(parameter.shape, generator=keyed) * 0.5)


class Convolution(Fixed, nn.Conv2d):
    pass


class Linear(Fixed, nn.Linear):
    pass


class Net(nn.Module):
    """conv, tanh, conv, tanh, mean, linear with two outputs; fixed weights, float32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = Convolution(3, 6, 3, padding=1)
        self.conv2 = Convolution(6, 8, 3, stride=2, padding=1)
        self.head = Linear(8, 2)
        keyed = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=keyed) * 0.4)
        self.eval()

    def hidden(self, x: Tensor) -> Tensor:
        return self.conv2(torch.tanh(self.conv1(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(x)).mean((2, 3)))


def gradients(model: nn.Module, rows: Tensor, targets: Tensor) -> Tensor:
    """(N, 1, H, W): the signed gradient, summed over channels."""
    leaf = rows.detach().clone().requires_grad_()
    with torch.enable_grad():
        picked = model(leaf)[torch.arange(len(leaf)), targets].sum()
        return torch.autograd.grad(picked, leaf)[0].sum(1, keepdim=True)


def task(model: nn.Module | None = None) -> Task:
    model = model or Net()
    x = torch.randn(B, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(next(model.parameters()))
    score = Score(model).at(x)
    points = Points(x, torch.arange(B), score.ids, B)
    explain = lambda score, points: gradients(score.model, points.x, score.targets[points.owner])  # noqa: E731
    region = torch.zeros(B, 8, 8, dtype=torch.bool)
    region[:, 1:5, 2:6] = True
    return Task(score, points, explain(score, points), Pixels(), explain, KEY, regions=region)


def given(maps: Tensor) -> Task:
    """Another map in place of the gradient."""
    return replace(task(), maps=maps, memory={})


def near(t: Task, radius: float = RADIUS) -> Tensor:
    """(B, S, *F): the neighbours that our measures use."""
    where = MaxSensitivity(radius).neighbourhood
    return neighbours(where, t.points, range(S), KEY / "neighbours", S).x.unflatten(0, (B, S))


# -- cases -------------------------------------------------------------------------------------------------------------


def case(
    measure: str, library: str, ours: Any, theirs: Any, reason: str = "", proof: Any = True, tolerance: float = 1e-4
) -> dict[str, Any]:
    """``reason`` holds if ``proof`` does: a truth, or numbers that must be theirs; where the numbers agree none is needed."""
    mine, other = numbers(ours), numbers(theirs)
    proven = proof if isinstance(proof, bool) else same(numbers(proof), other, tolerance)
    agrees = same(mine, other, tolerance)
    said = reason if proven and not agrees else ""
    return {
        "measure": measure,
        "library": library,
        "ours": mine,
        "theirs": other,
        "agrees": agrees,
        "reason": said,
    }


def numbers(value: Any) -> Any:
    if isinstance(value, str):
        return value
    flat = np.asarray(value.detach() if isinstance(value, Tensor) else value, dtype=float).flatten().tolist()
    return flat[0] if len(flat) == 1 else flat


def same(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, str) or isinstance(b, str) or np.shape(a) != np.shape(b):
        return False
    return bool(np.allclose(a, b, rtol=tolerance, atol=1e-6, equal_nan=True))


def attempt(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:100]


def cases() -> list[dict[str, Any]]:
    warnings.simplefilter("ignore")
    quantus_cases = [*sensitivities(), *stabilities(), *random_models(), *of_maps(), *of_regions()]
    changed = case("measures here that change the caller's arrays or model", "quantus", 0, len(MODIFIED))
    return [*captums(), *quantus_cases, changed, *openxais()]


# -- Captum ------------------------------------------------------------------------------------------------------------


def captums() -> Iterator[dict[str, Any]]:
    from captum.attr import Saliency
    from captum.metrics import sensitivity_max

    t = task()
    model, x, y = t.score.model, t.points.x, t.score.targets
    here = near(t).flatten(0, 1)
    explain = lambda rows, target: (gradients(model, rows[0], target),)  # noqa: E731
    theirs = sensitivity_max(explain, (x,), perturb_func=lambda *_: (here,), n_perturb_samples=S, target=y)
    yield case("MaxSensitivity", "captum", MaxSensitivity(RADIUS, samples=S)(t), theirs)
    yield case(
        "MaxSensitivity, as in the paper (relative=False)",
        "captum",
        MaxSensitivity(RADIUS, samples=S, relative=False)(t),
        theirs,
        "sensitivity_max divides by ‖φ(x)‖; the paper it cites (arXiv 1901.09392) does not",
        MaxSensitivity(RADIUS, samples=S)(t),
    )
    half = copy.deepcopy(model).bfloat16()
    theirs = attempt(lambda: sensitivity_max(Saliency(half).attribute, x.bfloat16(), target=y))
    yield case(
        "MaxSensitivity of a bfloat16 model",
        "captum",
        MaxSensitivity(RADIUS, samples=S)(task(half)),
        theirs,
        "its default perturbation gives float32 rows to a bfloat16 model",
        isinstance(theirs, str),
    )


# -- Quantus -----------------------------------------------------------------------------------------------------------


def quantus(name: str, t: Task, call: dict | None = None, steps: Tensor | None = None, **options: Any) -> Any:
    """Its measure on the task's inputs and maps; ``steps`` (B, S, *F): the neighbours it is to use."""
    import quantus as library

    x, maps = t.points.x.numpy(), t.maps.numpy()
    if steps is not None:
        taken = [0] * B
        rows = x.reshape(B, -1)

        def perturb(arr: np.ndarray, **_: Any) -> np.ndarray:
            out = np.empty_like(arr)
            for i, row in enumerate(arr):
                which = int(np.abs(rows - row.reshape(1, -1)).sum(1).argmin())
                out[i] = steps[which, taken[which]].numpy().reshape(row.shape)
                taken[which] += 1
            return out

        options |= {"perturb_func": perturb, "nr_samples": S}

    def explain(model: nn.Module, inputs: np.ndarray, targets: np.ndarray, **_: Any) -> np.ndarray:
        return gradients(model, torch.as_tensor(inputs).float(), torch.as_tensor(targets)).numpy()

    given = {"x_batch": x.copy(), "y_batch": t.score.targets.numpy().copy(), "a_batch": maps.copy(), **(call or {})}
    before = {name: np.copy(value) for name, value in given.items() if isinstance(value, np.ndarray)}
    weights = copy.deepcopy(t.score.model.state_dict())
    np.random.seed(0)  # noqa: NPY002 - its noise comes from the global state
    measure = getattr(library, name)(disable_warnings=True, **options)
    found = attempt(lambda: measure(model=t.score.model, device="cpu", **{"explain_func": explain, **given}))
    arrays = all(np.array_equal(value, given[name]) for name, value in before.items())
    if not arrays or any(not torch.equal(value, weights[key]) for key, value in t.score.model.state_dict().items()):
        MODIFIED.add(name)
    return found


def batches(name: str, t: Task, **options: Any) -> list[Any]:
    """The first input's number in batches of 1, 2 and 4."""
    return [quantus(name, t, {"batch_size": size}, near(t), **options)[0] for size in (1, 2, 4)]


def sensitivities() -> Iterator[dict[str, Any]]:
    t = task()
    steps = near(t)
    there = gradients(t.score.model, steps.flatten(0, 1), t.score.targets.repeat_interleave(S)).unflatten(0, (B, S))
    for ours, name in (
        (MaxSensitivity(RADIUS, samples=S), "MaxSensitivity"),
        (AvgSensitivity(RADIUS, samples=S), "AvgSensitivity"),
    ):
        yield case(name, "quantus", ours(t), quantus(name, t, steps=steps))
    ours = LocalLipschitz(RADIUS, samples=S)
    yield case(
        "LocalLipschitz (normalise=False)",
        "quantus",
        ours(t),
        quantus("LocalLipschitzEstimate", t, steps=steps, normalise=False),
    )
    own = lambda maps: maps / maps.flatten(1).abs().amax(1).view(-1, 1, 1, 1)  # noqa: E731
    scaled = replace(t, maps=own(t.maps), explain=lambda *a: own(t.explain(*a)), memory={})
    far = (steps - t.points.x[:, None]).flatten(2).norm(dim=2)
    size = (t.maps / t.maps.abs().max()).flatten(1).norm(dim=1)[:, None]
    for name, measure, combine, divisor in (
        ("LocalLipschitzEstimate", LocalLipschitz, torch.amax, far), ("MaxSensitivity", MaxSensitivity, torch.amax, size),
        ("AvgSensitivity", AvgSensitivity, torch.mean, size),
    ):  # fmt: skip
        proof = [combine(changes(t.maps, there, batch) / divisor, 1)[0] for batch in (1, 2, 4)]
        yield case(
            f"{measure.__name__} of maps divided by their maximum, the first input in batches of 1, 2, 4", "quantus",
            [measure(RADIUS, samples=S)(scaled)[0, 0]] * 3, batches(name, t, normalise=True),
            "normalise=True (LocalLipschitzEstimate's default) divides the map by the largest value of all inputs and a "
            "neighbour's by the largest in its batch: an input's number depends on the others and on batch_size", proof,
        )  # fmt: skip


def changes(maps: Tensor, there: Tensor, size: int) -> Tensor:
    """(B, S): ‖φ' − φ‖, φ divided by the largest |value| of all inputs, φ' by that of each batch of ``size``."""
    base = maps / maps.abs().max()
    moved = [part / part.flatten(2).abs().amax((0, 2)).view(1, -1, 1, 1, 1) for part in there.split(size)]
    return (torch.cat(moved) - base[:, None]).flatten(2).norm(dim=2)


def stabilities() -> Iterator[dict[str, Any]]:
    t = task()
    steps = near(t)
    common = {"radius": RADIUS, "samples": S}
    yield case("RIS", "quantus", RIS(**common)(t), quantus("RelativeInputStability", t, steps=steps))
    yield case("ROS", "quantus", ROS(**common)(t), quantus("RelativeOutputStability", t, steps=steps))
    named = quantus("RelativeRepresentationStability", t, steps=steps, layer_names=["conv2"])
    yield case("RRS of one layer", "quantus", RRS(**common, layer="conv2")(t), named)
    model, rows = t.score.model, steps.flatten(0, 1)
    every = lambda v: torch.cat([m.flatten(1) for m in (model.conv1(v), model.hidden(v), model(v))], 1).detach()  # noqa: E731
    yield case(
        "RRS, defaults", "quantus", RRS(**common)(t), quantus("RelativeRepresentationStability", t, steps=steps),
        "it takes the outputs of all layers at once; the paper, and we, one representation: the layer before the classifier",
        ratio(t, steps, elementwise(every(t.points.x), every(rows))),
    )  # fmt: skip
    zero = t.maps.clone()
    zero[:, :, 0] = 0
    holes = replace(t, maps=zero, memory={})
    yield case(
        "RIS of a map with zeros",
        "quantus",
        RIS(**common)(holes),
        quantus("RelativeInputStability", holes, steps=steps),
    )

    model = Net()
    with torch.no_grad():  # as near the border between the classes as the median input
        model.head.bias[0] += model(t.points.x).diff(dim=1).median()
    close = task(model)
    kept = (model(steps.flatten(0, 1)).argmax(1) == close.score.targets.repeat_interleave(S)).view(B, S)
    assert 0 < int(kept.all(1).sum()) < B
    ours = RIS(**common)(close)
    yield case(
        "RIS where neighbours change class", "quantus", ours, quantus("RelativeInputStability", close, steps=steps),
        "one neighbour of another class makes the input's number NaN; the paper's maximum leaves that neighbour out",
        torch.where(kept.all(1), ours[:, 0], torch.nan),
    )  # fmt: skip
    every = RIS(**common, same_class=False)(close)
    theirs = quantus("RelativeInputStability", close, steps=steps, return_nan_when_prediction_changes=False)
    yield case("RIS over all neighbours (same_class=False)", "quantus", every, theirs)
    ours = near(t, 0.2) - t.points.x[:, None]
    for name in ("RelativeInputStability", "RelativeRepresentationStability", "RelativeOutputStability"):
        low, high = noise_of(name, t)
        yield case(
            f"least and largest default noise of {name}", "quantus", [ours.min(), ours.max()], [low, high],
            "its default noise is one-sided: every element of the input grows", low > 0, tolerance=0.02,
        )  # fmt: skip


def noise_of(name: str, t: Task) -> tuple[float, float]:
    """The least and the largest noise that the measure adds by default."""
    x, seen = t.points.x.numpy(), []

    def spy(model: nn.Module, inputs: np.ndarray, targets: np.ndarray, **_: Any) -> np.ndarray:
        seen.append(np.asarray(inputs).reshape(x.shape) - x)
        return gradients(model, torch.as_tensor(inputs).float(), torch.as_tensor(targets)).numpy()

    quantus(name, t, {"explain_func": spy}, nr_samples=3)
    noise = [s for s in seen if np.abs(s).max() > 0]
    return float(np.min(noise)), float(np.max(noise))


def elementwise(here: Tensor, there: Tensor) -> Tensor:
    """(B, S): ‖(v' − v)/v‖ of (B, D) and (B · S, D)."""
    here, there = here[:, None].double(), there.unflatten(0, (B, S)).double()
    return ((there - here) / torch.where(here == 0, 1e-6, here)).norm(dim=2)


def ratio(t: Task, steps: Tensor, change: Tensor) -> Tensor:
    there = t.explain(t.score, Points(steps.flatten(0, 1), torch.arange(B).repeat_interleave(S), t.points.ids))
    return (elementwise(t.maps.flatten(1), there.flatten(1)) / change.clamp(min=1e-6)).amax(1)


def random_models() -> Iterator[dict[str, Any]]:
    import quantus as library

    t = task()
    asis = {"abs": False, "normalise": False}

    def curve(found: Any) -> Any:
        return found if isinstance(found, str) else np.stack([v for k, v in found.items() if k != "original"], 1)

    for order in ("top_down", "bottom_up"):
        theirs = quantus("MPRT", t, layer_order=order, **asis)
        yield case(f"MPRT's curve, {order}", "quantus", MPRT(order).curve(t), curve(theirs))
    theirs = curve(quantus("MPRT", t, layer_order="independent", **asis))
    yield case("MPRT's curve, independent", "quantus", MPRT("independent").curve(t).flip(-1), theirs)
    mean = MPRT()(t)
    yield case(
        "MPRT, mean over layers", "quantus", mean, quantus("MPRT", t, return_average_correlation=True, **asis),
        "return_average_correlation=True counts the trained model, whose similarity is 1, as one of the layers",
        (3 * mean + 1) / 4,
    )  # fmt: skip
    theirs = quantus("MPRT", t, return_average_correlation=True, similarity_func=library.ssim, **asis)
    yield case(
        "MPRT with SSIM, mean over layers", "quantus", MPRT(similarity="ssim")(t), theirs,
        "return_average_correlation=True fails with its own SSIM", isinstance(theirs, str),
    )  # fmt: skip
    flat = given(torch.ones_like(t.maps))
    theirs = curve(quantus("MPRT", flat, **asis))
    yield case(
        "MPRT of a map that is constant", "quantus", MPRT()(flat), theirs,
        "a constant map raises, and with it the batch is lost; here its number is NaN, with the reason",
        isinstance(theirs, str),
    )  # fmt: skip
    gone = lambda score, points: torch.zeros_like(t.maps)  # noqa: E731
    zeros = lambda model, inputs, targets, **_: np.zeros((len(inputs), 1, 8, 8))  # noqa: E731
    theirs = curve(quantus("MPRT", t, {"explain_func": zeros}, **asis))
    yield case(
        "MPRT where the random models' maps are zero", "quantus", MPRT().curve(replace(t, explain=gone, memory={})),
        theirs,
        "a map of zeros raises, and with it the batch is lost; here it has nothing of the original's order, and counts 0",
        isinstance(theirs, str),
    )  # fmt: skip

    class Token(Net):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.linspace(-1, 1, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.gain * torch.tanh(self.hidden(x)).mean((2, 3)))

    token = task(Token())
    random = copy.deepcopy(token.score.model)
    for module in (random.conv1, random.conv2, random.head):
        module.reset_parameters()
    left = spearman(token.maps, gradients(random, token.points.x, token.score.targets))
    theirs = quantus("MPRT", token, return_last_correlation=True, **asis)
    yield case(
        "MPRT, last state, of a model with a parameter of its own (a class token, a position embedding)", "quantus",
        MPRT(steps=1)(token), theirs, "parameters outside modules with reset_parameters stay trained", left,
    )  # fmt: skip

    still = SmoothMPRT(sigma=0.0, samples=2).curve(t)
    theirs = quantus("SmoothMPRT", t, nr_samples=2, noise_magnitude=0.0, **asis)
    yield case("SmoothMPRT's curve without noise", "quantus", still, curve(theirs))
    alone = quantus("SmoothMPRT", t, {"a_batch": None}, nr_samples=300, **asis)["original"]
    theirs = quantus("SmoothMPRT", t, nr_samples=300, **asis)["original"]
    yield case(
        "SmoothMPRT, similarity of the trained model's smoothed map with itself", "quantus", np.ones(B), theirs,
        "an a_batch that is given is compared unsmoothed with the smoothed maps of the random models",
        bool(np.min(alone) > 0.98 > np.max(theirs)), tolerance=0.01,
    )  # fmt: skip
    yield case("EfficientMPRT", "quantus", EfficientMPRT()(t), quantus("EfficientMPRT", t), tolerance=1e-3)

    two = {"num_classes": 2, "normalise": False}
    theirs = quantus("RandomLogit", t, similarity_func=library.correlation_spearman, **two)
    yield case("RandomLogit (two classes, Spearman)", "quantus", RandomLogit()(t), theirs)
    from skimage.metrics import structural_similarity

    other = gradients(t.score.model, t.points.x, 1 - t.score.targets)
    rows = [(a.flatten().numpy(), b.flatten().numpy()) for a, b in zip(t.maps, other, strict=True)]
    span = [max(a.max(), b.max()) - min(a.min(), b.min()) for a, b in rows]
    lines = [structural_similarity(a, b, win_size=7, data_range=s) for (a, b), s in zip(rows, span, strict=True)]
    yield case(
        "RandomLogit (two classes, SSIM)", "quantus", RandomLogit("ssim")(t), quantus("RandomLogit", t, **two),
        "its SSIM flattens the maps and compares windows of 7 consecutive values, not of 7 × 7", lines, tolerance=1e-3,
    )  # fmt: skip
    theirs = quantus("RandomLogit", t, normalise=False)
    yield case(
        "RandomLogit of a model with two outputs, defaults", "quantus", RandomLogit("ssim")(t), theirs,
        "its default num_classes=1000 asks for outputs that the model does not have", isinstance(theirs, str),
    )  # fmt: skip


def spearman(a: Tensor, b: Tensor) -> list[float]:
    from scipy.stats import spearmanr

    return [spearmanr(x.flatten().numpy(), y.flatten().numpy()).statistic for x, y in zip(a, b, strict=True)]


def of_maps() -> Iterator[dict[str, Any]]:
    t = task()
    for scale, note in ((1.0, ""), (1e-6, " of values about 1e-6")):
        small = given(scale * t.maps / t.maps.abs().mean())
        v = np.sort(np.abs(small.maps.flatten(1).numpy().astype(float)), 1) + 1e-7
        proof = ((2 * np.arange(1, 65) - 65) * v).sum(1) / (64 * v.sum(1))
        yield case(
            f"GiniSparseness{note}", "quantus", GiniSparseness()(small), quantus("Sparseness", small, normalise=False),
            "it adds 1e-7 to every |φ|", proof,
        )  # fmt: skip
        yield case(
            f"EntropyComplexity{note}",
            "quantus",
            EntropyComplexity()(small),
            quantus("Complexity", small, normalise=False),
        )
    zero = given(torch.zeros_like(t.maps))
    theirs = quantus("Sparseness", zero)
    yield case(
        "GiniSparseness of a map of zeros", "quantus", GiniSparseness()(zero), theirs,
        "a map of zeros raises, and with it the batch is lost; here its number is NaN, with the reason",
        isinstance(theirs, str),
    )  # fmt: skip


def of_regions() -> Iterator[dict[str, Any]]:
    t = task()
    assert t.regions is not None
    call = {"s_batch": t.regions[:, None].numpy()}
    plain = lambda name, t=t, **options: quantus(name, t, call, **options)  # noqa: E731
    size, inside = 16, t.regions.flatten(1)
    maps = t.maps.flatten(1)
    yield case("RelevanceMass (abs=True)", "quantus", RelevanceMass()(t), plain("RelevanceMassAccuracy", abs=True))
    yield case(
        "RelevanceMass", "quantus", RelevanceMass()(t), plain("RelevanceMassAccuracy"),
        "its default sums φ as it is: with maps of both signs the ratio has no bounds",
        (maps * inside).sum(1) / maps.sum(1),
    )  # fmt: skip
    yield case("RelevanceRank (abs=True)", "quantus", RelevanceRank()(t), plain("RelevanceRankAccuracy", abs=True))
    yield case(
        "AttributionLocalisation (magnitude=True)",
        "quantus",
        AttributionLocalisation(True)(t),
        plain("AttributionLocalisation"),
    )
    positive = plain("AttributionLocalisation", abs=False, positive_attributions=True)
    yield case("AttributionLocalisation", "quantus", AttributionLocalisation()(t), positive)
    share = AttributionLocalisation(True)(t)[:, 0]
    theirs = [float(v) for v in plain("AttributionLocalisation", weighted=True)]
    yield case(
        "AttributionLocalisation, weighted", "quantus", AttributionLocalisation(True, weighted=True)(t), theirs,
        "multiplies by |G| over the number of elements of the inputs from the third on; the paper by the map's size over |G|",
        share * size / t.points.x[2:].numel(),
    )  # fmt: skip
    yield case("PointingGame", "quantus", PointingGame()(t), plain("PointingGame"))
    yield case(
        "TopKLocalisation (k=20, abs=True)",
        "quantus",
        TopKLocalisation(k=20)(t),
        plain("TopKIntersection", k=20, abs=True),
    )
    yield case("LocalisationAUC (abs=True)", "quantus", LocalisationAUC()(t), plain("AUC", abs=True))
    peaks = torch.zeros_like(t.maps)
    peaks[:, :, 0, 0] = peaks[:, :, 2, 3] = 1
    tied = given(peaks)
    yield case(
        "PointingGame with two largest values, one inside", "quantus", PointingGame()(tied), plain("PointingGame", tied),
        "a hit if any of several largest values lies inside", np.ones(B),
    )  # fmt: skip
    order = np.argsort(-peaks.flatten(1).numpy(), axis=1)[:, :size]
    yield case(
        "RelevanceRank with ties", "quantus", RelevanceRank()(tied), plain("RelevanceRankAccuracy", tied),
        "ties are broken by their place in the array; here the tied features share the places that are left",
        np.take_along_axis(inside.numpy(), order, 1).mean(1),
    )  # fmt: skip


# -- OpenXAI: its formulas in our words --------------------------------------------------------------------------------


def openxais() -> Iterator[dict[str, Any]]:
    t = task()
    model, x, steps = t.score.model, t.points.x, near(t)
    rows = steps.flatten(0, 1)
    there = t.explain(t.score, Points(rows, torch.arange(B).repeat_interleave(S), t.points.ids))

    def norms(here: Tensor, there: Tensor) -> Tensor:
        """‖v − v'‖ / ‖v‖: its relative change."""
        here, there = here.flatten(1)[:, None].double(), there.flatten(1).unflatten(0, (B, S)).double()
        return (there - here).norm(dim=2) / here.norm(dim=2)

    maps = norms(t.maps, there)
    first = lambda v: torch.tanh(model.conv1(v)).detach()  # noqa: E731
    theirs = {
        "RIS": (maps / norms(x, rows)).amax(1),
        "RRS": (maps / norms(first(x), first(rows))).amax(1),
        "ROS": (maps / norms(model(x).detach(), model(rows).detach())).amax(1),
    }
    common = {"radius": RADIUS, "samples": S}
    for name, measure in (("RIS", RIS), ("ROS", ROS)):
        extra = {"relative": True} if name == "ROS" else {}
        said = ", ".join(["elementwise=False", *(f"{k}={v}" for k, v in extra.items())])
        yield case(f"{name} ({said})", "openxai", measure(**common, elementwise=False, **extra)(t), theirs[name])

    class Named(Net):
        """The same network, whose first activation is a module."""

        def __init__(self) -> None:
            super().__init__()
            self.act1 = nn.Tanh()

        def hidden(self, x: Tensor) -> Tensor:
            return self.conv2(self.act1(self.conv1(x)))

    yield case(
        "RRS (elementwise=False, layer: the first activation)",
        "openxai",
        RRS(**common, elementwise=False, layer="act1")(task(Named())),
        theirs["RRS"],
    )
    for name, measure, why in (
        ("RIS", RIS, "relative changes are ratios of norms; the paper's are norms of ratios, element by element"),
        ("RRS", RRS, "ratios of norms, and the first hidden layer; here the layer before the classifier"),
        ("ROS", ROS, "ratios of norms, and the outputs' change is relative to ‖h(x)‖; the paper's is not"),
    ):
        yield case(f"{name}, defaults", "openxai", measure(**common)(t), theirs[name], why)
    yield from openxai_agreement()


def openxai_agreement() -> Iterator[dict[str, Any]]:
    """One map against another, as OpenXAI compares a map with the coefficients of a linear model."""
    from scipy.stats import rankdata

    t = task()
    other = gradients(t.score.model, t.points.x, 1 - t.score.targets)
    for title, digits in (("", None), (" of maps with ties", 0)):
        pair = torch.cat([t.maps, other], 1) / t.maps.abs().mean()
        pair = pair if digits is None else pair.round()
        both = given(pair)
        k = 10
        found: dict[str, list[float]] = {name: [] for name in ("FA", "RA", "SA", "SRA", "RC", "PRA")}
        for a, b in pair.flatten(2).numpy():
            order = [np.argsort(-np.abs(v))[:k] for v in (a, b)]
            ranks = [rankdata(-np.abs(v), method="dense") for v in (a, b)]
            tops = [set(o.tolist()) for o in order]
            signed = [{(j, np.sign(v[j])) for j in o} for o, v in zip(order, (a, b), strict=True)]
            at = (order[0] == order[1]) & (ranks[0][order[0]] == ranks[1][order[1]])
            found["FA"].append(len(tops[0] & tops[1]) / k)
            found["SA"].append(len(signed[0] & signed[1]) / k)
            found["RA"].append(float(at.mean()))
            found["SRA"].append(float((at & (np.sign(a[order[0]]) == np.sign(b[order[1]]))).mean()))
            found["RC"].append(float(np.corrcoef(*ranks)[0, 1]))
            i, j = np.triu_indices(len(a), 1)
            found["PRA"].append(float(np.mean((ranks[0][i] < ranks[0][j]) == (ranks[1][i] < ranks[1][j]))))
        reasons = {
            "FA": "ties at the k-th place are broken by NumPy's sort; here they share what is left",
            "SA": "ties at the k-th place are broken by NumPy's sort; here they share what is left",
            "RA": "tied features count only where the sort happens to put them at the same place",
            "SRA": "tied features count only where the sort happens to put them at the same place",
            "RC": "Pearson's correlation of dense ranks, not of ranks that tied features share: not Spearman's ρ under ties",
            "PRA": "a pair tied in one map counts as agreeing or not by the order in which the two features are listed",
        }
        for name, measure in (
            ("FA", FeatureAgreement(k)), ("RA", RankAgreement(k)), ("SA", SignAgreement(k)), ("SRA", SignedRankAgreement(k)),
            ("RC", RankCorrelation()), ("PRA", PairwiseRankAgreement()),
        ):  # fmt: skip
            ours = measure.matrix(both)[:, 0, 1]
            yield case(f"{type(measure).__name__}{title}", "openxai", ours, found[name], reasons[name] if title else "")


if __name__ == "__main__":
    rows = cases()
    for row in rows:
        numbers_of = lambda v: v if isinstance(v, str) else np.round(v, 5)  # noqa: E731
        print(f"{'agrees ' if row['agrees'] else 'DIFFERS'} {row['library']:8} {row['measure']}")
        if not row["agrees"]:
            print(f"          ours {numbers_of(row['ours'])}\n          theirs {numbers_of(row['theirs'])}")
            print(f"          {row['reason'] or 'UNEXPLAINED'}")
    unexplained = sum(not row["agrees"] and not row["reason"] for row in rows)
    print(f"{sum(row['agrees'] for row in rows)} of {len(rows)} agree, {unexplained} unexplained")
    raise SystemExit(1 if unexplained else 0)
