"""The layer for class activation maps: the last one that carries the score and whose cells are proved to be places."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from consilience.errors import InputError
from consilience.model.cam_layers import Layer, captured, find, named, to_grid
from consilience.model.places import Tiles, follow, is_local, proved, readings
from consilience.model.score import Score


def probe(net, size=64, seed=0):
    """What ``find`` asks, and a picture, after giving zero-initialised heads random weights."""
    torch.manual_seed(seed)
    for parameter in net.parameters():
        if parameter.ndim == 2 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    height, width = size if isinstance(size, tuple) else (size, size)
    x = torch.randn(1, 3, height, width)
    net.eval()
    return (lambda picture: net(picture)[0, [0, -1]]), x


FOUND = [
    ("resnet18", 64, Layer("layer4", 0, "NCHW", (2, 2))),
    ("resnet18", (96, 160), Layer("layer4", 0, "NCHW", (3, 5))),
    ("mobilenet_v2", 64, Layer("features", 0, "NCHW", (2, 2))),
    ("vgg11", 64, Layer("avgpool", 0, "NCHW", (7, 7))),
    pytest.param("densenet121", 64, Layer("features", 0, "NCHW", (2, 2)), marks=pytest.mark.slow),
    pytest.param("swin_t", 64, Layer("permute", 0, "NCHW", (2, 2)), marks=pytest.mark.slow),
    pytest.param(
        "vit_b_16", 224, Layer("encoder.layers.encoder_layer_11.ln_1", 0, "tokens", (14, 14), 1), marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize("name, size, expected", FOUND, ids=lambda v: str(v))
def test_torchvision(name, size, expected):
    net = getattr(pytest.importorskip("torchvision.models"), name)(weights=None)
    ask, x = probe(net, size)
    assert find(net, ask, x) == expected
    assert not any(module._forward_hooks for module in net.modules())


def test_a_small_vision_transformer():
    """The last block's output has a gradient at the class token only; its first norm has one over space."""
    net = pytest.importorskip("torchvision.models").VisionTransformer(64, 16, 3, 2, 32, 64)
    ask, x = probe(net)
    assert find(net, ask, x) == Layer("encoder.layers.encoder_layer_2.ln_1", 0, "tokens", (4, 4), 1)


TIMM = [
    ("deit_tiny_patch16_224", Layer("blocks.11.norm1", 0, "tokens", (14, 14), 1)),
    ("deit_tiny_distilled_patch16_224", Layer("blocks.11.norm1", 0, "tokens", (14, 14), 2)),
    ("swin_tiny_patch4_window7_224", Layer("norm", 0, "NHWC", (7, 7))),
    ("mixer_s16_224", Layer("norm", 0, "tokens", (14, 14))),
    ("tf_efficientnet_lite0", Layer("bn2", 0, "NCHW", (7, 7))),
    ("convnext_atto", Layer("norm_pre", 0, "NCHW", (7, 7))),
]


@pytest.mark.slow
@pytest.mark.parametrize("name, expected", TIMM, ids=[name for name, _ in TIMM])
def test_timm(name, expected):
    net = pytest.importorskip("timm").create_model(name)
    ask, x = probe(net, 224)
    layer = find(net, ask, x)
    assert layer == expected
    with captured(net, [layer]) as acts:
        net(x.repeat(2, 1, 1, 1))
    assert to_grid(acts[layer], layer).shape[0::2] == (2, layer.grid[0])


