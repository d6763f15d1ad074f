"""Texts, several inputs, segmentation and series: the adapter's model is the caller's, and explanations work through it."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from nets import bound, judged
from torch import nn

import consilience as cs
from consilience.adapters import Prepared, adapted, pack, segmentation, text
from consilience.errors import InputError
from consilience.explainers import GradCAM, IntegratedGradients, Saliency, Stack
from consilience.features.images import Patches, Pixels
from consilience.features.sequences import Windows
from consilience.features.tables import Columns
from consilience.metrics import Infidelity
from consilience.model.score import Score
from consilience.model.state import borrowed
from consilience.perturb.baseline import Baseline
from consilience.perturb.masks import Masked
from consilience.perturb.neighbourhoods import Uniform
from consilience.perturb.points import Points
from consilience.statistics.keys import Key

SMALL = {"fit_draws": 6, "fresh_draws": 6, "resolved_draws": 0}
KEY = Key(2, "adapters")


def started(prepared: Prepared, **options):
    """The score and the points that an explanation starts from."""
    score = Score(prepared.model, prepared.target, kwargs=prepared.kwargs, **options).at(prepared.x)
    x = prepared.x.detach()
    return score, Points(x, torch.arange(len(x)), score.ids, len(x), prepared.unit)


# -- texts -------------------------------------------------------------------------------------------------------------

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a gripping film the plot was dull but acting very good not bad at all".split()
TEXTS = ["a gripping film", "the plot was dull but the acting was very good", "not bad"]
SIZES = {
    "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 16, "num_labels": 3, "pad_token_id": 0, "id2label": {0: "BAD", 1: "SO SO", 2: "GOOD"},
    "label2id": {"BAD": 0, "SO SO": 1, "GOOD": 2},
}  # fmt: skip
CONFIGS = {
    "Bert": SIZES,
    "DistilBert": {**SIZES, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "Roberta": {**SIZES, "max_position_embeddings": 17},
    "Electra": {**SIZES, "embedding_size": 8},
    "GPT2": {**SIZES, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "bos_token_id": 1, "eos_token_id": 1},
    "Llama": {**SIZES, "num_key_value_heads": 2},
}
DECODERS = ("GPT2", "Llama")
kinds = pytest.mark.parametrize("kind", CONFIGS)


@functools.cache
def tokenizer(special=True):
    """Words are tokens; with [CLS] and [SEP] as encoders have them, or without any special token."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "model_input_names": ["input_ids", "attention_mask"]}
    if special:
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        names |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
        names |= {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **names)


