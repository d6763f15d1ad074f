"""Any callable as an explainer, which is given what its signature says that it takes."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, get_args

from torch import Tensor, nn

from ..card import Card
from ..errors import InputError, choose
from ..model.score import Score
from ..perturb.points import Points
from ..statistics.keys import Key
from .base import Direct, Kind
from .hosted import hosted, shaped

BY_NAME = {"model": "model", "inputs": "inputs", "target": "target", "targets": "target", "owner": "owner"}
"""Parameter → what it is given, whatever its place."""

GIVEN = ("model", "inputs", "target", "owner")
"""All that can be given."""


class Function(Direct):
    """Any callable as an explainer: ``call(inputs, target)`` → (N, *F), or for images (N, 1, H, W) or (N, H, W).

    It may get four things: ``inputs``, the rows (N, *F); ``target`` (N,), an output for each; ``model``, the explained one,
    without which a measure that exchanges the model cannot be right; ``owner`` (N,), to which input each row belongs. Which,
    is read off its signature:

    1. A parameter that is called ``inputs``, ``target`` or ``targets``, ``model`` or ``owner`` gets that. (A ``model`` whose
       default is neither None nor a module means something else, and keeps it.)
    2. The other parameters without a default get, in order, what is missing: the inputs if there is one, the inputs and the
       target if there are two, the model, the inputs and the target if there are three. After the inputs alone, a parameter
       that is None by default gets the target. All others keep their defaults.
    3. A callable without a signature, or with ``**options``, also gets ``target=``, unless it has it already.

    Where that is not what you mean, say it: ``takes=("inputs", "owner")`` is what the parameters get, from the first one on.

    The model is in eval mode, with gradients on, and comes back as it was, also its gradients and hooks. A callable that draws
    from a global generator is asked row by row. Its maps must not depend on the other rows.

    Args:
        call: the callable.
        name: the row's name; by default the callable's own.
        kind: "gradient", "contribution" or "relevance".
        numpy: it takes arrays (Quantus' convention); what comes back may always be one.
        takes: what its first parameters get, in order; None: by the rule above.

    Raises:
        InputError: ``call`` cannot be called, or its signature leaves open what it takes.

    Example:
        >>> import torch, consilience as cs
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        >>> def occlusion(model, inputs, target):
        ...     out = [model(inputs * (torch.arange(4) != i)).gather(1, target[:, None]) for i in range(4)]
        ...     return model(inputs).gather(1, target[:, None]) - torch.cat(out, 1)
        >>> r = cs.explain(net, torch.ones(2, 4), methods=[Function(occlusion), "saliency"], fit_draws=4, fresh_draws=4)
        >>> r["occlusion"].shape
        torch.Size([2, 4])
    """

    card = Card(
        formula="the callable's own",
        source="the caller",
        draws="seeded by key and id, for each point by itself",
        cost="the callable's own, which cannot be known or counted: planned as one gradient",
    )

    def __init__(
        self,
        call: Callable[..., Any],
        name: str | None = None,
        kind: Kind = "relevance",
        numpy: bool = False,
        takes: Sequence[str] | None = None,
    ) -> None:
        if not callable(call):
            raise InputError(f"methods: names, explainers, Captum methods or callables, got {type(call).__name__}")
        self.call = call
        self.numpy = numpy
        self.kind = known_kind(kind)  # type: ignore[misc]
        self.name = name or _name_of(call)  # type: ignore[misc]
        if takes is None:
            self.places, self.keywords = _takes(call, self.name)
        else:
            self.places = tuple(choose("thing to give", what, GIVEN) for what in takes)
            self.keywords = {}

    def __repr__(self) -> str:
        return f"Function({self.name}, kind={self.kind!r})"

    def attribute(self, score: Score, points: Points, key: Key) -> Tensor:
        """The callable's maps, (N, *F)."""
        if score.kwargs and "owner" not in (*self.places, *self.keywords.values()):
            raise InputError(
                f"{self.name}: the model has keyword arguments ({', '.join(score.kwargs)}), which a callable of inputs and "
                "target cannot give to the right rows; let it take owner (N,) too, and index them by it"
            )
        return hosted(lambda part: self._ask(score, part), score, points, key, self.name)

    def rows(self, shape: Sequence[int]) -> dict[str, int]:
        """Not known: one gradient is planned for."""
        return {"gradient": 1}

    def _ask(self, score: Score, points: Points) -> Tensor:
        """The maps of some points."""
        # A copy, since the callable may change its arguments.
        rows = points.x.detach().clone(memory_format=score.layout)
        given: dict[str, Any] = {"inputs": rows, "target": score.targets[points.owner], "owner": points.owner}
        if self.numpy:
            given = {what: value.cpu().numpy() for what, value in given.items()}
        given["model"] = score.model
        places = [given[what] for what in self.places]
        keywords = {name: given[what] for name, what in self.keywords.items()}
        return shaped(self.call(*places, **keywords), points, self.name)


def _takes(call: Callable[..., Any], name: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """(what the positional parameters get, in order; parameter → what it gets by name), by the rule of :class:`Function`.

    Args:
        call: the callable.
        name: the row's name, for errors.
    """
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):  # a builtin has no signature
        return ("inputs",), {"target": "target"}
    keywords, others = _by_name(parameters)

    # The parameters that must be given something, in the order of the signature, get what no name has claimed.
    required = [parameter for parameter in others if parameter.default is parameter.empty]
    unclaimed = [what for what in ("inputs", "target", "model") if what not in keywords.values()]
    # How many there are says which they are; a model comes first by convention.
    given = [what for what in ("model", "inputs", "target") if what in unclaimed[: len(required)]]

    # After the inputs alone, an optional parameter that is None may well be the target. One that is a number may be the
    # target, or may be a setting: that is not guessed.
    optional = [p for p in others if p.default is not p.empty and p.kind is not p.KEYWORD_ONLY]
    next_optional = optional[0] if optional else None
    only_inputs = given == ["inputs"] and "target" in unclaimed
    is_ambiguous = only_inputs and next_optional is not None and type(next_optional.default) is int
    has_inputs = "inputs" in (*given, *keywords.values())
    if len(required) > len(unclaimed) or not has_inputs or is_ambiguous:
        raise InputError(
            f"methods: what {name!r} takes is not clear from its signature {inspect.signature(call)}; say it with "
            f"consilience.explainers.Function(call, takes=('inputs', 'target')), of {', '.join(GIVEN)}"
        )
    if only_inputs and next_optional is not None and next_optional.default is None:
        required.append(next_optional)
        given.append("target")

    takes_any_keyword = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    if takes_any_keyword and "target" not in (*given, *keywords.values()):
        keywords["target"] = "target"
    return _bound(required, given, keywords)


def _by_name(parameters: Sequence[inspect.Parameter]) -> tuple[dict[str, str], list[inspect.Parameter]]:
    """(parameter → what its name says that it gets, the parameters whose names say nothing)."""
    keywords: dict[str, str] = {}
    others: list[inspect.Parameter] = []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name not in BY_NAME or parameter.kind is parameter.POSITIONAL_ONLY:
            others.append(parameter)
        elif parameter.name != "model" or _is_explained_model(parameter.default):
            keywords[parameter.name] = BY_NAME[parameter.name]
    return keywords, others


def _is_explained_model(default: Any) -> bool:
    """Whether a parameter called ``model`` with this default means the explained one."""
    return default is None or default is inspect.Parameter.empty or isinstance(default, nn.Module)


def _bound(
    required: Sequence[inspect.Parameter], given: Sequence[str], keywords: dict[str, str]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The answer of :func:`_takes`: by name where a name may be used, so that the order of parameters does not matter."""
    places: list[str] = []
    for parameter, what in zip(required, given, strict=True):
        if parameter.kind is parameter.POSITIONAL_ONLY:
            places.append(what)
        else:
            keywords[parameter.name] = what
    return tuple(places), keywords


def known_kind(kind: Any) -> Kind:
    """``kind``, if it is one of an explainer's kinds.

    Raises:
        InputError: it is not.
    """
    return choose("kind", kind, get_args(Kind))  # type: ignore[return-value]


def snake_case(name: str) -> str:
    """The ``name`` of a class as the name of a row: "DeepLift" → "deep_lift"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _name_of(call: Any) -> str:
    """A callable's own name, or its class's."""
    while isinstance(call, functools.partial):
        call = call.func
    name = getattr(call, "__name__", None) or snake_case(type(call).__name__)
    if name == "<lambda>":
        return "function"
    return name
