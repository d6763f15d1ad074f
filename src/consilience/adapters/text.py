"""Hugging Face text classifiers: tokens are the features, noise and baselines live in embedding space."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, choose
from ..features.sequences import Tokens
from ..model.state import borrowed
from ..perturb.baseline import Baseline
from ..settings import checked
from .base import Adapter, Prepared

BASELINES = ("mask", "pad", "zero")


class Text(Adapter):
    """See :func:`text`."""

    def __init__(self, model: nn.Module, tokenizer: Any, baseline: str | None = None, max_length: int | None = None):
        config = getattr(model, "config", None)
        if not isinstance(model, nn.Module) or config is None or not hasattr(model, "get_input_embeddings"):
            raise InputError(
                f"model: expected a sequence classifier of transformers, got {type(model).__name__}; for another model give "
                "embeddings (B, T, D) as x and features=Tokens(present)"
            )
        if getattr(config, "is_encoder_decoder", False):
            raise InputError(
                f"model: {type(model).__name__} has an encoder and a decoder, which both embed the text, so a token's share is "
                "not one place's; use a classifier with one of them"
            )
        if not callable(tokenizer):
            raise InputError(f"tokenizer: expected the model's tokenizer, got {type(tokenizer).__name__}")
        self.model, self.tokenizer = model, tokenizer
        if baseline is None:
            baseline = "mask" if getattr(tokenizer, "mask_token_id", None) is not None else "zero"
        self.baseline = checked("baseline", baseline, str, choices=BASELINES)
        usual = min(tokenizer.model_max_length, _places(model))
        self.max_length = usual if max_length is None else checked("max_length", max_length, int, low=1)

    def prepare(self, inputs: Any, target: Any = None, features: Any = None, baselines: Any = None) -> Prepared:
        """Texts (a string, strings, or pairs of strings) as embeddings (B, T, D)."""
        if features is not None:
            raise InputError("features: of a text they are its tokens; leave features out")
        texts = _texts(inputs)
        ids, attended, special, types, cut = self._tokens(texts)
        present = attended & ~special
        if empty := [i for i, row in enumerate(present.tolist()) if not any(row)]:
            raise InputError(f"inputs[{empty[0]}]: {texts[empty[0]]!r} has no token that could be explained")
        module = _Embedded(self.model)
        table = module.table
        x = _embed(table, ids)
        kwargs = {"input_ids": ids, "attention_mask": attended.long()}
        if types is not None:
            kwargs["token_type_ids"] = types
        self._unpadded(module, x, kwargs, attended)
        weight = table.weight.detach()
        named = getattr(self.model.config, "id2label", None) or {}
        labels = [str(named[number]) for number in sorted(named)]
        vocabulary = self.tokenizer.convert_ids_to_tokens
        tokens = [vocabulary(row[use].tolist()) for row, use in zip(ids.cpu(), attended.cpu(), strict=True)]
        return Prepared(
            module,
            x,
            _target(target, labels, len(texts)),
            Tokens(present),
            kwargs,
            self._origin(x, present, table, baselines),
            present[..., None] * weight.float().std(),
            {
                "tokens": [[*row, *[""] * (ids.shape[1] - len(row))] for row in tokens],
                "texts": [text if isinstance(text, str) else " ¶ ".join(text) for text in texts],
                "labels": labels,
            },
            tuple(
                f"inputs[{i}]: cut to its first {self.max_length} tokens, the most that the model takes" for i in cut
            ),
        )

    def _tokens(self, texts: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor, Tensor | None, list[int]]:
        """Ids, which of them the model attends to, which are special, their types (or None), each (B, T), padded on the
        right so that a token has the same place, hence the same noise, in any batch; and which texts were cut."""
        pad = getattr(self.model.config, "pad_token_id", None)
        if pad is None:
            raise InputError(
                "model: config.pad_token_id is None, so the model cannot tell padding from text; set "
                "tokenizer.pad_token = tokenizer.eos_token and model.config.pad_token_id = tokenizer.pad_token_id"
            )
        options = {"return_special_tokens_mask": True, "truncation": True, "max_length": self.max_length}
        rows = [self.tokenizer(*(text if isinstance(text, tuple) else (text,)), **options) for text in texts]
        length = max(1, *(len(row["input_ids"]) for row in rows))
        device = next(self.model.parameters()).device

        def column(name: str, fill: int) -> Tensor:
            padded = [[*row[name], *[fill] * (length - len(row[name]))] for row in rows]
            return torch.tensor(padded, device=device)

        full = [i for i, row in enumerate(rows) if len(row["input_ids"]) == self.max_length]
        whole = lambda text: self.tokenizer(*(text if isinstance(text, tuple) else (text,)), verbose=False)  # noqa: E731
        cut = [i for i in full if len(whole(texts[i])["input_ids"]) > self.max_length]
        typed = "token_type_ids" in rows[0] and "token_type_ids" in signature(self.model.forward).parameters
        return (
            column("input_ids", pad),
            torch.tensor([[i < len(row["input_ids"]) for i in range(length)] for row in rows], device=device),
            column("special_tokens_mask", 1).bool(),
            column("token_type_ids", 0) if typed else None,
            cut,
        )

    @staticmethod
    def _unpadded(module: _Embedded, x: Tensor, kwargs: dict[str, Tensor], attended: Tensor) -> None:
        """Refuse a model whose output for the shortest text changes with the padding behind it (XLNet reads the last place)."""
        length, i = (int(found) for found in attended.sum(1).min(0))
        if length == x.shape[1]:
            return
        alone = {name: value[i : i + 1, :length] for name, value in kwargs.items()}
        padded = {name: value[i : i + 1] for name, value in kwargs.items()}
        with torch.no_grad(), borrowed(module, freeze=True):
            found, expected = module(x[i : i + 1], **padded).float(), module(x[i : i + 1, :length], **alone).float()
        if bool(((found - expected).abs() > 0.02 * expected.abs().max()).any()):
            raise InputError(
                f"model: its output for inputs[{i}] changes when padding is put behind the text; explain texts of one length "
                "at a time"
            )

    def _origin(self, x: Tensor, present: Tensor, table: Any, baselines: Any) -> Any:
        """(B, T, D): the baseline's embedding for every feature; special tokens and padding keep their own."""
        if baselines is not None and not isinstance(baselines, str):
            return baselines
        name = self.baseline if baselines is None else choose("baselines", baselines, BASELINES)
        if name == "zero":
            row = torch.zeros_like(x[0, 0])
        else:
            number = getattr(self.tokenizer, f"{name}_token_id")
            if number is None:
                raise InputError(f"baseline: the tokenizer has no {name} token; use 'zero'")
            row = _embed(table, torch.tensor([number], device=x.device))[0]
        return Baseline.per_input(torch.where(present[..., None], row, x))


