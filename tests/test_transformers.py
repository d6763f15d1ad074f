"""Vision transformers: the layer of class activation maps is found, and each method is right or refuses by name."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as nnf
from nets import bound
from torch import nn

from consilience.doctor import doctor
from consilience.errors import UnsupportedOp
from consilience.explainers import EigenCAM, GradCAM, GradCAMPlusPlus, GuidedBackprop, Saliency, Stack
from consilience.model.backward_rules import applied
from consilience.model.cam_layers import Layer, find


def timm(name, **options):
    return pytest.importorskip("timm").create_model(name, num_classes=5, **options)


def small_vit(**options):
    return timm("vit_tiny_patch16_224", img_size=64, embed_dim=24, depth=3, num_heads=2, **options)


def mixer():
    return pytest.importorskip("timm.models.mlp_mixer").MlpMixer(5, img_size=64, embed_dim=24, num_blocks=2)


def swin():
    return timm(
        "swin_tiny_patch4_window7_224", img_size=56, embed_dim=12, depths=(1, 1, 1), num_heads=(1, 2, 2), window_size=7
    )


def torchvision(name, *shape):
    return getattr(pytest.importorskip("torchvision.models"), name)(*shape, num_classes=5)


def hugging_face(kind, **options):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(num_labels=5, image_size=64, **options)
    return getattr(transformers, f"{kind}ForImageClassification")(config)


VIT = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48, "patch_size": 16}

# name → (model, input size, the module read as layer, its layout, grid, tokens in front)
MODELS = {
    "timm vit": (small_vit, 64, "blocks.2.norm1", "tokens", (4, 4), 1),
    "timm vit, mean over tokens": (lambda: small_vit(global_pool="avg"), 64, "norm", "tokens", (4, 4), 1),
    "timm vit, registers": (lambda: small_vit(reg_tokens=4), 64, "blocks.2.norm1", "tokens", (4, 4), 5),
    "timm vit, oblong": (
        lambda: timm("vit_tiny_patch16_224", img_size=(64, 112), embed_dim=24, depth=2, num_heads=2, reg_tokens=4),
        (64, 112), "blocks.1.norm1", "tokens", (4, 7), 5,
    ),
    "timm deit": (
        lambda: timm("deit_tiny_distilled_patch16_224", img_size=64, embed_dim=24, depth=3, num_heads=2), 64,
        "blocks.2.norm1", "tokens", (4, 4), 2,
    ),
    "timm swin": (swin, 56, "norm", "NHWC", (4, 4), 0),
    "timm mixer": (mixer, 64, "norm", "tokens", (4, 4), 0),
    "timm cait": (
        lambda: timm("cait_xxs24_224", img_size=64, embed_dim=24, depth=2, num_heads=2), 64, "blocks_token_only.1.norm1",
        "tokens", (4, 4), 1,
    ),
    "torchvision vit": (
        lambda: torchvision("VisionTransformer", 64, 16, 3, 2, 24, 48), 64, "encoder.layers.encoder_layer_2.ln_1", "tokens",
        (4, 4), 1,
    ),
    "torchvision swin": (
        lambda: torchvision("SwinTransformer", [4, 4], 12, [1, 1], [2, 2], [4, 4]), 64, "permute", "NCHW", (8, 8), 0,
    ),
    "transformers vit": (lambda: hugging_face("ViT", **VIT), 64, "layernorm_before", "tokens", (4, 4), 1),
    "transformers swin": (
        lambda: hugging_face("Swin", patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4), 64,
        "swin.layernorm", "tokens", (8, 8), 0,
    ),
    "transformers convnext": (
        lambda: hugging_face("ConvNext", depths=[1, 1], hidden_sizes=[8, 16], num_stages=2), 64, "convnext.encoder.stages.1",
        "NCHW", (8, 8), 0,
    ),
}  # fmt: skip
models = pytest.mark.parametrize("name", MODELS)


def weighted(model):
    """The model in float64 with weights that matter: heads and the scales of residual branches are often made zero."""
    keyed = torch.Generator().manual_seed(1)
    for parameter in model.double().eval().parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape, generator=keyed, dtype=torch.float64) * 0.2
    return model


def inputs(*size):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@functools.cache
def built(name):
    make, size, *_ = MODELS[name]
    torch.manual_seed(0)
    return weighted(make()), inputs(*(size if isinstance(size, tuple) else (size, size)))


def by_hand(model, x, layer, grid, prefix, layout):
    """Activation (C, h, w) and its gradient for one input, through a hook of the test's own."""
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(lambda m, args, out: kept.append(out))
    out = model(x[None])
    handle.remove()
    (gradient,) = torch.autograd.grad(getattr(out, "logits", out)[0, 1], kept[-1])

    def laid(tensor):
        if layout == "tokens":
            return torch.stack(
                [tensor[0, prefix + i * grid[1] : prefix + (i + 1) * grid[1]] for i in range(grid[0])]
            ).permute(2, 0, 1)
        return tensor[0].permute(2, 0, 1) if layout == "NHWC" else tensor[0]

    return laid(kept[-1]).detach(), laid(gradient)


