"""What cannot be used is said by name with a remedy, and the remedy works."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import consilience as cs
from consilience.arrays import as_tensor
from consilience.errors import InputError
from consilience.features.sequences import Tokens

FEW = {"fit_draws": 2, "fresh_draws": 2, "resolved_draws": 0, "objective": "mean"}
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
torch.manual_seed(0)
NET = nn.Linear(6, 3).eval()
CONV = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)).eval()
EMBEDDING, HEAD = nn.Embedding(9, 4), nn.Sequential(nn.Flatten(), nn.Linear(24, 3))
IDS = torch.arange(24).view(4, 6) % 9
WIDE, LONG = torch.randn(1, 2000), torch.randn(1, 3, 1100)
VOLUME = torch.randn(1, 1, 12, 12, 12)


def explain(model, x, target=0, methods=("saliency",), **options):
    return cs.explain(model, x, target, methods=list(methods), **{**FEW, **options})


def flat(size):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 3)).eval()


def kernel_shap(x, **options):
    methods = [cs.explainers.KernelSHAP(300)]
    return explain(flat(x[0].numel()), x, methods=methods, **options)


def two(a, b):
    return NET(a) + NET(b)


def scripted(x):
    """A classifier of words, as scikit-learn's predict."""
    return np.array(["yes", "no"])[(x.sum(1) > 0).astype(int)]


def meta():
    return nn.Linear(6, 3, device="meta")


def filled():
    model = meta().to_empty(device="cpu")
    model.load_state_dict(NET.state_dict())
    return model


def lazy(called):
    model = nn.Sequential(nn.LazyLinear(3)).eval()
    if called:
        model(X)
    return model


def quantised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(X, 0.1, 0, torch.qint8)


def nested():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([X[:2], X[:1]])


SEVERAL = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 1], [0, 0, 0]])
LABELS = cs.Kind("logit", outputs="label_logits")
SPARSE = X.to_sparse()
GROUPS = torch.arange(12 * 12 * 12).view(1, 12, 12, 12) // 100