@functools.cache
def classifier(kind):
    """A tiny classifier with random weights, large enough that words matter."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**CONFIGS[kind])
    config._attn_implementation = "eager"  # the fused masks of transformers 4.48 overflow in float64
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def adapter(kind, **options):
    return text(classifier(kind), tokenizer(kind not in DECODERS), **options)


def ids(texts, kind):
    return tokenizer(kind not in DECODERS)(texts, padding=True, padding_side="right", return_tensors="pt")


@kinds
def test_embeddings_give_the_models_own_outputs(kind):
    """As the model's author calls it, padded or alone; positions and the token that a decoder reads are the model's."""
    model, prepared = classifier(kind), adapter(kind).prepare(TEXTS)
    batch = {name: value for name, value in ids(TEXTS, kind).items() if name in prepared.kwargs}
    with torch.no_grad():
        torch.testing.assert_close(prepared.model(prepared.x, **prepared.kwargs), model(**batch).logits)
        for i, words in enumerate(TEXTS):
            alone = adapter(kind).prepare(words)
            found = alone.model(alone.x, **alone.kwargs)
            torch.testing.assert_close(found[0], model(**batch).logits[i])
            torch.testing.assert_close(found, model(input_ids=ids([words], kind)["input_ids"]).logits)


@kinds
def test_the_baseline_is_the_models_own_embedding_of_the_mask(kind):
    """A masked token, in x as in the ids: the same output. What is no feature keeps its embedding."""
    model, prepared = classifier(kind), adapter(kind).prepare(TEXTS)
    token = prepared.kwargs["input_ids"]
    present = prepared.features.present
    where = present.cumsum(1) == 2  # the second word of each text
    origin = prepared.baselines.at(Points(prepared.x, torch.arange(3), torch.arange(3), 3))
    assert torch.equal(origin[~present], prepared.x[~present])
    with torch.no_grad():
        found = prepared.model(torch.where(where[..., None], origin, prepared.x), **prepared.kwargs)
        if kind in DECODERS:  # no [MASK]: zero
            assert not origin[present].any()
        else:
            expected = model(
                token.masked_fill(where & present, WORDS.index("[MASK]")), prepared.kwargs["attention_mask"]
            )
            torch.testing.assert_close(found, expected.logits)


@kinds
def test_tokens_are_named_and_only_words_are_features(kind):
    prepared = adapter(kind).prepare([*TEXTS[:1], "dull wombat"], ["GOOD", "BAD"])
    tokens, present = prepared.about["tokens"], prepared.features.present
    named = [
        [token for token, p in zip(row, here, strict=True) if p] for row, here in zip(tokens, present, strict=True)
    ]
    assert named == [["a", "gripping", "film"], ["dull", "[UNK]"]] and len(tokens[1]) == present.shape[1]
    assert prepared.target == [2, 0] and prepared.about["labels"] == ["BAD", "SO SO", "GOOD"]
    score, points = started(prepared)
    assert score.targets.tolist() == [2, 0]
    gradient = Stack([Saliency()]).attribute(score, points)[:, 0]
    assert not gradient[~prepared.kwargs["attention_mask"].bool()].any()
    assert (prepared.features.reduce_gradient(gradient, points.owner) > 0).equal(present)
    rows = Uniform(0.5).draw(points, range(2), KEY, 2).points - points.x.repeat_interleave(2, 0)
    assert ((rows != 0).any(2) == present.repeat_interleave(2, 0)).all()
    table = classifier(kind).get_input_embeddings().weight
    assert rows.abs().max() <= 0.5 * table.float().std() * (1 + 1e-6)


@kinds
def test_a_text_is_explained_the_same_alone_and_padded(kind):
    def statistics(texts):
        prepared = adapter(kind).prepare(texts, "GOOD")
        score, points = started(prepared)
        raw = Stack([Saliency(), IntegratedGradients(4, prepared.baselines)], 1).attribute(score, points)
        maps = torch.stack(
            [
                prepared.features.reduce_gradient(raw[:, 0], points.owner),
                prepared.features.reduce(raw[:, 1], points.owner),
            ],
            1,
        )
        masks = Infidelity(prepared.features, 0.4, prepared.baselines)
        found = masks.measure(judged(score, points, maps, prepared.features, KEY), range(5), 5)
        return maps, found.a, found.y

    together, alone = statistics(TEXTS), statistics(TEXTS[:1])
    length = alone[0].shape[2]
    assert not together[0][0, :, length:].any()
    close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-6)  # Llama's softmax is in float32
    close(together[0][:1, :, :length], alone[0])
    for a, b in zip(together[1:], alone[1:], strict=True):
        close(a[:1], b)


def test_integrated_gradients_of_tokens_add_up():
    prepared = adapter("Bert").prepare(TEXTS, "GOOD")
    score, points = started(prepared)
    found = Stack([IntegratedGradients(64, prepared.baselines)]).attribute(score, points)[:, 0]
    fall = score.clean - score(prepared.baselines.at(points), points.owner)
    torch.testing.assert_close(prepared.features.reduce(found, points.owner).sum(1), fall, rtol=0.02, atol=1e-3)


def test_pairs_of_texts_have_types():
    prepared = adapter("Bert").prepare([("a film", "not bad"), ("the plot was dull", "good")])
    batch = tokenizer()([["a film", "not bad"], ["the plot was dull", "good"]], padding=True, return_tensors="pt")
    assert set(prepared.kwargs["token_type_ids"].flatten().tolist()) == {0, 1}
    with torch.no_grad():
        torch.testing.assert_close(prepared.model(prepared.x, **prepared.kwargs), classifier("Bert")(**batch).logits)


def test_baselines_by_name():
    table = classifier("Bert").get_input_embeddings().weight
    points = Points(torch.zeros(1, 5, 16).double(), torch.zeros(1).long(), torch.zeros(1).long(), 1)
    for name, row in (("mask", table[4]), ("pad", table[0]), ("zero", 0 * table[0]), (None, table[4])):
        for prepared in (
            adapter("Bert", baseline=name).prepare(TEXTS[:1]),
            adapter("Bert").prepare(TEXTS[:1], baselines=name),
        ):
            torch.testing.assert_close(prepared.baselines.at(points)[0, 1], row.detach())
    with pytest.raises(InputError, match="no mask token; use 'zero'"):
        adapter("GPT2", baseline="mask").prepare(TEXTS)
    with pytest.raises(InputError, match="did you mean 'mask'"):
        adapter("Bert", baseline="masks")


def test_long_texts_are_cut_and_said_so():
    prepared = adapter("Bert").prepare(["film " * 40, "film " * 14, "film"])
    assert (
        prepared.x.shape[1] == 16
        and len(prepared.warnings) == 1
        and "inputs[0]: cut to its first 16" in prepared.warnings[0]
    )
    roberta = adapter("Roberta").prepare("film " * 40)  # its positions start behind the padding's
    assert roberta.x.shape[1] == 16
    assert adapter("Bert", max_length=5).prepare("film " * 40).x.shape[1] == 5


def test_the_text_model_comes_back_as_it_was():
    model = classifier("Bert").train()
    try:
        prepared = adapter("Bert").prepare(TEXTS)
        score, points = started(prepared)
        Stack([Saliency()]).attribute(score, points)
        assert model.training and prepared.model.training
        handle = model.classifier.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepared.model(prepared.x, **prepared.kwargs)
        handle.remove()
        assert not model.get_input_embeddings()._forward_hooks and all(p.grad is None for p in model.parameters())
    finally:
        model.eval()


def test_parts_of_a_text_model_keep_their_modes():
    """A frozen encoder in eval mode under a head in training mode, as in fine-tuning."""
    model = classifier("Bert").train()
    model.bert.eval()
    before = [module.training for module in model.modules()]
    try:
        cs.explain(adapter("Bert"), TEXTS[:1], 1, methods=["saliency"], objective="mean", **SMALL)
        assert [module.training for module in model.modules()] == before
    finally:
        model.eval()


@pytest.mark.parametrize(
    ("problem", "meaning"),
    [("multi_label_classification", "label_logits"), ("regression", "values"), (None, "logits")],
)
def test_the_problem_of_a_text_model_is_read(problem, meaning):
    model = copy.deepcopy(classifier("Bert"))
    model.config.problem_type = problem
    score, _ = started(text(model, tokenizer()).prepare(TEXTS[:1], 2))
    assert score.meaning.meaning == meaning


class Compiled(nn.Module):
    """A model that does not call its embedding table."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def forward(self, input_ids, attention_mask):
        return self.model.get_input_embeddings().weight[input_ids].mean(1)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: text(nn.Linear(2, 2), tokenizer()), "expected a sequence classifier of transformers, got Linear"),
        (lambda: text(classifier("Bert"), "bert"), "expected the model's tokenizer"),
        (lambda: adapter("Bert").prepare([]), "no text"),
        (lambda: adapter("Bert").prepare([3]), r"inputs\[0\]: expected a text"),
        (lambda: adapter("Bert").prepare(["good", ""]), r"inputs\[1\]: '' has no token"),
        (lambda: adapter("Bert").prepare(TEXTS, "GODO"), "unknown target 'godo'; did you mean 'good'"),
        (lambda: adapter("Bert").prepare(TEXTS, features=Pixels()), "they are its tokens"),
        (lambda: text(Compiled(classifier("Bert")), tokenizer()).prepare(TEXTS), "looks its tokens up 0 times"),
    ],
)  # fmt: skip
def test_what_text_cannot_do_is_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_models_that_read_the_padding_or_embed_twice_are_refused():
    transformers = pytest.importorskip("transformers")

    class LastPlace(Compiled):
        def forward(self, input_ids, attention_mask):
            return self.model.get_input_embeddings()(input_ids)[:, -1]

    with pytest.raises(InputError, match="changes when padding is put behind"):
        text(LastPlace(classifier("Bert")), tokenizer()).prepare(TEXTS)
    same_length = text(LastPlace(classifier("Bert")), tokenizer()).prepare(["a film", "not bad"])
    assert same_length.x.shape == (2, 4, 16)
    config = transformers.BartConfig(
        vocab_size=20, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1, decoder_attention_heads=1,
        encoder_ffn_dim=8, decoder_ffn_dim=8, num_labels=2, pad_token_id=0, eos_token_id=3,
    )  # fmt: skip
    with pytest.raises(InputError, match="encoder and a decoder"):
        text(transformers.BartForSequenceClassification(config), tokenizer())
    unpadded = classifier("GPT2").__class__(
        classifier("GPT2").config.__class__(**(CONFIGS["GPT2"] | {"pad_token_id": None}))
    )
    with pytest.raises(InputError, match="pad_token_id is None"):
        text(unpadded, tokenizer(False)).prepare(TEXTS)


