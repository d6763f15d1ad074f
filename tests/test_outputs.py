"""What outputs mean: one rule for scores, probabilities, decisions, warnings and captions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from nets import bound
from torch import nn

import consilience as cs
from consilience import train
from consilience.errors import InputError
from consilience.model.outputs import SCORE_KINDS, Kind, Outputs
from consilience.model.recognition import interpret, last_layer_of

FEW = {"fit_draws": 2, "fresh_draws": 2, "objective": "mean", "resolved_draws": 0}
X = torch.randn(4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def linear(outputs, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(3, outputs).double().eval()


# -- twins from the definition: one row of outputs, one target ---------------------------------------------------------


def softmax(row):
    total = sum(math.exp(v) for v in row)
    return [math.exp(v) / total for v in row]


def sigmoid(v):
    return 1 / (1 + math.exp(-v))


def chances(meaning, row):
    """The probability of each target."""
    if meaning == "logits":
        return [1 - sigmoid(row[0]), sigmoid(row[0])] if len(row) == 1 else softmax(row)
    if meaning == "probabilities":
        return [1 - row[0], row[0]] if len(row) == 1 else row
    if meaning == "label_logits":
        return [sigmoid(v) for v in row]
    return row


def twin(meaning, kind, row, target):
    p = chances(meaning, row)[target]
    normalised = meaning.endswith("probabilities")
    one = len(row) == 1 and not meaning.startswith("label")
    own = p if normalised else (row[0] * (1 if target else -1) if one else row[target])
    if kind == "probability":
        return p
    if kind == "log_probability":
        return math.log(p)
    if kind == "margin":
        if one or meaning.startswith("label"):
            return p - (1 - p) if normalised else own
        return own - max(v for i, v in enumerate(row) if i != target)
    return own


def rows_of(meaning, columns):
    logits = torch.randn(5, columns, generator=torch.Generator().manual_seed(columns), dtype=torch.float64)
    if meaning.endswith("logits"):
        return logits
    return logits.softmax(1) if meaning == "probabilities" and columns > 1 else logits.sigmoid()


MEANINGS = ["logits", "probabilities", "label_logits", "label_probabilities"]
CASES = [(meaning, columns) for meaning in MEANINGS for columns in (1, 2, 4)]


@pytest.mark.parametrize("kind", SCORE_KINDS)
@pytest.mark.parametrize(("meaning", "columns"), CASES)
def test_scores_are_what_their_definition_says(meaning, columns, kind):
    rows, what = rows_of(meaning, columns), Outputs(meaning, columns)
    for target in range(what.targets):
        asked = torch.full((5,), target)
        if columns == 1 and what.labels and kind == "margin":
            runner_up = asked
        else:
            runner_up = what.runner_up(rows, asked)
        found = what.score(kind, rows, asked, runner_up)
        expected = [twin(meaning, kind, row, target) for row in rows.tolist()]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(("meaning", "columns"), CASES)
def test_decisions_are_what_is_more_likely(meaning, columns):
    rows, what = rows_of(meaning, columns), Outputs(meaning, columns)
    likely = [chances(meaning, row) for row in rows.tolist()]
    assert what.predicted(rows).tolist() == [int(np.argmax(row)) for row in likely]
    for target in range(what.targets):
        asked = torch.full((5,), target)
        decided = what.decision(rows, asked).tolist()
        if what.labels:
            assert decided == [int(row[target] > 0.5) for row in likely]
        else:
            assert decided == what.predicted(rows).tolist()
        assert what.agrees(rows, rows, asked).all() or columns > 1


def test_values_have_no_probability_and_decide_nothing():
    what, rows = Outputs("values", 2), X[:, :2]
    target = torch.zeros(4, dtype=torch.int64)
    assert what.probability(rows, target).isnan().all() and not what.decision(rows, target).any()
    assert what.value(rows, target).equal(rows[:, 0])


# -- the rule ----------------------------------------------------------------------------------------------------------


class Config:
    def __init__(self, **known):
        self.__dict__.update(known)


def configured(columns, **known):
    model = linear(columns)
    model.config = Config(**known)
    return model


def numpy_of(model):
    return lambda a: model(torch.as_tensor(a)).detach().numpy()


SIGMOID, SOFTMAX = nn.Sigmoid(), nn.Softmax(1)
TABLE = [
    ("logits of classes", linear(4), "logit", "logits", "default"),
    ("a softmax", nn.Sequential(linear(4), SOFTMAX), "logit", "probabilities", "values"),
    ("a softmax of a black box", numpy_of(nn.Sequential(linear(4), SOFTMAX)), "logit", "probabilities", "values"),
    ("a sigmoid", nn.Sequential(linear(1), SIGMOID), "logit", "probabilities", "layer"),
    ("a sigmoid without its axis", lambda x: linear(1)(x).sigmoid()[:, 0], "logit", "probabilities", "layer"),
    ("a sigmoid of a black box", numpy_of(nn.Sequential(linear(1), SIGMOID)), "logit", "probabilities", "guess"),
    ("sigmoids", nn.Sequential(linear(4), SIGMOID), "logit", "label_probabilities", "layer"),
    ("one logit", linear(1), "logit", "logits", "default"),
    ("regression, said", linear(1), "output", "values", "caller"),
    ("a proportion, said", nn.Sequential(linear(1), SIGMOID), "output", "values", "caller"),
    ("two numbers, said", linear(2), "output", "values", "default"),
    ("labels, said", linear(4), Kind("probability", outputs="label_logits"), "label_logits", "caller"),
    ("labels, configured", configured(4, problem_type="multi_label_classification"), "logit", "label_logits", "config"),
    ("regression, configured", configured(1, problem_type="regression", num_labels=1), "logit", "values", "config"),
    ("one label, configured", configured(1, problem_type=None, num_labels=1), "logit", "label_logits", "config"),
    ("classes, configured", configured(4, problem_type="single_label_classification"), "logit", "logits", "config"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "kind", "meaning", "source"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE])
def test_what_outputs_mean(model, kind, meaning, source):
    target = 1 if meaning == "values" and kind == "output" and isinstance(model, nn.Linear) else None
    target = None if isinstance(model, nn.Module) and model(X).shape[1] == 1 else target
    numpy = not isinstance(model, nn.Module) and not torch.is_tensor(model(X))
    score = cs.Score(model, target, kind=kind, numpy=numpy).at(X)
    assert (score.meaning.meaning, score.meaning.source) == (meaning, source)


def test_logits_that_happen_to_look_like_probabilities_are_logits():
    """The network's last layer is linear, so its bounds and its sum are chance."""
    model = linear(2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([0.25, 0.75]))
    score, _ = bound(model, X, None)
    assert score.meaning.meaning == "logits"
    # Of a black box nothing else is known: then they are taken for what they look like.
    assert cs.Score(numpy_of(model), None, numpy=True).at(X).meaning.meaning == "probabilities"
    assert interpret(torch.tensor([[0.2, 0.5]]), "logit").meaning == "label_probabilities"


