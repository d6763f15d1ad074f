"""Slow twins of the perturbation methods: one input, one mask at a time, from the definitions."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as nnf
from nets import images
from twins import SEED, Row

from consilience.explainers.perturbation import RISE, FeatureAblation, Occlusion
from consilience.explainers.shapley import KernelSHAP, ShapleySampling
from consilience.explainers.surrogates import LIME, MAPLE
from consilience.features.images import Patches, Segments
from consilience.perturb.kernel_design import design, design_weights
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
    total, cell = torch.zeros_like(x), -(-8 // e.grid)
    side = (e.grid + 1) * cell
    for s in range(e.n_samples):
        cells = (uniform("rise/cells", i, s, e.grid, e.grid) < e.keep).double()
        top, left = (uniform("rise/shift", i, s, 2) * cell).floor().long().tolist()
        big = nnf.interpolate(cells[None, None], size=(side, side), mode="bilinear", align_corners=False)[0]
        mask = big[:, top : top + 8, left : left + 8]
        total += model((x * mask + BASE * (1 - mask))[None])[0, t].detach() * mask
    return total / e.n_samples / e.keep / len(x)


def lime(e, model, x, i, t):
    from sklearn.linear_model import Lasso, Ridge

    masks = parts(e.features, x)
    there = np.ones((e.n_samples, len(masks)))
    for s in range(1, e.n_samples):
        there[s] = (words("lime", i, s, len(masks)) >= 2**31).numpy()
    scores = [without(model, x, [m for m, z in zip(masks, row, strict=True) if not z], t).item() for row in there]
    distance = 1 - np.sqrt(there.mean(1))
    weights = np.sqrt(np.exp(-(distance**2) / e.kernel_width**2))
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
    """Weighted least squares over the coalitions of its features, in the input's own order, with the last value eliminated."""
    masks = parts(e.features, x)
    full, empty = without(model, x, [], t), without(model, x, masks, t)
    place = np.argsort(np.argsort(words("kernel_shap/order", i, 0, len(masks)).numpy(), kind="stable"))
    taken = design(Key(SEED, "explainer/kernel_shap"), len(masks), e.n_samples).numpy()[:, place]
    root = np.sqrt(design_weights(len(masks), e.n_samples).numpy())
    scores = [(without(model, x, [m for m, z in zip(masks, row, strict=True) if z], t) - empty).item() for row in taken]
    there, whole = (~taken).astype(float), (full - empty).item()
    rows, response = there[:, :-1] - there[:, -1:], np.array(scores) - there[:, -1] * whole
    most = np.linalg.lstsq(rows * root[:, None], response * root, rcond=None)[0]
    return spread([*most, whole - most.sum()], masks)


def shapley_sampling(e, model, x, i, t):
    masks = parts(e.features, x)
    found = np.zeros(len(masks))
    for number in range(e.n_samples):
        drawn = words("shapley_sampling", i, number // 2, len(masks)).numpy()
        order = np.argsort(drawn, kind="stable")[:: -1 if number % 2 else 1]
        for place, a in enumerate(order):
            before, after = [masks[b] for b in order[:place]], [masks[b] for b in order[: place + 1]]
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
    Row(KernelSHAP(22, LABELS, BASE), kernel_shap),
    Row(ShapleySampling(5, PATCHES, BASE), shapley_sampling),
    Row(MAPLE(TRAINING, forest=Maple(trees=4, leaf=5, columns=3)), maple, differentiable=False),
]
