"""One mechanism for rectifiers and the rescale rule: twins, completeness, clear refusals, nothing left behind."""

from __future__ import annotations

import sys
import threading

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

import consilience as cs
from consilience.errors import InputError, UnsupportedOp
from consilience.model.backward_rules import Call, applied, survey


def gradient(model, x, rule, baseline=None, out=0, create_graph=False):
    leaf = x.clone().requires_grad_()
    rows = leaf.clone() if baseline is None else torch.cat([leaf, baseline])
    with applied(rule, model if isinstance(model, nn.Module) else None):
        y = model(rows)
        (g,) = torch.autograd.grad(y[: len(x), out].sum(), leaf, create_graph=create_graph)
    return g, y


def completeness(model, x, baseline):
    g, y = gradient(model, x, "rescale", baseline)
    n = len(x)
    return ((g * (x - baseline)).flatten(1).sum(1) - (y[:n, 0] - y[n:, 0])).abs().max().item()


def cnn(act=nn.ReLU, pool=2, stride=2):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), act(), nn.MaxPool2d(pool, stride), nn.Conv2d(6, 8, 3), act(), nn.Flatten(), nn.LazyLinear(5)
    )


def images(dtype=torch.float64, n=3, size=12):
    torch.manual_seed(1)
    return torch.randn(n, 3, size, size, dtype=dtype)


def built(model, x=None):
    model = model.to(torch.float64).eval()
    with torch.no_grad():
        model(images() if x is None else x)
    return model


class Twin(nn.Module):
    """``cnn()`` with the same weights and its rectifiers written another way."""

    def __init__(self, base, rectify):
        super().__init__()
        self.first, self.second, self.head, self.rectify = base[0], base[3], base[6], rectify

    def forward(self, x):
        x = F.max_pool2d(self.rectify(self.first(x)), 2)
        return self.head(self.rectify(self.second(x)).flatten(1))


def ignoring(x):
    x.relu_()
    return x


FORMS = {
    "functional": F.relu,
    "torch.relu": torch.relu,
    "method": lambda x: x.relu(),
    "relu_": lambda x: x.relu_(),
    "torch.relu_": torch.relu_,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "result ignored": ignoring,
    "clamp": lambda x: x.clamp(min=0),
    "clamp_": lambda x: x.clamp_(0),
    "clamp_min": lambda x: torch.clamp_min(x, 0),
    "hardtanh": lambda x: F.hardtanh(x, 0.0, 1e9),
    "threshold": lambda x: F.threshold(x, 0, 0),
    "reused module": nn.ReLU(),
    "reused in-place module": nn.ReLU(inplace=True),
    "view in place": lambda x: (x[:, :2].relu_(), x[:, 2:].relu_(), x)[2],
    "aten": torch.ops.aten.relu,
}


# -- guided ------------------------------------------------------------------------------------------------------------


def slow_guided(base, x):
    """Layer by layer, from the definition."""
    before, tensors = x, []
    for layer in base:
        before = before.detach().requires_grad_()
        after = layer(before)
        tensors.append((layer, before, after))
        before = after
    g = torch.zeros_like(after)
    g[:, 0] = 1
    for layer, before, after in reversed(tensors):
        if isinstance(layer, nn.ReLU):
            g = g.clamp(min=0) * (before > 0)
        else:
            (g,) = torch.autograd.grad(after, before, g)
    return g


def test_guided_equals_slow_twin_and_captum():
    attr = pytest.importorskip("captum.attr")
    base, x = built(cnn()), images()
    ours, _ = gradient(base, x, "guided")
    torch.testing.assert_close(ours, slow_guided(base, x))
    with pytest.warns(UserWarning):
        torch.testing.assert_close(ours, attr.GuidedBackprop(base).attribute(x, target=0))
    assert not torch.allclose(ours, gradient(base, x, None)[0])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", ["guided", "rescale"])
def test_every_form_is_the_same(form, rule):
    base, x = built(cnn()), images()
    baseline = torch.full_like(x, 0.1) if rule == "rescale" else None
    expected, value = gradient(base, x, rule, baseline)
    got, same = gradient(Twin(base, FORMS[form]), x, rule, baseline)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(same, value, rtol=0, atol=0)


