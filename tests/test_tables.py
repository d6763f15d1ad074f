"""Tables as people have them: data frames, columns of codes, one-hot names, codes that a network looks up; backgrounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import consilience as cs
from consilience.explainers import METHODS, KernelSHAP, ShapleySampling, Stack
from consilience.explainers.codes import follows_gradients
from consilience.features.frames import column_names, plain_array
from consilience.features.tables import Columns
from consilience.measures.axiomatic import Completeness
from consilience.perturb.baseline import Baseline
from consilience.perturb.per_input import taken
from consilience.perturb.points import Points
from consilience.surrogates.local_linear import score_of_nothing

PLAIN = {"sign": "keep", "scale": "none", "objective": "mean", "fit_draws": 2, "fresh_draws": 2}
DRAWN = np.random.default_rng(0)
ROWS = np.c_[DRAWN.normal(size=60), DRAWN.integers(0, 3, 60), DRAWN.normal(size=60)]
EFFECT = np.array([0.0, 5.0, -5.0])


def predict(rows):
    """A sum that refuses unknown categories, as an encoder does."""
    if not np.isin(rows[:, 1], (0, 1, 2)).all():
        raise ValueError("unknown category")
    return rows[:, 0] + EFFECT[rows[:, 1].astype(int)] + 2 * rows[:, 2]


# -- data frames -------------------------------------------------------------------------------------------------------


class Frame:
    """What a frame of any library has."""

    def __init__(self, names, array):
        self.columns, self.array = names, np.asarray(array)

    def to_numpy(self):
        return self.array

    def __len__(self):
        return len(self.array)

    def __getitem__(self, which):
        return Frame(self.columns, self.array[which])


class Series:
    def __init__(self, values):
        self.values = np.asarray(values)

    def to_numpy(self):
        return self.values


def pandas_frame(names, array):
    pd = pytest.importorskip("pandas")
    return pd.DataFrame(array, columns=names, index=range(100, 100 + len(array)))


@pytest.mark.parametrize("make", [Frame, pandas_frame])
def test_frames_go_in_by_position_and_names_come_out(make):
    names = ["age", "job", "pay"]
    frame, model = make(names, ROWS[:4]), lambda a: np.c_[predict_all(a), -predict_all(a)]
    wanted = {"methods": ["kernel_shap", "feature_ablation"], **PLAIN}
    r = cs.explain(model, frame, Series([0, 1, 0, 1]), baselines=make(names, ROWS), **wanted)
    plain = cs.explain(model, ROWS[:4], [0, 1, 0, 1], baselines=ROWS, **wanted)
    assert r.feature_names == names and plain.feature_names is None
    assert torch.equal(r.attribution, plain.attribution) and r.target.tolist() == [0, 1, 0, 1]
    # The same through evaluate and Consensus, whole or from a loader.
    given = {"methods": ["kernel_shap"], "measures": ["gini_sparseness", "completeness"], "objective": None}
    expected = cs.evaluate(model, ROWS[:4], target=[0, 1, 0, 1], baselines=ROWS, **given)
    for data in (frame, [frame[:2], frame[2:]]):
        found = cs.evaluate(model, data, target=Series([0, 1, 0, 1]), baselines=make(names, ROWS), **given)
        for measure in found.measures:
            # A completeness error of 0 is the rounding of a sum, which moves with the rows in flight.
            one, other = found[measure]["kernel_shap"], expected[measure]["kernel_shap"]
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
    consensus = cs.Consensus(
        model, ["kernel_shap", "feature_ablation"], "faith", baselines=make(names, ROWS), fit_draws=16
    )
    fitted = consensus.fit([frame[:2], frame[2:]], 0)
    assert fitted.weights is not None


def predict_all(rows):
    return rows[:, 0] + rows[:, 1] ** 2 + 2 * rows[:, 2]


def test_frames_of_several_types():
    assert plain_array(Frame("ab", np.array([[1, 2.5], [True, 3]], object)), "x").dtype == np.float64
    assert plain_array(Frame("ab", np.ones((2, 2), np.float32)), "x").dtype == np.float32
    assert plain_array(Frame("ab", np.ones((2, 2), bool)), "x").dtype == np.float64
    with pytest.raises(cs.InputError, match="x: the columns .b. are not numbers"):
        plain_array(Frame("ab", np.array([[1, "x"], [2, 3]], object)), "x")
    assert column_names(Frame(["a", "b", "a"], ROWS)) == ("a", "b", "a (2)") and column_names(ROWS) is None
    tensor = torch.ones(2)
    assert plain_array(tensor, "x") is tensor and plain_array(None, "x") is None


# -- codes of categories -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [Columns(categorical=[1]), Columns(["a", "b", "c"], categorical=["b"])])
def test_a_column_of_codes_meets_only_values_that_occur(features):
    """Every method, metric and measure that needs outputs only; the model raises where a code is none."""
    outputs = [name for name, cls in METHODS.items() if not follows_gradients(cls(), (3,)) and name != "maple"]
    assert {"kernel_shap", "lime", "rise", "shapley_sampling", "feature_ablation"} <= set(outputs)
    methods = [name for name in outputs if name != "occlusion"]
    r = cs.explain(
        predict, ROWS[:3], kind="output", methods=methods, baselines=ROWS, features=features, sign="keep", scale="none"
    )
    assert not r.failed
    expected = np.c_[
        ROWS[:3, 0] - ROWS[:, 0].mean(),
        EFFECT[ROWS[:3, 1].astype(int)] - EFFECT[ROWS[:, 1].astype(int)].mean(),
        2 * (ROWS[:3, 2] - ROWS[:, 2].mean()),
    ]
    for name in ("kernel_shap", "feature_ablation"):
        np.testing.assert_allclose(r[name].numpy(), expected, rtol=1e-9)
    measures = ["deletion", "insertion", "pixel_flipping", "max_sensitivity", "infidelity", "completeness", "local_fidelity",
                "region_perturbation", "monotonicity", "sensitivity_n"]  # fmt: skip
    e = cs.evaluate(predict, ROWS[:3], kind="output", methods=["kernel_shap"], baselines=ROWS, features=features,
                    objective=None, measures=measures)  # fmt: skip
    assert not any("unknown category" in why for reasons in e.reasons.values() for why in reasons.values())
    assert float(np.max(e["completeness"]["kernel_shap"])) < 1e-9


def test_codes_need_values_that_occur_and_have_no_gradient():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    given = {"features": Columns(categorical=[1]), **PLAIN}
    with pytest.raises(cs.InputError, match="baselines: columns of codes are replaced by codes that occur"):
        cs.explain(net, ROWS[:2], methods=["kernel_shap"], **given)
    methods = ["saliency", "integrated_gradients", "noisegrad", "kernel_shap"]
    r = cs.explain(net, ROWS[:2], methods=methods, baselines=ROWS, **given)
    assert set(r.failed) == {"saliency", "integrated_gradients", "noisegrad"}
    assert all("column" in why and "codes" in why for why in r.failed.values())
    with pytest.raises(cs.InputError, match="none works on this model"):
        cs.explain(net, ROWS[:2], methods=["saliency"], baselines=ROWS, **given)
    for wrong in (Columns(categorical=[7]), Columns(categorical=["b"])):
        with pytest.raises(cs.InputError, match="categorical"):
            cs.explain(net, ROWS[:2], methods=["kernel_shap"], baselines=ROWS, features=wrong, **PLAIN)
    with pytest.raises(cs.InputError, match="categorical has column numbers .* or names"):
        Columns(categorical=[1.5])


class LooksUp(nn.Module):
    """Column 0 is a code behind .long(), column 1 a number; column 2 is a code too, and of no consequence."""

    def __init__(self, cut=True):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head, self.cut = nn.Embedding(5, 4), nn.Linear(5, 1), cut

    def forward(self, x):
        code = self.table(x[:, 0].long().clamp(0, 4)) if self.cut else x[:, :1].expand(-1, 4)
        return self.head(torch.cat([code, x[:, 1:2]], 1))


def test_codes_that_a_network_looks_up_are_found():
    rows = torch.tensor([[0.0, 0.1, 1.0], [4.0, -0.2, 2.0], [2.0, 0.3, 3.0], [1.0, 0.7, 1.0]])
    methods = ["saliency", "integrated_gradients", "shapley_sampling"]
    given = {"kind": "output", "methods": methods, **PLAIN}
    for baselines in (rows, None):
        r = cs.explain(LooksUp(), rows, baselines=baselines, **given)
        assert set(r.failed) == {"saliency", "integrated_gradients"} and r["shapley_sampling"][:, 0].abs().max() > 0
        for name, why in r.failed.items():
            assert name in why and "column 0 " in why and "column 2" not in why
    assert not cs.explain(LooksUp(cut=False), rows, **given).failed
    # A single code that never changes tells nothing; numbers that are not whole are no codes.
    assert not cs.explain(LooksUp(), rows * torch.tensor([0.0, 1, 1]), **given).failed
    assert not cs.explain(LooksUp(), rows + 0.25, **given).failed


# -- one-hot names -----------------------------------------------------------------------------------------------------

JOBS = np.array([[7.0, 1, 0], [3.0, 0, 1], [12.0, 1, 0]])


@pytest.mark.parametrize(
    ("names", "rows", "expected"),
    [
        (["job_years", "job_clerk", "job_cook"], JOBS, ("job_years", "job")),
        (["job_years", "job_clerk", "job_cook"], JOBS[:1], ("job_years", "job")),  # one row of several scales
        (
            ["num__age", "num__pay", "cat__job_a", "cat__job_b"],
            [[4.0, 2, 1, 0], [3, 1, 0, 1]],
            ("num__age", "num__pay", "cat__job"),
        ),
        (
            ["num__capital_gain", "num__capital_loss"],
            [[4.0, 2], [3, 9], [1, 2]],
            ("num__capital_gain", "num__capital_loss"),
        ),
        (["has_car", "has_house"], [[1.0, 1], [0, 0]], ("has_car", "has_house")),  # flags, of which a row has several
        (["job_a", "job_b"], [[2.1, -0.5], [-0.4, 1.9]], ("job",)),  # scaled
        (["job_a", "job_b"], [[2.1, -0.5], [-0.4, 1.9], [0.3, 0.3]], ("job_a", "job_b")),
        (["job_a", "job_b", "job_c"], [[1.0, 0, 0], [0, 1, 0]], ("job",)),  # a category that does not occur
    ],
)
def test_one_hot_names_are_held_against_the_data(names, rows, expected):
    rows = np.asarray(rows)
    assert Columns.onehot(names, data=rows).names(len(names)) == expected
    late = Columns.onehot(names)
    assert late.settled(torch.as_tensor(rows)).names(len(names)) == expected
    assert late.settled(torch.as_tensor(rows)).settled(torch.zeros(2, len(names))).names(len(names)) == expected
    found = cs.explain(lambda a: a @ np.arange(1.0, len(names) + 1), rows[:1], kind="output", methods=["kernel_shap"],
                       baselines=rows, features=late, **PLAIN)  # fmt: skip
    assert tuple(found.feature_names) == expected and found.attribution.shape == (1, len(expected))


def test_names_that_were_encoded_may_have_none_set():
    """An encoder that drops the first category: rows of zeros; numbers stay numbers."""
    names = ["job_years", "job_clerk", "job_cook"]
    rows = torch.tensor([[7.0, 0, 0], [3.0, 0, 1], [5, 1, 0]])
    assert Columns.onehot(names, of=["job"], data=rows).names(3) == ("job_years", "job")
    assert Columns.onehot(names, data=rows).names(3) == ("job_years", "job_clerk", "job_cook")
    for encoded in ("job", "cat__job"):  # with the prefix, as the names that the library shows have it, or without
        assert Columns.onehot(["cat__job_a", "cat__job_b"], of=[encoded]).names(2) == ("cat__job",)


def test_a_model_that_refuses_codes_which_do_not_occur_is_explained_and_the_warning_names_the_remedy():
    def strict(x):
        if not np.isin(x[:, 1], (1, 2, 4)).all():
            raise ValueError("found unknown categories")
        return np.stack([x.sum(1), x[:, 0]], 1)

    rows = np.array([[0.1, 1], [0.3, 2], [0.2, 4], [0.5, 2]])
    options = {"methods": ["feature_ablation", "kernel_shap"], "baselines": rows, **PLAIN}
    r = cs.explain(strict, rows[:2], target=0, **options)
    (said,) = [text for text in r.warnings if "raises ValueError near the inputs (found unknown categories)" in text]
    assert "features=cs.Columns(categorical=" in said and bool(r.attribution.isfinite().all())
    declared = cs.explain(strict, rows[:2], target=0, features=Columns(categorical=[1]), **options)
    assert not any("raises" in text for text in declared.warnings) and not declared.failed


# -- completeness, and what belongs to a batch -------------------------------------------------------------------------


def test_completeness_is_against_the_mean_score_of_a_data_set():
    rows = torch.as_tensor(ROWS)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    given = {"kind": "output", "methods": [ShapleySampling(120), KernelSHAP()], "baselines": rows}
    r = cs.explain(net, rows[:4], **given, **PLAIN)
    assert set(r.completeness) == {"shapley_sampling", "kernel_shap"}
    assert max(float(error.max()) for error in r.completeness.values()) < 1e-9
    e = cs.evaluate(net, rows[:4], measures=[Completeness()], objective=None, **given)
    assert max(float(e["completeness"][name].max()) for name in e.rows if name != "mean") < 1e-9


def test_what_is_no_feature_stays_when_everything_is_taken_away():
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    points = Points(x, torch.arange(2), torch.arange(2), 2)
    tokens = cs.features.sequences.Tokens(torch.tensor([[True, False, True], [True, True, False]]))
    score = lambda rows, owner: rows @ torch.tensor([1.0, 10.0, 100.0])  # noqa: E731
    assert score_of_nothing(score, points, Baseline()).tolist() == [0, 0]
    assert score_of_nothing(score, points, Baseline(), tokens).tolist() == [20, 600]
    data = Baseline.samples(torch.tensor([[1.0, 1, 1], [3, 3, 3], [5, 5, 5]]))
    assert score_of_nothing(score, points, data).tolist() == [333, 333]
    assert score_of_nothing(score, points, data, tokens).tolist() == [323, 633]


def test_explainers_and_measures_take_their_batchs_rows():
    labels = torch.arange(3).repeat(4, 1)
    segments = cs.Segments(labels, batched=True)
    baseline = Baseline.per_input(torch.arange(12.0).view(4, 3))
    explainer = KernelSHAP(features=segments, baselines=baseline)
    mixture = cs.explainers.Mixture((explainer,), (1.0,))
    for found in (taken(explainer, [2, 3]), taken([mixture], [2, 3])[0].explainers[0]):
        assert len(found.features.labels) == 2 and found.baselines.tensor.tolist() == [[6, 7, 8], [9, 10, 11]]
    plain = KernelSHAP()
    listed = [plain, "saliency"]
    assert taken(plain, [1]) is plain and taken(listed, [1]) is listed and taken("opt", [0]) == "opt"


def test_one_baseline_for_each_input_follows_a_loader():
    x, rows = torch.as_tensor(ROWS[:6]), torch.as_tensor(ROWS[6:12])
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    given = {"target": 1, "methods": ["feature_ablation", KernelSHAP(baselines=Baseline.per_input(rows))], "objective": None,
             "measures": ["gini_sparseness", "deletion"], "baselines": Baseline.per_input(rows)}  # fmt: skip
    whole = cs.evaluate(net, x, **given)
    for size in (1, 4):
        parts = cs.evaluate(net, x.split(size), **given)
        for measure in whole.measures:
            np.testing.assert_allclose(parts.values[measure], whole.values[measure], rtol=1e-6)
    one = Stack([KernelSHAP(baselines=rows[3])]).attribute(*_bound(net, x[3:4]))[0, 0]
    each = cs.explain(net, x, 1, methods=["kernel_shap"], baselines=Baseline.per_input(rows), **PLAIN)["kernel_shap"]
    torch.testing.assert_close(each[3].double(), one, rtol=1e-5, atol=1e-7)
    with pytest.raises(cs.InputError, match="6 rows, but none for input 7"):
        cs.evaluate(net, torch.cat([x, x]).split(4), **given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_falls_that_are_rounding_are_said(dtype):
    """Of a score of 40 bfloat16 knows multiples of a quarter: what 49 patches add to .5 is lost in it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 2)).to(dtype)
    nn.init.normal_(net[1].weight, std=0.002)
    nn.init.constant_(net[1].bias, 40.0)
    x = torch.randn(2, 3, 28, 28).to(dtype)
    r = cs.explain(net, x, 1, methods=["feature_ablation", "saliency"], baselines="zero", **PLAIN)
    assert any("bfloat16 outputs" in said and "feature_ablation" in said for said in r.warnings) == (
        dtype == torch.bfloat16
    )


def _bound(model, x):
    score = cs.Score(model, 1).at(x)
    return score, Points(x, torch.arange(len(x)), score.ids, len(x))