# -- several inputs ----------------------------------------------------------------------------------------------------


class Two(nn.Module):
    """An image (B, 2, 4, 4) and a row (B, 3), with a product between them."""

    def __init__(self):
        super().__init__()
        self.conv, self.line = nn.Conv2d(2, 3, 3), nn.Linear(3, 3)

    def forward(self, image, row, gain=1.0):
        return self.conv(image).tanh().sum((2, 3)) * self.line(row.to(self.line.weight)).tanh() * gain


def two(dtype=torch.float64):
    torch.manual_seed(0)
    image, row = torch.randn(3, 2, 4, 4, dtype=torch.float64), torch.randn(3, 3, dtype=dtype)
    return Two().double().eval(), image, row


def test_a_packed_model_is_the_model():
    model, image, row = two()
    for packed in (pack((image, row)), pack({"row": row, "image": image})):
        prepared = packed.prepare(model, 1)
        assert prepared.x.shape == (3, 35)
        torch.testing.assert_close(prepared.model(prepared.x), model(image, row))
        torch.testing.assert_close(prepared.model(prepared.x, gain=2.0), model(image, row, 2.0))
        parts = packed.unpack(packed.x)
        torch.testing.assert_close(parts["image"] if isinstance(parts, dict) else parts[0], image)
        plain = packed.model(lambda image, row: model(image, row))
        torch.testing.assert_close(plain(packed.x), model(image, row))