def test_guided_keeps_gates_and_caps():
    x = images()
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.LazyLinear(2)
    )
    assert gradient(built(net), x, "guided")[0].abs().sum() > 0


@pytest.mark.parametrize(
    "act, op",
    [
        (nn.SiLU(), "silu"), (nn.GELU(), "gelu"), (nn.ELU(), "elu"), (nn.LeakyReLU(), "leaky_relu"),
        (nn.PReLU(), "prelu"), (nn.Hardswish(), "hardswish"), (nn.Softplus(), "softplus"), (nn.Mish(), "mish"),
        (nn.Threshold(0.5, 0), "threshold"),
        (lambda x: x * torch.sigmoid(x), "gate"), (lambda x: torch.maximum(x, torch.zeros(())), "maximum"),
        (lambda x: torch.where(x > 0, x, 0.0), "where"), (nn.Tanh(), "no rectifier"),
    ],
)  # fmt: skip
def test_guided_refuses_by_name(act, op):
    model = built(Twin(built(cnn()), act))
    with pytest.raises(UnsupportedOp, match=op):
        gradient(model, images(), "guided")


# -- rescale -----------------------------------------------------------------------------------------------------------


def slow_rescale(layers, x, b):
    """DeepLIFT of a chain of linear layers and elementwise functions, one row and one layer at a time."""
    rows = []
    for xi, bi in zip(x, b, strict=True):
        trace = []
        u, v = xi[None], bi[None]
        for layer in layers:
            trace.append((layer, u, v, layer(u), layer(v)))
            u, v = layer(u), layer(v)
        m = torch.zeros_like(u)
        m[:, 0] = 1
        for layer, p, q, fp, fq in reversed(trace):
            if isinstance(layer, (nn.Linear, nn.Conv2d, nn.Flatten)):
                (m,) = torch.autograd.functional.vjp(layer, p, m)[1:]
            else:
                m = m * (fp - fq) / (p - q)
        rows.append(m[0])
    return torch.stack(rows)


ELEMENTWISE = [
    nn.ReLU(), nn.ReLU6(), nn.Hardtanh(), nn.LeakyReLU(), nn.ELU(), nn.SELU(), nn.CELU(), nn.GELU(), nn.GELU("tanh"),
    nn.SiLU(), nn.Mish(), nn.Sigmoid(), nn.Tanh(), nn.Hardswish(), nn.Hardsigmoid(), nn.Softplus(), nn.Softsign(),
    nn.LogSigmoid(), nn.Threshold(0.1, 0.2), nn.PReLU(6), nn.RReLU(), nn.Tanhshrink(), torch.exp, torch.abs,
    torch.square, lambda x: x**3, lambda x: x * x, lambda x: 1 / (x.abs() + 1), lambda x: x.clamp(-0.3, 0.4),
    lambda x: torch.maximum(x, torch.tensor(-2.0)), lambda x: F.silu(x, inplace=True),
    lambda x: F.elu(x, inplace=True), lambda x: F.mish(x, inplace=True),
]  # fmt: skip


