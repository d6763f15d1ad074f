"""Hugging Face text classifiers: tokens are the features; noise and baselines are embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, choose
from ..features.sequences import Tokens
from ..model.state import borrowed
from ..perturb.baseline import Baseline
from ..settings import checked
from ..signatures import known_arguments
from .base import Adapter, Prepared

BASELINES = ("mask", "pad", "zero")


@dataclass(frozen=True)
class _Tokens:
    """Tokens of B texts, each (B, T), padded on the right.

    Args:
        ids: of the vocabulary.
        attended: which of them the model attends to: all but padding.
        special: which of them the tokenizer adds: [CLS], [SEP], padding.
        types: the number of the text of a pair to which a token belongs, for models that ask for it; else None.
        cut: the numbers of the texts that were too long.
    """

    ids: Tensor
    attended: Tensor
    special: Tensor
    types: Tensor | None
    cut: tuple[int, ...]

    @property
    def present(self) -> Tensor:
        """The tokens that are features."""
        return self.attended & ~self.special


class Text(Adapter):
    """A classifier of transformers whose inputs are texts. :func:`text` makes it.

    Args:
        model: as for :func:`text`.
        tokenizer: as for :func:`text`.
        baseline: as for :func:`text`.
        max_length: as for :func:`text`.

    Raises:
        InputError: a model of another kind; a tokenizer that cannot be called; an unknown ``baseline``, or a ``max_length``
            that is not a positive whole number.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, baseline: str | None = None, max_length: int | None = None):
        # What the rest takes for granted, refused here where the remedy can be named.
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
        self.model = model
        self.tokenizer = tokenizer
        if baseline is None:
            has_mask = getattr(tokenizer, "mask_token_id", None) is not None
            baseline = "mask" if has_mask else "zero"
        self.baseline = checked("baseline", baseline, str, choices=BASELINES)
        # A tokenizer that knows no limit has a huge one, and then the model's positions count.
        if max_length is None:
            self.max_length = min(tokenizer.model_max_length, _longest_text(model))
        else:
            self.max_length = checked("max_length", max_length, int, low=1)

    def prepare(self, inputs: Any, target: Any = None, features: Any = None, baselines: Any = None) -> Prepared:
        """Texts (a string, strings, or pairs of strings) as embeddings (B, T, D)."""
        if features is not None:
            raise InputError("features: of a text they are its tokens; leave features out")
        texts = _texts(inputs)
        tokens = self._tokens(texts)
        present = tokens.present
        empty = (~present.any(1)).nonzero()[:, 0].tolist()
        if empty:
            raise InputError(f"inputs[{empty[0]}]: {texts[empty[0]]!r} has no token that could be explained")
        module = _Embedded(self.model)
        x = _embed(module.table, tokens.ids)
        kwargs = {"input_ids": tokens.ids, "attention_mask": tokens.attended.long()}
        if tokens.types is not None:
            kwargs["token_type_ids"] = tokens.types
        self._refuse_if_padding_matters(module, x, kwargs, tokens.attended)
        names = getattr(self.model.config, "id2label", None) or {}
        labels = [str(names[number]) for number in sorted(names)]
        about = {
            "tokens": self._words(tokens),
            "texts": [" ¶ ".join(_parts(text)) for text in texts],
            "labels": labels,
        }
        # A tenth of noise then means the same for any model; special tokens and padding do not move.
        unit = present[..., None] * module.table.weight.detach().float().std()
        most = f"cut to its first {self.max_length} tokens, the most that the model takes"
        return Prepared(
            model=module,
            x=x,
            target=_target(target, labels, len(texts)),
            features=Tokens(present),
            kwargs=kwargs,
            baselines=self._origin(x, present, module.table, baselines),
            unit=unit,
            about=about,
            warnings=tuple(f"inputs[{number}]: {most}" for number in tokens.cut),
        )

    def _words(self, tokens: _Tokens) -> list[list[str]]:
        """(B, T) tokens as strings, "" where padded."""
        length = tokens.ids.shape[1]
        words = []
        for ids, attended in zip(tokens.ids.cpu(), tokens.attended.cpu(), strict=True):
            row = self.tokenizer.convert_ids_to_tokens(ids[attended].tolist())
            words.append([*row, *[""] * (length - len(row))])
        return words

    def _tokens(self, texts: Sequence[Any]) -> _Tokens:
        """The texts' tokens, padded on the right, so that a token has the same place, hence the same noise, in any batch."""
        pad = getattr(self.model.config, "pad_token_id", None)
        if pad is None:
            raise InputError(
                "model: config.pad_token_id is None, so the model cannot tell padding from text; set "
                "tokenizer.pad_token = tokenizer.eos_token and model.config.pad_token_id = tokenizer.pad_token_id"
            )
        options = {"return_special_tokens_mask": True, "truncation": True, "max_length": self.max_length}
        # One by one, and padded here: tokenizers differ in the side on which they pad.
        rows = [self.tokenizer(*_parts(text), **options) for text in texts]
        length = max(1, *(len(row["input_ids"]) for row in rows))
        device = next(self.model.parameters()).device

        def padded_rows(name: str, fill: int) -> Tensor:
            padded = [[*row[name], *[fill] * (length - len(row[name]))] for row in rows]
            return torch.tensor(padded, device=device)

        lengths = torch.tensor([len(row["input_ids"]) for row in rows], device=device)
        types = None
        if "token_type_ids" in rows[0] and "token_type_ids" in signature(self.model.forward).parameters:
            types = padded_rows("token_type_ids", 0)
        return _Tokens(
            ids=padded_rows("input_ids", pad),
            attended=torch.arange(length, device=device) < lengths[:, None],
            special=padded_rows("special_tokens_mask", 1).bool(),
            types=types,
            cut=self._too_long(texts, lengths.tolist()),
        )

    def _too_long(self, texts: Sequence[Any], lengths: Sequence[int]) -> tuple[int, ...]:
        """The numbers of the texts that have more tokens than were kept.

        Args:
            texts: the texts.
            lengths: how many tokens of each were kept.
        """
        cut = []
        for number, (text, length) in enumerate(zip(texts, lengths, strict=True)):
            if length != self.max_length:
                continue
            # Whether a text of the greatest length was cut or just fits, only the tokenizer can say.
            whole = self.tokenizer(*_parts(text), verbose=False)["input_ids"]
            if len(whole) > length:
                cut.append(number)
        return tuple(cut)

    @staticmethod
    def _refuse_if_padding_matters(module: _Embedded, x: Tensor, kwargs: dict[str, Tensor], attended: Tensor) -> None:
        """Refuse a model whose output for the shortest text changes with the padding behind it (XLNet reads the last place).

        Args:
            module: the model of embeddings.
            x: (B, T, D).
            kwargs: its other arguments, (B, T) each.
            attended: (B, T) bool, what is not padding.
        """
        shortest = attended.sum(1).min(0)
        length = int(shortest.values)
        number = int(shortest.indices)
        if length == x.shape[1]:
            return
        # The shortest text with its padding, as it is in the batch, and without.
        row = x[number : number + 1]
        padded = {name: value[number : number + 1] for name, value in kwargs.items()}
        alone = {name: value[:, :length] for name, value in padded.items()}
        with torch.no_grad(), borrowed(module, freeze=True):
            with_padding = module(row, **padded).float()
            without = module(row[:, :length], **alone).float()
        # Texts of another length are rounded differently, but by far less than 2 %.
        difference = (with_padding - without).abs()
        if bool((difference > 0.02 * without.abs().max()).any()):
            raise InputError(
                f"model: its output for inputs[{number}] changes when padding is put behind the text; explain texts of one "
                "length at a time"
            )

    def _origin(self, x: Tensor, present: Tensor, table: Any, baselines: Any) -> Any:
        """The baseline's embedding for every feature, (B, T, D); special tokens and padding keep their own.

        Args:
            x: (B, T, D), the texts' embeddings.
            present: (B, T) bool, the tokens that are features.
            table: the embedding table.
            baselines: what the caller asked for; anything else than a name is returned as it is.
        """
        if baselines is not None and not isinstance(baselines, str):
            return baselines
        name = self.baseline
        if baselines is not None:
            name = choose("baselines", baselines, BASELINES)
        if name == "zero":
            row = torch.zeros_like(x[0, 0])
        else:
            token = getattr(self.tokenizer, f"{name}_token_id")
            if token is None:
                raise InputError(f"baseline: the tokenizer has no {name} token; use 'zero'")
            row = _embed(table, torch.tensor([token], device=x.device))[0]
        return Baseline.per_input(torch.where(present[..., None], row, x))