def test_packed_gradients_are_those_of_each_part():
    model, image, row = two()
    packed = pack({"image": image, "row": row}, features={"image": "pixels", "row": Columns([[0, 2]])})
    score, points = started(packed.prepare(model, 1))
    found = packed.unpack(packed.features.reduce(Stack([Saliency()]).attribute(score, points)[:, 0], points.owner))
    image, row = image.requires_grad_(), row.requires_grad_()
    of_image, of_row = torch.autograd.grad(model(image, row)[:, 1].sum(), (image, row))
    torch.testing.assert_close(found["image"], of_image.sum(1))
    torch.testing.assert_close(found["row"], torch.stack([of_row[:, [0, 2]].sum(1), of_row[:, 1]], 1))
    free = packed.features.movable((35,))
    assert free[:32].all() and free[32:].tolist() == [False, True, False]  # a block is left as it is by noise
    assert packed.unpack(torch.zeros(3, 7, 18))["image"].shape == (3, 7, 4, 4)


def test_packed_parts_keep_their_dtype():
    seen = []

    class Watching(Two):
        def forward(self, image, row):
            seen.append((image.dtype, row.dtype))
            return super().forward(image, row)

    _, image, row = two(torch.float32)
    packed = pack((image, row))
    Score(packed.model(Watching().double()), 0).at(packed.x)
    assert packed.x.dtype == torch.float64 and set(seen) == {(torch.float64, torch.float32)}