class Chain(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers, self.parts = layers, nn.ModuleList(layer for layer in layers if isinstance(layer, nn.Module))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("place", range(len(ELEMENTWISE)))
def test_rescale_equals_slow_twin(place):
    torch.manual_seed(place)
    act = ELEMENTWISE[place]
    net = Chain([nn.Linear(4, 6), act, nn.Linear(6, 6), act, nn.Linear(6, 3)]).double().eval()
    x, b = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    with torch.no_grad():
        out = net(torch.cat([x, b]))
    got, y = gradient(net, x, "rescale", b)
    pure = (lambda z: act(z.clone())) if not isinstance(act, nn.Module) else act
    twin = [pure if layer is act else layer for layer in net.layers]
    torch.testing.assert_close(got, slow_rescale(twin, x, b))
    torch.testing.assert_close(y, out, rtol=0, atol=0)


@pytest.mark.parametrize("act", [nn.ReLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.ELU, nn.LeakyReLU])
def test_rescale_equals_captum(act):
    """With average pooling; with max pooling only at zero: Captum's sums are off when the baseline wins a window."""
    attr = pytest.importorskip("captum.attr")
    x = images()
    average = cnn(act)
    average[2] = nn.AvgPool2d(2)
    for net, b in ((built(average), torch.randn_like(x)), *([(built(cnn()), torch.zeros_like(x))] * (act is nn.ReLU))):
        ours = gradient(net, x, "rescale", b)[0] * (x - b)
        with pytest.warns(UserWarning):
            theirs = attr.DeepLift(net).attribute(x, baselines=b, target=0)
        torch.testing.assert_close(ours, theirs)


def test_max_pooling_equals_its_definition():
    """Shrikumar et al.'s rule by hand: max(y, y') − y' goes to x's winner and y − max(y, y') to the baseline's."""
    torch.manual_seed(0)
    x, b, weight = (torch.randn(9, dtype=torch.float64) for _ in range(3))
    net = lambda rows: (F.max_pool1d(rows, 3, 2, 1)[:, 0] * weight[:5]).sum(1, keepdim=True)  # noqa: E731
    got = gradient(net, x[None, None], "rescale", b[None, None])[0][0, 0]
    expected = torch.zeros(9, dtype=torch.float64)
    for k in range(5):
        window = [i for i in range(2 * k - 1, 2 * k + 2) if 0 <= i < 9]
        i, j = max(window, key=lambda i: x[i]), max(window, key=lambda j: b[j])
        top = max(x[i], b[j])
        expected[i] += weight[k] * (top - b[j]) / (x[i] - b[i])
        expected[j] += weight[k] * (x[i] - top) / (x[j] - b[j])
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("pool", [(3, 2), (3, 1), (2, 2)])
def test_rescale_is_complete_with_overlapping_pooling(pool):
    assert completeness(built(cnn(nn.ReLU, *pool)), images(), torch.zeros_like(images())) < 1e-12


def test_rescale_pools_in_one_and_three_dimensions_and_adaptively():
    x = torch.randn(2, 3, 8, 8, 8, dtype=torch.float64)
    for pool in (nn.MaxPool3d(3, 2, 1), nn.AdaptiveMaxPool3d(3)):
        net = built(nn.Sequential(nn.Conv3d(3, 4, 3), pool, nn.Flatten(), nn.LazyLinear(2)), x)
        assert completeness(net, x, torch.ones_like(x)) < 1e-12
    x = x.flatten(2)
    for pool in (nn.MaxPool1d(3, 1), nn.MaxPool1d(2, ceil_mode=True), nn.AdaptiveMaxPool1d(7)):
        net = built(nn.Sequential(nn.Conv1d(3, 4, 3), nn.Tanh(), pool, nn.Flatten(), nn.LazyLinear(2)), x)
        assert completeness(net, x, torch.ones_like(x)) < 1e-12


def test_rescale_of_a_linear_network_and_at_the_baseline_is_the_gradient():
    parts = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.Dropout(), nn.Flatten(), nn.LazyLinear(2)
    net = built(nn.Sequential(*parts))
    x = images()
    torch.testing.assert_close(gradient(net, x, "rescale", x + 1)[0], gradient(net, x, None)[0], rtol=0, atol=0)
    smooth = built(cnn(nn.Softplus))
    torch.testing.assert_close(gradient(smooth, x, "rescale", x)[0], gradient(smooth, x, None)[0])


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("vgg11", "densenet121", "alexnet")]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", *SLOW])
def test_both_rules_on_torchvision(name):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    small = {"width_mult": 0.35} if name == "mobilenet_v2" else {}
    net = getattr(models, name)(weights=None, **small).double().eval()
    for module in net.modules():  # random weights shrink the signal to nothing in a deep net without fitted statistics
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(0.1)
    size = 64 if name == "alexnet" else 32
    x = torch.randn(1, 3, size, size, dtype=torch.float64)
    y = net(torch.cat([x, torch.zeros_like(x)]))
    change = (y[0, 0] - y[1, 0]).abs().item()
    assert change > 1e-4  # there is something to complete
    assert completeness(net, x, torch.zeros_like(x)) < 1e-9 * max(1, change)
    assert gradient(net, x, "guided")[0].abs().sum() > 0


