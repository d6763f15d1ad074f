"""Counting what a call asks of PyTorch: operations, passes of the model, and waits for the device, also on a processor."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}
"""Operations whose result, or its shape, the host has to know: on an accelerator it waits until all work is done."""

ON_THE_HOST = "simplex/"
"""Where tensors are on the host by design: solvers take thousands of small steps. Only what brings them there waits."""

READING = ("tolist", "numpy", "cpu")
"""Methods of a tensor that read its values, which PyTorch does not dispatch for a tensor that is on the host already."""


class Operations(TorchDispatchMode):
    """Counts the operations inside, those of backward passes too.

    What ``tensor.to("cpu")`` would wait for cannot be seen where tensors are on the host; the library writes ``.cpu()``.

    Attributes:
        names: operation → how often it ran.
        waits: "file:line" of the caller's code → how often the host would have waited there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self._patches = contextlib.ExitStack()

    @property
    def total(self) -> int:
        """All operations."""
        return sum(self.names.values())

    @property
    def synchronisations(self) -> int:
        """How often the host would have waited for the device."""
        return sum(self.waits.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.names[name] += 1
        if name in WAITING or _by_mask(name, args) or func is torch.ops.aten.repeat_interleave.Tensor:
            self._note()
        return func(*args, **(kwargs or {}))

    def __enter__(self) -> Operations:
        for method in READING:
            self._patches.enter_context(mock.patch.object(Tensor, method, self._noted(getattr(Tensor, method))))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def _noted(self, method: Callable) -> Callable:
        """A method of a tensor that notes the wait."""

        def noted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._note(moves=method.__name__ == "cpu")
            return method(tensor, *args, **kwargs)

        return noted

    def _note(self, moves: bool = False) -> None:
        """Count a wait. ``moves``: it brings a tensor to the host."""
        caller = _caller()
        if moves or not caller.startswith(ON_THE_HOST):
            self.waits[caller] += 1


def _by_mask(name: str, args: Any) -> bool:
    """Whether an index is a mask: how many elements it picks is known only once it has been computed."""
    if name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return False
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])


def _caller() -> str:
    """Where the library is, innermost: "explainers/stack.py:120"."""
    frame = sys._getframe(3)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if "consilience" in path.parts:
            at = len(path.parts) - 1 - path.parts[::-1].index("consilience")
            return f"{'/'.join(path.parts[at + 1 :])}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


@contextlib.contextmanager
def passes(module: nn.Module) -> Iterator[list[tuple[int, bool]]]:
    """The forward passes of a model that are made inside: (rows, whether with a graph for gradients) of each.

    Args:
        module: the model, with its rows as the first argument.
    """
    seen: list[tuple[int, bool]] = []

    def note(_: nn.Module, args: tuple, output: Any) -> None:
        seen.append((len(args[0]), torch.is_grad_enabled()))

    hook = module.register_forward_hook(note)
    try:
        yield seen
    finally:
        hook.remove()