def test_packed_baselines_belong_to_their_part():
    _, image, row = two()
    packed = pack((image, row), baselines=("mean", 2.0))
    points = Points(packed.x, torch.arange(3), torch.arange(3), 3)
    there = packed.unpack(packed.baselines.at(points))
    torch.testing.assert_close(there[0], image.mean((2, 3), keepdim=True).expand_as(image))
    assert (there[1] == 2).all()
    data = pack((image, row), baselines=(image.repeat(4, 1, 1, 1), row.repeat(4, 1)))
    assert data.baselines.kind == "samples"
    drawn = Masked(data.features, 0.5, data.baselines).draw(points, range(2), KEY, 2).origin
    assert all(any(torch.equal(one, row) for row in packed.x) for one in drawn)  # joint rows, from one input each


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: pack(()), "same first axis"),
        (lambda: pack((torch.ones(2, 3), torch.ones(3, 3))), r"same first axis B, got \[2, 3\]"),
        (lambda: pack((torch.ones(2, 3).long(),)), "goes to the model by kwargs"),
        (lambda: pack({"a": "text"}), r"inputs\['a'\]: expected real numbers .*, got str"),
        (lambda: pack((torch.ones(2, 3),), features=("elements", None)), "a list of 1"),
        (lambda: pack({"image": torch.ones(2, 3)}, features={"imgae": None}), "did you mean 'image'"),
        (lambda: pack({"a": torch.ones(2, 3)}, features=("elements",)), "a mapping like the inputs"),
        (lambda: pack((torch.ones(2, 3), torch.ones(2, 3)), baselines=(torch.ones(9, 3), 0.0)), "a data set for each input"),
        (lambda: pack((torch.ones(2, 3),)).unpack(torch.ones(2, 4)), "expected 3 features"),
        (lambda: pack((torch.ones(2, 3),)).prepare(nn.Linear(3, 2), features="elements"), "give pack"),
    ],
)  # fmt: skip
def test_what_pack_cannot_do_is_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


# -- segmentation ------------------------------------------------------------------------------------------------------


class Segmenter(nn.Module):
    """(N, 3, 8, 8) → (N, 4, 4, 4), as a tensor, or wrapped as torchvision and transformers do."""

    def __init__(self, form="tensor"):
        super().__init__()
        torch.manual_seed(3)
        self.body, self.head, self.form = nn.Conv2d(3, 6, 3, padding=1, stride=2), nn.Conv2d(6, 4, 1), form

    def forward(self, x):
        out = self.head(self.body(x).relu())
        return {"tensor": out, "out": {"out": out, "aux": out + 1}, "logits": type("Output", (), {"logits": out})()}[
            self.form
        ]


def pictures():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def asked(region):
    return segmentation(Segmenter().double(), region=region).prepare(pictures(), 3)


@pytest.mark.parametrize("form", ["tensor", "out", "logits"])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_a_segments_score_equals_its_slow_twin(form, reduce):
    model, x = Segmenter(form).double(), pictures()
    prepared = segmentation(model, reduce=reduce).prepare(x)
    score, points = started(prepared)
    near = Uniform(0.5).draw(points, range(3), KEY, 3)
    found = score(near.points, near.owner)
    for row, owner, value in zip(near.points, near.owner, found, strict=True):
        labels = (
            Segmenter().double()(x[owner][None])[0].argmax(0)
        )  # the region is the one at x, not the neighbour's own
        target = labels.flatten().bincount(minlength=4).argmax()
        assert int(score.targets[owner]) == int(target)
        logits = Segmenter().double()(row[None])[0, target][labels == target]
        torch.testing.assert_close(value, getattr(logits, reduce)().detach())


def test_regions_are_masks_class_maps_or_the_models_own():
    model, x = Segmenter().double(), pictures()
    logits = model(x).detach()
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1, 2] = mask[3, 0] = True
    prepared = segmentation(model, region=mask).prepare(x, [2, 1])
    expected = torch.stack([logits[0, 2][mask].mean(), logits[1, 1][mask].mean()])
    torch.testing.assert_close(started(prepared)[0].clean, expected)
    torch.testing.assert_close(
        started(segmentation(model, region=mask[None].expand(2, -1, -1)).prepare(x, [2, 1]))[0].clean, expected
    )
    large = mask.repeat_interleave(2, 0).repeat_interleave(2, 1)  # at the input's resolution
    torch.testing.assert_close(started(segmentation(model, region=large).prepare(x, [2, 1]))[0].clean, expected)
    classes = torch.where(mask, 2, 0)
    torch.testing.assert_close(started(segmentation(model, region=classes).prepare(x, 2))[0].clean[0], expected[0])
    best = logits.argmax(1)[:, mask].mode(1).values
    assert segmentation(model, region=mask).prepare(x).target.tolist() == best.tolist()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: segmentation(lambda x: x), "expected an nn.Module"),
        (lambda: segmentation(Segmenter(), reduce="max"), "'mean' or 'sum'"),
        (lambda: segmentation(nn.Flatten()).prepare(pictures()), "for a classifier leave segmentation out"),
        (lambda: asked(torch.zeros(4, 4).bool()), "nothing is True"),
        (lambda: asked(torch.zeros(4, 4).long()), "no place is of class 3"),
        (lambda: asked(torch.ones(4, 4)), "region: bool"),
        (lambda: asked(torch.ones(3, 4, 4).bool()), "2 inputs"),
    ],
)  # fmt: skip
def test_what_segmentation_cannot_do_is_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


