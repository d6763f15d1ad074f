"""The model and data pairs of the held-out benchmark: what is explained, by which methods, against which baselines.

Weights and pictures lie in a folder that ``--data`` names (nothing of it is stored here). Small networks are trained on the
spot, seeded, and kept in the cache. The texts are sentences of the documentation that NumPy, PyTorch and Python carry with
them: whose sentence is it?
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from PIL import Image
from torch import Tensor, nn

import consilience as cs
from consilience.data.images import read_image
from consilience.data.models import load_model
from consilience.explainers import (
    LIME,
    DeepLIFT,
    Explainer,
    FeatureAblation,
    GradCAM,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    KernelSHAP,
    Saliency,
    ShapleySampling,
    SmoothGrad,
    VarGrad,
)

SLOW = ("lime", "kernel_shap")
"""Methods whose maps at neighbours, of other outputs and of random models are not made where a forward pass is dear."""


@dataclass(frozen=True)
class Pair:
    """A model with its inputs.

    Args:
        name: in tables and files.
        modality: "image", "table" or "text".
        model: as for ``consilience.explain``.
        x: the inputs: (n, *F), or n texts.
        members: the methods that are mixed.
        others: methods that are compared with, and in no mixture.
        target: (n,), or None for the predicted class.
        regions: (n, *A) bool, where the evidence is; None: not known.
        options: further options of ``consilience.explain``.
        masks: how many fit the weights, and how many evaluations LIME and KernelSHAP have.
        chunk: inputs at a time.
        stable: how many inputs are judged where maps have to be made anew.
        light: whether the ``SLOW`` methods are left out there.
        absent: what replaces features in insertion and sensitivity-n; it is not what the masks of the weights put there.
        note: about the model, in words.
    """

    name: str
    modality: str
    model: Any
    x: Any
    members: tuple[Explainer, ...]
    others: tuple[Explainer, ...]
    target: Tensor | None = None
    regions: Tensor | None = None
    options: dict[str, Any] = field(default_factory=dict)
    masks: int = 256
    chunk: int = 8
    stable: int = 24
    light: bool = False
    absent: tuple[Any, Any] = ("mean", "zero")
    note: str = ""

    def first(self, count: int) -> Pair:
        """The pair with its first ``count`` inputs only."""
        count = min(count, len(self.x))
        target = None if self.target is None else self.target[:count]
        regions = None if self.regions is None else self.regions[:count]
        return replace(self, x=self.x[:count], target=target, regions=regions, stable=min(self.stable, count))


def patches_for(side: int) -> cs.Patches:
    """The 64 patches of an image (49 of 28 pixels) that are few enough to be taken away one by one.

    Args:
        side: of the image, in pixels.
    """
    return cs.Patches(max(4, side // 8))


def patches_of(pair: Pair) -> cs.Patches:
    """Those of a pair's images."""
    return patches_for(pair.x.shape[-1])


def image_methods(side: int, masks: int, dear: bool) -> tuple[tuple[Explainer, ...], tuple[Explainer, ...]]:
    """The standard methods and a cheap perturbation; and LIME and KernelSHAP with as many evaluations as there are masks.

    Args:
        side: of the image, in pixels.
        masks: evaluations.
        dear: fewer steps and noise draws than by default, for large networks.
    """
    patches = patches_for(side)
    steps, samples = (8, 5) if dear else (16, 10)
    standard = (
        Saliency(), InputXGradient(), IntegratedGradients(steps), SmoothGrad(samples), VarGrad(samples), GuidedBackprop(),
        DeepLIFT(), GradCAM(),
    )  # fmt: skip
    return (*standard, FeatureAblation(patches)), (LIME(masks, patches), KernelSHAP(masks, patches))


def other_methods(masks: int) -> tuple[tuple[Explainer, ...], tuple[Explainer, ...]]:
    """The methods of tables and texts: those of images that can work there, and a cheap perturbation.

    Args:
        masks: evaluations of LIME and KernelSHAP.
    """
    members = (
        Saliency(), InputXGradient(), IntegratedGradients(), SmoothGrad(10), VarGrad(10), GuidedBackprop(), DeepLIFT(),
        FeatureAblation(), ShapleySampling(4),
    )  # fmt: skip
    return members, (LIME(masks), KernelSHAP(masks))


