"""The table of training objectives, each with its slow twin: one input and one point at a time, from the definitions.

A twin is (model, x (*F), y, id, step) → the task loss and the part of one input, either of which may be None.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from nets import images

from consilience import AverageSensitivity, Infidelity, train
from consilience.explainers import InputXGradient, Saliency
from consilience.features.images import Patches, Pixels
from consilience.statistics.keys import Key, fold

IDS = torch.tensor([4, 11, 7])
X, Y = images(3, seed=5), torch.tensor([2, 0, 3])
BOX = {"eps": 0.3, "steps": 3, "step_size": 0.13, "bounds": (-1.5, 1.5)}
BACKGROUND = images(5, seed=8)


def ce(model, x, y):
    return nnf.cross_entropy(model(x[None]), y[None])


def slope(f, x):
    x = x if x.requires_grad else x.detach().requires_grad_()
    return torch.autograd.grad(f(x), x, create_graph=True)[0]


def draw(kind, stream, i, sample, shape):
    return getattr(Key(0, f"train/{stream}"), kind)(i[None], sample, shape)[0].double()


def climb(x, i, step, quantity):
    project = lambda z: z.clamp(x - 0.3, x + 0.3).clamp(-1.5, 1.5)  # noqa: E731
    z = project(x + 0.3 * (2 * draw("uniform", "attack", i, step, x.shape) - 1))
    for _ in range(3):
        leaf = z.detach().requires_grad_()
        z = project(z + 0.13 * torch.autograd.grad(quantity(leaf), leaf)[0].sign()).detach()
    return z


def integral(f, start, end, m):
    total = 0
    for k in range(1, m + 1):
        total = total + slope(f, start + k / m * (end - start)) / m
    return (end - start) * total


def natural(model, x, y, i, step):
    return ce(model, x, y), None


def madry(model, x, y, i, step):
    return ce(model, climb(x, i, step, lambda z: ce(model, z, y)), y), None


def ig_norm(model, x, y, i, step):
    size = lambda z, m: integral(lambda p: ce(model, p, y), x, z, m).abs().sum()  # noqa: E731
    near = climb(x, i, step, lambda z: size(z, 3))
    return ce(model, x, y), size(near, 5)


def ig_sum_norm(model, x, y, i, step):
    size = lambda z, m: integral(lambda p: ce(model, p, y), x, z, m).abs().sum()  # noqa: E731
    near = climb(x, i, step, lambda z: ce(model, z, y) + 0.7 * size(z, 3))
    return ce(model, near, y), size(near, 5)


def least_squares(rows, values):
    """Mean squared residual of the best linear fit, by the normal equations of the centred points."""
    rows, values = rows - rows.mean(0), values - values.mean(0)
    fit = rows @ torch.linalg.solve(rows.T @ rows, rows.T @ values)
    return ((values - fit) ** 2).mean()


def fidelity(model, x, y, i, step):
    n = 200
    rows = torch.stack(
        [x + 0.5 * draw("normal", "fidelity", i, step * n + s, (x.numel(),)).view_as(x) for s in range(n)]
    )
    return None, least_squares(rows.flatten(1), model(rows))


def fidelity_1d(model, x, y, i, step):
    j = int(draw("uniform", "coordinate", 0 * i, step, ()) * x.numel())
    z = torch.stack([draw("normal", "fidelity", i, step * 20 + s, (1,)) for s in range(20)])
    rows = torch.stack([(x.flatten() + 0.5 * s * torch.eye(x.numel())[j]).view_as(x) for s in z])
    return None, least_squares(z, model(rows))


def stability(model, x, y, i, step):
    total = 0
    for s in range(2):
        near = x + 0.2 * (2 * draw("uniform", "stability", i, step * 2 + s, x.shape) - 1)
        total = total + ((model(x[None]) - model(near[None])) ** 2).sum() / 2
    return None, total


def logit(model, y):
    return lambda p: model(p[None])[0, y]


def input_gradient(model, x, y, i, step):
    return None, slope(lambda p: ce(model, p, y), x).norm() ** 2


def apart(a, b):
    return 1 - (a * b).sum() / (a.norm() * b.norm())


def alignment(model, x, y, i, step):
    here = slope(logit(model, y), x).detach()
    there = slope(logit(model, y), x + 0.2 * (2 * draw("uniform", "alignment", i, step, x.shape) - 1))
    return None, 2 * ((here - there) ** 2).sum() + 3 * apart(here, there) / 2


def ig_cosine(model, x, y, i, step):
    near = climb(x, i, step, lambda z: ce(model, z, y))
    zero = torch.zeros_like(x)
    return None, apart(*(integral(logit(model, y), zero, end, 4) for end in (x, near)))


def expected(model, x, y, i, step):
    total = 0
    for s in range(step * 2, step * 2 + 2):
        base = BACKGROUND[int(5 * draw("uniform", "expected/background", i, s, ()))]
        alpha = draw("uniform", "expected/alpha", i, s, ())
        total = total + (x - base) * slope(logit(model, y), base + alpha * (x - base)) / 2
    return total


def total_variation(model, x, y, i, step):
    phi = expected(model, x, y, i, step)
    pairs = [(phi[:, :-1], phi[:, 1:]), (phi[:, :, :-1], phi[:, :, 1:])]
    return None, sum((a - b).abs().sum() for a, b in pairs)


def gini(model, x, y, ids, step):
    """Of the whole batch."""
    phi = torch.stack([expected(model, *one, step) for one in zip(x, y, ids, strict=True)])
    a = phi.abs().mean(0).flatten()
    return None, -(a[:, None] - a).abs().sum() / (len(a) * a.sum())


def maps(explain, model, x, y):
    phi = explain(logit(model, y), x).sum(0).abs()
    return phi / phi.max()


def sensitivity(model, x, y, i, step):
    def phi(at):
        return maps(lambda f, p: p * slope(f, p), model, at, y)

    unique, total = fold(i[None], torch.tensor([step]))[0], 0
    for s in range(3):
        near = x + 0.2 * (2 * draw("uniform", "penalty/sensitivity", unique, s, x.shape) - 1)
        total = total + ((phi(x) - phi(near)) ** 2).sum() / 3
    return None, total / (phi(x) ** 2).sum()


def infidelity(model, x, y, i, step):
    """Raw: E(Iᵀφ − (f(x) − f(x without I)))²."""
    phi = maps(slope, model, x, y)
    unique, total = fold(i[None], torch.tensor([step]))[0], 0
    for s in range(3):
        words = Key(0, "train/penalty/masks").bits(unique[None], s, 16)[0]
        mask = torch.zeros(16, dtype=torch.bool)
        mask[words.argsort(stable=True)[:4]] = True  # int(.3 · 16)
        mask = mask.view(4, 4).repeat_interleave(2, 0).repeat_interleave(2, 1)
        fall = logit(model, y)(x) - logit(model, y)(torch.where(mask, torch.zeros(()).double(), x))
        total = total + ((phi * mask).sum() - fall) ** 2 / 3
    return None, total


def insertion_deletion(model, x, y, i, step):
    phi = (x * slope(logit(model, y), x)).sum(0)
    ordered = phi.detach().flatten().sort(descending=True).values
    gap = (ordered[:-1] - ordered[1:]).mean()
    inserted = deleted = 0
    for j in range(1, 5):
        rank = j * 64 // 5
        keep = torch.sigmoid(2 / gap * (phi - (ordered[rank - 1] + ordered[rank]) / 2))
        inserted = inserted + ce(model, 0.1 + keep * (x - 0.1), y) / 4
        deleted = deleted + (ce(model, x - keep * (x - 0.1), y) - ce(model, x, y)) / 4
    return None, inserted - 0.5 * deleted


# -- the table ---------------------------------------------------------------------------------------------------------

TABLE = {
    "natural": (train.NaturalTraining, {}, natural),
    "madry": (train.AdversarialTraining, BOX, madry),
    "ig_norm": (train.IGNorm, BOX | {"points": 5, "attack_points": 3, "weight": 0.7}, ig_norm),
    "ig_sum_norm": (train.IGSumNorm, BOX | {"points": 5, "attack_points": 3, "weight": 0.7}, ig_sum_norm),
    "fidelity": (train.Fidelity, {"samples": 200}, fidelity),
    "fidelity_1d": (train.Fidelity1D, {}, fidelity_1d),
    "stability": (train.Stability, {"radius": 0.2, "samples": 2}, stability),
    "input_gradient": (train.InputGradientPenalty, {}, input_gradient),
    "gradient_alignment": (train.LocalGradientAlignment, {"eps": 0.2, "l2": 2.0, "cosine": 3.0}, alignment),
    "ig_cosine": (train.IGCosine, BOX | {"points": 4}, ig_cosine),
    "total_variation": (
        train.AttributionPrior, {"prior": "total_variation", "background": BACKGROUND, "samples": 2}, total_variation,
    ),
    "gini": (train.AttributionPrior, {"prior": "gini", "background": BACKGROUND, "samples": 2}, gini),
    "sensitivity": (
        train.Penalty, {"metric": AverageSensitivity(0.2), "explainers": InputXGradient(), "draws": 3}, sensitivity,
    ),
    "infidelity": (
        train.Penalty,
        {
            "metric": Infidelity(Patches(2), share=0.3, baseline="zero", scaling="raw"), "explainers": Saliency(), "draws": 3,
            "features": Pixels(),
        },
        infidelity,
    ),
    "insertion_deletion": (
        train.InsertionDeletion,
        {"explainer": InputXGradient(), "steps": 4, "deletion": 0.5, "temperature": 2.0, "baseline": 0.1}, insertion_deletion,
    ),
}  # fmt: skip


def make(name, **options):
    cls, settings, _ = TABLE[name]
    return cls(**({"weight": 0.7} | settings | options))
