"""Slow twins of the perturbation methods: one input, one mask at a time, from the definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as nnf
from nets import images
from twins import SEED, Row

from consilience.explainers.perturbation import FeatureAblation, Occlusion
from consilience.explainers.rise import RISE
from consilience.explainers.shapley import KernelSHAP, ShapleySampling
from consilience.explainers.surrogates import LIME, MAPLE
from consilience.features.images import Patches, Segments
from consilience.perturb.coalitions import Halves, Kernel
from consilience.perturb.kernel_design import design_weights
from consilience.statistics.keys import Key
from consilience.surrogates.lime_maple import Maple

BASE = 0.3
PATCHES = Patches(4)  # 2 × 2 of them on 8 × 8 pixels
LABELS = Segments(torch.tensor([0, 1, 1, 2, 3, 3, 4, 5]).repeat(8, 1))  # six vertical stripes
TRAINING = images(40, seed=5)


def parts(features, x):
    """The masks of the features that the input has, (A, C, H, W) bool."""
    axes = features.shape(x.shape)
    ones = torch.eye(math.prod(axes), dtype=torch.bool).unflatten(1, axes)
    found = features.mask(ones, torch.zeros(len(ones), dtype=torch.int64), x.shape)
    return [mask for mask in found if mask.any()]


def without(model, x, masks, t, base=BASE):
    """The score without the elements in any of the masks."""
    gone = torch.stack([torch.zeros_like(x, dtype=torch.bool), *masks]).any(0)
    base = torch.as_tensor(base, dtype=x.dtype).expand_as(x)
    return model(torch.where(gone, base, x)[None])[0, t].detach()


def spread(values, masks):
    return sum(float(value) * mask.double() / mask.sum() for value, mask in zip(values, masks, strict=True))


def words(stream, i, sample, count):
    return Key(SEED, f"explainer/{stream}").bits(torch.tensor([i]), sample, count)[0]


def uniform(stream, i, sample, *shape):
    return Key(SEED, f"explainer/{stream}").uniform(torch.tensor([i]), sample, shape)[0].double()


def place(i, count):
    """Where each feature of input i is in its own order."""
    return np.argsort(np.argsort(words("coalitions/order", i, 0, count).numpy(), kind="stable"))


def listed(design, i, count):
    """The features that each coalition of a design takes from input i, (n, A)."""
    numbers = torch.arange(design.count(count, 1))
    return design.gone(Key(SEED, "explainer/coalitions"), count, 1, numbers).numpy()[:, place(i, count)]


def ablation(e, model, x, i, t):
    masks = parts(e.features, x)
    clean = model(x[None])[0, t].detach()
    return spread([clean - without(model, x, [mask], t) for mask in masks], masks)


def occlusion(e, model, x, i, t):
    """Windows of 2 × 3 patches of 2 pixels, strides 1 and 2, on a grid of 4 × 4 patches: the last one ends with the image."""
    total, count = torch.zeros_like(x), torch.zeros_like(x)
    clean = model(x[None])[0, t].detach()
    for top in (0, 1, 2):
        for left in (0, 1):
            window = torch.zeros_like(x, dtype=torch.bool)
            window[:, 2 * top : 2 * top + 4, 2 * left : 2 * left + 6] = True
            total += window.double() * (clean - without(model, x, [window], t)) / window.sum()
            count += window
    return total / count


def rise(e, model, x, i, t):
    """The mean score, and the covariance of scores and masks around the masks' known mean."""
    scores, masks, cell = [], [], -(-8 // e.grid)
    side = (e.grid + 1) * cell
    for s in range(e.n_samples):
        cells = (uniform("rise/cells", i, s, e.grid, e.grid) < e.keep).double()
        top, left = (uniform("rise/shift", i, s, 2) * cell).floor().long().tolist()
        big = nnf.interpolate(cells[None, None], size=(side, side), mode="bilinear", align_corners=False)[0]
        masks.append(big[:, top : top + 8, left : left + 8])
        scores.append(model((x * masks[-1] + BASE * (1 - masks[-1]))[None])[0, t].detach())
    mean, total = sum(scores) / e.n_samples, torch.zeros_like(x)
    for score, mask in zip(scores, masks, strict=True):
        total += (score - mean) * (mask - e.keep)
    return (mean + total / (e.n_samples - 1) / e.keep) / len(x)


def lime(e, model, x, i, t):
    from sklearn.linear_model import Lasso, Ridge

    masks = parts(e.features, x)
    there = 1.0 - listed(Halves(e.n_samples), i, len(masks))
    scores = [without(model, x, [m for m, z in zip(masks, row, strict=True) if not z], t).item() for row in there]
    distance = 1 - np.sqrt(there.mean(1))
    weights = np.sqrt(np.exp(-(distance**2) / e.kernel_width**2)) * e.n_samples / len(there)
    solver = Lasso(e.l1, tol=1e-12, max_iter=100000) if e.l1 else Ridge(e.ridge)
    return spread(solver.fit(there, scores, sample_weight=weights).coef_, masks)


def shapley(e, model, x, i, t):
    """The value by its definition, over all coalitions."""
    masks = parts(e.features, x)
    value = {}
    for number in range(2 ** len(masks)):
        value[number] = without(model, x, [m for a, m in enumerate(masks) if not number >> a & 1], t).item()
    found = []
    for a in range(len(masks)):
        total = 0.0
        for number in value:
            if not number >> a & 1:
                ways = math.factorial(number.bit_count()) * math.factorial(len(masks) - number.bit_count() - 1)
                total += ways / math.factorial(len(masks)) * (value[number | 1 << a] - value[number])
        found.append(total)
    return spread(found, masks)


def kernel_shap(e, model, x, i, t):
    """Ten fits of single effects and of all effects of three and five features, each without a tenth of the pairs of each size.
    To the Shapley values of the fit comes what it leaves, in these pairs for all that it has not seen."""
    masks = parts(e.features, x)
    count = len(masks)
    taken = listed(Kernel(e.n_samples), i, count)
    scores = np.array([without(model, x, [m for m, z in zip(masks, row, strict=True) if z], t).item() for row in taken])
    signs, halves = 1.0 - 2 * taken[::2], (scores[::2] - scores[1::2]) / 2
    gone = taken[::2].sum(1)
    noise = 1 / (design_weights(count, e.n_samples).numpy()[::2] * (len(taken) - 2))
    sets, penalty = [[a] for a in range(count)], [0.0] * count
    for size, variance in ((3, 20.0), (5, 5.0)):
        larger = list(itertools.combinations(range(count), size))
        sets += [list(members) for members in larger]
        penalty += [len(larger) / variance] * len(larger)
    columns = np.stack([signs[:, members].prod(1) for members in sets], 1)
    fold = np.array([-1] + [np.sum(gone[1:row] == gone[row]) % 10 for row in range(1, len(gone))])

    found = np.zeros(count)
    for out in range(10):
        kept = np.flatnonzero(fold != out)[1:]
        gram = columns[kept].T @ (columns[kept] / noise[kept - 1, None]) + np.diag(penalty)
        # The pair of all and none is a constraint, with a multiplier.
        system = np.block([[gram, columns[:1].T], [columns[:1], np.zeros((1, 1))]])
        effects = np.linalg.solve(system, [*(columns[kept].T @ (halves[kept] / noise[kept - 1])), halves[0]])[:-1]
        for effect, members in zip(effects, sets, strict=True):
            found[members] += 2 * effect / len(members) / 10
        left = halves - columns @ effects
        for row in range(1, len(gone)):
            size = gone[row]
            pairs = math.comb(count, size) / (2 if 2 * size == count else 1)
            drawn, held = np.sum(gone == size), np.sum((gone == size) & (fold == out))
            shares = np.where(signs[row] > 0, 1 / (count - size), -1 / size) * 2 / math.comb(count, size)
            times = pairs * (1 - (drawn - held) / pairs) / drawn if fold[row] == out else 1 / 10
            found += shares * left[row] * times
    return spread(found, masks)


def shapley_sampling(e, model, x, i, t):
    masks = parts(e.features, x)
    found = np.zeros(len(masks))
    mine = place(i, len(masks))
    for number in range(e.n_samples):
        key = Key(SEED, "explainer/coalitions/orders")
        drawn = key.bits(torch.tensor([0]), number // 2, len(masks))[0].numpy()
        canonical = np.argsort(drawn, kind="stable")[:: -1 if number % 2 else 1]
        order = [int(np.flatnonzero(mine == a)[0]) for a in canonical]
        for step, a in enumerate(order):
            before, after = [masks[b] for b in order[:step]], [masks[b] for b in order[: step + 1]]
            found[a] += (without(model, x, before, t) - without(model, x, after, t)).item() / e.n_samples
    return spread(found, masks)


def maple(e, model, x, i, t):
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.linear_model import Ridge

    s = e.forest
    rows, values = TRAINING.flatten(1).numpy(), model(TRAINING)[:, t].detach().numpy()
    forest = RandomForestRegressor(
        s.trees,
        min_samples_leaf=s.leaf,
        max_features=s.max_features,
        random_state=Key(SEED, "explainer/maple").words[0],
    ).fit(rows, values)
    gain, weights = np.zeros(rows.shape[1]), np.zeros(len(rows))
    for one in forest.estimators_:
        tree, leaf = one.tree_, one.apply(rows)
        near = leaf == one.apply(x.flatten()[None].numpy())[0]
        weights += near / near.sum()
        left, right, n = tree.children_left[0], tree.children_right[0], tree.weighted_n_node_samples
        after = (n[left] * tree.impurity[left] + n[right] * tree.impurity[right]) / n[0]
        gain[tree.feature[0]] += tree.impurity[0] - after
    columns = np.argsort(-gain, kind="stable")[: s.columns]
    found = torch.zeros(x.numel(), dtype=torch.float64)
    found[columns] = torch.from_numpy(Ridge(s.penalty).fit(rows[:, columns], values, weights).coef_)
    return found.unflatten(0, x.shape)


TABLE = [
    Row(FeatureAblation(LABELS, BASE), ablation),
    Row(Occlusion((2, 3), (1, 2), Patches(2), BASE), occlusion),
    Row(RISE(9, grid=3, keep=0.4, baselines=BASE), rise),
    Row(LIME(30, PATCHES, BASE), lime),
    Row(LIME(30, LABELS, BASE, l1=0.01), lime, differentiable=False),
    Row(KernelSHAP(14, PATCHES, BASE), shapley),
    Row(KernelSHAP(26, LABELS, BASE), kernel_shap),
    Row(KernelSHAP(50, LABELS, BASE), kernel_shap),
    Row(ShapleySampling(5, LABELS, BASE), shapley_sampling),
    Row(ShapleySampling(5, PATCHES, BASE), shapley),
    Row(MAPLE(TRAINING, forest=Maple(trees=4, leaf=5, columns=3)), maple, differentiable=False),
]
