"""The settings of recipes/rar.py and benchmarks/rar.py: networks, the four objectives, published and scaled presets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from consilience import train
from consilience.attacks.importance import ImportanceAttack

OBJECTIVES = ("natural", "madry", "ig_norm", "ig_sum_norm")
TITLES = {"natural": "natural", "madry": "Madry", "ig_norm": "IG-NORM", "ig_sum_norm": "IG-SUM-NORM"}


@dataclass(frozen=True)
class Preset:
    """One experiment. Lengths are in pixel units, pixels in [0, 1].

    Args:
        about: what is published, what was scaled and what is our choice.
        data: the data set's name.
        network: from a number of classes to the network.
        attack: the attack on attributions that judges; its ``eps`` is that of training too.
        k: so many pixels are compared before and under attack.
        steps: of the inner maximisation of training.
        step_size: the length of each.
        points: of IG in the loss.
        attack_points: of IG in its maximisation.
        ig_norm: λ of IG-NORM.
        ig_sum_norm: β of IG-SUM-NORM.
        batch: images of a training step.
        train_steps: of all objectives but the natural one.
        natural_steps: of natural training.
        optimiser: "adam" or "sgd".
        lr: the rate.
        lr_ig: the rate of the two IG losses.
        one_cycle: let the rate rise and fall once; else it stays.
        sums: the two IG losses are sums over the batch; else means.
        pgd: (steps, step size) of the PGD that judges accuracy; None: those of training.
        train_images: so many of the training images; None: all.
        test_images: so many test images are attacked.
    """

    about: str
    data: str
    network: Callable[[int], nn.Module]
    attack: ImportanceAttack
    k: int
    steps: int
    step_size: float
    points: int
    attack_points: int
    ig_norm: float
    ig_sum_norm: float
    batch: int
    train_steps: int
    natural_steps: int
    optimiser: str = "adam"
    lr: float = 1e-4
    lr_ig: float = 1e-4
    one_cycle: bool = False
    sums: bool = True
    pgd: tuple[int, float] | None = None
    train_images: int | None = None
    test_images: int = 1000

    @property
    def judging_pgd(self) -> tuple[int, float]:
        """(steps, step size) of the PGD that judges accuracy."""
        if self.pgd is None:
            return self.steps, self.step_size
        return self.pgd


# -- networks ----------------------------------------------------------------------------------------------------------


def digits_net(classes: int) -> nn.Module:
    """3 × 3 convolutions of 8 and 16 channels on 8 × 8 pixels, and one hidden layer."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, classes),
    )  # fmt: skip


