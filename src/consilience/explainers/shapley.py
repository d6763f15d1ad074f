"""Shapley values of features: by KernelSHAP's regression and by sampling permutations.

The game is v(S) = f(x with the features outside S replaced by the baseline's values); φ_a is a's mean contribution to v over
all orders of joining. Σφ = f(x) − f(b) exactly, whatever the number of samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..card import Card
from ..errors import InputError
from ..features.base import Features
from ..perturb.baseline import AnyBaseline
from ..perturb.coalition_lists import orders
from ..perturb.coalitions import Kernel, Orders
from ..perturb.games import Game, few, unit
from ..settings import setting
from .base import Need
from .coalitional import STREAM, Coalitional
from .shapley_weights import enumerated, regressed
from .spread import ABSENT, UNIT, absent


@dataclass(frozen=True)
class KernelSHAP(Coalitional):
    """φ = argmin Σ_S w_S (v(S) − v(∅) − φ · z_S)², subject to Σφ = f(x) − f(b) (Lundberg & Lee 2017, arXiv 1705.07874),
    shared evenly by each feature's elements.

    z_S: which features are there. With 2^A − 2 ≤ ``n_samples`` all coalitions are evaluated, with the kernel
    w = (A − 1) / (C(A, s) s (A − s)), and φ is the Shapley value. Otherwise those of single features and their complements come
    first, then pairs, and so on while a size fits; of the other sizes some are drawn, none twice, with the kernel's weight
    shared among them. Each comes with its complement (Covert & Lee 2021, arXiv 2012.01536): exact for games of single and
    pairwise effects. From 4 A (of more than 20 features, 60 A) to 4096 coalitions, effects of three and of five features are
    estimated too, as far as these determine them (:mod:`consilience.surrogates.interactions`), and taken out: cross-fitted, so
    that the estimate is no more biased than the regression. In games where most is of more features than that (random numbers)
    the error is larger. The constraint is eliminated, not approximated by large weights.

    Against a data set v(S) is a mean over its rows: over all, where that takes at most 32 768 evaluations of an input, else
    over as many as that allows, at least 4, others for each pair. Σφ = f(x) − E f(b) over all rows in any case.

    Args:
        n_samples: coalitions; None: all of them up to 11 features, 2 A + 1200 up to 16, else 2 A + 2048 as in the shap package.
            At least 2 (A − 1).
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
        source="Lundberg & Lee 2017, arXiv 1705.07874; pairs: Covert & Lee 2021, arXiv 2012.01536; adjustment: Witter, Liu & "
        "Musco 2025, arXiv 2506.11849",
        perturbation=f"coalitions of the {UNIT}; what is outside is {ABSENT}",
        draws="all coalitions up to 11 features, or if n_samples (2 A + 1200, above 16 features 2 A + 2048) "
        "are no fewer; "
        "else the smallest and the largest, and some of the others, in pairs with their complements, stream 'coalitions'",
        cost="min(2^A, n_samples + 2) forward, A features; with a data set times its rows, about 32 768 at most; shared with "
        "methods of the same features and baseline",
        differences=(
            (
                "shap's KernelExplainer",
                "weighs what it draws by how often it was drawn, where here each size keeps the kernel's weight; evaluates "
                "every coalition with every row of a background set, however many; keeps 10 features only where it sees fit "
                "(l1_reg). With l1_reg=0 the same number where all coalitions are evaluated, a smaller error where not.",
            ),
            (
                "Captum's KernelShap",
                "draws single coalitions, 25 of them, and gives x and b the weight 10⁶ in place of the constraint, and takes "
                "the global random state.",
            ),
        ),
    )

    @property
    def design(self):
        return Kernel(self.n_samples)

    def check_features(self, shape):
        few(self.features, shape, self.name)
        most = unit(self.features, shape).largest(shape)
        if self.n_samples is not None and self.n_samples < min(2 * (most - 1), 2**most - 2):
            raise InputError(
                f"n_samples: {self.n_samples} coalitions do not determine {most} Shapley values; kernel_shap needs at least "
                f"{2 * (most - 1)} here, and several times as many for small errors: give more, or fewer features"
            )

    def values(self, score, key, features, rows):
        clean, nothing, others = score[:, :1], score[:, 1 : 1 + rows], score[:, 1 + rows :]
        means = others.unflatten(1, (-1, self.design.each(features, rows))).mean(2)
        games = torch.cat([clean, nothing.mean(1, keepdim=True), means], 1)
        return games @ regressed(key, features, self.n_samples).to(games).mT


@dataclass(frozen=True)
class ShapleySampling(Coalitional):
    """φ_a = mean over random orders of v(those before a, and a) − v(those before a) (Castro et al. 2009,
    doi 10.1016/j.cor.2008.04.004; Štrumbelj & Kononenko 2014, doi 10.1007/s10115-013-0679-x), shared evenly by elements.

    Every second order is the one before it reversed (antithetic; Mitchell et al. 2022, arXiv 2104.12199): unbiased, and exact
    for games of single and pairwise effects with two orders. The differences telescope, so Σφ = f(x) − the mean of f(b). Where
    the orders would go through as many coalitions as there are (25 orders: up to 7 features), all are evaluated instead, and
    the values are exact.

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
        draws="n_samples orders, every second one reversed, stream 'coalitions'",
        cost="at most min(2^A, 1 + n_samples · A) forward, A features; shared with methods of the same features and baseline",
        differences=(
            (
                "Captum's ShapleyValueSampling",
                "draws every order anew, gives every element of a feature its whole value, has baseline zero and takes the "
                "global random state: baselines='zero', and multiply by the feature's size; equal up to its noise.",
            ),
        ),
    )

    @property
    def design(self):
        return Orders(self.n_samples)

    @property
    def need(self):
        # An order has one row of the baseline, and these are what the values add up to.
        return Need(Game(absent(self.baselines), self.features), self.n_samples, STREAM, gradient=False)

    def values(self, score, key, features, rows):
        if self.design.all(features, rows):
            return score @ enumerated(features).to(score).mT
        # Each order begins with the point itself, which is evaluated once.
        along = score[:, 1:].unflatten(1, (self.n_samples, features))
        before = torch.cat([score[:, :1, None].expand(-1, self.n_samples, 1), along[..., :-1]], 2)
        left = orders(key, features, self.n_samples).to(score.device)
        total = torch.zeros_like(along[:, 0])
        return total.index_add(1, left.flatten(), (before - along).flatten(1)) / self.n_samples