def test_saturated_sigmoids_that_sum_to_one_are_labels():
    model = nn.Sequential(linear(2), nn.Sigmoid())
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([-80.0, 80.0]))
    assert bound(model, X, None)[0].meaning.meaning == "label_probabilities"


def test_the_last_layer_is_read_through_what_moves_numbers():
    x = X.clone().requires_grad_()
    assert last_layer_of(x.sigmoid()[:, :1].squeeze(1).unsqueeze(1)) == "sigmoid"
    assert last_layer_of(linear(3)(x).softmax(1)[:, 1]) == "softmax"
    assert last_layer_of(linear(3)(x).float()) == "linear"
    assert last_layer_of(x.sigmoid() * 2) is None and last_layer_of(X) is None


def test_a_guess_is_said_and_contradicted_by_name():
    """A margin that lies between 0 and 1 at x, of a black box, is no probability elsewhere."""
    f = lambda a: a.sum(1)  # noqa: E731
    x = np.array([[0.2, 0.1, 0.3], [0.1, 0.1, 0.1]])
    options = {
        "methods": ["feature_ablation"],
        "measures": ["insertion"],
        "objective": None,
        "baselines": np.full(3, 9.0),
    }
    assert any(
        "taken for probabilities" in said for said in cs.explain(f, x, methods=["feature_ablation"], **FEW).warnings
    )
    found = cs.evaluate(f, x, **options)
    assert np.isnan(found["insertion"]["feature_ablation"]).all() and "outputs='logits'" in str(found.reasons)
    fixed = cs.evaluate(f, x, kind=cs.Kind("logit", outputs="logits"), **options)
    assert np.isfinite(fixed["insertion"]["feature_ablation"]).all()


