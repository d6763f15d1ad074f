"""The main job on a small network: promises, bad input, files."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from nets import Small, images
from torch import nn

import consilience as cs
from consilience.combine.aggregations import AGGREGATIONS, DERIVED
from consilience.combine.named import OBJECTIVES, named_objective
from consilience.combine.regret import regret
from consilience.combine.weights import Minimise
from consilience.explainers import GradCAM, InputXGradient, IntegratedGradients, Mixture, Saliency, SmoothGrad
from consilience.metrics import AverageSensitivity, Infidelity
from consilience.statistics.criteria import PARTS
from consilience.statistics.evidence import joined

METHODS = [Saliency(), InputXGradient(), IntegratedGradients(4), SmoothGrad(4), GradCAM()]
SMALL = {"fit_draws": "average_sensitivity=6,infidelity=40", "fresh_draws": "average_sensitivity=5,infidelity=50"}
MASKS = Infidelity(cs.Patches(2))


def run(objective="opt", x=None, model=None, **options):
    goal = {
        "opt": cs.Front(AverageSensitivity(), MASKS), "faith": MASKS, "robust": AverageSensitivity(),
    }.get(objective, objective)  # fmt: skip
    return cs.explain(
        model or Small(), images() if x is None else x, methods=METHODS, objective=goal, **(SMALL | options)
    )


def value(r, criterion, name, part="fit"):
    return getattr(r.criteria[criterion][name], part)


def test_robust_is_never_above_the_best_single_on_the_fitting_draws():
    r = run("robust")
    best = torch.stack([value(r, "relative_sensitivity", m) for m in r.methods]).amin(0)
    assert (value(r, "relative_sensitivity", "consensus") <= best * (1 + 1e-12)).all()
    torch.testing.assert_close(r.solution.value, value(r, "relative_sensitivity", "consensus"))


def test_faith_is_never_below_the_best_single_on_the_fitting_draws():
    r = run("faith")
    best = torch.stack([value(r, "faithfulness_correlation", m).nan_to_num(-1) for m in r.methods]).amax(0)
    assert (value(r, "faithfulness_correlation", "consensus") >= best - 1e-9).all()


def test_opt_is_as_faithful_as_the_best_single_and_at_least_as_robust():
    r = run("opt")
    rho = torch.stack([value(r, "faithfulness_correlation", m).nan_to_num(-1) for m in r.methods])
    sens = torch.stack([value(r, "relative_sensitivity", m) for m in r.methods])
    # Up to a millionth, without which rounding would decide whether any mixture reaches the best method's correlation.
    assert (value(r, "faithfulness_correlation", "consensus") >= rho.amax(0) - 1.001e-6).all()
    chosen = sens.gather(0, rho.argmax(0, keepdim=True))[0]
    assert (value(r, "relative_sensitivity", "consensus") <= chosen * (1 + 1e-9)).all()


@pytest.mark.parametrize(
    "objective",
    [*OBJECTIVES, *AGGREGATIONS, "relative_sensitivity + 0.5*infidelity", "average_sensitivity + infidelity"],
)
def test_what_is_measured_is_what_is_returned(objective):
    """The consensus' numbers are those of the returned attribution, and weights mix the returned maps."""
    r = run(objective)
    if objective in ("posterior", "ridge"):
        # A correction is added to the mixture; tests/test_posterior.py has its laws.
        assert r.posterior is not None and r.error is not None
    elif objective not in ("var", "median", "rank"):
        mixed = torch.einsum("bk,bk...->b...", r.weights, r.maps)
        torch.testing.assert_close(r.attribution, mixed)
        assert (r.weights >= 0).all() and torch.allclose(r.weights.sum(1), torch.ones(3).double())
    else:
        torch.testing.assert_close(r.attribution, r[objective])
    size = joined(r.evidence["fit"]).quadratic
    torch.testing.assert_close(
        r.attribution.flatten(1).pow(2).sum(1), torch.einsum("br,brt,bt->b", r.mixing, size.norm, r.mixing)
    )


