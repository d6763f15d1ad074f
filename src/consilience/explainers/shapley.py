"""Shapley values of features: by KernelSHAP's regression and by sampling permutations.

The game is v(S) = f(x with the features outside S replaced by the baseline's values); φ_a is a's mean contribution to v over
all orders of joining. Σφ = f(x) − f(b) exactly, whatever the number of samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..card import Card
from ..features.base import Features
from ..perturb.baseline import AnyBaseline
from ..perturb.coalitions import Coalitions, Permutations
from ..settings import setting
from ..statistics.tensors import exact
from .base import Explainer, Need
from .perturbation import ABSENT, UNIT, absent, give, removed


@dataclass(frozen=True)
class KernelSHAP(Explainer):
    """φ = argmin Σ_S w_S (v(S) − v(∅) − φ · z_S)², subject to Σφ = f(x) − f(b) (Lundberg & Lee 2017, arXiv 1705.07874),
    shared evenly by each feature's elements.

    z_S: which features are there. With 2^A − 2 ≤ ``n_samples`` all coalitions are evaluated, with the kernel
    w = (A − 1) / (C(A, s) s (A − s)), and φ is the Shapley value. Otherwise those of single features and their complements come
    first, then pairs, and so on while a size fits; of the other sizes some are drawn, none twice, with the kernel's weight
    shared among them. Each comes with its complement (Covert & Lee 2021, arXiv 2012.01536): exact for games of single and
    pairwise effects. The constraint is eliminated, not approximated by large weights.

    Against a data set v(S) is a mean over its rows: over all, where that takes at most 32 768 evaluations of an input, else
    over as many as that allows, at least 4, others for each pair. Σφ = f(x) − E f(b) over all rows in any case.

    Args:
        n_samples: coalitions; None: 2 A + 2048 as in the shap package, hence exact up to 11 features. At least 2 (A − 1).
        features: what is taken away as one; default :func:`~consilience.features.images.coarse`; at most 1024.
        baselines: as for :class:`FeatureAblation`.

    Raises:
        InputError: too few coalitions, or too many features.

    Example:
        >>> import torch, consilience as cs
        >>> plain = dict(sign="keep", scale="none", objective="mean", fit_draws=2, fresh_draws=2)
        >>> cs.explain(lambda x: x.prod(1), torch.tensor([[2.0, 3.0]]), methods=[KernelSHAP()], **plain).attribution
        tensor([[3., 3.]])
    """

    n_samples: int | None = setting(None, low=0)
    features: Features | None = None
    baselines: AnyBaseline = None

    name = "kernel_shap"
    kind = "contribution"
    complete = True
    card = Card(
        formula="argmin Σ_S w_S (v(S) − v(∅) − φ·z_S)², Σφ = f(x) − f(b); w = (A − 1) / (C(A, s) s (A − s))",
        source="Lundberg & Lee 2017, arXiv 1705.07874; pairs: Covert & Lee 2021, arXiv 2012.01536",
        perturbation=f"coalitions of the {UNIT}; what is outside is {ABSENT}",
        draws="n_samples coalitions (2 A + 2048), all if there are no more; else the smallest and the largest, and some of the "
        "others, in pairs with their complements, stream 'kernel_shap'",
        cost="min(2^A, n_samples + 2) forward, A features; with a data set times its rows, about 32 768 at most",
        differences=(
            (
                "shap's KernelExplainer",
                "weighs what it draws by how often it was drawn, where here each size keeps the kernel's weight; evaluates "
                "every coalition with every row of a background set, however many; keeps 10 features only where it sees fit "
                "(l1_reg). With l1_reg=0 the same number where all coalitions are evaluated, about the same error where not.",
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
        return Coalitions(self.features, absent(self.baselines), self.n_samples)

    def fold(self, state, cloud, values):
        """Sums of the regression's normal equations, and of the scores of the two coalitions that the constraint needs."""
        score = exact(cloud.split(values.score))
        has = exact(cloud.present)
        there = has[:, None] - removed(cloud)
        size = there.sum(2)
        full = (size == has.sum(1, keepdim=True)).double()
        empty = (size == 0).double()
        weights = self._where.weights(cloud.present, cloud.samples, cloud.points.shape[1:]).to(score.device)
        weighted = there * weights[..., None]
        gram = weighted.mT @ there
        cross = (weighted.mT @ score[..., None])[..., 0]
        sums = gram, cross, (full * score).sum(1), full.sum(1), (empty * score).sum(1), empty.sum(1)
        if state is None:
            return has, sums
        return has, tuple(before + more for before, more in zip(state[1], sums, strict=True))

    def finish(self, state, points):
        has, (gram, cross, full, fulls, empty, empties) = state
        owned = has.sum(1).clamp(min=1)
        nothing = empty / empties.clamp(min=1)
        # φ = equal + across ψ: equal shares keep the constraint Σφ = f(x) − v(∅), and so does what is added to them.
        equal = has * ((full / fulls - nothing) / owned)[:, None]
        across = torch.diag_embed(has) - has[:, :, None] * has[:, None] / owned[:, None, None]
        # Σ w z (v − v(∅) − z · equal); the diagonal of the Gram matrix is Σ w z.
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

    n_samples: int = setting(25, low=1)
    features: Features | None = None
    baselines: AnyBaseline = None

    name = "shapley_sampling"
    kind = "contribution"
    complete = True
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

    @property
    def need(self):
        return Need(self._where, None, self.name, gradient=False)

    @property
    def _where(self) -> Permutations:
        return Permutations(self.features, absent(self.baselines), self.n_samples)

    def fold(self, state, cloud, values):
        score = exact(cloud.split(values.score))
        gone = removed(cloud)
        if state is None:  # begins with the point itself
            state = torch.zeros_like(gone[:, 0]), score[:, 0], gone[:, 0], score[:, 0]
        total, clean, gone_last, score_last = state
        numbers = torch.arange(cloud.samples.start, cloud.samples.stop, device=gone.device)
        # Each order begins with the point itself, which is evaluated once.
        anew = (numbers - 1) % self._where.steps(cloud.points.shape[1:]) == 0
        score_before = torch.where(anew, clean[:, None], torch.cat([score_last[:, None], score[:, :-1]], 1))
        gone_before = torch.cat([gone_last[:, None], gone[:, :-1]], 1) * ~anew[:, None]
        entered = gone - gone_before
        total = total + ((score_before - score)[:, None] @ entered)[:, 0]
        return total, clean, gone[:, -1], score[:, -1]

    def finish(self, state, points):
        return give(state[0] / self.n_samples, self.features, points)
