"""Shapley values of features: by KernelSHAP's regression and by sampling permutations.

The game is v(S) = f(x with the features outside S replaced by the baseline's values); φ_a is a's mean contribution to v over
all orders of joining. Σφ = f(x) − f(b) exactly, whatever the number of samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..card import Card
from ..errors import InputError
from ..features.base import Features
from ..perturb.coalitions import Coalitions, Permutations
from ..statistics.tensors import exact
from .base import Explainer, Need
from .perturbation import ABSENT, UNIT, absent, give, one, removed


@dataclass(frozen=True)
class KernelSHAP(Explainer):
    """φ = argmin Σ_S w_S (v(S) − v(∅) − φ · z_S)², subject to Σφ = f(x) − f(b) (Lundberg & Lee 2017, arXiv 1705.07874),
    shared evenly by each feature's elements.

    z_S: which features are there. With 2^A − 2 ≤ ``n_samples`` all coalitions are evaluated, with the kernel
    w = (A − 1) / (C(A, s) s (A − s)), and φ is the Shapley value. Otherwise sizes are drawn by the kernel's weight, w is 1,
    and each coalition comes with its complement (Covert & Lee 2021, arXiv 2012.01536): exact for games of single and pairwise
    effects. The constraint is eliminated, not approximated by large weights.

    Args:
        n_samples: coalitions; None: 2 A + 2048 as in the shap package, hence exact up to 11 features.
        features: what is taken away as one; default :func:`~consilience.features.images.coarse`; at most 1024.
        baselines: as for :class:`FeatureAblation`.

    Example:
        >>> import torch, consilience as cs
        >>> plain = dict(sign="keep", scale="none", objective="mean", fit_draws=2, fresh_draws=2)
        >>> cs.explain(lambda x: x.prod(1), torch.tensor([[2.0, 3.0]]), methods=[KernelSHAP()], **plain).attribution
        tensor([[3., 3.]])
    """

    n_samples: int | None = None
    features: Features | None = None
    baselines: Any = None

    name, kind, complete = "kernel_shap", "contribution", True
    card = Card(
        formula="argmin Σ_S w_S (v(S) − v(∅) − φ·z_S)², Σφ = f(x) − f(b); w = (A − 1) / (C(A, s) s (A − s))",
        source="Lundberg & Lee 2017, arXiv 1705.07874; pairs: Covert & Lee 2021, arXiv 2012.01536",
        perturbation=f"coalitions of the {UNIT}; what is outside is {ABSENT}",
        draws="n_samples coalitions (2 A + 2048), all if there are no more; else pairs, stream 'kernel_shap'",
        cost="min(2^A, n_samples + 2) forward, A features",
        differences=(
            (
                "shap's KernelExplainer",
                "averages v over the rows of a background set (here its mean row is the baseline; shapley_sampling averages "
                "over rows), keeps 10 features only (l1_reg='num_features(10)'), and lists small and large coalitions before "
                "it draws; with one background row and l1_reg=0 the same number where all coalitions are evaluated.",
            ),
            (
                "Captum's KernelShap",
                "draws single coalitions, 25 of them, and gives x and b the weight 10⁶ in place of the constraint, and takes "
                "the global random state.",
            ),
        ),
    )

    @property
    def need(self):
        return Need(self._where, None, self.name, gradient=False)

    @property
    def _where(self) -> Coalitions:
        return Coalitions(self.features, one(self.baselines), self.n_samples)

    def fold(self, state, cloud, values):
        score, has = exact(cloud.split(values.score)), exact(cloud.present)
        there = has[:, None] - removed(cloud)
        size, count = there.sum(2), has.sum(1, keepdim=True)
        full, empty = (size == count).double(), (size == 0).double()
        weights = (1 - full) * (1 - empty)
        if self._where.exact(cloud.points.shape[1:]):
            ways = torch.lgamma(count + 1) - torch.lgamma(size + 1) - torch.lgamma(count - size + 1)
            weights = weights * torch.exp(-ways) / (size * (count - size)).clamp(min=1)
        weighted = there * weights[..., None]
        sums = (
            weighted.mT @ there, (weighted.mT @ score[..., None])[..., 0],
            (full * score).sum(1), full.sum(1), (empty * score).sum(1), empty.sum(1),
        )  # fmt: skip
        return has, sums if state is None else tuple(a + b for a, b in zip(state[1], sums, strict=True))

    def finish(self, state, points):
        has, (gram, cross, full, fulls, empty, empties) = state
        nothing = empty / empties
        equal = has * ((full / fulls - nothing) / has.sum(1))[:, None]  # equal shares keep the constraint,
        across = (
            torch.diag_embed(has) - has[:, :, None] * has[:, None] / has.sum(1)[:, None, None]
        )  # and so does + across ψ
        rest = cross - gram.diagonal(dim1=1, dim2=2) * nothing[:, None] - (gram @ equal[..., None])[..., 0]
        inverse = torch.linalg.pinv(across @ gram @ across, rtol=1e-10, hermitian=True)
        found = equal + (across @ inverse @ across @ rest[..., None])[..., 0]
        return give(found, self.features, points)


@dataclass(frozen=True)
class ShapleySampling(Explainer):
    """φ_a = mean over random orders of v(those before a, and a) − v(those before a) (Castro et al. 2009,
    doi 10.1016/j.cor.2008.04.004; Štrumbelj & Kononenko 2014, doi 10.1007/s10115-013-0679-x), shared evenly by elements.

    Every second order is the one before it reversed (antithetic; Mitchell et al. 2022, arXiv 2104.12199): unbiased, and exact
    for games of single and pairwise effects with two orders. The differences telescope, so Σφ = f(x) − the mean of f(b).

    Args:
        n_samples: orders, 25 as in Captum; an even number leaves none without its reverse.
        features: what is taken away as one; default :func:`~consilience.features.images.coarse`.
        baselines: as for :class:`FeatureAblation`; each order has a row of ``Baseline.samples(data)``, as in Štrumbelj &
            Kononenko.
    """

    n_samples: int = 25
    features: Features | None = None
    baselines: Any = None

    name, kind, complete = "shapley_sampling", "contribution", True
    card = Card(
        formula="φ_a = mean over orders of v(before a, and a) − v(before a), divided among the elements of a",
        source="Castro, Gómez & Tejada 2009, doi 10.1016/j.cor.2008.04.004; Štrumbelj & Kononenko 2014, "
        "doi 10.1007/s10115-013-0679-x",
        perturbation=f"taking away one after the other of the {UNIT}, {ABSENT}",
        draws="n_samples orders, every second one reversed, stream 'shapley_sampling'",
        cost="1 + n_samples · A forward, A features",
        differences=(
            (
                "Captum's ShapleyValueSampling",
                "draws every order anew, gives every element of a feature its whole value, has baseline zero and takes the "
                "global random state: baselines='zero', and multiply by the feature's size; equal up to its noise.",
            ),
        ),
    )

    def __post_init__(self) -> None:
        if self.n_samples < 1:
            raise InputError(f"n_samples: at least 1 order, got {self.n_samples}")

    @property
    def need(self):
        return Need(
            Permutations(self.features, absent(self.baselines), self.n_samples), None, self.name, gradient=False
        )

    def fold(self, state, cloud, values):
        score, gone = exact(cloud.split(values.score)), removed(cloud)
        if state is None:  # begins with the point itself
            state = torch.zeros_like(gone[:, 0]), score[:, 0], gone[:, 0], score[:, 0]
        total, clean, gone_last, score_last = state
        numbers = torch.arange(cloud.samples.start, cloud.samples.stop, device=gone.device)
        anew = (numbers - 1) % gone.shape[2] == 0
        score_before = torch.where(anew, clean[:, None], torch.cat([score_last[:, None], score[:, :-1]], 1))
        gone_before = torch.cat([gone_last[:, None], gone[:, :-1]], 1) * ~anew[:, None]
        entered = gone - gone_before
        total = total + ((score_before - score)[:, None] @ entered)[:, 0]
        return total, clean, gone[:, -1], score[:, -1]

    def finish(self, state, points):
        return give(state[0] / self.n_samples, self.features, points)