def test_the_same_for_any_batch_and_order():
    x, ids = images(4), torch.tensor([8, 2, 5, 1])
    whole = run("opt", x, ids=ids, max_batch=64)
    order = torch.tensor([3, 1])
    part = run("opt", x[order], ids=ids[order], max_batch=3)
    torch.testing.assert_close(part.attribution, whole.attribution[order], rtol=1e-6, atol=1e-9)
    for criterion in whole.criteria:
        torch.testing.assert_close(
            value(part, criterion, "consensus", "fresh"), value(whole, criterion, "consensus", "fresh")[order],
            rtol=1e-6, atol=1e-9,
        )  # fmt: skip


def test_record_has_every_field_and_is_valid_json():
    r = run("opt").describe(model="small", labels=["a", "b", "c", "d"])
    record = json.loads(json.dumps(r.record(1), allow_nan=False))
    assert record["schema"] == 1 and record["target_label"] in "abcd" and record["seed"] == 0
    assert set(record["criteria"]) == {
        "contrast",
        "noise_over_signal",
        "relative_sensitivity",
        "average_sensitivity",
        "faithfulness_correlation",
        "infidelity",
    }
    rows = [*record["methods"], "mean", "var", "median", "rank", "uniform", "weighted", "consensus"]
    for criterion in record["criteria"].values():
        assert list(criterion) == rows
        for row in criterion.values():
            assert set(row) == {"fit", "fresh", "stderr"}
    assert record["criteria"]["infidelity"]["uniform"]["fresh"] == pytest.approx(1)
    assert record["criteria"]["faithfulness_correlation"]["uniform"]["fresh"] is None
    assert "variance" in record["reasons"]["criteria.faithfulness_correlation.uniform.fresh"]
    assert record["measures"]["relative_sensitivity_resolved"]["value"] is None  # not asked for
    for key in (
        "model",
        "target",
        "objective",
        "weights",
        "gap",
        "status",
        "diversity_gain",
        "draws",
        "versions",
        "seconds",
    ):
        assert key in record
    assert record["evaluations"]["gradient"] > 0 and record["evaluations"]["forward"] > 0
    assert record["front"]["relative_sensitivity"]


def test_hoeffding_and_diversity_gain():
    r = run("robust")
    assert (r.diversity_gain >= -1e-9).all()
    r = dataclasses.replace(r, settings={**r.settings, "sign": "abs"})
    assert r.hoeffding(0.05) == 64  # what six draws say is above what holds without any
    long = dataclasses.replace(r, draws={**r.draws, "fit": [{"average_sensitivity": 600, "stopped": "as asked"}]})
    assert long.hoeffding(0.05) == pytest.approx(2 * 64 * np.sqrt(2 * np.log(5 * 6 / 0.05) / 600))
    found = dataclasses.replace(r, draws={**r.draws, "fit": [{"average_sensitivity": 640, "stopped": "regret 1 %"}]})
    assert found.hoeffding(0.05) == pytest.approx(2 * 64 * np.sqrt(2 * np.log(5 * 6 * 10 * 11 / 0.05) / 640))
    unit = dataclasses.replace(long, settings={**r.settings, "scale": "l2"})
    assert unit.hoeffding(0.05) == pytest.approx(long.hoeffding(0.05) / 32)


def test_a_nan_input_is_reported_and_the_others_are_explained():
    x = images(3)
    x[1, 0, 0, 0] = torch.nan
    r = run("robust", x, target=[0, 1, 2])
    assert len(r) == 2 and r.index == (0, 2) and "inputs[1]" in r.reasons and r.target.tolist() == [0, 2]
    alone = run("robust", images(3)[2:], target=[2], ids=[2])
    torch.testing.assert_close(r.attribution[1], alone.attribution[0], rtol=1e-6, atol=1e-9)