@known_arguments()
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
    """A classifier as a function of embeddings: what its table looks up is replaced by x (N, T, D)."""

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
        """The embedding table."""
        return self.inner.get_input_embeddings()  # type: ignore[operator]

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        used = 0
        # Of one text, for all its neighbours.
        for name, value in kwargs.items():
            if isinstance(value, Tensor):
                kwargs[name] = value.expand(len(x), *value.shape[1:])

        def replace(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            nonlocal used
            # Only the look-up of the ids: GPT-2 looks token types up in the same table.
            if output.shape != x.shape or not torch.equal(args[0], kwargs["input_ids"]):
                return None
            used += 1
            return x

        # The model looks the ids up itself, and a hook on its table puts x in place of what it gets. So positions, types and
        # masks are made as ever, which inputs_embeds= would leave to each model's own code.
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


def _longest_text(model: nn.Module) -> int:
    """How many tokens a model takes: as many as it has positions, less those that RoBERTa leaves unused in front."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            if module.padding_idx is None:
                return module.num_embeddings
            # RoBERTa counts positions from behind that of padding.
            return module.num_embeddings - (module.padding_idx + 1)
    most = getattr(model.config, "max_position_embeddings", None)
    if most and most > 0:
        return most
    # Relative positions have no end.
    return 10**6


def _embed(table: Any, ids: Tensor) -> Tensor:
    """The embeddings of tokens, (…, D), without a graph."""
    with torch.no_grad():
        return table(ids).detach()


def _parts(text: str | tuple[str, str]) -> tuple[str, ...]:
    """One text or the two of a pair, as a tokenizer takes them."""
    return text if isinstance(text, tuple) else (text,)


def _texts(inputs: Any) -> list[Any]:
    """A string, strings or pairs of strings as a list; raises InputError for anything else."""
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
    numbers = {label.lower(): number for number, label in enumerate(labels)}
    # Two labels may differ in case only: as it is written comes first.
    numbers |= {label: number for number, label in enumerate(labels)}

    def number(name: Any) -> Any:
        if not isinstance(name, str):
            return name
        if name in numbers:
            return numbers[name]
        return numbers[choose("target", name.lower(), map(str.lower, labels))]

    targets = [number(name) for name in named]
    if isinstance(target, str):
        return targets * count
    return targets
