"""Randomisation tests: does a map depend on what the model has learned, and on the output it is asked about?

:mod:`..model.random_weights` draws the parameters. Submodules are taken in the order in which they are registered, which is
nearly always that of execution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..card import Card
from ..errors import InputError
from ..model.random_weights import randomised
from ..model.score import Score
from ..perturb.neighbourhoods import Gaussian, neighbours
from ..perturb.points import Points
from ..settings import setting
from ..statistics.tensors import exact
from ..task import Measure, Task
from .similarity import histogram_entropy, similarity
from .task_maps import flattened_for_order, nan_unless, present_in

ORDERS = ("top_down", "bottom_up", "independent")

SIMILARITIES = ("spearman", "pearson", "ssim")

# -- for the measures' cards -------------------------------------------------------------------------------------------

WEIGHTS = (
    "keyed draws, the same for all inputs: each submodule's reset_parameters; normal with the parameter's own mean and "
    "deviation where it has none; through weight norm, masks and other parametrisations, so that the weight in use is random"
)

QUANTUS = (
    "redraws with torch.manual_seed and reset_parameters only, so that parameters outside such modules stay trained"
)


# -- measures ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MPRT(Measure):
    """Model parameter randomisation test: the similarity of the map with that of the model whose parameters are drawn anew,
    layer by layer; the mean over layers (Adebayo et al. 2018, arXiv 1810.03292). :meth:`curve` gives each layer's.

    Args:
        order: "top_down" (cascading from the output, the paper's), "bottom_up" or "independent" (one layer at a time).
        similarity: "spearman", "pearson" or "ssim", of the maps as shown (with or without sign).
        steps: at most so many layers of the cascade are looked at, evenly spaced, the last always; None: all.
    """

    order: str = setting("top_down", choices=ORDERS)
    similarity: str = setting("spearman", choices=SIMILARITIES)
    steps: int | None = setting(None, low=1)

    name = "mprt"
    undefined = "the map is constant"
    card = Card(
        formula="mean over layers l of similarity(φ_f(x), φ_{f_l}(x)), f_l: the layers from the output down to l drawn anew",
        source="Adebayo et al. 2018, arXiv 1810.03292",
        better="lower",
        normalisation="free of the map's scale",
        perturbation=WEIGHTS,
        draws='one random model, stream "randomisation"',
        cost="`steps` explanations (by default one for each submodule with parameters), for all similarities together",
        differences=(
            (
                "quantus",
                f"MPRT: {QUANTUS}; return_average_correlation=True counts the trained model, of similarity 1, "
                "as one of the layers",
            ),
        ),
    )

    def curve(self, task: Task) -> Tensor:
        """The similarity after each layer, (B, R, L), in the order in which they are drawn anew.

        Args:
            task: what is judged.
        """
        return self._curves(task)[self.similarity]

    def __call__(self, task: Task) -> Tensor:
        return self.curve(task).mean(-1)

    def _curves(self, task: Task) -> dict[str, Tensor]:
        """The curves (B, R, L) of all similarities that fit the maps.

        Explanations cost far more than similarities, so a measure with another similarity must not explain again.
        """
        kinds = [kind for kind in SIMILARITIES if kind != "ssim" or task.maps.ndim == 4]
        if self.similarity not in kinds:
            raise InputError(
                f"similarity: 'ssim' is for maps on a grid (H, W), not of shape {tuple(task.maps.shape[2:])}; use 'spearman'"
            )
        return task.once(("mprt", type(self), *self._setting), lambda: self._compare(task, kinds))

    def _compare(self, task: Task, kinds: list[str]) -> dict[str, Tensor]:
        """Each similarity in ``kinds`` after each layer, (B, R, L)."""
        trained = self._maps(task, task.score, slice(None))
        wanted_entropies = _entropies(task)
        layers = []
        for model in randomised(task.score.model, self.order, task.stream("randomisation"), self.steps):
            random = _asking(task.score, model)
            similarities: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
            entropies: dict[int, list[Tensor]] = {bins: [] for bins in wanted_entropies}
            for part in _groups(task):
                maps = self._maps(task, random, part)
                present = present_in(task, part)
                for kind in kinds:
                    similarities[kind].append(similarity(kind, trained[part], maps, present))
                for bins in wanted_entropies:
                    entropies[bins].append(histogram_entropy(flattened_for_order(maps), bins, present))
            layers.append({kind: torch.cat(parts) for kind, parts in similarities.items()})
        if self.order != "independent":
            _check_changed(task, random)
        if self._ends_random:
            # Each submodule has a seed of its own, so the last model is the same from either end, and EfficientMPRT's.
            wanted_entropies.update({bins: torch.cat(parts) for bins, parts in entropies.items()})
        return {kind: torch.stack([layer[kind] for layer in layers], -1) for kind in kinds}

    @property
    def _setting(self) -> tuple:
        """The fields on which the curves depend."""
        return self.order, self.steps

    @property
    def _ends_random(self) -> bool:
        """Whether the last maps are the random model's at the inputs themselves, which EfficientMPRT wants as well."""
        return self.order != "independent"

    def _maps(self, task: Task, score: Score, which: slice) -> Tensor:
        """(n, R, *A): what is compared, of the inputs ``which``."""
        if score is task.score:
            return task.maps[which]
        return task.explain(score, task.points[which])


@dataclass(frozen=True)
class SmoothMPRT(MPRT):
    """MPRT of maps that are averaged over noisy copies of the input, so that noise in the maps does not pass for an effect of
    the parameters (Hedström et al. 2024, arXiv 2401.06465; bottom-up).

    Args:
        order: as for :class:`MPRT`.
        similarity: as for :class:`MPRT`.
        steps: as for :class:`MPRT`.
        samples: copies.
        sigma: of the Gaussian noise, as a share of the input's range max x − min x.
    """

    order: str = setting("bottom_up", choices=ORDERS)
    samples: int = setting(10, low=1)
    sigma: float = setting(0.1, low=0)

    name = "smooth_mprt"
    card = Card(
        formula="mean over layers l of similarity(φ̄_f(x), φ̄_{f_l}(x)), φ̄ = mean_s φ(x + ε_s), ε_s ~ N(0, (σ · range x)²)",
        source="Hedström et al. 2024, arXiv 2401.06465",
        better="lower",
        normalisation="free of the mean map's scale; each map has its own scale before the mean",
        perturbation=WEIGHTS + "; x + ε, the same noise for all models",
        draws='one random model, stream "randomisation"; `samples` of noise, stream "smoothing"',
        cost="`samples` × (1 + `steps`) explanations, for all similarities together",
        differences=(
            ("quantus", f"SmoothMPRT: {QUANTUS}; an a_batch that is given is compared unsmoothed; samples=50"),
        ),
    )

    @property
    def _setting(self) -> tuple:
        return self.order, self.steps, self.samples, self.sigma

    @property
    def _ends_random(self) -> bool:
        return False

    def _maps(self, task: Task, score: Score, which: slice) -> Tensor:
        points = task.points[which]
        return torch.cat([self._smooth(task, score, points[part]) for part in _groups(task, len(points))])

    def _smooth(self, task: Task, score: Score, points: Points) -> Tensor:
        """(n, R, *A): the mean map over the noisy copies."""
        where = Gaussian(self.sigma, relative=True)
        key = task.stream("smoothing")
        total = torch.zeros(())
        start = 0
        while start < self.samples:
            # The batch may have shrunk since the last chunk, when memory ran out: ask each time.
            step = max(1, score.batch.size(True) // len(points))
            part = range(start, min(start + step, self.samples))
            maps = exact(task.explain(score, neighbours(where, points, part, key, self.samples)))
            total = maps.unflatten(0, (len(points), -1)).sum(1) + total.to(maps)
            start = part.stop
        return total / self.samples


@dataclass(frozen=True)
class EfficientMPRT(Measure):
    """(H(φ_f̃) − H(φ_f)) / H(φ_f): how much more complex the map gets when all parameters are drawn anew.

    H is the entropy of the histogram of its values (Hedström et al. 2024, arXiv 2401.06465; 100 bins). It takes one
    explanation, where :class:`MPRT` takes one per layer.

    Args:
        bins: of the histogram.
    """

    bins: int = setting(100, low=2, high=10**6)

    name = "efficient_mprt"
    undefined = "the map is constant"
    card = Card(
        formula="(H(φ_f̃(x)) − H(φ_f(x))) / H(φ_f(x)), H: entropy of the histogram of values, `bins` bins from least to largest",
        source="Hedström et al. 2024, arXiv 2401.06465",
        better="higher",
        normalisation="free of the map's scale and shift",
        perturbation=WEIGHTS,
        draws='one random model, stream "randomisation"',
        cost="1 explanation, none after mprt",
        differences=(("quantus", f"EfficientMPRT: {QUANTUS}; else this number"),),
    )

    def prepare(self, task: Task) -> None:
        _entropies(task).setdefault(self.bins, None)

    def __call__(self, task: Task) -> Tensor:
        def entropy(maps: Tensor, which: slice) -> Tensor:
            return histogram_entropy(flattened_for_order(maps), self.bins, present_in(task, which))

        before = torch.cat([entropy(task.maps[part], part) for part in _groups(task)])
        after = _entropies(task).get(self.bins)
        if after is None:
            (model,) = randomised(task.score.model, "top_down", task.stream("randomisation"), steps=1)
            score = _asking(task.score, model)
            _check_changed(task, score)
            after = torch.cat([entropy(task.explain(score, task.points[part]), part) for part in _groups(task)])
        return (after - before) / nan_unless(before > 0, before)


@dataclass(frozen=True)
class RandomLogit(Measure):
    """The similarity of the map with that of another output, drawn at random.

    A map that is the same for every class explains none (Sixt, Granz & Landgraf 2020, arXiv 1912.09818).

    Args:
        similarity: "spearman", "pearson" or "ssim", of the maps as shown (with or without sign).
        samples: so many other outputs are drawn, and the mean is taken.
    """

    similarity: str = setting("spearman", choices=SIMILARITIES)
    samples: int = setting(1, low=1)

    name = "random_logit"
    undefined = "the map is constant"
    card = Card(
        formula="mean_s similarity(φ_target(x), φ_{class s}(x)), class s ≠ target",
        source="Sixt, Granz & Landgraf 2020, arXiv 1912.09818, with similarity='ssim'",
        better="lower",
        normalisation="free of the map's scale",
        perturbation="the output asked about",
        draws='`samples` other outputs for each input, stream "random_logit"',
        cost="`samples` explanations",
        differences=(
            (
                "quantus",
                "RandomLogit draws among num_classes=1000 outputs, whatever the model has; its default SSIM "
                "flattens the maps and compares windows of 7 consecutive values",
            ),
        ),
    )

    def __call__(self, task: Task) -> Tensor:
        classes = task.score.outputs.shape[1]
        if classes < 2:
            raise InputError("model: the random-logit test needs at least two outputs")
        return torch.stack([self._similarity(task, sample) for sample in range(self.samples)]).mean(0)

    def _similarity(self, task: Task, sample: int) -> Tensor:
        """(B, R): the similarity with the map of the ``sample``-th other output."""
        score = task.score
        points = task.points
        classes = score.outputs.shape[1]
        drawn = (task.stream("random_logit").uniform(points.ids, sample, ()) * (classes - 1)).long()
        drawn = drawn.clamp(max=classes - 2)  # a number just below 1 may round up to it
        targets = score.targets.clone()
        # One of classes − 1 numbers, of which those from the target on are moved up by one: never the target.
        targets[points.owner] = drawn + (drawn >= targets[points.owner])
        other = score.towards(targets)
        parts = []
        for part in _groups(task):
            maps = task.explain(other, points[part])
            parts.append(similarity(self.similarity, task.maps[part], maps, present_in(task, part)))
        return torch.cat(parts)


def _entropies(task: Task) -> dict[int, Tensor | None]:
    """Number of bins → entropies (B, R) of the random model's maps; None where they are wanted and not known yet."""
    return task.once("entropies of the random model", dict)


def _asking(score: Score, model: nn.Module) -> Score:
    """The same question to a model with other parameters; class activation maps read the layers found in the trained one."""
    other = score.using(model)
    other._layers = dict(score._layers)
    return other


def _check_changed(task: Task, random: Score) -> None:
    """Raise InputError where the random model computes what the trained one does: its weights are not parameters."""
    first = task.points[slice(0, 4)]
    outputs = random.outputs_of(first.x, first.owner)
    if torch.equal(outputs, task.score.outputs_of(first.x, first.owner)):
        raise InputError(
            "model: drawing all its parameters anew changes no output, so the test says nothing; does it keep its weights in "
            "buffers, constants or another module?"
        )


def _groups(task: Task, count: int | None = None) -> Iterator[slice]:
    """The inputs, or ``count`` points, in groups of as many as may be explained at once."""
    if count is None:
        count = len(task.points)
    start = 0
    while start < count:
        part = slice(start, start + task.score.batch.size(True))
        yield part
        start = part.stop