# what is tried; words of its error, as a pattern; the remedy (None where there is nothing to give instead)
TABLE = {
    "a tuple of inputs": (
        lambda: explain(two, (X, X)),
        r"got tuple; .*cs\.pack\(x\)",
        lambda: explain(two, cs.pack((X, X))),
    ),
    "a mapping of inputs": (
        lambda: explain(two, {"a": X, "b": X}),
        r"got dict; .*cs\.pack\(x\)",
        lambda: explain(two, cs.pack({"a": X, "b": X})),
    ),
    "a list of rows": (lambda: explain(NET, list(X)), r"torch\.stack\(x\)", lambda: explain(NET, torch.stack(list(X)))),
    "a list of numbers": (
        lambda: explain(NET, X.tolist()),
        r"torch\.tensor\(x\)",
        lambda: explain(NET, torch.tensor(X.tolist())),
    ),
    "a text": (lambda: explain(NET, "not bad"), r"cs\.text\(model, tokenizer\)", None),
    "nothing": (lambda: explain(NET, None), r"x: .*got NoneType", None),
    "one input": (lambda: explain(NET, X[0]), r"x\[None\]", lambda: explain(NET, X[0][None])),
    "no input": (lambda: explain(NET, X[:0]), "empty", None),
    "token ids": (
        lambda: explain(nn.Sequential(EMBEDDING, HEAD), IDS),
        r"embeddings \(B, T, D\).*Tokens\(present\)",
        lambda: explain(HEAD, EMBEDDING(IDS).detach(), features=Tokens(IDS >= 0)),
    ),
    "bytes": (
        lambda: explain(CONV, IMAGES.to(torch.uint8)),
        r"\.float\(\)",
        lambda: explain(CONV, IMAGES.to(torch.uint8).float()),
    ),
    "complex numbers": (
        lambda: explain(NET, torch.complex(X, X)),
        r"torch\.view_as_real",
        lambda: explain(lambda z: NET(torch.view_as_complex(z).abs()), torch.view_as_real(torch.complex(X, X))),
    ),
    "a sparse tensor": (lambda: explain(NET, SPARSE), r"to_dense\(\)", lambda: explain(NET, SPARSE.to_dense())),
    "a quantised tensor": (
        lambda: explain(NET, quantised()),
        r"dequantize\(\)",
        lambda: explain(NET, quantised().dequantize()),
    ),
    "a nested tensor": (
        lambda: explain(flat(12), nested()),
        "to_padded_tensor",
        lambda: explain(flat(12), torch.nested.to_padded_tensor(nested(), 0.0)),
    ),
    "a tensor without values": (lambda: explain(NET, X.to("meta")), "meta device", None),
    "objects": (lambda: explain(NET, np.full((4, 6), "a", dtype=object)), "not all numbers.*encode", None),
    "a model without values": (
        lambda: explain(meta(), X),
        r"'weight' is on the meta device.*load its weights",
        lambda: explain(filled(), X),
    ),
    "a lazy model": (lambda: explain(lazy(False), X), "lazy.*run the model once", lambda: explain(lazy(True), X)),
    "a class for a model": (lambda: explain(nn.Linear, X), "model: Linear is a class", None),
    "a NaN in every input": (lambda: explain(NET, X * torch.nan), "every input", None),
    "outputs in words": (lambda: explain(scripted, X.numpy(), methods=["feature_ablation"]), "predict_proba", None),
    "complex outputs": (
        lambda: explain(lambda x: torch.complex(x, x), X),
        r"outputs\.abs\(\)",
        lambda: explain(lambda x: torch.complex(x, x).abs(), X),
    ),
    "outputs in a tuple": (
        lambda: explain(lambda x: (NET(x), x), X),
        r"model\(x\)\[0\]",
        lambda: explain(lambda x: (NET(x), x)[0], X),
    ),
    "outputs in a mapping": (
        lambda: explain(lambda x: {"out": NET(x)}, X),
        r"model\(x\)\['out'\]",
        lambda: explain(lambda x: {"out": NET(x)}["out"], X),
    ),
    "several labels": (
        lambda: explain(NET, X, SEVERAL),
        r"one label at a time.*label_logits",
        lambda: explain(NET, X, 2, kind=LABELS),
    ),
    "one-hot targets": (
        lambda: explain(NET, X, torch.eye(3).long()[[0, 1, 2, 0]]),
        r"\.argmax\(1\)",
        lambda: explain(NET, X, torch.eye(3).long()[[0, 1, 2, 0]].argmax(1)),
    ),
    "one-hot targets in floats": (lambda: explain(NET, X, torch.eye(3)[[0, 1, 2, 0]]), r"\.argmax\(1\)", None),
    "truth values among targets": (lambda: explain(NET, X[:2], [False, 0]), "expected integers, got .False, 0", None),
    "nothing among targets": (lambda: explain(NET, X[:2], [None, 0]), "expected integers", None),
    "names among targets": (lambda: explain(NET, X[:2], ["cat", "dog"]), "expected integers", None),
    "targets in floats": (
        lambda: explain(NET, X, [0.0, 1, 2, 0]),
        r"\.long\(\)",
        lambda: explain(NET, X, torch.tensor([0.0, 1, 2, 0]).long()),
    ),
    "targets of several lengths": (
        lambda: explain(NET, X, [[0], [1, 2], [0], [0]]),
        "target: rows of different length",
        None,
    ),
    "pixels of a table": (
        lambda: explain(NET, X, features="pixels"),
        r"Elements\(\)",
        lambda: explain(NET, X, features=cs.Elements()),
    ),
    "patches of a table": (
        lambda: explain(NET, X, features=cs.Patches(2)),
        r"Columns",
        lambda: explain(NET, X, features=cs.Columns(["a", "a", "b", "b", "c", "c"])),
    ),
    "features of another type": (lambda: explain(NET, X, features=3), "features is .*got 3", None),
    "many columns": (
        lambda: kernel_shap(WIDE),
        r"cs\.Columns\(names\)",
        lambda: kernel_shap(WIDE, features=cs.Columns([f"block {i // 100}" for i in range(2000)])),
    ),
    "many steps": (
        lambda: kernel_shap(LONG),
        r"cs\.Windows\(size\)",
        lambda: kernel_shap(LONG, features=cs.Windows(100)),
    ),
    "a volume": (
        lambda: kernel_shap(VOLUME),
        r"cs\.Segments\(labels\) with labels of shape \(1, 12, 12, 12\)",
        lambda: kernel_shap(VOLUME, features=cs.Segments(GROUPS)),
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_an_error_names_the_cause_and_a_remedy_that_works(name):
    tried, said, remedy = TABLE[name]
    with pytest.raises(InputError) as caught:
        tried()
    assert re.search(said, str(caught.value)), str(caught.value)
    if remedy is not None:
        assert not remedy().failed


# -- what is taken -----------------------------------------------------------------------------------------------------

ARRAY = X.numpy()
FORMS = {
    "reversed": lambda: ARRAY[::-1][::-1],
    "reversed once": lambda: np.ascontiguousarray(ARRAY[::-1])[::-1],
    "big-endian": lambda: ARRAY.astype(">f4"),
    "objects": lambda: ARRAY.astype(object),
    "long doubles": lambda: ARRAY.astype(np.longdouble),
    "read-only": lambda: np.frombuffer(ARRAY.tobytes(), np.float32).reshape(4, 6),
    "Fortran order": lambda: np.asfortranarray(ARRAY),
    "masked, nothing missing": lambda: np.ma.masked_array(ARRAY),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("error")
def test_arrays_of_any_layout_are_taken(form):
    """As inputs of a network and of a function of arrays, and as baselines."""
    given = FORMS[form]()
    expected = explain(NET, X, methods=["integrated_gradients"], baselines=X)
    found = explain(NET, given, methods=["integrated_gradients"], baselines=given)
    torch.testing.assert_close(found.attribution, expected.attribution)
    weight = NET.weight.detach().numpy().T.astype(np.float64)
    by_arrays = explain(lambda a: np.asarray(a, float) @ weight, given, methods=["feature_ablation"])
    by_tensors = explain(lambda a: a.double() @ torch.as_tensor(weight), X, methods=["feature_ablation"])
    torch.testing.assert_close(by_arrays.attribution.double(), by_tensors.attribution.double())


def test_missing_values_of_masked_arrays_leave_their_inputs_out():
    hidden = np.ma.masked_array(ARRAY, mask=np.arange(24).reshape(4, 6) == 8)
    assert explain(NET, hidden).index == (0, 2, 3)


def test_data_frames_go_in_by_position_and_name_their_columns():
    pandas = pytest.importorskip("pandas")
    names = list("abcdef")
    frame = pandas.DataFrame(ARRAY, columns=names, index=[9, 7, 8, 6])
    target = pandas.Series([0, 1, 2, 0], index=[6, 7, 8, 9])
    for model in (NET, lambda a: a @ NET.weight.detach().numpy().T):
        methods = ["feature_ablation"]
        found = explain(model, frame, target, methods=methods, baselines=frame)
        expected = explain(model, ARRAY, [0, 1, 2, 0], methods=methods, baselines=ARRAY)
        torch.testing.assert_close(found.attribution, expected.attribution)
        assert found.target.tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("decide", [lambda x: (x[:, :3] * 10).long(), lambda x: x[:, :3] > 0, lambda x: x[:, 0] > 0])
def test_outputs_may_be_integers_and_truth_values(decide):
    counts = explain(decide, X, methods=["feature_ablation"], scale="none", sign="keep")
    floats = explain(lambda x: decide(x).float(), X, methods=["feature_ablation"], scale="none", sign="keep")
    torch.testing.assert_close(counts.attribution, floats.attribution)


def test_all_measures_take_images_of_one_pixel():
    """A single feature is there or gone; nothing is left to be asked."""
    found = cs.evaluate(flat(3), torch.randn(2, 3, 1, 1), methods=["saliency"], measures="all", objective=None)
    assert len(found) == 2


@pytest.mark.parametrize("regions", [1, 2])
def test_few_regions_are_enough(regions):
    segments = cs.Segments((torch.arange(16) * regions // 16)[:, None].expand(16, 16))
    methods = ["feature_ablation", "rise", "lime", "kernel_shap", "shapley_sampling", "saliency", "grad_cam"]
    found = explain(CONV, IMAGES, methods=methods, features=segments, objective="opt")
    assert not found.failed and found.attribution.shape == (2, regions)


def test_as_tensor_shares_what_it_can():
    assert as_tensor("x", ARRAY).data_ptr() == ARRAY.__array_interface__["data"][0]
    assert as_tensor("x", X) is X


def test_more_steps_are_advised_only_where_they_help():
    """A network that rounds has no gradient at any number of steps; a smooth one that is far from its integral has."""

    class Rounding(nn.Module):
        def forward(self, x):
            return (NET(x) * 10).round() + 0 * x.sum()

    class Steep(nn.Module):
        def forward(self, x):
            return torch.tanh(100 * (x.mean(1, keepdim=True) - 0.5))

    x = torch.ones(1, 6)
    rounded, steep = (str(explain(model(), x, methods=["integrated_gradients"])) for model in (Rounding, Steep))
    assert "outputs only" in rounded and "raise its" not in rounded
    assert "raise its n_steps, e.g. IntegratedGradients(n_steps=64)" in steep

    class Nearly(Rounding):
        def forward(self, x):
            return super().forward(x) + 1e-9 * NET(x)

    rounded, steep = (str(cs.doctor(model(), x, methods="integrated_gradients")) for model in (Nearly, Steep))
    assert "more steps do not mend" in rounded and "raise the number" not in rounded
    assert "raise the number of steps" in steep


def test_a_measure_of_ones_own_without_name_or_card_is_refused_before_the_work():
    class Bare(cs.measures.Measure):
        def __call__(self, task):
            raise AssertionError("the work has begun")

    class Named(Bare):
        name = "named"

    with pytest.raises(cs.InputError, match="Bare has no name and no card"):
        cs.evaluate(NET, X, methods="saliency", measures=[Bare()])
    with pytest.raises(cs.InputError, match="Named has no card"):
        cs.evaluate(NET, X, methods="saliency", measures=[Named()])
