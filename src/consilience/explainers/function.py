"""Any callable as an explainer."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, get_args

from torch import Tensor

from ..card import Card
from ..errors import InputError, choose
from ..model.score import Score
from ..perturb.points import Points
from ..statistics.keys import Key
from .base import Direct, Kind
from .hosted import hosted, shaped


class Function(Direct):
    """Any callable as an explainer: ``call(inputs, target=…)`` → (N, *F), or for images (N, 1, H, W) or (N, H, W).

    It gets, by the names of its parameters: ``inputs`` (or the first one), the rows (N, *F); ``target`` or ``targets`` (or the
    second one), an output for each; ``model``, the explained one, without which a measure that exchanges the model cannot be
    right; ``owner`` (N,), to which input each row belongs. ``numpy``: they are arrays (Quantus' convention); what comes back
    may always be one. The model is in eval mode, with gradients on, and comes back as it was, also its gradients and hooks.

    A callable that draws from a global generator is asked row by row. Its maps must not depend on the other rows.

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
        self, call: Callable[..., Any], name: str | None = None, kind: Kind = "relevance", numpy: bool = False
    ) -> None:
        if not callable(call):
            raise InputError(f"methods: names, explainers, Captum methods or callables, got {type(call).__name__}")
        self.call, self.numpy = call, numpy
        self.kind = _known(kind)  # type: ignore[misc]
        self.name = name or _called(call)  # type: ignore[misc]
        try:
            self.parameters = dict(inspect.signature(call).parameters)
        except ValueError:  # a builtin
            self.parameters = {}

    def __repr__(self) -> str:
        return f"Function({self.name}, kind={self.kind!r})"

    def attribute(self, score: Score, points: Points, key: Key) -> Tensor:
        """(N, *F)."""
        if score.kwargs and "owner" not in self.parameters:
            raise InputError(
                f"{self.name}: the model has keyword arguments ({', '.join(score.kwargs)}), which a callable of inputs and "
                "target cannot give to the right rows; let it take owner (N,) too, and index them by it"
            )
        return hosted(lambda part: self._ask(score, part), score, points, key, self.name)

    def rows(self, shape: Sequence[int]) -> dict[str, int]:
        """Not known: one gradient is planned for."""
        return {"gradient": 1}

    def _ask(self, score: Score, points: Points) -> Tensor:
        form = (lambda t: t.cpu().numpy()) if self.numpy else (lambda t: t)
        rows = form(points.x.detach().clone(memory_format=score.layout))
        target = form(score.targets[points.owner])
        known = {"target": target, "targets": target, "model": score.model, "owner": form(points.owner)}
        named = {name: value for name, value in known.items() if name in self.parameters}
        given: list[Any] = []
        if "inputs" in self.parameters:
            named["inputs"] = rows
        else:
            given = [rows]
        if "target" not in named and "targets" not in named:
            kinds = [p.kind for name, p in self.parameters.items() if name not in (*known, "inputs")]
            free = [
                kind
                for kind in kinds
                if kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
            ]
            if given and len(free) > 1:
                given.append(target)
            elif not self.parameters or inspect.Parameter.VAR_KEYWORD in kinds:
                named["target"] = target
        return shaped(self.call(*given, **named), points, self.name)


def _known(kind: Any) -> Kind:
    return choose("kind", kind, get_args(Kind))  # type: ignore[return-value]


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _called(call: Any) -> str:
    while isinstance(call, functools.partial):
        call = call.func
    name = getattr(call, "__name__", None) or _snake(type(call).__name__)
    return "function" if name == "<lambda>" else name
