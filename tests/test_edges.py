"""Degenerate cases and traps found by review: each was once a wrong number or a crash."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from nets import Small, bound, images
from test_explain import METHODS, SMALL, value
from torch import nn

import consilience as cs
from consilience.combine.aggregation import Aggregation
from consilience.explainers import DeepLIFT, EigenCAM, IntegratedGradients, Saliency, SmoothGradSquared, Stack, VarGrad
from consilience.features.images import coarse
from consilience.metrics import AverageSensitivity, Infidelity
from consilience.statistics.evidence import joined

TABLE = torch.randn(4, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def net(outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, outputs)).double()


def explain(model, x=TABLE, objective="robust", methods=("saliency", "input_x_gradient"), **options):
    return cs.explain(model, x, 0, objective=objective, methods=list(methods), **(SMALL | options))


class Constant(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :2] * 0 + 1


@pytest.mark.parametrize("objective", ["opt", "robust", "faith", "paper_opt", "relative_sensitivity + 0.5*infidelity"])
def test_a_constant_output_is_no_crash_and_has_no_valid_method(objective):
    r = explain(Constant(), objective=objective)
    assert r.solution.status == ("no valid method",) * 4 and r.weights.isnan().all() and r.attribution.isnan().all()
    json.dumps(r.record(0), allow_nan=False)
    assert "*" not in str(r).split("fresh ±")[0].split("---")[1]


def test_one_dead_input_does_not_take_the_others_with_it():
    class Half(Small):
        def forward(self, x):
            return super().forward(x) * (x.flatten(1)[:, :1] != 0)

    x = images(3)
    x[1] = 0
    r = cs.explain(Half(), x, 1, methods=METHODS[:3], objective="opt", **SMALL)
    assert r.solution.status[1] == "no valid method" and r.weights[[0, 2]].isfinite().all() and str(r)


def test_what_belongs_to_an_input_stays_with_it_when_another_is_left_out():
    x, baselines = TABLE[:3].clone(), torch.randn(3, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    labels = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 1], [0, 0, 1, 1, 2, 2]])
    model, methods = net(), [IntegratedGradients(8, baselines), DeepLIFT(baselines)]
    options = {
        "features": cs.Segments(labels, batched=True),
        "objective": AverageSensitivity() + Infidelity(baseline=baselines),
    }
    whole = cs.explain(model, x, [0, 1, 2], methods=methods, **options, **SMALL)
    x[0] = torch.nan
    part = cs.explain(model, x, [0, 1, 2], methods=methods, **options, **SMALL)
    torch.testing.assert_close(part.attribution, whole.attribution[1:])
    assert part.target.tolist() == [1, 2] and "inputs[0] left out" in str(part)
    given = cs.explain(model, x, [0, 1, 2], methods=methods, weights=torch.eye(2)[[0, 1, 0]], **options, **SMALL)
    assert given.weights.tolist() == [[0, 1], [1, 0]]
    with pytest.raises(cs.InputError, match="2 targets for 3 inputs"):
        cs.explain(model, x, [1, 2], methods=methods, **SMALL)


@pytest.mark.parametrize("size", [(224, 224), (256, 256), (299, 299), (100, 100), (32, 32), (28, 28), (240, 320)])
def test_default_masks_all_take_the_same_area(size):
    side = coarse((3, *size)).size
    assert size[0] % side == 0 and size[1] % side == 0 and 7 <= min(size) / side <= 28
    assert coarse((3, 224, 224)).size == 16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    model, x = Small().to(dtype), images().to(dtype)
    with torch.no_grad():
        model.head.weight *= 1e-3
    exact = Small()
    with torch.no_grad():
        exact.head.weight *= 1e-3
    stack = Stack([Saliency(), SmoothGradSquared(6), VarGrad(6), EigenCAM()], 1)
    found, expected = stack.attribute(*bound(model, x)), stack.attribute(*bound(exact, images()))
    assert found.dtype == torch.float32
    for i in range(4):
        spread = (found[:, i].double() - expected[:, i]).norm() / expected[:, i].norm()
        assert spread < (0.1 if dtype == torch.float16 else 0.3)
    assert cs.explain(model, x, 1, methods=METHODS, objective="robust", **SMALL).attribution.isfinite().all()


class Holes(nn.Module):
    """The gradient with respect to feature 0 is NaN where feature 1 exceeds a threshold."""

    def forward(self, x):
        bad = torch.where(x[:, :1] > 9, torch.nan, 1.0)
        return torch.cat([(x**2).sum(1, keepdim=True) * bad, x[:, 1:3]], 1)


def test_a_mixture_of_something_not_finite_is_not_finite():
    raw = torch.tensor([[[torch.nan, 4.0, 2.0]], [[1.0, 2.0, 4.0]]]).double()
    from consilience.explainers import Normalised
    from consilience.features.base import Elements

    stage = Normalised(Stack([Saliency()]), Elements(), "keep")
    assert stage.apply(raw, torch.arange(2))[0].isnan().all()
    r = explain(Small(nn.SiLU), images(), methods=["saliency", "guided_backprop"], weights=[0.3, 0.7])
    assert r.attribution.isnan().all() and r.failed


def test_nan_scores_under_masks_are_named_and_do_not_poison_robustness():
    class Fragile(nn.Module):
        def forward(self, x):
            return torch.where((x == 0).any(1, keepdim=True), torch.nan, net()(x))

    for objective in ("faith", "opt", "infidelity", "paper_faith"):
        r = explain(Fragile(), objective=objective)
        assert r.solution.status == ("no valid method",) * 4
    assert "NaN or infinite for" in r.record(0)["reasons"]["criteria.infidelity.saliency.fresh"]
    robust = explain(Fragile(), objective="robust")
    assert robust.weights.isfinite().all() and (value(robust, "relative_sensitivity", "consensus") > 0).all()


def test_pooling_leaves_a_broken_input_out():
    r = explain(net(), objective="faith")
    evidence = joined(r.evidence["fit"]).rows(slice(2))
    clean = evidence.inputs([0, 1, 3]).pooled()
    evidence.responses.y[2, 0] = torch.nan
    evidence.quadratic.draws[2, 0] = torch.nan
    pooled = evidence.pooled()
    torch.testing.assert_close(pooled.responses.y, clean.responses.y)
    torch.testing.assert_close(pooled.quadratic.draws, clean.quadratic.draws)


def test_consensus_keeps_what_is_bound():
    class Scaled(nn.Module):
        def forward(self, x, scale=1.0):
            return net()(x * scale)

    consensus = cs.Consensus(Scaled(), ["saliency", "input_x_gradient"], "robust", kwargs={"scale": 10.0}, **SMALL)
    torch.testing.assert_close(consensus.attribute(TABLE, 0), consensus.explain(TABLE, 0).attribution)
    torch.testing.assert_close(consensus.attribute(TABLE, 0, fresh_draws=4), consensus.explain(TABLE, 0).attribution)
    signed = cs.Consensus(net(), ["saliency", "input_x_gradient"], "faith", signed=True, **SMALL)
    torch.testing.assert_close(
        signed.fit([TABLE], 0).weights, signed.explain(TABLE, 0, pooled=True).weights[0], rtol=1e-6, atol=1e-9
    )


def test_one_logit_is_a_binary_classifier():
    model = net(1)
    for kind, f in (("probability", torch.sigmoid), ("log_probability", nn.functional.logsigmoid)):
        score, points = bound(model, TABLE, None, kind=kind)
        torch.testing.assert_close(score(points.x, points.owner), f(model(TABLE))[:, 0].detach())
    with pytest.raises(cs.InputError, match="callable returned shape"):
        bound(net(), TABLE, 0, kind=lambda out, t: out[:, :1])


def test_baselines_are_one_or_one_for_each():
    rows = cs.Baseline.per_input(torch.zeros(9, 6).double())
    for methods in ([IntegratedGradients(4, rows)], [DeepLIFT(rows)]):
        with pytest.raises(cs.InputError, match="9 rows for 4 inputs"):
            cs.explain(net(), TABLE, 0, methods=methods, **SMALL)
    score, points = bound(net(), TABLE, 0)
    for method in (IntegratedGradients, DeepLIFT):  # of a data set, methods with one baseline take the mean row
        rows, mean = method(baselines=cs.Baseline.samples(TABLE)), method(baselines=TABLE.mean(0))
        both = Stack([rows, mean]).attribute(score, points)
        torch.testing.assert_close(both[:, 0], both[:, 1])
    lists = [
        IntegratedGradients(4, [0.0] * 6),
        IntegratedGradients(4, cs.Baseline.of([5.0] * 6)),
        IntegratedGradients(4, 5),
    ]
    found = Stack(lists).attribute(*bound(net(), TABLE, 0))
    assert not torch.allclose(found[:, 0], found[:, 1])
    torch.testing.assert_close(found[:, 1], found[:, 2])


def test_cross_validation_with_few_draws_and_any_objective_of_one_number():
    for objective in ("paper_robust", "paper_faith", "infidelity", "paper_code", "paper_opt"):
        r = explain(net(), objective=objective, choice="cross_validated", fit_draws=3)
        assert all(status.startswith("cross-validated") for status in r.solution.status)
    with pytest.raises(cs.InputError, match="neither signed"):
        explain(net(), objective="opt", choice="cross_validated")


def test_a_run_knows_its_folders(tmp_path):
    explain(net(), TABLE.repeat(3, 1)).save(tmp_path)
    few = explain(net(), TABLE[:2])
    few.save(tmp_path)
    (tmp_path / "001-b.part").mkdir()
    assert len(cs.load(tmp_path)) == 2 and cs.load(tmp_path)["uniform"][0].shape == (6,)
    many = explain(net(), TABLE.repeat(3, 1))
    many.save(tmp_path / "many")
    np.testing.assert_allclose(np.stack(cs.load(tmp_path / "many").attribution), many.attribution)


def test_keyword_arguments_reach_the_model_as_they_were_given():
    seen = {}

    class Model(nn.Module):
        def forward(self, x, pad, mode, temperature, gain):
            seen.update(pad=pad, mode=mode)
            assert temperature.shape == (1,) and gain.shape == (len(x), 1)
            return net()(x * gain) / temperature

    explain(
        Model(), TABLE,
        kwargs={"pad": (1, 2), "mode": ["a", "b"], "temperature": torch.ones(1).double(), "gain": torch.ones(4, 1).double()},
    )  # fmt: skip
    assert seen == {"pad": (1, 2), "mode": ["a", "b"]}


def test_given_weights_win_over_the_objective():
    r = explain(net(), objective="var", weights=[1.0, 0.0])
    torch.testing.assert_close(r.attribution, r["saliency"])
    assert r.record(0)["weights"] == [1.0, 0.0]


def test_a_model_that_starts_in_place_has_a_layer():
    model = nn.Sequential(
        nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).double()
    assert not cs.explain(model, images(), 1, methods=["saliency", "grad_cam"], objective="robust", **SMALL).failed


def test_one_method_makes_var_the_mean():
    r = explain(net(), methods=["saliency"])
    torch.testing.assert_close(r["var"], r["mean"])


def test_a_model_that_draws_in_eval_mode_does_not_read_the_global_state():
    class Dropout(nn.Module):
        def forward(self, x):
            return net()(nn.functional.dropout(x, 0.5))

    model, found = Dropout(), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(explain(model, max_batch=4).attribution)
    assert torch.equal(*found)


def test_arrays_modules_and_inference_mode():
    model = net()
    a = explain(model, TABLE.numpy())
    with torch.inference_mode():
        b = explain(model, TABLE.clone())
    torch.testing.assert_close(a.attribution, b.attribution)


@pytest.mark.parametrize(
    "make",
    [
        lambda: cs.Front(AverageSensitivity(relative=False), Infidelity()),
        lambda: cs.Front(Infidelity(), AverageSensitivity()),
        lambda: Infidelity(share=1.5),
        lambda: explain(net(), objective="paper_opt + robust"),
        lambda: explain(net(), fit_draws=cs.Draws(0, 0)),
        lambda: explain(net(), methods=[IntegratedGradients(0)]),
        lambda: explain(net(), ids=torch.rand(4)),
        lambda: explain(net(), objective=Infidelity(baseline=TABLE) + Infidelity(baseline=TABLE[:1], scaling="free")),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(make):
    with pytest.raises(cs.InputError):
        make()


def test_baselines_are_also_what_masks_put_in():
    r = explain(net(), baselines=TABLE.mean(0), methods=["integrated_gradients", "saliency"], objective="faith")
    assert r.settings["mask_baseline"] == "given"
    expected = explain(
        net(),
        methods=[IntegratedGradients(baselines=TABLE.mean(0)), Saliency()],
        objective=Infidelity(baseline=TABLE.mean(0)),
    )
    torch.testing.assert_close(r.attribution, expected.attribution)


def test_what_a_reader_must_know_is_printed():
    said = str(explain(nn.Sequential(net(), nn.Softmax(1))))
    assert (
        "look like probabilities" in said
        and "promised on the fitting draws" in said
        and "masks: 10% to 60% of the features" in said
    )
    assert "no method gave a usable map" in str(explain(Constant()))


def test_a_wrong_name_gets_a_short_answer(tmp_path):
    with pytest.raises(cs.InputError) as caught:
        explain(net(), objective="robst")
    assert str(caught.value).count("'robust'") == 1
    with pytest.raises(cs.InputError, match="none.json: no such file; expected weights"):
        cs.Consensus(net(), "gradient").load(tmp_path / "none.json")


# -- found by a new user -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["probability", "log_probability", "output"])
def test_no_second_softmax_is_taken_of_probabilities(kind):
    """A version before refused them; now the one rule for outputs knows what they are."""
    model = nn.Sequential(net(), nn.Softmax(1))
    expected = model(TABLE)[:, 0].detach()
    expected = expected.log() if kind == "log_probability" else expected
    torch.testing.assert_close(explain(model, kind=kind).score, expected)
    array = lambda x: model(torch.as_tensor(x)).detach().numpy()  # noqa: E731
    found = cs.explain(array, TABLE.numpy(), 0, methods=["feature_ablation"], kind=kind, objective="mean", **SMALL)
    torch.testing.assert_close(found.score, expected)
    torch.testing.assert_close(explain(net(), kind="probability").score, model(TABLE)[:, 0].detach())


def test_the_mean_of_an_evaluation_is_of_the_maps_that_are_finite():
    def broken(model, inputs, target):
        return inputs * torch.nan

    options = {"objective": None, "measures": "gini_sparseness", "rows": ["mean"]}
    found = cs.evaluate(net(), TABLE, target=0, methods=[broken, "saliency", "input_x_gradient"], **options)
    rest = cs.evaluate(net(), TABLE, target=0, methods=["saliency", "input_x_gradient"], **options)
    assert np.isfinite(rest["gini_sparseness"]["mean"]).all()
    np.testing.assert_allclose(found["gini_sparseness"]["mean"], rest["gini_sparseness"]["mean"])


def test_the_file_of_an_evaluation_is_loaded_as_one(tmp_path):
    t = cs.evaluate(
        net(),
        TABLE,
        target=0,
        methods=["saliency"],
        objective=None,
        measures="gini_sparseness",
        path=tmp_path / "t.json",
    )
    found = cs.load(tmp_path / "t.json")
    assert repr(found) == repr(t) and (found.values["gini_sparseness"] == t.values["gini_sparseness"]).all()


def test_fitted_weights_are_for_what_they_were_fitted_for(tmp_path):
    methods = ["saliency", IntegratedGradients(8)]
    options = {"methods": methods, "objective": "robust", "sign": "keep"}
    path = cs.Consensus(net(), fit_draws=4, **options).fit([TABLE]).save(tmp_path / "made" / "w.json")
    found = cs.Consensus(net(), scale="max", features=None, **options).load(path)
    assert found.weights.sum() == pytest.approx(1)
    for other in ({"objective": "faith"}, {"sign": "abs"}, {"methods": ["saliency", IntegratedGradients(9)]}):
        with pytest.raises(cs.InputError, match="weights are for the"):
            cs.Consensus(net(), **{**options, **other}).load(path)
    known = json.loads(path.read_text())
    del known["settings"]  # as an earlier version wrote it
    path.write_text(json.dumps(known))
    torch.testing.assert_close(cs.Consensus(net(), **options).load(path).weights, found.weights)
    for damage in ("[]", "{}", '{"weights": [1]}', '{"weights": "a"}', "nothing"):
        path.write_text(damage)
        with pytest.raises(cs.InputError, match="w.json: damaged"):
            cs.Consensus(net(), **options).load(path)


def test_one_reason_for_many_methods_is_given_once():
    with pytest.raises(cs.InputError) as caught:
        cs.explain(lambda x: np.asarray(x)[:, :2], TABLE.numpy(), 0, methods="gradient")
    assert str(caught.value).count("black_box") == 1 and "saliency, input_x_gradient" in str(caught.value)


def test_packs_are_batches_to_fit_on():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, a, b):
            return self.inner(torch.cat([a, b], 1))

    options = {"methods": ["saliency", "input_x_gradient"], "objective": "robust", "fit_draws": SMALL["fit_draws"]}
    found = cs.Consensus(Two(), **options).fit([cs.pack((TABLE[:, :2], TABLE[:, 2:]))])
    torch.testing.assert_close(found.weights, cs.Consensus(net(), **options).fit([TABLE]).weights)


def test_a_callable_that_gives_probabilities_is_warned_of():
    model = nn.Sequential(net(), nn.Softmax(1))
    options = {"methods": ["feature_ablation", "kernel_shap"], "objective": "robust", **SMALL}
    for kind, warned in (("logit", True), ("output", False)):
        r = cs.explain(lambda x: model(x).detach(), TABLE, 0, kind=kind, **options)
        assert any("probabilities" in text for text in r.warnings) is warned


@pytest.mark.parametrize("objective", ["mean", "var", "median", "rank", "robust", "weighted"])
def test_a_method_that_gives_nan_takes_no_part_where_it_does(objective):
    """Not the inputs' for which it works, and the result says so."""

    def partly(model, inputs, target):
        return torch.where(inputs[:, :1] > 0, inputs, torch.nan)

    some = TABLE[:, 0] > 0
    assert 0 < some.sum() < 4
    r = explain(net(), objective=objective, methods=[partly, "saliency", "input_x_gradient"])
    rest = explain(net(), objective=objective)
    assert r.attribution.isfinite().all() and not r.failed
    assert any("partly" in text and "takes no part" in text for text in r.warnings)
    torch.testing.assert_close(r.attribution[~some], rest.attribution[~some])
    assert (r.weights[~some, 0] == 0).all()
    for name in ("mean", "var", "median", "rank"):
        torch.testing.assert_close(r[name][~some], rest[name][~some])
    broken = explain(net(), objective=objective, methods=[lambda model, inputs, target: inputs * torch.nan])
    assert broken.attribution.isnan().all()


