"""Other libraries' methods as explainers: Captum's against Captum itself, input by input; callables; nothing left behind."""

from __future__ import annotations

import copy
import functools
import random

import numpy as np
import pytest
import torch
from nets import Small, bound, images
from torch import nn

import consilience as cs
from consilience.explainers import Saliency, Stack, foreign
from consilience.explainers.cam import upsample
from consilience.explainers.captum import Captum, captum
from consilience.explainers.function import Function
from consilience.features.images import Patches, Pixels
from consilience.model.score import Score
from consilience.perturb.points import Points
from consilience.statistics.keys import Key

attr = pytest.importorskip("captum.attr")
pytestmark = pytest.mark.filterwarnings("ignore")  # Captum's, about the hooks and gradients that it sets

TARGET = [1, 0, 3]
OWNER = torch.tensor([2, 0, 1, 1, 0])  # neighbours of three inputs, in no order
IDS = torch.tensor([12, 10, 11, 21, 20])
DATA = images(4, seed=3)
MASK = Patches(4).expand(torch.arange(4).view(1, 2, 2), torch.tensor([0]), (3, 8, 8)).contiguous()
GRADIENT = [
    ("Saliency", {}),
    ("InputXGradient", {}),
    ("IntegratedGradients", {"n_steps": 7, "baselines": 0.2}),
    ("IntegratedGradients", {"n_steps": 7, "internal_batch_size": 3}),
    ("DeepLift", {"baselines": 0.2}),
    ("DeepLiftShap", {"baselines": DATA}),
    ("GradientShap", {"baselines": DATA, "n_samples": 4, "stdevs": 0.1}),
    ("GuidedBackprop", {}),
    ("Deconvolution", {}),
    ("LRP", {}),
]
PERTURBATION = [
    ("FeatureAblation", {"feature_mask": MASK}),
    ("FeatureAblation", {"feature_mask": MASK, "perturbations_per_eval": 3, "baselines": 0.2}),
    ("Occlusion", {"sliding_window_shapes": (3, 4, 4), "strides": (3, 2, 2)}),
    ("ShapleyValueSampling", {"feature_mask": MASK, "n_samples": 3}),
    ("ShapleyValues", {"feature_mask": MASK}),
    ("Lime", {"feature_mask": MASK, "n_samples": 12}),
    ("KernelShap", {"feature_mask": MASK, "n_samples": 12}),
]
LAYER = [
    ("GuidedGradCam", {}),
    ("LayerGradCam", {}),
    ("LayerGradientXActivation", {}),
    ("LayerActivation", {}),
    ("LayerConductance", {"n_steps": 5}),
    ("InternalInfluence", {"n_steps": 5}),
    ("LayerIntegratedGradients", {"n_steps": 5}),
    ("LayerDeepLift", {}),
    ("LayerDeepLiftShap", {"baselines": DATA}),
    ("LayerGradientShap", {"baselines": DATA, "n_samples": 3}),
    ("LayerFeatureAblation", {"perturbations_per_eval": 32}),
]
CASES = (
    [(*row, None) for row in GRADIENT + PERTURBATION] + [(*row, "act2") for row in LAYER] + [("LayerLRP", {}, "conv2")]
)
HOOKED = ("DeepLift", "GradientShap", "GuidedBackprop", "LRP", "Lime", "LayerGradCam", "LayerLRP", "LayerDeepLift")
SIZES = torch.full((1, 3, 8, 8), 48)  # elements of each feature of MASK
cases = pytest.mark.parametrize("name, options, layer", CASES, ids=lambda v: v if isinstance(v, str) else "")


def neighbours(model=None, **options):
    score = Score(model or Small(), TARGET, ids=[10, 11, 12], **options).at(images())
    x = images()[OWNER] + 0.1 * images(5, seed=8)
    return score, Points(x, OWNER, IDS)


def found(explainer, score, points):
    return Stack([explainer]).attribute(score, points)[:, 0]


def plain(name, options, layer, score, points, i, explainer):
    """Captum as one would call it for one input, under the seed that belongs to its id."""
    model = Small()
    method = getattr(attr, name)(*([model] if layer is None else [model, getattr(model, layer)]))
    low, high = Key(0, f"explainer/{explainer.name}").bits(points.ids[i : i + 1], 0, 2)[0].tolist()
    torch.manual_seed((low | high << 32) >> 1)
    np.random.seed(low)  # noqa: NPY002
    random.seed(low | high << 32)
    call = {} if name == "LayerActivation" else {"target": TARGET[points.owner[i]]}
    maps = method.attribute(points.x[i : i + 1].clone(), **call, **options).detach().double()
    if layer and name != "GuidedGradCam":
        return upsample(maps.sum(1), points[i : i + 1])
    return maps / SIZES if "feature_mask" in options else maps