def spaced(count: int) -> list[int]:
    """0 … count − 1 in an order of which the first half is spaced evenly, and its first half again.

    So a run of twice as many inputs begins with those of the smaller one, whose pieces are kept.

    >>> spaced(8), spaced(6)
    ([0, 4, 2, 6, 1, 3, 5, 7], [0, 2, 4, 1, 3, 5])
    """
    if count % 2 or count < 2:
        return list(range(count))
    return [*(2 * i for i in spaced(count // 2)), *range(1, count, 2)]


# -- ImageNet ----------------------------------------------------------------------------------------------------------


def photographs(data: Path, model: str, side: int, count: int) -> Pair:
    """A torchvision model with ImageNet weights, and photographs of as many classes."""
    files = {"resnet18": "resnet18_imagenet.pth", "mobilenet_v2": "mobilenet_v2-b0353104.pth"}
    labels = data / "imagenet" / "labels.csv"
    loaded = load_model(f"torchvision:{model}", checkpoint=data / "weights" / files[model], labels=labels)
    with labels.open(newline="", encoding="utf-8") as file:
        names = [row["file"] for row in csv.DictReader(file)]
    chosen = [names[len(names) * i // count] for i in spaced(count)]
    x = torch.stack([loaded.preprocess(read_image(data / "imagenet" / "images" / name)) for name in chosen])
    if side != x.shape[-1]:
        x = nnf.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
    members, others = image_methods(side, 128, dear=True)
    return Pair(
        f"{model} {side}", "image", loaded.module.to(memory_format=torch.channels_last), x, members, others, masks=128,
        chunk=2, stable=0, light=True, note="ImageNet weights",
    )  # fmt: skip


def mosaics(pair: Pair, half: int, seed: int = 0) -> Pair:
    """2 × 2 mosaics of a pair's images, of which the one that the model is asked about has its place turned round.

    Args:
        pair: images (n, C, H, W).
        half: side of each of the four, pixels.
        seed: of the partners.
    """
    small = nnf.interpolate(pair.x, size=(half, half), mode="bilinear", antialias=True)
    with torch.no_grad():
        predicted = torch.cat([pair.model(part).argmax(1) for part in pair.x.split(32)])
    random = np.random.default_rng(seed)
    pictures = []
    regions = []
    for i in range(len(small)):
        # Partners are of other classes, so that the class asked about is in one quadrant only.
        different = (predicted != predicted[i]).nonzero()[:, 0].numpy()
        four = [small[j] for j in random.choice(different, 3, replace=len(different) < 3)]
        corner = i % 4
        four.insert(corner, small[i])
        pictures.append(torch.cat([torch.cat(four[:2], 2), torch.cat(four[2:], 2)], 1))
        region = torch.zeros(2 * half, 2 * half, dtype=torch.bool)
        top = half * (corner // 2)
        left = half * (corner % 2)
        region[top : top + half, left : left + half] = True
        regions.append(region)
    members, others = image_methods(2 * half, pair.masks, dear=pair.light)
    return replace(
        pair, name=f"{pair.name} mosaics", x=torch.stack(pictures), target=predicted, regions=torch.stack(regions),
        members=members, others=others,
    )  # fmt: skip


# -- CIFAR-10 ----------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual block with the parameter-free shortcut (option A of He et al. 2015).

    Args:
        inside: channels that come in.
        outside: channels that go out.
        stride: of the first convolution.
    """

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.relu1 = nn.ReLU()
        self.relu2 = nn.ReLU()
        self.stride = stride
        self.more = outside - inside

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.more:
            shortcut = nnf.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more // 2))
        inner = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(inner)) + shortcut)


class ResNet20(nn.Module):
    """ResNet-20 for CIFAR-10 (He et al. 2015, §4.2), with a pooling that takes any image side."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1), Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.pool(x).flatten(1))


def cifar(data: Path, count: int) -> Pair:
    """ResNet20 on the first test images."""
    state = torch.load(data / "weights" / "resnet20_cifar10.th", map_location="cpu")["state_dict"]
    model = ResNet20()
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    with Image.open(data / "cifar10" / "test_batch.png") as sheet:
        rows = np.array(sheet.crop((0, 0, sheet.width, count)).convert("RGB"))
    pixels = torch.from_numpy(rows).float() / 255
    x = pixels.view(count, 32, 32, 3).permute(0, 3, 1, 2)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    members, others = image_methods(32, 128, dear=False)
    x = ((x - mean) / std).contiguous()
    return Pair(
        "resnet20 cifar10",
        "image",
        model.eval(),
        x,
        members,
        others,
        masks=128,
        stable=8,
        note="91.7 % of the test set",
    )


# -- small networks that are trained here ------------------------------------------------------------------------------


def convolutions(channels: int, classes: int, width: int = 16) -> nn.Module:
    """A small convolutional network with global pooling."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(2 * width, 4 * width, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes),
    )  # fmt: skip


def trained(
    build: Callable[[], nn.Module], x: Tensor, y: Tensor, cache: Path, name: str, epochs: int, rate: float = 1e-2
) -> nn.Module:
    """The network after some epochs of Adam, from the cache if it was trained before.

    Args:
        build: makes the network.
        x: training inputs (n, *F).
        y: labels (n,).
        cache: a folder.
        name: of the file there.
        epochs: passes over the data.
        rate: the highest step, of one cycle.
    """
    path = cache / f"{name}.pt"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
        if path.exists():
            model.load_state_dict(torch.load(path))
            return model.eval()
        optimiser = torch.optim.Adam(model.parameters(), rate, weight_decay=1e-5)
        steps = epochs * math.ceil(len(x) / 64)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
        for _ in range(epochs):
            for part in torch.randperm(len(x)).split(64):
                optimiser.zero_grad()
                nnf.cross_entropy(model(x[part]), y[part]).backward()
                optimiser.step()
                schedule.step()
    cache.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model.eval()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> str:
    """Its share of right answers on test inputs, in words."""
    with torch.no_grad():
        right = torch.cat([model(part).argmax(1) for part in x.split(256)]) == y
    return f"trained here, {100 * float(right.float().mean()):.1f} % of {len(y)} test inputs"


def small_images(name: str, load: Callable[[], tuple[Tensor, ...]], cache: Path, epochs: int, count: int) -> Pair:
    """A small network on images.

    Args:
        name: of the pair.
        load: gives training images (n, C, H, W) and labels, then test images and labels.
        cache: where the network is kept.
        epochs: of the training.
        count: test images that are explained.
    """
    x, y, x_test, y_test = load()
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    x, x_test = (x - mean) / std, (x_test - mean) / std
    classes = int(y.max()) + 1
    model = trained(partial(convolutions, x.shape[1], classes), x, y, cache, name, epochs)
    members, others = image_methods(x.shape[-1], 128, dear=False)
    chosen = torch.arange(count) * len(x_test) // count
    return Pair(
        name,
        "image",
        model,
        x_test[chosen],
        members,
        others,
        masks=128,
        stable=12,
        note=accuracy(model, x_test, y_test),
    )


def gtsrb(data: Path) -> tuple[Tensor, ...]:
    """German traffic signs, 43 classes, 32 × 32."""
    stored = np.load(data / "gtsrb" / "gtsrb32.npz")

    def images(part: str) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(stored[f"x_{part}"]).permute(0, 3, 1, 2).float() / 255
        return pixels, torch.from_numpy(stored[f"y_{part}"]).long()

    return *images("train"), *images("test")


def breast(data: Path) -> tuple[Tensor, ...]:
    """BreastMNIST: ultrasound, benign or malignant, 28 × 28."""
    stored = np.load(data / "medmnist" / "breastmnist.npz")

    def images(part: str) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(stored[f"{part}_images"])[:, None].float() / 255
        return pixels, torch.from_numpy(stored[f"{part}_labels"]).long().flatten()

    return *images("train"), *images("test")


def fashion(data: Path) -> tuple[Tensor, ...]:
    """Fashion-MNIST: ten kinds of clothes, 28 × 28; the first 6000 training and 1000 test images."""

    def read(name: str, count: int) -> Tensor:
        content = gzip.decompress((data / "fashion-mnist" / name).read_bytes())
        is_image = "images" in name
        values = np.frombuffer(content, np.uint8, offset=16 if is_image else 8)
        if is_image:
            return torch.from_numpy(values.reshape(-1, 1, 28, 28)[:count].copy()).float() / 255
        return torch.from_numpy(values[:count].copy()).long()

    train = read("train-first10000-images-idx3-ubyte.gz", 6000), read("train-labels-idx1-ubyte.gz", 6000)
    return *train, read("t10k-images-idx3-ubyte.gz", 1000), read("t10k-labels-idx1-ubyte.gz", 1000)


def wine(data: Path, cache: Path, count: int) -> Pair:
    """A network on eleven measurements of red wines, standardised: is the quality 6 or more?"""
    table = np.loadtxt(data / "uci" / "winequality-red.csv", delimiter=",", skiprows=1)[:, 1:]
    order = np.random.default_rng(0).permutation(len(table))
    x = torch.from_numpy(table[order, :-1]).float()
    y = torch.from_numpy(table[order, -1] >= 6).long()
    x = (x - x[400:].mean(0)) / x[400:].std(0)
    build = partial(mlp, x.shape[1])
    model = trained(build, x[400:], y[400:], cache, "wine", 40)
    members, others = other_methods(256)
    return Pair(
        "wine", "table", model, x[:count], members, others, chunk=count,
        absent=(x[400:464], "noise"), note=accuracy(model, x[:400], y[:400]),
    )  # fmt: skip


def mlp(columns: int) -> nn.Module:
    """A small network on a table."""
    return nn.Sequential(nn.Linear(columns, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))


# -- texts -------------------------------------------------------------------------------------------------------------

SOURCES = ("numpy", "torch", "python")
WORDS = 16


def sentences() -> list[tuple[str, int]]:
    """Pieces of ``WORDS`` lower-case words of three documentations, and whose they are; the names themselves are left out."""
    import pydoc_data.topics

    def documented(module: Any) -> str:
        docs = [getattr(module, name, None).__doc__ for name in sorted(dir(module)) if not name.startswith("_")]
        return " ".join(doc for doc in docs if isinstance(doc, str))

    texts = (documented(np), documented(torch), " ".join(pydoc_data.topics.topics.values()))
    found = []
    for label, text in enumerate(texts):
        words = [word for word in re.findall(r"[a-z]{2,}", text.lower()) if word not in (*SOURCES, "np", "pytorch")]
        pieces = [" ".join(words[i : i + WORDS]) for i in range(0, len(words) - WORDS, WORDS)]
        found += [(piece, label) for piece in pieces]
    return found


def texts(cache: Path, count: int) -> Pair:
    """A tiny BERT that says whose documentation a piece of text is from."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    pieces = sentences()
    random = np.random.default_rng(0)
    fewest = min(sum(label == each for _, label in pieces) for each in range(3))
    chosen = []
    for each in range(3):
        own = [piece for piece in pieces if piece[1] == each]
        chosen += [own[i] for i in random.permutation(len(own))[: min(fewest, 1200)]]
    chosen = [chosen[i] for i in random.permutation(len(chosen))]
    counts: dict[str, int] = {}
    for text, _ in chosen[300:]:
        for word in text.split():
            counts[word] = counts.get(word, 0) + 1
    common = sorted(counts, key=lambda word: (-counts[word], word))[:2000]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.txt"
        vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(common)]))
        tokenizer = BertTokenizer(str(vocabulary))
    config = BertConfig(
        vocab_size=len(common) + 5, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip

    def encoded(part: list[tuple[str, int]]) -> tuple[Tensor, Tensor]:
        rows = tokenizer([text for text, _ in part], padding="max_length", max_length=WORDS + 2, truncation=True)
        return torch.tensor(rows["input_ids"]), torch.tensor([label for _, label in part])

    class Logits(nn.Module):
        """The classifier as a function of token numbers, for training."""

        def __init__(self) -> None:
            super().__init__()
            self.bert = BertForSequenceClassification(config)

        def forward(self, ids: Tensor) -> Tensor:
            # A part of the words is masked, so that the mask token is no stranger.
            if self.training:
                share = torch.rand(len(ids), 1) * 0.6
                inner = torch.rand(ids.shape) < share
                inner[:, 0] = False
                inner[:, -1] = False
                ids = ids.masked_fill(inner, tokenizer.mask_token_id)
            return self.bert(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()).logits

    model = trained(Logits, *encoded(chosen[300:]), cache, f"texts-{len(common)}", epochs=6, rate=3e-3)
    members, others = other_methods(256)
    return Pair(
        "docs text", "text", cs.text(model.bert, tokenizer), [text for text, _ in chosen[:count]], members, others,
        chunk=count, absent=("zero", "zero"),
        note=f"tiny BERT on the documentation of {', '.join(SOURCES)}; " + accuracy(model, *encoded(chosen[:300])),
    )  # fmt: skip


# -- all of them -------------------------------------------------------------------------------------------------------


def makers(data: Path, cache: Path, count: int) -> dict[str, Callable[[], Pair]]:
    """Name → what makes the pair, cheap ones first.

    Args:
        data: the folder of weights and data.
        cache: where trained networks are kept.
        count: inputs of each pair; fewer where that would be dear.
    """
    half = max(2, count // 2)
    third = max(2, count // 3)
    sixth = max(2, count // 6)
    return {
        "wine": lambda: wine(data, cache, count),
        "docs text": lambda: texts(cache, count),
        "breastmnist": lambda: small_images("breastmnist", lambda: breast(data), cache, 30, count),
        "fashion-mnist": lambda: small_images("fashion-mnist", lambda: fashion(data), cache, 10, count),
        "gtsrb": lambda: small_images("gtsrb", lambda: gtsrb(data), cache, 60, count),
        "resnet20 cifar10": lambda: cifar(data, count),
        "resnet20 cifar10 mosaics": lambda: mosaics(cifar(data, half), 32),
        "resnet18 128": lambda: photographs(data, "resnet18", 128, half),
        "mobilenet_v2 128": lambda: photographs(data, "mobilenet_v2", 128, half),
        "resnet18 128 mosaics": lambda: mosaics(photographs(data, "resnet18", 128, third), 80),
        "resnet18 224": lambda: photographs(data, "resnet18", 224, sixth),
    }


def described(pair: Pair) -> dict[str, Any]:
    """How a pair's inputs are explained, for the record; how many there are is no part of it."""
    return {
        "modality": pair.modality, "note": pair.note, "masks": pair.masks,
        "members": [repr(each) for each in pair.members], "others": [repr(each) for each in pair.others],
        "baselines": json.loads(json.dumps(pair.absent, default=str)),
    }  # fmt: skip
