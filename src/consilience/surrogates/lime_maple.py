"""Local linear models of a score, weighted, for a batch at once: LIME's for tables and MAPLE's.

A model is g(x') = c₀ + c · x', in the units of the input: coefficients (N, d + 1) with the intercept first. Everything is
solved from second moments, in float64, so that samples are folded and not kept.
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

PROBE = 16


# -- solvers -----------------------------------------------------------------------------------------------------------


def moments(rows: Tensor, weights: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Gram matrix Σ w z zᵀ (N, p + 1, p + 1) and Σ w z y (N, p + 1) of z = [1, row]; they add over samples.

    ``rows`` (N or 1, s, p), ``weights`` (N, s), ``values`` (N or 1, s)."""
    design = torch.cat([torch.ones_like(rows[..., :1]), rows], -1)
    weighted = design * weights[..., None]
    return weighted.mT @ design, (weighted.mT @ values[..., None])[..., 0]


def ridge(gram: Tensor, cross: Tensor, penalty: float) -> Tensor:
    """argmin Σ w (y − c₀ − c · row)² + penalty ‖c‖², (N, p + 1): the intercept is not penalised."""
    mean, covariance, with_y = _centred(gram, cross)
    eye = torch.eye(covariance.shape[-1], dtype=gram.dtype, device=gram.device)
    slopes = torch.linalg.solve(covariance + penalty * eye, with_y[..., None])[..., 0]
    return _with_intercept(mean, slopes, cross[..., 0] / gram[..., 0, 0])


def lasso(gram: Tensor, cross: Tensor, penalty: float, sweeps: int = 1000, tolerance: float = 1e-9) -> Tensor:
    """argmin Σ w (y − c₀ − c · row)² / (2 Σw) + penalty ‖c‖₁, (N, p + 1): scikit-learn's scaling.

    Cyclic coordinate descent on the Gram matrix, all inputs at once; an input rests when no coefficient has moved by more
    than ``tolerance`` of its largest in a sweep, so that others do not matter to it.
    """
    total = gram[..., 0, 0]
    mean, covariance, with_y = _centred(gram, cross)
    covariance, residual = covariance / total[..., None, None], with_y / total[..., None]
    square = covariance.diagonal(dim1=-2, dim2=-1)
    scale = torch.where(square > 0, 1 / square.clamp(min=1e-300), 0)
    slopes = torch.zeros_like(residual)
    moving = torch.ones_like(total)
    for _ in range(sweeps):
        before = slopes.clone()
        for j in range(slopes.shape[-1]):
            pull = residual[:, j] + square[:, j] * slopes[:, j]
            there = (pull.abs() - penalty).clamp(min=0) * pull.sign() * scale[:, j]
            change = (there - slopes[:, j]) * moving
            slopes[:, j] += change
            residual = residual - change[:, None] * covariance[:, j]
        change = (slopes - before).abs().amax(1)
        moving = moving * (change > tolerance * slopes.abs().amax(1))
        if not bool(moving.any()):
            break
    return _with_intercept(mean, slopes, cross[..., 0] / total)


