"""The layer for class activation maps: the last output with a gradient over space, whatever its layout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from consilience.errors import InputError
from consilience.model.cam_layers import Layer, captured, find, named, to_grid


def probe(net, size=64, seed=0):
    """A run for ``find``, after giving zero-initialised heads random weights."""
    torch.manual_seed(seed)
    for parameter in net.parameters():
        if parameter.ndim == 2 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    height, width = size if isinstance(size, tuple) else (size, size)
    x = torch.randn(1, 3, height, width)
    net.eval()
    return (lambda: net(x.clone().requires_grad_())[:, 0]), (height, width), x


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
    run, spatial, _ = probe(net, size)
    assert find(net, run, spatial) == expected
    assert not any(module._forward_hooks for module in net.modules())


def test_a_small_vision_transformer():
    """The last block's output has a gradient at the class token only; its first norm has one over space."""
    net = pytest.importorskip("torchvision.models").VisionTransformer(64, 16, 3, 2, 32, 64)
    run, spatial, _ = probe(net)
    assert find(net, run, spatial) == Layer("encoder.layers.encoder_layer_2.ln_1", 0, "tokens", (4, 4), 1)


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
    run, spatial, x = probe(net, 224)
    layer = find(net, run, spatial)
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
    run, spatial, x = probe(net, 16)
    layer = find(net, run, spatial)
    assert (layer.name, layer.call, str(layer)) == ("act", 1, "act#1")
    assert named(net, "act", run, spatial) == named(net, "act#1", run, spatial) == layer
    early = named(net, "act#0", run, spatial)
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
    run, spatial, x = probe(net, 4)
    with pytest.raises(InputError, match='none is spatial.*layer="'):
        find(net, run, spatial)
    with pytest.raises(InputError, match="no graph"):
        find(net, lambda: net(x).detach()[:, 0], spatial)
    with pytest.raises(InputError, match="unknown layer"):
        named(net, "layer4", run, spatial)
    with pytest.raises(InputError, match=r"gives \(1, 4\)"):
        named(net, "2", run, spatial)
    with pytest.raises(InputError, match="did not run"), captured(net, [Layer("2", 5, "NCHW", (1, 2))]):
        net(x)


def test_hooks_go_after_an_exception():
    net = Awkward()
    with pytest.raises(ZeroDivisionError), captured(net, [Layer("act", 0, "NCHW", (14, 14))]):
        1 / 0  # noqa: B018
    assert not any(module._forward_hooks for module in net.modules())
