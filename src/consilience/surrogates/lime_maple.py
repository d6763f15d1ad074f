"""Local linear models of a score, for a batch at once: LIME's for tables and MAPLE's.

A model is g(x') = c₀ + c · x', in the units of the input: coefficients (N, d + 1) with the intercept first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, choose, need
from ..model.score import Score
from ..perturb.points import Points
from ..settings import Settings, setting
from ..statistics.keys import Key
from ..statistics.tensors import exact
from .linear_fits import moments, predict, ridge

PROBE = 16
"""Rows of the data at which a model's values are compared, to see whether it is still the same."""

ROOM = 2**23
"""Numbers of rows and weights that are made at once."""


# -- LIME for tables ---------------------------------------------------------------------------------------------------


def lime_tabular(
    score: Score,
    points: Points,
    data: Tensor | np.ndarray,
    key: Key,
    n_samples: int = 1000,
    penalty: float = 1.0,
    width: float | None = None,
    around: str = "mean",
) -> Tensor:
    """Ridge regression of the score on standardised Gaussian samples, weighted by exp(−‖z − z_x‖² / (2 width²)): (N, d + 1).

    The lime package's ``LimeTabularExplainer`` without discretisation (Ribeiro et al. 2016, arXiv 1602.04938). z = (x' − μ) / σ
    with the mean μ and the standard deviation σ of the columns of the data.

    Args:
        score: what is explained.
        points: x (N, *F).
        data: (n, *F), rows of the training set.
        key: of the samples.
        n_samples: so many for each input; the first is x itself.
        penalty: of the squared slopes of z.
        width: of the weights, in standard deviations; None: .75 √d, d the elements of an input.
        around: "mean", samples μ + σ N(0, I) wherever x is, as lime does by default; "x", samples x + σ N(0, I), which are
            where the weights are.

    Raises:
        InputError: data of another number of columns.
    """
    choose("around", around, ("mean", "x"))
    here = exact(points.x).flatten(1)
    table = exact(torch.as_tensor(data)).to(here.device).flatten(1)
    owner = points.owner.to(here.device)
    ids = points.ids.to(here.device)
    if table.shape[1] != here.shape[1]:
        raise InputError(f"data: rows of {table.shape[1]} columns for inputs of {here.shape[1]}")
    mu = table.mean(0)
    sigma = table.std(0, correction=0)
    sigma = torch.where(sigma > 0, sigma, torch.ones_like(sigma))
    if width is None:
        width = 0.75 * here.shape[1] ** 0.5
    centre = (here - mu) / sigma
    if around == "mean":
        first, source = _sharing(owner, ids)
    else:
        first = source = torch.arange(len(here), device=here.device)
    # The first sample is x itself, with weight 1.
    clean = exact(score(points.x, points.owner))
    gram, cross = moments(centre[:, None], torch.ones_like(here[:, :1]), clean[:, None])
    step = max(1, 4 * score.batch.size(False) // len(first))
    for start in range(1, n_samples, step):
        count = min(start + step, n_samples) - start
        numbers = torch.arange(start, start + count, device=here.device).repeat(len(first))
        z = key.normal(ids[first].repeat_interleave(count), numbers, here.shape[1:]).to(here).unflatten(0, (-1, count))
        if around == "x":
            z = centre[first][:, None] + z
        rows = (mu + sigma * z).flatten(0, 1).unflatten(1, points.x.shape[1:]).to(points.x)
        row_owner = owner[first].repeat_interleave(count).to(rows.device)
        values = exact(score(rows, row_owner)).unflatten(0, (-1, count))[source]
        z = z[source]
        weights = torch.exp(-((z - centre[:, None]) ** 2).sum(2) / (2 * width**2))
        more_gram, more_cross = moments(z, weights, values)
        gram = gram + more_gram
        cross = cross + more_cross
    # From g(z) = c₀ + c · z with z = (x' − μ) / σ back to x': slopes c / σ, and an intercept without their part at μ.
    standard = ridge(gram, cross, penalty)
    slopes = standard[:, 1:] / sigma
    intercept = standard[:, :1] - (slopes * mu).sum(1, keepdim=True)
    return torch.cat([intercept, slopes], 1)


def _sharing(owner: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Which of N points need samples of their own, and which samples each point uses.

    Samples around the mean do not depend on where a point is: points of one input with the same id share theirs, so that they
    are evaluated once.

    Args:
        owner: (N,), the input of each point.
        ids: (N,), which name the draws.

    Returns:
        (M,) int64, the points for which samples are drawn; (N,) int64, each point's place among them.
    """
    points = torch.arange(len(owner), device=owner.device)
    names, source = torch.stack([owner, ids], 1).unique(dim=0, return_inverse=True)
    first = points.new_zeros(len(names)).scatter_reduce(0, source, points, "amin", include_self=False)
    return first, source


# -- MAPLE -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Maple(Settings):
    """MAPLE's settings (Plumb et al. 2018, arXiv 1807.02910): a random forest decides which rows are near, and a ridge
    regression on them is the local model.

    w_i(x) = Σ_trees 1[row i is in the leaf of x] / (rows in that leaf). Columns are ranked by the fall of impurity at the
    roots of the trees.

    Args:
        trees: of the forest.
        leaf: the least number of rows in a leaf.
        max_features: share of the columns among which a tree looks for a split.
        penalty: of the ridge regression.
        columns: the regression uses so many, the first ranked; None: as many as give the least error on the validation rows.
    """

    trees: int = setting(200, low=1)
    leaf: int = setting(10, low=1)
    max_features: float = setting(0.5, above=0, high=1)
    penalty: float = setting(0.001, above=0)
    columns: int | None = setting(None, low=1)

    def fit(self, rows: Tensor, values: Tensor, key: Key, validation: tuple[Tensor, Tensor] | None = None) -> Forest:
        """The forest of a function.

        Args:
            rows: (n, d) float64.
            values: (n,), the function at the rows.
            key: of the forest's draws.
            validation: rows and values that choose the number of columns; None: a quarter of the rows, drawn by the key,
                which then are in no leaf.

        Raises:
            MissingExtra: without scikit-learn.
        """
        if validation is None and self.columns is None:
            # Keyed, so that the same rows are held out on every device; their order in the leaves stays as it was.
            order = key.bits(torch.zeros(1), 0, len(rows))[0].argsort(stable=True).to(rows.device)
            quarter = len(rows) // 4
            held = order[:quarter]
            kept = order[quarter:].sort()[0]
            validation = rows[held], values[held]
            rows = rows[kept]
            values = values[kept]
        grown = need("sklearn.ensemble", "tables").RandomForestRegressor(
            self.trees, min_samples_leaf=self.leaf, max_features=self.max_features, random_state=key.words[0]
        )
        grown.fit(rows.cpu().numpy(), values.cpu().numpy())
        ranked = _root_gains(grown, rows.shape[1]).argsort(descending=True, stable=True).to(rows.device)
        leaves = torch.from_numpy(grown.apply(rows.cpu().numpy())).to(rows.device)
        forest = Forest(self, grown, rows, values, leaves, ranked)
        count = self.columns
        if count is None:
            assert validation is not None
            count = forest._best(*validation)
        return replace(forest, columns=ranked[:count])


def _root_gains(grown: Any, columns: int) -> Tensor:
    """(d,) float64: by how much the splits at the roots of scikit-learn's trees lower the impurity, by column."""
    # scikit-learn's own importances are of all splits; MAPLE's authors rank by those at the roots.
    gains = torch.zeros(columns, dtype=torch.float64)
    for estimator in grown.estimators_:
        tree = estimator.tree_
        if tree.feature[0] < 0:
            continue  # a tree of one leaf
        sides = [tree.children_left[0], tree.children_right[0]]
        weights = tree.weighted_n_node_samples[sides] / tree.weighted_n_node_samples[0]
        gains[tree.feature[0]] += tree.impurity[0] - (weights * tree.impurity[sides]).sum()
    return gains


@dataclass(frozen=True)
class Forest:
    """A fitted MAPLE.

    Args:
        settings: it was fitted with.
        grown: scikit-learn's forest.
        rows: (n, d) float64, those in its leaves.
        values: (n,), the function at them.
        leaves: (n, trees) int64, the leaf of each row in each tree.
        columns: those that the local models use, the best first.
    """

    settings: Maple
    grown: Any
    rows: Tensor
    values: Tensor
    leaves: Tensor
    columns: Tensor

    def weights(self, rows: Tensor) -> Tensor:
        """(N, n): how near the forest holds each of its rows to be to each of ``rows`` (N, d)."""
        leaves = torch.from_numpy(self.grown.apply(rows.cpu().numpy())).to(rows.device)
        near = torch.zeros(len(rows), len(self.rows), dtype=torch.float64, device=rows.device)
        for asked, known in zip(leaves.T, self.leaves.T, strict=True):  # tree by tree
            numbers = int(max(asked.max(), known.max())) + 1
            share = 1 / known.bincount(minlength=numbers).clamp(min=1).double()
            near += (asked[:, None] == known) * share[asked][:, None]
        return near

    def coefficients(self, rows: Tensor) -> Tensor:
        """The local models at ``rows`` (N, d): (N, d + 1), the intercept first; 0 for columns that are not used."""
        models = torch.cat([ridge(gram, cross, self.settings.penalty) for gram, cross in self._moments(rows)])
        slopes = models[:, 1:]
        full = models.new_zeros(len(rows), 1 + rows.shape[1])
        full[:, 1 + self.columns] = slopes
        # The models are of centred columns: their intercept is the value at the mean row.
        full[:, 0] = models[:, 0] - slopes @ self.rows.mean(0)[self.columns]
        return full

    def _moments(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Of the centred columns in use, for some rows at a time: (n, r + 1, r + 1) and (n, r + 1)."""
        table = (self.rows - self.rows.mean(0))[:, self.columns][None]
        for part in rows.split(max(1, ROOM // (table[0].numel() + len(self.rows)))):
            yield moments(table, self.weights(part), self.values[None])

    def _best(self, rows: Tensor, values: Tensor) -> int:
        """The number of columns with the least squared error at ``rows``; of equals, the least."""
        errors = torch.zeros(len(self.columns), dtype=torch.float64)
        centred = (rows - self.rows.mean(0))[:, self.columns]
        start = 0
        for gram, cross in self._moments(rows):
            part = slice(start, start + len(gram))
            for count in range(1, len(self.columns) + 1):
                # The moments of fewer columns are a corner of those of all.
                model = ridge(gram[:, : count + 1, : count + 1], cross[:, : count + 1], self.settings.penalty)
                error = predict(model, centred[part, :count]) - values[part]
                errors[count - 1] += (error**2).sum().cpu()
            start = part.stop
        return 1 + int(errors.argmin())


@dataclass(frozen=True)
class Learnt:
    """A forest and what it was learnt from.

    Args:
        model: whose score it is.
        data: the rows it was given.
        probe: the score at the first of them.
        forest: the forest.
    """

    model: Any
    data: Any
    probe: Tensor
    forest: Forest


Memory = dict[tuple, Learnt]
"""Forests by what they answer: the kind of score, its target and runner-up, the key and the settings."""


def maple(
    score: Score,
    points: Points,
    data: Tensor | np.ndarray,
    key: Key,
    settings: Maple = Maple(),
    validation: Tensor | np.ndarray | None = None,
    memory: Memory | None = None,
) -> Tensor:
    """MAPLE's local models of the score at the points: (N, d + 1), d the elements of an input.

    The forest learns the score's values on the data, once for each target among the points; inputs with keyword tensors of
    their own have no common score to learn.

    Args:
        score: what is explained.
        points: x (N, *F).
        data: (n, *F).
        key: of the forests' draws.
        settings: of MAPLE.
        validation: (m, *F), rows that choose the number of columns; None: a quarter of the data.
        memory: keeps the forests of the last model between calls; a model whose values at the first rows have changed is
            learnt anew. None: nothing is kept.

    Raises:
        InputError: data of another shape, fewer than 4 rows, or keyword tensors that follow their input.
    """
    if score._arguments.following:
        raise InputError(
            "kwargs: maple learns one function of the input, and tensors that follow their input make it many"
        )
    for name, rows in (("data", data), ("validation", validation)):
        if rows is not None and (rows.shape[1:] != points.x.shape[1:] or len(rows) < 4):
            raise InputError(
                f"{name}: at least 4 rows of shape {tuple(points.x.shape[1:])}, got an array of {tuple(rows.shape)}"
            )
    if memory is None:
        memory = {}
    x = exact(points.x).flatten(1)
    owner = points.owner.to(x.device)
    # Points ask for the same function if they have the same target and, for a margin, the same runner-up.
    runner_up = torch.zeros_like(score.targets)
    if score.kind == "margin":
        runner_up = score.runner_up
    functions = torch.stack([score.targets, runner_up], 1).to(x.device)[owner]
    coefficients = x.new_zeros(len(x), 1 + x.shape[1])
    for function in functions.unique(dim=0):
        asking = (functions == function).all(1)
        example = int(owner[asking][0])
        question = score.kind, *function.tolist(), key, settings
        forest = _forest(score, example, points.x, data, key, settings, validation, memory, question)
        coefficients[asking] = forest.coefficients(x[asking])
    return coefficients


def _forest(
    score: Score,
    example: int,
    like: Tensor,
    data: Any,
    key: Key,
    settings: Maple,
    validation: Any,
    memory: Memory,
    name: tuple,
) -> Forest:
    """The forest of the score as it is asked for input ``example``: the one remembered as ``name``, or a new one.

    A remembered one counts as long as it is the same model and data, and the model's values at the first rows are the same.
    """

    def ask(rows: Tensor) -> Tensor:
        return exact(score(rows, torch.full((len(rows),), example, device=rows.device)))

    table = torch.as_tensor(data).to(like)
    # A bound method is another object at each access; what it is bound to is not.
    model = getattr(score.model, "__self__", score.model)
    probe = ask(table[:PROBE])
    known = memory.get(name)
    if known and known.model is model and known.data is data:
        # Parameters may have changed in place. Rounding, of another batch size, does not count as a change.
        if torch.allclose(known.probe, probe, rtol=1e-4, atol=1e-6 * float(probe.abs().max())):
            return known.forest
    held_out = None
    if validation is not None:
        rows = torch.as_tensor(validation).to(like)
        held_out = exact(rows).flatten(1), ask(rows)
    forest = settings.fit(exact(table).flatten(1), ask(table), key, held_out)
    memory[name] = Learnt(model, data, probe, forest)
    return forest