def text(model: nn.Module, tokenizer: Any, *, baseline: str | None = None, max_length: int | None = None) -> Text:
    """A Hugging Face sequence classifier for :func:`consilience.explain`, whose inputs are then texts.

    x are the embeddings of the tokens (B, T, D), before positions and types are added; a feature is a token, over D. The
    model is called with its own ids, mask and types, and only the looked-up embeddings are replaced, so that positions,
    padding and the place that a decoder reads are what they are without explanation. Special tokens and padding are no
    features: they are never masked, moved, ranked or scaled by. Noise is in units of the standard deviation of the
    embedding table, so that ``AverageSensitivity(0.1)`` means the same for any model.

    Args:
        model: BertForSequenceClassification and the like: an encoder or a decoder with ``config.pad_token_id``.
        tokenizer: its tokenizer. Pairs of texts are given as tuples.
        baseline: what stands for an absent token: "mask", the [MASK] token's embedding; "pad", the padding's; "zero". By
            default the mask where there is one, because the model has learned from it that a word is unknown (Hase et al.
            2021, arXiv 2106.00786, on why other replacements mislead), else zero: a decoder's padding is mostly its
            end-of-text token, which says that the text is over, and [PAD], which attention skips, is never trained.
        max_length: texts are cut after so many tokens, with a warning; default the most that model and tokenizer take.

    The target may be a label of ``config.label2id``. The result's ``tokens`` are (B, T) strings, "" where padded.

    Raises:
        InputError: not a classifier of this kind, no padding token, unknown labels, or a text without tokens.
    """
    return Text(model, tokenizer, baseline, max_length)


class _Embedded(nn.Module):
    """``inner`` with what its embedding table looks up replaced by x (N, T, D)."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner
        # Not self.train(…), which would put every part of the caller's model into that mode.
        self.training = inner.training

    @property
    def config(self) -> Any:
        """The classifier's own, which says whether its labels exclude each other."""
        return self.inner.config

    @property
    def table(self) -> Any:
        return self.inner.get_input_embeddings()  # type: ignore[operator]

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        used = 0
        kwargs = {n: v.expand(len(x), *v.shape[1:]) if isinstance(v, Tensor) else v for n, v in kwargs.items()}

        def replace(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            nonlocal used
            if output.shape != x.shape or not torch.equal(args[0], kwargs["input_ids"]):
                return None  # GPT-2 looks token types up in the same table
            used += 1
            return x

        handle = self.table.register_forward_hook(replace)
        try:
            outputs = self.inner(**kwargs)
        finally:
            handle.remove()
        if used != 1:
            raise InputError(
                f"model: {type(self.inner).__name__} looks its tokens up {used} times in the order given, expected once (is it "
                "compiled, or XLNet?); give embeddings (B, T, D) as x, a model of them, and features=Tokens(present)"
            )
        return getattr(outputs, "logits", outputs)


def _places(model: nn.Module) -> int:
    """How many tokens fit: as many as there are positions, less those that RoBERTa leaves in front."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    most = getattr(model.config, "max_position_embeddings", None)
    return most if most and most > 0 else 10**6


def _embed(table: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return table(ids).detach()


def _texts(inputs: Any) -> list[Any]:
    texts = [inputs] if isinstance(inputs, str) else list(inputs)
    for i, given in enumerate(texts):
        pair = isinstance(given, tuple) and len(given) == 2 and all(isinstance(part, str) for part in given)
        if not isinstance(given, str) and not pair:
            raise InputError(f"inputs[{i}]: expected a text or a pair of texts, got {type(given).__name__}")
    if not texts:
        raise InputError("inputs: no text")
    return texts


def _target(target: Any, labels: Sequence[str], count: int) -> Any:
    """Label names, in any case, → numbers; anything else as it is."""
    named = [target] if isinstance(target, str) else target
    if not isinstance(named, list | tuple) or not any(isinstance(name, str) for name in named):
        return target
    if target == "predicted":
        return None
    known = {label.lower(): number for number, label in enumerate(labels)} | {
        label: number for number, label in enumerate(labels)
    }

    def number(name: Any) -> Any:
        if not isinstance(name, str):
            return name
        return known[name] if name in known else known[choose("target", name.lower(), map(str.lower, labels))]

    found = [number(name) for name in named]
    return found * count if isinstance(target, str) else found