class Binary(nn.Module):
    """One map: (N, 1, H, W), or (N, H, W); logits, or probabilities."""

    def __init__(self, flat, last):
        super().__init__()
        torch.manual_seed(3)
        self.body, self.flat, self.last = nn.Conv2d(3, 1, 3, padding=1), flat, last

    def forward(self, x):
        maps = self.last(self.body(x))
        return maps[:, 0] if self.flat else maps


@pytest.mark.parametrize("target", [None, 1, 0])
@pytest.mark.parametrize("last", [nn.Identity(), nn.Sigmoid()])
@pytest.mark.parametrize("flat", [False, True])
def test_a_binary_segmentation_has_a_foreground_and_a_background(flat, last, target):
    model, x = Binary(flat, last).double().eval(), pictures()
    prepared = segmentation(model).prepare(x, target)
    logits = model.body(x)[:, 0].detach()
    wanted = logits > 0 if target != 0 else logits <= 0
    assert torch.equal(prepared.about["region"], wanted)
    values = last(logits)
    if target == 0:
        values = 1 - values if isinstance(last, nn.Sigmoid) else -values
    expected = torch.stack([v[w].mean() for v, w in zip(values, wanted, strict=True)])
    score, _ = started(prepared)
    torch.testing.assert_close(score.clean, expected)
    assert score.described["score"] == ("probability" if isinstance(last, nn.Sigmoid) else "logit")


@pytest.mark.parametrize("last", [nn.Identity(), nn.Sigmoid()])
def test_masks_that_are_independent_overlap(last):
    """A place may belong to several labels, so a label's region is where its own map says so, not where it is largest."""
    body, x = Segmenter().double(), pictures()
    model = nn.Sequential(body, last)
    kind = None if isinstance(last, nn.Sigmoid) else "label_logits"
    prepared = segmentation(model, outputs=kind).prepare(x, 2)
    assert torch.equal(prepared.about["region"], body(x)[:, 2] > 0)
    score, _ = started(prepared)
    expected = [float(v[w].mean().detach()) for v, w in zip(last(body(x))[:, 2], prepared.about["region"], strict=True)]
    torch.testing.assert_close(score.clean, torch.tensor(expected).double())
    largest = segmentation(model, outputs=kind).prepare(x).target
    assert largest.tolist() == (body(x) > 0).flatten(2).sum(2).argmax(1).tolist()


def test_rows_of_a_map_are_no_classes():
    """(N, L) over a series' own steps is binary; over something else the first axis counts classes."""
    series_map = segmentation(nn.Sequential(nn.Conv1d(3, 1, 3, padding=1), nn.Flatten(1)).double())
    assert series_map.prepare(series()).about["region"].shape == (2, 20)
    columns = segmentation(nn.Sequential(nn.Conv2d(3, 5, (8, 1)), nn.Flatten(2)).double())  # (N, 5, 8) of 8 × 8 pixels
    assert columns.prepare(pictures()).about["region"].shape == (2, 8)


def test_class_activation_maps_of_a_segment():
    score, points = started(segmentation(Segmenter().double()).prepare(pictures()))
    found = Stack([GradCAM(), Saliency()]).attribute(score, points)
    assert found.isfinite().all() and score.layer("auto", points.x[:1], points.owner[:1]).grid == (4, 4)


# -- series ------------------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """(N, channels, steps) → (N, 2)."""

    def __init__(self, cell=nn.LSTM):
        super().__init__()
        torch.manual_seed(5)
        self.cell, self.head = cell(3, 6, batch_first=True, dropout=0.5, num_layers=2), nn.Linear(6, 2)
        self.cudnn = []

    def forward(self, x):
        self.cudnn.append(torch.backends.cudnn.enabled)
        return self.head(self.cell(x.transpose(1, 2))[0][:, -1])