# -- one output --------------------------------------------------------------------------------------------------------


def test_one_logit_explains_either_class():
    """Target 1 (and none) is the logit, 0 the other class with the other sign; "predicted" the more likely one."""
    model = linear(1)
    logit = model(X).detach()[:, 0]
    assert (logit > 0).any() and (logit < 0).any()
    options = {"methods": ["saliency"], "sign": "keep", "scale": "none", **FEW}
    explain = lambda target: cs.explain(model, X, target, kind=Kind("logit", outputs="logits"), **options)  # noqa: E731
    positive, negative, likely, default = (explain(t) for t in (1, 0, "predicted", None))
    torch.testing.assert_close(positive.score, logit)
    torch.testing.assert_close(negative["saliency"], -positive["saliency"])
    torch.testing.assert_close(likely.score, logit.abs())
    assert likely.target.tolist() == (logit > 0).long().tolist() == likely.predicted.tolist()
    torch.testing.assert_close(default["saliency"], positive["saliency"])
    with pytest.raises(InputError, match=r"out of range.*two classes"):
        explain(2)
    # Of an output that may be a number, 0 is an index, as in Captum, and another class has to be explained.
    index = cs.explain(model, X, 0, **options)
    torch.testing.assert_close(index["saliency"], positive["saliency"])
    with pytest.raises(InputError, match=r"one output; if it is the logit of class 1, say kind=cs.Kind"):
        cs.explain(model, X, [0, 1, 0, 1], **options)


def test_one_probability_gets_no_second_sigmoid_in_a_curve():
    """Deletion of one sigmoid output, by the trapezoidal rule over its own values, for both classes."""
    model = nn.Sequential(linear(1), nn.Sigmoid())
    options = {"methods": ["feature_ablation"], "measures": ["deletion"], "objective": None}
    for target in (1, 0):
        score = lambda z: abs(1 - target - float(model(z[None]).detach()))  # noqa: B023, E731
        expected = []
        for row in X:
            falls = [score(row) - score(row * (torch.arange(3) != i)) for i in range(3)]
            z, curve = row.clone(), [score(row)]
            for i in np.argsort(-np.array(falls)):
                z[i] = 0
                curve.append(score(z))
            expected.append(float(torch.trapezoid(torch.tensor(curve), dx=1 / 3)))
        found = cs.evaluate(model, X, target=target, **options)["deletion"]["feature_ablation"]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_labels_go_through_sigmoids_however_they_are_said():
    """A kind that says labels, a config, and a callable kind give one curve, and a softmax's is another."""
    model, same = linear(4), configured(4, problem_type="multi_label_classification")
    options = {"target": 1, "methods": ["feature_ablation"], "measures": ["deletion"], "objective": None}
    curve = lambda net, kind: cs.evaluate(net, X, kind=kind, **options)["deletion"]["feature_ablation"]  # noqa: E731
    said = curve(model, cs.Kind("probability", outputs="label_logits"))
    by_hand = curve(model, lambda outputs, target: outputs.sigmoid().gather(1, target[:, None])[:, 0])
    np.testing.assert_allclose(said, by_hand)
    np.testing.assert_allclose(curve(same, "probability"), said)
    assert abs(curve(model, "probability") - said).max() > 1e-3


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "target", "kind", "verdict", "predicts"),
    [
        (linear(3), 1, "logit", "class 1</b>, logit", True),
        (nn.Sequential(linear(3), nn.Softmax(1)), 1, "logit", "class 1</b>, probability", True),
        (nn.Sequential(linear(1), nn.Sigmoid()), 1, "logit", "class 1</b>, probability", True),
        (linear(1), None, "logit", "the output</b>, output", False),
        (linear(1), 0, "logit", "the output</b>, output", False),
        (linear(1), 0, Kind("logit", "logits"), "class 0</b>, logit", True),
        (linear(1), None, "output", "output 0</b>, output", False),
        (linear(3), 2, "output", "output 2</b>, output", False),
        (linear(3), 2, Kind("probability", "label_logits"), "label 2</b>, probability", True),
        (configured(1, problem_type="regression"), None, "logit", "output 0</b>, output", False),
    ],
)
def test_captions_name_what_is_explained(tmp_path, model, target, kind, verdict, predicts):
    """A probability is no logit, and a number is no class "as predicted"."""
    r = cs.explain(model, X[:1], target, kind=kind, methods=["saliency"], **FEW)
    page = r.report(tmp_path / "page.html").read_text()
    assert verdict in page and ("model predicts" in page) is predicts
    assert (r.record(0)["predicted"] is not None) is predicts
    r.save(tmp_path / "run")
    assert verdict in cs.load(tmp_path / "run").report(tmp_path / "again.html").read_text()
    r.plot()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Kind("logits"), "logit"),
        (lambda: Kind("logit", outputs="labels"), "label_logits"),
        (lambda: bound(linear(1), X, None, kind=Kind("probability", "values")), "regression"),
        (lambda: bound(configured(1, problem_type="regression"), X, None, kind="margin"), "kind='output'"),
        (lambda: bound(linear(2), X, None, kind="output"), "2 outputs; say which one"),
    ],
)
def test_what_outputs_do_not_have_is_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()