def test_lite0_works_and_gates_are_refused_on_timm():
    timm = pytest.importorskip("timm")
    x = torch.randn(1, 3, 32, 32)
    lite = timm.create_model("tf_efficientnet_lite0").eval()
    assert completeness(lite, x, torch.zeros_like(x)) < 1e-4
    assert {call.op for call in survey(lite, lambda: lite(x))} == {"hardtanh"}
    gated = timm.create_model("efficientnet_b0").eval()
    with pytest.raises(UnsupportedOp, match=r"'mul' of tensors that both depend.*blocks\.0\.0\.se"):
        completeness(gated, x, torch.zeros_like(x))


def test_vit_is_refused_by_name():
    models = pytest.importorskip("torchvision.models")
    net = models.VisionTransformer(32, 16, 1, 2, 32, 64, num_classes=3).eval()
    x = torch.randn(1, 3, 32, 32)
    with pytest.raises(UnsupportedOp, match=r"'layer_norm'.*encoder_layer_0\.ln_1"):
        completeness(net, x, torch.zeros_like(x))
    with pytest.raises(UnsupportedOp, match=r"'gelu'.*encoder_layer_0\.mlp\.1"):
        gradient(net, x, "guided")


class SwishFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, g):
        return g


REFUSED = {
    "matmul": lambda x: x @ x.transpose(1, 2),
    "mul": lambda x: x * x.mean(1, keepdim=True),
    "mul_": lambda x: (x + 0).mul_(torch.sigmoid(x)),
    "div": lambda x: x / (1 + x.abs().sum(1, keepdim=True)),
    "einsum": lambda x: torch.einsum("nij,nkj->nik", x, x),
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: F.log_softmax(x, 1),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "group_norm": lambda x: F.group_norm(x, 2),
    "instance_norm": lambda x: F.instance_norm(x),
    "rms_norm": lambda x: F.rms_norm(x, x.shape[1:]),
    "normalize": lambda x: F.normalize(x),
    "scaled_dot_product_attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "norm": lambda x: x / x.norm(),
    "std": lambda x: x.std(1),
    "var": lambda x: x.var(1),
    "amax": lambda x: x.amax(1, keepdim=True),
    "max": lambda x: x.max(1, keepdim=True)[0],
    "topk": lambda x: x.topk(2, 1)[0],
    "sort": lambda x: x.sort(1)[0],
    "logsumexp": lambda x: x.logsumexp(1, keepdim=True),
    "cumprod": lambda x: x.cumprod(1),
    "lstm": lambda x: nn.LSTM(4, 4, batch_first=True)(x)[0],
    "glu": lambda x: F.glu(x),
    "maximum": lambda x: torch.maximum(x, -x),
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
    "dropout": lambda x: F.dropout(x),
    "where": lambda x: torch.where(x > 0, x, -x),
    "comparison": lambda x: x * (x > 0),
    "detach": lambda x: x + x.detach(),
    "batch axis": lambda x: x.transpose(0, 1).relu(),
    "'cat' along": lambda x: torch.cat([x, x]),
    "first axis": lambda x: x[:3].relu(),
    "hides": lambda x: SwishFunction.apply(x).relu(),
    "hides its ops": lambda x: (SwishFunction.apply(x) + 1).view(-1, 4, 4),
}


@pytest.mark.parametrize("name", REFUSED)
def test_rescale_refuses_by_name(name):
    net = Chain([nn.Linear(4, 4), REFUSED[name]])
    x = torch.randn(4, 4, 4)
    with pytest.raises(UnsupportedOp, match=name.rstrip("_") + ".*(deeplift|eval)"):
        gradient(net.eval(), x, "rescale", x + 1)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("rule", ["guided", "rescale"])
def test_scripted_and_compiled_are_refused(rule):
    x = images()
    scripted = torch.jit.trace(built(cnn()), x)
    function = torch.jit.trace(lambda z: z.relu(), x)
    compiled = torch.compile(built(cnn()))
    inner = nn.Sequential(nn.Identity(), compiled)
    for net in (scripted, compiled, inner):
        with pytest.raises(UnsupportedOp, match=r"(TorchScript|compiled).*pass the original"):
            gradient(net, x, rule, x if rule == "rescale" else None)
    with pytest.raises(UnsupportedOp, match="hides its ops"):
        gradient(Twin(built(cnn()), function), x, rule, x if rule == "rescale" else None)
    assert survey(scripted, lambda: scripted(x)) == []