def series(count=2, steps=20):
    return torch.randn(count, 3, steps, generator=torch.Generator().manual_seed(6), dtype=torch.float64)


def test_recurrent_networks_on_cuda_take_gradients_without_cudnn(monkeypatch):
    """cuDNN's backward pass refuses a network in eval mode. Only where gradients are taken, and only meanwhile."""
    model, before = Recurrent().double(), torch.backends.cudnn.enabled
    score, points = bound(model, series())
    Stack([Saliency()]).attribute(score, points)
    assert set(model.cudnn) == {before}
    monkeypatch.setattr("consilience.model.state._recurrent", lambda modules: True)
    model.cudnn.clear()
    Stack([Saliency()]).attribute(score, points)
    assert set(model.cudnn) == {False} and torch.backends.cudnn.enabled == before
    model.cudnn.clear()
    score(points.x, points.owner)
    assert set(model.cudnn) == {before}
    with pytest.raises(ZeroDivisionError), torch.enable_grad(), borrowed(model, freeze=True):
        1 / 0  # noqa: B018
    assert torch.backends.cudnn.enabled == before


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_gradients_on_cuda_are_those_of_the_cpu(cell):
    model, x = Recurrent(cell).double(), series()
    expected = Stack([Saliency()]).attribute(*bound(model, x))
    score = Score(model.cuda(), 1).at(x.cuda())
    found = Stack([Saliency()]).attribute(score, Points(x.cuda(), torch.arange(2).cuda(), score.ids))
    torch.testing.assert_close(found.cpu(), expected)


# -- through explain ---------------------------------------------------------------------------------------------------


def test_adapted_passes_everything_else_on():
    x = torch.ones(2, 3)
    given = adapted(nn.Linear(3, 2), x, 1, "elements", 0.0, {"gain": 2})
    assert given.x is x and given.target == 1 and given.kwargs == {"gain": 2} and given.baselines == 0.0
    packed = adapted(Two().double(), pack(two()[1:]), 1, kwargs={"gain": 2.0})
    assert packed.kwargs == {"gain": 2.0} and packed.x.shape == (3, 35)
    with pytest.raises(InputError, match="wraps a model"):
        adapted(nn.Linear(3, 2), segmentation(Segmenter()))


def test_explain_texts():
    methods = ["saliency", "input_x_gradient", "integrated_gradients"]
    r = cs.explain(adapter("Bert"), TEXTS, "GOOD", methods=methods, **SMALL)
    assert r.target.tolist() == [2, 2, 2] and r.about["tokens"][0][1:4] == ["a", "gripping", "film"]
    present = adapter("Bert").prepare(TEXTS).features.present
    assert (r["saliency"][present] > 0).all()  # gradients by their norm: their sum is zero behind a layer norm
    assert r.settings["mask_unit"] == "token" and r.settings["mask_baseline"] == "per_input"
    alone = cs.explain(adapter("Bert"), TEXTS[0], "GOOD", methods=methods, **SMALL)
    length = alone.attribution.shape[1]
    for row in (*methods, "mean", "var", "median", "rank", "uniform", "consensus"):
        assert r[row].shape == present.shape and not r[row][~present].any()
        torch.testing.assert_close(alone[row][0], r[row][0, :length], rtol=1e-4, atol=1e-6)


def test_a_texts_words_are_shown_stored_and_loaded(tmp_path):
    """Also beside one that is left out; padding is no bar."""
    pytest.importorskip("matplotlib")
    model = copy.deepcopy(classifier("Bert"))

    def refuse(_, args, kwargs, output):
        dull = (kwargs["input_ids"] == WORDS.index("dull")).any(1, keepdim=True)
        output.logits = output.logits.masked_fill(dull, torch.nan)

    model.register_forward_hook(refuse, with_kwargs=True)
    texts = [TEXTS[0], TEXTS[1], "not\nbad", "good film " * 6]
    r = cs.explain(text(model, tokenizer()), texts, "GOOD", methods=["saliency"], objective="robust", **SMALL)
    assert list(r.reasons) == ["inputs[1]"]
    found = cs.load(r.save(tmp_path / "run"))
    for each in (r, found):
        assert [row[1:3] for row in each.tokens] == [["a", "gripping"], ["not", "bad"], ["good", "film"]]
        assert [each.record(i)["input"]["text"] for i in range(3)] == [texts[i] for i in (0, 2, 3)]
        assert [entry.name for entry in each.entries()] == [" ".join(texts[i].split()) for i in (0, 2, 3)]
        labels = [label.get_text() for axes in each.plot(1).axes for label in axes.get_yticklabels()]
        assert sorted(labels) == ["[CLS]", "[SEP]", "bad", "not"]
        page = each.report(tmp_path / "page.html").read_text()
        assert ">gripping</th>" in page and '<th scope="row" title=""></th>' not in page and "input 2" not in page
    torch.testing.assert_close(found["uniform"], r["uniform"].float())  # 0 where padded