def mnist_net(classes: int, width: int = 32, hidden: int = 1024) -> nn.Module:
    """5 × 5 convolutions of ``width`` and twice that, each with 2 × 2 pooling, and one hidden layer."""
    return nn.Sequential(
        nn.Conv2d(1, width, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(width, 2 * width, 5, padding=2), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(49 * 2 * width, hidden), nn.ReLU(), nn.Linear(hidden, classes),
    )  # fmt: skip


class Block(nn.Module):
    """Pre-activation residual block without normalisation; the shortcut is pooled and padded with zero channels."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1)
        self.stride = stride
        self.grow = outside - inside

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(nnf.leaky_relu(self.conv1(nnf.leaky_relu(x, 0.1)), 0.1))
        if self.stride > 1:
            x = nnf.avg_pool2d(x, self.stride)
        before = self.grow // 2
        return nnf.pad(x, (0, 0, 0, 0, before, self.grow - before)) + y


class ResNet(nn.Module):
    """Three stages of ``blocks`` pre-activation blocks, leaky rectifiers (0.1), no normalisation, mean over space."""

    def __init__(self, classes: int, blocks: int):
        super().__init__()
        widths = (16, 16, 32, 64)
        self.first = nn.Conv2d(3, widths[0], 3, padding=1)
        every: list[nn.Module] = []
        for stage in range(3):
            inside, outside = widths[stage : stage + 2]
            # The first block of a stage brings its width, and but for the first stage halves the sides.
            every.append(Block(inside, outside, 2 if stage else 1))
            every += [Block(outside, outside, 1) for _ in range(blocks - 1)]
        self.blocks = nn.Sequential(*every)
        self.last = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nnf.leaky_relu(self.blocks(self.first(x)), 0.1).mean((2, 3)))


# -- presets -----------------------------------------------------------------------------------------------------------

PRESETS = {
    "mnist": Preset(
        "Published settings for MNIST (arXiv 1905.09957 and its code), all training images. The number of attacked test "
        "images is ours.",
        "mnist", mnist_net, ImportanceAttack(eps=0.3, steps=100, step_size=0.01, k=200, restarts=3, points=100), k=100,
        steps=40, step_size=0.01, points=50, attack_points=10, ig_norm=1.0, ig_sum_norm=0.1,
        batch=50, train_steps=100_000, natural_steps=25_000,
    ),
    "fashion_mnist": Preset(
        "Published settings for Fashion-MNIST (arXiv 1905.09957 and its code). The number of attacked test images is ours.",
        "fashion_mnist", mnist_net, ImportanceAttack(eps=0.1, steps=100, step_size=0.01, k=100, restarts=3, points=100),
        k=100, steps=20, step_size=0.01, points=50, attack_points=10, ig_norm=1.0, ig_sum_norm=0.1,
        batch=50, train_steps=100_000, natural_steps=25_000,
    ),
    "gtsrb": Preset(
        "Published settings for GTSRB (arXiv 1905.09957 and its code); lengths of 8, 2 and 1 of 255. Ours: the widths 16, 32, "
        "64 of the residual network, pixels in [0, 1], the number of attacked test images.",
        "gtsrb", lambda classes: ResNet(classes, 2),
        ImportanceAttack(eps=8 / 255, steps=50, step_size=1 / 255, k=100, restarts=3, points=100), k=100,
        steps=7, step_size=2 / 255, points=50, attack_points=5, ig_norm=1.0, ig_sum_norm=1.0,
        batch=64, train_steps=70_000, natural_steps=70_000, optimiser="sgd", lr=1e-3, lr_ig=1e-3,
    ),
    "flowers17": Preset(
        "Published settings for Flower-17 (arXiv 1905.09957 and its code); lengths of 8, 2 and 1 of 255. Ours: the widths of "
        "the residual network, pixels in [0, 1], pictures of 128 × 128, and a constant rate of .0001 for the two IG losses, "
        "for which the code names .0001, .001 and .0001.",
        "flowers17", lambda classes: ResNet(classes, 1),
        ImportanceAttack(eps=8 / 255, steps=100, step_size=1 / 255, k=1000, restarts=3, points=100), k=1000,
        steps=7, step_size=2 / 255, points=50, attack_points=5, ig_norm=0.1, ig_sum_norm=0.1,
        batch=16, train_steps=70_000, natural_steps=70_000, optimiser="sgd", lr=1e-3, lr_ig=1e-4,
    ),
    "digits": Preset(
        "Scaled to minutes on one core: scikit-learn's 8 × 8 digits in place of MNIST; 3 × 3 convolutions of 8 and 16 "
        "channels and 64 hidden units; 480 steps of 100 images, one-cycle rate, in place of 100 000 of 50; in training 5 "
        "steps, 8 and 4 IG points in place of 40, 50 and 10; ε .1; the attack on attributions takes 20 steps and 24 IG points "
        "(12 of the copy) in place of 100, and k is a quarter of the pixels; accuracy is judged by 20 steps; 300 test images. "
        "λ and β are those published for MNIST; losses are means.",
        "digits", digits_net,
        ImportanceAttack(eps=0.1, steps=20, step_size=0.0125, k=16, restarts=3, points=24, attack_points=12), k=16,
        steps=5, step_size=0.05, points=8, attack_points=4, ig_norm=1.0, ig_sum_norm=0.1,
        batch=100, train_steps=480, natural_steps=480, lr=4e-3, lr_ig=4e-3, one_cycle=True, sums=False, pgd=(20, 0.0125),
        test_images=300,
    ),
    "fashion_mnist_small": Preset(
        "Scaled to about half an hour on one core: 5000 training images in place of 60 000; 5 × 5 convolutions of 8 and 16 "
        "channels and 64 hidden units in place of 32, 64 and 1024; 400 steps, one-cycle rate, in place of 100 000; in training "
        "5 steps, 6 and 3 IG points in place of 20, 50 and 10; the attack on attributions takes 20 steps, 2 restarts and 24 IG "
        "points (12 of the copy) in place of 100, 3 and 100, on 150 test images; accuracy is judged by 20 steps. ε, k, λ, β "
        "and the batch are as published; losses are means.",
        "fashion_mnist", lambda classes: mnist_net(classes, 8, 64),
        ImportanceAttack(eps=0.1, steps=20, step_size=0.0125, k=100, restarts=2, points=24, attack_points=12), k=100,
        steps=5, step_size=0.05, points=6, attack_points=3, ig_norm=1.0, ig_sum_norm=0.1,
        batch=50, train_steps=400, natural_steps=400, lr=4e-3, lr_ig=4e-3, one_cycle=True, sums=False, pgd=(20, 0.0125),
        train_images=5000, test_images=150,
    ),
}  # fmt: skip


# -- what a preset makes -----------------------------------------------------------------------------------------------


def network(preset: Preset, classes: int, seed: int) -> nn.Module:
    """The network, its first weights a function of the seed; the global random state comes back."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return preset.network(classes)


def objective(preset: Preset, name: str, seed: int, max_batch: int) -> train.TrainingObjective:
    """The training objective of this name, one of :data:`OBJECTIVES`."""
    options = {"seed": seed, "max_batch": max_batch}
    if name == "natural":
        return train.NaturalTraining(**options)
    inner = {
        "eps": preset.attack.eps, "steps": preset.steps, "step_size": preset.step_size, "bounds": preset.attack.bounds,
    }  # fmt: skip
    if name == "madry":
        return train.AdversarialTraining(**inner, **options)
    options |= {
        "points": preset.points, "attack_points": preset.attack_points, "reduction": "sum" if preset.sums else "mean",
    }  # fmt: skip
    if name == "ig_norm":
        return train.IGNorm(**inner, weight=preset.ig_norm, **options)
    return train.IGSumNorm(**inner, weight=preset.ig_sum_norm, **options)


def training_steps(preset: Preset, name: str) -> int:
    """How many steps the objective is trained for."""
    return preset.natural_steps if name == "natural" else preset.train_steps


def optimisers(
    preset: Preset, name: str, parameters: list[nn.Parameter]
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """The optimiser and its rate, to be stepped once for every training step."""
    rate = preset.lr_ig if name.startswith("ig") else preset.lr
    if preset.optimiser == "adam":
        optimiser: torch.optim.Optimizer = torch.optim.Adam(parameters, rate)
    else:
        optimiser = torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=2e-4)
    if preset.one_cycle:
        steps = training_steps(preset, name)
        return optimiser, torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1.0)