@models
def test_the_layer_is_found_and_class_activation_maps_equal_their_slow_twins(name):
    """The tokens lie on the image as they should: a map by hand, for each input alone."""
    _, _, module, layout, grid, prefix = MODELS[name]
    model, x = built(name)
    score, points = bound(model, x)
    layer = score.layer("auto", points.x[:1], points.owner[:1])
    assert (layer.layout, layer.grid, layer.prefix) == (layout, grid, prefix) and module in layer.name
    found = Stack([GradCAM(), GradCAMPlusPlus(), EigenCAM()]).attribute(score, points).sum(2)
    for i in range(2):
        acts, grads = by_hand(model, x[i], layer.name, grid, prefix, layout)
        below = 2 * grads**2 + grads**3 * acts.sum((1, 2), keepdim=True)
        weight = (torch.where(below != 0, grads**2 / below, 0) * grads.relu()).sum((1, 2), keepdim=True)
        flat = acts.flatten(1).T
        eigen = flat @ torch.linalg.svd(flat)[2][0]
        eigen = (eigen * (1 if eigen.mean() >= 0 else -1)).relu().reshape(grid)
        for j, cam in enumerate(
            [(grads.mean((1, 2), keepdim=True) * acts).sum(0).relu(), (weight * acts).sum(0).relu(), eigen]
        ):
            big = nnf.interpolate(cam[None, None], size=x.shape[2:], mode="bilinear")[0, 0]
            torch.testing.assert_close(found[i, j], big, rtol=1e-6, atol=1e-9 * float(big.max() + 1e-30))


@models
def test_the_other_rules_refuse_by_name(name):
    """GELU is no rectifier, and layer norm has no rescale rule; what needs plain gradients works."""
    model, x = built(name)
    found = doctor(model, x[:1], 1, ["saliency", "guided_backprop", "deeplift"])
    checks = {check.method: check for check in found.checks}
    assert checks["saliency"].valid
    assert not checks["guided_backprop"].valid and "'gelu' is no rectifier" in checks["guided_backprop"].proof
    assert not checks["deeplift"].valid and "no rescale rule for" in checks["deeplift"].proof


def test_guided_backpropagation_of_a_transformer_with_rectifiers_equals_its_twin():
    model, x = weighted(small_vit(act_layer=nn.ReLU)), inputs(64, 64)
    found = Stack([GuidedBackprop(), Saliency()]).attribute(*bound(model, x))
    handles = [
        module.register_full_backward_hook(lambda m, got, out: (got[0].clamp(min=0),))
        for module in model.modules()
        if isinstance(module, nn.ReLU)
    ]
    row = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(row)[:, 1].sum(), row)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(found[:, 0], expected)
    assert not torch.allclose(found[:, 0], found[:, 1])


def test_deeplift_of_an_affine_mixer_is_complete():
    """ResMLP normalises by an affine map and mixes tokens by linear layers: its GELUs have a rescale rule."""
    torch.manual_seed(0)
    found = pytest.importorskip("timm.models.mlp_mixer")
    model = found.MlpMixer(
        5, img_size=64, embed_dim=24, num_blocks=2, mlp_ratio=4, block_layer=found.ResBlock, norm_layer=found.Affine
    )
    check = doctor(weighted(model), inputs(64, 64), 1, ["deeplift"]).checks[0]
    assert check.valid and check.completeness_error < 1e-9


# -- how tokens are read -----------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """Patches embedded by ``embed``, a norm, keys and values read by one query, or by the mean."""

    def __init__(self, embed, pooled):
        super().__init__()
        self.embed, self.norm, self.pooled = embed, nn.LayerNorm(16), pooled
        self.key, self.value, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = self.embed(x)
        x = self.norm(x.flatten(2).transpose(1, 2) if x.ndim == 4 else x)
        weight = self.key(x)[..., :1].softmax(1)
        return self.head(self.pooled((weight * self.value(x)).transpose(1, 2))[..., 0])


class Unfold(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(192, 16)

    def forward(self, x):
        return self.linear(nnf.unfold(x, 8, stride=8).transpose(1, 2))


def test_projections_and_pooled_channels_are_no_layers():
    """Values are projected after the norm, and (N, 16, 1) after the pool looks like a 4 × 4 grid: neither is the layer."""
    for embed in (nn.Conv2d(3, 16, 8, 8), Unfold()):
        model = Tokens(embed, nn.AdaptiveAvgPool1d(1))
        x = torch.randn(1, 3, 32, 32)
        found = find(model, lambda picture: model(picture)[0], x)  # noqa: B023
        assert found == Layer("norm", 0, "tokens", (4, 4), 0)


def test_a_projection_is_a_layer_where_there_is_nothing_else():
    class Plain(Unfold):
        def forward(self, x):
            return super().forward(x).mean(1)

    model, x = Plain(), torch.randn(1, 3, 32, 32)
    assert find(model, lambda picture: model(picture)[0], x).name == "linear"


class Recurrent(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell, self.head = cell, nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1].relu())


@pytest.mark.parametrize("rule", ["guided", "rescale"])
def test_what_hides_its_activations_is_refused(rule):
    model = Recurrent(nn.RNN(3, 4, batch_first=True, nonlinearity="relu"))
    x = torch.randn(2, 5, 3, requires_grad=True)
    with pytest.raises(UnsupportedOp, match="rnn_relu"), applied(rule, model):
        torch.autograd.grad(model(torch.cat([x, x]))[:, 0].sum(), x)