@pytest.mark.parametrize("make", [lambda t: t, lambda t: t.numpy(), lambda t: t.tolist(), cs.Baseline.samples])
def test_baselines_with_missing_values_are_refused(make):
    hole = torch.where(TABLE > 1, torch.nan, TABLE)
    with pytest.raises(cs.InputError, match=r"baselines: .*NaN"):
        explain(net(), baselines=make(hole))


def test_texts_are_one_batch_to_fit_on():
    from test_adapters import WORDS, adapter

    model = adapter("Bert")
    words = [" ".join(WORDS[4:7]), " ".join(WORDS[6:8]), WORDS[5]]
    found = cs.Consensus(model, ["saliency", "input_x_gradient"], "robust", fit_draws=SMALL["fit_draws"]).fit([words])
    each = cs.explain(model, words, methods=["saliency", "input_x_gradient"], objective="robust", pooled=True, **SMALL)
    torch.testing.assert_close(found.weights, each.weights[0])


def test_a_row_of_the_baselines_that_is_not_used_may_miss():
    x, rows = TABLE.clone(), torch.zeros_like(TABLE)
    x[1, 2] = rows[1, 2] = torch.nan
    baselines = cs.Baseline.per_input(rows)
    r = explain(net(), x=x, methods=["saliency", "integrated_gradients"], baselines=baselines)
    assert r.index == (0, 2, 3) and r.attribution.isfinite().all()