def test_a_long_text_is_named_by_its_beginning():
    r = cs.explain(adapter("Bert"), "a film " * 50, "GOOD", methods=["saliency"], objective="robust", **SMALL)
    name = r.record(0)["input"]["name"]
    assert name == ("a film " * 50)[:79] + "…" and r.record(0)["input"]["text"] == "a film " * 50


def test_explain_a_table_with_a_data_set():
    keyed = torch.Generator().manual_seed(8)
    jobs = nn.functional.one_hot(torch.randint(0, 3, (50,), generator=keyed)).double()
    table = torch.cat([torch.randn(50, 2, generator=keyed).double() * torch.tensor([1.0, 100.0]), jobs], 1)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    net[0].weight.data[:, 1] /= 100
    columns = Columns.onehot(["age", "pay", "job_a", "job_b", "job_c"])
    methods = ["saliency", "integrated_gradients", "expected_gradients", "smoothgrad", "deeplift"]
    r = cs.explain(net, table[:4], 1, methods=methods, baselines=table, features=columns, **SMALL)
    assert r.attribution.shape == (4, 3) and not r.failed and r.settings["mask_unit"] == "column or block"
    assert r.settings["mask_baseline"] == "samples"
    mean = Stack([IntegratedGradients(baselines=table.mean(0))]).attribute(*bound(net, table[:4]))[:, 0]
    found = columns.reduce(mean, torch.arange(4))
    torch.testing.assert_close(r["integrated_gradients"], found / found.abs().amax(1, keepdim=True))
    one_hot = cs.explain(net, table[:4], 1, methods=methods, baselines=table, objective="robust", **SMALL)
    assert one_hot.attribution.shape == (4, 5)


def test_explain_several_inputs_and_a_segment():
    model, image, row = two()
    packed = pack({"image": image, "row": row}, features={"image": Patches(2)}, baselines={"image": "mean", "row": 0.0})
    r = cs.explain(model, packed, 1, methods=["saliency", "integrated_gradients"], **SMALL)
    parts = packed.unpack(r.attribution)
    assert parts["image"].shape == (3, 2, 2) and parts["row"].shape == (3, 3)
    assert r.settings["mask_unit"] == "feature of a part"
    s = cs.explain(
        segmentation(Segmenter().double()), pictures(), methods=["saliency", "grad_cam"], objective="robust", **SMALL
    )
    assert s.attribution.shape == (2, 8, 8) and not s.failed and s.about["region"].shape == (2, 4, 4)


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_explain_a_series_by_windows(cell):
    model = Recurrent(cell).double()
    r = cs.explain(model, series(), 1, methods="gradient", features=Windows(5), baselines="mean", **SMALL)
    assert r.attribution.shape == (2, 4) and not r.failed and r.settings["mask_unit"] == "window of 5"
    regression = nn.Sequential(nn.Flatten(), nn.Linear(60, 1)).double()
    out = cs.explain(
        regression,
        series(),
        kind="output",
        methods=["input_x_gradient"],
        features=Windows(5),
        objective="faith",
        **SMALL,
    )
    weights = (regression[1].weight.view(3, 20) * series()).sum(1).unflatten(1, (4, 5)).sum(2).detach()
    torch.testing.assert_close(out.attribution, weights / weights.abs().amax(1, keepdim=True))


def test_arrays_are_packed_too():
    packed = pack({"image": np.ones((2, 3, 4, 4)), "row": np.ones((2, 5))})
    assert packed.x.shape == (2, 53) and isinstance(Baseline.of(None), Baseline)