def test_a_nan_output_is_reported_and_the_others_are_explained():
    class Fragile(Small):
        def forward(self, x):
            out = super().forward(x)
            return torch.where((x.flatten(1).amax(1) > 50)[:, None], torch.nan, out)

    x = images(3)
    x[0, 0, 0, 0] = 100
    r = run("robust", x, model=Fragile())
    assert r.index == (1, 2) and "output" in r.reasons["inputs[0]"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.full((2, 3, 8, 8), torch.nan).double()}, "every input has NaN"),
        ({"x": torch.zeros(2, 3, 8, 8, dtype=torch.int64)}, "real numbers"),
        ({"x": torch.zeros(0, 3, 8, 8)}, "at least one input"),
        ({"x": [1, 2]}, "expected a tensor"),
        ({"target": 4}, "out of range; the model has 4 outputs"),
        ({"target": [0, 1]}, "2 targets for 3 inputs"),
        ({"target": 1.5}, "expected integers"),
        ({"target": "cat"}, "'predicted' or integers"),
        ({"methods": "salency"}, "did you mean 'saliency'"),
        ({"objective": "robst"}, "did you mean 'robust'"),
        ({"objective": "robust + 0.5*opt"}, "front between two criteria"),
        ({"objective": "x*robust + faith"}, "not a number"),
        ({"fit_draws": 1}, "at least 2 draws"),
        ({"fit_draws": "average_sensitivty=3"}, "did you mean 'average_sensitivity'"),
        ({"fit_draws": "average_sensitivity=three"}, "expected e.g."),
        ({"max_batch": 0}, "max_batch is a whole number"),
        ({"sign": "positive"}, "sign is None, or it is one of"),
        ({"kind": "logits"}, "did you mean 'logit'"),
        ({"signed": True}, "signed"),
        ({"choice": "cross_validated"}, "neither signed"),
        ({"ids": [1]}, "ids: expected 3 integers"),
        ({"weights": torch.ones(2)}, "weights: shape .5,. or"),
        ({"features": cs.Segments(torch.zeros(5, 5).long(), batched=False)}, "does not fit"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(change, message):
    arguments = {"x": images(), "methods": METHODS, "objective": "opt", **SMALL, **change}
    x = arguments.pop("x")
    with pytest.raises(cs.InputError, match=message):
        cs.explain(Small(), x, **arguments)


def test_bad_models_are_named():
    with pytest.raises(cs.InputError, match="parameter 'head.bias' has NaN"):
        broken = Small()
        broken.head.bias.data[0] = torch.nan
        run(model=broken)
    with pytest.raises(cs.InputError, match="not one vector per input"):
        run(model=nn.Conv2d(3, 4, 1).double())
    with pytest.raises(cs.InputError, match="is a tuple"):
        run(model=lambda x: (x, x))
    with pytest.raises(cs.InputError, match="does not depend on the input"):
        run(model=lambda x: Small()(x.detach()))
    with pytest.raises(cs.InputError, match="callable"):
        run(model="resnet")


def test_a_method_that_fails_is_a_named_row_and_the_others_finish():
    r = cs.explain(
        Small(nn.SiLU),
        images(),
        methods=["saliency", "guided_backprop", "input_x_gradient"],
        objective="robust",
        **SMALL,
    )
    assert list(r.failed) == ["guided_backprop"] and "silu" in r.failed["guided_backprop"].lower()
    assert (r.weights[:, 1] == 0).all() and r["guided_backprop"].isnan().all() and r.attribution.isfinite().all()
    record = r.record(0)
    assert record["criteria"]["infidelity"]["guided_backprop"]["fresh"] is None
    assert record["criteria"]["infidelity"]["mean"]["fresh"] is not None
    assert record["failed"] == r.failed and "silu" in record["reasons"]["methods.guided_backprop"].lower()
    json.dumps(record, allow_nan=False)


def test_zero_maps_get_no_weight():
    class Dead(Small):
        def forward(self, x):
            return self.head(self.features(x).mean((2, 3)) * 0 + x.mean((2, 3)).repeat(1, 2))

    r = cs.explain(Dead(), images(), methods=["saliency", "grad_cam", "input_x_gradient"], objective="robust", **SMALL)
    if "grad_cam" not in r.failed:
        assert (r.weights[:, 1] == 0).all()
    assert r.attribution.isfinite().all()


def test_training_mode_is_put_back_and_explained_in_eval():
    class Noisy(Small):
        def forward(self, x):
            return super().forward(nn.functional.dropout(x, 0.5, self.training))

    model = Noisy().train()
    a, b = run("robust", model=model), run("robust", model=Noisy())
    assert model.training and torch.equal(a.attribution, b.attribution)


def test_numpy_black_box_says_what_it_lacks():
    with pytest.raises(cs.InputError, match="NumPy callable has no gradients"):
        cs.explain(lambda x: x[:, :2], np.ones((2, 4)), methods="saliency", objective="robust")


def test_tables_and_one_dimensional_input():
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    r = cs.explain(
        net,
        x,
        kind="output",
        methods="gradient",
        objective=Infidelity(cs.Elements(), baseline="zero", share=0.4),
        **SMALL,
    )
    assert r.attribution.shape == (4, 6) and r.settings["sign"] == "keep"
    assert (value(r, "faithfulness_correlation", "consensus") > 0).all()


def test_pooled_weights_are_shared_and_fit_loads_again(tmp_path):
    r = run("robust", pooled=True)
    assert torch.equal(r.weights[0], r.weights[1])
    consensus = cs.Consensus(Small(), METHODS, AverageSensitivity(), **SMALL)
    fitted = consensus.fit([images()[:2], (images()[2:], torch.tensor([0]))])
    torch.testing.assert_close(fitted.weights, r.weights[0], rtol=1e-6, atol=1e-9)
    again = consensus.load(fitted.save(tmp_path / "weights.json"))
    assert torch.equal(again.weights, fitted.weights)
    assert again.attribute(images(), target=1).shape == (3, 1, 8, 8)


def test_fitted_weights_stand_beside_single_methods_as_a_mixture():
    consensus = cs.Consensus(Small(), METHODS, AverageSensitivity(), features=cs.Patches(2), **SMALL)
    with pytest.raises(cs.InputError, match="nothing fitted"):
        consensus.mixture()
    fitted = consensus.fit([images()])
    mixture = fitted.mixture()
    r = cs.explain(
        Small(),
        images(),
        1,
        methods=[mixture, "saliency"],
        objective="relative_sensitivity",
        scale="none",
        features=cs.Patches(2),
        **SMALL,
    )
    expected = fitted.explain(images(), 1)
    torch.testing.assert_close(r["mixture"], expected.attribution)
    judged = [e.criteria["relative_sensitivity"] for e in (r, expected)]
    torch.testing.assert_close(judged[0]["mixture"].fresh, judged[1]["consensus"].fresh)
    assert (r.criteria["relative_sensitivity"]["consensus"].fit <= judged[0]["mixture"].fit * (1 + 1e-9)).all()
    only = Mixture((Saliency(), SmoothGrad(4)), (0.0, 1.0))
    assert only.rows((3, 8, 8)) == {"forward": 0, "gradient": 4}  # what has no weight is not evaluated
    for weights in ((1.0,), (0.0, 0.0), (1.0, float("nan"))):
        with pytest.raises(cs.InputError, match="weights"):
            Mixture((Saliency(), SmoothGrad(4)), weights)


def test_consensus_speaks_captums_language():
    consensus = cs.Consensus(Small(), METHODS, "relative_sensitivity", **SMALL)
    found = consensus.attribute(images(), target=torch.tensor([0, 1, 2]))
    expected = run("robust", target=[0, 1, 2]).attribution
    torch.testing.assert_close(found[:, 0], expected)


def test_choice_and_signed():
    signed = run("faith", signed=True)
    assert torch.allclose(signed.weights.abs().sum(1), torch.ones(3).double())
    chosen = run("faith", choice="cross_validated")
    assert all(status.startswith("cross-validated: ") for status in chosen.solution.status)


def test_save_load_report_plot(tmp_path):
    r = run("opt").describe(labels=list("abcd"))
    saved = cs.load(r.save(tmp_path / "run"))
    assert len(saved) == 3 and str(saved) == str(r)
    np.testing.assert_allclose(saved.attribution[2], r.attribution[2].numpy(), rtol=1e-6)
    np.testing.assert_allclose(saved["saliency"][0], r["saliency"][0].numpy(), rtol=1e-6)
    torch.testing.assert_close(saved.evidence["fresh"][1].quadratic.draws, r.evidence["fresh"][1].quadratic.draws)
    pages = [re.sub(r"base64,[^\"]*", "", kind.report(tmp_path / "page.html").read_text()) for kind in (saved, r)]
    assert pages[0] == pages[1] and "saliency" in pages[0]  # all but the pictures, which were rounded to 8 bits
    r.plot(1).savefig(tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 10_000
    (tmp_path / "run" / "001" / "explanation.json").write_text("{")
    with pytest.raises(cs.InputError, match="001.*damaged"):
        cs.load(tmp_path / "run")
    with pytest.raises(cs.InputError, match="no such file"):
        cs.load(tmp_path / "nothing")


def test_out_of_memory_halves_the_batch():
    calls = []

    class Hungry(Small):
        def forward(self, x):
            calls.append(len(x))
            if len(x) > 2:
                raise torch.OutOfMemoryError("simulated")
            return super().forward(x)

    model = Hungry()
    found = cs.explain(model, images(2), methods=METHODS, objective="robust", max_batch=16, **SMALL)
    assert max(calls) > 2 and calls[-1] <= 2
    expected = cs.explain(Small(), images(2), methods=METHODS, objective="robust", max_batch=16, **SMALL)
    torch.testing.assert_close(found.attribution, expected.attribution)


def test_doctor():
    from consilience.doctor import doctor

    found = doctor(Small(), images())
    checks = {check.method: check for check in found.checks}
    assert checks["deeplift"].completeness_error < 1e-9 and checks["integrated_gradients"].valid
    assert "relu" in str(found)
    silu = doctor(Small(nn.SiLU), images())
    assert "guided_backprop" not in silu.valid and "deeplift" in silu.valid
    norm = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        .double()
        .train()
    )
    assert "batch norms in training mode" in str(doctor(norm, images()))
    assert "softmax" in str(doctor(nn.Sequential(Small(), nn.Softmax(1)), images()))


def test_aggregations_to_compare_with():
    """Median, Borda count with ties averaged, and metric weighting, against their definitions."""
    maps = torch.tensor([[[0.0, 1, 1, 3], [2, 2, 0, 5], [1, 7, 3, 3]]]).double()
    equal, present = torch.ones(1, 3).double() / 3, torch.ones(1, 4, dtype=torch.bool)
    made = {each.name: each.combine(maps, equal, present)[0] for each in DERIVED}
    median, rank, uniform = made["median"], made["rank"], made["uniform"]
    assert median.tolist() == [1, 2, 1, 3] and uniform.tolist() == [1] * 4
    ranks = [[0, 1.5, 1.5, 3], [1.5, 1.5, 0, 3], [0, 3, 1.5, 1.5]]
    torch.testing.assert_close(rank, torch.tensor(ranks).double().mean(0) / 3)
    of_two = AGGREGATIONS["median"].combine(maps[:, :2], equal[:, :2], present)
    torch.testing.assert_close(of_two[0], maps[0, :2].mean(0))
    r = run("weighted")
    sensitivity, rho = (r.criteria[c] for c in ("relative_sensitivity", "faithfulness_correlation"))
    quality = torch.stack([1 / (sensitivity[m].fit * (1 - rho[m].fit * rho[m].fit.abs())) for m in r.methods], 1)
    torch.testing.assert_close(r.weights, quality / quality.sum(1, keepdim=True))
    torch.testing.assert_close(r.attribution, r["weighted"])


@pytest.mark.parametrize("objective", ["robust", "faith", "opt", "average_sensitivity + infidelity"])
def test_draws_until_sure(objective):
    """Each input stops by itself, for a reason that is said; what it has then is what that many draws give."""
    model, x = Small(), images(4)
    options = {
        "methods": METHODS,
        "objective": objective,
        "fresh_draws": 4,
        "resolved_draws": 1,
        "features": cs.Pixels(),
    }
    budget = {"average_sensitivity": 20, "infidelity": 256}
    r = cs.explain(model, x, 1, draws="auto", tolerance=0.05, fit_draws=budget, **options)
    stopped = r.draws["fit"]
    for i, fit in enumerate(stopped):
        draws = {kind: fit[kind] for kind in budget}
        asked = {kind: max(2, number) for kind, number in draws.items()}
        one = cs.explain(model, x[i : i + 1], 1, fit_draws=asked, ids=[i], **options)
        torch.testing.assert_close(one.weights[0], r.weights[i], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(one.resolved["value"][0], r.resolved["value"][i])
        for criterion, rows in r.criteria.items():
            if all(r.evidence["fit"][i].parts.get(kind) for kind in PARTS[criterion]):
                torch.testing.assert_close(one.criteria[criterion]["consensus"].fit[0], rows["consensus"].fit[i])
        sure = all(value <= 0.05 for value in fit["regret"].values())
        assert fit["stopped"].startswith("regret" if sure else "budget")
        assert sure or any(draws[kind] == budget[kind] for kind in budget)
        assert {*fit["regret"]} == {"robust": {"average_sensitivity"}, "faith": {"infidelity"}}.get(
            objective, {*budget}
        )
        if objective == "robust":
            assert draws["infidelity"] == 0  # not looked at: not drawn
    assert r.record(0)["draws"]["fit"] == stopped[0]
    moved = cs.explain(model, x[[2, 0]], 1, draws="auto", tolerance=0.05, fit_draws=budget, ids=[2, 0], **options)
    assert [fit["stopped"] for fit in moved.draws["fit"]] == [stopped[2]["stopped"], stopped[0]["stopped"]]


def test_the_cross_fitted_regret_is_that_of_its_definition():
    r = run("robust")
    evidence = joined(r.evidence["fit"]).rows(slice(len(r.methods)))
    rule = Minimise(named_objective("relative_sensitivity"))
    found = regret(rule, evidence, rule.fit(evidence).weights, blocks=4)["quadratic"]
    q = evidence.quadratic
    count = q.draws.shape[1]
    for i in range(len(r)):

        def value(w, draws, i=i):
            return (w @ q.draws[i, draws].mean(0) @ w / (w @ q.norm[i] @ w)).item()

        crossed, sizes = [], []
        for part in range(4):
            inside = torch.arange(count * part // 4, count * (part + 1) // 4)
            outside = torch.tensor([s for s in range(count) if s not in inside.tolist()])
            w = named_objective("relative_sensitivity").minimise(evidence.inputs([i]).fold(part, 4)[0]).weights[0]
            assert value(w, outside) <= min(value(e, outside) for e in torch.eye(len(r.methods)).double()) + 1e-12
            crossed.append(value(w, inside))
            sizes.append(len(inside))
        plain = [value(r.weights[i], torch.arange(count * p // 4, count * (p + 1) // 4)) for p in range(4)]
        crossed, plain = (np.average(each, weights=sizes) for each in (crossed, plain))
        assert found[i] == pytest.approx((crossed / plain - 1) * 3 / 7)