@pytest.mark.parametrize("error", [NotImplementedError(), ValueError(), KeyError("name")])
def test_what_a_model_raises_is_said(error):
    class Broken(nn.Module):
        def forward(self, x):
            raise error

    with pytest.raises((cs.InputError, KeyError), match=type(error).__name__ if not error.args else "name"):
        explain(Broken())


def test_integers_come_in_many_forms():
    ids = [torch.tensor(5), np.int64(6), 7, True]
    one, two = (explain(net(), ids=i, seed=s) for i, s in ((ids, torch.tensor(3)), ([5, 6, 7, 1], 3)))
    torch.testing.assert_close(one.weights, two.weights, rtol=0, atol=0)
    assert AverageSensitivity(torch.tensor(0.1)).radius == torch.tensor(0.1)


def test_given_weights_stay_on_a_method_that_gives_nan_and_the_warning_says_no_more():
    broken = lambda model, inputs, target: inputs * torch.nan  # noqa: E731
    r = explain(net(), methods=["saliency", broken], weights=torch.tensor([0.5, 0.5]))
    assert r.attribution.isnan().all() and not any("no part" in text for text in r.warnings)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"x": TABLE.float()}, "float32.*torch.float64"),
        ({"x": TABLE[:, :5]}, r"x: the model fails on \(4, 5\)"),
        ({"model": nn.Bilinear(6, 6, 3).double()}, "kwargs="),
        ({"fit_draws": 4.5}, "fit_draws"),
        ({"ids": ["a", "b", "c", "d"]}, "ids: expected whole numbers, one for each input"),
        ({"ids": torch.arange(4) / 2}, "ids: expected whole numbers, one for each input"),
        ({"seed": None}, "seed"),
        ({"tolerance": -1}, "tolerance"),
        ({"weights": torch.tensor([torch.nan, 1])}, "weights"),
        ({"weights": torch.zeros(2)}, "weights"),
        ({"target": torch.eye(3).long()[[0, 1, 2, 0]]}, r"argmax"),
    ],
)
def test_what_cannot_be_used_is_named(options, said):
    model, x = options.pop("model", net()), options.pop("x", TABLE)
    given = {"methods": ["saliency", "input_x_gradient"], "objective": "robust", **SMALL, "target": 0, **options}
    with pytest.raises(cs.InputError, match=said):
        cs.explain(model, x, **given)


