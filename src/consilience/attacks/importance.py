"""The attack on feature importance: the attribution changes, the predicted class does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..model.score import Score
from ..model.softplus import Softplus
from ..model.state import borrowed
from ..perturb.baseline import AnyBaseline, Baseline
from ..perturb.neighbourhoods import Path
from ..perturb.points import Points
from ..settings import Settings, setting
from ..statistics.keys import Key
from ..statistics.ranks import kendall
from .box import PGD, bounds_around
from .pgd import DEFAULT_KEY, margin, pgd, question

__all__ = ["Attacked", "ImportanceAttack", "ig_map", "pgd", "top_k", "top_k_intersection"]

KINDS = ("top_k", "mass_centre", "random")
"""What an attack changes of a map: its largest features, its centre of mass, or nothing on purpose (a control)."""


def ig_map(score: Score, points: Points, steps: int = 100, baseline: Any = None, graph: bool = False) -> Tensor:
    """s(x) = Σ_c |IG_c(x)|, scaled to sum to the number of pixels, (N, *F) → (N, H, W); not images: |IG|, (N, *F).

    IG_c is the integrated gradient of each row's own score, by Gauss–Legendre quadrature. A map of zeros stays one.

    Args:
        score: what is explained.
        points: x (N, *F).
        steps: points of the quadrature.
        baseline: where the path begins; None: zero, black.
        graph: differentiable in ``points.x``.
    """
    # A path is not drawn: the key is never used.
    cloud = Path(Baseline.of(baseline), steps).draw(points, range(steps), Key(0, "path"), steps)
    gradient = score.evaluate(cloud.points, cloud.owner, gradient=True, graph=graph).gradient
    assert gradient is not None and cloud.delta is not None
    # In float64: the map is compared by ranks, which rounding of a float32 sum would shuffle among small values.
    mean = torch.einsum("s,ns...->n...", cloud.weights.double(), cloud.split(gradient).double())
    way = cloud.split(cloud.delta)[:, 0].double()
    size = (mean * way).abs()
    if size.ndim == 4:
        size = size.sum(1)  # images: the channels of a pixel
    total = size.flatten(1).sum(1).view(-1, *[1] * (size.ndim - 1))
    return size * (size[0].numel() / torch.where(total == 0, 1.0, total))


def top_k(maps: Tensor, k: int) -> Tensor:
    """The ``k`` largest features of each of the ``maps`` (B, *A), as (B, *A) bool; of equal values the first counts.

    Raises:
        InputError: k is not between 1 and the number of features.
    """
    values = maps.detach().flatten(1)
    if not 1 <= k <= values.shape[1]:
        raise InputError(f"k: from 1 to the number of features, {values.shape[1]}; got {k}")
    # Stable, so that which of two equal values counts does not depend on the device.
    order = values.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, order, True).view(maps.shape)


def top_k_intersection(a: Tensor, b: Tensor, k: int) -> Tensor:
    """|top-k(a) ∩ top-k(b)| / k, (B,) float64.

    Args:
        a: (B, *A).
        b: (B, *A).
        k: number of features.

    Raises:
        InputError: maps of different shapes, or k beyond their features.

    >>> top_k_intersection(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[4.0, 1.0, 3.0, 5.0]]), 2)
    tensor([0.5000], dtype=torch.float64)
    """
    if a.shape != b.shape:
        raise InputError(f"a, b: maps of the same shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    return (top_k(a, k) & top_k(b, k)).flatten(1).sum(1).double() / k


@dataclass(frozen=True, eq=False)
class Attacked:
    """What an attack on B attributions came to in R restarts.

    Args:
        x: (R, B, *F), the inputs; where no step kept the label and lowered τ, the clean ones.
        maps: (R, B, *A), their attributions.
        original: (B, *A), those of the clean inputs.
        tau: (R, B), Kendall's τ-b of the two.
        found: (R, B) bool, whether any step kept the label and lowered τ.
    """

    x: Tensor
    maps: Tensor
    original: Tensor
    tau: Tensor
    found: Tensor


@dataclass(frozen=True)
class ImportanceAttack(Settings):
    """The iterative feature-importance attack (Ghorbani et al. 2019, *Interpretation of Neural Networks Is Fragile*, arXiv
    1710.10547) on :func:`ig_map`: change the attribution within the ball and keep the predicted class.

    z ← project(z + ``step_size`` · sign ∇_z D(s(z))), ``steps`` times from x + U(−ε, ε), in each of ``restarts``, with the
    map s of the :class:`Softplus` copy of the network. D is, by ``kind``,

    - "top_k": −Σ of s over the ``k`` largest pixels of the clean map;
    - "mass_centre": the squared distance of the map's centre of mass from the clean map's (images only);
    - "random": none; signs are drawn, the control.

    Of the iterates that the network itself gives the label ``y``, the one is kept whose map (the network's, not the
    copy's) has the smallest Kendall τ-b with the clean map. The restarts start at different points; in the authors' code
    they are identical.

    Cost for one input: at most restarts · steps · (points gradients + attack_points gradients of gradients).

    Args:
        eps: see :class:`~consilience.attacks.box.PGD`.
        steps: see :class:`~consilience.attacks.box.PGD`.
        step_size: see :class:`~consilience.attacks.box.PGD`.
        bounds: see :class:`~consilience.attacks.box.PGD`.
        k: how many pixels of the clean map are attacked.
        kind: D, see above.
        restarts: each from another random start.
        points: IG points of the maps that are compared.
        attack_points: of the copy's map; None: the same.
        beta: of the softplus.
        baseline: of IG; None is zero, black.

    Raises:
        InputError: settings out of their range.
    """

    eps: float = setting(low=0)
    steps: int = setting(low=1)
    step_size: float = setting(above=0)
    k: int = setting(low=1)
    kind: str = setting("top_k", choices=KINDS)
    restarts: int = setting(3, low=1)
    points: int = setting(100, low=1)
    attack_points: int | None = setting(None, low=1)
    beta: float = setting(10.0, above=0)
    bounds: tuple[float, float] = (0.0, 1.0)
    baseline: AnyBaseline = None

    def __call__(
        self,
        model: Any,
        x: Tensor,
        y: Tensor,
        *,
        key: Key = DEFAULT_KEY,
        ids: Any = None,
        max_batch: int = 1024,
    ) -> Attacked:
        """Attack the maps of some inputs, a few at a time.

        Args:
            model: as for :func:`~consilience.attacks.pgd.pgd`, like all others.
            x: (B, *F).
            y: (B,) int64, the classes.
            key: of the draws.
            ids: (B,), which name the draws; None: 0 … B − 1.
            max_batch: rows in flight at most; or one input's points, if these are more.

        Raises:
            InputError: x beyond the bounds, a model with one output, or k beyond the features.
        """
        score = question(model, x, y, ids, max_batch)
        bounds_around(x, self.bounds)  # before the first evaluation
        smooth = score
        if self.kind != "random":
            # The gradient of an integrated gradient needs second derivatives; those of ReLU are zero.
            smooth = score.using(Softplus(score.model, self.beta))  # type: ignore[arg-type]
        points = Points(x, torch.arange(len(x), device=x.device), score.ids, len(x))
        size = max(1, max_batch // max(self.points, self.attack_points or 0))
        with borrowed(score.model, freeze=True):
            parts = [self._attack(score, smooth, points[which], key) for which in torch.arange(len(x)).split(size)]
        return Attacked(
            x=torch.cat([part.x for part in parts], 1),
            maps=torch.cat([part.maps for part in parts], 1),
            original=torch.cat([part.original for part in parts]),
            tau=torch.cat([part.tau for part in parts], 1),
            found=torch.cat([part.found for part in parts], 1),
        )

    def _attack(self, score: Score, smooth: Score, points: Points, key: Key) -> Attacked:
        """All restarts for a few inputs."""
        original = ig_map(score, points, self.points, self.baseline)
        chosen = top_k(original, self.k)
        best = [self._restart(score, smooth, points, original, chosen, key, r) for r in range(self.restarts)]
        x, maps, tau = (torch.stack(part) for part in zip(*best, strict=True))
        return Attacked(x, maps, original, tau, tau < 1)

    def _restart(
        self,
        score: Score,
        smooth: Score,
        points: Points,
        original: Tensor,
        chosen: Tensor,
        key: Key,
        restart: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best iterate of one restart: x (N, *F), its map (N, *A) and τ (N,)."""
        # The clean input stands until an iterate is better: its map has τ = 1 with itself.
        x = points.x.clone()
        maps = original.clone()
        tau = torch.ones(len(x), dtype=torch.float64, device=x.device)
        target = score.targets[points.owner]
        box = PGD(self.eps, self.steps, self.step_size, bounds_around(points.x, self.bounds))
        z = box.start(points.x, key / "start", points.ids, restart)
        for step in range(self.steps):
            if self.kind == "random":
                number = restart * self.steps + step  # no two steps of any restarts share their signs
                direction = (key / "signs").uniform(points.ids, number, x.shape[1:], x.dtype) - 0.5
            else:
                direction = self._gradient(smooth, points, z, original, chosen)
            z = box.step(points.x, z, self.step_size, direction)
            kept = (margin(score.outputs_of(z, points.owner), target) > 0).nonzero()[:, 0]
            if not len(kept):
                continue
            # Maps are the costly part: only of iterates that the network still gives the label.
            moved = ig_map(score, Points(z, points.owner, points.ids)[kept], self.points, self.baseline)
            moved_tau = kendall(original[kept].flatten(1), moved.flatten(1))
            better = moved_tau < tau[kept]
            improved = kept[better]
            x[improved] = z[improved]
            maps[improved] = moved[better]
            tau[improved] = moved_tau[better]
        return x, maps, tau

    def _gradient(self, smooth: Score, points: Points, z: Tensor, original: Tensor, chosen: Tensor) -> Tensor:
        """∇_z D(s(z)), (N, *F)."""
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            moved = Points(z, points.owner, points.ids)
            maps = ig_map(smooth, moved, self.attack_points or self.points, self.baseline, graph=True)
            if self.kind == "top_k":
                distance = -(maps * chosen).sum()
            else:
                distance = (_centre(maps) - _centre(original)).square().sum()
            (gradient,) = torch.autograd.grad(distance, z)
        return gradient


def _centre(maps: Tensor) -> Tensor:
    """(N, H, W) → (N, 2): the centre of mass, in pixels."""
    if maps.ndim != 3:
        raise InputError(f"kind: 'mass_centre' needs images (N, C, H, W), got maps of shape {tuple(maps.shape[1:])}")
    rows = torch.arange(maps.shape[1], dtype=maps.dtype, device=maps.device)
    columns = torch.arange(maps.shape[2], dtype=maps.dtype, device=maps.device)
    mass = maps.sum((1, 2)).clamp(min=torch.finfo(maps.dtype).tiny)
    return torch.stack([maps.sum(2) @ rows, maps.sum(1) @ columns], 1) / mass[:, None]