class Awkward(nn.Module):
    """One in-place rectifier used twice, and its output changed in place afterwards."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.act = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.act(self.second(self.act(self.first(x))))
        x += 1
        x.mul_(2)
        return self.head(x.mean((2, 3)))


def test_reused_modules_and_later_writes():
    net = Awkward()
    ask, x = probe(net, 16)
    layer = find(net, ask, x)
    assert (layer.name, layer.call, str(layer)) == ("act", 1, "act#1")
    assert named(net, "act", ask, x) == named(net, "act#1", ask, x) == layer
    early = named(net, "act#0", ask, x)
    assert early.grid == (14, 14)
    plain = net(x)
    with captured(net, [layer, early]) as acts:
        out = net(x)
    torch.testing.assert_close(out, plain, rtol=0, atol=0)
    expected = F.relu(net.second(F.relu(net.first(x))))
    torch.testing.assert_close(acts[layer], expected)
    torch.testing.assert_close(acts[early], F.relu(net.first(x)))
    (g,) = torch.autograd.grad(out[:, 0].sum(), acts[layer])
    torch.testing.assert_close(g, (2 * net.head.weight[0] / 144)[None, :, None, None].expand_as(g))


def test_to_grid_puts_back_each_layout():
    image = torch.arange(2 * 5 * 3 * 4.0).view(2, 5, 3, 4)
    tokens = torch.cat([torch.full((2, 2, 5), -1.0), image.flatten(2).transpose(1, 2)], 1)
    assert torch.equal(to_grid(image, Layer("a", 0, "NCHW", (3, 4))), image)
    assert torch.equal(to_grid(image.permute(0, 2, 3, 1), Layer("a", 0, "NHWC", (3, 4))), image)
    assert torch.equal(to_grid(tokens, Layer("a", 0, "tokens", (3, 4), 2)), image)


def test_errors_say_what_and_how():
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 4), nn.ReLU(), nn.Linear(4, 2))
    ask, x = probe(net, 4)
    with pytest.raises(InputError, match='none is spatial.*layer="'):
        find(net, ask, x)
    with pytest.raises(InputError, match="no graph"):
        find(net, lambda picture: net(picture).detach()[0], x)
    with pytest.raises(InputError, match="unknown layer"):
        named(net, "layer4", ask, x)
    with pytest.raises(InputError, match=r"gives \(1, 4\)"):
        named(net, "2", ask, x)
    with pytest.raises(InputError, match="did not run"), captured(net, [Layer("2", 5, "NCHW", (1, 2))]):
        net(x)


def test_hooks_go_after_an_exception():
    net = Awkward()
    with pytest.raises(ZeroDivisionError), captured(net, [Layer("act", 0, "NCHW", (14, 14))]):
        1 / 0  # noqa: B018
    assert not any(module._forward_hooks for module in net.modules())


# -- places ------------------------------------------------------------------------------------------------------------


class Patches(nn.Module):
    """Patches in some order, a norm, and a head over their mean; ``order`` rearranges the 64 patches of an 8 × 8 grid."""

    def __init__(self, order):
        super().__init__()
        self.order = order
        self.embed, self.norm, self.act = nn.Conv2d(3, 12, 8, 8), nn.LayerNorm(12), nn.GELU()
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.act(self.norm(self.order(tokens))).mean(1))


def windows(tokens):
    """Window after window, each 4 × 4 of the 8 × 8 patches."""
    return tokens.view(-1, 2, 4, 2, 4, 12).transpose(2, 3).reshape(-1, 64, 12)


def sorted_by_size(tokens):
    return tokens.gather(1, tokens.norm(dim=2).argsort(1)[..., None].expand(-1, -1, 12))


ORDERS = {
    "rows": lambda tokens: tokens,
    "behind a class token and three registers": lambda tokens: torch.cat(
        [tokens.mean(1, True).expand(-1, 4, -1), tokens], 1
    ),
    "columns": lambda tokens: tokens.view(-1, 8, 8, 12).transpose(1, 2).flatten(1, 2),
    "turned": lambda tokens: tokens.flip(1),
    "windows": windows,
    "sorted": sorted_by_size,
    "pruned": lambda tokens: sorted_by_size(tokens)[:, :16],
    "all alike": lambda tokens: tokens.mean(1, True).expand(-1, 64, -1),
}


@pytest.mark.parametrize("order", ORDERS)
def test_tokens_are_places_only_in_the_images_order(order):
    net = Patches(ORDERS[order])
    ask, x = probe(net)
    found = find(net, ask, x)
    if order in ("rows", "behind a class token and three registers"):
        assert found == Layer("act", 0, "tokens", (8, 8), 0 if order == "rows" else 4)
    else:
        assert found == Layer("embed", 0, "NCHW", (8, 8))
        with pytest.raises(InputError, match="no places of the image.*layer='auto'"):
            named(net, "norm", ask, x)


def test_windows_as_rows_are_refused_by_name():
    class Windowed(Patches):
        def forward(self, x):
            tokens = windows(self.embed(x).flatten(2).transpose(1, 2)).view(-1, 16, 12)
            return self.head(self.norm(tokens).view(len(x), 64, 12).mean(1))

    net = Windowed(None)
    ask, x = probe(net)
    with pytest.raises(InputError, match=r"\(4, 16, 12\) for one image.*window order"):
        named(net, "norm", ask, x)
    assert find(net, ask, x).name == "embed"


def test_learned_queries_have_no_places():
    class Queries(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.queries = nn.Conv2d(3, 32, 8, 8), nn.Parameter(torch.randn(1, 16, 32))
            self.read = nn.MultiheadAttention(32, 2, batch_first=True)
            self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 5)

        def forward(self, x):
            patches = self.embed(x).flatten(2).transpose(1, 2)
            queries = self.queries.expand(len(x), -1, -1)
            return self.head(self.norm(queries + self.read(queries, patches, patches)[0]).mean(1))

    for seed in range(5):
        torch.manual_seed(seed)
        net = Queries()
        ask, x = probe(net, seed=seed)
        assert find(net, ask, x).name == "embed"
        with pytest.raises(InputError, match="learned queries"):
            named(net, "norm", ask, x)


class Branches(nn.Module):
    """The score comes from ``trunk``; ``side`` runs last, and adds ``weight`` times as much."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight
        self.trunk, self.side, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 2)

    def forward(self, x):
        trunk = self.trunk(x).relu()
        return self.head(trunk.mean((2, 3))) + self.weight * self.head(self.side(x).relu().mean((2, 3)))