def test_arrays_take_the_models_precision_as_numpy_has_one_only():
    model = net().float()
    x = TABLE.numpy()
    r = cs.explain(model, x, 0, methods=["saliency"], objective="robust", **SMALL)
    torch.testing.assert_close(
        r["saliency"],
        cs.explain(model, TABLE.float(), 0, methods=["saliency"], objective="robust", **SMALL)["saliency"],
    )


@pytest.mark.parametrize("wrong", [{"fit_drawz": 3}, {"methods": ["salienzy"]}])
def test_a_consensus_is_checked_when_it_is_made(wrong):
    with pytest.raises(cs.InputError, match="fit_draws|saliency"):
        cs.Consensus(net(), **wrong)


def test_a_negative_radius_is_refused():
    with pytest.raises(cs.InputError, match="radius"):
        AverageSensitivity(-1)


def test_doctor_sees_a_model_whose_rows_depend_on_one_another_or_on_chance():
    from consilience.doctor import doctor

    class Centred(Small):
        def forward(self, x):
            out = super().forward(x)
            return out - out.mean(0)

    class Noisy(Small):
        def forward(self, x):
            out = super().forward(x)
            return out + torch.randn_like(out)

    seen = []
    said = {
        m: str(doctor(m(), images(), methods=["saliency", "lime"], progress=seen.append))
        for m in (Centred, Noisy, Small)
    }
    assert "in its batch" in said[Centred] and "at random" in said[Noisy]
    assert "in its batch" not in said[Small] and "at random" not in said[Small]
    assert [check.method for check in seen] == ["saliency", "lime"] * 3
    norm = nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 3)).double()
    assert "in its batch" in str(doctor(norm, TABLE, methods=["saliency"]))


