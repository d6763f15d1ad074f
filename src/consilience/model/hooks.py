"""Forward hooks that leave no trace, whenever the call is interrupted, and that see no other thread's calls."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

Hooks = Sequence[tuple[nn.Module, Callable]]
"""Modules, each with a hook; a module may occur several times."""


@contextlib.contextmanager
def attached(before: Hooks = (), after: Hooks = ()) -> Iterator[None]:
    """Hooks that are registered inside, of which none is left afterwards, also after an interrupt inside the clean-up.

    Args:
        before: (module, forward pre-hook (module, args) → None or new arguments).
        after: (module, forward hook (module, args, output) → None or a new output); called after an exception too.
    """
    thread = threading.get_ident()
    pre_hooks = [(module, _only_in(thread, hook)) for module, hook in before]
    forward_hooks = [(module, _only_in(thread, hook)) for module, hook in after]
    try:
        for module, hook in pre_hooks:
            module.register_forward_pre_hook(hook)
        for module, hook in forward_hooks:
            # After an exception too: whoever keeps a stack of the modules that run must see each of them end.
            module.register_forward_hook(hook, always_call=True)
        yield
    finally:
        try:
            _detach([*pre_hooks, *forward_hooks])
        except BaseException:
            _detach([*pre_hooks, *forward_hooks])  # an interrupt within the line above: what it left
            raise


def _only_in(thread: int, hook: Callable) -> Callable:
    """The hook for one thread. Another one may run the same module meanwhile, and must neither be recorded nor changed."""

    def guarded(*args: Any) -> Any:
        if threading.get_ident() != thread:
            return None
        return hook(*args)

    return guarded


def _detach(hooks: Hooks) -> None:
    """Remove hooks, found by their identity.

    PyTorch's handles would do it too, but an interrupt between registering a hook and keeping its handle would leave it.
    """
    for module, hook in hooks:
        tables = (module._forward_pre_hooks, module._forward_hooks)
        numbers = [number for table in tables for number, known in list(table.items()) if known is hook]
        # Of some hooks PyTorch keeps their number in further tables, which say how they are to be called.
        notes = (
            module._forward_pre_hooks_with_kwargs,
            module._forward_hooks_with_kwargs,
            module._forward_hooks_always_called,
        )
        for table in (*tables, *notes):
            for number in numbers:
                table.pop(number, None)