@pytest.mark.parametrize("weight, expected", [(0.0, "trunk"), (1e-4, "trunk"), (1.0, "side")])
def test_the_layer_carries_the_score(weight, expected):
    net = Branches(weight)
    ask, x = probe(net)
    assert find(net, ask, x).name == expected
    if not weight:
        with pytest.raises(InputError, match="no gradient of the score"):
            named(net, "side", ask, x)


class Dies(nn.Module):
    """Dark pictures switch the upper part off."""

    def __init__(self):
        super().__init__()
        self.low, self.high, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.Linear(4, 3)

    def forward(self, x):
        low = self.low(x).relu()
        lit = (x.mean((1, 2, 3)) > -1).float()[:, None]
        return self.head(low.mean((2, 3)) + lit * self.high(low).relu().mean((2, 3)))


def test_the_layer_is_the_same_whatever_is_in_the_batch():
    """One input whose head is dead, alone or first, moved the layer for all."""
    torch.manual_seed(0)
    net, dark = Dies().eval(), torch.full((1, 3, 16, 16), -2.0)
    bright = torch.randn(1, 3, 16, 16)
    for x in (dark, bright, torch.cat([dark, bright]), torch.cat([bright, dark])):
        score = Score(net, 0).at(x)
        assert score.layer("auto", x[:1], torch.zeros(1, dtype=torch.int64)).name == "high"


def test_a_layer_of_one_output_only_is_not_chosen_for_all():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.first, self.last = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

        def forward(self, x):
            x = self.trunk(x)
            return torch.stack([self.first(x).relu().mean((1, 2, 3)), self.last(x).relu().mean((1, 2, 3))], 1)

    net = Two()
    ask, x = probe(net, 8)
    assert find(net, ask, x).name == "trunk"


def test_a_model_that_refuses_noise_is_probed_with_the_input():
    class Positive(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 2)

        def forward(self, x):
            if bool((x < 0).any()):
                raise ValueError("negative light")
            return self.head(self.conv(x).relu().mean((2, 3)))

    net = Positive()
    ask, _ = probe(nn.Identity(), 16)
    ask = lambda picture: net(picture)[0]  # noqa: E731
    assert find(net, ask, torch.rand(1, 3, 16, 16)).name == "conv"


def test_local_operations_prove_places_even_on_a_grid_of_two_by_two():
    image = torch.randn(1, 3, 8, 8, requires_grad=True)
    pooled = nn.functional.max_pool2d(torch.relu(nn.functional.conv2d(image, torch.randn(4, 3, 3, 3), padding=1)), 4)
    two_by_two = readings("a", 0, pooled.shape, (8, 8))[0]
    assert two_by_two.grid == (2, 2) and is_local(pooled, two_by_two)
    for moved in (pooled.flip(3), pooled.transpose(2, 3), pooled.roll(1, 2), torch.cat([pooled, pooled], 2)):
        assert not is_local(moved, two_by_two)


def test_how_many_cells_must_follow():
    quarters = Tiles(2, 2)
    assert quarters.of_cells((2, 3)).tolist() == [[0, -1, 1], [2, -1, 3]]
    own = nn.functional.one_hot(quarters.of_cells((4, 4)), 4).permute(2, 0, 1).double()
    assert follow(own, quarters) == (16, 16) and follow(own.flip(0), quarters) == (0, 16)
    # A quarter that moves everything ten times as much as the others do does not win everywhere.
    assert follow((own + 0.1) * torch.tensor([10.0, 1, 1, 1])[:, None, None], quarters) == (16, 16)
    assert proved(4, 4, quarters) and not proved(3, 4, quarters)  # of four cells, three are right by chance in 5 of 100
    assert proved(12, 16, quarters) and not proved(11, 16, quarters)
    assert not proved(4, 4, Tiles(1, 2)) and proved(8, 8, Tiles(1, 2)) and not proved(0, 0, quarters)