def _centred(gram: Tensor, cross: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted mean of the rows (N, p), and the centred sums of squares (N, p, p) and of products with y (N, p)."""
    mean = gram[..., 0, 1:] / gram[..., :1, 0]
    covariance = gram[..., 1:, 1:] - mean[..., None] * gram[..., None, 0, 1:]
    return mean, covariance, cross[..., 1:] - mean * cross[..., :1]


def _with_intercept(mean: Tensor, slopes: Tensor, level: Tensor) -> Tensor:
    return torch.cat([(level - (mean * slopes).sum(-1))[..., None], slopes], -1)


def predict(coefficients: Tensor, rows: Tensor) -> Tensor:
    """g(row): (N, d + 1), (N, …, d) → (N, …)."""
    flat = rows.reshape(len(rows), -1, rows.shape[-1])
    return (coefficients[:, :1] + (flat @ coefficients[:, 1:, None])[..., 0]).reshape(rows.shape[:-1])


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

    The lime package's ``LimeTabularExplainer`` without discretisation (Ribeiro et al. 2016, arXiv 1602.04938). μ, σ: mean and
    standard deviation of the columns of ``data`` (n, *F); z = (x' − μ) / σ. ``around``: "mean", samples μ + σ N(0, I) wherever
    x is, as lime does by default, or "x", samples x + σ N(0, I), which are where the weights are. The first of ``n_samples``
    is x itself. ``width``: .75 √d by default. ``penalty`` acts on the slopes of z.
    """
    choose("around", around, ("mean", "x"))
    here = exact(points.x).flatten(1)
    table = exact(torch.as_tensor(data)).to(here.device).flatten(1)
    owner, ids = points.owner.to(here.device), points.ids.to(here.device)
    if table.shape[1] != here.shape[1]:
        raise InputError(f"data: rows of {table.shape[1]} columns for inputs of {here.shape[1]}")
    mu, sigma = table.mean(0), table.std(0, correction=0)
    sigma = torch.where(sigma > 0, sigma, torch.ones_like(sigma))
    width = 0.75 * here.shape[1] ** 0.5 if width is None else width
    centre = (here - mu) / sigma
    first = where = torch.arange(len(here), device=here.device)
    if around == "mean":  # points of one input share their samples: each is evaluated once
        names, group = torch.stack([owner, ids], 1).unique(dim=0, return_inverse=True)
        first, where = where.new_zeros(len(names)).scatter_reduce(0, group, where, "amin", include_self=False), group
    gram, cross = moments(centre[:, None], torch.ones_like(here[:, :1]), exact(score(points.x, points.owner))[:, None])
    step = max(1, 4 * score.batch.size(False) // len(first))
    for start in range(1, n_samples, step):
        s = min(start + step, n_samples) - start
        numbers = torch.arange(start, start + s, device=here.device).repeat(len(first))
        noise = key.normal(ids[first].repeat_interleave(s), numbers, here.shape[1:]).to(here).unflatten(0, (-1, s))
        z = noise if around == "mean" else centre[first][:, None] + noise
        rows = (mu + sigma * z).flatten(0, 1).unflatten(1, points.x.shape[1:]).to(points.x)
        values = exact(score(rows, owner[first].repeat_interleave(s).to(rows.device))).unflatten(0, (-1, s))
        z, values = z[where], values[where]
        weights = torch.exp(-((z - centre[:, None]) ** 2).sum(2) / (2 * width**2))
        more = moments(z, weights, values)
        gram, cross = gram + more[0], cross + more[1]
    standard = ridge(gram, cross, penalty)
    slopes = standard[:, 1:] / sigma
    return torch.cat([standard[:, :1] - (slopes * mu).sum(1, keepdim=True), slopes], 1)


# -- MAPLE -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Maple(Settings):
    """MAPLE's settings (Plumb et al. 2018, arXiv 1807.02910): a random forest says which rows are near, and a ridge
    regression on them is the local model.

    w_i(x) = Σ_trees 1[row i is in the leaf of x] / (rows in that leaf). Columns are ranked by the fall of impurity at the
    roots; as many are used as give the least error on the validation rows, or ``columns``.
    """

    trees: int = setting(200, low=1)
    leaf: int = setting(10, low=1)
    max_features: float = setting(0.5, above=0, high=1)
    penalty: float = setting(0.001, above=0)
    columns: int | None = setting(None, low=1)

    def fit(self, rows: Tensor, values: Tensor, key: Key, validation: tuple[Tensor, Tensor] | None = None) -> Forest:
        """The forest of ``values`` (n,) at ``rows`` (n, d). ``validation``: rows and values that choose the number of columns;
        None: a quarter of the rows, drawn by the key, which then are in no leaf."""
        if validation is None and self.columns is None:
            order = key.bits(torch.zeros(1), 0, len(rows))[0].argsort(stable=True).to(rows.device)
            held, kept = order[: len(rows) // 4], order[len(rows) // 4 :].sort()[0]
            rows, values, validation = rows[kept], values[kept], (rows[held], values[held])
        grown = need("sklearn.ensemble", "tables").RandomForestRegressor(
            self.trees, min_samples_leaf=self.leaf, max_features=self.max_features, random_state=key.words[0]
        )
        grown.fit(rows.cpu().numpy(), values.cpu().numpy())
        gain = torch.zeros(rows.shape[1], dtype=torch.float64)
        for tree in (one.tree_ for one in grown.estimators_):
            if tree.feature[0] >= 0:
                sides = [tree.children_left[0], tree.children_right[0]]
                weights = tree.weighted_n_node_samples[sides] / tree.weighted_n_node_samples[0]
                gain[tree.feature[0]] += tree.impurity[0] - (weights * tree.impurity[sides]).sum()
        ranked = gain.argsort(descending=True, stable=True).to(rows.device)
        leaves = torch.from_numpy(grown.apply(rows.cpu().numpy())).to(rows.device)
        forest = Forest(self, grown, rows, values, leaves, ranked)
        count = self.columns
        if count is None:
            assert validation is not None
            count = forest._best(*validation)
        return replace(forest, columns=ranked[:count])


@dataclass(frozen=True)
class Forest:
    """A fitted MAPLE: ``coefficients(rows)`` (N, d) → (N, d + 1)."""

    settings: Maple
    grown: Any
    rows: Tensor
    values: Tensor
    leaves: Tensor
    columns: Tensor

    def weights(self, rows: Tensor) -> Tensor:
        """(N, d) → (N, n): how near the forest holds each of its rows to be."""
        found = torch.from_numpy(self.grown.apply(rows.cpu().numpy())).to(rows.device)
        near = torch.zeros(len(rows), len(self.rows), dtype=torch.float64, device=rows.device)
        for mine, theirs in zip(found.T, self.leaves.T, strict=True):
            share = 1 / theirs.bincount(minlength=int(max(mine.max(), theirs.max())) + 1).clamp(min=1).double()
            near += (mine[:, None] == theirs) * share[mine][:, None]
        return near

    def coefficients(self, rows: Tensor) -> Tensor:
        """The local models at ``rows`` (N, d)."""
        found = torch.cat([ridge(gram, cross, self.settings.penalty) for gram, cross in self._moments(rows)])
        full = found.new_zeros(len(rows), 1 + rows.shape[1])
        full[:, 1 + self.columns] = found[:, 1:]
        full[:, 0] = found[:, 0] - found[:, 1:] @ self.rows.mean(0)[self.columns]
        return full

    def _moments(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Of the centred columns in use, for some rows at a time: (n, r + 1, r + 1) and (n, r + 1)."""
        table = (self.rows - self.rows.mean(0))[:, self.columns][None]
        for part in rows.split(max(1, 2**23 // (table[0].numel() + len(self.rows)))):
            yield moments(table, self.weights(part), self.values[None])

    def _best(self, rows: Tensor, values: Tensor) -> int:
        """The number of columns with the least squared error at ``rows``; of equals, the least."""
        errors = torch.zeros(len(self.columns), dtype=torch.float64)
        at = (rows - self.rows.mean(0))[:, self.columns]
        start = 0
        for gram, cross in self._moments(rows):
            stop = start + len(gram)
            for count in range(1, len(self.columns) + 1):
                found = ridge(gram[:, : count + 1, : count + 1], cross[:, : count + 1], self.settings.penalty)
                errors[count - 1] += ((predict(found, at[start:stop, :count]) - values[start:stop]) ** 2).sum().cpu()
            start = stop
        return 1 + int(errors.argmin())


@dataclass(frozen=True)
class Learnt:
    """A forest, the model and data it was learnt from, and the model's values at the first rows."""

    model: Any
    data: Any
    probe: Tensor
    forest: Forest


Memory = dict[tuple, Learnt]


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

    The forest learns the score's values on ``data`` (n, *F), once for each target among the points; inputs with keyword
    tensors of their own have no common score to learn. ``memory`` keeps the forests of the last model between calls; a model
    whose values at the first rows have changed is learnt anew.

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
    memory = {} if memory is None else memory
    at = exact(points.x).flatten(1)
    owner = points.owner.to(at.device)
    runner_up = score.runner_up if score.kind == "margin" else torch.zeros_like(score.targets)
    asked = torch.stack([score.targets, runner_up], 1).to(at.device)[owner]
    found = at.new_zeros(len(at), 1 + at.shape[1])
    for pair in asked.unique(dim=0):
        mine = (asked == pair).all(1)
        who = int(owner[mine][0])
        asks = score.kind, *pair.tolist(), key, settings
        forest = _forest(score, who, points.x, data, key, settings, validation, memory, asks)
        found[mine] = forest.coefficients(at[mine])
    return found


def _forest(
    score: Score,
    who: int,
    like: Tensor,
    data: Any,
    key: Key,
    settings: Maple,
    validation: Any,
    memory: Memory,
    name: tuple,
) -> Forest:
    """The forest of the score as it is asked for input ``who``: the one remembered, or a new one."""

    def ask(rows: Tensor) -> Tensor:
        return exact(score(rows, torch.full((len(rows),), who, device=rows.device)))

    table, model = torch.as_tensor(data).to(like), getattr(score.model, "__self__", score.model)
    probe, known = ask(table[:PROBE]), memory.get(name)
    if known and known.model is model and known.data is data:
        if torch.allclose(known.probe, probe, rtol=1e-4, atol=1e-6 * float(probe.abs().max())):
            return known.forest
    check = None
    if validation is not None:
        held = torch.as_tensor(validation).to(like)
        check = exact(held).flatten(1), ask(held)
    forest = settings.fit(exact(table).flatten(1), ask(table), key, check)
    memory[name] = Learnt(model, data, probe, forest)
    return forest