@cases
def test_equals_captum_called_for_one_input_after_the_other(name, options, layer):
    score, points = neighbours()
    explainer = captum(getattr(attr, name), layer=layer, **options)
    maps = found(explainer, score, points)
    assert maps.shape == points.x.shape and maps.dtype == torch.float64 and not maps.requires_grad
    random_state = torch.random.get_rng_state()
    for i in range(len(points)):
        expected = plain(name, options, layer, score, points, i, explainer)
        torch.testing.assert_close(maps[i : i + 1], expected, rtol=1e-5, atol=1e-9)
    torch.random.set_rng_state(random_state)


@pytest.mark.parametrize(
    "name, options, layer",
    [row for row in CASES if row[0] not in ("ShapleyValues", "InternalInfluence", "LayerActivation", "Deconvolution")],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_same_for_any_order_chunk_and_company(name, options, layer):
    explainer = captum(getattr(attr, name), layer=layer, **options)
    whole = found(explainer, *neighbours(max_batch=64))
    torch.testing.assert_close(found(explainer, *neighbours(max_batch=2)), whole, rtol=1e-6, atol=1e-9)
    score, points = neighbours()
    order = torch.tensor([3, 1, 4])
    torch.testing.assert_close(found(explainer, score, points[order]), whole[order], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "name, options, layer", [row for row in CASES if row[0] in HOOKED], ids=lambda v: v if isinstance(v, str) else ""
)
@pytest.mark.parametrize("fails", [False, True])
def test_everything_comes_back(name, options, layer, fails):
    model = Small().train()
    model.conv1.eval()
    model.conv2.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.act1.rule = "the caller's"
    score, points = neighbours(model)
    if fails:
        model.head.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("broken head")))
    state = lambda: (  # noqa: E731
        [(m.training, sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        [(p.requires_grad, p.data_ptr(), p.grad is None) for p in model.parameters()],
        random.getstate(),
        model.act1.rule,
    )
    values = copy.deepcopy(model.state_dict()), points.x.clone(), torch.random.get_rng_state(), np.random.get_state()  # noqa: NPY002
    before = state()
    try:
        found(captum(getattr(attr, name), layer=layer, **options), score, points)
    except (RuntimeError, cs.InputError) as error:
        # A rule that is no rule is refused by LRP, before the head breaks.
        assert (fails and "broken head" in str(error)) or "LRP" in name
    assert before == state()
    assert all(torch.equal(values[0][k], v) for k, v in model.state_dict().items())
    assert torch.equal(values[1], points.x) and torch.equal(values[2], torch.random.get_rng_state())
    assert (values[3][1] == np.random.get_state()[1]).all()  # noqa: NPY002


@pytest.mark.parametrize("name, options", GRADIENT + PERTURBATION)
def test_the_planned_rows_are_those_evaluated(name, options):
    explainer = captum(getattr(attr, name), **options)
    score, points = neighbours(max_batch=64)
    start = score.counts.forward, score.counts.gradient
    found(explainer, score, points)
    cost = explainer.rows((3, 8, 8))
    spent = score.counts.forward - start[0], score.counts.gradient - start[1]
    assert spent == (5 * cost.get("forward", 0), 5 * cost.get("gradient", 0))


def test_keyword_tensors_follow_their_input_through_captums_expansions():
    class Scaled(nn.Module):
        def forward(self, x, gain):
            return (x * gain).flatten(1).cumsum(1)[:, -4:] ** 2

    gain = torch.arange(1.0, 4.0).double().view(3, 1, 1, 1)
    score, points = neighbours(Scaled(), kwargs={"gain": gain})
    for name in ("IntegratedGradients", "GradientShap"):
        options = {"baselines": DATA} if name == "GradientShap" else {"n_steps": 6}
        maps = found(captum(getattr(attr, name), **options), score, points)
        for i, owner in enumerate(OWNER.tolist()):
            alone = Score(Scaled(), TARGET[owner], kwargs={"gain": float(gain[owner])}).at(points.x[i : i + 1])
            point = Points(points.x[i : i + 1], torch.tensor([0]), IDS[i : i + 1])
            torch.testing.assert_close(maps[i : i + 1], found(captum(getattr(attr, name), **options), alone, point))


def test_the_kind_of_score_is_captums_too():
    score, points = neighbours(kind="probability")
    torch.testing.assert_close(found(captum(attr.Saliency, abs=False), score, points), found(Saliency(), score, points))


def test_rows_without_owners_are_refused():
    score, points = neighbours()
    with pytest.raises(cs.InputError, match="one owner each"):
        score.module()(points.x)
    with pytest.raises(cs.InputError, match="additional_forward_args"):
        attr.IntegratedGradients(score.module()).attribute(images())
    alone, point = bound(Small(), images(1))
    torch.testing.assert_close(alone.module()(point.x.expand(4, -1, -1, -1)), alone.clean.expand(4))


def test_what_is_given_for_each_input_goes_with_it():
    score, points = neighbours()
    baselines = images(3, seed=5)
    masks = torch.stack([MASK[0], 3 - MASK[0], MASK[0] * 0])
    each = found(captum(attr.FeatureAblation, baselines=baselines, feature_mask=masks), score, points)
    for i, owner in enumerate(OWNER.tolist()):
        method = captum(attr.FeatureAblation, baselines=baselines[owner], feature_mask=masks[owner])
        torch.testing.assert_close(each[i], found(method, score, points[[i]])[0])
    whole = each.flatten(1).sum(1)[2]  # input 1 is one feature after reversal of labels: the same four patches
    torch.testing.assert_close(
        whole, found(captum(attr.FeatureAblation, baselines=baselines[1], feature_mask=MASK), score, points[[2]]).sum()
    )
    with pytest.raises(cs.InputError, match="feature_mask"):
        found(captum(attr.FeatureAblation, feature_mask=masks[:2]), score, points)
    torch.testing.assert_close(
        found(captum(attr.FeatureAblation, feature_mask=Patches(4)), score, points),
        found(captum(attr.FeatureAblation, feature_mask=MASK), score, points),
    )


def test_a_model_that_starts_in_place_does_not_change_the_inputs():
    class InPlace(Small):
        def forward(self, x):
            return super().forward(x.mul_(2))

    score, points = neighbours(InPlace())
    torch.testing.assert_close(found(captum(attr.Saliency, abs=False), score, points), found(Saliency(), score, points))
    gone = points.x.clone()
    gone[:, :, :4, :4] = 0
    maps = found(captum(attr.FeatureAblation, feature_mask=MASK), score, points)
    torch.testing.assert_close(maps[:, 0, 0, 0] * 48, score(points.x, OWNER) - score(gone, OWNER))


def test_features_share_what_captum_gives_to_each_element():
    score, points = neighbours()
    patches = Patches(4).reduce(found(captum(attr.FeatureAblation, feature_mask=Patches(4)), score, points), OWNER)
    gone = points.x.clone()
    gone[:, :, :4, :4] = 0
    torch.testing.assert_close(patches[:, 0, 0], score(points.x, OWNER) - score(gone, OWNER))


# -- instances ---------------------------------------------------------------------------------------------------------


def test_of_an_instance_the_settings_count_and_the_score_is_explained():
    model = Small()
    score, points = neighbours(model)
    local = captum(attr.IntegratedGradients(Small(seed=5), multiply_by_inputs=False), n_steps=6)
    assert local.kind == "gradient"
    torch.testing.assert_close(
        found(local, score, points) * points.x, found(captum(attr.IntegratedGradients, n_steps=6), score, points)
    )
    tunnel = captum(attr.NoiseTunnel(attr.IntegratedGradients(model)), nt_samples=3, n_steps=4, nt_type="vargrad")
    assert tunnel.name == "captum_noise_tunnel_integrated_gradients_nt_samples_3_n_steps_4_nt_type_vargrad"
    assert tunnel.kind == "relevance" and tunnel.rows((3, 8, 8)) == {"gradient": 12}
    whole = found(tunnel, score, points)
    torch.testing.assert_close(found(tunnel, score, points[[3, 0]]), whole[[3, 0]])


def test_a_layer_is_found_in_the_model_that_is_asked():
    model = Small()
    score, points = neighbours(model)
    by_name = found(captum(attr.LayerGradCam, layer="act2"), score, points)
    by_module = captum(attr.LayerGradCam, layer=model.act2)
    by_instance = captum(attr.LayerGradCam(model, model.act2))
    for explainer in (by_module, by_instance, captum(attr.LayerGradCam, layer="auto")):
        torch.testing.assert_close(found(explainer, score, points), by_name)
    other = score.using(Small(seed=4))
    there = found(captum(attr.LayerGradCam, layer="act2"), other, points)
    assert not torch.allclose(there, by_name)
    torch.testing.assert_close(found(by_instance, other, points), there)
    with pytest.raises(cs.InputError, match="not part of the explained model"):
        found(by_module, other, points)
    with pytest.raises(cs.InputError, match="needs one"):
        found(captum(attr.LayerGradCam), score, points)
    with pytest.raises(cs.InputError, match="takes none"):
        found(captum(attr.Saliency, layer="act2"), score, points)


@pytest.mark.parametrize(
    "make, why",
    [
        (lambda: captum(attr.FeaturePermutation), "exchanges values"),
        (lambda: captum(attr.NeuronGradient), "neuron"),
        (lambda: captum(nn.ReLU), "Function"),
        (lambda: captum(attr.IntegratedGradients, nsteps=3), "n_steps"),
        (lambda: captum(attr.Saliency, target=3), "set by the explanation"),
        (lambda: captum(attr.Saliency, kind="heat"), "kind is None, or it is one of"),
        (lambda: captum(attr.LayerGradCam(Small(), None), layer="act2"), "has its own"),
        (lambda: found(captum(attr.NoiseTunnel), *neighbours()), "instance"),
        (lambda: found(captum(attr.GradientShap), *neighbours()), "TypeError"),
        (lambda: found(captum(attr.DeepLift), *bound(lambda x: x.flatten(1), images())), "nn.Module"),
        (
            lambda: found(captum(attr.Saliency), *bound(lambda x: x.reshape(3, -1), images(), numpy=True)),
            "no gradients",
        ),
        (lambda: found(captum(attr.LayerGradCam, layer="head"), *neighbours()), "name a convolution"),
    ],
)
def test_what_cannot_be_right_is_refused(make, why):
    with pytest.raises(cs.InputError, match=why):
        make()


def test_perturbation_methods_explain_numpy_callables():
    weights = np.arange(5.0)
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    score, points = bound(lambda rows: np.stack([rows @ weights, rows.sum(1)], 1), x, [0, 1, 0], numpy=True)
    expected = torch.where(torch.tensor([0, 1, 0])[:, None] == 0, x * torch.as_tensor(weights), x)
    torch.testing.assert_close(found(captum(attr.FeatureAblation), score, points), expected)
    torch.testing.assert_close(found(captum(attr.ShapleyValueSampling), score, points), expected, rtol=1e-5, atol=1e-6)


# -- callables ---------------------------------------------------------------------------------------------------------


def gradient(model, inputs, target):
    rows = inputs.requires_grad_()
    out = model(rows).gather(1, target[:, None]).sum()
    out.backward()  # adds to the parameters' gradients, which is to be undone
    return rows.grad


def quantus_like(model, inputs, targets, **kwargs):
    assert isinstance(inputs, np.ndarray) and isinstance(targets, np.ndarray)
    return gradient(model, torch.from_numpy(inputs), torch.from_numpy(targets)).numpy()


def test_callables_of_every_form():
    model = Small()
    score, points = neighbours(model)
    expected = found(Saliency(), score, points)
    own = lambda x, y: gradient(model, x, y)  # noqa: E731
    forms = [
        Function(gradient),
        Function(quantus_like, numpy=True),
        Function(own),
        Function(lambda inputs, target: own(inputs, target).numpy()),
        Function(lambda inputs, **kwargs: own(inputs, kwargs["target"])),
        Function(lambda inputs, owner: own(inputs, torch.tensor(TARGET)[owner])),
    ]
    for explainer in forms:
        torch.testing.assert_close(found(explainer, score, points), expected)
        assert all(p.grad is None for p in model.parameters())
    other = score.using(Small(seed=4))
    torch.testing.assert_close(found(Function(gradient), other, points), found(Saliency(), other, points))


@pytest.mark.parametrize("shape", [(1, 8, 8), (8, 8)])
def test_heat_maps_are_shared_by_the_channels(shape):
    score, points = neighbours()
    heat = lambda inputs: inputs.sum(1).reshape(len(inputs), *shape)  # noqa: E731
    maps = found(Function(heat), score, points)
    torch.testing.assert_close(Pixels().reduce(maps, OWNER), points.x.sum(1))


def test_a_callable_that_draws_is_seeded_by_each_input():
    def drawing(inputs):
        noise = torch.rand(inputs.shape) + np.random.rand(*inputs.shape) + random.random()  # noqa: NPY002
        return inputs * noise

    score, points = neighbours()
    whole = found(Function(drawing), score, points)
    torch.testing.assert_close(found(Function(drawing), score, points[[4, 2]]), whole[[4, 2]])
    assert not torch.allclose(whole[2] / points.x[2], whole[4] / points.x[4])
    asked = []
    found(Function(lambda inputs: asked.append(len(inputs)) or inputs), score, points)
    assert asked == [1, 4]  # one that does not draw gets the rest at once


@pytest.mark.parametrize(
    "make, why",
    [
        (lambda: Function(lambda x: x[:, :1, :1]), "returned shape"),
        (lambda: Function(lambda x: (x, x.sum())), "not one tensor"),
        (lambda: Function(lambda x: {}["no"]), "KeyError"),
        (lambda: Function(3), "callables, got int"),
        (lambda: Function(gradient, kind="heat"), "kind"),
    ],
)
def test_callables_that_cannot_be_right(make, why):
    with pytest.raises(cs.InputError, match=why):
        found(make(), *neighbours())


@pytest.mark.parametrize(
    "call, takes",
    [
        (lambda net, rows, label: gradient(net, rows, label), None),
        (lambda rows, label, net=None: gradient(Small(), rows, label), None),
        (lambda model, rows, label: gradient(model, rows, label), None),
        (lambda label, inputs: gradient(Small(), inputs, label), None),
        (lambda rows, label=None: gradient(Small(), rows, label), None),
        (lambda inputs, target=0: gradient(Small(), inputs, target), None),
        (lambda inputs, target, model="small": gradient({"small": Small()}[model], inputs, target), None),
        (lambda rows, label, /, steps=3: gradient(Small(), rows, label), None),
        (lambda rows, *, label=None, **rest: gradient(Small(), rows, rest["target"]), None),
        (lambda label, net, rows, steps=3: gradient(net, rows, label), ("target", "model", "inputs")),
        (functools.partial(lambda net, rows, label: gradient(net, rows, label), Small()), None),
    ],
)
def test_what_a_callable_takes_is_read_off_its_signature_or_said(call, takes):
    score, points = neighbours()
    torch.testing.assert_close(found(Function(call, takes=takes), score, points), found(Saliency(), score, points))


@pytest.mark.parametrize(
    "call", [lambda: 0, lambda a, b, c, d: a, lambda rows, label=0: rows, lambda rows, steps=50: rows]
)
def test_a_signature_that_does_not_tell_is_refused_with_what_to_say(call):
    with pytest.raises(cs.InputError, match=r"not clear from its signature .*takes="):
        Function(call)
    with pytest.raises(cs.InputError, match="did you mean 'inputs'"):
        Function(call, takes=("input",))


def test_a_callable_cannot_lose_the_models_keyword_arguments():
    class Scaled(Small):
        def forward(self, x, gain=None):
            return super().forward(x * gain)

    gain = torch.arange(1.0, 4.0).double().view(3, 1, 1, 1)
    model = Scaled()
    score, points = neighbours(model, kwargs={"gain": gain})
    with pytest.raises(cs.InputError, match="owner"):
        found(Function(lambda x, y: x), score, points)
    chosen = Function(lambda inputs, target, owner: gradient(lambda r: model(r, gain[owner]), inputs, target))
    torch.testing.assert_close(found(chosen, score, points), found(Saliency(), score, points))


def test_by_object_and_by_name():
    assert isinstance(foreign(attr.Saliency), Captum) and foreign(attr.Saliency).name == "captum_saliency"
    assert isinstance(foreign(attr.LRP(Small())), Captum) and foreign(attr.LRP(Small())).kind == "relevance"
    assert isinstance(foreign(gradient), Function) and foreign(gradient).name == "gradient"
    assert isinstance(foreign(Saliency), Saliency)
    with pytest.raises(cs.InputError, match="got int"):
        foreign(3)
    two = Stack([foreign(attr.Saliency(Small())), foreign(attr.Saliency(Small())), captum(attr.Saliency, abs=False)])
    assert two.names == ("captum_saliency", "captum_saliency_2", "captum_saliency_abs_False")
    assert repr(captum(attr.GradientShap, baselines=DATA)) == "captum(GradientShap, baselines=array(4, 3, 8, 8))"


def test_in_an_explanation_with_everything_else():
    methods = [captum(attr.IntegratedGradients, n_steps=8), Function(gradient, kind="gradient"), "saliency"]
    r = cs.explain(
        Small(), images(), 1, methods=methods, objective="robust", fit_draws=3, fresh_draws=3, resolved_draws=0
    )
    assert r.methods == ("captum_integrated_gradients_n_steps_8", "gradient", "saliency") and not r.failed
    torch.testing.assert_close(r["gradient"], r["saliency"])
    assert r.attribution.isfinite().all()