# -- training ----------------------------------------------------------------------------------------------------------

Y = torch.tensor([0, 2, 1, 1])
LABELS = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])


def test_cross_entropy_takes_no_second_softmax():
    """The loss of the same network with and without its last layer, with and without a graph."""
    model = linear(3)
    expected = nn.functional.cross_entropy(model(X), Y, reduction="none")
    for outputs in (
        model(X),
        model(X).softmax(1),
        model(X).detach().softmax(1),
        torch.stack([*model(X).softmax(1).T], 1),
    ):
        torch.testing.assert_close(train.cross_entropy(outputs, Y), expected)
    places = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    y = Y[:, None, None].expand(4, 2, 2)
    torch.testing.assert_close(train.cross_entropy(places.softmax(1), y), train.cross_entropy(places * 1, y))
    with pytest.raises(InputError, match="loss_fn=logistic"):
        train.cross_entropy(model(X), LABELS.double())


def test_logistic_loss_is_of_one_logit_or_of_labels():
    model = linear(3)
    expected = nn.functional.binary_cross_entropy_with_logits(model(X), LABELS.double(), reduction="none").mean(1)
    torch.testing.assert_close(train.logistic(model(X), LABELS), expected)
    torch.testing.assert_close(train.logistic(model(X).sigmoid(), LABELS), expected)
    one = model(X)[:, :1]
    torch.testing.assert_close(train.logistic(one, Y == 1), train.logistic(one[:, 0], (Y == 1)[:, None].double()))
    with pytest.raises(InputError, match="y: shape"):
        train.logistic(model(X), Y)


def test_a_penalty_explains_the_class_of_one_logit():
    """Labels of 0 and 1 are targets of one output: the maps of class 0 are those of class 1 with the other sign."""
    model, both = linear(1), linear(2)
    with torch.no_grad():
        both.weight.copy_(torch.cat([-model.weight, model.weight]))
        both.bias.copy_(torch.cat([-model.bias, model.bias]))
    y = torch.tensor([0, 1, 1, 0])
    penalty = lambda: train.Penalty(cs.Infidelity(), "input_x_gradient", loss_fn=train.logistic)  # noqa: E731
    torch.testing.assert_close(penalty()(model, X, y).total, penalty()(both, X, y).total)