def test_a_nan_in_one_input_leaves_the_gradients_of_training_alone():
    model, x = net(), TABLE.clone()
    y = torch.tensor([0, 1, 2, 0])

    def gradients(x, y):
        model.zero_grad()
        penalty = cs.train.Penalty(AverageSensitivity(0.03), "input_x_gradient")
        loss = penalty(model, x, y, ids=torch.arange(4)[: len(x)])
        (loss.total * len(x)).backward()
        return loss, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    whole, expected = gradients(x[:3], y[:3])
    x[3, 2] = torch.nan
    loss, found = gradients(x, y)
    assert float(loss.parts["defined"]) == 0.75
    torch.testing.assert_close(loss.total * 4, whole.total * 3)
    torch.testing.assert_close(found, expected)


def test_a_map_of_zeros_is_said():
    """Grad-CAM of a class that no cell speaks for is zero everywhere, and its row in the table is empty."""
    r = explain(net(), methods=["saliency", lambda model, inputs, target: 0 * inputs])
    (said,) = [warning for warning in r.warnings if "zero everywhere" in warning]
    assert f"{r.methods[1]}: the map is zero everywhere for {len(TABLE)} of {len(TABLE)} inputs" in said


def test_an_aggregation_that_combines_says_whether_it_is_linear():
    """Otherwise its combine() would be ignored without a word: a weighted sum is made of weights alone."""
    with pytest.raises(TypeError, match=r"Largest: overrides combine\(\), so say what it is: linear = False"):

        class Largest(Aggregation):
            name = "largest"

            def combine(self, maps, weights, present):
                return maps.amax(1)

    @dataclass(frozen=True)
    class Nameless(Aggregation):
        pass

    with pytest.raises(cs.InputError, match="Nameless: name is missing"):
        Nameless()


def test_one_small_number_for_neighbours_and_masks_is_warned_of():
    """An integer sets both kinds of draws. The remedy that the warning names takes it away."""

    def warned(**draws):
        options = {"methods": ["saliency"], "resolved_draws": 0, "objective": "faith", **draws}
        found = explain(net(), **options)
        return [text for text in found.warnings if "neighbours and" in text], found

    said, found = warned(fit_draws=8, fresh_draws=9)
    assert ["fresh_draws=9 is 9 neighbours and 9 masks" in text for text in said] == [True, False]
    assert "fit_draws={'average_sensitivity': 8}, which makes 256 masks" in said[1]
    assert found.evidence["fresh"][0].count("responses") == 9
    said, found = warned(fit_draws={"average_sensitivity": 8}, fresh_draws={"average_sensitivity": 9})
    assert not said and found.draws["fresh"][0]["infidelity"] == 512
    assert not warned(fit_draws=cs.Draws(8, 8), fresh_draws="infidelity=8")[0]
    assert len(warned(fit_draws="8", fresh_draws=32)[0]) == 1
    assert not warned(fit_draws=8, fresh_draws=64, objective="robust")[0]  # no mask decides these weights