def test_parameter_functions_are_not_taken_for_the_input():
    """Weight normalisation multiplies two parameters; only what depends on the input is refused."""
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    assert completeness(net, x, x - 1) < 1e-12


@pytest.mark.parametrize("rule", ["guided", "rescale"])
def test_a_loss_of_the_attribution_has_exact_parameter_gradients(rule):
    torch.manual_seed(0)
    first = nn.ReLU() if rule == "guided" else nn.Softplus()
    middle = nn.Linear(4, 4), first, nn.Linear(4, 4)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), *middle, nn.Tanh(), nn.Linear(4, 1)).double()
    x, b = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    names, values = zip(*net.named_parameters(), strict=True)

    def attribution(*parameters):
        given = dict(zip(names, parameters, strict=True))
        model = lambda rows: torch.func.functional_call(net, given, rows)  # noqa: E731
        g, y = gradient(model, x, rule, b if rule == "rescale" else None, create_graph=True)
        return g, y  # the output's own gradient is the ordinary one again

    assert torch.autograd.gradcheck(attribution, tuple(values), eps=1e-6, atol=1e-6)


def test_graphs_are_for_inside_and_first_order_for_after():
    net, x = built(cnn()), images()
    for rule, base in (("guided", None), ("rescale", torch.zeros_like(x))):
        leaf = x.clone().requires_grad_()
        with applied(rule, net):
            y = net(leaf.clone() if base is None else torch.cat([leaf, base]))[: len(x), 0].sum()
        (after,) = torch.autograd.grad(y, leaf, retain_graph=True)
        torch.testing.assert_close(after, gradient(net, x, rule, base)[0])
        with pytest.raises(InputError, match="inside"):
            torch.autograd.grad(y, leaf, create_graph=True)


# -- what is left behind -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [None, "guided", "rescale"])
def test_nothing_stays_behind(rule):
    net, x = built(cnn()), images()
    plain = gradient(net, x, None)[0]
    with pytest.raises(ZeroDivisionError), applied(rule, net):
        net(torch.cat([x, x]).requires_grad_())
        1 / 0  # noqa: B018
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch.overrides._get_current_function_mode_stack() == []
    torch.testing.assert_close(gradient(net, x, None)[0], plain, rtol=0, atol=0)


def test_arguments_are_checked():
    net, x = built(cnn()), images()
    with pytest.raises(InputError, match="guided"), applied("relu", net):
        pass
    with pytest.raises(InputError, match="halves"):
        gradient(net, x, "rescale", x[:2])
    with pytest.raises(InputError, match="grad enabled"), torch.no_grad(), applied("guided", net):
        net(x)


def test_survey_tells_what_ran_where():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.inner, self.drop = nn.ReLU(), nn.Sequential(nn.GELU(), nn.ReLU(inplace=True)), nn.Dropout()

        def forward(self, x):
            return F.silu(self.inner(self.act(self.drop(self.act(x))))).relu().sigmoid_()

    net = Net()
    assert survey(net, lambda: net(torch.randn(2, 3))) == [
        Call("relu", "module", "act", 2),
        Call("gelu", "module", "inner.0"),
        Call("relu", "in-place", "inner.1"),
        Call("silu", "functional", ""),
        Call("relu", "method", ""),
        Call("sigmoid", "in-place", ""),
    ]


# -- what is said, and what is left behind -----------------------------------------------------------------------------


def gradient_of(net, rule, x):
    leaf = x.clone().requires_grad_()
    with applied(rule, net):
        rows = torch.cat([leaf, torch.zeros_like(leaf)]) if rule == "rescale" else leaf
        return torch.autograd.grad(net(rows)[: len(x), 0].sum(), leaf)[0]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("rule", ["guided", "rescale"])
@pytest.mark.filterwarnings("ignore")
def test_a_checkpointed_model_is_told_to_switch_that_off(rule, reentrant):
    """It was blamed for TorchScript."""

    class Checkpointed(nn.Module):
        def __init__(self, on):
            super().__init__()
            torch.manual_seed(0)
            self.body, self.head, self.on = nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 2), on

        def forward(self, x):
            if not self.on:
                return self.head(self.body(x))
            return self.head(torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=reentrant))

    x = torch.randn(3, 4)
    with pytest.raises(UnsupportedOp, match="checkpointing") as caught:
        gradient_of(Checkpointed(True), rule, x)
    assert "TorchScript" not in str(caught.value)
    assert gradient_of(Checkpointed(False), rule, x).any()  # the remedy


@pytest.mark.parametrize("rule", ["guided", "rescale"])
@pytest.mark.filterwarnings("ignore")
def test_quantised_layers_are_refused_by_name(rule):
    """Guided backpropagation raised AttributeError."""
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    packed = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(UnsupportedOp, match="module '0' is quantised.*float model"):
        gradient_of(packed, rule, torch.randn(3, 4))


def test_behind_a_softmax_the_logits_are_the_remedy():
    logits = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(3, 4)
    with pytest.raises(UnsupportedOp, match=r"'softmax' in module '1'.*explain the logits"):
        gradient_of(nn.Sequential(logits, nn.Softmax(1)), "rescale", x)
    assert gradient_of(logits, "rescale", x).any()
    result = cs.explain(logits, x, 1, methods=["deeplift", "saliency"], kind="probability", objective="mean")
    assert "kind='logit'" in result.failed["deeplift"]


def test_no_refusal_recommends_what_is_refused_too():
    transformer = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2))
    with pytest.raises(UnsupportedOp) as caught:
        gradient_of(transformer, "guided", torch.randn(3, 4))
    assert "deeplift" not in str(caught.value) and "integrated_gradients" in str(caught.value)


@pytest.mark.parametrize("rule", ["guided", "rescale"])
def test_an_interrupt_at_any_call_leaves_nothing_behind(rule):
    """Ctrl-C at the n-th Python call, for each n: while hooks are registered, in forward, backward and in the clean-up."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    x = torch.randn(2, 4)
    right = gradient_of(net, rule, x)
    plain = torch.autograd.functional.jacobian(lambda z: net(z)[:, 0].sum(), x)

    def interrupted(at):
        calls = 0

        def count(frame, event, arg):
            nonlocal calls
            # Not within a generator expression, whose interrupt Python may only report.
            code = frame.f_code
            if event == "call" and "consilience" in code.co_filename and code.co_name != "<genexpr>":
                calls += 1
                if calls == at:
                    raise KeyboardInterrupt

        sys.setprofile(count)
        try:
            gradient_of(net, rule, x)
        except KeyboardInterrupt:
            return True
        finally:
            sys.setprofile(None)
        return False

    at = 1
    while interrupted(at):
        for module in net.modules():
            assert not module._forward_hooks and not module._forward_pre_hooks, at
            assert not module._forward_hooks_always_called, at
        leaf = x.clone().requires_grad_()
        assert torch.equal(torch.autograd.grad(net(leaf)[:, 0].sum(), leaf)[0], plain), at
        at += 1
    assert at > 100
    assert torch.equal(gradient_of(net, rule, x), right)


def test_another_threads_calls_are_not_mistaken_for_ones_own():
    """The same module runs elsewhere while the rule is in force here."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    x = torch.randn(2, 4)
    right = gradient_of(net, "guided", x)
    stop = threading.Event()

    def elsewhere():
        while not stop.is_set():
            net(x)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    try:
        for _ in range(50):
            assert torch.equal(gradient_of(net, "guided", x), right)
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize(
    "random",
    [
        lambda x: torch.rrelu(x, 0.1, 0.3, True),
        lambda x: F.rrelu(x, 0.1, 0.3, training=True),
        lambda x: torch.dropout(x, 0.5, True),
        lambda x: torch.dropout(x, 0.5, train=True),
        lambda x: F.dropout(x, 0.5, True),
    ],
)
def test_rescale_refuses_noise_however_training_is_said(random):
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with pytest.raises(UnsupportedOp, match="in training mode is random"), applied("rescale"):
        random(x).sum()
